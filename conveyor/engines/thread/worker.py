"""A worker thread: its start, its job and its end.  What it does in between is the loop of a worker process.

Law: it knows its job, its port and the lease at hand.  User code of a worker runs in its thread alone, and never while
that thread runs the shell.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core import SLOW_CALL_SECONDS
from conveyor.core.events import Replied
from conveyor.engines.failures import THREAD_ABANDONED, failure_of
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import ATOMS, LIGHT, ByteBudget
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.process.wire.handles import job_copy
from conveyor.engines.process.worker.lease_items import LeaseItems
from conveyor.engines.process.worker.lone import Called, raise_
from conveyor.engines.process.worker.loop import Worker
from conveyor.engines.process.worker.mailbox import SHORT_SECONDS, CallLog, CpuMeter, Outbox
from conveyor.engines.process.worker.retry import Retrier
from conveyor.engines.thread.items import Blob, gathered, is_alone, size_of, size_of_all, snapshot, taken, without_twins
from conveyor.engines.thread.port import FORKED_EXITCODE, Port
from conveyor.stages.outputs import WorkerRecord, awaited, worker_variable
from conveyor.stages.per_item import PerItem
from conveyor.stages.processor import Processor, is_async, work_of
from conveyor.stats import Measures

if TYPE_CHECKING:
    from conveyor.stages.event_loop import EventLoop


class ThreadOutbox(Outbox):
    """Hands on the outputs themselves."""

    freeze = staticmethod(snapshot)
    weigh = staticmethod(size_of)

    def __init__(self, end: Any, arena: None, budget: ByteBudget, log: CallLog) -> None:
        super().__init__(end, arena, budget, log)
        self.meter = CpuMeter(of_thread=True)
        self._takes = end.takes

    def add_numbers(self, returned: list[Any]) -> bool:
        # Nothing is encoded here.
        return False

    def _encoded(self, final: bool) -> tuple[list[Any], list[int]]:
        outputs, kinds = self.outputs, self.kinds
        if not outputs:
            return [], []
        outputs = without_twins(outputs, kinds)
        size = size_of_all(outputs, kinds)
        self.budget.take(len(outputs), size)
        return [Blob(outputs, size, self._takes)], [len(outputs)]


class _Arguments:
    """The arguments of a lease that are made when a call begins: what several may get, or may be wanted once more."""

    def __init__(self, items: list[Any], batch_size: int | None, again: bool) -> None:
        self._items = items
        self._batch_size = batch_size
        self._again = again
        # The last one, which a message may have to show.
        self._last: tuple[int, Any] = -1, None

    def __len__(self) -> int:
        return -(-len(self._items) // (self._batch_size or 1))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if index == self._last[0] and not self._again:
            # It was taken already.
            return self._last[1]
        value = self.made(index, self._again)
        self._last = index, value
        return value

    def made(self, index: int, again: bool) -> Any:
        """Return an argument; `again`: as a copy, so that it can be had once more."""
        size = self._batch_size
        if size is None:
            return taken(self._items[index], again)
        return [taken(each, again) for each in self._items[index * size : (index + 1) * size]]

    def shown(self, index: int) -> Any:
        """Return what a message shows of an argument."""
        if self._again:
            return self.made(index, again=True)
        return self._last[1] if self._last[0] == index else None


class ThreadLeaseItems(LeaseItems):
    """Turns pieces into arguments."""

    all: Any

    def take(self, lease: messages.StartLease, blobs: list[Any], start: Callable[[int, int], int]) -> Any:
        items, refers = gathered(lease.spec)
        if refers or self._may_want_again:
            self.all = _Arguments(items, self._batch_size, self._may_want_again)
        else:
            self.all = self._cut(items)
        return self.all

    def fresh(self, index: int) -> Any:
        return self.all.made(index, again=True)

    def part(self, first: int, stop: int) -> list[Any]:
        return [self.fresh(index) for index in range(first, stop)]

    def text_of(self, index: int, format_item: Callable[[Any], str]) -> str | None:
        if index >= len(self.all):
            return None
        if type(self.all) is list:
            return format_item(self.all[index])
        try:
            return format_item(self.all.shown(index))
        except TypeError:
            # It cannot be copied, so the job never had it.
            return None


class ThreadRetrier(Retrier):
    """Does so with the exceptions themselves."""

    failure_of = staticmethod(partial(failure_of, stays=True))
    overdue_end = THREAD_ABANDONED


class ThreadWorker(Worker):
    """The loop of a worker thread."""

    outbox_kind = ThreadOutbox
    lease_items_kind = ThreadLeaseItems
    retrier_kind = ThreadRetrier
    # What was given cannot be taken back when the next object turns out to be the same.
    freezes_early = True

    def __init__(self, config: WorkerConfig, processor: Processor[Any, Any], port: Port, record: WorkerRecord) -> None:
        super().__init__(config, processor, port, port.progress, None, record)  # type: ignore[arg-type]
        self._short_way = None
        self._port = port
        # Whether the last call took long: then the next is asked for its CPU time, which takes calls of the system.
        self._was_long = False
        # Whether a lease of one item may be worked on in the short way.
        in_lists = config.batch is not None or isinstance(self._call, PerItem)
        self._is_plain = not in_lists and not config.timed and self._retrier.policy.strict

    def _serve_all(self) -> None:
        # `foreign_threads.py` knows by this name that the thread waits for a lease.
        port, inbox = self._port, self._inbox
        while True:
            if inbox.is_idle:
                message, blobs = port.receive()
                if type(message) is messages.StartLease and self._is_plain and self._serve_one(message):
                    # Nothing here refers to its item any more.
                    message, blobs = None, []
                    continue
                inbox.take_in(message, blobs)
                message, blobs = None, []
            frame = inbox.next_lease(look=True)
            if frame is None:
                return
            self._serve(*frame)
            del frame

    def _serve_one(self, lease: messages.StartLease) -> bool:
        """Work on a lease of one item in the short way; return False where it is to be worked on like any other.

        A lone item is waited for, and on its way through a chain this is most of what it waits for.
        """
        source, index, stop = lease.spec[0] if len(lease.spec) == 1 else (None, 0, 0)
        if type(source) is not Blob or stop - index != 1 or source.takes > 1 or lease.credit < 1:
            return False
        if lease.give_up is not None or lease.skip or self._reuse.repeats or not self._port.start_lone(lease.lease):
            return False
        clock = time.perf_counter
        begun, used = clock(), time.thread_time() if self._was_long else None
        try:
            value = self._call(source.items[index])
        except BaseException as error:
            self._serve_called(lease, [], Called(partial(raise_, error), *self._spent(begun, used)))
            return True
        kind = type(value)
        seconds, cpu = self._spent(begun, used)
        try:
            is_atom = kind in ATOMS and value is not None
        except Exception:
            # A class may say itself how it is told from others, and fail at that.
            is_atom = False
        if not is_atom:
            self._serve_called(lease, [], Called(lambda: value, seconds, cpu))
            return True
        size = 8 if kind in LIGHT else size_of(value)
        slow: Any = ()
        if seconds >= SLOW_CALL_SECONDS:
            log = self._outbox.log
            log.begin()
            log.note_slow(0, seconds, source.items[index])
            slow = log.take()[1]
        blob = Blob([value], size, self._port.takes)
        groups = [(1, 1)] if self._grouped or lease.traced else None
        what = self._port.number, lease.lease, 1, groups, ((blob, 1),), size, True, False
        self._port.reply(Replied(*what, seconds, Measures(cpu, max(0.0, seconds - cpu), seconds), 0, (), slow))
        return True

    def _spent(self, begun: float, used: float | None) -> tuple[float, float]:
        """Return the seconds since `begun`, and the CPU seconds since `used`: all of them, where that is None."""
        seconds = time.perf_counter() - begun
        self._was_long = seconds > SHORT_SECONDS
        return seconds, seconds if used is None else time.thread_time() - used

    def _work(self, arguments: Any, skip: int, start: int = 0, count: int | None = None) -> None:
        looked = self._look_calls
        if type(arguments) is not list:
            # To make an argument may fail, and then it is known at which call.
            self._look_calls = 1
        try:
            super()._work(arguments, skip, start, count)
        finally:
            self._look_calls = looked

    def _note_slow(self, seconds: float, arguments: Any, index: int) -> None:
        # Of what cannot be copied, the copy took long: the job was not called with it.
        with suppress(TypeError):
            super()._note_slow(seconds, arguments, index)

    def _take(self, returned: list[Any], whole: bool = False) -> bool:
        reuse, outbox = self._reuse, self._outbox
        # What was frozen, or is the job's argument, or what nobody else has, the job cannot change later on.
        if len(returned) > 1 or reuse.repeats or is_alone(returned, 0) or self._is_argument(returned[0]):
            return super()._take(returned)
        value = returned[0]
        ran_generators = super()._take(returned)
        if (reuse.undecided or reuse.repeats) and outbox.outputs and outbox.outputs[-1] is value:
            outbox.outputs[-1] = outbox.freeze(value)
        return ran_generators

    def _keep(self, values: list[Any], returned: list[Any]) -> None:
        reuse = self._reuse
        for index in range(len(values)):
            reuse.observe(values[index])
            # No variable has it here: that nobody else has it is seen by the number of its references.
            changes = reuse.repeats or (reuse.undecided and not is_alone(values, index))
            returned.append(self._outbox.freeze(values[index]) if changes else values[index])

    def _is_argument(self, value: Any) -> bool:
        arguments, call = self._lease_items.all, self._outbox.call_at_hand
        return type(arguments) is list and call < len(arguments) and arguments[call] is value


def main(port: Port) -> None:
    """The whole life of a worker thread."""
    port.add_cpu_clock()
    try:
        _run_job(port)
    except ConnectionLost:
        if port.is_forked_copy:
            os._exit(FORKED_EXITCODE)


def _run_job(port: Port) -> None:
    """Set up the job, serve leases until told to close, and tear it down."""
    phase, processor, loop = "load", None, None
    worker_kind: Any = ThreadWorker
    try:
        processor = job_copy(port.config.job)  # type: ignore[arg-type]
        phase = "setup"
        config = port.config
        record = WorkerRecord(config.name, config.place, processor.job, config.shared)  # type: ignore[arg-type]
        worker_variable().set(record)
        # Few pipelines have a job that makes many calls at once.
        if is_async(work_of(processor)):
            from conveyor.engines.thread.async_worker import AsyncThreadWorker as worker_kind
            from conveyor.stages.event_loop import EventLoop

            loop = EventLoop()
        elif config.threads:
            from conveyor.engines.thread.threaded_worker import ThreadedThreadWorker as worker_kind
        record.state = awaited(processor.setup(), loop)
    except BaseException as error:
        port.send(messages.WorkerFailed(failure_of(error, phase, stays=True)))
    else:
        port.send(messages.Ready())
        phase = "wait"
        try:
            worker_kind(port.config, processor, port, record, *([loop] if loop is not None else [])).run()
            phase = "teardown"
            awaited(processor.teardown(), loop)
        except ConnectionLost:
            _tear_down_abandoned(port, processor, loop)
            raise
        except BaseException as error:
            port.send(messages.WorkerFailed(failure_of(error, phase, stays=True)))
    finally:
        if loop is not None:
            loop.close()
    port.send(messages.Closed())


def _tear_down_abandoned(port: Port, processor: Processor[Any, Any], loop: EventLoop | None) -> None:
    """Have a job that was abandoned, and came back, give back what it has; nobody hears how that went."""
    if not port.is_forked_copy:
        try:
            awaited(processor.teardown(), loop)
        except Exception:
            return


class WorkerThread(threading.Thread):
    """The thread of a worker; `engines/process/system/foreign_threads.py` knows it by this class."""

    def __init__(self, port: Port, context: Context) -> None:
        super().__init__(name=f"conveyor worker {port.number} of {port.config.name}", daemon=True)
        self._port = port
        self._context = context

    def run(self) -> None:
        try:
            self._context.run(main, self._port)
        finally:
            # The context refers to what the worker is, that to its port, and the port to this thread.  No cycle keeps
            # the items that the port has.
            del self._context, self._port
