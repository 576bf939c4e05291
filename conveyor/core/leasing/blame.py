"""How often an item was tried, and when that is enough.

Law: counts and verdicts only.  An item is to blame for the end of a worker only where it was for certain the one that
the worker was at.
"""

from __future__ import annotations

from conveyor.core.commands import GiveUp, Reason
from conveyor.core.events import WorkerLost
from conveyor.graph.plan import StepNode

# An item is given up that was for certain the one at which so many workers died; one more, where they may have been
# killed from outside, which hits the same item twice now and then.
ITEM_ATTEMPTS = 2
# Of how many items a share may be taken for that of all.
SHARE_MIN_ITEMS = 100

# A worker that has begun nothing of what it was handed was most often killed from outside, and nobody is to blame.  But
# where so many had the same items to take in, those are too heavy, say, and the next one would die of them too.  Kills
# from outside come in bursts, in which nothing can be begun: where it may be that, it has to go on for so many seconds.
RECEIVE_DEATHS, RECEIVE_DEATH_SECONDS = 5, 10.0


class CrashBlame:
    """What became of the items of a step at which workers died, or were killed because they took too long."""

    def __init__(self, node: StepNode) -> None:
        self._node = node
        self._deaths: dict[int, int] = {}
        self._timeouts: dict[int, int] = {}
        self._unpicklings: dict[int, int] = {}
        self._arrivals: dict[int, tuple[int, float]] = {}

    def died(self, first: int, last: int, event: WorkerLost) -> GiveUp | None:
        """Take in that a worker died at a unit; return the verdict where that was once too often."""
        deaths = self._deaths[first] = self._deaths.get(first, 0) + 1
        if deaths < ITEM_ATTEMPTS + event.killed:
            return None
        return GiveUp(Reason.DIED, event.cause, deaths, first, last)

    def died_of_that(self, first: int, give_up: GiveUp, event: WorkerLost) -> bool:
        """Whether the job, asked what comes in the place of an item, has ended its worker."""
        return not event.killed or self._deaths.get(first, 0) > give_up.attempts + 1

    def unpickled(self, first: int) -> bool:
        """Take in that a worker died while it unpickled items from `first` on; return whether that is enough."""
        deaths = self._unpicklings[first] = self._unpicklings.get(first, 0) + 1
        return deaths > ITEM_ATTEMPTS

    def arrived(self, first: int, killed: bool, now: float) -> bool:
        """Take in that a worker died before it began anything, with items from `first` on to take in; return whether
        that is enough."""
        deaths, since = self._arrivals.get(first, (0, now))
        self._arrivals[first] = deaths + 1, since
        return deaths + 1 >= RECEIVE_DEATHS and (not killed or now - since >= RECEIVE_DEATH_SECONDS)

    def was_overdue(self, first: int, last: int) -> GiveUp | None:
        """Take in that a worker was killed because a unit took too long; return the verdict where that was once too
        often."""
        timeouts = self._timeouts[first] = self._timeouts.get(first, 0) + 1
        if timeouts < self._node.timeouts:
            return None
        return GiveUp(Reason.OVERDUE, self._node.timeout, timeouts, first, last)


def too_many(given_up: int, items: int, ended: bool, most: int | float | None) -> bool:
    """Whether more was given up than may be: `most` in number, or as a share of the items that a step is done with.

    So far these are `items`; `ended`: there will be no more.

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
