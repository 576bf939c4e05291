"""The time that others get to do something of their own accord, before it is done to them.

Law: what passes while nobody could run does not count.  A machine that stands still (a suspended computer, a stopped
group of processes, a host with too many guests) stands still for those who hurry as well as for the one who counts.
"""

from __future__ import annotations

import time

# What one look at the clock takes off at most.  A wait as long as this is seldom much longer where cores are to be had.
SLICE_SECONDS = 0.02


class Grace:
    """So many seconds, of which each look takes off what passed since the last one, and a slice at most.

    Whoever counts has to wait no longer than `slice` at a time.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._looked = time.monotonic()

    @property
    def left(self) -> float:
        """How many seconds are left by now, 0.0 where none are."""
        now = time.monotonic()
        self._left = max(0.0, self._left - min(now - self._looked, SLICE_SECONDS))
        self._looked = now
        return self._left

    @property
    def slice(self) -> float:
        """How long to wait before the next look, in seconds, 0.0 where nothing is left."""
        return min(self.left, SLICE_SECONDS)
