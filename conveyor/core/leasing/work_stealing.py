"""Whom to take back from what it has not begun, for one that has nothing to do.

Law: a pure choice.  To take back costs messages, which the broker may have no time for: so it is not done for what is
over in a moment, nor while more comes in, which goes to whoever has nothing to do.  But what is behind an item that
takes longer than was expected does not wait for as long as more comes in.
"""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.core.leasing.leases import Worker

# So much may be ahead of a worker while another has nothing to do; and for so long after something came in, more is
# expected.
STEAL_WORTH_SECONDS = 0.002
# A worker that has said nothing for so long is at an item that takes longer than was expected.
SILENT_WORKER_SECONDS = 0.01


def worker_to_revoke(
    workers: Sequence[Worker], batch_size: int, seconds: float, came_at: float | None, load_factor: float, now: float
) -> tuple[Worker | None, float | None]:
    """Return the worker that is to give back what it has not begun, if there is one, and when to look again, if ever.

    `seconds` is what a unit of so many items takes; `came_at`: when something came in, None where nothing more does;
    `stretch`: for how many times as much work as usual chunks are aimed, as the broker has too little time.
    """
    shared, silent = STEAL_WORTH_SECONDS * load_factor, SILENT_WORKER_SECONDS * load_factor
    if all(worker.leases or worker.leaving for worker in workers):
        return None, None
    look_at: float | None = None
    for worker in sorted(workers, key=lambda worker: -worker.outstanding):
        ahead = -(-worker.outstanding // batch_size) - 1
        if ahead < 1:
            break
        if worker.revoked:
            continue
        at = worker.heard + silent
        if ahead * seconds >= shared:
            at = min(at, now if came_at is None else came_at + shared)
        if now >= at:
            return worker, None
        look_at = at if look_at is None else min(at, look_at)
    return None, look_at
