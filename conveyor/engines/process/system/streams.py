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
import threading
from collections.abc import Iterator

_STANDARD_DESCRIPTORS = (0, 1, 2)

# The descriptors that are held, and how many blocks hold them: two threads may be in one.
_lock = threading.Lock()
_held: list[int] = []
_blocks = 0


@contextlib.contextmanager
def standard_descriptors_taken() -> Iterator[None]:
    """Let nothing that is opened in the block become standard input, output or error, where these are closed.

    A process that is started in the block finds the null device there.
    """
    global _blocks
    with _lock:
        _blocks += 1
    try:
        if os.name == "posix":
            with _lock:
                _hold()
        yield
    finally:
        with _lock:
            _blocks -= 1
            while not _blocks and _held:
                with contextlib.suppress(OSError):
                    os.close(_held.pop())


def _renew_lock() -> None:
    """In a forked process, where no thread is left that could release it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _hold() -> None:
    for descriptor in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            # The system gives the lowest that is free.
            _held.append(os.open(os.devnull, os.O_RDWR))
            os.set_inheritable(_held[-1], True)


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
