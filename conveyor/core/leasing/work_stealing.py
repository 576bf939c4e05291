"""Work stealing: which worker gives back items that it has not started, so that an idle worker can take them.

Law: a pure choice.  To revoke a lease costs the broker messages, so nobody steals what is done in a moment, nor while
more items arrive for the idle worker.  Items behind a call that takes longer than expected are stolen all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.core.leasing.leases import Worker

# Less work than this is not worth stealing.  For as long after an item arrived, more are expected.
STEAL_WORTH_SECONDS = 0.002
# A worker that has not replied for so long is at a call that takes longer than expected.
SILENT_WORKER_SECONDS = 0.01


def worker_to_revoke(
    workers: Sequence[Worker],
    batch_size: int,
    seconds: float,
    arrived_at: float | None,
    load_factor: float,
    now: float,
) -> tuple[Worker | None, float | None]:
    """Return the worker that is to give back what it has not started, if there is one, and when to look again, if ever.

    A call takes `seconds`.  `arrived_at` is when the last item came, None where no more come.  A broker with too little
    time makes chunks `load_factor` times as large, and all times here are as many times longer.
    """
    worth, silent = STEAL_WORTH_SECONDS * load_factor, SILENT_WORKER_SECONDS * load_factor
    if all(worker.leases or worker.leaving for worker in workers):
        return None, None
    look_at: float | None = None
    for worker in sorted(workers, key=lambda worker: -worker.outstanding):
        ahead = -(-worker.outstanding // batch_size) - 1
        if ahead < 1:
            break
        if worker.revoked:
            continue
        at = worker.last_heard + silent
        if ahead * seconds >= worth:
            at = min(at, now if arrived_at is None else arrived_at + worth)
        if now >= at:
            return worker, None
        look_at = at if look_at is None else min(at, look_at)
    return None, look_at
