"""How many cores this process may use.

Law: the least of what the system says: the processor count, this process's affinity, and the CPU quota of its
control groups (versions 1 and 2), rounded up.
"""

from __future__ import annotations

import math
import os

from conveyor._system.cgroups import CGROUPS, MEMBERSHIP, StrPath, groups_around, lines


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1.

    >>> usable_cores() >= 1
    True
    """
    counts = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    counts.extend(math.ceil(quota) for quota in _quotas(CGROUPS, MEMBERSHIP))
    return max(1, min(counts))


def _quotas(root: StrPath, membership: StrPath) -> list[float]:
    """Return the CPU quotas, in cores, of the control groups that this process is in and of those around them."""
    quotas = []
    for version, directory in groups_around(root, membership, "cpu"):
        if version == 2:
            quotas += _ratio(" ".join(lines(directory, "cpu.max")).split())
        else:
            quotas += _ratio([*lines(directory, "cpu.cfs_quota_us"), *lines(directory, "cpu.cfs_period_us")])
    return quotas


def _ratio(words: list[str]) -> list[float]:
    """Return the quota that a pair of microseconds stands for, if there is one: "max" and -1 mean none."""
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit() or words[1] == "0":
        return []
    return [int(words[0]) / int(words[1])]
