"""Results beside their inputs: `run` and `stream` with `with_input` and `return_exceptions`.

Law: each item has what a run of that item alone gives inline, or its error, and stands where the input had it.
Whatever an item does, no more items are under way than the pipes hold.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import unittest
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

from conveyor import (
    AbandonedThreadWarning,
    ItemTimeoutError,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    Progress,
    ReplicatingFork,
    ResultError,
    RuleError,
    SourceError,
    StateError,
    TooManyFailuresError,
    WorkerDiedError,
)
from conveyor.core.recording import Replay
from conveyor.engines.base import Gathering, RunProgress
from conveyor.engines.process.caller.gathered import Gatherer, Window, WindowedEnd
from conveyor.engines.process.wire import messages
from conveyor.engines.thread import worker_pool
from conveyor.graph.builder import Description
from tests.helpers.pipelines import random_pipeline
from tests.helpers.support import TestCase, nothing_left

SECONDS = 30.0
MOST_RESULTS = 500
ENGINES = ("process", "thread", "inline")
# Those that have workers.
PARALLEL = ("process", "thread")


def add_one(item: int) -> int:
    return item + 1


def refuse_three(item: int) -> int:
    if item == 3:
        raise ValueError("no three")
    return item


def odd_only(item: int) -> int | None:
    return item if item % 2 else None


def nothing(item: Any) -> None:
    return None


def spread_out(item: int) -> Iterator[int]:
    for index in range(item % 4):
        if item == 7 and index == 2:
            raise ValueError("no seven")
        yield 10 * item + index


def neighbours(item: int) -> Iterator[int]:
    yield item
    yield item + 1


def exit_at_three(item: int) -> int:
    if item == 3:
        os._exit(7)
    return item


def append_seven(item: list[int]) -> int:
    item.append(7)
    return len(item)


class LoadedOnce:
    """Can be unpickled in the process that is told, and not here."""

    def __init__(self, process: int) -> None:
        self.process = process

    def __reduce__(self) -> Any:
        return load_beyond, (os.getpid(), self.process)


def load_beyond(at: int, refused: int) -> Any:
    if os.getpid() == refused:
        raise ValueError("not here")
    return LoadedOnce(refused)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class Item:
    """Something that a reference can watch."""


def twice_each(items: list[int]) -> list[int | None]:
    """A job of lists: one output for each item, none for 2."""
    if 3 in items:
        raise ValueError("no three")
    return [None if item == 2 else 2 * item for item in items]


class Totals(Processor[Any, Any]):
    """Says something at the end."""

    def process(self, item: Any) -> Any:
        return item

    def finish(self) -> Any:
        return 1


class FailsAtEnd(Processor[Any, Any]):
    """Has nothing to say at the end, and fails to say it."""

    def process(self, item: Any) -> Any:
        return item

    def finish(self) -> None:
        raise KeyError("the end")


class Door:
    """Jobs that come to it wait until it is open."""

    def __init__(self, test: unittest.TestCase) -> None:
        self.reading, self.writing = os.pipe()
        for descriptor in (self.reading, self.writing):
            test.addCleanup(os.close, descriptor)

    def hold_zero(self, item: int) -> int:
        """A job that waits at the item 0."""
        if item == 0:
            os.read(self.reading, 1)
        return item

    def open(self) -> None:
        os.write(self.writing, b"." * 8)


def kinds(pairs: list[Any]) -> list[Any]:
    """Pairs with the kinds of their errors."""
    return [(item, type(out).__name__ if isinstance(out, BaseException) else out) for item, out in pairs]


class RandomPipelines(TestCase):
    """Random pipelines, beside what the inline engine gives for each item alone."""

    time_limit = 240.0

    def check(self, seed: int, items: int, **settings: Any) -> None:
        inline = random_pipeline(random.Random(seed).randrange, plain=True, engine="inline")
        other = random_pipeline(random.Random(seed).randrange, plain=True, **settings)
        given = random.Random(f"items {seed}").choices(range(50), k=items)
        with nothing_left(), inline, other:
            known = {item: inline.run([item]) for item in given}
            results_so_far = accumulate(len(known[item]) for item in given)
            # Some pipelines make thousands of results of an item.
            del given[sum(1 for results in results_so_far if results <= MOST_RESULTS) + 1 :]
            expected = [(item, known[item]) for item in given]
            pairs = other.run(given, with_input=True)
            if not settings.get("ordered", True):
                pairs.sort(key=lambda pair: given.index(pair[0]))
                expected.sort(key=lambda pair: given.index(pair[0]))
            assert pairs == expected, f"seed {seed}\n{other!r}"
            # What follows is a run like any, and of one kind or the other.
            flat = other.run(given, return_exceptions=True)
            assert sorted(map(repr, flat)) == sorted(repr(out) for _, outputs in expected for out in outputs)
            assert len(other.run(given[:20])) == sum(len(known[item]) for item in given[:20])
            assert other.run([], with_input=True) == []

    def test_process_engine(self) -> None:
        for seed in range(2):
            with self.subTest(seed=seed):
                self.check(seed, items=100, start_method="fork", ordered=seed % 3 != 1)

    def test_fused(self) -> None:
        for seed in range(400, 401):
            with self.subTest(seed=seed):
                self.check(seed, items=100, start_method="fork", fuse=True)

    def test_queues(self) -> None:
        for seed in range(100, 101):
            with self.subTest(seed=seed):
                self.check(seed, items=100, start_method="fork", channel="queue")

    def test_threads(self) -> None:
        for seed in range(500, 504):
            with self.subTest(seed=seed):
                self.check(seed, items=100, engine="thread", ordered=seed % 3 != 1)

    def test_inline_engine(self) -> None:
        for seed in range(300, 308):
            with self.subTest(seed=seed):
                self.check(seed, items=100, engine="inline")


class Pairs(TestCase):
    """What stands beside what."""

    def test_what_was_filtered_has_an_empty_list(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline = Pipeline(engine=engine).add(Processor(odd_only)).add(Pipe()).add(Processor(add_one))
                assert pipeline.run(range(4), with_input=True) == [(0, []), (1, [2]), (2, []), (3, [4])]
                assert list(pipeline.stream(iter(range(2)), with_input=True)) == [(0, []), (1, [2])]
                assert pipeline.run(5, with_input=True) == [(5, [6])]
                assert pipeline.run((), with_input=True) == []
                assert pipeline.run((each for each in ()), with_input=True, return_exceptions=True) == []
                assert pipeline.run(range(4), return_exceptions=True) == [2, 4]
                stats = pipeline.stats()
                assert stats.results == 2 and stats.source is not None and stats.source.pulled == 4

    def test_branches_and_generators(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline: Pipeline[Any, Any] = Pipeline(engine=engine).add(Processor(spread_out, workers=2)).add(Pipe())
                pipeline.add(ReplicatingFork(2)).add(Processor(str), Processor(add_one)).add(Pipe()).add(Join())
                pairs = pipeline.run([1, 2, 4], with_input=True)
                assert pairs == [(1, ["10", 11]), (2, ["20", 21, "21", 22]), (4, [])]

    def test_many_items(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline = Pipeline(engine=engine).add(Processor(add_one, workers=2)).add(Pipe(7)).add(Processor(str))
                pairs = pipeline.run(iter(range(600)), with_input=True)
                assert pairs == [(item, [str(item + 1)]) for item in range(600)]

    def test_the_item_is_the_one_that_was_given_and_as_it_was(self) -> None:
        for engine in ENGINES:
            for give in (list, iter):
                with self.subTest(engine, give=give):
                    rows = [[number] for number in range(40)]
                    pairs = Pipeline(engine=engine).add(Processor(append_seven)).run(give(rows), with_input=True)
                    assert all(item is row for (item, _), row in zip(pairs, rows, strict=True))
                    assert pairs == [([number], [2]) for number in range(40)]

    def test_a_list_that_is_filled_again_and_again(self) -> None:
        def source() -> Iterator[list[int]]:
            row = [0]
            for number in range(500):
                row[0] = number
                yield row

        for engine in PARALLEL:
            with self.subTest(engine):
                outputs = [out for _, out in Pipeline(engine=engine).add(Processor(sum)).run(source(), with_input=True)]
                assert outputs == [[number] for number in range(500)]

    def test_arrays_of_bytes(self) -> None:
        # They go through shared memory where there is some.
        blocks = [bytes([number]) * 300_000 for number in range(30)]
        for engine in ENGINES:
            with self.subTest(engine):
                pairs = Pipeline(engine=engine).add(Processor(bytes.upper)).run(blocks, with_input=True)
                assert pairs == [(block, [block.upper()]) for block in blocks]

    def test_pairs_come_as_they_end_without_an_order(self) -> None:
        for engine in PARALLEL:
            with self.subTest(engine):
                door = Door(self)
                pipeline = Pipeline(engine=engine, ordered=False).add(Processor(door.hold_zero, workers=2))
                with pipeline.stream(iter(range(50)), with_input=True) as stream:
                    first = [next(stream) for _ in range(49)]
                    door.open()
                    assert sorted(first) == [(item, [item]) for item in range(1, 50)]
                    assert list(stream) == [(0, [0])]

    def test_progress_and_total(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                told: list[Progress] = []
                pipeline = Pipeline(engine=engine).add(Processor(odd_only))
                pairs = pipeline.run(iter(range(20)), with_input=True, progress=told.append, total=20)
                assert len(pairs) == 20 and (told[-1].done, told[-1].total, told[-1].eta) == (20, 20, 0.0)

    def test_items_that_the_consumer_pulls_itself(self) -> None:
        # As it does during an import, where a thread of its own would wait for that.
        for engine in PARALLEL:
            with (
                self.subTest(engine),
                mock.patch("conveyor.engines.process.caller.source.importing", return_value="a module"),
            ):
                pipeline = Pipeline(engine=engine).add(Processor(refuse_three, workers=2)).add(Pipe(3))
                pairs = pipeline.add(Processor(str)).run(iter(range(200)), with_input=True, return_exceptions=True)
                assert kinds(pairs) == [(n, "ProcessorError" if n == 3 else [str(n)]) for n in range(200)]

    def test_the_log_tells_of_items(self) -> None:
        with self.assertLogs("conveyor", "DEBUG") as logs:
            pipeline = Pipeline(engine="process").add(Processor(refuse_three, on_error="skip"))
            pipeline = pipeline.add(Pipe()).add(Processor(spread_out))
            assert len(pipeline.run([1, 3, 7], with_input=True, return_exceptions=True)) == 3
        text = "\n".join(logs.output)
        for part in (
            "run 1 begins, with results for each item",
            "input item 1 loses a part at 'refuse_three', as item 1 there",
            "'refuse_three' gave up items 1 to 1 after 1 attempt",
            "input item 2 fails at 'spread_out', as item 1 there",
        ):
            assert part in text, text

    def test_the_core_can_be_driven_again(self) -> None:
        path = Path(self.new_folder(), "record")
        with mock.patch.dict(os.environ, CONVEYOR_RECORD=str(path)):
            pipeline = Pipeline(engine="process").add(Processor(refuse_three)).add(Pipe()).add(Processor(spread_out))
            pairs = pipeline.run(range(1, 30), with_input=True, return_exceptions=True)
        assert kinds(pairs)[2] == (3, "ProcessorError") and kinds(pairs)[6] == (7, "ProcessorError")
        (file,) = path.parent.iterdir()
        with file.open("rb") as lines:
            assert Replay(lines).run() is None


class Failing(TestCase):
    """An item that is given up has its error in the place of its outputs."""

    def check(self, pipeline: Pipeline[Any, Any], items: Any) -> list[Any]:
        """The pairs, without those of innocent items; the pipeline, which stays open, is used once more behind them."""
        items = list(items)
        with pipeline:
            pairs = pipeline.run(items, with_input=True, return_exceptions=True)
            assert [item for item, _ in pairs] == items
            assert pipeline.run(items[:1], with_input=True) == pairs[:1], "the pipeline is not as it was"
        return [(item, outcome) for item, outcome in pairs if outcome != [item]]

    def test_a_job_that_raises(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline = Pipeline(engine=engine).add(Processor(refuse_three)).add(Pipe()).add(Processor(int))
                failed = self.check(pipeline, [1, 2, 3, 4, 3, 5])
                assert [item for item, _ in failed] == [3, 3]
                for (_, error), number in zip(failed, (2, 4), strict=True):
                    assert type(error) is ProcessorError and error.processor == "refuse_three"
                    assert (error.kind, error.item, error.number) == ("ValueError", "3", number)
                    assert isinstance(error.__cause__, ValueError)

    def test_errors_alone(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline = Pipeline(engine=engine).add(Processor(spread_out))
                results = pipeline.run([3, 7, 4, 1], return_exceptions=True)
                assert results[:3] == [30, 31, 32] and results[4:] == [10]
                assert isinstance(results[3], ProcessorError)
                assert [each.item for each in pipeline.failures] == ["7"]
                assert pipeline.stats().steps[0].failed == 1 and pipeline.stats().results == 4
                assert all(each.when > 1e9 and each.attempts == 1 for each in pipeline.failures)

    def test_without_it_the_run_fails_as_ever(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine), nothing_left():
                pipeline = Pipeline(engine=engine).add(Processor(refuse_three)).add(Pipe()).add(Processor(int))
                with self.assertRaisesRegex(ProcessorError, r"no three \[item 3: 3\]") as caught:
                    pipeline.run(range(1000), with_input=True)
                assert isinstance(caught.exception.__cause__, ValueError) and pipeline.failures == ()
                assert pipeline.stats().steps[0].items_in
                with pipeline:
                    with self.assertRaises(ProcessorError):
                        pipeline.run(range(1000), with_input=True)
                    assert pipeline.run([1], with_input=True) == [(1, [1])]

    def test_in_a_branch_that_is_zipped(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline: Pipeline[Any, Any] = Pipeline(engine=engine).add(Processor(int)).add(Pipe())
                pipeline.add(ReplicatingFork(2)).add(Processor(str), Processor(spread_out, workers=2))
                pipeline.add(Pipe()).add(Join(how="zip"))
                pairs = kinds(pipeline.run(range(4, 9), with_input=True, return_exceptions=True))
                assert pairs[0] == (4, [("4", None)]) and pairs[1] == (5, [("5", 50)])
                assert pairs[3] == (7, "ProcessorError") and pairs[4] == (8, [("8", None)])

    def test_retries_and_what_is_skipped(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                retried = Processor(refuse_three, retries=2, backoff=0.0)
                [(_, error)] = self.check(Pipeline(engine=engine).add(retried), [1, 3, 2])
                assert error.attempts == 3
                skipping = Pipeline(engine=engine).add(Processor(refuse_three, on_error="skip"))
                assert skipping.run([1, 3, 2], with_input=True) == [(1, [1]), (3, []), (2, [2])]
                [(_, error)] = self.check(skipping, [1, 3, 2])
                assert error.item == "3" and error.kind == "ValueError"
                assert skipping.run([1, 3], return_exceptions=True)[0] == 1
                assert [each.item for each in skipping.failures] == ["3"]
                replaced = Processor(refuse_three, on_error=lambda item, error: -item)
                assert self.check(Pipeline(engine=engine).add(replaced), [1, 3, 2]) == [(3, [-3])]

    def test_an_item_of_a_list(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline: Pipeline[Any, Any] = Pipeline(engine=engine).add(Processor(odd_only)).add(Pipe(3))
                pipeline.add(Processor(twice_each, batch=8, per_item=True, workers=2)).add(Pipe()).add(Processor(str))
                # Most items are filtered in front of a list, which is not to wait for them.
                given = [1, *[2] * 200, 3, 5, *range(100, 200)]
                pairs = kinds(pipeline.run(iter(given), with_input=True, return_exceptions=True))
                expected = {n: [str(2 * n)] if n % 2 else [] for n in given}
                assert pairs == [(n, "ProcessorError" if n == 3 else expected[n]) for n in given]
                assert [failed.item for failed in pipeline.failures] == ["3"]

    def test_what_else_comes_of_an_item_of_which_a_part_is_skipped(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline = Pipeline(engine=engine).add(Processor(neighbours)).add(Pipe())
                pipeline.add(Processor(refuse_three, on_error="skip"))
                pairs = pipeline.run([2, 5], with_input=True, return_exceptions=True)
                assert pairs == [(2, [2]), (5, [5, 6])]
                assert [each.item for each in pipeline.failures] == ["3"]

    def test_a_list_is_one_output(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                assert Pipeline(engine=engine).add(Processor(list)).run(["ab"], with_input=True) == [
                    ("ab", [["a", "b"]])
                ]

    def test_an_on_error_that_raises(self) -> None:
        def worse(item: Any, error: Exception) -> Any:
            raise KeyError("worse")

        for engine in ENGINES:
            with self.subTest(engine):
                [(_, error)] = self.check(Pipeline(engine=engine).add(Processor(refuse_three, on_error=worse)), [1, 3])
                assert error.phase == "on_error"

    def test_results_that_cannot_be_sent_or_made_again(self) -> None:
        process = os.getpid()
        # Threads pickle nothing.
        for engine in ("process", "inline"):
            with self.subTest(engine):
                given = Processor(lambda item: Unpicklable() if item == 3 else item, name="gives")
                [(_, error)] = self.check(Pipeline(engine=engine).add(given), range(1, 6))
                assert error.phase == "pickle"
        once = Processor(lambda item: LoadedOnce(process) if item == 3 else item, name="once")
        [(_, error)] = self.check(Pipeline(engine="process").add(once), range(1, 6))
        assert isinstance(error, ResultError)
        with self.assertRaises(ResultError):
            Pipeline(engine="process").add(once).run(range(1, 6), with_input=True)

    def test_a_branch_that_gets_no_copy(self) -> None:
        pipeline: Pipeline[Any, Any] = Pipeline(engine="thread").add(Processor(lambda item: item, name="gives"))
        pipeline.add(Pipe()).add(ReplicatingFork(2)).add(Pipe(), Pipe()).add(Join())
        lock = threading.Lock()
        pairs = pipeline.run([1, lock], with_input=True, return_exceptions=True)
        assert pairs[0] == (1, [1, 1]) and pairs[1][0] is lock
        assert isinstance(pairs[1][1], TypeError) and "cannot be copied" in str(pairs[1][1])
        with self.assertRaisesRegex(TypeError, "cannot be copied"):
            pipeline.run([1, lock], with_input=True)

    def test_an_item_that_ends_its_workers(self) -> None:
        [(item, error)] = self.check(Pipeline(engine="process").add(Processor(exit_at_three)), range(1, 6))
        assert item == 3 and isinstance(error, WorkerDiedError) and error.exitcode == 7

    def test_an_item_that_takes_too_long(self) -> None:
        for engine in PARALLEL:
            door = Door(self)
            with self.subTest(engine), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                timed = Processor(door.hold_zero, timeout=0.2 if engine == "thread" else 1.0)
                [(item, error)] = self.check(Pipeline(engine=engine).add(timed), [1, 2, 0, 4, 5])
                door.open()
                for thread in worker_pool.abandoned_threads():
                    thread.join(SECONDS)
                assert item == 0 and isinstance(error, ItemTimeoutError)
            assert {each.category for each in caught} <= {AbandonedThreadWarning}

    def test_a_worker_that_is_killed_loses_nothing(self) -> None:
        door = Door(self)
        came, coming = os.pipe()
        self.addCleanup(os.close, came)
        self.addCleanup(os.close, coming)

        def job(item: int) -> int:
            if item == 50:
                os.write(coming, os.getpid().to_bytes(8, "big"))
                os.read(door.reading, 1)
            return item

        pipeline = Pipeline(engine="process").add(Processor(job)).add(Pipe()).add(Processor(add_one))
        with pipeline.stream(range(100), with_input=True) as stream:
            pairs = [next(stream)]
            killed = os.read(came, 8)
            os.kill(int.from_bytes(killed, "big"), signal.SIGKILL)
            # Another one is at the item.
            assert os.read(came, 8) != killed
            door.open()
            pairs += stream
        assert pairs == [(item, [item + 1]) for item in range(100)]

    def test_too_many(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine), nothing_left():
                one = Pipeline(engine=engine, max_failures=1).add(Processor(refuse_three))
                assert len(one.run([1, 3, 2], return_exceptions=True)) == 3
                with self.assertRaisesRegex(TooManyFailuresError, "2 items were given up"):
                    one.run([1, 3, 2, 3, 5], return_exceptions=True)
                assert len(one.failures) == 2
                share = Pipeline(engine=engine, max_failures=0.5).add(Processor(refuse_three))
                assert len(share.run([1, 3, 2], return_exceptions=True)) == 3
                with self.assertRaises(TooManyFailuresError):
                    share.run([3, 3, 1], return_exceptions=True)

    def test_an_input_that_fails_ends_the_run(self) -> None:
        def source() -> Iterator[Any]:
            yield 1
            raise KeyError("no more")

        for engine in ENGINES:
            with self.subTest(engine), nothing_left():
                pipeline = Pipeline(engine=engine).add(Processor(add_one))
                with self.assertRaisesRegex(SourceError, "no more"):
                    pipeline.run(source(), with_input=True, return_exceptions=True)
                if engine != "thread":
                    with self.assertRaises(SourceError):
                        pipeline.run([1, Unpicklable()], with_input=True, return_exceptions=True)


class FailingReplacements(TestCase):
    """An item fails, and then what its `on_error` gives: it was given up once."""

    def check(self, engine: str, job: Any, **settings: Any) -> None:
        with self.subTest(engine=engine, **settings):
            pipeline = Pipeline(engine=engine, max_failures=1).add(Processor(job, name="refuse", **settings))
            results = pipeline.run([1, 3, 5], return_exceptions=True)
            assert (results[0], results[2]) == (1, 5) and isinstance(results[1], ProcessorError), results
            assert [(failed.number, failed.error.phase) for failed in pipeline.failures] == [(1, results[1].phase)]
            assert pipeline.stats()["refuse"].failed == 1
            with pipeline:
                futures = [pipeline.submit(item) for item in (1, 3, 5)]
                assert [future.exception() is None for future in futures] == [True, False, True]
                # No `on_error` has given it up.
                assert pipeline.failures == ()

    def test_on_error_raises(self) -> None:
        for engine in ENGINES:
            self.check(engine, refuse_three, on_error=raise_again)
        for settings in ({"retries": 1, "backoff": 0}, {"threads": 2}, {"batch": 2, "per_item": True}):
            job = refuse_three_of if "batch" in settings else refuse_three
            self.check("process", job, on_error=raise_again, **settings)

    def test_its_output_cannot_be_sent(self) -> None:
        for engine in ENGINES:
            self.check(engine, refuse_three, on_error=give_generator)
        self.check("process", refuse_three, on_error=give_lock)
        self.check("process", lock_for_three, on_error=give_lock)
        self.check("process", lock_for_three, on_error=raise_again)

    def test_workers_died_at_it(self) -> None:
        self.check("process", exit_at_three, on_error=raise_again)

    def test_it_took_too_long(self) -> None:
        self.check("process", hang_at_three, on_error=raise_again, timeout=0.5)


def raise_again(item: Any, error: Exception) -> None:
    raise KeyError("again")


def give_generator(item: Any, error: Exception) -> Iterator[int]:
    yield 1


def give_lock(item: Any, error: Exception) -> Any:
    return threading.Lock()


def lock_for_three(item: int) -> Any:
    return threading.Lock() if item == 3 else item


def refuse_three_of(items: list[int]) -> list[int]:
    return [refuse_three(item) for item in items]


def hang_at_three(item: int) -> int:
    if item == 3:
        threading.Event().wait()
    return item


class Ending(TestCase):
    """What is left early, or refused."""

    def test_a_stream_that_is_closed_or_dropped_gives_up_the_rest(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine), nothing_left():
                pipeline = Pipeline(engine=engine).add(Processor(add_one, workers=2)).add(Pipe()).add(Processor(str))
                with pipeline:
                    for ordered in range(3):
                        stream = pipeline.stream(itertools.count(), with_input=True)
                        assert [next(stream) for _ in range(3)] == [(item, [str(item + 1)]) for item in range(3)]
                        if ordered:
                            stream.close()
                        del stream
                    with self.assertRaises(StateError):
                        # It has the turn as any run has.
                        with pipeline.stream(itertools.count(), with_input=True):
                            pipeline.run([1], with_input=True)
                    assert pipeline.run([1], with_input=True) == [(1, ["2"])]
                for item, outputs in pipeline.stream(itertools.count(), with_input=True):
                    assert outputs == [str(item + 1)]
                    if item == 100:
                        break

    def test_a_consumer_that_stops_after_the_last_pair_breaks_nothing_off(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine), nothing_left():
                stream = Pipeline(engine=engine).add(FailsAtEnd()).stream([1, 2], with_input=True)
                assert [next(stream), next(stream)] == [(1, [1]), (2, [2])]
                with self.assertRaisesRegex(ProcessorError, "finish"):
                    stream.close()
                # One that leaves something, does.
                stream = Pipeline(engine=engine).add(FailsAtEnd()).stream([1, 2], with_input=True)
                assert next(stream) == (1, [1])
                stream.close()

    def test_a_finish_that_fails_ends_the_run(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine), nothing_left(), self.assertRaisesRegex(ProcessorError, "finish"):
                Pipeline(engine=engine).add(FailsAtEnd()).run([1, 2], with_input=True, return_exceptions=True)

    def test_what_is_given_out_is_kept_no_more(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                known: list[Any] = []

                def source(known: list[Any] = known) -> Iterator[Item]:
                    for _ in range(200):
                        item = Item()
                        known.append(weakref.ref(item))
                        yield item
                        del item

                pipeline = Pipeline(engine=engine).add(Processor(nothing))
                for _ in pipeline.stream(source(), with_input=True):
                    pass
                del _
                gc.collect()
                assert [each for each in known if each() is not None] == []

    def test_outputs_that_belong_to_no_single_item_are_refused(self) -> None:
        for engine in ENGINES:
            for processor, why in ((Processor(sum, batch=2), "works in batches"), (Totals(), "may give outputs")):
                for flag in ("with_input", "return_exceptions"):
                    with self.subTest(engine, flag=flag, why=why), nothing_left():
                        pipeline = Pipeline(engine=engine).add(processor)
                        with self.assertRaisesRegex(
                            RuleError, f"{why}.*results cannot be given item by item"
                        ) as caught:
                            pipeline.run([1], **{flag: True})  # type: ignore[call-overload]
                        assert caught.exception.rule == 9
                        with self.assertRaises(RuleError):
                            pipeline.stream([1], **{flag: True})  # type: ignore[call-overload]
                        assert pipeline.run([1, 2], with_input=False, return_exceptions=False)

    def test_flags_are_flags(self) -> None:
        pipeline = Pipeline(engine="inline").add(Processor(add_one))
        for flag in ("with_input", "return_exceptions"):
            for value in (1, None, "yes"):
                with self.assertRaisesRegex(TypeError, f"{flag} must be True or False, not"):
                    pipeline.run([1], **{flag: value})  # type: ignore[call-overload]


class Bounds(TestCase):
    """How many items are under way."""

    def ahead(self, pipeline: Pipeline[Any, Any], door: Door, pairs: int, give: Any = int) -> int:
        """How far the source of a stream without end is, at most, before the consumer, which takes so many pairs while
        item 0 waits at the door; 0: it waits for item 0 and the source has to stop."""
        taken = most = held = 0
        stopped = threading.Event()

        def source() -> Iterator[Any]:
            nonlocal most
            for number in itertools.count():
                most = max(most, number + 1 - taken)
                yield give(number)

        with pipeline, pipeline.stream(source(), with_input=True) as stream:
            window = stream._running._run._gatherer.window  # type: ignore[attr-defined]
            for _ in range(pairs):
                next(stream)
                taken += 1
            if not pairs:
                # The consumer waits meanwhile for a pair that does not come.
                def wait() -> None:
                    nonlocal held
                    while window.has_room:
                        stopped.wait(0.005)
                    # One that does not stop would go on.
                    stopped.wait(0.05)
                    held = most
                    door.open()

                thread = threading.Thread(target=wait)
                thread.start()
                next(stream)
                thread.join()
            door.open()
        return most if pairs else held

    def test_an_order_in_which_the_first_item_is_slow(self) -> None:
        for engine in PARALLEL:
            for job in (str, nothing):
                with self.subTest(engine, job=job):
                    door = Door(self)
                    pipeline = Pipeline(engine=engine).add(Processor(door.hold_zero, workers=2)).add(Pipe(5))
                    # Five items in each of three pipes, and one for each of three workers.
                    most = self.ahead(pipeline.add(Processor(job)), door, pairs=0)
                    assert 3 < most <= 3 * 5 + 3 + 1, most

    def test_no_order_in_which_the_first_item_is_slow(self) -> None:
        for engine in PARALLEL:
            with self.subTest(engine):
                door = Door(self)
                pipeline = Pipeline(engine=engine, ordered=False).add(Processor(door.hold_zero, workers=2))
                pipeline.add(Pipe(5)).add(Processor(nothing))
                assert self.ahead(pipeline, door, pairs=500) <= 3 * 5 + 3 + 1 + 5

    def test_heavy_items(self) -> None:
        for engine in PARALLEL:
            with self.subTest(engine):
                door = Door(self)

                def first(item: Any, door: Door = door) -> Any:
                    return door.hold_zero(item) if item == 0 else None

                pipeline = Pipeline(engine=engine).add(Processor(first, workers=2)).add(Pipe(maxbytes=1_000_000))
                pipeline.add(Processor(str))
                heavy = self.ahead(pipeline, door, 0, lambda number: bytes(300_000) if number else 0)
                # Three megabytes in three pipes, and what was pulled before it was weighed.
                assert heavy < 64, heavy

    def test_credit_beyond_the_window_is_withheld_and_not_lost(self) -> None:
        class Channel:
            def __init__(self) -> None:
                self.coming: deque[Any] = deque([messages.Pull(1, 3), messages.Pull(0, 9), messages.SlotsFreed([7])])
                self.sent: list[Any] = []

            def ready(self) -> bool:
                return bool(self.coming)

            def receive(self) -> Any:
                return self.coming.popleft(), []

            def send(self, message: Any, blobs: Any) -> None:
                self.sent.append(message)

        channel, window = Channel(), Window(4, 10)
        end = WindowedEnd(channel, 1, window, 6)
        assert end.credit == 4 and end.ready()
        # What is no credit passes.
        assert end.receive() == (messages.SlotsFreed([7]), []) and not end.ready()
        window.give(1, 0)
        assert end.ready() and end.receive() == (messages.Pull(1, 1), [])
        end.send(messages.ReturnCredit(1, 2))
        assert channel.sent == [messages.ReturnCredit(1, 2)] and end.receive() == (messages.Pull(1, 2), [])
        window.give(9, 0)
        # All that was withheld, and no more.
        assert end.receive() == (messages.Pull(1, 2), []) and not end.ready()
        channel.coming.append(messages.Pull(1, 1))
        window.weigh(10)
        assert not end.ready()
        window.close()
        assert end.receive() == (messages.StopSource(1), [])

    def test_a_window_closes_for_good(self) -> None:
        window = Window(2, 10)
        assert window.take(5) == 2
        taken: list[int] = []
        thread = threading.Thread(target=lambda: taken.append(window.take(5)))
        thread.start()
        window.close()
        thread.join()
        assert taken == [0] and not window.has_room
        window.give(1, 0)
        assert window.has_room and window.take(1) == 0

    def test_bytes_are_given_back_with_what_they_are_of(self) -> None:
        description = Description()
        description.add((Processor(str),))
        plan = description.plan(cores=1, ordered=True)
        gatherer = Gatherer(Gathering(with_input=True, return_exceptions=True), plan, RunProgress())
        before = gatherer.window._bytes
        gatherer.add(["a", "b", "c"], 31)
        assert gatherer.window._bytes == before - 30
        gatherer.results([(1,), (1, 0), (0,), (9,)], ["x", "y", "z", "of nobody"], 41)
        gatherer.settle((1,))
        assert gatherer.take() is None and not gatherer.is_empty
        gatherer.give_up(0, ValueError("first"))
        gatherer.give_up(0, ValueError("second"))
        taken = gatherer.take()
        assert taken is not None and str(taken[0][1]) == "first" and taken[1] == ("b", ["x", "y"])
        assert gatherer.window._bytes == before - 10
        gatherer.mark(2, ValueError("a part"), skipped=True)
        gatherer.settle((2,))
        taken = gatherer.take()
        assert taken is not None and taken[0][0] == "c" and str(taken[0][1]) == "a part"
        assert gatherer.window._bytes == before and gatherer.is_empty


if __name__ == "__main__":
    unittest.main()
