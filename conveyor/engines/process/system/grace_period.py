"""Grace periods: the time that a process gets to end by itself, before it is killed.

Law: time in which the machine was paused does not count.  Ctrl-Z stops a whole group of processes, and a host pauses a
whole virtual machine: then the process that counts stands still as well as the one that hurries.
"""

from __future__ import annotations

from collections import deque

from conveyor._system.clock import time

# For workers to leave by themselves when a run has failed or is abandoned.
GRACE_SECONDS = 0.3
# For a worker that has torn down its job to end its process; threads of the job may take as long.
EXIT_SECONDS = 5.0
# The most that one look at the clock takes off.  A wait as long as this is seldom longer while a core is free.
SLICE_SECONDS = 0.02
# A process that wakes later than this met a pause, and not a busy machine alone.
LATE_SECONDS = 0.05


class GracePeriod:
    """A number of seconds: each look takes off what passed since the last one, but a slice at most.

    Between two looks, the process that counts waits for `slice` at most.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._looked = time.monotonic()

    def left(self) -> float:
        """How many seconds are left now, 0.0 where none are."""
        now = time.monotonic()
        self._left = max(0.0, self._left - min(now - self._looked, SLICE_SECONDS))
        self._looked = now
        return self._left

    def slice(self) -> float:
        """How many seconds to wait before the next look, 0.0 where none are left."""
        return min(self.left(), SLICE_SECONDS)


class PauseDetector:
    """The pauses of the machine, as a process finds them that looks at the clock again and again, and was late."""

    def __init__(self) -> None:
        self._looked, self._used = time.monotonic(), time.process_time()
        # When each pause was over, and its seconds.
        self._found: deque[tuple[float, float]] = deque(maxlen=1000)

    def look(self, patience: float) -> None:
        """Take in that since the last look this process has worked, and then waited for `patience` seconds at most."""
        now, used = time.monotonic(), time.process_time()
        late = now - self._looked - (used - self._used) - patience
        if late > LATE_SECONDS:
            self._found.append((now, late))
        self._looked, self._used = now, used

    def since(self, moment: float) -> float:
        """Return how many seconds since a moment of `time.monotonic` the machine was paused."""
        return sum(min(seconds, over - moment) for over, seconds in self._found if over > moment)
