"""The shell of the thread engine: whichever thread has a message runs the core.

Law: one thread at a time, and no thread ever waits for its turn.  It leaves its message, and goes on: the thread whose
turn it is carries that out as well.  So a signal handler or a finalizer may send a message at any moment.  No user code
runs in a turn.

Free-threaded builds: what is posted goes through a deque, whose `append` and `popleft` are safe by themselves.  All
else here is touched in a turn alone, or is a flag that is set once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, Any, cast
from conveyor._system.clock import time
from conveyor.core import commands, events
from conveyor.core.machine import Machine
from conveyor.core.shell import Observer, Shell
from conveyor.engines.failures import traceback_of
from conveyor.engines.process.system.waiting import SLICE_SECONDS, PauseDetector
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.progress import LastWords, last_words_of
from conveyor.engines.thread.items import Blob, blobs_of
from conveyor.engines.thread.port import End, Frame, Port
from conveyor.engines.thread.timing import Statistics, Ticker
from conveyor.engines.thread.worker_pool import WorkerPool
from conveyor.errors import ProcessError
from conveyor.stats import Measures, Stats

if TYPE_CHECKING:
    from conveyor.core.trace import KeptTrace
    from conveyor.engines.base import RunProgress
    from conveyor.engines.thread.gil import ContentionProbe

# How long a thread that asks for the statistics waits for the one whose turn it is.
STATS_SECONDS = 1.0


class ThreadAbandoned(NamedTuple):
    """Shell to caller: a thread was abandoned; `text` says which, and why."""

    text: str


class TooManyAbandoned(NamedTuple):
    """Shell to caller: the run ends because it would abandon one thread more than may be; `text` names them."""

    processor: str
    seconds: float
    text: str


class Turn:
    """Has calls made one at a time, in the order in which they were posted, by any of the threads that post them.

    >>> turn = Turn()
    >>> turn.post(print, "one"); turn.post(print, "two")
    one
    two
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._lock = threading.Lock()
        # The thread whose turn it is.
        self._holder: int | None = None

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have a call made, by this thread at once or by the one whose turn it is; raises what it raises here."""
        calls, lock = self._calls, self._lock
        calls.append((call, arguments))
        # Once more after each turn: what was posted amid its end found the lock taken.
        while calls and lock.acquire(blocking=False):
            self._holder = threading.get_ident()
            try:
                while calls:
                    due, given = calls.popleft()
                    due(*given)
            finally:
                self._holder = None
                lock.release()

    @property
    def is_mine(self) -> bool:
        """Whether it is this thread's turn: what it is at, further up, is in the middle of a call."""
        return self._holder == threading.get_ident()


class Feed(End):
    """What the source of one run has of the shell: it takes in what that allows, and gives it items."""

    def __init__(self, shell: ThreadShell, traced: bool = False, streamed: bool = False) -> None:
        super().__init__()
        self._shell = shell
        # Whether each item has results of its own, and whether it comes from a source then, or is submitted.
        self.traced, self.streamed = traced, streamed

    def send(self, message: messages.Message, blobs: Any = ()) -> None:
        """Tell the shell something."""
        self._shell.post(self._shell.from_source, message, blobs)


class ThreadShell(Shell):
    """Workers are threads, and so is the caller."""

    def __init__(
        self, machine: Machine, observers: Sequence[Observer], pool: WorkerPool, probe: ContentionProbe
    ) -> None:
        super().__init__(machine, observers)
        self.pool = pool
        self.results: SimpleQueue[Frame] = SimpleQueue()
        self.feed = Feed(self)
        self.run = 0
        self._statistics = Statistics()
        # Nothing is decided any more once it has failed, or the workers are to leave.
        self.failed = self.closing = False
        self._cancelled = False
        # What a consumer that stops wants to know, and cannot be told before the source goes on or ends.
        self._request: messages.ConclusionRequest | None = None
        self._opened = False
        self._turn = Turn()
        self._pauses = PauseDetector()
        self._ticker = Ticker(lambda: self.post(self._tick), probe)

    def read_clock(self) -> float:
        return time.monotonic()

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have a call made in a turn; after one that raises, nothing goes on."""
        try:
            self._turn.post(call, *arguments)
        except BaseException as error:
            self._break(error)
            raise

    def _break(self, error: BaseException) -> None:
        """Take in that an exception, of a signal handler say, has left the core in no good state."""
        if not self.failed:
            self.failed = True
            text = str(error) if isinstance(error, ProcessError) else ""
            self.results.put((messages.FailedByBroker(text, traceback_of(error)), []))

    def handle(self, event: events.Event) -> None:
        if not (self.failed or self.closing):
            super().handle(event)
            self._statistics.sample(self.machine)
            if self.pool.ticks and self.run:
                self._ticker.want(self.machine.timer)

    def stats(self, progress: RunProgress | None = None) -> Stats | None:
        """Return the statistics as of now, and note how far a watched run is; None where no thread answers."""
        told: Stats | None = self._answer_to(self._tell_stats, progress)
        return told

    def trace(self) -> KeptTrace | None:
        """Return what was traced so far; None where nobody traces, or no thread answers."""
        # Most programs never ask.
        from conveyor.engines.process.broker.observing import kept_trace

        kept: KeptTrace | None = self._answer_to(lambda answer: answer.put(kept_trace(self.observers)))
        return kept

    def _answer_to(self, question: Callable[..., None], *arguments: Any) -> Any:
        """Return what a question puts into the queue that it gets first; None where no thread answers."""
        if self._turn.is_mine:
            # What this thread is at, further up, is to go on first.
            return None
        answer: SimpleQueue[Any] = SimpleQueue()
        self.post(question, answer, *arguments)
        with suppress(Empty):
            return answer.get(timeout=STATS_SECONDS)
        return None

    def _tell_stats(self, answer: SimpleQueue[Stats | None], progress: RunProgress | None) -> None:
        if self.machine and progress is not None and progress.is_watched and progress.number == self.run:
            progress.through = max(progress.through, self.machine.items_through())
        answer.put(self._stats_now() if self.machine else None)

    def _stats_now(self) -> Stats:
        return self._statistics.of(self.machine, self.read_clock(), self.pool.look)

    def _tick(self) -> None:
        self._ticker.ticked()
        if self.failed or self.closing or not self.run:
            return
        if self.pool.is_timed:
            self._pauses.look(SLICE_SECONDS)
        due = self.machine.timer
        if due is not None and self.read_clock() >= due:
            other = time.process_time() - self.pool.cpu_seconds()
            self.handle(events.Ticked(other))
        elif due is not None:
            self._ticker.want(due)
        if self.pool.is_timed and self.machine.timed:
            # Looks seldom enough would take a pause of the machine for a call that takes long.
            self._ticker.want(self.read_clock() + SLICE_SECONDS)

    # From the source

    def new_feed(self, traced: bool = False, streamed: bool = False) -> Feed:
        """Return the end for the source of the next run; the flags are those of `StartRun`."""
        self.feed = Feed(self, traced, streamed)
        return self.feed

    def from_source(self, message: messages.Message, blobs: Any) -> None:
        """Take in what a source says.  What belongs to a run that is over goes."""
        match message:
            case messages.SourceItems():
                if message.run == self.run:
                    blob = blobs[0]
                    self.handle(events.SourceItems(blob, message.items, blob.size))
                    self._conclude(self._request)
            case messages.StartRun():
                self._start_run(message)
            case messages.ReturnCredit():
                if message.run == self.run:
                    self.handle(events.CreditReturned(message.items))
            case messages.WithdrawItems():
                if message.run == self.run:
                    self.handle(events.Withdrawn(message.origins))
            case messages.SourceEnded():
                if message.run == self.run:
                    self.handle(events.SourceEnded())
                    self._conclude(self._request)
            case messages.SourceFailed():
                if message.run == self.run and not self._cancelled:
                    self.fail_with(messages.FailedBySource(message.run))
            case _:
                raise messages.unexpected(message, "The shell, from the caller's source,")

    def _conclude(self, request: messages.ConclusionRequest | None) -> None:
        """Tell a consumer that stops whether the run is over, or keep the request until that is known."""
        if request is not None and self.machine:
            conclusion = self.machine.conclusion(request.taken)
            self._request = request if conclusion is None else None
            if conclusion is not None:
                self.results.put((messages.ConclusionReply(request.run, *conclusion), []))

    def _start_run(self, begun: messages.StartRun) -> None:
        self._request = None
        self.run = begun.run
        self.handle(events.RunStarted(begun.traced, begun.streamed))
        if self._cancelled:
            self._cancelled = False
            for port in self.pool.ports.values():
                port.tell(messages.Resume())

    # From the caller

    def from_consumer(self, message: messages.Message) -> None:
        """Take in what the caller says about results, and about the pipeline as a whole."""
        match message:
            case messages.Consumed():
                if message.run == self.run:
                    self.handle(events.Consumed(message.items))
            case messages.ConclusionRequest():
                if message.run == self.run:
                    self._conclude(message)
            case messages.CancelRun():
                # Another thread may wait for results.
                self.results.put((messages.RunCancelled(message.run), []))
                if message.run == self.run:
                    self._cancelled = True
                    self._stop_source()
                    self.handle(events.Cancelled())
            case messages.Close():
                self.closing = True
                self.pool.close()
                self._tell_if_closed()
            case _:
                raise messages.unexpected(message, "The shell, from the caller,")

    # From the workers

    def from_worker(self, port: Port, message: Any, blobs: Any) -> None:
        """Take in what a worker says; one that was abandoned says nothing any more."""
        if port.abandoned:
            return
        match message:
            case events.Replied():
                self.handle(message)
            case messages.Reply():
                self._take_reply(port, message, blobs)
            case messages.Ready():
                port.is_up = True
                self.handle(events.WorkerReady(port.number, self.read_clock() - port.begun))
                if not self._opened and all(each.is_up for each in self.pool.ports.values()):
                    self._opened = True
                    self.results.put((messages.Opened(""), []))
            case messages.CallFailed():
                self.handle(events.Raised(port.number, message.lease, message.calls, message.failure))
            case messages.WorkerFailed():
                self.fail_with(messages.FailedByJob(port.config.name, message.failure, first=None, last=None))
            case messages.Closed():
                self.pool.left(port)
                self._tell_if_closed()
            case _:
                raise messages.unexpected(message, "The shell, from a worker,")

    def _take_reply(self, port: Port, reply: messages.Reply, blobs: list[Blob]) -> None:
        self.handle(
            events.Replied(
                port.number,
                reply.lease,
                reply.calls,
                reply.group_sizes,
                tuple(zip(blobs, reply.blob_items, strict=True)),
                sum([blob.size for blob in blobs]),
                reply.final,
                reply.starving,
                reply.seconds,
                Measures(*reply.measures),
                reply.partial,
                reply.given_up,
                reply.slow,
            )
        )

    def _tell_if_closed(self) -> None:
        if self.closing and not self.pool.ports:
            self.results.put((messages.Closed(), []))

    # To the workers

    def send_lease(self, command: commands.SendLease) -> None:
        self.pool.ports[command.worker].lease(command, self.feed.traced)

    def grant(self, command: commands.Grant) -> None:
        self.pool.ports[command.worker].tell(messages.Grant(command.lease, command.credit))

    def cancel_leases(self, worker: int) -> None:
        self.pool.ports[worker].tell(messages.CancelLeases())

    def revoke(self, command: commands.Revoke) -> None:
        started = self.pool.ports[command.worker].revoke(command.lease, command.calls)
        self.answers.append(events.RevokeResult(command.worker, *started))

    def probe_worker(self, worker: int) -> None:
        at, since = self.pool.ports[worker].progress.working_since()
        seconds = None if since is None else self.read_clock() - since - self._pauses.since(since)
        self.answers.append(events.ProbeResult(worker, *at, seconds))

    def set_flush_interval(self, worker: int, seconds: float) -> None:
        self.pool.ports[worker].tell(messages.SetFlushInterval(seconds))

    def start_worker(self, step: int, worker: int) -> None:
        try:
            self.pool.start(step, worker, self.machine.roster.step_rosters[step].index_of(worker), self)
        except ProcessError as error:
            if not self.machine.can_do_without(worker):
                raise
            self.answers.append(events.WorkerNotStarted(worker))
            if not self.pool.goes_without:
                self.pool.goes_without = True
                text = f"{error} The Processor goes on with the workers that it has."
                self.results.put((messages.NoticeGiven("WARNING", text), []))

    def end_worker(self, worker: int) -> None:
        self.pool.ports[worker].tell(messages.Close())

    def kill_worker(self, worker: int) -> None:
        port = self.pool.ports[worker]
        # What it has said before counts, as what a dead process has sent.
        started = port.progress.fence()
        self.post(self._abandon, port, last_words_of(port.progress, self._pauses.since)._replace(started=started))

    def _abandon(self, port: Port, last: LastWords) -> None:
        """Have no more to do with a thread that is at one call for too long."""
        if self.failed or self.closing:
            return
        timeout = self.machine.step_of(port.number).step_roster.node.timeout or 0.0
        others = self.pool.abandon(port)
        self.results.put((ThreadAbandoned(self.pool.text_of(port, timeout)), []))
        if others:
            self.fail_with(TooManyAbandoned(port.config.name, timeout, others))
        else:
            what = last.started, True, False, False, last.under_way, last.silent
            self.handle(events.WorkerLost(port.number, None, *what))

    # To source and consumer

    def pull(self, credit: int) -> None:
        credited = messages.Pull(self.run, credit)
        # Submitted items come from many threads, of which none listens; one listens for their results.
        if self.feed.traced and not self.feed.streamed:
            self.results.put((credited, []))
        else:
            self.feed.tell(credited)

    def emit(self, command: commands.Emit) -> None:
        results = messages.Results(self.run, command.pieces, command.report_within_seconds)
        self.results.put((results, blobs_of(command.pieces)))

    def deliver(self, command: commands.Deliver) -> None:
        what = command.lineages, command.settled, command.report_within_seconds
        self.results.put((messages.ItemResults(self.run, command.pieces, *what), blobs_of(command.pieces)))

    def item_failed(self, command: commands.ItemFailed) -> None:
        number, name = command.number, self.pool.name_of(command.step)
        what = name, number, number, command.attempts, 0.0, command.why
        self.results.put((messages.ItemGivenUp(self.run, *what, command.origin, command.skipped), []))

    def gave_up(self, command: commands.GaveUp) -> None:
        step, *fields = command
        self.results.put((messages.ItemGivenUp(self.run, self.pool.name_of(step), *fields), []))

    def finish(self) -> None:
        self._stop_source()
        if self._cancelled:
            # What waited, and what workers gave meanwhile, is nobody's.
            _forget_items(self.machine)
        self.results.put((messages.RunFinished(self.run, self._stats_now()), []))

    def fail(self, command: commands.Fail) -> None:
        name, loss, first, last = self.pool.name_of(command.step), command.loss, command.first, command.last
        failure: Any
        if loss is None:
            failure = messages.FailedByJob(name, command.cause, first, last)
        elif loss == commands.Loss.FAILURES:
            failure = messages.FailedByLimit(command.cause)
        else:
            # A thread is lost only where it was abandoned for the time that it took.
            timeout = self.machine.step_of(command.worker or 0).step_roster.node.timeout or 0.0
            failure = messages.FailedByTimeout(name, timeout, first or 0, last or 0)
        self.fail_with(failure)

    def fail_with(self, failure: Any) -> None:
        """Tell the caller what went wrong, the first time."""
        if not self.failed and not (self.closing and not isinstance(failure, messages.FailedByJob)):
            self.failed = True
            self.results.put((failure, []))
            self._stop_source()

    def _stop_source(self) -> None:
        """Have the source stop; it gives back what it holds."""
        self.feed.tell(messages.StopSource(self.run))

    def forget(self) -> list[messages.NoticeGiven]:
        """Refer to no item any more; return what observers have said.  `stop` comes before."""
        self.post(self._forget)
        notices = []
        with suppress(Empty):
            while True:
                message, _ = self.results.get_nowait()
                if isinstance(message, messages.NoticeGiven):
                    notices.append(message)
        # For whoever comes late, and would wait.
        self.results.put((messages.Closed(), []))
        return notices

    def _forget(self) -> None:
        # A trace reads the machine once more.
        for observer in self.observers:
            observer.close()
        self.observers = ()
        _forget_items(self.machine)
        self.machine = cast(Any, None)
        self.answers.clear()
        self.pool.forget()

    def join(self, seconds: float) -> list[threading.Thread]:
        """Wait for all threads to end; return those of workers that go on after so long.  Call `stop` before."""
        left = self.pool.join(seconds)
        self._ticker.join()
        return left

    def stop(self) -> None:
        """Have nothing decided any more, and no thread started; may be called amid a turn, and in any thread."""
        self.closing = True
        self.pool.close()
        self._ticker.stop()


def _forget_items(machine: Machine) -> None:
    """Have a machine whose run is over refer to no item: its nodes are a cycle, which Python collects later."""
    for node in machine.nodes:
        node.clear()
    for step in machine.steps:
        step.book.forget()
        step.order.entries.clear()
