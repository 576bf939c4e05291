"""A Processor in the core: a pipe in front, workers, leases, and the order of what comes back.

Law: an item is in exactly one place: in the queue, in one lease, in a rest that was taken back from a lease, or
acknowledged.  A lease holds whole units (one item, or one batch), in the order of the queue.  What a lease may give
is reserved in the pipe behind before it is handed out (credit), so a worker is never left with an output that nobody
has room for, and a full pipe stops the step.  With `ordered`, outputs leave in the order of the items: those of a
later lease wait, within their reservation.  As much room as the next node needs is always left for the first lease,
and without `ordered` for the leases that workers are at, which those behind them wait for.
"""

from __future__ import annotations

from collections import deque

from conveyor._lean.typing import Any
from conveyor.core.commands import CancelLeases, EndWorker, Fail, GaveUp, Grant, Loss, Reason, Revoke, SendLease
from conveyor.core.data.group_sizes import Batcher, GroupSizes, Regroup
from conveyor.core.data.pieces import Piece, Pieces
from conveyor.core.events import ProbeResult, Replied, RevokeResult, WorkerLost
from conveyor.core.leasing.blame import CrashBlame
from conveyor.core.leasing.leases import Lease, RequeuedItems, Worker, order_key
from conveyor.core.leasing.timeouts import TimeoutMonitor, was_overdue
from conveyor.core.leasing.work_stealing import worker_to_revoke
from conveyor.core.nodes.base import Node, NodeContext, Output
from conveyor.core.nodes.step_invariants import check_step
from conveyor.core.tuning.autoscaling import StepLoad
from conveyor.core.tuning.chunk_size import WEIGHT, ChunkSizer
from conveyor.core.tuning.roster import StepRoster
from conveyor.core.tuning.utilization import Utilization
from conveyor.stats import StepStats

# Items at some of which so many workers in a row have died are handed out one by one: fewer may have died of something
# else.
SHARED_DEATHS = 2


class Step(Node):
    """The running form of a `StepNode`."""

    def __init__(self, step_roster: StepRoster, context: NodeContext) -> None:
        node = step_roster.node
        super().__init__(node.index, context, node.bound_bytes)
        self.step_roster = step_roster
        self.batch_size = node.batch or 1
        self.bound = max(node.bound, self.batch_size)
        self.shared = node.shared
        self.ordered = node.ordered
        self.output: Output
        self._reserve = 1
        self.workers = [Worker(number, node.max_items) for number in step_roster.numbers]
        # Each worker may hold one output more than the pipe behind has room for; one that left does not take that back.
        self.peak_workers = len(self.workers)
        # When to look whether a worker that says nothing is stuck while another has nothing to do.
        self.look_at: float | None = None
        self.timeout_monitor = TimeoutMonitor(node.timeout, context)
        self.utilization = Utilization(step_roster, context.now)
        self._reports_demand = False
        # Whether it has looked in vain for room behind it: else it needs no pump to hear of more.
        self._short = True
        self.chunk_sizer = ChunkSizer(
            max(1, self.bound // (4 * self.batch_size)), self.item_weight, context.chunk_target, self.batch_size
        )
        self._finishes = node.finishes
        self._queue = Pieces()
        # When something came in last.
        self._last_arrival = context.now
        self._requeued: list[RequeuedItems] = []
        self._crash_blame = CrashBlame(node)
        # How many items came in, were taken out of the queue, and were acknowledged, in all.
        self.entered = 0
        self._leased = 0
        self.acknowledged = 0
        self._ended = False
        self._done = False
        self._cancelled = False
        # What has a lower number was handed out in the run before.
        self._first_lease = step_roster.next_lease
        self._leases: dict[int, Lease] = {}
        self._order: deque[Lease | RequeuedItems] = deque()
        self._starving: deque[Lease] = deque()
        # Outputs that may still come on credit, or wait for their turn; items that workers have beyond one unit each.
        self.promised = self._prefetched = 0
        self._regroup = Regroup()
        self._batcher = Batcher(self.batch_size)
        self._outputs_per_call = 1.0

    # What comes in

    @property
    def held(self) -> int:
        """How many items count against the bound of the pipe in front."""
        held = self._queue.items + self._prefetched
        return (
            held + sum(max(0, rest.pieces.items - rest.in_hand) for rest in self._requeued) if self._requeued else held
        )

    @property
    def requeued_items(self) -> int:
        """How many items were taken back, and wait for a worker."""
        return sum(rest.pieces.items for rest in self._requeued) if self._requeued else 0

    @property
    def outstanding(self) -> int:
        """How many leases are with workers."""
        return len(self._leases)

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        return self.most(self.bound, weighed) - self.held

    def demand(self) -> int:
        """How many items its workers could take at once, beyond those that wait; none where outputs have no room."""
        most = self._looks_ahead() + 1
        hands = sum(max(0, most - len(worker.leases)) for worker in self.workers if not worker.leaving)
        wanted = hands * self.chunk_sizer.size * self.batch_size - self._queue.items - self.requeued_items
        return min(self.free_capacity(0), wanted) if wanted > 0 and self._spare(bool(self._leases)) > 0 else 0

    def report_demand(self) -> None:
        """Take in that the node in front deals items out by this step's appetite, and has to hear when it has some."""
        self._reports_demand = True

    def preferred_chunk(self) -> int:
        return self.chunk_sizer.size * self.batch_size

    def min_batch(self) -> int:
        return self.batch_size

    def shares_pipe(self) -> bool:
        return self.shared

    def shared_pipe_items(self) -> int:
        return self.held if self.shared else 0

    def connect(self, output: Output) -> None:
        """Take in where the outputs go."""
        self.output = output
        self._reserve = output.min_batch()

    def feed(self, blob: Any, items: int, size: int) -> None:
        """Take in a blob from the source."""
        self.weigh(0, items, size)
        self._queue.push(blob, items)
        self.entered += items
        self._last_arrival = self.context.now
        self.wake()

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        self._queue.extend(pieces, items)
        self.entered += items
        if items:
            self._last_arrival = self.context.now
        if group_sizes is not None:
            self._regroup.push(*self._batcher.calls(group_sizes, items))
        self.wake()

    def end(self, port: int) -> None:
        self._ended = True
        self.wake()

    def capacity_freed(self) -> None:
        if self._short:
            self.wake()

    # What goes on

    def pump(self) -> None:
        if self._cancelled:
            return
        self._count_time()
        self._short = self._reports_demand
        if not self._leases:
            # With nothing under way, groups that are empty already must not wait for the next output.
            closed = self._regroup.feed([], 0)
            if closed:
                self.output.push((), 0, closed)
        self._grant()
        while (self._queue.items or self._requeued) and self._lease():
            pass
        waits = self._finishes and any(worker.revoked for worker in self.workers)
        if self._ended and not (self._queue.items or self._requeued or self._done or waits):
            self._finish()
        if len(self.workers) > 1:
            self._steal()
        self.timeout_monitor.look(self.workers)
        if self.step_roster.node.max_items is not None:
            for worker in [worker for worker in self.workers if worker.replaced and not worker.leases]:
                self._end_worker(worker)
        self._update_utilization()
        if self._reports_demand and self.demand() > 0:
            self.wake_upstream()

    def _spare(self, waits: bool, weighed: bool = True) -> int:
        """How many more outputs may be promised to a lease; one that waits for another leaves the other's reserve."""
        spare = self.output.free_capacity(weighed) + self.peak_workers - self.promised - self._reserve * waits
        if spare < 1:
            self._short = True
        return spare

    def _credit(self, waits: bool) -> int:
        """How many outputs may be promised to a lease that is known to need some."""
        spare = self._spare(waits)
        if spare < 1 and not waits:
            # Items that turned out heavy: more may be promised to leases that wait than the pipe now holds.
            spare = min(1, self.output.free_capacity(), self._spare(waits, weighed=False))
        return spare

    def _would_wait(self, worker: Worker) -> bool:
        """Whether outputs of the worker's next lease wait for another lease: in their order, or for the worker."""
        return bool(self._order if self.ordered else worker.leases)

    def _lease(self) -> bool:
        """Hand out one lease, if there is a worker, a unit and room for what comes of it; what was taken back first."""
        rest = self._requeued[0] if self._requeued else None
        waiting = self._queue if rest is None else rest.pieces
        calls, short = divmod(waiting.items, self.batch_size)
        if short and (rest is not None or self._ended):
            calls += 1
        if not calls:
            return False
        size = self.chunk_sizer.size_of(calls // max(1, len(self.workers)))
        worker = self._free_worker(calls, size, rest is None)
        if worker is None:
            return False
        idle = 1 if len(self.workers) == 1 else sum(1 for each in self.workers if not each.leases and not each.leaving)
        if rest is None:
            spare = self._spare(self._would_wait(worker))
        else:
            spare = self._credit(self._order[0] is not rest if self.ordered else bool(worker.leases))
        if spare < 1:
            return False
        share = -(-calls // idle) if idle > 1 else calls
        calls = max(1, min(size, share, int(spare / max(1.0, self._outputs_per_call))))
        if rest is not None and (rest.give_up or rest.deaths >= SHARED_DEATHS):
            calls = 1
        if worker.left is not None:
            calls = min(calls, max(1, worker.left))
        items = min(calls * self.batch_size, waiting.items)
        credit = min(spare, max(calls, int(calls * self._outputs_per_call * 1.25)))
        self._hand_out(worker, waiting.take(items), items, credit, rest)
        self.wake_upstream()
        return True

    def _looks_ahead(self) -> bool:
        return (self.chunk_sizer.seconds or 1.0) * self.chunk_sizer.size <= self.context.chunk_target.ahead

    def _free_worker(self, calls: int, size: int, may_look_ahead: bool) -> Worker | None:
        """Return the worker that gets the next lease: an idle one, or one for which it is time to look ahead."""
        ahead = None
        for worker in self.workers:
            if worker.leaving or worker.overdue or (worker.replaced and may_look_ahead):
                continue
            if not worker.leases and not worker.asked:
                return worker
            if ahead is None and len(worker.leases) == 1 and not worker.revoked:
                ahead = worker
        if ahead is None or not may_look_ahead or not self._looks_ahead():
            return None
        # A busy worker gets a full chunk or nothing: what waits grows meanwhile.
        return ahead if calls >= size or self._ended else None

    def _hand_out(
        self,
        worker: Worker,
        pieces: tuple[Piece, ...],
        items: int,
        credit: int,
        rest: RequeuedItems | None = None,
        finish: bool = False,
    ) -> None:
        """Hand items to a worker: the first of the queue, which have just been taken out of it, or those of `rest`."""
        first, skip, deaths = (self._leased, 0, 0) if rest is None else (rest.first, rest.skip, rest.deaths)
        give_up = None if rest is None else rest.give_up
        lease = Lease(self.step_roster.next_lease, worker, first, pieces, items, credit, skip, finish, deaths, give_up)
        self.step_roster.next_lease += 1
        self._leases[lease.number] = lease
        if rest is None:
            self._leased += items
            if self.ordered:
                self._order.append(lease)
        else:
            if self.ordered:
                self._order.insert(self._order.index(rest), lease)
            rest.first += items
            rest.skip, rest.give_up = 0, None
            if not rest.pieces.items:
                self._requeued.remove(rest)
                if self.ordered:
                    self._order.remove(rest)
        if not worker.leases:
            self.timeout_monitor.heard(worker)
        worker.leases.append(lease)
        self._add_outstanding(worker, items)
        self.promised += credit
        command = SendLease(worker.number, lease.number, pieces, items, credit, finish, skip, give_up)
        self.context.command(command)
        if worker.left is not None and not finish:
            worker.left -= -(-items // self.batch_size)
            if worker.left <= 0:
                self._replace(worker)

    def _add_outstanding(self, worker: Worker, items: int) -> None:
        before = max(0, worker.outstanding - self.batch_size)
        worker.outstanding += items
        self._prefetched += max(0, worker.outstanding - self.batch_size) - before

    def _grant(self) -> None:
        """Give credit to the leases that wait for it, the first in order first."""
        if not self._starving:
            return
        if self.ordered and len(self._starving) > 1:
            self._starving = deque(sorted(self._starving, key=order_key))
        waiting = len(self._starving)
        for _ in range(waiting):
            lease = self._starving[0]
            waits = self.ordered and lease is not self._order[0]
            spare = self._credit(waits)
            if spare < 1:
                return
            self._starving.popleft()
            credit = max(1, spare // len(self._starving)) if self._starving else spare
            lease.credit += credit
            self.promised += credit
            self.context.command(Grant(lease.worker.number, lease.number, credit))

    def _finish(self) -> None:
        """Nothing more comes, from in front or back: let every job finish, in the order of the workers, then say so."""
        if self._finishes:
            for worker in self.workers:
                if not worker.finished:
                    worker.finished = True
                    credit = max(0, min(1, self._spare(self._would_wait(worker))))
                    self._hand_out(worker, (), 0, credit, finish=True)
        if not self._leases:
            self._done = True
            self.output.end()

    # What comes back

    def handle_reply(self, event: Replied) -> None:
        """Take in outputs and an acknowledgement."""
        self._count_time()
        lease = self._leases[event.lease]
        worker = lease.worker
        self.timeout_monitor.heard(worker)
        outputs = sum([items for _, items in event.blobs])
        acknowledged = min(event.calls * self.batch_size, -(-lease.items // self.batch_size) * self.batch_size)
        assert event.calls * self.batch_size == acknowledged, "a worker did what had been taken back from it"
        acknowledged = lease.items if self._cancelled and event.final else min(acknowledged, lease.items)
        lease.items -= acknowledged
        lease.first += acknowledged
        self.acknowledged += acknowledged
        lease.credit -= outputs
        lease.partial = event.partial if event.calls else lease.partial + event.partial
        self._add_outstanding(worker, -acknowledged)
        lease.outputs += outputs
        lease.seconds += event.seconds
        self.step_roster.cpu += event.cpu
        self.step_roster.waited += event.waited
        self.step_roster.items_in += acknowledged
        self.step_roster.items_out += outputs
        if event.calls and not self._cancelled:
            self.chunk_sizer.observe(event.calls, lease.seconds)
            self.step_roster.done(event.calls, lease.seconds)
            self._outputs_per_call += (lease.outputs / event.calls - self._outputs_per_call) * WEIGHT
            lease.outputs, lease.seconds = 0, 0.0
        for index, *why in event.given_up:
            # Judged as it was at that unit, however many are acknowledged at once.
            items = self.acknowledged - lease.given + lease.items + min((index + 1) * self.batch_size, lease.given)
            self.context.give_up(GaveUp(self.index, *lease.call_range(index, self.batch_size), *why), items)
        if event.final and lease.items:
            # It was told to begin no more just when it was about to.
            self._requeue(lease, lease.items)
        if event.starving:
            self.promised -= lease.credit
            lease.credit = 0
            self._starving.append(lease)
        if not self._cancelled:
            if self.ordered and lease is not self._order[0]:
                lease.held.append(event)
            else:
                self._emit(event)
        if event.final:
            self._close_lease(lease)
            if not worker.leases:
                worker.revoked = worker.asked
                if worker.leaving and not worker.asked:
                    self._end_worker(worker)
        self.wake()
        self.wake_upstream()

    def _next_in_order(self) -> None:
        """The first lease is done: let out what the next ones hold."""
        order = self._order
        order.popleft()
        while order:
            head = order[0]
            held, head.held = head.held, []
            for event in held:
                if event is not None:
                    self._emit(event)
            if not held or held[-1] is not None:
                return
            order.popleft()

    def _emit(self, event: Replied) -> None:
        pieces = tuple([(blob, 0, items) for blob, items in event.blobs])
        outputs = sum([items for _, items in event.blobs])
        self.promised -= outputs
        group_sizes = None if event.group_sizes is None else self._regroup.feed(event.group_sizes, outputs)
        if outputs:
            self.output.weigh(outputs, event.size)
        self.output.push(pieces, outputs, group_sizes)

    # Who works here

    @property
    def staying(self) -> list[Worker]:
        """The workers that are up and are to stay."""
        return [worker for worker in self.workers if not worker.leaving]

    def add_worker(self, number: int) -> None:
        """Take in that one more worker is up."""
        self._count_time()
        self.workers.append(Worker(number, self.step_roster.node.max_items))
        self.peak_workers = max(self.peak_workers, len(self.workers))
        self.output.node.in_flight = max(self.output.node.in_flight, self.peak_workers)
        self.wake()
        self.wake_upstream()

    def resize(self, wanted: int) -> None:
        """Have as many workers as `wanted`, those being started included."""
        self._count_time()
        present = len(self.staying) + len(self.step_roster.starting)
        for worker in self.workers:
            if present < wanted and worker.leaving and not worker.replaced:
                worker.leaving = False
                present += 1
        for _ in range(wanted - present):
            self.context.start_worker(self.step_roster)
        # Those that have nothing to do first, and of these the newest; one that is up stays, whoever is being started.
        surplus = max(0, min(present - wanted, len(self.staying) - 1))
        for worker in sorted(self.staying, key=lambda worker: (worker.outstanding, -worker.number))[:surplus]:
            worker.leaving = True
            if not worker.leases and not worker.asked:
                self._end_worker(worker)
        self.wake()

    def _end_worker(self, worker: Worker) -> None:
        if self._requeued or any(each.asked for each in self.workers):
            # What was taken back is the turn of whoever is free first, and all others may be waiting for that.
            worker.leaving = False
            return
        self.workers.remove(worker)
        self.step_roster.numbers.remove(worker.number)
        self.context.command(EndWorker(worker.number))

    def _steal(self) -> None:
        """Where a worker has nothing to do and has not finished, take back what another has not begun."""
        self.look_at = None
        if (
            self._queue.items >= self.batch_size
            or self._requeued
            or self._spare(True) < 1
            or (self._ended and self._finishes)
        ):
            return
        came_at = None if self._ended else self._last_arrival
        seconds, load_factor = self.chunk_sizer.seconds or 0.0, self.context.chunk_target.load_factor
        worker, self.look_at = worker_to_revoke(
            self.workers, self.batch_size, seconds, came_at, load_factor, self.context.now
        )
        if worker is not None:
            worker.revoked = worker.asked = True
            lease = next(lease for lease in worker.leases if lease.items)
            self.context.command(Revoke(worker.number, lease.number, self._acknowledged_calls(lease) + 1))

    def _acknowledged_calls(self, lease: Lease) -> int:
        """How many units of a lease have been acknowledged."""
        return (lease.given - lease.items) // self.batch_size

    def handle_probe_result(self, event: ProbeResult) -> None:
        """Take in for how long a worker has been at an item."""
        worker = self.worker(event.worker)
        if worker is not None:
            self.timeout_monitor.handle_probe_result(worker, event)
            self.wake()

    def handle_revoke_result(self, event: RevokeResult) -> None:
        """Take back what a worker has not begun: it has been told not to."""
        worker = self.worker(event.worker)
        if worker is None or event.lease < self._first_lease:
            # One that has left; or the answer to a question of the run before, whose leases are all back.
            return
        worker.asked = False
        if not worker.leases:
            worker.revoked = False
            if worker.leaving:
                self._end_worker(worker)
        self.wake()
        if self._cancelled:
            return
        self._count_time()
        for lease in worker.leases:
            started = 0
            if lease.number < event.lease:
                continue
            if lease.number == event.lease:
                started = min(lease.given, event.calls * self.batch_size)
            back = min(lease.items, lease.given - started)
            if back:
                self._requeue(lease, back)

    def handle_worker_lost(self, event: WorkerLost) -> Fail | None:
        """Take back all that a dead worker had; return the failure where that cannot be made up for."""
        self._count_time()
        worker = self.worker(event.worker)
        if worker is None:
            return None
        failure = None if self._cancelled else self._not_begun(worker, event)
        # Not one before that of its note: that was done, though the word of it is lost.
        noted = -1 if event.started is None else event.started[0]
        at_work = next((lease for lease in worker.leases if lease.items and lease.number >= noted), None)
        for lease in list(worker.leases):
            if self._cancelled:
                self._add_outstanding(worker, -lease.items)
                lease.items = 0
            elif failure is None:
                failure = self._lose(lease, lease is at_work, event)
            if failure is None:
                self._close_lease(lease)
        if failure is None:
            self.workers.remove(worker)
            self.wake()
            self.wake_upstream()
        return failure

    def _lose(self, lease: Lease, at_work: bool, event: WorkerLost) -> Fail | None:
        """Make rests of what a dead worker had not acknowledged of a lease: what it had not begun, and what it had."""
        if lease.finish:
            return Fail(self.index, event.worker, None, None, event.cause, Loss.FINISH)
        if at_work and event.unpickling:
            return self._unpickled(lease, event)
        started = lease.started_unacknowledged(self.batch_size, at_work, event.started)
        if lease.items > started * self.batch_size:
            self._requeue(lease, lease.items - started * self.batch_size)
        if not lease.items:
            return None
        node, overdue, give_up = self.step_roster.node, lease.worker.overdue is not None, None
        # Where there is a timeout, units are begun one by one, and only the last one can be to blame.
        exact = at_work and (started == 1 or node.timeout is not None)
        first, last = lease.first + (started - 1) * self.batch_size * exact, lease.first + lease.items - 1
        if exact and not overdue:
            give_up = self._crash_blame.died(first, last, event)
        elif exact and was_overdue(lease.worker, event):
            give_up = self._crash_blame.was_overdue(first, last)
        if give_up is not None and not node.gives_up:
            loss = Loss.ITEM if give_up.kind == Reason.DIED else Loss.OVERDUE
            return Fail(self.index, event.worker, first, last, give_up.cause, loss)
        rest = self._requeue(lease, last - first + 1)
        rest.deaths = lease.deaths + (at_work and not overdue)
        if lease.give_up is not None:
            give_up = lease.give_up
            if at_work and self._crash_blame.died_of_that(first, give_up, event):
                give_up = give_up._replace(skip_unpickling=True)
        rest.give_up = give_up
        if lease.items:
            # Done, or so it seems, but the outputs are lost.
            self._requeue(lease, lease.items)
        return None

    def _unpickled(self, lease: Lease, event: WorkerLost) -> Fail | None:
        """Of items that are unpickled together, nobody knows which one it was, and one alone cannot be had."""
        first, last = lease.first, lease.first + lease.items - 1
        if self._crash_blame.unpickled(first):
            return Fail(self.index, event.worker, first, last, event.cause, Loss.UNPICKLE)
        self._requeue(lease, lease.items)
        return None

    def _not_begun(self, worker: Worker, event: WorkerLost) -> Fail | None:
        """Of a worker that has begun nothing of what it was handed: it may have died of taking that in."""
        lease = next((lease for lease in worker.leases if lease.items), None)
        if lease is None or not event.ready or event.started is None or event.started >= (lease.number, 1):
            return None
        if not self._crash_blame.arrived(lease.first, event.killed, self.context.now):
            return None
        return Fail(self.index, event.worker, lease.first, lease.first + lease.items - 1, event.cause, Loss.RECEIVE)

    def _replace(self, worker: Worker) -> None:
        """Have another take the place of a worker that has had its last items."""
        worker.leaving = True
        if not worker.replaced:
            worker.replaced = True
            self.context.start_worker(self.step_roster)

    def _close_lease(self, lease: Lease) -> None:
        """Take in that nothing more comes for a lease."""
        del self._leases[lease.number]
        lease.worker.leases.remove(lease)
        self.promised -= lease.credit
        lease.credit = 0
        if lease in self._starving:
            self._starving.remove(lease)
        if self.ordered and not self._cancelled:
            if lease is self._order[0]:
                self._next_in_order()
            else:
                lease.held.append(None)

    def worker(self, number: int) -> Worker | None:
        """Return the worker of that number, None where it has left."""
        return next((worker for worker in self.workers if worker.number == number), None)

    def _requeue(self, lease: Lease, items: int) -> RequeuedItems:
        """Make the last items of a lease a rest."""
        pieces = Pieces()
        pieces.extend(lease.pieces, lease.given)
        pieces.take(lease.given - items)
        rest = RequeuedItems(lease.number, lease.first + lease.items - items, pieces.take(items), items)
        if items == lease.items:
            rest.skip = lease.partial
            rest.give_up = lease.give_up
        lease.items -= items
        lease.given -= items
        before = self._prefetched
        self._add_outstanding(lease.worker, -items)
        rest.in_hand = items - (before - self._prefetched)
        self._requeued.append(rest)
        self._requeued.sort(key=order_key)
        if self.ordered:
            self._order.insert(self._order.index(lease) + 1, rest)
        return rest

    # What is known of it

    def _count_time(self) -> None:
        """Take in how the time since the last look was spent."""
        self.utilization.count(self.context.now, len(self.workers))

    def _update_utilization(self) -> None:
        """See what the time from now on is spent with."""
        idle = len([worker for worker in self.workers if not worker.leases])
        starving = len({lease.worker for lease in self._starving}) if self._starving else 0
        times = self.utilization
        times.busy = len(self.workers) - idle - starving
        waiting = self._queue.items >= self.batch_size or bool(self._requeued)
        times.blocked = starving + (idle if waiting and self._spare(bool(self._leases)) < 1 else 0)
        if times.blocked:
            self.output.request_flush()
        times.stalled = times.busy == len(self.workers) and (waiting or bool(self._prefetched))

    def step_load(self, waiting: int) -> StepLoad:
        """Return what the balancer is told; `waiting` items more wait further in front, for want of a pipe here."""
        self._count_time()
        step_roster, node = self.step_roster, self.step_roster.node
        present = len(self.staying)
        # What a worker would have to say at the end of the stream must not be lost with it.
        least = max(node.workers, present) if node.finishes else node.workers
        return StepLoad(
            name=node.name,
            workers=present,
            starting=len(step_roster.starting),
            least=least,
            most=node.most,
            waiting=(self.held + waiting) // self.batch_size,
            bound=max(1, self.bound // self.batch_size),
            ended=self._ended,
            calls=step_roster.calls,
            busy=step_roster.busy,
            cpu=step_roster.cpu,
            waited=step_roster.waited,
            blocked=step_roster.blocked,
            start=step_roster.start_seconds,
        )

    def stats(self, now: float) -> StepStats:
        """Return what the user is told at `now`; changes nothing."""
        spent = self.utilization.spent(now, len(self.workers))
        return self.step_roster.stats(0 if self._cancelled else self.held, self.bound, spent)

    def failure_of(self, worker_number: int, lease_number: int | None, calls: int | None, cause: Any) -> Fail:
        """Return the failure of a lease, or of whatever a lost worker had, with the items that may be to blame."""
        first: int | None = None
        last: int | None = None
        if lease_number is None:
            worker = self.worker(worker_number)
            leases = [lease for lease in worker.leases if lease.items] if worker is not None else []
            if leases:
                first, last = leases[0].first, leases[-1].first + leases[-1].items - 1
        else:
            lease = self._leases[lease_number]
            if lease.items and calls is None:
                first, last = lease.first, lease.first + lease.items - 1
            elif lease.items and calls is not None:
                first = lease.first + calls * self.batch_size
                last = min(first + self.batch_size, lease.first + lease.items) - 1
        return Fail(self.index, worker_number, first, last, cause)

    def clear(self) -> None:
        self._cancelled = True
        self._queue.clear()
        self._requeued.clear()
        self.look_at = None
        self._count_time()
        self.utilization.stop()
        for worker in self.workers:
            if worker.leases:
                self.context.command(CancelLeases(worker.number))

    def check(self) -> None:
        check_step(self)
