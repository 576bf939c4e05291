"""What becomes of the input when a run is over: the generator is closed where it ran, and nothing refers to any of it.

Law: the cycle collector is off, and exceptions are kept, so what a cycle or a frame of ours holds is seen.  All of it
happens in the caller, so how workers start makes no difference.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
import unittest
import weakref

from conveyor import Pipe, Pipeline, Processor, ProcessorError, SourceError, StateError
from tests.helpers.support import TestCase, nothing_left, slow


class Item:
    """What can be seen from afar."""

    def __init__(self, number):
        self.number = number


class Stubborn(Item):
    """Cannot be pickled."""

    def __reduce__(self):
        raise ValueError("not me")


class Given:
    """A source, and what is known of it."""

    def __init__(self, items, kind=Item, fail_at=None):
        self.items, self.kind, self.fail_at = items, kind, fail_at
        self.seen = []
        self.threads = []
        self.closed = False

    def new(self, number):
        if number == self.fail_at and self.kind is Item:
            raise KeyError(number)
        item = (self.kind if number == self.fail_at else Item)(number)
        self.seen.append(weakref.ref(item))
        return item

    def generator(self):
        made = self._generate()
        self.seen.append(weakref.ref(made))
        return made

    def list(self):
        return [self.new(number) for number in self.items]

    def map(self):
        return map(self.new, self.items)

    def _generate(self):
        self.threads.append(threading.get_ident())
        try:
            for number in self.items:
                yield self.new(number)
        finally:
            self.threads.append(threading.get_ident())
            self.closed = True

    def check(self):
        """Whoever gave it is closed, in its thread, and nothing of it is left."""
        if self.threads:
            assert self.closed
            assert self.threads[::2] == self.threads[1::2], self.threads
        left = [each() for each in self.seen if each() is not None]
        assert not left, [(each, gc.get_referrers(each)) for each in left[:2]]


def number_of(item):
    return item.number


def fail_on_seven(item):
    if item.number == 7:
        raise ValueError("seven")
    return item.number


class Shared:
    """What holds for every engine; `pickles`: an item that cannot be pickled is a failure."""

    settings = {"engine": "inline"}
    pickles = True

    def setUp(self):
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)

    def make(self, job=number_of):
        job = job if isinstance(job, Processor) else Processor(job)
        return Pipeline(**self.settings).add(job).add(Pipe(maxsize=50)).add(Processor(str))

    def endings(self):
        """Yield a pipeline, as it is and open, and what runs it; then look at what is left."""
        for opened in (False, True):
            for given in (Given(range(200)), Given(itertools.count())):
                with self.subTest(opened=opened, items=given.items), nothing_left():
                    pipeline = self.make()
                    with pipeline if opened else contextlib.nullcontext():
                        yield pipeline, given
                        given.check()

    def test_break(self):
        for pipeline, given in self.endings():
            for result in pipeline.stream(given.generator()):
                if result == "5":
                    break

    def test_close(self):
        for pipeline, given in self.endings():
            results = pipeline.stream(given.generator())
            assert next(results) == "0"
            results.close()
            given.check()
            results = pipeline.stream(given.generator())
            results.close()

    def test_close_of_the_pipeline(self):
        for pipeline, given in self.endings():
            results = pipeline.stream(given.generator())
            assert next(results) == "0"
            pipeline.close()
            given.check()
            with self.assertRaises(StateError):
                list(results)

    def test_an_exception_in_the_loop(self):
        for pipeline, given in self.endings():
            with contextlib.suppress(ZeroDivisionError):
                for result in pipeline.stream(given.generator()):
                    1 // (5 - int(result))

    def test_whole_runs(self):
        for opened in (False, True):
            for count in (0, 1, 20, 1000) if opened else (0, 1000):
                with self.subTest(opened=opened, count=count), nothing_left():
                    pipeline, given = self.make(), Given(range(count))
                    with pipeline if opened else contextlib.nullcontext():
                        assert len(pipeline.run(given.generator())) == count
                        given.check()
                        assert len(pipeline.run([given.new(number) for number in range(count)])) == count
                        given.check()
                        assert len(pipeline.run(map(given.new, range(count)))) == count
                        given.check()
                        assert len(list(pipeline.stream(given.generator()))) == count
                        given.check()

    def test_failures(self):
        for job, items, settings, kind in (
            (fail_on_seven, itertools.count, {}, ProcessorError),
            (number_of, itertools.count, {"fail_at": 7}, SourceError),
            (number_of, itertools.count, {"fail_at": 7, "kind": Stubborn}, SourceError),
            (number_of, lambda: range(20), {"fail_at": 7, "kind": Stubborn}, SourceError),
        ):
            for opened in (False, True):
                for shape in (Given.generator,) if opened else (Given.generator, Given.list, Given.map):
                    given = Given(items(), **settings)
                    if given.kind is Stubborn and not self.pickles:
                        continue
                    if shape is not Given.generator and (items is itertools.count or given.kind is Item):
                        given.items = range(20)
                    if shape is Given.list and kind is SourceError and given.kind is Item:
                        continue
                    with self.subTest(kind=kind, items=given.items, opened=opened, shape=shape), nothing_left():
                        pipeline = self.make(job)
                        with pipeline if opened else contextlib.nullcontext():
                            caught = None
                            try:
                                pipeline.run(shape(given))
                            except kind as error:
                                caught = error
                            assert caught is not None
                            if given.kind is Stubborn or not self.pickles:
                                # This is the frame of its own `__reduce__`, or of the job that has it.
                                caught.__cause__.__traceback__ = None
                            given.check()

    def test_a_failure_in_setup(self):
        with nothing_left():
            given, caught = Given(range(10)), None
            try:
                self.make(Unwilling()).run(given.generator())
            except ProcessorError as error:
                caught = error
            assert caught is not None
            given.check()

    def test_chained(self):
        for chain in (3, 2):
            with self.subTest(chain=chain), nothing_left():
                given = Given(itertools.count())
                results = self.make().stream(given.generator())
                for _ in range(chain - 1):
                    results = Pipeline(**self.settings).add(Processor(str)).stream(results)
                for result in results:
                    if result == "5":
                        break
                del results
                given.check()


class Unwilling(Processor):
    """Cannot be set up."""

    def setup(self):
        raise ValueError("no")

    def process(self, item):
        return item


class InlineTest(Shared, TestCase):
    """Everything in this process."""


class Processes(Shared):
    """What holds where the source has a thread of its own."""

    def test_a_source_that_takes_its_time_to_end(self):
        ended = []

        def source():
            try:
                yield from itertools.count()
            finally:
                time.sleep(0.7)
                ended.append(threading.current_thread().name)

        with nothing_left():
            for result in Pipeline(**self.settings).add(Processor(str)).stream(source()):
                if result == "3":
                    break
            assert len(ended) == 1 and ended[0].startswith("conveyor-source"), ended
            with self.assertRaises(ProcessorError):
                Pipeline(**self.settings).add(Processor(fail_on_seven)).run(Item(7) for _ in source())
            assert len(ended) == 2, ended

    def test_a_source_that_is_stuck(self):
        for opened in (False, True):
            with self.subTest(opened=opened), nothing_left():
                go_on, ended = threading.Event(), threading.Event()
                threads = []

                def source(go_on=go_on, ended=ended, threads=threads):
                    threads.append(threading.get_ident())
                    try:
                        yield 1
                        go_on.wait(30)
                        yield 2
                    finally:
                        threads.append(threading.get_ident())
                        ended.set()

                pipeline = Pipeline(**self.settings).add(Processor(str))
                with pipeline if opened else contextlib.nullcontext():
                    results = pipeline.stream(source())
                    assert next(results) == "1"
                    begun = time.monotonic()
                    results.close()
                    assert time.monotonic() - begun < 4
                    assert not ended.is_set()
                    assert pipeline.run(number for number in range(100)) == [str(number) for number in range(100)]
                    go_on.set()
                    assert ended.wait(10)
                    assert len(set(threads)) == 1

    def test_a_source_that_waits_for_room(self):
        # Its thread sees at once that the run was given up, although the worker is at an item for long.
        begun = threading.Event()

        def source():
            try:
                for number in itertools.count():
                    begun.set()
                    yield number
            finally:
                ended.append(time.monotonic())

        ended = []
        with nothing_left(), Pipeline(**self.settings).add(Processor(sleep_after_five)) as pipeline:
            results = pipeline.stream(source())
            assert [next(results) for _ in range(5)] == list(range(5))
            results.close()
            assert ended
            pipeline.close()


def sleep_after_five(number):
    if number >= 5:
        time.sleep(3)
    return number


class ThreadTest(Processes, TestCase):
    """Threads of this process."""

    settings = {"engine": "thread"}
    pickles = False
    # A job that goes on sleeping is in `test_thread_engine.py`.
    test_a_source_that_waits_for_room = None


class ForkPipeTest(Processes, TestCase):
    """Forked workers, over socket pairs."""

    settings = {"start_method": "fork", "channel": "pipe"}


@slow
class ForkQueueTest(Processes, TestCase):
    """Forked workers, over queues."""

    settings = {"start_method": "fork", "channel": "queue"}
    # The source holds its items, and no channel: only pickles travel.
    test_whole_runs = None
    test_failures = None
    test_a_failure_in_setup = None
    test_chained = None
    test_close = None
    test_close_of_the_pipeline = None
    test_an_exception_in_the_loop = None
    test_a_source_that_takes_its_time_to_end = None


if __name__ == "__main__":
    unittest.main()
