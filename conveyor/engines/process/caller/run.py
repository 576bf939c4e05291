"""One stream of items through a session, as the caller sees it.

Law: the run reports what was taken in amounts worth a message, so that the broker can send more.  Whatever ends the
iteration early gives the run up.
"""

from __future__ import annotations

import math
from collections.abc import Generator

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.process.caller.source import Source
from conveyor.engines.process.wire.codec import decode, items_of
from conveyor.engines.process.wire.messages import Consumed, Results, RunFinished
from conveyor.errors import ResultError, StateError
from conveyor.graph.plan import SinkNode

if TYPE_CHECKING:
    from conveyor.engines.process.caller.session import Session

# How often a source without a thread of its own looks whether there is room.
FEED_INTERVAL_SECONDS = 0.002
# How long a thread that ends a run or a session waits for others that are still in it.
THREAD_EXIT_SECONDS = 1.0

CLOSED = "the pipeline was closed while a run was going on"


class Run:
    def __init__(self, owner: Session, number: int, source: Source, sink: SinkNode) -> None:
        self._owner = owner
        self.number = number
        self.source = source
        # So many results, or bytes of them, are worth a message.
        self._report_items = max(1, sink.bound // 4)
        self._report_bytes = max(1, sink.bound_bytes // 8)
        self._unreported_items = 0
        self._unreported_bytes = 0
        # How long to wait for more, in seconds, before a report.
        self._report_within = math.inf
        self._over = False
        # Whether the broker has said that it is over, and whether another thread has given it up.
        self.finished = False
        self._given_up = False

    def chunks(self) -> Generator[list[Any], None, None]:
        """Yield the results in lists, as they come; closing the iterator cancels the run."""
        try:
            while (taken := self._take()) is not None:
                results, size, within = taken
                # As many at a time as the consumer may have in hand while the broker is told of them.
                stride = self._report_items
                if size > self._report_bytes:
                    stride = max(1, min(stride, self._report_bytes * len(results) // size))
                del taken
                for start in range(0, len(results), stride):
                    part = results[start : start + stride] if len(results) > stride else results
                    self._unreported_items += len(part)
                    self._unreported_bytes += size * len(part) // len(results)
                    if self._unreported_items >= self._report_items or self._unreported_bytes >= self._report_bytes:
                        self._report()
                    yield part
                results = part = []
                self._report_within = min(within, self._report_within)
        except GeneratorExit:
            self.cancel()
            raise
        except BaseException:
            self._over = True
            if not self._given_up:
                self._owner.abort()
            self.source.join()
            raise
        self.source.join()
        self._owner.finished(self)

    def _feed_meanwhile(self) -> None:
        """Pull items in this thread, as far as there is room, until a message is here."""
        self.source.feed()
        while not self._owner.has_message(FEED_INTERVAL_SECONDS):
            self.source.feed()

    def _take(self) -> tuple[list[Any], int, float] | None:
        """Wait for results; return them, their bytes, and how soon to report them; None at the end."""
        owner = self._owner
        with owner.taking:
            while not self._given_up:
                wait = self._report_within if self._unreported_items else math.inf
                if wait == 0.0 or (wait < math.inf and not owner.has_message(wait)):
                    self._report()
                if self.source.stays:
                    self._feed_meanwhile()
                message, blobs = owner.receive()
                if isinstance(message, Results):
                    if message.run == self.number and not self._given_up:
                        # What is in shared memory lives as long as something here refers to it.
                        return self._decoded(message.spec, blobs), sum(map(len, blobs)), message.tell_within
                elif isinstance(message, RunFinished) and message.run == self.number:
                    self.finished = self._over = True
                    return None
        raise StateError("the stream was closed by another thread, or a signal handler, while it was waited for")

    def _report(self) -> None:
        """Tell the broker how many results were taken: it may send as many more."""
        self._owner.send(Consumed(self.number, self._unreported_items, time.process_time()))
        self._unreported_items = self._unreported_bytes = 0
        self._report_within = math.inf

    def _decoded(self, spec: Any, blobs: list[Any]) -> list[Any]:
        try:
            return items_of(spec, [decode(blob) for blob in blobs])
        except Exception as error:
            if self._owner.ended:
                # Another thread has closed what it was read from.
                raise StateError(CLOSED) from None
            raise ResultError(
                f"A result could not be unpickled in the calling process ({type(error).__name__}: {error}). "
                "Return plain data, or objects that can be rebuilt from their pickle."
            ) from error

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    def cancel(self) -> None:
        """Give the run up, where it is not over; a thread that waits for its results gets StateError."""
        if self._over or self._owner.ended or self._owner.is_forked_copy:
            return
        self._given_up = True
        self.source.stop()
        self._owner.leave(self)
        self._over = True
        self.source.join()
        # The broker says that it has heard of that, and so wakes the thread that waits.
        if self._owner.taking.acquire(timeout=THREAD_EXIT_SECONDS):
            self._owner.taking.release()
        else:
            self._owner.abort()
