"""The broker: the process between the caller and the workers.

Law: it has one thread, waits for nobody in particular, and never unpickles an item.  This is its loop; `dispatch.py`
takes in what arrives, `shell.py` carries out what the core wants.  The broker outlives neither the caller nor, once
told to close, its workers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from conveyor._system.clock import time
from conveyor.core import events
from conveyor.core.machine import Machine
from conveyor.engines.failures import traceback_of
from conveyor.engines.process.broker.dispatch import Dispatch
from conveyor.engines.process.broker.observing import RECORD_VARIABLE, observers_of
from conveyor.engines.process.broker.ports import CallerPort
from conveyor.engines.process.broker.shell import ProcessShell
from conveyor.engines.process.broker.worker_memory import WorkerMemory
from conveyor.engines.process.broker.worker_pool import WorkerPool
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system.child_setup import (
    NO_THREAD_EXITCODE,
    ORPHANED_EXITCODE,
    block_ignored_signals,
    reset_inherited_state,
)
from conveyor.engines.process.system.finalisation import leave
from conveyor.engines.process.system.spawning import cause_and_remedy
from conveyor.engines.process.system.waiting import GRACE_SECONDS, SLICE_SECONDS, Waiter, descriptor_of, wait_for_any
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import BrokerConfig, with_blobs
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost, Frame, NonblockingEndpoint
from conveyor.engines.process.wire.handles import Handles
from conveyor.errors import ProcessError, StartMethodWarning
from conveyor.stats import PROGRESS_VARIABLE, SAMPLE_SECONDS, SERVE_VARIABLE

# Longer than a cheap job and the way to its worker and back take together.
SPIN_SECONDS = 0.0002
# While the broker spins, it looks so often for what no message calls for.
LOOK_AROUND_SECONDS = 0.001
# How often the core is told which share of a core is used here.
TELL_LOAD_SECONDS = 0.1
# Where the death of the caller cannot be waited for, it is looked for so often.
LOOK_SECONDS = 0.25
# After a fork beside native threads, the caller is warned where no item has ended for so long.
DOUBT_SECONDS = 30.0


class LoadMeter:
    """Which share of a core the broker uses; time spent spinning for one item does not count."""

    def __init__(self) -> None:
        self._since, self._used = time.monotonic(), time.process_time()
        self.spun = 0.0

    def is_due(self, now: float) -> bool:
        """Whether the core is to be told."""
        return now >= self._since + TELL_LOAD_SECONDS

    def share(self) -> float:
        """Return the share since the last call."""
        now, used = time.monotonic(), time.process_time()
        share = (used - self._used - self.spun) / (now - self._since)
        self._since, self._used, self.spun = now, used, 0.0
        return share


class Spin:
    """How the broker waits for one item: it spins, where whoever is waited for has another core meanwhile."""

    def __init__(self, cores: int) -> None:
        self.seconds = SPIN_SECONDS if cores >= 2 else 0.0
        # How many items were under way at the last wait.
        self.under_way = 2
        # When to look for what no message calls for, although a message is expected at any moment.
        self.look_at = 0.0


class CallerWatch:
    """Whether the caller's process is still there.

    The process id is the caller's own word: one that died during the start has left this process to another parent.
    """

    def __init__(self, caller: int, waiter: Waiter, lost: Callable[[], None]) -> None:
        self._caller = caller
        self._waiter = waiter
        self._lost = lost
        self._descriptor = descriptor_of(caller)
        if self._descriptor is not None:
            waiter.add(self._descriptor, self.stop)

    @property
    def polls(self) -> bool:
        """Whether the broker has to look again and again, as the caller's death cannot be waited for."""
        return self._descriptor is None

    @property
    def is_parent(self) -> bool:
        """Whether the caller still is this process's parent; where no system call tells, it is taken to be."""
        return not hasattr(os, "getppid") or os.getppid() == self._caller

    def look(self) -> None:
        """Stop where the caller is gone and no descriptor can tell."""
        if self.polls and not self.is_parent:
            self.stop()

    def stop(self) -> None:
        """Take in that the caller is gone."""
        if self._descriptor is not None:
            self._waiter.remove(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
            self._caller = os.getppid()
        self._lost()


class Broker:
    """The loop.

    A subclass may keep its workers, and carry out commands to them, in another way.
    """

    pool_kind: type[WorkerPool] = WorkerPool
    shell_kind: type[ProcessShell] = ProcessShell

    def __init__(
        self,
        config: BrokerConfig,
        endpoints: tuple[NonblockingEndpoint, NonblockingEndpoint, NonblockingEndpoint],
        arena: Arena | None,
        handles: Handles | None,
    ) -> None:
        self._config = config
        self._dispatch = dispatch = Dispatch()
        self._pool = pool = self.pool_kind(config, list(endpoints), arena, handles, dispatch)
        self._waiter = pool.waiter
        receivers = dispatch.from_source, dispatch.from_consumer, dispatch.from_questions
        self._caller = CallerPort(endpoints, pool.waiter, pool.refcounts, receivers, self._caller_gone)
        self._watch = CallerWatch(config.caller, pool.waiter, self._caller_gone)
        opened = time.monotonic()
        machine = Machine(config.plan, opened)
        observers = observers_of(config, machine, opened, self._caller.logs, pool.inherited_fds)
        self._shell = dispatch.shell = self.shell_kind(machine, observers, config, pool, self._caller)
        self._caller.observe(observers)
        self._spin = Spin(config.plan.cores)
        self._load = LoadMeter()
        self._memory = WorkerMemory()
        # When the next sample is taken, and when what the last one saw had happened.
        self._sample_at = self._sampled = 0.0
        # Where a call may take only so long, pauses of the machine are looked for.
        self._timed = any(worker.timed for worker in config.workers.values())
        # When to warn that a fork beside native threads may be why nothing ends; None: never.
        self._doubt_at = opened + DOUBT_SECONDS if config.pools else None

    def take_in(self, frames: list[Frame]) -> None:
        """Take in what the caller has sent behind the configuration."""
        for message, blobs in frames:
            self._caller.results.receive(message, blobs)

    def serve(self) -> None:
        """Start the workers, serve until told to close or the caller is gone, and end the workers."""
        pool, orphans = self._pool, self._dispatch.orphans
        try:
            if os.name == "posix" and not self._watch.is_parent:
                self._watch.stop()
            elif not pool.closing:
                for index, roster in self._shell.machine.roster.step_rosters.items():
                    for number in roster.numbers:
                        pool.start(index, number, roster.index_of(number))
            while not (pool.closing and pool.all_dead):
                for callback in self._ready():
                    callback()
        except BaseException as error:
            what = str(error) if isinstance(error, ProcessError) else ""
            if isinstance(error, ConnectionLost):
                # Over a queue, for want of a thread; that a worker is dead, its own descriptor says.
                what = f"The broker process of the pipeline could not send a message: {cause_and_remedy(error)}"
            self._shell.fail_with(messages.FailedByBroker(what, traceback_of(error)))
        finally:
            pool.end()
        orphans.sweep()
        self._sweep()
        while orphans.sweeping:
            for callback in self._waiter.wait(SLICE_SECONDS):
                callback()
            self._sweep()
        self._caller.logs.tell()
        self._caller.results.send(messages.Closed())
        self._caller.flush(LOOK_SECONDS / 5, self._look_around)
        for observer in self._shell.observers:
            observer.close()
        self._caller.close()
        pool.close()

    def _ready(self) -> list[Callable[[], None]]:
        """Look for what no message calls for, and wait for something to be ready.

        Waking up takes longer than all that is done for one item.  So while one item alone is under way, which cannot
        keep all cores busy, the broker spins for a moment before it sleeps.
        """
        shell, spin = self._shell, self._spin
        before, spin.under_way = spin.under_way, shell.machine.under_way if shell.run else 2
        if spin.under_way == 1 or (before == 1 and not spin.under_way):
            begun = time.monotonic()
            if begun >= spin.look_at:
                self._look_around()
                spin.look_at = begun + LOOK_AROUND_SECONDS
            ready: list[Callable[[], None]] = []
            while not ready and time.monotonic() < begun + spin.seconds:
                ready = self._waiter.wait(0)
            self._load.spun += time.monotonic() - begun
            if ready:
                if self._timed:
                    shell.pauses.look(spin.seconds)
                return ready
        self._look_around()
        if self._pool.closing and self._pool.all_dead:
            return []
        patience = self._patience()
        if shell.run and shell.machine.now != self._sampled and (patience is None or patience > SAMPLE_SECONDS):
            # Something has happened since the last sample, and nothing may happen for long.
            ready = self._wait(SAMPLE_SECONDS)
            if ready:
                return ready
            self._sample(time.monotonic())
            patience = self._patience()
        return self._wait(patience)

    def _wait(self, patience: float | None) -> list[Callable[[], None]]:
        ready = self._waiter.wait(patience)
        if self._timed:
            self._shell.pauses.look(math.inf if patience is None else patience)
        return ready

    def _sample(self, now: float) -> None:
        """Keep what the steps are like now; the core has no part in it."""
        machine = self._shell.machine
        self._sample_at, self._sampled = now + SAMPLE_SECONDS, machine.now
        self._shell.history.add(machine.sample(now))

    def _patience(self) -> float | None:
        """Return for how many seconds to wait at most; None: until something is ready."""
        waits = [LOOK_SECONDS] if self._watch.polls else []
        if self._pool.grace is not None:
            waits.append(self._pool.grace.slice())
        if self._dispatch.orphans.sweeping or (self._timed and self._shell.machine.timed):
            waits.append(SLICE_SECONDS)
        for due in (self._timer, self._shell.trim_at, self._doubt_at):
            if due is not None:
                waits.append(max(0.0, due - time.monotonic()))
        return min(waits, default=None)

    @property
    def _timer(self) -> float | None:
        return self._shell.machine.timer if self._shell.run and not self._shell.stopped else None

    def _look_around(self) -> None:
        """Do what no message calls for."""
        shell, pool, now = self._shell, self._pool, time.monotonic()
        self._caller.logs.look()
        if shell.run and self._load.is_due(now):
            shell.handle(events.BrokerLoad(self._load.share()))
            self._dispatch.orphans.reap(pool.living)
        if shell.run and now >= self._sample_at:
            self._sample(now)
        if self._dispatch.orphans.sweeping:
            self._sweep()
        if pool.refcounts.changed:
            pool.free_slots(self._caller.feed)
        if shell.trim_at is not None and time.monotonic() >= shell.trim_at:
            shell.trim_at = None
            for worker in pool.workers.values():
                worker.peer.send(messages.TrimMemory())
        self._watch.look()
        if self._doubt_at is not None:
            self._doubt()
        timer = self._timer
        if timer is not None and time.monotonic() >= timer:
            fitting = self._memory.fitting(pool.living) if shell.machine.roster.autoscales else None
            shell.handle(events.Ticked(time.process_time() + self._caller.cpu_seconds, fitting))
        pool.kill_late()

    def _doubt(self) -> None:
        """Warn the caller where somebody has been at work for long, and no call has ended."""
        assert self._doubt_at is not None
        if self._dispatch.progressed:
            self._doubt_at = None
        elif time.monotonic() >= self._doubt_at:
            workers = self._pool.workers.values()
            stuck = [each for each in workers if not each.ready or each.progress.started != (0, 0)]
            if not stuck or (self._dispatch.opened and not self._shell.machine.under_way):
                # There was nothing to end yet.
                self._doubt_at = time.monotonic() + DOUBT_SECONDS
                return
            self._doubt_at = None
            text = (
                f"No item has ended for {DOUBT_SECONDS:g} s, and the workers were forked beside "
                f"{', '.join(self._config.pools)}. In a forked process such a pool has no threads, so the job of "
                f"Processor {stuck[0].config.name!r} may wait for it for ever. Remedy: "
                'Pipeline(start_method="spawn"), with jobs that can be pickled; or start the pipeline before the first '
                "call of that library."
            )
            # The caller has imported it, from which this process was forked.
            from conveyor.engines.process.wire.log_records import packed_warning

            packed = packed_warning(text, StartMethodWarning, "conveyor", 0, None)
            self._caller.logs.pass_on(messages.WarningShown(), [packed])

    def _sweep(self) -> None:
        """Go on to end what dead workers have left."""
        ended = self._dispatch.orphans.look(self._pool.living)
        if ended:
            self._caller.logs.pass_on(messages.NoticeGiven("WARNING", ended), [])

    def _caller_gone(self) -> None:
        """Nobody is left to work for."""
        self._caller.close()
        self._pool.close_workers(GRACE_SECONDS)


def main(
    config: BrokerConfig | None,
    feed: NonblockingEndpoint,
    results: NonblockingEndpoint,
    questions: NonblockingEndpoint,
    arena: Arena | None,
    inherited_fds: list[BlockingEndpoint | Arena],
    handles: Handles | None,
    kind: Callable[..., Broker] = Broker,
) -> None:
    """The whole life of a broker process, of that kind; one that was not forked is sent its configuration.

    It keeps `handles`, the descriptors that jobs refer to, for the workers that it starts later.
    """
    # Recordings, pages and bars are for the pipelines of the caller: those in its workers have none.
    os.environ.pop(RECORD_VARIABLE, None)
    os.environ.pop(SERVE_VARIABLE, None)
    if os.environ.get(PROGRESS_VARIABLE) != "0":
        os.environ.pop(PROGRESS_VARIABLE, None)
    reset_inherited_state(inherited_fds)
    block_ignored_signals()
    try:
        for end in (feed, results, questions):
            end.prepare()
    except RuntimeError:
        # It could not even say so.
        os._exit(NO_THREAD_EXITCODE)
    frames: list[Frame] = []
    if config is None:
        parent = os.getppid()
        while not frames:
            frames, alive = results.receive()
            if not frames and (not alive or os.getppid() != parent):
                os._exit(ORPHANED_EXITCODE)
            if not frames:
                wait_for_any([results.waitable()], LOOK_SECONDS)
        message, blobs = frames.pop(0)
        match message:
            case messages.ConfigureBroker():
                config = with_blobs(message.config, blobs)
            case messages.Close() | messages.Abort():
                # The caller has changed its mind before it gave any.
                return
            case _:
                raise messages.unexpected(message, "The broker, before its configuration,")
    broker = kind(config, (feed, results, questions), arena, handles)
    broker.take_in(frames)
    broker.serve()
    del broker
    leave()
