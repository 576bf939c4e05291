"""The control groups around this process, as files.

Law: finds directories and reads lines; what the lines mean is said by whoever reads them (`cpu.py`, `memory.py`).
What cannot be read says nothing.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator

# Paths are plain strings here: to import pathlib would take longer than all of this.
StrPath = str | os.PathLike[str]

CGROUPS = "/sys/fs/cgroup"
MEMBERSHIP = "/proc/self/cgroup"


def groups_around(root: StrPath, membership: StrPath, controller: str) -> Iterator[tuple[int, str]]:
    """Yield the groups that this process is in by `controller`, and those around them, each with its version, 1 or 2.

    `root` is where the hierarchies are mounted, `membership` the file that says which groups the process is in.
    """
    for line in lines(membership):
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


def lines(*path: StrPath) -> list[str]:
    """Return the lines of a file, of which the parts of the path are given; none where it cannot be read."""
    try:
        with open(posixpath.join(*path), encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
