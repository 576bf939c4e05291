"""Items that are submitted one by one: each has a Future of its own.

Law: a Future has what a run of that item alone gives inline.  Whatever happens, none stays pending.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import threading
import time
import unittest
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
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
    ProcessError,
    Processor,
    ProcessorError,
    ReplicatingFork,
    ResultError,
    RuleError,
    SourceError,
    StateError,
    TooManyFailuresError,
    WorkerDiedError,
)
from conveyor.core.recording import Replay
from conveyor.engines.thread import worker_pool
from tests.helpers.pipelines import random_pipeline
from tests.helpers.scripts import ScriptTestCase
from tests.helpers.support import ALL, TestCase, nothing_left

SECONDS = 30.0
MOST_RESULTS = 500
ENGINES = ("process", "thread", "inline")


def add_one(item: int) -> int:
    return item + 1


def refuse_three(item: int) -> int:
    if item == 3:
        raise ValueError("no three")
    return item


def odd_only(item: int) -> int | None:
    return item if item % 2 else None


def spread_out(item: int) -> Iterator[int]:
    for index in range(item % 4):
        if item == 7 and index == 2:
            raise ValueError("no seven")
        yield 10 * item + index


def exit_at_three(item: int) -> int:
    if item == 3:
        os._exit(7)
    return item


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class Unloadable:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self) -> Any:
        return refuse_three, (3,)


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (7,)


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


class Counts(Processor[Any, Any]):
    """Has a state, and nothing to say at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def process(self, item: Any) -> Any:
        self.seen += 1
        if item == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.seen

    def finish(self) -> None:
        self.seen = 0


class Totals(Processor[Any, Any]):
    """Says something at the end."""

    def process(self, item: Any) -> Any:
        return item

    def finish(self) -> Any:
        return 1


class Door:
    """Workers that come to it wait until it lets so many through."""

    def __init__(self, test: unittest.TestCase) -> None:
        self.reading, self.writing = os.pipe()
        self.came, self.coming = os.pipe()
        for descriptor in (self.reading, self.writing, self.came, self.coming):
            test.addCleanup(os.close, descriptor)

    def __call__(self, item: Any) -> Any:
        os.write(self.coming, b".")
        os.read(self.reading, 1)
        return item

    def wait(self, workers: int = 1) -> None:
        """Wait until so many have come."""
        for _ in range(workers):
            os.read(self.came, 1)

    def open(self, times: int = 1) -> None:
        """Let so many through."""
        os.write(self.writing, b"." * times)


def alone(pipeline: Pipeline[Any, Any]) -> Callable[[Any], list[Any]]:
    """What a pipeline, which is open, gives for an item alone."""
    known: dict[Any, list[Any]] = {}

    def results(item: Any) -> list[Any]:
        if item not in known:
            known[item] = pipeline.run([item])
        return known[item]

    return results


class RandomPipelines(TestCase):
    """Random pipelines, and items from several threads."""

    time_limit = 240.0

    def check(self, seed: int, items: int, **settings: Any) -> None:
        inline = random_pipeline(random.Random(seed).randrange, plain=True, engine="inline")
        other = random_pipeline(random.Random(seed).randrange, plain=True, **settings)
        given = random.Random(f"items {seed}").choices(range(50), k=items)
        futures: dict[int, Future[list[Any]]] = {}

        def submit(first: int) -> None:
            for index in range(first, len(given), 4):
                futures[index] = other.submit(given[index])

        with nothing_left(), inline, other:
            expected = alone(inline)
            results_so_far = accumulate(len(expected(item)) for item in given)
            # Some pipelines make thousands of results of an item.
            del given[sum(1 for results in results_so_far if results <= MOST_RESULTS) + 1 :]
            threads = [threading.Thread(target=submit, args=(first,)) for first in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for index, future in futures.items():
                results = future.result(SECONDS)
                assert results == expected(given[index]), f"seed {seed}: {given[index]} gives {results}\n{other!r}"
            assert len(futures) == len(given)
            # What follows is a run like any.
            assert other.run(given[:20]) == inline.run(given[:20]), f"seed {seed}\n{other!r}"

    def test_process_engine(self) -> None:
        for seed in range(4 if ALL else 3):
            with self.subTest(seed=seed):
                self.check(seed, items=100, start_method="fork")

    def test_fused(self) -> None:
        for seed in range(400, 401):
            with self.subTest(seed=seed):
                self.check(seed, items=100, start_method="fork", fuse=True)

    def test_queues(self) -> None:
        for seed in range(100, 101):
            with self.subTest(seed=seed):
                self.check(seed, items=100, start_method="fork", channel="queue")

    def test_spawned(self) -> None:
        for seed in range(200, 201):
            with self.subTest(seed=seed):
                self.check(seed, items=100, start_method="spawn")

    def test_threads(self) -> None:
        for seed in range(500, 504):
            with self.subTest(seed=seed):
                self.check(seed, items=100, engine="thread")

    def test_inline_engine(self) -> None:
        for seed in range(300, 308):
            with self.subTest(seed=seed):
                self.check(seed, items=100, engine="inline")


class Failing(TestCase):
    """An item that fails fails its own Future."""

    def outcomes(self, pipeline: Pipeline[Any, Any], items: Any) -> list[Any]:
        """The results or the error of each item; the pipeline is used once more behind them."""
        with pipeline:
            futures = [pipeline.submit(item) for item in items]
            outcomes = [future.exception(SECONDS) or future.result() for future in futures]
            assert pipeline.submit(1).result(SECONDS) == outcomes[0], "the pipeline is not as it was"
        return outcomes

    def failed(self, outcomes: list[Any]) -> dict[int, Any]:
        return {index: each for index, each in enumerate(outcomes) if isinstance(each, BaseException)}

    def test_a_job_that_raises(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline = Pipeline(engine=engine).add(Processor(refuse_three)).add(Pipe()).add(Processor(add_one))
                outcomes = self.outcomes(pipeline, [1, 2, 3, 4, 3, 5])
                failed = self.failed(outcomes)
                assert list(failed) == [2, 4] and outcomes[0] == [2] and outcomes[-1] == [6]
                for index, error in failed.items():
                    assert type(error) is ProcessorError and error.processor == "refuse_three"
                    assert (error.kind, error.item, error.number) == ("ValueError", "3", index)
                    assert isinstance(error.__cause__, ValueError)

    def test_a_generator_that_raises_half_way(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline = Pipeline(engine=engine).add(Processor(spread_out)).add(Pipe()).add(Processor(add_one))
                outcomes = self.outcomes(pipeline, range(1, 12))
                assert list(self.failed(outcomes)) == [6]
                assert outcomes[1] == [21, 22] and outcomes[3] == [] and outcomes[10] == [111, 112, 113]

    def test_in_a_branch_that_is_zipped(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline: Pipeline[Any, Any] = Pipeline(engine=engine).add(Processor(add_one)).add(Pipe())
                pipeline.add(ReplicatingFork(2)).add(Processor(str), Processor(spread_out, workers=2))
                pipeline.add(Pipe()).add(Join(how="zip"))
                outcomes = self.outcomes(pipeline, range(1, 12))
                assert list(self.failed(outcomes)) == [5]
                assert outcomes[0] == [("2", 20), (None, 21)] and outcomes[2] == [("4", None)]

    def test_retries_and_what_is_skipped(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                retried = Processor(refuse_three, retries=2, backoff=0.0)
                outcomes = self.outcomes(Pipeline(engine=engine).add(retried), [1, 3, 2])
                assert outcomes[1].attempts == 3 and outcomes[::2] == [[1], [2]]
                pipeline = Pipeline(engine=engine).add(Processor(refuse_three, on_error="skip"))
                assert self.outcomes(pipeline, [1, 3, 2]) == [[1], [], [2]]
                assert [failed.item for failed in pipeline.failures] == ["3"]
                replaced = Processor(refuse_three, on_error=lambda item, error: -item)
                assert self.outcomes(Pipeline(engine=engine).add(replaced), [1, 3, 2]) == [[1], [-3], [2]]

    def test_an_on_error_that_raises(self) -> None:
        def worse(item: Any, error: Exception) -> Any:
            raise KeyError("worse")

        for engine in ENGINES:
            with self.subTest(engine):
                outcomes = self.outcomes(
                    Pipeline(engine=engine).add(Processor(refuse_three, on_error=worse)), [1, 3, 2]
                )
                assert outcomes[1].phase == "on_error" and outcomes[::2] == [[1], [2]]

    def test_what_cannot_be_pickled_on_its_way(self) -> None:
        # Threads pickle nothing.
        for engine in ("process", "inline"):
            with self.subTest(engine):
                pipeline: Pipeline[Any, Any] = Pipeline(engine=engine)
                pipeline.add(Processor(lambda item: Unpicklable() if item == 3 else item, name="gives"))
                outcomes = self.outcomes(pipeline, [1, 2, 3, 4])
                assert outcomes[2].phase == "pickle" and outcomes[3] == [4]
                outcomes = self.outcomes(Pipeline(engine=engine).add(Processor(str)), [1, Unpicklable(), 2])
                assert isinstance(outcomes[1], SourceError) and isinstance(outcomes[1].__cause__, TypeError)
                assert outcomes[2] == ["2"]

    def test_an_item_that_cannot_be_unpickled_in_a_worker(self) -> None:
        outcomes = self.outcomes(Pipeline().add(Processor(str)), [1, 2, Unloadable(), 4, Unloadable(), 5])
        failed = self.failed(outcomes)
        assert list(failed) == [2, 4] and outcomes[3] == ["4"]
        assert all(error.phase == "unpickle" and error.kind == "ValueError" for error in failed.values())

    def test_a_result_that_cannot_be_unpickled_here(self) -> None:
        process = os.getpid()
        pipeline = Pipeline().add(Processor(lambda item: LoadedOnce(process) if item == 3 else item))
        outcomes = self.outcomes(pipeline, range(1, 6))
        assert isinstance(outcomes[2], ResultError) and outcomes[3:] == [[4], [5]]

    def test_an_item_that_ends_its_workers(self) -> None:
        outcomes = self.outcomes(Pipeline().add(Processor(exit_at_three)), [1, 2, 3, 4, 5])
        assert isinstance(outcomes[2], WorkerDiedError) and outcomes[2].exitcode == 7 and outcomes[3:] == [[4], [5]]

    def test_an_item_that_ends_whatever_unpickles_it(self) -> None:
        with Pipeline().add(Processor(str)) as pipeline:
            assert pipeline.submit(1).result(SECONDS) == ["1"]
            with self.assertRaises(WorkerDiedError):
                pipeline.submit(Fatal()).result(SECONDS)
            assert pipeline.submit(2).result(SECONDS) == ["2"]

    def test_threads_take_what_cannot_be_copied_and_copy_all_else(self) -> None:
        lock, row = threading.Lock(), [1]
        door = Door(self)

        def job(item: Any) -> Any:
            if item == 0:
                return door(item)
            return item if item is lock else [*item, 2]

        with Pipeline(engine="thread").add(Processor(job)) as pipeline:
            first, second, third = (pipeline.submit(item) for item in (0, row, lock))
            door.wait()
            row.append(7)
            door.open()
            assert first.result(SECONDS) and second.result(SECONDS) == [[1, 2]]
            assert third.result(SECONDS)[0] is lock

    def test_a_branch_that_gets_no_copy(self) -> None:
        pipeline: Pipeline[Any, Any] = Pipeline(engine="thread").add(Processor(lambda item: item, name="gives"))
        pipeline.add(Pipe()).add(ReplicatingFork(2)).add(Processor(type, name="left"), Processor(type, name="right"))
        with pipeline.add(Pipe()).add(Join(how="zip")):
            failed = pipeline.submit(threading.Lock())
            assert pipeline.submit(1).result(SECONDS) == [(int, int)]
            with self.assertRaisesRegex(ProcessorError, "cannot be copied"):
                failed.result(SECONDS)

    def test_an_item_that_takes_too_long_in_a_thread(self) -> None:
        door = Door(self)
        job = Processor(lambda item: door(item) if item == 3 else item, timeout=0.1, name="slow")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcomes = self.outcomes(Pipeline(engine="thread").add(job), [1, 2, 3, 4, 5])
            door.open(9)
            for thread in worker_pool.abandoned_threads():
                thread.join(SECONDS)
        assert isinstance(outcomes[2], ItemTimeoutError) and outcomes[3:] == [[4], [5]]
        assert {each.category for each in caught} == {AbandonedThreadWarning}

    def test_an_item_that_takes_too_long(self) -> None:
        door = Door(self)
        pipeline = Pipeline().add(Processor(lambda item: door(item) if item == 3 else item, timeout=1.0, name="slow"))
        outcomes = self.outcomes(pipeline, [1, 2, 3, 4, 5])
        assert isinstance(outcomes[2], ItemTimeoutError) and outcomes[3:] == [[4], [5]]

    def test_a_worker_that_is_killed_loses_nothing(self) -> None:
        door = Door(self)

        def job(item: int) -> int:
            if item == 5:
                os.write(door.coming, os.getpid().to_bytes(8, "big"))
                os.read(door.reading, 1)
            return item

        with Pipeline().add(Processor(job)).add(Pipe()).add(Processor(add_one)) as pipeline:
            futures = [pipeline.submit(item) for item in range(100)]
            killed = os.read(door.came, 8)
            os.kill(int.from_bytes(killed, "big"), signal.SIGKILL)
            # Another one is at the item.
            assert os.read(door.came, 8) != killed
            door.open()
            assert [future.result(SECONDS) for future in futures] == [[item + 1] for item in range(100)]

    def test_items_that_cannot_be_sent(self) -> None:
        with Pipeline().add(Processor(add_one)) as pipeline:
            assert pipeline.submit(1).result(SECONDS) == [2]
            with mock.patch("conveyor.engines.process.caller.job_feed.encode", side_effect=MemoryError):
                failed = pipeline.submit(2)
                with self.assertRaises(MemoryError):
                    failed.result(SECONDS)
            assert [pipeline.submit(item).result(SECONDS) for item in range(20)] == [[item + 1] for item in range(20)]

    def test_an_item_that_is_cancelled_while_it_cannot_be_sent(self) -> None:
        with Pipeline().add(Processor(add_one)) as pipeline:
            assert pipeline.submit(1).result(SECONDS) == [2]
            run: Any = pipeline._lifecycle.jobs

            def refuse(*_: object, **__: object) -> None:
                for job in list(run._feed.sent.values()):
                    job.future.cancel()
                raise MemoryError

            with mock.patch("conveyor.engines.process.caller.job_feed.encode", side_effect=refuse):
                cancelled = pipeline.submit(2)
                assert not wait([cancelled], SECONDS).not_done
            assert cancelled.cancelled()
            # They get the number that it had.
            assert [pipeline.submit(item).result(SECONDS) for item in range(20)] == [[item + 1] for item in range(20)]

    def test_room_that_comes_of_an_item_that_cannot_be_sent(self) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def refuse(*_: object, **__: object) -> None:
            begun.set()
            go_on.wait(SECONDS)
            raise MemoryError

        with Pipeline().add(Processor(add_one)) as pipeline:
            assert pipeline.submit(1).result(SECONDS) == [2]
            run: Any = pipeline._lifecycle.jobs
            # The Pipe is full but for one item, and nothing is under way of which the broker could say more.
            run._feed._credit = 1
            futures: list[Future[list[int]]] = []
            threads = [
                threading.Thread(target=lambda: futures.append(pipeline.submit(2)), daemon=True) for _ in range(2)
            ]
            with mock.patch("conveyor.engines.process.caller.job_feed.encode", side_effect=refuse):
                threads[0].start()
                assert begun.wait(SECONDS)
                threads[1].start()
                while not run._feed._room._waiters:
                    time.sleep(0.001)
                go_on.set()
                threads[0].join(SECONDS)
            threads[1].join(SECONDS)
            assert not threads[1].is_alive(), "it waits for room for ever"
            outcomes = [future.exception(SECONDS) for future in futures]
            assert any(isinstance(outcome, MemoryError) for outcome in outcomes), outcomes

    def test_a_message_that_is_broken_off_ends_it(self) -> None:
        door = Door(self)
        with Pipeline().add(Processor(door)) as pipeline:
            future, other = pipeline.submit(1), pipeline.submit(2)
            door.wait()
            run: Any = pipeline._lifecycle.jobs
            with mock.patch.object(run._feed, "send_waiting", side_effect=OSError("no")):
                other.cancel()
                with self.assertRaisesRegex(OSError, "no"):
                    future.result(SECONDS)
            door.open(10)
            assert pipeline.submit(3).result(SECONDS) == [3]

    def test_too_many_failures_end_it(self) -> None:
        for engine in ENGINES:
            with self.subTest(engine):
                pipeline = Pipeline(engine=engine, max_failures=1).add(Processor(refuse_three, on_error="skip"))
                with pipeline:
                    first, second = pipeline.submit(3), pipeline.submit(3)
                    with self.assertRaises(TooManyFailuresError):
                        second.result(SECONDS)
                    assert first.result(SECONDS) == []
                    # What follows starts anew.
                    assert pipeline.submit(1).result(SECONDS) == [1]


class Cancelling(TestCase):
    """Nobody wants an item any more."""

    def test_what_no_worker_has_is_dropped_and_what_has_begun_runs_for_nothing(self) -> None:
        door = Door(self)
        begun: list[int] = []
        with Pipeline().add(Processor(door)).add(Pipe()).add(Processor(str)) as pipeline:
            future = pipeline.submit(0)
            door.wait()
            behind = [pipeline.submit(item) for item in range(1, 50)]
            assert all(each.cancel() for each in behind[:-1]) and all(each.cancelled() for each in behind[:-1])
            assert future.cancel() and future.cancel()
            assert wait([*behind[:-1], future], 0).not_done == set()
            with self.assertRaises(CancelledError):
                future.result()
            # Of those behind, one may have been handed out with the first.
            door.open(3)
            assert behind[-1].result(SECONDS) == ["49"]
            assert not behind[-1].cancel()
            assert pipeline.stats()["Door"].items_in <= 3, begun

    def test_a_cancelled_item_that_fails_is_no_failure(self) -> None:
        door = Door(self)
        with Pipeline().add(Processor(door)).add(Pipe()).add(Processor(refuse_three)) as pipeline:
            future = pipeline.submit(3)
            door.wait()
            assert future.cancel()
            door.open(2)
            assert pipeline.submit(4).result(SECONDS) == [4]


class Bounds(TestCase):
    """Whoever submits too much waits."""

    def test_as_many_wait_as_the_pipe_holds(self) -> None:
        for held in (1, 2, 8):
            door = Door(self)
            with self.subTest(held), Pipeline().add(Processor(door)).add(Pipe(held)).add(Processor(str)) as pipeline:
                futures = [pipeline.submit(0)]
                door.wait()
                # The worker may look ahead: what it has beside the item at hand counts as waiting.
                with self.assertRaisesRegex(TimeoutError, "the first Pipe is full"):
                    while len(futures) < 100:
                        futures.append(pipeline.submit(len(futures), timeout=0.5))
                assert len(futures) == held + 1, len(futures)
                with self.assertRaises(TimeoutError):
                    pipeline.submit(100, timeout=0)
                waiting = threading.Thread(target=lambda: futures.append(pipeline.submit(len(futures))))
                waiting.start()
                door.open(held + 2)
                waiting.join()
                assert [future.result(SECONDS) for future in futures] == [[str(item)] for item in range(held + 2)]

    def test_a_callback_does_not_wait(self) -> None:
        results: list[Any] = []
        done = threading.Event()

        def more(future: Future[list[Any]]) -> None:
            results.append(future.result()[0])
            if results[-1] < 50:
                # More than there is room for.
                for item in range(results[-1] + 1, results[-1] + 4):
                    pipeline.submit(item - 1 if item > 51 else item).add_done_callback(count)
                pipeline.submit(results[-1] + 3).add_done_callback(more)
            else:
                done.set()

        def count(future: Future[list[Any]]) -> None:
            future.result()

        with Pipeline().add(Processor(add_one)).add(Pipe(1)).add(Processor(add_one)) as pipeline:
            pipeline.submit(0).add_done_callback(more)
            assert done.wait(SECONDS)

    def test_a_timeout_is_a_number_of_seconds(self) -> None:
        with Pipeline(engine="inline").add(Processor(abs)) as pipeline:
            with self.assertRaisesRegex(ValueError, "timeout must be a finite number of seconds"):
                pipeline.submit(1, timeout=-1)
            with self.assertRaisesRegex(TypeError, "timeout must be a number of seconds"):
                pipeline.close(timeout="1")  # type: ignore[arg-type]

    def test_large_items_and_many_kinds(self) -> None:
        items = [b"x" * 3_000_000, "y", 1, {"z": [1, 2]}, bytearray(2_000_000), None, (1, 2), "w" * 200_000]
        with (
            Pipeline()
            .add(Processor(lambda item: item, keep_none=True))
            .add(Pipe())
            .add(Processor(lambda item: item, keep_none=True)) as pipeline
        ):
            futures = [(item, pipeline.submit(item)) for _ in range(5) for item in items]
            for item, future in futures:
                assert future.result(SECONDS) == [item]

    def test_what_is_not_sent_keeps_no_shared_memory(self) -> None:
        door = Door(self)
        with Pipeline().add(Processor(door)).add(Pipe(1)).add(Processor(len)) as pipeline:
            first = pipeline.submit(b"x")
            door.wait()
            run: Any = pipeline._lifecycle.jobs
            arena = pipeline._lifecycle.session._broker.arena  # type: ignore[union-attr]
            if arena is None:
                self.skipTest("there is no shared memory here")
            with mock.patch.object(arena, "freed", wraps=arena.freed) as freed:
                # No room: the item is not even pickled.
                pipeline.submit(b"y")
                with self.assertRaises(TimeoutError):
                    pipeline.submit(bytearray(1_000_000), timeout=0)
                assert not freed.called
                # Pickled, and not taken.
                with (
                    mock.patch.object(run._feed, "await_room"),
                    mock.patch.object(run._feed, "add", side_effect=TimeoutError),
                ):
                    with self.assertRaises(TimeoutError):
                        pipeline.submit(bytearray(1_000_000), timeout=0)
                assert freed.call_count == 1
            door.open(10)
            assert first.result(SECONDS) == [1]
            assert pipeline.submit(bytearray(1_000_000)).result(SECONDS) == [1_000_000]

    def test_an_item_is_as_it_was_when_it_was_submitted(self) -> None:
        with Pipeline().add(Processor(lambda item: item)) as pipeline:
            buffer = [0]
            futures = []
            for index in range(100):
                buffer[0] = index
                futures.append(pipeline.submit(buffer))
            assert [future.result(SECONDS)[0][0] for future in futures] == list(range(100))


class Costs(ScriptTestCase):
    """What a pipeline has nothing of whose items are not submitted, and what is left of those that are."""

    def test_a_run_imports_nothing_of_it(self) -> None:
        script = """
            import sys
            from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork
            if __name__ == "__main__":
                for engine in ("process", "thread", "inline"):
                    pipeline = Pipeline(engine=engine).add(Processor(abs)).add(Pipe()).add(ReplicatingFork(2))
                    print(pipeline.add(Processor(str), Processor(hex)).add(Pipe()).add(Join()).run([1]))
                names = "core.nodes.traced", "core.data.lineage", "engines.jobs", "engines.process.caller.jobs"
                print([name for name in names if f"conveyor.{name}" in sys.modules], "concurrent.futures" in sys.modules)
        """
        self.prints("['1', '0x1']\n" * 3 + "[] False", script)

    def test_a_program_ends_although_items_are_pending(self) -> None:
        script = """
            import threading
            from conveyor import Pipeline, Processor

            def wait(item):
                threading.Event().wait()

            if __name__ == "__main__":
                pipeline = Pipeline().add(Processor(wait)).open()
                futures = [pipeline.submit(item) for item in range(3)]
                for future in futures:
                    future.add_done_callback(lambda future: print(future.cancelled()))
        """
        self.prints("True\nTrue\nTrue", script)

    def test_a_thread_may_wait_for_a_result_at_the_end_of_the_program(self) -> None:
        script = """
            import threading, time
            from conveyor import Pipeline, Processor

            def slow(item):
                time.sleep(0.2)
                return item

            if __name__ == "__main__":
                pipeline = Pipeline().add(Processor(slow)).open()
                future = pipeline.submit(1)
                threading.Thread(target=lambda: print(future.result())).start()
        """
        self.prints("[1]", script)

    def test_nothing_keeps_a_result_but_its_future(self) -> None:
        gc.disable()
        self.addCleanup(gc.enable)
        with Pipeline().add(Processor(Held)) as pipeline:
            futures = [pipeline.submit(item) for item in range(20)]
            references = [weakref.ref(future.result(SECONDS)[0]) for future in futures]
            # The thread that resolves Futures drops what it had with the next message.
            assert pipeline.submit(0).result(SECONDS)
            future = None
            del futures, future
            left = [reference for reference in references if reference() is not None]
            assert not left, len(left)


class Held:
    """Something that can be referred to weakly."""

    def __init__(self, item: int) -> None:
        self.item = item


class Observing(TestCase):
    """What is told of submitted items."""

    def test_the_story(self) -> None:
        log = logging.getLogger("conveyor")
        self.addCleanup(log.setLevel, log.level)
        log.setLevel(logging.DEBUG)
        with self.assertLogs("conveyor", logging.DEBUG) as logs, Pipeline().add(Processor(refuse_three)) as pipeline:
            assert pipeline.submit(1).result(SECONDS) == [1]
            with self.assertRaises(ProcessorError):
                pipeline.submit(3).result(SECONDS)
        text = "\n".join(record.getMessage() for record in logs.records)
        for part in (
            "run 1 begins, of items that are submitted one by one",
            "submitted item 1 fails at 'refuse_three', as item 1 there",
            "run 1 is over: 2 items in, 1 result out, 2 leases",
        ):
            assert part in text, text

    def test_a_recording_can_be_replayed(self) -> None:
        path = Path(self.new_folder()) / "recording"
        with mock.patch.dict(os.environ, {"CONVEYOR_RECORD": str(path)}):
            pipeline = Pipeline().add(Processor(spread_out)).add(Pipe()).add(ReplicatingFork(2))
            with pipeline.add(Processor(str), Processor(add_one)).add(Pipe()).add(Join(how="zip")):
                futures = [pipeline.submit(item) for item in range(12)]
                futures[5].cancel()
                wait(futures)
        (file,) = path.parent.iterdir()
        with file.open("rb") as lines:
            assert Replay(lines).run() is None


class Closing(TestCase):
    """No Future stays pending."""

    def pending(self, door: Door, **settings: Any) -> tuple[Pipeline[Any, Any], list[Future[list[Any]]]]:
        """A pipeline with an item at a worker, and others behind it."""
        pipeline = Pipeline(**settings).add(Processor(door)).add(Pipe()).add(Processor(str)).open()
        self.addCleanup(pipeline.close, cancel=True)
        futures = [pipeline.submit(item) for item in range(5)]
        door.wait()
        return pipeline, futures

    def test_close_waits(self) -> None:
        door = Door(self)
        pipeline, futures = self.pending(door)
        closing = threading.Thread(target=pipeline.close)
        closing.start()
        door.open(5)
        closing.join()
        assert [future.result(0) for future in futures] == [[str(item)] for item in range(5)]
        with self.assertRaisesRegex(StateError, "open pipeline"):
            pipeline.submit(1)

    def test_close_can_cancel(self) -> None:
        door = Door(self)
        pipeline, futures = self.pending(door)
        pipeline.close(cancel=True)
        assert all(future.cancelled() for future in futures)
        assert wait(futures, 0).not_done == set()

    def test_close_can_be_bounded(self) -> None:
        door = Door(self)
        pipeline, futures = self.pending(door)
        door.open()
        assert futures[0].result(SECONDS) == ["0"]
        pipeline.close(timeout=0.05)
        assert all(future.cancelled() for future in futures[1:])

    def test_another_thread_can_cancel_what_a_close_waits_for(self) -> None:
        door = Door(self)
        pipeline, futures = self.pending(door)
        closing = threading.Thread(target=pipeline.close)
        closing.start()
        pipeline.close(cancel=True)
        closing.join()
        assert all(future.cancelled() for future in futures)

    def test_nothing_is_submitted_while_it_closes(self) -> None:
        door = Door(self)
        pipeline, _ = self.pending(door)
        closing = threading.Thread(target=pipeline.close)
        closing.start()
        with self.assertRaises(StateError):
            while True:
                pipeline.submit(1, timeout=SECONDS)
                door.open()
        door.open(100)
        closing.join()

    def test_an_exception_cancels(self) -> None:
        for error in (ValueError, KeyboardInterrupt):
            door = Door(self)
            with self.subTest(error), self.assertRaises(error), Pipeline().add(Processor(door)) as pipeline:
                future = pipeline.submit(1)
                door.wait()
                raise error
            assert future.cancelled()

    def test_ctrl_c_while_a_result_is_waited_for(self) -> None:
        door = Door(self)
        with self.assertRaises(KeyboardInterrupt), Pipeline().add(Processor(door)) as pipeline:
            future = pipeline.submit(1)
            door.wait()
            threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident or 0, signal.SIGINT)).start()
            future.result()
        assert future.cancelled()

    def test_a_dropped_pipeline_cancels(self) -> None:
        door = Door(self)
        pipeline = Pipeline().add(Processor(door)).open()
        future = pipeline.submit(1)
        door.wait()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del pipeline
            gc.collect()
        assert [each.category for each in caught] == [ResourceWarning]
        assert future.cancelled()

    def test_the_death_of_the_broker(self) -> None:
        door = Door(self)
        pipeline, futures = self.pending(door)
        broker = pipeline._lifecycle.session._broker.child.pid  # type: ignore[union-attr]
        os.kill(broker, signal.SIGKILL)
        for future in futures:
            with self.assertRaises(ProcessError):
                future.result(SECONDS)
        # What follows starts anew.
        door.open(10)
        assert pipeline.submit(7).result(SECONDS) == ["7"]

    def test_a_failure_is_told_once(self) -> None:
        door = Door(self)
        pipeline, futures = self.pending(door)
        os.kill(pipeline._lifecycle.session._broker.child.pid, signal.SIGKILL)  # type: ignore[union-attr]
        assert isinstance(futures[0].exception(SECONDS), ProcessError)
        pipeline.close()
        assert pipeline.closed

    def test_a_failure_of_the_whole(self) -> None:
        with Pipeline().add(Processor(str)).add(Pipe()).add(Counts()) as pipeline:
            assert [pipeline.submit(item).result(SECONDS) for item in "abc"] == [[1], [2], [3]]
            with self.assertRaisesRegex(WorkerDiedError, "restartable"):
                pipeline.submit("die").result(SECONDS)
            assert pipeline.submit("a").result(SECONDS) == [1]

    def test_a_callback_that_closes(self) -> None:
        said: list[Any] = []
        done = threading.Event()

        def close(future: Future[list[Any]]) -> None:
            try:
                pipeline.close()
            except StateError as error:
                said.append(str(error))
            pipeline.close(cancel=True)
            done.set()

        door = Door(self)
        pipeline, futures = self.pending(door)
        futures[0].add_done_callback(close)
        door.open()
        assert done.wait(SECONDS)
        assert len(said) == 1 and "close(cancel=True)" in said[0]
        assert all(future.cancelled() for future in futures[1:])
        # The last one may.
        pipeline.open()
        closed = threading.Event()
        door.open(10)
        pipeline.submit(1).add_done_callback(lambda future: (pipeline.close(), closed.set()))
        assert closed.wait(SECONDS) and pipeline.closed


class States(TestCase):
    """What goes together, and what does not."""

    def test_a_run_and_a_stream_wait_for_what_is_pending(self) -> None:
        door = Door(self)
        with Pipeline().add(Processor(door)) as pipeline:
            future = pipeline.submit(1)
            for start in (pipeline.run, pipeline.stream):
                with self.assertRaisesRegex(StateError, "second pipeline"):
                    start([2])
            door.open(10)
            assert future.result(SECONDS) == [1]
            assert pipeline.run([2]) == [2]
            with pipeline.stream([3, 4]) as stream:
                with self.assertRaisesRegex(StateError, "second pipeline"):
                    pipeline.submit(5)
                assert list(stream) == [3, 4]
            assert pipeline.submit(5).result(SECONDS) == [5]

    def test_only_an_open_pipeline_takes_items(self) -> None:
        for engine in ENGINES:
            pipeline = Pipeline(engine=engine).add(Processor(abs))
            with self.assertRaisesRegex(StateError, "open pipeline"):
                pipeline.submit(1)
        # One that was entered empty starts with its first item.
        with Pipeline() as empty:
            empty.add(Processor(abs))
            assert empty.submit(-1).result(SECONDS) == [1]

    def test_many_threads_begin_at_once(self) -> None:
        with Pipeline(start_method="fork") as pipeline:
            pipeline.add(Processor(abs))
            futures: list[Future[list[Any]]] = []
            threads = [threading.Thread(target=lambda: futures.append(pipeline.submit(-1))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [future.result(SECONDS) for future in futures] == [[1]] * 8

    def test_outputs_that_belong_to_no_single_item(self) -> None:
        for engine in ENGINES:
            for processor, why in (
                (Processor(list, batch=2), "Processor 'list' works in batches (batch=2)"),
                (Totals(), "Processor 'Totals' may give outputs in `finish`"),
            ):
                with Pipeline(engine=engine).add(processor) as pipeline:
                    with self.assertRaises(RuleError) as raised:
                        pipeline.submit(1)
                    assert why in str(raised.exception) and raised.exception.rule == 9
                    # It goes on as ever.
                    assert pipeline.run([]) == ([] if processor.batch else [1])

    def test_state_is_allowed(self) -> None:
        for engine in ENGINES:
            with Pipeline(engine=engine).add(Counts()) as pipeline:
                assert [pipeline.submit(item).result(SECONDS) for item in "ab"] == [[1], [2]]

    def test_inline_is_done_on_return(self) -> None:
        with Pipeline(engine="inline").add(Processor(odd_only)) as pipeline:
            assert [pipeline.submit(item).result(0) for item in range(4)] == [[], [1], [], [3]]

    @contextmanager
    def forked(self) -> Iterator[Callable[[Callable[[], object]], bytes]]:
        """What a forked copy of this process says of a call."""

        def said(call: Callable[[], object]) -> bytes:
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                try:
                    os.write(writing, repr(call()).encode())
                except BaseException as error:
                    os.write(writing, type(error).__name__.encode())
                finally:
                    os._exit(0)
            os.close(writing)
            with open(reading, "rb") as file:
                text = file.read()
            os.waitpid(child, 0)
            return text

        yield said

    def test_a_forked_copy(self) -> None:
        door = Door(self)
        with warnings.catch_warnings(), self.forked() as said, Pipeline().add(Processor(door)) as pipeline:
            warnings.simplefilter("ignore", DeprecationWarning)
            future = pipeline.submit(1)
            door.wait()
            assert said(lambda: pipeline.submit(1)) == b"StateError"
            assert said(lambda: pipeline.run([1])) == b"StateError"
            assert said(lambda: future.result(SECONDS)) == b"StateError"
            assert said(lambda: (pipeline.close(), future.cancel())) == b"(None, False)"
            door.open(5)
            assert future.result(SECONDS) == [1]

    def test_a_copy_that_was_forked_while_another_thread_was_at_a_job_inline(self) -> None:
        is_there, may_go_on = threading.Event(), threading.Event()

        def job(item: int) -> int:
            is_there.set()
            # In a copy of this process nobody would set it.
            may_go_on.wait(0 if os.getpid() != process else SECONDS)
            return item

        process = os.getpid()
        with (
            warnings.catch_warnings(),
            self.forked() as said,
            Pipeline(engine="inline").add(Processor(job)) as pipeline,
        ):
            warnings.simplefilter("ignore", DeprecationWarning)
            stream = pipeline.stream(range(9))
            thread = threading.Thread(target=lambda: list(stream))
            thread.start()
            assert is_there.wait(SECONDS)
            assert said(lambda: next(stream)) == b"StateError"
            assert said(lambda: (pipeline.close(), pipeline.run([1]))) == b"(None, [1])"
            may_go_on.set()
            thread.join()
            submitter = threading.Thread(target=lambda: pipeline.submit(1))
            is_there.clear()
            may_go_on.clear()
            submitter.start()
            assert is_there.wait(SECONDS)
            assert said(lambda: pipeline.submit(1).result(0)) == b"[1]"
            may_go_on.set()
            submitter.join()

    def test_a_forked_copy_that_is_closed_can_be_opened_again(self) -> None:
        for engine in ENGINES:
            with (
                self.subTest(engine=engine),
                self.forked() as said,
                Pipeline(engine=engine).add(Processor(add_one)) as pipeline,
            ):
                assert pipeline.submit(1).result(SECONDS) == [2]

                def again() -> list[int]:
                    pipeline.close()
                    with pipeline:
                        return pipeline.submit(2).result(SECONDS)

                assert said(again) == b"[3]"


if __name__ == "__main__":
    unittest.main()
