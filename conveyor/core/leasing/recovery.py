"""What becomes of a worker that is at a call for too long, of the items of one that died, and of those given back.

Law: an item that was not acknowledged is requeued in its place, with the outputs that are there already.  The run fails
only where `CrashBlame` says so, or where `finish` cannot be called again.

A worker is killed only for the time of the call that it is at.  The core asks the broker for how long the worker has
been at that, and only the answer counts.  It asks several times, so that a worker that could not run can go on.
"""

from __future__ import annotations

from collections.abc import Iterable

from conveyor._lean.typing import Any
from conveyor.core.commands import Fail, GiveUp, KillWorker, Loss, ProbeWorker, Reason
from conveyor.core.data.pieces import Pieces
from conveyor.core.events import ProbeResult, WorkerLost
from conveyor.core.leasing.blame import CrashBlame
from conveyor.core.leasing.credit import OutputOrder
from conveyor.core.leasing.leases import SHARED_DEATHS, Lease, LeaseBook, RequeuedItems, Worker, order_key
from conveyor.core.nodes.base import NodeContext
from conveyor.graph.plan import StepNode

# A worker is killed after so many answers in a row that say that it is overdue at the same call, so far apart.
OVERDUE_ANSWERS = 3
PROBE_AGAIN_SECONDS = 0.02
# The first thread of a worker of several threads notes four times within a timeout that it runs.  If it has not for
# this share of the timeout, one of the others may keep the interpreter to itself.
SILENT_SHARE = 0.5


class TimeoutMonitor:
    """Probes the workers of one step; with no timeout, none is ever due."""

    def __init__(self, timeout: float | None, context: NodeContext, each_call: bool = False) -> None:
        self._timeout = timeout
        self._context = context
        # Whether a worker is at several calls, and knows the time of each: then a reply says nothing of the others.
        self._each_call = each_call
        # When to look next.
        self.due_at: float | None = None

    def heard(self, worker: Worker) -> None:
        """Take in that a worker replies, or gets work after it had none."""
        worker.last_heard = self._context.now
        if self._timeout is not None and not (self._each_call and worker.leases and worker.probe_at is not None):
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


def notes_each(node: StepNode, worker: Worker, event: WorkerLost) -> bool:
    """Whether it is known of each call that a killed worker was at whether that was overdue."""
    # Where no call was under way, and its first thread did not run, it hung in that.
    return node.threaded and worker.overdue is not None and bool(event.under_way or not event.silent)


def overdue_calls(node: StepNode, event: WorkerLost) -> tuple[list[tuple[int, int]], bool]:
    """Return the calls that may have been overdue when their worker was killed, and whether each of them certainly was.

    Other calls may only have waited for one that kept the interpreter to itself.
    """
    timeout = node.timeout or 0.0
    if event.silent >= timeout * SILENT_SHARE:
        calls = [(lease, calls) for lease, calls, _ in event.under_way]
        return calls, len(calls) == 1
    # One that was not overdue yet when the worker was probed first may end just now.
    least = timeout + (OVERDUE_ANSWERS - 1) * PROBE_AGAIN_SECONDS
    return [(lease, calls) for lease, calls, seconds in event.under_way if seconds >= least], True


def overdue_items(node: StepNode, worker: Worker, event: WorkerLost, batch_size: int) -> tuple[int, int] | None:
    """Return the first and the last item that a killed worker may have been at for too long; None: at none."""
    call, is_certain = None, node.hands == 1
    if notes_each(node, worker, event):
        calls, is_certain = overdue_calls(node, event)
        call = min(calls, default=None)
    elif was_overdue(worker, event):
        call = event.started
    if call is None:
        return None
    lease = next(lease for lease in worker.leases if lease.number == call[0])
    first, last = lease.call_range(call[1] - 1, batch_size)
    return first if is_certain else lease.first, last


class Recovery:
    """The requeued items of a step, and who is to blame for the deaths of its workers."""

    __slots__ = ("_attempts", "_book", "_node", "_order", "crash_blame", "requeued")

    def __init__(self, node: StepNode, book: LeaseBook, order: OutputOrder) -> None:
        self._node = node
        self._book = book
        self._order = order
        self.crash_blame = CrashBlame(node)
        # Which attempt the only call of a lease is, by the number of the lease; any other is the first.
        self._attempts: dict[int, int] = {}
        # In their order.
        self.requeued: list[RequeuedItems] = []

    @property
    def items(self) -> int:
        """How many items were taken back, and wait for a worker."""
        return sum(each.pieces.items for each in self.requeued) if self.requeued else 0

    @property
    def held(self) -> int:
        """How many of these count against the bound of the pipe in front."""
        return sum(max(0, each.pieces.items - each.in_hand) for each in self.requeued) if self.requeued else 0

    def requeue(self, lease: Lease, items: int) -> RequeuedItems:
        """Take the last items of a lease back."""
        pieces = Pieces()
        pieces.extend(lease.pieces, lease.given)
        pieces.take(lease.given - items)
        requeued = RequeuedItems(lease.number, lease.first + lease.items - items, pieces.take(items), items)
        if items == lease.items:
            requeued.skip = lease.partial
            requeued.give_up = lease.give_up
            requeued.attempt = self._attempts.get(lease.number, 1)
        lease.items -= items
        lease.given -= items
        before = self._book.prefetched
        self._book.add_outstanding(lease.worker, -items)
        requeued.in_hand = items - (before - self._book.prefetched)
        self.requeued.append(requeued)
        self.requeued.sort(key=order_key)
        self._order.requeue(lease, requeued)
        return requeued

    def handed_out(self, requeued: RequeuedItems, items: int, lease: int) -> None:
        """Take in that the first of these items were handed out, with the lease of that number."""
        if requeued.attempt > 1:
            self._attempts = {each: self._attempts[each] for each in self._attempts if each in self._book.leases}
            self._attempts[lease] = requeued.attempt
        requeued.first += items
        requeued.skip, requeued.give_up, requeued.attempt = 0, None, 1
        if not requeued.pieces.items:
            self.requeued.remove(requeued)
            self._order.remove(requeued)

    def begun_together(self, worker: Worker, event: WorkerLost) -> list[Lease]:
        """Return the leases with calls that a worker was at, at once, when it died."""
        last = None if event.started is None else event.started[0]
        return [lease for lease in worker.leases if lease.items and (last is None or lease.number <= last)]

    def lose(self, lease: Lease, at_work: bool, event: WorkerLost, is_only: bool = True) -> Fail | None:
        """Requeue what a dead worker had not acknowledged of a lease: what it had started, and what it had not.

        `is_only`: it was at no other lease.
        """
        if lease.finish:
            return Fail(self._node.index, event.worker, None, None, event.cause, Loss.FINISH)
        if at_work and event.unpickling:
            return self._lose_unpickled(lease, event)
        batch_size = self._book.batch_size
        started = lease.started_unacknowledged(batch_size, at_work, event.started)
        if lease.items > started * batch_size:
            self.requeue(lease, lease.items - started * batch_size)
        if not lease.items:
            return None
        if notes_each(self._node, lease.worker, event):
            return self._lose_beside_overdue(lease, event)
        overdue, give_up = lease.worker.overdue is not None, None
        # With a timeout, a worker of one hand starts calls one by one, and only the last one can be to blame.
        exact = at_work and is_only and (started == 1 or (self._node.timeout is not None and self._node.hands == 1))
        first, last = lease.first + (started - 1) * batch_size * exact, lease.first + lease.items - 1
        if exact and not overdue:
            give_up = self.crash_blame.died(first, last, event)
        elif exact and was_overdue(lease.worker, event):
            give_up = self.crash_blame.was_overdue(first, last)
        if give_up is not None and not self._node.gives_up:
            loss = Loss.ITEM if give_up.kind == Reason.DIED else Loss.OVERDUE
            return Fail(self._node.index, event.worker, first, last, give_up.cause, loss)
        requeued = self.requeue(lease, last - first + 1)
        requeued.deaths = lease.deaths + (at_work and not overdue)
        if not exact and at_work and was_overdue(lease.worker, event):
            # One of several that were begun together took too long.
            requeued.deaths = SHARED_DEATHS
        if exact and give_up is None:
            requeued.attempt = 1 + self._attempts.get(lease.number, 1)
        if lease.give_up is not None:
            give_up = lease.give_up
            if at_work and self.crash_blame.died_of_that(first, give_up, event):
                give_up = give_up._replace(skip_unpickling=True)
        requeued.give_up = give_up
        if lease.items:
            # These calls seem to be done, but their outputs are lost.
            self.requeue(lease, lease.items)
        return None

    def _lose_beside_overdue(self, lease: Lease, event: WorkerLost) -> Fail | None:
        """Requeue what a killed worker had started: each call that was overdue by itself, the others without blame."""
        batch_size, attempt = self._book.batch_size, self._attempts.get(lease.number, 1)
        done = (lease.given - lease.items) // batch_size
        late, is_certain = overdue_calls(self._node, event)
        indices = sorted(calls - 1 - done for number, calls in late if number == lease.number and calls > done)
        give_ups: dict[int, GiveUp | None] = {}
        for index in indices:
            first = lease.first + index * batch_size
            last = min(first + batch_size, lease.first + lease.items) - 1
            give_ups[index] = give_up = self.crash_blame.was_overdue(first, last) if is_certain else None
            if give_up is not None and not self._node.gives_up:
                return Fail(self._node.index, event.worker, first, last, give_up.cause, Loss.OVERDUE)
        for index in reversed(indices):
            behind = lease.items - (index + 1) * batch_size
            if behind > 0:
                self.requeue(lease, behind).deaths = lease.deaths
            requeued = self.requeue(lease, lease.items - index * batch_size)
            requeued.give_up = give_ups[index]
            # Where nobody knows which one it was, each is tried alone.
            requeued.deaths = lease.deaths if is_certain else SHARED_DEATHS
            if is_certain and requeued.give_up is None:
                requeued.attempt = attempt + 1
        if lease.items:
            self.requeue(lease, lease.items).deaths = lease.deaths
        return None

    def _lose_unpickled(self, lease: Lease, event: WorkerLost) -> Fail | None:
        """Items are unpickled together, so nobody knows at which one the worker died."""
        first, last = lease.first, lease.first + lease.items - 1
        if self.crash_blame.unpickled(first):
            return Fail(self._node.index, event.worker, first, last, event.cause, Loss.UNPICKLE)
        self.requeue(lease, lease.items)
        return None

    def lose_unstarted(self, worker: Worker, event: WorkerLost, now: float) -> Fail | None:
        """A worker that had started nothing of what it was handed may have died of receiving that."""
        lease = next((lease for lease in worker.leases if lease.items), None)
        if lease is None or not event.ready or event.started is None or event.started >= (lease.number, 1):
            return None
        if not self.crash_blame.received(lease.first, event.killed, now):
            return None
        last = lease.first + lease.items - 1
        return Fail(self._node.index, event.worker, lease.first, last, event.cause, Loss.RECEIVE)

    def failure_of(self, worker_number: int, lease_number: int | None, call: int | None, cause: Any) -> Fail:
        """Return the failure of a call, a lease, or all that a worker has, with the items that may be to blame."""
        batch_size = self._book.batch_size
        first: int | None = None
        last: int | None = None
        if lease_number is None:
            worker = self._book.worker(worker_number)
            leases = [lease for lease in worker.leases if lease.items] if worker is not None else []
            if leases:
                first, last = leases[0].first, leases[-1].first + leases[-1].items - 1
        else:
            lease = self._book.leases[lease_number]
            if lease.items and call is None:
                first, last = lease.first, lease.first + lease.items - 1
            elif lease.items and call is not None:
                first = lease.first + call * batch_size
                last = min(first + batch_size, lease.first + lease.items) - 1
        return Fail(self._node.index, worker_number, first, last, cause)
