"""Who is too long at an item.

Law: nobody is ended for the time of another item, or for a time in which it waited: what a worker is at, and for how
long, is asked when it may be too long, and only the answer counts.  Nor for one in which the whole machine stood still:
it is asked again, a moment later each time, until a worker that has come to itself would have gone on.
"""

from __future__ import annotations

from collections.abc import Iterable

from conveyor.core.commands import KillWorker, ProbeWorker
from conveyor.core.events import ProbeResult, WorkerLost
from conveyor.core.leasing.leases import Worker
from conveyor.core.nodes.base import NodeContext

# After how many answers in a row that a worker is too long at the same unit it is ended, and how long to wait between.
OVERDUE_ANSWERS = 3
PROBE_AGAIN_SECONDS = 0.02


class TimeoutMonitor:
    """The timeout of a step: None where it has none, and nothing is ever due."""

    def __init__(self, timeout: float | None, context: NodeContext) -> None:
        self._timeout = timeout
        self._context = context
        # When to look next.
        self.due_at: float | None = None

    def heard(self, worker: Worker) -> None:
        """Take in that a worker says something, or begins to be at work."""
        worker.heard = self._context.now
        if self._timeout is not None:
            worker.due = worker.heard + self._timeout

    def look(self, workers: Iterable[Worker]) -> None:
        """Ask what those are at that may be too long at something by now."""
        self.due_at = None
        if self._timeout is None:
            return
        for worker in workers:
            if worker.due is None or not worker.leases or worker.overdue:
                continue
            if self._context.now >= worker.due:
                # Until the answer says something else.
                worker.due = self._context.now + self._timeout
                self._context.command(ProbeWorker(worker.number))
            self.due_at = worker.due if self.due_at is None else min(self.due_at, worker.due)

    def handle_probe_result(self, worker: Worker, event: ProbeResult) -> None:
        """Have a worker ended that is too long at what it is at."""
        if self._timeout is None or worker.overdue or not worker.leases:
            return
        if event.seconds is None:
            worker.suspected = None
            return
        at = event.lease, event.calls
        if event.seconds < self._timeout:
            worker.suspected = None
            worker.due = self._context.now + self._timeout - event.seconds
            return
        if worker.suspected != at:
            worker.suspected, worker.answers = at, 0
        worker.answers += 1
        if worker.answers < OVERDUE_ANSWERS:
            worker.due = self._context.now + PROBE_AGAIN_SECONDS
        else:
            worker.overdue = at
            self._context.command(KillWorker(worker.number))


def was_overdue(worker: Worker, event: WorkerLost) -> bool:
    """Whether a worker that has been ended was still at the unit at which it was too long."""
    return worker.overdue is not None and worker.overdue == event.started
