"""Shutdown: however the caller ends, soon nothing of the pipeline is left, and nobody prints more than one traceback.

Law: where the caller must die, it is a script in a process group of its own, which says on standard output
when it is where the test wants it; the processes below it are noted then, by number and start time, and must all be
gone a second after it.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

from conveyor import Pipe, Pipeline, Processor, StateError
from tests.support import ROOT, TestCase, _everyone, nothing_left

LIMIT_SECONDS = 2.0
"""What the end may take, on a busy machine; 0.1 s is usual, and 0.4 s where a worker has to be killed."""

HEAD = """
import itertools, os, signal, sys, threading, time
from conveyor import *

SETTINGS = {settings!r}

def say(word):
    os.write(1, (word + "\\n").encode())

def same(item):
    return item

def announce(item):
    say("busy")
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

def waiting_source():
    yield 1
    say("busy")
    threading.Event().wait()

def make(*processors):
    pipeline = Pipeline(**SETTINGS)
    for number, processor in enumerate(processors):
        if number:
            pipeline.add(Pipe())
        pipeline.add(processor)
    return pipeline

if __name__ == "__main__":
"""


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
        for line in self.process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"the script never said {word!r}:\n{self.stderr()}")

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
            threading.Event().wait()
    """,
    "consumer, in with": """
        with make(Processor(same), Processor(same)) as pipeline:
            for _ in pipeline.stream(itertools.count()):
                say("busy")
                threading.Event().wait()
    """,
    "open": "make(SlowSetup(), SlowSetup()).open()",
    "idle": """
        with make(Processor(same), Processor(same)) as pipeline:
            pipeline.run([1, 2])
            say("busy")
            threading.Event().wait()
    """,
}

WAYS = [("fork", "pipe"), ("fork", "queue"), ("forkserver", "pipe"), ("spawn", "pipe")]


class ShutdownTest(TestCase):
    """The caller ends."""

    def test_ctrl_c(self):
        for (method, channel), what in itertools.product(WAYS, BODIES):
            if method != "fork" and what not in ("run", "open", "consumer"):
                continue
            with self.subTest(method=method, channel=channel, what=what):
                script = Script(self, BODIES[what], start_method=method, channel=channel)
                script.wait_for("busy")
                script.note().send(signal.SIGINT)
                code = script.end()
                text = script.stderr()
                assert code == -signal.SIGINT, (code, text)
                assert text.count("Traceback") == 1 and text.rstrip().endswith("KeyboardInterrupt"), text

    def test_ctrl_c_at_any_moment_of_the_start(self):
        # From the first moment on at which processes exist, whatever they are at.  Modules are imported before: an
        # import that is interrupted leaves an open file, of which `-W error` has Python print a traceback more.
        for method in ("fork", "spawn"):
            for moment in (0.0, 0.02, 0.05, 0.1, 0.15):
                with self.subTest(method=method, moment=moment):
                    body = """
                        import conveyor.engines.process, multiprocessing.util
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
                    assert text.count("Traceback") == 1, text
                    assert "KeyboardInterrupt" in text.splitlines()[-1], text

    def test_the_caller_is_terminated_or_killed(self):
        for number, (method, channel), what in itertools.product(
            (signal.SIGTERM, signal.SIGKILL), WAYS, ("run", "run, busy loop", "consumer", "open", "idle")
        ):
            if method != "fork" and (number == signal.SIGTERM or what not in ("run", "idle")):
                continue
            with self.subTest(signal=number, method=method, channel=channel, what=what):
                script = Script(self, BODIES[what], start_method=method, channel=channel)
                script.wait_for("busy")
                script.note().process.send_signal(number)
                assert script.end() == -number
                assert "Traceback" not in script.stderr(), script.stderr()

    def test_the_interpreter_ends_with_a_pipeline_left_open(self):
        for method, channel in WAYS:
            for body in (
                "pipeline = make(Processor(same)).open(); pipeline.run([1])",
                "stream = make(Processor(same), Processor(same)).stream(itertools.count()); next(stream)",
                "pipeline = make(Processor(sleeps)).open(); stream = pipeline.stream([1])",
                "pipeline = make(Processor(same)).open(); sys.exit(0)",
            ):
                with self.subTest(method=method, channel=channel, body=body):
                    script = Script(self, body + "\n", start_method=method, channel=channel)
                    script.note()
                    assert script.end(within=5) == 0, script.stderr()
                    assert script.stderr() == "", script.stderr()

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
        for leave in ("os._exit(0)", "sys.exit(0)", "pipeline.close(); os._exit(0)", "stream.close(); os._exit(0)"):
            with self.subTest(leave=leave):
                script = Script(self, body.format(leave=leave), start_method="fork")
                script.wait_for("good")
                assert script.end() == 0
                assert script.stderr() == "", script.stderr()


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
        for method, channel in WAYS:
            with self.subTest(method=method, channel=channel), nothing_left():
                yield (
                    Pipeline(start_method=method, channel=channel)
                    .add(Processor(same))
                    .add(Pipe(maxsize=10))
                    .add(Processor(same))
                )

    def test_by_break_close_exception_or_dropping(self):
        for pipeline in self.pipelines():
            for source in (lambda: range(10_000), itertools.count):
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

    def test_close_in_the_middle(self):
        for pipeline in self.pipelines():
            pipeline.open()
            stream = pipeline.stream(itertools.count())
            next(stream)
            pipeline.close()
            with self.assertRaises(StateError):
                while True:
                    next(stream)

    def test_a_stream_is_given_up_at_once(self):
        # Over and over, so that the word of its start and that of its end overtake each other.
        with nothing_left(), Pipeline().add(Processor(same)) as pipeline:
            for _ in range(300):
                pipeline.stream(itertools.count()).close()
            assert pipeline.run([1]) == [1]

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
