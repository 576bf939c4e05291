"""Waiting: for descriptors (on Windows, for handles), for a child process, and for no longer than a grace period.

Law: knows no message.  Only Windows imports `multiprocessing.connection`, as nothing else can wait there: that import
takes longer than to start a process.  The system, and not an exit status, tells whether a child is dead: where the
program ignores SIGCHLD or reaps its children itself, nobody gets that status.

A grace period is the time that a process gets to end by itself, before it is killed.  Time in which the machine was
paused does not count.  Ctrl-Z stops a whole group of processes, and a host pauses a whole virtual machine: then the
process that counts stands still as well as the one that hurries.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing.process
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable

from conveyor._lean.typing import Any
from conveyor._system.clock import time

# For workers to leave by themselves when a run has failed or is abandoned.
GRACE_SECONDS = 0.3
# For a worker that has torn down its job to end its process; threads of the job may take as long.
EXIT_SECONDS = 5.0
# The most that one look at the clock takes off.  A wait as long as this is seldom longer while a core is free.
SLICE_SECONDS = 0.02
# A process that wakes later than this met a pause, and not a busy machine alone.
LATE_SECONDS = 0.05


class _Poll:
    """What stands in for `select.poll` where a library has taken that away, as eventlet does for its own `select`."""

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def register(self, descriptor: int, mask: int) -> None:
        self._wanted[descriptor] = mask

    modify = register

    def unregister(self, descriptor: int) -> None:
        del self._wanted[descriptor]

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
    """Waits for any of many descriptors, and knows a callback for each.

    It asks the system itself: what `selectors` does about each wait takes longer than a callback.
    """

    def __init__(self) -> None:
        # Of many descriptors, `epoll` looks at those alone that are ready.
        self._poll: Any = None
        if hasattr(select, "epoll"):
            self._poll, self._second = select.epoll(), 1
        elif os.name == "posix":
            self._poll, self._second = new_poll(), 1000
        self._callbacks: dict[Any, Callable[[], None]] = {}

    def add(self, thing: Any, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `thing` (a descriptor; on Windows, a handle) is readable."""
        self._callbacks[thing] = callback
        if self._poll is not None:
            self._poll.register(thing, select.POLLIN)

    def want_room(self, thing: Any, wanted: bool) -> None:
        """Wait for room to write as well, or no longer."""
        if self._poll is not None:
            self._poll.modify(thing, select.POLLIN | (select.POLLOUT if wanted else 0))

    def remove(self, thing: Any) -> None:
        """Forget what was added."""
        del self._callbacks[thing]
        if self._poll is not None:
            self._poll.unregister(thing)

    def wait(self, seconds: float | None) -> list[Callable[[], None]]:
        """Return the callbacks of what is ready, after at most `seconds`."""
        callbacks = self._callbacks
        if self._poll is None:
            return [callbacks[thing] for thing in wait_for_any(list(callbacks), seconds) if thing in callbacks]
        ready = self._poll.poll(None if seconds is None else seconds * self._second)
        return [callbacks[descriptor] for descriptor, _ in ready if descriptor in callbacks]

    def close(self) -> None:
        # `poll` has nothing to close.
        if hasattr(self._poll, "close"):
            self._poll.close()


class GracePeriod:
    """A number of seconds: each look takes off what passed since the last one, but a slice at most.

    Between two looks, the process that counts waits for `slice` at most.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._looked = time.monotonic()

    def left(self) -> float:
        """How many seconds are left now, 0.0 where none are."""
        now = time.monotonic()
        self._left = max(0.0, self._left - min(now - self._looked, SLICE_SECONDS))
        self._looked = now
        return self._left

    def slice(self) -> float:
        """How many seconds to wait before the next look, 0.0 where none are left."""
        return min(self.left(), SLICE_SECONDS)


class PauseDetector:
    """The pauses of the machine, as a process finds them that looks at the clock again and again, and was late."""

    def __init__(self) -> None:
        self._looked, self._used = time.monotonic(), time.process_time()
        # When each pause was over, and its seconds.
        self._found: deque[tuple[float, float]] = deque(maxlen=1000)

    def look(self, patience: float) -> None:
        """Take in that since the last look this process has worked, and then waited for `patience` seconds at most."""
        now, used = time.monotonic(), time.process_time()
        late = now - self._looked - (used - self._used) - patience
        if late > LATE_SECONDS:
            self._found.append((now, late))
        self._looked, self._used = now, used

    def since(self, moment: float) -> float:
        """Return how many seconds since a moment of `time.monotonic` the machine was paused."""
        return sum(min(seconds, over - moment) for over, seconds in self._found if over > moment)


class Child:
    """A process of `multiprocessing` that has been started."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid
        self._descriptor = descriptor_of(process.pid)
        # Readable once it is dead.  Forked grandchildren hold a sentinel too, so that may come late.
        self.waitable: Any = process.sentinel if self._descriptor is None else self._descriptor
        self.exitcode: int | None = None
        self.reaped = False
        # Never released: one thread reaps it.
        self._reaping = threading.Lock()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for its death; return whether it is dead, and if so reap it."""
        if not self.reaped and wait_for(self.waitable, max(0.0, seconds)):
            self.reap()
        return self.reaped

    @property
    def has_begun(self) -> bool:
        """Whether a new interpreter has begun to read what it was started with; True where that cannot be told."""
        import array

        left = array.array("i", [0])
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import fcntl
            import termios

            pipe, size = self._process._popen.unread
            fcntl.ioctl(pipe, termios.FIONREAD, left)
            return bool(left[0] < size)
        return True

    def wake(self) -> None:
        """Continue it if it was stopped."""
        if hasattr(signal, "SIGCONT"):
            # A process that may not be woken is none of ours, or no more.
            with contextlib.suppress(PermissionError):
                self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if hasattr(signal, "SIGKILL"):
            self._signal(signal.SIGKILL)
        elif not self.reaped:
            self._process.kill()

    def _signal(self, number: int) -> None:
        if not self.reaped:
            with contextlib.suppress(ProcessLookupError):
                if self._descriptor is not None:
                    # Unlike the number, a descriptor cannot become another process's.
                    signal.pidfd_send_signal(self._descriptor, number)
                else:
                    # Does nothing where it was reaped, so that the number may be another process's by now.
                    self._process._popen._send_signal(number)

    def end(self) -> None:
        """Kill it, and wait for its death."""
        self.kill()
        if not self.reaped:
            wait_for(self.waitable)
            self.reap()

    def reap(self) -> None:
        """Reap it once it is dead, and close its descriptors."""
        if not self._reaping.acquire(blocking=False):
            return
        self.reaped = True
        self._process.join()
        self.exitcode = self._process.exitcode
        if self.exitcode is None:
            # `Process.close` would raise: it takes a process without an exit code to be alive.
            self.disown()
            self._process._popen.close()
        else:
            self._process.close()
        if self._descriptor is not None:
            os.close(self._descriptor)

    def disown(self) -> None:
        """Keep the standard library from waiting for it: it is another process's child, or has no exit code."""
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]


def descriptor_of(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process dies, None where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
