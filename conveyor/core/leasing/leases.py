"""What a step keeps of the items that it has handed out, and of whom.

Law: bare records, of which the step alone makes sense; nothing here moves an item.
"""

from __future__ import annotations

from collections import deque

from conveyor.core.commands import GiveUp
from conveyor.core.data.pieces import Piece, Pieces
from conveyor.core.events import Replied


class Lease:
    """What one worker was handed and has not yet acknowledged in full."""

    __slots__ = (
        "begin",
        "credit",
        "deaths",
        "finish",
        "first",
        "give_up",
        "given",
        "held",
        "items",
        "number",
        "outputs",
        "partial",
        "pieces",
        "seconds",
        "worker",
    )

    def __init__(
        self,
        number: int,
        worker: Worker,
        first: int,
        pieces: tuple[Piece, ...],
        items: int,
        credit: int,
        partial: int = 0,
        finish: bool = False,
        deaths: int = 0,
        give_up: GiveUp | None = None,
    ) -> None:
        self.number = number
        self.worker = worker
        # The number of its first item, and that of the first one not yet acknowledged.
        self.begin = self.first = first
        # All that was handed out, and how many items that was; `items` are those that are the worker's still.
        self.pieces = pieces
        self.given = items
        self.items = items
        self.credit = credit
        # How many outputs of the first unit not yet acknowledged have come.
        self.partial = partial
        self.finish = finish
        # How many workers in a row have died at some of these items, nobody knows which.
        self.deaths = deaths
        # Why it is given up, where it is.
        self.give_up = give_up
        # What came back since the last acknowledged unit.
        self.outputs = 0
        self.seconds = 0.0
        # Outputs that wait for those of earlier leases, and at the end the mark that no more come.
        self.held: list[Replied | None] = []

    def call_range(self, index: int, size: int) -> tuple[int, int]:
        """Return the first and the last item of its unit at that index."""
        first = self.begin + index * size
        return first, min(first + size, self.begin + self.given) - 1

    def started_unacknowledged(self, batch_size: int, at_work: bool, started: tuple[int, int] | None) -> int:
        """How many units its worker had begun and not acknowledged when it died, as far as anyone knows.

        `unit` is the items of one; `at_work`: it is the first that the worker had; `begun` is the worker's note.
        """
        calls = -(-self.items // batch_size)
        if started is None or self.number != started[0]:
            # Without a note, any of those of the first lease.  What stands before the one that it had begun is done.
            return calls if (at_work if started is None else self.number < started[0]) else 0
        return max(0, min(calls, started[1] - (self.given - self.items) // batch_size))


class RequeuedItems:
    """Items that were taken back from a lease, in their place in the order, until they are handed out again."""

    __slots__ = ("deaths", "first", "give_up", "held", "in_hand", "number", "pieces", "skip")

    def __init__(self, number: int, first: int, pieces: tuple[Piece, ...], items: int) -> None:
        # The number of the lease that they were taken from.
        self.number = number
        self.first = first
        self.pieces = Pieces()
        self.pieces.extend(pieces, items)
        # How many outputs of the first unit are there already; how many workers in a row have died at some of these.
        self.skip = 0
        self.deaths = 0
        # Why the first unit is to be given up.
        self.give_up: GiveUp | None = None
        # How many of them still count as in the hand of the worker that gave them back.
        self.in_hand = 0
        # What waits for its turn behind the items of a rest is held by the leases behind it.
        self.held: list[Replied | None] = []


class Worker:
    """One process of the step, as the core sees it."""

    __slots__ = (
        "answers",
        "asked",
        "due",
        "finished",
        "heard",
        "leases",
        "leaving",
        "left",
        "number",
        "outstanding",
        "overdue",
        "replaced",
        "revoked",
        "suspected",
    )

    def __init__(self, number: int, left: int | None) -> None:
        self.number = number
        # How many units it may still be handed, if there is a limit.
        self.left = left
        # Whether another has been started in its place, because it has had all that.
        self.replaced = False
        self.leases: deque[Lease] = deque()
        self.outstanding = 0
        self.finished = False
        # When it last said something, or was handed something after a time without.
        self.heard = 0.0
        # Whether it was told to begin nothing more of what it has, and whether the answer is still to come.
        self.revoked = False
        self.asked = False
        # Whether it is to leave once it has nothing.
        self.leaving = False
        # When it may be too long at a unit; at which it seems to be, by how many answers; and at which it was, so that
        # it was told to be ended.
        self.due: float | None = None
        self.suspected: tuple[int, int] | None = None
        self.answers = 0
        self.overdue: tuple[int, int] | None = None


def order_key(each: Lease | RequeuedItems) -> tuple[int, int]:
    """Return where in the order something is: what has no items is behind what was handed out before it."""
    return (each.begin if isinstance(each, Lease) else each.first), each.number
