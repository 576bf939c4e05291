"""Which item is to blame for the end of a worker, and when that is once too often.

Law: counts and answers only.  An item is to blame only where the worker was certainly at that item.
"""

from __future__ import annotations

from math import inf

from conveyor.core.commands import GiveUp, Loss, LossReason, Reason
from conveyor.core.events import WorkerLost
from conveyor.graph.plan import StepNode

# An item is given up once so many workers have died at it.  Where the last one may have been killed from outside, it
# takes one more: such kills hit the same item twice now and then.
ITEM_ATTEMPTS = 2
# A share of the items of a step counts only once the step is done with so many.
SHARE_MIN_ITEMS = 100
# A worker that has started nothing was most often killed from outside, and nobody is to blame.  But where so many
# workers die of the same items, these are too heavy to receive.  Kills from outside come in bursts in which nothing can
# be started, so where it may be one, it has to go on for so many seconds.
RECEIVE_DEATHS, RECEIVE_DEATH_SECONDS = 5, 10.0


class CrashCounter:
    """Counts crashes, apart for each reason and the item, if any, that they have in common.

    >>> crashes = CrashCounter()
    >>> crashes.add("receive", 7, now=1.0), crashes.add("receive", 7, now=3.0), crashes.add("item", 7)
    ((1, 0.0), (2, 2.0), (1, 0.0))
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[tuple[LossReason, int], tuple[int, float, float]] = {}

    def add(self, reason: LossReason, item: int = 0, now: float = 0.0, pause_seconds: float = inf) -> tuple[int, float]:
        """Count a crash; return how many there were, and in how many seconds.

        After a pause longer than `pause_seconds` the count begins anew.
        """
        count, since, last = self.counts.get((reason, item), (0, now, now))
        if now - last > pause_seconds:
            count, since = 0, now
        self.counts[reason, item] = count + 1, since, now
        return count + 1, now - since

    def count(self, reason: LossReason, item: int = 0) -> int:
        return self.counts.get((reason, item), (0, 0.0, 0.0))[0]

    def since(self, reason: LossReason, now: float, item: int = 0) -> float:
        """When the first one was; `now` where there was none."""
        return self.counts.get((reason, item), (0, now, now))[1]

    def clear(self, reason: LossReason, item: int = 0) -> None:
        """Forget crashes, as a rule those that have no item in common: a worker has got through."""
        self.counts.pop((reason, item), None)


class CrashBlame:
    """Why an item of a step is given up, or the run fails with it."""

    def __init__(self, node: StepNode) -> None:
        self._node = node
        self._crashes = CrashCounter()

    def died(self, first: int, last: int, event: WorkerLost) -> GiveUp | None:
        """Count that a worker died at a call; return why to give it up, where that was once too often."""
        deaths, _ = self._crashes.add(Loss.ITEM, first)
        if deaths < ITEM_ATTEMPTS + event.killed:
            return None
        return GiveUp(Reason.DIED, event.cause, deaths, first, last)

    def died_of_that(self, first: int, give_up: GiveUp, event: WorkerLost) -> bool:
        """Whether `on_error`, asked what to give for the item, has ended its worker as well."""
        return not event.killed or self._crashes.count(Loss.ITEM, first) > give_up.attempts + 1

    def unpickled(self, first: int) -> bool:
        """Count that a worker died while it unpickled items from `first` on; return whether that is enough."""
        return self._crashes.add(Loss.UNPICKLE, first)[0] > ITEM_ATTEMPTS

    def received(self, first: int, killed: bool, now: float) -> bool:
        """Count that a worker died before it started anything, with items from `first` on; return whether that is
        enough."""
        deaths, seconds = self._crashes.add(Loss.RECEIVE, first, now)
        return deaths >= RECEIVE_DEATHS and (not killed or seconds >= RECEIVE_DEATH_SECONDS)

    def was_overdue(self, first: int, last: int) -> GiveUp | None:
        """Count that a worker was killed because a call took too long; return why to give it up, where that was once
        too often."""
        timeouts, _ = self._crashes.add(Loss.OVERDUE, first)
        if timeouts < self._node.timeouts:
            return None
        return GiveUp(Reason.OVERDUE, self._node.timeout, timeouts, first, last)


class FailureBudget:
    """How many items were given up, and whether that ends the run.

    `most` is a number of calls, or, as a float, a share of the items that a step is done with; None: there is no limit.
    """

    __slots__ = ("_items_at", "_most", "calls")

    def __init__(self, most: int | float | None) -> None:
        self._most = most
        self.calls = 0
        # How many items of each step, by the index of its node.
        self._items_at: dict[int, int] = {}

    def add(self, step: int, items: int) -> None:
        """Count a call with so many items that was given up."""
        self.calls += 1
        self._items_at[step] = self._items_at.get(step, 0) + items

    @property
    def steps(self) -> list[int]:
        return list(self._items_at)

    def is_spent(self, step: int, done: int, ended: bool) -> bool:
        """Whether too much was given up, now that a step is done with `done` items; `ended`: no more will come."""
        given_up = self.calls if isinstance(self._most, int) else self._items_at[step]
        return too_many(given_up, done, ended, self._most)


def too_many(given_up: int, items: int, ended: bool, most: int | float | None) -> bool:
    """Whether more was given up than may be: `most` in number, or as a share of the items that a step is done with.

    The step is done with `items` so far; `ended`: no more will come.

    >>> too_many(3, items=50, ended=False, most=2), too_many(3, items=50, ended=False, most=0.01)
    (True, False)
    >>> too_many(3, items=50, ended=True, most=0.01), too_many(3, items=200, ended=False, most=0.01)
    (True, True)
    """
    if most is None:
        return False
    if isinstance(most, int):
        return given_up > most
    return (ended or items >= SHARE_MIN_ITEMS) and given_up > most * items
