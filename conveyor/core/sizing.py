"""How many items make a chunk.

Law: a pure estimate from what workers report; knows no node and no clock.  A chunk is big enough that its hop
costs little beside its work, and small enough that no other worker waits for it and no result dawdles: it is
aimed at `TARGET_SECONDS` of work and at most `TARGET_BYTES`, or a quarter of what the pipe holds, starts at one item
and at most doubles with each reply, so that a wrong guess about the next step costs one small chunk.
"""

from __future__ import annotations

from conveyor.plan import PIPE_BYTES

TARGET_SECONDS = 0.008
TARGET_BYTES = 256 * 1024
LARGEST = 16384
# The weight of a new observation in the running mean: about the last ten replies count.
WEIGHT = 0.2
# Of one that says that items have become heavier: memory is dear, and time is not lost where it was a single one.
HEAVIER = 0.5

# How many items a pipe takes at most before any has been weighed.
UNWEIGHED = 64


class Scale:
    """The running mean of what an item weighs in bytes, and what that means for a bound: of a pipe that holds `most`
    bytes, besides its bound in items.

    >>> scale = Scale(most=64 * 1024 * 1024)
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
        weight = (HEAVIER if sample > self.bytes else WEIGHT) if self.bytes else 1.0
        self.bytes += (sample - self.bytes) * weight

    def limit(self, bound: int) -> int:
        """Return how many items a pipe with this bound holds at most."""
        if not self.bytes:
            return min(bound, UNWEIGHED)
        if bound * self.bytes <= self.most:
            return bound
        return max(1, int(self.most / self.bytes))


class Sizer:
    """The running estimate for one step.

    >>> sizer = Sizer(limit=1000, scale=Scale())
    >>> sizer.size
    1
    >>> sizer.observe(units=1, seconds=0.0001)
    >>> sizer.size
    2
    """

    __slots__ = ("_limit", "_most_bytes", "_scale", "seconds", "size")

    def __init__(self, limit: int, scale: Scale) -> None:
        self._limit = max(1, min(limit, LARGEST))
        self._scale = scale
        self._most_bytes = min(TARGET_BYTES, scale.most // 4)
        self.seconds: float | None = None
        self.size = 1

    def observe(self, units: int, seconds: float) -> None:
        """Take in that `units` units took `seconds` seconds of wall time."""
        sample = seconds / units
        if self.seconds is None:
            self.seconds = sample
        else:
            # A large chunk is better evidence than a single item, whose time is mostly that of the hop.
            weight = WEIGHT if units >= self.size / 2 else WEIGHT / 4
            self.seconds += (sample - self.seconds) * weight if sample > self.seconds else (sample - self.seconds) / 2
        best = self._limit
        if self.seconds * best > TARGET_SECONDS:
            best = max(1, int(TARGET_SECONDS / self.seconds))
        if self._scale.bytes * best > self._most_bytes:
            best = max(1, int(self._most_bytes / self._scale.bytes))
        self.size = min(best, self.size * 2)
