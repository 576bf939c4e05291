"""How many items make a chunk.

Law: a pure estimate from what workers report; knows no node and no clock.  A chunk is big enough that its hop
costs little beside its work, and small enough that no other worker waits for it and no result dawdles: it is
aimed at `TARGET_SECONDS` of work and bounded in bytes, starts at one item and at most doubles with each reply, so that
a wrong guess about the next step costs one small chunk.  One dear item among many cheap ones says little of the next
ones: it takes two dear chunks in a row for much smaller chunks.  Where much more waits than that, a chunk is larger:
the last item in line has to wait for all of them anyway, and the chunks become smaller again as the line does (guided
self-scheduling: Polychronopoulos and Kuck, 1987).
"""

from __future__ import annotations

from conveyor.core import FLUSH_SHARE, LONGEST_SECONDS, TARGET_SECONDS
from conveyor.graph.plan import PIPE_BYTES, Plan

# A worker is handed its next lease before it is done with the present one, to hide the hop, where a usual lease is
# expected to take no more than this share of `TARGET_SECONDS`; one of dearer items would sit behind a busy worker while
# another falls idle.
LOOK_AHEAD_SHARE = 1.25
# Where much waits, so that nobody falls idle, a chunk is this part of what waits for each worker, up to
# `LONGEST_SECONDS`.
WAITING_SHARE = 1 / 8
# A broker that uses a core for more than the one share has more work in each chunk, up to `MAX_LOAD_FACTOR` times, and
# one that uses it for less than the other has less again: a step of two between them would go back and forth.  At half
# a core it holds nobody up yet: four million ints took a tenth longer with larger chunks there, on 16 cores.
BUSY_SHARE, EASY_SHARE = 0.7, 0.2
# All objects of a chunk live at the same time: of small ones no more than the caches of a core hold and its garbage
# collector does not look at again and again.  So few items may have more bytes together, up to so many.
TARGET_BYTES = 64 * 1024
FEW_ITEMS, FEW_ITEMS_BYTES = 256, 256 * 1024
MAX_CHUNK_ITEMS = 16384
# The weight of a new observation in the running mean: about the last ten replies count.
WEIGHT = 0.2
# What one observation alone may say, in times of the mean: that items have become dearer, or that one of them is dear.
SURPRISE_FACTOR = 3
# Of one that says that items have become heavier: memory is dear, and time is not lost where it was a single one.
HEAVIER_WEIGHT = 0.5

# How many items a pipe takes at most before any has been weighed.
UNWEIGHED_ITEMS = 64


def first_pull(plan: Plan) -> int:
    """Return how many items the source may give without being asked, so that a run begins with an item."""
    first = plan.steps[0]
    return min(max(first.bound, first.batch or 1), UNWEIGHED_ITEMS)


class ItemWeight:
    """The running mean of what an item weighs in bytes, and what that means for a bound: of a pipe that holds `most`
    bytes, besides its bound in items.

    >>> scale = ItemWeight(most=64 * 1024 * 1024)
    >>> scale.limit(10), scale.limit(100_000)
    (10, 64)
    >>> scale.weigh(items=2, size=2 * 1024 * 1024)
    >>> scale.limit(100_000)
    64
    """

    __slots__ = ("bytes", "most")

    def __init__(self, most: int = PIPE_BYTES) -> None:
        self.bytes = 0.0
        self.most = most

    def weigh(self, items: int, size: int) -> None:
        """Take in that `items` items came in `size` bytes."""
        sample = size / items
        weight = (HEAVIER_WEIGHT if sample > self.bytes else WEIGHT) if self.bytes else 1.0
        self.bytes += (sample - self.bytes) * weight

    def limit(self, bound: int) -> int:
        """Return how many items a pipe with this bound holds at most."""
        if not self.bytes:
            return min(bound, UNWEIGHED_ITEMS)
        if bound * self.bytes <= self.most:
            return bound
        return max(1, int(self.most / self.bytes))


class ChunkTarget:
    """For how many seconds of work all chunks are aimed: for more while the broker has too little time for them.

    >>> aim = ChunkTarget()
    >>> aim.observe_load(0.9), aim.seconds, aim.linger
    (True, 0.032, 0.02)
    >>> aim.observe_load(0.4), aim.observe_load(0.1), aim.seconds
    (False, True, 0.016)
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = TARGET_SECONDS

    @property
    def flush_interval_seconds(self) -> float:
        """For how many seconds a worker keeps what it has done."""
        return self.seconds * FLUSH_SHARE

    @property
    def look_ahead_seconds(self) -> float:
        """How many seconds a lease may take that a worker gets before it is done with the present one."""
        return self.seconds * LOOK_AHEAD_SHARE

    @property
    def load_factor(self) -> float:
        """For how many times as much as usual."""
        return self.seconds / TARGET_SECONDS

    def observe_load(self, share: float) -> bool:
        """Take in which share of a core the broker has used of late; return whether that has changed the aim."""
        before = self.seconds
        if share > BUSY_SHARE:
            self.seconds = min(before * 2, LONGEST_SECONDS)
        elif share < EASY_SHARE:
            self.seconds = max(before / 2, TARGET_SECONDS)
        return self.seconds != before


class ChunkSizer:
    """The running estimate for one step.

    >>> sizer = ChunkSizer(limit=1000, item_weight=ItemWeight(), chunk_target=ChunkTarget())
    >>> sizer.size
    1
    >>> sizer.observe(units=1, seconds=0.008)
    >>> sizer.size
    2
    >>> for _ in range(2):
    ...     sizer.observe(units=2, seconds=0.016)
    >>> sizer.size_of(waiting=10), sizer.size_of(waiting=40), sizer.size_of(waiting=10_000)
    (2, 5, 8)
    """

    __slots__ = (
        "_chunk_target",
        "_item_weight",
        "_limit",
        "_longest",
        "_most_bytes",
        "_surprised",
        "_unit",
        "seconds",
        "size",
    )

    def __init__(self, limit: int, item_weight: ItemWeight, chunk_target: ChunkTarget, batch_size: int = 1) -> None:
        self._chunk_target = chunk_target
        self._limit = max(1, min(limit, MAX_CHUNK_ITEMS))
        # How many items a unit has.
        self._unit = batch_size
        self._item_weight = item_weight
        self._most_bytes = item_weight.most // 4
        self.seconds: float | None = None
        self._surprised = False
        self.size = self._longest = 1

    def size_of(self, waiting: int) -> int:
        """Return how many units a chunk has where so many wait for each worker."""
        return max(self.size, min(int(waiting * WAITING_SHARE), self._longest))

    def observe(self, calls: int, seconds: float) -> None:
        """Take in that `units` units took `seconds` seconds of wall time."""
        sample = seconds / calls
        if self.seconds is None:
            self.seconds = sample
        else:
            most = self.seconds * SURPRISE_FACTOR
            before, self._surprised = self._surprised, sample > most
            if not before:
                sample = min(sample, most)
            # A large chunk is better evidence than a single item, whose time is mostly that of the hop.
            weight = WEIGHT if calls >= self.size / 2 else WEIGHT / 4
            self.seconds += (sample - self.seconds) * weight if sample > self.seconds else (sample - self.seconds) / 2
        most = self._most()
        self.size = min(self._best(most, self._chunk_target.seconds), self.size * 2)
        self._longest = min(self._best(most, LONGEST_SECONDS), self._longest * 2)

    def _most(self) -> int:
        """Return how many units a chunk has at most, however little work they are."""
        item = self._item_weight.bytes
        weight = item * self._unit
        # The broker's time is dearer than what a chunk costs its worker beyond that.
        most_bytes = max(TARGET_BYTES, min(FEW_ITEMS * item, FEW_ITEMS_BYTES)) * self._chunk_target.load_factor
        most_bytes = min(most_bytes, self._most_bytes)
        return max(1, int(most_bytes / weight)) if weight * self._limit > most_bytes else self._limit

    def _best(self, most: int, target: float) -> int:
        """Return how many units are so many seconds of work, up to `most`."""
        assert self.seconds is not None
        return max(1, int(target / self.seconds)) if self.seconds * most > target else most
