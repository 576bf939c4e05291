"""The order in which the outputs of a step leave it.

Law: in an ordered step, the replies of a lease wait until all leases before it are over.  Requeued items keep their
place between the leases.
"""

from __future__ import annotations

from collections import deque

from conveyor.core.data.group_sizes import Regroup
from conveyor.core.events import Replied
from conveyor.core.leasing.credit import CreditLedger
from conveyor.core.leasing.leases import Lease, RequeuedItems


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
        """Remove requeued items that were all handed out."""
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
