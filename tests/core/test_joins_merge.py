"""Joins that merge, event by event.

Law: what leaves is ordered by the item that entered the fork, then by branch, then as the branch gave it; trailing
outputs come last, by branch; what a group that is still open has is let out when it is its turn.
"""

from __future__ import annotations

from typing import Any

from conveyor import BalancingFork, Join, Pipe, Processor, ReplicatingFork
from conveyor.core.commands import Emit, Finish, Grant, SendLease
from conveyor.core.data.pieces import Weave
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


class Replicated(TestCase):
    """Branches of a ReplicatingFork."""

    def two(self, pipe: int = 64) -> Driven:
        """A fork on whose two branches three items are, one of them at work."""
        core = Driven(
            Processor(job), Pipe(64), ReplicatingFork(2), Pipe(64), (Processor(job), Ending()), Pipe(pipe), Join()
        )
        core.give(0.1, 3)
        return core

    def test_a_branch_waits_for_its_turn(self) -> None:
        core = self.two()
        assert core.reply(0.2, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 1, (("b", 0, 1),), 1, 1)
        ]
        assert core.reply(0.3, 2, 1, 1, ("d", 2), group_sizes=[(2, 1)], seconds=1.0) == [
            SendLease(2, 2, (("b", 1, 2),), 1, 1)
        ]
        assert core.reply(0.4, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("b", 0, 1), ("c", 0, 1)), 2),
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
        ]
        # The second item gives nothing on the first branch.
        assert core.reply(0.5, 1, 1, 1, group_sizes=[(0, 1)], seconds=1.0) == [
            Emit((("d", 0, 2),), 2),
            SendLease(1, 2, (("b", 1, 2),), 1, 1),
        ]

    def test_what_waits_for_its_turn_and_is_heavy_presses_the_consumer(self) -> None:
        core = self.two()
        assert core.reply(0.2, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("b", 0, 1),), 1),
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
        ]
        # The results hold one of that weight, and have one: what is to go there next finds no room, so nothing will
        # come of which the consumer hears.
        assert core.reply(0.3, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)], seconds=1.0, size=1 << 30) == [
            Emit((), 0, 0.0),
            SendLease(2, 1, (("b", 0, 1),), 1, 1),
        ]
        assert core.consume(0.4, 1) == [Emit((("c", 0, 1),), 1, 0.0)]

    def test_groups_of_one_chunk_are_woven(self) -> None:
        core = self.two()
        core.reply(0.2, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)])
        assert core.reply(0.3, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)]) == [
            Emit((("b", 0, 1), ("c", 0, 1)), 2),
            SendLease(1, 1, (("b", 0, 2),), 2, 2),
        ]
        assert core.reply(0.4, 2, 1, 2, ("e", 3), group_sizes=[(2, 1), (1, 1)]) == []
        assert core.reply(0.5, 1, 1, 2, ("d", 2), group_sizes=[(1, 2)]) == [
            Emit(((Weave(((("d", 0, 2),), (("e", 0, 3),)), ([(1, 2)], [(2, 1), (1, 1)]), False), 0, 5),), 5)
        ]

    def test_groups_that_only_one_branch_fills_need_no_weaving(self) -> None:
        core = self.two()
        core.reply(0.2, 2, 0, 1, group_sizes=[(0, 1)])
        assert core.reply(0.3, 1, 0, 1, group_sizes=[(0, 1)]) == [SendLease(1, 1, (("b", 0, 2),), 2, 2)]
        assert core.reply(0.4, 2, 1, 2, ("e", 3), group_sizes=[(2, 1), (1, 1)]) == []
        assert core.reply(0.5, 1, 1, 2, group_sizes=[(0, 2)]) == [Emit((("e", 0, 3),), 3)]

    def test_a_group_still_open_is_let_out_when_it_is_its_turn(self) -> None:
        core = self.two()
        assert core.reply(0.2, 1, 0, 0, ("b", 1), group_sizes=[], final=False, starving=True, seconds=1.0) == [
            Emit((("b", 0, 1),), 1),
            Grant(1, 0, 65),
        ]
        assert core.reply(0.3, 2, 0, 0, ("c", 1), group_sizes=[], final=False, starving=True, seconds=1.0) == [
            Grant(2, 0, 64)
        ]
        assert core.reply(0.4, 1, 0, 1, ("d", 2), group_sizes=[(2, 1)], seconds=1.0) == [
            Emit((("d", 0, 2),), 2),
            Emit((("c", 0, 1),), 1),
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
        ]
        assert core.reply(0.5, 2, 0, 0, ("e", 1), group_sizes=[], final=False, seconds=1.0) == [Emit((("e", 0, 1),), 1)]
        assert core.reply(0.6, 2, 0, 1, group_sizes=[(0, 1)], seconds=1.0) == [SendLease(2, 1, (("b", 0, 1),), 1, 1)]

    def test_a_full_pipe_behind_cuts_groups(self) -> None:
        core = self.two(pipe=2)
        core.reply(0.2, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0)
        assert core.reply(0.3, 2, 0, 0, ("c", 1), group_sizes=[], final=False, starving=True, seconds=1.0) == [
            Emit((("c", 0, 1),), 1, 0.0),
            Grant(2, 0, 3),
        ]
        assert core.reply(0.4, 2, 0, 1, ("d", 2), group_sizes=[(2, 1)], seconds=1.0) == [
            SendLease(2, 1, (("b", 0, 1),), 1, 1)
        ]
        assert core.consume(0.5, 1) == [Emit((("d", 0, 1),), 1, 0.0)]
        assert core.consume(0.6, 2) == [Emit((("d", 1, 2),), 1)]

    def test_trailing_outputs_come_last_by_branch(self) -> None:
        core = Driven(
            Processor(job),
            Pipe(64),
            ReplicatingFork(3),
            Pipe(64),
            (Ending(), Processor(job), Ending()),
            Pipe(64),
            Join(),
        )
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.end(0.2) == [SendLease(1, 1, (), 0, 1, finish=True), SendLease(3, 1, (), 0, 1, finish=True)]
        assert core.reply(0.3, 3, 0, 1, ("d", 1), group_sizes=[(1, 1)]) == []
        assert core.reply(0.4, 3, 1, 0, ("z", 1), group_sizes=[]) == []
        assert core.reply(0.5, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)]) == [Emit((("b", 0, 1),), 1)]
        assert core.reply(0.6, 1, 1, 0, ("x", 1), group_sizes=[]) == []
        assert core.reply(0.7, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)]) == [
            Emit((("c", 0, 1),), 1),
            Emit((("d", 0, 1),), 1),
            Emit((("x", 0, 1),), 1),
            Emit((("z", 0, 1),), 1),
            Finish(),
        ]

    def test_part_joins(self) -> None:
        branch = Processor(job)
        core = Driven(
            Processor(job), Pipe(64), ReplicatingFork(4), Pipe(64), (branch,) * 4, Pipe(64), Join(2), Pipe(64), Join(2)
        )
        core.give(0.1, 2)
        # The branches 2 and 3 are one lane of the second merge, and wait there for the branches 0 and 1.
        assert core.reply(0.2, 3, 0, 1, ("d", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(3, 1, (("b", 0, 1),), 1, 1)
        ]
        assert core.reply(0.3, 4, 0, 1, ("e", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(4, 1, (("b", 0, 1),), 1, 1)
        ]
        assert core.reply(0.4, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
            Emit((("b", 0, 1),), 1),
        ]
        assert core.reply(0.5, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 1, (("b", 0, 1),), 1, 1),
            Emit((("c", 0, 1), ("d", 0, 1), ("e", 0, 1)), 3),
        ]


class Balanced(TestCase):
    """Branches of a BalancingFork."""

    def two(self, items: int, pipe: int = 64) -> Driven:
        """A fork on whose two branches so many items are, each in turn."""
        core = Driven(
            Processor(job), Pipe(64), BalancingFork(2), Pipe(8), (Processor(job), Ending()), Pipe(pipe), Join()
        )
        core.give(0.1, items)
        return core

    def test_the_route_of_the_items_is_the_order_of_the_groups(self) -> None:
        core = self.two(4)
        # The first branch has the first item; the second, being faster, all others.
        assert core.reply(0.2, 2, 0, 1, ("c", 2), group_sizes=[(2, 1)]) == [SendLease(2, 1, (("b", 1, 3),), 2, 3)]
        assert core.reply(0.3, 2, 1, 2, ("d", 2), group_sizes=[(1, 2)]) == []
        assert core.reply(0.4, 1, 0, 1, group_sizes=[(0, 1)]) == [Emit((("c", 0, 2),), 2), Emit((("d", 0, 2),), 2)]

    def test_a_group_still_open_is_let_out_when_it_is_its_turn(self) -> None:
        core = self.two(2)
        assert core.reply(0.2, 2, 0, 0, ("c", 1), group_sizes=[], final=False, starving=True) == [Grant(2, 0, 64)]
        assert core.reply(0.3, 1, 0, 0, ("b", 1), group_sizes=[], final=False) == [Emit((("b", 0, 1),), 1)]
        assert core.reply(0.4, 1, 0, 1, group_sizes=[(0, 1)]) == [Emit((("c", 0, 1),), 1)]
        assert core.reply(0.5, 2, 0, 1, ("d", 1), group_sizes=[(1, 1)]) == [Emit((("d", 0, 1),), 1)]

    def test_a_full_pipe_behind_cuts_groups(self) -> None:
        core = self.two(2, pipe=2)
        assert core.reply(0.2, 1, 0, 0, ("b", 1), group_sizes=[], final=False, starving=True) == [
            Emit((("b", 0, 1),), 1),
            Grant(1, 0, 3),
        ]
        assert core.reply(0.3, 1, 0, 1, ("d", 2), group_sizes=[(2, 1)]) == [Emit((("d", 0, 1),), 1, 0.0)]
        assert core.reply(0.4, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)]) == []
        assert core.consume(0.5, 2) == [Emit((("d", 1, 2),), 1), Emit((("c", 0, 1),), 1, 0.0)]
        assert core.consume(0.6, 1) == []

    def test_trailing_outputs_come_last(self) -> None:
        core = self.two(2)
        assert core.end(0.2) == [SendLease(2, 1, (), 0, 1, finish=True)]
        assert core.reply(0.3, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)]) == []
        assert core.reply(0.4, 2, 1, 0, ("z", 2), group_sizes=[]) == []
        assert core.reply(0.5, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)]) == [
            Emit((("b", 0, 1),), 1),
            Emit((("c", 0, 1),), 1),
            Emit((("z", 0, 2),), 2),
            Finish(),
        ]

    def test_trailing_outputs_come_by_branch(self) -> None:
        branches = (Ending(), Ending(name="other"))
        core = Driven(Processor(job), Pipe(64), BalancingFork(2), Pipe(8), branches, Pipe(64), Join())
        assert core.end(0.0) == [SendLease(1, 0, (), 0, 1, finish=True), SendLease(2, 0, (), 0, 1, finish=True)]
        assert core.reply(0.1, 2, 0, 0, ("z", 1), group_sizes=[]) == []
        assert core.reply(0.2, 1, 0, 0, ("y", 1), group_sizes=[]) == [
            Emit((("y", 0, 1),), 1),
            Emit((("z", 0, 1),), 1),
            Finish(),
        ]

    def test_part_joins_know_the_route_of_their_branches_alone(self) -> None:
        branches = tuple(Processor(job, name=name) for name in "abcd")
        core = Driven(
            Processor(job), Pipe(64), BalancingFork(4), Pipe(8), branches, Pipe(64), Join(2), Pipe(64), Join()
        )
        core.give(0.1, 4)
        assert core.reply(0.2, 4, 0, 1, ("e", 1), group_sizes=[(1, 1)]) == []
        assert core.reply(0.3, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)]) == []
        assert core.reply(0.4, 3, 0, 1, ("d", 1), group_sizes=[(1, 1)]) == []
        assert core.reply(0.5, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)]) == [
            Emit((("b", 0, 1),), 1),
            Emit((("c", 0, 1),), 1),
            Emit((("d", 0, 1),), 1),
            Emit((("e", 0, 1),), 1),
        ]


class Free(TestCase):
    """Without order."""

    def test_what_comes_goes_on(self) -> None:
        core = Driven(
            Processor(job),
            Pipe(64),
            ReplicatingFork(2),
            Pipe(64),
            (Processor(job), Processor(job)),
            Pipe(2),
            Join(),
            Pipe(2),
            ordered=False,
        )
        core.give(0.1, 3)
        assert core.reply(0.2, 2, 0, 1, ("c", 1), seconds=1.0) == [
            Emit((("c", 0, 1),), 1),
            SendLease(2, 1, (("b", 0, 1),), 1, 1),
        ]
        assert core.reply(0.3, 1, 0, 1, ("b", 1), seconds=1.0) == [
            Emit((("b", 0, 1),), 1, 0.0),
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
        ]
        # The results hold two: the next waits.
        assert core.reply(0.4, 1, 1, 1, ("d", 1), seconds=1.0) == [SendLease(1, 2, (("b", 1, 2),), 1, 1)]
        assert core.consume(0.5, 1) == [Emit((("d", 0, 1),), 1, 0.0)]
