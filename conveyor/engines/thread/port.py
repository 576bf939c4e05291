"""What the shell and one thread have of each other: ends of channels, and how far a worker has started.

Law: nothing here decides anything, or calls a job.

Free-threaded builds: a port is written to by the shell and by one worker.  What both change is a queue, or stands in
`Progress`, behind its lock.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter
from queue import Empty, SimpleQueue

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core.events import Replied
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.process.wire.progress import NEVER, Began, CallClock, position_of, word_of

if TYPE_CHECKING:
    from conveyor.core import commands

# The exit code of a process that the job has forked, and that came back out of it.
FORKED_EXITCODE = 98

Post = Callable[[Any, Any, Any], None]
# A message, of those in `wire/messages.py` or of this engine, and its blobs.
Frame = tuple[Any, list[Any]]


class ThisProcess:
    """The number of this process, without a call of the system for each look."""

    def __init__(self) -> None:
        self.note()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.note)

    def note(self) -> None:
        """Take in which process this is."""
        self.number = os.getpid()


this_process = ThisProcess()


class Cell:
    """What one thread of a worker notes: the call that it is at, and since when; None: it is at none."""

    __slots__ = ("began",)

    def __init__(self) -> None:
        self.began: Began | None = None

    def begin(self, lease: int, calls: int) -> None:
        """The thread notes that it begins the last of so many calls of a lease."""
        self.began = (lease, calls), time.monotonic()

    def end(self) -> None:
        """The thread notes that it is at no call."""
        self.began = None


class Progress(CallClock):
    """How far a worker has started what it was handed, and how far it may: the progress slot of a thread.

    >>> progress = Progress()
    >>> start = progress.starter(lease=7)
    >>> start(0, 3), progress.revoke(7, 2), start(3, 9), progress.started
    (3, (7, 3), 3, (7, 3))
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._started = 0
        self._stop_at = NEVER
        self._since: float | None = None
        self.unpickling = False
        # Of a worker of several threads: what each is at.
        self._cells: list[Cell] = []

    def starter(self, lease: int) -> Callable[[int, int], int]:
        """Return what starts the calls from `first` to `stop` of a lease, and returns how far that is allowed."""
        base, lock = lease << 32, self._lock

        def start(first: int, stop: int) -> int:
            with lock:
                if self._stop_at < base + stop:
                    stop = max(first, min(stop, self._stop_at - base))
                self._started = base + stop
                if self.timed:
                    self._since = time.monotonic()
            return stop

        return start

    def _note(self, working: bool) -> None:
        with self._lock:
            self._since = time.monotonic() if working else None

    def cell(self, thread: int) -> Cell:
        """Return a cell for a thread of the worker."""
        cell = Cell()
        self._cells.append(cell)
        return cell

    @property
    def has_cells(self) -> bool:
        """Whether the worker notes its calls one by one."""
        return bool(self._cells)

    def under_way(self) -> list[Began]:
        """Return the calls that the threads of the worker are at."""
        return [began for cell in list(self._cells) if (began := cell.began) is not None]

    @property
    def ran_at(self) -> float | None:
        """The moment at which the worker has noted last that it goes on; None: it is at no call."""
        with self._lock:
            return self._since

    def working_since(self) -> tuple[tuple[int, int], float | None]:
        """Return how far the worker has started, and when it started the last call; None: it is at no call.

        Of a worker with cells, the call that it is at for longest.
        """
        if calls := self.under_way():
            return min(calls, key=itemgetter(1))
        with self._lock:
            return position_of(self._started), self._since

    def revoke(self, lease: int, calls: int) -> tuple[int, int]:
        """Have nothing started beyond that position, but for what has been; return how far may have been."""
        with self._lock:
            self._stop_at = max(self._started, word_of(lease, calls))
            return position_of(self._stop_at)

    def allow_all(self) -> None:
        """Let everything be started again."""
        with self._lock:
            self._stop_at = NEVER

    def fence(self) -> tuple[int, int]:
        """Have nothing started any more; return how far the worker has started what it was handed."""
        with self._lock:
            self._stop_at = 0
            return position_of(self._started)

    @property
    def started(self) -> tuple[int, int]:
        """How far the worker has started what it was handed."""
        with self._lock:
            return position_of(self._started)


class End:
    """The receiving end of a channel between the shell and one thread."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Frame] = SimpleQueue()
        self._peeked: deque[Frame] = deque()

    def tell(self, message: Any) -> None:
        """Send a message there."""
        self._inbox.put((message, []))

    def receive(self) -> Frame:
        """Wait for a message."""
        return self._peeked.popleft() if self._peeked else self._inbox.get()

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether a message is there, or comes within so many seconds."""
        if self._peeked:
            return True
        if seconds <= 0:
            return not self._inbox.empty()
        try:
            self._peeked.append(self._inbox.get(timeout=seconds))
        except Empty:
            return False
        return True


class Port(End):
    """What the shell and one worker have of each other: the port of the one, and the end of a channel for the other."""

    def __init__(self, number: int, config: WorkerConfig, takes: int, post: Post) -> None:
        super().__init__()
        self.number = number
        self.config = config
        # How many takers what it gives has at most.
        self.takes = takes
        self._post = post
        self._owner = this_process.number
        self.progress = Progress()
        self.thread: threading.Thread
        # The clocks of the CPU time of its threads, where the system has them.
        self._cpu_clocks: list[int] = []
        self.begun = time.monotonic()
        # Set by the shell: the job is set up; what the worker still says counts for nothing.
        self.is_up = self.abandoned = False
        self._revoked = False

    # The shell's side

    def lease(self, command: commands.SendLease, traced: bool) -> None:
        """Hand over items; `traced`: submitted ones."""
        if self._revoked:
            # All that it had by then is settled.
            self._revoked = False
            self.progress.allow_all()
        what = command.lease, command.pieces, command.credit, command.finish
        self.tell(messages.StartLease(*what, False, False, command.skip, command.give_up, traced, command.attempt))

    def revoke(self, lease: int, calls: int) -> tuple[int, int]:
        """Have nothing started beyond that position; return how far may have been."""
        self._revoked = True
        return self.progress.revoke(lease, calls)

    @property
    def cpu_seconds(self) -> float:
        """How many seconds its threads have used a core; 0.0 where nobody knows, or they have ended."""
        seconds = 0.0
        for clock in list(self._cpu_clocks):
            with suppress(OSError):
                seconds += time.clock_gettime(clock)
        return seconds

    # The worker's side

    def add_cpu_clock(self) -> None:
        """Count what the thread that asks uses of a core."""
        if hasattr(time, "pthread_getcpuclockid"):
            self._cpu_clocks.append(time.pthread_getcpuclockid(threading.get_ident()))

    @property
    def is_forked_copy(self) -> bool:
        """Whether this process was forked by the job."""
        return this_process.number != self._owner

    def receive(self) -> Frame:
        """Wait for a message; raises ConnectionLost once the worker was abandoned."""
        frame = super().receive()
        if self.abandoned:
            raise ConnectionLost("the thread was abandoned")
        return frame

    def start_lone(self, lease: int) -> bool:
        """Whether the only call of a lease may be started."""
        return self.progress.starter(lease)(0, 1) == 1

    def reply(self, event: Replied) -> None:
        """Tell the shell of a lease that is done."""
        if self.is_forked_copy:
            raise ConnectionLost("this process was forked by the job")
        self._post(self, event, None)

    def send(self, message: messages.Message, blobs: Any = ()) -> None:
        """Tell the shell something; raises ConnectionLost once the worker was abandoned."""
        if self.abandoned:
            raise ConnectionLost("the thread was abandoned")
        self._post(self, message, blobs)
