"""Threaded jobs: several calls at once in one worker, each in a thread, in every engine.

Law: what is expected is written out, and the same for each engine.  That calls run at once is seen by calls that wait for
each other, and by no clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import logging
import multiprocessing
import os
import signal
import threading
import time
import unittest
import warnings
from pathlib import Path
from typing import Any

import conveyor
from conveyor import (
    AbandonedThreadWarning,
    ItemTimeoutError,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
    WorkerDiedError,
)
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


def double(number):
    time.sleep(0.0001 * (number % 5))
    return number * 2


def odd_only(number):
    return number if number % 2 else None


def countdown(number):
    yield from range(number, 0, -1)


def without_end(number):
    while True:
        yield number
        number += 1


def many_in_one_buffer(number):
    buffer = [0]
    for value in range(200):
        buffer[0] = number + value
        yield buffer


def refuse_17(number):
    if number == 17:
        raise ValueError(17)
    return number


def refuse_17_twice(number):
    attempt = conveyor.worker().attempt
    if number == 17 and attempt < 3:
        raise ValueError(17)
    return number, attempt


def half_then_refuse(number):
    yield number, "first"
    if number == 7 and conveyor.worker().attempt == 1:
        raise ValueError(number)
    yield number, "second"


def stop_at_17(number):
    if number == 17:
        raise StopIteration(number)
    return number


def exit_at_17(number):
    if number == 17:
        raise SystemExit("seventeen")
    return number


def hang_at_17(number):
    if number == 17:
        time.sleep(FOREVER)
    return number, conveyor.worker().attempt


def hang_at_first(number):
    if number == 17 and conveyor.worker().attempt == 1:
        time.sleep(FOREVER)
    return number, conveyor.worker().attempt


def hang_at_some(number):
    if 10 <= number < 14:
        time.sleep(FOREVER)
    return number


def keep_the_interpreter_at_17(number):
    if number == 17:
        ctypes.PyDLL(None).pause()
    return number


def sum_or_hang(numbers):
    if 17 in numbers:
        time.sleep(FOREVER)
    return sum(numbers)


def die_at_17(number):
    if number == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fork_at_17(number):
    if number == 17:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
    return number


def where(number):
    return threading.current_thread() is threading.main_thread()


def run_a_loop(item, error):
    return asyncio.run(asyncio.sleep(0, ("bad", item, str(error), conveyor.worker().attempt)))


def speak(number):
    logging.getLogger("threaded").warning("logged %d", number)
    print(f"printed {number}")
    warnings.warn(f"warned {number}", stacklevel=1)
    return number


def burn(number):
    return sum(range(20_000)) + number


class DieOnce:
    """Ends its worker once, while other calls are under way."""

    def __init__(self, path):
        self.path = path

    def __call__(self, number):
        if number == 17 and not os.path.exists(self.path):
            Path(self.path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


class Meeting(Processor[Any, Any]):
    """Calls that end when so many of them are there at once; `setup` and the others run in one thread."""

    thread_safe = True

    def __init__(self, most, **settings):
        super().__init__(threads=most, **settings)
        self.most = most

    def setup(self):
        self.thread = threading.get_ident()
        self.barrier = threading.Barrier(self.most)
        self.seen = set()
        return "set up"

    def process(self, number):
        self.seen.add(threading.get_ident())
        self.barrier.wait(SECONDS)
        return number, conveyor.worker().state

    def finish(self):
        # Nothing of the worker's own loop is in the way.
        asyncio.run(asyncio.sleep(0))
        yield "threads", len(self.seen), self.thread in self.seen, self.thread == threading.get_ident()

    def teardown(self):
        assert self.thread == threading.get_ident()


class Total(Processor[Any, Any]):
    """Has one state for all threads."""

    thread_safe = True
    threads = 4

    def setup(self):
        self.total, self.lock = 0, threading.Lock()

    def process(self, number):
        with self.lock:
            self.total += number
        return number

    def finish(self):
        total, self.total = self.total, 0
        return total


class HangingTotal(Total):
    """Is killed with its state."""

    def process(self, number):
        if number == 17:
            time.sleep(FOREVER)
        return super().process(number)


class Outputs(TestCase):
    """What comes of threaded jobs."""

    def test_results_are_in_order(self):
        for settings in ENGINES:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(double, threads=7)).add(Pipe())
                pipeline.add(Processor(odd_only, threads=3, workers=2))
                self.assertEqual(pipeline.run(range(100)), [])
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                self.assertEqual(
                    Pipeline(**settings).add(Processor(double, threads=16)).run(range(300)), [*range(0, 600, 2)]
                )

    def test_filters_and_generators(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                self.assertEqual(Pipeline(**settings).add(Processor(odd_only, threads=4)).run(range(9)), [1, 3, 5, 7])
                kept = Pipeline(**settings).add(Processor(odd_only, threads=4, keep_none=True)).run(range(3))
                self.assertEqual(kept, [None, 1, None])
                expected = [value for number in range(30) for value in range(number % 7, 0, -1)]
                numbers = [number % 7 for number in range(30)]
                self.assertEqual(
                    Pipeline(**settings).add(Processor(countdown, threads=4, workers=2)).run(numbers), expected
                )

    def test_a_generator_without_end_is_taken_as_far_as_it_is_wanted(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                pipeline = (
                    Pipeline(**settings).add(Processor(without_end, threads=2)).add(Pipe(4)).add(Processor(double))
                )
                with pipeline.stream([5, 6, 7]) as stream:
                    taken = [next(stream) for _ in range(500)]
                self.assertEqual(taken, [*range(10, 1010, 2)])

    def test_a_generator_may_fill_one_buffer_again_and_again(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                results = Pipeline(**settings).add(Processor(many_in_one_buffer, threads=3)).run(range(6))
                self.assertEqual(results, [[number + value] for number in range(6) for value in range(200)])

    def test_little_room(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(Processor(double, threads=5)).add(Pipe(1))
                pipeline.add(Processor(countdown, threads=5)).add(Pipe(1)).add(Processor(double, threads=3, workers=2))
                expected = [2 * value for number in range(20) for value in range(number * 2, 0, -1)]
                self.assertEqual(pipeline.run(range(20)), expected)

    def test_items_are_zipped_and_submitted(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(abs, threads=3)).add(Pipe()).add(ReplicatingFork(2))
                pipeline.add(Processor(double, threads=5), Processor(abs)).add(Pipe()).add(Join(2, how="zip"))
                with pipeline:
                    self.assertEqual(pipeline.run(range(40)), [(number * 2, number) for number in range(40)])
                    futures = [pipeline.submit(number) for number in range(40)]
                    results = [future.result(SECONDS) for future in futures]
                    self.assertEqual(results, [[(number * 2, number)] for number in range(40)])

    def test_results_beside_their_inputs(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                results = Pipeline(**settings).add(Processor(odd_only, threads=4)).run(range(20), with_input=True)
                self.assertEqual(results, [(number, [number] if number % 2 else []) for number in range(20)])

    def test_batches(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                results = Pipeline(**settings).add(Processor(sum, batch=7, threads=3)).run(range(100))
                self.assertEqual(results, [sum(range(n, min(n + 7, 100))) for n in range(0, 100, 7)])

    def test_one_state_for_all_threads(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left(), Pipeline(**settings).add(Total()) as pipeline:
                for _ in range(2):
                    self.assertEqual(pipeline.run(range(40)), [*range(40), 780])

    def test_the_number_of_workers_may_follow_the_load(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(burn, threads=2, workers="auto"))
                self.assertEqual(pipeline.run(range(100)), [burn(number) for number in range(100)])

    def test_workers_are_replaced_after_so_many_items(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(double, threads=4, max_items=10))
                self.assertEqual(pipeline.run(range(60)), [*range(0, 120, 2)])


class AtOnce(TestCase):
    """How many calls run at once, and where."""

    def test_so_many_and_no_more(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings), nothing_left():
                *results, threads = Pipeline(**settings).add(Meeting(5)).run(range(20))
                self.assertEqual(results, [(number, "set up") for number in range(20)])
                self.assertEqual(threads, ("threads", 5, False, True))

    def test_threads_and_workers(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings), nothing_left():
                # Either of the workers may have all items.
                *results, first, second = Pipeline(**settings).add(Meeting(1, workers=2)).run(range(40))
                self.assertEqual(results, [(number, "set up") for number in range(40)])
                self.assertEqual({first[2:], second[2:]}, {(False, True)})

    def test_no_call_is_in_the_main_thread(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings):
                self.assertEqual(Pipeline(**settings).add(Processor(where, threads=1)).run(range(3)), [False] * 3)

    def test_a_slow_call_holds_up_no_submitted_item(self):
        with nothing_left(), Pipeline(**FORK).add(Processor(hang_at_17, threads=2)) as pipeline:
            slow = pipeline.submit(17)
            self.assertEqual([pipeline.submit(n).result(SECONDS) for n in range(16)], [[(n, 1)] for n in range(16)])
            self.assertFalse(slow.done())
            # The call never ends, and the worker does.
            pipeline.close(cancel=True)

    def test_a_retry_that_waits_holds_up_nobody(self):
        for settings in CONCURRENT:
            with self.subTest(settings=settings):
                job = Processor(refuse_17_twice, retries=3, backoff=FOREVER, threads=2)
                with Pipeline(**settings).add(job) as pipeline:
                    slow = [pipeline.submit(17) for _ in range(2)]
                    self.assertEqual(pipeline.submit(3).result(SECONDS), [(3, 1)])
                    self.assertEqual([future.done() for future in slow], [False, False])
                    pipeline.close(cancel=True)

    def test_what_threads_say(self):
        with (
            self.assertLogs("threaded") as logs,
            warnings.catch_warnings(record=True) as caught,
            nothing_left(),
        ):
            warnings.simplefilter("always")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                Pipeline(**FORK).add(Processor(speak, threads=3)).run(range(9))
        self.assertEqual(sorted(record.getMessage() for record in logs.records), [f"logged {n}" for n in range(9)])
        self.assertEqual(sorted(str(each.message) for each in caught), [f"warned {n}" for n in range(9)])
        self.assertEqual(sorted(out.getvalue().splitlines()), [f"printed {n}" for n in range(9)])


class Failing(TestCase):
    """Calls that fail, take too long, or end their worker."""

    def test_errors(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                with self.assertRaisesRegex(ProcessorError, "refuse_17' raised ValueError: 17") as caught:
                    Pipeline(**settings).add(Processor(refuse_17, threads=4)).run(range(200))
                self.assertEqual(caught.exception.number, 17)

    def test_on_error(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(Processor(refuse_17, threads=4, on_error=run_a_loop))
                bad = ("bad", 17, "17", 1)
                self.assertEqual(pipeline.run(range(40)), [*range(17), bad, *range(18, 40)])
                for job in (exit_at_17, stop_at_17):
                    pipeline = Pipeline(**settings).add(Processor(job, threads=4, on_error="skip"))
                    self.assertEqual(pipeline.run(range(40)), [*range(17), *range(18, 40)])
                    self.assertEqual([failed.number for failed in pipeline.failures], [17])

    def test_retries(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(Processor(refuse_17_twice, threads=4, retries=2, backoff=0.001))
                self.assertEqual(pipeline.run(range(40)), [(n, 3 if n == 17 else 1) for n in range(40)])
                pipeline = Pipeline(**settings).add(Processor(half_then_refuse, threads=4, retries=1, backoff=0))
                expected = [(n, which) for n in range(20) for which in ("first", "second")]
                self.assertEqual(pipeline.run(range(20)), expected)

    def test_a_submitted_item_fails_alone(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), Pipeline(**settings).add(Processor(refuse_17, threads=4)) as pipeline:
                futures = [pipeline.submit(number) for number in range(40)]
                self.assertIsInstance(futures.pop(17).exception(SECONDS), ProcessorError)
                self.assertEqual([f.result(SECONDS) for f in futures], [[n] for n in range(40) if n != 17])

    def test_a_timeout_ends_the_worker_and_blames_nobody_else(self):
        expected = [(n, 1) for n in range(40) if n != 17]
        with nothing_left():
            pipeline = Pipeline(**FORK).add(Processor(hang_at_17, threads=4, timeout=0.3, on_error="skip"))
            self.assertEqual(pipeline.run(range(40)), expected)
            (failed,) = pipeline.failures
            self.assertIsInstance(failed.error, ItemTimeoutError)
            self.assertEqual((failed.number, failed.last, failed.attempts), (17, 17, 1))
            self.assertIn("the worker was killed", str(failed.error))
            self.assertEqual(pipeline.stats()["hang_at_17"].timed_out, 1)
        with nothing_left(), self.assertRaisesRegex(ItemTimeoutError, "timeout of 0.3 s .item 17") as caught:
            Pipeline(**FORK).add(Processor(hang_at_17, threads=4, timeout=0.3)).run(range(40))
        self.assertEqual(caught.exception.number, 17)

    def test_a_call_that_took_too_long_is_made_again(self):
        with nothing_left():
            job = Processor(hang_at_first, threads=4, timeout=0.3, retries=1)
            results = Pipeline(**FORK).add(job).run(range(40))
        self.assertEqual(results, [(n, 2 if n == 17 else 1) for n in range(40)])

    def test_a_batch_that_takes_too_long(self):
        with nothing_left():
            pipeline = Pipeline(**FORK).add(Processor(sum_or_hang, batch=3, threads=4, timeout=0.3, on_error="skip"))
            self.assertEqual(pipeline.run(range(30)), [3 * n + 3 for n in range(0, 30, 3) if n != 15])
            self.assertEqual([(each.number, each.last) for each in pipeline.failures], [(15, 17)])

    def test_calls_that_take_too_long_at_the_same_time_end_together(self):
        with nothing_left():
            pipeline = Pipeline(**FORK).add(Processor(hang_at_some, threads=8, timeout=0.3, on_error="skip"))
            self.assertEqual(pipeline.run(range(40)), [*range(10), *range(14, 40)])
            self.assertEqual(sorted(each.number for each in pipeline.failures), [10, 11, 12, 13])

    def test_a_submitted_item_that_takes_too_long_fails_alone(self):
        with nothing_left(), Pipeline(**FORK).add(Processor(hang_at_17, threads=4, timeout=0.3)) as pipeline:
            futures = [pipeline.submit(number) for number in range(40)]
            self.assertIsInstance(futures.pop(17).exception(SECONDS), ItemTimeoutError)
            self.assertEqual([f.result(SECONDS) for f in futures], [[(n, 1)] for n in range(40) if n != 17])

    def test_who_keeps_the_interpreter_to_himself_is_found(self):
        with nothing_left():
            job = Processor(keep_the_interpreter_at_17, threads=4, timeout=0.5, on_error="skip")
            pipeline = Pipeline(**FORK).add(job)
            self.assertEqual(pipeline.run(range(24)), [*range(17), *range(18, 24)])
            self.assertEqual([each.number for each in pipeline.failures], [17])

    def test_a_state_that_is_lost_with_a_timeout(self):
        with nothing_left(), self.assertRaisesRegex(ItemTimeoutError, "item 17") as caught:
            Pipeline(**FORK).add(HangingTotal(timeout=0.3)).run(range(40))
        self.assertEqual(caught.exception.number, 17)

    def test_a_worker_that_is_killed_loses_nothing(self):
        for settings in (FORK, {"start_method": "fork", "channel": "queue"}):
            with self.subTest(settings=settings), nothing_left():
                job = Processor(DieOnce(os.path.join(self.new_folder(), "died")), threads=5, workers=2)
                self.assertEqual(Pipeline(**settings).add(job).run(range(300)), [*range(300)])

    def test_an_item_that_ends_workers_is_given_up_alone(self):
        with nothing_left():
            pipeline = Pipeline(**FORK).add(Processor(die_at_17, threads=4, on_error="skip"))
            self.assertEqual(pipeline.run(range(40)), [*range(17), *range(18, 40)])
            (failed,) = pipeline.failures
            self.assertEqual((failed.number, failed.last), (17, 17))
            self.assertIsInstance(failed.error, WorkerDiedError)

    def test_a_child_that_comes_back_ends(self):
        with nothing_left():
            # Python 3.12 and later warn of a fork beside threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.assertEqual(Pipeline(**FORK).add(Processor(fork_at_17, threads=3)).run(range(30)), [*range(30)])

    def test_ctrl_c(self):
        code = (
            "import itertools, sys, threading\nfrom conveyor import Pipeline, Processor\n"
            "def job(number):\n    if number == 20:\n        print('there', flush=True)\n"
            "    if number:\n        threading.Event().wait()\n    return number\n"
            "if __name__ == '__main__':\n"
            "    Pipeline(**eval(sys.argv[1])).add(Processor(job, threads=30)).run(itertools.count())\n"
        )
        interrupt_all(self, code, map(repr, CONCURRENT), SECONDS)


class Abandoning(TestCase):
    """The thread engine leaves a worker with a call that takes too long, and those beside it run again."""

    def test_a_timeout(self):
        let_go = threading.Event()
        self.addCleanup(let_go.set)

        def wait_at_17(number):
            if number == 17:
                let_go.wait(SECONDS)
            return number, conveyor.worker().attempt

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Pipeline(**THREAD).add(Processor(wait_at_17, threads=4, timeout=0.3, on_error="skip")) as pipeline:
                self.assertEqual(pipeline.run(range(40)), [(n, 1) for n in range(40) if n != 17])
                (failed,) = pipeline.failures
                self.assertEqual(failed.number, 17)
                self.assertIn("its thread was abandoned", str(failed.error))
        self.assertEqual([each.category for each in caught], [AbandonedThreadWarning])
        let_go.set()
        for thread in threading.enumerate():
            if "wait_at_17" in thread.name:
                thread.join(SECONDS)
                self.assertFalse(thread.is_alive())


if __name__ == "__main__":
    unittest.main()
