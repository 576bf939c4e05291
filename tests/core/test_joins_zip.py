"""Joins that zip, event by event.

Law: the rows of an item are its outputs on all branches side by side; a row leaves as soon as no branch can add to it;
where a branch has fewer, None stands for what it lacks.
"""

from __future__ import annotations

from typing import Any

from conveyor import Join, Pipe, Processor, ReplicatingFork
from conveyor.core.commands import Emit, Finish, Grant, SendLease
from conveyor.core.data.pieces import Weave
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Ending(Processor[Any, Any]):
    """Has something to say at the end."""

    def process(self, item: Any) -> Any:
        return item

    def finish(self) -> Any:
        return "end"


class Zips(TestCase):
    """Two branches, of which the second has something to say at the end."""

    def two(self, pipe: int = 64, **settings: Any) -> Driven:
        """A fork on whose two branches three items are."""
        core = Driven(
            Processor(job),
            Pipe(64),
            ReplicatingFork(2),
            Pipe(64),
            (Processor(job), Ending()),
            Pipe(pipe),
            Join(how="zip"),
            **settings,
        )
        core.give(0.1, 3)
        return core

    def test_a_row_waits_for_its_branches(self) -> None:
        core = self.two()
        assert core.reply(0.2, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)]) == [SendLease(2, 1, (("b", 0, 2),), 2, 2)]
        assert core.reply(0.3, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)]) == [
            Emit(((Weave(((("b", 0, 1),), (("c", 0, 1),)), ([(1, 1)], [(1, 1)]), True), 0, 1),), 1),
            SendLease(1, 1, (("b", 0, 2),), 2, 2),
        ]

    def test_all_rows_that_are_ready_go_in_one_weave(self) -> None:
        core = self.two()
        core.reply(0.2, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)])
        core.reply(0.3, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)])
        assert core.reply(0.4, 2, 1, 2, ("d", 3), group_sizes=[(1, 1), (2, 1)]) == []
        assert core.reply(0.5, 1, 1, 2, ("e", 1), group_sizes=[(1, 1), (0, 1)]) == [
            Emit(((Weave(((("e", 0, 1),), (("d", 0, 3),)), ([(1, 1), (0, 1)], [(1, 1), (2, 1)]), True), 0, 3),), 3)
        ]

    def test_rows_of_a_group_still_open(self) -> None:
        core = self.two()
        assert core.reply(0.2, 1, 0, 0, ("b", 1), group_sizes=[], final=False, starving=True) == [Grant(1, 0, 64)]
        # One row is complete, two more items wait for what the first branch may still give.
        assert core.reply(0.3, 2, 0, 1, ("c", 3), group_sizes=[(3, 1)]) == [
            Emit(((Weave(((("b", 0, 1),), (("c", 0, 1),)), ([(1, 1)], [(1, 1)]), True), 0, 1),), 1),
            SendLease(2, 1, (("b", 0, 2),), 2, 3),
        ]
        # The first branch gives no more: so the other rows have None.
        assert core.reply(0.4, 1, 0, 1, group_sizes=[(0, 1)]) == [
            Emit(((Weave(((), (("c", 1, 3),)), ([(0, 1)], [(2, 1)]), True), 0, 2),), 2),
            SendLease(1, 1, (("b", 0, 2),), 2, 2),
        ]

    def test_an_item_without_outputs_has_no_row(self) -> None:
        core = self.two()
        assert core.reply(0.2, 2, 0, 1, group_sizes=[(0, 1)]) == [SendLease(2, 1, (("b", 0, 2),), 2, 2)]
        assert core.reply(0.3, 1, 0, 1, group_sizes=[(0, 1)]) == [SendLease(1, 1, (("b", 0, 2),), 2, 2)]
        assert core.reply(0.4, 1, 1, 2, ("b", 2), group_sizes=[(1, 2)]) == []

    def test_a_full_pipe_behind_cuts_the_rows(self) -> None:
        core = self.two(pipe=2)
        core.reply(0.2, 2, 0, 1, ("c", 3), group_sizes=[(3, 1)])
        assert core.reply(0.3, 1, 0, 1, ("b", 3), group_sizes=[(3, 1)]) == [
            Emit(((Weave(((("b", 0, 2),), (("c", 0, 2),)), ([(2, 1)], [(2, 1)]), True), 0, 2),), 2, 0.0),
            SendLease(1, 1, (("b", 0, 1),), 1, 1),
            SendLease(2, 1, (("b", 0, 1),), 1, 1),
        ]
        assert core.consume(0.4, 1) == [
            Emit(((Weave(((("b", 2, 3),), (("c", 2, 3),)), ([(1, 1)], [(1, 1)]), True), 0, 1),), 1, 0.0)
        ]

    def test_trailing_rows(self) -> None:
        core = self.two()
        core.end(0.2)
        core.reply(0.3, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)])
        core.reply(0.4, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)])
        core.reply(0.5, 1, 1, 2, group_sizes=[(0, 2)])
        assert core.reply(0.6, 2, 1, 2, group_sizes=[(0, 2)]) == []
        assert core.reply(0.7, 2, 2, 0, ("z", 2), group_sizes=[]) == [
            Emit(((Weave(((), (("z", 0, 2),)), ([(0, 1)], [(2, 1)]), True), 0, 2),), 2),
            Finish(),
        ]

    def test_rows_are_in_order_within_their_item_even_without_order(self) -> None:
        core = self.two(ordered=False)
        assert core.reply(0.2, 2, 0, 1, ("c", 1), group_sizes=[(1, 1)]) == [SendLease(2, 1, (("b", 0, 2),), 2, 2)]
        assert core.reply(0.3, 1, 0, 1, ("b", 1), group_sizes=[(1, 1)]) == [
            Emit(((Weave(((("b", 0, 1),), (("c", 0, 1),)), ([(1, 1)], [(1, 1)]), True), 0, 1),), 1),
            SendLease(1, 1, (("b", 0, 2),), 2, 2),
        ]
