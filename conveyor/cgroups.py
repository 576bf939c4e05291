"""The control groups around this process, as files.

Law: finds directories and reads lines; what the lines mean is said by whoever reads them (`cores.py`, `memory.py`).
What cannot be read says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def groups_around(root: Path, membership: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the groups that this process is in by `controller`, and those around them, each with its version, 1 or 2.

    `root` is where the hierarchies are mounted, `membership` the file that says which groups the process is in.
    """
    for line in lines(membership):
        hierarchy, controllers, path = line.split(":", 2)
        version = 2 if hierarchy == "0" else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        base = root if version == 2 else root / controller
        group = base / path.lstrip("/")
        # In a container the path may be the host's, and only the root of the hierarchy can be seen.
        for directory in {group, *group.parents, base}:
            if base in {directory, *directory.parents}:
                yield version, directory


def lines(path: Path) -> list[str]:
    """Return the lines of a file; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
