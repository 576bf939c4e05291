"""A pipeline that threads share: every method and property may be called from any thread at any time.

Law: whatever another thread does, a call gives what it gives alone, or raises StateError.  Nothing hangs or is left.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import unittest
import warnings
from pathlib import Path

from conveyor import AbandonedThreadWarning, ImplicitPipeWarning, Pipe, Pipeline, Processor, StateError
from tests.helpers.late import mock
from tests.helpers.support import ALL, TestCase, nothing_left, slow

LIMIT_SECONDS = 8.0


def same(item):
    return item


def increment(item):
    return item + 1


def process_number(item):
    return os.getpid()


def wait_at_one(item):
    """Waits at the item 1, longer than any test takes."""
    if item == 1:
        time.sleep(60)
    return item


class Waiting(Processor):
    """Says that its `setup` has begun, and waits there for the word to go on."""

    def __init__(self, folder):
        self.begun, self.go_on = Path(folder, "begun"), Path(folder, "go on")

    def setup(self):
        self.begun.touch()
        until(self.go_on.exists)

    def process(self, item):
        return item


class Leaving(Waiting):
    """The same in `teardown`."""

    def setup(self):
        pass

    def teardown(self):
        super().setup()


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.002)


class Caller(threading.Thread):
    """Calls something, and keeps what came of it."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.result, self.error, self.seconds = call, None, None, 0.0
        self.start()

    def run(self):
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error.with_traceback(None)

    def outcome(self):
        """What it has returned; raises what it has raised."""
        self.join(50)
        assert not self.is_alive(), "it hangs"
        if self.error is not None:
            raise self.error
        return self.result


def restless(test):
    """Have threads take turns as often as can be, and let them fork beside each other, and leave out Pipes."""
    interval = sys.getswitchinterval()
    test.addCleanup(sys.setswitchinterval, interval)
    sys.setswitchinterval(1e-5)
    # Each test restores the filters at its end.
    warnings.simplefilter("ignore", ImplicitPipeWarning)
    warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning)


class Shared:
    """What holds for every engine."""

    settings = {"engine": "inline"}
    rounds = 50 if ALL else 25
    # How often a pipeline is opened while another thread does something to it.
    openings = 8 if ALL else 5
    # What a handler of a signal does, and whether the pipeline was opened before.
    interrupts = (("close", True), ("look", True), ("run", False))

    def make(self, *elements):
        pipeline = Pipeline(**self.settings)
        for element in elements:
            pipeline.add(element)
        return pipeline

    def test_runs(self):
        restless(self)
        wanted = 25 if ALL else 10

        def serve():
            right = 0
            while right < wanted:
                number = random.randrange(10**9)
                try:
                    assert pipeline.run([number]) == [number + 1]
                    right += 1
                except StateError:
                    time.sleep(0.0002)

        with nothing_left(), self.make(Processor(increment)) as pipeline:
            for thread in [Caller(serve) for _ in range(4)]:
                thread.outcome()

    def test_everything_at_once(self):
        restless(self)
        seen = collections.Counter()
        rounds = self.rounds

        def run():
            assert pipeline.run([1, 2, 3]) == [2, 3, 4]

        def stream():
            with pipeline.stream(itertools.count()) as results:
                assert [next(results) for _ in range(3)] == [1, 2, 3]

        def look():
            pipeline.stats()
            assert pipeline.failures == ()

        def add():
            pipeline.add(Pipe())

        calls = [run, run, stream, look, add, lambda: pipeline.open(), lambda: pipeline.close(), lambda: repr(pipeline)]

        def serve(seed):
            source = random.Random(seed)
            for _ in range(rounds):
                try:
                    source.choice(calls)()
                    seen["right"] += 1
                except StateError:
                    seen["busy"] += 1

        with nothing_left():
            pipeline = self.make(Processor(increment))
            for thread in [Caller(lambda seed=seed: serve(seed)) for seed in range(4)]:
                thread.outcome()
            pipeline.close()
            assert pipeline.run([1]) == [2]
        assert seen["right"], seen

    def test_add(self):
        restless(self)
        pipeline = self.make(Processor(increment))
        added = [Caller(lambda: [pipeline.add(Pipe()).add(Processor(increment)) for _ in range(20)]) for _ in range(4)]
        for thread in added:
            thread.outcome()
        assert repr(pipeline).count("Processor(") == 81

    def test_add_and_open(self):
        # What is added is there, or the one who adds is told that it is too late.
        restless(self)
        with nothing_left():
            for _ in range(self.openings):
                pipeline = self.make(Processor(increment))
                adding = Caller(lambda pipeline=pipeline: pipeline.add(Processor(increment, name="second")))
                results = pipeline.run([1])
                try:
                    adding.outcome()
                except StateError:
                    assert results == [2]
                else:
                    assert results == [3] or pipeline.run([1]) == [3]

    def test_close_while_another_thread_opens(self):
        def check(start):
            job = Waiting(self.new_folder())
            pipeline = self.make(job)
            opening = Caller(lambda: getattr(pipeline, start)(*[[1]][: start == "run"]))
            until(job.begun.exists)
            with self.assertRaises(StateError):
                pipeline.open()
            with self.assertRaises(StateError):
                pipeline.run([1])
            with self.assertRaises(StateError):
                pipeline.add(Pipe())
            begun = time.monotonic()
            pipeline.close()
            assert time.monotonic() - begun < LIMIT_SECONDS
            job.go_on.touch()
            with self.assertRaises(StateError):
                opening.outcome()
            assert pipeline.run([1]) == [1]

        warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning)
        with nothing_left():
            for thread in [Caller(lambda start=start: check(start)) for start in ("open", "run")]:
                thread.outcome()

    def test_close_twice(self):
        with nothing_left():
            job = Leaving(self.new_folder())
            pipeline = self.make(job).open()
            first = Caller(pipeline.close)
            until(job.begun.exists)
            with self.assertRaises(StateError):
                pipeline.run([1])
            second = Caller(pipeline.close)
            job.go_on.touch()
            second.outcome()
            assert not multiprocessing.active_children()
            first.outcome()

    def test_the_next_result_for_two_threads(self):
        folder = self.new_folder()
        go_on = Path(folder, "go on")

        def source():
            yield 1
            until(go_on.exists)
            yield 2

        with nothing_left(), self.make(Processor(same)) as pipeline, pipeline.stream(source()) as results:
            assert next(results) == 1
            waiting = Caller(lambda: next(results))
            until(lambda: results._results.gi_running)
            with self.assertRaises(StateError):
                next(results)
            go_on.touch()
            assert waiting.outcome() == 2

    def test_stats_while_another_thread_opens(self):
        restless(self)
        with nothing_left():
            pipeline, stop = self.make(Processor(increment)), threading.Event()

            def look():
                while not stop.is_set():
                    try:
                        assert pipeline.stats()["increment"].items_in <= 3
                    except StateError:
                        continue

            assert pipeline.run([1]) == [2]
            looking = Caller(look)
            for _ in range(min(5, self.openings)):
                assert pipeline.run([1, 2, 3]) == [2, 3, 4]
            stop.set()
            looking.outcome()

    def test_a_process_that_is_forked_meanwhile(self):
        warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning)
        job = Waiting(self.new_folder())
        pipeline = self.make(job)
        with nothing_left():
            opening = Caller(pipeline.open)
            until(job.begun.exists)
            child = os.fork()
            if not child:
                signal.alarm(20)
                code = 1
                try:
                    for call in (lambda: pipeline.run([1]), pipeline.open, lambda: pipeline.add(Pipe())):
                        try:
                            call()
                            os._exit(2)
                        except StateError:
                            pass
                    pipeline.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            job.go_on.touch()
            assert opening.outcome() is pipeline
            assert pipeline.run([1]) == [1]
            pipeline.close()


class InlineTest(Shared, TestCase):
    """Everything in this process."""

    def setUp(self):
        super().setUp()
        # What opens in this process does not hear of a close, so that is waited for in vain.
        patch = mock.patch("conveyor.operations.ENDING_SECONDS", 0.2)
        patch.start()
        self.addCleanup(patch.stop)


class ThreadTest(Shared, TestCase):
    """Threads of this process."""

    settings = {"engine": "thread"}

    def setUp(self):
        super().setUp()
        # Of a job that waits until the test is over.
        warnings.filterwarnings("ignore", category=AbandonedThreadWarning)


class Processes(Shared):
    """What holds where jobs have processes of their own."""

    def test_close_while_another_thread_waits_for_results(self):
        with nothing_left():
            pipeline = self.make(Processor(wait_at_one)).open()
            results = pipeline.stream(range(2))
            assert next(results) == 0
            waiting = Caller(lambda: next(results))
            until(lambda: results._results.gi_running)
            begun = time.monotonic()
            pipeline.close()
            assert time.monotonic() - begun < LIMIT_SECONDS
            with self.assertRaises(StateError):
                waiting.outcome()
            assert pipeline.run([5]) == [5]

    def test_a_stream_that_is_closed_while_another_thread_waits_for_it(self):
        go_on = threading.Event()

        def source():
            yield 0
            go_on.wait(30)

        with nothing_left(), self.make(Processor(process_number)) as pipeline:
            (worker,) = pipeline.run([1])
            results = pipeline.stream(source())
            next(results)
            waiting = Caller(lambda: next(results))
            until(lambda: results._results.gi_running)
            begun = time.monotonic()
            results.close()
            assert time.monotonic() - begun < LIMIT_SECONDS
            with self.assertRaises(StateError):
                waiting.outcome()
            assert list(results) == []
            assert pipeline.run([1]) == [worker]
            go_on.set()

    def test_a_loop_over_a_stream_that_another_thread_closes(self):
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        # Threads take turns wherever they may.
        sys.setswitchinterval(1e-5)
        for _ in range(self.openings):
            results = self.make(Processor(process_number)).stream(itertools.count())
            next(results)
            closing = Caller(results.close)
            # Whether it is just between two results or not.
            with contextlib.suppress(StateError):
                for _ in results:
                    pass
            closing.outcome()

    def test_what_a_signal_handler_does(self):
        def close(*_):
            pipeline.close()

        def look(*_):
            pipeline.stats()
            pipeline.close()

        def run(*_):
            with self.assertRaises(StateError):
                pipeline.run([1])
            pipeline.close()

        before = signal.getsignal(signal.SIGUSR1)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        handlers = {"close": close, "look": look, "run": run}
        for handler, opened in self.interrupts:
            with self.subTest(handler=handler, opened=opened), nothing_left():
                pipeline = self.make(Processor(wait_at_one))
                if opened:
                    pipeline.open()
                signal.signal(signal.SIGUSR1, handlers[handler])
                results = pipeline.stream(range(2))
                assert next(results) == 0
                threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1]).start()
                with self.assertRaises(StateError):
                    next(results)
                assert pipeline.run([2]) == [2]
                pipeline.close()

    def test_an_inherited_pipeline(self):
        # It must not disturb the process that it belongs to.
        warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning)
        with nothing_left(), self.make(Processor(increment)) as pipeline:
            child = os.fork()
            if not child:
                try:
                    pipeline.run(range(10))
                except StateError:
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert pipeline.run(range(10)) == list(range(1, 11))


class ForkPipeTest(Processes, TestCase):
    """Forked workers, over socket pairs."""

    settings = {"start_method": "fork", "channel": "pipe"}


@slow
class ForkQueueTest(Processes, TestCase):
    """Forked workers, over queues."""

    settings = {"start_method": "fork", "channel": "queue"}
    interrupts = (("look", False),)
    # The same caller, which looks at no channel for it.
    test_runs = None
    test_add = None
    test_add_and_open = None
    test_close_twice = None
    test_stats_while_another_thread_opens = None
    test_the_next_result_for_two_threads = None
    test_close_while_another_thread_opens = None


@slow
class SpawnTest(Processes, TestCase):
    """A fresh broker, which is started in the same way where workers are forked by it; and fresh workers."""

    settings = {"start_method": "spawn"}
    # Processes take long to start.
    rounds = 5
    openings = 2
    interrupts = (("run", False),)
    # The same caller, whatever it has started.
    test_runs = None
    test_add = None
    test_add_and_open = None
    test_close_twice = None
    test_stats_while_another_thread_opens = None
    test_the_next_result_for_two_threads = None
    test_a_stream_that_is_closed_while_another_thread_waits_for_it = None


if __name__ == "__main__":
    unittest.main()
