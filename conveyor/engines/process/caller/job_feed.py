"""What sends submitted items to the broker.

Law: an item is pickled when it is submitted, so what the caller does to it afterwards shows nowhere.  One that comes
while none waits is sent by the thread that submits it; others by a thread of the feed, all that wait in one message.
Whoever submits an item waits while the pipe in front of the first Processor is full.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import threading
from collections import deque
from functools import partial

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_held
from conveyor.engines.base import RunProgress
from conveyor.engines.jobs import Job, PendingJobs
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.wire import by_value, messages
from conveyor.engines.process.wire.codec import (
    ATOMS,
    LEAST_BYTES,
    LEAST_STREAM_BYTES,
    LIGHT,
    ByteBudget,
    Frozen,
    dumps,
    encode,
)
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost
from conveyor.engines.process.wire.handles import guard_connections

# A thread that submits an item sends it where nothing was sent for so long.  Others wait for the thread that sends,
# so that they go out together.
DIRECT_SECONDS = 0.0005
# It does so only while a message cannot fill the channel, as no signal handler of Python's runs meanwhile.
DIRECT_BYTES = 32 * 1024
# How long an event loop waits for a thread that sends, which may itself wait for the broker.
LOOP_SECONDS = 0.002


class Heavy:
    """An item that is a blob of its own, the large parts of it in shared memory."""

    __slots__ = ("blob",)

    def __init__(self, blob: Any) -> None:
        self.blob = blob


class Pace:
    """When something was sent, and whether the thread that submits an item may send it itself."""

    __slots__ = ("amid_message", "sent_at", "unheard", "uses_arena")

    def __init__(self) -> None:
        self.sent_at = -math.inf
        # How many bytes were sent since the broker was heard of.
        self.unheard = 0
        # A signal handler must not send amid a message.
        self.amid_message = False
        self.uses_arena = False

    def note(self, blob: Any) -> None:
        """Take in that a blob was sent."""
        self.sent_at = time.monotonic()
        self.unheard += len(blob)
        self.uses_arena = type(blob) is SharedBlob

    @property
    def allows_direct(self) -> bool:
        """Whether a small item may be sent at once."""
        return (
            not self.amid_message and self.unheard < DIRECT_BYTES and time.monotonic() - self.sent_at > DIRECT_SECONDS
        )


class JobFeed:
    """Sends submitted items, as far as the broker has room for them."""

    def __init__(
        self,
        run: int,
        end: BlockingEndpoint,
        room: tuple[int, int],
        arena: Arena | None,
        sending: threading.RLock,
        pending: PendingJobs,
        progress: RunProgress,
    ) -> None:
        """`room`: how many items, and how many bytes, the broker has room for at first."""
        self._run = run
        self._end = end
        self._arena = arena
        self._pending = pending
        self.progress = progress
        self._pace = Pace()
        # Held while something is sent.
        self._sending = sending
        # Its lock is held while what follows is changed; reentrant, as a signal handler may submit an item as well.
        lock = threading.RLock()
        self._room, self._work = threading.Condition(lock), threading.Condition(lock)
        self._waiting: deque[Job] = deque()
        # The jobs that were sent, by their numbers; and the numbers of those that nobody wants any more.
        self.sent: dict[int, Job] = {}
        self._withdrawn: list[int] = []
        self._credit = room[0]
        self._budget = ByteBudget(room[1])
        # The number of the next one; None once no more are sent.
        self._next: int | None = 0

    def entry_of(self, item: Any, seconds: float = -1) -> Any:
        """Return what is sent for an item: as it is now, whatever the caller does to it; raises what pickling does.

        A large item is written to shared memory, unless that takes more than so many `seconds` to get at; -1: no limit.
        """
        if type(item) in ATOMS:
            return item
        guard_connections()
        large: list[None] = []

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            small = buffer.raw().nbytes < LEAST_BYTES
            if not small:
                large.append(None)
            return small

        try:
            data = pickle.dumps(item, 5, buffer_callback=keep_in_band)
        except Exception:
            return Frozen(dumps(item))
        if by_value.sessions and by_value.MAIN in data:
            return Frozen(dumps(item))
        if not large and len(data) < LEAST_STREAM_BYTES:
            return Frozen(data)
        if self._arena is None or not self._sending.acquire(timeout=seconds):
            return Frozen(dumps(item))
        try:
            self._receive_slots()
            return Heavy(encode([item], arena=self._arena))
        finally:
            self._sending.release()

    def has_room(self) -> bool:
        """Whether an item more may wait, or none may any more; just now, as no lock is taken."""
        return len(self._waiting) < self._credit or not self._takes_more

    def await_room(self, deadline: float | None) -> None:
        """Wait until an item more may wait, or none may any more; raises TimeoutError at the deadline."""
        with self._room:
            while self._takes_more and len(self._waiting) >= self._credit:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("no room came for the item within the timeout: the first Pipe is full")
                self._room.wait(left)

    def discard(self, entry: Any) -> None:
        """Give back the shared memory of what will not be sent."""
        if type(entry) is Heavy and type(entry.blob) is SharedBlob and self._arena is not None:
            with self._sending:
                self._arena.freed([place for place, _ in entry.blob.slots])

    def add(self, job: Job, deadline: float | None, waits: bool) -> bool:
        """Have a job sent; return False where no more are.  Raises TimeoutError where it `waits` for room in vain."""
        with self._room:
            if waits and len(self._waiting) >= self._credit:
                self.await_room(deadline)
            if not (self._takes_more and self._pending.add(job)):
                return False
            job.future.withdraw = partial(self.withdraw, job)
            self._waiting.append(job)
            is_first = len(self._waiting) == 1 and self._credit > 0
            if not (is_first and self._pace.allows_direct and self._is_sent_fast(job)):
                self._work.notify()
                return True
        self._send_directly()
        return True

    @property
    def _takes_more(self) -> bool:
        return self._next is not None and not self._pending.closed

    def _send_directly(self) -> None:
        """Send in this thread, unless another one sends just now."""
        with interrupts_held():
            if self._sending.acquire(blocking=False):
                try:
                    self.send_waiting()
                finally:
                    self._sending.release()
            else:
                with self._room:
                    self._work.notify()

    def send_waiting(self) -> None:
        """Send what there is room for."""
        with self._sending:
            self._pace.amid_message = True
            try:
                jobs, withdrawn = self._take()
                if withdrawn:
                    self._end.send(messages.WithdrawItems(self._run, withdrawn))
                if jobs:
                    self._send(jobs)
            except ConnectionLost:
                # The thread that takes results hears of that.
                self.stop()
            finally:
                self._pace.amid_message = False

    def _take(self) -> tuple[list[Job], tuple[int, ...]]:
        """Take the jobs that make the next message, and give them numbers."""
        jobs: list[Job] = []
        waiting = self._waiting
        with self._room:
            withdrawn, self._withdrawn = tuple(self._withdrawn), []
            most = min(self._credit, self._budget.items_per_blob)
            while waiting and len(jobs) < most and self._next is not None:
                job = waiting[0]
                is_heavy = type(job.entry) is Heavy
                if is_heavy and jobs:
                    break
                waiting.popleft()
                if job not in self._pending:
                    # It was cancelled, and leaves its room to another.
                    self.discard(job.entry)
                    self._room.notify()
                    self._pending.call_loops()
                    continue
                job.number = self._next
                self.sent[self._next] = job
                self._next += 1
                jobs.append(job)
                if is_heavy:
                    break
            self._credit -= len(jobs)
        return jobs, withdrawn

    def _send(self, jobs: list[Job]) -> None:
        """Send jobs in one message."""
        if self._pace.uses_arena:
            self._receive_slots()
        first = jobs[0].entry
        try:
            blob = first.blob if type(first) is Heavy else self._encoded([job.entry for job in jobs])
        except Exception as error:
            # There is no memory for it, say.
            self._take_back(jobs, error)
            return
        for job in jobs:
            job.entry = None
        self._end.send(messages.SourceItems(self._run, len(jobs), time.process_time()), [blob])
        self._pace.note(blob)
        self.progress.pulled += len(jobs)
        returned = 0
        with self._room:
            self._budget.take(len(jobs), len(blob))
            if self._budget.spent:
                returned, self._credit = self._credit, 0
        if returned:
            self._end.send(messages.ReturnCredit(self._run, returned))

    def _encoded(self, entries: list[Any]) -> Any:
        """Return one blob of what `entry_of` has made of items."""
        return encode(entries, arena=self._arena)

    @staticmethod
    def _is_sent_fast(job: Job) -> bool:
        """Whether what is sent for an item has few bytes."""
        entry = job.entry
        kind = type(entry)
        if kind is Frozen:
            return len(entry.data) < DIRECT_BYTES
        return kind in LIGHT or (kind is not Heavy and len(entry) < DIRECT_BYTES)

    def _take_back(self, jobs: list[Job], error: Exception) -> None:
        """Fail jobs that could not be sent; others get their numbers."""
        with self._room:
            self._credit += len(jobs)
            if self._next is not None:
                self._next -= len(jobs)
            # Some may have been cancelled meanwhile, and their numbers are of others then.
            numbers = [job.number for job in jobs if job.number is not None]
            self._withdrawn = [number for number in self._withdrawn if number not in numbers]
            for number in numbers:
                self.sent.pop(number, None)
            self._room.notify_all()
        for job in jobs:
            self._pending.fail(job, error)

    def _receive_slots(self) -> None:
        """Take in what the broker has said of shared memory."""
        while self._end.ready():
            message, _ = self._end.receive()
            match message:
                case messages.SlotsFreed():
                    assert self._arena is not None
                    self._arena.freed(message.slots)
                case messages.StopSource():
                    if message.run == self._run:
                        self.stop()
                case messages.Pull():
                    # Of a run before.
                    pass
                case _:
                    raise messages.unexpected(message, "The caller's feed of submitted items")

    def serve(self) -> None:
        """Send what comes, until no more is sent."""
        while True:
            with self._room:
                while self._next is not None and not self._withdrawn and not (self._waiting and self._credit > 0):
                    self._work.wait()
                if self._next is None:
                    return
            with gate.passed():
                self.send_waiting()

    def grant(self, credit: int) -> None:
        """Take in that the broker has room for more."""
        with self._room:
            self._credit += credit
            self._budget.renew(self._credit)
            self._room.notify_all()
            self._work.notify()
        self._pending.call_loops()

    def heard(self) -> None:
        """Take in that the broker has said something."""
        self._pace.unheard = 0

    def withdraw(self, job: Job) -> None:
        """Take in that a job was cancelled."""
        if self._pending.withdraw(job):
            self.drop(job)

    def drop(self, job: Job) -> None:
        """Have the broker drop what is under way of a job that has its outcome."""
        with self._room:
            if job.number is None:
                self._work.notify()
            elif self._next is not None:
                self.sent.pop(job.number, None)
                self._withdrawn.append(job.number)
                self._work.notify()

    def refuse(self) -> None:
        """Have nobody wait for room any more: no more jobs are taken."""
        with self._room:
            self._room.notify_all()
        self._pending.call_loops()

    def end(self) -> None:
        """Say that nothing more comes."""
        with self._sending:
            self.send_waiting()
            if self._next is None:
                return
            with contextlib.suppress(ConnectionLost):
                self._end.send(messages.SourceEnded(self._run))
                self.progress.ended = True
        self.stop()

    def stop(self) -> None:
        """Send nothing more."""
        with self._room:
            self._next = None
            self._room.notify_all()
            self._work.notify_all()
        self._pending.call_loops()
