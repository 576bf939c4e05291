"""One stream of items through a session, as the caller sees it.

Law: the run reports what was taken in amounts worth a message, so that the broker can send more.  Whatever ends the
iteration early gives the run up.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from operator import length_hint

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_postponed
from conveyor.core.data.pieces import items_of
from conveyor.engines.base import RunProgress
from conveyor.engines.failures import failed_item, unpicklable_result
from conveyor.engines.process.caller.run_keeper import CLOSED
from conveyor.engines.process.caller.source import JOIN_SECONDS, Source
from conveyor.engines.process.caller.unreported import Unreported
from conveyor.engines.process.system.waiting import GracePeriod
from conveyor.engines.process.wire.codec import decode
from conveyor.engines.process.wire.messages import (
    ConclusionReply,
    ConclusionRequest,
    ItemGivenUp,
    Results,
    RunFinished,
)
from conveyor.errors import ConveyorError, StateError
from conveyor.graph.plan import SinkNode

if TYPE_CHECKING:
    from conveyor.engines.process.caller.session import Session
    from conveyor.engines.process.wire.endpoint import Frame
    from conveyor.errors import FailedItem

# How often a source without a thread of its own looks whether there is room.
FEED_INTERVAL_SECONDS = 0.002
# How long a thread that ends a run or a session waits for others that are still in it.
THREAD_EXIT_SECONDS = 1.0
# How long a consumer that stops waits for the broker's word on whether the run is over.
CONCLUSION_SECONDS = 2.0


class Run:
    def __init__(self, owner: Session, number: int, source: Source, sink: SinkNode) -> None:
        self._owner = owner
        self.number = number
        self.source = source
        self._unreported = Unreported(sink)
        # How many results were given to the consumer.  Of these it may not have taken `rest` yet; and so many more of
        # the same message were not given yet.
        self._given = 0
        self.rest: Iterator[Any] = iter(())
        self._behind = 0
        # Whether a thread waits for results; a signal handler may interrupt it.
        self._is_taking = False
        # Whether nothing more will come.
        self.over = False
        # Whether the broker has said that it is over, and whether another thread has given it up.
        self.finished = False
        self._given_up = False

    @property
    def progress(self) -> RunProgress:
        """How far the run is."""
        return self.source.progress

    def chunks(self) -> Generator[list[Any], None, None]:
        """Yield the results in lists, as they come; closing the iterator cancels the run."""
        try:
            yield from self._parts()
        except GeneratorExit:
            with interrupts_postponed():
                self.conclude()
            self.cancel()
            raise
        except BaseException:
            self._fail()
            raise
        self._finish()

    def _parts(self) -> Generator[list[Any], None, None]:
        """Yield as many results at a time as the consumer may have in hand while the broker is told of them."""
        while (taken := self._take()) is not None:
            results, size, within = taken
            stride = self._unreported.stride(len(results), size)
            del taken
            for start in range(0, len(results), stride):
                part = results[start : start + stride] if len(results) > stride else results
                self.progress.results += len(part)
                self._behind = len(results) - start - len(part)
                self._note_taken(len(part), size * len(part) // len(results), self._behind)
                self._given += len(part)
                yield part
            results = part = []
            self._unreported.hurry(within)

    def _note_taken(self, results: int, size: int, behind: int = 0) -> None:
        """Count that so many results, of so many bytes, were taken, and report that where it is worth a message."""
        if self._unreported.add(results, size, behind):
            self._report()

    def _fail(self) -> None:
        """After an exception, end everything."""
        self.over = True
        if not self._given_up:
            self._owner.abort()
        self.source.join()

    def _finish(self) -> None:
        """Let go of everything, after the broker has said that the run is over."""
        self.source.join()
        self._owner.finished(self)

    def conclude(self) -> bool:
        """Where a consumer stops that has taken the last result, wait for calls of `finish`; return whether that is so.

        What these still give is dropped.  Raises what they raise.  Any thread may call it; while another one waits for
        results, the run is not over.
        """
        owner = self._owner
        if self.over or self._given_up or self._behind or length_hint(self.rest):
            return self.over
        if owner.is_forked_copy or owner.ended or not owner.taking.acquire(blocking=False):
            return False
        try:
            return not self._is_taking and self._conclude()
        except BaseException:
            self._fail()
            raise
        finally:
            owner.taking.release()

    def _conclude(self) -> bool:
        dropped: list[tuple[Any, list[Any]]] = []
        try:
            reply = self._ask_for_conclusion(dropped)
        except ConveyorError as error:
            if getattr(error, "phase", None) == "finish" and not dropped:
                raise
            # What goes wrong at items that the consumer does not want is no error.
            return False
        if reply is None or not reply.over:
            return False
        # The broker waits until it hears that there is room for more.
        self._unreported.add(sum(len(self._decoded(*each)) for each in dropped), 0)
        while not self.finished:
            self._report()
            taken = self._take()
            if taken is not None:
                if not reply.drops:
                    return False
                self._unreported.add(len(taken[0]), 0)
        self.over = self.progress.finished = True
        self._finish()
        return True

    def _ask_for_conclusion(self, dropped: list[tuple[Any, list[Any]]]) -> ConclusionReply | None:
        """Return the broker's word on whether the run is over; None where the source takes its time, or the broker.

        Results that come before it are `dropped`.
        """
        owner, grace = self._owner, GracePeriod(CONCLUSION_SECONDS)
        self._report()
        owner.send(ConclusionRequest(self.number, self._given))
        # A source may be stuck in the caller's own code.
        while (left := grace.left()) and (self.source.ends_at_once() or left > CONCLUSION_SECONDS - JOIN_SECONDS):
            if self.source.stays:
                self.source.feed()
            if not owner.has_message(grace.slice()):
                continue
            message, blobs = owner.receive()
            if isinstance(message, ConclusionReply) and message.run == self.number:
                return message
            if isinstance(message, RunFinished) and message.run == self.number:
                self.finished = True
            elif isinstance(message, Results) and message.run == self.number:
                dropped.append((message.spec, blobs))
        return None

    def _feed_meanwhile(self) -> None:
        """Pull items in this thread, as far as there is room, until a message is here."""
        self.source.feed()
        while not self._owner.has_message(FEED_INTERVAL_SECONDS):
            self.source.feed()

    def _take(self) -> tuple[list[Any], int, float] | None:
        """Wait for results; return them, their bytes, and how soon to report them; None at the end."""
        owner = self._owner
        with owner.taking:
            before, self._is_taking = self._is_taking, True
            try:
                return self._wait_for_results()
            finally:
                self._is_taking = before

    def _wait_for_results(self) -> tuple[list[Any], int, float] | None:
        while not self._given_up:
            message, blobs = self._receive()
            if isinstance(message, Results):
                if message.run == self.number and not self._given_up:
                    # What is in shared memory lives as long as something here refers to it.
                    return self._decoded(message.spec, blobs), sum(map(len, blobs)), message.tell_within
            elif isinstance(message, RunFinished) and message.run == self.number:
                self.progress.finished = True
                self.finished = self.over = True
                return None
        raise self._left()

    @staticmethod
    def _left() -> StateError:
        return StateError("the stream was closed by another thread, or a signal handler, while it was waited for")

    def _receive(self) -> Frame:
        """Wait for a message, and pull items or report meanwhile where that is due."""
        owner = self._owner
        wait = self._unreported.patience
        if wait == 0.0 or (wait < math.inf and not owner.has_message(wait)):
            self._report()
        if self.source.stays:
            self._feed_meanwhile()
        return owner.receive()

    def _report(self) -> None:
        """Tell the broker how many results were taken: it may send as many more."""
        self._owner.send(self._unreported.report(self.number))

    def _decoded(self, spec: Any, blobs: list[Any]) -> list[Any]:
        try:
            return items_of(spec, [decode(blob) for blob in blobs])
        # SystemExit may be that of a signal handler, which ends the program.
        except Exception as error:
            if self._owner.ended:
                # Another thread has closed what it was read from.
                raise StateError(CLOSED) from None
            raise unpicklable_result(error) from error

    def cancel(self) -> None:
        """Give the run up, where it is not over; a thread that waits for its results gets StateError."""
        if self.over or self._owner.ended or self._owner.is_forked_copy:
            return
        self._given_up = True
        self.source.stop()
        self._owner.leave(self)
        self.over = True
        self.source.join()
        # The broker says that it has heard of that, and so wakes the thread that waits.
        if self._owner.taking.acquire(timeout=THREAD_EXIT_SECONDS):
            self._owner.taking.release()
        else:
            self._owner.abort()


def failed_item_of(message: ItemGivenUp) -> FailedItem:
    """Return what a message says was given up."""
    attempts, when = message.attempts or message.why.attempts, message.when or time.time()
    return failed_item(message.processor, message.first, message.last, attempts, when, message.why)


def tolerantly_decoded(
    spec: Any, blobs: list[Any], results: int, error: BaseException
) -> tuple[list[Any], list[BaseException | None]]:
    """Return so many results, of which some cannot be unpickled, and of each why that is so; None: it could be."""
    from conveyor.engines.process.worker.lease_items import cause_of_unloadable, load_tolerantly

    try:
        values = items_of(spec, [load_tolerantly(blob) for blob in blobs])
        return values, list(map(cause_of_unloadable, values))
    except Exception:
        return [None] * results, [error] * results
