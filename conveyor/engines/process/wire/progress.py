"""Notes: a few words of memory that the broker shares with each worker.

Law: a worker writes down how far it has begun what it was handed, and looks how far it may; the broker reads the one
and writes the other.  Neither waits, and there is no lock: each writes first and reads then, so of two that write at
the same time at least one sees what the other wrote.  A note survives the death of its worker.

A position is one word, `lease << 32 | units`: the first `units` units of a lease, and all leases with a smaller number.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from multiprocessing import reduction

from conveyor._lean.typing import Any
from conveyor._system.clock import time

# One cache line each, so that two workers never write to the same.
WORDS = 8
SLOTS = 4096
BEGUN, LIMIT, SINCE, UNPICKLING = 0, 1, 2, 3
NO_LIMIT = (1 << 64) - 1


def position(lease: int, units: int) -> int:
    """Return the word for a position."""
    return lease << 32 | units


def place(word: int) -> tuple[int, int]:
    """Return the position that a word stands for.

    >>> place(position(7, 3))
    (7, 3)
    """
    return word >> 32, word & 0xFFFFFFFF


class ProgressSlot:
    """The note of one worker, on either side."""

    def __init__(self, memory: Memory, slot: int) -> None:
        self._memory = memory
        self.slot = slot
        self._begun = slot * WORDS + BEGUN
        self._limit = slot * WORDS + LIMIT
        self._since = slot * WORDS + SINCE
        self._unpickling = slot * WORDS + UNPICKLING
        self._fence = threading.Lock()

    def __getstate__(self) -> tuple[Memory, int]:
        return self._memory, self.slot

    def __setstate__(self, state: tuple[Memory, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def begins(self, lease: int, timed: bool = False) -> Callable[[int, int], int]:
        """Return what begins the units from `start` to `stop` of a lease, and returns how far that is allowed.

        `timed`: it also writes down when.
        """
        words, begun, its_limit, fence, base = self._memory.words, self._begun, self._limit, self._fence, lease << 32

        def begin(start: int, stop: int) -> int:
            wanted = words[begun] = base + stop
            # A full barrier between the write and the read: processors delay writes, and so might see none of the
            # other's.
            with fence:
                limit = words[its_limit]
            if limit >= wanted:
                return stop
            allowed = max(start, min(stop, limit - base))
            words[begun] = base + allowed
            return allowed

        def mark_and_begin(start: int, stop: int) -> int:
            # First, so that nobody sees the new unit with the time of the one before.
            self.mark(True)
            return begin(start, stop)

        return mark_and_begin if timed else begin

    def mark(self, working: bool) -> None:
        """Write down that the worker is at a unit from now on, or at none."""
        self._memory.words[self._since] = time.monotonic_ns() if working else 0
        with self._fence:
            pass

    @property
    def unpickling(self) -> bool:
        """Whether the worker is unpickling what it was handed last."""
        return bool(self._memory.words[self._unpickling])

    @unpickling.setter
    def unpickling(self, unpickling: bool) -> None:
        self._memory.words[self._unpickling] = unpickling

    def since(self) -> tuple[tuple[int, int], float | None]:
        """Return how far the worker has begun what it was handed, and at which moment of `time.monotonic` it began the
        last of that: None where it is at nothing."""
        words = self._memory.words
        while True:
            since = words[self._since]
            begun = words[self._begun]
            with self._fence:
                # Else the time may be that of an earlier unit.
                if words[self._since] == since:
                    return place(begun), since / 1e9 if since else None

    def recall(self, lease: int, units: int) -> tuple[int, int]:
        """Have nothing begun beyond that position, or beyond what has been; return how far may have been."""
        words = self._memory.words
        limit = words[self._limit] = max(words[self._begun], position(lease, units))
        with self._fence:
            begun = words[self._begun]
        return place(max(begun, limit))

    @property
    def begun(self) -> tuple[int, int]:
        """How far the worker has begun what it was handed, by its own word."""
        return place(self._memory.words[self._begun])

    def release(self) -> None:
        """Let everything be begun again."""
        self._memory.words[self._limit] = NO_LIMIT

    def clear(self) -> None:
        """Make it the note of a new worker."""
        for word in (self._begun, self._since, self._unpickling):
            self._memory.words[word] = 0
        self.release()


class Memory:
    """The memory of all notes of a session.  It has no name, so nothing is left of it whoever is killed."""

    def __init__(self, inherited: bool) -> None:
        """`inherited`: all workers are forked from this process, and need not be sent a descriptor."""
        self._descriptor = -1
        if not inherited:
            self._descriptor = _anonymous_file()
        self._map(self._descriptor)

    def _map(self, descriptor: int) -> None:
        self._mapped = mmap.mmap(descriptor, SLOTS * WORDS * 8)
        self.words = memoryview(self._mapped).cast("Q")

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._descriptor)

    def __setstate__(self, duplicate: Any) -> None:
        descriptor = duplicate.detach()
        try:
            self._map(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give it back."""
        self.words.release()
        self._mapped.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _anonymous_file() -> int:
    size = SLOTS * WORDS * 8
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("conveyor-notes")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class ProgressBoard:
    """Hands out notes, as long as there are some: a worker can do without."""

    def __init__(self, inherited: bool) -> None:
        try:
            self._memory: Memory | None = Memory(inherited) if os.name == "posix" else None
        except OSError:
            self._memory = None
        self._free = list(range(SLOTS - 1, -1, -1))

    def new(self) -> ProgressSlot | None:
        """Return a note for a new worker."""
        if self._memory is None or not self._free:
            return None
        note = ProgressSlot(self._memory, self._free.pop())
        note.clear()
        return note

    def give_back(self, note: ProgressSlot) -> None:
        """Take back the note of a worker that is gone."""
        self._free.append(note.slot)

    def close(self) -> None:
        """Give all of it back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
