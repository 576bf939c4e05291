"""The results: where the graph ends.

Law: what arrives is handed out at once; at most `bound` results are with the consumer and not yet taken.  A consumer
says what it has taken when that is worth a message, and before that only where the room may be waited for.
"""

from __future__ import annotations

from conveyor.core.commands import Emit, Finish
from conveyor.core.groups import Runs
from conveyor.core.node import Node, Surroundings
from conveyor.core.payloads import Piece
from conveyor.core.sizing import LARGEST
from conveyor.plan import SinkNode

# Where a pipe holds fewer results than its bound because they are heavy, the next ones may find it full: so soon the
# consumer says what it has taken, where nothing more comes.
TELL_SECONDS = 0.005


class Sink(Node):
    """The running form of a `SinkNode`."""

    def __init__(self, node: SinkNode, surroundings: Surroundings) -> None:
        super().__init__(node.index, surroundings, node.bound_bytes)
        self.bound = node.bound
        self.waiting = 0
        self.pressed = False
        self.ended = False

    def room(self, port: int, weighed: bool = True) -> int:
        return self.most(self.bound, weighed) - self.waiting

    def grain(self) -> int:
        return max(1, min(LARGEST, self.bound // 4))

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, runs: Runs | None) -> None:
        if items:
            self.waiting += items
            self.surroundings.command(Emit(pieces, items, self._tell_within()))
            self.pressed = False

    def _tell_within(self) -> float | None:
        most = self.most(self.bound, weighed=True)
        if self.pressed or self.waiting >= most:
            return 0.0
        # The room of some that nobody was told of, which are less than a quarter of the bound, can be done without.
        return TELL_SECONDS if most < self.bound else None

    def press(self) -> None:
        self.pressed = True

    def consumed(self, items: int) -> None:
        """Take in that the consumer took `items` results."""
        self.waiting -= items
        self.wake_feeders()

    def end(self, port: int) -> None:
        self.ended = True
        self.surroundings.command(Finish())

    def pump(self) -> None:
        pass

    def clear(self) -> None:
        pass

    def check(self) -> None:
        assert 0 <= self.waiting <= self.bound + self.hands, "more results wait than the pipe holds"
