"""The broker: the process between the caller and the workers.

Law: single-threaded, never waits for anyone in particular, never unpickles an item.  It turns what arrives on
its channels into events for the core, and carries out the core's commands.  It outlives neither the caller nor, once
told to close, its workers.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable
from functools import partial

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.core import commands, events
from conveyor.core.machine import Machine
from conveyor.engines.failures import traceback_of
from conveyor.engines.process.broker.log_relay import LogRelay
from conveyor.engines.process.broker.worker_pool import Connection, WorkerPool, WorkerProcess
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system.child import descriptor_of
from conveyor.engines.process.system.child_setup import ORPHANED, settle
from conveyor.engines.process.system.descendants import Orphans
from conveyor.engines.process.system.grace_period import (
    EXIT_SECONDS,
    GRACE_SECONDS,
    SLICE_SECONDS,
    GracePeriod,
    PauseDetector,
)
from conveyor.engines.process.system.inherited_signals import block_what_is_ignored
from conveyor.engines.process.system.selector import wait_for_any
from conveyor.engines.process.system.spawning import UNGUARDED
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import Blob, spec_of
from conveyor.engines.process.wire.configs import BrokerConfig, whole
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost, Frame, NonblockingEndpoint
from conveyor.engines.process.wire.log_records import packed_warning
from conveyor.errors import ProcessError, StartMethodWarning
from conveyor.stats import Stats

# The exit codes of workers that may have been ended from outside.
FROM_OUTSIDE = {-getattr(signal, name) for name in ("SIGKILL", "SIGTERM") if hasattr(signal, name)}
# Longer than a cheap job and the way to its worker and back take together.
SPIN_SECONDS = 0.0002
# When nothing has run for so long, workers give back the memory that they have ready for what is heavy.
REST_SECONDS = 1.0
# How often the core is told which share of a core is used here.
TELL_LOAD_SECONDS = 0.1
# Where the death of the caller cannot be waited for, it is looked for so often.
LOOK_SECONDS = 0.25
# After a fork beside native threads, the caller is warned where no item has ended for so long.
DOUBT_SECONDS = 30.0


class Broker:
    """The loop, and what it keeps."""

    def __init__(
        self,
        orders: BrokerConfig,
        feed: NonblockingEndpoint,
        results: NonblockingEndpoint,
        questions: NonblockingEndpoint,
        arena: Arena | None,
    ) -> None:
        self._orders = orders
        self._crew = crew = WorkerPool(orders, [feed, results, questions], arena, self._from_worker, self._worker_died)
        self._workers = crew.workers
        self._waiter = crew.waiter
        self._holdings = crew.holdings
        # How many items were under way when it was waited last, and how long to look before: on one core, whoever is
        # waited for could not go on meanwhile.
        self._under_way = 2
        self._spin_seconds = SPIN_SECONDS if orders.plan.cores >= 2 else 0.0
        # Since when the share of a core that is used here is counted, how much it was until then, and how much of it
        # went by in looking for one item.
        self._load_since, self._used, self._looked = time.monotonic(), time.process_time(), 0.0
        # When workers are told to rest: some time after a run.
        self._rest_at: float | None = None
        self._to_caller = results
        sent = partial(self._holdings.sent, None)
        feed.keep(self._holdings)
        self._feed = Connection(feed, self._waiter, self._from_feeder, self._caller_gone, sent)
        self._results = Connection(results, self._waiter, self._from_caller, self._caller_gone, sent)
        self._questions = Connection(questions, self._waiter, self._answer, self._caller_gone, sent)
        self._sayings = LogRelay(results, self._results.send)
        # By its own word: one that died while this process was starting has left it to another parent already.
        self._parent = orders.caller
        self._parent_descriptor = descriptor_of(self._parent)
        if self._parent_descriptor is not None:
            self._waiter.add(self._parent_descriptor, self._caller_gone)
        self._machine = Machine(orders.plan, time.monotonic())
        # The CPU seconds that the caller's process has used, as it said last.
        self._caller_seconds = 0.0
        self._run = 0
        self._opened = False
        self._cancelled = False
        # A run that the caller gave up before the feeder's word of its start was here: those are two channels.
        self._given_up = 0
        self._failed = False
        self._closing = False
        # How long workers may still take to leave; None while they may take as long as they like.
        self._grace: GracePeriod | None = None
        # Where an item may take only so long, standstills are looked for while somebody is at one.
        self._timed = any(assignment.timed for assignment in orders.assignments.values())
        self._standstills = PauseDetector()
        self._orphans = Orphans()
        # When the caller is warned that a fork beside native threads may be why nothing ends; None where it is not.
        self._doubt_at = time.monotonic() + DOUBT_SECONDS if orders.pools else None

    def take_in(self, frames: list[Frame]) -> None:
        """Take in what the caller has sent behind the configuration."""
        for message, blobs in frames:
            self._from_caller(message, blobs)

    # The loop

    def serve(self) -> None:
        """Start the workers, serve until told to close or the caller is gone, and end the workers."""
        try:
            if os.name == "posix" and os.getppid() != self._parent:
                self._caller_gone()
            elif not self._closing:
                for index, roster in self._machine.roster.step_rosters.items():
                    for number in roster.numbers:
                        self._crew.start(index, number)
            while not (self._closing and all(each.dead for each in self._workers.values())):
                for callback in self._ready():
                    callback()
                self._look_around()
        except BaseException as error:
            what = str(error) if isinstance(error, ProcessError) else ""
            if isinstance(error, ConnectionLost):
                # Over a queue, for want of a thread; that a worker is dead, its own descriptor says.
                what = f"The broker process of the pipeline could not send a message to a worker: {error}."
            self._fail_with(messages.FailedByBroker(what, traceback_of(error)))
        finally:
            self._crew.end()
        self._orphans.sweep()
        self._sweep()
        while self._orphans.sweeping:
            for callback in self._waiter.wait(SLICE_SECONDS):
                callback()
            self._sweep()
        self._sayings.tell()
        self._results.send(messages.Closed())
        self._flush_results()

    def _ready(self) -> list[Callable[[], None]]:
        """Wait for something to be ready.

        To be woken takes longer than all that is done for an item.  So where there is one alone, which cannot keep all
        cores busy, it is looked for a while.
        """
        before, self._under_way = self._under_way, self._machine.under_way if self._run else 2
        if self._under_way == 1 or (before == 1 and not self._under_way):
            begun = time.monotonic()
            ready: list[Callable[[], None]] = []
            while not ready and time.monotonic() < begun + self._spin_seconds:
                ready = self._waiter.wait(0)
            self._looked += time.monotonic() - begun
            if ready:
                if self._timed:
                    self._standstills.look(self._spin_seconds)
                return ready
        patience = self._patience()
        ready = self._waiter.wait(patience)
        if self._timed:
            self._standstills.look(math.inf if patience is None else patience)
        return ready

    def _patience(self) -> float | None:
        waits = [LOOK_SECONDS] if self._parent_descriptor is None else []
        if self._grace is not None:
            waits.append(self._grace.slice())
        if self._orphans.sweeping:
            waits.append(SLICE_SECONDS)
        if self._timed and self._machine.timed:
            waits.append(SLICE_SECONDS)
        for due in (self._timer, self._rest_at, self._doubt_at):
            if due is not None:
                waits.append(max(0.0, due - time.monotonic()))
        return min(waits, default=None)

    @property
    def _timer(self) -> float | None:
        return self._machine.timer if self._run and not self._failed and not self._closing else None

    def _look_around(self) -> None:
        """Do what no event calls for."""
        self._sayings.look()
        if self._run and time.monotonic() >= self._load_since + TELL_LOAD_SECONDS:
            self._tell_load()
            self._orphans.reap(self._living())
        if self._orphans.sweeping:
            self._sweep()
        if self._holdings.changed:
            self._free_memory()
        if self._rest_at is not None and time.monotonic() >= self._rest_at:
            self._rest_at = None
            for each in self._workers.values():
                each.peer.send(messages.TrimMemory())
        if self._parent_descriptor is None and hasattr(os, "getppid") and os.getppid() != self._parent:
            self._caller_gone()
        if self._doubt_at is not None and time.monotonic() >= self._doubt_at:
            self._doubt()
        timer = self._timer
        if timer is not None and time.monotonic() >= timer:
            self._handle(events.Ticked(time.process_time() + self._caller_seconds))
        if self._grace is not None and not self._grace.left():
            self._grace = None
            for each in self._workers.values():
                if not each.dead:
                    each.child.kill()

    def _doubt(self) -> None:
        """Warn the caller where somebody is at work, and no item has ended."""
        stuck = [each for each in self._workers.values() if not each.ready or each.progress.started != (0, 0)]
        if not stuck or (self._opened and not self._machine.under_way):
            # There was nothing to end yet.
            self._doubt_at = time.monotonic() + DOUBT_SECONDS
            return
        self._doubt_at = None
        name = stuck[0].assignment.name
        text = (
            f"No item has ended for {DOUBT_SECONDS:g} s, and the workers were forked beside "
            f"{', '.join(self._orders.pools)}. In a forked process such a pool has no threads, so the job of Processor "
            f'{name!r} may wait for it for ever. Remedy: Pipeline(start_method="spawn"), with jobs that can be '
            "pickled; or start the pipeline before the first call of that library."
        )
        where = "conveyor", 0, None
        self._sayings.pass_on(messages.WarningShown(), [packed_warning(text, StartMethodWarning, *where)])

    def _tell_load(self) -> None:
        """Tell the core which share of a core is used here."""
        now, used = time.monotonic(), time.process_time()
        share = (used - self._used - self._looked) / (now - self._load_since)
        self._load_since, self._used, self._looked = now, used, 0.0
        self._handle(events.BrokerLoad(share))

    def _flush_results(self) -> None:
        """Let the last messages to the caller out, as long as it is there and wants them."""
        end = self._to_caller
        end.last()
        while self._results.open and end.unsent:
            for callback in self._waiter.wait(LOOK_SECONDS / 5):
                callback()
            self._look_around()
        self._results.close()
        self._feed.close()
        self._questions.close()
        self._crew.close()

    def _free_memory(self) -> None:
        """Have shared memory that nobody sees any more written anew by those who wrote it."""
        for owner, slots in self._holdings.free().items():
            places = [place for place, _ in slots]
            if owner is None:
                self._feed.send(messages.SlotsFreed(places))
            elif owner in self._workers and not self._workers[owner].dead:
                self._workers[owner].peer.send(messages.SlotsFreed(places))
            elif self._crew.arena is not None:
                for slot in slots:
                    self._crew.arena.remove(*slot)

    # Workers

    def _living(self) -> set[int]:
        """Return the processes of the workers that are not known to be dead."""
        return {each.child.pid for each in self._workers.values() if not each.dead}

    def _sweep(self) -> None:
        """Go on to end what dead workers have left."""
        ended = self._orphans.look(self._living())
        if ended:
            self._sayings.pass_on(messages.NoticeGiven("WARNING", ended), [])

    def _worker_died(self, each: WorkerProcess) -> None:
        begun, unpickling = self._crew.bury(each)
        self._orphans.left_by(each.child.pid, each.assignment.name)
        if self._crew.arena is not None and self._holdings.ever and not self._closing:
            self._crew.arena.reclaim(each.number, self._holdings.used())
        if each.leaving:
            del self._workers[each.number]
            return
        if each.closed or self._closing:
            return
        exitcode = each.child.exitcode
        if exitcode == UNGUARDED:
            # The next one would import the same script.
            self._fail_with(
                messages.FailedByDeath(
                    each.assignment.name, "setup", exitcode, first=None, last=None, loss=commands.Loss.SETUP
                )
            )
            return
        killed = exitcode in FROM_OUTSIDE
        self._handle(events.WorkerLost(each.number, exitcode, begun, each.ready, killed, unpickling))
        if not self._failed:
            del self._workers[each.number]

    def _close_workers(self, grace: float | None) -> None:
        """Tell all workers to leave; those still there after `grace` seconds are killed."""
        if not self._closing:
            self._closing = True
            for each in self._workers.values():
                try:
                    each.peer.send(messages.Close())
                except ConnectionLost:
                    # It would wait for ever to be told.
                    each.child.kill()
                if not each.dead:
                    # One that was stopped would never leave.
                    each.child.wake()
        if grace is not None and (self._grace is None or grace < self._grace.left()):
            self._grace = GracePeriod(grace)

    # What arrives

    def _caller_gone(self) -> None:
        """Nobody is left to work for."""
        if self._parent_descriptor is not None:
            self._waiter.remove(self._parent_descriptor)
            os.close(self._parent_descriptor)
            self._parent_descriptor = None
            self._parent = os.getppid()
        self._feed.close()
        self._results.close()
        self._questions.close()
        self._close_workers(GRACE_SECONDS)

    def _answer(self, message: messages.Message, blobs: list[Any]) -> None:
        match message:
            case messages.StatsRequest():
                self._questions.send(messages.StatsReply(message.number, self._stats()))
            case _:
                raise messages.unexpected(message, "The broker, over the caller's channel of questions,")

    def _stats(self) -> Stats:
        return self._machine.stats(time.monotonic())

    def _from_feeder(self, message: messages.Message, blobs: list[Any]) -> None:
        match message:
            case messages.SourceItems():
                if message.run == self._run:
                    self._caller_seconds = message.cpu_seconds
                    blob = Blob(blobs[0], message.items)
                    self._handle(events.SourceItems(blob, message.items, len(blob)))
            case messages.StartRun():
                self._start_run(message.run)
            case messages.ReturnCredit():
                if message.run == self._run:
                    self._handle(events.CreditReturned(message.items))
            case messages.SourceEnded():
                if message.run == self._run:
                    self._handle(events.SourceEnded())
            case messages.SourceFailed():
                if message.run == self._run and not self._cancelled:
                    # The caller knows what happened, and only has to be woken.
                    self._fail_with(messages.FailedBySource(message.run))
            case _:
                raise messages.unexpected(message, "The broker, from the caller's source,")

    def _start_run(self, run: int) -> None:
        self._run = run
        self._rest_at = None
        self._handle(events.RunStarted())
        if self._cancelled:
            self._cancelled = False
            for each in self._workers.values():
                each.peer.send(messages.Resume())
        if self._given_up == run:
            self._cancel()

    def _from_caller(self, message: messages.Message, blobs: list[Any]) -> None:
        match message:
            case messages.Consumed():
                if message.run == self._run:
                    self._caller_seconds = max(message.cpu_seconds, self._caller_seconds)
                    self._handle(events.Consumed(message.items))
            case messages.SlotsReleased():
                self._holdings.gone(None, message.slots)
            case messages.CancelRun():
                # Another thread of the caller may wait for results.
                self._results.send(messages.RunCancelled(message.run))
                if message.run == self._run:
                    self._cancel()
                else:
                    self._given_up = message.run
            case messages.Close():
                self._close_workers(None)
            case messages.Abort():
                # The source lets go of what it holds while workers end.
                self._feed.send(messages.StopSource(self._run))
                if not message.listening:
                    self._results.close()
                self._close_workers(GRACE_SECONDS)
            case _:
                raise messages.unexpected(message, "The broker, from the caller,")

    def _cancel(self) -> None:
        self._cancelled = True
        # The source may wait for room, and what it holds is to be given back now.
        self._feed.send(messages.StopSource(self._run))
        self._handle(events.Cancelled())

    def _from_worker(self, each: WorkerProcess, message: messages.Message, blobs: list[Any]) -> None:
        match message:
            case messages.Reply():
                self._take_reply(each, message, blobs)
            case messages.RecordLogged() | messages.WarningShown() | messages.NoticeGiven():
                self._sayings.pass_on(message, blobs)
            case messages.SlotsReleased():
                self._holdings.gone(each.number, message.slots)
            case messages.Ready():
                each.ready = True
                self._handle(events.WorkerReady(each.number, time.monotonic() - each.started))
                if not self._opened and all(every.ready for every in self._workers.values()):
                    self._opened = True
                    self._results.send(messages.Opened(str(self._crew.threads)))
            case messages.CallFailed():
                self._handle(events.Raised(each.number, message.lease, message.calls, message.failure))
            case messages.WorkerFailed():
                failure = message.failure
                if (failure.phase, failure.kind) == ("wait", "MemoryError"):
                    # What it was being sent did not fit: that is what it has.
                    self._handle(events.Raised(each.number, None, None, failure))
                self._fail_with(messages.FailedByJob(each.assignment.name, failure, first=None, last=None))
            case messages.Closed():
                each.closed = True
                if self._closing and all(every.closed or every.dead for every in self._workers.values()):
                    # They end by themselves before that, unless something keeps them from it.
                    self._close_workers(EXIT_SECONDS + GRACE_SECONDS * 2)
            case _:
                raise messages.unexpected(message, "The broker, from a worker,")

    def _take_reply(self, each: WorkerProcess, reply: messages.Reply, blobs: list[Any]) -> None:
        outputs = tuple((Blob(blob, items), items) for blob, items in zip(blobs, reply.blob_items, strict=True))
        if reply.calls:
            self._doubt_at = None
        self._handle(
            events.Replied(
                each.number,
                reply.lease,
                reply.calls,
                reply.group_sizes,
                outputs,
                sum(map(len, blobs)),
                reply.final,
                reply.starving,
                reply.seconds,
                reply.cpu_seconds,
                reply.waited_seconds,
                reply.partial,
                reply.given_up,
            )
        )
        if reply.released:
            # Not before what is passed on of it was taken in.
            self._holdings.gone(each.number, reply.released)

    # What the core wants

    def _handle(self, event: events.Event) -> None:
        if self._failed or self._closing:
            return
        answers: list[events.Event] = []
        for command in self._machine.handle(event, time.monotonic()):
            match command:
                case commands.SendLease():
                    self._workers[command.worker].lease(command)
                case commands.Emit(pieces, _, tell_within):
                    spec, blobs = spec_of(pieces)
                    results = messages.Results(self._run, spec, tell_within)
                    self._results.send(results, [blob.data for blob in blobs])
                case commands.Pull(credit):
                    self._feed.send(messages.Pull(self._run, credit))
                case commands.Grant(number, lease, credit):
                    self._workers[number].peer.send(messages.Grant(lease, credit))
                case commands.CancelLeases(number):
                    self._workers[number].peer.send(messages.CancelLeases())
                case commands.Revoke(number, lease, units):
                    answers.append(events.RevokeResult(number, *self._workers[number].revoke(lease, units)))
                case commands.ProbeWorker(number):
                    answers.append(events.ProbeResult(number, *self._workers[number].seen(self._standstills)))
                case commands.KillWorker(number):
                    self._workers[number].child.kill()
                case commands.SetFlushInterval(number, seconds):
                    self._workers[number].peer.send(messages.SetFlushInterval(seconds))
                case commands.GaveUp(step, first, last, attempts, when, why):
                    name = self._orders.assignments[step].name
                    self._results.send(messages.ItemGivenUp(self._run, name, first, last, attempts, when, why))
                case commands.StartWorker(step, number):
                    self._crew.start(step, number)
                case commands.EndWorker(number):
                    self._workers[number].leaving = True
                    self._workers[number].peer.send(messages.Close())
                case commands.Finish():
                    if self._holdings.ever:
                        self._rest_at = time.monotonic() + REST_SECONDS
                    self._feed.send(messages.StopSource(self._run))
                    self._results.send(messages.RunFinished(self._run, self._stats()))
                case commands.Fail(step, number, first, last, cause, loss):
                    name = self._orders.assignments[step].name
                    if loss == commands.Loss.UNPICKLE and number is not None and first is not None and last is not None:
                        # It may have been any of those that are unpickled together.
                        before, behind = self._workers[number].beside
                        first, last = max(0, first - before), last + behind
                    if loss == commands.Loss.FAILURES:
                        self._fail_with(messages.FailedByLimit(cause))
                    elif loss == commands.Loss.OVERDUE:
                        assert first is not None and last is not None
                        self._fail_with(messages.FailedByTimeout(name, cause, first, last))
                    elif loss is not None:
                        phase = "process" if loss in (commands.Loss.ITEM, commands.Loss.STATE) else loss
                        self._fail_with(messages.FailedByDeath(name, phase, cause, first, last, loss))
                    else:
                        self._fail_with(messages.FailedByJob(name, cause, first, last))
                case _:
                    raise TypeError(f"The broker does not know the command {type(command).__name__}.")
        for answer in answers:
            self._handle(answer)

    def _fail_with(self, failure: messages.RunFailure) -> None:
        """Tell the caller what went wrong, the first time, and end everything."""
        if not self._failed and not (self._closing and not isinstance(failure, messages.FailedByJob)):
            self._failed = True
            self._results.send(failure._replace(stats=self._stats()))
            with contextlib.suppress(ConnectionLost):
                self._feed.send(messages.StopSource(self._run))
        if not self._closing:
            self._close_workers(GRACE_SECONDS)


def main(
    orders: BrokerConfig | None,
    feed: NonblockingEndpoint,
    results: NonblockingEndpoint,
    questions: NonblockingEndpoint,
    arena: Arena | None,
    foreign: list[BlockingEndpoint | Arena],
) -> None:
    """The whole life of a broker process; one that was not forked is sent its configuration."""
    settle(foreign)
    block_what_is_ignored()
    frames: list[Frame] = []
    if orders is None:
        parent = os.getppid()
        while not frames:
            frames, alive = results.receive()
            if not frames and (not alive or os.getppid() != parent):
                os._exit(ORPHANED)
            if not frames:
                wait_for_any([results.waitable()], LOOK_SECONDS)
        message, blobs = frames.pop(0)
        match message:
            case messages.ConfigureBroker():
                orders = whole(message.config, blobs)
            case messages.Close() | messages.Abort():
                # The caller has changed its mind before it gave any.
                return
            case _:
                raise messages.unexpected(message, "The broker, before its configuration,")
    broker = Broker(orders, feed, results, questions, arena)
    broker.take_in(frames)
    broker.serve()
