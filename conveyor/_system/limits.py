"""How many cores and how much memory this process may use.

Law: the least of what the system says.  Of cores: the processor count, this process's affinity, and the CPU quota of
its control groups (versions 1 and 2), rounded up.  Of memory: the physical memory, and the memory limits of these
groups.  It counts all memory, free or not, so that a pipeline has the same bounds in every run.
What cannot be read says nothing.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Iterator

# Paths are plain strings here: to import pathlib would take longer than all of this.
StrPath = str | os.PathLike[str]

CGROUPS = "/sys/fs/cgroup"
MEMBERSHIP = "/proc/self/cgroup"
# By version of the control groups.  Above `memory.high` nothing is killed, but everything is slowed down.
_FILES = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}


def _groups_around(root: StrPath, membership: StrPath, controller: str) -> Iterator[tuple[int, str]]:
    """Yield the groups that this process is in by `controller`, and those around them, each with its version, 1 or 2.

    `root` is where the hierarchies are mounted, `membership` the file that says which groups the process is in.
    """
    for line in _lines(membership):
        hierarchy, controllers, path = line.split(":", 2)
        version = 2 if hierarchy == "0" else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        base = os.fspath(root) if version == 2 else posixpath.join(root, controller)
        directory = base
        yield version, directory
        # In a container the path may be the host's, and only the root of the hierarchy can be seen.
        for name in path.split("/"):
            if name and name != "..":
                directory = posixpath.join(directory, name)
                yield version, directory


def _lines(*path: StrPath) -> list[str]:
    """Return the lines of a file, of which the parts of the path are given; none where it cannot be read."""
    try:
        with open(posixpath.join(*path), encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1.

    >>> usable_cores() >= 1
    True
    """
    return max(1, min(math.ceil(cores) for _, cores in core_limits()))


def core_limits() -> list[tuple[str, float]]:
    """Return what bounds the number of cores: what it is, in words, and how many it allows.

    >>> core_limits()[0][0]
    'processors'
    """
    limits: list[tuple[str, float]] = [("processors", os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(("affinity of this process", len(os.sched_getaffinity(0))))
    limits.extend(("quota of a control group", quota) for quota in _quotas(CGROUPS, MEMBERSHIP))
    return limits


def _quotas(root: StrPath, membership: StrPath) -> list[float]:
    """Return the CPU quotas, in cores, of the control groups that this process is in and of those around them."""
    quotas = []
    for version, directory in _groups_around(root, membership, "cpu"):
        if version == 2:
            quotas += _ratio(" ".join(_lines(directory, "cpu.max")).split())
        else:
            quotas += _ratio([*_lines(directory, "cpu.cfs_quota_us"), *_lines(directory, "cpu.cfs_period_us")])
    return quotas


def _ratio(words: list[str]) -> list[float]:
    """Return the quota that a pair of microseconds stands for, if there is one: "max" and -1 mean none."""
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit() or words[1] == "0":
        return []
    return [int(words[0]) / int(words[1])]


def usable_memory() -> int | None:
    """Return how many bytes of memory this process may use; None where the system does not say.

    >>> memory = usable_memory()
    >>> memory is None or memory > 1_000_000
    True
    """
    return min((size for _, size in memory_limits()), default=None)


def memory_limits() -> list[tuple[str, int]]:
    """Return what bounds the memory: what it is, in words, and how many bytes it allows.

    >>> all(size > 0 for _, size in memory_limits())
    True
    """
    return [
        *(("physical memory", size) for size in _physical()),
        *(("limit of a control group", size) for size in _limits(CGROUPS, MEMBERSHIP)),
    ]


def resident_memory(pid: int) -> int | None:
    """Return how many bytes of memory a process occupies; None where the system does not say, or it is gone.

    >>> memory = resident_memory(os.getpid())
    >>> memory is None or memory > 1_000_000
    True
    """
    words = " ".join(_lines("/proc", str(pid), "statm")).split()
    if len(words) < 2 or not words[1].isdigit():
        return None
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def _physical() -> list[int]:
    """Return the bytes that the machine has, if it says so."""
    try:
        sizes = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows, nor everywhere else
        return []
    return [sizes[0] * sizes[1]] if min(sizes) > 0 else []


def _limits(root: StrPath, membership: StrPath) -> list[int]:
    """Return the limits, in bytes, of the control groups that this process is in and of those around them.

    Version 2 says "max" for none; version 1 has a number that is larger than any memory.
    """
    limits = []
    for version, directory in _groups_around(root, membership, "memory"):
        for name in _FILES[version]:
            words = " ".join(_lines(directory, name)).split()
            if len(words) == 1 and words[0].isdigit() and words[0] != "0":
                limits.append(int(words[0]))
    return limits
