"""A run that tells apart what comes of each item, and gives it out item by item.

Law: the broker has a traced run, as for submitted items, whose items a source gives.  The caller keeps an item until
what comes of it is given out.  So a window bounds how many items, and bytes, are between source and consumer: as many
as all pipes of the plan hold.  An item that is slow stops the source in the end, and no other item.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections import deque
from collections.abc import Generator
from math import ceil
from operator import itemgetter

from conveyor._lean.typing import Any
from conveyor.core.tuning.autoscaling import MAX_WAITING_WORKERS
from conveyor.engines.base import Gathering, RunProgress
from conveyor.engines.failures import unpicklable_result
from conveyor.engines.process.caller.run import (
    CONCLUSION_SECONDS,
    Run,
    failed_item_of,
    tolerantly_decoded,
)
from conveyor.engines.process.caller.source import JOIN_SECONDS, Source
from conveyor.engines.process.system.waiting import GracePeriod
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import Frozen
from conveyor.engines.process.wire.endpoint import Frame
from conveyor.errors import ConveyorError, ResultError
from conveyor.graph.plan import Plan, SinkNode, StepNode

_place_of = itemgetter(0)


class Window:
    """How many items, and about how many bytes, may be between the source and the consumer.

    >>> window = Window(4, 100)
    >>> window.take(6), window.has_room
    (4, False)
    >>> window.give(1, 0)
    >>> window.take(2)
    1
    """

    def __init__(self, items: int, size: int) -> None:
        self._items = items
        self._bytes = size
        # Reentrant, as a signal handler may close the stream.
        self._changed = threading.Condition(threading.RLock())
        self._closed = False

    @property
    def has_room(self) -> bool:
        """Whether the source may give an item more."""
        return self._items > 0 and self._bytes > 0

    def take(self, items: int) -> int:
        """Wait until there is room; return for how many of so many items that is, 0 where none is awaited any more."""
        with self._changed:
            while not (self._closed or self.has_room):
                self._changed.wait()
            granted = 0 if self._closed else min(items, self._items)
            self._items -= granted
            return granted

    def weigh(self, size: int) -> None:
        """Take in that what was taken has so many bytes."""
        with self._changed:
            self._bytes -= size

    def give(self, items: int, size: int) -> None:
        """Take in that so many items, of so many bytes, are there no more."""
        with self._changed:
            self._items += items
            self._bytes += size
            self._changed.notify_all()

    def close(self) -> None:
        """Have nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class WindowedEnd:
    """The source's end of its channel, which lets through only as much credit as there is room for in a window."""

    def __init__(self, end: Any, run: int, window: Window, credit: int) -> None:
        """`credit`: how many items the source may give without being asked."""
        self._end = end
        self._run = run
        self._window = window
        # How much credit the source has at first.
        self.credit = window.take(credit)
        # The credit that the broker has given, and the window has not let through.
        self._withheld = credit - self.credit
        # A message of another kind, which the source takes next.
        self._next: Frame | None = None

    def send(self, message: messages.Message, blobs: Any = ()) -> None:
        """Send a message."""
        self._end.send(message, blobs)
        if isinstance(message, messages.ReturnCredit):
            self._window.give(message.items, 0)

    def ready(self) -> bool:
        """Whether `receive` need not wait."""
        while self._next is None and self._end.ready():
            self._next = self._receive()
        return self._next is not None or (self._withheld > 0 and self._window.has_room)

    def receive(self) -> Frame:
        """Wait for a message, or for room."""
        while True:
            frame, self._next = self._next, None
            if frame is not None:
                return frame
            if self._withheld:
                credit = self._window.take(self._withheld)
                self._withheld -= credit
                message = messages.Pull(self._run, credit) if credit else messages.StopSource(self._run)
                return message, []
            self._next = self._receive()

    def _receive(self) -> Frame | None:
        """Wait for a message; return None for credit, which is withheld."""
        message, blobs = self._end.receive()
        if isinstance(message, messages.Pull):
            if message.run == self._run:
                self._withheld += message.credit
            return None
        return message, blobs


class _Entry:
    """An item whose outcome was not given out yet."""

    __slots__ = ("error", "is_settled", "item", "parts", "size", "skipped")

    def __init__(self, item: Any, size: int) -> None:
        self.item = item
        # The bytes of the item, and of what has come of it.
        self.size = size
        # What has come of it, with the place of each.
        self.parts: list[tuple[Any, Any]] = []
        self.is_settled = False
        # Its error, where it was given up; and that of a part that a Processor went on without.
        self.error: BaseException | None = None
        self.skipped: BaseException | None = None

    @property
    def outcome(self) -> list[Any] | BaseException:
        """Its outputs, or its error."""
        error = self.error or (None if self.parts else self.skipped)
        if error is not None:
            return error
        if len(self.parts) > 1:
            self.parts.sort(key=_place_of)
        return [value for _, value in self.parts]


class Gatherer:
    """The items between the source and the consumer, and what has come of each."""

    def __init__(self, gathering: Gathering, plan: Plan, progress: RunProgress) -> None:
        self._gathering = gathering
        self._progress = progress
        rooms = [room for node in plan.nodes for room in node.inputs]
        # Where pipes are small, each worker may have its hands full all the same.
        at_work = sum(_most_workers(step, plan.cores) * step.hands for step in plan.steps)
        items = sum(room.items for room in rooms) + at_work
        self.window = Window(items, sum(room.bytes for room in rooms))
        self._stride = max(1, items // 4)
        # The items by their numbers.  Only the source's thread adds some.
        self._entries: dict[int, _Entry] = {}
        self._added = 0
        # The number of the item whose outcome is next; None: whichever settles.
        self._next: int | None = 0 if plan.ordered else None
        # What may be given out, in this order.
        self._ready: deque[_Entry] = deque()
        # This account knows how far the run is, and the broker need not be asked.
        progress.number = 0

    @property
    def return_exceptions(self) -> bool:
        """Whether an item that was given up has its error in the place of its outputs."""
        return self._gathering.return_exceptions

    @property
    def is_empty(self) -> bool:
        """Whether all has been given out."""
        return not self._entries and not self._ready

    def add(self, items: list[Any], size: int) -> None:
        """Take in the items that are sent next, of so many bytes together."""
        each = size // len(items)
        self.window.weigh(each * len(items))
        for number, item in enumerate(items, self._added):
            self._entries[number] = _Entry(item if self._gathering.with_input else None, each)
        self._added += len(items)

    def results(self, lineages: Any, values: list[Any], size: int) -> None:
        """Take in results, of so many bytes together."""
        each = size // len(values)
        self.window.weigh(each * len(values))
        for lineage, value in zip(lineages, values, strict=True):
            entry = self._entries.get(lineage[0])
            if entry is None:
                # Its item was given up meanwhile.
                self.window.give(0, each)
            else:
                entry.size += each
                entry.parts.append((lineage, value))

    def give_up(self, origin: int, error: BaseException) -> None:
        """Take in that an item has failed, of which nothing more comes."""
        entry = self._entries.get(origin)
        if entry is not None:
            entry.error = entry.error or error
            self.settle((origin,))

    def mark(self, origin: int, error: BaseException, skipped: bool = False) -> None:
        """Take in the error of an item of which more may come; `skipped`: it counts only where nothing else comes."""
        entry = self._entries.get(origin)
        if entry is None:
            return
        if skipped:
            entry.skipped = error
        else:
            entry.error = entry.error or error

    def settle(self, origins: Any) -> None:
        """Take in that nothing more comes of these items."""
        entries, ready = self._entries, self._ready
        for origin in origins:
            entry = entries.get(origin)
            if entry is None:
                continue
            self._progress.through += 1
            if self._next is None:
                ready.append(entries.pop(origin))
                continue
            entry.is_settled = True
            while (first := entries.get(self._next)) is not None and first.is_settled:
                ready.append(entries.pop(self._next))
                self._next += 1

    def take(self) -> list[Any] | None:
        """Return as many outcomes as are given out at once, as results; None where there is none."""
        ready = self._ready
        if not ready:
            return None
        results: list[Any] = []
        items = size = 0
        while ready and items < self._stride:
            entry = ready.popleft()
            items += 1
            size += entry.size
            outcome = entry.outcome
            outputs = [outcome] if isinstance(outcome, BaseException) else outcome
            if outputs is outcome:
                self._progress.results += len(outputs)
            if self._gathering.with_input:
                results.append((_thawed(entry.item), outcome))
            else:
                results += outputs
        self.window.give(items, size)
        return results


def _most_workers(step: StepNode, cores: float) -> int:
    """Return how many workers a step may get."""
    return step.workers if not step.auto else step.most or max(MAX_WAITING_WORKERS, ceil(cores))


def _thawed(item: Any) -> Any:
    """Return an item as it was when it was pulled; raises ResultError where that cannot be made again."""
    if type(item) is not Frozen:
        return item
    try:
        return pickle.loads(item.data)
    except Exception as error:
        raise unpicklable_result(error) from error


class GatheredSource(Source):
    """Keeps the items that it sends."""

    first_message = staticmethod(lambda run: messages.StartRun(run, traced=True, streamed=True))

    def __init__(self, run: int, items: Any, end: Any, credit: int, *what: Any, gatherer: Gatherer) -> None:
        self.gatherer = gatherer
        windowed: Any = WindowedEnd(end, run, gatherer.window, credit)
        super().__init__(run, items, windowed, windowed.credit, *what)

    def _encoded(self, items: list[Any]) -> Any:
        blob = super()._encoded(items)
        if blob is not None:
            # Before it is sent: what comes of it may be here at once.
            self.gatherer.add(items, len(blob))
        return blob

    def stop(self) -> None:
        super().stop()
        self.gatherer.window.close()


class GatheredRun(Run):
    """The run, as the consumer sees it."""

    def __init__(self, owner: Any, number: int, source: GatheredSource, sink: SinkNode) -> None:
        super().__init__(owner, number, source, sink)
        self._gatherer = source.gatherer

    def _parts(self) -> Generator[list[Any], None, None]:
        while (part := self._take_part()) is not None:
            yield part

    def _take_part(self) -> list[Any] | None:
        """Wait for the outcome of an item, or of several; return None at the end."""
        taken = self._take()
        return None if taken is None else taken[0]

    def _wait_for_results(self) -> tuple[list[Any], int, float] | None:
        while not self._given_up:
            if (results := self._gatherer.take()) is not None:
                return results, 0, 0.0
            if self.finished:
                assert self._gatherer.is_empty, "the run is over, and an item has no outcome"
                self.progress.finished = self.over = True
                return None
            self._take_in(*self._receive())
        raise self._left()

    def _take_in(self, message: messages.Message, blobs: list[Any]) -> None:
        """Take in a message; raises the error of an item where that ends the run."""
        if getattr(message, "run", None) != self.number:
            return
        match message:
            case messages.ItemResults():
                self._take_results(message, blobs)
            case messages.ItemGivenUp():
                self._take_failure(message)
            case messages.Results():
                # Without results: somebody waits for the room of those that were taken.
                self._unreported.hurry(message.tell_within)
            case messages.RunFinished():
                self.finished = True
            case messages.RunCancelled():
                # That has woken this thread.
                pass
            case _:
                raise messages.unexpected(message, "The caller, in a run whose results are told apart by item,")

    def _take_results(self, message: messages.ItemResults, blobs: list[Any]) -> None:
        if message.lineages:
            size = sum(map(len, blobs))
            values = self._values_of(message, blobs)
            self._gatherer.results(message.lineages, values, size)
            self._note_taken(len(values), size)
        self._unreported.hurry(message.tell_within)
        self._gatherer.settle(message.settled)

    def _values_of(self, message: messages.ItemResults, blobs: list[Any]) -> list[Any]:
        try:
            return self._decoded(message.spec, blobs)
        except ResultError as error:
            if not self._gatherer.return_exceptions:
                raise
            cause = error.__cause__
            assert cause is not None
            values, causes = tolerantly_decoded(message.spec, blobs, len(message.lineages), cause)
        for lineage, each in zip(message.lineages, causes, strict=True):
            if each is not None:
                self._gatherer.mark(lineage[0], unpicklable_result(each))
        return values

    def _take_failure(self, message: messages.ItemGivenUp) -> None:
        """Take in that an item has failed, or lost a part; raises its error where that ends the run."""
        origin, tolerant = message.origin, self._gatherer.return_exceptions
        if origin is None or (message.skipped and not tolerant):
            # The session has dealt with that.
            return
        error = failed_item_of(message).error
        if not tolerant:
            # The workers have ended when it is raised.
            with contextlib.suppress(ConveyorError):
                self._owner.stats()
            raise error
        if message.skipped:
            self._gatherer.mark(origin, error, skipped=True)
        else:
            self._gatherer.give_up(origin, error)

    def _conclude(self) -> bool:
        try:
            if not self._has_given_all():
                return False
            while not self.finished:
                self._take_in(*self._receive())
        except ConveyorError as error:
            if getattr(error, "phase", None) == "finish":
                raise
            # What goes wrong behind the last result that the consumer wants is no error.
            return False
        self.over = self.progress.finished = True
        self._finish()
        return True

    def _has_given_all(self) -> bool:
        """Whether the consumer has the outcome of every item, and the source has ended; within a bound."""
        gatherer, source, grace = self._gatherer, self.source, GracePeriod(CONCLUSION_SECONDS)
        # A source may be stuck in the caller's own code.
        while gatherer.is_empty and (left := grace.left()):
            if self.progress.ended or self.finished:
                return gatherer.is_empty
            if not (source.ends_at_once() or left > CONCLUSION_SECONDS - JOIN_SECONDS):
                return False
            if source.stays:
                source.feed()
            if self._owner.has_message(grace.slice()):
                self._take_in(*self._owner.receive())
        return False
