"""Items that are submitted one by one: the Future of each, and which of them have no outcome yet.

Law: each Future gets one outcome, from whoever claims it first: a result, an error, or that it was cancelled.  No lock
is held while it gets that, as it calls what the user has added to it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.base import FORKED
from conveyor.errors import StateError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from conveyor.engines.base import JobRun
    from conveyor.engines.loops import LoopClient, Outcome


class JobFuture(Future[list[Any]]):
    """The Future of a submitted item; it can be cancelled until it has an outcome."""

    # Whether an event loop waits for it.
    is_of_loop = False
    # What has to be done where it is cancelled.
    withdraw: Callable[[], object] | None = None
    # Whether its error is the item's alone, and the error of a part of it that was skipped: see `Outcome`.
    is_given_up = False
    skipped: BaseException | None = None

    def cancel(self) -> bool:
        """Cancel, and return whether there was no outcome yet: what has begun runs on, and nobody gets its outputs."""
        if not super().cancel():
            return False
        withdraw = self.withdraw
        if withdraw is not None:
            withdraw()
        return True

    def disown(self) -> None:
        """In a process that was forked since: no thread is left there that could give it an outcome."""
        # Another thread may have held its lock.  Whoever waits for it, or added something, is of the other process.
        self._condition = threading.Condition()
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self.withdraw = None
        if not self.done():
            self.set_exception(StateError(FORKED))


class Job:
    """A submitted item, on its way."""

    __slots__ = ("entry", "future", "number", "parts")

    def __init__(self, entry: Any, future: JobFuture | Outcome) -> None:
        # What is sent for it, until that was sent; and its number in the run, from then on.
        self.entry = entry
        self.number: int | None = None
        self.future = future
        # What has come of it, with the place of each.
        self.parts: list[tuple[Any, Any]] = []


_everywhere: weakref.WeakSet[PendingJobs] = weakref.WeakSet()


class PendingJobs:
    """The jobs without an outcome."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        # Reentrant, as a signal handler may submit an item as well.
        self._lock = threading.RLock()
        self._none_left = threading.Condition(self._lock)
        # How many threads wait until there is none.
        self._waiting = 0
        # Whether no more are taken.
        self.closed = False
        # What submits the items of each event loop.  It is replaced and never changed, as any thread reads it.
        self._clients: tuple[LoopClient, ...] = ()
        _everywhere.add(self)

    def disown(self) -> None:
        """In a process that was forked since, have none."""
        self._lock = threading.RLock()
        self._none_left = threading.Condition(self._lock)
        self.closed = True
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.future.disown()

    def client(self, loop: AbstractEventLoop, run: JobRun) -> LoopClient:
        """Return what submits the items of an event loop; called in the thread of that loop."""
        for client in self._clients:
            if client.loop is loop:
                return client
        # Few programs have any.
        from conveyor.engines.loops import LoopClient

        client = LoopClient(loop, run)
        with self._lock:
            self._clients = (client, *(each for each in self._clients if not each.loop.is_closed()))
        return client

    def call_loops(self) -> None:
        """Have event loops come for outcomes, or with what waits for room."""
        for client in self._clients:
            client.call()

    def give_way(self) -> None:
        """Let event loops come for outcomes, in the middle of many."""
        for client in self._clients:
            client.call()
            client.give_way()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return id(job) in self._jobs

    def add(self, job: Job) -> bool:
        """Take a job, unless no more are taken."""
        with self._lock:
            if self.closed:
                return False
            self._jobs[id(job)] = job
        return True

    def close_if_none(self) -> bool:
        """Take no more, where there is none; return whether that is so."""
        with self._lock:
            if self._jobs:
                return False
            self.closed = True
            return True

    def close(self) -> None:
        """Take no more."""
        with self._lock:
            self.closed = True

    def wait(self, deadline: float | None) -> bool:
        """Wait until all have an outcome, or for the deadline; return whether they have."""
        with self._none_left:
            self._waiting += 1
            try:
                while self._jobs:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return False
                    self._none_left.wait(left)
            finally:
                self._waiting -= 1
        return True

    def claim(self, job: Job) -> bool:
        """Whether the caller of this, and nobody else, is to see to the outcome of a job."""
        if self._jobs.pop(id(job), None) is None:
            return False
        # Else the two would keep each other.
        job.future.withdraw = None
        return True

    def notify(self) -> None:
        """Wake whoever waits: for an outcome in an event loop, or until there is no job."""
        self.call_loops()
        # Whoever begins to wait now looks first whether there is any.
        if self._waiting and not self._jobs:
            with self._lock:
                self._none_left.notify_all()

    def resolve(self, job: Job, results: list[Any]) -> None:
        """Give a job its results."""
        if self.claim(job) and job.future.set_running_or_notify_cancel():
            # A callback may raise what `Future` lets through.
            with contextlib.suppress(BaseException):
                job.future.set_result(results)

    def give_up(self, job: Job, error: BaseException) -> None:
        """Give a job the error of its item alone."""
        self.fail(job, error, is_given_up=True)

    def fail(self, job: Job, error: BaseException, is_given_up: bool = False) -> None:
        """Give a job an error."""
        if self.claim(job) and job.future.set_running_or_notify_cancel():
            job.future.is_given_up = is_given_up
            with contextlib.suppress(BaseException):
                job.future.set_exception(error)
        self.notify()

    def withdraw(self, job: Job) -> bool:
        """Take in that a job was cancelled; return whether it had no outcome."""
        if not self.claim(job):
            return False
        job.future.set_running_or_notify_cancel()
        self.notify()
        return True

    def end(self, error: BaseException | None) -> None:
        """Take no more, and give all that are left an error; None: cancel them."""
        self.close()
        while self._jobs:
            for job in list(self._jobs.values()):
                if error is not None:
                    self.fail(job, error)
                else:
                    with contextlib.suppress(BaseException):
                        job.future.cancel()
                    # Where it was cancelled before, nobody else may have claimed it.
                    self.withdraw(job)
        self.notify()


def _disown_all() -> None:
    for pending in list(_everywhere):
        pending.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
