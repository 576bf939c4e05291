"""A session of the thread engine, as the caller sees it: worker threads, from `open` to `close`, and the runs in it.

Law: whatever ends a run early ends the session.  When the session raises the error, its threads have ended.  Only
abandoned threads go on, and threads whose job has not returned within a second.  A warning names these.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence

from conveyor._lean.dataclasses import replace
from conveyor._lean.short_repr import Redact, shown_by
from conveyor._lean.typing import TYPE_CHECKING, Any, cast
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_held
from conveyor.core.machine import Machine
from conveyor.core.tuning.chunk_size import first_pull
from conveyor.engines.base import FORKED, Gathering, known_total
from conveyor.engines.failures import (
    THREAD_ABANDONED,
    Failure,
    clear_our_frames,
    overdue,
    processor_error,
)
from conveyor.engines.process.caller.run import THREAD_EXIT_SECONDS, Run, failed_item_of
from conveyor.engines.process.caller.run_keeper import CLOSED, RunKeeper
from conveyor.engines.process.wire import messages
from conveyor.engines.thread.gil import ContentionProbe, GilPolicy
from conveyor.engines.thread.port import End, Frame, this_process
from conveyor.engines.thread.run import ThreadRun, ThreadSource
from conveyor.engines.thread.shell import ThreadAbandoned, ThreadShell, TooManyAbandoned
from conveyor.engines.thread.worker_pool import WorkerPool, add_abandoned
from conveyor.errors import (
    AbandonedThreadWarning,
    ItemTimeoutError,
    RemoteTraceback,
    StateError,
)
from conveyor.graph.plan import Plan
from conveyor.stats import Stats

if TYPE_CHECKING:
    from conveyor.core.shell import Observer
    from conveyor.engines.process.caller.jobs import JobRun

# How long `abort` waits for threads to come out of their jobs.
EXIT_SECONDS = 0.7


class Session(RunKeeper):
    """Worker threads, from `open` to `close`.

    Raises, from any method, what ended the session.
    """

    settling_seconds = 0.2
    broker_name = "thread engine"

    def __init__(self, plan: Plan, redact: Redact | None) -> None:
        super().__init__(plan)
        self.format_item = shown_by(redact)
        self._owner = this_process.number
        pool = WorkerPool(plan, redact)
        probe = ContentionProbe(any(step.auto for step in plan.steps))
        opened = time.monotonic()
        machine = Machine(plan, opened, GilPolicy(lambda: probe.contended))
        self._shell = ThreadShell(machine, (), pool, probe)
        self._shell.observers = _observers(plan, opened, self._shell)
        self._results = Results(self._shell)
        self._stats: Stats | None = None

    def warn(self, stacklevel: int) -> None:
        """There is nothing to warn of: nothing is started in another way than the user may expect."""

    def open(self) -> None:
        """Start the workers, and wait until they have set up their jobs."""
        atexit.register(self.abort)
        try:
            self._shell.post(self._start_workers)
            while not isinstance(self.receive()[0], messages.Opened):
                pass
        except BaseException:
            self.abort()
            raise

    def _start_workers(self) -> None:
        shell = self._shell
        for index, roster in shell.machine.roster.step_rosters.items():
            for number in list(roster.numbers):
                shell.start_worker(index, number)

    @property
    def prints(self) -> None:
        """Jobs print in this process."""
        return None

    @property
    def is_forked_copy(self) -> bool:
        """Whether this process was forked from the one that opened the session."""
        return this_process.number != self._owner

    # Runs

    def submit_run(self) -> JobRun:
        """Start a run of items that are submitted one by one."""
        # Few pipelines have any.
        from conveyor.engines.thread.jobs import new_job_run

        sink, progress = self._prepare_run(None)
        run = new_job_run(self, self._plan, self._runs, self._shell.new_feed(traced=True), sink, progress)
        self._active = run
        run.start()
        return run

    def run(self, items: Iterable[Any], gathering: Gathering | None = None) -> ThreadRun:
        """Start a run, once the workers are free of a run that was given up."""
        sink, progress = self._prepare_run(known_total(items))
        plan, is_gathered, this = self._plan, gathering is not None, cast(Any, self)
        feed: Any = self._shell.new_feed(traced=is_gathered, streamed=is_gathered)
        room = first_pull(plan), plan.steps[0].bound_bytes
        what = items, feed, *room, self.format_item, None, threading.RLock(), progress
        if gathering is None:
            run = ThreadRun(this, self._runs, ThreadSource(self._runs, *what), sink)
        else:
            # Few runs do that.
            from conveyor.engines.process.caller.gathered import Gatherer
            from conveyor.engines.thread.gathered import GatheredThreadRun, GatheredThreadSource

            gatherer = Gatherer(gathering, plan, progress)
            run = GatheredThreadRun(this, self._runs, GatheredThreadSource(self._runs, *what, gatherer=gatherer), sink)
        self._active = run
        source = run.source
        if self.ended:
            # The thread that ended it may not have seen this run.
            source.stop()
        source.start()
        return run

    def leave(self, run: Run | JobRun) -> None:
        """Give up a run: its workers finish the item at hand, and are free then."""
        self._draining_run = None if run.finished else cast(Any, run)
        self._active = None
        if not run.finished:
            self._shell.post(self._shell.from_consumer, messages.CancelRun(run.number))

    # Messages

    def receive(self) -> Frame:
        """Wait for a message about results; raises the error that it brings, with the session ended."""
        if self.is_forked_copy:
            raise StateError(FORKED)
        if self.ended:
            raise StateError(CLOSED)
        message, blobs = self._results.receive()
        match message:
            case messages.Results() | messages.Opened() | messages.RunCancelled() | messages.ConclusionReply():
                pass
            case messages.ItemResults() | messages.Pull():
                pass
            case messages.Closed():
                if self.ended:
                    raise StateError(CLOSED)
            case messages.ItemGivenUp():
                self._take_in_failure(message)
            case messages.RunFinished():
                self._stats = message.stats
            case ThreadAbandoned():
                warnings.warn(message.text, AbandonedThreadWarning, stacklevel=2)
            case messages.NoticeGiven():
                _log(message)
            case _:
                raise self._ended_by(message)
        return message, blobs

    def _take_in_failure(self, message: messages.ItemGivenUp) -> None:
        if self._active is not None and message.run == self._active.number:
            if isinstance(message.why, Failure):
                # Its frames would keep all that was under way.  The text of its traceback stays.
                chain = list(chain_of(message.why.pickled))
                for error in chain:
                    error.with_traceback(None)
                # A job may raise the same object again.
                if chain and not isinstance(chain[-1], RemoteTraceback):
                    # Not an assignment, which a frozen dataclass would refuse.
                    BaseException.__setattr__(chain[-1], "__cause__", RemoteTraceback(message.why.traceback))
            if message.origin is None:
                self.failures.append(failed_item_of(message))

    def has_message(self, seconds: float) -> bool:
        """Whether a message is there, or comes within `seconds`."""
        return self._results.ready(seconds)

    def send(self, message: messages.Message) -> None:
        """Send a message about results."""
        self._shell.post(self._shell.from_consumer, message)

    def stats(self) -> Stats | None:
        """Return what is known of the steps now; of a session that is over, what was known last."""
        if not self.ended and not self.is_forked_copy:
            self._stats = self._shell.stats(self._progress) or self._stats
        if self._stats is None:
            return None
        # Most programs never ask.
        from conveyor.graph.advice import Advisor

        stats = self._stats if self._progress is None else self._progress.added_to(self._stats)
        return replace(stats, advice=Advisor(self._plan).advice(stats))

    def trace(self) -> Iterable[str] | None:
        """Return the lines of what the trace holds so far; None where there is none, or nobody answers."""
        if self.ended or self.is_forked_copy:
            return self._written_trace()
        kept = self._shell.trace()
        return None if kept is None else kept.lines()

    # Errors

    def _ended_by(self, failure: Any) -> BaseException:
        """End the session; return the error to raise for what ended it."""
        run = self._active or self._draining_run
        self.abort()
        match failure:
            case messages.FailedBySource() | messages.FailedByLimit() | messages.FailedByBroker():
                return self._error_of_any(failure, run)
            case messages.FailedByJob():
                for error in chain_of(getattr(failure.failure, "pickled", None)):
                    clear_our_frames(error.__traceback__)
                return processor_error(failure.processor, failure.failure, failure.first, failure.last)
            case messages.FailedByTimeout():
                what = failure.processor, failure.seconds, failure.first, failure.last
                return overdue(*what, end=THREAD_ABANDONED)
            case TooManyAbandoned():
                return ItemTimeoutError(
                    f"Processor {failure.processor!r} took longer than its timeout of {failure.seconds:g} s, and no "
                    f"more threads can be abandoned: these were before, and still run: {failure.text}. Remedy: give "
                    "what the job waits for a timeout of its own, or use the process engine.",
                    processor=failure.processor,
                    seconds=failure.seconds,
                    number=None,
                    last=None,
                )
            case _:
                raise messages.unexpected(failure, "The caller, over its channel of results,")

    # The end

    def abort(self) -> None:
        """End everything now: threads come out of their jobs, and are abandoned where they do not.

        Where another thread ends the session, this one waits for it, within a bound.
        """
        if self.is_forked_copy:
            atexit.unregister(self.abort)
            self._ending.begin()
            return
        left: list[threading.Thread] = []
        with interrupts_held():
            first = self._ending.begin()
            if first:
                try:
                    left = self._abort()
                finally:
                    self._ending.is_over.set()
        if not first:
            self._ending.wait()
        elif left:
            names = ", ".join(repr(thread.name) for thread in left)
            warnings.warn(
                f"The pipeline has ended, but {names} did not: a thread cannot be killed, so it goes on until its job "
                "returns. Remedy: give what the job waits for a timeout of its own, or use the process engine.",
                AbandonedThreadWarning,
                stacklevel=3,
            )

    def _abort(self) -> list[threading.Thread]:
        """End everything; return the threads that go on."""
        atexit.unregister(self.abort)
        shell = self._shell
        self._stats = shell.stats() or self._stats
        runs = [run for run in (self._active, self._draining_run) if run is not None]
        self._active = self._draining_run = None
        for run in runs:
            run.source.stop()
        shell.stop()
        # Whoever waits for results hears that the session is over, and whoever waits for room that there is none.
        shell.results.put((messages.Closed(), []))
        for run in runs:
            shell.feed.tell(messages.StopSource(run.number))
        left = shell.join(EXIT_SECONDS)
        for thread in left:
            add_abandoned(thread)
        for run in runs:
            run.source.join()
        if self.taking.acquire(timeout=THREAD_EXIT_SECONDS):
            self.taking.release()
        for notice in shell.forget():
            _log(notice)
        return left


class _Notices:
    """Where observers leave what they have to say: the thread that takes results logs it."""

    def __init__(self, shell: ThreadShell) -> None:
        self._shell = shell

    def pass_on(self, message: messages.Message, blobs: list[Any]) -> None:
        """Have a message logged."""
        self._shell.results.put((message, blobs))


def _observers(plan: Plan, opened: float, shell: ThreadShell) -> Sequence[Observer]:
    """Return who observes the core: the debug log and the recorder, where the user asked for them."""
    logging = sys.modules.get("logging")
    tells_story = logging is not None and logging.getLogger("conveyor").isEnabledFor(logging.DEBUG)
    trace = plan.setting("trace")
    if not tells_story and trace is None and "CONVEYOR_RECORD" not in os.environ:
        return ()
    from conveyor.engines.process.broker.observing import observers_of
    from conveyor.engines.process.caller import trace_file
    from conveyor.engines.process.caller.broker_link import new_recording
    from conveyor.engines.process.wire.configs import BrokerConfig

    config = BrokerConfig(
        plan, {}, "", "", 0, tells_story=tells_story, record_to=new_recording(), trace_to=trace_file.new(trace)
    )
    return observers_of(config, shell.machine, opened, cast(Any, _Notices(shell)), [])


def _log(notice: messages.NoticeGiven) -> None:
    # Most programs never ask for it.
    from conveyor.engines.process.wire.log_records import handle_log_message

    handle_log_message(notice, [])


def chain_of(error: Any) -> Iterator[BaseException]:
    """Yield an exception, and those that it came of."""
    known: list[Any] = [None]
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseException) and each not in known:
            known.append(each)
            waiting += [each.__cause__, each.__context__]
            yield each


class Results(End):
    """What the shell says to the caller."""

    def __init__(self, shell: ThreadShell) -> None:
        super().__init__()
        self._inbox = shell.results
