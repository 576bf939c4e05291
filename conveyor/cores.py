"""How many cores this process may use.

Law: the least of what the system says: the processor count, this process's affinity, and the CPU quota of its
control groups (versions 1 and 2), rounded up.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1.

    >>> usable_cores() >= 1
    True
    """
    counts = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    counts.extend(math.ceil(quota) for quota in _quotas(_CGROUPS, Path("/proc/self/cgroup")))
    return max(1, min(counts))


def _quotas(root: Path, membership: Path) -> list[float]:
    """Return the CPU quotas, in cores, of the control groups that this process is in and of those around them."""
    quotas = []
    for line in _lines(membership):
        hierarchy, controllers, path = line.split(":", 2)
        base = root if hierarchy == "0" else root / "cpu"
        if hierarchy != "0" and "cpu" not in controllers.split(","):
            continue
        group = base / path.lstrip("/")
        # In a container the path may be the host's, and only the root of the hierarchy can be seen.
        for directory in {group, *group.parents, base}:
            if base not in {directory, *directory.parents}:
                continue
            if hierarchy == "0":
                quotas += _ratio(" ".join(_lines(directory / "cpu.max")).split())
            else:
                quotas += _ratio([*_lines(directory / "cpu.cfs_quota_us"), *_lines(directory / "cpu.cfs_period_us")])
    return quotas


def _ratio(words: list[str]) -> list[float]:
    """Return the quota that a pair of microseconds stands for, if there is one: "max" and -1 mean none."""
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit() or words[1] == "0":
        return []
    return [int(words[0]) / int(words[1])]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
