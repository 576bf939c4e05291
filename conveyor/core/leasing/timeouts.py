"""The timeout of a step: which worker has been at a call for too long.

Law: a worker is killed only for the time of the call that it is at.  The core asks the broker for how long the worker
has been at that, and only the answer counts.  It asks several times, so that a worker that could not run can go on.
"""

from __future__ import annotations

from collections.abc import Iterable

from conveyor.core.commands import KillWorker, ProbeWorker
from conveyor.core.events import ProbeResult, WorkerLost
from conveyor.core.leasing.leases import Worker
from conveyor.core.nodes.base import NodeContext

# A worker is killed after so many answers in a row that say that it is overdue at the same call, so far apart.
OVERDUE_ANSWERS = 3
PROBE_AGAIN_SECONDS = 0.02


class TimeoutMonitor:
    """Probes the workers of one step; with no timeout, none is ever due."""

    def __init__(self, timeout: float | None, context: NodeContext) -> None:
        self._timeout = timeout
        self._context = context
        # When to look next.
        self.due_at: float | None = None

    def heard(self, worker: Worker) -> None:
        """Take in that a worker replies, or gets work after it had none."""
        worker.last_heard = self._context.now
        if self._timeout is not None:
            worker.probe_at = worker.last_heard + self._timeout

    def probe_due(self, workers: Iterable[Worker]) -> None:
        """Have the workers probed that may have exceeded the timeout by now."""
        self.due_at = None
        if self._timeout is None:
            return
        for worker in workers:
            if worker.probe_at is None or not worker.leases or worker.overdue:
                continue
            if self._context.now >= worker.probe_at:
                # The answer may set an earlier time.
                worker.probe_at = self._context.now + self._timeout
                self._context.command(ProbeWorker(worker.number))
            self.due_at = worker.probe_at if self.due_at is None else min(self.due_at, worker.probe_at)

    def handle_probe_result(self, worker: Worker, event: ProbeResult) -> None:
        """Have a worker killed that is overdue."""
        if self._timeout is None or worker.overdue or not worker.leases:
            return
        if event.seconds is None:
            worker.suspect = None
            return
        at = event.lease, event.calls
        if event.seconds < self._timeout:
            worker.suspect = None
            worker.probe_at = self._context.now + self._timeout - event.seconds
            return
        if worker.suspect != at:
            worker.suspect, worker.overdue_answers = at, 0
        worker.overdue_answers += 1
        if worker.overdue_answers < OVERDUE_ANSWERS:
            worker.probe_at = self._context.now + PROBE_AGAIN_SECONDS
        else:
            worker.overdue = at
            self._context.command(KillWorker(worker.number))


def was_overdue(worker: Worker, event: WorkerLost) -> bool:
    """Whether a worker that was killed was still at the call that was overdue."""
    return worker.overdue is not None and worker.overdue == event.started
