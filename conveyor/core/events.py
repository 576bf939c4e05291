"""What can happen to a run: the only way in to the core.

Law: frozen facts, no behaviour.  A run is the sequence of these events, each with the time at which it was handled, and
can be replayed from them.  Blobs are opaque handles: the core never looks inside one.
"""

from __future__ import annotations

from collections.abc import Sequence

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any
from conveyor.core.data.group_sizes import GroupSizes
from conveyor.stats import Measures


class SourceItems(NamedTuple):
    """The source gave `items` more items, as one blob of `size` bytes."""

    blob: Any
    items: int
    size: int


class CreditReturned(NamedTuple):
    """The source gives back credit for so many items, and waits: its items became much heavier than those before.

    What it has been allowed meanwhile is not among them.
    """

    items: int


class SourceEnded(NamedTuple):
    """The source has no more items."""


class Replied(NamedTuple):
    """A worker acknowledges the next `calls` calls of a lease and hands over `blobs`, each with its number of outputs.

    The last `partial` outputs are of the call that the worker is at, which it does not acknowledge.  `group_sizes` are
    the numbers of outputs of the acknowledged calls, None where nobody needs them.  `size` is the bytes of all blobs.

    `final`: the lease is done.  `starving`: the worker waits for credit; it has none for its next output, or gives it
    back as outputs became much heavier.

    Since its last reply the worker has spent `seconds` of wall time on this lease, of which it tells `measures`.
    `given_up` are the calls that were given up, or lost an output, since then: of each its index in the lease, the
    number of attempts, when, and why.  `slow` are calls that took long: of each its index in the lease, its seconds,
    and its argument as text.
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
    measures: Measures = Measures()
    partial: int = 0
    given_up: Sequence[tuple[int, int, float, Any]] = ()
    slow: Sequence[tuple[int, float, str | None]] = ()


class Raised(NamedTuple):
    """The job failed at the call that comes `call` calls after the last acknowledged one of `lease`.

    With `call` None, at any call of the lease that is not acknowledged; with `lease` None, at any that the worker has.
    """

    worker: int
    lease: int | None
    call: int | None
    error: Any


class WorkerLost(NamedTuple):
    """A worker is dead and its channel drained to the end; `cause` says what is known of its death.

    `started`: a lease, and how many of its calls the worker has started at most; it has started none of a later lease.
    None where that is not known.  `ready`: its setup was done.  `killed`: it may have been ended from outside, and not
    by what it was at.  `unpickling`: it was unpickling the items of that lease, and had not started it.  `host_lost`:
    so was all else on its machine, which says little about this worker.

    A worker of several threads notes each of its calls.  `under_way`: the calls it was at, each as the last of so many
    calls of a lease, with the seconds for which it was.  `silent`: for how many seconds its first thread had not run.
    """

    worker: int
    cause: Any
    started: tuple[int, int] | None = None
    ready: bool = True
    killed: bool = False
    unpickling: bool = False
    under_way: tuple[tuple[int, int, float], ...] = ()
    silent: float = 0.0
    host_lost: bool = False


class WorkerReady(NamedTuple):
    """A worker that was being started is up; `seconds` is what that took, its `setup` included."""

    worker: int
    seconds: float


class WorkerNotStarted(NamedTuple):
    """A worker that was wanted could not be started, and the others of its step go on without it."""

    worker: int


class RevokeResult(NamedTuple):
    """The answer to a `Revoke`: the worker has started, or may still start, at most the first `calls` calls of `lease`,
    and all before them."""

    worker: int
    lease: int
    calls: int


class ProbeResult(NamedTuple):
    """The answer to a `ProbeWorker`: a worker has been for `seconds` at the last of the first `calls` calls of `lease`.

    `seconds` is None where it is at nothing.  Of a worker of several threads, that is the call it is at for longest.
    """

    worker: int
    lease: int
    calls: int
    seconds: float | None


class Ticked(NamedTuple):
    """Time has passed; the processes beside the workers have used `other_cpu_seconds` so far.

    `fitting`: for how many workers such as there are memory has room; None: nobody knows, or they need none.
    """

    other_cpu_seconds: float
    fitting: int | None = None


class BrokerLoad(NamedTuple):
    """The broker has used this share of a core of late."""

    cpu_share: float


class RoundTrip(NamedTuple):
    """A message to a worker on another machine, and the answer, take so many seconds together."""

    seconds: float


class RunStarted(NamedTuple):
    """The next run begins; the one before is over.

    `traced`: each item has results of its own.  `streamed`: these items come from a source; others are submitted.
    """

    traced: bool = False
    streamed: bool = False


class Withdrawn(NamedTuple):
    """Nobody wants anything more of these submitted items, by their numbers."""

    origins: tuple[int, ...]


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
    | WorkerNotStarted
    | RevokeResult
    | ProbeResult
    | Ticked
    | BrokerLoad
    | RoundTrip
    | RunStarted
    | Consumed
    | Cancelled
    | Withdrawn
)
