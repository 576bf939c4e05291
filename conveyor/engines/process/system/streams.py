"""The standard output and error streams of broker and workers.

Law: a line that a job has printed is out, whatever becomes of its worker, and never in a descriptor of the pipeline.
A forked process drops what its parent had not written yet: the parent writes that.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
from collections.abc import Iterator

_STANDARD_DESCRIPTORS = (0, 1, 2)


@contextlib.contextmanager
def standard_descriptors_taken() -> Iterator[None]:
    """Let nothing that is opened in the block become standard input, output or error, where these are closed.

    A process that is started in the block finds the null device there.  One thread at a time may be in such a block.
    """
    held: list[int] = []
    try:
        for descriptor in _STANDARD_DESCRIPTORS if os.name == "posix" else ():
            try:
                os.fstat(descriptor)
            except OSError:
                # The system gives the lowest that is free.
                held.append(os.open(os.devnull, os.O_RDWR))
                os.set_inheritable(held[-1], True)
        yield
    finally:
        for descriptor in held:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def reset_streams() -> None:
    """Give a new process streams that write each line at once, and nothing of its parent."""
    forked = multiprocessing.get_start_method(allow_none=True) == "fork"
    streams = {id(stream): stream for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}
    for stream in streams.values():
        # Any other object is the program's own, and is left alone.
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if forked:
                    _drop(stream)
                stream.reconfigure(line_buffering=True)


def _drop(stream: io.TextIOWrapper) -> None:
    """Empty the buffers of a stream, without writing what is in them."""
    descriptor = stream.fileno()
    inheritable = os.get_inheritable(descriptor)
    kept = os.dup(descriptor)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, descriptor, inheritable)
        finally:
            os.close(nowhere)
        stream.flush()
    finally:
        os.dup2(kept, descriptor, inheritable)
        os.close(kept)
