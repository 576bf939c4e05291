"""A lone item on its way through steps of one worker each: the short way, which does what the general one would.

Law: nothing here decides otherwise than `nodes/step.py`.  Each function returns False, and has changed nothing, where
the case is another; the hash of the commands holds both ways to the same commands.  An item that is alone waits for all
that the core does about it, at each step.
"""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.core.commands import REPORT_SECONDS, Command, Emit, SendLease
from conveyor.core.events import Event, Replied, SourceItems
from conveyor.core.leasing.leases import Lease
from conveyor.core.nodes.base import Node
from conveyor.core.nodes.sink import Sink
from conveyor.core.nodes.step import Step
from conveyor.core.tuning.chunk_size import WEIGHT

if TYPE_CHECKING:
    from conveyor.core.machine import Machine


def foresee(machine: Machine, event: Event) -> Command | None:
    """Return what `give` or `pass_on` will want first about an event; None where that takes more than a short look.

    The next process can begin while the core takes the event in.  Nothing changes but what the look in `handle` would.
    """
    if type(event) is Replied:
        found = _way_on(machine.step_of(event.worker), event)
        if found is None:
            return None
        behind, room = found
        pieces = ((event.blobs[0][0], 0, 1),)
        if isinstance(behind, Step):
            return _next_lease(behind, pieces, room)
        return _next_emit(behind, pieces, event.size)
    if type(event) is SourceItems and event.items == 1:
        room = _room_of(machine.first)
        return _next_lease(machine.first, ((event.blob, 0, 1),), room) if room >= 1 else None
    return None


def _next_lease(step: Step, pieces: Any, room: int) -> SendLease:
    worker, number = step.book.workers[0].number, step.step_roster.next_lease
    return SendLease(worker, number, pieces, 1, step.credit.first_credit(1, room), False, 0, None)


def _next_emit(sink: Sink, pieces: Any, size: int) -> Emit | None:
    bound, heaviest = sink.bound, max(size, sink.item_weight.bytes)
    # Only where the results that wait fill no bound, whatever they weigh.
    if sink.waiting + 1 >= bound or not sink.item_weight.bytes or bound * heaviest > sink.item_weight.most:
        return None
    return Emit(pieces, 1, REPORT_SECONDS)


def give(step: Step, blob: Any, size: int, now: float) -> bool:
    """Hand the only item of a blob to the idle worker of a step."""
    room = _room_of(step)
    if room < 1:
        return False
    step.weigh(0, 1, size)
    _hand_out(step, blob, room, now)
    return True


def pass_on(step: Step, event: Replied, now: float) -> bool:
    """Take in the reply about a lone item, and hand its only output on: to the next step, or to the results."""
    found = _way_on(step, event)
    if found is None:
        return False
    behind, room = found
    _take_back(step, step.book.workers[0].leases[0], event, now)
    blob = event.blobs[0][0]
    output = step.credit.output
    output.weigh(1, event.size)
    if type(behind) is Step:
        step.wake_upstream()
        output.hand(_hand_out, blob, room, now)
    else:
        output.push(((blob, 0, 1),), 1, None)
        step.wake_upstream()
    step.credit.wants_capacity = False
    return True


def _way_on(step: Step, event: Replied) -> tuple[Step | Sink, int] | None:
    """Return where the only output of a lone item goes, and how many outputs may be promised there; None: it does not.

    For results the number is 1.
    """
    if event.calls != 1 or not event.final or event.starving or event.partial or event.given_up or event.slow:
        return None
    blobs = event.blobs
    if event.group_sizes is not None or len(blobs) != 1 or blobs[0][1] != 1 or not _is_plain(step):
        return None
    worker, behind, room = step.book.workers[0], step.credit.output.node, 1
    if len(worker.leases) != 1:
        return None
    lease = worker.leases[0]
    # What a worker gave that has left may wait for this lease.
    if lease.given != 1 or lease.items != 1 or lease.finish or len(step.order.entries) > 1:
        return None
    if type(behind) is Step:
        room = _room_of(behind)
    elif type(behind) is not Sink:
        return None
    return (behind, room) if room >= 1 else None


def _is_plain(step: Node) -> bool:
    """Whether a step has one worker, of which nothing is wanted but its calls, and nothing waits there."""
    if not isinstance(step, Step):
        return False
    book, intake, node = step.book, step.intake, step.step_roster.node
    if len(book.workers) != 1 or step.batch_size != 1 or node.timeout is not None or node.max_items is not None:
        return False
    if intake.queue.items or intake.ended or step.recovery.requeued or step.credit.starving or step.reports_demand:
        return False
    worker = book.workers[0]
    return not (worker.leaving or worker.replaced or worker.revoked or worker.revoke_pending)


def _room_of(step: Step) -> int:
    """Return how many outputs may be promised to the idle worker of a step; 0: it gets no lease in the short way."""
    return step.credit.spare(False) if _is_plain(step) and not (step.book.leases or step.order.entries) else 0


def _take_back(step: Step, lease: Lease, event: Replied, now: float) -> None:
    """Take in that a lease is done: as `Step.handle_reply`, and the pump that follows."""
    book, credit, roster, worker = step.book, step.credit, step.step_roster, lease.worker
    utilization, totals, seconds = step.utilization, roster.totals, lease.seconds + event.seconds
    utilization.count(now, 1)
    worker.last_heard = now
    book.add_outstanding(worker, -1)
    book.acknowledged += 1
    totals.add(event.measures)
    totals.items_in += 1
    totals.items_out += 1
    step.chunk_sizer.observe(1, seconds)
    roster.calls_done(1, seconds)
    credit.outputs_per_call += (lease.outputs + 1 - credit.outputs_per_call) * WEIGHT
    credit.promised -= lease.credit
    del book.leases[lease.number]
    roster.add_busy(worker.number, worker.drop(lease, now))
    if step.order.ordered:
        step.order.entries.popleft()
    utilization.busy = utilization.blocked = 0


def _hand_out(step: Step, blob: Any, room: int, now: float) -> None:
    """Hand the only item of a blob out: as `Step.push`, and the pump that follows."""
    book, credit, intake, roster = step.book, step.credit, step.intake, step.step_roster
    worker, number, first, pieces = book.workers[0], roster.next_lease, intake.leased, ((blob, 0, 1),)
    intake.last_arrival = worker.last_heard = now
    intake.entered += 1
    intake.leased += 1
    step.utilization.count(now, 1)
    credit.wants_capacity = False
    promised = credit.first_credit(1, room)
    lease = Lease(number, worker, first, pieces, 1, promised)
    roster.next_lease += 1
    book.leases[number] = lease
    if step.order.ordered:
        step.order.entries.append(lease)
    worker.take(lease, now)
    book.add_outstanding(worker, 1)
    credit.promised += promised
    step.context.command(SendLease(worker.number, number, pieces, 1, promised, False, 0, None))
    step.wake_upstream()
    utilization = step.utilization
    utilization.busy, utilization.blocked, utilization.stalled = 1, 0, False
