"""What a worker's time was spent with.

Law: asks the system, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from conveyor._lean.typing import Any
from conveyor._system.clock import time

try:
    # Here, before workers are forked: each would have to look for it.
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


class CpuMeter:
    """What time was spent with: using a core, waiting for one, or waiting for something else.

    A job that waits for a disk, a network or a clock gives its core up by itself; one that only waits for its turn on a
    core does not.  Where the system does not count that, whatever is not work is taken to be the first.
    """

    def __init__(self) -> None:
        self._cpu = 0.0
        self._given_up = 0
        self._usage = _usage_reader()

    def begin(self) -> None:
        """From here on."""
        if self._usage is None:
            self._cpu = time.process_time()
            self._given_up += 1
        else:
            usage = self._usage()
            self._cpu = usage.ru_utime + usage.ru_stime
            self._given_up = usage.ru_nvcsw

    def since(self, seconds: float) -> tuple[float, float]:
        """Return how long, of the `seconds` since `begin`, a core was used, and something else was waited for; begin
        again."""
        cpu, given_up = self._cpu, self._given_up
        self.begin()
        used = self._cpu - cpu
        return used, max(0.0, seconds - used) if self._given_up != given_up else 0.0


def _usage_reader() -> Callable[[], Any] | None:
    return None if resource is None else partial(resource.getrusage, resource.RUSAGE_SELF)
