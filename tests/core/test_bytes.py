"""Bounds in bytes, event by event: what each kind of pipe lets in of items that are heavy.

Law: a pipe holds what its bytes hold by the mean weight of what came its way, never more than its bound in items, and
always what the node behind it needs.
"""

from __future__ import annotations

from typing import Any

from conveyor import BalancingFork, Join, Pipe, Processor, ReplicatingFork
from conveyor.core.commands import Emit, Grant, Pull, SendLease
from conveyor.core.events import CreditReturned
from conveyor.core.nodes.sink import REPORT_SOON_SECONDS
from conveyor.core.tuning.chunk_size import first_pull
from tests.helpers.driving import Driven, plan_of
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


HEAVY = 300_000
SLIM = Pipe(maxbytes=1_000_000)


class Steps(TestCase):
    """The pipe in front of a Processor, and the results."""

    def test_the_source_may_give_as_much_as_the_first_pipe_holds(self) -> None:
        assert first_pull(plan_of(Processor(job), SLIM)) == 64
        core = Driven(Processor(job), SLIM)
        assert core.feed(0.0, "A", 1, size=HEAVY) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        # Three of them fill the pipe, and 63 more may come.
        assert core.machine.first.free_capacity(0) == 3 and core.pulls == []
        core.feed(0.1, "B", 63, size=63 * 8)
        core.reply(0.2, 0, 0, 1, ("a", 1), size=HEAVY)
        assert core.machine.first.free_capacity(0) == 4 - 62

    def test_what_has_been_given_back_is_allowed_anew_by_weight(self) -> None:
        core = Driven(Processor(job), SLIM)
        core.feed(0.0, "A", 1, size=HEAVY)
        core.handle(CreditReturned(63), 0.1)
        assert core.pulls == [Pull(3)]

    def test_a_step_stops_when_the_pipe_behind_it_is_full(self) -> None:
        core = Driven(Processor(job), SLIM)
        core.feed(0.0, "A", 10)
        for lease in range(3):
            assert core.reply(0.1 + lease, 0, lease, 1, (lease, 1), size=HEAVY, seconds=1.0) == [
                Emit(((lease, 0, 1),), 1, (REPORT_SOON_SECONDS, REPORT_SOON_SECONDS, 0.0)[lease]),
                SendLease(0, lease + 1, (("A", lease + 1, lease + 2),), 1, 1),
            ]
        # Three wait, and one more is in the hand of the worker.
        assert core.reply(4.0, 0, 3, 1, ("d", 1), size=HEAVY, seconds=1.0) == [Emit((("d", 0, 1),), 1, 0.0)]
        assert core.consume(5.0, 1) == [SendLease(0, 4, (("A", 4, 5),), 1, 1)]

    def test_an_item_heavier_than_the_pipe_goes_through_alone(self) -> None:
        core = Driven(Processor(job), Pipe(maxbytes=1))
        core.feed(0.0, "A", 3, size=3 * HEAVY)
        assert core.machine.first.free_capacity(0) == 1 - 2
        assert core.reply(0.1, 0, 0, 1, ("a", 1), size=HEAVY) == [
            Emit((("a", 0, 1),), 1, 0.0),
            SendLease(0, 1, (("A", 1, 2),), 1, 1),
        ]
        assert core.reply(0.2, 0, 1, 1, ("b", 1), size=HEAVY) == [Emit((("b", 0, 1),), 1, 0.0)]
        assert core.consume(0.3, 1) == [SendLease(0, 2, (("A", 2, 3),), 1, 1)]

    def test_a_batch_heavier_than_the_pipe_finds_room(self) -> None:
        core = Driven(Processor(job), Pipe(maxbytes=1000), Processor(job, batch=4))
        core.feed(0.0, "A", 1)
        assert core.reply(0.1, 0, 0, 0, ("a", 1), final=False, starving=True, size=HEAVY) == [Grant(0, 0, 4)]
        assert core.node(1).free_capacity(0) == 4 - 1

    def test_the_bound_in_items_holds_as_well(self) -> None:
        core = Driven(Processor(job), Pipe(2, maxbytes=1_000_000), Processor(job))
        core.feed(0.0, "A", 1, size=8)
        assert [node.free_capacity(0) for node in core.machine.steps] == [2, 2]

    def test_chunks_are_a_quarter_of_the_pipe(self) -> None:
        core = Driven(Processor(job), Pipe(maxbytes=80))
        core.feed(0.0, "A", 8)
        for lease, items in enumerate([1, 2]):
            core.reply(0.1, 0, lease, items)
        # Two more would be 32 bytes.
        assert core.machine.first.chunk_sizer.size == 2


class ForksAndJoins(TestCase):
    """The pipes in front of them, and those of the branches."""

    def test_a_fork_lets_in_what_its_own_pipe_holds(self) -> None:
        for fork in (ReplicatingFork(2), BalancingFork(2)):
            core = Driven(Processor(job), SLIM, fork, Pipe(maxbytes=700_000), Processor(job, batch=2), Pipe(), Join())
            core.feed(0.0, "A", 1)
            core.reply(0.1, 0, 0, 0, ("a", 1), final=False, starving=True, size=HEAVY)
            first, other = core.node(2), core.node(3)
            assert core.node(1).item_weight.limit(65536) == 3
            assert [each.item_weight.limit(65536) for each in (first, other)] == [2, 2]

    def test_each_branch_of_a_join_is_weighed_by_itself(self) -> None:
        core = Driven(
            Processor(job), Pipe(), ReplicatingFork(2), Pipe(), Processor(job), SLIM, Join(), Pipe(maxbytes=900_000)
        )
        core.give(0.0, 2)
        merge = core.node(4)
        core.reply(0.1, 2, 0, 1, ("b", 1), group_sizes=[(1, 1)], size=HEAVY)
        # The first branch has given nothing yet.
        assert [merge.free_capacity(port) for port in (0, 1)] == [64, 3 - 1]
        core.reply(0.2, 1, 0, 1, ("a", 1), group_sizes=[(1, 1)], size=8)
        assert [merge.free_capacity(port) for port in (0, 1)] == [65536, 3]
        # Behind it stands the mean of both.
        assert core.machine.sink.item_weight.bytes == HEAVY - (HEAVY - 8) * 0.2

    def test_a_row_weighs_what_its_items_weigh(self) -> None:
        core = Driven(Processor(job), Pipe(), ReplicatingFork(2), Pipe(), Processor(job), Pipe(), Join(how="zip"), SLIM)
        core.give(0.0, 2)
        core.reply(0.1, 1, 0, 1, ("a", 1), group_sizes=[(1, 1)], size=HEAVY)
        core.reply(0.2, 2, 0, 1, ("b", 1), group_sizes=[(1, 1)], size=200_000)
        assert core.machine.sink.item_weight.bytes == HEAVY + 200_000 * 0.5
        assert core.machine.sink.waiting == 1
        for _ in range(20):
            core.machine.sink.weigh(0, 1, HEAVY + 200_000)
        assert core.machine.sink.item_weight.limit(65536) == 2
