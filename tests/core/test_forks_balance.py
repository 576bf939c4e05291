"""A BalancingFork in the core, event by event.

Law: every unit of items goes to one branch, in turn, passing over a branch that has no room; with `strict` none is
passed over.
"""

from __future__ import annotations

from typing import Any

from conveyor import BalancingFork, Join, Pipe, Processor
from conveyor.core.commands import Emit, Finish, Grant, SendLease
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Balance(TestCase):
    """Items on their way into the branches."""

    def forked(self, *branches: Any, pipe: Pipe | None = None, **settings: Any) -> Driven:
        """One step, a fork with these branches, a merge."""
        rows = [] if pipe is None else [pipe]
        return Driven(
            Processor(job), Pipe(64), BalancingFork(len(branches)), *rows, branches, Pipe(64), Join(), **settings
        )

    def fill(self, core: Driven, items: int) -> Any:
        """Let the first step give so many items at once."""
        return core.give(0.1, items)

    def test_in_turn(self) -> None:
        core = self.forked(Processor(job), Processor(job), Processor(job), pipe=Pipe(2))
        assert self.fill(core, 5) == [
            Grant(0, 0, 65),
            SendLease(1, 0, (("a", 0, 1),), 1, 1),
            SendLease(2, 0, (("b", 0, 1),), 1, 1),
            SendLease(3, 0, (("b", 1, 2),), 1, 1),
        ]
        # Each branch has one item, of which nobody knows how long it takes: what is left waits for whoever is first.
        assert [step.held for step in core.machine.steps] == [0, 0, 0, 0]
        assert core.node(1).queue.items == 2
        assert core.reply(0.2, 2, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 1, (("b", 2, 3),), 1, 1)
        ]
        assert core.reply(0.3, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("b", 0, 1),), 1),
            Emit((("b", 0, 1),), 1),
            SendLease(1, 1, (("b", 3, 4),), 1, 1),
        ]

    def test_a_stalled_branch_is_passed_over(self) -> None:
        core = self.forked(Processor(job), Processor(job), pipe=Pipe(1))
        assert self.fill(core, 8) == [
            Grant(0, 0, 65),
            SendLease(1, 0, (("a", 0, 1),), 1, 1),
            SendLease(2, 0, (("b", 0, 1),), 1, 1),
        ]
        # Each branch has one item at work, and none in its pipe while an item takes long; the rest waits in front.
        assert core.node(1).queue.items == 6
        assert core.reply(0.2, 2, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 1, (("b", 1, 2),), 1, 1)
        ]
        assert core.reply(0.3, 2, 1, 1, ("c", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 2, (("b", 2, 3),), 1, 1)
        ]
        assert core.reply(0.4, 2, 2, 1, ("d", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 3, (("b", 3, 4),), 1, 1)
        ]
        # What the second branch gave waits for the first item, which is in the first branch.
        assert core.reply(0.5, 1, 0, 1, ("e", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("e", 0, 1),), 1),
            Emit((("b", 0, 1),), 1),
            Emit((("c", 0, 1),), 1),
            Emit((("d", 0, 1),), 1),
            SendLease(1, 1, (("b", 4, 5),), 1, 1),
        ]

    def test_a_branch_without_a_pipe_is_stalled_while_its_worker_is_busy(self) -> None:
        other = Processor(job, name="other")
        core = self.forked(Processor(job), other)
        assert self.fill(core, 3) == [
            Grant(0, 0, 64),
            SendLease(1, 0, (("a", 0, 1),), 1, 1),
            SendLease(2, 0, (("b", 0, 1),), 1, 1),
        ]
        assert core.node(1).queue.items == 1
        assert core.reply(0.2, 2, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 1, (("b", 1, 2),), 1, 1)
        ]

    def test_whole_batches(self) -> None:
        first, second = Processor(job, batch=2), Processor(job, batch=2)
        core = self.forked(first, second, pipe=Pipe(4))
        assert core.node(1).batch_size == 2 and not core.node(1).strict
        assert self.fill(core, 3) == [Grant(0, 0, 64), SendLease(1, 0, (("a", 0, 1), ("b", 0, 1)), 2, 1)]
        assert core.node(1).queue.items == 1
        assert core.feed(0.2, "B", 1) == [SendLease(0, 1, (("B", 0, 1),), 1, 1)]
        assert core.reply(0.3, 0, 1, 1, ("b", 2)) == [SendLease(2, 0, (("b", 1, 2), ("b", 0, 1)), 2, 1)]
        # The last batch may be short, and is the first branch's, whoever is free.
        assert core.end(0.4) == []
        assert core.reply(0.5, 2, 0, 1, ("e", 1), group_sizes=[(1, 1)], seconds=1.0) == []
        assert core.reply(0.6, 1, 0, 1, ("f", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("f", 0, 1),), 1),
            Emit((("e", 0, 1),), 1),
            SendLease(1, 1, (("b", 1, 2),), 1, 1),
        ]

    def test_strictly_in_turn_where_a_batch_stands_behind(self) -> None:
        core = Driven(
            Processor(job),
            Pipe(64),
            BalancingFork(2),
            Pipe(1),
            (Processor(job), Processor(job)),
            Pipe(64),
            (Processor(job, batch=2), Processor(job, batch=2)),
            Pipe(64),
            Join(),
        )
        assert core.node(1).batch_size == 1 and core.node(1).strict
        assert self.fill(core, 6) == [
            Grant(0, 0, 65),
            SendLease(1, 0, (("a", 0, 1),), 1, 1),
            SendLease(2, 0, (("b", 0, 1),), 1, 1),
        ]
        assert core.node(1).queue.items == 2
        # The second branch has room, but it is the first one's turn.
        assert core.reply(0.2, 2, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 1, (("b", 2, 3),), 1, 1)
        ]
        assert core.node(1).queue.items == 2
        assert core.reply(0.3, 1, 0, 1, ("c", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(1, 1, (("b", 1, 2),), 1, 1)
        ]
        assert core.node(1).queue.items == 0

    def test_the_end_goes_down_every_branch(self) -> None:
        core = self.forked(Processor(job), Processor(job), pipe=Pipe(4))
        self.fill(core, 1)
        assert core.end(0.2) == []
        assert core.reply(0.3, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)]) == [Emit((("b", 0, 1),), 1), Finish()]

    def test_without_order_nothing_waits_for_another_branch(self) -> None:
        core = self.forked(Processor(job), Processor(job), pipe=Pipe(4), ordered=False)
        self.fill(core, 2)
        assert core.reply(0.3, 2, 0, 1, ("c", 1)) == [Emit((("c", 0, 1),), 1)]
        assert core.reply(0.4, 1, 0, 1, ("b", 1)) == [Emit((("b", 0, 1),), 1)]
