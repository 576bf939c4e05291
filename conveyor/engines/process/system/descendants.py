"""The processes that jobs leave running: how the broker finds them, and ends them.

Law: the broker alone adopts them, as no code of the user's runs there that could wait for them.  It never ends what a
living worker has started, nor what has made itself a session.  Every look is short, and a sweep has a bound.  Only
Linux tells who they are: elsewhere all of this does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Collection

from conveyor._lean.typing import Any
from conveyor.engines.process.system.child import descriptor_of
from conveyor.engines.process.system.grace_period import GRACE_SECONDS, GracePeriod
from conveyor.engines.process.system.selector import wait_for

# How long a sweep takes at most.
SWEEP_SECONDS = 1.0
# So many processes are named, at most, where it is told what was ended.
NAMED = 10
_LINUX = sys.platform == "linux"
# Names of the system that Python does not know.
_PR_SET_CHILD_SUBREAPER = 36
# RLIMIT_LOCKS: Linux has not looked at this limit since version 2.4.  Every process inherits it from its parent.  So a
# worker marks with it all that it will ever start, and the mark outlives the worker.
_MARK = 10


@functools.cache
def prctl() -> Callable[..., int] | None:
    """Return the system call that says what becomes of this process, None where there is none."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        found: Callable[..., int] = ctypes.CDLL(None).prctl
        return found
    return None


def prepare() -> None:
    """Import what marks are set and read with: better once, before workers are forked."""
    if _LINUX:
        with contextlib.suppress(ImportError):
            import resource  # noqa: F401


def mark_descendants() -> None:
    """Mark what this process starts from now on, with its number; what they start is marked with it too."""
    # Where the broker cannot adopt orphans, a mark would only lead astray.
    if _LINUX and prctl() is not None:
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(_MARK, (os.getpid(), resource.getrlimit(_MARK)[1]))


def mark_of(pid: int) -> int | None:
    """Return the number of the worker, or else broker, that a process descends from or is; None without a mark."""
    try:
        import resource

        mark, _ = resource.prlimit(pid, _MARK)
    except (ImportError, OSError, ValueError, AttributeError):
        return None
    return None if mark == resource.RLIM_INFINITY else mark


class Orphans:
    """What descends from workers that have died, in the broker."""

    def __init__(self) -> None:
        call = prctl() if _LINUX else None
        # From now on the system gives this process every orphan among its descendants.
        self._adopts = call is not None and call(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        mark_descendants()
        self._own = mark_of(os.getpid())
        # The Processors of workers that have died since the last sweep, by the number of their process.
        self._names: dict[int, str] = {}
        # What was told to end, and for how long it may still take.
        self._told: dict[int, GracePeriod] = {}
        self._ended: list[str] = []
        # How long the sweep that goes on may still take; None where none does.
        self._bound: GracePeriod | None = None

    @property
    def sweeping(self) -> bool:
        """Whether a look is due soon."""
        return self._bound is not None

    def left_by(self, pid: int, name: str) -> None:
        """Take in that a worker has died: its descendants are to be ended."""
        self._names[pid] = name
        self.sweep()

    def sweep(self) -> None:
        """Begin to end what is left."""
        if self._adopts:
            self._bound = GracePeriod(SWEEP_SECONDS)

    def reap(self, workers: Collection[int]) -> bool:
        """Have the system forget the orphans that are dead; return whether this process has any children."""
        if not self._adopts:
            return False
        try:
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid in workers:
                    # Its own death is still to be taken in; those behind it have time.
                    break
                os.waitpid(dead.si_pid, 0)
        except ChildProcessError:
            return False
        return True

    def look(self, workers: Collection[int]) -> str:
        """Go on with a sweep; return what it has ended, once it is over.

        `workers` are the processes of those that live.  Where none does, everything is to end.
        """
        left: list[int] = []
        if self.reap(workers):
            left = [pid for pid in children() if self._is_left(pid, workers)]
        for pid in left:
            if not _ends_by_itself(pid):
                self._end(pid)
        if self._bound is not None and (not left or not self._bound.left()):
            self._bound = None
            return self._told_of()
        return ""

    def _is_left(self, pid: int, workers: Collection[int]) -> bool:
        if pid in workers or pid == _own_tracker():
            return False
        if not _in_own_session(pid):
            return False
        mark = mark_of(pid)
        return not workers or not (mark is None or mark == self._own or mark in workers)

    def _end(self, pid: int) -> None:
        grace = self._told.get(pid)
        if grace is None:
            self._told[pid] = GracePeriod(GRACE_SECONDS)
            name = self._names.get(mark_of(pid) or 0)
            self._ended.append(named(pid) + ("" if name is None else f" of Processor {name!r}"))
            _signal(pid, signal.SIGTERM)
            # One that was stopped would not hear it.
            _signal(pid, signal.SIGCONT)
        elif not grace.left():
            _signal(pid, signal.SIGKILL)

    def _told_of(self) -> str:
        ended, self._ended = self._ended, []
        self._names.clear()
        self._told.clear()
        if not ended:
            return ""
        return (
            f"jobs left processes running, which the broker ended: {enumerated(ended)}. End what a job starts in its "
            "`teardown`; what is to stay needs a session of its own (start_new_session=True)."
        )


def end_what_a_broker_left() -> None:
    """End what descends from a broker that has died, and have the system forget it, as far as it is ours by now.

    That is so where this process is the first of its container, or a subreaper.  Those children are known by their
    marks; all others are the program's own.
    """
    if not _LINUX:
        return
    own = mark_of(os.getpid())
    bound = GracePeriod(SWEEP_SECONDS)
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
    # A system that was built without that file.
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                # What has ended meanwhile is none.
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as file:
                    # The name, in parentheses, may hold anything.
                    if int(file.read().rpartition(b")")[2].split()[1]) == own:
                        found.append(int(entry))
    return found


def named(pid: int) -> str:
    """Return the number of a process and, where it can be read, its name.  Its arguments may be secret."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"{pid} ({file.read().strip()})"
    except OSError:
        return str(pid)


def enumerated(texts: list[str]) -> str:
    """Return texts as one, shortened where they are many."""
    more = len(texts) - NAMED
    return ", ".join(texts[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _in_own_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == os.getsid(0)
    except OSError:
        return False


def _reaped(pid: int) -> bool:
    """Have the system forget a child if it is dead; return whether it has."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except OSError:
        return True


def _signal(pid: int, number: int) -> None:
    # A child that nobody has reaped cannot be another process by now.
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _ends_by_itself(pid: int) -> bool:
    """Whether it is ending already, or is a resource tracker.

    A tracker ends when all who use it have, and takes away what they left.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read()
    except OSError:
        return True
    # One that is ending has given back its memory, and its arguments with it.
    return not arguments or b"resource_tracker" in arguments


def _own_tracker() -> int | None:
    tracker: Any = sys.modules.get("multiprocessing.resource_tracker")
    number: int | None = getattr(getattr(tracker, "_resource_tracker", None), "_pid", None)
    return number
