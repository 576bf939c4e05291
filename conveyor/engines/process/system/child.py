"""A child process, as its parent sees it.

Law: the system, and not an exit status, tells whether a child is dead.  Where the program ignores SIGCHLD or reaps its
children itself, nobody gets that status.
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

    def wake(self) -> None:
        """Continue it if it was stopped."""
        if hasattr(signal, "SIGCONT"):
            # A process that may not be woken is none of ours, or no more.
            with contextlib.suppress(PermissionError):
                self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it."""
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
