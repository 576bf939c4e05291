"""What a new process of ours inherits: what it resets first, and what its parent holds back while it starts.

Law: nothing that the program has set up for itself lives on in broker and workers.  They do nothing about a signal that
the program handles or blocks: it means the program, also where it is sent to the whole group.  SIGTERM ends them,
whatever the program does about it.  They ignore what the program ignores.  They block no signal, so that a job gets
what it sets a handler for.

A line that a job has printed is out, whatever becomes of its worker, and never in a descriptor of the pipeline.  A
forked process drops what its parent had not written yet: the parent writes that.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import gc
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from conveyor._lean.typing import Any
from conveyor._system.signals import signals_blocked
from conveyor.engines.process.system.descendants import prctl

# The exit code of a worker or broker whose parent has died: no process sees it.
ORPHANED_EXITCODE = 3
# The exit code of a broker or worker that cannot start the thread that sends over its queue.
NO_THREAD_EXITCODE = 98
# See prctl(2).
_PR_SET_PDEATHSIG = 1
_STANDARD_DESCRIPTORS = (0, 1, 2)


def _numbers(names: str) -> frozenset[int]:
    """Return those of the signals that this system has."""
    return frozenset(int(getattr(signal, f"SIG{name}")) for name in names.split() if hasattr(signal, f"SIG{name}"))


# Terminals and supervisors send these to whole groups, and programs to themselves: broker and worker are never meant.
# A program may set its handler when they are up already.
_TO_GROUPS = _numbers("INT HUP QUIT USR1 USR2")
# The first ends broker and workers; by the second they hear of the end of their children.
_OURS = _numbers("TERM CHLD")
# The interpreter ignores them at its start, so that there is an exception instead.
_EXCEPTIONS = _numbers("PIPE XFSZ")
# What a thread does to itself.  Nothing can go on after it, and `faulthandler` shows where it was.
_FAULTS = _numbers("SEGV BUS FPE ILL ABRT TRAP SYS")


# In the new process


def reset_inherited_state(inherited_fds: list[Any]) -> None:
    """Reset signals and streams, and close the ends of channels and arenas that belong to other processes."""
    # As long as the collector does not look at inherited objects, their memory stays shared with the parent.
    # `finalisation` tells by it what was made since.
    gc.freeze()
    reset_signals()
    for end in inherited_fds:
        end.close()
    reset_streams()
    _forget_executors()


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


def _forget_executors() -> None:
    """Forget the executors of the program: at its end, this process would wait for their threads.

    One of them may be the thread that forked this process, which cannot wait for itself.
    """
    for module, threads in (("thread", "_threads_queues"), ("process", "_threads_wakeups")):
        known = getattr(sys.modules.get(f"concurrent.futures.{module}"), threads, None)
        if known is not None:
            known.clear()


def die_with_parent(parent: int) -> None:
    """Have the kernel, where it can, kill this process when its parent dies."""
    if os.name == "posix":
        call = prctl()
        if call is not None:
            call(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(ORPHANED_EXITCODE)


def ignore(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing.

    Unlike SIG_IGN, programs that a job starts do not inherit a handler, so those still end on Ctrl-C.
    """


def reset_signals() -> None:
    """Give a new process the handlers and the mask of ours; it deals with the signals that came meanwhile, too."""
    _signal.set_wakeup_fd(-1)
    blocked: Any = _signal.pthread_sigmask(_signal.SIG_BLOCK, ()) if hasattr(_signal, "pthread_sigmask") else ()
    for number in range(1, _signal.NSIG):
        handler = _signal.getsignal(number)
        if number in _OURS:
            wanted: Any = _signal.SIG_DFL
        elif number in _EXCEPTIONS:
            wanted = _signal.SIG_IGN
        elif number in _FAULTS:
            wanted = _signal.SIG_DFL if callable(handler) else handler
        elif handler != _signal.SIG_IGN and (number in _TO_GROUPS or number in blocked or callable(handler)):
            wanted = ignore
        else:
            wanted = handler
        if wanted is not handler:
            # The C library keeps some for itself.
            with contextlib.suppress(ValueError, OSError):
                _signal.signal(number, wanted)
    if hasattr(_signal, "pthread_sigmask"):
        # No timer is inherited that could send a signal now.
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def block_ignored_signals() -> None:
    """Block the signals whose handler does nothing: for the broker, which runs no code of the user's.

    `faulthandler` gives handlers a small stack of their own.  About five signals that are delivered at once overflow
    it, which ends the process.
    """
    if hasattr(_signal, "pthread_sigmask"):
        ignored = {number for number in range(1, _signal.NSIG) if _signal.getsignal(number) is ignore}
        _signal.pthread_sigmask(_signal.SIG_BLOCK, ignored)


# In its parent


def _signals_of_the_program() -> frozenset[int]:
    """Return the signals that broker and workers do nothing about, as far as is known: those handled here."""
    handled = frozenset(number for number in range(1, _signal.NSIG) if callable(_signal.getsignal(number)))
    return (_TO_GROUPS | handled) - _OURS - _EXCEPTIONS - _FAULTS


@contextlib.contextmanager
def signals_of_the_program_held() -> Iterator[None]:
    """Block these signals while a process is started, which has no handlers for them yet.

    A new interpreter inherits no handlers, but it inherits the mask: so it knows of them.
    """
    with signals_blocked(_signals_of_the_program()):
        yield


def kill_resource_tracker() -> None:
    """Kill the resource tracker: in a frozen program that cannot tell it from itself, it is one more of the program."""
    from multiprocessing import resource_tracker

    tracker: Any = resource_tracker._resource_tracker
    number, descriptor = tracker._pid, tracker._fd
    if number is not None:
        tracker._pid = tracker._fd = None
        os.close(descriptor)
        # Where the program ignores SIGCHLD, the system has reaped it.
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)


def start_resource_tracker() -> None:
    """Start the resource tracker of `multiprocessing`, where it is not up, and leave the mask of signals as it is.

    By itself the tracker's start unblocks SIGINT and SIGTERM, also those that wait for a program that blocks them.
    """
    from multiprocessing import resource_tracker

    module: Any = resource_tracker
    with signals_of_the_program_held(), signals_blocked(_numbers("INT TERM")):
        module._HAVE_SIGMASK = False
        try:
            module.ensure_running()
        finally:
            module._HAVE_SIGMASK = hasattr(signal, "pthread_sigmask")


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
