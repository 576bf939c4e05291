"""The life of a worker process, from its start to its end; what it does in between is in `loop.py`.

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
    assignment: WorkerConfig | None,
    end: BlockingEndpoint,
    progress: ProgressSlot,
    arena: Arena | None,
    inherited_fds: list[Any],
    parent: int,
) -> None:
    """The whole life of a worker process; one that was not forked is sent its assignment."""
    reset_inherited_state(inherited_fds)
    die_with_parent(parent)
    descendants.mark_descendants()
    end.watch_parent()
    end.prepare(must_send=True)
    if hasattr(os, "register_at_fork"):
        # A child that the job forks must not use the channel; where it comes back as if it were the worker, it ends.
        os.register_at_fork(after_in_child=end.become_forked_copy)
    if assignment is None:
        try:
            message, (job, redact) = end.receive()
        except ConnectionLost:
            os._exit(ORPHANED_EXITCODE)
        match message:
            case messages.ConfigureWorker():
                assignment = message.config._replace(job=job, redact=redact or None)
            case _:
                raise messages.unexpected(message, "A worker, before its configuration,")
    if assignment.by_value:
        by_value.sessions, by_value.is_fresh = 1, True
    if arena is not None:
        arena = arena.of_worker(number, assignment.most_bytes)
    if arena is not None:
        end.keep(arena)
    end = shared = SharedEndpoint(end)
    voice = LogCapture(shared, assignment.levels)
    voice.take_over()
    if assignment.seed is not None:
        seed_generators(assignment.seed)
    inherited: Inherited | None = None
    processor: Any = None
    try:
        phase = "load"
        try:
            job = assignment.job
            processor = job if isinstance(job, Processor) else pickle.loads(job)
            inherited = Inherited(processor) if processor is job else None
            voice.take_over()
            phase = "setup"
            processor.setup()
        except BaseException as error:
            end.send(messages.WorkerFailed(failure_of(error, phase)))
        else:
            end.send(messages.Ready())
            phase = "wait"
            try:
                Worker(assignment, processor, end, progress, arena).run()
                phase = "teardown"
                processor.teardown()
            except ConnectionLost:
                raise
            except BaseException as error:
                end.send(messages.WorkerFailed(failure_of(error, phase)))
        end.send(messages.Closed())
        processor = None
        end_what_runs(assignment.name, shared)
        finalise(inherited)
        end.flush()
        end.close()
    except ConnectionLost:
        os._exit(ORPHANED_EXITCODE)
    leave()
