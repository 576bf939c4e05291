"""A worker: one process, one job.

Law: a worker knows its job, its channel and the lease at hand, and nothing of the pipeline.  It acknowledges
units in their order, never gives an output that it has no credit for, and leaves when the broker does.  What
it computed goes out after `FLUSH_SECONDS`, later where the broker says so or the lease is long, or with the end of the
lease where that is due in as much again, unless a single item takes longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from types import GeneratorType

from conveyor._lean.short_repr import shown_by
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core import FLUSH_SHARE, LONGEST_SECONDS, TARGET_SECONDS
from conveyor.core.data.group_sizes import GroupSizes, append_groups, total, with_one_less
from conveyor.engines.failures import DiedAt, FailedUnit, OverdueAt, death, failure_of, overdue
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import (
    BLOB_BYTES,
    LIGHT,
    ByteBudget,
    ReuseDetector,
    Unpicklable,
    encode,
    frozen,
    interval,
    kinds_of,
    unpicklable,
    weight,
)
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost
from conveyor.engines.process.wire.progress import ProgressSlot
from conveyor.engines.process.worker.cpu_meter import CpuMeter
from conveyor.engines.process.worker.lease_items import LeaseItems
from conveyor.errors import ProcessorError
from conveyor.stages.failure_policy import policy_of
from conveyor.stages.outputs import Fused, StageError, is_generator_function, outputs_of
from conveyor.stages.processor import Processor, work_of

if TYPE_CHECKING:
    from conveyor.core.commands import GiveUp
    from conveyor.engines.process.shm.arena import Arena
    from conveyor.engines.process.wire.configs import WorkerConfig

FLUSH_SECONDS = TARGET_SECONDS * FLUSH_SHARE
# A value that a generator took so long to yield is sent at once: who knows when the next one comes.
SLOW_SECONDS = 0.002
# What is called in one stride, as much as should take so long, is accounted for in one go.  Where that is more units
# than so many, the worker looks within it at the clock, and whether it may begin more, whenever it has called so many:
# one of them may take a thousand times as long as those before it.
STRIDE_SECONDS = 0.002
LOOK_UNITS = 128

NONE_TYPE = type(None)


class _Stopped(Exception):
    """The lease at hand was cancelled, or the worker is to close."""


class _Failed(Exception):
    """The job failed at the next unit that is not done.

    It had given `given` outputs for it by then, of which `unsent` were not sent yet.
    """

    def __init__(self, error: BaseException, given: int, unsent: int) -> None:
        super().__init__()
        self.error = error
        self.given = given
        self.unsent = unsent


class Worker:
    """The loop, from the first lease to the last."""

    def __init__(
        self,
        assignment: WorkerConfig,
        processor: Processor[Any, Any],
        end: BlockingEndpoint,
        progress: ProgressSlot,
        arena: Arena | None,
    ) -> None:
        self._processor = processor
        self._call: Callable[[Any], Any] = work_of(processor)
        self._keep_none = assignment.keep_none
        self._name = assignment.name
        self._policy = policy_of(processor)
        self._timed = assignment.timed
        self._grouped = assignment.grouped
        self._end = end
        self._shown = shown_by(assignment.redact)
        self._progress = progress
        self._arena = arena
        self._spent = CpuMeter()
        self._waiting: deque[tuple[messages.StartLease, list[Any]]] = deque()
        self._cancelled = False
        self._closing = False
        # Whether the lease at hand is the job's `finish`, for which no policy speaks.
        self._finishing = False
        # The lease at hand, and what may still be given for it.
        self._lease = 0
        self._credit = 0
        self._allowance = ByteBudget(assignment.most_bytes)
        self._look_units = interval(LOOK_UNITS, assignment.most_bytes)
        # Begins units of it: from where, up to where; and says up to where that is allowed.
        self._begin: Callable[[int, int], int] = progress.starter(0)
        self._lease_units = LeaseItems(assignment.batch, progress, not self._policy.strict)
        self._acknowledged = 0
        # How many outputs of the first unit are not to be given, and whether the job is amid a unit.
        self._skip = 0
        self._within = False
        # What was not sent yet: outputs and their types, the units that are done, and what each of them gave.
        self._outputs: list[Any] = []
        self._kinds: set[type] = set()
        self._units = 0
        self._runs: GroupSizes = []
        # Of the lease: which units were given up, after how many attempts, when, and why.
        self._given_up: list[tuple[int, int, float, Any]] = []
        # How many outputs of the unit that the job is amid were left out of what is to be sent.
        self._left_out = 0
        self._since = 0.0
        # For how long it may wait.
        self._linger = FLUSH_SECONDS
        self._giver = ReuseDetector()
        # A `process` that keeps state must not be called again before a generator that it returned has run; nor must
        # the time of a generator count as that of the next unit.
        keeps_state = self._call == processor.process and not is_generator_function(self._call)
        self._in_turn = keeps_state or self._timed
        # Running estimates.
        self._stride_seconds = 1.0
        self._blob_items = 1 << 30

    def run(self) -> None:
        """Serve leases until told to close; raises Gone when the broker has gone."""
        begun = time.perf_counter()
        while True:
            # To look costs a system call: it is worth one after a long lease, lest the next be a cancelled one.
            look = time.perf_counter() - begun > FLUSH_SECONDS
            while not self._closing and (not self._waiting or (look and self._end.ready())):
                self._receive()
            if self._closing:
                return
            begun = time.perf_counter()
            self._serve(*self._waiting.popleft())
            # By now nothing here refers to it any more.
            self._say_what_is_gone()

    def _receive(self) -> None:
        """Wait for a message, and take it in."""
        message, blobs = self._end.receive()
        match message:
            case messages.StartLease():
                self._waiting.append((message, blobs))
            case messages.Grant():
                if message.lease == self._lease:
                    self._credit += message.credit
                    self._allowance.renew(self._credit)
            case messages.SetFlushInterval():
                self._linger = message.seconds
            case messages.SlotsFreed():
                assert self._arena is not None
                self._arena.freed(message.slots)
            case messages.TrimMemory():
                assert self._arena is not None
                self._arena.rest()
            case messages.CancelLeases():
                self._cancelled = True
            case messages.Resume():
                self._cancelled = False
            case messages.Close():
                self._closing = True
            case _:
                raise messages.unexpected(message, "A worker")

    def _serve(self, lease: messages.StartLease, blobs: list[Any]) -> None:
        self._lease, self._credit, self._finishing, self._skip = lease.lease, lease.credit, lease.finish, lease.skip
        self._begin = self._progress.starter(self._lease, self._timed)
        self._since = time.perf_counter()
        self._spent.begin()
        self._allowance.renew(self._credit)
        self._acknowledged = 0
        self._given_up, self._left_out = [], 0
        self._forget()
        try:
            self._stop_if_told()
            if self._finishing:
                self._finish()
            elif not self._begin(0, 1):
                pass
            elif lease.verdict is not None:
                self._carry_out(lease.verdict, lease, blobs)
            else:
                self._work(self._lease_units.take(lease, blobs))
            self._flush(final=True)
        except _Stopped:
            self._forget()
            self._flush(final=True)
        except FailedUnit as raised:
            self._end.send(messages.CallFailed(self._lease, raised.units, raised.failure))
            # The run is over: what still comes is refused until the broker closes this process.
            self._cancelled = True
        self._lease_units.leave()
        self._at_work(False)

    def _say_what_is_gone(self) -> None:
        """Say what of the memory of others is seen here no more, so that they can write there again."""
        if self._arena is not None and (gone := self._arena.released()):
            self._end.send(messages.SlotsReleased(gone))

    def _stop_if_told(self) -> None:
        if self._cancelled or self._closing:
            raise _Stopped

    def _end_if_forked_copy(self) -> None:
        """End a child that the job has forked, and that came back out of it, before it touches what is the worker's."""
        if self._end.is_forked_copy:
            raise ConnectionLost("this process was forked by the job")

    def _stop_if_told_meanwhile(self) -> None:
        while self._end.ready():
            self._receive()
        self._stop_if_told()

    def _work(self, units: list[Any]) -> None:
        """Call the job on each unit, in strides: as many at once as take a moment; stop where no more may be begun."""
        start, count = self._work_again(units) if self._skip else 0, len(units)
        begun = self._since
        while start < count:
            self._await_credit()
            stride = min(count - start, self._credit)
            careful = self._giver.wary
            if careful:
                stride = 1
            elif self._stride_seconds * stride > STRIDE_SECONDS:
                stride = max(1, int(STRIDE_SECONDS / self._stride_seconds))
            returned: list[Any] = []
            failed: BaseException | None = None
            heavy = False
            try:
                heavy = self._call_on(units, start, start + stride, returned)
            except BaseException as error:
                if self._policy.strict:
                    # Nobody waits for what those before it gave.
                    raise self._failure(error, len(returned)) from None
                failed = error
            self._end_if_forked_copy()
            if returned:
                self._take(returned)
                start += len(returned)
            elif failed is None:
                return
            now = time.perf_counter()
            if failed is not None:
                self._recover(failed)
                start += 1
                now = time.perf_counter()
            else:
                self._stride_seconds = (now - begun) / len(returned)
            begun = now
            # What is left is sent with the rest where that will be done soon, for a lease of that length.
            linger = max(self._linger, min(count * self._stride_seconds, LONGEST_SECONDS) * FLUSH_SHARE)
            late = now - self._since > linger and (count - start) * self._stride_seconds > linger
            if start < count and (careful or self._giver.wary or late or heavy):
                self._flush()
                self._stop_if_told_meanwhile()

    def _work_again(self, units: list[Any]) -> int:
        """Call the job on the first unit, without the outputs that another has given; return how many were begun."""
        if not self._begin(0, 1):
            return 0
        try:
            self._call_again(units[0], self._skip, 0)
        except _Failed as failed:
            self._recover(failed)
        return 1

    def _call_again(self, unit: Any, given: int, unsent: int) -> None:
        """Call the job on a unit for which so many outputs have been given, and pass on the others."""
        try:
            value = self._call(unit)
        except BaseException as error:
            raise _Failed(error, given, unsent) from None
        self._done(self._give(outputs_of(value, self._keep_none), given, unsent))

    def _call_on(self, units: list[Any], start: int, stop: int, returned: list[Any]) -> bool:
        """Call the job on the units from `start` on, and append what it returns: up to `stop`, or less, where a unit
        takes long, where outputs are heavy, where a generator has its turn first, or where no more may be begun.

        Return whether they are heavy: what is worth a message, and may be more than the pipe is to hold.
        """
        # What runs once for every few units costs as much as they do: nothing is looked up twice, or called in vain.
        call, begin, repeats, in_turn = self._call, self._begin, self._giver.repeats, self._in_turn
        clock, append = time.perf_counter, returned.append
        look = 1 if self._timed else self._look_units
        until = clock() + self._linger
        while start < stop:
            end = start + look
            if end > stop:
                end = stop
            end = begin(start, end)
            if end == start:
                return False
            part = units[start:end]
            # No `map`: whatever takes values from one reads a StopIteration of the job as the end of it.
            if type(call) is Fused:
                values = call.over(part)
                returned.extend(map(frozen, values) if repeats else values)
            elif repeats or in_turn:
                for unit in part:
                    value = call(unit)
                    append(frozen(value) if repeats else value)
                    if in_turn and type(value) is GeneratorType:
                        return False
            else:
                for unit in part:
                    append(call(unit))
            last = returned[-1]
            if clock() > until:
                return False
            if type(last) not in LIGHT and weight(last) * (end - start) > BLOB_BYTES:
                return True
            start = end
        return False

    def _finish(self) -> None:
        try:
            returned = self._processor.finish()
        except BaseException as error:
            raise self._raised(error, "finish", 0) from None
        try:
            self._give(outputs_of(returned, False))
        except _Failed as failed:
            raise self._raised(failed.error, "finish", 0) from None

    def _take(self, returned: list[Any]) -> None:
        """Turn what the job returned for the next units into outputs."""
        try:
            kinds = kinds_of(returned)
        except BaseException as error:
            # A class may say itself how it is told from others, and fail at that.
            raise self._raised(error, "pickle", self._units) from None
        self._kinds |= kinds
        if len(returned) == 1 and GeneratorType not in kinds:
            self._giver.gave(returned[0])
        if GeneratorType in kinds:
            for value in returned:
                if type(value) is GeneratorType:
                    try:
                        self._done(self._give(value))
                    except _Failed as failed:
                        self._recover(failed)
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
                append_groups(self._runs, 0 if value is None else 1, 1)
        else:
            if self._outputs:
                self._outputs += returned
            else:
                self._outputs = returned
            self._credit -= len(returned)
            self._units += len(returned)
            append_groups(self._runs, 1, len(returned))

    def _give(self, values: Iterable[Any], given: int = 0, unsent: int = 0) -> int:
        """Pass on what is yielded for a unit, as credit allows; return how many of its outputs are not sent yet.

        Of what it yields, the first `given` have been given before, `unsent` of which are not sent yet.  Raises _Failed
        where the generator raises.
        """
        iterator = iter(values)
        self._within = True
        try:
            for _ in islice(iterator, given):
                pass
        except BaseException as error:
            raise _Failed(error, given, unsent) from None
        # The clock is looked at with each value at first, and ever less often while they come fast.
        count, step, look = 0, 1, 1
        while True:
            due = count + 1 >= look
            asked = time.perf_counter() if due else 0.0
            try:
                value = next(iterator)
            except StopIteration:
                self._within = False
                return unsent
            except BaseException as error:
                raise _Failed(error, given, unsent) from None
            given += 1
            slow = due and time.perf_counter() - asked > SLOW_SECONDS
            if self._await_credit():
                unsent = count = 0
                step = look = 1
            careful = self._giver.wary
            self._giver.gave(value)
            careful = careful or self._giver.wary
            if self._giver.repeats:
                try:
                    value = frozen(value)
                except Unpicklable as refused:
                    value = self._instead_of(refused.item, refused.__cause__ or refused, 0)
                    if value is None:
                        self._left_out += 1
                        continue
            self._output(value)
            unsent += 1
            count += 1
            if count >= look or careful:
                step = min(16, step * 2)
                look = count + step
                late = careful or slow or time.perf_counter() - self._since > self._linger
                if late or (type(value) not in LIGHT and weight(value) * step > BLOB_BYTES):
                    self._flush()
                    self._stop_if_told_meanwhile()
                    unsent = count = 0
                    step = look = 1

    def _await_credit(self) -> bool:
        """Wait until one more output may be given; return whether that took sending what there was."""
        if self._credit > 0 and not self._allowance.spent:
            return False
        self._flush(starving=True)
        self._credit = 0
        self._at_work(False)
        while self._credit <= 0:
            self._receive()
            self._stop_if_told()
        self._go_on()
        return True

    def _go_on(self) -> None:
        """Begin to count time again, after a wait."""
        self._since = time.perf_counter()
        self._spent.begin()
        self._at_work(True)

    def _at_work(self, working: bool) -> None:
        """Where a unit may take only so long, have the broker know that the job is at it from now on, or is not."""
        if self._timed:
            self._progress.mark(working)

    def _output(self, value: Any) -> None:
        self._outputs.append(value)
        self._kinds.add(type(value))
        self._credit -= 1

    def _done(self, outputs: int) -> None:
        """The next unit is done, and gave so many outputs that were not sent yet."""
        self._units += 1
        append_groups(self._runs, outputs, 1)

    def _forget(self) -> None:
        """Nothing waits to be sent any more."""
        self._outputs, self._units, self._runs = [], 0, []
        self._kinds = set()
        self._within = False

    def _raised(self, error: BaseException, phase: str, units: int, attempts: int = 1) -> FailedUnit:
        index = self._acknowledged + units
        return FailedUnit(units, failure_of(error, phase, self._text_of(index, error), attempts))

    def _text_of(self, index: int, error: BaseException | None = None) -> str | None:
        """Return what a message says of a unit of the lease, or of what a fused job had that raised."""
        if isinstance(error, StageError):
            return self._shown(error.items[0]) if error.items else None
        return self._lease_units.text_of(index, self._shown)

    # What is done about a unit at which the job fails

    def _recover(self, failed: BaseException) -> None:
        """Try the unit at hand again, or give it up, as the policy says; raises FailedUnit where that ends the run."""
        policy, attempts = self._policy, 1
        if isinstance(failed, Unpicklable):
            # A second attempt would give the same.  What is sent while it waits is not to say yet that it was given up.
            if policy.replaces:
                self._await_credit()
            value = self._instead_of(failed.item, failed.__cause__ or failed, 0)
            self._put_in_place(value, 0)
            return
        if not isinstance(failed, _Failed):
            failed = _Failed(failed, 0, 0)
        index = self._acknowledged + self._units
        while policy.tries_again(failed.error, attempts):
            self._pause(policy.delay(attempts), failed)
            attempts += 1
            try:
                self._call_again(self._lease_units.fresh(index), failed.given, failed.unsent)
                return
            except _Failed as again:
                failed = again
        if not policy.gives_up:
            raise self._raised(failed.error, "process", self._units, attempts) from None
        failure = failure_of(failed.error, "process", self._text_of(index, failed.error), attempts)
        if policy.replaces and self._await_credit():
            # Before it is noted: what is sent while it waits is not to say so of a unit that may be done again.
            failed.unsent = 0
        self._note_given_up(index, attempts, failure)
        self._put_in_place(self._replacement(index, failed.error), failed.unsent)

    def _failure(self, error: BaseException, units: int) -> FailedUnit:
        """Return what ends the run, of a unit so far behind those that are done."""
        if isinstance(error, Unpicklable):
            return self._unpicklable(error.__cause__ or error, error.item, units)
        return self._raised(error, "process", self._units + units)

    def _pause(self, seconds: float, failed: _Failed) -> None:
        """Wait before the next attempt, and hold up nobody else meanwhile."""
        if seconds <= 0:
            self._at_work(True)
            return
        self._flush()
        failed.unsent = 0
        self._at_work(False)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._end.ready(left):
                self._receive()
                self._stop_if_told()
        self._go_on()

    def _put_in_place(self, value: Any, unsent: int) -> None:
        """The unit at hand is done with: `value` goes on in its place, after outputs of which so many were not sent."""
        if value is not None:
            if self._await_credit():
                unsent = 0
            self._output(value)
            unsent += 1
        self._within = False
        self._done(unsent)

    def _replacement(self, index: int, error: BaseException) -> Any:
        """Return what goes on in the place of what the job did not give for a unit, or could not be pickled of that."""
        if not self._policy.replaces:
            return None
        assert callable(self._policy.on_error)
        units = index - self._acknowledged
        try:
            # The type says Exception, for what users are to write; SystemExit is treated like one.
            value = self._policy.on_error(self._lease_units.fresh(index), error)  # type: ignore[arg-type]
        except BaseException as second:
            raise self._raised(second, "on_error", units) from None
        if type(value) is GeneratorType:
            # It is not taken apart, and what cannot be sent would be asked to be replaced again, without end.
            raise self._unpicklable(TypeError("cannot pickle 'generator' object"), value, units - self._units)
        try:
            return frozen(value)
        except Unpicklable as refused:
            raise self._unpicklable(refused.__cause__ or refused, value, units - self._units) from None

    def _instead_of(self, output: Any, cause: BaseException, units: int) -> Any:
        """Return what goes on in the place of an output that cannot be pickled, of a unit so far behind those done."""
        raised = self._unpicklable(cause, output, units)
        if self._finishing or not self._policy.gives_up:
            raise raised from None
        index = self._acknowledged + self._units + units
        self._note_given_up(index, 1, raised.failure)
        return self._replacement(index, cause)

    def _note_given_up(self, index: int, attempts: int, why: Any) -> None:
        self._given_up.append((index, attempts, time.time(), why))

    def _carry_out(self, verdict: GiveUp, lease: messages.StartLease, blobs: list[Any]) -> None:
        """Give up the only unit of the lease: workers died at it, or were too long at it."""
        cause, first, last = verdict.cause, verdict.first, verdict.last
        replaces = self._policy.replaces and not verdict.skip_unpickling
        is_overdue = verdict.kind == "overdue"
        # It is not even unpickled where nobody wants to see it: that may be what ended the others.
        if replaces:
            self._lease_units.take(lease, blobs)
        item = self._text_of(0) if replaces else None
        why = OverdueAt(cause, item) if is_overdue else DiedAt(cause, item)
        self._note_given_up(0, verdict.attempts, why)
        error: ProcessorError = (
            overdue(self._name, cause, first, last, item)
            if is_overdue
            else death(self._name, "process", cause, first, last, "item")
        )
        self._put_in_place(self._replacement(0, error) if replaces else None, 0)

    def _flush(self, final: bool = False, starving: bool = False) -> None:
        """Send what there is, and acknowledge the units that are done."""
        self._end_if_forked_copy()
        outputs = self._outputs
        blobs: list[Any] = []
        counts: list[int] = []
        start = 0
        while start < len(outputs):
            limit = self._blob_items
            part = outputs if not start and len(outputs) <= limit else outputs[start : start + limit]
            try:
                # What is amid a lease may be held by a job that has more to do with it.
                blob = encode(part, self._kinds, self._arena, drafts=final)
            except BaseException as error:
                self._replace_in(start, part, error)
                continue
            self._blob_items = max(1, BLOB_BYTES * len(part) // len(blob))
            self._allowance.take(len(part), len(blob))
            blobs.append(blob)
            counts.append(len(part))
            start += len(part)
        assert sum(counts) == len(outputs), "an output was lost, or would be sent twice"
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        cpu, waited = self._spent.since(seconds)
        runs = self._runs if self._grouped else None
        within = self._within
        partial = len(outputs) - total(self._runs) if within else 0
        self._acknowledged += self._units
        if within:
            partial += self._left_out
            self._left_out = 0
        # Also of the unit at hand: whoever does it again skips the outputs counted here, so it is not said twice.
        given_up, self._given_up = self._given_up, []
        calls = self._units
        self._forget()
        self._within = within
        gone: Sequence[int] = ()
        if final and self._arena is not None:
            # What nobody has any more is passed on without a copy, or said to be gone.
            outputs = part = []
            self._lease_units.leave()
            self._arena.pass_on(blobs)
            gone = self._arena.released()
        rest = (final, starving, seconds, cpu, waited, partial, given_up, gone)
        self._end.send(messages.Reply(self._lease, calls, runs, counts, *rest), blobs)

    def _unpicklable(self, cause: BaseException, output: Any, units: int) -> FailedUnit:
        """Return the failure for an output that cannot be pickled, of a unit so far behind those that are done."""
        raised = self._raised(cause, "pickle", self._units + units)
        failure = raised.failure.about(self._shown(output))
        if isinstance(self._call, Fused):
            # What the others gave was not pickled.
            failure = failure._replace(processor=self._call.last)
        return FailedUnit(raised.units, failure)

    def _replace_in(self, start: int, part: list[Any], error: BaseException) -> None:
        """Find the output that cannot be pickled, and the unit that gave it, and put something else in its place."""
        index, cause = unpicklable(part) or (0, error)
        position, unit = start + index, 0
        for outputs, repeat in self._runs:
            if position < outputs * repeat:
                unit += position // outputs
                break
            position -= outputs * repeat
            unit += repeat
        value = self._instead_of(part[index], cause, unit - self._units)
        if value is not None:
            self._outputs[start + index] = value
            self._kinds = self._kinds | {type(value)}
            return
        del self._outputs[start + index]
        self._credit += 1
        if unit < self._units:
            self._runs = with_one_less(self._runs, unit)
        else:
            self._left_out += 1
