"""The process engine, as the caller sees it: a session with a broker, and the runs in it.

Law: all that happens in the caller's process is here and in `source.py`: items are pickled and sent, results
received and unpickled.  Whatever ends a run early, a bad item, Ctrl-C, a broker that died, ends the session, and
the session leaves nothing behind before the error is raised.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import multiprocessing
import multiprocessing.util
import os
import threading
import warnings
from collections import deque
from collections.abc import Iterable

from conveyor._lean.dataclasses import replace
from conveyor._lean.short_repr import Redact, shown_by
from conveyor._lean.typing import Any, TypeVar, cast
from conveyor._system.signals import interrupts_held
from conveyor.core.tuning.chunk_size import first_pull
from conveyor.engines.failures import death, failed_item, overdue, processor_error, too_many_failures
from conveyor.engines.process.broker import broker
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.caller.observing import new_recording, story_wanted
from conveyor.engines.process.caller.run import CLOSED, LETTING_GO_SECONDS, Run
from conveyor.engines.process.caller.start_method import check_importing, is_news, start_for
from conveyor.engines.process.shm.arena import KEPT_BYTES, Arena
from conveyor.engines.process.system.child import Child
from conveyor.engines.process.system.descendants import end_what_a_broker_left, preload
from conveyor.engines.process.system.grace_period import GRACE_SECONDS, GracePeriod
from conveyor.engines.process.system.spawning import (
    FORK,
    FORKSERVER,
    PREFIX,
    SPAWN,
    UNGUARDED_EXITCODE,
    fork_warning_ignored,
    process_of,
    signals_held,
)
from conveyor.engines.process.system.streams import standard_descriptors_taken
from conveyor.engines.process.wire import by_value, messages
from conveyor.engines.process.wire.channel import PIPE, QUEUE, channel
from conveyor.engines.process.wire.configs import BrokerConfig, WorkerConfig, levels, parted
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost, Frame, NonblockingEndpoint
from conveyor.engines.process.wire.log_records import handle_log_message
from conveyor.engines.process.worker.seeding import seed_of_pipeline
from conveyor.errors import (
    ConveyorError,
    FailedItem,
    MissingMainGuardError,
    ProcessError,
    RemoteTraceback,
    StartMethodWarning,
    StateError,
    cause_of_death,
)
from conveyor.graph.plan import Plan, SinkNode, StepNode
from conveyor.graph.shared_resources import warn_of_shared
from conveyor.stats import Stats

# What a broker gets, beyond the grace that it gives its workers, before it is killed itself.
PATIENCE_SECONDS = 2.0
# How long `close` waits for workers that are still at an item of a run that was given up.
LEAVING_SECONDS = 0.3

# How long to wait for room to tell the broker of an end: one that is stopped, or not there yet, reads nothing.
TELL_SECONDS = 0.1
# How the system says that it has nothing left to start a process with.  Any other error stays what it is: a signal
# handler of the caller may raise what it likes meanwhile.
SCARCITY = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EFBIG, errno.EDQUOT}

# How long a thread waits for another one that ends the same session.
ENDING_SECONDS = 5.0
LOGGED = messages.LogMessage.__args__
FORKED = "a pipeline belongs to the process that opened it: this one was forked from there since"

Expected = TypeVar("Expected")

# The ends of all sessions in this process, for the broker of the next one to close its copies.
_open_ends: set[BlockingEndpoint | Arena] = set()
# One session starts at a time: else the broker of one would inherit ends that the other one has not yet closed.
_starting = threading.RLock()


def _forget_other_threads() -> None:
    """In a process that was just forked, let go of what threads hold that are not here."""
    global _starting
    _starting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class Session:
    """Workers, from `open` to `close`.

    Raises, from any method, what ended the session; nothing of it is left then.
    """

    def __init__(
        self, plan: Plan, start_method: str | None, kind: str | None, redact: Redact | None, seed: int | None = None
    ) -> None:
        check_importing()
        self._start_as = start_for(plan, redact, start_method)
        self._plan = plan
        self._channel = kind or (PIPE if os.name == "posix" else QUEUE)
        self.shown = shown_by(redact)
        grouped, now, seed_text = plan.grouped(), levels(), seed_of_pipeline(seed)
        assignments = {
            step.index: WorkerConfig(
                step.name,
                job,
                step.batch,
                step.processor.keep_none,
                grouped=step.index in grouped,
                timed=step.timeout is not None,
                most_bytes=plan.bytes_at(step.to),
                levels=now,
                redact=self._start_as.redact,
                by_value=self._start_as.by_value,
                seed=seed_text,
            )
            for step, job in zip(plan.steps, self._start_as.jobs, strict=True)
        }
        sink = plan.nodes[-1]
        assert isinstance(sink, SinkNode)
        self._sink = sink
        self.first_pull = first_pull(plan)
        self.first_bytes = plan.steps[0].bound_bytes
        self._runs = 0
        self._active: Run | None = None
        # A run that was given up, and whose workers are not all free yet.
        self._left: Run | None = None
        self._ended = False
        # What was given up last in the run that goes on, or was the last, as it was told.
        self.failures: deque[FailedItem] = deque(maxlen=plan.keep_failures)
        self._owner = os.getpid()
        self._stats: Stats | None = None
        self._question = 0
        # Held by whoever asks, and whether somebody does.
        self._asking = threading.RLock()
        self._asked = False
        # Held by whoever reads the results, and whether somebody does.
        self._hearing = threading.RLock()
        self._listening = False
        # Held by whoever takes results from a run, until they are unpickled.
        self.taking = threading.RLock()
        # Held by whoever sends messages about results, and by whoever sends items.
        self._sending = threading.RLock()
        self.feeding = threading.RLock()
        # The thread that starts the processes just now.
        self._starter: int | None = None
        self._unwanted = False
        # Never released: one thread ends the session.
        self._ending = threading.Lock()
        self._ender: int | None = None
        self._gone = threading.Event()
        # What workers have said, and the caller's handlers have not dealt with yet.
        self._said: deque[Frame] = deque()
        self._orders = BrokerConfig(
            bare(plan),
            assignments,
            self._channel,
            self._start_as.method,
            os.getpid(),
            self._start_as.import_main,
            self._start_as.threads.native,
            story_wanted(),
            new_recording(),
        )
        self._fars: tuple[BlockingEndpoint, ...] = ()
        self.arena: Arena | None = None
        self._child: Child | None = None
        self._started = False

    def open(self) -> None:
        """Start the workers, and wait until they have set up their jobs."""
        try:
            self._starter = threading.get_ident()
            try:
                self._refuse_when_unwanted()
                with _starting, interrupts_held():
                    try:
                        with standard_descriptors_taken():
                            self._start()
                    except OSError as error:
                        if error.errno not in SCARCITY:
                            raise
                        what = f"The broker process of the pipeline could not be started: {error}."
                        raise ProcessError(what) from error
            finally:
                self._starter = None
            # Whoever wanted to end it before has left that to this thread.
            self._refuse_when_unwanted()
            if self._start_as.method != FORK:
                self._send_orders()
            if self._channel == QUEUE:
                # Has the queue's thread started now: at the end of the interpreter it could not be.
                with interrupts_held():
                    self.results.prepare()
                    self.questions.prepare()
            opened = self._expect(messages.Opened)
            if opened.threads:
                beside = f"the broker spawned the workers beside threads of the script: {opened.threads}"
                why = f"{self._start_as.reason}; {beside}"
                self._start_as = self._start_as._replace(reason=why)
        except BaseException:
            self.abort()
            raise

    def _send_orders(self) -> None:
        """Send a fresh broker its orders: not with its start, as it may die before it reads them."""
        orders, blobs = parted(self._orders)
        with contextlib.suppress(ConnectionLost), self._sending:
            # That it has died is what is heard next.
            self.results.send(messages.ConfigureBroker(orders), blobs)

    def _refuse_when_unwanted(self) -> None:
        if self._unwanted:
            raise StateError("the pipeline was closed while it was being opened")

    def _start(self) -> None:
        self._started = True
        if self._start_as.by_value:
            by_value.sessions += 1
        forked = self._start_as.method == FORK
        context: Any = multiprocessing.get_context(FORK if forked else SPAWN)
        if forked:
            # Here, where it is done once for all sessions.
            preload()
        nears: list[NonblockingEndpoint] = []
        self.arena = Arena.create(self.first_bytes)
        if self.arena is not None:
            _open_ends.add(self.arena)
        try:
            for _ in range(3):
                near, far = channel(self._channel, context)
                nears.append(near)
                # Known one by one, so that those there are get closed where the next cannot be made.
                self._fars += (far,)
            self.feed, self.results, self.questions = self._fars
            if self.arena is not None:
                self.results.keep(self.arena)
            inherited_fds = [*(_open_ends - {self.arena}), *self._fars] if forked else []
            arguments = (self._orders if forked else None, *nears, self.arena, inherited_fds)
            process = process_of(
                FORK if forked else SPAWN,
                self._start_as.import_main,
                target=broker.main,
                args=arguments,
                name=f"{PREFIX}broker",
            )
            _open_ends.update(self._fars)
            # `multiprocessing.util` is imported by now, and so waits for children only after this.
            atexit.register(self.abort)
            with signals_held(FORK if forked else SPAWN), contextlib.ExitStack() as stack:
                if self._start_as.warning is not None or not self._start_as.threads:
                    # What Python would say of other threads was said, or is none of those that could hold a lock.
                    stack.enter_context(fork_warning_ignored())
                with gate.closed():
                    process.start()
                self._child = Child(process)
        finally:
            for near in nears:
                near.close()
        for end in self._fars:
            end.watch(self._child.waitable)

    # Runs

    def run(self, items: Iterable[Any]) -> Run:
        """Start a run, once the workers have let go of one that was given up."""
        if not self.mine:
            raise StateError(FORKED)
        try:
            while self._left is not None:
                self.note(self.receive()[0])
        except StateError:
            raise
        except ConveyorError as error:
            raise StateError(
                "the workers had to be ended, because the rest of the run before, which was given up, failed: "
                "what follows starts anew"
            ) from error
        self._runs += 1
        self.failures = deque(maxlen=self._plan.keep_failures)
        self._active = run = Run(self, self._runs, items, self._sink)
        if self._ended:
            # Who ended it may not have seen this run.
            run.source.stop()
        run.source.start()
        return run

    def finished(self, run: Run) -> None:
        """Take in that a run is over, and its workers free for the next."""
        self._rest()
        if self._left is run:
            self._left = None
        if self._active is run:
            self._active = None

    def leave(self, run: Run) -> None:
        """Give up a run; its workers finish the item at hand, and are free then."""
        self._left = run
        self._active = None
        if run.finished:
            # Another thread has just heard of that.
            self._left = None
        elif not self._tell(messages.CancelRun(run.number)):
            # It stands still, or is amid a message that was broken off: nothing can be asked of it any more.
            self.abort()

    def note(self, message: messages.Message) -> None:
        """Take in a message while no run is going on."""
        left = self._left
        if left is not None and isinstance(message, messages.RunFinished) and message.run == left.number:
            left.finished = True
            left.source.join()
            self._left = None
            self.finished(left)

    def _rest(self) -> None:
        """Give back memory that the run was given; some is kept for the next."""
        if self.arena is None:
            return
        with self.feeding:
            with contextlib.suppress(ConnectionLost):
                while self.feed.ready():
                    message, _ = self.feed.receive()
                    match message:
                        case messages.SlotsFreed():
                            self.arena.freed(message.slots)
                        case messages.Pull() | messages.StopSource():
                            # Of a run that is over.
                            pass
                        case _:
                            raise messages.unexpected(message, "The caller, after a run,")
            self.arena.trim(KEPT_BYTES)

    def warn(self, stacklevel: int) -> None:
        """Warn of how the processes start, and of what several workers of a Processor would share.

        They share what its job has open where they are forked from this process, or from a broker that has imported
        the script.
        """
        start = self._start_as
        if start.warning is not None and is_news(start):
            warnings.warn(start.warning, StartMethodWarning, stacklevel + 1)
        forked = start.method == FORK
        if forked or (start.method == FORKSERVER and start.import_main and not start.by_value):
            warn_of_shared(self._plan, script_only=not forked, stacklevel=stacklevel + 1)

    @property
    def names(self) -> list[str]:
        """The names of the Processors, in their order."""
        return [step.name for step in self._plan.steps]

    @property
    def active(self) -> bool:
        """Whether a run is going on."""
        return self._active is not None

    @property
    def mine(self) -> bool:
        """Whether this process opened the session, and is no copy of the one that did."""
        return os.getpid() == self._owner

    @property
    def ended(self) -> bool:
        """Whether the session is over, one way or the other."""
        return self._ended

    # Messages

    def receive(self) -> Frame:
        """Wait for a message about results; raises the error that it brings, with the session ended.

        What workers say is dealt with here, and returned as well: whoever waits may have something to do meanwhile.
        """
        if not self.mine:
            raise StateError(FORKED)
        if self._ended:
            raise StateError(CLOSED)
        if self.arena is not None and (gone := self.arena.released()):
            self.send(messages.SlotsReleased(gone))
        try:
            with self._hearing:
                if self._listening:
                    raise StateError("this thread waits for results already, where a signal handler interrupted it")
                try:
                    self._listening = True
                    message, blobs = self.results.receive()
                finally:
                    self._listening = False
        except ConnectionLost:
            if self._ended:
                raise StateError(CLOSED) from None
            raise self._broker_died() from None
        match message:
            case messages.Results() | messages.Opened() | messages.RunCancelled() | messages.Closed():
                pass
            case messages.ItemGivenUp():
                self._take_in_failure(message)
            case messages.RunFinished():
                self._stats = message.stats
            case messages.RecordLogged() | messages.WarningShown() | messages.NoticeGiven() | messages.LogsDropped():
                handle_log_message(message, blobs)
            case _:
                raise self._ended_by(message)
        return message, blobs

    def _take_in_failure(self, message: messages.ItemGivenUp) -> None:
        if self._active is not None and message.run == self._active.number:
            self.failures.append(
                failed_item(message.processor, message.first, message.last, message.attempts, message.when, message.why)
            )

    def stats(self) -> Stats | None:
        """Return what is known of the steps now; of a session that is over, what was known last."""
        if self.mine:
            with self._asking:
                # One that has interrupted another, in the same thread, must not take its answer.
                if self._child is not None and self._starter is None and not self._ended and not self._asked:
                    with contextlib.suppress(ConnectionLost):
                        try:
                            self._asked = True
                            self._ask()
                        finally:
                            self._asked = False
        # In a copy of the process that opened it, somebody may have been asking when that was forked.
        stats = self._stats
        if stats is None:
            return None
        return replace(stats, start_method=self._start_as.method, start_reason=self._start_as.reason)

    def _ask(self) -> None:
        self._question += 1
        self.questions.send(messages.StatsRequest(self._question))
        answered = 0
        # An answer to a question that was interrupted is still on its way.
        while answered != self._question:
            message, _ = self.questions.receive()
            match message:
                case messages.StatsReply():
                    answered, self._stats = message.number, message.stats
                case _:
                    raise messages.unexpected(message, "The caller, over its channel of questions,")

    def _tell(self, message: messages.Message) -> bool:
        """Send a short message that must not be waited for; return whether there was room for it."""
        if not self._sending.acquire(timeout=TELL_SECONDS):
            return False
        try:
            return self.results.send_within(TELL_SECONDS, message)
        except ConnectionLost:
            return True
        finally:
            self._sending.release()

    def send(self, message: messages.Message) -> None:
        """Send a message about results."""
        with contextlib.suppress(ConnectionLost), self._sending:
            # A broker that has gone left word why, or is missed by the next `receive`.
            self.results.send(message)

    def _expect(self, kind: type[Expected]) -> Expected:
        while True:
            message, _ = self.receive()
            if isinstance(message, kind):
                return message

    # Errors

    def _broker_died(self) -> ConveyorError:
        assert self._child is not None
        self._child.wait(PATIENCE_SECONDS)
        exitcode = self._child.exitcode
        self.abort()
        if exitcode == UNGUARDED_EXITCODE:
            return MissingMainGuardError()
        return ProcessError(
            f"The broker process of the pipeline {cause_of_death(exitcode)}, although nobody asked it to. What it "
            "wrote to the standard error stream says more, where it could.",
            exitcode,
        )

    def _ended_by(self, failure: messages.Message) -> BaseException:
        """End the session; return the error to raise for what the broker says of its end."""
        run = self._active or self._left
        if isinstance(failure, messages.RunFailure):
            self._stats = failure.stats
        self.abort()
        match failure:
            case messages.FailedBySource():
                assert run is not None
                return run.source.error()
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
            case messages.FailedByLimit():
                return too_many_failures(failure.failures, self._plan.max_failures, self.failures)
            case messages.FailedByBroker():
                error = ProcessError(failure.text or "The broker process of the pipeline failed.")
                error.__cause__ = RemoteTraceback(failure.traceback)
                return error
            case _:
                raise messages.unexpected(failure, "The caller, over its channel of results,")

    # The end

    def close(self) -> None:
        """End the workers in peace: they tear down their jobs first, however long that takes.

        Raises ProcessorError where a `teardown` raised.
        """
        if self._ended:
            return
        if not self.mine:
            self.abort()
            return
        try:
            grace = GracePeriod(LEAVING_SECONDS)
            with contextlib.suppress(ConveyorError):
                # Nobody wants to know any more what became of the rest of a run that was given up.
                while self._left is not None and grace.left():
                    if self.results.ready(grace.slice()):
                        self.note(self.receive()[0])
            if self._active is not None or self._left is not None:
                self.abort()
                return
            self.send(messages.Close())
            self._expect(messages.Closed)
        except BaseException:
            self.abort()
            raise
        self.abort()

    def abort(self) -> None:
        """End everything now: workers get a moment to tear down their jobs, and are killed then.

        Where another thread is at that, or still starts the workers, this one waits for it, within a bound.
        """
        self._unwanted = True
        starter = self._starter
        if starter is None:
            with interrupts_held():
                first = self._ending.acquire(blocking=False)
                if first:
                    self._ender = threading.get_ident()
                    self._ended = True
                    try:
                        self._abort()
                    finally:
                        self._gone.set()
            if first:
                # These are the caller's own handlers, which may take long.
                while self._said:
                    handle_log_message(*self._said.popleft())
                return
        if self.mine and threading.get_ident() not in (starter, self._ender):
            # Whoever starts it sees that it is unwanted.
            self._gone.wait(ENDING_SECONDS)

    def _abort(self) -> None:
        if self._start_as.by_value:
            by_value.sessions -= self._started
        atexit.unregister(self.abort)
        if not self.mine:
            if self.arena is not None:
                self.arena.close()
            # A copy in a process forked from the caller has nothing to end, and no child to wait for at its own end.
            if self._child is not None:
                self._child.disown()
            if self._channel == PIPE:
                for end in self._fars:
                    end.close()
            return
        runs = [run for run in (self._active, self._left) if run is not None]
        self._active = self._left = None
        for run in runs:
            run.source.stop()
        if self._child is not None:
            grace = GracePeriod(GRACE_SECONDS + PATIENCE_SECONDS)
            # Another thread may be at it, or this one, where a signal handler has come here.
            heard = self._hearing.acquire(blocking=False)
            listening = heard and not self._listening
            # One that was stopped could neither end its workers nor take away its semaphores.
            self._child.wake()
            told = self._tell(messages.Abort(listening))
            try:
                if told and listening:
                    self._hear_out(grace)
            finally:
                if heard:
                    self._hearing.release()
            if not told:
                # That its channels end tells it as much.
                for end in self._fars:
                    end.close()
            while grace.left() and not self._child.wait(grace.slice()):
                pass
            self._child.end()
            if self._child.exitcode != 0:
                end_what_a_broker_left()
        for run in runs:
            run.source.join()
        # Other threads hear now that the broker is gone.
        for held in (self.taking, self._asking):
            if held.acquire(timeout=LETTING_GO_SECONDS):
                held.release()
        for end in self._fars:
            end.close()
            _open_ends.discard(end)
        if self.arena is not None:
            self.arena.close()
            _open_ends.discard(self.arena)

    def _hear_out(self, grace: GracePeriod) -> None:
        """Take in what workers say at their end; results are nobody's any more."""
        # A broker that has gone says nothing more.
        with contextlib.suppress(ConnectionLost):
            while grace.left():
                frame = self.results.receive_within(grace.slice())
                if frame is not None and isinstance(frame[0], LOGGED):
                    self._said.append(frame)
                elif frame is not None and isinstance(frame[0], messages.Closed):
                    return


def bare(plan: Plan) -> Plan:
    """Return the plan without its jobs: all that the core needs."""
    nobody = cast(Any, None)
    nodes = tuple(replace(node, processor=nobody) if isinstance(node, StepNode) else node for node in plan.nodes)
    return replace(plan, nodes=nodes)
