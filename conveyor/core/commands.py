"""What the core wants done: the only way out of it.

Law: frozen wishes, no behaviour.  The shell carries them out in order; none of them can fail within the core.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, Any, Literal
from conveyor.core.data.pieces import Piece

if TYPE_CHECKING:
    from conveyor.core.data.lineage import Lineage

LossReason = Literal["item", "unpickle", "receive", "overdue", "state", "setup", "wait", "finish", "failures"]
GiveUpReason = Literal["died", "overdue"]


class Loss:
    """Why a run ends with the loss of a worker, or of too many items.  The values cross to the caller as they are."""

    # The item has ended more than one worker.
    ITEM: LossReason = "item"
    # One of the items that are unpickled together has.
    UNPICKLE: LossReason = "unpickle"
    # Several workers died of receiving the same items, before they started any.
    RECEIVE: LossReason = "receive"
    # A call took longer than the timeout, too often.
    OVERDUE: LossReason = "overdue"
    # The job had state, and is not declared restartable.
    STATE: LossReason = "state"
    # No worker gets through its setup.
    SETUP: LossReason = "setup"
    # Workers die with nothing in hand.
    WAIT: LossReason = "wait"
    # The worker was in the job's `finish`.
    FINISH: LossReason = "finish"
    # No worker is lost: more items were given up than the run may.
    FAILURES: LossReason = "failures"


class Reason:
    """Why a call is given up."""

    DIED: GiveUpReason = "died"
    OVERDUE: GiveUpReason = "overdue"


# The consumer reports what it has taken after so many seconds, however little that is.
REPORT_SECONDS = 0.1


class GiveUp(NamedTuple):
    """Why a call, the items from `first` to `last`, is given up after so many `attempts`, without another one.

    `kind` is a `Reason`: workers died at it (`cause` says how the last one did), or it took longer than `cause`
    seconds.  `skip_unpickling`: the worker does not even look at the items.
    """

    kind: GiveUpReason
    cause: Any
    attempts: int
    first: int
    last: int
    skip_unpickling: bool = False


class SendLease(NamedTuple):
    """Hand `items` items to a worker, which may give `credit` outputs for them before it has to ask for more.

    `finish`: the stream has ended, there are no items, and the worker runs the job's `finish`.  `skip`: a worker was
    lost with these items; so many outputs of the first call are there already and are not given again.  `give_up`: the
    lease is one call, which the worker gives up.  `attempt`: which attempt its first call is; with a later one than the
    first, there is no other call.
    """

    worker: int
    lease: int
    pieces: tuple[Piece, ...]
    items: int
    credit: int
    finish: bool = False
    skip: int = 0
    give_up: GiveUp | None = None
    attempt: int = 1


class Grant(NamedTuple):
    """Allow a worker `credit` more outputs for a lease."""

    worker: int
    lease: int
    credit: int


class CancelLeases(NamedTuple):
    """Tell a worker to drop its leases as soon as it can, and to end each with a final reply."""

    worker: int


class Revoke(NamedTuple):
    """Have a worker start nothing more of what it has, but for the first `calls` calls of `lease` and all before them.

    It answers with a `RevokeResult`.
    """

    worker: int
    lease: int
    calls: int


class StartWorker(NamedTuple):
    """Start one more worker for the step whose node has the index `step`."""

    step: int
    worker: int


class EndWorker(NamedTuple):
    """Have a worker that has no lease tear down its job and leave."""

    worker: int


class ProbeWorker(NamedTuple):
    """Find out for how long a worker has been at its call, and answer with a `ProbeResult`."""

    worker: int


class KillWorker(NamedTuple):
    """End a worker at once: its call takes too long."""

    worker: int


class SetFlushInterval(NamedTuple):
    """Have a worker keep outputs for at most so many seconds, from now on."""

    worker: int
    seconds: float


class GaveUp(NamedTuple):
    """A call, the items from `first` to `last`, was given up after so many attempts.

    `when` and `why` are what the worker says.
    """

    step: int
    first: int
    last: int
    attempts: int
    when: float
    why: Any


class Pull(NamedTuple):
    """Allow the source `credit` more items."""

    credit: int


class Emit(NamedTuple):
    """Hand results to the consumer.

    Where no more results come for `report_within_seconds`, the consumer reports what it has taken, however few.
    Without items, and with 0.0, somebody waits for the room of the results that it has.
    """

    pieces: tuple[Piece, ...]
    items: int
    report_within_seconds: float = REPORT_SECONDS


class Deliver(NamedTuple):
    """Hand results of submitted items to the consumer; of each the lineage, in the order of `pieces`.

    `settled`: the submitted items that are done; nothing more comes of them.  The consumer reports what it has taken as
    with `Emit`.
    """

    pieces: tuple[Piece, ...]
    items: int
    lineages: tuple[Lineage, ...]
    settled: tuple[int, ...]
    report_within_seconds: float


class ItemFailed(NamedTuple):
    """A submitted item has failed, and nothing more comes of it; the run goes on.

    `origin` is its number among the submitted ones.  It, or what came of it, was item `number` of the step whose node
    has the index `step`, and was given up after so many `attempts`; 0: `why` says that.  `skipped`: the step goes on
    without it, so what else there is of the submitted item still comes, and `GaveUp` tells of it, too.
    """

    origin: int
    step: int
    number: int
    attempts: int
    why: Any
    skipped: bool = False


class Finish(NamedTuple):
    """The run is over: all results were emitted, or the run was cancelled and no worker holds a lease."""


class Fail(NamedTuple):
    """The run cannot go on.

    `step` is the index of the step's node.  `first` and `last` are the items that may be to blame, counted from 0 in
    the order in which they came to that step; both are None where there is none.  `loss` is a `Loss`; None where the
    job raised.
    """

    step: int
    worker: int | None
    first: int | None
    last: int | None
    cause: Any
    loss: LossReason | None = None


Command = (
    SendLease
    | Grant
    | CancelLeases
    | Revoke
    | StartWorker
    | EndWorker
    | ProbeWorker
    | KillWorker
    | SetFlushInterval
    | GaveUp
    | Pull
    | Emit
    | Deliver
    | ItemFailed
    | Finish
    | Fail
)
