"""Every message between caller, broker and worker, declared once.

Law: a message crosses a channel as a plain tuple: the name of its class, then its fields.  Only this module builds or
reads that tuple.  A receiver raises `unexpected` for a message that it has no use for.

Caller and broker share three channels: `feed` carries input items, `results` carries results and the words that start
and end a run, `questions` carries questions about statistics.  Broker and worker share one channel.
"""

from __future__ import annotations

import pickle

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conveyor.core.commands import GiveUp, LossReason
    from conveyor.core.data.group_sizes import GroupSizes
    from conveyor.core.trace import KeptTrace
    from conveyor.engines.failures import Failure
    from conveyor.engines.process.wire.configs import BrokerConfig, WorkerConfig
    from conveyor.stats import Stats


class ProtocolError(Exception):
    """A process got a message that it has no use for."""


def unexpected(message: object, receiver: str) -> ProtocolError:
    """Return the error that `receiver` raises for a message; it names the kind, and shows none of the user's data."""
    return ProtocolError(
        f"{receiver} got a message that it has no use for: {type(message).__name__}. This is an error in Conveyor: "
        "please report it."
    )


# From the caller to the broker, over `results`


class ConfigureBroker(NamedTuple):
    """Caller to a broker that was not forked: its configuration.  The jobs follow as blobs."""

    config: BrokerConfig


class Consumed(NamedTuple):
    """Caller to broker: the consumer took `items` results; the caller's process has used `cpu_seconds` so far."""

    run: int
    items: int
    cpu_seconds: float


class ConclusionRequest(NamedTuple):
    """Caller to broker: the consumer stops, after `taken` results: is the run over?"""

    run: int
    taken: int


class CancelRun(NamedTuple):
    """Caller to broker: the consumer wants no more results of this run; the workers stay."""

    run: int


class Close(NamedTuple):
    """Caller to broker, broker to worker: tear down the job and leave."""


class Abort(NamedTuple):
    """Caller to broker: end everything now.  `listening`: the caller still reads what workers log."""

    listening: bool


# From the caller to the broker, over `feed`


class StartRun(NamedTuple):
    """Caller to broker: a run begins.  `traced`: each item has results of its own.  `streamed`: a source gives them."""

    run: int
    traced: bool = False
    streamed: bool = False


class SourceItems(NamedTuple):
    """Caller to broker: `items` input items, in one blob; the caller's process has used `cpu_seconds` so far."""

    run: int
    items: int
    cpu_seconds: float


class ReturnCredit(NamedTuple):
    """Caller to broker: items became so heavy that the source gives back credit for `items`, and waits."""

    run: int
    items: int


class WithdrawItems(NamedTuple):
    """Caller to broker: nobody wants anything more of these submitted items, by their numbers in the run."""

    run: int
    origins: tuple[int, ...]


class SourceEnded(NamedTuple):
    """Caller to broker: the source has no more items."""

    run: int


class SourceFailed(NamedTuple):
    """Caller to broker: the source raised, or gave an item that cannot be pickled.  The caller keeps the error."""

    run: int


class ForwardPrints(NamedTuple):
    """Caller to broker, broker to worker: from now on, send what jobs write to these streams of `sys`, too."""

    streams: tuple[str, ...]


# From the broker to the caller, over `feed`


class Pull(NamedTuple):
    """Broker to caller: the source may send `credit` more items.  For submitted items it comes over `results`."""

    run: int
    credit: int


class StopSource(NamedTuple):
    """Broker to caller: the source of this run is to stop."""

    run: int


# Over `questions`


class StatsRequest(NamedTuple):
    """Caller to broker: the statistics of now, how far the run of that number is (0: none), what was traced."""

    number: int
    run: int
    wants_trace: bool = False


class StatsReply(NamedTuple):
    """Broker to caller: the answer; of `through` input items of the run nothing is under way (0: no such run)."""

    number: int
    stats: Stats
    through: int
    trace: KeptTrace | None = None


# From the broker to the caller, over `results`


class Opened(NamedTuple):
    """Broker to caller: all workers are set up.  `threads`: what forbade the broker to fork them, or ""."""

    threads: str


class Results(NamedTuple):
    """Broker to caller: results, as `spec` describes them; told of each within `tell_within` seconds of its use."""

    run: int
    spec: Any
    tell_within: float


class ItemGivenUp(NamedTuple):
    """Broker to caller: items were given up, or one of a traced run (`origin`) failed, or lost a part (`skipped`)."""

    run: int
    processor: str
    first: int
    last: int
    attempts: int
    when: float
    why: Any
    origin: int | None = None
    skipped: bool = False


class ItemResults(NamedTuple):
    """Broker to caller: results with their lineages; nothing more comes of the submitted items that have `settled`."""

    run: int
    spec: Any
    lineages: Sequence[tuple[int, ...]]
    settled: Sequence[int]
    tell_within: float


class RunCancelled(NamedTuple):
    """Broker to caller: it has taken in that the run is cancelled; this wakes a thread that waits for results."""

    run: int


class ConclusionReply(NamedTuple):
    """Broker to caller: whether the run is over but for calls of `finish`, and whether it `drops` what these give."""

    run: int
    over: bool
    drops: bool


class RunFinished(NamedTuple):
    """Broker to caller: the run is over, and its workers are free."""

    run: int
    stats: Stats


class FailedBySource(NamedTuple):
    """Broker to caller: the run ends because its source failed; the caller has the error."""

    run: int
    stats: Stats | None = None


class FailedByJob(NamedTuple):
    """Broker to caller: the run ends because a job raised; one of the items from `first` to `last` is to blame."""

    processor: str
    failure: Failure
    first: int | None
    last: int | None
    stats: Stats | None = None


class FailedByDeath(NamedTuple):
    """Broker to caller: the run ends because a worker died, and the loss, of the kind `loss`, cannot be made up for."""

    processor: str
    phase: str
    exitcode: int | None
    first: int | None
    last: int | None
    loss: LossReason
    stats: Stats | None = None


class FailedByTimeout(NamedTuple):
    """Broker to caller: the run ends because a call took longer than the Processor's timeout."""

    processor: str
    seconds: float
    first: int
    last: int
    stats: Stats | None = None


class FailedByLimit(NamedTuple):
    """Broker to caller: the run ends because it gave up `failures` items, more than it may."""

    failures: int
    stats: Stats | None = None


class FailedByBroker(NamedTuple):
    """Broker to caller: the broker itself raised.  `text` is the message for the user, "" where there is none."""

    text: str
    traceback: str
    stats: Stats | None = None


# From the broker to a worker


class ConfigureWorker(NamedTuple):
    """Broker to a worker that was not forked: its configuration.  The job and `redact` follow as blobs."""

    config: WorkerConfig


class StartLease(NamedTuple):
    """Broker to worker: items to work on, as `spec` describes them in the blobs.

    The worker may give `credit` outputs for them.  `finish`: no items, the job's `finish` is to run.  `starts_in_kept`:
    the first items are in the blob that the worker has kept.  `keep_last`: the worker is to keep the last blob.
    `skip`: so many outputs of the first call are there already.  `give_up`: the only call of the lease is given up.
    `traced`: the items are submitted, and a call that fails ends nothing else.  `attempt`: that at the first call.
    """

    lease: int
    spec: Any
    credit: int
    finish: bool
    starts_in_kept: bool
    keep_last: bool
    skip: int
    give_up: GiveUp | None
    traced: bool = False
    attempt: int = 1


class Grant(NamedTuple):
    """Broker to worker: it may give `credit` more outputs for the lease."""

    lease: int
    credit: int


class SetFlushInterval(NamedTuple):
    """Broker to worker: send what is done after so many seconds at most."""

    seconds: float


class TrimMemory(NamedTuple):
    """Broker to worker: give back shared memory that is ready for more outputs, as nothing runs."""


class CancelLeases(NamedTuple):
    """Broker to worker: drop all leases, and answer each with a final reply."""


class Resume(NamedTuple):
    """Broker to worker: another run begins; leases are to be worked on again."""


# From a worker to the broker


class Ready(NamedTuple):
    """Worker to broker: its job is set up."""


class Reply(NamedTuple):
    """Worker to broker: the next `calls` calls of a lease are done; their outputs are in the blobs.

    `group_sizes`: how many outputs each call gave, None where nobody needs to know.  `blob_items`: how many items each
    blob has.  `final`: the lease is done.  `starving`: the worker waits for credit.  The last reply was `seconds`
    ago, and `measures` are the fields of `conveyor.stats.Measures` since then.  The last `partial` outputs are of a
    call that is not done.  `given_up`: index, attempts, time and reason of each call given up.  `released`:
    slots of shared memory that this worker refers to no more.  `slow`: index, seconds and argument of each slow call.
    """

    lease: int
    calls: int
    group_sizes: GroupSizes | None
    blob_items: list[int]
    final: bool
    starving: bool
    seconds: float
    measures: tuple[Any, ...]
    partial: int
    given_up: Sequence[tuple[int, int, float, Any]]
    released: Sequence[int]
    slow: Sequence[tuple[int, float, str | None]]


class CallFailed(NamedTuple):
    """Worker to broker: the job raised, at the call that comes `calls` calls after the last one acknowledged.

    None: at one of the calls of the lease.  The worker works on no other, unless the items are submitted ones.
    """

    lease: int
    calls: int | None
    failure: Failure


class WorkerFailed(NamedTuple):
    """Worker to broker: the job raised outside of a lease, as it was loaded, set up or torn down."""

    failure: Failure


# In both directions


class SlotsReleased(NamedTuple):
    """A reader (caller or worker) to broker: it does not refer to these slots of shared memory any more."""

    slots: Sequence[int]


class SlotsFreed(NamedTuple):
    """Broker to the writer of these slots (caller or worker): nobody refers to them, they can be written again."""

    slots: Sequence[int]


class Closed(NamedTuple):
    """Worker to broker, broker to caller: the sender has done all that it was asked for, and ends."""


# What jobs log and print, from a worker to the broker, and from there to the caller


class RecordLogged(NamedTuple):
    """Worker to broker to caller: a log record, in the blob."""


class WarningShown(NamedTuple):
    """Worker to broker to caller: a warning, in the blob."""


class Printed(NamedTuple):
    """Worker to broker to caller: a job wrote what is in the blob to this stream of `sys`.  Text goes as UTF-8."""

    stream: str
    is_binary: bool


class NoticeGiven(NamedTuple):
    """Worker or broker to caller: something that Conveyor itself logs."""

    level: str
    text: str


class LogsDropped(NamedTuple):
    """Broker to caller: `dropped` log records, warnings and prints went, as the caller did not take them in time."""

    dropped: int


CallerMessage = (
    ConfigureBroker
    | Consumed
    | ConclusionRequest
    | CancelRun
    | Close
    | Abort
    | StartRun
    | SourceItems
    | ReturnCredit
    | WithdrawItems
    | SourceEnded
    | SourceFailed
    | ForwardPrints
    | StatsRequest
    | SlotsReleased
)
RunFailure = FailedBySource | FailedByJob | FailedByDeath | FailedByTimeout | FailedByLimit | FailedByBroker
LogMessage = RecordLogged | WarningShown | Printed | NoticeGiven | LogsDropped
BrokerToCaller = (
    Pull
    | StopSource
    | SlotsFreed
    | StatsReply
    | Opened
    | Results
    | ItemResults
    | ItemGivenUp
    | RunCancelled
    | ConclusionReply
    | RunFinished
    | RunFailure
    | LogMessage
    | Closed
)
BrokerToWorker = (
    ConfigureWorker
    | StartLease
    | Grant
    | SetFlushInterval
    | SlotsFreed
    | TrimMemory
    | CancelLeases
    | Resume
    | ForwardPrints
    | Close
)
WorkerMessage = Ready | Reply | CallFailed | WorkerFailed | SlotsReleased | LogMessage | Closed
Message = CallerMessage | BrokerToCaller | BrokerToWorker | WorkerMessage
LOG_MESSAGES = LogMessage.__args__
KINDS: dict[str, Any] = {kind.__name__: kind for kind in Message.__args__}


def encode(message: Message, lengths: list[Any]) -> bytes:
    """Return a message as bytes, together with what is said of the lengths of its blobs."""
    return pickle.dumps((lengths, type(message).__name__, *message), 5)


def decode(data: Any, new: Any = tuple.__new__) -> tuple[Message, list[Any]]:
    """Return what was encoded; raises ProtocolError where the kind of the message is not declared here."""
    content = pickle.loads(data)
    kind = KINDS.get(content[1])
    if kind is None:
        raise ProtocolError(f"There is no message {content[1]!r}. This is an error in Conveyor: please report it.")
    return new(kind, content[2:]), content[0]
