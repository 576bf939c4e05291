"""What is behind an asynchronous stream: a window of submitted items, and their results as a task asks for them.

Law: one task pulls the items, and none is pulled that the window has no room for.  Whatever ends the stream ends that
task, the thread of the source and what was submitted; and the pipeline, where the stream has opened it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from functools import partial
from operator import length_hint

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core.tuning.chunk_size import ItemWeight
from conveyor.engines.failures import source_raised, without_our_frames
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.system.spawning import cause_and_remedy, thread_started
from conveyor.engines.process.wire.codec import ReuseDetector
from conveyor.engines.thread.items import size_of, size_of_all, snapshot
from conveyor.errors import ProcessError, SourceError
from conveyor.event_loop import begun, ended, left, opened, opening, settled, submit
from conveyor.given import Given, iterable_of, warn_of_table
from conveyor.stream import AsyncStream

if TYPE_CHECKING:
    from conveyor.engines.base import Gathering
    from conveyor.engines.loops import Outcome
    from conveyor.graph.builder import Description
    from conveyor.graph.plan import Plan
    from conveyor.operations import Lifecycle

# A task that does not have to wait has the event loop for so long, and then lets others have a turn.
TURN_SECONDS = 0.001
# The most items of a stream that are submitted at once.
MOST_ITEMS = 2_000
# How many items the thread of a source is ahead, at most.
MOST_AHEAD = 64
# How long the end waits for the thread of a source that is asked for an item, and for the input to be closed.
ASKING_SECONDS = 0.2
CLOSING_SECONDS = 5.0
# What gives its items at once, without code of the program.
_PROMPT_TYPES = frozenset({list, tuple, range, set, frozenset, dict})
_NOTHING = object()


def new_stream(
    owner: object, lifecycle: Lifecycle, description: Description, given: Given, stacklevel: int
) -> AsyncStream[Any]:
    """Return a stream of the input in `given`, which is taken out of it; the stream keeps `owner` alive."""
    description.check_single_items()
    warn_of_table(given[0], stacklevel + 1)
    return AsyncStream(_results(owner, lifecycle, given, opening(lifecycle, stacklevel=stacklevel + 1)))


async def _results(
    owner: object, lifecycle: Lifecycle, given: Given, call: Callable[[], Any]
) -> AsyncGenerator[Any, None]:
    """Yield the results of the input in `given`; `call` opens the pipeline."""
    has_opened = not lifecycle.opened
    if has_opened:
        await opened(lifecycle, call)
    window: Window | None = None
    rest: Iterator[Any] = iter(())
    try:
        while lifecycle.jobs is None:
            await begun(lifecycle, None, stacklevel=2)
        assert lifecycle.session is not None
        window = Window(lifecycle, lifecycle.session.plan, given.gathering)
        pulling = asyncio.create_task(window.pull(given))
        try:
            until = time.monotonic() + TURN_SECONDS
            while (results := await window.take()) is not None:
                rest = iter(results)
                del results
                for result in rest:
                    yield result
                    if time.monotonic() >= until:
                        await asyncio.sleep(0)
                        until = time.monotonic() + TURN_SECONDS
        finally:
            await window.end(pulling)
    finally:
        if has_opened:
            # After the last result there is nothing to give up.
            is_whole = window is not None and window.is_whole and not length_hint(rest)
            await left(lifecycle, abort=not is_whole)


class Window:
    """The items of a stream that were submitted, and whose results nobody has taken."""

    def __init__(self, lifecycle: Lifecycle, plan: Plan, gathering: Gathering | None) -> None:
        self._lifecycle = lifecycle
        # How what comes of each item is to be given out; None: result by result.
        self._gathering = gathering
        self._is_ordered = plan.ordered
        # The window is as wide as the pipes, and narrower where results are large.
        self._width = min(MOST_ITEMS, sum(room.items for node in plan.nodes for room in node.inputs))
        self._least = sum(step.workers for step in plan.steps) + 1
        self._weight = ItemWeight(plan.steps[0].bound_bytes)
        # In the order of the input, with the item where it is wanted beside its results; and, where results come in any
        # order, those that have an outcome.
        self._outcomes: dict[Outcome, Any] = {}
        self._settled: deque[Outcome] = deque()
        # Whether there is something to take, and whether there is room.
        self._something, self._room = asyncio.Event(), asyncio.Event()
        self._pulled = 0
        # Whether no more items come, and why, where something went wrong; and whether nobody wants more.
        self._has_ended = self._is_over = False
        self._error: BaseException | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all was taken."""
        return self._has_ended and self._error is None and not self._outcomes

    async def pull(self, given: list[Any]) -> None:
        """Pull and submit all items of the input in `given`, as far as there is room."""
        iterator: AsyncIterator[Pulled] | None = None
        try:
            iterator = _asynchronous(given.pop(), min(MOST_AHEAD, max(1, self._width // 4))).__aiter__()
            until = time.monotonic() + TURN_SECONDS
            while not self._is_over and await self._pull(iterator):
                if time.monotonic() >= until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + TURN_SECONDS
                while len(self._outcomes) >= max(self._least, self._weight.limit(self._width)):
                    self._room.clear()
                    await self._room.wait()
        except asyncio.CancelledError as error:
            if self._is_over:
                raise
            # The source has awaited something that was cancelled.
            self._error = self._failed(error)
        except BaseException as error:
            self._error = error
        finally:
            self._has_ended = True
            self._something.set()
            close = getattr(iterator, "aclose", None)
            if close is not None:
                # It runs the user's code.
                await asyncio.wait_for(close(), CLOSING_SECONDS)

    async def _pull(self, iterator: AsyncIterator[Pulled]) -> bool:
        """Pull and submit an item; return whether there was one."""
        try:
            kept, item = await iterator.__anext__()
        except StopAsyncIteration:
            return False
        except (Exception, SystemExit) as error:
            raise self._failed(error) from error
        self._pulled += 1
        outcome = await submit(self._lifecycle, item, stacklevel=2)
        self._outcomes[outcome] = kept if self._gathering is not None and self._gathering.with_input else None
        del item, kept
        if not self._is_ordered:
            outcome.waiter.add_done_callback(partial(self._settle, outcome))
        self._something.set()
        return True

    def _failed(self, cause: BaseException) -> SourceError:
        error = source_raised(self._pulled, cause)
        error.__cause__ = cause.with_traceback(without_our_frames(cause.__traceback__))
        return error

    def _settle(self, outcome: Outcome, waiter: object) -> None:
        self._settled.append(outcome)
        self._something.set()

    async def take(self) -> list[Any] | None:
        """Wait for the next results, those of one item, and return them; None behind the last."""
        while not (self._settled or (self._is_ordered and self._outcomes)):
            if self._has_ended and not self._outcomes:
                if self._error is not None:
                    raise self._error
                return None
            self._something.clear()
            await self._something.wait()
        outcome = next(iter(self._outcomes)) if self._is_ordered else self._settled.popleft()
        end = await settled(self._lifecycle, outcome, stacklevel=3)
        results = end.result() if self._gathering is None else _gathered(self._gathering, self._outcomes[outcome], end)
        del self._outcomes[outcome]
        if results:
            self._weight.weigh(len(results), size_of_all(results, set(map(type, results))))
        self._room.set()
        return results

    async def end(self, pulling: asyncio.Task[None]) -> None:
        """Pull no more, and give up what nobody has taken."""
        self._is_over = True
        pulling.cancel()
        outcomes, self._outcomes = self._outcomes, {} if self.is_whole else self._outcomes
        for outcome in outcomes:
            outcome.cancel()
        await ended(pulling)


def _gathered(gathering: Gathering, item: Any, outcome: Outcome) -> list[Any]:
    """Return what is given out of an item; raises its error, unless that is given out.

    An error that ends more than the item is raised in any case.
    """
    found: Any = None
    if gathering.return_exceptions and outcome.is_given_up:
        found = outcome.error
    else:
        found = outcome.result()
        if gathering.return_exceptions and not found and outcome.skipped is not None:
            found = outcome.skipped
    if gathering.with_input:
        return [(item, found)]
    return found if isinstance(found, list) else [found]


# An item as the input gave it, and what is submitted for it.
Pulled = tuple[Any, Any]


def _asynchronous(items: Any, ahead: int) -> AsyncIterable[Pulled]:
    """Return an asynchronous iterable of the items of any input; a thread that pulls them is so many `ahead`."""
    if hasattr(type(items), "__aiter__"):
        return AskedSource(items)
    iterable = iterable_of(items)
    return _each_of(iterable) if type(iterable) in _PROMPT_TYPES else SourceThread(iterable, ahead)


async def _each_of(items: Iterable[Any]) -> AsyncGenerator[Pulled, None]:
    for item in items:
        yield item, item


class Snapshots:
    """What is submitted for items that wait while the input gives more: it may fill one object again and again."""

    def __init__(self) -> None:
        self._detector = ReuseDetector(size_of)

    def of(self, item: Any) -> Pulled:
        """Return an item as it is to be kept, and as it is to be submitted: as it is now, whatever the input does."""
        detector = self._detector
        detector.observe(item)
        if detector.repeats:
            item = snapshot(item)
        return item, snapshot(item) if detector.undecided else item


class AskedSource(AsyncIterator[Pulled]):
    """Items of an asynchronous input, which the loop asks for them."""

    def __init__(self, items: AsyncIterable[Any]) -> None:
        self._iterator = items.__aiter__()
        self._snapshots = Snapshots()

    async def __anext__(self) -> Pulled:
        return self._snapshots.of(await self._iterator.__anext__())

    async def aclose(self) -> None:
        """Close the input, where that is a generator."""
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


class SourceThread(AsyncIterator[Pulled]):
    """Items of an iterable that a thread of its own pulls: they may take long."""

    def __init__(self, items: Iterable[Any], ahead: int) -> None:
        self._items: list[Iterable[Any]] = [items]
        self._loop = asyncio.get_running_loop()
        self._snapshots = Snapshots()
        # What was pulled, and whether it may be one item more; and whether the loop was told of something.
        self._pulled: deque[Pulled] = deque()
        self._ahead = threading.Semaphore(ahead)
        self._came = asyncio.Event()
        self._is_called = False
        # Whether nobody wants more, whether the input is being asked, and whether the thread is done, and why.
        self._is_stopped = self._is_asking = self._is_over = False
        self._error: BaseException | None = None

    def __aiter__(self) -> SourceThread:
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(self._serve,), name="conveyor-source", daemon=True)
        if not thread_started(thread):
            raise ProcessError(f"The thread that pulls the input could not be started: {cause_and_remedy(None)}")
        return self

    async def __anext__(self) -> Pulled:
        while not self._pulled:
            if self._is_over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            await self._call_of_thread()
        self._ahead.release()
        return self._pulled.popleft()

    async def aclose(self) -> None:
        """Pull no more, and wait, within a bound, until the thread has closed the input."""
        self._is_stopped = True
        self._ahead.release()
        begun = time.monotonic()
        while not self._is_over:
            # One that is asked for an item may be stuck there.
            left = begun + (ASKING_SECONDS if self._is_asking else CLOSING_SECONDS) - time.monotonic()
            if left <= 0:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._call_of_thread(), min(left, ASKING_SECONDS))
        self._pulled.clear()

    async def _call_of_thread(self) -> None:
        """Wait for the thread's next call, unless there is something already."""
        self._came.clear()
        if not (self._pulled or self._is_over) or self._is_stopped:
            await self._came.wait()

    def _serve(self) -> None:
        """Pull all items, as far as there is room."""
        try:
            self._pull_all()
        except BaseException as error:
            self._error = error.with_traceback(without_our_frames(error.__traceback__))
        self._is_over = True
        self._call()

    def _pull_all(self) -> None:
        with gate.passed():
            iterator: Any = iter(self._items.pop())
        try:
            while self._ahead.acquire() and not self._is_stopped:
                with gate.passed():
                    self._is_asking = True
                    try:
                        item = next(iterator, _NOTHING)
                    finally:
                        self._is_asking = False
                if item is _NOTHING:
                    return
                # Copying an item may run code of the program.
                with gate.passed():
                    self._pulled.append(self._snapshots.of(item))
                del item
                self._call()
        finally:
            if isinstance(iterator, Generator):
                with gate.passed():
                    iterator.close()

    def _call(self) -> None:
        """Have the loop look."""
        if not self._is_called:
            self._is_called = True
            try:
                self._loop.call_soon_threadsafe(self._take_call)
            except RuntimeError:
                # The loop was closed.
                self._is_stopped = True

    def _take_call(self) -> None:
        self._is_called = False
        self._came.set()
