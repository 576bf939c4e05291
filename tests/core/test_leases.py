"""Who gives back what it has not begun: chosen among workers made up for it, at literal times.

Law: what is expected is the whole answer: the worker, and when to look again.
"""

from __future__ import annotations

from conveyor.core.leasing.leases import SILENT_WORKER_SECONDS, STEAL_WORTH_SECONDS, Lease, Worker, worker_to_revoke
from tests.helpers.support import TestCase


def worker(number: int, items: int = 0, heard: float = 10.0) -> Worker:
    """One that has so many items, all of them in one lease, and was heard of at that time."""
    made = Worker(number, None)
    made.outstanding, made.last_heard = items, heard
    if items:
        made.leases.append(Lease(number, made, 0, (("A", 0, items),), items, items))
    return made


class Sharing(TestCase):
    """Items that take 1 ms, unless a test says otherwise."""

    def chosen(
        self,
        *workers: Worker,
        now: float = 10.0,
        batch_size: int = 1,
        seconds: float = 0.001,
        arrived_at: float | None = None,
        load_factor: float = 1.0,
    ) -> tuple[int | None, float | None]:
        found, look_at = worker_to_revoke(workers, batch_size, seconds, arrived_at, load_factor, now)
        return None if found is None else found.number, look_at

    def test_where_all_have_something_to_do(self) -> None:
        leaving = worker(2)
        leaving.leaving = True
        assert self.chosen(worker(0, 50), worker(1, 1), leaving) == (None, None)

    def test_from_the_one_that_has_most(self) -> None:
        assert self.chosen(worker(0, 5), worker(1), worker(2, 50)) == (2, None)

    def test_what_is_in_hand_is_not_ahead(self) -> None:
        assert self.chosen(worker(0, 1), worker(1), seconds=100.0) == (None, None)
        assert self.chosen(worker(0, 4), worker(1), batch_size=4, seconds=100.0) == (None, None)
        assert self.chosen(worker(0, 5), worker(1), batch_size=4, seconds=100.0) == (0, None)

    def test_what_is_over_in_a_moment_is_left(self) -> None:
        little = worker(0, 2), worker(1)
        assert self.chosen(*little) == (None, 10.0 + SILENT_WORKER_SECONDS)
        # Unless it takes longer than was expected.
        assert self.chosen(*little, now=10.0 + SILENT_WORKER_SECONDS) == (0, None)
        assert self.chosen(*little, worker(2, 3, heard=9.995), seconds=0.0005) == (None, 9.995 + SILENT_WORKER_SECONDS)

    def test_one_that_has_been_told_is_passed_over(self) -> None:
        told = worker(0, 50)
        told.revoked = True
        assert self.chosen(told, worker(1, 5), worker(2)) == (1, None)
        assert self.chosen(told, worker(1, 1), worker(2)) == (None, None)

    def test_while_more_comes_in_it_is_waited_for(self) -> None:
        two = worker(0, 50), worker(1)
        assert self.chosen(*two, arrived_at=9.999) == (None, 9.999 + STEAL_WORTH_SECONDS)
        assert self.chosen(*two, arrived_at=10.0 - STEAL_WORTH_SECONDS) == (0, None)
        assert self.chosen(worker(0, 50), worker(1, 1), arrived_at=10.0) == (None, None)

    def test_who_is_silent_is_not_waited_for_as_long_as_more_comes_in(self) -> None:
        two = worker(0, 50), worker(1)
        for now in (10.005, 10.0 + SILENT_WORKER_SECONDS):
            assert self.chosen(*two, now=now, arrived_at=now) == ((0, None) if now == 10.01 else (None, 10.005 + 0.002))

    def test_where_nobody_has_anything_there_is_nothing_to_look_at(self) -> None:
        assert self.chosen(worker(0), worker(1), arrived_at=10.0) == (None, None)
        assert self.chosen(worker(0, 1), worker(1), arrived_at=10.0) == (None, None)

    def test_a_broker_with_much_to_do_leaves_more(self) -> None:
        two = worker(0, 9), worker(1)
        assert self.chosen(*two, load_factor=4.0) == (0, None)
        assert self.chosen(*two, load_factor=8.0) == (None, 10.0 + 8 * SILENT_WORKER_SECONDS)
        assert self.chosen(*two, load_factor=4.0, arrived_at=9.995) == (None, 9.995 + 4 * STEAL_WORTH_SECONDS)
