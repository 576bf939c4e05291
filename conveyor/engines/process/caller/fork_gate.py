"""Has source threads wait between two items while this process forks.

A source thread runs the user's code, which may hold a lock at any moment.  A child that was forked then would have that
lock held for ever.  Between two items a source holds none.

Law: bounded.  A source that does not come to the end of its item in time is not waited for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from conveyor._system.clock import time

# How long a fork waits for sources to come to the end of an item.
PARK_SECONDS = 0.1
# How long a source waits for a fork to be over.
LONGEST_FORK_SECONDS = 1.0


class ForkGate:
    """What source threads pass whenever they begin to run the user's code, and again when they end."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, in a forked child: nobody is left there who could let go of the lock."""
        self._changed = threading.Condition(threading.Lock())
        # Of each thread inside, what asks it to come out soon.
        self._inside: dict[int, Callable[[], None]] = {}
        self._forks = 0

    @contextlib.contextmanager
    def passed(self, hurry: Callable[[], None]) -> Iterator[None]:
        """Wait until nobody forks, and be inside for the block; `hurry` is called where somebody waits to fork."""
        me = threading.get_ident()
        with self._changed:
            if self._forks:
                # Whoever forks may end amid that.
                self._changed.wait_for(lambda: not self._forks, LONGEST_FORK_SECONDS)
            self._inside[me] = hurry
        try:
            yield
        finally:
            with self._changed:
                self._inside.pop(me, None)
                self._changed.notify_all()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Have nobody but this thread inside for the block, as far as they come out in time."""
        me = threading.get_ident()
        deadline = time.monotonic() + PARK_SECONDS
        with self._changed:
            self._forks += 1
        try:
            with self._changed:
                others = [hurry for ident, hurry in self._inside.items() if ident != me]
                for hurry in others:
                    hurry()
                while self._inside.keys() - {me} and (left := deadline - time.monotonic()) > 0:
                    self._changed.wait(left)
            yield
        finally:
            with self._changed:
                self._forks -= 1
                self._changed.notify_all()


gate = ForkGate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gate.renew)
