"""StopIteration: from whatever code of the user's it comes, it is an error like any other, and never an end.

Law: whoever takes values from an iterator reads a StopIteration as its end; so each test has one that a user's function
raises where the machinery could be taking values, and looks for its value and its line in what the caller gets.
"""

from __future__ import annotations

import unittest
from pathlib import Path

from conveyor import Pipe, Pipeline, Processor, ProcessorError
from conveyor.stages.outputs import Fused, StageError
from tests.helpers.late import tempfile
from tests.helpers.support import TestCase, nothing_left

FIVE = StopIteration("no header in", 5)


def same(item):
    return item


def stop_at_five(item):
    if item == 5:
        raise StopIteration("no header in", item)
    return item


def stop_at_batch_of_five(items):
    return [stop_at_five(item) for item in items]


def next_row(item):
    rows = iter(range(item))
    next(rows)
    return item


def yield_and_stop(item):
    yield item
    stop_at_five(item)


class Stop(Processor):
    def process(self, item):
        return stop_at_five(item)


class StopAt(Processor):
    """Raises at one of the other moments."""

    def __init__(self, moment):
        self.moment = moment

    def process(self, item):
        return item

    def stop_at(self, moment):
        if moment == self.moment:
            stop_at_five(5)

    def setup(self):
        self.stop_at("setup")

    def finish(self):
        self.stop_at("finish")

    def teardown(self):
        self.stop_at("teardown")


class Reused:
    """A job that gives one object again and again, so that each output is pickled before the next call."""

    def __init__(self):
        self.buffer = bytearray(1)

    def __call__(self, item):
        self.buffer[0] = stop_at_five(item)
        return self.buffer


class Rebuilt:
    """Cannot be unpickled at its number 5."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return stop_at_five, (self.number,)


class Noting:
    """Writes down each item that it is called with."""

    def __init__(self, path):
        self.path = path

    def __call__(self, item):
        with open(self.path, "a") as file:
            file.write(f"{item} ")
        return stop_at_five(item)


class StopIterationTest(TestCase):
    """What the caller gets."""

    def caught(self, *processors, items=range(10), **settings):
        """Return the error of a run that fails."""
        pipeline = Pipeline(**settings).add(processors[0])
        for processor in processors[1:]:
            pipeline.add(Pipe()).add(processor)
        with nothing_left(), self.assertRaises(ProcessorError) as caught:
            pipeline.run(items)
        return caught.exception

    def check(self, error, phase="process"):
        """Check that an error has the value, and the line at which it was raised."""
        assert (type(error.__cause__), error.__cause__.args) == (StopIteration, FIVE.args)
        assert error.phase == phase
        assert 'raise StopIteration("no header in", item)' in error.traceback, error.traceback

    def test_from_a_job(self):
        for settings in (
            {},
            {"engine": "inline"},
            {"engine": "thread"},
            {"channel": "queue"},
            {"start_method": "spawn"},
        ):
            ways = ({}, {"workers": 2}, {"timeout": 30}, {"retries": 1, "backoff": 0}, {"max_items": 9})
            # A worker calls its job in the same way however it was started, and however messages travel.
            for arguments in ways[:2] if "channel" in settings else ways[:1] if "start_method" in settings else ways:
                with self.subTest(settings=settings, arguments=arguments):
                    error = self.caught(Processor(stop_at_five, **arguments), **settings)
                    self.check(error)
                    assert (error.number, error.item) == (5, "5")
                    assert error.attempts == 1 + arguments.get("retries", 0)

    def test_from_a_batch_a_subclass_and_a_job_that_reuses_a_buffer(self):
        for settings in ({}, {"engine": "inline"}, {"engine": "thread"}):
            for processor in (Processor(stop_at_batch_of_five, batch=3), Stop(), Stop(timeout=30), Processor(Reused())):
                with self.subTest(settings=settings, processor=processor):
                    error = self.caught(processor, items=[*range(9)] * 50, **settings)
                    self.check(error)
                    assert error.number <= 5 <= error.last

    def test_from_fused_jobs(self):
        for jobs in ([stop_at_five, same], [same, stop_at_five], [str, int, stop_at_five, same]):
            with self.subTest(jobs=jobs):
                error = self.caught(*map(Processor, jobs), fuse=True)
                self.check(error)
                assert (error.processor, error.number, error.item) == ("stop_at_five", 5, "5")

    def test_fused_jobs_are_called_once_with_each_item(self):
        calls = []

        def job(item):
            calls.append(item)
            return stop_at_five(item)

        results = []
        with self.assertRaises(StageError) as caught:
            results.extend(Fused([("same", same, False), ("job", job, False)]).over(list(range(9))))
        assert (results, calls) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])
        assert caught.exception.__cause__.args == FIVE.args

    def test_next_on_what_is_empty(self):
        for settings in ({}, {"engine": "inline"}, {"engine": "thread"}, {"fuse": True}):
            with self.subTest(settings=settings):
                error = self.caught(Processor(next_row), Processor(same), items=[3, 2, 1, 0], **settings)
                assert (type(error.__cause__), error.number) == (StopIteration, 3)
                assert "next(rows)" in error.traceback

    def test_from_a_generator(self):
        # Python makes a RuntimeError of it; the line is in the traceback.
        for settings in ({}, {"engine": "inline"}, {"engine": "thread"}, {"fuse": True}):
            with self.subTest(settings=settings):
                error = self.caught(Processor(yield_and_stop), Processor(same), **settings)
                assert (type(error.__cause__), error.number) == (RuntimeError, 5)
                assert 'raise StopIteration("no header in", item)' in error.traceback

    def test_what_is_given_up_has_it(self):
        for engine in ("process", "thread", "inline"):
            for on_error in ("skip", lambda item, error: error.args):
                with self.subTest(engine=engine, on_error=on_error), nothing_left():
                    pipeline = Pipeline(engine=engine).add(Processor(stop_at_five, on_error=on_error))
                    middle = [] if on_error == "skip" else [FIVE.args]
                    assert pipeline.run(range(8)) == [0, 1, 2, 3, 4, *middle, 6, 7]
                    (failed,) = pipeline.failures
                    assert failed.number == 5
                    self.check(failed.error)

    def test_no_item_is_tried_twice_or_left_out(self):
        for arguments in ({}, {"timeout": 30}, {"workers": 2}):
            with self.subTest(arguments=arguments), tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "calls")
                pipeline = Pipeline().add(Processor(Noting(str(path)), on_error="skip", **arguments))
                assert pipeline.run(range(100)) == [*range(5), *range(6, 100)]
                assert sorted(map(int, path.read_text().split())) == list(range(100))

    def test_from_on_error(self):
        for engine in ("process", "thread", "inline"):
            with self.subTest(engine=engine):
                error = self.caught(
                    Processor(int, on_error=lambda item, error: stop_at_five(5)), items="a", engine=engine
                )
                self.check(error, "on_error")

    def test_from_the_other_methods(self):
        for engine in ("process", "thread", "inline"):
            for moment in ("setup", "finish", "teardown"):
                with self.subTest(engine=engine, moment=moment):
                    self.check(self.caught(StopAt(moment), engine=engine), moment)

    def test_from_an_item_that_is_unpickled(self):
        for items in ([Rebuilt(4), Rebuilt(5), Rebuilt(6)], [Rebuilt(5)]):
            for on_error in ("raise", "skip"):
                with self.subTest(items=len(items), on_error=on_error):
                    error = self.caught(Processor(same, on_error=on_error), items=items)
                    self.check(error, "unpickle")


if __name__ == "__main__":
    unittest.main()
