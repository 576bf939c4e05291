"""What holds of a step after every event.

Law: asks and changes nothing.  Only tests call it.
"""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING
from conveyor.core.leasing.leases import Lease, order_key

if TYPE_CHECKING:
    from conveyor.core.nodes.step import Step


def check_step(step: Step, cancelled: bool) -> None:
    """Raise AssertionError where an item, a credit or an output is not where it has to be."""
    book, intake = step.book, step.intake
    outstanding = sum(lease.items for lease in book.leases.values())
    assert outstanding == sum(worker.outstanding for worker in book.workers), "an item has no owner, or two"
    for worker in book.workers:
        assert sum(lease.items for lease in worker.leases) == worker.outstanding
        assert all(book.leases[lease.number] is lease for lease in worker.leases)
    assert book.prefetched == sum(max(0, worker.outstanding - step.batch_size * book.hands) for worker in book.workers)
    end = 0
    for lease in sorted(book.leases.values(), key=order_key):
        assert end <= lease.first and lease.first + lease.items <= intake.leased, "two leases have the same item"
        end = lease.first + lease.items
    if cancelled:
        return
    handed_out = outstanding + step.recovery.items + book.acknowledged
    assert intake.leased == handed_out, "an item was acknowledged twice, or never handed out"
    intake.queue.check()
    assert intake.entered == intake.queue.items + intake.leased + intake.dropped, "an item is in no place, or in two"
    assert step.held <= step.bound + step.in_flight, "pipe over its bound"
    _check_outputs(step)


def _check_outputs(step: Step) -> None:
    """The same of what was promised, and of the order in which outputs leave."""
    leases, order, credit = step.book.leases, step.order, step.credit
    assert all(not lease.credit and leases[lease.number] is lease for lease in credit.starving)
    waiting = sum(items for lease in order.entries for event in lease.held if event for _, items in event.blobs)
    promised = sum(lease.credit for lease in leases.values()) + waiting
    assert promised == credit.promised, (promised, credit.promised)
    assert all(lease.credit >= 0 for lease in leases.values()), "an output came without credit"
    keys = [order_key(each) for each in order.entries]
    assert keys == sorted(keys), "out of order"
    ordered = [each for each in order.entries if isinstance(each, Lease)]
    assert not order.ordered or leases.keys() <= {lease.number for lease in ordered}
    assert not order.ordered or len(step.recovery.requeued) == len(order.entries) - len(ordered)
    assert all(lease.number in leases or lease.held[-1] is None for lease in ordered)
    assert not order.entries or not order.entries[0].held, "the first lease waits for none"
