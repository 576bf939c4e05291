"""The loop of a worker that makes several calls of its job at once, each in a thread.

Law: it is the loop of an async job, whose calls are made elsewhere.  The event loop is that of the worker's first
thread, where `finish` and `on_error` run too; they see no running loop.  A thread cannot be stopped.  So the broker
kills a worker that is at a call for too long, and what nobody wants any more is waited for.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from types import GeneratorType

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.process.system.child_setup import ORPHANED_EXITCODE
from conveyor.engines.process.wire.codec import ATOMS, Unpicklable
from conveyor.engines.process.worker.async_lease import Call, LeaseRun
from conveyor.engines.process.worker.async_loop import MOST_WAITING, AsyncWorker
from conveyor.engines.process.worker.call_threads import CallThreads
from conveyor.engines.process.worker.retry import Retrier
from conveyor.stages.event_loop import EventLoop, loop_hidden
from conveyor.stages.outputs import outputs_of

if TYPE_CHECKING:
    from conveyor.engines.process.wire.progress import ProgressCell

_END = object()


class ThreadCall(Call):
    """One call of the job, made in a thread."""

    __slots__ = ("is_wanted",)

    def __init__(self, index: int, skip: int) -> None:
        super().__init__(index, skip)
        self.drained = threading.Event()
        self.is_wanted = True


class ThreadedRetrier(Retrier):
    """Calls `on_error` as if no event loop ran."""

    def _replacing(self, index: int, error: BaseException) -> Any:
        with loop_hidden():
            return super()._replacing(index, error)


class ThreadedWorker(AsyncWorker):
    """The loop of a worker with a threaded job.

    `waits_when_lost`: where the other side is gone, it waits for the calls that are under way.
    """

    call_kind = ThreadCall
    retrier_kind = ThreadedRetrier
    waits_when_lost = False
    forked_exitcode = ORPHANED_EXITCODE

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, loop=EventLoop())
        config, _, end, progress, *_ = arguments
        # Its `setup` may have put something else on `self` by that name.
        self._free = asyncio.Semaphore(config.threads)
        name = f"{config.name}-{config.place}"
        self._threads = CallThreads(end, progress, name, self._begin_thread, self.forked_exitcode)
        # Held while one thread asks whether the job gives an object again.
        self._observing = threading.Lock()

    def _begin_thread(self) -> None:
        """Do what is to be done first in each thread that calls the job."""

    def _serve_all(self) -> None:
        try:
            super()._serve_all()
        except BaseException:
            if self.waits_when_lost:
                self._threads.end()
            raise
        else:
            self._threads.end()
        finally:
            self._loop.close()

    async def _stop(self) -> None:
        runs = list(self._inbox.runs.values())
        tasks = [task for run in runs for task in run.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Their calls go on, and no other is to begin beside them.
        await self._threads.wait_until_free()
        for run in runs:
            self._leave(run)

    async def _attempt(self, run: LeaseRun, call: Call, argument: Any, already: int) -> BaseException | None:
        # The broker looks after the time.
        return await self._outcome(run, call, argument, already)

    async def _outcome(self, run: LeaseRun, call: Any, argument: Any, already: int) -> BaseException | None:
        try:
            return await self._threads.call(partial(self._make_here, run, call, argument, already))
        except asyncio.CancelledError:
            call.is_wanted = False
            call.drained.set()
            raise

    def _make_here(
        self, run: LeaseRun, call: ThreadCall, argument: Any, already: int, cell: ProgressCell
    ) -> BaseException | None:
        """Call the job in this thread, and have what it gives wait for its turn; return what it raised."""
        number, position = 0, (run.lease.lease, call.index + 1)
        cell.begin(*position)
        try:
            returned = self._call(argument)
            streams = type(returned) is GeneratorType
            for value in outputs_of(returned, self._keep_none):
                if not call.is_wanted:
                    break
                number += 1
                if number > already:
                    self._give_here(run, call, value)
                    if streams:
                        self._threads.tell(run.changed.set)
                        if len(call.outputs) >= MOST_WAITING:
                            cell.end()
                            self._await_room(call)
                            cell.begin(*position)
        except BaseException as error:
            return error
        finally:
            cell.end()
        return None

    def _give_here(self, run: LeaseRun, call: ThreadCall, value: Any) -> None:
        if type(value) not in ATOMS:
            reuse = self._reuse
            with self._observing:
                reuse.observe(value)
                is_frozen = reuse.repeats or reuse.undecided
            if is_frozen:
                # One that cannot be pickled is found when it is sent.
                with suppress(Unpicklable):
                    value = run.outbox.freeze(value)
        call.outputs.append(value)
        call.given += 1

    def _await_room(self, call: ThreadCall) -> None:
        """Wait while many outputs of a call wait for those before them."""
        since = time.monotonic()
        while call.is_wanted:
            call.drained.clear()
            if len(call.outputs) < MOST_WAITING or not call.is_wanted:
                break
            call.drained.wait()
        call.waited += time.monotonic() - since

    async def _finish_outcome(self, run: LeaseRun, call: Call) -> None:
        try:
            with loop_hidden():
                values = outputs_of(self._processor.finish(), False)
            while (value := _next_of(values)) is not _END:
                await self._give_in_turn(run, call, value)
        except (Exception, SystemExit) as error:
            call.error = error
        finally:
            call.is_done = True
            run.changed.set()


def _next_of(values: Any) -> Any:
    with loop_hidden():
        return next(values, _END)
