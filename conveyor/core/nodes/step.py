"""A Processor in the core: the pipe in front of it, its workers, and the leases that they have.

Law: an item is in one place: in the queue, in a lease, among the requeued items, or acknowledged.  A lease holds whole
calls (one item or one batch each), in the order of the queue.  In `core/leasing/`, `credit.py` says what a lease may
give, and when its outputs leave; `recovery.py` what becomes of the items of a lost worker.
"""

from __future__ import annotations

from conveyor._lean.typing import Any, ClassVar
from conveyor.core.commands import CancelLeases, EndWorker, Fail, GaveUp, Revoke, SendLease
from conveyor.core.data.group_sizes import GroupSizes
from conveyor.core.data.pieces import Piece
from conveyor.core.events import ProbeResult, Replied, RevokeResult, WorkerLost
from conveyor.core.leasing.credit import CreditLedger, OutputOrder
from conveyor.core.leasing.leases import (
    LEASES_PER_WORKER,
    Lease,
    LeaseBook,
    RequeuedItems,
    Worker,
    is_alone,
    worker_to_revoke,
)
from conveyor.core.leasing.recovery import Recovery, TimeoutMonitor
from conveyor.core.nodes.base import Intake, Node, NodeContext, Output
from conveyor.core.tuning.chunk_size import ChunkSizer, most_calls
from conveyor.core.tuning.roster import StepRoster, Utilization


class Step(Node):
    """The running form of a `StepNode`."""

    ORDER: ClassVar[type[OutputOrder]] = OutputOrder
    RECOVERY: ClassVar[type[Recovery]] = Recovery

    def __init__(self, step_roster: StepRoster, context: NodeContext) -> None:
        node = step_roster.node
        super().__init__(node.index, context, node.bound_bytes, node.batch or 1)
        self.step_roster = step_roster
        self.batch_size = self.min_batch
        self.bound = max(node.bound, self.batch_size * node.hands)
        self.intake = Intake(self.batch_size, context.now, node.batch_timeout)
        self.book = LeaseBook(
            step_roster.numbers, self.batch_size, node.max_items, step_roster.next_lease, node.hands, node.in_lists
        )
        self.credit = CreditLedger(self.book, context)
        self.order = self.ORDER(node.ordered, self.credit)
        self.recovery = self.RECOVERY(node, self.book, self.order)
        self.timeout_monitor = TimeoutMonitor(node.timeout, context, node.threaded)
        self.utilization = Utilization(step_roster.totals, context.now)
        self.chunk_sizer = ChunkSizer(
            *(most_calls(self.bound // self.batch_size), self.item_weight, context.chunk_target, self.batch_size),
            least=node.hands if node.in_lists else 1,
        )
        # When to look whether a worker that does not reply is stuck while another is idle.
        self.steal_at: float | None = None
        # Whether the node in front deals items out by the demand, and has to hear when there is some.
        self.reports_demand = False
        self._done = False
        self._cancelled = False

    # What comes in

    @property
    def held(self) -> int:
        """How many items count against the bound of the pipe in front."""
        return self.intake.queue.items + self.book.prefetched + (self.recovery.held if self.recovery.requeued else 0)

    @property
    def outstanding(self) -> int:
        return len(self.book.leases)

    def is_idle(self) -> bool:
        return not self.intake.queue.items and not self.recovery.requeued and self.book.is_finishing()

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        most = self.item_weight.limit(self.bound) if weighed else self.bound
        return max(self.batch_size, most) - self.held

    def makes_room(self) -> bool:
        return bool(self.book.leases) and self.book.is_full() and self.held >= self.batch_size

    def demand(self) -> int:
        """How many items its workers could take at once, beyond those that wait; none where outputs have no room."""
        most = self._looks_ahead() + 1
        slots = sum(max(0, most - len(worker.leases)) for worker in self.book.workers if not worker.leaving)
        calls = slots * self.chunk_sizer.size
        if self.book.is_open:
            calls = sum(self.book.room_of(worker) for worker in self.book.workers if not worker.leaving)
        wanted = calls * self.batch_size - self.intake.queue.items - self.recovery.items
        if wanted <= 0 or self.credit.holding_back or self.credit.spare(bool(self.book.leases)) <= 0:
            return 0
        return min(self.free_capacity(0), wanted)

    def preferred_chunk(self) -> int:
        return self.chunk_sizer.size * self.batch_size

    def shares_pipe(self) -> bool:
        return self.step_roster.node.shared

    def shared_pipe_items(self) -> int:
        return self.held if self.step_roster.node.shared else 0

    def connect(self, output: Output) -> None:
        """Take in where the outputs go."""
        self.credit.connect(output)

    def feed(self, blob: Any, items: int, size: int) -> None:
        self.weigh(0, items, size)
        self.push(0, ((blob, 0, items),), items, None)

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        intake = self.intake
        intake.queue.extend(pieces, items)
        intake.arrived(items, self.context.now)
        if group_sizes is not None:
            self.order.regroup.push(*intake.batcher.calls(group_sizes, items))
        self.wake()

    def end(self, port: int) -> None:
        self.intake.ended = True
        self.wake()

    def capacity_freed(self) -> None:
        if self.credit.wants_capacity:
            self.wake()

    # What goes on

    def pump(self) -> None:
        if self._cancelled:
            return
        intake, book, credit, recovery = self.intake, self.book, self.credit, self.recovery
        self.count_time()
        intake.due_at = None
        credit.holding_back, credit.wants_capacity = False, self.reports_demand
        if not book.leases:
            self.order.close_empty_groups()
        if credit.starving:
            credit.grant(self.order.first)
        while (intake.queue.items or recovery.requeued) and self._lease():
            pass
        if intake.ended and not (intake.queue.items or recovery.requeued or self._done):
            self._finish()
        if len(book.workers) > 1:
            self._steal()
        self.timeout_monitor.probe_due(book.workers)
        if book.max_calls is not None:
            for worker in [worker for worker in book.workers if worker.replaced and not worker.leases]:
                self._end_worker(worker)
        self._update_utilization()
        if self.reports_demand and self.demand() > 0:
            self.wake_upstream()

    def _would_wait(self, worker: Worker) -> bool:
        """Whether outputs of the worker's next lease wait for another lease: in their order, or for the worker."""
        return bool(self.order.entries if self.order.ordered else worker.leases)

    def _lease(self) -> bool:
        """Hand out one lease, requeued items first, if there is a worker, enough items and room for the outputs."""
        recovery, credit, workers = self.recovery, self.credit, self.book.workers
        requeued = recovery.requeued[0] if recovery.requeued else None
        waiting = self.intake.queue if requeued is None else requeued.pieces
        calls, short = divmod(waiting.items, self.batch_size)
        if short and (requeued is not None or self.intake.ended):
            calls += 1
        if not calls:
            return False
        size = self.chunk_sizer.size_of(calls // max(1, len(workers)))
        alone = requeued is not None and is_alone(requeued)
        is_open = self.book.is_open
        worker = self.book.worker_with_room(alone, requeued is None) if is_open else None
        if not is_open:
            looks_ahead = requeued is None and self._looks_ahead()
            worker = self.book.free_worker(requeued is None, looks_ahead, calls >= size or self.intake.ended)
        full = min(self.book.hands, self.item_weight.limit(self.bound))
        if worker is None or (requeued is None and self.intake.holds_back(full, self.context.now)):
            return False
        idle = 1 if len(workers) == 1 else sum(1 for each in workers if not each.leases and not each.leaving)
        if requeued is None:
            spare = credit.spare(self._would_wait(worker))
        else:
            waits = self.order.first is not requeued if self.order.ordered else bool(worker.leases)
            spare = credit.spare_for_need(waits)
        if spare < 1:
            return False
        share = -(-calls // idle) if idle > 1 else calls
        if is_open:
            room = self.book.room_of(worker, requeued is None)
            # Several leases, so that what is slow in one holds up none of the others.
            share, size = min(-(-calls // len(workers)), room), max(size, -(-room // LEASES_PER_WORKER))
        if self.step_roster.node.in_lists:
            share = max(share, min(calls, self.book.hands))
        if requeued is None and credit.holds_back(min(size, share), spare, worker, self.chunk_sizer.seconds):
            return False
        calls = max(1, min(size, share, int(spare / max(1.0, credit.outputs_per_call))))
        if self.step_roster.node.in_lists and calls > self.book.hands:
            calls -= calls % self.book.hands
        if alone:
            calls = 1
        if worker.calls_left is not None:
            calls = min(calls, max(1, worker.calls_left))
        items = min(calls * self.batch_size, waiting.items)
        self._hand_out(worker, waiting.take(items), items, credit.first_credit(calls, spare), requeued)
        self.wake_upstream()
        return True

    @property
    def wanted_at(self) -> tuple[float | None, ...]:
        """When something is to be done here if nothing happens before."""
        return self.steal_at, self.timeout_monitor.due_at, self.intake.due_at

    def _looks_ahead(self) -> bool:
        """Whether a worker gets its next lease before it is done with the present one."""
        sizer = self.chunk_sizer
        return (sizer.seconds or 1.0) * sizer.size <= self.context.chunk_target.look_ahead_seconds

    def _hand_out(
        self,
        worker: Worker,
        pieces: tuple[Piece, ...],
        items: int,
        credit: int,
        requeued: RequeuedItems | None = None,
        finish: bool = False,
    ) -> None:
        """Hand a worker items that have just been taken out of the queue, or those of `requeued`."""
        book, intake, number = self.book, self.intake, self.step_roster.next_lease
        if requeued is None:
            first, skip, deaths, give_up, attempt = intake.leased, 0, 0, None, 1
        else:
            first, skip, deaths, give_up, attempt = requeued.terms
        lease = Lease(number, worker, first, pieces, items, credit, skip, finish, deaths, give_up)
        self.step_roster.next_lease += 1
        book.leases[number] = lease
        self.order.hand_out(lease, requeued)
        if requeued is None:
            intake.leased += items
        else:
            self.recovery.handed_out(requeued, items, number)
        if not worker.leases:
            self.timeout_monitor.heard(worker)
        worker.take(lease, self.context.now)
        book.add_outstanding(worker, items)
        self.credit.promised += credit
        terms = items, credit, finish, skip, give_up, attempt
        self.context.command(SendLease(worker.number, number, self.sent(pieces), *terms))
        if worker.calls_left is not None and not finish:
            worker.calls_left -= -(-items // self.batch_size)
            if worker.calls_left <= 0:
                self._replace(worker)

    def sent(self, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        """Return pieces as a worker is sent them."""
        return pieces

    def _finish(self) -> None:
        """No more items come, from in front or back: let every job finish, in the order of the workers, then say so."""
        workers = self.book.workers
        if self.step_roster.node.finishes:
            if any(worker.revoked for worker in workers):
                return
            for worker in workers:
                if not worker.finish_sent:
                    worker.finish_sent = True
                    credit = max(0, min(1, self.credit.spare(self._would_wait(worker))))
                    self._hand_out(worker, (), 0, credit, finish=True)
        if not self.book.leases:
            self._done = True
            self.credit.output.end()

    # What comes back

    def handle_reply(self, event: Replied) -> None:
        self.count_time()
        lease = self.book.leases[event.lease]
        worker = lease.worker
        self.timeout_monitor.heard(worker)
        self._acknowledge(lease, event)
        if event.final and lease.items:
            # The worker was told to start no more just when it was about to.
            self.recovery.requeue(lease, lease.items)
        if event.starving:
            self.credit.starve(lease)
        if not self._cancelled:
            self.order.accept(lease, event)
        if event.final:
            self._close_lease(lease)
            if not worker.leases:
                worker.revoked = worker.revoke_pending
                if worker.leaving and not worker.revoke_pending:
                    self._end_worker(worker)
        self.wake()
        self.wake_upstream()

    def _acknowledge(self, lease: Lease, event: Replied) -> None:
        """Count what the worker has done of its lease, and what that took."""
        book, totals, batch_size, calls = self.book, self.step_roster.totals, self.batch_size, event.calls
        outputs = sum([items for _, items in event.blobs])
        acknowledged = min(calls * batch_size, -(-lease.items // batch_size) * batch_size)
        assert calls * batch_size == acknowledged, "a worker did what had been taken back from it"
        acknowledged = lease.items if self._cancelled and event.final else min(acknowledged, lease.items)
        lease.items -= acknowledged
        lease.first += acknowledged
        book.acknowledged += acknowledged
        lease.credit -= outputs
        lease.partial = event.partial if calls else lease.partial + event.partial
        book.add_outstanding(lease.worker, -acknowledged)
        lease.outputs += outputs
        lease.seconds += event.seconds
        totals.add(event.measures)
        totals.items_in += acknowledged
        totals.items_out += outputs
        if calls and not self._cancelled:
            self.chunk_sizer.observe(calls, lease.seconds)
            self.step_roster.calls_done(calls, lease.seconds)
            self.credit.observe(lease, calls)
            lease.outputs, lease.seconds = 0, 0.0
        for index, seconds, item in event.slow:
            self.step_roster.note_slow(lease.call_range(index, batch_size)[0], seconds, item)
        for index, *why in event.given_up:
            # A share of failures is judged as of that call, however many are acknowledged at once.
            items = book.acknowledged - lease.given + lease.items + min((index + 1) * batch_size, lease.given)
            self.context.give_up(GaveUp(self.index, *lease.call_range(index, batch_size), *why), items)

    def _close_lease(self, lease: Lease) -> None:
        del self.book.leases[lease.number]
        self.step_roster.add_busy(lease.worker.number, lease.worker.drop(lease, self.context.now))
        self.credit.release(lease)
        if not self._cancelled:
            self.order.close(lease)

    # Who works here

    def add_worker(self, number: int) -> None:
        self.count_time()
        self.book.add_worker(number)
        behind = self.credit.output.node
        behind.in_flight = max(behind.in_flight, self.book.most_in_hand)
        self.wake()
        self.wake_upstream()

    def resize(self, wanted: int) -> None:
        """Have as many workers as `wanted`, those being started included."""
        self.count_time()
        book = self.book
        present = len(book.staying) + len(self.step_roster.starting)
        for worker in book.workers:
            if present < wanted and worker.leaving and not worker.replaced:
                worker.leaving = False
                present += 1
        for _ in range(wanted - present):
            self.context.start_worker(self.step_roster)
        # Idle workers go first, the newest of them before others.  One that is up stays, whoever is being started.
        surplus = max(0, min(present - wanted, len(book.staying) - 1))
        for worker in sorted(book.staying, key=lambda worker: (worker.outstanding, -worker.number))[:surplus]:
            worker.leaving = True
            if not worker.leases and not worker.revoke_pending:
                self._end_worker(worker)
        self.wake()

    def _end_worker(self, worker: Worker) -> None:
        if self.recovery.requeued or any(each.revoke_pending for each in self.book.workers):
            # Requeued items go to whoever is free first, and all others may be waiting for them.
            worker.leaving = False
            return
        self.book.workers.remove(worker)
        self.step_roster.left(worker.number)
        self.context.command(EndWorker(worker.number))

    def _replace(self, worker: Worker) -> None:
        """Have another worker take the place of one that has had its last items."""
        worker.leaving = True
        if not worker.replaced:
            worker.replaced = True
            self.step_roster.give_index_back(worker.number)
            self.context.start_worker(self.step_roster)

    # What is taken back

    def _steal(self) -> None:
        """Where a worker is idle and has not finished, revoke what another has not started."""
        self.steal_at = None
        intake = self.intake
        if intake.queue.items >= self.batch_size or self.recovery.requeued or self.credit.spare(True) < 1:
            return
        if intake.ended and self.step_roster.node.finishes:
            return
        arrived_at = None if intake.ended else intake.last_arrival
        seconds, factor = self.chunk_sizer.seconds or 0.0, self.context.chunk_target.load_factor
        estimate = seconds, arrived_at, factor, self.context.now, self.book.hands
        worker, self.steal_at = worker_to_revoke(self.book.workers, self.batch_size, *estimate)
        if worker is not None:
            worker.revoked = worker.revoke_pending = True
            lease = next(lease for lease in worker.leases if lease.items)
            done = (lease.given - lease.items) // self.batch_size
            self.context.command(Revoke(worker.number, lease.number, done + 1))

    def handle_probe_result(self, event: ProbeResult) -> None:
        """Take in for how long a worker has been at a call."""
        if (worker := self.book.worker(event.worker)) is not None:
            self.timeout_monitor.handle_probe_result(worker, event)
            self.wake()

    def handle_revoke_result(self, event: RevokeResult) -> None:
        """Requeue what a worker has not started, now that it has been told not to."""
        worker = self.book.worker(event.worker)
        if worker is None or event.lease < self.book.first_lease:
            # The worker has left, or the answer is of the run before, whose leases are all back.
            return
        worker.revoke_pending = False
        if not worker.leases:
            worker.revoked = False
            if worker.leaving:
                self._end_worker(worker)
        self.wake()
        if self._cancelled:
            return
        self.count_time()
        for lease in worker.leases:
            started = 0
            if lease.number < event.lease:
                continue
            if lease.number == event.lease:
                started = min(lease.given, event.calls * self.batch_size)
            back = min(lease.items, lease.given - started)
            if back:
                self.recovery.requeue(lease, back)

    def handle_worker_lost(self, event: WorkerLost) -> Fail | None:
        """Requeue all that a dead worker had; return the failure where that is not allowed."""
        self.count_time()
        worker = self.book.worker(event.worker)
        if worker is None:
            return None
        # What it was at, it will never report.
        self.step_roster.totals.job += worker.unreported(self.context.now)
        failure = None if self._cancelled else self.recovery.lose_unstarted(worker, event, self.context.now)
        # Leases before the one in the progress slot are done, though their last reply is lost.
        noted = -1 if event.started is None else event.started[0]
        at_work = next((lease for lease in worker.leases if lease.items and lease.number >= noted), None)
        together = self.recovery.begun_together(worker, event) if self.book.is_open else ()
        for lease in list(worker.leases):
            if self._cancelled:
                self.book.add_outstanding(worker, -lease.items)
                lease.items = 0
            elif failure is None:
                failure = self.recovery.lose(lease, lease is at_work or lease in together, event, len(together) < 2)
            if failure is None:
                self._close_lease(lease)
        if failure is None:
            self.book.workers.remove(worker)
            self.wake()
            self.wake_upstream()
        return failure

    # What is known of it

    def count_time(self) -> None:
        """Count how the time since the last event was spent."""
        self.utilization.count(self.context.now, len(self.book.workers))

    def _update_utilization(self) -> None:
        """See what the time from now on is spent with."""
        workers, utilization, starving = self.book.workers, self.utilization, self.credit.starving
        idle = len([worker for worker in workers if not worker.leases])
        blocked = len({lease.worker for lease in starving}) if starving else 0
        utilization.busy = len(workers) - idle - blocked
        waiting = self.intake.queue.items >= self.batch_size or bool(self.recovery.requeued)
        if waiting and (self.credit.holding_back or self.credit.spare(bool(self.book.leases)) < 1):
            blocked += idle
        utilization.blocked = blocked
        if blocked:
            self.credit.output.node.request_flush()
        # One more process helps where those that are there have no free hand.
        full = not self.book.is_open or all(worker.outstanding >= self.book.at_once for worker in workers)
        utilization.stalled = utilization.busy == len(workers) and full and (waiting or bool(self.book.prefetched))

    @property
    def waiting(self) -> int:
        """How many items wait in the pipe in front, and with workers that have not begun them."""
        return 0 if self._cancelled else self.held

    def clear(self) -> None:
        self._cancelled = True
        self.intake.queue.clear()
        self.recovery.requeued.clear()
        self.steal_at = None
        self.count_time()
        self.utilization.stop()
        for worker in self.book.workers:
            if worker.leases:
                self.context.command(CancelLeases(worker.number))

    def check(self) -> None:
        # Only tests call this.
        from conveyor.core.nodes.step_invariants import check_step

        check_step(self, self._cancelled)
