"""What can happen to a run: the only way in to the core.

Law: frozen facts, no behaviour.  A run is the sequence of these events, each with the time at which it was
handled, and can be replayed from them.  Blobs are opaque handles: the core never looks inside one.
"""

from __future__ import annotations

from collections.abc import Sequence

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any
from conveyor.core.data.group_sizes import GroupSizes


class SourceItems(NamedTuple):
    """`items` more input items came from the source, as one blob of `size` bytes."""

    blob: Any
    items: int
    size: int


class CreditReturned(NamedTuple):
    """Items were so much heavier than those before that the source gives back what else it might give, and waits.

    That is so many items; what it is allowed meanwhile is not among them.
    """

    items: int


class SourceEnded(NamedTuple):
    """The source has no more items."""


class Replied(NamedTuple):
    """A worker acknowledges the next `units` units of a lease and hands over `blobs`, each with its item count.

    The last `partial` outputs belong to the unit that it is working on, and is not acknowledged.  `runs` tells the
    number of outputs of each acknowledged unit (None where nobody needs to know).  `final`: the lease is
    done.  `starving`: the worker has no credit for its next output, or gives back what it has because outputs are
    so much heavier than those before, and waits.  `size` is the bytes of
    all blobs.  Since its last reply the worker has spent `seconds` of wall time on this lease; of these it used a
    core for `cpu`, and waited for something that is no core for `waited`.  `given_up`: which
    units were given up, or lost an output, since the last reply, of those acknowledged and the one that it is at: of
    each its index in the lease, the number of attempts, when, and why.
    """

    worker: int
    lease: int
    calls: int
    group_sizes: GroupSizes | None
    blobs: tuple[tuple[Any, int], ...]
    size: int
    final: bool
    starving: bool
    seconds: float
    cpu: float = 0.0
    waited: float = 0.0
    partial: int = 0
    given_up: Sequence[tuple[int, int, float, Any]] = ()


class Raised(NamedTuple):
    """The job failed on the unit that comes `units` units after the last acknowledged one of `lease`.

    None: on one of those not acknowledged, nobody knows which; without a lease, on one of all that it has.
    """

    worker: int
    lease: int | None
    calls: int | None
    error: Any


class WorkerLost(NamedTuple):
    """A worker is dead and its channel drained to the end; `cause` says what is known of its death.

    `begun`: it has begun at most so many units of that lease, and none of any later one; None where that is not known.
    `ready`: it had been set up.  `killed`: it may have been ended from outside, and not by what it was at.
    `unpickling`: it had not begun that lease, but was unpickling its items.
    """

    worker: int
    cause: Any
    started: tuple[int, int] | None = None
    ready: bool = True
    killed: bool = False
    unpickling: bool = False


class WorkerReady(NamedTuple):
    """A worker that was to be started is up; `seconds` is what that took, its `setup` included."""

    worker: int
    seconds: float


class RevokeResult(NamedTuple):
    """The answer to a `Revoke`: of what it had been handed, a worker has begun, or may still begin, the first `units`
    units of `lease` and all before them."""

    worker: int
    lease: int
    calls: int


class ProbeResult(NamedTuple):
    """The answer to a `ProbeWorker`: a worker has been for `seconds` at the unit before the first `units` of `lease`.

    None: at nothing.
    """

    worker: int
    lease: int
    calls: int
    seconds: float | None


class Ticked(NamedTuple):
    """Time has passed; `others` is the CPU seconds that the processes beside the workers have used so far."""

    others: float


class BrokerLoad(NamedTuple):
    """The broker itself has used this share of a core of late."""

    share: float


class RunStarted(NamedTuple):
    """The next run begins; the one before is over."""


class Consumed(NamedTuple):
    """The consumer took `items` results."""

    items: int


class Cancelled(NamedTuple):
    """The consumer wants no more results of this run; the workers stay."""


Event = (
    SourceItems
    | CreditReturned
    | SourceEnded
    | Replied
    | Raised
    | WorkerLost
    | WorkerReady
    | RevokeResult
    | ProbeResult
    | Ticked
    | BrokerLoad
    | RunStarted
    | Consumed
    | Cancelled
)
