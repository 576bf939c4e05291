"""What all elements of the running graph share: a place in it, an input with a bound, and a way to be woken.

Law: a node changes itself and what it pushes to, nothing else.  What it wants done outside the core it gives to the
machine as a command.  A node pushes no more than `free_capacity` allows, except that a step may push one item more for
each of its workers, which is then in flight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable

from conveyor._lean.typing import Any, Protocol
from conveyor.core.commands import Command, GaveUp
from conveyor.core.data.group_sizes import Batcher, Groups, GroupSizes
from conveyor.core.data.pieces import Piece, Pieces
from conveyor.core.tuning.chunk_size import ChunkTarget, ItemWeight
from conveyor.core.tuning.roster import StepRoster
from conveyor.graph.plan import PIPE_BYTES

# Through forks and joins there may be very many ways to one input, and a running mean learns little from the last ones.
MOST_WEIGHINGS = 8


class NodeContext(Protocol):
    """What a node may ask of the machine it is part of."""

    now: float
    chunk_target: ChunkTarget
    # See `nodes/lone.py`.
    expected: Any

    def wake(self, node: Node) -> None:
        """Have `node.pump()` called before the event at hand is done with."""

    def command(self, command: Command) -> None:
        """Have something done outside the core."""

    def give_up(self, command: GaveUp, items: int) -> None:
        """Count that a call was given up, when the step was done with so many items."""

    def start_worker(self, step_roster: StepRoster) -> None:
        """Have one more worker started."""


class Output:
    """One input of a node further down, as seen by the node that feeds it."""

    __slots__ = ("foreseen", "node", "port")

    def __init__(self, node: Node, port: int) -> None:
        self.node = node
        self.port = port
        # What `nodes/lone.py` saw of the way on, and for which event, until it has taken that in.
        self.foreseen: tuple[Any, Any] | None = None

    def free_capacity(self, weighed: bool = True) -> int:
        """How many items may be pushed now; items promised before they were weighed count against the bound alone."""
        return self.node.free_capacity(self.port, weighed)

    def weigh(self, items: int, size: int) -> None:
        """Say that `items` items on their way there came in `size` bytes."""
        if behind := self.node.weigh(self.port, items, size):
            _weigh_behind(behind)

    def push(self, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        if items or group_sizes:
            self.node.push(self.port, pieces, items, group_sizes)

    def hand(self, hand_out: Callable[..., None], *arguments: Any) -> None:
        """Hand on one item in the short way of `nodes/lone.py`, which calls `hand_out` with the node."""
        hand_out(self.node, *arguments)

    def end(self) -> None:
        self.node.end(self.port)


def _weigh_behind(behind: Weighings) -> None:
    """Weigh items on their further way, of which each input hears a bounded number of times."""
    # A stack of its own, as a graph may be deeper than Python lets calls nest.
    todo = [*reversed(behind)]
    times: dict[tuple[int, int], int] = {}
    while todo:
        output, items, size = todo.pop()
        place = output.node.index, output.port
        times[place] = times.get(place, 0) + 1
        if times[place] <= MOST_WEIGHINGS:
            todo += reversed(output.node.weigh(output.port, items, size))


class Node(ABC):
    """One element of the running graph; the pipe in front of it, where there is one, holds `most_bytes`."""

    def __init__(self, index: int, context: NodeContext, most_bytes: int = PIPE_BYTES, min_batch: int = 1) -> None:
        self.index = index
        self.context = context
        self.upstream: list[Callable[[], None]] = []
        # Whether it is to be pumped before the event at hand is done with.
        self.scheduled = False
        # How many items must find room here before anything can go on: more than one where batches are made.
        self.min_batch = min_batch
        # How many items may come beyond the bound: one from each worker that feeds this node.
        self.in_flight = 0
        self.item_weight = ItemWeight(most_bytes)
        # The steps and sinks that take what comes here, with no other step in between.
        self.takers: tuple[Node, ...] = (self,)

    @abstractmethod
    def free_capacity(self, port: int, weighed: bool = True) -> int:
        """How many items may be pushed into `port` now, by its bound and, if `weighed`, by what they weigh."""

    @abstractmethod
    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        """Take a chunk in; `group_sizes` is None on a lane without groups."""

    @abstractmethod
    def end(self, port: int) -> None:
        """Take in that no more comes to `port`."""

    def weigh(self, port: int, items: int, size: int) -> Weighings:
        """Take in that `items` items on their way to `port` came in `size` bytes; return what to weigh behind that."""
        self.item_weight.weigh(items, size)
        return ()

    def is_idle(self) -> bool:
        """Whether nothing is under way here but calls of `finish`."""
        return True

    def makes_room(self) -> bool:
        """Whether there will be more room here without anything more coming; a node that cannot say so says no."""
        return False

    def request_flush(self) -> None:
        """Take in that somebody waits for capacity here; only a sink has to be told, as others report it at once."""

    @abstractmethod
    def pump(self) -> None:
        """Move on whatever can move."""

    def preferred_chunk(self) -> int:
        """How many items the next step here takes in one go."""
        return min([taker.preferred_chunk() for taker in self.takers])

    def shares_pipe(self) -> bool:
        """Whether what waits here takes room from the node in front, for want of a pipe here."""
        return False

    def shared_pipe_items(self) -> int:
        """How many items here count against the pipe of the node in front, for want of a pipe here."""
        return 0

    @abstractmethod
    def clear(self) -> None:
        """Drop everything that waits here: the run was cancelled."""

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""

    def most(self, bound: int, weighed: bool) -> int:
        """How many items the pipe in front of this node, with this bound, holds at most."""
        return max(self.min_batch, self.item_weight.limit(bound) if weighed else bound)

    def wake(self) -> None:
        """Have this node pumped."""
        if not self.scheduled:
            self.context.wake(self)

    def capacity_freed(self) -> None:
        """Take in that there may be more capacity behind this node."""
        self.wake()

    def wake_upstream(self) -> None:
        """Tell the nodes that feed this one that there may be more capacity here."""
        for capacity_freed in self.upstream:
            capacity_freed()


# Where items are weighed next, as so many items that came in so many bytes.
Weighings = tuple[tuple[Output, int, int], ...]


def takers_of(outputs: Iterable[Output]) -> tuple[Node, ...]:
    """Return who takes what comes to any of these inputs, each once."""
    return tuple(dict.fromkeys([taker for output in outputs for taker in output.node.takers]))


class Intake:
    """What has come to a step: the queue of what nobody has, and how much there was."""

    __slots__ = (
        "_arrivals",
        "_patience",
        "batcher",
        "dropped",
        "due_at",
        "ended",
        "entered",
        "last_arrival",
        "leased",
        "queue",
    )

    def __init__(self, batch_size: int, now: float, patience: float | None = None) -> None:
        """`patience`: how many seconds an item waits at most for others to go with."""
        self.queue = Pieces()
        self.batcher = Batcher(batch_size)
        # How many items came in, and how many were taken out of the queue, to be leased or as nobody wants them.
        self.entered = 0
        self.leased = 0
        self.dropped = 0
        # When the last item came in.
        self.last_arrival = now
        self.ended = False
        self._patience = patience
        # How many items had come in when some came that wait, and when that was.
        self._arrivals: deque[tuple[int, float]] = deque()
        # When what is held back has waited for long enough.
        self.due_at: float | None = None

    def arrived(self, items: int, now: float) -> None:
        """Take in that items have come."""
        self.entered += items
        if items:
            self.last_arrival = now
            if self._patience is not None:
                self._arrivals.append((self.entered, now))

    def holds_back(self, wanted: int, now: float) -> bool:
        """Whether what waits is to wait until it is `wanted` items, or until `due_at`."""
        if self._patience is None:
            return False
        arrivals, gone = self._arrivals, self.entered - self.queue.items
        while arrivals and arrivals[0][0] <= gone:
            arrivals.popleft()
        if self.ended or self.queue.items >= wanted:
            return False
        at = arrivals[0][1] + self._patience
        if now >= at:
            return False
        self.due_at = at
        return True


class Lane:
    """One input of a join: items in a pipe, their groups, and whether the end has come."""

    __slots__ = ("bound", "ended", "groups", "item_weight", "pieces")

    def __init__(self, bound: int, most_bytes: int = PIPE_BYTES) -> None:
        self.bound = bound
        # One branch may give what is a thousand times as heavy as what another gives.
        self.item_weight = ItemWeight(most_bytes)
        self.pieces = Pieces()
        self.groups = Groups()
        self.ended = False

    @property
    def items(self) -> int:
        return self.pieces.items

    def push(self, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        self.pieces.extend(pieces, items)
        if group_sizes is not None:
            self.groups.push(group_sizes, items)

    def clear(self) -> None:
        self.pieces.clear()
        self.groups.clear()
