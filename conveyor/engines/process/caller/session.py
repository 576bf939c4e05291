"""A session, as the caller sees it: a broker with its workers, from `open` to `close`, and the runs in it.

Law: whatever ends a run early (a bad item, Ctrl-C, a broker that died) ends the session.  The session leaves nothing
behind when it raises the error.
"""

from __future__ import annotations

import atexit
import contextlib

# It waits for children when the interpreter exits, after what is registered with `atexit` later.
import multiprocessing.util  # noqa: F401
import os
import threading
import warnings
from collections.abc import Iterable

from conveyor._lean.dataclasses import replace
from conveyor._lean.short_repr import shown_by
from conveyor._lean.typing import TYPE_CHECKING, Any, TypeVar
from conveyor._system.limits import resident_memory
from conveyor._system.signals import interrupts_held
from conveyor.core.tuning.chunk_size import first_pull
from conveyor.engines.base import FORKED, Gathering, known_total
from conveyor.engines.failures import death, overdue, processor_error
from conveyor.engines.process.caller.broker_link import (
    BROKER_EXIT_SECONDS,
    BrokerClient,
    BrokerProcess,
    config_for,
)
from conveyor.engines.process.caller.run import THREAD_EXIT_SECONDS, Run, failed_item_of
from conveyor.engines.process.caller.run_keeper import CLOSED, RunKeeper
from conveyor.engines.process.caller.source import Source
from conveyor.engines.process.caller.start_method import (
    FREEZE_SUPPORT,
    Carried,
    Start,
    check_importing,
    is_news,
    start_for,
)
from conveyor.engines.process.shm.arena import KEPT_BYTES
from conveyor.engines.process.system.child_setup import NO_THREAD_EXITCODE, kill_resource_tracker
from conveyor.engines.process.system.spawning import (
    FORK,
    FORKSERVER,
    UNGUARDED_EXITCODE,
    cause_and_remedy,
    is_frozen,
)
from conveyor.engines.process.system.streams import PrintOutlet
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import BrokerConfig
from conveyor.engines.process.wire.endpoint import ConnectionLost, Frame
from conveyor.engines.process.wire.pipe import PIPE, QUEUE
from conveyor.errors import (
    ConveyorError,
    MissingMainGuardError,
    ProcessError,
    StartMethodWarning,
    StateError,
    cause_of_death,
)
from conveyor.graph.plan import Plan
from conveyor.graph.shared_resources import warn_of_shared
from conveyor.stats import Stats, StepStats

if TYPE_CHECKING:
    from conveyor.engines.process.caller.jobs import JobRun
    from conveyor.graph.advice import Advisor

# How long `abort` waits for the last statistics of a run that is given up.
LAST_ANSWER_SECONDS = 0.1

Expected = TypeVar("Expected")


class Session(RunKeeper):
    """Workers, from `open` to `close`.

    Raises, from any method, what ended the session; nothing of it is left then.
    """

    settling_seconds = 0.3
    broker_name = "broker process of the pipeline"

    def __init__(
        self, plan: Plan, start_method: str | None, kind: str | None, carried: Carried, seed: int | None = None
    ) -> None:
        check_importing()
        super().__init__(plan)
        self._start = self._start_for(plan, carried, start_method)
        self.format_item = shown_by(carried.redact)
        self._owner = os.getpid()
        prints = PrintOutlet()
        kind = kind or (PIPE if os.name == "posix" else QUEUE)
        config = config_for(plan, self._start, kind, seed, prints.newly_wanted())
        self._broker = self._new_broker(config)
        self._client = BrokerClient(self._broker, prints)
        self._advisor: Advisor | None = None
        # Held by the thread that sends items.
        self._feeding = threading.RLock()

    # What another engine may do in its own way

    def _start_for(self, plan: Plan, carried: Carried, start_method: str | None) -> Start:
        return start_for(plan, carried, start_method)

    def _new_broker(self, config: BrokerConfig) -> BrokerProcess:
        return BrokerProcess(self._start, config, self._plan.steps[0].bound_bytes)

    def open(self) -> None:
        """Start the workers, and wait until they have set up their jobs."""
        ending = self._ending
        try:
            ending.starter = threading.get_ident()
            try:
                ending.refuse_when_wanted()
                atexit.register(self.abort)
                self._broker.launch()
            finally:
                ending.starter = None
            # A thread that wanted the end meanwhile has left that to this one.
            ending.refuse_when_wanted()
            self._client.prepare()
            if self._start.method != FORK:
                if is_frozen():
                    self._broker.wait_for_begin()
                self._client.configure()
            opened = self._expect(messages.Opened)
            if opened.threads:
                beside = f"the broker spawned the workers beside threads of the script: {opened.threads}"
                self._start = self._start._replace(reason=f"{self._start.reason}; {beside}")
        except BaseException:
            self.abort()
            raise

    def warn(self, stacklevel: int) -> None:
        """Warn of how the processes start, and of what several workers of a Processor would share."""
        start = self._start
        if start.warning is not None and is_news(start):
            warnings.warn(start.warning, StartMethodWarning, stacklevel + 1)
        # A broker that has imported the script shares with the workers that it forks what the script has opened.
        script = start.method == FORKSERVER and start.import_main and not start.by_value
        forked = start.method == FORK
        if forked or script or (start.handles is not None and start.handles.were_needed):
            warn_of_shared(self._plan, forked, script, stacklevel + 1)

    @property
    def prints(self) -> PrintOutlet:
        return self._client.prints

    @property
    def is_forked_copy(self) -> bool:
        """Whether this process was forked from the one that opened the session."""
        return os.getpid() != self._owner

    # Runs

    def submit_run(self) -> JobRun:
        """Start a run of items that are submitted one by one."""
        # Few pipelines have any, and no other waits for these imports.
        from conveyor.engines.jobs import PendingJobs
        from conveyor.engines.process.caller.job_feed import JobFeed
        from conveyor.engines.process.caller.jobs import JobRun

        sink, progress = self._prepare_run(None)
        broker, pending = self._broker, PendingJobs()
        room = first_pull(self._plan), self._plan.steps[0].bound_bytes
        feed = JobFeed(self._runs, broker.feed, room, broker.arena, self._feeding, pending, progress)
        self._active = run = JobRun(self, self._runs, feed, pending, sink)
        self._client.forward_prints(self._feeding)
        with contextlib.suppress(ConnectionLost), self._feeding:
            broker.feed.send(messages.StartRun(self._runs, traced=True))
        run.start()
        return run

    def run(self, items: Iterable[Any], gathering: Gathering | None = None) -> Run:
        """Start a run, once the workers are free of a run that was given up."""
        sink, progress = self._prepare_run(known_total(items))
        feed, arena, most_bytes = self._broker.feed, self._broker.arena, self._plan.steps[0].bound_bytes
        pull, shown = first_pull(self._plan), self.format_item
        what = items, feed, pull, most_bytes, shown, arena, self._feeding, progress
        if gathering is None:
            run = Run(self, self._runs, Source(self._runs, *what), sink)
        else:
            # Few runs do that.
            from conveyor.engines.process.caller.gathered import GatheredRun, GatheredSource, Gatherer

            gatherer = Gatherer(gathering, self._plan, progress)
            run = GatheredRun(self, self._runs, GatheredSource(self._runs, *what, gatherer=gatherer), sink)
        self._active = run
        source = run.source
        self._client.forward_prints(self._feeding)
        if self.ended:
            # The thread that ended it may not have seen this run.
            source.stop()
        source.start()
        return run

    def finished(self, run: Run | JobRun) -> None:
        """Take in that a run is over, and its workers free for the next."""
        self._give_back_memory()
        super().finished(run)

    def leave(self, run: Run | JobRun) -> None:
        """Give up a run: its workers finish the item at hand, and are free then."""
        self._draining_run = run
        self._active = None
        if run.finished:
            # Another thread has just heard of that.
            self._draining_run = None
        elif not self._client.try_send(messages.CancelRun(run.number)):
            # The broker is stopped, or an exception broke off a message to it: nothing can be asked of it any more.
            self.abort()

    def _give_back_memory(self) -> None:
        """Give back memory that the run was given; some is kept for the next."""
        arena, feed = self._broker.arena, self._broker.feed
        if arena is None:
            return
        with self._feeding:
            with contextlib.suppress(ConnectionLost):
                while feed.ready():
                    message, _ = feed.receive()
                    match message:
                        case messages.SlotsFreed():
                            arena.freed(message.slots)
                        case messages.Pull() | messages.StopSource():
                            # Of a run that is over.
                            pass
                        case _:
                            raise messages.unexpected(message, "The caller, after a run,")
            arena.trim(KEPT_BYTES)

    # Messages

    def receive(self) -> Frame:
        """Wait for a message about results; raises the error that it brings, with the session ended.

        What workers log is dealt with here, and returned as well: a thread that waits may have to act meanwhile.
        """
        if self.is_forked_copy:
            raise StateError(FORKED)
        if self._ending.has_begun:
            raise StateError(CLOSED)
        try:
            message, blobs = self._client.receive()
        except ConnectionLost:
            if self._ending.has_begun:
                raise StateError(CLOSED) from None
            raise self._broker_died() from None
        match message:
            case messages.Results() | messages.Opened() | messages.RunCancelled() | messages.Closed():
                pass
            case messages.ItemResults() | messages.Pull():
                pass
            case messages.ConclusionReply():
                # For the run that has asked.
                pass
            case messages.ItemGivenUp():
                self._take_in_failure(message)
            case messages.RunFinished():
                self._client.take_in(message.stats)
            case _ if isinstance(message, messages.LOG_MESSAGES):
                self._client.deliver(message, blobs)
            case _:
                raise self._ended_by(message)
        return message, blobs

    def _take_in_failure(self, message: messages.ItemGivenUp) -> None:
        if self._active is not None and message.run == self._active.number and message.origin is None:
            self.failures.append(failed_item_of(message))

    def has_message(self, seconds: float) -> bool:
        """Whether a message is there, or comes within `seconds`."""
        return self._broker.results.ready(seconds)

    def send(self, message: messages.Message) -> None:
        self._client.send(message)

    def _expect(self, kind: type[Expected]) -> Expected:
        while True:
            message, _ = self.receive()
            if isinstance(message, kind):
                return message

    def stats(self) -> Stats | None:
        """Return what is known of the steps now; of a session that is over, what was known last."""
        client = self._client
        # What workers occupy is only known while they are there.
        is_up = False
        if not self.is_forked_copy:
            with client.asking:
                if self._broker.child is not None and self._ending.starter is None and not self.ended:
                    is_up = True
                    client.ask_for_stats(self._progress)
        # A forked copy takes no lock: a thread may have held it at the fork.
        stats, progress = client.stats, self._progress
        if stats is None:
            return None
        steps = tuple(map(_with_memory, stats.steps)) if is_up else stats.steps
        history = tuple(client.history.samples)
        method, reason = self._start.method, self._start.reason
        stats = replace(stats, steps=steps, history=history, start_method=method, start_reason=reason)
        return self._advised(stats if progress is None else progress.added_to(stats))

    def trace(self) -> Iterable[str] | None:
        """Return the lines of what the trace holds so far; None where there is none, or nobody answers."""
        if self.ended or self.is_forked_copy:
            return self._written_trace()
        with self._client.asking:
            if self._broker.child is None or self._ending.starter is not None:
                return None
            kept = self._client.ask_for_stats(self._progress, wants_trace=True)
        return None if kept is None else kept.lines()

    def _advised(self, stats: Stats) -> Stats:
        """Return statistics with what they advise."""
        if self._advisor is None:
            # Most programs never ask.
            from conveyor.graph.advice import Advisor

            self._advisor = Advisor(self._plan)
        return replace(stats, advice=self._advisor.advice(stats))

    # Errors

    def _broker_died(self) -> ConveyorError:
        """End the session; return the error to raise for a broker that died."""
        child = self._broker.child
        assert child is not None
        child.wait(BROKER_EXIT_SECONDS)
        exitcode = child.exitcode
        self.abort()
        if exitcode == UNGUARDED_EXITCODE:
            if not is_frozen():
                return MissingMainGuardError()
            kill_resource_tracker()
            return MissingMainGuardError(f"A new process ran the program again. Remedy: {FREEZE_SUPPORT}")
        if exitcode == NO_THREAD_EXITCODE:
            return ProcessError(f"The broker process of the pipeline could not be started: {cause_and_remedy(None)}")
        # A copy of the program, which knows nothing of its arguments, may end at them.
        remedy = f" Or {FREEZE_SUPPORT}" if is_frozen() and self._start.method != FORK and not self._runs else ""
        return ProcessError(
            f"The broker process of the pipeline {cause_of_death(exitcode)}, although nobody asked it to. What it "
            f"wrote to the standard error stream says more, where it could.{remedy}",
            exitcode,
        )

    def _ended_by(self, failure: messages.Message) -> BaseException:
        """End the session; return the error to raise for what the broker says of its end."""
        run = self._active or self._draining_run
        if isinstance(failure, messages.RunFailure) and failure.stats is not None:
            self._client.take_in(failure.stats)
        self.abort()
        match failure:
            case messages.FailedBySource() | messages.FailedByLimit() | messages.FailedByBroker():
                return self._error_of_any(failure, run)
            case messages.FailedByJob():
                return processor_error(failure.processor, failure.failure, failure.first, failure.last)
            case messages.FailedByDeath():
                if failure.exitcode == UNGUARDED_EXITCODE:
                    return MissingMainGuardError()
                return death(
                    failure.processor, failure.phase, failure.exitcode, failure.first, failure.last, failure.loss
                )
            case messages.FailedByTimeout():
                return overdue(failure.processor, failure.seconds, failure.first, failure.last)
            case _:
                raise messages.unexpected(failure, "The caller, over its channel of results,")

    # The end

    def abort(self) -> None:
        """End everything now: workers get a moment to tear down their jobs, and are killed then.

        Where another thread ends the session, or still starts the workers, this one waits for it, within a bound.
        """
        ending = self._ending
        ending.is_wanted = True
        if ending.starter is None:
            with interrupts_held():
                first = ending.begin()
                if first:
                    try:
                        self._abort()
                    finally:
                        ending.is_over.set()
            if first:
                # The caller's own handlers may take long.
                self._client.deliver_pending_logs()
                return
        if not self.is_forked_copy:
            ending.wait()

    def _abort(self) -> None:
        atexit.unregister(self.abort)
        if self.is_forked_copy:
            self._broker.disown()
            return
        runs = [run for run in (self._active, self._draining_run) if run is not None]
        self._active = self._draining_run = None
        for run in runs:
            run.source.stop()
        if self._broker.child is not None:
            if runs:
                self._ask_once_more()
            self._client.end_broker()
        for run in runs:
            run.source.join()
        # Other threads hear now that the broker is gone.
        for held in (self.taking, self._client.asking):
            if held.acquire(timeout=THREAD_EXIT_SECONDS):
                held.release()
        self._broker.close()

    def _ask_once_more(self) -> None:
        """Keep how far a run came that is given up; another thread that asks meanwhile does so as well."""
        client = self._client
        if client.asking.acquire(blocking=False):
            try:
                client.ask_for_stats(self._progress, seconds=LAST_ANSWER_SECONDS)
            finally:
                client.asking.release()


def _with_memory(step: StepStats) -> StepStats:
    """Return what is known of a step, with the memory of its workers."""
    workers = [
        each if each.pid is None else replace(each, memory=resident_memory(each.pid)) for each in step.worker_stats
    ]
    return replace(step, worker_stats=tuple(workers))
