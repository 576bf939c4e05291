"""The loop of a worker whose job is async: many calls at once, in an event loop.

Law: calls begin in the order of the items, and their outputs and acknowledgements leave in that order within a lease;
leases do not wait for each other.  So how far the worker has begun is one position, as with any other worker.

A thread waits for messages and takes in none: all else is done by the thread of the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from conveyor._lean.short_repr import shown_by
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core import SLOW_CALL_SECONDS
from conveyor.engines.failures import CALL_CANCELLED, LeaseFailed, OverdueAt, overdue
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import ATOMS, ByteBudget, Unpicklable
from conveyor.engines.process.worker.async_lease import Arrival, AsyncInbox, AsyncMeter, Call, LeaseRun
from conveyor.engines.process.worker.loop import Worker
from conveyor.stages.event_loop import EventLoop
from conveyor.stages.outputs import WorkerRecord, outputs_of, worker_variable
from conveyor.stages.processor import hands_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from conveyor.core.commands import GiveUp

# So many outputs of a call may wait for those before them.
MOST_WAITING = 64
# The thread that waits for messages looks so often whether it is still wanted.
LOOK_SECONDS = 1.0
# In so many parts of a timeout, the worker says that its loop is alive.
BEATS = 4


class AsyncWorker(Worker):
    """The loop of a worker with an async job."""

    of_thread = False
    call_kind: type[Call] = Call

    def __init__(self, *arguments: Any, loop: EventLoop) -> None:
        super().__init__(*arguments)
        self._arguments = arguments
        _, processor, end, progress, arena, record = arguments
        self._loop = loop
        self._end = end
        self._record: WorkerRecord = record
        self._timeout: float | None = processor.timeout
        self._inbox: AsyncInbox = AsyncInbox(end, arena, progress, self._outbox)
        record.is_stopping = self._inbox.is_stopping
        self._meter = AsyncMeter(self.of_thread)
        self._free = asyncio.Semaphore(hands_of(processor))
        # Held by the lease whose calls begin.
        self._turn = asyncio.Lock()
        self._running = 0
        # How many calls do not end although they were cancelled; nothing begins beside these.
        self._stubborn = 0
        self._calm = asyncio.Event()
        self._arrived = Arrival()

    def _serve_all(self) -> None:
        self._loop.run(self._serve_leases())

    async def _serve_leases(self) -> None:
        inbox, runs, arrived = self._inbox, self._inbox.runs, self._arrived
        handled = threading.Event()
        loop, is_over = asyncio.get_running_loop(), threading.Event()
        beat = asyncio.ensure_future(self._beat()) if self._timeout is not None else None
        self._calm.set()

        def look() -> None:
            while not is_over.is_set():
                ready = True
                with suppress(BaseException):
                    # Where the other side is gone, the other thread finds out.
                    ready = self._end.ready(LOOK_SECONDS)
                if ready and not is_over.is_set():
                    handled.clear()
                    loop.call_soon_threadsafe(arrived.set)
                    handled.wait()

        reader = threading.Thread(target=look, name="conveyor-reader", daemon=True)
        reader.start()
        try:
            while True:
                await arrived.wait()
                inbox.receive_all()
                if inbox.is_stopping():
                    await self._stop()
                if inbox.is_closing:
                    return
                for lease, blobs in inbox.new_leases():
                    self._begin(lease, blobs)
                handled.set()
        finally:
            is_over.set()
            handled.set()
            if beat is not None:
                beat.cancel()
            for run in runs.values():
                run.cancel()
            reader.join()

    async def _stop(self) -> None:
        """End what is under way: nobody wants it."""
        runs = list(self._inbox.runs.values())
        for run in runs:
            run.cancel()
        await asyncio.gather(*(task for run in runs for task in run.tasks), return_exceptions=True)
        for run in runs:
            self._leave(run)

    def _leave(self, run: LeaseRun) -> None:
        """Give back a lease of which nothing more is wanted."""
        run.outbox.forget()
        self._end_lease(run)

    def _end_lease(self, run: LeaseRun) -> None:
        if self._inbox.runs.pop(run.lease.lease, None) is None:
            return
        run.flush(final=True)
        run.lease_items.leave()
        run.outbox.send_released()
        del run.outbox.replace
        if not self._inbox.runs:
            self._meter.is_idle = True
            self._progress.mark(False)

    def _begin(self, lease: messages.StartLease, blobs: list[Any]) -> None:
        """Begin with a lease."""
        config, processor, end, _, arena, _ = self._arguments
        outbox = self.outbox_kind(end, arena, ByteBudget(config.most_bytes), self._outbox.log.for_another_lease())
        outbox.meter = self._meter
        lease_items = self.lease_items_kind(config.batch, self._progress, not self._retrier.policy.strict)
        record = self._record.copy()
        retrier = self.retrier_kind(config, processor, self._inbox, outbox, lease_items, record)
        outbox.replace = retrier.replace
        outbox.begin(lease.lease, lease.credit, self._grouped or lease.traced)
        self._meter.is_idle = False
        retrier.finishing, retrier.traced, record.attempt = lease.finish, lease.traced, lease.attempt
        run = LeaseRun(lease, retrier, outbox, lease_items)
        earlier = list(self._inbox.runs.values())
        self._inbox.runs[lease.lease] = run
        if self._inbox.is_stopping():
            self._leave(run)
            return
        if lease.finish:
            self._attend(run, self._finish_lease(run, earlier))
            return
        self._attend(run, self._start_calls(run, blobs))
        self._attend(run, self._collect(run))

    def _attend(self, run: LeaseRun, work: Coroutine[Any, Any, None]) -> None:
        """Have work on a lease done in a task; whatever that raises ends the worker, as nobody awaits it."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._look_at)
        run.tasks.append(task)

    def _look_at(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._arrived.lose(error)

    # The calls

    async def _start_calls(self, run: LeaseRun, blobs: list[Any]) -> None:
        """Begin the calls of a lease, in their order and behind those of the leases before it."""
        async with self._turn:
            lease, items = run.lease, run.lease_items
            start = self._progress.starter(lease.lease)
            try:
                if lease.give_up is None or (run.retrier.policy.replaces and not lease.give_up.skip_unpickling):
                    items.follow(self._lease_items)
                    self._lease_items = items
                    arguments: Any = items.take(lease, blobs, start)
                else:
                    arguments = [None]
            except LeaseFailed as failed:
                run.failed = failed
                arguments = []
            blobs.clear() if run.retrier.policy.strict else None
            for index in range(len(arguments)):
                await self._free.acquire()
                await self._calm.wait()
                if start(index, index + 1) == index:
                    self._free.release()
                    break
                call = self.call_kind(index, 0 if index else lease.skip)
                run.calls.append(call)
                if lease.give_up is not None or index in items.broken:
                    self._free.release()
                    call.is_done = True
                    continue
                self._running += 1
                run.tasks.append(asyncio.ensure_future(self._make(run, call, arguments)))
                run.changed.set()
            run.is_started = True
            run.changed.set()

    async def _make(self, run: LeaseRun, call: Call, arguments: Any) -> None:
        """Make a call, again where it fails and the policy says so."""
        policy, record = run.retrier.policy, run.retrier.record.copy()
        worker_variable().set(record)
        begun, argument = time.perf_counter(), None
        try:
            while True:
                already = call.given
                try:
                    argument = arguments[call.index] if call.attempts == 1 else run.lease_items.fresh(call.index)
                    error = await self._attempt(run, call, argument, already)
                except Exception as raised:
                    error = raised
                if error is None or not policy.tries_again(error, call.attempts):
                    call.error = error
                    break
                delay = policy.delay(call.attempts)
                call.attempts += 1
                record.attempt += 1
                self._meter.retried += 1
                # Others may go on meanwhile.
                self._free.release()
                try:
                    await asyncio.sleep(delay)
                finally:
                    await self._free.acquire()
        except asyncio.CancelledError as raised:
            # The job may have cancelled its own task.
            call.error = raised
            raise
        finally:
            self._running -= 1
            self._free.release()
            call.is_done = True
            run.changed.set()
        seconds = time.perf_counter() - begun - call.waited
        if seconds >= SLOW_CALL_SECONDS:
            with suppress(TypeError):
                run.outbox.log.note_slow(call.index, seconds, argument)

    async def _attempt(self, run: LeaseRun, call: Call, argument: Any, already: int) -> BaseException | None:
        """Call the job once, within its time; return what it raised."""
        if self._timeout is None:
            return await self._outcome(run, call, argument, already)
        task = asyncio.ensure_future(self._outcome(run, call, argument, already))
        begun, waited = time.monotonic(), call.waited
        try:
            while not task.done():
                now = time.monotonic()
                left = self._timeout + call.waited - waited - (now - begun)
                if call.waits_since is not None:
                    left = self._timeout
                if left <= 0:
                    return await self._cancel(task)
                await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        return task.result()

    async def _cancel(self, task: asyncio.Task[Any]) -> BaseException:
        """Cancel a call that took too long, and wait for its end; where it has none, this worker is killed."""
        task.cancel()
        self._stubborn += 1
        self._calm.clear()
        try:
            await asyncio.wait({task})
        finally:
            self._stubborn -= 1
            if not self._stubborn:
                self._calm.set()
        assert self._timeout is not None
        return overdue(self._arguments[0].name, self._timeout, None, None, None, CALL_CANCELLED)

    async def _outcome(self, run: LeaseRun, call: Call, argument: Any, already: int) -> BaseException | None:
        """Call the job, and have what it gives wait for its turn, but for what was given already."""
        number = 0
        try:
            returned = self._call(argument)
            if hasattr(returned, "__aiter__"):
                async for value in returned:
                    number += 1
                    if number > already:
                        await self._give_in_turn(run, call, value)
            else:
                for value in outputs_of(await returned, self._keep_none):
                    number += 1
                    if number > already:
                        await self._give_in_turn(run, call, value)
        except BaseException as error:
            if not run.is_of_job(error):
                raise
            return error
        return None

    async def _give_in_turn(self, run: LeaseRun, call: Call, value: Any) -> None:
        reuse = self._reuse
        if type(value) not in ATOMS:
            reuse.observe(value)
            if reuse.repeats or reuse.undecided:
                # One that cannot be pickled is found when it is sent.
                with suppress(Unpicklable):
                    value = run.outbox.freeze(value)
        call.outputs.append(value)
        call.given += 1
        run.changed.set()
        while len(call.outputs) >= MOST_WAITING:
            call.drained.clear()
            call.waits_since = time.monotonic()
            try:
                await call.drained.wait()
            finally:
                call.waited += time.monotonic() - call.waits_since
                call.waits_since = None

    async def _beat(self) -> None:
        """Say again and again that the loop is alive, and no call is stuck."""
        assert self._timeout is not None
        while True:
            if not self._stubborn:
                self._progress.mark(self._running > 0)
            await asyncio.sleep(self._timeout / BEATS)

    # What they give

    async def _collect(self, run: LeaseRun) -> None:
        """Pass on what the calls of a lease give, in their order."""
        worker_variable().set(run.retrier.record)
        try:
            await self._collect_all(run)
            self._end_lease(run)
        except LeaseFailed as failed:
            self._fail(run, failed)

    async def _collect_all(self, run: LeaseRun) -> None:
        index = 0
        while True:
            if index < len(run.calls):
                call = run.calls[index]
                run.unsent = 0
                await self._drain(run, call)
                await self._settle(run, call)
                index += 1
            elif run.failed is not None:
                raise run.failed
            elif run.is_started:
                return
            else:
                await run.change(self._inbox.flush_seconds)

    async def _drain(self, run: LeaseRun, call: Call) -> None:
        """Pass on the outputs of the call at hand, until it is done."""
        outbox = run.outbox
        while True:
            while call.outputs:
                await run.await_credit()
                if outbox.left_out is None:
                    outbox.left_out = 0
                outbox.add(call.outputs.popleft())
                run.unsent += 1
                call.drained.set()
            if call.is_done:
                return
            await run.change(self._inbox.flush_seconds)

    async def _settle(self, run: LeaseRun, call: Call) -> None:
        """Acknowledge the call at hand, or do about its failure as the policy says; raises LeaseFailed."""
        outbox, retrier, error = run.outbox, run.retrier, call.error
        give_up: GiveUp | None = run.lease.give_up
        broken = run.lease_items.broken.get(call.index)
        if give_up is not None:
            await run.await_credit()
            retrier.carry_out(give_up)
        elif broken is not None:
            outbox.send_failure(call.index, broken)
            outbox.end_call(0)
        elif error is None:
            outbox.left_out = None
            outbox.end_call(run.unsent)
        else:
            if retrier.policy.replaces:
                await run.await_credit()
            retrier.record.attempt = call.attempts
            text = run.lease_items.text_of(call.index, shown_by(self._arguments[0].redact))
            overdue_at = OverdueAt(self._timeout or 0.0, text, CALL_CANCELLED, call.attempts)
            why = overdue_at if is_overdue(error) else None
            retrier.give_up(error, call.index, call.attempts, run.unsent, why)
        outbox.left_out = None

    def _fail(self, run: LeaseRun, failed: LeaseFailed) -> None:
        """Say that a lease has failed; unless its items were submitted, the run is over."""
        outbox = run.outbox
        if run.lease.traced and not run.lease.finish:
            self._start = self._progress.starter(run.lease.lease)
            self._fail_all_of(run, failed)
            return
        self._inbox.runs.pop(run.lease.lease, None)
        outbox.send_failure(failed.index, failed.failure)
        self._inbox.refuse_leases()
        for other in self._inbox.runs.values():
            other.cancel()
        self._inbox.runs.clear()
        self._progress.mark(False)

    def _fail_all_of(self, run: LeaseRun, failed: LeaseFailed) -> None:
        """Report that what is left of a lease of submitted items has failed, and acknowledge it."""
        outbox = run.outbox
        outbox.forget()
        outbox.send_failure(None, failed.failure)
        calls = sum(stop - start for _, start, stop in run.lease.spec)
        for _ in range(outbox.call_at_hand, self._start(0, calls)):
            outbox.end_call(0)
        self._end_lease(run)

    async def _finish_lease(self, run: LeaseRun, earlier: list[LeaseRun]) -> None:
        """Call `finish` when all else is done."""
        worker_variable().set(run.retrier.record)
        for task in [task for each in earlier for task in each.tasks]:
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        call = Call(0, 0)
        maker = asyncio.ensure_future(self._finish_outcome(run, call))
        run.tasks.append(maker)
        try:
            await self._drain(run, call)
            if call.error is not None:
                raise run.retrier.raised(call.error, "finish", 0)
            run.outbox.left_out = None
            self._end_lease(run)
        except LeaseFailed as failed:
            self._fail(run, failed)

    async def _finish_outcome(self, run: LeaseRun, call: Call) -> None:
        try:
            returned = self._processor.finish()
            if hasattr(returned, "__aiter__"):
                async for value in returned:
                    await self._give_in_turn(run, call, value)
            else:
                returned = await returned if hasattr(returned, "__await__") else returned
                for value in outputs_of(returned, False):
                    await self._give_in_turn(run, call, value)
        except BaseException as error:
            if not run.is_of_job(error):
                raise
            call.error = error
        finally:
            call.is_done = True
            run.changed.set()


def is_overdue(error: BaseException) -> bool:
    """Whether a call was cancelled as it took too long, rather than that its job raised such an error."""
    return getattr(error, "number", 0) is None and type(error).__name__ == "ItemTimeoutError"
