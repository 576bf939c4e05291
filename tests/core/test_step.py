"""A Processor in the core, event by event.

Law: a lease is as large as the estimate and never larger than what its worker's siblings leave it; what a lease may
give is reserved before it is handed out; outputs leave in the order of the leases; a full pipe stops the step.
"""

from __future__ import annotations

from typing import Any

from conveyor import Pipe, Processor
from conveyor.core.commands import (
    CancelLeases,
    Emit,
    Fail,
    Finish,
    Grant,
    Revoke,
    SendLease,
    SetFlushInterval,
    StartWorker,
)
from conveyor.core.events import RunStarted
from conveyor.core.tuning.chunk_size import TARGET_SECONDS
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Ending(Processor[Any, Any]):
    """Has something to say at the end."""

    def process(self, item: Any) -> Any:
        return item

    def finish(self) -> Any:
        return "end"


class RoomInSmallPipes(TestCase):
    """Room for one item comes, and cheap calls wait for more of it where that is about to come."""

    def full(self, seconds: float) -> tuple[Driven, list[Any]]:
        """Fill the results of a pipeline, with two items that wait for a worker, and room for the one in its hand."""
        core = Driven(Processor(job), Pipe(4))
        core.feed(0.0, "A", 4)
        core.reply(0.1, 0, 0, 1, ("a", 1), seconds=seconds)
        core.reply(0.2, 0, 1, 2, ("b", 2), seconds=2 * seconds)
        core.feed(0.3, "C", 2)
        return core, core.reply(0.4, 0, 2, 1, ("c", 1), seconds=seconds)

    def test_cheap_calls_wait_for_the_consumer(self) -> None:
        core, commands = self.full(seconds=0.0001)
        assert commands == [Emit((("c", 0, 1),), 1, 0.0)]
        assert core.consume(0.5, 1) == [SendLease(0, 3, (("C", 0, 2),), 2, 2)]

    def test_a_worker_without_enough_room_counts_as_blocked(self) -> None:
        core, _ = self.full(seconds=0.0001)
        self.assertAlmostEqual(core.machine.stats(1.4).steps[0].blocked, 1.0 / 1.4)
        core.consume(1.4, 1)
        self.assertAlmostEqual(core.machine.stats(2.0).steps[0].blocked, 1.0 / 2.0)

    def test_a_fork_deals_nothing_to_one_that_waits(self) -> None:
        core, _ = self.full(seconds=0.0001)
        assert core.node(0).demand() == 0
        core.consume(0.5, 3)
        assert core.node(0).demand() > 0

    def test_dear_calls_do_not(self) -> None:
        core, commands = self.full(seconds=0.001)
        assert commands == [Emit((("c", 0, 1),), 1, 0.0), SendLease(0, 3, (("C", 0, 1),), 1, 1)]
        assert core.consume(0.5, 1) == []

    def test_cheap_calls_wait_for_the_step_behind(self) -> None:
        core = Driven(Processor(job), Pipe(4), Processor(job))
        core.feed(0.0, "A", 4)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.reply(0.2, 0, 1, 2, ("b", 2))
        core.feed(0.3, "C", 2)
        assert core.reply(0.4, 0, 2, 1, ("c", 1)) == [SendLease(0, 3, (("C", 0, 2),), 2, 2)]
        core.feed(0.5, "D", 2)
        assert core.reply(0.6, 0, 3, 2, ("d", 2)) == []
        # The step behind takes one item, then another one.
        assert core.reply(0.7, 1, 0, 1, ("x", 1), seconds=1.0) == [
            Emit((("x", 0, 1),), 1),
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
        ]
        assert core.reply(0.8, 1, 1, 1, ("y", 1), seconds=1.0) == [
            Emit((("y", 0, 1),), 1),
            SendLease(1, 2, (("b", 1, 2),), 1, 1),
            SendLease(0, 4, (("D", 0, 2),), 2, 2),
        ]

    def test_an_idle_worker_behind_is_not_kept_waiting(self) -> None:
        core = Driven(Processor(job), Pipe(4), Processor(job, workers=2), Pipe(64))
        core.feed(0.0, "A", 4)
        core.reply(0.001, 0, 0, 1, ("a", 1))
        core.reply(0.002, 1, 0, 1, ("x", 1), seconds=0.005)
        core.reply(0.003, 0, 1, 2, ("b", 2))
        core.reply(0.004, 2, 2, 1, ("y", 1), seconds=0.005)
        core.reply(0.005, 0, 2, 1, ("c", 1))
        core.feed(0.006, "D", 3)
        # All that the pipe holds is ahead of one worker, while the other one is at a call.
        assert core.reply(0.007, 0, 3, 3, ("d", 3)) == [SendLease(1, 4, (("d", 0, 3),), 3, 3)]
        assert core.feed(0.0075, "E", 3) == []
        assert core.reply(0.008, 2, 3, 1, ("z", 1), seconds=0.005) == [SendLease(0, 4, (("E", 0, 2),), 2, 2)]

    def test_nothing_waits_where_a_batch_behind_is_to_be_filled(self) -> None:
        core = Driven(Processor(job), Pipe(8), Processor(job, batch=8, workers=2))
        core.feed(0.0, "A", 8)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.reply(0.2, 0, 1, 2, ("b", 2))
        core.reply(0.3, 0, 2, 4, ("c", 4))
        assert core.reply(0.4, 0, 3, 1, ("d", 1)) == [
            SendLease(1, 0, (("a", 0, 1), ("b", 0, 2), ("c", 0, 4), ("d", 0, 1)), 8, 1)
        ]
        core.feed(0.5, "B", 6)
        assert core.reply(0.6, 0, 4, 6, ("e", 6)) == []
        assert core.feed(0.7, "C", 4) == [SendLease(0, 5, (("C", 0, 3),), 3, 3)]
        assert SendLease(2, 1, (("e", 0, 6), ("f", 0, 2)), 8, 1) in core.reply(0.8, 0, 5, 3, ("f", 3))

    def test_one_that_is_alone_waits_for_nothing(self) -> None:
        core = Driven(Processor(job), Pipe(4))
        core.feed(0.0, "A", 4)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.reply(0.2, 0, 1, 2, ("b", 2))
        core.feed(0.3, "C", 1)
        assert core.reply(0.4, 0, 2, 1, ("c", 1)) == [
            Emit((("c", 0, 1),), 1, 0.0),
            SendLease(0, 3, (("C", 0, 1),), 1, 1),
        ]

    def test_calls_that_a_worker_makes_at_once_do_not_wait(self) -> None:
        # Four calls of 0.8 ms at once take 0.2 ms each.
        core = Driven(Processor(job, threads=4), Pipe(4))
        core.feed(0.0, "A", 4)
        core.reply(0.1, 0, 0, 2, ("a", 2), seconds=0.0004)
        core.reply(0.1, 0, 1, 1, ("b", 1), seconds=0.0002)
        core.reply(0.1, 0, 2, 1, ("c", 1), seconds=0.0002)
        assert core.feed(0.2, "B", 1) == [SendLease(0, 3, (("B", 0, 1),), 1, 1)]
        assert core.feed(0.3, "C", 3) == [SendLease(0, 4, (("C", 0, 2),), 2, 2)]

    def test_nothing_waits_where_bytes_bound_the_pipe(self) -> None:
        core = Driven(Processor(job), Pipe(8))
        core.feed(0.0, "A", 8)
        core.reply(0.1, 0, 0, 1, ("a", 1), size=64 << 20)
        assert core.reply(0.2, 0, 1, 1, ("b", 1), size=64 << 20) == [Emit((("b", 0, 1),), 1, 0.0)]
        assert core.consume(0.3, 1) == [SendLease(0, 2, (("A", 2, 3),), 1, 1)]


class Sizes(TestCase):
    """How many items a lease has."""

    def test_a_chunk_doubles_with_each_reply(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        assert core.feed(0.0, "A", 40) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.reply(0.1, 0, 0, 1, ("a", 1)) == [
            Emit((("a", 0, 1),), 1),
            SendLease(0, 1, (("A", 1, 3),), 2, 2),
            SendLease(0, 2, (("A", 3, 5),), 2, 2),
        ]
        assert core.reply(0.2, 0, 1, 2, ("b", 2)) == [Emit((("b", 0, 2),), 2), SendLease(0, 3, (("A", 5, 9),), 4, 5)]
        assert core.reply(0.3, 0, 2, 2, ("c", 2)) == [Emit((("c", 0, 2),), 2), SendLease(0, 4, (("A", 9, 17),), 8, 10)]
        assert core.reply(0.4, 0, 3, 4, ("d", 4)) == [
            Emit((("d", 0, 4),), 4),
            SendLease(0, 5, (("A", 17, 33),), 16, 20),
        ]
        # No more than a quarter of the pipe, however fast the job is.
        assert core.reply(0.5, 0, 4, 8, ("e", 8)) == [Emit((("e", 0, 8),), 8)]
        assert core.reply(0.6, 0, 5, 16, ("f", 16)) == [
            Emit((("f", 0, 16),), 16),
            SendLease(0, 6, (("A", 33, 40),), 7, 8),
        ]
        assert core.machine.first.chunk_sizer.size == 16

    def test_a_slow_job_has_one_item_at_a_time_and_none_ahead(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        assert core.feed(0.0, "A", 3) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.reply(1.0, 0, 0, 1, ("a", 1), seconds=1.0) == [
            Emit((("a", 0, 1),), 1),
            SendLease(0, 1, (("A", 1, 2),), 1, 1),
        ]
        assert core.reply(2.0, 0, 1, 1, ("b", 1), seconds=1.0) == [
            Emit((("b", 0, 1),), 1),
            SendLease(0, 2, (("A", 2, 3),), 1, 1),
        ]

    def test_a_busy_worker_gets_a_full_chunk_ahead_or_nothing(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.feed(0.2, "B", 1) == [SendLease(0, 1, (("B", 0, 1),), 1, 1)]
        # Size is 2 by now, and one item waits.
        assert core.feed(0.3, "C", 1) == []
        assert core.feed(0.4, "D", 1) == [SendLease(0, 2, (("C", 0, 1), ("D", 0, 1)), 2, 2)]
        assert core.feed(0.5, "E", 1) == []

    def test_a_broker_with_much_to_do_hands_out_more_at_once(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 6)
        assert core.reply(0.1, 0, 0, 1, ("a", 1), seconds=0.016) == [
            Emit((("a", 0, 1),), 1),
            SendLease(0, 1, (("A", 1, 2),), 1, 1),
            SendLease(0, 2, (("A", 2, 3),), 1, 1),
        ]
        assert core.observe_load(0.2, 0.4) == []
        assert core.observe_load(0.3, 0.9) == [SetFlushInterval(0, 0.02)]
        assert core.reply(0.4, 0, 1, 1, ("b", 1), seconds=0.016) == [
            Emit((("b", 0, 1),), 1),
            SendLease(0, 3, (("A", 3, 5),), 2, 2),
        ]
        # Who comes later is told, too.
        assert core.lose(0.5, 0, "killed") == [StartWorker(0, 1)]
        assert core.ready(0.6, 1) == [SetFlushInterval(1, 0.02), SendLease(1, 4, (("A", 2, 3),), 1, 1, attempt=2)]
        assert core.observe_load(0.7, 0.1) == [SetFlushInterval(1, 0.01)]

    def test_a_long_line_is_cut_into_long_leases_and_its_end_into_short_ones(self) -> None:
        core = Driven(Processor(job), Pipe(10_000))
        leases = [each for each in core.feed(0.0, "A", 60) if isinstance(each, SendLease)]
        core.feed(0.0, "B", 340)
        sizes = []
        while leases:
            lease = leases.pop(0)
            sizes.append(lease.items)
            seconds = lease.items * TARGET_SECONDS / 2.5
            commands = core.reply(1.0, 0, lease.lease, lease.items, ("a", lease.items), seconds=seconds)
            leases += [each for each in commands if isinstance(each, SendLease)]
        # What suits the job is 2.5 at once: they double up to 8 times that, and are an 8th of what waits, but for the 2.
        assert sum(sizes) == 400
        assert sizes[:9] == [1, 2, 2, 4, 8, 16, 20, 20, 20], sizes
        assert sorted(sizes[6:], reverse=True) == sizes[6:] and sizes[-2:] == [2, 1], sizes

    def test_at_the_end_what_is_left_goes_ahead_at_once(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.feed(0.2, "B", 1)
        core.feed(0.3, "C", 1)
        assert core.end(0.4) == [SendLease(0, 2, (("C", 0, 1),), 1, 1)]

    def test_idle_workers_share_what_waits(self) -> None:
        core = Driven(Processor(job, workers=3), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.feed(0.2, "B", 2)
        core.reply(0.3, 0, 1, 1, ("b", 1))
        core.reply(0.4, 1, 2, 1, ("c", 1))
        assert core.machine.first.chunk_sizer.size == 8
        assert core.feed(0.5, "C", 7) == [
            SendLease(0, 3, (("C", 0, 3),), 3, 3),
            SendLease(1, 4, (("C", 3, 5),), 2, 2),
            SendLease(2, 5, (("C", 5, 7),), 2, 2),
        ]

    def test_heavy_outputs_make_small_chunks(self) -> None:
        core = Driven(Processor(job), Pipe(64), Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        assert core.reply(0.1, 0, 0, 1, ("a", 1), size=200 * 1024) == [SendLease(1, 0, (("a", 0, 1),), 1, 1)]
        core.reply(0.2, 1, 0, 1, ("b", 1))
        # A chunk of the second step is at most 256 KiB, so one item.
        assert core.machine.steps[1].chunk_sizer.size == 1
        assert core.machine.steps[0].chunk_sizer.size == 2


class Pipes(TestCase):
    """What is reserved, and what a full pipe does."""

    def test_a_full_pipe_stops_the_step_and_then_the_source(self) -> None:
        core = Driven(Processor(job), Pipe(2))
        assert core.feed(0.0, "A", 2) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.reply(0.1, 0, 0, 1, ("a", 1)) == [
            Emit((("a", 0, 1),), 1),
            SendLease(0, 1, (("A", 1, 2),), 1, 1),
        ]
        assert core.feed(0.2, "B", 1) == []
        assert core.reply(0.3, 0, 1, 1, ("b", 1)) == [
            Emit((("b", 0, 1),), 1, 0.0),
            SendLease(0, 2, (("B", 0, 1),), 1, 1),
        ]
        # One more in the hands of the worker, and that is all.
        assert core.reply(0.4, 0, 2, 1, ("c", 1)) == [Emit((("c", 0, 1),), 1, 0.0)]
        assert core.feed(0.5, "C", 1) == []
        assert core.consume(0.6, 1) == [SendLease(0, 3, (("C", 0, 1),), 1, 1)]
        assert core.consume(0.7, 1) == []

    def test_a_job_that_gives_nothing_gives_its_credit_back(self) -> None:
        core = Driven(Processor(job), Pipe(4))
        core.feed(0.0, "A", 4)
        for lease in range(4):
            assert core.machine.first.credit.promised >= 1
            core.reply(0.1 + lease, 0, lease, 1)
        assert core.machine.first.credit.promised == 0
        assert core.end(9.0) == [Finish()]

    def test_a_generator_asks_for_credit(self) -> None:
        core = Driven(Processor(job), Pipe(4))
        assert core.feed(0.0, "A", 1) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.reply(0.1, 0, 0, 0, ("a", 1), final=False, starving=True) == [
            Emit((("a", 0, 1),), 1),
            Grant(0, 0, 4),
        ]
        assert core.reply(0.2, 0, 0, 0, ("b", 4), final=False, starving=True) == [Emit((("b", 0, 4),), 4, 0.0)]
        assert core.consume(0.3, 3) == [Grant(0, 0, 3)]
        assert core.reply(0.4, 0, 0, 1, ("c", 2)) == [Emit((("c", 0, 2),), 2, 0.0)]
        assert core.machine.first.credit.promised == 0

    def test_a_later_lease_leaves_room_for_the_first(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(2))
        assert core.feed(0.0, "A", 2) == [
            SendLease(0, 0, (("A", 0, 1),), 1, 1),
            SendLease(1, 1, (("A", 1, 2),), 1, 1),
        ]
        # Room for 2 and for one in each hand: one for the first lease, one for the second, one left to the first.
        assert core.reply(0.1, 1, 1, 0, ("b", 1), final=False, starving=True) == [Grant(1, 1, 1)]
        assert core.reply(0.2, 1, 1, 0, ("c", 1), final=False, starving=True) == []
        assert core.reply(0.3, 0, 0, 0, ("a", 1), final=False, starving=True) == [
            Emit((("a", 0, 1),), 1),
            Grant(0, 0, 1),
            Emit((), 0, 0.0),
        ]
        assert core.consume(0.4, 1) == []
        assert core.reply(0.5, 0, 0, 1, ("d", 1)) == [
            Emit((("d", 0, 1),), 1),
            Emit((("b", 0, 1),), 1, 0.0),
            Emit((("c", 0, 1),), 1, 0.0),
            Grant(1, 1, 1),
        ]

    def test_without_order_a_lease_ahead_leaves_room_for_the_one_its_worker_is_at(self) -> None:
        core = Driven(Processor(job), Pipe(2), Processor(job, batch=3), Pipe(64), ordered=False)
        core.feed(0.0, "A", 1)
        # Calls that take so long are handed out one by one.
        core.reply(0.1, 0, 0, 1, ("a", 1), seconds=0.02)
        # The batch of three needs two more: the lease ahead must not take what the first one needs to make them.
        assert core.feed(0.2, "B", 2) == [SendLease(0, 1, (("B", 0, 1),), 1, 1)]
        assert core.reply(0.3, 0, 1, 0, ("b", 1), final=False, starving=True) == [Grant(0, 1, 2)]

    def test_outputs_that_turn_out_heavy_cannot_lock_the_first_lease_out(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(64))
        core.feed(0.0, "A", 2)
        assert core.reply(0.1, 1, 1, 0, ("b", 1), final=False, starving=True) == [Grant(1, 1, 63)]
        # One item fills the pipe, and 63 are promised to the second lease, whose outputs wait for the first.
        assert core.reply(0.2, 0, 0, 0, ("a", 1), final=False, starving=True, size=80 << 20) == [
            Emit((("a", 0, 1),), 1, 0.0)
        ]
        assert core.consume(0.3, 1) == [Grant(0, 0, 1)]
        assert core.reply(0.4, 0, 0, 0, ("c", 1), final=False, starving=True, size=80 << 20) == [
            Emit((("c", 0, 1),), 1, 0.0)
        ]
        assert core.consume(0.5, 1) == [Grant(0, 0, 1)]


class Order(TestCase):
    """When outputs leave."""

    def test_outputs_of_a_later_lease_wait_for_the_first(self) -> None:
        core = Driven(Processor(job, workers=3), Pipe(16))
        core.feed(0.0, "A", 3)
        assert core.reply(0.1, 2, 2, 1, ("c", 1), seconds=1.0) == []
        assert core.reply(0.2, 1, 1, 0, ("b", 1), final=False, starving=True, seconds=1.0) == [Grant(1, 1, 15)]
        assert core.reply(0.3, 0, 0, 1, ("a", 1), seconds=1.0) == [Emit((("a", 0, 1),), 1), Emit((("b", 0, 1),), 1)]
        # The second lease is the first now, and gives at once what it has.
        assert core.reply(0.4, 1, 1, 0, ("d", 1), final=False, seconds=1.0) == [Emit((("d", 0, 1),), 1)]
        assert core.reply(0.5, 1, 1, 1, seconds=1.0) == [Emit((("c", 0, 1),), 1)]

    def test_without_order_outputs_leave_as_they_come(self) -> None:
        core = Driven(Processor(job, workers=3), Pipe(16), ordered=False)
        core.feed(0.0, "A", 3)
        assert core.reply(0.1, 2, 2, 1, ("c", 1), seconds=1.0) == [Emit((("c", 0, 1),), 1)]
        assert core.reply(0.2, 1, 1, 0, ("b", 1), final=False, seconds=1.0) == [Emit((("b", 0, 1),), 1)]
        assert core.reply(0.3, 0, 0, 1, ("a", 1), seconds=1.0) == [Emit((("a", 0, 1),), 1)]
        assert core.reply(0.4, 1, 1, 1, ("d", 1), ("e", 2), seconds=1.0) == [
            Emit((("d", 0, 1), ("e", 0, 2)), 3),
        ]

    def test_a_lease_is_acknowledged_in_parts(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 7)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.reply(0.2, 0, 1, 2, ("b", 2))
        assert core.machine.first.book.workers[0].outstanding == 2
        assert core.reply(0.3, 0, 2, 1, ("c", 1), final=False) == [Emit((("c", 0, 1),), 1)]
        assert core.machine.first.book.workers[0].outstanding == 1
        assert core.reply(0.4, 0, 2, 1, ("d", 1)) == [
            Emit((("d", 0, 1),), 1),
            SendLease(0, 3, (("A", 5, 7),), 2, 2),
        ]


class Batches(TestCase):
    """With `batch`, a lease holds whole batches."""

    def test_whole_batches_and_a_short_last_one(self) -> None:
        core = Driven(Processor(job, batch=3), Pipe(24))
        assert core.feed(0.0, "A", 2) == []
        assert core.feed(0.1, "B", 3) == [SendLease(0, 0, (("A", 0, 2), ("B", 0, 1)), 3, 1)]
        assert core.reply(0.2, 0, 0, 1, ("a", 1)) == [Emit((("a", 0, 1),), 1)]
        assert core.feed(0.3, "C", 8) == [SendLease(0, 1, (("B", 1, 3), ("C", 0, 4)), 6, 2)]
        assert core.end(0.4) == [SendLease(0, 2, (("C", 4, 8),), 4, 2)]
        assert core.reply(0.5, 0, 1, 2, ("b", 2)) == [Emit((("b", 0, 2),), 2)]
        assert core.reply(0.6, 0, 2, 2, ("c", 2)) == [Emit((("c", 0, 2),), 2), Finish()]

    def test_a_batch_larger_than_its_pipe_makes_the_pipe_larger(self) -> None:
        core = Driven(Processor(job, batch=5), Pipe(2))
        assert core.feed(0.0, "A", 5) == [SendLease(0, 0, (("A", 0, 5),), 5, 1)]
        assert core.reply(0.1, 0, 0, 1, ("a", 1)) == [Emit((("a", 0, 1),), 1)]

    def test_the_step_in_front_has_room_for_a_whole_batch(self) -> None:
        core = Driven(Processor(job), Pipe(1), Processor(job, batch=3), Pipe(1))
        core.feed(0.0, "A", 1)
        assert core.reply(0.1, 0, 0, 0, ("a", 1), final=False, starving=True) == [Grant(0, 0, 3)]
        assert core.reply(0.2, 0, 0, 0, ("b", 2), final=False) == [SendLease(1, 0, (("a", 0, 1), ("b", 0, 2)), 3, 1)]


class Ends(TestCase):
    """The end of the stream, and of the run."""

    def test_workers_finish_in_their_order(self) -> None:
        ending = Ending(workers=2)
        core = Driven(ending, Pipe(16))
        assert core.feed(0.0, "A", 1) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.end(0.1) == [SendLease(0, 1, (), 0, 1, finish=True), SendLease(1, 2, (), 0, 1, finish=True)]
        assert core.reply(0.2, 1, 2, 0, ("y", 1)) == []
        assert core.reply(0.3, 0, 0, 1, ("a", 1)) == [Emit((("a", 0, 1),), 1)]
        assert core.reply(0.4, 0, 1, 0, ("x", 1)) == [Emit((("x", 0, 1),), 1), Emit((("y", 0, 1),), 1), Finish()]

    def ended(self) -> tuple[Driven, list[Any]]:
        """Two workers with four items each, and the answer of the first to a Recall."""
        core = Driven(Ending(workers=2), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.001, 0, 0, 1, ("a", 1))
        core.feed(0.002, "B", 2)
        core.reply(0.003, 0, 1, 1, ("b", 1))
        core.reply(0.003, 1, 2, 1, ("c", 1))
        return core, core.feed(0.004, "C", 8)

    def test_one_that_has_finished_gets_nothing_that_another_had(self) -> None:
        core, _ = self.ended()
        assert core.end(0.005) == [SendLease(0, 5, (), 0, 1, finish=True), SendLease(1, 6, (), 0, 1, finish=True)]
        core.reply(0.006, 0, 3, 4, ("d", 4))
        assert core.reply(0.006, 0, 5, 0, ("x", 1)) == []
        assert core.tick(0.1) == [] and core.machine.timer is None
        core.reply(0.2, 1, 4, 4, ("e", 4))
        assert core.reply(0.3, 1, 6, 0, ("y", 1)) == [Emit((("y", 0, 1),), 1), Finish()]

    def test_nobody_finishes_while_something_may_come_back(self) -> None:
        core, _ = self.ended()
        core.reply(0.006, 0, 3, 4, ("d", 4))
        assert core.tick(0.1) == [Revoke(1, 4, 1)]
        assert core.end(0.2) == []
        assert core.revoke_result(0.3, 1, 4, 1) == [SendLease(0, 5, (("C", 5, 8),), 3, 3)]
        assert core.reply(0.4, 1, 4, 1, ("e", 1)) == [
            Emit((("e", 0, 1),), 1),
            SendLease(0, 6, (), 0, 1, finish=True),
            SendLease(1, 7, (), 0, 1, finish=True),
        ]

    def test_a_finish_that_yields_more_asks_for_credit(self) -> None:
        core = Driven(Ending(), Pipe(1))
        assert core.end(0.0) == [SendLease(0, 0, (), 0, 1, finish=True)]
        assert core.reply(0.1, 0, 0, 0, ("a", 1), final=False, starving=True) == [
            Emit((("a", 0, 1),), 1, 0.0),
            Grant(0, 0, 1),
        ]
        assert core.reply(0.2, 0, 0, 0, ("b", 1), final=False, starving=True) == [Emit((("b", 0, 1),), 1, 0.0)]
        assert core.consume(0.3, 1) == [Grant(0, 0, 1)]
        # The first is still untaken, and fills the pipe.
        assert core.reply(0.4, 0, 0, 0, ("c", 1)) == [Emit((), 0, 0.0), Emit((("c", 0, 1),), 1, 0.0), Finish()]

    def test_the_end_goes_from_step_to_step(self) -> None:
        core = Driven(Processor(job), Pipe(4), Ending(), Pipe(4), Processor(job), Pipe(4))
        assert core.end(0.0) == [SendLease(1, 0, (), 0, 1, finish=True)]
        assert core.reply(0.1, 1, 0, 0, ("a", 1)) == [SendLease(2, 0, (("a", 0, 1),), 1, 1)]
        assert core.reply(0.2, 2, 0, 1, ("b", 1)) == [Emit((("b", 0, 1),), 1), Finish()]

    def test_an_empty_input(self) -> None:
        core = Driven(Processor(job), Pipe(4))
        assert core.end(0.0) == [Finish()]
        assert core.machine.over

    def test_what_comes_after_the_end_changes_nothing(self) -> None:
        core = Driven(Processor(job), Pipe(4))
        core.end(0.0)
        assert core.consume(0.1, 0) == []
        assert core.cancel(0.2) == []


class Failures(TestCase):
    """Which items are to blame."""

    def test_a_job_that_raises_is_blamed_on_its_item(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 9)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.reply(0.2, 0, 1, 2, ("b", 2))
        # The lease has the items 3 and 4; item 3 is acknowledged.
        core.reply(0.3, 0, 2, 1, ("c", 1), final=False)
        assert core.raises(0.4, 0, 2, 0, "error") == [Fail(0, 0, 4, 4, "error")]
        assert core.machine.over
        assert core.reply(0.5, 0, 3, 4) == []

    def test_units_that_were_done_and_not_acknowledged_count(self) -> None:
        core = Driven(Processor(job), Pipe(64), Processor(job), Pipe(64))
        core.feed(0.0, "A", 3)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.reply(0.2, 1, 0, 1, ("b", 1))
        assert core.reply(0.3, 0, 1, 2, ("c", 2)) == [SendLease(1, 1, (("c", 0, 2),), 2, 2)]
        assert core.raises(0.4, 1, 1, 1, "error") == [Fail(1, 1, 2, 2, "error")]

    def test_a_batch_is_blamed_as_a_whole(self) -> None:
        core = Driven(Processor(job, batch=3), Pipe(48))
        core.feed(0.0, "A", 3)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.feed(0.2, "B", 5)
        core.end(0.3)
        core.reply(0.4, 0, 1, 1, ("b", 1))
        assert core.raises(0.5, 0, 2, 0, "error") == [Fail(0, 0, 6, 7, "error")]

    def test_batches_that_were_done_and_not_acknowledged_count_as_batches(self) -> None:
        core = Driven(Processor(job, batch=3), Pipe(48))
        core.feed(0.0, "A", 3)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.feed(0.2, "B", 6)
        # The lease has two batches, the items 3 to 8.
        assert core.raises(0.3, 0, 1, 1, "error") == [Fail(0, 0, 6, 8, "error")]

    def test_nothing_is_blamed_for_finish(self) -> None:
        core = Driven(Processor(job), Pipe(4), Ending(), Pipe(4))
        core.end(0.0)
        assert core.raises(0.1, 1, 0, 0, "error") == [Fail(1, 1, None, None, "error")]


class Losses(TestCase):
    """What becomes of the work of a worker that dies."""

    def test_what_it_had_runs_again_in_its_place(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.feed(0.2, "B", 4) == [SendLease(0, 1, (("B", 0, 2),), 2, 2), SendLease(1, 2, (("B", 2, 4),), 2, 2)]
        assert core.lose(0.3, 0, "killed") == [StartWorker(0, 2)]
        assert core.reply(0.4, 1, 2, 2, ("d", 2)) == [SendLease(1, 3, (("B", 0, 2),), 2, 2)]
        assert core.ready(0.5, 2) == [Revoke(1, 3, 1)]
        assert core.reply(0.6, 1, 3, 2, ("b", 2)) == [Emit((("b", 0, 2),), 2), Emit((("d", 0, 2),), 2)]

    def test_an_idle_one_had_nothing(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(64))
        core.feed(0.0, "A", 1)
        assert core.lose(0.1, 1, "killed") == [StartWorker(0, 2)]
        assert core.reply(0.2, 0, 0, 1, ("a", 1)) == [Emit((("a", 0, 1),), 1)]

    def test_outputs_that_are_there_are_not_given_again(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        assert core.reply(0.1, 0, 0, 0, ("a", 1), final=False, starving=True, partial=1) == [
            Emit((("a", 0, 1),), 1),
            Grant(0, 0, 64),
        ]
        assert core.reply(0.2, 0, 0, 0, ("b", 3), final=False, partial=3) == [Emit((("b", 0, 3),), 3)]
        assert core.lose(0.3, 0, "killed") == [StartWorker(0, 1)]
        assert core.ready(0.4, 1) == [SendLease(1, 1, (("A", 0, 1),), 1, 1, skip=4, attempt=2)]
        assert core.reply(0.5, 1, 1, 1, ("c", 1)) == [Emit((("c", 0, 1),), 1)]

    def test_what_it_had_not_begun_is_beyond_suspicion(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.feed(0.2, "B", 8)
        core.reply(0.3, 0, 1, 2, ("b", 2))
        core.reply(0.4, 0, 2, 2, ("c", 2))
        assert core.machine.steps[0].book.workers[0].outstanding == 4
        # Of the four items of its lease it had begun two, and done one of these.
        assert core.lose(0.5, 0, "killed", started=(3, 2)) == [StartWorker(0, 1)]
        # They may have nothing to do with it; it may have been the system.
        assert core.ready(0.6, 1) == [SendLease(1, 4, (("B", 4, 6),), 2, 2)]
        # The second time they are tried one by one, and the others not.
        assert core.lose(0.7, 1, "killed", started=(4, 2)) == [StartWorker(0, 2)]
        assert core.ready(0.8, 2) == [SendLease(2, 5, (("B", 4, 5),), 1, 1)]
        assert core.reply(0.9, 2, 5, 1, ("d", 1)) == [Emit((("d", 0, 1),), 1), SendLease(2, 6, (("B", 5, 6),), 1, 1)]
        assert core.reply(1.0, 2, 6, 1, ("e", 1)) == [Emit((("e", 0, 1),), 1), SendLease(2, 7, (("B", 6, 8),), 2, 2)]

    def test_an_item_at_which_two_have_died_is_given_up(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.feed(0.2, "B", 2)
        core.reply(0.3, 0, 1, 1, ("b", 1))
        # It had one item alone, so it is known which.
        assert core.lose(0.4, 0, "killed", started=(2, 1)) == [StartWorker(0, 1)]
        assert core.ready(0.5, 1) == [SendLease(1, 3, (("B", 1, 2),), 1, 1, attempt=2)]
        assert core.lose(0.6, 1, "again", started=(3, 1)) == [Fail(0, 1, 2, 2, "again", "item")]
        assert core.machine.over

    def test_one_that_was_killed_from_outside_counts_for_less(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        assert core.lose(0.1, 0, "killed", started=(0, 1), killed=True) == [StartWorker(0, 1)]
        core.ready(0.2, 1)
        assert core.lose(0.3, 1, "killed", started=(1, 1), killed=True) == [StartWorker(0, 2)]
        core.ready(0.4, 2)
        assert core.lose(0.5, 2, "killed", started=(2, 1), killed=True) == [Fail(0, 2, 0, 0, "killed", "item")]

    def test_one_that_had_not_begun_its_item_counts_for_nothing(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        for worker in range(5):
            assert core.lose(0.1, worker, "killed", started=(worker, 0), killed=True) == [StartWorker(0, worker + 1)]
            assert core.ready(0.2, worker + 1) == [SendLease(worker + 1, worker + 1, (("A", 0, 1),), 1, 1)]

    def test_one_that_was_done_is_not_to_blame_though_nobody_heard_of_it(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.feed(0.2, "B", 1) == [SendLease(0, 1, (("B", 0, 1),), 1, 1)]
        assert core.feed(0.3, "C", 2) == [SendLease(0, 2, (("C", 0, 2),), 2, 2)]
        # It died at the first item of the second lease; its reply for the first got lost with it.
        assert core.lose(0.4, 0, "killed", started=(2, 1)) == [StartWorker(0, 1)]
        assert core.ready(0.5, 1) == [SendLease(1, 3, (("B", 0, 1),), 1, 1)]
        assert core.lose(0.6, 1, "killed", started=(3, 1)) == [StartWorker(0, 2)]
        assert core.ready(0.7, 2) == [SendLease(2, 4, (("B", 0, 1),), 1, 1, attempt=2)]
        assert core.reply(0.8, 2, 4, 1, ("b", 1)) == [
            Emit((("b", 0, 1),), 1),
            SendLease(2, 5, (("C", 0, 1),), 1, 1, attempt=2),
        ]
        # At this one two have died now.
        assert core.lose(0.9, 2, "killed", started=(5, 1)) == [Fail(0, 2, 2, 2, "killed", "item")]

    def test_state_is_lost_unless_it_may_be(self) -> None:
        core = Driven(Ending(), Pipe(64))
        core.feed(0.0, "A", 3)
        assert core.lose(0.1, 0, "killed") == [Fail(0, 0, 0, 0, "killed", "state")]

    def test_those_that_die_before_they_are_ready_are_counted(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        assert core.lose(0.1, 0, "killed", ready=False) == [StartWorker(0, 1)]
        assert core.lose(0.2, 1, "killed", ready=False) == [StartWorker(0, 2)]
        assert core.ready(0.3, 2) == []
        assert core.lose(0.4, 2, "killed") == [StartWorker(0, 3)]
        for worker in (3, 4, 5, 6):
            assert core.lose(0.5, worker, "killed", ready=False) == [StartWorker(0, worker + 1)]
        assert core.lose(0.6, 7, "killed", ready=False) == [Fail(0, 7, None, None, "killed", "setup")]
        # Two are enough where that has taken long.
        core = Driven(Processor(job), Pipe(64))
        assert core.lose(1.0, 0, "killed", ready=False) == [StartWorker(0, 1)]
        assert core.lose(1.9, 1, "killed", ready=False) == [StartWorker(0, 2)]
        assert core.lose(3.0, 2, "killed", ready=False) == [Fail(0, 2, None, None, "killed", "setup")]

    def test_those_that_are_killed_before_they_are_ready_may_have_bad_luck(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        for worker in range(8):
            now = worker / 4
            assert core.lose(now, worker, -9, ready=False, killed=True) == [StartWorker(0, worker + 1)]
        assert core.lose(2.0, 8, -9, ready=False, killed=True) == [Fail(0, 8, None, None, -9, "setup")]
        core = Driven(Processor(job), Pipe(64))
        for worker in range(4):
            assert core.lose(3.0 * worker, worker, -9, ready=False, killed=True) == [StartWorker(0, worker + 1)]
        assert core.lose(12.0, 4, -9, ready=False, killed=True) == [Fail(0, 4, None, None, -9, "setup")]

    def test_those_that_are_lost_with_their_hosts_before_they_are_ready(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        for worker in range(59):
            commands = core.lose(float(worker), worker, -9, ready=False, killed=True, host_lost=True)
            assert commands == [StartWorker(0, worker + 1)]
        # They count apart from those that are killed alone.
        assert core.lose(59.0, 59, -9, ready=False, killed=True) == [StartWorker(0, 60)]
        commands = core.lose(60.0, 60, -9, ready=False, killed=True, host_lost=True)
        assert commands == [Fail(0, 60, None, None, -9, "setup")]
        # Once a worker gets through, the count begins anew.
        core = Driven(Processor(job), Pipe(64))
        for worker in range(20):
            at = 20.0 * worker
            commands = core.lose(at, 2 * worker, -9, ready=False, killed=True, host_lost=True)
            assert commands == [StartWorker(0, 2 * worker + 1)]
            core.ready(at + 1, 2 * worker + 1)
            commands = core.lose(at + 2, 2 * worker + 1, -9, killed=True, host_lost=True)
            assert commands == [StartWorker(0, 2 * worker + 2)]

    def test_those_that_are_lost_with_their_hosts_while_they_have_nothing_to_do(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        for worker in range(100):
            commands = core.lose(float(worker), worker, "lost", killed=True, host_lost=True)
            assert commands == [StartWorker(0, worker + 1)]
            core.ready(worker + 0.5, worker + 1)

    def test_how_many_items_are_under_way(self) -> None:
        core = Driven(Processor(job), Pipe(64), Processor(job))
        assert core.machine.under_way == 0
        core.feed(0.0, "A", 1)
        assert core.machine.under_way == 1
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.machine.under_way == 1, "the other step has it"
        core.feed(0.2, "B", 1)
        assert core.machine.under_way == 2
        core.feed(0.3, "C", 50)
        assert core.machine.under_way == 2, "or more"
        core.reply(0.4, 1, 0, 1, ("b", 1))
        assert core.machine.under_way == 2

    def test_those_that_die_with_nothing_in_hand_are_counted(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        for worker in range(4):
            assert core.lose(worker / 10, worker, "exit") == [StartWorker(0, worker + 1)]
            core.ready(worker / 10 + 0.05, worker + 1)
        assert core.lose(0.5, 4, "exit") == [Fail(0, 4, None, None, "exit", "wait")]
        # What was done in between was worth it.
        core = Driven(Processor(job), Pipe(64))
        for worker in range(12):
            if worker % 4 == 3:
                core.feed(worker / 10, "A", 1)
                core.reply(worker / 10 + 0.01, worker, worker // 4, 1, ("a", 1))
            assert core.lose(worker / 10 + 0.02, worker, "exit") == [StartWorker(0, worker + 1)]
            core.ready(worker / 10 + 0.05, worker + 1)
        # So is a while without any.
        core = Driven(Processor(job), Pipe(64))
        for worker in range(20):
            assert core.lose(worker * 11.0, worker, "exit") == [StartWorker(0, worker + 1)]
            core.ready(worker * 11.0 + 0.1, worker + 1)
        # Where they may have been ended from outside, that has to go on for longer.
        core = Driven(Processor(job), Pipe(64))
        for worker in range(100):
            assert core.lose(worker / 10, worker, "kill", killed=True) == [StartWorker(0, worker + 1)]
            core.ready(worker / 10 + 0.05, worker + 1)
        assert core.lose(10.0, 100, "kill", killed=True) == [Fail(0, 100, None, None, "kill", "wait")]

    def test_one_that_dies_between_two_runs_is_replaced(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.end(0.0)
        assert core.lose(0.1, 0, "killed") == [StartWorker(0, 1)]
        core.handle(RunStarted(), 0.2)
        assert core.feed(0.3, "A", 1) == []
        assert core.ready(0.4, 1) == [SendLease(1, 0, (("A", 0, 1),), 1, 1)]


class Cancelling(TestCase):
    """The consumer wants no more."""

    def test_workers_are_told_and_waited_for(self) -> None:
        core = Driven(Processor(job), Pipe(64), Processor(job, workers=2), Pipe(64))
        core.feed(0.0, "A", 5)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.cancel(0.2) == [CancelLeases(0), CancelLeases(1)]
        # Items and an end that were under way are dropped.
        assert core.feed(0.3, "B", 1) == []
        assert core.end(0.4) == []
        assert core.reply(0.5, 0, 1, 2, ("b", 2)) == []
        assert core.reply(0.6, 1, 0, 0) == []
        assert core.reply(0.7, 0, 2, 0) == [Finish()]
        assert core.machine.over

    def test_with_no_lease_out_it_is_over_at_once(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        assert core.cancel(0.0) == [Finish()]
        assert core.cancel(0.1) == []

    def test_a_failure_while_cancelling_is_a_failure(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        core.cancel(0.1)
        assert core.lose(0.2, 0, "killed") == [StartWorker(0, 1), Finish()]
        core = Driven(Processor(job), Pipe(64))
        core.feed(0.0, "A", 1)
        core.cancel(0.1)
        assert core.raises(0.2, 0, 0, 0, "error") == [Fail(0, 0, 0, 0, "error")]
