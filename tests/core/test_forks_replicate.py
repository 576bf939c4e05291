"""A ReplicatingFork in the core, event by event.

Law: an item goes to all branches at once, when the fullest of them has room for it; nothing is copied, each branch
gets the same piece.
"""

from __future__ import annotations

from typing import Any

from conveyor import Join, Pipe, Processor, ReplicatingFork
from conveyor.core.commands import Emit, Finish, Grant, SendLease
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Replicate(TestCase):
    """Items on their way into the branches."""

    def forked(self, size: int = 64, **settings: Any) -> Driven:
        """One step, a fork with a step of its own on both branches, a merge."""
        branch = Processor(job)
        return Driven(
            Processor(job),
            Pipe(64),
            ReplicatingFork(2),
            (Pipe(size), Pipe(4)),
            (branch, branch),
            Pipe(64),
            Join(),
            **settings,
        )

    def test_each_branch_has_each_item(self) -> None:
        core = self.forked()
        assert core.feed(0.0, "A", 1) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.reply(0.1, 0, 0, 1, ("a", 1)) == [
            SendLease(1, 0, (("a", 0, 1),), 1, 1),
            SendLease(2, 0, (("a", 0, 1),), 1, 1),
        ]
        assert core.reply(0.2, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)]) == [Emit((("b", 0, 1),), 1)]
        assert core.reply(0.3, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)]) == [Emit((("c", 0, 1),), 1)]
        assert core.end(0.4) == [Finish()]

    def test_the_fullest_branch_decides(self) -> None:
        core = self.forked()
        core.give(0.1, 8)
        # The second branch holds 4, and one in the hands of its worker.
        assert core.machine.steps[1].held == 4 and core.machine.steps[2].held == 4
        assert core.node(1).free_capacity(0) == 64 - 3
        # So the first branch, which has room for 60 more, gets none either.
        assert core.reply(0.2, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("b", 0, 1),), 1),
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
        ]
        assert core.reply(0.3, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("c", 0, 1),), 1),
            SendLease(2, 1, (("b", 0, 1),), 1, 1),
        ]
        assert core.node(1).free_capacity(0) == 64 - 2

    def test_branches_without_a_pipe_share_that_in_front(self) -> None:
        core = Driven(Processor(job), Pipe(3), ReplicatingFork(2), Processor(job), Pipe(64), Join())
        core.feed(0.0, "A", 1)
        # One item is in the hands of each worker behind the fork, so the pipe is empty; and one in those before it.
        assert core.reply(0.1, 0, 0, 0, ("a", 1), final=False, starving=True) == [
            Grant(0, 0, 3),
            SendLease(1, 0, (("a", 0, 1),), 1, 1),
            SendLease(2, 0, (("a", 0, 1),), 1, 1),
        ]
        assert core.node(1).free_capacity(0) == 3
        assert core.reply(0.2, 0, 0, 1, ("b", 3)) == []
        assert core.node(1).free_capacity(0) == 0
        assert core.reply(0.3, 1, 0, 1, ("c", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("c", 0, 1),), 1),
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
        ]
        # Only when the slower branch has taken an item there is room for another.
        assert core.node(1).free_capacity(0) == 0
        assert core.reply(0.4, 2, 0, 1, ("d", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("d", 0, 1),), 1),
            SendLease(2, 1, (("b", 0, 1),), 1, 1),
        ]
        assert core.node(1).free_capacity(0) == 1
        assert core.reply(0.5, 1, 1, 1, ("e", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("e", 0, 1),), 1),
            SendLease(1, 2, (("b", 1, 2),), 1, 1),
        ]
        assert core.reply(0.6, 2, 1, 1, ("f", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("f", 0, 1),), 1),
            SendLease(2, 2, (("b", 1, 2),), 1, 1),
        ]

    def test_the_end_goes_down_every_branch_after_the_last_item(self) -> None:
        core = self.forked()
        core.give(0.1, 6)
        assert core.end(0.2) == []
        fork = core.node(1)
        assert fork.ended and fork.queue.items == 1
        for lease in range(6):
            core.reply(1.0 + lease, 1, lease, 1, group_sizes=[(0, 1)], seconds=1.0)
            commands = core.reply(1.5 + lease, 2, lease, 1, group_sizes=[(0, 1)], seconds=1.0)
        assert commands == [Finish()]

    def test_without_order_nothing_is_grouped(self) -> None:
        core = self.forked(ordered=False)
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.reply(0.2, 2, 0, 1, ("c", 1)) == [Emit((("c", 0, 1),), 1)]
        assert core.reply(0.3, 1, 0, 1, ("b", 1)) == [Emit((("b", 0, 1),), 1)]

    def test_cancelling_empties_it(self) -> None:
        core = self.forked()
        core.give(0.1, 8)
        assert core.node(1).queue.items == 3
        core.cancel(0.2)
        assert core.node(1).queue.items == 0
