"""For how many workers memory has room, as the balancer asks where cores do not bound their number.

Law: only looks.  Pages that workers share with each other count for each of them, so the answer is rather too small.
"""

from __future__ import annotations

from collections.abc import Iterable

from conveyor._system.clock import time
from conveyor._system.limits import resident_memory, usable_memory

# Workers may have this share of the memory that this process may use.
SHARE = 0.25
# How long an answer is good for.
LOOK_SECONDS = 0.5


class WorkerMemory:
    """Looks at the workers now and then."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._fitting: int | None = None

    def fitting(self, workers: Iterable[int]) -> int | None:
        """Return for how many workers as large as the largest of these there is room, by their process ids.

        None: the system does not say, or there are none.
        """
        now = time.monotonic()
        if now >= self._looked_at + LOOK_SECONDS:
            self._looked_at = now
            usable = usable_memory()
            largest = max((resident_memory(pid) or 0 for pid in workers), default=0)
            self._fitting = int(usable * SHARE / largest) if usable is not None and largest else None
        return self._fitting
