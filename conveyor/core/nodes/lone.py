"""A lone item on its way through steps of one worker each: the short way, which does what the general one would.

Law: nothing here decides otherwise than `nodes/step.py`.  Each function returns False, and has changed nothing, where
the case is another; the hash of the commands holds both ways to the same commands.  An item that is alone waits for all
that the core does about it, at each step.
"""

from __future__ import annotations

import math

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, Any, cast
from conveyor.core.commands import REPORT_SECONDS, Command, Deliver, Emit, SendLease
from conveyor.core.events import Event, Replied, SourceItems
from conveyor.core.leasing.leases import Lease
from conveyor.core.nodes.sink import Sink
from conveyor.core.nodes.step import Step
from conveyor.core.tuning.chunk_size import WEIGHT

if TYPE_CHECKING:
    from conveyor.core.data.lineage import Origins
    from conveyor.core.machine import Machine


# A step whose worker has a lone item, and where its only output goes: see `_way_of`.  It holds until the next event.
Expected = tuple[Step, tuple[Step | Sink, int]]


def foresee(machine: Machine, event: Event) -> Command | None:
    """Return what `give` or `pass_on` will want about an event; None where that takes more than a short look.

    The next process can begin while the core takes the event in.  Nothing changes but what the look in `handle` would.
    """
    if type(event) is Replied:
        step = machine.step_of(event.worker)
        if not _is_whole(event, machine.origins):
            return None
        expected = machine.expected
        found = expected[1] if expected is not None and expected[0] is step else _way_of(step)
        if found is None:
            return None
        # Nothing happens before `pass_on` asks for the same.
        step.credit.output.foreseen = event, found
        behind, room = found
        pieces = ((event.blobs[0][0], 0, 1),)
        if room:
            return _next_lease(cast("Step", behind), pieces, room)
        if not _has_room(cast("Sink", behind), event.size):
            return None
        if machine.origins is None:
            return Emit(pieces, 1, REPORT_SECONDS)
        traced, start, stop = step.book.workers[0].leases[0].pieces[0]
        (lineage,) = traced.part(start, stop)
        if step is machine.first or not machine.origins.settles_with(lineage[0]):
            return None
        return Deliver(pieces, 1, (lineage,), lineage[:1], REPORT_SECONDS)
    if type(event) is SourceItems and event.items == 1:
        room = _room_of(machine.first)
        return _next_lease(machine.first, ((event.blob, 0, 1),), room) if room >= 1 else None
    return None


class Awaited(NamedTuple):
    """What is wanted once a worker gives the only output of its lone item.

    `command` has no pieces yet; it is wanted where the output comes in `most_bytes` or less.
    """

    worker: int
    lease: int
    command: SendLease | Emit
    most_bytes: float


def await_reply(machine: Machine) -> Awaited | None:
    """Return what `foresee` will tell of the next reply, where that is known already; None elsewhere."""
    if machine.expected is None or (machine.origins is not None and machine.origins.dropped):
        return None
    step, (behind, room) = machine.expected
    worker = step.book.workers[0]
    number = worker.leases[0].number
    if room:
        return Awaited(worker.number, number, _next_lease(cast("Step", behind), (), room), math.inf)
    if machine.origins is None and _has_room(sink := cast("Sink", behind), 0):
        return Awaited(worker.number, number, Emit((), 1, REPORT_SECONDS), sink.item_weight.most / sink.bound)
    return None


def ends_one_call(told: Any, traced: bool) -> bool:
    """Whether a reply, or the message of one, ends a lease with one call; `traced`: that is to have one output."""
    if told.calls != 1 or not told.final or told.starving or told.partial or told.given_up or told.slow:
        return False
    # Of a submitted item, a worker says how many outputs it gave.
    groups = told.group_sizes
    return groups == [(1, 1)] if traced else groups is None


def _next_lease(step: Step, pieces: Any, room: int) -> SendLease:
    worker, number = step.book.workers[0].number, step.step_roster.next_lease
    return SendLease(worker, number, pieces, 1, step.credit.first_credit(1, room), False, 0, None)


def _has_room(sink: Sink, size: int) -> bool:
    """Whether one result more, of so many bytes, fills no bound, whatever those weigh that wait."""
    bound, weight = sink.bound, sink.item_weight
    return sink.waiting + 1 < bound and weight.bytes > 0 and bound * max(size, weight.bytes) <= weight.most


def give(step: Step, blob: Any, size: int, now: float) -> bool:
    """Hand the only item of a blob to the idle worker of a step."""
    room = _room_of(step)
    if room < 1:
        return False
    step.weigh(0, 1, size)
    _hand_out(step, blob, room, now)
    return True


def pass_on(step: Step, event: Replied, now: float, origins: Origins | None) -> bool:
    """Take in the reply about a lone item, and hand its only output on: to the next step, or to the results.

    `origins` is those of submitted items, where they are.
    """
    output = step.credit.output
    foreseen, output.foreseen = output.foreseen, None
    found = foreseen[1] if foreseen is not None and foreseen[0] is event else _way_on(step, event, origins)
    if found is None:
        return False
    room, lease, blob = found[1], step.book.workers[0].leases[0], event.blobs[0][0]
    if origins is not None:
        # The output takes the place of its item.
        traced, start, stop = lease.pieces[0]
        blob = type(traced)(blob, traced.part(start, stop))
    _take_back(step, lease, event, now)
    output.weigh(1, event.size)
    if room:
        step.wake_upstream()
        output.hand(_hand_out, blob, room, now)
    else:
        output.push(((blob, 0, 1),), 1, None)
        step.wake_upstream()
    step.credit.wants_capacity = False
    return True


def _way_on(step: Step, event: Replied, origins: Origins | None) -> tuple[Step | Sink, int] | None:
    """Return where the only output of a lone item goes, as in `_way_of`; None: it does not."""
    return _way_of(step) if _is_whole(event, origins) else None


def _is_whole(event: Replied, origins: Origins | None) -> bool:
    """Whether a reply tells of one call, with one output, and that nothing more comes of it."""
    if not ends_one_call(event, origins is not None):
        return False
    # What nobody wants any more goes no further.
    blobs = event.blobs
    return len(blobs) == 1 and blobs[0][1] == 1 and not (origins is not None and origins.dropped)


def _way_of(step: Step) -> tuple[Step | Sink, int] | None:
    """Return where the only output of a step's lone item may go, and how many outputs may be promised there.

    To results, none have to be promised.  None: there is no lone item, or it takes the general way.
    """
    if not _is_plain(step):
        return None
    worker, behind = step.book.workers[0], step.credit.output.node
    if len(worker.leases) != 1:
        return None
    lease = worker.leases[0]
    # What a worker gave that has left may wait for this lease.
    if lease.given != 1 or lease.items != 1 or lease.finish or lease.partial or len(step.order.entries) > 1:
        return None
    # All steps of a run are of one class, and `isinstance` is slow for instances of a subclass of an ABC.
    if type(behind) is type(step):
        room = _room_of(behind)
        return (behind, room) if room >= 1 else None
    return (behind, 0) if isinstance(behind, Sink) else None


def _is_plain(step: Step) -> bool:
    """Whether a step has one worker, of which nothing is wanted but its calls, and nothing waits there."""
    book, intake, node = step.book, step.intake, step.step_roster.node
    if len(book.workers) != 1 or step.batch_size != 1 or node.hands != 1:
        return False
    if node.timeout is not None or node.max_items is not None:
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
    step.context.command(SendLease(worker.number, number, step.sent(pieces), 1, promised, False, 0, None))
    step.wake_upstream()
    utilization = step.utilization
    utilization.busy, utilization.blocked, utilization.stalled = 1, 0, False
    # Looked up while the worker is at work.
    step.context.expected = _expected(step)


def _expected(step: Step) -> Expected | None:
    """Return where the only output of the item that a step was just handed will go; None where that is not plain."""
    behind = step.credit.output.node
    credit = behind.credit if type(behind) is type(step) else step.credit
    # Nobody has looked in vain for room yet.
    wanted, way = credit.wants_capacity, _way_of(step)
    credit.wants_capacity = wanted
    return None if way is None else (step, way)
