"""The file of a trace, as the caller sees it: the broker writes it, at the end.

Law: the file is there and empty before anything starts, so a path that cannot be written is told at once.
"""

from __future__ import annotations

import contextlib
import os

from conveyor.errors import ProcessError, cause_of_death


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


def size_of(path: str | None) -> int:
    """Return how many bytes a trace has so far; 0 where there is none."""
    with contextlib.suppress(OSError):
        return 0 if path is None else os.stat(path).st_size
    return 0


def incomplete(path: str, exitcode: int | None) -> str:
    """Return what to say of a trace whose broker has ended with that code."""
    return f"The trace {path} is not complete: the broker, which writes it, {cause_of_death(exitcode)}."
