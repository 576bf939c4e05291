"""The broker, as the caller has it: its process, from the start to the end, and what the two say to each other.

Law: the caller starts one broker at a time, so that no broker inherits ends of another session's channels.  Whatever
ends a start, what it has made so far can be closed.  One thread listens at a time, one sends, and one asks; no wait
outlasts the broker, as an endpoint raises ConnectionLost when it dies.  Whether there is to be a debug log or a
recording is asked once, when a pipeline is opened.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from itertools import count

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import TYPE_CHECKING, Any, cast
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_held
from conveyor.engines.base import RunProgress
from conveyor.engines.process.broker import run_broker
from conveyor.engines.process.broker.observing import RECORD_VARIABLE
from conveyor.engines.process.caller import trace_file
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.caller.start_method import FREEZE_SUPPORT, Start
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system.child_setup import kill_resource_tracker, standard_descriptors_taken
from conveyor.engines.process.system.descendants import end_what_a_broker_left
from conveyor.engines.process.system.spawning import (
    FORK,
    PREFIX,
    SPAWN,
    cause_and_remedy,
    fork_warning_ignored,
    process_of,
    signals_held,
    start_process,
)
from conveyor.engines.process.system.streams import PrintOutlet
from conveyor.engines.process.system.waiting import GRACE_SECONDS, Child, GracePeriod
from conveyor.engines.process.wire import by_value, messages
from conveyor.engines.process.wire.configs import BrokerConfig, WorkerConfig, levels, without_blobs
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost, Frame, NonblockingEndpoint
from conveyor.engines.process.wire.log_records import handle_log_message
from conveyor.engines.process.wire.pipe import PIPE, QUEUE, channel
from conveyor.engines.process.worker import preload
from conveyor.engines.process.worker.seeding import seed_of_pipeline
from conveyor.errors import ProcessError, StateError
from conveyor.graph.plan import Plan, StepNode
from conveyor.stats import History, Stats

if TYPE_CHECKING:
    from conveyor.core.trace import KeptTrace

# What a broker gets to end by itself, beyond the grace period that it gives its workers.
BROKER_EXIT_SECONDS = 2.0
# What a frozen program gets to unpack and start itself, and to come to `freeze_support`.
FROZEN_START_SECONDS = 60.0
# How long to wait for room in the channel: a broker that is stopped, or not there yet, reads nothing.
SEND_SECONDS = 0.1
# How the system says that it has nothing left to start a process with.  Any other OSError stays what it is: a signal
# handler of the caller may raise what it likes meanwhile.
_SCARCITY = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EFBIG, errno.EDQUOT}

# The ends of all sessions in this process, which the next broker closes where it is forked.
_open_ends: set[BlockingEndpoint | Arena] = set()
# The numbers of the recordings of this process.
_recordings = count(1)
# Held while a session starts: otherwise a broker would inherit ends that another start has not closed yet.
_starting = threading.RLock()


def _renew_lock() -> None:
    """In a forked process, where no thread is left that could release it."""
    global _starting
    _starting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class BrokerProcess:
    """The process of one broker, and the caller's ends of what they share: `feed`, `results`, `questions`, `arena`."""

    feed: BlockingEndpoint
    results: BlockingEndpoint
    questions: BlockingEndpoint

    # What runs in that process.
    target: Callable[..., None] = staticmethod(run_broker)

    def __init__(self, start: Start, config: BrokerConfig, expected_bytes: int | None) -> None:
        self._start = start
        self.config = config
        # What the pipe holds that the caller writes to; None: without shared memory.
        self._expected_bytes = expected_bytes
        self._is_counted = False
        self._ends: tuple[BlockingEndpoint, ...] = ()
        self.arena: Arena | None = None
        self.child: Child | None = None

    def launch(self) -> None:
        """Start the broker; raises ProcessError where the system has nothing left to start it with."""
        with _starting, interrupts_held():
            try:
                with standard_descriptors_taken():
                    self._launch()
            except OSError as error:
                if error.errno not in _SCARCITY:
                    raise
                raise ProcessError(
                    f"The broker process of the pipeline could not be started: {cause_and_remedy(error)}"
                ) from error

    def _launch(self) -> None:
        start = self._start
        if start.by_value:
            self._is_counted = True
            by_value.sessions += 1
        forked = start.method == FORK
        method = FORK if forked else SPAWN
        context: Any = multiprocessing.get_context(method)
        if forked:
            # Here, where it is done once for all sessions; also what `stats` needs, as the package may be replaced.
            from conveyor.engines.process.broker import broker  # noqa: F401
            from conveyor.graph import advice  # noqa: F401

            preload()
        brokers_ends: list[NonblockingEndpoint] = []
        self.arena = None if self._expected_bytes is None else Arena.create(self._expected_bytes)
        if self.arena is not None:
            _open_ends.add(self.arena)
        try:
            for _ in range(3):
                brokers_end, end = channel(self.config.channel, context)
                brokers_ends.append(brokers_end)
                # Known one by one, so that these can be closed where the next cannot be made.
                self._ends += (end,)
            self.feed, self.results, self.questions = self._ends
            if self.arena is not None:
                self.results.keep(self.arena)
            inherited_fds = [*(_open_ends - {self.arena}), *self._ends] if forked else []
            process = process_of(
                method,
                start.import_main,
                target=self.target,
                args=(self.config if forked else None, *brokers_ends, self.arena, inherited_fds, start.handles),
                name=f"{PREFIX}broker",
            )
            _open_ends.update(self._ends)
            with signals_held(method), contextlib.ExitStack() as stack:
                if start.warning is not None or not start.threads:
                    # The user was warned of other threads, or none of them could hold a lock.
                    stack.enter_context(fork_warning_ignored())
                with gate.closed():
                    start_process(process)
                self.child = Child(process)
        finally:
            for brokers_end in brokers_ends:
                brokers_end.close()
            self._close_handles()
        for end in self._ends:
            end.watch(self.child.waitable)

    def wait_for_begin(self) -> None:
        """Wait until the broker of a frozen program reads, or is dead; raises ProcessError where it does neither.

        Without `freeze_support` it is a second copy of the program, which may do anything but that.
        """
        child, bound = self.child, GracePeriod(FROZEN_START_SECONDS)
        assert child is not None
        while not child.has_begun and not child.wait(bound.slice()):
            if not bound.left():
                kill_resource_tracker()
                raise ProcessError(
                    f"The broker process of the pipeline did not begin its work within {FROZEN_START_SECONDS:g} s. "
                    f"Remedy: {FREEZE_SUPPORT}"
                )

    def wait_for_end(self, grace: GracePeriod) -> None:
        """Wait for the broker's death; kill it when the grace period is over."""
        child = self.child
        assert child is not None
        while grace.left() and not child.wait(grace.slice()):
            pass
        child.end()
        if child.exitcode != 0:
            end_what_a_broker_left()

    def close_channels(self) -> None:
        """Close the caller's ends; a broker that reads none of its messages sees that."""
        for end in self._ends:
            end.close()

    def close(self) -> None:
        """Close everything, once the broker is dead."""
        self._uncount()
        self._close_handles()
        self.close_channels()
        _open_ends.difference_update(self._ends)
        if self.arena is not None:
            self.arena.close()
            _open_ends.discard(self.arena)

    def disown(self) -> None:
        """Close what a forked copy of the caller inherited: it has no broker to end, and no child to wait for."""
        self._uncount()
        if self.arena is not None:
            self.arena.close()
        if self.child is not None:
            self.child.disown()
        if self.config.channel == PIPE:
            self.close_channels()

    def _close_handles(self) -> None:
        """Close the descriptors that jobs refer to: the broker has them, or there is none."""
        if self._start.handles is not None:
            self._start.handles.close()

    def _uncount(self) -> None:
        if self._is_counted:
            self._is_counted = False
            by_value.sessions -= 1


class BrokerClient:
    """The caller's side of the conversation with a broker."""

    def __init__(self, broker: BrokerProcess, prints: PrintOutlet) -> None:
        self._broker = broker
        self.prints = prints
        # Held by the thread that listens, and whether it does.
        self._hearing = threading.RLock()
        self._is_listening = False
        # Held by a thread that sends a message about results.
        self._sending = threading.RLock()
        # Held by the thread that asks for statistics, and whether it does.
        self.asking = threading.RLock()
        self._is_asking = False
        self._question = 0
        # The statistics that came last, and the samples of all that came.
        self.stats: Stats | None = None
        self.history = History()
        # What workers logged and printed at the end, and the caller's handlers and streams have not been given yet.
        self._pending_logs: deque[Frame] = deque()

    def configure(self) -> None:
        """Send a broker that was not forked its configuration: not with its start, as it may die before it reads it."""
        config, blobs = without_blobs(self._broker.config)
        with contextlib.suppress(ConnectionLost), self._sending:
            # `receive` raises that the broker has died.
            self._broker.results.send(messages.ConfigureBroker(config), blobs)

    def prepare(self) -> None:
        """Start the threads of queues now: later there may be none left, as at the end of the interpreter.

        Raises ProcessError where there is none left already.
        """
        if self._broker.config.channel == QUEUE:
            try:
                with interrupts_held():
                    for end in (self._broker.results, self._broker.questions, self._broker.feed):
                        end.prepare()
            except RuntimeError as error:
                raise ProcessError(
                    f"The threads that send to the broker process could not be started: {cause_and_remedy(error)}"
                ) from error

    def receive(self) -> Frame:
        """Wait for a message about results; raises ConnectionLost."""
        broker = self._broker
        if broker.arena is not None and (released := broker.arena.released()):
            self.send(messages.SlotsReleased(released))
        with self._hearing:
            if self._is_listening:
                raise StateError("this thread waits for results already, where a signal handler interrupted it")
            try:
                self._is_listening = True
                return broker.results.receive()
            finally:
                self._is_listening = False

    def send(self, message: messages.Message) -> None:
        with contextlib.suppress(ConnectionLost), self._sending:
            # A broker that died left word why, or the next `receive` misses it.
            self._broker.results.send(message)

    def try_send(self, message: messages.Message) -> bool:
        """Send a short message, but wait for no more than a moment; return whether there was room for it."""
        if not self._sending.acquire(timeout=SEND_SECONDS):
            return False
        try:
            return self._broker.results.send_within(SEND_SECONDS, message)
        except ConnectionLost:
            return True
        finally:
            self._sending.release()

    def ask_for_stats(
        self, progress: RunProgress | None, wants_trace: bool = False, seconds: float | None = None
    ) -> KeptTrace | None:
        """Get the statistics of now, while `asking` is held, and how far a watched run is; return what was traced.

        Does nothing where the broker is gone, or does not answer within `seconds`.
        """
        if self._is_asking:
            # This thread asks already, where a signal handler interrupted it, and must get its answer there.
            return None
        with contextlib.suppress(ConnectionLost):
            try:
                self._is_asking = True
                return self._ask(progress, wants_trace, seconds)
            finally:
                self._is_asking = False
        return None

    def _ask(self, progress: RunProgress | None, wants_trace: bool, seconds: float | None) -> KeptTrace | None:
        questions = self._broker.questions
        self._question += 1
        run = progress.number if progress is not None and progress.is_watched else 0
        questions.send(messages.StatsRequest(self._question, run, wants_trace))
        answered, trace = 0, None
        # The answer to a question that was interrupted is still on its way.
        while answered != self._question:
            frame = questions.receive() if seconds is None else questions.receive_within(seconds)
            if frame is None:
                return None
            message, _ = frame
            match message:
                case messages.StatsReply():
                    answered, trace = message.number, message.trace
                    self.take_in(message.stats)
                    if progress is not None:
                        progress.through = max(progress.through, message.through)
                case _:
                    raise messages.unexpected(message, "The caller, over its channel of questions,")
        return trace

    def take_in(self, stats: Stats) -> None:
        """Keep statistics, and the samples that came with them."""
        self.stats = replace(stats, history=())
        for sample in stats.history:
            self.history.add(sample)

    def end_broker(self) -> None:
        """Tell the broker to end everything, and wait for its death, within a bound; it is killed then."""
        child = self._broker.child
        assert child is not None
        path = self._broker.config.trace_to
        grace = trace_file.WritingPeriod(GRACE_SECONDS + BROKER_EXIT_SECONDS, path)
        # Another thread may listen, or this one, where a signal handler interrupted it.
        is_held = self._hearing.acquire(blocking=False)
        listens = is_held and not self._is_listening
        # A stopped broker could neither end its workers nor take away its semaphores.
        child.wake()
        is_told = self.try_send(messages.Abort(listens))
        try:
            if is_told and listens:
                self._hear_out(grace)
        finally:
            if is_held:
                self._hearing.release()
        if not is_told:
            # The end of its channels tells it as much.
            self._broker.close_channels()
        self._broker.wait_for_end(grace)
        if path is not None and child.exitcode != 0:
            notice = messages.NoticeGiven("WARNING", trace_file.incomplete(path, child.exitcode))
            self._pending_logs.append((notice, []))

    def _hear_out(self, grace: GracePeriod) -> None:
        """Keep what workers log at their end; nobody wants results any more."""
        with contextlib.suppress(ConnectionLost):
            while grace.left():
                frame = self._broker.results.receive_within(grace.slice())
                if frame is not None and isinstance(frame[0], messages.LOG_MESSAGES):
                    self._pending_logs.append(frame)
                elif frame is not None and isinstance(frame[0], messages.Closed):
                    return

    def forward_prints(self, feeding: threading.RLock) -> None:
        """Have workers forward what jobs print from now on, where the caller has replaced a stream since."""
        if streams := self.prints.newly_wanted():
            with contextlib.suppress(ConnectionLost), feeding:
                self._broker.feed.send(messages.ForwardPrints(streams))

    def deliver(self, message: messages.Message, blobs: list[Any]) -> None:
        """Hand what jobs log and print to the caller's own handlers and streams."""
        if isinstance(message, messages.Printed):
            refusal = self.prints.write(message.stream, message.is_binary, blobs[0])
            if refusal:
                handle_log_message(messages.NoticeGiven("WARNING", refusal), [])
        else:
            handle_log_message(message, blobs)

    def deliver_pending_logs(self) -> None:
        """Hand over what workers logged and printed at the end."""
        while self._pending_logs:
            self.deliver(*self._pending_logs.popleft())


def config_for(plan: Plan, start: Start, channel: str, seed: int | None, forwarded: tuple[str, ...]) -> BrokerConfig:
    """Return what the broker is told at its start, and what it tells its workers."""
    grouped, levels_now, seed_text = plan.grouped(), levels(), seed_of_pipeline(seed)
    workers = {
        step.index: WorkerConfig(
            step.name,
            job,
            step.batch,
            step.processor.keep_none,
            grouped=step.index in grouped,
            timed=step.timeout is not None,
            most_bytes=plan.bytes_at(step.to),
            levels=levels_now,
            redact=start.redact,
            by_value=start.by_value,
            seed=seed_text,
            forwarded=forwarded,
            settings=plan.settings,
            shared=start.shared,
            threads=step.hands if step.threaded else 0,
        )
        for step, job in zip(plan.steps, start.jobs, strict=True)
    }
    return BrokerConfig(
        _without_jobs(plan),
        workers,
        channel,
        start.method,
        os.getpid(),
        start.import_main,
        start.threads.native,
        story_wanted(),
        new_recording(),
        time.process_time(),
        trace_file.new(plan.setting("trace")),
    )


def _without_jobs(plan: Plan) -> Plan:
    nobody = cast(Any, None)
    nodes = tuple(replace(node, processor=nobody) if isinstance(node, StepNode) else node for node in plan.nodes)
    return replace(plan, nodes=nodes)


def story_wanted() -> bool:
    """Return whether the logger "conveyor" takes records of the level DEBUG."""
    logging = sys.modules.get("logging")
    return logging is not None and bool(logging.getLogger("conveyor").isEnabledFor(logging.DEBUG))


def new_recording() -> str | None:
    """Return the path of a new, empty file to record to; None where no recording is wanted.

    The second pipeline of this process gets `FILE.2`, the third `FILE.3`.  Processes that `multiprocessing` started do
    not record.  Raises ProcessError where the file cannot be written.
    """
    wanted = os.environ.get(RECORD_VARIABLE)
    if not wanted or multiprocessing.parent_process() is not None:
        return None
    number = next(_recordings)
    path = os.path.abspath(wanted if number == 1 else f"{wanted}.{number}")
    try:
        with open(path, "wb"):
            return path
    except OSError as error:
        raise ProcessError(
            f"{RECORD_VARIABLE}={wanted}: the recording cannot be written ({error}). Remedy: name a file in a folder "
            f"that this process may write to, or unset {RECORD_VARIABLE}."
        ) from error
