"""What a worker receives and what it sends: its inbox and its outbox.

Law: the worker acknowledges calls in their order, and never gives an output that it has no credit for.  What is not
sent yet belongs to the lease at hand.  Nothing here calls the job.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core import FLUSH_SHARE, SLOWEST_CALLS, TARGET_SECONDS
from conveyor.core.data.group_sizes import GroupSizes, append_groups, total, with_one_less
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import ByteBudget, encode, encode_numbers, frozen, unpicklable, weight
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost

if TYPE_CHECKING:
    from conveyor.engines.process.shm.arena import Arena
    from conveyor.engines.process.wire.progress import ProgressSlot
    from conveyor.engines.process.worker.log_capture import SharedEndpoint

try:
    # Here, before workers are forked: each would have to look for it.
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

# A call that takes less counts as one that uses a core.
SHORT_SECONDS = 0.001
FLUSH_SECONDS = TARGET_SECONDS * FLUSH_SHARE
# To show the arguments of slow calls may take so long, and this share of the time that these take.
SHOW_SECONDS, SHOW_SHARE = 0.05, 0.01


class LeaseStopped(Exception):
    """The broker cancelled the lease at hand, or the worker is to close."""


class Outbox:
    """What the job gave, until it is sent; and how much more it may give for the lease at hand.

    `replace` gets the index of a call, an output of it that cannot be pickled, and the reason.  It returns what goes on
    in the place of that output, None for nothing.  `freeze` returns what stands for an output as it is now, and `weigh`
    about how many bytes one has.
    """

    freeze = staticmethod(frozen)
    weigh = staticmethod(weight)

    def __init__(self, end: BlockingEndpoint, arena: Arena | None, budget: ByteBudget, log: CallLog) -> None:
        self._end = end
        self.arena = arena
        # Whether the number of outputs of each call of the lease is to be told.
        self._grouped = False
        self.budget = budget
        self.meter = CpuMeter()
        self.replace: Callable[[int, Any, BaseException], Any]
        self.lease = 0
        self.credit = 0
        # Calls of the lease that are acknowledged, and those that are done and not acknowledged.
        self.acknowledged = 0
        self.calls = 0
        # What those gave, and its types; how many outputs each of them gave.
        self.outputs: list[Any] = []
        self.kinds: set[type] = set()
        # Those outputs, where they are encoded already.
        self._blob: bytes | None = None
        self._group_sizes: GroupSizes = []
        # How many outputs of the call that the job is amid were left out; None between two calls.
        self.left_out: int | None = None
        self.log = log

    @property
    def call_at_hand(self) -> int:
        """The index, in the lease, of the first call that is not done."""
        return self.acknowledged + self.calls

    def begin(self, lease: int, credit: int, grouped: bool) -> None:
        """Begin a lease; `grouped`: the number of outputs of each call is to be told."""
        self.lease, self.credit, self.acknowledged, self._grouped = lease, credit, 0, grouped
        self.meter.begin()
        self.meter.job_seconds = 0.0
        self.budget.renew(credit)
        self.log.begin()
        self.forget()

    def forget(self) -> None:
        self.outputs, self.calls, self._group_sizes = [], 0, []
        self.kinds = set()
        self._blob = self.left_out = None

    def grant(self, lease: int, credit: int) -> None:
        """Take in that the job may give more outputs for a lease."""
        if lease == self.lease:
            self.credit += credit
            self.budget.renew(self.credit)

    def add(self, output: Any) -> None:
        self.outputs.append(output)
        self.kinds.add(type(output))
        self.credit -= 1

    def end_call(self, outputs: int) -> None:
        """Take in that the call at hand is done, and gave so many outputs that are not sent yet."""
        self.calls += 1
        self.left_out = None
        append_groups(self._group_sizes, outputs, 1)

    def add_returned(self, returned: list[Any]) -> None:
        """Take in what the next calls returned: each is one output."""
        if self.outputs:
            self.outputs += returned
        else:
            self.outputs = returned
        self.credit -= len(returned)
        self.calls += len(returned)
        append_groups(self._group_sizes, 1, len(returned))

    def add_numbers(self, returned: list[Any]) -> bool:
        """Take in what all calls of a lease returned since the last reply, if those are many numbers; say whether."""
        if self.outputs or (blob := encode_numbers(returned)) is None:
            return False
        self.add_returned(returned)
        self._blob = blob
        return True

    def add_returned_but_none(self, returned: list[Any]) -> None:
        """Take in what the next calls returned: each is one output, but for None, which is none."""
        kept = [value for value in returned if value is not None]
        self.outputs += kept
        self.credit -= len(kept)
        self.calls += len(returned)
        for value in returned:
            append_groups(self._group_sizes, 0 if value is None else 1, 1)

    def flush(self, final: bool = False, starving: bool = False, release: Callable[[], None] | None = None) -> None:
        """Send what there is, and acknowledge the calls that are done.

        `release` is called before the last message of a lease: what its items live in is then nobody's.
        """
        self.end_if_forked_copy()
        blobs, blob_items = self._encoded(final)
        seconds, measures = self.meter.lap()
        partial = 0
        left_out = self.left_out
        if left_out is not None:
            partial = len(self.outputs) - total(self._group_sizes) + left_out
            left_out = 0
        lease, calls, group_sizes = self.lease, self.calls, self._group_sizes if self._grouped else None
        self.acknowledged += calls
        # Also of the call at hand: whoever makes it again skips the outputs counted here, so it is not said twice.
        given_up, slow = self.log.take()
        self.forget()
        self.left_out = left_out
        released: Sequence[int] = ()
        if final and self.arena is not None:
            # What nobody has any more is passed on without a copy, or said to be gone.
            if release is not None:
                release()
            self.arena.pass_on(blobs)
            released = self.arena.released()
        what = lease, calls, group_sizes, blob_items, final, starving
        self._end.send(messages.Reply(*what, seconds, measures, partial, given_up, released, slow), blobs)

    def send_one(
        self,
        lease: int,
        blobs: list[Any],
        grouped: bool,
        seconds: float,
        measures: tuple[float, ...],
        given_up: Any,
        slow: Any,
    ) -> None:
        """Send what the only call of a lease gave, one output or none; the outbox was told nothing of that lease."""
        given = len(blobs)
        if given:
            self.budget.take(items=1, size=len(blobs[0]))
        released: Sequence[int] = ()
        if self.arena is not None:
            self.arena.pass_on(blobs)
            released = self.arena.released()
        group_sizes: GroupSizes | None = [(given, 1)] if grouped else None
        what = lease, 1, group_sizes, [1] * given, True, False
        self._end.send(messages.Reply(*what, seconds, measures, 0, given_up, released, slow), blobs)

    def _encoded(self, final: bool) -> tuple[list[Any], list[int]]:
        """Return the outputs in blobs, and how many each has; outputs that cannot be pickled are replaced first."""
        outputs, budget = self.outputs, self.budget
        if self._blob is not None and len(outputs) <= budget.items_per_blob:
            budget.take(len(outputs), len(self._blob))
            return [self._blob], [len(outputs)]
        blobs: list[Any] = []
        blob_items: list[int] = []
        start = 0
        while start < len(outputs):
            limit = budget.items_per_blob
            part = outputs if not start and len(outputs) <= limit else outputs[start : start + limit]
            try:
                # What is amid a lease may be held by a job that has more to do with it.
                blob = encode(part, self.kinds, self.arena, writable=final)
            except BaseException as error:
                self._replace_in(start, part, error)
                continue
            budget.take(len(part), len(blob))
            blobs.append(blob)
            blob_items.append(len(part))
            start += len(part)
        assert sum(blob_items) == len(outputs), "an output was lost, or would be sent twice"
        return blobs, blob_items

    def _replace_in(self, start: int, part: list[Any], error: BaseException) -> None:
        """Find the output that cannot be pickled, and the call that gave it, and put something else in its place."""
        index, cause = unpicklable(part) or (0, error)
        position, call = start + index, 0
        for outputs, repeat in self._group_sizes:
            if position < outputs * repeat:
                call += position // outputs
                break
            position -= outputs * repeat
            call += repeat
        value = self.replace(self.acknowledged + call, part[index], cause)
        if value is not None:
            self.outputs[start + index] = value
            self.kinds = self.kinds | {type(value)}
            return
        del self.outputs[start + index]
        self.credit += 1
        if call < self.calls:
            self._group_sizes = with_one_less(self._group_sizes, call)
        elif self.left_out is not None:
            self.left_out += 1

    def abandon_call(self) -> None:
        """End the call at hand, which gives nothing more."""
        self.end_call(len(self.outputs) - total(self._group_sizes))

    def send_failure(self, index: int | None, failure: Any) -> None:
        """Tell the broker that the job failed at a call of the lease; None: nobody knows at which."""
        self._end.send(messages.CallFailed(self.lease, None if index is None else index - self.acknowledged, failure))

    def send_released(self) -> None:
        """Tell the broker which slots of others are used here no more, so that those can write there again."""
        if self.arena is not None and (slots := self.arena.released()):
            self._end.send(messages.SlotsReleased(slots))

    def end_if_forked_copy(self) -> None:
        """End a child that the job has forked, and that came back out of it, before it touches what is the worker's."""
        if self._end.is_forked_copy:
            raise ConnectionLost("this process was forked by the job")


class Inbox:
    """What the broker has sent: leases that wait, and what it said about the one at hand."""

    def __init__(self, end: SharedEndpoint, arena: Arena | None, progress: ProgressSlot, outbox: Outbox) -> None:
        self._end = end
        self._arena = arena
        self._progress = progress
        self._outbox = outbox
        self._leases: deque[tuple[messages.StartLease, list[Any]]] = deque()
        self._cancelled = False
        self._closing = False
        # How long the worker may keep what is done.
        self.flush_seconds = FLUSH_SECONDS
        # How long it has waited for room, or before another attempt.
        self.waited_seconds = 0.0
        # The thread that takes messages in.
        self._thread = threading.get_ident()

    def next_lease(self, look: bool) -> tuple[messages.StartLease, list[Any]] | None:
        """Wait for a lease; return None when the worker is to close.  `look`: take in first what else has come."""
        while not self._closing and (not self._leases or (look and self._end.ready())):
            self._receive()
        return None if self._closing else self._leases.popleft()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits here, and nothing is to be refused."""
        return not (self._leases or self._cancelled or self._closing)

    def receive(self) -> tuple[messages.Message, list[Any]]:
        """Wait for a message, which is not taken in."""
        return self._end.receive()

    def _receive(self) -> None:
        """Wait for a message, and take it in."""
        self.take_in(*self._end.receive())

    def take_in(self, message: messages.Message, blobs: list[Any]) -> None:
        """Take in a message."""
        match message:
            case messages.StartLease():
                self._leases.append((message, blobs))
            case messages.Grant():
                self._outbox.grant(message.lease, message.credit)
            case messages.SetFlushInterval():
                self.flush_seconds = message.seconds
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
            case messages.ForwardPrints():
                self._end.forward_prints(message.streams)
            case messages.Close():
                self._closing = True
            case _:
                raise messages.unexpected(message, "A worker")

    def refuse_leases(self) -> None:
        """Drop leases until the broker says otherwise: the run is over."""
        self._cancelled = True

    def stop_if_told(self) -> None:
        """Raise LeaseStopped where the broker wants no more of the lease at hand."""
        if self._cancelled or self._closing:
            raise LeaseStopped

    def is_stopping(self) -> bool:
        """Whether the broker wants no more of the lease at hand; the job asks, in the middle of a call."""
        if threading.get_ident() == self._thread and not self._end.is_forked_copy:
            try:
                while self._end.ready():
                    self._receive()
            except ConnectionLost:
                return True
        return self._cancelled or self._closing

    def look(self) -> None:
        """Take in what has come amid a lease."""
        while self._end.ready():
            self._receive()
        self.stop_if_told()

    def await_credit(self) -> bool:
        """Wait until one more output may be given; return whether that took sending what there was."""
        outbox = self._outbox
        if outbox.credit > 0 and not outbox.budget.spent:
            return False
        outbox.flush(starving=True)
        outbox.credit = 0
        self._progress.mark(False)
        begun = time.perf_counter()
        while outbox.credit <= 0:
            self._receive()
            self.stop_if_told()
        self._go_on(begun)
        return True

    def pause(self, seconds: float) -> bool:
        """Wait before another attempt, and hold up nobody; return whether that took sending what there was."""
        if seconds <= 0:
            self._progress.mark(True)
            return False
        self._outbox.flush()
        self._progress.mark(False)
        begun = time.perf_counter()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._end.ready(left):
                self._receive()
                self.stop_if_told()
        self._go_on(begun)
        return True

    def _go_on(self, begun: float) -> None:
        """Begin to count time again, after a wait that began at that moment of `time.perf_counter`."""
        self.waited_seconds += time.perf_counter() - begun
        self._outbox.meter.begin()
        self._progress.mark(True)


class CpuMeter:
    """What time was spent with: using a core, waiting for one, or waiting for something else.

    Of this process or, with `of_thread`, of this thread.
    A job that waits for a disk, a network or a clock gives its core up by itself; one that only waits for its turn on a
    core does not.  Where the system does not count that, whatever is not work is taken to be the first.
    """

    def __init__(self, of_thread: bool = False) -> None:
        self.began = 0.0
        # How much of the time since then was spent in the job.
        self.job_seconds = 0.0
        # How many attempts were made once more since the last reply.
        self.retried = 0
        self._cpu_seconds = 0.0
        self._switches = 0
        self._cpu_clock = time.thread_time if of_thread else time.process_time
        # Not every system counts that for a thread.
        whose = getattr(resource, "RUSAGE_THREAD" if of_thread else "RUSAGE_SELF", None)
        self._usage: Callable[[], Any] | None = None
        if whose is not None:
            self._usage = partial(resource.getrusage, whose)

    def begin(self) -> None:
        self.began = time.perf_counter()
        if self._usage is None:
            self._cpu_seconds = self._cpu_clock()
            self._switches += 1
        else:
            usage = self._usage()
            self._cpu_seconds = usage.ru_utime + usage.ru_stime
            self._switches = usage.ru_nvcsw

    def count_all_as_job(self) -> None:
        """Take in that all the time since `begin` was spent in the job."""
        self.job_seconds = time.perf_counter() - self.began

    def count_call(self, seconds: float, cpu_seconds: float) -> None:
        """Take in that the job was called, for so long, before `begin`; what was not work, it waited."""
        self.job_seconds += seconds
        self.began -= seconds
        self._cpu_seconds -= cpu_seconds
        if seconds - cpu_seconds > SHORT_SECONDS:
            self._switches -= 1

    def lap(self) -> tuple[float, tuple[float, ...]]:
        """Return the seconds since `begin`, and the fields of `conveyor.stats.Measures` of that time; begin again.

        A plain tuple: this is done for each reply, and a worker has no other use for that class.
        """
        began, cpu_seconds, switches = self.began, self._cpu_seconds, self._switches
        self.begin()
        seconds, used = self.began - began, self._cpu_seconds - cpu_seconds
        waited = max(0.0, seconds - used) if self._switches != switches else 0.0
        told = used, waited, self.job_seconds, self.retried
        self.job_seconds, self.retried = 0.0, 0
        return seconds, told


class CallLog:
    """What is told of single calls with the next reply.

    `format_item` shows the argument of a slow call, of which only those are told that are among the slowest so far.
    """

    def __init__(self, format_item: Callable[[Any], str]) -> None:
        # Index, attempts, time and reason of each call that was given up.
        self.given_up: list[tuple[int, int, float, Any]] = []
        self._slow: list[tuple[int, float, str | None]] = []
        self._format_item = format_item
        # The seconds of the slowest calls, in their order.
        self._slowest: list[float] = []
        # How long all slow calls took, and how long it took to show arguments.
        self._slow_seconds = self._show_seconds = 0.0

    def for_another_lease(self) -> CallLog:
        """Return a log for a lease that is worked on beside others; the slowest calls are those of all of them."""
        other = CallLog(self._format_item)
        other._slowest = self._slowest
        return other

    def begin(self) -> None:
        """Begin a lease."""
        self.given_up, self._slow = [], []

    def note_slow(self, index: int, seconds: float, argument: Any) -> None:
        """Take in a call of the lease that took `SLOW_CALL_SECONDS` or more."""
        slowest = self._slowest
        self._slow_seconds += seconds
        if len(slowest) >= SLOWEST_CALLS:
            if seconds <= slowest[0]:
                return
            del slowest[0]
        slowest.append(seconds)
        slowest.sort()
        item: str | None = None
        # The code that shows an item is the user's, and may take longer than the job.
        if self._show_seconds <= SHOW_SECONDS + SHOW_SHARE * self._slow_seconds:
            begun = time.perf_counter()
            item = self._format_item(argument)
            self._show_seconds += time.perf_counter() - begun
        self._slow.append((index, seconds, item))

    def take(self) -> tuple[Any, Any]:
        """Return the calls given up and the slow calls, and forget them."""
        if not (self.given_up or self._slow):
            return (), ()
        taken = self.given_up, self._slow
        self.begin()
        return taken
