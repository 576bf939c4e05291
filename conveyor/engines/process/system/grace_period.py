"""The time that others get to do something of their own accord, before it is done to them.

Law: what passes while nobody could run does not count.  What stands still (a group of processes that was stopped, as
Ctrl-Z does, a virtual machine that pauses, or whose host has too many) does so for those who hurry as well as for the
one who counts.
"""

from __future__ import annotations

from collections import deque

from conveyor._system.clock import time

# What workers get to leave by themselves when a run has failed or is abandoned.
GRACE_SECONDS = 0.3
# What a worker that has torn down its job gets to end its process; threads of the job may take as long.
EXIT_SECONDS = 5.0
# What one look at the clock takes off at most.  A wait as long as this is seldom much longer where cores are to be had.
SLICE_SECONDS = 0.02
# Who is so much late was not held up by a busy machine alone, unless that has much more to do than it has cores.
LATE_SECONDS = 0.05


class GracePeriod:
    """So many seconds, of which each look takes off what passed since the last one, and a slice at most.

    Whoever counts has to wait no longer than `slice` at a time.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._looked = time.monotonic()

    def left(self) -> float:
        """How many seconds are left by now, 0.0 where none are."""
        now = time.monotonic()
        self._left = max(0.0, self._left - min(now - self._looked, SLICE_SECONDS))
        self._looked = now
        return self._left

    def slice(self) -> float:
        """How long to wait before the next look, in seconds, 0.0 where nothing is left."""
        return min(self.left(), SLICE_SECONDS)


class PauseDetector:
    """When nobody could run, as far as one can tell who looks at the clock again and again, and was late himself."""

    def __init__(self) -> None:
        self._looked, self._used = time.monotonic(), time.process_time()
        # When each was over, and how many seconds it was.
        self._found: deque[tuple[float, float]] = deque(maxlen=1000)

    def look(self, patience: float) -> None:
        """Take in that since the last look there was work to do, and then to wait for `patience` seconds at most."""
        now, used = time.monotonic(), time.process_time()
        late = now - self._looked - (used - self._used) - patience
        if late > LATE_SECONDS:
            self._found.append((now, late))
        self._looked, self._used = now, used

    def since(self, moment: float) -> float:
        """Return how many seconds of those since a moment of `time.monotonic` nobody could run."""
        return sum(min(seconds, over - moment) for over, seconds in self._found if over > moment)
