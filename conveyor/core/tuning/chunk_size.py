"""How many items make a chunk.

Law: a pure estimate from what workers report; knows no node and no clock.  A chunk is so large that its hop costs
little beside its work, and so small that no other worker waits for it.  It is aimed at `TARGET_SECONDS` of work and
bounded in bytes.  It starts at one item and at most doubles with each reply, so that a wrong guess costs one small
chunk.  One dear item among cheap ones says little of the next ones, so it takes two dear chunks in a row for much
smaller chunks.  Where much more waits, a chunk is larger: the last item has to wait for all of them anyway, and chunks
become smaller again as the line does (guided self-scheduling: Polychronopoulos and Kuck, 1987).
"""

from __future__ import annotations

from conveyor.core import FLUSH_SHARE, LONGEST_SECONDS, TARGET_SECONDS
from conveyor.graph.plan import PIPE_BYTES, Plan

# A worker gets its next lease before it is done with the present one, to hide the hop, where a lease takes no more than
# this share of the target.  A lease of dearer items would sit behind a busy worker while another falls idle.
LOOK_AHEAD_SHARE = 1.25
# A chunk may be this share of the items that wait for each worker, so that no other worker falls idle for it.
WAITING_SHARE = 1 / 8
# A broker that uses more than the one share of a core puts more work in each chunk, and one that uses less than the
# other has less again.  With a step of two between them, chunks would go back and forth.
BUSY_SHARE, EASY_SHARE = 0.7, 0.2
# The work of a chunk takes so many times the way to its worker and back, where that is long.
ROUND_TRIPS_PER_CHUNK = 40
# All objects of a chunk live at the same time, and should fit in the caches of a core.  A few items may have more
# bytes.
TARGET_BYTES = 64 * 1024
FEW_ITEMS, FEW_ITEMS_BYTES = 256, 256 * 1024
MAX_CHUNK_ITEMS = 16384
# A chunk of so many calls may be all that a small pipe holds.
FEW_CALLS = 8
# The weight of a new observation in a running mean: about the last ten replies count.
WEIGHT = 0.2
# An observation counts for at most so many times the mean, until another one confirms it.
SURPRISE_FACTOR = 3
# The weight of an observation that says that items have become heavier, as memory is dear.
HEAVIER_WEIGHT = 0.5

# How many items a pipe takes at most before any has been weighed.
UNWEIGHED_ITEMS = 64


def first_pull(plan: Plan) -> int:
    """Return how many items the source may give without being asked, so that a run begins with an item.

    Nobody asks for more before a worker has been handed the first batch, however large that is, or the first list that
    is waited for.
    """
    first = plan.steps[0]
    awaited = first.batch or (1 if first.batch_timeout is None else first.hands)
    return max(awaited, min(max(first.bound, first.hands), UNWEIGHED_ITEMS))


def most_calls(bound: int) -> int:
    """Return how many calls a chunk has at most, where the pipe in front holds the items of so many.

    Of a large pipe a share, so that what comes in fills the rest meanwhile.  Of a small one that would be an item, and
    each message costs more than that gains.

    >>> [most_calls(bound) for bound in (1, 2, 10, 100)]
    [1, 2, 8, 25]
    """
    return max(1, bound // 4, min(bound, FEW_CALLS))


class ItemWeight:
    """The running mean of the bytes of an item, for a pipe that holds `most` bytes besides its bound in items.

    >>> weight = ItemWeight(most=64 * 1024 * 1024)
    >>> weight.limit(10), weight.limit(100_000)
    (10, 64)
    >>> weight.weigh(items=2, size=2 * 1024 * 1024)
    >>> weight.limit(100_000)
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
    """For how many seconds of work all chunks are aimed: for more while the broker has too little time.

    >>> target = ChunkTarget()
    >>> target.observe_load(0.9), target.seconds, target.flush_interval_seconds
    (True, 0.032, 0.02)
    >>> target.observe_load(0.4), target.observe_load(0.1), target.seconds
    (False, True, 0.016)
    >>> target.observe_round_trip(0.002), target.observe_load(0.1), target.seconds
    (True, False, 0.08)
    """

    __slots__ = ("least", "seconds")

    def __init__(self) -> None:
        self.seconds = self.least = TARGET_SECONDS

    @property
    def flush_interval_seconds(self) -> float:
        """For how many seconds a worker keeps outputs."""
        return self.seconds * FLUSH_SHARE

    @property
    def look_ahead_seconds(self) -> float:
        """How many seconds a lease may take that a worker gets before it is done with the present one."""
        return self.seconds * LOOK_AHEAD_SHARE

    @property
    def load_factor(self) -> float:
        """For how many times as much work as usual."""
        return self.seconds / TARGET_SECONDS

    def observe_load(self, cpu_share: float) -> bool:
        """Take in which share of a core the broker has used of late; return whether that changed the target."""
        before = self.seconds
        if cpu_share > BUSY_SHARE:
            self.seconds = min(before * 2, LONGEST_SECONDS)
        elif cpu_share < EASY_SHARE:
            self.seconds = max(before / 2, self.least)
        return self.seconds != before

    def observe_round_trip(self, seconds: float) -> bool:
        """Take in how long a message to a worker and its answer take; return whether that changed the target."""
        before = self.seconds, self.least
        self.least = min(max(TARGET_SECONDS, seconds * ROUND_TRIPS_PER_CHUNK), LONGEST_SECONDS)
        self.seconds = max(self.least, self.seconds if self.seconds > before[1] else self.least)
        return self.seconds != before[0]


class ChunkSizer:
    """The running estimate for one step.

    >>> sizer = ChunkSizer(limit=1000, item_weight=ItemWeight(), chunk_target=ChunkTarget())
    >>> sizer.size
    1
    >>> sizer.observe(calls=1, seconds=0.008)
    >>> sizer.size
    2
    >>> for _ in range(2):
    ...     sizer.observe(calls=2, seconds=0.016)
    >>> sizer.size_of(waiting=10), sizer.size_of(waiting=40), sizer.size_of(waiting=10_000)
    (2, 5, 8)
    """

    __slots__ = (
        "_batch_size",
        "_chunk_target",
        "_item_weight",
        "_least",
        "_limit",
        "_longest",
        "_most_bytes",
        "_surprised",
        "seconds",
        "size",
    )

    def __init__(
        self, limit: int, item_weight: ItemWeight, chunk_target: ChunkTarget, batch_size: int = 1, least: int = 1
    ) -> None:
        """`least`: as many calls as a worker makes at once, so that it has something for each hand."""
        self._chunk_target = chunk_target
        self._least = least
        self._limit = max(1, min(limit, MAX_CHUNK_ITEMS))
        self._batch_size = batch_size
        self._item_weight = item_weight
        self._most_bytes = item_weight.most // 4
        self.seconds: float | None = None
        self._surprised = False
        self.size = self._longest = least

    def size_of(self, waiting: int) -> int:
        """Return how many calls a chunk has where so many wait for each worker."""
        return max(self.size, min(int(waiting * WAITING_SHARE), self._longest))

    def observe(self, calls: int, seconds: float) -> None:
        """Take in that so many calls took `seconds` seconds of wall time together."""
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
        self.size = max(self._least, min(self._best(most, self._chunk_target.seconds), self.size * 2))
        self._longest = max(self._least, min(self._best(most, LONGEST_SECONDS), self._longest * 2))

    def _most(self) -> int:
        """Return how many calls a chunk has at most, however cheap they are."""
        item = self._item_weight.bytes
        weight = item * self._batch_size
        # Where the broker has too little time, its time is dearer than the caches of a worker.
        most_bytes = max(TARGET_BYTES, min(FEW_ITEMS * item, FEW_ITEMS_BYTES)) * self._chunk_target.load_factor
        most_bytes = min(most_bytes, self._most_bytes)
        return max(1, int(most_bytes / weight)) if weight * self._limit > most_bytes else self._limit

    def _best(self, most: int, target: float) -> int:
        """Return how many calls are `target` seconds of work, up to `most`."""
        assert self.seconds is not None
        return max(1, int(target / self.seconds)) if self.seconds * most > target else most
