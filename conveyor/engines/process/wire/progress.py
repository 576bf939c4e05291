"""The progress board: a few words of memory that the broker shares with each worker.

Law: a worker writes how far it has started what it was handed, and reads where it is to stop; the broker reads the one
and writes the other.  Neither waits, and there is no lock: each writes first and reads then, so of two that write at
the same time at least one sees what the other wrote.  A slot survives the death of its worker.

A position is one word, `lease << 32 | calls`: the first `calls` calls of a lease, and all leases with a smaller number.

A worker that makes several calls at once, in threads, has a cell for each thread: the call that it is at, and since
when.  The moment in its slot then says when its first thread ran last.
"""

from __future__ import annotations

import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from multiprocessing import reduction
from operator import itemgetter

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any
from conveyor._system.clock import time

# One cache line each, so that two workers never write to the same.
SLOT_WORDS = 8
SLOTS = 4096
BOARD_BYTES = SLOTS * SLOT_WORDS * 8
STARTED, STOP_AT, SINCE, UNPICKLING = 0, 1, 2, 3
# The cell of a thread: the position of its call, and when that began.
CELL_WORDS = 2
NEVER = (1 << 64) - 1
_numbers = count()
# A lease and a number of its calls, with the moment at which the last of these began.
Began = tuple[tuple[int, int], float]


class LastWords(NamedTuple):
    """What is known of a dead worker: how far it had started what it was handed, and whether it was unpickling that.

    `under_way` and `silent` are those of the event `WorkerLost`.
    """

    started: Any = (0, 0)
    unpickling: bool = False
    under_way: tuple[tuple[int, int, float], ...] = ()
    silent: float = 0.0


def last_words_of(progress: Any, pause_since: Callable[[float], float]) -> LastWords:
    """Return the last words of a dead worker; `pause_since`: for how long nobody could run since a moment."""

    def passed(moment: float) -> float:
        return max(0.0, time.monotonic() - moment - pause_since(moment))

    calls = tuple((*position, passed(since)) for position, since in progress.under_way())
    ran_at = progress.ran_at if progress.has_cells else None
    return LastWords(progress.started, progress.unpickling, calls, 0.0 if ran_at is None else passed(ran_at))


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


class ProgressCell:
    """The words of one thread of a worker."""

    __slots__ = ("_began", "_fence", "_position", "_words")

    def __init__(self, words: Any, first: int) -> None:
        self._words = words
        self._position, self._began = first, first + 1
        self._fence = threading.Lock()

    def begin(self, lease: int, calls: int) -> None:
        """The thread notes that it begins the last of so many calls of a lease."""
        words = self._words
        words[self._began] = 0
        with self._fence:
            words[self._position] = word_of(lease, calls)
        words[self._began] = time.monotonic_ns()

    def end(self) -> None:
        """The thread notes that it is at no call."""
        self._words[self._began] = 0

    def read(self) -> Began | None:
        """Return the call that the thread is at; None: it is at none."""
        words = self._words
        while began := words[self._began]:
            position = words[self._position]
            with self._fence:
                # Else the call may be another one.
                if words[self._began] == began:
                    return position_of(position), began / 1e9
        return None


class ProgressSlot(CallClock):
    """The words of one worker, on either side.

    `size`: how many slots of the memory it has; those behind the first have cells for its threads.
    """

    def __init__(self, memory: BoardMemory, index: int, size: int = 1) -> None:
        super().__init__()
        self.memory = memory
        self.index = index
        self.size = size
        first = index * SLOT_WORDS
        self._started, self._stop_at = first + STARTED, first + STOP_AT
        self._since, self._unpickling = first + SINCE, first + UNPICKLING
        self._fence = threading.Lock()

    def __getstate__(self) -> tuple[BoardMemory, int, int]:
        return self.memory, self.index, self.size

    def __setstate__(self, state: tuple[BoardMemory, int, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def has_cells(self) -> bool:
        """Whether the worker notes its calls one by one."""
        return self.size > 1

    def cell(self, thread: int) -> ProgressCell:
        """Return the cell of a thread of the worker, by its number."""
        return ProgressCell(self.memory.words, (self.index + 1) * SLOT_WORDS + thread * CELL_WORDS)

    def under_way(self) -> list[Began]:
        """Return the calls that the threads of the worker are at."""
        cells = (self.size - 1) * SLOT_WORDS // CELL_WORDS
        return [began for thread in range(cells) if (began := self.cell(thread).read()) is not None]

    @property
    def ran_at(self) -> float | None:
        """The moment of `time.monotonic` at which the worker has noted last that it goes on; None: it is at no call."""
        since = self.memory.words[self._since]
        return since / 1e9 if since else None

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

        None: it is at no call.  Of a worker with cells, the call that it is at for longest.
        """
        if self.has_cells and (calls := self.under_way()):
            return min(calls, key=itemgetter(1))
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
        for word in range((self.index + 1) * SLOT_WORDS, (self.index + self.size) * SLOT_WORDS):
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
        # How many slots of the last memory were handed out for the first time, and those that were given back.
        self._used = 0
        self._free: dict[int, list[ProgressSlot]] = {}

    def new(self, threads: int = 0) -> ProgressSlot:
        """Return a slot for a new worker, with cells for so many threads.

        Raises OSError where the system has no memory for it.
        """
        size = 1 + -(-threads * CELL_WORDS // SLOT_WORDS)
        if free := self._free.get(size):
            slot = free.pop()
        else:
            if not self._memories or self._used + size > SLOTS:
                self._memories.append(BoardMemory(self._inherited))
                self._used = 0
            slot = ProgressSlot(self._memories[-1], self._used, size)
            self._used += size
        slot.clear()
        return slot

    def give_back(self, slot: ProgressSlot) -> None:
        self._free.setdefault(slot.size, []).append(slot)

    def close(self) -> None:
        while self._memories:
            self._memories.pop().close()
