"""A worker's loop: it takes leases, calls the job, and hands on what that gives.

Law: a worker knows its job, its channel and the lease at hand, and nothing of the pipeline.  It leaves when the broker
does.  What it has done goes out after `FLUSH_SECONDS`, or after as long as the broker says; later in a long lease; and
with the end of the lease where that is due in as much again, unless a single call takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from operator import length_hint
from types import GeneratorType

from conveyor._lean.short_repr import shown_by
from conveyor._lean.typing import TYPE_CHECKING, Any, cast
from conveyor._system.clock import time
from conveyor.core import FLUSH_SHARE, LONGEST_SECONDS, SLOW_CALL_SECONDS
from conveyor.engines.failures import LeaseFailed
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import (
    ByteBudget,
    ReuseDetector,
    Unpicklable,
    first_without_kind,
    interval,
    is_heavy,
    kinds_of,
)
from conveyor.engines.process.worker.lease_items import LeaseItems
from conveyor.engines.process.worker.lone import Called, ShortWay
from conveyor.engines.process.worker.mailbox import FLUSH_SECONDS, CallLog, Inbox, LeaseStopped, Outbox
from conveyor.engines.process.worker.retry import CallRaised, Retrier
from conveyor.stages.outputs import Fused, WorkerRecord, is_generator_function, outputs_of
from conveyor.stages.per_item import PerItem, single_work_of
from conveyor.stages.processor import Processor
from conveyor.stages.settings import policy_of

if TYPE_CHECKING:
    from conveyor.engines.failures import Failure
    from conveyor.engines.process.shm.arena import Arena
    from conveyor.engines.process.wire.configs import WorkerConfig
    from conveyor.engines.process.wire.progress import ProgressSlot
    from conveyor.engines.process.worker.log_capture import SharedEndpoint

# A value that a generator took so long to yield is sent at once: who knows when the next one comes.
SLOW_SECONDS = 0.002
# A stride is as many calls as should take so long: they are accounted for in one go.  The worker looks at the clock,
# and whether it may start more, after so many calls: one of them may take a thousand times as long as those before
# it.  Where it looks within that time, a stride is all of the lease: it ends when it takes long.
STRIDE_SECONDS = 0.002
LOOK_CALLS = 128
# Calls that take next to nothing: as many as take so long, up to this number.
LOOK_SECONDS = 0.000064
MOST_LOOK_CALLS = 512

NONE_TYPE = type(None)


class Worker:
    """The loop, from the first lease to the last.

    A subclass may have other kinds of what hands items in and out.  `freezes_early`: what is given is kept as it is
    already while nobody knows yet whether its giver gives it again.
    """

    outbox_kind: type[Outbox] = Outbox
    lease_items_kind: type[LeaseItems] = LeaseItems
    retrier_kind: type[Retrier] = Retrier
    freezes_early = False

    def __init__(
        self,
        config: WorkerConfig,
        processor: Processor[Any, Any],
        end: SharedEndpoint,
        progress: ProgressSlot,
        arena: Arena | None,
        record: WorkerRecord,
    ) -> None:
        self._processor = processor
        self._call: Callable[[Any], Any] = single_work_of(processor)
        self._keep_none = config.keep_none
        self._grouped = config.grouped
        self._progress = progress
        progress.timed = config.timed
        self._outbox = self.outbox_kind(end, arena, ByteBudget(config.most_bytes), CallLog(shown_by(config.redact)))
        self._inbox = Inbox(end, arena, progress, self._outbox)
        record.is_stopping = self._inbox.is_stopping
        may_want_again = type(self._call) is PerItem or not policy_of(processor).strict
        self._lease_items = self.lease_items_kind(config.batch, progress, may_want_again)
        self._retrier = self.retrier_kind(config, processor, self._inbox, self._outbox, self._lease_items, record)
        self._outbox.replace = self._retrier.replace
        self._look_calls = 1 if config.timed else interval(LOOK_CALLS, config.most_bytes)
        # Starts calls of the lease at hand: from where, up to where; returns up to where that is allowed.
        self._start: Callable[[int, int], int] = progress.starter(0)
        self._reuse = ReuseDetector(self._outbox.weigh)
        # A `process` that keeps state must not be called again before a generator that it returned has run; nor must
        # the time of a generator count as that of the next call.
        keeps_state = self._call == processor.process and not is_generator_function(self._call)
        self._in_turn = keeps_state or config.timed
        # A running estimate, of one call.
        self._call_seconds = 1.0
        self._short_way = ShortWay.of(config, self._call, progress, self._outbox, self._reuse, record)

    def run(self) -> None:
        """Serve leases until told to close; raises ConnectionLost when the broker is gone."""
        try:
            self._serve_all()
        finally:
            self._retrier.record.attempt = 1
            # No cycle keeps the job then: its finalizers run when it goes, in the order in which Python has them.
            del self._outbox.replace

    def _serve_all(self) -> None:
        look = False
        while True:
            if not look and self._serve_shortly():
                look = self._call_seconds > FLUSH_SECONDS
                continue
            # To look costs a system call: it is worth one after a long lease, lest the next be a cancelled one.
            frame = self._inbox.next_lease(look)
            if frame is None:
                return
            begun = time.perf_counter()
            self._serve(*frame)
            look = time.perf_counter() - begun > FLUSH_SECONDS
            del frame  # By now nothing here refers to it any more.
            self._outbox.send_released()

    def _serve_shortly(self) -> bool:
        """Take in the next message; return whether that was a lease of one item, and all is done about it."""
        short_way, inbox = self._short_way, self._inbox
        if short_way is None or not inbox.is_idle:
            return False
        message, blobs = inbox.receive()
        served = short_way.serve(message, blobs) if isinstance(message, messages.StartLease) else False
        if isinstance(served, Called):
            self._serve_called(cast("messages.StartLease", message), blobs, served)
            self._outbox.send_released()
        elif served:
            self._call_seconds = short_way.call_seconds
        else:
            inbox.take_in(message, blobs)
        return served is not False

    def _serve_called(self, lease: messages.StartLease, blobs: list[Any], called: Called) -> None:
        """Work on a lease of one item for which the job was called already."""
        call = self._call

        def outcome(argument: Any) -> Any:
            # Another attempt calls the job.
            self._call = call
            called.tell(self._outbox, argument)
            return called.outcome()

        self._call = outcome
        try:
            self._serve(lease, blobs)
        finally:
            self._call = call
            self._call_seconds += called.seconds

    def _serve(self, lease: messages.StartLease, blobs: list[Any]) -> None:
        outbox, retrier, lease_items = self._outbox, self._retrier, self._lease_items
        self._start = self._progress.starter(lease.lease)
        outbox.begin(lease.lease, lease.credit, self._grouped or lease.traced)
        retrier.finishing, retrier.traced, retrier.record.attempt = lease.finish, lease.traced, lease.attempt
        try:
            self._inbox.stop_if_told()
            if lease.finish:
                self._finish()
            elif not self._start(0, 1):
                pass
            elif lease.give_up is not None:
                # The item is not even unpickled where nobody wants to see it: that may be what ended the others.
                if retrier.policy.replaces and not lease.give_up.skip_unpickling:
                    lease_items.take(lease, blobs, self._start)
                retrier.carry_out(lease.give_up)
                outbox.meter.count_all_as_job()
            else:
                self._work_on(lease_items.take(lease, blobs, self._start), lease.skip)
            outbox.flush(final=True, release=lease_items.leave)
        except LeaseStopped:
            outbox.forget()
            outbox.flush(final=True, release=lease_items.leave)
        except LeaseFailed as failed:
            if lease.traced and not lease.finish:
                self._fail_all(lease, failed.failure)
            else:
                outbox.send_failure(failed.index, failed.failure)
                # What still comes is refused until the broker closes this process.
                self._inbox.refuse_leases()
        lease_items.leave()
        self._progress.mark(False)

    def _finish(self) -> None:
        try:
            returned = self._processor.finish()
        except BaseException as error:
            raise self._retrier.raised(error, "finish", 0) from None
        try:
            self._give(outputs_of(returned, False))
        except CallRaised as raised:
            raise self._retrier.raised(raised.error, "finish", 0) from None
        self._outbox.meter.count_all_as_job()

    def _fail_all(self, lease: messages.StartLease, failure: Failure) -> None:
        """Report that what is left of a lease of submitted items has failed, and acknowledge it."""
        outbox = self._outbox
        outbox.forget()
        outbox.send_failure(None, failure)
        calls = sum(stop - start for _, start, stop in lease.spec)
        for _ in range(outbox.call_at_hand, self._start(0, calls)):
            outbox.end_call(0)
        outbox.flush(final=True, release=self._lease_items.leave)

    def _work_on(self, arguments: list[Any], skip: int) -> None:
        """Work on the arguments of a lease, and report those of submitted items that could not be unpickled."""
        start, broken = 0, self._lease_items.broken
        for index in sorted(broken) if broken else ():
            self._work(arguments, skip, start, index)
            if self._outbox.call_at_hand < index or self._start(index, index + 1) == index:
                return
            self._outbox.send_failure(index, broken[index])
            self._outbox.end_call(0)
            start, skip = index + 1, 0
        self._work(arguments, skip, start)

    def _work(self, arguments: list[Any], skip: int, start: int = 0, count: int | None = None) -> None:
        """Call the job on the arguments from `start` to `count`, in strides; stop where no more may be started."""
        inbox, outbox, retrier, reuse = self._inbox, self._outbox, self._retrier, self._reuse
        if count is None:
            count = len(arguments)
        if skip and start < count:
            start = self._work_again(arguments, skip)
            if start:
                outbox.meter.count_all_as_job()
        begun, progress, clock = outbox.meter.began, self._progress, time.perf_counter
        in_lists = isinstance(self._call, PerItem)
        call_on = self._call_in_lists if in_lists else self._call_on
        while start < count:
            inbox.await_credit()
            careful = reuse.undecided
            stride = self._stride(min(count - start, outbox.credit), careful)
            returned: list[Any] = []
            failed: BaseException | None = None
            heavy = False
            progress.follow(self._call_seconds >= SLOW_CALL_SECONDS)
            called, waited = clock(), inbox.waited_seconds
            try:
                heavy = call_on(arguments, start, start + stride, returned)
            except BaseException as error:
                if retrier.fails_at_once:
                    # Nobody waits for what those before it gave.
                    raise retrier.failure(error, outbox.call_at_hand + len(returned)) from None
                failed = error
            done = clock()
            outbox.end_if_forked_copy()
            if returned:
                start += len(returned)
                if self._take(returned, start == count and failed is None):
                    # The job went on in generators.
                    done = clock()
            elif failed is None:
                return
            now = clock()
            if failed is not None:
                retrier.recover(failed, self._call_again)
                start += 1
                done = now = clock()
            else:
                self._call_seconds = (now - begun) / len(returned)
            spent = done - called - (inbox.waited_seconds - waited)
            outbox.meter.job_seconds += spent
            if (stride == 1 or in_lists) and spent >= SLOW_CALL_SECONDS:
                self._note_slow(spent, arguments, start - 1)
            begun = now
            # What is left is sent with the rest where that will be done soon, for a lease of that length.
            patience = max(inbox.flush_seconds, min(count * self._call_seconds, LONGEST_SECONDS) * FLUSH_SHARE)
            late = now - outbox.meter.began > patience and (count - start) * self._call_seconds > patience
            if start < count and (careful or reuse.undecided or late or heavy):
                outbox.flush()
                inbox.look()

    def _stride(self, most: int, careful: bool) -> int:
        """Return with how many of `most` items to go on in one go; `careful`: one call of the job."""
        one = self._call.most if isinstance(self._call, PerItem) else 1
        if careful:
            return min(one, most)
        if self._call_seconds * self._look_calls > STRIDE_SECONDS:
            return min(most, max(one, int(STRIDE_SECONDS / self._call_seconds)))
        return most

    def _work_again(self, arguments: list[Any], skip: int) -> int:
        """Call the job on the first argument, without the outputs that another has given; return how many started."""
        if not self._start(0, 1):
            return 0
        try:
            argument = arguments[0]
        except Exception as error:
            self._retrier.recover(CallRaised(error, skip, 0), self._call_again)
            return 1
        try:
            self._call_again(argument, skip, 0)
        except CallRaised as raised:
            self._retrier.recover(raised, self._call_again)
        return 1

    def _note_slow(self, seconds: float, arguments: list[Any], index: int) -> None:
        """Take in that the call before the one at hand took long."""
        self._outbox.log.note_slow(self._outbox.call_at_hand - 1, seconds, arguments[index])

    def _call_again(self, argument: Any, given: int, unsent: int) -> None:
        """Call the job on an argument for which so many outputs have been given, and pass on the others."""
        try:
            value = self._call(argument)
        except BaseException as error:
            raise CallRaised(error, given, unsent) from None
        self._outbox.end_call(self._give(outputs_of(value, self._keep_none), given, unsent))

    def _call_on(self, arguments: list[Any], first: int, stop: int, returned: list[Any]) -> bool:
        """Call the job on the arguments from `first` on, and append what it returns: up to `stop`, or less, where a
        call takes long, where outputs are heavy, where a generator has its turn first, or where no more may be started.

        Return whether they are heavy: what is worth a message, and may be more than the pipe is to hold.
        """
        # What runs once for every few calls costs as much as they do: nothing is looked up twice, or called in vain.
        call, start, repeats, in_turn = self._call, self._start, self._reuse.repeats, self._in_turn
        clock, append, look = time.perf_counter, returned.append, self._look_calls
        frozen, weight, fails_at_once = self._outbox.freeze, self._outbox.weigh, self._retrier.fails_at_once
        if look == LOOK_CALLS:
            look = max(look, min(MOST_LOOK_CALLS, int(LOOK_SECONDS / (self._call_seconds or 1.0))))
        until = clock() + self._inbox.flush_seconds
        while first < stop:
            end = first + look
            if end > stop:
                end = stop
            end = start(first, end)
            if end == first:
                return False
            part = arguments[first:end]
            # No `map`: whatever takes values from one reads a StopIteration of the job as the end of it.
            if type(call) is Fused:
                values = call.over(part)
                returned.extend(map(frozen, values) if repeats else values)
            elif repeats or in_turn:
                for argument in part:
                    value = call(argument)
                    append(frozen(value) if repeats else value)
                    if in_turn and type(value) is GeneratorType:
                        return False
            elif fails_at_once:
                waiting = iter(part)
                try:
                    returned += [call(argument) for argument in waiting]
                except BaseException:
                    # The first failure ends the run: only its place counts.
                    returned += [None] * (end - first - 1 - length_hint(waiting))
                    raise
            else:
                for argument in part:
                    append(call(argument))
            last = returned[-1]
            if clock() > until:
                return False
            if is_heavy(last, end - first, weight):
                return True
            first = end
        return False

    def _call_in_lists(self, _: list[Any], first: int, stop: int, returned: list[Any]) -> bool:
        """Do as `_call_on` does, with a job that gets lists and gives each item its output."""
        call, clock, part = self._call, time.perf_counter, self._lease_items.part
        assert isinstance(call, PerItem)
        until = clock() + self._inbox.flush_seconds
        while first < stop:
            end = self._start(first, min(first + call.most, stop))
            if end == first:
                return False
            for values in call.over(part, first, end, partial(self._progress.mark, True)):
                self._keep(values, returned)
            last = returned[-1]
            if clock() > until or GeneratorType in map(type, values):
                return False
            if is_heavy(last, end - first, self._outbox.weigh):
                return True
            first = end
        return False

    def _keep(self, values: list[Any], returned: list[Any]) -> None:
        """Add outputs to what the job has returned: as they are now, where it gives an object again."""
        reuse, frozen = self._reuse, self._outbox.freeze
        for value in values:
            reuse.observe(value)
            returned.append(frozen(value) if reuse.repeats else value)

    def _take(self, returned: list[Any], whole: bool = False) -> bool:
        """Turn what the next calls returned into outputs; return whether generators were among it.

        `whole`: the calls of the lease return no more.
        """
        outbox = self._outbox
        if whole and outbox.add_numbers(returned):
            return False
        try:
            kinds = kinds_of(returned)
        except BaseException as error:
            index = outbox.call_at_hand + first_without_kind(returned)
            raise self._retrier.raised(error, "pickle", index) from None
        if len(returned) == 1 and GeneratorType not in kinds and type(self._call) is not PerItem:
            self._reuse.observe(returned[0])
        outbox.kinds |= kinds
        if GeneratorType in kinds:
            self._take_each(returned)
        elif NONE_TYPE in kinds and not self._keep_none:
            outbox.add_returned_but_none(returned)
        else:
            outbox.add_returned(returned)
        return GeneratorType in kinds

    def _take_each(self, returned: list[Any]) -> None:
        """Turn what the next calls returned into outputs, where some of it is generators."""
        outbox = self._outbox
        for value in returned:
            if type(value) is GeneratorType:
                try:
                    outbox.end_call(self._give(value))
                except CallRaised as raised:
                    self._retrier.recover(raised, self._call_again)
            elif value is None and not self._keep_none:
                outbox.end_call(0)
            else:
                # Generators before it may have used up what was meant for it.
                self._inbox.await_credit()
                outbox.add(value)
                outbox.end_call(1)

    def _give(self, values: Iterable[Any], given: int = 0, unsent: int = 0) -> int:
        """Pass on what is yielded in a call, as credit allows; return how many of its outputs are not sent yet.

        Of what it yields, the first `given` have been given before, `unsent` of which are not sent yet.  Raises
        CallRaised where the generator raises.
        """
        iterator = iter(values)
        inbox, outbox, reuse, clock = self._inbox, self._outbox, self._reuse, time.perf_counter
        if outbox.left_out is None:
            outbox.left_out = 0
        try:
            for _ in islice(iterator, given):
                pass
        except BaseException as error:
            raise CallRaised(error, given, unsent) from None
        # The clock is looked at with each value at first, and ever less often while they come fast.
        count, step, look = 0, 1, 1
        while True:
            due = count + 1 >= look
            asked = clock() if due else 0.0
            try:
                value = next(iterator)
            except StopIteration:
                outbox.left_out = None
                return unsent
            except BaseException as error:
                raise CallRaised(error, given, unsent) from None
            given += 1
            slow = due and clock() - asked > SLOW_SECONDS
            if (outbox.credit <= 0 or outbox.budget.spent) and inbox.await_credit():
                unsent = count = 0
                step = look = 1
            careful = reuse.undecided
            reuse.observe(value)
            careful = careful or reuse.undecided
            if reuse.repeats or (careful and self.freezes_early):
                value, is_left_out = self._frozen(value)
                if is_left_out:
                    outbox.left_out += 1
                    continue
            outbox.add(value)
            unsent += 1
            count += 1
            if count >= look or careful:
                step = min(16, step * 2)
                look = count + step
                late = careful or slow or clock() - outbox.meter.began > inbox.flush_seconds
                if late or is_heavy(value, step, outbox.weigh):
                    outbox.flush()
                    inbox.look()
                    unsent = count = 0
                    step = look = 1

    def _frozen(self, value: Any) -> tuple[Any, bool]:
        """Return an output as it is now, or what stands in for it, and whether there is none."""
        try:
            return self._outbox.freeze(value), False
        except Unpicklable as refused:
            # Only `refused`, which Python deletes, may hold the error: else it would be in a cycle with this frame.
            value = self._retrier.replace(self._outbox.call_at_hand, value, refused.__cause__ or refused)
            return value, value is None
