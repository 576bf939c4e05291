"""The main function of a worker process: its start, its job, its end.  What it does in between is in `loop.py`.

Law: whatever the caller's program was set up to do with signals, streams and log records is undone before a job runs;
and a worker does not outlive its broker, whatever it is at.
"""

from __future__ import annotations

import os
import pickle

from conveyor._lean.typing import Any
from conveyor.engines.failures import failure_of
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system import descendants
from conveyor.engines.process.system.child_setup import ORPHANED_EXITCODE, die_with_parent, reset_inherited_state
from conveyor.engines.process.system.finalisation import Inherited, finalise, leave
from conveyor.engines.process.wire import by_value, messages
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost
from conveyor.engines.process.wire.progress import ProgressSlot
from conveyor.engines.process.worker.log_capture import LogCapture, SharedEndpoint
from conveyor.engines.process.worker.loop import Worker
from conveyor.engines.process.worker.seeding import seed_generators
from conveyor.engines.process.worker.worker_exit import end_what_runs
from conveyor.stages.processor import Processor


def main(
    number: int,
    config: WorkerConfig | None,
    end: BlockingEndpoint,
    progress: ProgressSlot,
    arena: Arena | None,
    inherited_fds: list[Any],
    parent: int,
) -> None:
    """The whole life of a worker process; one that was not forked is sent its configuration."""
    reset_inherited_state(inherited_fds)
    die_with_parent(parent)
    descendants.mark_descendants()
    end.watch_parent()
    end.prepare(must_send=True)
    if hasattr(os, "register_at_fork"):
        # A child that the job forks must not use the channel; where it comes back as if it were the worker, it ends.
        os.register_at_fork(after_in_child=end.become_forked_copy)
    try:
        if config is None:
            config = _received_config(end)
        if config.by_value:
            by_value.sessions, by_value.is_fresh = 1, True
        if arena is not None:
            arena = arena.of_worker(number, config.most_bytes)
        if arena is not None:
            end.keep(arena)
        shared = SharedEndpoint(end)
        log_capture = LogCapture(shared, config.levels)
        log_capture.install()
        if config.seed is not None:
            seed_generators(config.seed)
        inherited = _run_job(config, shared, progress, arena, log_capture)
        end_what_runs(config.name, shared)
        finalise(inherited)
        shared.flush()
        shared.close()
    except ConnectionLost:
        os._exit(ORPHANED_EXITCODE)
    leave()


def _received_config(end: BlockingEndpoint) -> WorkerConfig:
    """Wait for the configuration, and return it with what came beside it."""
    message, blobs = end.receive()
    match message:
        case messages.ConfigureWorker():
            job, redact = blobs
            return message.config._replace(job=job, redact=redact or None)
        case _:
            raise messages.unexpected(message, "A worker, before its configuration,")


def _run_job(
    config: WorkerConfig, end: SharedEndpoint, progress: ProgressSlot, arena: Arena | None, log_capture: LogCapture
) -> Inherited | None:
    """Set up the job, serve leases until told to close, and tear it down; return what a fork has of the caller's."""
    inherited: Inherited | None = None
    phase = "load"
    try:
        job = config.job
        processor = job if isinstance(job, Processor) else pickle.loads(job)
        inherited = Inherited(processor) if processor is job else None
        log_capture.install()
        phase = "setup"
        processor.setup()
    except BaseException as error:
        end.send(messages.WorkerFailed(failure_of(error, phase)))
    else:
        end.send(messages.Ready())
        phase = "wait"
        try:
            Worker(config, processor, end, progress, arena).run()
            phase = "teardown"
            processor.teardown()
        except ConnectionLost:
            raise
        except BaseException as error:
            end.send(messages.WorkerFailed(failure_of(error, phase)))
    # Before the job goes: what its finalizers do has an end then.
    end.send(messages.Closed())
    return inherited
