"""The broker's shell: it carries out the core's commands with processes and messages.

Law: it never looks into an item.  Once it has failed, or the workers are to leave, the core decides no more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from conveyor._lean.dataclasses import NamedTuple, replace
from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.core import commands, events
from conveyor.core.data.pieces import ONE, spec_of
from conveyor.core.machine import Machine
from conveyor.core.nodes.lone import Awaited, ends_one_call
from conveyor.core.shell import Observer, Shell
from conveyor.engines.process.broker.ports import CallerPort
from conveyor.engines.process.broker.worker_pool import WorkerPool
from conveyor.engines.process.system.waiting import GRACE_SECONDS, PauseDetector
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import BrokerConfig
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.errors import ProcessError
from conveyor.stats import History, Stats

# When no run has gone on for so long, workers give back the shared memory that they keep ready.
TRIM_AFTER_SECONDS = 1.0


class Prepared(NamedTuple):
    """What is sent as soon as a reply comes, and how."""

    about: Awaited
    send: Callable[..., None]
    message: messages.StartLease | messages.Results


class ProcessShell(Shell):
    """Workers are processes, and the caller is another one."""

    def __init__(
        self,
        machine: Machine,
        observers: Sequence[Observer],
        config: BrokerConfig,
        pool: WorkerPool,
        caller: CallerPort,
    ) -> None:
        super().__init__(machine, observers)
        self.pool = pool
        self.caller = caller
        self._names = {index: worker.name for index, worker in config.workers.items()}
        # When nobody could run: no call is the older for it.
        self.pauses = PauseDetector()
        self.run = 0
        # What the caller has said of this run.
        self.begun = messages.StartRun(0)
        self.failed = False
        self.trim_at: float | None = None
        # Whether the user was told that a step has fewer workers than it could use.
        self._goes_without = False
        self._cpu_before = config.caller_cpu_seconds
        # What the caller has not been told yet.
        self.history = History()
        # Good until the next event.
        self._prepared: Prepared | None = None

    def read_clock(self) -> float:
        return time.monotonic()

    @property
    def stopped(self) -> bool:
        """Whether the core decides no more."""
        return self.failed or self.pool.closing

    def pass_on(self, worker: int, reply: messages.Reply, blobs: list[Any]) -> bool:
        """Send on what comes of a lone item, where it is known already where that goes; say whether, for `handle`."""
        prepared = self._prepared
        if prepared is None or prepared.about.lease != reply.lease or prepared.about.worker != worker:
            return False
        if self.stopped or reply.blob_items != [1] or len(blobs[0]) > prepared.about.most_bytes:
            return False
        if not ends_one_call(reply, self.begun.traced):
            return False
        prepared.send(prepared.message, blobs)
        return True

    def _prepare(self) -> Prepared | None:
        """Make the message about what comes of a lone item, while its worker is at it."""
        about = self.machine.await_reply()
        if about is None:
            return None
        if isinstance(about.command, commands.Emit):
            results = messages.Results(self.run, ONE, about.command.report_within_seconds)
            return Prepared(about, self.caller.results.send, results)
        port = self.pool.workers[about.command.worker]
        message = port.lease_message(about.command, self.begun.traced)
        return None if message is None else Prepared(about, port.hand_on, message)

    def handle(self, event: events.Event, is_done: bool = False) -> None:
        """Have the machine decide on an event, and carry out what it wants; `is_done`: `pass_on` has begun with it."""
        # As `stopped`, without a call: each message passes here.
        if self.failed or self.pool.closing:
            return
        # Whoever looks on sees what is wanted before anything is done about it.
        foreseen = None if self.observers else self.machine.foresee(event)
        if foreseen is None:
            assert not is_done, f"something was sent on that is not wanted: {event}"
            self._prepared = None
            super().handle(event)
            return
        # A lone item goes on before the core has taken in that it came: the next process begins meanwhile.
        if not is_done:
            self.carry_out(foreseen)
        wanted = list(self.decide(event))
        # What is wanted before it is for somebody else.
        wanted.remove(foreseen)
        for command in wanted:
            self.carry_out(command)
        self.handle_answers()
        self._prepared = self._prepare()

    def stats(self) -> Stats:
        """Return the statistics as of now, with the samples since the last time that it was called."""
        told = self.machine.stats(self.read_clock(), self._look)
        callers = max(0.0, self.caller.cpu_seconds - self._cpu_before)
        cpu_seconds = self.machine.worker_cpu_seconds + time.process_time() + callers
        return replace(told, cpu_seconds=cpu_seconds, history=self.history.take())

    def _look(self, number: int) -> tuple[int | None, tuple[int, int], float | None]:
        """Return the process id of a worker, how far it has started what it was handed, and since when."""
        worker = self.pool.workers.get(number)
        if worker is None or worker.dead:
            return None, (0, 0), None
        at, since = worker.progress.working_since()
        return worker.child.pid, at, None if since is None else max(0.0, time.monotonic() - since)

    # To the workers

    def send_lease(self, command: commands.SendLease) -> None:
        self.pool.workers[command.worker].lease(command, self.begun.traced)

    def grant(self, command: commands.Grant) -> None:
        self._send(command.worker, messages.Grant(command.lease, command.credit))

    def cancel_leases(self, worker: int) -> None:
        self._send(worker, messages.CancelLeases())

    def revoke(self, command: commands.Revoke) -> None:
        started = self.pool.workers[command.worker].revoke(command.lease, command.calls)
        self.answers.append(events.RevokeResult(command.worker, *started))

    def probe_worker(self, worker: int) -> None:
        self.answers.append(events.ProbeResult(worker, *self.pool.workers[worker].probe(self.pauses)))

    def set_flush_interval(self, worker: int, seconds: float) -> None:
        self._send(worker, messages.SetFlushInterval(seconds))

    def start_worker(self, step: int, worker: int) -> None:
        try:
            self.pool.start(step, worker, self.machine.roster.step_rosters[step].index_of(worker))
        except ProcessError as error:
            if not self.machine.can_do_without(worker):
                raise
            self.go_on_without(worker, str(error))

    def go_on_without(self, worker: int, why: str) -> None:
        """Take in that one more worker cannot be started, and log why, the first time."""
        self.answers.append(events.WorkerNotStarted(worker))
        if not self._goes_without:
            self._goes_without = True
            text = f"{why} The Processor goes on with the workers that it has."
            self.caller.logs.pass_on(messages.NoticeGiven("WARNING", text), [])

    def end_worker(self, worker: int) -> None:
        self.pool.workers[worker].leaving = True
        self._send(worker, messages.Close())

    def kill_worker(self, worker: int) -> None:
        self.pool.workers[worker].child.kill()

    def _send(self, worker: int, message: messages.Message) -> None:
        self.pool.workers[worker].peer.send(message)

    # To the caller

    def pull(self, credit: int) -> None:
        # Submitted items are sent by many threads, of which none listens; one listens for their results.
        submitted = self.begun.traced and not self.begun.streamed
        (self.caller.results if submitted else self.caller.feed).send(messages.Pull(self.run, credit))

    def emit(self, command: commands.Emit) -> None:
        spec, blobs = spec_of(command.pieces)
        results = messages.Results(self.run, spec, command.report_within_seconds)
        self.caller.results.send(results, [blob.data for blob in blobs])

    def deliver(self, command: commands.Deliver) -> None:
        spec, blobs = spec_of(command.pieces)
        what = command.lineages, command.settled, command.report_within_seconds
        self.caller.results.send(messages.ItemResults(self.run, spec, *what), [blob.data for blob in blobs])

    def item_failed(self, command: commands.ItemFailed) -> None:
        number, name = command.number, self._names[command.step]
        what = name, number, number, command.attempts, 0.0, command.why
        self.caller.results.send(messages.ItemGivenUp(self.run, *what, command.origin, command.skipped))

    def gave_up(self, command: commands.GaveUp) -> None:
        step, *fields = command
        self.caller.results.send(messages.ItemGivenUp(self.run, self._names[step], *fields))

    def finish(self) -> None:
        if self.pool.refcounts.ever:
            self.trim_at = self.read_clock() + TRIM_AFTER_SECONDS
        self.stop_source()
        self.caller.results.send(messages.RunFinished(self.run, self.stats()))

    def fail(self, command: commands.Fail) -> None:
        loss, first, last = command.loss, command.first, command.last
        name = self._names[command.step]
        if loss == commands.Loss.UNPICKLE and command.worker is not None and first is not None and last is not None:
            # Any of the items that are unpickled together may have ended the worker.
            before, behind = self.pool.workers[command.worker].beside
            first, last = max(0, first - before), last + behind
        failure: messages.RunFailure
        if loss is None:
            failure = messages.FailedByJob(name, command.cause, first, last)
        elif loss == commands.Loss.FAILURES:
            failure = messages.FailedByLimit(command.cause)
        elif loss == commands.Loss.OVERDUE:
            assert first is not None and last is not None
            failure = messages.FailedByTimeout(name, command.cause, first, last)
        else:
            phase = "process" if loss in (commands.Loss.ITEM, commands.Loss.STATE) else loss
            failure = messages.FailedByDeath(name, phase, command.cause, first, last, loss)
        self.fail_with(failure)

    # What the broker asks for

    def stop_source(self) -> None:
        """Have the source stop; it gives back what it holds."""
        self.caller.feed.send(messages.StopSource(self.run))

    def fail_with(self, failure: messages.RunFailure) -> None:
        """Tell the caller what went wrong, the first time, and end everything."""
        if not self.failed and not (self.pool.closing and not isinstance(failure, messages.FailedByJob)):
            self.failed = True
            self.caller.results.send(failure._replace(stats=self.stats()))
            with contextlib.suppress(ConnectionLost):
                self.stop_source()
        if not self.pool.closing:
            self.pool.close_workers(GRACE_SECONDS)
