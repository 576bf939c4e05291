"""The short way of a lease of one item, held to the general way: the same messages, the same calls, the same state."""

import contextlib
import itertools
import pickle
import re
import threading
from unittest import mock

from conveyor import Processor
from conveyor.core.commands import GiveUp, Reason
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import encode
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.process.wire.progress import ProgressBoard
from conveyor.engines.process.worker import lone, loop, mailbox, retry
from conveyor.engines.process.worker.lone import ShortWay
from conveyor.stages.outputs import WorkerRecord
from tests.helpers.support import TestCase
from tests.worker.test_loop import FakeEnd, Unreadable


class OddMeta(type):
    """The metaclass of a class that cannot be looked up."""

    def __hash__(cls):
        raise ValueError("no hash")


class Odd(metaclass=OddMeta):
    """What has no type that a set takes."""


class Job:
    """Gives, for each kind of item, another kind of output, and notes its calls and what it is told about itself."""

    def __init__(self):
        self.calls = []
        self.same = bytearray(b"same")

    def process(self, item):
        self.calls.append((item if type(item) is not bytearray else bytes(item), self.record.attempt))
        self.wait()
        match item:
            case "none":
                return None
            case "raises":
                raise ValueError("bad item")
            case "ends":
                raise StopIteration
            case "generator":
                return (each for each in (1, 2, 3))
            case "unpicklable":
                return threading.Lock()
            case "odd":
                return Odd()
            case "same":
                return self.same
            case "once" if self.record.attempt == 1:
                raise ValueError("not yet")
            case _:
                return item


def one(number, item, credit=5, **fields):
    """A lease of one item, and its blob."""
    usual = {
        "finish": False,
        "starts_in_kept": False,
        "keep_last": False,
        "skip": 0,
        "give_up": None,
        "traced": False,
        "attempt": 1,
    }
    return messages.StartLease(number, ((0, 0, 1),), credit, **{**usual, **fields}), [encode([item])]


class LoneTest(TestCase):
    def sent(self, frames, short, seconds=0.0, allowed=None, grouped=False, timed=False, **settings):
        """What a worker sends for those messages, and the calls of its job, in the short way or in the general one."""
        board, end, job = (
            ProgressBoard(inherited=True),
            FakeEnd([(message, list(blobs)) for message, blobs in frames]),
            Job(),
        )
        self.addCleanup(board.close)
        processor = Processor(job.process, **settings)
        config = WorkerConfig(
            "job", b"", settings.get("batch"), processor.keep_none, grouped, timed, most_bytes=1 << 24
        )
        slot = board.new()
        if allowed is not None:
            slot.revoke(allowed, 0)
        # Each call takes as long as is said, a fifth of it at work; no other time passes.
        spent = itertools.accumulate(itertools.repeat(seconds), initial=0.0)
        job.wait = lambda: job.now.__setitem__(0, round(next(spent) + seconds, 6)) if seconds else None
        job.now = now = [0.0]
        still = mock.Mock(perf_counter=lambda: now[0], process_time=lambda: now[0] / 5, time=lambda: 0.0)
        record = WorkerRecord("job", 0, processor.job, None)
        job.record = record
        made = loop.Worker(config, processor, end, slot, None, record)
        if not short:
            made._short_way = None
        with contextlib.ExitStack() as stack, self.assertRaises(ConnectionLost):
            for module in (loop, mailbox, lone, retry):
                stack.enter_context(mock.patch.object(module, "time", still))
            made._outbox.meter._usage = lambda: mock.Mock(ru_utime=now[0] / 5, ru_stime=0.0, ru_nvcsw=now[0])
            made.run()
        told = [(self.plain(message), list(map(repr, outputs))) for message, outputs in end.sent]
        return told, job.calls, slot.started, slot.unpickling, made._outbox.budget.items_per_blob, record.attempt

    @staticmethod
    def plain(message):
        """A message as it is on the wire, without the addresses of objects."""
        fields = pickle.loads(pickle.dumps(tuple(message)))
        text = re.sub(r"\d\.\d{7,}(e-\d+)?", lambda found: f"{float(found[0]):.4g}", repr(fields))
        return type(message).__name__, re.sub(r"0x[0-9a-f]+", "0x", text)

    def both(self, frames, **options):
        """What is sent in the short way, which is what is sent in the general one."""
        short, general = (self.sent(frames, way, **options) for way in (True, False))
        assert short == general, (short, general)
        return short

    def served(self, frames, **options):
        """For how many of those leases the short way did all, or called the job; both ways say the same."""
        outcomes = []
        serve = ShortWay.serve

        def noted(way, lease, blobs):
            outcomes.append(serve(way, lease, blobs))
            return outcomes[-1]

        with mock.patch.object(ShortWay, "serve", noted):
            self.both(frames, **options)
        return [each if isinstance(each, bool) else "called" for each in outcomes]

    def test_outputs_of_all_kinds(self):
        kinds = [
            *((item, True) for item in (7, 2.5, "text", b"bytes" * 10_000, {"a": [1]}, (1, "two"))),
            *((item, "called") for item in ("generator", "raises", "ends", "unpicklable", "odd", "once")),
            (Unreadable(), False),
        ]
        policies = {}, {"on_error": "skip"}, {"retries": 1, "backoff": 0}, {"keep_none": True}
        for (item, taken), policy, seconds in itertools.product(kinds, policies, (0.0, 0.05)):
            if seconds and item in ("generator", "once"):
                continue  # With which of its messages the time is told makes no difference.
            with self.subTest(item=item, policy=policy, seconds=seconds):
                traced = (*policy, seconds) == (0.0,)
                frames = [one(1, item, traced=traced), one(2, 8, traced=traced)]
                outcomes = self.served(frames, seconds=seconds, **policy)
                assert outcomes[0] == taken, (item, policy, outcomes)

    def test_what_is_filtered(self):
        assert self.served([one(1, "none"), one(2, 8)]) == [True, True]
        assert self.served([one(1, "none"), one(2, "none")], keep_none=True) == [True, True]

    def test_outputs_are_counted_where_that_is_wanted(self):
        for traced in (False, True):
            assert self.served([one(1, 7, traced=traced), one(2, "none", traced=traced)], grouped=True)

    def test_what_is_for_the_general_way(self):
        lost = GiveUp(Reason.DIED, -9, 1, 0, 0)
        for fields in ({"credit": 0}, {"skip": 1}, {"finish": True}, {"give_up": lost}):
            with self.subTest(fields=fields):
                assert self.served([one(1, 7, **fields), one(2, 8)], on_error="skip") == [False, True]
        for options in ({"timed": True}, {"batch": 1}):
            with self.subTest(options=options):
                assert self.served([one(1, 7)], **options) == []

    def test_more_than_one_item_is_for_the_general_way(self):
        two = messages.StartLease(1, ((0, 0, 2),), 5, False, False, False, 0, None), [encode([1, 2])]
        second = messages.StartLease(2, ((0, 1, 2),), 5, False, False, False, 0, None), [encode([1, 2])]
        assert self.served([two, second, one(3, 8)]) == [False, False, True]

    def test_a_lease_that_was_revoked_is_not_begun(self):
        told, calls, *_ = self.both([one(1, 7), one(2, 8)], allowed=1)
        assert calls == [] and len(told) == 2

    def test_an_attempt_is_told_to_the_job(self):
        _, calls, *_ = self.both([one(1, 7, attempt=3), one(2, 8)])
        assert calls == [(7, 3), (8, 1)]

    def test_leases_are_dropped_when_the_run_is_over(self):
        frames = [one(1, 7), (messages.CancelLeases(), []), one(2, 8), (messages.Resume(), []), one(3, 9)]
        _, calls, *_ = self.both(frames)
        assert calls == [(7, 1), (9, 1)]

    def test_a_job_that_gives_an_object_again(self):
        frames = [one(number, "same") for number in range(1, 5)]
        assert self.served(frames) == [True, True, False, False]

    def test_whether_a_quick_call_waited_is_not_asked(self):
        frames = [one(number, number) for number in range(1, 4)]
        (short, *_), (general, *_) = (self.sent(frames, way, seconds=0.0005) for way in (True, False))
        waited = "0.0004"
        assert [waited in text for (_, text), _ in general] == [True, True, True]
        assert [waited in text for (_, text), _ in short] == [True, False, False]

    def test_slow_calls_are_told_of(self):
        for item in (7, "none", "raises", {"a": 1}):
            told, *_ = self.both([one(1, item)], seconds=0.01, on_error="skip")
            [(_, text), _] = told[-1]
            assert text.endswith(f"[(0, 0.01, {repr(item)!r})])"), text
            # Wall time, work, waiting, and the time in the job.
            assert ", 0.01, (0.002, 0.008, 0.01, 0), " in text, text
