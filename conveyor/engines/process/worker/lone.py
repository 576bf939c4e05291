"""A lease of one item, as a worker works on it: the short way, which tells the broker what the general one would.

Law: nothing here decides otherwise than `loop.py`.  Where the case is another, the general way works on the lease; the
job is called once, whichever way goes on with what came of it.  A lone item waits, at each step of a chain, for all
that the worker does about it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import GeneratorType

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core import SLOW_CALL_SECONDS
from conveyor.core.data.pieces import ONE
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.wire.codec import LIGHT, ReuseDetector, decode, encode
from conveyor.engines.process.worker.mailbox import SHORT_SECONDS, Outbox
from conveyor.stages.outputs import Fused, WorkerRecord, is_generator_function
from conveyor.stages.per_item import PerItem

if TYPE_CHECKING:
    from conveyor.engines.process.wire.configs import WorkerConfig
    from conveyor.engines.process.wire.messages import StartLease
    from conveyor.engines.process.wire.progress import ProgressSlot


class Called(NamedTuple):
    """A call that was made: `outcome` returns, or raises, what came of it."""

    outcome: Callable[[], Any]
    seconds: float
    cpu_seconds: float

    def tell(self, outbox: Outbox, argument: Any) -> None:
        """Tell an outbox, which has begun a lease, of the call that its job makes first."""
        outbox.meter.count_call(self.seconds, self.cpu_seconds)
        if self.seconds >= SLOW_CALL_SECONDS:
            outbox.log.note_slow(0, self.seconds, argument)


class ShortWay:
    """Works on leases of one item, one after another."""

    def __init__(
        self,
        config: WorkerConfig,
        call: Callable[[Any], Any],
        progress: ProgressSlot,
        outbox: Outbox,
        reuse: ReuseDetector,
        record: WorkerRecord,
    ) -> None:
        self._call = call
        self._progress = progress
        self._outbox = outbox
        self._reuse = reuse
        self._record = record
        self._grouped = config.grouped
        self._keep_none = config.keep_none
        # How long the last call took, with all that went with it.
        self.call_seconds = 1.0

    @staticmethod
    def of(config: WorkerConfig, call: Callable[[Any], Any], *rest: Any) -> ShortWay | None:
        """Return the short way for a job; None where leases of one item are like all others."""
        if config.batch is not None or config.timed or type(call) in (PerItem, Fused) or is_generator_function(call):
            return None
        return ShortWay(config, call, *rest)

    def serve(self, lease: StartLease, blobs: list[Any]) -> bool | Called:
        """Work on a lease; return False, and leave all as it was, where that is for the general way.

        Where the job was called, and the general way is to go on with what came of it: return the call.
        """
        if lease.spec != ONE or lease.credit < 1 or lease.skip or lease.give_up is not None or lease.finish:
            return False
        if lease.keep_last or lease.starts_in_kept or self._reuse.repeats or type(blobs[0]) is SharedBlob:
            return False
        progress, outbox, clock = self._progress, self._outbox, time.perf_counter
        if not progress.start_one(lease.lease):
            return False
        begun, cpu_seconds = clock(), time.process_time()
        # It may have waited the last time.
        closely = self.call_seconds > SHORT_SECONDS
        if closely:
            outbox.meter.begin()
        self._record.attempt = lease.attempt
        progress.unpickling = True
        try:
            items = decode(blobs[0])
        except BaseException:
            # The general way finds out which item that was.
            return False
        progress.unpickling = False
        progress.follow(self.call_seconds >= SLOW_CALL_SECONDS)
        called = clock()
        try:
            value = self._call(items[0])
        except BaseException as error:
            return Called(partial(raise_, error), clock() - called, time.process_time() - cpu_seconds)
        spent = clock() - called
        outbox.end_if_forked_copy()
        given = self._encoded(value)
        if given is None:
            return Called(partial(_return, value), spent, time.process_time() - cpu_seconds)
        told: tuple[Any, Any] = (), ()
        if spent >= SLOW_CALL_SECONDS:
            outbox.log.begin()
            outbox.log.note_slow(0, spent, items[0])
            told = outbox.log.take()
        # What lives in the output alone is nobody else's from here on.
        del items, value
        if closely:
            outbox.meter.job_seconds = spent
            seconds, measures = outbox.meter.lap()
        else:
            seconds, measures = clock() - begun, (time.process_time() - cpu_seconds, 0.0, spent, 0)
        outbox.send_one(lease.lease, given, self._grouped or lease.traced, seconds, measures, *told)
        self.call_seconds = seconds
        progress.mark(False)
        return True

    def _encoded(self, value: object) -> list[Any] | None:
        """Return what the job returned in blobs; None where the general way has to look at it."""
        kind = type(value)
        if value is None and not self._keep_none:
            return []
        try:
            if kind in LIGHT:
                return [encode([value], {kind})]
            if isinstance(value, GeneratorType):
                return None
            blob = encode([value], {kind}, self._outbox.arena, writable=True)
        except BaseException:
            return None
        self._reuse.observe(value)
        return [blob]


def _return(value: Any) -> Any:
    return value


def raise_(error: BaseException) -> Any:
    """Raise an error."""
    raise error
