"""Async jobs: many calls at once in one worker, in every engine.

Law: what is expected is written out, and the same for each engine.  That calls run at once is seen by calls that wait for
each other, and by no clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import signal
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import conveyor
from conveyor import (
    ConveyorError,
    ItemTimeoutError,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
    WorkerDiedError,
)
from conveyor.engines.process.worker.async_loop import AsyncWorker
from tests.helpers.scripts import interrupt_all
from tests.helpers.support import TestCase, nothing_left

INLINE: dict[str, Any] = {"engine": "inline"}
THREAD: dict[str, Any] = {"engine": "thread"}
FORK: dict[str, Any] = {"start_method": "fork"}
ENGINES: tuple[dict[str, Any], ...] = (
    INLINE,
    THREAD,
    *({"start_method": method} for method in multiprocessing.get_all_start_methods() if method != "forkserver"),
    {"start_method": "fork", "channel": "queue"},
)
# Where calls run at once.
CONCURRENT = (THREAD, FORK)
CHEAP = (INLINE, *CONCURRENT)
FOREVER = 3600.0
SECONDS = 60.0


async def double(number):
    await asyncio.sleep(0.0001 * (number % 5))
    return number * 2


async def odd_only(number):
    await asyncio.sleep(0)
    return number if number % 2 else None


async def countdown(number):
    for value in range(number, 0, -1):
        await asyncio.sleep(0)
        yield value


async def without_end(number):
    value = number
    while True:
        yield value
        value += 1


async def refuse_17(number):
    await asyncio.sleep(0)
    if number == 17:
        raise ValueError(17)
    return number


async def refuse_17_twice(number):
    attempt = conveyor.worker().attempt
    await asyncio.sleep(0)
    if number == 17 and conveyor.worker().attempt < 3:
        raise ValueError(17)
    return number, attempt, conveyor.worker().attempt


async def half_then_refuse(number):
    yield number, "first"
    if number == 7 and conveyor.worker().attempt == 1:
        raise ValueError(number)
    yield number, "second"


async def sleep_at_17(number):
    if number == 17:
        await asyncio.sleep(FOREVER)
    return number


async def hang_at_17(number):
    if number == 17:
        time.sleep(FOREVER)
    return number


async def never_ends_at_17(number):
    while number == 17:
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            continue
    return number


async def die_at_17(number):
    if number == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.001)
    return number


async def exit_at_17(number):
    if number == 17:
        raise SystemExit("seventeen")
    return number


async def await_cancelled_at_17(number):
    """What awaits another's task, such as a session that was opened once, gets its CancelledError."""
    if number == 17:
        other = asyncio.ensure_future(asyncio.sleep(FOREVER))
        other.cancel()
        await other
    return number


async def half_then_cancelled(number):
    yield number, "first"
    await await_cancelled_at_17(number)
    yield number, "second"


async def cancel_itself_at_17(number):
    if number == 17 and conveyor.worker().attempt == 1:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        raise ValueError("is to be tried again")
    return number


async def leave_at_17(number):
    if number == 17:
        raise GeneratorExit
    return number


async def interrupt_at_17(number):
    if number == 17:
        raise KeyboardInterrupt
    return number


class CancelledFinish(Processor[Any, Any]):
    async def process(self, number):
        return number

    async def finish(self):
        await await_cancelled_at_17(17)


class CancelledTeardown(Processor[Any, Any]):
    async def process(self, number):
        return number

    async def teardown(self):
        await await_cancelled_at_17(17)


def instead(item, error):
    return "bad", item, str(error), conveyor.worker().attempt


class DieOnce:
    """Ends its worker once, while other calls are under way."""

    def __init__(self, path):
        self.path = path

    async def __call__(self, number):
        await asyncio.sleep(0.001)
        if number == 17 and not os.path.exists(self.path):
            Path(self.path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


class Meeting(Processor[Any, Any]):
    """Calls that end when so many of them are there at once, in the reverse order."""

    def __init__(self, most, **settings):
        super().__init__(concurrency=most, **settings)
        self.most = most

    async def setup(self):
        self.here = []
        self.largest = 0
        await asyncio.sleep(0)
        return "set up"

    async def process(self, number):
        mine = asyncio.Event()
        self.here.append(mine)
        self.largest = max(self.largest, len(self.here))
        if len(self.here) == self.most:
            self.here.pop().set()
        await mine.wait()
        if self.here:
            self.here.pop().set()
        return number, conveyor.worker().state

    async def finish(self):
        await asyncio.sleep(0)
        yield "largest", self.largest

    async def teardown(self):
        await asyncio.sleep(0)


class Whole(Processor[Any, Any]):
    """Async in each of its methods, in one event loop."""

    async def setup(self):
        self.loop = asyncio.get_running_loop()
        self.total = 0

    async def process(self, number):
        assert self.loop is asyncio.get_running_loop()
        self.total += number
        return number

    async def finish(self):
        assert self.loop is asyncio.get_running_loop()
        total, self.total = self.total, 0
        return total

    async def teardown(self):
        assert self.loop is asyncio.get_running_loop()


class Outputs(TestCase):
    """What comes of async jobs."""

    # That a fresh interpreter, or a queue, makes no difference shows here, and for all the others.
    def test_results_are_in_order(self):
        for settings in ENGINES:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(double)).add(Pipe()).add(Processor(odd_only, workers=2))
                self.assertEqual(pipeline.run(range(100)), [])
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                self.assertEqual(Pipeline(**settings).add(Processor(double)).run(range(300)), [*range(0, 600, 2)])

    def test_filters_and_generators(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                self.assertEqual(Pipeline(**settings).add(Processor(odd_only)).run(range(9)), [1, 3, 5, 7])
                kept = Pipeline(**settings).add(Processor(odd_only, keep_none=True)).run(range(3))
                self.assertEqual(kept, [None, 1, None])
                expected = [value for number in range(30) for value in range(number % 7, 0, -1)]
                numbers = [number % 7 for number in range(30)]
                self.assertEqual(Pipeline(**settings).add(Processor(countdown, workers=2)).run(numbers), expected)

    def test_a_generator_without_end_is_taken_as_far_as_it_is_wanted(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(without_end)).add(Pipe(4)).add(Processor(double))
                with pipeline.stream([5, 6, 7]) as stream:
                    taken = [next(stream) for _ in range(500)]
                self.assertEqual(taken, [*range(10, 1010, 2)])

    def test_little_room(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = (
                    Pipeline(**settings).add(Processor(double)).add(Pipe(1)).add(Processor(countdown)).add(Pipe(1))
                )
                pipeline.add(Processor(double, concurrency=3, workers=2))
                expected = [2 * value for number in range(20) for value in range(number * 2, 0, -1)]
                self.assertEqual(pipeline.run(range(20)), expected)

    def test_items_are_zipped_and_submitted(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(abs)).add(Pipe()).add(ReplicatingFork(2))
                pipeline.add(Processor(double), Processor(abs)).add(Pipe()).add(Join(2, how="zip"))
                with pipeline:
                    self.assertEqual(pipeline.run(range(40)), [(number * 2, number) for number in range(40)])
                    futures = [pipeline.submit(number) for number in range(40)]
                    results = [future.result(SECONDS) for future in futures]
                    self.assertEqual(results, [[(number * 2, number)] for number in range(40)])

    def test_all_methods_may_be_async(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left(), Pipeline(**settings).add(Whole()) as pipeline:
                for _ in range(2):
                    self.assertEqual(pipeline.run(range(10)), [*range(10), 45])

    def test_other_callables(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                self.assertEqual(Pipeline(**settings).add(Processor(functools.partial(double))).run([1, 2]), [2, 4])
                job = DieOnce(self.new_folder())
                self.assertEqual(Pipeline(**settings).add(Processor(job)).run([1, 17]), [1, 17])

    def test_within_an_event_loop(self):
        async def main(settings):
            return Pipeline(**settings).add(Processor(double)).run(range(5))

        for settings in CHEAP:
            with self.subTest(settings=settings):
                self.assertEqual(asyncio.run(main(settings)), [0, 2, 4, 6, 8])


class AtOnce(TestCase):
    """How many calls run at once."""

    def test_so_many_and_no_more(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings), nothing_left():
                *results, largest = Pipeline(**settings).add(Meeting(5)).run(range(5))
                self.assertEqual(results, [(number, "set up") for number in range(5)])
                self.assertEqual(largest, ("largest", 5))

    def test_a_slow_call_holds_up_no_submitted_item(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings), Pipeline(**settings).add(Processor(sleep_at_17)) as pipeline:
                slow = pipeline.submit(17)
                self.assertEqual([pipeline.submit(n).result(SECONDS) for n in range(16)], [[n] for n in range(16)])
                self.assertFalse(slow.done())
                pipeline.close(cancel=True)

    def test_a_retry_that_waits_holds_up_nobody(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings):
                job = Processor(refuse_17_twice, retries=3, backoff=FOREVER, concurrency=2)
                with Pipeline(**settings).add(job) as pipeline:
                    slow = pipeline.submit(17)
                    self.assertEqual(pipeline.submit(3).result(SECONDS), [(3, 1, 1)])
                    self.assertFalse(slow.done())
                    pipeline.close(cancel=True)


class Failing(TestCase):
    """Calls that fail, take too long, or end their worker."""

    def test_errors(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                with self.assertRaisesRegex(ProcessorError, "refuse_17' raised ValueError: 17") as caught:
                    Pipeline(**settings).add(Processor(refuse_17)).run(range(200))
                self.assertEqual(caught.exception.number, 17)

    def test_on_error(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(Processor(refuse_17, on_error=instead))
                bad = ("bad", 17, "17", 1)
                self.assertEqual(pipeline.run(range(40)), [*range(17), bad, *range(18, 40)])
                pipeline = Pipeline(**settings).add(Processor(exit_at_17, on_error="skip"))
                self.assertEqual(pipeline.run(range(40)), [*range(17), *range(18, 40)])
                self.assertEqual([failed.number for failed in pipeline.failures], [17])

    def test_an_error_in_the_worker_itself_ends_the_run(self):
        # Nobody awaits the tasks in which it works on a lease, so what they raise must not be lost with them.
        async def broken(*_):
            raise RuntimeError("an error in Conveyor")

        for settings in CONCURRENT:
            for name in ("_collect_all", "_start_calls"):
                with self.subTest(settings=settings, name=name), mock.patch.object(AsyncWorker, name, broken):
                    with nothing_left(), Pipeline(**settings).add(Processor(double)) as pipeline:
                        with self.assertRaisesRegex(ConveyorError, "an error in Conveyor"):
                            pipeline.run(range(40))
                        with self.assertRaisesRegex(ConveyorError, "an error in Conveyor"):
                            pipeline.submit(7).result()

    def test_what_is_cancelled_elsewhere_fails_the_call(self):
        for settings in CHEAP:
            for more in ({}, {"timeout": FOREVER}):
                with self.subTest(settings=settings, **more), nothing_left():
                    for job in (await_cancelled_at_17, half_then_cancelled):
                        with self.assertRaisesRegex(ProcessorError, "raised CancelledError.*item 17: 17") as caught:
                            Pipeline(**settings).add(Processor(job, **more)).run(range(40))
                        self.assertEqual(caught.exception.number, 17)
                    pipeline = Pipeline(**settings).add(Processor(half_then_cancelled, on_error="skip", **more))
                    expected = [(n, which) for n in range(20) for which in ("first", "second")]
                    expected.remove((17, "second"))
                    self.assertEqual(pipeline.run(range(20)), expected)
                    self.assertEqual([failed.number for failed in pipeline.failures], [17])
                    with Pipeline(**settings).add(Processor(await_cancelled_at_17, **more)) as pipeline:
                        self.assertIsInstance(pipeline.submit(17).exception(SECONDS), ProcessorError)
                        self.assertEqual(pipeline.submit(18).result(SECONDS), [18])
            for kind, phase in ((CancelledFinish, "finish"), (CancelledTeardown, "teardown")):
                with (
                    self.subTest(settings=settings, phase=phase),
                    self.assertRaisesRegex(ProcessorError, f"^{phase}.* raised CancelledError"),
                ):
                    Pipeline(**settings).add(kind()).run(range(40))

    def test_what_is_no_exception_fails_the_call(self):
        for settings in CONCURRENT:
            for job, name in ((leave_at_17, "GeneratorExit"), (interrupt_at_17, "KeyboardInterrupt")):
                with self.subTest(settings=settings, job=name), nothing_left():
                    with self.assertRaisesRegex(ProcessorError, f"raised {name} .item 17: 17"):
                        Pipeline(**settings).add(Processor(job)).run(range(40))
                    pipeline = Pipeline(**settings).add(Processor(job, on_error="skip"))
                    self.assertEqual(pipeline.run(range(40)), [*range(17), *range(18, 40)])
                    self.assertEqual([failed.number for failed in pipeline.failures], [17])

    def test_a_call_that_cancels_itself_before_it_is_made_again(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings)
                pipeline.add(Processor(cancel_itself_at_17, retries=1, backoff=0.001, on_error="skip"))
                self.assertEqual(pipeline.run(range(40)), [*range(17), *range(18, 40)])
                self.assertEqual([failed.number for failed in pipeline.failures], [17])

    def test_retries(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(Processor(refuse_17_twice, retries=2, backoff=0.001))
                expected = [(n, 1, 1) if n != 17 else (17, 3, 3) for n in range(40)]
                self.assertEqual(pipeline.run(range(40)), expected)
                pipeline = Pipeline(**settings).add(Processor(half_then_refuse, retries=1, backoff=0))
                expected = [(n, which) for n in range(20) for which in ("first", "second")]
                self.assertEqual(pipeline.run(range(20)), expected)

    def test_a_submitted_item_fails_alone(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), Pipeline(**settings).add(Processor(refuse_17)) as pipeline:
                futures = [pipeline.submit(number) for number in range(40)]
                self.assertIsInstance(futures.pop(17).exception(SECONDS), ProcessorError)
                self.assertEqual([f.result(SECONDS) for f in futures], [[n] for n in range(40) if n != 17])

    def test_a_timeout_cancels_the_call(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(sleep_at_17, timeout=0.3, on_error="skip"))
                self.assertEqual(pipeline.run(range(40)), [*range(17), *range(18, 40)])
                (failed,) = pipeline.failures
                self.assertIsInstance(failed.error, ItemTimeoutError)
                self.assertIn("[item 17: 17]: the call was cancelled", str(failed.error))
                with self.assertRaisesRegex(ItemTimeoutError, "timeout of 0.3 s .*the call was cancelled") as caught:
                    Pipeline(**settings).add(Processor(sleep_at_17, timeout=0.3)).run(range(40))
                self.assertEqual(caught.exception.number, 17)

    def test_an_item_whose_call_is_cancelled_fails_alone(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings), nothing_left(), contextlib.ExitStack() as stack:
                # Their calls take too long side by side.
                once, twice = (
                    stack.enter_context(Pipeline(**settings).add(Processor(sleep_at_17, timeout=0.3, **more)))
                    for more in ({}, {"retries": 1, "backoff": 0})
                )
                submitted = [[pipeline.submit(number) for number in range(40)] for pipeline in (once, twice)]
                for futures, attempts in zip(submitted, (1, 2), strict=True):
                    error = futures.pop(17).exception(SECONDS)
                    self.assertIsInstance(error, ItemTimeoutError)
                    self.assertEqual(error.attempts, attempts)
                    self.assertEqual([f.result(SECONDS) for f in futures], [[n] for n in range(40) if n != 17])
                pairs = once.run(range(40), with_input=True, return_exceptions=True)
                self.assertIsInstance(pairs.pop(17)[1], ItemTimeoutError)
                self.assertEqual(pairs, [(n, [n]) for n in range(40) if n != 17])

    def test_a_worker_whose_loop_is_stuck_is_killed(self):
        for job in (hang_at_17, never_ends_at_17):
            with self.subTest(job=job.__name__), nothing_left():
                pipeline = Pipeline(**FORK).add(Processor(job, timeout=0.3, on_error="skip"))
                self.assertEqual(pipeline.run(range(24)), [*range(17), *range(18, 24)])
                (failed,) = pipeline.failures
                self.assertIsInstance(failed.error, ItemTimeoutError)
                self.assertEqual(failed.number, 17)
                self.assertIn("the worker was killed", str(failed.error))

    def test_a_worker_that_is_killed_loses_nothing(self):
        for settings in (FORK, {"start_method": "fork", "channel": "queue"}):
            with self.subTest(settings=settings), nothing_left():
                job = Processor(DieOnce(os.path.join(self.new_folder(), "died")), workers=2)
                self.assertEqual(Pipeline(**settings).add(job).run(range(300)), [*range(300)])

    def test_an_item_that_ends_workers_is_given_up_alone(self):
        with nothing_left():
            pipeline = Pipeline(**FORK).add(Processor(die_at_17, on_error="skip"))
            self.assertEqual(pipeline.run(range(40)), [*range(17), *range(18, 40)])
            (failed,) = pipeline.failures
            self.assertEqual((failed.number, failed.last), (17, 17))
            self.assertIsInstance(failed.error, WorkerDiedError)

    def test_a_stream_that_is_left_cancels_the_calls(self):
        for settings in CONCURRENT:
            with (
                self.subTest(settings=settings),
                nothing_left(),
                Pipeline(**settings).add(Processor(sleep_at_17)) as pipeline,
            ):
                with pipeline.stream([*range(17), 17]) as stream:
                    self.assertEqual(next(stream), 0)
                # The workers are there for the next run.
                self.assertEqual(pipeline.run(range(10)), [*range(10)])

    def test_ctrl_c(self):
        code = (
            "import asyncio, itertools, sys\nfrom conveyor import Pipeline, Processor\n"
            "async def job(number):\n    if number == 20:\n        print('there', flush=True)\n"
            "    await asyncio.sleep(3600 if number else 0)\n    return number\n"
            "if __name__ == '__main__':\n"
            "    Pipeline(**eval(sys.argv[1])).add(Processor(job)).run(itertools.count())\n"
        )
        for errors in interrupt_all(self, code, map(repr, CONCURRENT), SECONDS):
            self.assertNotIn("Error", errors.replace("KeyboardInterrupt", ""))


if __name__ == "__main__":
    unittest.main()
