"""One stream of items through a session, as the caller sees it.

Law: gives back the room of what was taken, in amounts worth a message; whatever ends it early gives the run up.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.process.caller.source import Source
from conveyor.engines.process.wire.codec import decode, items_of
from conveyor.engines.process.wire.messages import Consumed, Results, RunFinished
from conveyor.errors import ResultError, StateError
from conveyor.graph.plan import SinkNode

if TYPE_CHECKING:
    from conveyor.engines.process.caller.session import Session

# How often a source that has no thread of its own looks whether there is room.
FEED_SECONDS = 0.002
# How long a thread waits for others that are still at what belongs to a session that it ends, before it closes that.
LETTING_GO_SECONDS = 1.0

CLOSED = "the pipeline was closed while a run was going on"


class Run:
    """One stream of items through a session."""

    def __init__(self, session: Session, number: int, items: Iterable[Any], sink: SinkNode) -> None:
        self._session = session
        self.number = number
        # Room is given back in amounts worth a message.
        self._worth = max(1, sink.bound // 4)
        self._worth_bytes = max(1, sink.bound_bytes // 8)
        self._untold = 0
        self._untold_bytes = 0
        # How long to wait for more, in seconds, before telling of it.
        self._tell_within = math.inf
        self._over = False
        # Whether the word of its end is here, and whether another thread has given it up.
        self.finished = False
        self._left = False
        self.source = Source(
            number,
            items,
            session.feed,
            session.first_pull,
            session.first_bytes,
            session.shown,
            session.arena,
            session.feeding,
        )

    def chunks(self) -> Generator[list[Any], None, None]:
        """Yield the results in lists, as they come; closing the iterator cancels the run."""
        try:
            while (taken := self._take()) is not None:
                results, size, within = taken
                # As many at a time as the consumer may have in hand while their room is given back.
                stride = self._worth
                if size > self._worth_bytes:
                    stride = max(1, min(stride, self._worth_bytes * len(results) // size))
                del taken
                for start in range(0, len(results), stride):
                    part = results[start : start + stride] if len(results) > stride else results
                    self._untold += len(part)
                    self._untold_bytes += size * len(part) // len(results)
                    if self._untold >= self._worth or self._untold_bytes >= self._worth_bytes:
                        self._tell()
                    yield part
                results = part = []
                self._tell_within = min(within, self._tell_within)
        except GeneratorExit:
            self.cancel()
            raise
        except BaseException:
            self._over = True
            if not self._left:
                self._session.abort()
            self.source.join()
            raise
        self.source.join()
        self._session.finished(self)

    def _feed_meanwhile(self) -> None:
        """Pull in this very frame what there is room for, until a message is here."""
        self.source.feed()
        while not self._session.results.ready(FEED_SECONDS):
            self.source.feed()

    def _take(self) -> tuple[list[Any], int, float] | None:
        """Wait for results; return them, how many bytes they had, and how soon to tell of them; None at the end."""
        session = self._session
        with session.taking:
            while not self._left:
                wait = self._tell_within if self._untold else math.inf
                if wait == 0.0 or (wait < math.inf and not session.results.ready(wait)):
                    self._tell()
                if self.source.stays:
                    self._feed_meanwhile()
                message, blobs = session.receive()
                if isinstance(message, Results):
                    if message.run == self.number and not self._left:
                        # What is in shared memory lives as long as something here refers to it.
                        return self._decoded(message.spec, blobs), sum(map(len, blobs)), message.tell_within
                elif isinstance(message, RunFinished) and message.run == self.number:
                    self.finished = self._over = True
                    return None
        raise StateError("the stream was closed by another thread, or a signal handler, while it was waited for")

    def _tell(self) -> None:
        """Give back the room of what was taken."""
        self._session.send(Consumed(self.number, self._untold, time.process_time()))
        self._untold = self._untold_bytes = 0
        self._tell_within = math.inf

    def _decoded(self, spec: Any, blobs: list[Any]) -> list[Any]:
        try:
            return items_of(spec, [decode(blob) for blob in blobs])
        except Exception as error:
            if self._session.ended:
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
        """Give the run up, where it is not over; whoever waits for its results gets StateError."""
        if self._over or self._session.ended or not self._session.mine:
            return
        self._left = True
        self.source.stop()
        self._session.leave(self)
        self._over = True
        self.source.join()
        # The broker says that it has heard of that, and so wakes who waits.
        if self._session.taking.acquire(timeout=LETTING_GO_SECONDS):
            self._session.taking.release()
        else:
            self._session.abort()
