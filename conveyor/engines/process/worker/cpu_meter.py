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
        self.began = 0.0
        self._cpu_seconds = 0.0
        self._switches = 0
        self._usage = _usage_reader()

    def begin(self) -> None:
        """Count from here on."""
        self.began = time.perf_counter()
        if self._usage is None:
            self._cpu_seconds = time.process_time()
            self._switches += 1
        else:
            usage = self._usage()
            self._cpu_seconds = usage.ru_utime + usage.ru_stime
            self._switches = usage.ru_nvcsw

    def lap(self) -> tuple[float, float, float]:
        """Return the seconds since `begin`, and in how many of them this process used a core, and waited for something
        that is no core; begin again."""
        began, cpu_seconds, switches = self.began, self._cpu_seconds, self._switches
        self.begin()
        seconds, used = self.began - began, self._cpu_seconds - cpu_seconds
        return seconds, used, max(0.0, seconds - used) if self._switches != switches else 0.0


def _usage_reader() -> Callable[[], Any] | None:
    return None if resource is None else partial(resource.getrusage, resource.RUSAGE_SELF)
