"""What jobs print to a stream that the caller has replaced: where it arrives in the caller.

Law: where the caller has replaced a stream by an object of its own, workers send what is for it, and the caller writes
it there.  All other streams are written by the jobs themselves.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable

from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any

# The streams of `sys` that jobs print to, and the descriptors that they have by themselves.
STANDARD_STREAMS = {"stdout": 1, "stderr": 2}


class PrintOutlet:
    """Where what jobs print arrives in the caller.

    Workers forward a stream that was replaced, from the first run that finds it so to the end of the session.  With
    `takes_all` they forward streams to a terminal or a file, too: set it before a run.  `put` gets the name of the
    stream and what was written, and may be replaced by what draws around it.
    """

    def __init__(self) -> None:
        self.takes_all = False
        self.put: Callable[[str, str | bytes], None] = put
        self._forwarded: set[str] = set()
        self._refused: set[str] = set()

    def newly_wanted(self) -> tuple[str, ...]:
        """Return the streams that workers are to forward from now on, without those that they forward already."""
        wanted = tuple(
            name for name in STANDARD_STREAMS if name not in self._forwarded and (self.takes_all or is_replaced(name))
        )
        self._forwarded.update(wanted)
        return wanted

    def write(self, name: str, is_binary: bool, data: Any) -> str:
        """Write what a job has printed; return a sentence where the stream refuses that for the first time, else ""."""
        try:
            self.put(name, bytes(data) if is_binary else str(data, "utf-8", "surrogatepass"))
        except Exception as error:
            if name not in self._refused:
                self._refused.add(name)
                return f"What jobs print is lost, as sys.{name} of the calling process raises {short(error)}."
        return ""


def is_replaced(name: str) -> bool:
    """Whether a stream of `sys` is anything else than a file of Python's own on the standard descriptor, or nothing."""
    # A program may have deleted it.
    stream = getattr(sys, name, None)
    if stream is None:
        return False
    # A subclass, or an object that passes calls on, may do more than write to the descriptor.
    if type(stream) is io.TextIOWrapper:
        with contextlib.suppress(Exception):
            return stream.fileno() != STANDARD_STREAMS[name]
    return True


def put(name: str, written: str | bytes) -> None:
    """Write to the present stream of `sys`; raises what that raises."""
    # A program may have deleted it.
    put_to(getattr(sys, name, None), written)


def put_to(stream: Any, written: str | bytes) -> None:
    """Write to a stream as well as it can, None being none; raises what it raises."""
    if stream is None:
        return
    if isinstance(written, bytes):
        if hasattr(stream, "buffer"):
            stream.flush()
            stream.buffer.write(written)
            stream.buffer.flush()
            return
        written = written.decode("utf-8", "backslashreplace")
    try:
        stream.write(written)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        stream.write(written.encode(encoding, "backslashreplace").decode(encoding))
    if not written.endswith("\n"):
        # A job has flushed it, or its call has ended.
        stream.flush()
