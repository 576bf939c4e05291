"""Fusing: what runs in one process then, and that nobody sees it in what comes out.

Law: each pipeline is compared with itself inline; what is fused is read off the names in its statistics.
"""

from __future__ import annotations

import os
import tempfile
import threading
import unittest

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor, ProcessorError, ReplicatingFork
from conveyor.stages.outputs import Fused, StageError
from tests.helpers.support import TestCase, nothing_left


def same(item):
    return item


def lock_of(item):
    return threading.Lock()


def increment(item):
    return item + 1


def odd_only(item):
    return item if item % 2 else None


def countdown(item):
    yield from range(item % 4, 0, -1)


def pair_with_none(item):
    yield item
    yield None


def is_none(item):
    return item is None


def process_number(item):
    return item, os.getpid()


def same_process(row):
    return row[0], row[1] == os.getpid()


def refuse_seven(item):
    if item == 7:
        raise ValueError("seven")
    return item


def refuse_seven_late(item):
    yield item
    if item == 7:
        raise ValueError("seven")


def stop_at_seven(item):
    if item == 7:
        raise StopIteration("seven")
    return item


class Count(Processor):
    count = 0

    def process(self, item):
        self.count += 1
        return item + self.count


def chain(*processors, **settings):
    """A pipeline of these, with a Pipe between each two."""
    pipeline = Pipeline(**settings)
    for number, processor in enumerate(processors):
        if number:
            pipeline.add(Pipe())
        pipeline.add(processor)
    return pipeline


class FusingTest(TestCase):
    """Chains."""

    def test_an_output_that_cannot_be_pickled_is_the_last_ones(self):
        pipeline = Pipeline(fuse=True).add(Processor(same)).add(Pipe()).add(Processor(lock_of))
        with self.assertRaises(ProcessorError) as caught:
            pipeline.run([1])
        assert (caught.exception.processor, caught.exception.phase) == ("lock_of", "pickle")

    def test_one_process_and_several_abreast(self):
        pipeline = chain(Processor(process_number), Processor(same), Processor(same_process), fuse=True, cores=3)
        assert pipeline.run(range(100)) == [(item, True) for item in range(100)]
        (step,) = pipeline.stats().steps
        assert (step.processor, step.workers) == ("process_number+same+same_process", 3)
        unfused = chain(Processor(process_number), Processor(same_process))
        assert unfused.run(range(100)) == [(item, False) for item in range(100)]

    def test_what_stays_alone(self):
        # Others, and the reason that is told of each: `test_why_others_stay_alone`.
        for alone in (Count(), Processor(sum, batch=3), Processor(same, max_items=1000)):
            with self.subTest(alone=alone), nothing_left():
                pipeline = chain(
                    Processor(same), Processor(increment), alone, Processor(increment), Processor(same), fuse=True
                )
                pipeline.run(range(10))
                names = [step.processor for step in pipeline.stats().steps]
                assert [name.count("+") for name in names] == [1, 0, 1], names

    def test_between_forks(self):
        def make(**settings):
            return (
                Pipeline(**settings)
                .add(Processor(same))
                .add(Pipe())
                .add(Processor(increment))
                .add(Pipe())
                .add(ReplicatingFork(2))
                .add(Processor(odd_only), Processor(countdown))
                .add(Pipe())
                .add(Processor(increment, name="left"), Processor(same, name="right"))
                .add(Pipe())
                .add(Join(how="zip"))
                .add(Processor(str))
                .add(Pipe())
                .add(BalancingFork(2))
                .add(Processor(len))
                .add(Pipe())
                .add(Processor(increment, name="last"))
                .add(Pipe())
                .add(Join())
            )

        pipeline = make(fuse=True)
        assert pipeline.run(range(50)) == make(engine="inline").run(range(50))
        names = [step.processor for step in pipeline.stats().steps]
        assert names[:3] == ["same+increment", "odd_only+left", "countdown+right"], names

    def test_every_kind_of_output(self):
        for processors in (
            [Processor(odd_only), Processor(increment)],
            [Processor(increment), Processor(odd_only)],
            [Processor(countdown), Processor(countdown), Processor(odd_only)],
            [Processor(odd_only, keep_none=True), Processor(is_none)],
            [Processor(odd_only, keep_none=True), Processor(same, keep_none=True)],
            [Processor(odd_only), Processor(same, keep_none=True)],
            [Processor(pair_with_none), Processor(is_none)],
            [Processor(pair_with_none), Processor(same)],
            [Processor(same), Processor(pair_with_none)],
            [Processor(countdown), Processor(pair_with_none), Processor(same, keep_none=True)],
        ):
            with self.subTest(processors=processors):
                expected = chain(*processors, engine="inline").run(range(200))
                pipeline = chain(*processors, fuse=True)
                assert pipeline.run(range(200)) == expected
                assert len(pipeline.stats().steps) == 1

    def test_the_one_that_raises_is_named(self):
        for job in (refuse_seven, refuse_seven_late, stop_at_seven):
            with self.subTest(job=job.__name__), self.assertRaises(ProcessorError) as caught:
                chain(Processor(same), Processor(job), Processor(increment), fuse=True).run(range(10))
            error = caught.exception
            assert (error.processor, error.number, error.phase) == (job.__name__, 7, "process")
            assert job.__name__ in error.traceback and "seven" in str(error)
            if job is not refuse_seven_late:
                assert error.item == "7"
        # A job that is not written in Python, too.
        with self.assertRaises(ProcessorError) as caught:
            chain(Processor(same), Processor(int), fuse=True).run(["1", "x"])
        assert type(caught.exception.__cause__) is ValueError
        assert (caught.exception.processor, caught.exception.item) == ("int", "'x'")

    def test_the_first_item_is_to_blame_whichever_job_it_is(self):
        calls = []

        def first(item):
            calls.append(item)
            return refuse_seven(item)

        def second(item):
            if item == 3:
                raise KeyError(item)
            return -item

        fused = Fused([("first", first, False), ("second", second, False)])
        results = []
        with self.assertRaises(StageError) as caught:
            results.extend(fused.over(list(range(10))))
        assert results == [0, -1, -2]
        assert (caught.exception.processor, caught.exception.items) == ("second", (3,))
        assert type(caught.exception.__cause__) is KeyError
        results, calls[:] = [], []
        with self.assertRaises(StageError) as caught:
            results.extend(fused.over([0, 1, 7, 3]))
        assert (results, caught.exception.processor, calls) == ([0, -1], "first", [0, 1, 7]), "and none is called twice"
        for job in (stop_at_seven, refuse_seven):
            with self.assertRaises(StageError) as caught:
                list(Fused([("same", same, False), ("job", job, True)]).over([6, 7, 8]))
            assert (caught.exception.processor, caught.exception.items) == ("job", (7,))

    def test_elsewhere(self):
        processors = [Processor(countdown), Processor(increment)]
        for settings in ({"start_method": "spawn"}, {"channel": "queue"}, {"ordered": False}):
            with self.subTest(settings=settings), nothing_left():
                expected = chain(*processors, engine="inline").run(range(100))
                results = chain(*processors, fuse=True, **settings).run(range(100))
                assert sorted(results) == sorted(expected)
                assert not settings.get("ordered", True) or results == expected

    def test_inline_it_changes_nothing(self):
        assert chain(Processor(same), Processor(increment), engine="inline", fuse=True).run([1, 2]) == [2, 3]

    def test_settings(self):
        assert repr(Pipeline(fuse=True)) == "Pipeline(fuse=True)"
        with self.assertRaisesRegex(TypeError, "fuse must be True or False, not 1"):
            Pipeline(fuse=1)

    def test_it_is_as_lazy_as_its_jobs(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "asked")

            def endless(item):
                while True:
                    with open(path, "a") as file:
                        file.write(".")
                    yield item

            values = Fused([("endless", endless, False), ("same", same, False)])(1)
            assert [next(values) for _ in range(3)] == [1, 1, 1]
            assert os.path.getsize(path) == 3
            values.close()


if __name__ == "__main__":
    unittest.main()
