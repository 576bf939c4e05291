"""Items that tasks of an event loop submit: what waits for room, and the outcomes on their way to the loop.

Law: nothing here blocks the loop's thread.  What waits for room is that thread's alone.  Other threads append outcomes,
and ask the loop to come for them: once for all that are there.  A callback takes a slice, and leaves the rest to
another.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable

from conveyor._lean.typing import TYPE_CHECKING, Any, Protocol
from conveyor._system.clock import time

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

# What one callback does at most.  Each outcome wakes a task, and a loop runs all of them before it looks at its timers.
SLICE_ITEMS = 32
SLICE_SECONDS = 0.001
# A slice of items is submitted at once in so many seconds; others are left to a callback.
ROUND_SECONDS = 0.005


class Taker(Protocol):
    """What takes the items: a run of submitted items."""

    def offer(self, outcome: Outcome) -> bool:
        """Take the item that an event loop awaits the outcome of; return False where there is no room for it.

        Waits for nothing.  Where no more are taken, the outcome is that.
        """


class Outcome:
    """What becomes of an item, for a task that awaits `waiter`; a run has it in the place of a Future."""

    __slots__ = (
        "_client",
        "_results",
        "error",
        "is_cancelled",
        "is_given_up",
        "is_refused",
        "item",
        "skipped",
        "waiter",
        "withdraw",
    )

    # Whether an event loop waits for it.
    is_of_loop = True

    def __init__(self, client: LoopClient, item: Any, waiter: Future[None]) -> None:
        self._client = client
        # None once it was taken.
        self.item = item
        # Done when there is an outcome.  It never has an exception: nobody may be left who would take it.
        self.waiter = waiter
        # What has to be done where it is cancelled.
        self.withdraw: Callable[[], object] | None = None
        self.is_cancelled = False
        # Whether the run took no more items.
        self.is_refused = False
        self._results: list[Any] = []
        # Its error; whether that is the item's alone, and ends nothing else; and the error of a part that a Processor
        # went on without.
        self.error: BaseException | None = None
        self.is_given_up = False
        self.skipped: BaseException | None = None

    # What a run does

    def set_running_or_notify_cancel(self) -> bool:
        """Whether the outcome is wanted; where it is not, this tells the task so."""
        if self.is_cancelled:
            self._client.put(self)
        return not self.is_cancelled

    def set_result(self, results: list[Any]) -> None:
        """Have the loop take the results."""
        self._results = results
        self._client.put(self)

    def set_exception(self, error: BaseException) -> None:
        """Have the loop take an error."""
        self.error = error
        self._client.put(self)

    def refuse(self) -> None:
        """Tell the task that the run takes no more."""
        self.is_refused = True
        self._client.put(self)

    def disown(self) -> None:
        """In a process that was forked since: the loop is of the other one."""
        self.withdraw = None

    def cancel(self) -> bool:
        """Have the item dropped, as `Future.cancel` does."""
        self.is_cancelled = True
        self.item = None
        withdraw = self.withdraw
        if withdraw is not None:
            withdraw()
        return True

    # What the loop does

    @property
    def run(self) -> Taker:
        """The run that the item was submitted to."""
        return self._client.run

    def arrive(self) -> None:
        """Wake the task."""
        waiter = self.waiter
        if waiter.done():
            return
        if self.is_cancelled:
            waiter.cancel()
        else:
            waiter.set_result(None)

    def result(self) -> list[Any]:
        """Return the results, or raise the error, once the waiter is done."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                # Its traceback refers to this frame.
                del self
        return self._results


class LoopClient:
    """What an event loop and a run of submitted items have of each other."""

    def __init__(self, loop: AbstractEventLoop, run: Taker) -> None:
        self.loop = loop
        self.run = run
        self._waiting: deque[Outcome] = deque()
        self._outcomes: deque[Outcome] = deque()
        # Whether the loop was asked to come.
        self._is_called = False
        # How many items were submitted at once since then.
        self._since, self._at_once = -math.inf, 0
        # Set when it has come, for the thread that waits for that; and whether that thread has waited in vain.
        self._has_come = threading.Event()
        self._is_late = False

    def submit(self, item: Any) -> Outcome:
        """Submit an item in the loop's thread, as soon as there is room for it, and return what becomes of it."""
        outcome = Outcome(self, item, self.loop.create_future())
        self._waiting.append(outcome)
        # Behind others it waits, too.
        if len(self._waiting) == 1:
            if self._is_slice_left():
                self._offer(1)
            self.call()
        return outcome

    def _is_slice_left(self) -> bool:
        """Whether no slice of items was submitted at once just now: many tasks may do that in one round of the loop."""
        now = time.monotonic()
        if now > self._since + ROUND_SECONDS:
            self._since, self._at_once = now, 0
        self._at_once += 1
        return self._at_once <= SLICE_ITEMS

    def put(self, outcome: Outcome) -> None:
        """Take an outcome, from any thread; `call` has to follow."""
        self._outcomes.append(outcome)

    def call(self) -> None:
        """Have the loop come, from any thread, where it has something to do here."""
        if self._is_called or not (self._outcomes or self._waiting):
            return
        # Two threads may do this at once, and the loop comes once in vain.
        self._is_called = True
        try:
            self.loop.call_soon_threadsafe(self._serve)
        except RuntimeError:
            # It was closed, and its tasks are gone.
            self._outcomes.clear()
            self._waiting.clear()

    def give_way(self) -> None:
        """Wait, within a bound, until the loop has come, where it was asked to.

        A thread keeps the interpreter's lock for 5 ms where another one wants it, and the loop does not get to its
        timers meanwhile; a thread that waits lets go of it at once.
        """
        self._has_come.clear()
        if self._is_called and not self._is_late:
            self._is_late = not self._has_come.wait(ROUND_SECONDS)

    def _serve(self) -> None:
        """Do a slice of what there is."""
        # Before it looks: whatever comes from now on calls it again.
        self._is_called = self._is_late = False
        self._has_come.set()
        until = time.monotonic() + SLICE_SECONDS
        outcomes = self._outcomes
        for _ in range(min(len(outcomes), SLICE_ITEMS)):
            outcomes.popleft().arrive()
        has_more = self._offer(SLICE_ITEMS, until)
        if (outcomes or has_more) and not self._is_called:
            self._is_called = True
            self.loop.call_soon(self._serve)

    def _offer(self, most: int, until: float | None = None) -> bool:
        """Have the run take what waits, as far as it has room; return whether it may have more."""
        waiting = self._waiting
        for _ in range(min(len(waiting), most)):
            if until is not None and time.monotonic() > until:
                return True
            outcome = waiting[0]
            try:
                # Nobody waits any more for one that was cancelled.
                if not (outcome.is_cancelled or self.run.offer(outcome)):
                    return False
            except BaseException:
                # Ctrl-C, which the program may outlive: what waits behind this item is not to wait for it.
                outcome.cancel()
                outcome.waiter.cancel()
                waiting.popleft()
                self.call()
                raise
            waiting.popleft()
        return bool(waiting)
