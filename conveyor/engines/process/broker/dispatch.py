"""What arrives at the broker: each message becomes an event for the core, or a deed.

Law: one method for each sender.  A message that its receiver has no use for is an error of Conveyor's, and ends the
run.
"""

from __future__ import annotations

import contextlib
import signal

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core import commands, events
from conveyor.engines.process.broker.observing import kept_trace
from conveyor.engines.process.system.child_setup import NO_THREAD_EXITCODE
from conveyor.engines.process.system.descendants import Orphans
from conveyor.engines.process.system.spawning import UNGUARDED_EXITCODE, cause_and_remedy
from conveyor.engines.process.system.waiting import EXIT_SECONDS, GRACE_SECONDS
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import Blob
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.errors import HOST_LOST_EXITCODE
from conveyor.stats import Measures

if TYPE_CHECKING:
    from conveyor.engines.process.broker.ports import WorkerPort
    from conveyor.engines.process.broker.shell import ProcessShell

# The exit codes of workers that may have been ended from outside.
FROM_OUTSIDE = {-getattr(signal, name) for name in ("SIGKILL", "SIGTERM") if hasattr(signal, name)}


class Dispatch:
    """Takes in messages and deaths; `shell` is set once it exists."""

    def __init__(self) -> None:
        self.shell: ProcessShell
        # What dead workers have left running.
        self.orphans = Orphans()
        self.opened = False
        # Whether a call has ended in the first run.
        self.progressed = False
        self._cancelled = False
        # A run that the caller cancelled before its start arrived: those are two channels.
        self._cancelled_early = 0
        # What a consumer that stops wants to know, and cannot be told before the source goes on or ends.
        self._request: messages.ConclusionRequest | None = None

    # The caller

    def from_questions(self, message: messages.Message, blobs: list[Any]) -> None:
        match message:
            case messages.StatsRequest():
                shell = self.shell
                through = shell.machine.items_through() if message.run and message.run == shell.run else 0
                trace = kept_trace(shell.observers) if message.wants_trace else None
                shell.caller.questions.send(messages.StatsReply(message.number, shell.stats(), through, trace))
            case _:
                raise messages.unexpected(message, "The broker, over the caller's channel of questions,")

    def from_source(self, message: messages.Message, blobs: list[Any]) -> None:
        """Take in what the caller's source gives.  What belongs to a run that is over goes."""
        shell = self.shell
        match message:
            case messages.SourceItems():
                if message.run == shell.run:
                    shell.caller.cpu_seconds = message.cpu_seconds
                    blob = Blob(blobs[0], message.items)
                    shell.handle(events.SourceItems(blob, message.items, len(blob)))
                    self._conclude(self._request)
            case messages.StartRun():
                self._start_run(message)
            case messages.ReturnCredit():
                if message.run == shell.run:
                    shell.handle(events.CreditReturned(message.items))
            case messages.WithdrawItems():
                if message.run == shell.run:
                    shell.handle(events.Withdrawn(message.origins))
            case messages.SourceEnded():
                if message.run == shell.run:
                    shell.handle(events.SourceEnded())
                    self._conclude(self._request)
            case messages.SourceFailed():
                if message.run == shell.run and not self._cancelled:
                    # The caller knows what happened, and only has to be woken.
                    shell.fail_with(messages.FailedBySource(message.run))
            case messages.ForwardPrints():
                shell.pool.forward_prints(message)
            case _:
                raise messages.unexpected(message, "The broker, from the caller's source,")

    def from_consumer(self, message: messages.Message, blobs: list[Any]) -> None:
        """Take in what the caller says about results, and about the pipeline as a whole."""
        shell = self.shell
        match message:
            case messages.Consumed():
                if message.run == shell.run:
                    shell.caller.cpu_seconds = max(message.cpu_seconds, shell.caller.cpu_seconds)
                    shell.handle(events.Consumed(message.items))
            case messages.SlotsReleased():
                shell.pool.refcounts.gone(None, message.slots)
            case messages.ConclusionRequest():
                if message.run > shell.run:
                    # Its start comes over another channel, and later.
                    self._request = message
                else:
                    self._conclude(message)
            case messages.CancelRun():
                # Another thread of the caller may wait for results.
                shell.caller.results.send(messages.RunCancelled(message.run))
                if message.run == shell.run:
                    self._cancel()
                else:
                    self._cancelled_early = message.run
            case messages.Close():
                shell.pool.close_workers(None)
            case messages.Abort():
                # The source lets go of what it holds while workers end.
                with contextlib.suppress(ConnectionLost):
                    shell.stop_source()
                if not message.listening:
                    shell.caller.results.close()
                shell.pool.close_workers(GRACE_SECONDS)
            case _:
                raise messages.unexpected(message, "The broker, from the caller,")

    def _conclude(self, request: messages.ConclusionRequest | None) -> None:
        """Tell a consumer that stops whether the run at hand is over, or keep the request until that is known."""
        if request is None or request.run != self.shell.run:
            return
        conclusion = self.shell.machine.conclusion(request.taken)
        self._request = request if conclusion is None else None
        if conclusion is not None:
            self.shell.caller.results.send(messages.ConclusionReply(request.run, *conclusion))

    def _start_run(self, begun: messages.StartRun) -> None:
        run = begun.run
        if self._request is not None and self._request.run != run:
            self._request = None
        self.shell.run = run
        self.shell.begun = begun
        self.shell.trim_at = None
        self.shell.handle(events.RunStarted(begun.traced, begun.streamed))
        if self._cancelled:
            self._cancelled = False
            for worker in self.shell.pool.workers.values():
                worker.peer.send(messages.Resume())
        if self._cancelled_early == run:
            self._cancel()

    def _cancel(self) -> None:
        self._cancelled = True
        # The source may wait for room, and what it holds is to be given back now.
        self.shell.stop_source()
        self.shell.handle(events.Cancelled())

    # The workers

    def from_worker(self, worker: WorkerPort, message: messages.Message, blobs: list[Any]) -> None:
        shell = self.shell
        match message:
            case messages.Reply():
                self._take_reply(worker, message, blobs)
            case messages.RecordLogged() | messages.WarningShown() | messages.Printed() | messages.NoticeGiven():
                shell.caller.logs.pass_on(message, blobs)
            case messages.SlotsReleased():
                shell.pool.refcounts.gone(worker.number, message.slots)
            case messages.Ready():
                self._take_ready(worker)
            case messages.CallFailed():
                shell.handle(events.Raised(worker.number, message.lease, message.calls, message.failure))
            case messages.WorkerFailed():
                failure = message.failure
                if (failure.phase, failure.kind) == ("wait", "MemoryError"):
                    # What it was being sent did not fit: that is what it has.
                    shell.handle(events.Raised(worker.number, None, None, failure))
                shell.fail_with(messages.FailedByJob(worker.config.name, failure, first=None, last=None))
            case messages.Closed():
                worker.closed = True
                if shell.pool.closing and shell.pool.all_closed:
                    # They end by themselves before that, unless something keeps them from it.
                    shell.pool.close_workers(EXIT_SECONDS + GRACE_SECONDS * 2)
            case _:
                raise messages.unexpected(message, "The broker, from a worker,")

    def _take_reply(self, worker: WorkerPort, reply: messages.Reply, blobs: list[Any]) -> None:
        is_done = self.shell.pass_on(worker.number, reply, blobs)
        outputs = tuple([(Blob(blob, items), items) for blob, items in zip(blobs, reply.blob_items, strict=True)])
        if reply.calls:
            self.progressed = True
        self.shell.handle(
            events.Replied(
                worker.number,
                reply.lease,
                reply.calls,
                reply.group_sizes,
                outputs,
                sum(map(len, blobs)),
                reply.final,
                reply.starving,
                reply.seconds,
                Measures(*reply.measures),
                reply.partial,
                reply.given_up,
                reply.slow,
            ),
            is_done,
        )
        if reply.released:
            # Not before what is passed on of it was taken in.
            self.shell.pool.refcounts.gone(worker.number, reply.released)

    def _take_ready(self, worker: WorkerPort) -> None:
        shell = self.shell
        worker.ready = True
        shell.handle(events.WorkerReady(worker.number, time.monotonic() - worker.started))
        if not self.opened and all(every.ready for every in shell.pool.workers.values()):
            self.opened = True
            shell.caller.results.send(messages.Opened(shell.pool.threads))

    def worker_died(self, worker: WorkerPort) -> None:
        shell, pool = self.shell, self.shell.pool
        last = pool.bury(worker, shell.pauses)
        self.orphans.left_by(worker.child.pid, worker.config.name)
        if pool.arena is not None and pool.refcounts.ever and not pool.closing:
            pool.arena.reclaim(worker.number, pool.refcounts.used())
        if worker.leaving:
            del pool.workers[worker.number]
            return
        if worker.closed or pool.closing:
            return
        exitcode = worker.child.exitcode
        if exitcode == UNGUARDED_EXITCODE:
            # The next one would import the same script.
            name, loss = worker.config.name, commands.Loss.SETUP
            shell.fail_with(messages.FailedByDeath(name, "setup", exitcode, first=None, last=None, loss=loss))
            return
        if exitcode == NO_THREAD_EXITCODE:
            name = worker.config.name
            why = f"A worker of Processor {name!r} could not be started: {cause_and_remedy(None)}"
            if shell.machine.can_do_without(worker.number):
                del pool.workers[worker.number]
                shell.go_on_without(worker.number, why)
                shell.handle_answers()
            else:
                shell.fail_with(messages.FailedByBroker(why, ""))
            return
        host_lost = exitcode == HOST_LOST_EXITCODE
        killed = host_lost or exitcode in FROM_OUTSIDE
        what = last.started, worker.ready, killed, last.unpickling, last.under_way, last.silent, host_lost
        shell.handle(events.WorkerLost(worker.number, exitcode, *what))
        if not shell.failed:
            del pool.workers[worker.number]
