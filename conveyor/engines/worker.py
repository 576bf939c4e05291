"""A worker: one process, one job.

Law: a worker knows its job, its channel and the lease at hand, and nothing of the pipeline.  It acknowledges
units in their order, never gives an output that it has no credit for, and leaves when the broker does.  What
it computed goes out after `FLUSH_SECONDS` at the latest, unless a single item takes longer.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from inspect import isgeneratorfunction
from types import FrameType, GeneratorType
from typing import Any, NamedTuple

from conveyor.core.groups import Runs, append_run
from conveyor.engines.channels import FarEnd, Message
from conveyor.engines.codec import Giver, Unpicklable, decode, encode, frozen, items_of, short, unpicklable
from conveyor.engines.failures import Failure, failure_of
from conveyor.jobs import outputs_of
from conveyor.stages import Processor, work_of

FLUSH_SECONDS = 0.002
# What takes less than this is called in one go, without looking at the clock in between.
STRIDE_SECONDS = 0.0005
BLOB_BYTES = 256 * 1024
# A worker whose broker has gone leaves with this code; nobody is there to see it.
ORPHANED = 3

NONE_TYPE = type(None)


class Assignment(NamedTuple):
    """What a worker is told at its start.

    `job` is a Processor, or the pickle of one.  `grouped`: the number of outputs of each unit is to be told.
    """

    number: int
    name: str
    job: Processor[Any, Any] | bytes
    batch: int | None
    keep_none: bool
    grouped: bool


class _Stopped(Exception):
    """The lease at hand was cancelled, or the worker is to close."""


class _Raised(Exception):
    """The job, or pickling for it, failed on the unit that comes `units` after the last one acknowledged.

    None: on one of the lease, nobody knows which.
    """

    def __init__(self, units: int | None, failure: Failure) -> None:
        super().__init__(units)
        self.units = units
        self.failure = failure


class Worker:
    """The loop, from the first lease to the last."""

    def __init__(self, assignment: Assignment, processor: Processor[Any, Any], end: FarEnd) -> None:
        self._processor = processor
        self._call: Callable[[Any], Any] = work_of(processor)
        self._batch = assignment.batch
        self._keep_none = assignment.keep_none
        self._grouped = assignment.grouped
        self._end = end
        self._waiting: deque[Message] = deque()
        self._cancelled = False
        self._closing = False
        # The lease at hand, and what may still be given for it.
        self._lease = 0
        self._credit = 0
        self._lease_units: list[Any] = []
        self._acknowledged = 0
        # What was not sent yet: outputs and their types, the units that are done, and what each of them gave.
        self._outputs: list[Any] = []
        self._kinds: set[type] = set()
        self._units = 0
        self._runs: Runs = []
        self._since = 0.0
        # The items of a blob of which the next lease may have more.
        self._kept: list[Any] = []
        self._giver = Giver()
        # A `process` that keeps state must not be called again before a generator that it returned has run.
        self._in_turn = self._call == processor.process and not isgeneratorfunction(self._call)
        # Running estimates.
        self._stride_seconds = 1.0
        self._blob_items = 1 << 30

    def run(self) -> None:
        """Serve leases until told to close; raises EOFError or OSError when the broker has gone."""
        begun = time.perf_counter()
        while True:
            # To look costs a system call: it is worth one after a long lease, lest the next be a cancelled one.
            look = time.perf_counter() - begun > FLUSH_SECONDS
            while not self._closing and (not self._waiting or (look and self._end.ready())):
                self._receive()
            if self._closing:
                return
            begun = time.perf_counter()
            header, blobs = self._waiting.popleft()
            self._serve(header, blobs)

    def _receive(self) -> None:
        """Wait for a message, and take it in."""
        message = self._end.receive()
        match message[0][0]:
            case "lease":
                self._waiting.append(message)
            case "grant":
                _, lease, credit = message[0]
                if lease == self._lease:
                    self._credit += credit
            case "cancel":
                self._cancelled = True
            case "run":
                self._cancelled = False
            case "close":
                self._closing = True

    def _serve(self, header: tuple[Any, ...], blobs: list[Any]) -> None:
        _, self._lease, spec, self._credit, finish, again, keep = header
        self._since = time.perf_counter()
        self._acknowledged = 0
        self._forget()
        try:
            self._stop_if_told()
            if finish:
                self._lease_units = []
                self._finish()
            else:
                self._lease_units = self._units_in(spec, blobs, again, keep)
                self._work(self._lease_units)
            self._flush(final=True)
        except _Stopped:
            self._forget()
            self._flush(final=True)
        except _Raised as raised:
            self._end.send(("raised", self._lease, raised.units, tuple(raised.failure)))
            # The run is over: what still comes is refused until the broker closes this process.
            self._cancelled = True

    def _stop_if_told(self) -> None:
        if self._cancelled or self._closing:
            raise _Stopped

    def _stop_if_told_meanwhile(self) -> None:
        while self._end.ready():
            self._receive()
        self._stop_if_told()

    def _units_in(self, spec: Any, blobs: list[Any], again: bool, keep: bool) -> list[Any]:
        try:
            decoded = [self._kept, *map(decode, blobs)] if again else list(map(decode, blobs))
            self._kept = decoded[-1] if keep else []
            items = items_of(spec, decoded)
        except BaseException as error:
            raise _Raised(None, failure_of(error, "unpickle")) from None
        size = self._batch
        if size is None:
            return items
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _work(self, units: list[Any]) -> None:
        """Call the job on each unit, in strides: as many at once as take a moment."""
        call = self._call
        start, count = 0, len(units)
        begun = self._since
        while start < count:
            stride = count - start
            careful = self._giver.wary
            if careful:
                stride = 1
            elif self._stride_seconds * stride > STRIDE_SECONDS:
                stride = max(1, int(STRIDE_SECONDS / self._stride_seconds))
            part = units if stride == count else units[start : start + stride]
            returned: list[Any] = []
            values = map(frozen, map(call, part)) if self._giver.repeats else map(call, part)
            try:
                if self._in_turn:
                    returned.extend(up_to_generator(values))
                else:
                    returned.extend(values)
            except Unpicklable as refused:
                raise self._unpicklable(refused.__cause__ or refused, refused.item, len(returned)) from None
            except BaseException as error:
                raise self._raised(error, "process", self._units + len(returned)) from None
            if len(returned) < stride and not (self._in_turn and returned and type(returned[-1]) is GeneratorType):
                # To `map`, the end; from a job, an error like any other.
                raise self._raised(StopIteration(), "process", self._units + len(returned))
            self._take(returned)
            start += len(returned)
            now = time.perf_counter()
            self._stride_seconds = (now - begun) / len(returned)
            begun = now
            if start < count and (careful or self._giver.wary or now - self._since > FLUSH_SECONDS):
                self._flush()
                self._stop_if_told_meanwhile()

    def _finish(self) -> None:
        try:
            returned = self._processor.finish()
        except BaseException as error:
            raise self._raised(error, "finish", 0) from None
        self._give(outputs_of(returned, False), "finish")

    def _take(self, returned: list[Any]) -> None:
        """Turn what the job returned for the next units into outputs."""
        kinds = set(map(type, returned))
        self._kinds |= kinds
        if len(returned) == 1 and GeneratorType not in kinds:
            self._giver.gave(returned[0])
        if GeneratorType in kinds:
            for value in returned:
                if type(value) is GeneratorType:
                    self._done(self._give(value, "process"))
                elif value is None and not self._keep_none:
                    self._done(0)
                else:
                    # Generators before it may have used up what was meant for it.
                    self._await_credit()
                    self._output(value)
                    self._done(1)
        elif NONE_TYPE in kinds and not self._keep_none:
            kept = [value for value in returned if value is not None]
            self._outputs += kept
            self._credit -= len(kept)
            self._units += len(returned)
            for value in returned:
                append_run(self._runs, 0 if value is None else 1, 1)
        else:
            if self._outputs:
                self._outputs += returned
            else:
                self._outputs = returned
            self._credit -= len(returned)
            self._units += len(returned)
            append_run(self._runs, 1, len(returned))

    def _give(self, values: Iterable[Any], phase: str) -> int:
        """Pass on what a generator yields, as credit allows; return how many of its values were not sent yet."""
        iterator = iter(values)
        # The clock is looked at with each value at first, and ever less often while they come fast.
        count, step, look = 0, 1, 1
        while True:
            due = count + 1 >= look
            asked = time.perf_counter() if due else 0.0
            try:
                value = next(iterator)
            except StopIteration:
                return count
            except BaseException as error:
                raise self._raised(error, phase, self._units) from None
            slow = due and time.perf_counter() - asked > FLUSH_SECONDS
            if self._await_credit():
                count, step, look = 0, 1, 1
            careful = self._giver.wary
            self._giver.gave(value)
            careful = careful or self._giver.wary
            try:
                self._output(frozen(value) if self._giver.repeats else value)
            except Unpicklable as refused:
                raise self._unpicklable(refused.__cause__ or refused, value, 0) from None
            count += 1
            if count >= look or careful:
                step = min(16, step * 2)
                look = count + step
                if careful or slow or time.perf_counter() - self._since > FLUSH_SECONDS:
                    self._flush()
                    self._stop_if_told_meanwhile()
                    count, step, look = 0, 1, 1

    def _await_credit(self) -> bool:
        """Wait until one more output may be given; return whether that took sending what there was."""
        if self._credit > 0:
            return False
        self._flush(starving=True)
        while self._credit <= 0:
            self._receive()
            self._stop_if_told()
        self._since = time.perf_counter()
        return True

    def _output(self, value: Any) -> None:
        self._outputs.append(value)
        self._kinds.add(type(value))
        self._credit -= 1

    def _done(self, outputs: int) -> None:
        """The next unit is done, and gave so many outputs that were not sent yet."""
        self._units += 1
        append_run(self._runs, outputs, 1)

    def _forget(self) -> None:
        """Nothing waits to be sent any more."""
        self._outputs, self._units, self._runs = [], 0, []
        self._kinds = set()

    def _raised(self, error: BaseException, phase: str, units: int) -> _Raised:
        index = self._acknowledged + units
        item = short(self._lease_units[index]) if index < len(self._lease_units) else None
        return _Raised(units, failure_of(error, phase, item))

    def _flush(self, final: bool = False, starving: bool = False) -> None:
        """Send what there is, and acknowledge the units that are done."""
        outputs = self._outputs
        blobs: list[bytes] = []
        counts: list[int] = []
        start = 0
        while start < len(outputs):
            limit = self._blob_items
            part = outputs if not start and len(outputs) <= limit else outputs[start : start + limit]
            try:
                blob = encode(part, self._kinds)
            except BaseException as error:
                raise self._unpicklable_in(start, part, error) from None
            self._blob_items = max(1, BLOB_BYTES * len(part) // len(blob))
            blobs.append(blob)
            counts.append(len(part))
            start += len(part)
        assert sum(counts) == len(outputs), "an output was lost, or would be sent twice"
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        runs = self._runs if self._grouped else None
        self._end.send(("reply", self._lease, self._units, runs, counts, final, starving, seconds), blobs)
        self._acknowledged += self._units
        self._forget()

    def _unpicklable(self, cause: BaseException, output: Any, units: int) -> _Raised:
        """Return the failure for an output that cannot be pickled, of a unit so far behind those that are done."""
        raised = self._raised(cause, "pickle", self._units + units)
        message = f"{raised.failure.message} (the output was {short(output)})"
        return _Raised(raised.units, raised.failure._replace(message=message))

    def _unpicklable_in(self, start: int, part: list[Any], error: BaseException) -> _Raised:
        """Find the output that cannot be pickled, and the unit that gave it."""
        index, cause = unpicklable(part) or (0, error)
        position, unit = start + index, 0
        for outputs, repeat in self._runs:
            if position < outputs * repeat:
                unit += position // outputs
                break
            position -= outputs * repeat
            unit += repeat
        return self._unpicklable(cause, part[index], unit - self._units)


def up_to_generator(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values up to the first generator, which is the last."""
    for value in values:
        yield value
        if type(value) is GeneratorType:
            return


def ignore(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing.

    Ctrl-C reaches every process of the terminal; the caller alone acts on it.  A handler, unlike SIG_IGN, is
    not inherited by programs that a job starts, so those still end on Ctrl-C.
    """


def settle(foreign: list[Any]) -> None:
    """Make a new process one of ours: its own signals, and no end of a channel that is not its own."""
    signal.signal(signal.SIGINT, ignore)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for end in foreign:
        end.close()


def die_with_parent(parent: int) -> None:
    """Ask the kernel, where it can be asked, to end this process when its parent dies, busy or not."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if hasattr(os, "getppid") and os.name == "posix" and os.getppid() != parent:
        os._exit(ORPHANED)


def main(assignment: Assignment, end: FarEnd, foreign: list[Any], parent: int) -> None:
    """The whole life of a worker process."""
    settle(foreign)
    die_with_parent(parent)
    end.watch_parent()
    try:
        phase = "load"
        try:
            job = assignment.job
            processor: Processor[Any, Any] = pickle.loads(job) if isinstance(job, bytes) else job
            phase = "setup"
            processor.setup()
        except BaseException as error:
            end.send(("failed", tuple(failure_of(error, phase))))
        else:
            end.send(("ready",))
            Worker(assignment, processor, end).run()
            try:
                processor.teardown()
            except BaseException as error:
                end.send(("failed", tuple(failure_of(error, "teardown"))))
        end.send(("closed",))
        end.flush()
        end.close()
    except (EOFError, OSError):
        os._exit(ORPHANED)
