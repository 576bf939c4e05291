"""The results: where the graph ends.

Law: a sink hands out at once what arrives.  At most `bound` results are with the consumer and not yet taken.  The
consumer reports what it has taken when that is worth a message, and before that where somebody may wait for room.
"""

from __future__ import annotations

from conveyor.core.commands import REPORT_SECONDS, Emit, Finish
from conveyor.core.data.group_sizes import GroupSizes
from conveyor.core.data.pieces import Piece
from conveyor.core.nodes.base import Node, NodeContext, Weighings
from conveyor.core.tuning.chunk_size import MAX_CHUNK_ITEMS
from conveyor.graph.plan import SinkNode

# Where results are heavy, the pipe holds fewer than its bound, and the next ones may find it full.  The consumer then
# reports after so many seconds without a result.
REPORT_SOON_SECONDS = 0.005


class Sink(Node):
    """The running form of a `SinkNode`."""

    def __init__(self, node: SinkNode, context: NodeContext) -> None:
        super().__init__(node.index, context, node.bound_bytes)
        self.bound = node.bound
        self.waiting = 0
        # How many results were handed out; and how many when the source had ended and nothing was under way any more
        # but calls of `finish`, or None.  What comes later is what those give.
        self.emitted = 0
        self.settled_at: int | None = None
        # Whether the consumer was asked to report at once, and has not reported since.
        self.flush_requested = False
        self.ended = False

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        return self.most(self.bound, weighed) - self.waiting

    def preferred_chunk(self) -> int:
        return max(1, min(MAX_CHUNK_ITEMS, self.bound // 4))

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        if items:
            self.waiting += items
            self.emitted += items
            self.context.command(Emit(pieces, items, self._report_within_seconds()))

    def _report_within_seconds(self) -> float:
        most = self.most(self.bound, weighed=True)
        if self.waiting >= most:
            self.flush_requested = True
            return 0.0
        return REPORT_SOON_SECONDS if most < self.bound else REPORT_SECONDS

    def weigh(self, port: int, items: int, size: int) -> Weighings:
        super().weigh(port, items, size)
        # A join weighs items that wait there, and may find no capacity for them.
        if self.waiting >= self.most(self.bound, weighed=True):
            self.request_flush()
        return ()

    def makes_room(self) -> bool:
        self.request_flush()
        return self.waiting > 0

    def request_flush(self) -> None:
        if self.waiting and not self.flush_requested:
            self.flush_requested = True
            self.context.command(Emit((), 0, 0.0))

    def consumed(self, items: int) -> None:
        """Take in that the consumer took `items` results."""
        self.waiting -= items
        self.flush_requested = False
        self.wake_upstream()

    def end(self, port: int) -> None:
        self.ended = True
        self.context.command(Finish())

    def pump(self) -> None:
        pass

    def clear(self) -> None:
        pass

    def check(self) -> None:
        assert 0 <= self.waiting <= self.bound + self.in_flight, "more results wait than the pipe holds"
