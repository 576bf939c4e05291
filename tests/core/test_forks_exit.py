"""The end of a fork, event by event.

Law: holds no item; the groups of the items that entered the fork give way to those around it.
"""

from __future__ import annotations

from typing import Any

from conveyor import Join, Pipe, Processor, ReplicatingFork
from conveyor.core.commands import Emit, Finish, SendLease
from conveyor.core.data.pieces import Piece
from conveyor.core.nodes.base import Node, Output
from conveyor.core.nodes.forks import ForkExit
from conveyor.graph.plan import LeaveNode, Target
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Recorder(Node):
    """Stands behind the node under test, and for the machine around it."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        super().__init__(1, self)
        self.min_batch = 2

    def wake(self, node: Node | None = None) -> None:
        if node is not None:
            self.log.append("wake")

    def command(self, command: Any) -> None:
        raise AssertionError(command)

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        return 5 if weighed else 7

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: Any) -> None:
        self.log.append((pieces, items, group_sizes))

    def end(self, port: int) -> None:
        self.log.append("end")

    def preferred_chunk(self) -> int:
        return 3

    def pump(self) -> None:
        raise AssertionError("not the one under test")

    def clear(self) -> None:
        raise AssertionError("not the one under test")


class Alone(TestCase):
    """A ForkExit with nothing around it."""

    def leave(self, tracked: bool) -> tuple[ForkExit, list[Any]]:
        behind = Recorder()
        leave = ForkExit(LeaveNode(0, 0, tracked, Target(1)), behind)
        leave.connect(Output(behind, 0))
        return leave, behind.log

    def test_around_it_is_another_fork(self) -> None:
        leave, log = self.leave(tracked=True)
        # Of the items that entered, the first two are one group of the fork around, the third another.
        leave.push_outer_groups([(2, 1), (1, 1)], 3)
        leave.push(0, (("a", 0, 4),), 4, [(3, 1), (1, 1)])
        leave.push(0, (("b", 0, 1),), 1, [])
        leave.push(0, (), 0, [(1, 1)])
        assert log == ["wake", ((("a", 0, 4),), 4, [(4, 1)]), ((("b", 0, 1),), 1, []), ((), 0, [(1, 1)])]

    def test_a_group_around_into_which_nothing_came(self) -> None:
        leave, log = self.leave(tracked=True)
        leave.push_outer_groups([(0, 2)], 0)
        leave.pump()
        assert log == ["wake", ((), 0, [(0, 2)])]

    def test_around_it_is_nothing(self) -> None:
        leave, log = self.leave(tracked=False)
        leave.push(0, (("a", 0, 4),), 4, [(3, 1), (1, 1)])
        leave.push(0, (), 0, [(0, 1)])
        leave.end(0)
        leave.pump()
        assert log == [((("a", 0, 4),), 4, None), "end"]

    def test_it_is_as_large_as_what_stands_behind_it(self) -> None:
        leave, _ = self.leave(tracked=True)
        assert (
            leave.free_capacity(0),
            leave.free_capacity(0, weighed=False),
            leave.preferred_chunk(),
            leave.min_batch,
        ) == (5, 7, 3, 2)
        assert not leave.shares_pipe() and leave.shared_pipe_items() == 0

    def test_cancelling_forgets_the_groups(self) -> None:
        leave, log = self.leave(tracked=True)
        leave.push_outer_groups([(0, 2)], 0)
        leave.clear()
        leave.pump()
        assert log == ["wake"]


class Nested(TestCase):
    """A fork in a branch of another."""

    def test_the_outer_merge_has_the_groups_of_the_outer_fork(self) -> None:
        core = Driven(
            Processor(job),
            Pipe(16),
            ReplicatingFork(2),
            Pipe(16),
            (Processor(job), Pipe()),
            Pipe(16),
            (ReplicatingFork(2), Pipe()),
            Pipe(16),
            (Processor(job), Processor(job), Pipe(16)),
            Pipe(16),
            Join(),
        )
        core.feed(0.0, "A", 1)
        assert core.reply(0.1, 0, 0, 1, ("a", 2)) == [SendLease(1, 0, (("a", 0, 1),), 1, 1)]
        # The first item of the outer fork gives nothing, the second two items: for two branches each.
        assert core.reply(0.2, 1, 0, 1, group_sizes=[(0, 1)], seconds=1.0) == [
            SendLease(1, 1, (("a", 1, 2),), 1, 1),
            Emit((("a", 0, 1),), 1),
        ]
        assert core.reply(0.3, 1, 1, 1, ("b", 2), group_sizes=[(2, 1)], seconds=1.0) == [
            SendLease(2, 0, (("b", 0, 1),), 1, 1),
            SendLease(3, 0, (("b", 0, 1),), 1, 1),
        ]
        assert core.reply(0.4, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(2, 1, (("b", 1, 2),), 1, 1),
            Emit((("c", 0, 1),), 1),
        ]
        assert core.reply(0.5, 3, 0, 1, ("d", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            SendLease(3, 1, (("b", 1, 2),), 1, 1),
            Emit((("d", 0, 1),), 1),
        ]
        assert core.reply(0.6, 2, 1, 1, ("e", 1), group_sizes=[(1, 1)], seconds=1.0) == [Emit((("e", 0, 1),), 1)]
        assert core.reply(0.7, 3, 1, 1, ("f", 1), group_sizes=[(1, 1)], seconds=1.0) == [
            Emit((("f", 0, 1), ("a", 1, 2)), 2)
        ]
        assert core.end(0.8) == [Finish()]
