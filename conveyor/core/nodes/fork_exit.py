"""The end of a fork: the groups of the items that entered it give way to the groups around it.

Law: holds no item; what comes goes on at once.
"""

from __future__ import annotations

from conveyor.core.data.group_sizes import GroupSizes, Regroup
from conveyor.core.data.pieces import Piece
from conveyor.core.nodes.base import Node, Output, Surroundings
from conveyor.graph.plan import LeaveNode


class Leave(Node):
    """The running form of a `LeaveNode`."""

    def __init__(self, node: LeaveNode, surroundings: Surroundings) -> None:
        super().__init__(node.index, surroundings)
        self.tracked = node.tracked
        self.output: Output
        self._regroup = Regroup()

    def connect(self, output: Output) -> None:
        """Take in where everything goes."""
        self.output = output

    def surrounded(self, runs: GroupSizes, items: int) -> None:
        """Take in how `items` more items that entered the fork are grouped around it."""
        self._regroup.push(runs, items)
        self.wake()

    def room(self, port: int, weighed: bool = True) -> int:
        return self.output.room(weighed)

    def weigh(self, port: int, items: int, size: int) -> None:
        self.output.weigh(items, size)

    def press(self) -> None:
        self.output.press()

    def need(self) -> int:
        return self.output.need()

    def shares(self) -> bool:
        return self.output.shares()

    def shared_held(self) -> int:
        return self.output.held()

    def grain(self) -> int:
        return self.output.node.grain()

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, runs: GroupSizes | None) -> None:
        self.output.push(pieces, items, self._regroup.feed(runs or [], items) if self.tracked else None)

    def end(self, port: int) -> None:
        self.output.end()

    def pump(self) -> None:
        if self.tracked:
            self.output.push((), 0, self._regroup.feed([], 0))
        self.wake_feeders()

    def clear(self) -> None:
        self._regroup.clear()
