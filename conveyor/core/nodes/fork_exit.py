"""The end of a fork: the groups of the items that entered it give way to the groups around it.

Law: holds no item; what comes goes on at once.
"""

from __future__ import annotations

from conveyor.core.data.group_sizes import GroupSizes, Regroup
from conveyor.core.data.pieces import Piece
from conveyor.core.nodes.base import Node, NodeContext, Output
from conveyor.graph.plan import LeaveNode


class ForkExit(Node):
    """The running form of a `LeaveNode`."""

    def __init__(self, node: LeaveNode, context: NodeContext) -> None:
        super().__init__(node.index, context)
        self.tracked = node.tracked
        self.output: Output
        self._regroup = Regroup()

    def connect(self, output: Output) -> None:
        """Take in where everything goes."""
        self.output = output
        self.min_batch = output.node.min_batch

    def push_outer_groups(self, group_sizes: GroupSizes, items: int) -> None:
        """Take in how `items` more items that entered the fork are grouped around it."""
        self._regroup.push(group_sizes, items)
        self.wake()

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        return self.output.free_capacity(weighed)

    def weigh(self, port: int, items: int, size: int) -> None:
        self.output.weigh(items, size)

    def request_flush(self) -> None:
        self.output.node.request_flush()

    def shares_pipe(self) -> bool:
        return self.output.node.shares_pipe()

    def shared_pipe_items(self) -> int:
        return self.output.node.shared_pipe_items()

    def preferred_chunk(self) -> int:
        return self.output.node.preferred_chunk()

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        self.output.push(pieces, items, self._regroup.feed(group_sizes or [], items) if self.tracked else None)

    def end(self, port: int) -> None:
        self.output.end()

    def pump(self) -> None:
        if self.tracked:
            self.output.push((), 0, self._regroup.feed([], 0))
        self.wake_upstream()

    def clear(self) -> None:
        self._regroup.clear()
