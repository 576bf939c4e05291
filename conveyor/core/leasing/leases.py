"""What a step records of the items that it has handed out, and of the workers that have them.

Law: records, and one choice made of them: work stealing.  Nothing here sends a command or moves an item.  To revoke a
lease costs the broker messages, so nobody steals what is done in a moment, nor while more items arrive for the idle
worker.  Items behind a call that takes longer than expected are stolen all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

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
        # The number of the first item, and of the first item not yet acknowledged.
        self.begin = self.first = first
        # `pieces` hold `given` items, all that was handed out; `items` of these the worker still has.
        self.pieces = pieces
        self.given = items
        self.items = items
        self.credit = credit
        # The outputs that have come of the first call not yet acknowledged.
        self.partial = partial
        self.finish = finish
        # How many workers in a row have died at one of these items, nobody knows which.
        self.deaths = deaths
        # Why the items are given up, where they are.
        self.give_up = give_up
        # What came back since the last acknowledged call.
        self.outputs = 0
        self.seconds = 0.0
        # Replies that wait for those of earlier leases; None marks the end.
        self.held: list[Replied | None] = []

    def call_range(self, index: int, batch_size: int) -> tuple[int, int]:
        """Return the first and the last item of the call with this index in the lease."""
        first = self.begin + index * batch_size
        return first, min(first + batch_size, self.begin + self.given) - 1

    def started_unacknowledged(self, batch_size: int, at_work: bool, started: tuple[int, int] | None) -> int:
        """How many calls the worker had started and not acknowledged when it died, at most.

        `at_work`: this is the first lease that the worker had.  `started` is what its progress slot says.
        """
        calls = -(-self.items // batch_size)
        if started is None or self.number != started[0]:
            # Without a progress slot, any call of the first lease.  Leases before the one in the slot are done.
            return calls if (at_work if started is None else self.number < started[0]) else 0
        return max(0, min(calls, started[1] - (self.given - self.items) // batch_size))


class RequeuedItems:
    """Items that were taken back from a lease and keep their place in the order until they are handed out again."""

    __slots__ = ("attempt", "deaths", "first", "give_up", "held", "in_hand", "number", "pieces", "skip")

    def __init__(self, number: int, first: int, pieces: tuple[Piece, ...], items: int) -> None:
        # The number of the lease that they were taken from.
        self.number = number
        self.first = first
        self.pieces = Pieces()
        self.pieces.extend(pieces, items)
        # How many outputs of the first call are there already.
        self.skip = 0
        # How many workers in a row have died at one of these items.
        self.deaths = 0
        # Why the first call is to be given up.
        self.give_up: GiveUp | None = None
        # Which attempt that is.
        self.attempt = 1
        # How many items still count as in the hand of the worker that gave them back.
        self.in_hand = 0
        # Replies behind these items are held by the leases behind them, so this stays empty.
        self.held: list[Replied | None] = []

    @property
    def terms(self) -> tuple[int, int, int, GiveUp | None, int]:
        """The first item, and on what terms it is handed out: the skip, the deaths, the give-up and the attempt."""
        return self.first, self.skip, self.deaths, self.give_up, self.attempt


class Worker:
    """One process of the step, as the core sees it."""

    __slots__ = (
        "began",
        "calls_left",
        "finish_sent",
        "last_heard",
        "leases",
        "leaving",
        "number",
        "outstanding",
        "overdue",
        "overdue_answers",
        "probe_at",
        "replaced",
        "revoke_pending",
        "revoked",
        "suspect",
    )

    def __init__(self, number: int, calls_left: int | None) -> None:
        self.number = number
        # How many calls it may still be handed, where there is a limit.
        self.calls_left = calls_left
        # Whether another worker has been started in its place, because it has none left.
        self.replaced = False
        self.leases: deque[Lease] = deque()
        # The items of all its leases.
        self.outstanding = 0
        self.finish_sent = False
        # When it was handed something while it had nothing.
        self.began = 0.0
        # When it last replied, or was handed something while it had nothing.
        self.last_heard = 0.0
        # Whether it was told to start nothing more of what it has, and whether its answer is still to come.
        self.revoked = False
        self.revoke_pending = False
        # Whether it is to leave once it has nothing.
        self.leaving = False
        # When it may have exceeded the timeout; the call that seems overdue, and by how many answers; and the call for
        # which it is killed.
        self.probe_at: float | None = None
        self.suspect: tuple[int, int] | None = None
        self.overdue_answers = 0
        self.overdue: tuple[int, int] | None = None

    def take(self, lease: Lease, now: float) -> None:
        """Take in that it was handed something."""
        if not self.leases:
            self.began = now
        self.leases.append(lease)

    def drop(self, lease: Lease, now: float) -> float:
        """Take in that it is done with a lease; return for how long it had something in hand, where that was all."""
        self.leases.remove(lease)
        return 0.0 if self.leases else now - self.began

    def unreported(self, now: float) -> float:
        """For how many seconds it has been at what it was handed without a word."""
        return max(0.0, now - self.last_heard) if self.leases else 0.0


# One in so many of what a worker of several hands has waits for a free hand.
SPARE_SHARE = 4
# What such a worker has comes in so many leases or more.
LEASES_PER_WORKER = 4
# Items at one of which so many workers in a row have died are handed out one by one.  A single worker may have died of
# something else.
SHARED_DEATHS = 2


def is_alone(each: Lease | RequeuedItems) -> bool:
    """Whether items are tried, or given up, with nothing beside them."""
    return each.give_up is not None or each.deaths >= SHARED_DEATHS


class LeaseBook:
    """The workers of a step and the leases that they have."""

    __slots__ = (
        "acknowledged",
        "batch_size",
        "first_lease",
        "hands",
        "is_open",
        "leases",
        "max_calls",
        "peak_workers",
        "prefetched",
        "workers",
    )

    def __init__(
        self,
        numbers: Iterable[int],
        batch_size: int,
        max_calls: int | None,
        first_lease: int,
        hands: int = 1,
        in_lists: bool = False,
    ) -> None:
        self.batch_size = batch_size
        # How many calls a worker is at, at once.
        self.hands = hands
        # Whether a worker gets more while it is at something: the calls that it makes at once need no list.
        self.is_open = hands > 1 and not in_lists
        self.max_calls = max_calls
        self.workers = [Worker(number, max_calls) for number in numbers]
        # Each worker may hold an output more than the pipe behind has room for, with each hand.  One that leaves takes
        # none back.
        self.peak_workers = len(self.workers)
        # A lease with a lower number is one of the run before.
        self.first_lease = first_lease
        self.leases: dict[int, Lease] = {}
        # The items that workers have beyond those that they can be at.
        self.prefetched = 0
        self.acknowledged = 0

    def add_worker(self, number: int) -> None:
        self.workers.append(Worker(number, self.max_calls))
        self.peak_workers = max(self.peak_workers, len(self.workers))

    def worker(self, number: int) -> Worker | None:
        """Return the worker of that number, None where it has left."""
        return next((worker for worker in self.workers if worker.number == number), None)

    @property
    def at_once(self) -> int:
        """How many items a worker can be at."""
        return self.batch_size * self.hands

    def room_of(self, worker: Worker, is_new: bool = True) -> int:
        """Return how many calls a worker of several hands may be handed beside those that it has.

        `is_new`: of items that wait in front.  Of these it gets some more than it can be at, so that it need not wait.
        """
        return self.hands + is_new * -(-self.hands // SPARE_SHARE) + -worker.outstanding // self.batch_size

    def free_worker(self, is_new: bool, looks_ahead: bool, is_full: bool) -> Worker | None:
        """Return the worker that gets the next lease: an idle one, or one for which it is time to look ahead."""
        ahead = None
        for worker in self.workers:
            if worker.leaving or worker.overdue or (worker.replaced and is_new):
                continue
            if not worker.leases and not worker.revoke_pending:
                return worker
            if ahead is None and len(worker.leases) == 1 and not worker.revoked:
                ahead = worker
        # A busy worker gets a full chunk or nothing, as what waits grows meanwhile.
        return ahead if looks_ahead and is_full else None

    def worker_with_room(self, alone: bool, is_new: bool) -> Worker | None:
        """Return the worker with the most free hands; `alone`: one that has nothing."""
        found, most = None, 0
        for worker in self.workers:
            if worker.leaving or worker.overdue or worker.replaced or worker.revoked or worker.revoke_pending:
                continue
            room = self.room_of(worker, is_new)
            if room > most and not (alone and worker.leases) and not any(map(is_alone, worker.leases)):
                found, most = worker, room
        return found

    @property
    def most_in_hand(self) -> int:
        """How many outputs may be beyond what the pipe behind has room for."""
        return self.peak_workers * self.hands

    @property
    def staying(self) -> list[Worker]:
        """The workers that are up and are to stay."""
        return [worker for worker in self.workers if not worker.leaving]

    def is_full(self) -> bool:
        """Whether each worker that is to stay has as much as it can be at, so that none waits for what is kept back."""
        return all(worker.leaving or worker.outstanding >= self.at_once for worker in self.workers)

    def is_finishing(self) -> bool:
        """Whether no lease is out but those of calls of `finish`."""
        return all(lease.finish for lease in self.leases.values())

    def add_outstanding(self, worker: Worker, items: int) -> None:
        """Count items that a worker is handed or, where `items` is negative, has no more."""
        # As `at_once`, without a call: each lease and each reply passes here.
        at_once, before = self.batch_size * self.hands, worker.outstanding
        worker.outstanding = after = before + items
        prefetched = after - at_once if after > at_once else 0
        self.prefetched += prefetched - (before - at_once if before > at_once else 0)

    def forget(self) -> None:
        """Refer to no item any more."""
        for lease in self.leases.values():
            lease.pieces, lease.held = (), []
        self.leases.clear()


def order_key(each: Lease | RequeuedItems) -> tuple[int, int]:
    """Return the place of a lease in the order; one without items is behind what was handed out before it."""
    return (each.begin if isinstance(each, Lease) else each.first), each.number


# Less work than this is not worth stealing.  For as long after an item arrived, more are expected.
STEAL_WORTH_SECONDS = 0.002
# A worker that has not replied for so long is at a call that takes longer than expected.
SILENT_WORKER_SECONDS = 0.01


def worker_to_revoke(
    workers: Sequence[Worker],
    batch_size: int,
    seconds: float,
    arrived_at: float | None,
    load_factor: float,
    now: float,
    hands: int = 1,
) -> tuple[Worker | None, float | None]:
    """Return the worker that is to give back what it has not started, if there is one, and when to look again, if ever.

    A call takes `seconds`.  `arrived_at` is when the last item came, None where no more come.  A broker with too little
    time makes chunks `load_factor` times as large, and all times here are as many times longer.  A worker is at `hands`
    calls at once.
    """
    worth, silent = STEAL_WORTH_SECONDS * load_factor, SILENT_WORKER_SECONDS * load_factor
    if all(worker.leases or worker.leaving for worker in workers):
        return None, None
    look_at: float | None = None
    for worker in sorted(workers, key=lambda worker: -worker.outstanding):
        ahead = -(-worker.outstanding // batch_size) - hands
        if ahead < 1:
            break
        if worker.revoked:
            continue
        at = worker.last_heard + silent
        if ahead * seconds >= worth:
            at = min(at, now if arrived_at is None else arrived_at + worth)
        if now >= at:
            return worker, None
        look_at = at if look_at is None else min(at, look_at)
    return None, look_at
