"""A Processor in the core: a pipe in front, workers, leases, and the order of what comes back.

Law: an item is in exactly one place: in the queue, in one lease, or acknowledged.  A lease holds whole units
(one item, or one batch), in the order of the queue.  What a lease may give is reserved in the pipe behind
before it is handed out (credit), so a worker is never left with an output that nobody has room for, and a
full pipe stops the step.  With `ordered`, outputs leave in the order of the leases: those of a later lease
wait, within their reservation.  As much room as the next node needs is always left for the first lease, and
without `ordered` for the leases that workers are at, which those behind them wait for.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from conveyor.core.commands import CancelLeases, Fail, Grant
from conveyor.core.commands import Lease as LeaseCommand
from conveyor.core.events import Replied
from conveyor.core.groups import Batcher, Regroup, Runs
from conveyor.core.node import Node, Output, Surroundings
from conveyor.core.payloads import Piece, Pieces
from conveyor.core.sizing import WEIGHT, Sizer
from conveyor.plan import StepNode

# A worker is handed its next lease before it is done with the present one, to hide the hop, where a lease is
# expected to take less than this; a longer one would sit behind a busy worker while another falls idle.
PREFETCH_SECONDS = 0.01


class Lease:
    """What one worker was handed and has not yet acknowledged in full."""

    __slots__ = ("credit", "first", "held", "items", "number", "outputs", "seconds", "worker")

    def __init__(self, number: int, worker: Worker, first: int, items: int, credit: int) -> None:
        self.number = number
        self.worker = worker
        self.first = first
        self.items = items
        self.credit = credit
        # What came back since the last acknowledged unit.
        self.outputs = 0
        self.seconds = 0.0
        # Outputs that wait for those of earlier leases, and at the end the mark that no more come.
        self.held: list[Replied | None] = []


class Worker:
    """One process of the step, as the core sees it."""

    __slots__ = ("finished", "leases", "number", "outstanding")

    def __init__(self, number: int) -> None:
        self.number = number
        self.leases: deque[Lease] = deque()
        self.outstanding = 0
        self.finished = False


class Step(Node):
    """The running form of a `StepNode`."""

    def __init__(self, node: StepNode, first_worker: int, surroundings: Surroundings) -> None:
        super().__init__(node.index, surroundings)
        self.unit = node.batch or 1
        self.bound = max(node.bound, self.unit)
        self.shared = node.shared
        self.ordered = node.ordered
        self.output: Output
        self._reserve = 1
        self.workers = [Worker(first_worker + number) for number in range(node.workers)]
        self.sizer = Sizer(max(1, self.bound // (4 * self.unit)), self.scale)
        self._finishes = node.finishes
        self._queue = Pieces()
        # How many items came in, were handed out, and were acknowledged, in all.
        self.entered = 0
        self._leased = 0
        self._acknowledged = 0
        self._ended = False
        self._done = False
        self._cancelled = False
        self._leases: dict[int, Lease] = {}
        self._order: deque[Lease] = deque()
        self._starving: deque[Lease] = deque()
        self._next_lease = 0
        # Outputs that may still come on credit, or have come and wait for their turn.
        self.promised = 0
        # Items in the hands of workers beyond the one unit that each may work on.
        self._ahead = 0
        self._regroup = Regroup()
        self._batcher = Batcher(self.unit)
        self._outputs_per_unit = 1.0

    # What comes in

    @property
    def held(self) -> int:
        """How many items count against the bound of the pipe in front."""
        return self._queue.items + self._ahead

    @property
    def outstanding(self) -> int:
        """How many leases are with workers."""
        return len(self._leases)

    def room(self, port: int, weighed: bool = True) -> int:
        return self.most(self.bound, weighed) - self.held

    def appetite(self) -> int:
        """How many items idle workers could take at once, beyond those that wait."""
        idle = sum(1 for worker in self.workers if not worker.leases)
        return min(self.room(0), max(0, idle * self.sizer.size * self.unit - self._queue.items))

    def grain(self) -> int:
        return self.sizer.size * self.unit

    def need(self) -> int:
        return self.unit

    def shares(self) -> bool:
        return self.shared

    def shared_held(self) -> int:
        return self.held if self.shared else 0

    def connect(self, output: Output) -> None:
        """Take in where the outputs go."""
        self.output = output
        self._reserve = output.need()

    def feed(self, blob: Any, items: int, size: int) -> None:
        """Take in a blob from the source."""
        self.weigh(items, size)
        self._queue.push(blob, items)
        self.entered += items
        self.wake()

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, runs: Runs | None) -> None:
        self._queue.extend(pieces, items)
        self.entered += items
        if runs is not None:
            self._regroup.push(*self._batcher.units(runs, items))
        self.wake()

    def end(self, port: int) -> None:
        self._ended = True
        self.wake()

    # What goes on

    def pump(self) -> None:
        if self._cancelled:
            return
        if not self._leases:
            # With nothing under way, groups that are empty already must not wait for the next output.
            closed = self._regroup.feed([], 0)
            if closed:
                self.output.push((), 0, closed)
        self._grant()
        while self._queue.items and self._lease():
            pass
        if self._ended and not self._queue.items and not self._done:
            self._finish()

    def _spare(self, waits: bool, weighed: bool = True) -> int:
        """How many more outputs may be promised to a lease; one that waits for another leaves the other's reserve."""
        spare = self.output.room(weighed) + len(self.workers) - self.promised
        return spare - self._reserve if waits else spare

    def _would_wait(self, worker: Worker) -> bool:
        """Whether outputs of the worker's next lease wait for another lease: in their order, or for the worker."""
        return bool(self._order if self.ordered else worker.leases)

    def _lease(self) -> bool:
        """Hand out one lease, if there is a worker, a unit and room for what comes of it."""
        units, short = divmod(self._queue.items, self.unit)
        if not units:
            if not self._ended:
                return False
            units = 1
        elif short and self._ended:
            units += 1
        size = self.sizer.size
        worker = self._free_worker(units, size)
        if worker is None:
            return False
        idle = 1 if len(self.workers) == 1 else sum(1 for each in self.workers if not each.leases)
        spare = self._spare(self._would_wait(worker))
        if spare < 1:
            return False
        share = -(-units // idle) if idle > 1 else units
        units = max(1, min(size, share, int(spare / max(1.0, self._outputs_per_unit))))
        items = min(units * self.unit, self._queue.items)
        credit = min(spare, max(units, int(units * self._outputs_per_unit * 1.25)))
        self._hand_out(worker, self._queue.take(items), items, credit, finish=False)
        self.wake_feeders()
        return True

    def _free_worker(self, units: int, size: int) -> Worker | None:
        """Return the worker that gets the next lease: an idle one, or one for which it is time to look ahead."""
        ahead = None
        for worker in self.workers:
            if not worker.leases:
                return worker
            if ahead is None and len(worker.leases) == 1:
                ahead = worker
        if ahead is None or (self.sizer.seconds or 1.0) * size > PREFETCH_SECONDS:
            return None
        # A busy worker gets a full chunk or nothing: what waits grows meanwhile.
        return ahead if units >= size or self._ended else None

    def _hand_out(self, worker: Worker, pieces: tuple[Piece, ...], items: int, credit: int, finish: bool) -> None:
        lease = Lease(self._next_lease, worker, self._leased, items, credit)
        self._next_lease += 1
        self._leased += items
        self._leases[lease.number] = lease
        if self.ordered:
            self._order.append(lease)
        worker.leases.append(lease)
        self._add_outstanding(worker, items)
        self.promised += credit
        command = LeaseCommand(worker.number, lease.number, pieces, items, credit, finish)
        self.surroundings.command(command)

    def _add_outstanding(self, worker: Worker, items: int) -> None:
        before = max(0, worker.outstanding - self.unit)
        worker.outstanding += items
        self._ahead += max(0, worker.outstanding - self.unit) - before

    def _grant(self) -> None:
        """Give credit to the leases that wait for it, the first in order first."""
        if not self._starving:
            return
        if self.ordered and len(self._starving) > 1:
            self._starving = deque(sorted(self._starving, key=lambda lease: lease.number))
        waiting = len(self._starving)
        for _ in range(waiting):
            lease = self._starving[0]
            waits = self.ordered and lease is not self._order[0]
            spare = self._spare(waits)
            if spare < 1 and not waits:
                # Items that turned out heavy: more may be promised to leases that wait than the pipe now holds.
                spare = min(1, self.output.room(), self._spare(waits, weighed=False))
            if spare < 1:
                return
            self._starving.popleft()
            credit = max(1, spare // len(self._starving)) if self._starving else spare
            lease.credit += credit
            self.promised += credit
            self.surroundings.command(Grant(lease.worker.number, lease.number, credit))

    def _finish(self) -> None:
        """The stream has ended: let every job finish, in the order of the workers, then say so."""
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

    def replied(self, event: Replied) -> None:
        """Take in outputs and an acknowledgement."""
        lease = self._leases[event.lease]
        outputs = sum(items for _, items in event.blobs)
        acknowledged = lease.items if event.final else min(event.units * self.unit, lease.items)
        lease.items -= acknowledged
        lease.first += acknowledged
        self._acknowledged += acknowledged
        lease.credit -= outputs
        self._add_outstanding(lease.worker, -acknowledged)
        lease.outputs += outputs
        lease.seconds += event.seconds
        if event.units and not self._cancelled:
            self.sizer.observe(event.units, lease.seconds)
            self._outputs_per_unit += (lease.outputs / event.units - self._outputs_per_unit) * WEIGHT
            lease.outputs = 0
            lease.seconds = 0.0
        if event.starving:
            self._starving.append(lease)
        if event.final:
            del self._leases[event.lease]
            lease.worker.leases.remove(lease)
            self.promised -= lease.credit
            lease.credit = 0
        if not self._cancelled:
            if not self.ordered:
                self._emit(event)
            elif lease is self._order[0]:
                self._emit(event)
                if event.final:
                    self._next_in_order()
            else:
                lease.held.append(event)
                if event.final:
                    lease.held.append(None)
        self.wake()
        self.wake_feeders()

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
        pieces = tuple((blob, 0, items) for blob, items in event.blobs)
        outputs = sum(items for _, items in event.blobs)
        self.promised -= outputs
        runs = None if event.runs is None else self._regroup.feed(event.runs, outputs)
        if outputs:
            self.output.node.weigh(outputs, event.size)
        self.output.push(pieces, outputs, runs)

    def blame(self, worker_number: int, lease_number: int | None, units: int | None, cause: Any) -> Fail:
        """Return the failure of a lease, or of whatever a lost worker had, with the items that may be to blame."""
        first: int | None = None
        last: int | None = None
        if lease_number is None:
            worker = next(worker for worker in self.workers if worker.number == worker_number)
            leases = [lease for lease in worker.leases if lease.items]
            if leases:
                first, last = leases[0].first, leases[-1].first + leases[-1].items - 1
        else:
            lease = self._leases[lease_number]
            if lease.items and units is None:
                first, last = lease.first, lease.first + lease.items - 1
            elif lease.items and units is not None:
                first = lease.first + units * self.unit
                last = min(first + self.unit, lease.first + lease.items) - 1
        return Fail(self.index, worker_number, first, last, cause)

    def clear(self) -> None:
        self._cancelled = True
        self._queue.clear()
        for worker in self.workers:
            if worker.leases:
                self.surroundings.command(CancelLeases(worker.number))

    def check(self) -> None:
        outstanding = sum(lease.items for lease in self._leases.values())
        assert outstanding == sum(worker.outstanding for worker in self.workers), "an item has no owner, or two"
        for worker in self.workers:
            assert sum(lease.items for lease in worker.leases) == worker.outstanding
            assert all(self._leases[lease.number] is lease for lease in worker.leases)
        assert self._ahead == sum(max(0, worker.outstanding - self.unit) for worker in self.workers)
        assert self._leased == outstanding + self._acknowledged, "an item was acknowledged twice, or never handed out"
        end = 0
        for lease in self._leases.values():
            assert end <= lease.first and lease.first + lease.items <= self._leased, "two leases have the same item"
            end = lease.first + lease.items
        if self._cancelled:
            return
        self._queue.check()
        assert self.entered == self._queue.items + self._leased, "an item is in no place, or in two"
        assert self.held <= self.bound + self.hands, "pipe over its bound"
        assert all(not lease.credit and self._leases[lease.number] is lease for lease in self._starving)
        waiting = sum(items for lease in self._order for event in lease.held if event for _, items in event.blobs)
        promised = sum(lease.credit for lease in self._leases.values()) + waiting
        assert promised == self.promised, (promised, self.promised)
        assert all(lease.credit >= 0 for lease in self._leases.values()), "an output came without credit"
        numbers = [lease.number for lease in self._order]
        assert numbers == sorted(numbers) and (not self.ordered or self._leases.keys() <= set(numbers))
        assert all(lease.number in self._leases or lease.held[-1] is None for lease in self._order)
        assert not self._order or not self._order[0].held, "the first lease waits for none"
