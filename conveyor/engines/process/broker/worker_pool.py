"""The worker pool: the worker processes, as the broker starts, keeps and ends them.

Law: knows nothing of the core, and decides nothing: who is to be started or ended, and what it means that one has died,
is for the broker to say.
"""

from __future__ import annotations

import multiprocessing
import os
from functools import partial

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.process.broker.ports import Connection, SlotRefcounts, WorkerPort
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system.spawning import (
    FORK,
    FORKSERVER,
    PREFIX,
    SPAWN,
    cause_and_remedy,
    fork_warning_ignored,
    process_of,
    signals_held,
    start_process,
)
from conveyor.engines.process.system.waiting import Child, GracePeriod, PauseDetector, Waiter
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import BrokerConfig, WorkerConfig
from conveyor.engines.process.wire.endpoint import ConnectionLost, NonblockingEndpoint
from conveyor.engines.process.wire.handles import Handles
from conveyor.engines.process.wire.pipe import PIPE, channel
from conveyor.engines.process.wire.progress import LastWords, ProgressBoard, last_words_of
from conveyor.engines.process.worker import preload, run_worker
from conveyor.errors import ProcessError

if TYPE_CHECKING:
    from conveyor.engines.process.broker.dispatch import Dispatch


class WorkerPool:
    """Those that are up or were, by number; one that left in peace is not among them.

    `ends` are those of the caller's channels.  Each worker inherits `handles`, the descriptors that jobs refer to.
    `dispatch` takes in what workers say, and that one is dead.
    """

    def __init__(
        self,
        config: BrokerConfig,
        ends: list[NonblockingEndpoint],
        arena: Arena | None,
        handles: Handles | None,
        dispatch: Dispatch,
    ) -> None:
        self._config = config
        # The ends of the caller's channels, and those of the workers', for a process that is forked to close.
        self.inherited_fds = ends
        # Where something that the script has imported has started threads, this process cannot fork safely, either.
        self.threads = ""
        if config.start_method == FORKSERVER:
            # No other broker has to know.
            from conveyor.engines.process.system.foreign_threads import foreign_threads

            self.threads = str(foreign_threads())
        self._fork = config.start_method == FORK or (config.start_method == FORKSERVER and not self.threads)
        self._board = ProgressBoard(self._fork)
        self.arena = arena
        self._handles = handles
        self.refcounts = SlotRefcounts()
        self.waiter = Waiter()
        # How many workers have had each place, by step and index.
        self._seated: dict[tuple[int, int], int] = {}
        self.workers: dict[int, WorkerPort] = {}
        self._dispatch = dispatch
        # Whether workers are to leave, and how long they may still take; None: as long as they like.
        self.closing = False
        self.grace: GracePeriod | None = None

    def start(self, step: int, number: int, index: int) -> None:
        """Start one more, at that place among those of its step.

        Raises ProcessError where there is nothing left to start it with.
        """
        config = self._placed(step, index)
        try:
            if self._fork:
                # Done once; here, where it is an error of the start if it fails.
                preload()
            self._launch(config, number)
        except (OSError, RuntimeError) as error:
            # No descriptor, process, thread or room for a semaphore is left.  To wait for better times may be to wait
            # for ever.
            if isinstance(error, ProcessError):
                raise
            raise ProcessError(
                f"A worker of Processor {config.name!r} could not be started: {cause_and_remedy(error)}"
            ) from error

    def _placed(self, step: int, index: int) -> WorkerConfig:
        """Return what a worker is told: its place, and a seed that no other has."""
        config = self._config.workers[step]._replace(place=index)
        if config.seed is None:
            return config
        before = self._seated.get((step, index), 0)
        self._seated[step, index] = before + 1
        return config._replace(seed=f"{config.seed} {step} {index} {before}")

    def _launch(self, config: WorkerConfig, number: int) -> None:
        started = time.monotonic()
        method = FORK if self._fork else SPAWN
        context: Any = multiprocessing.get_context(method)
        near, far = channel(self._config.channel, context)
        progress = self._board.new(config.threads)
        inherited_fds = list(self.inherited_fds) if self._fork else []
        if self._fork and self._config.channel == PIPE:
            # Else the worker would keep its own channel open, and never see its end.  Those of a queue are not apart.
            inherited_fds.append(near)
        told = config if self._fork else None
        process = process_of(
            method,
            self._config.import_main,
            target=run_worker,
            args=(number, told, far, progress, self.arena, inherited_fds, self._handles, os.getpid()),
            name=f"{PREFIX}{config.name}",
        )
        self.inherited_fds.append(near)
        # This process has one thread, and where channels are queues those that write to them, which the child does
        # not touch; threads of compiled libraries see to themselves.
        with signals_held(method), fork_warning_ignored():
            try:
                near.prepare()
                start_process(process)
            except BaseException:
                # The others may go on.  The thread of a queue closes what is still open of the far end, too.
                far.close()
                self.inherited_fds.remove(near)
                near.close()
                self._board.give_back(progress)
                raise
        far.close()
        child = Child(process)
        each = WorkerPort(number, config, child, progress, started)
        self.workers[number] = each
        # A worker whose channel has ended is dead or about to be, and its death is what counts.
        near.keep(self.refcounts)
        sent = partial(self.refcounts.sent, number)
        each.peer = Connection(near, self.waiter, partial(self._dispatch.from_worker, each), lambda: None, sent)
        each.end = near
        if observers := self._dispatch.shell.observers:
            each.peer.observe(f"worker {number}", observers)
        self.waiter.add(child.waitable, partial(self._dispatch.worker_died, each))
        if not self._fork:
            # Not with its start: it may die before it reads them.
            each.peer.send(
                messages.ConfigureWorker(config._replace(job=b"", redact=None)), [config.job, config.redact or b""]
            )

    def bury(self, each: WorkerPort, pauses: PauseDetector) -> LastWords:
        """Take in what one that has died said last, and let go of it; return what is known of what it was at."""
        # A last message and the death can be ready together: the message comes first.
        while each.peer.drain():
            pass
        each.peer.close()
        self.waiter.remove(each.child.waitable)
        each.child.reap()
        each.dead = True
        self.inherited_fds.remove(each.end)
        self.refcounts.lost(each.number)
        last_words = last_words_of(each.progress, pauses.since)
        self._board.give_back(each.progress)
        return last_words

    @property
    def living(self) -> set[int]:
        """The process ids of the workers that are not known to be dead."""
        return {each.child.pid for each in self.workers.values() if not each.dead}

    @property
    def all_dead(self) -> bool:
        return all(each.dead for each in self.workers.values())

    @property
    def all_closed(self) -> bool:
        """Whether all workers have torn down their jobs, or are dead."""
        return all(each.closed or each.dead for each in self.workers.values())

    def close_workers(self, grace: float | None) -> None:
        """Tell all workers to leave; those still there after `grace` seconds are killed."""
        if not self.closing:
            self.closing = True
            for each in self.workers.values():
                try:
                    each.peer.send(messages.Close())
                except ConnectionLost:
                    # It would wait for ever to be told.
                    each.child.kill()
                if not each.dead:
                    # One that was stopped would never leave.
                    each.child.wake()
        if grace is not None and (self.grace is None or grace < self.grace.left()):
            self.grace = GracePeriod(grace)

    def forward_prints(self, message: messages.ForwardPrints) -> None:
        """Have all workers, and those that are started later, send what jobs write to more streams."""
        configs = self._config.workers
        told = {index: each._replace(forwarded=each.forwarded + message.streams) for index, each in configs.items()}
        self._config = self._config._replace(workers=told)
        for worker in self.workers.values():
            worker.peer.send(message)

    def free_slots(self, feed: Connection) -> None:
        """Have shared memory that nobody sees any more written anew by those who wrote it."""
        for owner, slots in self.refcounts.free().items():
            places = [place for place, _ in slots]
            if owner is None:
                feed.send(messages.SlotsFreed(places))
            elif owner in self.workers and not self.workers[owner].dead:
                self.workers[owner].peer.send(messages.SlotsFreed(places))
            elif self.arena is not None:
                for slot in slots:
                    self.arena.remove(*slot)

    def kill_late(self) -> None:
        """Kill the workers whose time to leave is over."""
        if self.grace is not None and not self.grace.left():
            self.grace = None
            for each in self.workers.values():
                if not each.dead:
                    each.child.kill()

    def end(self) -> None:
        """Make sure that no worker is left, whatever happened."""
        for each in self.workers.values():
            if not each.dead:
                each.child.end()
                each.peer.close()
                each.dead = True

    def close(self) -> None:
        """Let go of what was needed to keep them."""
        self.waiter.close()
        self._board.close()
