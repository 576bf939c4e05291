"""The gate that makes source threads wait between two items while this process forks.

A source thread runs the user's code, which may hold a lock at any moment.  A child that is forked then has that lock
held for ever.  Between two items a source holds none.  An event loop that awaits the fork waits as well, between two of
its callbacks.

Law: every wait is bounded.  A fork does not wait for a source or a loop that takes too long for its item or callback.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from conveyor._lean.typing import Protocol
from conveyor._system.clock import time
from conveyor._system.loop_threads import loop_threads

# How long a fork waits for sources to come to the end of an item.
MAX_PARK_SECONDS = 0.1
# How long a source waits for a fork to be over.
MAX_FORK_SECONDS = 1.0


class Pausing(Protocol):
    """What has threads that hold locks at any moment, and that can end and begin again; neither raises."""

    def suspend(self) -> None:
        """End all threads, within a bound."""

    def resume(self) -> None:
        """Start them again."""


class ForkGate:
    """What source threads enter before they run the user's code, and leave behind it."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, in a forked child: no thread is left there that could release the lock."""
        # The lock itself is taken where nobody waits: a condition takes several calls for that.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # What asks each thread inside to come out soon.
        self._inside: dict[int, Callable[[], None]] = {}
        self._forks = 0
        # What is to have no thread while this process forks.
        self.pausing: list[Pausing] = []
        # The threads of event loops that wait until no thread forks.
        self._stopped: set[int] = set()

    def enter(self, hurry: Callable[[], None]) -> None:
        """Wait until no thread forks, and be inside; a thread that waits to fork calls `hurry`."""
        with self._lock:
            if self._forks:
                # A thread that forks may end amid that.
                self._changed.wait_for(lambda: not self._forks, MAX_FORK_SECONDS)
            self._inside[threading.get_ident()] = hurry

    def leave(self) -> None:
        with self._lock:
            self._inside.pop(threading.get_ident(), None)
            if self._forks:
                self._changed.notify_all()

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        """Be inside for a block that cannot be hurried."""
        self.enter(lambda: None)
        try:
            yield
        finally:
            self.leave()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Keep other threads out for the block, as far as they come out in time."""
        me = threading.get_ident()
        paused = list(self.pausing)
        try:
            for each in paused:
                each.suspend()
            with self._entered_by_none(me):
                yield
        finally:
            for each in paused:
                each.resume()

    @contextlib.contextmanager
    def _entered_by_none(self, me: int) -> Iterator[None]:
        deadline = time.monotonic() + MAX_PARK_SECONDS
        with self._changed:
            self._forks += 1
        try:
            loops = self._stop_loops()
            with self._changed:
                others = [hurry for ident, hurry in self._inside.items() if ident != me]
                for hurry in others:
                    hurry()
                while (self._inside.keys() - {me} or loops - self._stopped) and (
                    left := deadline - time.monotonic()
                ) > 0:
                    self._changed.wait(left)
            yield
        finally:
            with self._changed:
                self._forks -= 1
                self._changed.notify_all()

    def _stop_loops(self) -> set[int]:
        """Ask the event loops that await this fork to stop; return their threads."""
        asked = set()
        for ident, call_soon in loop_threads().items():
            # A loop that was closed has no thread any more.
            with contextlib.suppress(RuntimeError):
                call_soon(self._stop)
                asked.add(ident)
        return asked - {threading.get_ident()}

    def _stop(self) -> None:
        """Wait, in the thread of an event loop, until no thread forks."""
        me = threading.get_ident()
        with self._changed:
            self._stopped.add(me)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._forks, MAX_FORK_SECONDS)
            self._stopped.discard(me)


gate = ForkGate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gate.renew)
