"""The worker's loop, with a channel that keeps what is sent: no process, and nothing that waits.

Law: what a worker acknowledges and what it hands over agree, for each reply by itself.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import unittest
import weakref
from collections import deque
from unittest import mock

from conveyor import Processor
from conveyor.core.data.group_sizes import total
from conveyor.core.tuning.roster import StepTotals
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import decode, encode
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost
from conveyor.engines.process.wire.progress import ProgressBoard, ProgressSlot
from conveyor.engines.process.worker import loop, mailbox
from conveyor.engines.process.worker.loop import Worker
from conveyor.stages.outputs import WorkerRecord
from conveyor.stats import Measures
from tests.helpers.support import TestCase


class FakeEnd(BlockingEndpoint):
    """Gives a worker what is in `frames`, and more credit where it waits for that."""

    def __init__(self, frames):
        self.frames = deque(frames)
        self.sent = []

    def send(self, message, blobs=()):
        self.sent.append((message, [item for blob in blobs for item in decode(blob)]))
        if isinstance(message, messages.Reply) and message.starving:
            self.frames.appendleft((messages.Grant(message.lease, 4), []))

    def receive(self):
        if not self.frames:
            raise ConnectionLost
        return self.frames.popleft()

    def receive_within(self, seconds):
        return self.receive()

    def ready(self, seconds=0):
        return False

    def close(self):
        pass


class WorkerTest(TestCase):
    """One worker, in this process."""

    def replies(self, processor, *leases, credit=1000, frames=()):
        """What the worker replies to leases of those items, with the outputs that it hands over."""
        frames = [
            *((self.lease(number, items, credit), [encode(items)]) for number, items in enumerate(leases, start=1)),
            *frames,
        ]
        board = ProgressBoard(inherited=True)
        self.addCleanup(board.close)
        end = FakeEnd(frames)
        config = WorkerConfig("job", b"", None, processor.keep_none, grouped=True, timed=False, most_bytes=1 << 24)
        worker = Worker(config, processor, end, board.new(), None, WorkerRecord("job", 0, processor.job, None))
        # No time passes, so that nothing is sent because it is late.
        still = mock.Mock(perf_counter=lambda: 0.0, process_time=lambda: 0.0)
        patched = (mock.patch.object(module, "time", still) for module in (loop, mailbox))
        with contextlib.ExitStack() as stack, self.assertRaises(ConnectionLost):
            for each in patched:
                stack.enter_context(each)
            worker.run()
        return end.sent

    def lease(self, number, items, credit):
        return messages.StartLease(
            number,
            ((0, 0, len(items)),),
            credit,
            finish=False,
            starts_in_kept=False,
            keep_last=False,
            skip=0,
            give_up=None,
        )

    def test_leases_are_acknowledged_one_after_another(self):
        sent = self.replies(Processor(abs), [-1, -2], [-3], [4, -5, 6])
        assert [outputs for _, outputs in sent] == [[1, 2], [3], [4, 5, 6]]
        assert [(reply.lease, reply.calls, reply.group_sizes, reply.final) for reply, _ in sent] == [
            (1, 2, [(1, 2)], True),
            (2, 1, [(1, 1)], True),
            (3, 3, [(1, 3)], True),
        ]

    def test_a_job_gives_no_more_than_it_has_credit_for(self):
        sent = self.replies(Processor(spread), [5, 0, 7], credit=3)
        assert [len(outputs) for _, outputs in sent] == [3, 4, 4, 1]
        assert [reply.partial for reply, _ in sent] == [3, 2, 4, 0]
        assert [reply.calls for reply, _ in sent] == [0, 2, 0, 1]
        assert [reply.starving for reply, _ in sent] == [True, True, True, False]

    def test_what_one_call_left_out_does_not_count_for_the_next(self):
        sent = self.replies(Processor(LeavesOut().process, on_error="skip"), [2, -1, 9], credit=4)
        assert sum(len(reply.given_up) for reply, _ in sent) == 1
        starving = [(reply, outputs) for reply, outputs in sent if reply.starving]
        assert starving, "no reply came amid the last call"
        for reply, outputs in starving:
            assert reply.partial == len(outputs) - total(reply.group_sizes), reply

    def test_a_job_that_raises_ends_the_run(self):
        [(first, _)] = self.replies(Processor(abs), [1, "two", 3])
        assert type(first) is messages.CallFailed and first.calls == 1 and first.failure.kind == "TypeError"

    def test_nothing_keeps_a_job_behind_the_last_lease(self):
        # Else what its objects do at their end would come later, and in another order.
        gc.disable()
        self.addCleanup(gc.enable)
        for policy in ({}, {"on_error": "skip"}, {"on_error": replacement}):
            job = LeavesOut()
            gone = weakref.ref(job)
            self.replies(Processor(job.process, **policy), [2, *([-1, 9] if policy else [])], [3])
            del job
            assert gone() is None, policy

    def test_an_item_that_cannot_be_unpickled(self):
        [(failed, _)] = self.replies(Processor(abs), [1, 2, Unreadable()])
        assert type(failed) is messages.CallFailed and failed.calls == 2 and failed.failure.phase == "unpickle"

    def test_an_item_that_cannot_be_unpickled_and_was_revoked_is_somebody_elses(self):
        start = ProgressSlot.starter

        def starter(slot, lease):
            slot.revoke(1, 2)
            return start(slot, lease)

        with mock.patch.object(ProgressSlot, "starter", starter):
            [(reply, outputs)] = self.replies(Processor(abs), [-1, -2, Unreadable()])
        assert outputs == [1, 2] and (reply.calls, reply.final) == (2, True)

    def test_leases_that_were_cancelled_are_answered_all_the_same(self):
        cancelled = [(messages.CancelLeases(), []), (self.lease(2, [2], 5), [encode([2])]), (messages.Resume(), [])]
        sent = self.replies(Processor(abs), [-1], frames=[*cancelled, (self.lease(3, [-3], 5), [encode([-3])])])
        assert [(reply.lease, reply.calls, outputs) for reply, outputs in sent] == [
            (1, 1, [1]),
            (2, 0, []),
            (3, 1, [3]),
        ]


def replacement(item, error):
    return "instead"


def spread(count):
    yield from range(count)


def refuse():
    raise ValueError("cannot be rebuilt")


class Unreadable:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self):
        return refuse, ()


class LeavesOut:
    """Gives one buffer again and again; for a negative number, also something that cannot be pickled."""

    def __init__(self):
        self.buffer = bytearray(8)

    def process(self, count):
        if count < 0:
            yield threading.Lock()
        for _ in range(abs(count)):
            yield self.buffer


class CpuMeterTest(TestCase):
    def test_what_it_measures_is_what_the_core_adds_up(self):
        meter = mailbox.CpuMeter()
        meter.begin()
        sum(range(100_000))
        seconds, measures = meter.lap()
        assert len(measures) == len(Measures._fields)
        spent = Measures(*measures)
        assert spent.cpu > 0 and 0 <= spent.waited <= seconds
        totals = StepTotals()
        for each in (spent, spent):
            totals.add(each)
        assert (totals.cpu, totals.waited) == (2 * spent.cpu, 2 * spent.waited)


if __name__ == "__main__":
    unittest.main()
