"""Of how many input items something is under way, event by event.

Law: the simulation checks, for any graph, that no more is through than came, and that all is through at the end
(`tests/helpers/simulated.py`).
"""

from __future__ import annotations

from typing import Any

from conveyor import BalancingFork, Join, Pipe, Processor, ReplicatingFork
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Collect(Processor[Any, Any]):
    def process(self, item: Any) -> None:
        pass

    def finish(self) -> Any:
        return 1


class ItemsThrough(TestCase):
    """A worker 0 at the first step, 1 at the second; leases are numbered for each step."""

    def test_an_item_is_through_when_the_last_step_is_done_with_it(self) -> None:
        core = Driven(Processor(job), Pipe(8), Processor(job))
        core.feed(0.0, "A", 4)
        through = [core.machine.items_through()]
        core.reply(0.1, 0, 0, 1, ("a", 1))
        through.append(core.machine.items_through())
        core.reply(0.2, 1, 0, 1, ("b", 1))
        through.append(core.machine.items_through())
        assert through == [0, 0, 1]

    def test_what_a_step_filters_is_through(self) -> None:
        core = Driven(Processor(job), Pipe(8), Processor(job))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1)
        assert core.machine.items_through() == 1

    def test_results_that_wait_for_an_earlier_one_are_through(self) -> None:
        core = Driven(Processor(job, workers=2), ordered=True)
        core.feed(0.0, "A", 1)
        core.feed(0.0, "B", 1)
        core.reply(0.1, 1, 1, 1, ("b", 1))
        assert core.machine.items_through() == 1

    def test_outputs_that_wait_for_an_earlier_one_and_for_another_step_are_not(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(8), Processor(job), ordered=True)
        core.feed(0.0, "A", 1)
        core.feed(0.0, "B", 1)
        core.reply(0.1, 1, 1, 1, ("b", 1))
        assert core.machine.items_through() == 0

    def test_outputs_of_one_item_are_shares_of_it(self) -> None:
        core = Driven(Processor(job), Pipe(8), Processor(job))
        core.feed(0.0, "A", 2)
        core.reply(0.1, 0, 0, 1, ("a", 4))
        # The second is at the first step, or in front of it.
        assert core.machine.items_through() == 0
        core.reply(0.2, 1, 0, 1)
        assert core.machine.items_through() == 0
        core.reply(0.3, 1, 1, 1)
        core.reply(0.3, 1, 2, 1)
        core.reply(0.3, 1, 3, 1)
        assert core.machine.items_through() == 1

    def test_a_step_that_gathers_ends_the_way_of_what_it_has_taken(self) -> None:
        for gathering in (Processor(job, batch=2), Collect()):
            core = Driven(gathering, Pipe(8), Processor(job))
            core.feed(0.0, "A", 2)
            while lease := next(iter(core.node(0).book.leases.values()), None):
                assert core.machine.items_through() < 2
                core.reply(0.1, 0, lease.number, 1, *([("a", 1)] if gathering.batch else []))
            # Its output is still at the next step, or will be.
            assert core.machine.items_through() == 2

    def test_an_item_is_through_when_all_branches_are_done_with_it(self) -> None:
        core = Driven(
            Processor(job),
            Pipe(8),
            ReplicatingFork(2),
            (Processor(job), Processor(job)),
            Pipe(8),
            Join(2),
            ordered=False,
        )
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        through = [core.machine.items_through()]
        core.reply(0.2, 1, 0, 1, ("b", 1))
        through.append(core.machine.items_through())
        core.reply(0.3, 2, 0, 1, ("c", 1))
        through.append(core.machine.items_through())
        assert through == [0, 0, 1]

    def test_what_branches_share_behind_their_join_counts_once(self) -> None:
        fork = (BalancingFork(2), (Processor(job), Processor(abs)), Pipe(8), Join(), Pipe(8), Processor(job))
        core = Driven(Processor(job), Pipe(8), *fork, ordered=False)
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        core.reply(0.2, 1, 0, 1, ("b", 1))
        core.feed(0.3, "B", 3)
        assert core.machine.items_through() == 0
        core.reply(0.4, 3, 0, 1, ("c", 1))
        assert core.machine.items_through() == 1
