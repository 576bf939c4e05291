"""How much memory this process may use.

Law: the least of what the system says: the physical memory, and the memory limits of this process's control groups
(versions 1 and 2).  It is what there is in all and not what is free just now, so that a pipeline has the same bounds
in every run.
"""

from __future__ import annotations

import os

from conveyor._system.cgroups import CGROUPS, MEMBERSHIP, StrPath, groups_around, lines

# By version of the control groups.  Above `memory.high` nothing is killed, but everything is slowed down.
_FILES = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}


def usable_memory() -> int | None:
    """Return how many bytes of memory this process may use; None where the system does not say.

    >>> memory = usable_memory()
    >>> memory is None or memory > 1_000_000
    True
    """
    return min([*_physical(), *_limits(CGROUPS, MEMBERSHIP)], default=None)


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
    for version, directory in groups_around(root, membership, "memory"):
        for name in _FILES[version]:
            words = " ".join(lines(directory, name)).split()
            if len(words) == 1 and words[0].isdigit() and words[0] != "0":
                limits.append(int(words[0]))
    return limits
