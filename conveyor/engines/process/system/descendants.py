"""The processes that jobs leave running: how the broker finds them, and ends them.

Law: the broker alone adopts them: no code of the user's runs there that could wait for them.  It never ends what a
living worker has started, nor the leader of a session.  Every look is short, and a sweep has a bound.  Only Linux
tells which they are: on other systems all of this does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Collection

from conveyor._lean.typing import Any
from conveyor.engines.process.system.waiting import GRACE_SECONDS, GracePeriod, descriptor_of, wait_for

MAX_SWEEP_SECONDS = 1.0
# How many processes the message about what was ended names.
MAX_NAMED = 10
_LINUX = sys.platform == "linux"
# See prctl(2).
_PR_SET_CHILD_SUBREAPER = 36
# Linux has not looked at this limit since version 2.4, and every process inherits it from its parent.  So a worker
# marks with it all that it will ever start, and the mark outlives the worker.
_RLIMIT_LOCKS = 10


@functools.cache
def prctl() -> Callable[..., int] | None:
    """Return the function `prctl` of the C library, None where there is none."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        found: Callable[..., int] = ctypes.CDLL(None).prctl
        return found
    return None


def mark_descendants() -> None:
    """Mark all that this process starts from now on, and what that starts, with the number of this process."""
    # Where the broker cannot adopt orphans, nobody reads the mark.
    if _LINUX and prctl() is not None:
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(_RLIMIT_LOCKS, (os.getpid(), resource.getrlimit(_RLIMIT_LOCKS)[1]))


def mark_of(pid: int) -> int | None:
    """Return the number of the worker, or else broker, that a process descends from or is; None without a mark."""
    try:
        import resource

        mark, _ = resource.prlimit(pid, _RLIMIT_LOCKS)
    except (ImportError, OSError, ValueError, AttributeError):
        return None
    return None if mark == resource.RLIM_INFINITY else mark


class Orphans:
    """The descendants of workers that have died, as the broker sees them."""

    def __init__(self) -> None:
        call = prctl() if _LINUX else None
        # From now on the system makes this process the parent of every orphan among its descendants.
        self._adopts = call is not None and call(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        mark_descendants()
        self._own = mark_of(os.getpid())
        # The Processors of workers that have died since the last sweep, by the number of their process.
        self._names: dict[int, str] = {}
        # How long each process that was asked to end may still take.
        self._asked: dict[int, GracePeriod] = {}
        self._ended: list[str] = []
        # How long the sweep may still take; None where there is none.
        self._sweep: GracePeriod | None = None

    @property
    def sweeping(self) -> bool:
        """Whether the broker is to look again soon."""
        return self._sweep is not None

    def left_by(self, pid: int, name: str) -> None:
        """Take in that a worker has died: its descendants are to be ended."""
        self._names[pid] = name
        self.sweep()

    def sweep(self) -> None:
        """Begin to end what is left."""
        if self._adopts:
            self._sweep = GracePeriod(MAX_SWEEP_SECONDS)

    def reap(self, workers: Collection[int]) -> bool:
        """Reap the orphans that are dead; return whether this process has any children."""
        if not self._adopts:
            return False
        try:
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid in workers:
                    # The broker reaps its workers elsewhere; the orphans behind this one have time.
                    break
                os.waitpid(dead.si_pid, 0)
        except ChildProcessError:
            return False
        return True

    def look(self, workers: Collection[int]) -> str:
        """Go on with a sweep; once it is over, return the message about what was ended.

        `workers`: the processes of the workers that live.  Where none lives, every descendant is to end.
        """
        left: list[int] = []
        if self.reap(workers):
            left = [pid for pid in children() if self._is_left(pid, workers)]
        for pid in left:
            if not _ends_by_itself(pid):
                self._end(pid)
        if self._sweep is not None and (not left or not self._sweep.left()):
            self._sweep = None
            return self._message()
        return ""

    def _is_left(self, pid: int, workers: Collection[int]) -> bool:
        if pid in workers or pid == _own_tracker():
            return False
        if not _in_own_session(pid):
            return False
        mark = mark_of(pid)
        return not workers or not (mark is None or mark == self._own or mark in workers)

    def _end(self, pid: int) -> None:
        grace = self._asked.get(pid)
        if grace is None:
            self._asked[pid] = GracePeriod(GRACE_SECONDS)
            name = self._names.get(mark_of(pid) or 0)
            self._ended.append(named(pid) + ("" if name is None else f" of Processor {name!r}"))
            _signal(pid, signal.SIGTERM)
            # A stopped process gets no SIGTERM.
            _signal(pid, signal.SIGCONT)
        elif not grace.left():
            _signal(pid, signal.SIGKILL)

    def _message(self) -> str:
        ended, self._ended = self._ended, []
        self._names.clear()
        self._asked.clear()
        if not ended:
            return ""
        return (
            f"jobs left processes running, which the broker ended: {enumerated(ended)}. End what a job starts in its "
            "`teardown`; what is to stay needs a session of its own (start_new_session=True)."
        )


def end_what_a_broker_left() -> None:
    """End and reap the descendants of a dead broker that are children of this process by now.

    They are where this process is the first of its container, or a subreaper.  Marks tell them from the program's own.
    """
    if not _LINUX:
        return
    own = mark_of(os.getpid())
    bound = GracePeriod(MAX_SWEEP_SECONDS)
    while bound.left():
        marked = [pid for pid in children() if mark_of(pid) not in (None, own)]
        left = [pid for pid in marked if not _reaped(pid) and _in_own_session(pid)]
        if not left:
            return
        for pid in left:
            if not _ends_by_itself(pid):
                _signal(pid, signal.SIGKILL)
        descriptor = descriptor_of(left[0])
        if descriptor is not None:
            wait_for(descriptor, bound.slice())
            os.close(descriptor)


def children() -> list[int]:
    """Return the children of this process, without those that other threads than the first have started."""
    own = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/self/task/{own}/children", "rb") as file:
        return [int(number) for number in file.read().split()]
    # This system was built without that file.
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                # A process that has ended meanwhile is none.
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as file:
                    # The name, in parentheses, may hold anything.
                    if int(file.read().rpartition(b")")[2].split()[1]) == own:
                        found.append(int(entry))
    return found


def named(pid: int) -> str:
    """Return the number of a process with its name, where that can be read: its arguments may be secret."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"{pid} ({file.read().strip()})"
    except OSError:
        return str(pid)


def enumerated(texts: list[str]) -> str:
    """Return texts as one, shortened where they are many."""
    more = len(texts) - MAX_NAMED
    return ", ".join(texts[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _in_own_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == os.getsid(0)
    except OSError:
        return False


def _reaped(pid: int) -> bool:
    """Reap a child if it is dead; return whether it is."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except OSError:
        return True


def _signal(pid: int, number: int) -> None:
    # Until a child is reaped, its number cannot become another process's.
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _ends_by_itself(pid: int) -> bool:
    """Whether it is ending already, or is a resource tracker.

    A tracker ends when all processes that use it have, and takes away what they left.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read()
    except OSError:
        return True
    # A process that is ending has given back its memory, and its arguments with it.
    return not arguments or b"resource_tracker" in arguments


def _own_tracker() -> int | None:
    tracker: Any = sys.modules.get("multiprocessing.resource_tracker")
    number: int | None = getattr(getattr(tracker, "_resource_tracker", None), "_pid", None)
    return number
