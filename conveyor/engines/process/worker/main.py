"""The main function of a worker process: its start, its job, its end.  What it does in between is in `loop.py`.

Law: whatever the caller's program was set up to do with signals, streams and log records is undone before a job runs;
and a worker does not outlive its broker, whatever it is at.  At its end, libraries do first what they do by themselves
at the end of a program, in Python's order.  Children of the job that do not end within `GRACE_SECONDS` are ended, and
the worker itself after `EXIT_SECONDS`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from functools import partial
from multiprocessing import util

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.failures import failure_of
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system.child_setup import (
    NO_THREAD_EXITCODE,
    ORPHANED_EXITCODE,
    die_with_parent,
    reset_inherited_state,
)
from conveyor.engines.process.system.descendants import enumerated, mark_descendants
from conveyor.engines.process.system.finalisation import Inherited, finalise, leave, write_buffers
from conveyor.engines.process.system.waiting import EXIT_SECONDS, GRACE_SECONDS, GracePeriod
from conveyor.engines.process.wire import by_value, messages
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost
from conveyor.engines.process.wire.handles import Handles
from conveyor.engines.process.wire.progress import ProgressSlot
from conveyor.engines.process.worker.log_capture import LogCapture, SharedEndpoint
from conveyor.engines.process.worker.loop import Worker
from conveyor.stages.outputs import WorkerRecord, awaited, become_worker
from conveyor.stages.processor import Processor, is_async, work_of

if TYPE_CHECKING:
    from conveyor.stages.event_loop import EventLoop


def main(
    number: int,
    config: WorkerConfig | None,
    end: BlockingEndpoint,
    progress: ProgressSlot,
    arena: Arena | None,
    inherited_fds: list[Any],
    handles: Handles | None,
    parent: int,
) -> None:
    """The whole life of a worker process; one that was not forked is sent its configuration.

    The pickles of jobs refer to `handles`.
    """
    reset_inherited_state(inherited_fds)
    die_with_parent(parent)
    mark_descendants()
    end.watch_parent()
    try:
        end.prepare(must_send=True)
    except RuntimeError:
        os._exit(NO_THREAD_EXITCODE)
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
        if config.forwarded:
            shared.forward_prints(config.forwarded)
        if config.seed is not None:
            from conveyor.engines.process.worker.seeding import seed_generators

            seed_generators(config.seed)
        inherited = _run_job(config, shared, progress, arena, handles, log_capture)
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


def _loaded(job: bytes, handles: Handles | None) -> Processor[Any, Any]:
    """Return the job of a pickle, and let go of the handles: the other jobs' are not this worker's."""
    assert handles is not None
    try:
        return handles.loads(job)  # type: ignore[no-any-return]
    finally:
        handles.close()


def _run_job(
    config: WorkerConfig,
    end: SharedEndpoint,
    progress: ProgressSlot,
    arena: Arena | None,
    handles: Handles | None,
    log_capture: LogCapture,
) -> Inherited | None:
    """Set up the job, serve leases until told to close, and tear it down; return what a fork has of the caller's."""
    inherited: Inherited | None = None
    phase = "load"
    loop: EventLoop | None = None
    kind: Any = Worker
    try:
        job = config.job
        # Before the job, with which the handles go.
        shared: Any = config.shared
        if isinstance(shared, bytes) and handles is not None:
            shared = handles.loads(shared)
        processor = job if isinstance(job, Processor) else _loaded(job, handles)
        inherited = Inherited(processor) if processor is job else None
        log_capture.install()
        phase = "setup"
        record = WorkerRecord(config.name, config.place, processor.job, shared)
        become_worker(record)
        # Few workers have a job that makes many calls at once.
        if is_async(work_of(processor)):
            from conveyor.engines.process.worker.async_loop import AsyncWorker
            from conveyor.stages.event_loop import EventLoop

            loop = EventLoop()
            kind = partial(AsyncWorker, loop=loop)
        elif config.threads:
            from conveyor.engines.process.worker.threaded_loop import ThreadedWorker as kind
        record.state = awaited(processor.setup(), loop)
    except BaseException as error:
        end.send(messages.WorkerFailed(failure_of(error, phase)))
    else:
        end.send(messages.Ready())
        phase = "wait"
        try:
            kind(config, processor, end, progress, arena, record).run()
            phase = "teardown"
            awaited(processor.teardown(), loop)
        except ConnectionLost:
            raise
        except BaseException as error:
            end.send(messages.WorkerFailed(failure_of(error, phase)))
    finally:
        if loop is not None:
            loop.close()
    become_worker(None)
    # Before the job goes: what its finalizers do has an end then.
    end.send(messages.Closed())
    return inherited


def end_what_runs(name: str, end: SharedEndpoint) -> None:
    """Wait for the children and threads of the job of a Processor, and see to it that this has an end.

    Pools, and children that are nobody's, end only when `multiprocessing` ends this process: they get their time from
    here on.
    """
    children = multiprocessing.active_children()
    if not children and not _lasting_threads():
        return
    # Without it, where no thread can be started, the broker ends this process later.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=_watch, args=(name, end), name="conveyor-exit", daemon=True).start()
    _end_executors()
    left = multiprocessing.active_children()
    if ended := [_text(child) for child in children if child not in left]:
        _say(end, "INFO", f"Processor {name!r} left executors open, whose processes have ended: {enumerated(ended)}.")
    if left:
        text = enumerated([_text(child) for child in left])
        remedy = "End what the job starts in its `teardown`."
        _say(end, "WARNING", f"Processor {name!r} left processes running, which the worker ends: {text}. {remedy}")
    # One of these threads may never end; then nothing more can be written here.
    write_buffers()
    while threads := _lasting_threads():
        threads[0].join()


def _end_executors() -> None:
    """Have executors end, as Python does before it waits for threads; `multiprocessing` would wait for children first.

    What has been called is not to be called again.
    """
    callbacks: list[Any] = getattr(threading, "_threading_atexits", [])
    while callbacks:
        try:
            callbacks.pop()()
        except Exception:
            sys.excepthook(*sys.exc_info())


def _watch(name: str, end: SharedEndpoint) -> None:
    """End what does not end by itself, while the first thread waits for it."""
    _pass(GRACE_SECONDS)
    for child in multiprocessing.active_children():
        child.terminate()
    _pass(GRACE_SECONDS)
    for child in multiprocessing.active_children():
        child.kill()
    _pass(EXIT_SECONDS - 2 * GRACE_SECONDS)
    if threads := _lasting_threads():
        text = enumerated([thread.name for thread in threads])
        _say(
            end,
            "WARNING",
            f"Processor {name!r} left threads running that are no daemons and did not end within {EXIT_SECONDS:g} s, "
            f"so the worker has ended without them: {text}. End them in `teardown`, or make them daemons.",
        )
        with contextlib.suppress(Exception):
            end.flush()
    util._flush_std_streams()  # type: ignore[attr-defined]
    os._exit(0)


def _lasting_threads() -> list[threading.Thread]:
    """Return the threads that Python waits for at its end, without this one and the first."""
    excepted = threading.main_thread(), threading.current_thread()
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in excepted]


def _pass(seconds: float) -> None:
    grace = GracePeriod(seconds)
    while grace.left():
        time.sleep(grace.slice())


def _text(child: Any) -> str:
    return f"{child.name} ({child.pid})"


def _say(end: SharedEndpoint, level: str, text: str) -> None:
    # Where the channel is closed, nobody hears it any more.
    with contextlib.suppress(Exception):
        end.send_log(messages.NoticeGiven(level, text), ())
