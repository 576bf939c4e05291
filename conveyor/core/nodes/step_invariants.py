"""What holds of a step after every event.

Law: asks and changes nothing; only tests call it.
"""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING
from conveyor.core.leasing.leases import Lease, order_key

if TYPE_CHECKING:
    from conveyor.core.nodes.step import Step


def check_step(step: Step) -> None:
    """Raise AssertionError where an item, a credit or an output is not where it has to be."""
    outstanding = sum(lease.items for lease in step._leases.values())
    assert outstanding == sum(worker.outstanding for worker in step.workers), "an item has no owner, or two"
    for worker in step.workers:
        assert sum(lease.items for lease in worker.leases) == worker.outstanding
        assert all(step._leases[lease.number] is lease for lease in worker.leases)
    assert step._prefetched == sum(max(0, worker.outstanding - step.batch_size) for worker in step.workers)
    end = 0
    for lease in sorted(step._leases.values(), key=order_key):
        assert end <= lease.first and lease.first + lease.items <= step._leased, "two leases have the same item"
        end = lease.first + lease.items
    if step._cancelled:
        return
    handed_out = outstanding + step.requeued_items + step.acknowledged
    assert step._leased == handed_out, "an item was acknowledged twice, or never handed out"
    step._queue.check()
    assert step.entered == step._queue.items + step._leased, "an item is in no place, or in two"
    assert step.held <= step.bound + step.in_flight, "pipe over its bound"
    assert all(not lease.credit and step._leases[lease.number] is lease for lease in step._starving)
    waiting = sum(items for lease in step._order for event in lease.held if event for _, items in event.blobs)
    promised = sum(lease.credit for lease in step._leases.values()) + waiting
    assert promised == step.promised, (promised, step.promised)
    assert all(lease.credit >= 0 for lease in step._leases.values()), "an output came without credit"
    order = [order_key(each) for each in step._order]
    assert order == sorted(order), "out of order"
    leases = [each for each in step._order if isinstance(each, Lease)]
    assert not step.ordered or step._leases.keys() <= {lease.number for lease in leases}
    assert not step.ordered or len(step._requeued) == len(step._order) - len(leases)
    assert all(lease.number in step._leases or lease.held[-1] is None for lease in leases)
    assert not step._order or not step._order[0].held, "the first lease waits for none"
