"""The life of a worker process, from its start to its end; what it does in between is in `loop.py`.

Law: whatever the caller's program was set up to do with signals, streams and log records is undone before a job runs;
and a worker does not outlive its broker, whatever it is at.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.redaction import Redact
from conveyor._lean.typing import Any
from conveyor.engines.failures import failure_of
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system import descendants
from conveyor.engines.process.system.descendants import prctl
from conveyor.engines.process.system.finalisation import Inherited, finalise
from conveyor.engines.process.system.inherited_signals import settle_signals
from conveyor.engines.process.system.streams import settle_streams
from conveyor.engines.process.wire import by_value
from conveyor.engines.process.wire.channels import FarEnd, Gone
from conveyor.engines.process.wire.log_records import Levels
from conveyor.engines.process.wire.progress import Note
from conveyor.engines.process.worker.log_capture import SharedEnd, Voice
from conveyor.engines.process.worker.loop import Worker
from conveyor.engines.process.worker.seeding import seed_generators
from conveyor.engines.process.worker.worker_exit import end_what_runs
from conveyor.stages import Processor

# A worker whose broker has gone leaves with this code; nobody is there to see it.
ORPHANED = 3


class Assignment(NamedTuple):
    """What a worker is told at its start.

    `job` is a Processor, or the pickle of one.  `grouped`: the number of outputs of each unit is to be told.  `timed`:
    the broker has to know since when the worker is at each unit.  `most_bytes` is what the pipe holds that its outputs
    go to.  `levels`: what log records it makes.  `redact`, or the pickle of it, shows items in errors.
    Random numbers derive from `seed`, where there is one.
    """

    name: str
    job: Processor[Any, Any] | bytes
    batch: int | None
    keep_none: bool
    grouped: bool
    timed: bool
    most_bytes: int
    levels: Levels | None = None
    redact: Redact | bytes | None = None
    by_value: bool = False
    seed: str | None = None


def settle(foreign: list[Any]) -> None:
    """Make a new process one of ours: its own signals and streams, and no end of a channel that is not its own."""
    # What came with the fork is shared with its parent as long as nobody looks through it for garbage; and all that is
    # made from now on can be told from it.
    gc.freeze()
    settle_signals()
    for end in foreign:
        end.close()
    settle_streams()


def prepare() -> None:
    """Find what every worker needs and nobody else: better once, before they are forked."""
    if os.name == "posix":
        prctl()
        descendants.prepare()


def die_with_parent(parent: int) -> None:
    """Ask the kernel, where it can be asked, to end this process when its parent dies, busy or not."""
    if os.name == "posix":
        call = prctl()
        if call is not None:
            call(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(ORPHANED)


def main(
    number: int,
    assignment: Assignment | None,
    end: FarEnd,
    note: Note | None,
    arena: Arena | None,
    foreign: list[Any],
    parent: int,
) -> None:
    """The whole life of a worker process; one that was not forked is sent its assignment."""
    settle(foreign)
    die_with_parent(parent)
    descendants.mark_descendants()
    end.watch_parent()
    end.prepare()
    if hasattr(os, "register_at_fork"):
        # A child that the job forks must not use the channel; where it comes back as if it were the worker, it ends.
        os.register_at_fork(after_in_child=end.forsake)
    if assignment is None:
        try:
            (_, assignment), (job, redact) = end.receive()
        except Gone:
            os._exit(ORPHANED)
        assignment = assignment._replace(job=job, redact=redact or None)
    if assignment.by_value:
        by_value.sessions, by_value.is_fresh = 1, True
    if arena is not None:
        arena = arena.of_worker(number, assignment.most_bytes)
    if arena is not None:
        end.keep(arena)
    end = shared = SharedEnd(end)
    voice = Voice(shared, assignment.levels)
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
            end.send(("failed", tuple(failure_of(error, phase))))
        else:
            end.send(("ready",))
            phase = "wait"
            try:
                Worker(assignment, processor, end, note, arena).run()
                phase = "teardown"
                processor.teardown()
            except Gone:
                raise
            except BaseException as error:
                end.send(("failed", tuple(failure_of(error, phase))))
        end.send(("closed",))
        processor = None
        end_what_runs(assignment.name, shared)
        finalise(inherited)
        end.flush()
        end.close()
    except Gone:
        os._exit(ORPHANED)
