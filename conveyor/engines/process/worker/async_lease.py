"""What a worker with an async job has in hand: its leases, their calls, and what these gave.

Law: nothing here calls the job.  All is done by the thread of the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.engines.failures import LeaseFailed
from conveyor.engines.process.wire import messages
from conveyor.engines.process.worker.mailbox import CpuMeter, Inbox
from conveyor.engines.process.worker.retry import Retrier


class AsyncMeter(CpuMeter):
    """Measures what all leases take together: each reply tells what there was since the last one."""

    def __init__(self, of_thread: bool) -> None:
        super().__init__(of_thread)
        self.is_idle = True

    def begin(self) -> None:
        if self.is_idle:
            super().begin()

    def lap(self) -> tuple[float, tuple[float, ...]]:
        self.job_seconds = time.perf_counter() - self.began
        self.is_idle = True
        try:
            return super().lap()
        finally:
            self.is_idle = False


class AsyncInbox(Inbox):
    """Hands what comes to the lease that it is for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.runs: dict[int, LeaseRun] = {}

    def take_in(self, message: messages.Message, blobs: list[Any]) -> None:
        if type(message) is messages.Grant:
            run = self.runs.get(message.lease)
            if run is not None:
                run.outbox.grant(message.lease, message.credit)
                run.changed.set()
            return
        super().take_in(message, blobs)

    def new_leases(self) -> list[tuple[messages.StartLease, list[Any]]]:
        """Return the leases that have come."""
        leases = list(self._leases)
        self._leases.clear()
        return leases

    def receive_all(self) -> None:
        """Take in what has come."""
        while self._end.ready():
            self._receive()

    @property
    def is_closing(self) -> bool:
        return self._closing

    def is_stopping(self) -> bool:
        return self._cancelled or self._closing

    def await_credit(self) -> bool:
        # `LeaseRun.await_credit` has seen to it.
        return False


class Arrival:
    """Wakes the event loop where a message may have come, or none can be sent any more."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._lost: BaseException | None = None

    def set(self) -> None:
        """Say that a message may have come."""
        self._event.set()

    def lose(self, lost: BaseException) -> None:
        """Say that the worker cannot go on: no message can be sent any more, or there is an error in Conveyor."""
        self._lost = lost
        self._event.set()

    async def wait(self) -> None:
        """Wait until a message may have come; raises what the worker is to end with."""
        await self._event.wait()
        self._event.clear()
        if self._lost is not None:
            raise self._lost


class Call:
    """One call of the job, with what it has given and nobody has taken."""

    __slots__ = ("attempts", "drained", "error", "given", "index", "is_done", "outputs", "waited", "waits_since")

    def __init__(self, index: int, skip: int) -> None:
        self.index = index
        self.outputs: deque[Any] = deque()
        # How many outputs it has given, those included that a worker gave that was lost.
        self.given = skip
        self.is_done = False
        self.error: BaseException | None = None
        self.attempts = 1
        self.drained: Any = asyncio.Event()
        # How long it has waited for room, and since when it does.
        self.waited = 0.0
        self.waits_since: float | None = None


class LeaseRun:
    """A lease at work: what it gives leaves in the order of its calls."""

    def __init__(self, lease: messages.StartLease, retrier: Retrier, outbox: Any, lease_items: Any) -> None:
        self.lease = lease
        self.retrier = retrier
        self.outbox = outbox
        self.lease_items = lease_items
        self.calls: list[Call] = []
        # Whether no more calls begin, and why the whole lease has failed.
        self.is_started = False
        self.failed: LeaseFailed | None = None
        self.changed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        # Whether nothing more is wanted of it, so that its tasks were cancelled.
        self.is_left = False
        # How many outputs of the call at hand are not sent, and when what there is has waited for long enough.
        self.unsent = 0
        self.flush_at: float | None = None

    def cancel(self) -> None:
        """Cancel what is under way: nothing more is wanted of it."""
        self.is_left = True
        for task in self.tasks:
            task.cancel()

    def is_of_job(self, error: BaseException) -> bool:
        """Whether the job has raised that.  It may raise CancelledError itself, where it awaits what was cancelled."""
        return not (self.is_left and isinstance(error, asyncio.CancelledError))

    def flush(self, final: bool = False, starving: bool = False) -> None:
        """Send what there is."""
        self.outbox.flush(final, starving, self.lease_items.leave)
        self.unsent, self.flush_at = 0, None

    async def change(self, flush_seconds: float) -> None:
        """Wait until something has changed here; meanwhile send what there is, in time."""
        outbox, timer = self.outbox, None
        if outbox.calls or outbox.outputs:
            now = time.monotonic()
            self.flush_at = self.flush_at or now + flush_seconds
            if now >= self.flush_at:
                self.flush()
            else:
                timer = asyncio.get_running_loop().call_later(self.flush_at - now, self.changed.set)
        await self.changed.wait()
        self.changed.clear()
        if timer is not None:
            timer.cancel()

    async def await_credit(self) -> None:
        """Wait until one more output may be given."""
        outbox = self.outbox
        if outbox.credit > 0 and not outbox.budget.spent:
            return
        self.flush(starving=True)
        outbox.credit = 0
        while outbox.credit <= 0:
            await self.changed.wait()
            self.changed.clear()
