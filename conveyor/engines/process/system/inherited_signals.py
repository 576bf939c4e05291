"""Signals in broker and workers: nothing that the program has set up for itself lives on there.

Law: a signal that the program handles or blocks means the program, also where it is sent to the whole group; broker
and workers do nothing about it.  SIGTERM ends them, whatever the program does about it.  What the program ignores,
they ignore.  No signal is blocked there, so that a job gets what it sets a handler for.
"""

from __future__ import annotations

# Those of `signal` make an enumeration's member of each value, which takes longer than the call of the system.
import _signal  # type: ignore[import-not-found]
import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from conveyor._lean.typing import Any
from conveyor._system.signals import signals_blocked


def _numbers(names: str) -> frozenset[int]:
    """Return those of the signals that this system has."""
    return frozenset(int(getattr(signal, f"SIG{name}")) for name in names.split() if hasattr(signal, f"SIG{name}"))


# What terminals and supervisors send to whole groups, and programs to themselves: never meant for broker or worker.  A
# program may set its handler when they are up already.
_TO_GROUPS = _numbers("INT HUP QUIT USR1 USR2")
# Broker and workers have to be ended by the one, and have to hear of the end of their children by the other.
_OURS = _numbers("TERM CHLD")
# The interpreter ignores them at its start, so that there is an exception instead.
_EXCEPTIONS = _numbers("PIPE XFSZ")
# What a thread does to itself.  Nothing can go on after it, and `faulthandler` shows where it was.
_FAULTS = _numbers("SEGV BUS FPE ILL ABRT TRAP SYS")
_UNTOUCHABLE = _numbers("KILL STOP")


def ignore(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing.

    A handler, unlike SIG_IGN, is not inherited by programs that a job starts, so those still end on Ctrl-C.
    """


def settle_signals() -> None:
    """Have a new process, forked or not, deal with signals as one of ours; those that came meanwhile, too."""
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
        # The timers of a process are not inherited.
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def block_what_is_ignored() -> None:
    """Let no signal come about which nothing is done: for a process that runs nobody's code, as the broker.

    With `faulthandler`, handlers have a small stack of their own.  Some five signals that are delivered at once
    overflow it, which ends the process.
    """
    if hasattr(_signal, "pthread_sigmask"):
        ignored = {number for number in range(1, _signal.NSIG) if _signal.getsignal(number) is ignore}
        _signal.pthread_sigmask(_signal.SIG_BLOCK, ignored)


def of_the_program() -> frozenset[int]:
    """Return the signals that broker and workers do nothing about, as far as is known: those that are handled here."""
    handled = frozenset(number for number in range(1, _signal.NSIG) if callable(_signal.getsignal(number)))
    return (_TO_GROUPS | handled) - _OURS - _EXCEPTIONS - _FAULTS


@contextlib.contextmanager
def signals_of_the_program_held() -> Iterator[None]:
    """Keep these signals back while a process is started, which has no handler for them yet.

    A new interpreter inherits no handlers, but what is blocked: so it knows of them.
    """
    with signals_blocked(of_the_program()):
        yield


def start_resource_tracker() -> None:
    """Start this helper of `multiprocessing`, where it is not up, and leave the mask of signals as it is.

    By itself it unblocks SIGINT and SIGTERM, and so lets those through that wait for a program that blocks them.
    """
    from multiprocessing import resource_tracker

    module: Any = resource_tracker
    with signals_of_the_program_held(), signals_blocked(_numbers("INT TERM")):
        module._HAVE_SIGMASK = False
        try:
            module.ensure_running()
        finally:
            module._HAVE_SIGMASK = hasattr(signal, "pthread_sigmask")
