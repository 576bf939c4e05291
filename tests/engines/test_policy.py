"""What becomes of items that fail: retries, timeouts, `on_error`, `failures`, `max_failures`, `max_items`.

Law: what holds for every engine is tried on every engine, and what is expected is written out.  Jobs that stand still do
so for real; where a worker has to be killed for that, the rest must be exact.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import unittest
from functools import partial
from pathlib import Path

from conveyor import (
    BalancingFork,
    ItemTimeoutError,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
    TooManyFailuresError,
    WorkerDiedError,
)
from conveyor.core.commands import SendLease
from conveyor.engines.process.broker.ports import WorkerPort
from conveyor.engines.process.wire import progress
from conveyor.engines.process.wire.codec import Blob
from conveyor.stages.settings import policy_of
from tests.helpers.jobs_of_policy import (
    Counts,
    DiesAtTheEnd,
    EndsBadly,
    FailsFirst,
    Handles,
    LeavesWhenUnpickled,
    SleepsFirst,
    apologize,
    cannot_be_pickled,
    count_up,
    fail_to_apologize,
    leave,
    leave_again,
    no_apology,
    number_of,
    one_and_two,
    process_number,
    refuse_all,
    refuse_batch,
    refuse_fives,
    refuse_frozen,
    refuse_some,
    refuse_thirds,
    said,
    same,
    short_sleep,
    sleep_at_seven,
    some_cannot_be_pickled,
    spin_at_seven,
    spoil_and_refuse_thirds,
    stand_still_at_seven,
    unpicklable_apology,
    wait_until_waiting,
    yield_and_die_once,
    yield_and_fail,
    yield_and_sleep_at_seven,
    yielded_apology,
)
from tests.helpers.late import mock, tempfile
from tests.helpers.support import TestCase, slow


class Base:
    """Makes pipelines, and looks that nothing is left of them."""

    time_limit = 120.0
    settings = {"engine": "inline"}

    def setUp(self):
        self.folder = self.new_folder()
        self.leave_nothing()

    def make(self, *elements, **more):
        pipeline = Pipeline(**self.settings, **more)
        for number, element in enumerate(elements):
            if number and not isinstance(elements[number - 1], Pipe):
                pipeline.add(Pipe())
            if not isinstance(element, Pipe) or number:
                pipeline.add(*(element if isinstance(element, tuple) else (element,)))
        return pipeline


class Policies(Base):
    """What holds for every engine."""

    def test_an_exception_on_which_nothing_may_be_set(self):
        pipeline = self.make(Processor(refuse_frozen, on_error="skip"))
        assert pipeline.run([1, 2]) == []
        assert [failed.error.kind for failed in pipeline.failures] == ["Frozen", "Frozen"]
        with self.assertRaises(ProcessorError) as caught:
            self.make(Processor(refuse_frozen)).run([1, 2])
        assert (caught.exception.kind, caught.exception.number) == ("Frozen", 0)

    def test_skip(self):
        pipeline = self.make(Processor(same), Processor(refuse_thirds, on_error="skip"), Processor(same))
        before = time.time()
        assert pipeline.run(range(1000)) == [item for item in range(1000) if item % 3]
        assert said(pipeline) == [
            ("refuse_thirds", item, item, str(item), "ValueError", 1) for item in range(0, 1000, 3)
        ]
        for failed in pipeline.failures:
            assert isinstance(failed.error, ProcessorError) and before - 1 <= failed.when <= time.time() + 1
            assert isinstance(failed.error.__cause__, ValueError)
            assert failed.error.__cause__.args == ("a third", failed.number)
            assert "refuse_thirds" in failed.error.traceback
        # Of the last run alone.
        assert pipeline.run([1, 3]) == [1]
        assert [failed.number for failed in pipeline.failures] == [1]

    def test_a_replacement(self):
        for on_error, instead in (
            (apologize, lambda item: ["sorry", item, "ValueError"]),
            (no_apology, lambda item: None),
        ):
            with self.subTest(on_error=on_error.__name__):
                pipeline = self.make(Processor(refuse_thirds, on_error=on_error, workers=2))
                expected = [item if item % 3 else instead(item) for item in range(100)]
                expected = [tuple(item) if isinstance(item, list) else item for item in expected if item is not None]
                assert pipeline.run(range(100)) == expected
                assert len(pipeline.failures) == 34

    def test_one_that_fails_itself(self):
        with self.assertRaisesRegex(
            ProcessorError, "on_error of Processor 'refuse_thirds' raised RuntimeError"
        ) as caught:
            self.make(Processor(refuse_thirds, on_error=fail_to_apologize)).run([1, 2, 3])
        assert (caught.exception.phase, caught.exception.number) == ("on_error", 2)
        # A generator is one output, as anything else: it is not taken apart.
        for apology in (unpicklable_apology, yielded_apology)[self.settings == {"engine": "thread"} :]:
            pipeline = self.make(Processor(refuse_thirds, on_error=apology))
            with self.subTest(apology=apology), self.assertRaises(ProcessorError) as caught:
                pipeline.run([1, 2, 3])
            assert (caught.exception.phase, caught.exception.number) == ("pickle", 2)
            assert "(the output was <" in str(caught.exception) and pipeline.failures == ()

    def test_it_gets_the_item_as_it_was(self):
        pipeline = self.make(Processor(spoil_and_refuse_thirds, retries=2, backoff=0, on_error=apologize))
        results = pipeline.run([[item] for item in range(6)])
        assert results == [
            ("sorry", [0], "ValueError"),
            (2, 1),
            (2, 2),
            ("sorry", [3], "ValueError"),
            (2, 4),
            (2, 5),
        ]
        # And so does each attempt.
        assert [failed.error.__cause__.args for failed in pipeline.failures] == [(2,), (2,)]

    def test_retries(self):
        for times, backoff in ((1, 0.001), (3, 0)):
            with self.subTest(times=times), tempfile.TemporaryDirectory() as folder:
                pipeline = self.make(FailsFirst(folder, times, retries=3, backoff=backoff), Processor(same))
                assert pipeline.run(range(50)) == list(range(50))
                assert pipeline.failures == ()

    def test_too_few_retries(self):
        with self.assertRaisesRegex(ProcessorError, "after 3 attempts") as caught:
            self.make(FailsFirst(self.folder, 3, retries=2, backoff=0)).run(["one"])
        assert (caught.exception.attempts, caught.exception.item) == (3, "'one'")
        assert Path(self.folder, "one").read_text() == "..."

    def test_no_retry_of_anything_else(self):
        for kind, calls in ((OSError, 3), (TimeoutError, 3), (KeyError, 1)):
            with self.subTest(kind=kind), tempfile.TemporaryDirectory() as folder:
                pipeline = self.make(
                    FailsFirst(folder, 9, kind, retries=2, backoff=0, retry_on=(OSError, EOFError), on_error="skip")
                )
                assert pipeline.run(["one"]) == []
                assert [failed.attempts for failed in pipeline.failures] == [calls]
                assert Path(folder, "one").read_text() == "." * calls

    def test_a_generator(self):
        # What it gave before it raised stays, and comes once.
        pipeline = self.make(Processor(count_up, retries=2, backoff=0.001, on_error=apologize))
        expected = [(item, index) for item in range(6) for index in range(50 if item == 3 else 100)]
        expected[350:350] = [("sorry", 3, "ValueError")]
        assert pipeline.run(range(6)) == expected
        assert said(pipeline) == [("count_up", 3, 3, "3", "ValueError", 3)]

    def test_outputs_that_cannot_be_pickled(self):
        pipeline = self.make(Processor(cannot_be_pickled, on_error="skip"))
        assert pipeline.run(range(10)) == [item for item in range(10) if item % 4]
        assert [failed.number for failed in pipeline.failures] == [0, 4, 8]
        assert {failed.error.phase for failed in pipeline.failures} == {"pickle"}
        pipeline = self.make(Processor(some_cannot_be_pickled, on_error="skip"), Processor(same))
        assert pipeline.run(range(6)) == [(item, index) for item in range(6) for index in range(4) if item != index]
        assert [failed.number for failed in pipeline.failures] == [0, 1, 2, 3]
        pipeline = self.make(Processor(some_cannot_be_pickled, on_error=lambda item, error: item))
        assert pipeline.run(range(2)) == [0, (0, 1), (0, 2), (0, 3), (1, 0), 1, (1, 2), (1, 3)]

    def test_what_finish_gives_is_no_items_and_is_not_given_up(self):
        for on_error in ("raise", "skip", apologize):
            for yields in (False, True):
                with self.subTest(on_error=on_error, yields=yields), self.assertRaises(ProcessorError) as caught:
                    self.make(EndsBadly(yields, on_error=on_error)).run([1, 2])
                assert (caught.exception.phase, caught.exception.number) == ("pickle", None)

    def test_batches(self):
        pipeline = self.make(Processor(refuse_batch, batch=3, on_error=apologize))
        assert pipeline.run(range(10)) == [3, 12, ("sorry", [6, 7, 8], "ValueError"), 9]
        assert said(pipeline) == [("refuse_batch", 6, 8, "[6, 7, 8]", "ValueError", 1)]

    def test_a_batch_has_a_first_and_a_last_item(self):
        with self.assertRaises(ProcessorError) as caught:
            self.make(Processor(refuse_batch, batch=3)).run(range(10))
        assert (caught.exception.number, caught.exception.last) == (6, 8)
        assert "[items 6 to 8: [6, 7, 8]]" in str(caught.exception)

    def test_an_item_is_shown_as_it_came(self):
        for retries in (0, 2):
            with self.subTest(retries=retries):
                pipeline = self.make(Processor(spoil_and_refuse_thirds, retries=retries, backoff=0, on_error="skip"))
                assert len(pipeline.run([[item] for item in range(6)])) == 4
                assert [failed.item for failed in pipeline.failures] == ["[0]", "[3]"]

    def test_it_is_said_which_output_cannot_be_pickled(self):
        with self.assertRaisesRegex(ProcessorError, r"\(the output was <unlocked _thread.lock"):
            self.make(Processor(cannot_be_pickled)).run([1, 4])

    def test_a_share_is_judged_at_each_item(self):
        # Over it among the first 5,000, and under it in the end.
        pipeline = self.make(Processor(refuse_some, on_error="skip"), max_failures=0.1)
        with self.assertRaises(TooManyFailuresError) as caught:
            pipeline.run(range(20_000))
        assert caught.exception.failures == 445

    def test_how_many_failures_are_kept(self):
        for most, kept in ((None, 40), (3, 3), (0, 0)):
            with (
                self.subTest(keep_failures=most),
                self.make(Processor(refuse_thirds, on_error="skip"), keep_failures=most) as pipeline,
            ):
                for runs in (1, 2):
                    assert len(pipeline.run(range(120))) == 80
                    assert [failed.number for failed in pipeline.failures] == list(range(0, 120, 3))[40 - kept :]
                    assert pipeline.stats()["refuse_thirds"].failed == 40 * runs
        with self.make(Processor(refuse_thirds, on_error="skip"), keep_failures=2, max_failures=30) as pipeline:
            with self.assertRaisesRegex(TooManyFailuresError, "The last 2 are in") as caught:
                pipeline.run(range(120))
            assert (caught.exception.failures, len(pipeline.failures)) == (31, 2)

    def test_failures_are_counted_by_items_and_for_all_runs(self):
        with self.make(Processor(refuse_all, batch=4, on_error="skip"), keep_failures=1) as pipeline:
            for runs in (1, 2):
                pipeline.run(range(10))
                assert len(pipeline.failures) == 1
                assert pipeline.stats()["refuse_all"].failed == 10 * runs

    def test_in_forks(self):
        pipeline = Pipeline(**self.settings).add(Processor(same)).add(Pipe()).add(ReplicatingFork(2))
        pipeline.add(Processor(refuse_thirds, on_error="skip"), Processor(refuse_fives, on_error="skip"))
        pipeline.add(Pipe()).add(Join(how="zip"))
        rows = [(item if item % 3 else None, item if item % 5 else None) for item in range(40)]
        assert pipeline.run(range(40)) == [row for row in rows if row != (None, None)]
        names = [failed.processor for failed in pipeline.failures]
        assert names == ["refuse_thirds"] * 14 + ["refuse_fives"] * 8
        pipeline = Pipeline(**self.settings).add(Processor(same)).add(Pipe()).add(BalancingFork(3))
        pipeline.add(Processor(refuse_thirds, on_error="skip")).add(Pipe()).add(Join())
        assert pipeline.run(range(40)) == [item for item in range(40) if item % 3]

    def test_a_class_of_ones_own(self):
        pipeline = self.make(Handles())
        assert pipeline.run(range(4)) == [("handled", 0, 2), 3, 4, ("handled", 3, 6)]

    def test_too_many(self):
        for most, failures in ((0, 1), (5, 6)):
            with self.subTest(most=most):
                pipeline = self.make(Processor(refuse_thirds, on_error="skip"), max_failures=most)
                with self.assertRaisesRegex(TooManyFailuresError, f"allows {most}") as caught:
                    pipeline.run(itertools.count())
                assert caught.exception.failures == failures == len(pipeline.failures)
                assert caught.exception.__cause__ is pipeline.failures[-1].error
                # And the next run is another one.
                assert pipeline.run([1, 2]) == [1, 2]

    def test_too_large_a_share(self):
        pipeline = self.make(Processor(refuse_thirds, on_error="skip"), max_failures=0.3)
        with self.assertRaisesRegex(TooManyFailuresError, "a share of 0.3"):
            pipeline.run(itertools.count())
        # A few items say nothing before all of them are known.
        with self.assertRaises(TooManyFailuresError):
            pipeline.run([0, 1, 2, 4, 3])
        assert pipeline.run([1, 2, 4, 3]) == [1, 2, 4]
        pipeline = self.make(Processor(refuse_thirds, on_error="skip"), max_failures=0.34)
        assert len(pipeline.run(range(3000))) == 2000

    def test_all_fail(self):
        pipeline = self.make(Processor(refuse_all, on_error="skip"), Pipe(maxsize=3), Processor(same))
        assert pipeline.run(range(1000)) == []
        assert len(pipeline.failures) == 1000

    def test_before_anything_ran(self):
        assert self.make(Processor(same)).failures == ()


class InlineTest(Policies, TestCase):
    """In the calling process."""


class ThreadTest(Policies, TestCase):
    """Threads of this process."""

    settings = {"engine": "thread"}
    # What is not pickled cannot fail at that.
    test_it_is_said_which_output_cannot_be_pickled = None
    test_outputs_that_cannot_be_pickled = None
    test_what_finish_gives_is_no_items_and_is_not_given_up = None


class Deaths(Base):
    """What holds where there are workers that can be killed."""

    def test_an_item_that_kills(self):
        others = [item for item in range(1000) if item != 7]
        pipeline = self.make(Processor(leave, on_error="skip", workers=2), Processor(same))
        assert pipeline.run(range(1000)) == others
        (failed,) = pipeline.failures
        assert (failed.number, failed.last, failed.item, failed.attempts) == (7, 7, None, 2)
        assert isinstance(failed.error, WorkerDiedError) and failed.error.exitcode == 3
        pipeline = self.make(Processor(leave, on_error=apologize))
        assert pipeline.run(range(10)) == [*range(7), ("sorry", 7, "WorkerDiedError"), 8, 9]
        assert [failed.item for failed in pipeline.failures] == ["7"]

    def test_what_says_so_kills_too(self):
        pipeline = self.make(Processor(leave, on_error=leave_again))
        assert pipeline.run(range(10)) == [*range(7), 8, 9]
        assert [(failed.number, failed.item) for failed in pipeline.failures] == [(7, None)]

    def test_a_unit_that_is_done_again_is_given_up_once(self):
        # The first worker is killed when it has given up the unit, and waits for room for what stands in its place.
        for fails_again in (True, False):
            with self.subTest(fails_again=fails_again), tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "worker")
                job = partial(yield_and_fail, path, fails_again)
                pipeline = self.make(
                    Processor(job, on_error=apologize), Pipe(maxsize=1), Processor(same), Pipe(maxsize=1)
                )
                results, killed = [], False
                for result in pipeline.stream([0]):
                    results.append(result)
                    # With the room that this made it may have given its last value.
                    if not killed and wait_until_waiting(path):
                        os.kill(int(Path(path).read_text()), signal.SIGKILL)
                        killed = True
                assert killed
                assert results == [*range(9), ("sorry", 0, "ValueError") if fails_again else "fine"]
                assert [failed.number for failed in pipeline.failures] == [0] * fails_again

    def test_what_was_left_out_before_a_death_is_said_once(self):
        for most in (None, 0):
            with self.subTest(max_failures=most), tempfile.TemporaryDirectory() as folder:
                job = partial(yield_and_die_once, os.path.join(folder, "died"))
                pipeline = self.make(Processor(job, on_error="skip"), max_failures=most)
                if most is None:
                    assert pipeline.run([0]) == [1, 2, 3, 4]
                    assert [(failed.number, failed.error.phase) for failed in pipeline.failures] == [(0, "pickle")]
                else:
                    with self.assertRaises(TooManyFailuresError):
                        pipeline.run([0])

    def test_finish_kills(self):
        # To declare it restartable changes nothing, and so is no remedy.
        for restartable in (False, True):
            had = threading.Event()
            results = []
            with self.subTest(restartable=restartable), self.assertRaises(WorkerDiedError) as caught:
                for result in self.make(DiesAtTheEnd(restartable)).stream(one_and_two(had)):
                    results.append(result)
                    if len(results) == 2:
                        had.set()
            assert results == [1, 2]
            assert (caught.exception.phase, caught.exception.exitcode) == ("finish", 6)
            assert "cannot be called again" in str(caught.exception)
            assert "restartable" not in str(caught.exception)

    def test_an_item_that_kills_when_it_is_unpickled(self):
        # Nobody can tell it from those that are unpickled with it, and nobody is accused.
        with mock.patch.dict(os.environ, {"CONVEYOR_TEST_CALLER": str(os.getpid())}):
            pipeline = self.make(Processor(number_of, on_error="skip"))
            with self.assertRaisesRegex(WorkerDiedError, "One item ends every process that unpickles it") as caught:
                pipeline.run([LeavesWhenUnpickled(number) for number in range(20)])
            assert caught.exception.number <= 7 <= caught.exception.last < 20
            assert (caught.exception.phase, caught.exception.exitcode) == ("unpickle", 5)
            assert pipeline.failures == ()

    def test_those_that_are_unpickled_together_are_those_of_the_same_blobs(self):
        each = WorkerPort(0, mock.Mock(), mock.Mock(), None, 0.0)
        each.peer = mock.Mock()
        blob, other = Blob(b"blob", 8), Blob(b"other", 5)
        each.lease(SendLease(0, 0, ((blob, 2, 4),), 2, 2))
        assert each.beside == (2, 4)
        # The worker has them already.
        each.lease(SendLease(0, 1, ((blob, 4, 8), (other, 0, 3)), 7, 7))
        assert each.beside == (0, 2)

    # A worker spins, is stopped, or sleeps at an item.
    hanging = (spin_at_seven, stand_still_at_seven, sleep_at_seven)

    def test_timeouts(self):
        for job in self.hanging:
            with self.subTest(job=job.__name__):
                begun = time.monotonic()
                with self.assertRaisesRegex(ItemTimeoutError, "timeout of 0.2 s .item 7") as caught:
                    self.make(Processor(same), Processor(job, timeout=0.2)).run(range(20))
                assert time.monotonic() - begun < 15
                assert isinstance(caught.exception, TimeoutError)
                assert (caught.exception.seconds, caught.exception.number) == (0.2, 7)
                pipeline = self.make(Processor(same), Processor(job, timeout=0.2, on_error="skip", workers=2))
                assert pipeline.run(range(200)) == [item for item in range(200) if item != 7]
                (failed,) = pipeline.failures
                assert isinstance(failed.error, ItemTimeoutError) and failed.number == 7

    def test_a_timeout_is_tried_again(self):
        pipeline = self.make(SleepsFirst(self.folder, 2, retries=2, timeout=0.15), Processor(same))
        assert pipeline.run(range(20)) == list(range(20))
        pipeline = self.make(Processor(sleep_at_seven, retries=1, timeout=0.15, on_error=apologize))
        assert pipeline.run(range(9)) == [*range(7), ("sorry", 7, "ItemTimeoutError"), 8]
        assert [(failed.attempts, failed.item) for failed in pipeline.failures] == [(2, "7")]
        pipeline = self.make(Processor(sleep_at_seven, retries=1, retry_on=OSError, timeout=0.15, on_error="skip"))
        # It is a TimeoutError, and so an OSError.
        assert pipeline.run(range(9)) == [*range(7), 8]
        assert [failed.attempts for failed in pipeline.failures] == [2]
        pipeline = self.make(Processor(sleep_at_seven, retries=1, retry_on=KeyError, timeout=0.15, on_error="skip"))
        assert pipeline.run(range(9)) == [*range(7), 8]
        assert [failed.attempts for failed in pipeline.failures] == [1]

    def test_a_generator_that_takes_too_long(self):
        pipeline = self.make(Processor(yield_and_sleep_at_seven, timeout=0.2, on_error="skip"))
        results = pipeline.run(range(9))
        # What it has yielded by then may be there.
        assert [result for result in results if result[0] != 7] == [
            (item, index) for item in range(9) if item != 7 for index in range(2)
        ]
        assert [result for result in results if result[0] == 7] in ([], [(7, 0)])

    def test_waiting_is_no_work(self):
        # For room behind, for items, or between two attempts.
        with (
            self.make(Processor(same, timeout=0.5), Pipe(maxsize=1), Processor(same)) as pipeline,
            self.make(Processor(short_sleep, timeout=0.5)) as slow_one,
        ):
            stream = pipeline.stream(range(20))
            results = [next(stream)]
            # And many items may take longer together; meanwhile nobody takes the results of the other pipeline.
            assert slow_one.run(range(40)) == list(range(40))
            assert [*results, *stream] == list(range(20))
        pipeline = self.make(FailsFirst(self.folder, 1, retries=1, backoff=0.8, timeout=0.5))
        pipeline._description.layout.operations[0].processor.restartable = True
        assert pipeline.run(["one"]) == ["one"]

    def test_more_workers_than_a_board_of_progress_has_slots(self):
        with mock.patch.object(progress, "SLOTS", 1):
            pipeline = self.make(Processor(sleep_at_seven, timeout=0.2, on_error="skip", workers=3))
            assert pipeline.run(range(200)) == [item for item in range(200) if item != 7]
            assert [failed.number for failed in pipeline.failures] == [7]

    def test_state_is_lost_with_a_worker_that_takes_too_long(self):
        for settings in ({}, {"on_error": "skip"}):
            with self.subTest(settings=settings), self.assertRaises(ItemTimeoutError) as caught:
                self.make(Counts(timeout=0.2, **settings)).run(range(20))
            assert (caught.exception.number, caught.exception.last) == (7, 7)

    def test_workers_are_replaced(self):
        for most, workers, items in ((1, 1, 4), (10, 1, 35), (10, 2, 80)):
            with self.subTest(most=most, workers=workers):
                pipeline = self.make(Processor(process_number, max_items=most, workers=workers))
                with pipeline:
                    results = pipeline.run(range(items))
                    assert [item for item, _ in results] == list(range(items))
                    counts = {}
                    for _, number in results:
                        counts[number] = counts.get(number, 0) + 1
                    assert max(counts.values()) <= most, counts
                    assert pipeline.stats()["process_number"].workers <= workers + 1
                    # And there is one for the next run.
                    assert len(pipeline.run(range(3))) == 3

    def test_one_after_another_does_not_lose_what_waits(self):
        pipeline = self.make(Processor(same, max_items=7), Pipe(maxsize=3), Processor(same, max_items=5, workers=2))
        assert pipeline.run(range(50)) == list(range(50))


class ForkPipeTest(Policies, Deaths, TestCase):
    """Forked workers, over socket pairs."""

    settings = {"start_method": "fork", "channel": "pipe"}


@slow
class ForkQueueTest(Deaths, TestCase):
    """Forked workers, over queues: what a worker that ends leaves in its channel."""

    settings = {"start_method": "fork", "channel": "queue"}
    test_a_generator = Policies.test_a_generator

    # It is killed, whatever it does.
    hanging = (sleep_at_seven,)
    # What is decided, whatever it travels by.
    test_what_says_so_kills_too = None
    test_those_that_are_unpickled_together_are_those_of_the_same_blobs = None
    test_more_workers_than_a_board_of_progress_has_slots = None
    test_a_timeout_is_tried_again = None
    test_waiting_is_no_work = None
    test_state_is_lost_with_a_worker_that_takes_too_long = None
    test_finish_kills = None


@slow
class SpawnPipeTest(Deaths, TestCase):
    """Workers that are fresh interpreters, over socket pairs."""

    settings = {"start_method": "spawn", "channel": "pipe"}
    test_it_gets_the_item_as_it_was = Policies.test_it_gets_the_item_as_it_was

    # Its clock and its signals are those of any worker; that it shares the board of progress shows with one job.
    hanging = (stand_still_at_seven,)
    # In test_faults.py and test_survival.py, with spawn.
    test_an_item_that_kills = None
    test_an_item_that_kills_when_it_is_unpickled = None
    test_finish_kills = None
    test_state_is_lost_with_a_worker_that_takes_too_long = None
    # What the broker decides, whatever it has started.
    test_a_generator_that_takes_too_long = None
    test_a_unit_that_is_done_again_is_given_up_once = None
    test_what_was_left_out_before_a_death_is_said_once = None
    test_what_says_so_kills_too = None
    test_those_that_are_unpickled_together_are_those_of_the_same_blobs = None
    test_more_workers_than_a_board_of_progress_has_slots = None
    # Each worker takes a while to start.
    test_a_timeout_is_tried_again = None
    test_waiting_is_no_work = None
    test_workers_are_replaced = None
    test_one_after_another_does_not_lose_what_waits = None


class SettingsTest(TestCase):
    """What a Processor makes of them."""

    def test_refused(self):
        stateful = {"max_items": 3}
        for make, settings, error, words in (
            (Processor, {"retries": -1}, ValueError, "retries must be 0 or more, not -1"),
            (Processor, {"retries": True}, TypeError, "retries must be an int"),
            (Processor, {"retries": 1.5}, TypeError, "retries must be an int"),
            (Processor, {"retry_on": 3}, TypeError, "retry_on must be an exception class"),
            (Processor, {"retry_on": ()}, TypeError, "retry_on must be an exception class"),
            (Processor, {"backoff": -1}, ValueError, "backoff must be a finite number"),
            (Processor, {"backoff": "1"}, TypeError, "backoff must be a number of seconds"),
            (Processor, {"timeout": 0}, ValueError, "timeout must be a finite number of seconds, more than 0"),
            (Processor, {"timeout": float("nan")}, ValueError, "timeout must be a finite"),
            (Processor, {"timeout": float("inf")}, ValueError, "timeout must be a finite"),
            (Processor, {"on_error": "ignore"}, ValueError, "on_error must be 'raise', 'skip' or a callable"),
            (Processor, {"on_error": 3}, TypeError, "on_error must be 'raise', 'skip' or a callable"),
            (Processor, {"on_error": same}, TypeError, "called with an item and its error"),
            (Processor, {"max_items": 0}, ValueError, "max_items must be 1 or more"),
            (lambda _, **more: Counts(**more), stateful, ValueError, "restartable = True"),
        ):
            with self.subTest(settings=settings), self.assertRaisesRegex(error, words):
                make(same, **settings)
        for value, error in ((-1, ValueError), (1.5, ValueError), (True, TypeError), ("1", TypeError)):
            with self.subTest(max_failures=value), self.assertRaisesRegex(error, "max_failures"):
                Pipeline(max_failures=value)
        for value, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError), ("1", TypeError)):
            with self.subTest(keep_failures=value), self.assertRaisesRegex(error, "keep_failures"):
                Pipeline(keep_failures=value)

    def test_repr(self):
        processor = Processor(same, retries=2, retry_on=(OSError, KeyError), backoff=1, timeout=3, on_error=apologize)
        assert repr(processor) == (
            "Processor(same, retries=2, retry_on=(OSError, KeyError), backoff=1, timeout=3, on_error=apologize)"
        )
        assert repr(Processor(same, retry_on=OSError, on_error="skip", max_items=5)) == (
            "Processor(same, retry_on=OSError, on_error='skip', max_items=5)"
        )
        assert repr(Handles()) == "Handles()"
        assert repr(Pipeline(max_failures=0.5)) == "Pipeline(max_failures=0.5)"
        assert repr(Pipeline(keep_failures=10_000)) == "Pipeline()"
        assert repr(Pipeline(keep_failures=None)) == "Pipeline(keep_failures=None)"

    def test_what_is_given_wins_over_what_the_class_says(self):
        class Eager(Processor):
            workers, keep_none, retries, retry_on, backoff = 4, True, 3, OSError, 5.0
            timeout, on_error, name, batch = 2.0, "skip", "eager", 3

            def process(self, item):
                return item

        given = {
            **{"workers": None, "keep_none": False, "retries": 0, "retry_on": Exception, "backoff": 0.1},
            **{"timeout": None, "on_error": "raise", "name": None, "batch": None},
        }
        eager = Eager(**given)
        assert {name: getattr(eager, name) for name in given} == given
        assert repr(eager) == (
            "Eager(name=None, workers=None, batch=None, keep_none=False, retries=0, retry_on=Exception, backoff=0.1, "
            "timeout=None, on_error='raise')"
        )
        assert Eager(retries=1).timeout == 2.0 and Eager().retries == 3

    def test_waits_grow_and_are_never_twice_the_same(self):
        policy = policy_of(Processor(same, retries=9, backoff=2))
        for attempts, longest in ((1, 2.0), (2, 4.0), (3, 8.0), (5, 30.0), (1000, 30.0)):
            delays = [policy.delay(attempts) for _ in range(20)]
            assert all(longest / 2 <= delay <= longest for delay in delays) and len(set(delays)) > 1
        assert policy_of(Processor(same, retries=9, backoff=0)).delay(3) == 0


if __name__ == "__main__":
    unittest.main()
