"""Signals, Ctrl-C above all, while something is being started or ended: kept back until that is done, and never lost.

Law: only short work that has a bound in time is shielded, never a wait for a job.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType

from conveyor._system.clock import sleep

# Long enough for the interpreter to leave a finalizer, in which an exception would only be printed.
SOON_SECONDS = 0.02


class interrupts_held:
    """In a `with`: a Ctrl-C that comes in the block acts at its end.

    `finalizing`: the block may run while an object is being dropped, where Python swallows exceptions: it acts a moment
    later then.  Handlers other than Python's own are left alone, as they may do anything.
    """

    def __init__(self, finalizing: bool = False) -> None:
        self._finalizing = finalizing
        # None: nothing is held.
        self._seen: list[FrameType | None] | None = None

    def __enter__(self) -> None:
        if _may_act_later():
            self._seen = seen = []
            # Not by way of `signal`, which makes names of the numbers: each item that is submitted passes here.
            _signal.signal(_signal.SIGINT, lambda number, frame: seen.append(frame))

    def __exit__(self, *exception: object) -> None:
        if self._seen is None:
            return
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        if self._seen and self._finalizing:
            _interrupt_later()
        elif self._seen:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts_postponed() -> Iterator[None]:
    """Have a Ctrl-C that ends the block act a moment later.

    Where an object is being dropped, Python would only print it.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not _may_act_later():
            raise
        _interrupt_later()


def _may_act_later() -> bool:
    """Whether this is the thread that gets a Ctrl-C, and Python's own handler acts on it."""
    return (
        threading.current_thread() is threading.main_thread()
        and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
    )


def _interrupt_later() -> None:
    """Have a Ctrl-C act a moment later; at once where no thread is left to wait for that."""
    try:
        threading.Thread(target=_interrupt_soon, name="conveyor-interrupt", daemon=True).start()
    except RuntimeError:
        raise KeyboardInterrupt from None


def _interrupt_soon() -> None:
    sleep(SOON_SECONDS)
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        # To that thread, so that it is woken from whatever it waits for.
        signal.pthread_kill(main, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def signals_blocked(signals: Iterable[int]) -> Iterator[None]:
    """Have these signals wait for the end of the block, where they can; threads begin so as well."""
    if not hasattr(_signal, "pthread_sigmask"):
        yield
        return
    # Not by way of `signal`: Python runs handlers where its functions begin, and one that raises at the beginning of
    # the last of these calls would leave the signals blocked.
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    try:
        # A handler that is due runs here, and may raise.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, signals)
        yield
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
