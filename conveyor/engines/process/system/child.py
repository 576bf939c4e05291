"""A child process, as its parent sees it.

Law: whether a child is dead is asked of the system and not of its exit status: that may be out of reach, where the
program ignores SIGCHLD or reaps its children itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import threading

from conveyor._lean.typing import Any
from conveyor.engines.process.system.selector import wait_for


class Child:
    """A process of `multiprocessing` that has been started."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid
        self._descriptor = descriptor_of(process.pid)
        # What to wait on for its death.  A sentinel is held by forked grandchildren too, and may come late.
        self.waitable: Any = process.sentinel if self._descriptor is None else self._descriptor
        self.exitcode: int | None = None
        self.reaped = False
        # Never released: whoever comes next finds it reaped.
        self._reaping = threading.Lock()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for its death; return whether it is dead, and if so reap it."""
        if not self.reaped and wait_for(self.waitable, max(0.0, seconds)):
            self.reap()
        return self.reaped

    def wake(self) -> None:
        """Have it go on if it was stopped."""
        if hasattr(signal, "SIGCONT"):
            # Whoever may not be woken is none of ours, or no more.
            with contextlib.suppress(PermissionError):
                self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Have the system end it."""
        if hasattr(signal, "SIGKILL"):
            self._signal(signal.SIGKILL)
        elif not self.reaped:
            self._process.kill()

    def _signal(self, number: int) -> None:
        if not self.reaped:
            with contextlib.suppress(ProcessLookupError):
                if self._descriptor is not None:
                    # Unlike the number, it cannot stand for another process by now.
                    signal.pidfd_send_signal(self._descriptor, number)
                else:
                    # Nothing where somebody has reaped it, so that the number is another's by now.
                    self._process._popen._send_signal(number)

    def end(self) -> None:
        """Have the system end it, and wait for that."""
        self.kill()
        if not self.reaped:
            wait_for(self.waitable)
            self.reap()

    def reap(self) -> None:
        """Take in the end of one that is dead, and give back what the system lent."""
        if not self._reaping.acquire(blocking=False):
            return
        self.reaped = True
        self._process.join()
        self.exitcode = self._process.exitcode
        if self.exitcode is None:
            # Its own `close` would not believe that it is dead.
            self.disown()
            self._process._popen.close()
        else:
            self._process.close()
        if self._descriptor is not None:
            os.close(self._descriptor)

    def disown(self) -> None:
        """Have the standard library wait for it no more: it is another's child, or its end cannot be asked for."""
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]


def descriptor_of(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process dies, None where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
