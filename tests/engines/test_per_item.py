"""Jobs that get a list and give each item of it an output, in every engine.

Law: what is expected is written out, and the same for each engine.  Where a test says how long lists are, it says why
they can be no shorter.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
import unittest
from pathlib import Path
from typing import Any

import conveyor
from conveyor import (
    FailedItem,
    ItemTimeoutError,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
    WorkerDiedError,
)
from tests.helpers.support import TestCase, nothing_left

FORK = {"start_method": "fork"}
THREAD = {"engine": "thread"}
INLINE = {"engine": "inline"}
ENGINES: tuple[dict[str, Any], ...] = (
    INLINE,
    THREAD,
    *({"start_method": method} for method in multiprocessing.get_all_start_methods() if method != "forkserver"),
    {"start_method": "fork", "channel": "queue"},
)
# Where items wait for each other, and a start takes no time.
GATHERING = (THREAD, FORK)
CHEAP = (INLINE, *GATHERING)
# Longer than any test takes.
FOREVER = 3600.0
SECONDS = 60.0


def increments(numbers):
    return [number + 1 for number in numbers]


def odd_only(numbers):
    return [number if number % 2 else None for number in numbers]


def with_length(numbers):
    return [(number, len(numbers)) for number in numbers]


def one_by_one(numbers):
    for number in numbers:
        yield number * 10


def counting_down(numbers):
    return [iter_down(number) for number in numbers]


def iter_down(number):
    yield from range(number, 0, -1)


def refuse_17(numbers):
    if 17 in numbers:
        raise ValueError(17)
    return with_length(numbers)


def cancelled_at_17(numbers):
    """What `asyncio.run` raises in a job that awaits what was cancelled; it is no Exception."""
    if 17 in numbers:
        raise asyncio.CancelledError
    return numbers


def refuse_17_twice(numbers):
    if 17 in numbers and conveyor.worker().attempt < 3:
        raise ValueError(17)
    return [(number, conveyor.worker().attempt) for number in numbers]


def append_and_refuse(rows):
    for row in rows:
        row.append(len(row))
    if any(row[0] == 5 for row in rows):
        raise ValueError(rows)
    rows.append("the list is the job's")
    return rows[:-1]


def instead(item, error):
    return "bad", item, str(error)


def too_few(numbers):
    return numbers[1:]


def text(numbers):
    return "x" * len(numbers)


def mapping(numbers):
    return dict.fromkeys(numbers)


def forgotten(numbers):
    pass


def total(numbers):
    return sum(numbers)


def second(row):
    return row[1]


def die_once(path, numbers):
    if 17 in numbers and not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return increments(numbers)


def die_at_17(numbers):
    if 17 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return increments(numbers)


def hang_at_17(numbers):
    if 17 in numbers:
        time.sleep(FOREVER)
    return increments(numbers)


class Buffers(Processor[Any, Any]):
    """Fills the same rows again and again."""

    def setup(self):
        self.rows = [[0] for _ in range(8)]

    def process(self, numbers):
        for row, number in zip(self.rows, numbers, strict=False):
            row[0] = number
        return self.rows[: len(numbers)]


class Sums(Processor[Any, Any]):
    """Has state, and something to say at the end."""

    batch = 4
    per_item = True
    total = 0

    def process(self, numbers):
        return [self.add(number) for number in numbers]

    def add(self, number):
        self.total += number
        return self.total

    def finish(self):
        yield "all", self.total


def in_lists(job, batch=32, **settings):
    return Processor(job, batch=batch, per_item=True, **settings)


class Lists(TestCase):
    """What comes of the items of a list."""

    def test_each_output_goes_on_by_itself(self):
        for settings in ENGINES:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(in_lists(increments, batch=7)).add(Pipe()).add(Processor(abs))
                self.assertEqual(pipeline.run(range(-50, 50)), [abs(n + 1) for n in range(-50, 50)])

    def test_none_filters(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                odd = list(range(1, 20, 2))
                self.assertEqual(Pipeline(**settings).add(in_lists(odd_only)).run(range(20)), odd)
                kept = Pipeline(**settings).add(in_lists(odd_only, keep_none=True)).run(range(4))
                self.assertEqual(kept, [None, 1, None, 3])

    def test_what_can_be_gone_through(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                self.assertEqual(Pipeline(**settings).add(in_lists(one_by_one)).run(range(5)), [0, 10, 20, 30, 40])
                self.assertEqual(Pipeline(**settings).add(in_lists(counting_down)).run([2, 0, 3]), [2, 1, 3, 2, 1])

    def test_state_and_what_is_given_at_the_end(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                results = Pipeline(**settings).add(Sums()).run(range(6))
                self.assertEqual(results, [0, 1, 3, 6, 10, 15, ("all", 15)])

    def test_objects_that_come_again(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                results = Pipeline(**settings).add(Buffers(batch=8, per_item=True)).run(range(100))
                self.assertEqual(results, [[number] for number in range(100)])

    def test_many_outputs_and_little_room(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(Processor(abs)).add(Pipe(2)).add(in_lists(increments))
                pipeline.add(Pipe(1)).add(in_lists(increments, batch=3, workers=2)).add(Pipe(1)).add(Processor(abs))
                self.assertEqual(pipeline.run(range(300)), list(range(2, 302)))

    def test_a_worker_is_replaced_after_so_many_items(self):
        for settings in GATHERING:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(in_lists(increments, batch=4, max_items=10))
                self.assertEqual(pipeline.run(range(60)), list(range(1, 61)))

    def test_behind_it_items_are_zipped(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(Processor(abs)).add(Pipe()).add(ReplicatingFork(2))
                pipeline.add(in_lists(increments, batch=5), Processor(abs)).add(Pipe()).add(Join(2, how="zip"))
                self.assertEqual(pipeline.run(range(40)), [(number + 1, number) for number in range(40)])

    def test_items_are_submitted(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(Processor(abs)).add(Pipe()).add(in_lists(odd_only, batch=4))
                with pipeline:
                    futures = [pipeline.submit(number) for number in range(50)]
                    results = [future.result(SECONDS) for future in futures]
                self.assertEqual(results, [[number] if number % 2 else [] for number in range(50)])

    def test_a_submitted_item_fails_alone(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                with Pipeline(**settings).add(in_lists(refuse_17, batch_timeout=0.05)) as pipeline:
                    futures = [pipeline.submit(number) for number in range(32)]
                    for number, future in enumerate(futures):
                        if number == 17:
                            self.assertIsInstance(future.exception(SECONDS), ProcessorError)
                        else:
                            ((got, _),) = future.result(SECONDS)
                            self.assertEqual(got, number)

    def test_pictures_say_so(self):
        pipeline = Pipeline().add(in_lists(increments))
        self.assertIn("batch=32", str(pipeline))
        self.assertIn("batches of 32", pipeline.graph().to_mermaid())


class Gathering(TestCase):
    """How long lists are."""

    def test_lists_are_filled_where_items_may_wait(self):
        for settings in GATHERING:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(in_lists(with_length, batch=8, batch_timeout=FOREVER))
                # Nothing waits any more when the input has ended.
                expected = [(number, 8 if number < 40 else 3) for number in range(43)]
                self.assertEqual(pipeline.run(range(43)), expected)

    def test_a_list_goes_on_as_soon_as_it_is_full(self):
        for settings in GATHERING:
            with self.subTest(settings=settings):
                with Pipeline(**settings).add(in_lists(with_length, batch=3, batch_timeout=FOREVER)) as pipeline:
                    futures = [pipeline.submit(number) for number in range(6)]
                    self.assertEqual([future.result(SECONDS) for future in futures], [[(n, 3)] for n in range(6)])

    def test_a_list_that_is_not_filled_goes_on_when_its_time_is_over(self):
        for settings in GATHERING:
            with self.subTest(settings=settings):
                with Pipeline(**settings).add(in_lists(increments, batch=3, batch_timeout=0.02)) as pipeline:
                    for number in range(5):
                        self.assertEqual(pipeline.submit(number).result(SECONDS), [number + 1])


class Failing(TestCase):
    """A job that raises at a list."""

    def test_one_bad_item_fails_alone(self):
        lengths = {**dict.fromkeys(range(16), 16), 16: 1, **dict.fromkeys(range(18, 32), 14)}
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(in_lists(refuse_17, batch_timeout=FOREVER, on_error=instead))
                results = pipeline.run(range(32))
                self.assertEqual(results[17], ("bad", 17, "17"))
                self.assertEqual([number for number, _ in results[:17] + results[18:]], [*range(17), *range(18, 32)])
                if settings in GATHERING:
                    # The halves of 32, 16, 8, 4 and 2; then all that is left.
                    self.assertEqual(dict(results[:17] + results[18:]), lengths)
                (failed,) = pipeline.failures
                self.assertIsInstance(failed, FailedItem)
                self.assertEqual((failed.number, failed.last, failed.attempts), (17, 17, 1))

    def test_what_is_no_exception_fails_the_item_alone(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings)
                pipeline.add(in_lists(cancelled_at_17, batch_timeout=FOREVER, on_error="skip"))
                self.assertEqual(pipeline.run(range(32)), [*range(17), *range(18, 32)])
                self.assertEqual([failed.number for failed in pipeline.failures], [17])

    def test_the_error_names_the_item(self):
        for settings in CHEAP:
            with self.subTest(settings=settings), nothing_left():
                pipeline = Pipeline(**settings).add(in_lists(refuse_17))
                with self.assertRaisesRegex(ProcessorError, "refuse_17' raised ValueError: 17") as caught:
                    pipeline.run(range(32))
                self.assertEqual((caught.exception.number, caught.exception.last), (17, 17))

    def test_retries_are_those_of_the_item(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(in_lists(refuse_17_twice, retries=2, backoff=0))
                expected = [(number, 3 if number == 17 else 1) for number in range(32)]
                self.assertEqual(pipeline.run(range(32)), expected)

    def test_the_halves_have_the_items_as_they_came(self):
        for settings in CHEAP:
            with self.subTest(settings=settings):
                pipeline = Pipeline(**settings).add(in_lists(append_and_refuse, batch=8, on_error="skip"))
                results = pipeline.run([number] for number in range(20))
                self.assertEqual(results, [[number, 1] for number in range(20) if number != 5])

    def test_as_many_outputs_as_items(self):
        wrong = {
            too_few: "ValueError: with per_item=True the job returns as many outputs as it gets items, but it returned",
            text: "TypeError: with per_item=True .* but it returned 'x+': return a list",
            mapping: "TypeError: .* but it returned {0: None",
            forgotten: "TypeError: .* but it returned None: return a list",
            total: "TypeError: .* but it returned .*: return a list",
        }
        for settings in CHEAP:
            for job, message in wrong.items():
                with self.subTest(settings=settings, job=job.__name__):
                    pipeline = Pipeline(**settings).add(in_lists(job, batch_timeout=FOREVER))
                    with self.assertRaisesRegex(ProcessorError, message) as caught:
                        pipeline.run(range(10))
                    self.assertEqual(caught.exception.number, 0)

    def test_a_wrong_number_says_how_many(self):
        pipeline = Pipeline(**FORK).add(in_lists(too_few, batch_timeout=FOREVER))
        with self.assertRaisesRegex(ProcessorError, "it returned 9 outputs for 10 items: put None where an item"):
            pipeline.run(range(10))


class Dying(TestCase):
    """A worker that dies, or takes too long, at a list."""

    def test_a_worker_that_is_killed_loses_nothing(self):
        for settings in (FORK, {"start_method": "fork", "channel": "queue"}):
            with self.subTest(settings=settings), nothing_left():
                job = OfPath(die_once, os.path.join(self.new_folder(), "died"))
                pipeline = Pipeline(**settings).add(in_lists(job, workers=2, batch_timeout=0.1))
                self.assertEqual(pipeline.run(range(100)), list(range(1, 101)))

    def test_an_item_that_ends_workers_is_given_up_alone(self):
        with nothing_left():
            pipeline = Pipeline(**FORK).add(in_lists(die_at_17, on_error="skip", batch_timeout=FOREVER))
            self.assertEqual(pipeline.run(range(40)), [number + 1 for number in range(40) if number != 17])
            (failed,) = pipeline.failures
            self.assertEqual((failed.number, failed.last), (17, 17))
            self.assertIsInstance(failed.error, WorkerDiedError)

    def test_a_submitted_item_that_ends_workers_fails_alone(self):
        with nothing_left(), Pipeline(**FORK).add(in_lists(die_at_17, batch_timeout=0.1)) as pipeline:
            futures = [pipeline.submit(number) for number in range(30)]
            for number, future in enumerate(futures):
                if number == 17:
                    self.assertIsInstance(future.exception(SECONDS), WorkerDiedError)
                else:
                    self.assertEqual(future.result(SECONDS), [number + 1])

    def test_an_item_that_takes_too_long_is_given_up_alone(self):
        with nothing_left():
            settings = {"timeout": 0.3, "on_error": "skip", "batch_timeout": FOREVER}
            pipeline = Pipeline(**FORK).add(in_lists(hang_at_17, batch=8, **settings))
            self.assertEqual(pipeline.run(range(24)), [number + 1 for number in range(24) if number != 17])
            (failed,) = pipeline.failures
            self.assertEqual((failed.number, failed.last), (17, 17))
            self.assertIsInstance(failed.error, ItemTimeoutError)


class OfPath:
    """A job that gets a path beside the list."""

    def __init__(self, job, path):
        self.job = job
        self.path = path

    def __call__(self, numbers):
        return self.job(self.path, numbers)


if __name__ == "__main__":
    unittest.main()
