"""Credit: how many outputs the leases of a step may give before they have to ask for more, and in which order these
leave; and how many items the source may give.

Law: what a lease may give is reserved in the pipe behind before the lease is handed out.  So no worker ever has an
output that nobody has room for, and a full pipe stops the step.  The reserve, as much room as the next node needs, is
kept for the lease that no other one waits for.  In an ordered step, the replies of a lease wait until all leases before
it are over.  Requeued items keep their place between the leases.
"""

from __future__ import annotations

from collections import deque

from conveyor._lean.typing import TYPE_CHECKING
from conveyor.core.commands import Grant
from conveyor.core.data.group_sizes import Regroup
from conveyor.core.events import Replied
from conveyor.core.leasing.leases import Lease, LeaseBook, RequeuedItems, Worker, order_key
from conveyor.core.nodes.base import NodeContext, Output
from conveyor.core.tuning.chunk_size import WEIGHT

if TYPE_CHECKING:
    from conveyor.core.nodes.step import Step

# Where calls are cheap, the source of a small pipe is asked for half of what that holds, and for so many items or more.
PAIR = 2
# A call that takes less costs less than the messages about it; so many of those are worth a message.
CHEAP_CALL_SECONDS = 0.00025
WORTH_A_MESSAGE = 4


class CreditLedger:
    """The outputs that a step has promised room for, and the leases that wait for a promise."""

    __slots__ = (
        "_book",
        "_context",
        "holding_back",
        "output",
        "outputs_per_call",
        "promised",
        "reserve",
        "starving",
        "wants_capacity",
    )

    def __init__(self, book: LeaseBook, context: NodeContext) -> None:
        self._book = book
        self._context = context
        self.output: Output
        self.reserve = 1
        # Outputs that may still come on credit, or that wait for their turn.
        self.promised = 0
        self.starving: deque[Lease] = deque()
        # Whether the step has looked in vain for capacity behind it, and has to be pumped when there is some.
        self.wants_capacity = True
        # Whether the last look found room, and yet the next lease is to wait for more.
        self.holding_back = False
        self.outputs_per_call = 1.0

    def connect(self, output: Output) -> None:
        """Take in where the outputs go."""
        self.output = output
        self.reserve = output.node.min_batch

    def spare(self, waits: bool, weighed: bool = True) -> int:
        """How many more outputs may be promised to a lease; `waits`: its outputs wait for another lease."""
        free = self.output.free_capacity(weighed) + self._book.most_in_hand
        spare = free - self.promised - self.reserve * waits
        if spare < 1:
            self.wants_capacity = True
        return spare

    def spare_for_need(self, waits: bool) -> int:
        """How many outputs may be promised to a lease that is known to need some."""
        spare = self.spare(waits)
        if spare < 1 and not waits:
            # Where items turned out heavy, more may be promised to leases that wait than the pipe now holds.
            spare = min(1, self.output.free_capacity(), self.spare(waits, weighed=False))
        return spare

    def holds_back(self, calls: int, spare: int, worker: Worker, seconds: float | None) -> bool:
        """Whether a lease of so many calls, of so many seconds each, is to wait for more room than `spare`.

        In a small pipe, room comes in ones and twos.  Calls that take less time than a message would follow each other
        so for ever, each in a message of its own.  Where room is about to come, they wait for it.
        """
        # A worker that makes several calls at once reports their time together: one of them may take all of it.
        cheap = seconds is not None and seconds * self._book.hands <= CHEAP_CALL_SECONDS
        self.holding_back = (
            cheap
            and spare < min(calls, WORTH_A_MESSAGE)
            # Where bytes bound the pipe, messages are not what costs.
            and self.output.free_capacity() >= self.output.free_capacity(weighed=False)
            and (bool(worker.leases) or self.output.node.makes_room())
        )
        self.wants_capacity |= self.holding_back
        return self.holding_back

    def first_credit(self, calls: int, spare: int) -> int:
        """How many outputs a new lease of so many calls may give."""
        return min(spare, max(calls, int(calls * self.outputs_per_call * 1.25)))

    def observe(self, lease: Lease, calls: int) -> None:
        """Take in that the outputs of `lease` are those of so many calls."""
        self.outputs_per_call += (lease.outputs / calls - self.outputs_per_call) * WEIGHT

    def starve(self, lease: Lease) -> None:
        """Have a lease wait for credit."""
        self.promised -= lease.credit
        lease.credit = 0
        self.starving.append(lease)

    def release(self, lease: Lease) -> None:
        """Free what was promised to a lease that is over."""
        self.promised -= lease.credit
        lease.credit = 0
        if lease in self.starving:
            self.starving.remove(lease)

    def grant(self, first: object) -> None:
        """Give credit to the leases that wait for it; with `first`, in order, and `first` waits for no other one."""
        starving = self.starving
        if first is not None and len(starving) > 1:
            self.starving = starving = deque(sorted(starving, key=order_key))
        for _ in range(len(starving)):
            lease = starving[0]
            spare = self.spare_for_need(first is not None and lease is not first)
            if spare < 1:
                return
            starving.popleft()
            credit = max(1, spare // len(starving)) if starving else spare
            lease.credit += credit
            self.promised += credit
            self._context.command(Grant(lease.worker.number, lease.number, credit))


class OutputOrder:
    """Leases and requeued items by their place, and the groups that their outputs make."""

    __slots__ = ("_credit", "entries", "ordered", "regroup")

    def __init__(self, ordered: bool, credit: CreditLedger) -> None:
        self.ordered = ordered
        self._credit = credit
        self.entries: deque[Lease | RequeuedItems] = deque()
        self.regroup = Regroup()

    @property
    def first(self) -> Lease | RequeuedItems | None:
        """What waits for nothing before it; None without an order."""
        return self.entries[0] if self.entries else None

    def hand_out(self, lease: Lease, requeued: RequeuedItems | None) -> None:
        """Add a lease: at the end, or before the requeued items that it was taken from."""
        if self.ordered:
            if requeued is None:
                self.entries.append(lease)
            else:
                self.entries.insert(self.entries.index(requeued), lease)

    def requeue(self, lease: Lease, requeued: RequeuedItems) -> None:
        """Add items that were taken back from a lease, behind what is left of it."""
        if self.ordered:
            self.entries.insert(self.entries.index(lease) + 1, requeued)

    def remove(self, requeued: RequeuedItems) -> None:
        if self.ordered:
            self.entries.remove(requeued)

    def accept(self, lease: Lease, event: Replied) -> None:
        """Pass on the outputs of a reply, or hold them until it is the turn of their lease."""
        if self.ordered and lease is not self.entries[0]:
            lease.held.append(event)
        else:
            self.emit(event)

    def close(self, lease: Lease) -> None:
        """Take in that a lease is over; where it was the first one, pass on what the next ones hold."""
        if not self.ordered:
            return
        entries = self.entries
        if lease is not entries[0]:
            lease.held.append(None)
            return
        entries.popleft()
        while entries:
            head = entries[0]
            held, head.held = head.held, []
            for event in held:
                if event is not None:
                    self.emit(event)
            if not held or held[-1] is not None:
                return
            entries.popleft()

    def emit(self, event: Replied) -> None:
        """Push the outputs of a reply into the pipe behind."""
        pieces = tuple([(blob, 0, items) for blob, items in event.blobs])
        outputs = sum([items for _, items in event.blobs])
        credit = self._credit
        credit.promised -= outputs
        group_sizes = None if event.group_sizes is None else self.regroup.feed(event.group_sizes, outputs)
        if outputs:
            credit.output.weigh(outputs, event.size)
        credit.output.push(pieces, outputs, group_sizes)

    def close_empty_groups(self) -> None:
        """With no lease out, groups that are empty must not wait for the next output."""
        closed = self.regroup.feed([], 0)
        if closed:
            self._credit.output.push((), 0, closed)


class SourceCredit:
    """How many items the source may give, and how many it has given."""

    __slots__ = ("_step", "_traced", "ended", "given", "pulled", "watched")

    def __init__(self, step: Step, pulled: int, traced: bool) -> None:
        self._step = step
        self._traced = traced
        self.pulled = pulled
        self.given = 0
        self.ended = False
        # Whether it has ended, and it is to be noted when nothing is under way any more but calls of `finish`.
        self.watched = False

    @property
    def ahead(self) -> int:
        """How many items it was allowed that have not come."""
        return self.pulled - self.given

    def more(self) -> int:
        """Allow as many items more as there is room for, in amounts worth a message; return how many."""
        step, ahead = self._step, self.ahead
        credit = step.free_capacity(0) - ahead
        # A little room is worth a message only where the source has to stop without it, and no worker has a lease that
        # will make more of it.  Whoever submits an item is not kept waiting for that.
        if credit < 1 or self.ended:
            return 0
        most = step.item_weight.limit(step.bound)
        little = max(most // 4, min(step.chunk_sizer.size, max(most // 2, PAIR)))
        if credit < little and (ahead or (step.outstanding and not self._traced)):
            return 0
        self.pulled += credit
        return credit
