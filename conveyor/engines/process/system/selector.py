"""Waiting for descriptors (on Windows, for handles) to become readable.

Law: knows no process and no message.  Only Windows imports `multiprocessing.connection`, as nothing else can wait
there: that import takes longer than to start a process.
"""

from __future__ import annotations

import math
import os
import select
import selectors
from collections.abc import Callable

from conveyor._lean.typing import Any


class _Poll:
    """What stands in for `select.poll` where a library has taken that away, as eventlet does for its own `select`."""

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def register(self, descriptor: int, mask: int) -> None:
        """Wait for this descriptor as well."""
        self._wanted[descriptor] = mask

    def poll(self, milliseconds: float | None) -> list[tuple[int, int]]:
        """Return the descriptors that are ready, each with what it was registered for."""
        reading = [descriptor for descriptor, mask in self._wanted.items() if mask & select.POLLIN]
        writing = [descriptor for descriptor, mask in self._wanted.items() if mask & select.POLLOUT]
        seconds = None if milliseconds is None else milliseconds / 1000
        readable, writable, _ = select.select(reading, writing, [], seconds)
        return [(descriptor, self._wanted[descriptor]) for descriptor in {*readable, *writable}]


def new_poll() -> Any:
    """Return an object that waits as `select.poll` does."""
    return select.poll() if hasattr(select, "poll") else _Poll()


def wait_for(thing: Any, seconds: float | None = None) -> bool:
    """Wait until one descriptor is readable, for at most `seconds` where that is not None; return whether it is."""
    return bool(wait_for_any([thing], seconds))


def wait_for_any(things: list[Any], seconds: float | None = None) -> list[Any]:
    """Wait likewise until any of many descriptors or connections is readable; return those that are."""
    if os.name != "posix":
        from multiprocessing import connection

        return list(connection.wait(things, seconds))
    # `connection.wait` asks Python's clock, which a test may have replaced; `poll` asks the system's.
    poll = new_poll()
    by_descriptor = {thing if isinstance(thing, int) else thing.fileno(): thing for thing in things}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    ready = poll.poll(None if seconds is None else math.ceil(seconds * 1000))
    return [by_descriptor[descriptor] for descriptor, _ in ready]


class Waiter:
    """Waits for any of many descriptors, and knows a callback for each."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector() if os.name == "posix" else None
        self._callbacks: dict[Any, Callable[[], None]] = {}

    def add(self, thing: Any, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `thing` (a descriptor; on Windows, a handle) is readable."""
        self._callbacks[thing] = callback
        if self._selector is not None:
            self._selector.register(thing, selectors.EVENT_READ)

    def want_room(self, thing: Any, wanted: bool) -> None:
        """Wait for room to write as well, or no longer."""
        if self._selector is not None:
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(thing, mask)

    def remove(self, thing: Any) -> None:
        """Forget what was added."""
        del self._callbacks[thing]
        if self._selector is not None:
            self._selector.unregister(thing)

    def wait(self, seconds: float | None) -> list[Callable[[], None]]:
        """Return the callbacks of what is ready, after at most `seconds`."""
        if self._selector is None:
            ready = wait_for_any(list(self._callbacks), seconds)
        else:
            ready = [key.fd for key, _ in self._selector.select(seconds)]
        return [self._callbacks[thing] for thing in ready if thing in self._callbacks]

    def close(self) -> None:
        """Close the selector."""
        if self._selector is not None:
            self._selector.close()
