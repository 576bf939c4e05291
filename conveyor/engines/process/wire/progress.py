"""The progress board: a few words of memory that the broker shares with each worker.

Law: a worker writes how far it has started what it was handed, and reads where it is to stop; the broker reads the one
and writes the other.  Neither waits, and there is no lock: each writes first and reads then, so of two that write at
the same time at least one sees what the other wrote.  A slot survives the death of its worker.

A position is one word, `lease << 32 | calls`: the first `calls` calls of a lease, and all leases with a smaller number.
"""

from __future__ import annotations

import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from multiprocessing import reduction

from conveyor._lean.typing import Any
from conveyor._system.clock import time

# One cache line each, so that two workers never write to the same.
SLOT_WORDS = 8
SLOTS = 4096
BOARD_BYTES = SLOTS * SLOT_WORDS * 8
STARTED, STOP_AT, SINCE, UNPICKLING = 0, 1, 2, 3
NEVER = (1 << 64) - 1
_numbers = count()


def word_of(lease: int, calls: int) -> int:
    return lease << 32 | calls


def position_of(word: int) -> tuple[int, int]:
    """Return the position that a word stands for.

    >>> position_of(word_of(7, 3))
    (7, 3)
    """
    return word >> 32, word & 0xFFFFFFFF


class CallClock(ABC):
    """Notes when a worker began the call that it is at, as far as anybody wants to know."""

    def __init__(self) -> None:
        # Whether the broker wants to know since when the worker is at each call.
        self.timed = False
        # Whether the worker notes it as well where the broker need not know, as the call may take long.
        self._closely = False

    def mark(self, working: bool) -> None:
        """The worker notes that it is at a call from now on, or at none."""
        if self.timed or self._closely:
            self._note(working)

    def follow(self, closely: bool) -> None:
        """The worker notes that it begins the next call now, where that may take long, and nothing of quick ones."""
        if self.timed or not (closely or self._closely):
            return
        # The time of an earlier call must not be taken for that of the next.
        self._closely = True
        self.mark(closely)
        self._closely = closely

    @abstractmethod
    def _note(self, working: bool) -> None: ...


class ProgressSlot(CallClock):
    """The words of one worker, on either side."""

    def __init__(self, memory: BoardMemory, index: int) -> None:
        super().__init__()
        self.memory = memory
        self.index = index
        first = index * SLOT_WORDS
        self._started, self._stop_at = first + STARTED, first + STOP_AT
        self._since, self._unpickling = first + SINCE, first + UNPICKLING
        self._fence = threading.Lock()

    def __getstate__(self) -> tuple[BoardMemory, int]:
        return self.memory, self.index

    def __setstate__(self, state: tuple[BoardMemory, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def starter(self, lease: int) -> Callable[[int, int], int]:
        """Return what starts the calls from `first` to `stop` of a lease, and returns how far that is allowed."""
        words, started, stop_at, fence, base = self.memory.words, self._started, self._stop_at, self._fence, lease << 32

        def start(first: int, stop: int) -> int:
            wanted = words[started] = base + stop
            # A full barrier between the write and the read: processors delay writes, and so might see none of the
            # other's.
            with fence:
                limit = words[stop_at]
            if limit >= wanted:
                return stop
            allowed = max(first, min(stop, limit - base))
            words[started] = base + allowed
            return allowed

        def mark_and_start(first: int, stop: int) -> int:
            # First, so that nobody sees the new call with the time of the one before.
            self.mark(True)
            return start(first, stop)

        return mark_and_start if self.timed else start

    def start_one(self, lease: int) -> bool:
        """Start the only call of a lease; return whether that is allowed."""
        words, base = self.memory.words, lease << 32
        wanted = words[self._started] = base + 1
        with self._fence:
            limit = words[self._stop_at]
        if limit >= wanted:
            return True
        words[self._started] = base
        return False

    def _note(self, working: bool) -> None:
        self.memory.words[self._since] = time.monotonic_ns() if working else 0
        with self._fence:
            pass

    @property
    def unpickling(self) -> bool:
        """Whether the worker is unpickling what it was handed last."""
        return bool(self.memory.words[self._unpickling])

    @unpickling.setter
    def unpickling(self, unpickling: bool) -> None:
        self.memory.words[self._unpickling] = unpickling

    def working_since(self) -> tuple[tuple[int, int], float | None]:
        """Return how far the worker has started, and the moment of `time.monotonic` at which it started the last call.

        None: it is at no call.
        """
        words = self.memory.words
        while True:
            since = words[self._since]
            started = words[self._started]
            with self._fence:
                # Else the time may be that of an earlier call.
                if words[self._since] == since:
                    return position_of(started), since / 1e9 if since else None

    def revoke(self, lease: int, calls: int) -> tuple[int, int]:
        """The broker has nothing started beyond that position, but for what has been; return how far may have been."""
        words = self.memory.words
        limit = words[self._stop_at] = max(words[self._started], word_of(lease, calls))
        with self._fence:
            started = words[self._started]
        return position_of(max(started, limit))

    @property
    def started(self) -> tuple[int, int]:
        """How far the worker has started what it was handed, by its own word."""
        return position_of(self.memory.words[self._started])

    def allow_all(self) -> None:
        """Let everything be started again."""
        self.memory.words[self._stop_at] = NEVER

    def clear(self) -> None:
        for word in (self._started, self._since, self._unpickling):
            self.memory.words[word] = 0
        self.allow_all()


class BoardMemory:
    """The memory of a board.  Nothing of it is left when the last process that has it ends, however it ends."""

    def __init__(self, inherited: bool) -> None:
        """`inherited`: all workers are forked from this process, and need not be sent a descriptor."""
        self._descriptor = -1
        # Windows finds memory by its name, as long as a process has it.
        self._name = f"conveyor-progress-{os.getpid()}-{next(_numbers)}"
        if os.name == "posix" and not inherited:
            self._descriptor = _anonymous_file()
        self._map()

    def _map(self) -> None:
        named: dict[str, Any] = {} if os.name == "posix" else {"tagname": self._name}
        self._mapped = mmap.mmap(self._descriptor, BOARD_BYTES, **named)
        self.words = memoryview(self._mapped).cast("Q")

    def __getstate__(self) -> Any:
        return self._name, reduction.DupFd(self._descriptor) if os.name == "posix" else None

    def __setstate__(self, state: Any) -> None:
        self._name, duplicate = state
        self._descriptor = -1 if duplicate is None else duplicate.detach()
        try:
            self._map()
        finally:
            self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        self.words.release()
        self._mapped.close()
        self._close_descriptor()


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("conveyor-progress")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, BOARD_BYTES)
    return descriptor


class ProgressBoard:
    """Hands out slots, and has more memory where they run out."""

    def __init__(self, inherited: bool) -> None:
        self._inherited = inherited
        self._memories: list[BoardMemory] = []
        # How many slots were handed out for the first time, and those that were given back.
        self._used = 0
        self._free: list[ProgressSlot] = []

    def new(self) -> ProgressSlot:
        """Return a slot for a new worker; raises OSError where the system has no memory for it."""
        if self._free:
            slot = self._free.pop()
        else:
            if self._used == len(self._memories) * SLOTS:
                self._memories.append(BoardMemory(self._inherited))
            slot = ProgressSlot(self._memories[-1], self._used % SLOTS)
            self._used += 1
        slot.clear()
        return slot

    def give_back(self, slot: ProgressSlot) -> None:
        self._free.append(slot)

    def close(self) -> None:
        while self._memories:
            self._memories.pop().close()
