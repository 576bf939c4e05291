"""Pipelines in programs of asyncio: items that tasks submit, asynchronous streams, and `async with`.

Law: what a task gets is what a thread gets.  No test asks how long the loop was held; the parts of a callback are counted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import unittest
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from conveyor import (
    ImplicitJoinWarning,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
    RuleError,
    SourceError,
    StateError,
    TooManyFailuresError,
    WorkerDiedError,
    worker,
)
from conveyor._system.loop_threads import stoppable
from conveyor.engines.inline.session import Session
from conveyor.engines.jobs import JobFuture
from conveyor.engines.loops import SLICE_ITEMS, LoopClient, Outcome
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.system.foreign_threads import foreign_threads
from tests.helpers.scripts import ScriptTestCase
from tests.helpers.support import TestCase, nothing_left

ENGINES = ("process", "thread", "inline")
WITH_INPUT, ERRORS = {"with_input": True}, {"return_exceptions": True}


def add_one(item: int) -> int:
    return item + 1


def refuse_three(item: int) -> int:
    if item == 3:
        raise ValueError("no three")
    return item


def refuse_twenty(item: int) -> int:
    if item == 20:
        raise ValueError("no twenty")
    return item


def odd_only(item: int) -> int | None:
    return item if item % 2 else None


def append_seven(item: list[int]) -> int:
    item.append(7)
    return len(item)


def exit_at_three(item: int) -> int:
    if item == 3:
        os._exit(7)
    return item


class ExitsAtThree(Processor[int, int]):
    """Has a state, which is lost with its worker."""

    def setup(self) -> None:
        self.seen = 0

    def process(self, item: int) -> int:
        self.seen += 1
        return exit_at_three(item)


def spread_out(item: int) -> Iterator[int]:
    for index in range(item % 4):
        yield 10 * item + index


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class Totals(Processor[Any, Any]):
    """Says something at the end."""

    def process(self, item: Any) -> Any:
        return item

    def finish(self) -> Any:
        return 1


class Run:
    """Takes as many items as it has room for, and says what comes of them when it is told to."""

    def __init__(self, room: int) -> None:
        self.taken: list[Outcome] = []
        self.room = room

    def offer(self, outcome: Outcome) -> bool:
        if len(self.taken) == self.room:
            return False
        self.taken.append(outcome)
        return True


class Door:
    """A job that waits until it is let through; the test waits in the loop, as a thread would be one more at a fork."""

    def __init__(self, test: unittest.TestCase) -> None:
        self.reading, self.writing = os.pipe()
        self.came, self.coming = os.pipe()
        for descriptor in (self.reading, self.writing, self.came, self.coming):
            test.addCleanup(os.close, descriptor)

    def __call__(self, item: Any) -> Any:
        os.write(self.coming, os.getpid().to_bytes(8, "big"))
        os.read(self.reading, 1)
        return item

    async def wait(self) -> int:
        """Wait until somebody has come; return the number of the process."""
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.came, came.set)
        try:
            await came.wait()
        finally:
            loop.remove_reader(self.came)
        return int.from_bytes(os.read(self.came, 8), "big")

    def open(self, times: int = 1) -> None:
        """Let so many through."""
        os.write(self.writing, b"." * times)


async def all_submitted(pipeline: Pipeline[Any, Any], items: int) -> None:
    """Wait until none of so many items waits for room, or for the run to begin."""
    run: Any = pipeline._lifecycle.jobs
    while len(run._pending) < items:
        await asyncio.sleep(0)


async def rounds(times: int = 20) -> None:
    """Let the loop run on, for so many rounds."""
    for _ in range(times):
        await asyncio.sleep(0)


class AsyncTestCase(TestCase):
    """Tests whose body is a coroutine, in a loop of its own."""

    def run_in_loop(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run it, and see that it leaves nothing, and that the loop had nothing to complain of."""
        complaints: list[Any] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            await coroutine
            gc.collect()
            await rounds()

        with nothing_left():
            asyncio.run(main())
        assert not complaints, complaints


class Submitting(AsyncTestCase):
    """What a task gets for an item."""

    def test_it_is_what_a_run_of_the_item_gives(self) -> None:
        async def main(engine: Any) -> None:
            pipeline = Pipeline(engine=engine).add(Processor(spread_out)).add(Pipe()).add(Processor(add_one))
            async with pipeline as entered:
                assert entered is pipeline
                results = await asyncio.gather(*(pipeline.asubmit(item) for item in range(300)))
            assert pipeline.closed
            with Pipeline(engine="inline").add(Processor(spread_out)).add(Pipe()).add(Processor(add_one)) as inline:
                assert results == [inline.run([item]) for item in range(300)]

        for engine in ENGINES:
            with self.subTest(engine):
                self.run_in_loop(main(engine))

    def test_an_item_that_fails_fails_alone(self) -> None:
        async def main(engine: Any) -> None:
            async with (
                Pipeline(engine=engine).add(Processor(refuse_three)).add(Pipe()).add(Processor(add_one)) as opened
            ):
                tasks = (opened.asubmit(item) for item in (1, 3, 2))
                first, error, last = await asyncio.gather(*tasks, return_exceptions=True)
                assert (first, last) == ([2], [3])
                assert isinstance(error, ProcessorError) and (error.processor, error.item) == ("refuse_three", "3")
                assert isinstance(error.__cause__, ValueError)
                assert await opened.asubmit(4) == [5]

        for engine in ENGINES:
            with self.subTest(engine):
                self.run_in_loop(main(engine))

    def test_an_item_that_cannot_be_pickled(self) -> None:
        async def main(engine: Any) -> None:
            async with Pipeline(engine=engine).add(Processor(str)) as pipeline:
                with self.assertRaises(SourceError) as caught:
                    await pipeline.asubmit(Unpicklable())
                assert isinstance(caught.exception.__cause__, TypeError)
                assert await pipeline.asubmit(1) == ["1"]

        for engine in ("process", "inline"):
            with self.subTest(engine):
                self.run_in_loop(main(engine))

    def test_an_item_is_as_it_was_when_it_was_submitted(self) -> None:
        async def main(engine: Any) -> None:
            async with Pipeline(engine=engine).add(Processor(list)) as pipeline:
                await pipeline.asubmit([0])
                row = [1]
                task = asyncio.create_task(pipeline.asubmit(row))
                await asyncio.sleep(0)
                row.append(2)
                assert await task == [[1]]

        for engine in ENGINES:
            with self.subTest(engine):
                self.run_in_loop(main(engine))

    def test_large_items(self) -> None:
        async def main() -> None:
            items = [b"x" * 3_000_000, bytearray(2_000_000), "w" * 200_000]
            async with Pipeline().add(Processor(lambda item: item, name="same")) as pipeline:
                results = await asyncio.gather(*(pipeline.asubmit(item) for item in items * 3))
                assert results == [[item] for item in items * 3]

        self.run_in_loop(main())

    def test_beside_threads(self) -> None:
        async def main() -> None:
            async with Pipeline().add(Processor(add_one)) as pipeline:
                submit = partial(asyncio.to_thread, pipeline.submit)
                futures = await asyncio.gather(*(submit(item) for item in range(50)))
                results = await asyncio.gather(*(pipeline.asubmit(item) for item in range(50)))
                assert results == [future.result(10) for future in futures] == [[item + 1] for item in range(50)]

        self.run_in_loop(main())

    def test_a_pipeline_that_is_not_open(self) -> None:
        async def main() -> None:
            pipeline = Pipeline(engine="inline").add(Processor(abs))
            outcomes = await asyncio.gather(*(pipeline.asubmit(1) for _ in range(5)), return_exceptions=True)
            assert all(type(each) is StateError and "open pipeline" in str(each) for each in outcomes), outcomes
            async with Pipeline(engine="inline").add(Totals()) as whole:
                with self.assertRaisesRegex(RuleError, "belong to no single item"):
                    await whole.asubmit(1)
                with self.assertRaisesRegex(RuleError, "belong to no single item"):
                    whole.astream([1])

        self.run_in_loop(main())

    def test_what_follows_the_end_of_all_starts_anew(self) -> None:
        async def main(engine: Any) -> None:
            pipeline = Pipeline(engine=engine, max_failures=0).add(Processor(refuse_three, on_error="skip"))
            async with pipeline:
                assert await pipeline.asubmit(1) == [1]
                with self.assertRaises(TooManyFailuresError):
                    await pipeline.asubmit(3)
                assert await asyncio.gather(*(pipeline.asubmit(1) for _ in range(100))) == [[1]] * 100

        for engine in ENGINES:
            with self.subTest(engine):
                self.run_in_loop(main(engine))

    def test_who_hears_of_the_end_finds_the_session_ended(self) -> None:
        # Else a task that submits at once has its item cancelled, by the end of the session that it was given to.
        told: list[bool] = []

        def tell(outcome: Any, error: BaseException) -> None:
            told.append(session.ended)
            set_exception(outcome, error)

        async def main(engine: Any) -> None:
            nonlocal session
            async with Pipeline(engine=engine, max_failures=0).add(
                Processor(refuse_three, on_error="skip")
            ) as pipeline:
                session = pipeline._lifecycle.session
                with self.assertRaises(TooManyFailuresError):
                    await pipeline.asubmit(3)

        def submit(engine: Any) -> None:
            nonlocal session
            with Pipeline(engine=engine, max_failures=0).add(Processor(refuse_three, on_error="skip")) as pipeline:
                session = pipeline._lifecycle.session
                self.assertIsInstance(pipeline.submit(3).exception(), TooManyFailuresError)

        session: Any = None
        for engine in ENGINES:
            for kind, call in ((Outcome, lambda engine: self.run_in_loop(main(engine))), (JobFuture, submit)):
                set_exception: Any = kind.set_exception
                with self.subTest(engine, kind=kind), mock.patch.object(kind, "set_exception", tell):
                    call(engine)
                    self.assertEqual(told, [True])
                told.clear()

    def test_what_ends_all_is_told_to_a_thread_that_waits_for_its_turn(self) -> None:
        # The inline engine works on one item at a time.  The thread whose turn comes when the session has ended must
        # not take that for a `close`, which cancels what is pending.
        begun, fails, told = threading.Event(), threading.Event(), threading.Event()

        def job(item: str) -> None:
            if item == "fails":
                begun.set()
                fails.wait(10)
                raise ValueError(item)
            while not worker().stopping:
                told.wait(0.001)

        def abort(session: Session) -> None:
            end(session)
            if threading.current_thread() is submitting:
                told.wait(10)

        async def main() -> None:
            async with pipeline:
                submitting.start()
                await asyncio.to_thread(begun.wait, 10)
                task = asyncio.create_task(pipeline.asubmit("waits"))
                task.add_done_callback(lambda task: told.set())
                # The item was taken, and waits for its turn.
                await asyncio.sleep(0)
                fails.set()
                with self.assertRaises(TooManyFailuresError):
                    await task
            await asyncio.to_thread(submitting.join)

        pipeline = Pipeline(engine="inline", max_failures=0).add(Processor(job, on_error="skip"))
        submitting = threading.Thread(target=lambda: futures.append(pipeline.submit("fails")))
        futures: list[Any] = []
        end = Session.abort
        with mock.patch.object(Session, "abort", abort):
            self.run_in_loop(main())
        self.assertIsInstance(futures[0].exception(), TooManyFailuresError)

    def test_ctrl_c_in_another_thread_cancels_what_a_loop_awaits(self) -> None:
        # The inline engine is at a job in the thread that submits the item, where Ctrl-C is raised.
        begun, is_pending = threading.Event(), threading.Event()

        def job(item: str) -> None:
            if item == "interrupted":
                begun.set()
                is_pending.wait(10)
                raise KeyboardInterrupt
            while not worker().stopping:
                never.wait(0.001)

        def submit() -> None:
            try:
                pipeline.submit("interrupted")
            except KeyboardInterrupt as error:
                raised.append(type(error))

        async def awaits() -> str:
            # Out of a task, KeyboardInterrupt would end the loop of this test.
            try:
                return str(await pipeline.asubmit("waits"))
            except BaseException as error:
                return type(error).__name__

        async def main() -> None:
            async with pipeline:
                submitting.start()
                await asyncio.to_thread(begun.wait, 10)
                task = asyncio.create_task(awaits())
                # The item was taken, and waits for its turn.
                await asyncio.sleep(0)
                is_pending.set()
                assert await task == "CancelledError"
            await asyncio.to_thread(submitting.join)

        raised: list[Any] = []
        never = threading.Event()
        pipeline = Pipeline(engine="inline").add(Processor(job))
        submitting = threading.Thread(target=submit)
        self.run_in_loop(main())
        assert raised == [KeyboardInterrupt]

    def test_a_worker_that_is_killed_loses_nothing(self) -> None:
        door = Door(self)

        def job(item: int) -> int:
            return door(item) if item == 50 else item  # type: ignore[no-any-return]

        async def main() -> None:
            async with Pipeline().add(Processor(job)).add(Pipe()).add(Processor(add_one)) as pipeline:
                tasks = asyncio.gather(*(pipeline.asubmit(item) for item in range(100)))
                killed = await door.wait()
                os.kill(killed, signal.SIGKILL)
                assert await door.wait() != killed
                door.open()
                assert await tasks == [[item + 1] for item in range(100)]

        self.run_in_loop(main())


class Cancelling(AsyncTestCase):
    """A task is cancelled, and so is what it has submitted."""

    def test_what_no_worker_has_is_dropped(self) -> None:
        door = Door(self)

        async def main() -> None:
            async with Pipeline().add(Processor(door)).add(Pipe()).add(Processor(str)) as pipeline:
                tasks = [asyncio.create_task(pipeline.asubmit(item)) for item in range(50)]
                await door.wait()
                for task in tasks[:-1]:
                    task.cancel()
                await asyncio.wait(tasks[:-1])
                assert all(task.cancelled() for task in tasks[:-1])
                # Of those behind, a few may have been handed out with the first: more on a busy machine.
                while not tasks[-1].done():
                    door.open(1)
                    await asyncio.wait(tasks[-1:], timeout=0.01)
                assert await tasks[-1] == ["49"]
                assert pipeline.stats()["Door"].items_in <= 25

        self.run_in_loop(main())

    def test_what_waits_for_room_or_for_a_thread(self) -> None:
        async def main(engine: Any, door: Door) -> None:
            async with Pipeline(engine=engine).add(Processor(door)).add(Pipe(1)).add(Processor(str)) as pipeline:
                tasks = [asyncio.create_task(pipeline.asubmit(item)) for item in range(20)]
                await door.wait()
                for task in tasks[10:]:
                    task.cancel()
                await asyncio.wait(tasks[10:])
                door.open(10)
                assert await asyncio.gather(*tasks[:10]) == [[str(item)] for item in range(10)]
                assert pipeline.stats()["Door"].items_in == 10

        for engine in ENGINES:
            with self.subTest(engine):
                self.run_in_loop(main(engine, Door(self)))

    def test_a_task_that_is_cancelled_before_the_first_run_has_begun(self) -> None:
        async def main() -> None:
            async with Pipeline(engine="thread").add(Processor(add_one)) as pipeline:
                first, second = (asyncio.create_task(pipeline.asubmit(item)) for item in (1, 2))
                await asyncio.sleep(0)
                first.cancel()
                assert await second == [3]
                assert first.cancelled()

        self.run_in_loop(main())


class Bounds(AsyncTestCase):
    """Tasks wait while there is no room, and no thread does."""

    def test_as_many_are_submitted_as_the_pipe_holds(self) -> None:
        async def main(engine: Any, door: Door) -> None:
            async with Pipeline(engine=engine).add(Processor(door)).add(Pipe(2)).add(Processor(str)) as pipeline:
                tasks = [asyncio.create_task(pipeline.asubmit(0))]
                await door.wait()
                threads = set(threading.enumerate())
                tasks += [asyncio.create_task(pipeline.asubmit(item)) for item in range(1, 200)]
                await rounds()
                assert set(threading.enumerate()) <= threads
                # Whoever blocks a thread waits behind the same bound.  One may have come before the tasks.
                blocked: list[Any] = []
                with self.assertRaises(TimeoutError):
                    while len(blocked) < 10:
                        blocked.append(await asyncio.to_thread(pipeline.submit, 200, timeout=0.1))
                run: Any = pipeline._lifecycle.jobs
                assert len(run._pending) <= 4, len(run._pending)
                door.open(210)
                assert await asyncio.gather(*tasks) == [[str(item)] for item in range(200)]

        for engine in ("process", "thread"):
            with self.subTest(engine):
                self.run_in_loop(main(engine, Door(self)))

    def test_nothing_waits_behind_an_item_at_which_ctrl_c_came(self) -> None:
        # In a notebook, the loop goes on after that.
        async def main() -> None:
            run = Run(10)
            client = LoopClient(asyncio.get_running_loop(), run)
            with mock.patch.object(run, "offer", side_effect=KeyboardInterrupt):
                with self.assertRaises(KeyboardInterrupt):
                    client.submit(1)
            client.submit(2)
            await rounds()
            assert [each.item for each in run.taken] == [2]

        self.run_in_loop(main())

    def test_whoever_has_many_outcomes_lets_the_loop_come_first(self) -> None:
        called: list[Callable[[], object]] = []
        loop: Any = SimpleNamespace(call_soon_threadsafe=called.append, call_soon=called.append)
        client = LoopClient(loop, Run(0))
        # Nothing is there for the loop, so nobody waits for it.
        client.give_way()
        assert not client._is_late and not called
        waiting: Any = SimpleNamespace(done=lambda: False, set_result=lambda nothing: None)
        outcome = Outcome(client, 1, waiting)
        client.put(outcome)
        client.call()
        # It does not come in time: this thread goes on, and does not wait for it again.
        client.give_way()
        assert client._is_late and len(called) == 1
        with mock.patch.object(client._has_come, "wait", side_effect=AssertionError):
            client.give_way()
            client.put(outcome)
            client.call()
        # It comes: it is waited for again, and that ends as soon as it comes.
        called.pop()()
        assert not client._is_late
        client.put(outcome)
        client.call()

        def come(seconds: float) -> bool:
            called.pop()()
            return client._has_come.is_set()

        with mock.patch.object(client._has_come, "wait", come):
            client.give_way()
        assert not client._is_late and not called

    def test_one_call_brings_many_outcomes_and_takes_them_in_slices(self) -> None:
        async def main() -> None:
            loop, run = asyncio.get_running_loop(), Run(10 * SLICE_ITEMS)
            calls: list[str] = []
            client = LoopClient(loop, run)
            served = client._serve

            def serve() -> None:
                done, taken = sum(each.waiter.done() for each in outcomes), len(run.taken)
                served()
                calls.append("serve")
                assert sum(each.waiter.done() for each in outcomes) - done <= SLICE_ITEMS
                assert len(run.taken) - taken <= SLICE_ITEMS

            client._serve = serve  # type: ignore[method-assign]
            outcomes: list[Outcome] = []
            outcomes += [client.submit(item) for item in range(20 * SLICE_ITEMS)]
            assert len(run.taken) <= SLICE_ITEMS, "a round of the loop submits a slice"
            while len(run.taken) < run.room:
                await asyncio.sleep(0)
            assert [each.item for each in run.taken] == list(range(run.room))
            calls.clear()
            run.room *= 2

            def resolve() -> None:
                for outcome in run.taken[: 5 * SLICE_ITEMS]:
                    outcome.set_result([outcome.item])
                calls.append("call")
                client.call()

            # The loop sees what a thread does all at once.
            thread = threading.Thread(target=resolve)
            thread.start()
            thread.join()
            while len(run.taken) < run.room or not outcomes[5 * SLICE_ITEMS - 1].waiter.done():
                await asyncio.sleep(0)
            assert [each.result() for each in outcomes[:100]] == [[item] for item in range(100)]
            assert calls[0] == "call" and len(calls) >= 11
            # Nothing is left to do, and no callback asks.
            for outcome in run.taken[5 * SLICE_ITEMS :]:
                outcome.cancel()
            client.call()
            calls.clear()
            await rounds()
            assert len(calls) <= 1, calls

        self.run_in_loop(main())


class Ending(AsyncTestCase):
    """No task waits for ever."""

    def test_the_block_waits_for_what_was_submitted(self) -> None:
        async def main(engine: Any, door: Door) -> None:
            async with Pipeline(engine=engine).add(Processor(door)) as pipeline:
                tasks = [asyncio.create_task(pipeline.asubmit(item)) for item in range(3)]
                await door.wait()
                await all_submitted(pipeline, 3)
                door.open(3)
            assert [await task for task in tasks] == [[0], [1], [2]]

        for engine in ENGINES:
            with self.subTest(engine):
                self.run_in_loop(main(engine, Door(self)))

    def test_an_exception_that_leaves_the_block_cancels(self) -> None:
        async def main(engine: Any, door: Door) -> None:
            tasks = []
            with self.assertRaises(KeyError):
                async with Pipeline(engine=engine).add(Processor(door)) as pipeline:
                    tasks = [asyncio.create_task(pipeline.asubmit(item)) for item in range(3)]
                    await door.wait()
                    await all_submitted(pipeline, 3)
                    # In a thread, a job that has begun is waited for, within a bound.
                    door.open(1)
                    raise KeyError
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(outcomes[-1], asyncio.CancelledError), outcomes
            door.open(3)

        for engine in ("process", "inline"):
            with self.subTest(engine):
                self.run_in_loop(main(engine, Door(self)))

    def test_another_thread_closes(self) -> None:
        door = Door(self)

        async def main() -> None:
            pipeline = Pipeline().add(Processor(door)).add(Pipe(1)).add(Processor(str))
            async with pipeline:
                tasks = [asyncio.create_task(pipeline.asubmit(item)) for item in range(20)]
                await door.wait()
                await asyncio.to_thread(pipeline.close, cancel=True)
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                # The last one was not submitted yet.
                assert [type(each) for each in (outcomes[0], outcomes[-1])] == [asyncio.CancelledError, StateError]

        self.run_in_loop(main())

    def test_a_task_that_is_cancelled_while_it_opens(self) -> None:
        door = Door(self)

        class Slow(Processor[Any, Any]):
            def setup(self) -> None:
                door(None)

            def process(self, item: Any) -> Any:
                return item

        async def main() -> None:
            pipeline = Pipeline().add(Slow())
            task = asyncio.create_task(pipeline.__aenter__())
            await door.wait()
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            assert pipeline.closed

        self.run_in_loop(main())

    def test_a_task_that_is_cancelled_while_it_closes(self) -> None:
        door = Door(self)

        async def main() -> None:
            pipeline = await Pipeline().add(Processor(door)).__aenter__()
            submitted = asyncio.create_task(pipeline.asubmit(1))
            await door.wait()
            closing = asyncio.create_task(pipeline.__aexit__(None, None, None))
            await rounds()
            closing.cancel()
            await asyncio.wait([closing, submitted])
            assert closing.cancelled() and submitted.cancelled() and pipeline.closed

        self.run_in_loop(main())

    def test_a_loop_that_is_closed_before_the_outcome_harms_nobody(self) -> None:
        door = Door(self)

        async def leave(pipeline: Pipeline[Any, Any], coroutines: list[Any]) -> None:
            for item in (0, 1):
                coroutine = pipeline.asubmit(item)
                coroutines.append(coroutine)
                # As a task that is never told of anything.
                coroutine.send(None)
                while pipeline._lifecycle.jobs is None:
                    await asyncio.sleep(0.001)
                await rounds()

        for engine in ENGINES:
            with (
                self.subTest(engine),
                nothing_left(),
                Pipeline(engine=engine).add(Processor(door)) as pipeline,
            ):
                door.open(1)
                assert pipeline.submit(7).result(30) == [7]
                coroutines: list[Any] = []
                loop = asyncio.new_event_loop()
                loop.run_until_complete(leave(pipeline, coroutines))
                loop.close()
                door.open(3)

                async def main(pipeline: Pipeline[Any, Any] = pipeline) -> None:
                    assert await pipeline.asubmit(2) == [2]

                asyncio.run(main())
                for coroutine in coroutines:
                    coroutine.close()

    def test_two_loops_in_two_threads(self) -> None:
        outcomes: dict[int, Any] = {}

        def work(pipeline: Pipeline[int, int], first: int) -> None:
            async def main() -> None:
                items = range(first, first + 200)
                several = asyncio.gather(*(pipeline.asubmit(item) for item in items))
                streamed = [item async for item in pipeline.astream(items)]
                outcomes[first] = streamed, [each for results in await several for each in results]

            asyncio.run(main())

        for engine in ENGINES:
            with self.subTest(engine), nothing_left(), Pipeline(engine=engine).add(Processor(add_one)) as pipeline:
                outcomes.clear()
                threads = [threading.Thread(target=work, args=(pipeline, first)) for first in (0, 1000)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                for first in (0, 1000):
                    expected = list(range(first + 1, first + 201))
                    assert outcomes[first] == (expected, expected)


class Opening(AsyncTestCase):
    """A thread opens and closes."""

    def test_the_thread_that_opened_may_end(self) -> None:
        async def main() -> None:
            pipeline = Pipeline().add(Processor(add_one))
            for open_it in (pipeline.__aenter__, partial(asyncio.to_thread, pipeline.open)):
                await open_it()
                await asyncio.get_running_loop().shutdown_default_executor()
                for thread in threading.enumerate():
                    if thread.name == "conveyor-asyncio":
                        thread.join()
                # Workers are children of the broker, and the broker of this process: not of the thread.
                assert await asyncio.gather(*(pipeline.asubmit(item) for item in range(10)))
                await pipeline.__aexit__(None, None, None)
                asyncio.get_running_loop()._executor_shutdown_called = False  # type: ignore[attr-defined]

        self.run_in_loop(main())

    def test_a_loop_in_any_thread_is_no_reason_for_fresh_interpreters(self) -> None:
        found: list[Any] = []

        async def main() -> None:
            async with Pipeline().add(Processor(lambda item: -item, name="negative")) as pipeline:
                # The loop is busy meanwhile.
                found.append((await pipeline.asubmit(1), pipeline.stats().start_method))

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        thread.join()
        assert found == [([-1], "fork")]

    def test_the_loop_stops_while_this_process_forks(self) -> None:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        ran = threading.Event()
        assert thread.ident is not None
        with stoppable(thread.ident, loop.call_soon_threadsafe):
            assert not foreign_threads()
            with gate.closed():
                assert gate._stopped == {thread.ident}
                loop.call_soon_threadsafe(ran.set)
                assert not ran.is_set()
            assert ran.wait(30)
        assert foreign_threads()
        with gate.closed():
            assert not gate._stopped
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        with stoppable(thread.ident, loop.call_soon_threadsafe), gate.closed():
            assert not gate._stopped

    def test_a_warning_names_the_line_that_awaits(self) -> None:
        async def main() -> None:
            pipeline: Pipeline[Any, Any] = Pipeline(engine="inline").add(Processor(abs)).add(Pipe())
            pipeline.add(ReplicatingFork(2)).add(Processor(str), Processor(hex))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                async with pipeline:  # first
                    pass
                assert [each async for each in pipeline.astream([1])] == ["1", "0x1"]  # second
            lines = Path(__file__).read_text(encoding="utf-8").splitlines()
            named = [lines[each.lineno - 1] for each in caught if each.category is ImplicitJoinWarning]
            assert [name.rpartition("# ")[2] for name in named] == ["first", "second"], caught
            assert {each.filename for each in caught} == {__file__}

        self.run_in_loop(main())

    def test_errors_of_open(self) -> None:
        async def main() -> None:
            pipeline = Pipeline(engine="inline").add(Processor(abs))
            async with pipeline:
                with self.assertRaisesRegex(StateError, "open or running already"):
                    await pipeline.__aenter__()
            async with Pipeline(engine="inline") as empty:
                assert empty.add(Processor(abs)).run([-1]) == [1]

        self.run_in_loop(main())


class Streaming(AsyncTestCase):
    """Asynchronous streams."""

    def each_source(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        async def slowly() -> AsyncIterator[int]:
            for item in range(80):
                if not item % 30:
                    await asyncio.sleep(0)
                yield item

        yield "asynchronous", slowly
        yield "list", lambda: list(range(80))
        yield "range", lambda: range(80)
        yield "generator", lambda: (item for item in range(80))
        yield "deque", lambda: deque(range(80))

    def test_results_are_those_of_a_run(self) -> None:
        async def main(pipeline: Pipeline[Any, Any], source: Callable[[], Any], expected: list[Any]) -> None:
            results = [result async for result in pipeline.astream(source())]
            assert (results if ordered else sorted(results)) == expected
            assert pipeline.closed
            async with pipeline:
                results = [result async for result in pipeline.astream(source())]
                assert (results if ordered else sorted(results)) == expected
                assert pipeline.opened

        for engine in ENGINES:
            for ordered in (True, False):
                pipeline = Pipeline(engine=engine, ordered=ordered)
                pipeline.add(Processor(spread_out, workers=2)).add(Pipe()).add(Processor(add_one))
                expected = [10 * item + index + 1 for item in range(80) for index in range(item % 4)]
                for name, source in self.each_source():
                    # Where processes start, or the order is another, the source is as it was.
                    if name != "asynchronous" and (engine == "process" or not ordered):
                        continue
                    with self.subTest(engine=engine, ordered=ordered, source=name):
                        self.run_in_loop(main(pipeline, source, expected))

    def test_a_source_that_fills_one_object_again_and_again(self) -> None:
        async def tasks() -> AsyncIterator[list[int]]:
            row = [0]
            for row[0] in range(500):
                yield row

        def thread() -> Iterator[list[int]]:
            row = [0]
            for row[0] in range(500):
                yield row

        async def main(engine: Any, source: Any) -> None:
            # The pipe is so small that items wait for room, too.
            pipeline = Pipeline(engine=engine).add(Processor(sum)).add(Pipe(4)).add(Processor(add_one))
            assert [each async for each in pipeline.astream(source)] == list(range(1, 501))

        for engine in ENGINES:
            for source in (tasks, thread):
                with self.subTest(engine=engine, source=source.__name__):
                    self.run_in_loop(main(engine, source()))

    def test_one_item_and_none(self) -> None:
        async def main() -> None:
            pipeline = Pipeline(engine="inline").add(Processor(len))
            assert [each async for each in pipeline.astream("word")] == [4]
            assert [each async for each in pipeline.astream([])] == []
            nothing = Pipeline(engine="inline").astream([1])
            with self.assertRaisesRegex(RuleError, "Processor"):
                await nothing.__anext__()

        self.run_in_loop(main())

    def test_no_more_is_pulled_than_the_pipes_hold(self) -> None:
        pulled: list[None] = []

        async def endless() -> AsyncIterator[int]:
            while True:
                pulled.append(None)
                yield len(pulled)

        def forever() -> Iterator[int]:
            while True:
                pulled.append(None)
                yield len(pulled)

        async def main(source: Callable[[], Any], door: Door) -> None:
            pulled.clear()
            async with Pipeline().add(Processor(door)).add(Pipe(3)).add(Processor(str)) as pipeline:
                async with pipeline.astream(source()) as stream:
                    task = asyncio.create_task(stream.__anext__())  # type: ignore[arg-type]
                    await door.wait()
                    await rounds(200)
                    assert len(pulled) <= 16, len(pulled)
                    door.open(1)
                    assert await task == "1"
                door.open(9)

        for source in (endless, forever):
            with self.subTest(source.__name__):
                self.run_in_loop(main(source, Door(self)))

    def test_results_come_as_they_end_where_order_does_not_matter(self) -> None:
        door = Door(self)

        def job(item: int) -> int:
            return door(item) if item == 0 else item  # type: ignore[no-any-return]

        async def main() -> None:
            pipeline = Pipeline(ordered=False).add(Processor(job, workers=2))
            async with pipeline.astream(range(2)) as stream:
                assert await stream.__anext__() == 1
                door.open()
                assert [each async for each in stream] == [0]

        self.run_in_loop(main())

    def test_an_item_that_fails_ends_it(self) -> None:
        async def main(engine: Any) -> None:
            pipeline = Pipeline(engine=engine).add(Processor(refuse_three)).add(Pipe()).add(Processor(add_one))
            results = []
            with self.assertRaises(ProcessorError) as caught:
                async for result in pipeline.astream(range(10)):
                    results.append(result)
            assert results == [1, 2, 3] and caught.exception.number == 3
            assert pipeline.closed

        for engine in ENGINES:
            with self.subTest(engine):
                self.run_in_loop(main(engine))

    def test_a_source_that_raises(self) -> None:
        async def tasks() -> AsyncIterator[int]:
            yield 1
            yield 2
            raise KeyError("no more")

        def thread() -> Iterator[int]:
            yield 1
            yield 2
            raise KeyError("no more")

        async def main(source: Any) -> None:
            pipeline, results = Pipeline(engine="thread").add(Processor(add_one)), []
            with self.assertRaisesRegex(SourceError, "raised KeyError when it was asked for item 2") as caught:
                async for result in pipeline.astream(source):
                    results.append(result)
            assert results == [2, 3] and caught.exception.number == 2
            assert isinstance(caught.exception.__cause__, KeyError)

        for source in (tasks(), thread()):
            self.run_in_loop(main(source))

    def test_whoever_leaves_it_early_gives_up_the_rest_and_closes_the_source(self) -> None:
        closed: list[str] = []

        async def tasks() -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
            finally:
                closed.append("tasks")

        def thread() -> Iterator[int]:
            try:
                while True:
                    yield 1
            finally:
                closed.append(threading.current_thread().name)

        async def main(engine: Any, source: Callable[[], Any]) -> None:
            closed.clear()
            pipeline = Pipeline(engine=engine).add(Processor(add_one))
            async with pipeline.astream(source()) as stream:
                async for result in stream:
                    assert result == 2 and pipeline.opened
                    break
            assert pipeline.closed and len(closed) == 1
            # It is over.
            assert [each async for each in stream] == []
            async with pipeline:
                async for _ in pipeline.astream(source()):
                    break
                # Dropped: the loop closes it.
                gc.collect()
                while len(closed) < 2:
                    await asyncio.sleep(0)
                assert await pipeline.asubmit(3) == [4]

        for engine in ENGINES:
            for source in (tasks, thread):
                with self.subTest(engine=engine, source=source.__name__):
                    self.run_in_loop(main(engine, source))
                    assert closed == (["tasks"] * 2 if source is tasks else ["conveyor-source"] * 2)

    def test_a_task_that_is_cancelled(self) -> None:
        door = Door(self)

        async def main() -> None:
            pipeline = Pipeline().add(Processor(door))

            async def take() -> None:
                async for _ in pipeline.astream(range(10)):
                    pass

            task = asyncio.create_task(take())
            await door.wait()
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            assert pipeline.closed

        self.run_in_loop(main())

    def test_one_task_takes_results(self) -> None:
        door = Door(self)

        async def main() -> None:
            async with Pipeline().add(Processor(door)) as pipeline:
                stream = pipeline.astream([1])
                task = asyncio.create_task(stream.__anext__())  # type: ignore[arg-type]
                await door.wait()
                with self.assertRaisesRegex(StateError, "another task waits"):
                    await stream.__anext__()
                with self.assertRaisesRegex(StateError, "another task waits"):
                    await stream.aclose()
                door.open()
                assert await task == 1
                await stream.aclose()

        self.run_in_loop(main())

    def test_a_source_that_uses_the_pipeline(self) -> None:
        """A stream through the same pipeline feeds another."""

        async def main() -> None:
            async with Pipeline().add(Processor(add_one)) as pipeline:
                twice = pipeline.astream(pipeline.astream(range(300)))
                assert [each async for each in twice] == [item + 2 for item in range(300)]

        self.run_in_loop(main())


def kinds(results: list[Any]) -> list[Any]:
    """Results, or pairs, with the kinds of their errors."""
    named = [type(each).__name__ if isinstance(each, Exception) else each for each in results]
    return [(each[0], *kinds([*each[1:]])) if isinstance(each, tuple) else each for each in named]


class Gathering(AsyncTestCase):
    """Asynchronous streams `with_input` and with `return_exceptions`."""

    def check(self, processors: list[Any], *cases: tuple[Any, dict[str, bool], list[Any]]) -> None:
        """Compare what each engine gives for items and flags, and one of them also without an order."""

        async def main(pipeline: Pipeline[Any, Any], ordered: bool) -> None:
            for index, processor in enumerate(processors):
                (pipeline.add(Pipe()) if index else pipeline).add(processor)
            async with pipeline:
                for items, flags, expected in cases:
                    results = kinds([each async for each in pipeline.astream(items, **flags)])  # type: ignore[call-overload]
                    if not ordered:
                        results, expected = sorted(results, key=repr), sorted(expected, key=repr)
                    assert results == expected, results

        for engine, ordered in (("process", True), ("thread", True), ("thread", False), ("inline", True)):
            with self.subTest(engine, ordered=ordered):
                self.run_in_loop(main(Pipeline(engine=engine, ordered=ordered), ordered))  # type: ignore[arg-type]

    def test_pairs(self) -> None:
        expected = [(item, [10 * item + index + 1 for index in range(item % 4)]) for item in range(100)]
        self.check([Processor(spread_out, workers=2), Processor(add_one)], (range(100), WITH_INPUT, expected))

    def test_errors_in_the_place_of_outputs(self) -> None:
        pairs = [(0, []), (1, [10]), (2, "ProcessorError"), (3, [30, 31, 32]), (4, [])]
        self.check(
            [Processor(spread_out), Processor(refuse_twenty)],
            (range(5), ERRORS, [10, "ProcessorError", 30, 31, 32]),
            (range(5), WITH_INPUT | ERRORS, pairs),
        )

    def test_what_is_skipped(self) -> None:
        self.check(
            [Processor(spread_out), Processor(refuse_twenty, on_error="skip")],
            ([1, 2], WITH_INPUT | ERRORS, [(1, [10]), (2, [21])]),
        )
        self.check(
            [Processor(odd_only), Processor(refuse_three, on_error="skip")],
            ([1, 3, 5], {}, [1, 5]),
            ([1, 3, 2], WITH_INPUT, [(1, [1]), (3, []), (2, [])]),
            ([1, 3, 5], ERRORS, [1, "ProcessorError", 5]),
            ([3, 2], WITH_INPUT | ERRORS, [(3, "ProcessorError"), (2, [])]),
        )

    def test_the_item_is_the_one_that_was_given(self) -> None:
        async def main(engine: Any, give: Callable[[list[Any]], Any]) -> None:
            rows = [[number] for number in range(100)]
            pipeline = Pipeline(engine=engine).add(Processor(append_seven))
            pairs = [pair async for pair in pipeline.astream(give(rows), with_input=True)]
            assert all(item is row for (item, _), row in zip(pairs, rows, strict=True))
            assert pairs == [([number], [2]) for number in range(100)]

        async def each(rows: list[Any]) -> AsyncIterator[Any]:
            for row in rows:
                yield row

        for engine, give in (("process", iter), ("thread", each), ("thread", list), ("inline", iter)):
            with self.subTest(engine, give=give):
                self.run_in_loop(main(engine, give))

    def test_an_error_that_ends_more_than_its_item_ends_the_stream(self) -> None:
        async def main(pipeline: Pipeline[Any, Any], items: Any, error: type[Exception]) -> None:
            with self.assertRaises(error):
                async for _ in pipeline.astream(items, with_input=True, return_exceptions=True):
                    pass
            assert pipeline.closed

        def source() -> Iterator[int]:
            yield 1
            raise KeyError("no more")

        for engine in ENGINES:
            with self.subTest(engine):
                limited = Pipeline(engine=engine, max_failures=0).add(Processor(refuse_three, on_error="skip"))
                self.run_in_loop(main(limited, [1, 3, 5], TooManyFailuresError))
                self.run_in_loop(main(Pipeline(engine=engine).add(Processor(add_one)), source(), SourceError))
        self.run_in_loop(main(Pipeline(engine="inline").add(Processor(str)), [Unpicklable()], SourceError))
        # The error is of the kind that an item may have, but its worker has ended with its state.
        self.run_in_loop(main(Pipeline(engine="process").add(ExitsAtThree()), [1, 3], WorkerDiedError))

    def test_an_item_that_ends_its_workers(self) -> None:
        async def main() -> None:
            pipeline = Pipeline(engine="process").add(Processor(exit_at_three))
            stream = pipeline.astream([1, 3, 2], with_input=True, return_exceptions=True)
            assert kinds([pair async for pair in stream]) == [(1, [1]), (3, "WorkerDiedError"), (2, [2])]

        self.run_in_loop(main())

    def test_large_items_beside_small_results_are_few_at_once(self) -> None:
        pulled: list[None] = []

        async def heavy() -> AsyncIterator[bytes]:
            while True:
                pulled.append(None)
                yield bytes(200_000)

        async def main() -> None:
            pipeline = Pipeline(engine="thread").add(Processor(len)).add(Pipe(maxbytes=2_000_000)).add(Processor(str))
            async with pipeline.astream(heavy(), with_input=True) as stream:
                for taken in range(300):
                    item, outputs = await stream.__anext__()
                    assert (len(item), outputs) == (200_000, ["200000"])
                    assert len(pulled) - taken <= 100, "many are kept until they are given out"

        self.run_in_loop(main())

    def test_flags_are_flags_and_the_rule_holds(self) -> None:
        pipeline = Pipeline(engine="inline").add(Processor(add_one))
        for flag in ("with_input", "return_exceptions"):
            with self.assertRaisesRegex(TypeError, f"{flag} must be True or False, not 1"):
                pipeline.astream([1], **{flag: 1})  # type: ignore[call-overload]
            with self.assertRaisesRegex(RuleError, "belong to no single item"):
                Pipeline(engine="inline").add(Totals()).astream([1], **{flag: True})  # type: ignore[call-overload]


class Programs(ScriptTestCase):
    """What a program has nothing of that does not use it, and how one ends that does."""

    def test_ctrl_c_while_a_result_is_awaited(self) -> None:
        script = """
            import asyncio, os, signal, threading
            from conveyor import Pipeline, Processor

            def wait(item):
                os.kill(caller, signal.SIGINT)
                threading.Event().wait()

            async def main():
                async with Pipeline().add(Processor(wait)) as pipeline:
                    await pipeline.asubmit(1)

            caller = os.getpid()
            if __name__ == "__main__":
                try:
                    asyncio.run(main())
                except KeyboardInterrupt:
                    # The thread that closed has told the loop so, and ends.
                    for thread in threading.enumerate():
                        if thread.name == "conveyor-asyncio":
                            thread.join()
                    print("interrupted", [thread.name for thread in threading.enumerate()])
        """
        self.prints("interrupted ['MainThread']", script)

    def test_nothing_imports_asyncio(self) -> None:
        script = """
            import sys
            from conveyor import Pipeline, Processor
            if __name__ == "__main__":
                for engine in ("process", "thread", "inline"):
                    with Pipeline(engine=engine).add(Processor(abs)) as pipeline:
                        print(pipeline.run([-1]), pipeline.submit(-2).result())
                names = "asyncio", "conveyor.event_loop", "conveyor.async_stream", "conveyor.engines.loops"
                print([name for name in names if name in sys.modules])
        """
        self.prints("[1] [2]\n" * 3 + "[]", script)
