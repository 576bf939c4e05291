"""The progress board: what a worker starts, and what the broker revokes.

Law: of what the broker revokes, nothing is started that it was not told of; and a worker on either side of a pickle sees
the same words.
"""

from __future__ import annotations

import multiprocessing
import unittest
from unittest import mock

from conveyor.engines.process.wire import progress
from conveyor.engines.process.wire.progress import ProgressBoard, last_words_of
from tests.helpers.support import TestCase


def start_some(slot, first, stop):
    """In another process."""
    slot.unpickling = True
    slot.starter(3)(first, stop)


class BoardTest(TestCase):
    """In one process, and across two."""

    def board(self, inherited=True):
        board = ProgressBoard(inherited)
        self.addCleanup(board.close)
        return board

    def test_everything_may_be_started_until_it_is_revoked(self):
        slot = self.board().new()
        assert slot.started == (0, 0)
        start = slot.starter(3)
        assert start(0, 10) == 10 and slot.started == (3, 10)
        assert slot.revoke(3, 12) == (3, 12), "what it may still start"
        assert start(10, 20) == 12 and slot.started == (3, 12)
        assert start(12, 20) == 12
        assert slot.starter(4)(0, 1) == 0, "nor anything of a later lease"
        slot.allow_all()
        assert slot.starter(4)(0, 1) == 1

    def test_what_was_started_cannot_be_revoked(self):
        slot = self.board().new()
        slot.starter(3)(0, 10)
        assert slot.revoke(3, 4) == (3, 10)

    def test_since_when(self):
        slot = self.board().new()
        assert slot.working_since() == ((0, 0), None)
        slot.timed = True
        slot.starter(3)(0, 1)
        at, since = slot.working_since()
        assert at == (3, 1) and since is not None
        slot.mark(False)
        assert slot.working_since() == ((3, 1), None)

    def test_each_thread_has_a_cell(self):
        board = self.board()
        slot, other = board.new(threads=5), board.new(threads=5)
        assert not board.new().has_cells and slot.has_cells
        assert slot.under_way() == [] and slot.working_since() == ((0, 0), None)
        for number in (4, 2):
            slot.cell(number).begin(3, number + 1)
        slot.starter(3)(0, 9)
        at, since = slot.working_since()
        assert at == (3, 5) and since is not None, "the call that began first"
        assert [position for position, _ in slot.under_way()] == [(3, 3), (3, 5)]
        assert other.under_way() == []
        slot.cell(4).end()
        assert slot.working_since()[0] == (3, 3)
        last = last_words_of(slot, lambda moment: 0.0)
        ((lease, calls, seconds),) = last.under_way
        assert (last.started, lease, calls, last.silent) == ((3, 9), 3, 3, 0.0) and seconds >= 0
        # Without what nobody could do anything about.
        assert last_words_of(slot, lambda moment: 1e9).under_way == ((3, 3, 0.0),)
        board.give_back(slot)
        assert board.new(threads=5).under_way() == []

    def test_a_first_thread_that_runs_says_so(self):
        slot = self.board().new(threads=2)
        slot.timed = True
        slot.mark(True)
        assert slot.ran_at is not None
        assert last_words_of(slot, lambda moment: 0.0).silent >= 0
        slot.mark(False)
        assert slot.ran_at is None and last_words_of(slot, lambda moment: 0.0).silent == 0.0

    def test_slots_do_not_meet_and_are_as_new_when_they_come_again(self):
        with mock.patch.object(progress, "SLOTS", 2):
            board = self.board()
            slots = [board.new() for _ in range(5)]
            for number, slot in enumerate(slots):
                slot.starter(number)(0, number + 1)
            assert [slot.started for slot in slots] == [(number, number + 1) for number in range(5)]
            slots[3].unpickling = True
            slots[3].revoke(0, 0)
            board.give_back(slots[3])
            again = board.new()
            assert again is slots[3] and again.started == (0, 0) and not again.unpickling
            assert again.starter(1)(0, 7) == 7

    def test_another_process_sees_the_same_words(self):
        for method in ("fork", "spawn"):
            with self.subTest(method):
                slot = self.board(inherited=method == "fork").new()
                process = multiprocessing.get_context(method).Process(target=start_some, args=(slot, 0, 7))
                process.start()
                process.join()
                process.close()
                assert slot.started == (3, 7) and slot.unpickling


if __name__ == "__main__":
    unittest.main()
