"""Shutdown: however the caller ends, soon nothing of the pipeline is left, and nobody prints more than one traceback.

Law: where the caller must die, it is a script in a process group of its own, which says on standard output
when it is where the test wants it; the processes below it are noted then, by number and start time, and must all be
gone `LIMIT_SECONDS` after it: on a machine at rest it takes less than one.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import itertools
import os
import signal
import sys
import textwrap
import threading
import time
import unittest
import warnings
from pathlib import Path

from conveyor import Pipe, Pipeline, Processor, StateError
from conveyor._system.signals import interrupts_held
from conveyor.engines.process.system.waiting import GRACE_SECONDS
from tests.helpers.late import mock, subprocess, tempfile
from tests.helpers.support import ALL, ROOT, HungTest, TestCase, _everyone, nothing_left

LIMIT_SECONDS = 5.0
"""What the end may take, on a busy machine; 0.1 s is usual, and 0.4 s where a worker has to be killed."""

HEAD = """
import itertools, multiprocessing, os, signal, sys, threading, time
from conveyor import *

SETTINGS = {settings!r}

# Where the tests run in the background, it is ignored, and Python leaves that so.
signal.signal(signal.SIGINT, signal.default_int_handler)

def say(word):
    os.write(1, (word + "\\n").encode())

def same(item):
    return item

def announce(item):
    say("busy")
    return item

def print_it(item):
    print("job", item)
    return item

DIED = __file__ + ".died"

def die_once(item):
    if item == 50 and not os.path.exists(DIED):
        open(DIED, "w").close()
        os._exit(3)
    return item

def sleeps(item):
    say("busy")
    time.sleep(1000)

def spins(item):
    say("busy")
    while True:
        pass

class SlowSetup(Processor):
    def setup(self):
        say("busy")
        time.sleep(1000)

    def process(self, item):
        return item

def wait():
    # In short turns: a signal that comes just before a wait begins does not end it.
    while True:
        time.sleep(0.05)

def waiting_source():
    yield 1
    say("busy")
    wait()

def make(*processors):
    pipeline = Pipeline(**SETTINGS)
    for number, processor in enumerate(processors):
        if number:
            pipeline.add(Pipe())
        pipeline.add(processor)
    return pipeline

if __name__ == "__main__":
"""


# So many scripts start while another is looked at.
STARTED_AHEAD = 2


class Script:
    """A running script: its code is the body under the main guard."""

    def __init__(self, test, body, **settings):
        folder = tempfile.TemporaryDirectory()
        test.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, "script.py")
        with open(path, "w") as file:
            file.write(HEAD.format(settings=settings) + textwrap.indent(textwrap.dedent(body), "    "))
        self.errors = tempfile.TemporaryFile("w+")
        test.addCleanup(self.errors.close)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        test.addCleanup(self.clean)
        self.known = {}

    def wait_for(self, word):
        """Wait until the script has said a word."""
        try:
            for line in self.process.stdout:
                if line.strip() == word:
                    return
        except HungTest as hung:
            raise HungTest(f"{hung}\n{self.last_words()}") from None
        raise AssertionError(f"the script never said {word!r}:\n{self.stderr()}")

    def last_words(self):
        """Return which processes of the group there are, and what it has written; with PYTHONFAULTHANDLER, its stacks."""
        group = []
        for pid, status in _everyone().items():
            with contextlib.suppress(OSError):
                if os.getpgid(pid) == self.process.pid:
                    group.append((pid, status))
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        return f"{group}\n{self.stderr()}"

    def note(self):
        """Note the processes below the script, but for the helpers of the standard library."""
        generation = {self.process.pid}
        everyone = _everyone()
        while generation:
            generation = {pid for pid, status in everyone.items() if status.parent in generation}
            self.known.update((pid, everyone[pid].started) for pid in generation)
        return self

    def send(self, number):
        """Send a signal to the whole group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self, within=LIMIT_SECONDS):
        """Wait for the end of the script, and of all that was noted; return its exit code."""
        begun = time.monotonic()
        code = self.process.wait(max(10.0, within))
        while True:
            everyone = _everyone()
            left = [
                pid
                for pid, started in self.known.items()
                if pid in everyone and everyone[pid].started == started and everyone[pid].state != "Z"
            ]
            seconds = time.monotonic() - begun
            if not left:
                break
            assert seconds < within, f"left after {seconds:.1f} s: {[everyone[pid] for pid in left]}\n{self.stderr()}"
            time.sleep(0.005)
        assert seconds < within, f"took {seconds:.2f} s\n{self.stderr()}"
        if os.environ.get("CONVEYOR_TEST_TIMES"):
            print(f"{seconds:6.3f} s, {len(self.known)} processes, code {code}")
        return code

    def stderr(self):
        """What has been written to standard error."""
        self.errors.seek(0)
        return self.errors.read()

    def clean(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def each_with_script(test, cases, body_and_settings):
    """Yield each case with a script of its own; the next ones start meanwhile."""
    waiting = collections.deque()
    for case in cases:
        body, settings = body_and_settings(case)
        waiting.append((case, Script(test, body, **settings)))
        if len(waiting) > STARTED_AHEAD:
            yield waiting.popleft()
    yield from waiting


def tracebacks(text):
    """How many exceptions ended something; one that Python itself swallows, and only prints, does not."""
    return text.count("Traceback") - text.count("Exception ignored in")


BODIES = {
    "run": "make(Processor(same), Processor(announce), Processor(sleeps)).run(itertools.count())",
    "run, busy loop": "make(Processor(spins)).run([1])",
    "stream, waiting": """
        for _ in make(Processor(same)).stream(waiting_source()):
            pass
    """,
    "consumer": """
        for _ in make(Processor(same), Processor(same)).stream(itertools.count()):
            say("busy")
            wait()
    """,
    "consumer, in with": """
        with make(Processor(same), Processor(same)) as pipeline:
            for _ in pipeline.stream(itertools.count()):
                say("busy")
                wait()
    """,
    "open": "make(SlowSetup(), SlowSetup()).open()",
    "idle": """
        with make(Processor(same), Processor(same)) as pipeline:
            pipeline.run([1, 2])
            say("busy")
            wait()
    """,
}

WAYS = [("fork", "pipe"), ("fork", "queue"), ("forkserver", "pipe"), ("spawn", "pipe")]
if not ALL:
    WAYS = [WAYS[0], WAYS[-1]]
# Where it makes no difference whether a fresh interpreter starts the workers or forks them.
FEW_WAYS = [way for way in WAYS if way[0] != "forkserver"] if ALL else WAYS[:1]
# Where the channel makes no difference, either.
FORK_AND_SPAWN = [WAYS[0], WAYS[-1]] if ALL else WAYS[:1]


class ShutdownTest(TestCase):
    """The caller ends."""

    def test_ctrl_c(self):
        cases = [
            (method, channel, what)
            for (method, channel), what in itertools.product(WAYS, BODIES)
            if ((method, channel) == WAYS[0] and (ALL or what not in ("consumer", "consumer, in with")))
            # What the caller is at is the caller's affair; the others differ by those whom the signal hits, too.
            or what in ("run", "open", "consumer")[: 3 if ALL else 1]
        ]
        for case, script in each_with_script(self, cases, self.made):
            with self.subTest(case=case):
                script.wait_for("busy")
                script.note().send(signal.SIGINT)
                code = script.end()
                text = script.stderr()
                assert code == -signal.SIGINT, (code, text)
                assert tracebacks(text) == 1 and text.rstrip().endswith("KeyboardInterrupt"), text

    def made(self, case):
        """The script of a start method, a channel, and what it does."""
        method, channel, what = case
        return BODIES.get(what, what), {"start_method": method, "channel": channel}

    def test_ctrl_c_at_any_moment_of_the_start(self):
        # From the first moment on at which processes exist, whatever they are at.  Modules are imported before: an
        # import that is interrupted leaves an open file, of which `-W error` has Python print a traceback more.
        # Where processes are forked they are there sooner.
        few = {"fork": (0.0, 0.03), "spawn": (0.1,)}
        for method in ("fork", "spawn"):
            moments = (0.0, 0.02, 0.05, 0.1, 0.15)
            for moment in moments[: 3 if method == "fork" else None] if ALL else few[method]:
                with self.subTest(method=method, moment=moment):
                    body = """
                        import conveyor.engines.process.caller.session, multiprocessing.util
                        import multiprocessing.popen_fork, multiprocessing.popen_spawn_posix
                        make(Processor(same)).run([1])
                        say("begin")
                        make(Processor(same), Processor(same)).run(itertools.count())
                    """
                    script = Script(self, body, start_method=method)
                    script.wait_for("begin")
                    time.sleep(moment)  # not to wait for something: any moment will do
                    script.note().send(signal.SIGINT)
                    script.end()
                    text = script.stderr()
                    assert tracebacks(text) == 1, text
                    assert "KeyboardInterrupt" in text.splitlines()[-1], text

    def test_the_caller_is_terminated_or_killed(self):
        kinds = ("run", "run, busy loop", "consumer", "open", "idle")
        cases = [
            (number, (method, channel, what))
            for number, (method, channel), what in itertools.product((signal.SIGTERM, signal.SIGKILL), WAYS, kinds)
            if (
                (method, channel) == WAYS[0]
                and (ALL or what in ("run", "run, busy loop", "idle")[: 1 if number == signal.SIGTERM else 3])
            )
            or (number == signal.SIGKILL and what in ("run", "idle")[: 2 if ALL else 1])
        ]
        for (number, case), script in each_with_script(self, cases, lambda each: self.made(each[1])):
            with self.subTest(signal=number, case=case):
                script.wait_for("busy")
                script.note().process.send_signal(number)
                assert script.end() == -number
                assert "Traceback" not in script.stderr(), script.stderr()

    def test_the_caller_is_killed_at_any_moment_of_the_start(self):
        # Also while the broker is not there yet, and has no parent to watch when it is.
        body = """
            import conveyor.engines.process.caller.session, multiprocessing.popen_spawn_posix
            say("begin")
            make(Processor(same), Processor(same)).run(itertools.count())
        """
        for method, channel in [*WAYS, ("spawn", "queue")] if ALL else WAYS:
            # Where processes are forked they are there sooner.
            moments = (0.0, 0.01, 0.03) if method == "fork" else (0.0, 0.05, 0.1, 0.2)
            # One who makes semaphores does so at the first of them.
            for moment in moments[:2] if channel == "queue" and ALL else moments if ALL else moments[1:2]:
                with self.subTest(method=method, channel=channel, moment=moment):
                    script = Script(self, body, start_method=method, channel=channel)
                    script.wait_for("begin")
                    self.wait_for_a_child(script)
                    time.sleep(moment)  # not to wait for something: any moment will do
                    script.note().process.kill()
                    assert script.end(within=10) == -signal.SIGKILL
                    self.assert_group_is_empty(script)

    def wait_for_a_child(self, script):
        """Wait until the script has started its broker: one that is killed while the standard library makes a semaphore
        leaves that behind, and nobody else knows its name."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for pid, status in _everyone().items():
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if status.parent == script.process.pid and b"resource_tracker" not in command:
                        return
        raise AssertionError(f"no broker:\n{script.stderr()}")

    def assert_group_is_empty(self, script):
        """Fail when anything of the script's process group is left, whether it was noted or started since."""
        deadline = time.monotonic() + 5
        while True:
            left = [
                (pid, status)
                for pid, status in _everyone().items()
                if status.group == script.process.pid and status.state != "Z"
            ]
            if not left:
                return
            assert time.monotonic() < deadline, left
            time.sleep(0.01)

    def test_the_interpreter_ends_with_a_pipeline_left_open(self):
        bodies = (
            "pipeline = make(Processor(same)).open(); pipeline.run([1])\n",
            "stream = make(Processor(same), Processor(same)).stream(itertools.count()); next(stream)\n",
            "pipeline = make(Processor(sleeps)).open(); stream = pipeline.stream([1])\n",
            "pipeline = make(Processor(same)).open(); sys.exit(0)\n",
        )
        cases = [(*way, body) for way in WAYS for body in (bodies if way in FORK_AND_SPAWN else bodies[:1])]
        for case, script in each_with_script(self, cases, self.made):
            with self.subTest(case=case):
                script.note()
                assert script.end(within=10) == 0, script.stderr()
                assert script.stderr() == "", script.stderr()

    def test_an_exception_of_a_signal_handler_is_the_callers(self):
        # Also one that looks like what a broken channel raises.
        body = """
            def on_alarm(number, frame):
                raise TimeoutError("time is up")

            signal.signal(signal.SIGALRM, on_alarm)
            try:
                with make(Processor(sleeps)) as pipeline:
                    # Amid the start of a fresh interpreter, that would have something to say, too.
                    signal.setitimer(signal.ITIMER_REAL, 0.3)
                    pipeline.run([1])
            except TimeoutError as error:
                assert str(error) == "time is up"
                say("good")
        """
        self.all_good([(*way, body) for way in WAYS])

    def test_what_stands_still_meanwhile_uses_up_no_grace(self):
        # As with a computer that is suspended: all of them are stopped, for longer than workers get for their end.
        body = """
            class Slow(Processor):
                def process(self, item):
                    return item

                def teardown(self):
                    say("busy")
                    until = time.process_time() + 0.05
                    while time.process_time() < until:
                        pass
                    say("torn down")

            with make(Slow()):
                raise KeyError
        """
        # They stand still side by side.
        scripts = []
        for _ in range(4 if ALL else 2):
            script = Script(self, body)
            script.wait_for("busy")
            script.note().send(signal.SIGSTOP)
            scripts.append(script)
        time.sleep(3 * GRACE_SECONDS)  # not to wait for something: that long nobody runs
        for script in scripts:
            script.send(signal.SIGCONT)
            script.wait_for("torn down")
            assert script.end() == 1

    def test_what_stands_still_meanwhile_is_no_time_of_an_item(self):
        # As with Ctrl-Z and `fg`: what an item may take is not used up by that.
        body = """
            def takes(item):
                before = time.monotonic()
                say("busy")
                # Until it has stood still.  What takes processor time takes more than a second on a busy machine.
                while (now := time.monotonic()) < before + 0.7:
                    before = now
                    time.sleep(0.01)
                return item

            pipeline = make(Processor(takes, timeout=1.0))
            assert pipeline.run(range(2)) == [0, 1]
            say("done")
        """
        # They stand still side by side.
        scripts = [Script(self, body, **settings) for settings in ({}, {"channel": "queue"})]
        for _ in range(2):
            for script in scripts:
                script.wait_for("busy")
                script.send(signal.SIGSTOP)
            time.sleep(1.5)  # not to wait for something: that long nobody runs
            for script in scripts:
                script.send(signal.SIGCONT)
        for script in scripts:
            script.wait_for("done")
            assert script.end() == 0, script.stderr()

    def test_a_program_that_does_not_hear_of_its_children(self):
        body = """
            def reap(number, frame):
                try:
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass
                except ChildProcessError:
                    pass

            signal.signal(signal.SIGCHLD, {handler})
            descriptors = len(os.listdir("/proc/self/fd"))
            for _ in range(2):
                assert make(Processor(same), Processor(same)).run([1, 2]) == [1, 2]
                try:
                    make(Processor(os._exit)).run([3])
                except WorkerDiedError as error:
                    assert error.exitcode == 3, error
            # The standard library's own helper may have been started, and keeps one.
            assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
            say("good")
        """
        handlers = itertools.product(FORK_AND_SPAWN, ("signal.SIG_IGN", "reap"))
        self.all_good([(*way, body.format(handler=handler)) for way, handler in handlers])

    def all_good(self, cases, silent=True):
        """Each of the scripts says that it is good, and ends; where it is silent, without a word to standard error."""
        for case, script in each_with_script(self, cases, self.made):
            with self.subTest(case=case):
                script.wait_for("good")
                assert script.note().end() == 0, script.stderr()
                assert not silent or script.stderr() == "", script.stderr()

    def test_a_program_that_a_broken_pipe_ends(self):
        # As those set it up whose output goes to `head`.  A broker, or a worker, that is gone is none of their pipes.
        body = """
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for _ in range({times}):
                assert make(Processor(same), Processor(same)).run(range(1000)) == list(range(1000))
            assert make(Processor(die_once, workers=2)).run(range(100)) == list(range(100))
            for job in (os._exit, int):
                try:
                    make(Processor(job)).run(["x"] if job is int else [3])
                except ProcessorError:
                    pass
            with make(Processor(same)) as pipeline:
                pipeline.run([1])
                broker = multiprocessing.active_children()[0]
                broker.kill()
                broker.join()
                try:
                    pipeline.run(range(100))
                except ProcessError:
                    pass
            say("good")
        """
        cases = [(*way, body.format(times=1 if way[0] == "spawn" else 3)) for way in FEW_WAYS]
        self.all_good(cases, silent=False)

    def test_a_program_without_standard_streams(self):
        # As daemons are started: what a job prints must not end up in a channel that has taken their numbers.
        body = """
            pipe = os.dup(1)
            for descriptor in {closed}:
                os.close(descriptor)
            assert make(Processor(print_it), Processor(print_it)).run(range(1000)) == list(range(1000))
            for descriptor in {closed}:
                try:
                    os.fstat(descriptor)
                except OSError:
                    continue
                raise AssertionError(descriptor)
            os.write(pipe, b"good\\n")
            os._exit(0)
        """
        streams = (((0, 1), FEW_WAYS), ((0, 1, 2), WAYS[-1:]), ((1,), WAYS[-1:] if ALL else WAYS[:1]))
        cases = [(*way, body.format(closed=closed)) for closed, ways in streams for way in ways]
        self.all_good(cases, silent=False)

    def test_ctrl_c_while_a_stream_is_closed_or_dropped(self):
        # The source holds its thread for a while, so that the end of the stream takes a while too.
        body = """
            def source():
                for number in itertools.count():
                    yield number
                    time.sleep(0.1)

            with make(Processor(same)) as pipeline:
                stream = pipeline.stream(source())
                next(stream)
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
                signal.setitimer(signal.ITIMER_REAL, 0.03)
                try:
                    {leave}
                    time.sleep(10)
                except KeyboardInterrupt:
                    say("interrupted")
                assert pipeline.run([1, 2]) == [1, 2]
                say("good")
        """
        for leave in ("stream.close()", "del stream"):
            with self.subTest(leave=leave):
                script = Script(self, body.format(leave=leave), start_method="fork")
                script.wait_for("interrupted")
                script.wait_for("good")
                assert script.end() == 0, script.stderr()
                assert script.stderr() == "", script.stderr()

    def test_ctrl_c_again_and_again(self):
        # Wherever it comes: nothing but KeyboardInterrupt is raised, and nothing is left of the pipeline.
        body = """
            import collections, random
            {run}
            pid, random_ = os.getpid(), random.Random(5)
            sniper = os.fork()
            if not sniper:
                # As many as it takes: now and then one is printed, and not raised.
                while os.getppid() == pid:
                    time.sleep(random_.uniform(0.03, 0.06))
                    os.kill(pid, signal.SIGINT)
                os._exit(0)
            left = {times}
            while left:
                # Twice, as one may come between two rounds of the inner loop.
                try:
                    while left:
                        try:
                            while True:
                                {run}
                        except KeyboardInterrupt:
                            left -= 1
                except KeyboardInterrupt:
                    pass
            while True:
                try:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                    os.kill(sniper, signal.SIGKILL)
                    os.waitpid(sniper, 0)
                    break
                except KeyboardInterrupt:
                    pass
            for thread in threading.enumerate():
                # One that was to interrupt a moment later ends by itself.
                if thread.name == "conveyor-interrupt":
                    thread.join(5)
            assert threading.active_count() == 1, threading.enumerate()
            assert not multiprocessing.active_children(), multiprocessing.active_children()
            say("good")
        """
        runs = (
            "make(Processor(same)).run([1, 2, 3])",
            "make(Processor(same), Processor(same)).run(number for number in range(20))",
            "next(make(Processor(same)).stream(itertools.count()))",
        )
        # One that comes while Python drops an object of its own is printed, and not raised.
        self.all_good(
            [("fork", "pipe", body.format(run=run, times=20 if ALL else 10)) for run in runs],
            silent=False,
        )

    def test_a_process_that_the_caller_forks(self):
        body = """
            pipeline = make(Processor(same)).open()
            stream = pipeline.stream(itertools.count())
            next(stream)
            child = os.fork()
            if not child:
                {leave}
            assert os.waitpid(child, 0)[1] == 0
            assert next(stream) == 1
            stream.close()
            assert pipeline.run([5]) == [5]
            pipeline.close()
            say("good")
        """
        # Through os._exit as it should be, and through the end of the interpreter as it may be.
        leaves = ("os._exit(0)", "sys.exit(0)", "pipeline.close(); os._exit(0)", "stream.close(); os._exit(0)")
        self.all_good([("fork", "pipe", body.format(leave=leave)) for leave in leaves])


def same(item):
    return item


def forever(item):
    """Yields without an end, a little at a time."""
    for number in itertools.count():
        time.sleep(0.005)
        yield number


class LeavingTest(TestCase):
    """The caller goes on, and has left a stream."""

    def pipelines(self):
        for method, channel in FORK_AND_SPAWN:
            with self.subTest(method=method, channel=channel), nothing_left():
                yield (
                    Pipeline(start_method=method, channel=channel)
                    .add(Processor(same))
                    .add(Pipe(maxsize=10))
                    .add(Processor(same))
                )

    def test_by_break_close_exception_or_dropping(self):
        for (method, _), pipeline in zip(FORK_AND_SPAWN, self.pipelines(), strict=True):
            # What is left has a length or none; where each start is dear, it has none.
            for source in (itertools.count, lambda: range(10_000))[: 2 if method == "fork" else 1]:
                for _ in pipeline.stream(source()):
                    break
                stream = pipeline.stream(source())
                next(stream)
                stream.close()
                stream = pipeline.stream(source())
                del stream
                with self.assertRaises(ZeroDivisionError):
                    for result in pipeline.stream(source()):
                        1 // (3 - result)

    def test_close_by_the_source(self):
        def source(pipeline):
            yield from range(100)
            pipeline.close()
            yield from range(100)

        for pipeline in self.pipelines():
            for _ in range(2):
                pipeline.open()
                with self.assertRaises(StateError):
                    pipeline.run(source(pipeline))

    def test_close_in_the_middle(self):
        for pipeline in self.pipelines():
            pipeline.open()
            stream = pipeline.stream(itertools.count())
            next(stream)
            pipeline.close()
            with self.assertRaises(StateError):
                while True:
                    next(stream)

    def test_a_pipeline_is_dropped_while_it_is_open(self):
        # Also where the warning is made an error, of which Python prints that it ignored it.
        for action in ("error", "always"):
            ignored, raised = [], sys.unraisablehook
            sys.unraisablehook = lambda unraisable, ignored=ignored: ignored.append(unraisable.exc_value)
            try:
                with nothing_left(), warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter(action, ResourceWarning)
                    pipeline = Pipeline().add(Processor(same)).open()
                    del pipeline
            finally:
                sys.unraisablehook = raised
            (warning,) = ignored if action == "error" else [each.message for each in caught]
            assert isinstance(warning, ResourceWarning) and "close it" in str(warning), warning

    def test_a_pipeline_is_open_where_the_program_ends(self):
        # Python imports nothing any more then.
        code = (
            "from conveyor import Pipeline, Processor\n"
            "pipeline = Pipeline(engine='inline').add(Processor(len)).open()\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        )
        self.assertRegex(done.stderr, r"\A.* was dropped while it was open: close it\n\Z")

    def test_a_pipeline_is_dropped_in_a_cycle(self):
        class Owner:
            def __init__(self):
                self.pipeline = Pipeline().add(Processor(same)).open()
                self.itself = self

        with nothing_left(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            Owner()
            gc.collect()
        (warning,) = caught
        assert "close it" in str(warning.message), warning

    def test_a_ctrl_c_before_the_finalizer_can_keep_it_back(self):
        ignored, raised = [], sys.unraisablehook
        sys.unraisablehook = lambda unraisable: ignored.append(unraisable.exc_type)
        try:
            pipeline = Pipeline().add(Processor(same)).open()
            held = mock.Mock(side_effect=[KeyboardInterrupt, interrupts_held(finalizing=True)])
            with mock.patch("conveyor.pipeline.interrupts_held", held):
                session = pipeline._lifecycle.session
                del pipeline
                assert session.ended
        finally:
            sys.unraisablehook = raised
        assert ignored == [KeyboardInterrupt]

    def test_a_stream_is_given_up_at_once(self):
        # Over and over, so that the word of its start and that of its end overtake each other.
        with nothing_left(), Pipeline().add(Processor(same)) as pipeline:
            for _ in range(150 if ALL else 100):
                pipeline.stream(itertools.count()).close()
            assert pipeline.run([1]) == [1]

    def test_a_stream_is_given_up_while_a_thread_of_its_source_is_started(self):
        begun, go_on, start = threading.Event(), threading.Event(), threading.Thread.start

        def start_late(thread):
            if thread.name == "conveyor-look-out":
                begun.set()
                go_on.wait(2.0)  # a result may be waited for meanwhile, and then only comes once it is started
            start(thread)

        with nothing_left(), mock.patch.object(threading.Thread, "start", start_late):
            stream = Pipeline().add(Processor(same)).stream(itertools.count())
            try:
                for _ in stream:
                    if begun.is_set():
                        break
                stream.close()
            finally:
                go_on.set()

    def test_a_generator_that_yields_for_ever_is_given_up(self):
        with nothing_left(), Pipeline().add(Processor(forever)) as pipeline:
            with pipeline.stream([1]) as stream:
                assert next(stream) == 0
                begun = time.monotonic()
            assert time.monotonic() - begun < LIMIT_SECONDS
            with pipeline.stream([1]) as stream:
                assert [next(stream) for _ in range(3)] == [0, 1, 2]


if __name__ == "__main__":
    unittest.main()
