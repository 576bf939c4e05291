"""The file of a trace, as the caller sees it: the broker writes it, at the end.

Law: the file is there and empty before anything starts, so a path that cannot be written is told at once.
"""

from __future__ import annotations

import contextlib
import os

from conveyor.engines.process.system.waiting import GracePeriod
from conveyor.errors import ProcessError, cause_of_death

# How long a trace that is being written may not grow: a busy machine may take its time.
STANDSTILL_SECONDS = 5.0


def new(wanted: str | os.PathLike[str] | None) -> str | None:
    """Return the path of a new, empty file for a trace; None where none is wanted.

    Raises ProcessError where the file cannot be written.
    """
    if wanted is None:
        return None
    path = os.path.abspath(wanted)
    try:
        with open(path, "wb"):
            return path
    except OSError as error:
        raise ProcessError(
            f"Pipeline: trace={os.fspath(wanted)!r}: the trace cannot be written ({error}). Remedy: name a file in a "
            "folder that this process may write to."
        ) from error


class WritingPeriod(GracePeriod):
    """A grace period of a broker that writes a trace: each time that the file has grown, a part of it begins anew."""

    def __init__(self, seconds: float, path: str | None) -> None:
        """`path`: None where no trace is written, and the period is one like any."""
        super().__init__(seconds if path is None else seconds + STANDSTILL_SECONDS)
        self._path = path
        self._size = self._size_now()

    def left(self) -> float:
        """Return how many seconds are left."""
        super().left()
        size = self._size_now()
        if size > self._size:
            self._size, self._left = size, max(self._left, STANDSTILL_SECONDS)
        return self._left

    def _size_now(self) -> int:
        with contextlib.suppress(OSError):
            return 0 if self._path is None else os.stat(self._path).st_size
        return 0


def incomplete(path: str, exitcode: int | None) -> str:
    """Return what to say of a trace whose broker has ended with that code."""
    return f"The trace {path} is not complete: the broker, which writes it, {cause_of_death(exitcode)}."
