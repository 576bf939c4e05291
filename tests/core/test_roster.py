"""Workers that come and go in the core, and work that is taken back, event by event.

Law: a worker that is started gets work when it is up, one that leaves has none; what a busy worker has not begun goes to
one that has nothing to do, and neither order nor bounds show it.
"""

from __future__ import annotations

from typing import Any

from conveyor import Pipe, Pipeline, Processor
from conveyor.core.commands import Emit, EndWorker, Finish, Revoke, SendLease, StartWorker
from conveyor.core.events import RunStarted, WorkerNotStarted
from conveyor.core.leasing.leases import SILENT_WORKER_SECONDS, STEAL_WORTH_SECONDS
from conveyor.core.tuning.roster import Durations
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


def auto() -> Processor[Any, Any]:
    return Processor(job, workers="auto")


class Coming(TestCase):
    """Workers are started."""

    def test_it_gets_work_when_it_is_up(self) -> None:
        core = Driven(auto(), Pipe(64))
        assert core.feed(0.0, "A", 3) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.resize(0.1, 0, 3) == [StartWorker(0, 1), StartWorker(0, 2)]
        assert core.machine.stats(0.1).steps[0].starting == 2
        assert core.ready(0.2, 2) == [SendLease(2, 1, (("A", 1, 2),), 1, 1)]
        assert core.ready(0.3, 1) == [SendLease(1, 2, (("A", 2, 3),), 1, 1)]
        stats = core.machine.stats(0.3)
        assert (stats.steps[0].workers, stats.steps[0].starting, stats.steps[0].most_workers) == (3, 0, 3)
        assert [str(decision) for decision in stats.decisions] == ["job: 1 → 3 workers: as wanted"]
        # Order is that of the items, not of the workers.
        assert core.reply(0.4, 1, 2, 1, ("c", 1), seconds=1.0) == []
        assert core.reply(0.5, 2, 1, 1, ("b", 1), seconds=1.0) == []
        assert core.reply(0.6, 0, 0, 1, ("a", 1), seconds=1.0) == [
            Emit((("a", 0, 1),), 1),
            Emit((("b", 0, 1),), 1),
            Emit((("c", 0, 1),), 1),
        ]

    def test_each_has_the_lowest_place_that_is_free(self) -> None:
        core = Driven(Processor(job, workers="auto", max_items=2), Pipe(64), Processor(job, workers=3), Pipe(64))

        def places(step: int) -> dict[int, int]:
            roster = core.machine.roster.step_rosters[step]
            return {number: roster.index_of(number) for number in [*roster.numbers, *roster.starting]}

        assert places(1) == {1: 0, 2: 1, 3: 2}
        core.lose(0.1, 2, "killed")
        assert places(1) == {1: 0, 3: 2, 4: 1}, "a replacement has the place of the one that died"
        core.lose(0.2, 4, "killed", ready=False)
        assert places(1) == {1: 0, 3: 2, 5: 1}, "also of one that was never up"
        core.resize(0.3, 0, 3)
        core.handle(WorkerNotStarted(6), 0.4)
        assert places(0) == {0: 0, 7: 2}
        roster = core.machine.roster.step_rosters[0]
        roster.left(0)
        roster.start(8)
        assert places(0) == {7: 2, 8: 0}, "the place of one that was told to leave is free"

    def test_a_replacement_after_max_items_has_the_place_of_the_one_before(self) -> None:
        core = Driven(Processor(job, workers=2, max_items=1), Pipe(64))
        roster = core.machine.roster.step_rosters[0]
        commands = core.feed(0.0, "A", 2)
        started = [each.worker for each in commands if isinstance(each, StartWorker)]
        assert [roster.index_of(each) for each in started] == [0, 1], commands

    def test_numbers_go_on_behind_those_of_all_steps(self) -> None:
        core = Driven(auto(), Pipe(64), Processor(job, workers=2), Pipe(64))
        assert core.resize(0.1, 0, 2) == [StartWorker(0, 3)]
        assert core.lose(0.2, 2, "killed") == [StartWorker(1, 4)]

    def test_one_that_is_up_after_the_run_works_in_the_next(self) -> None:
        core = Driven(auto(), Pipe(64))
        core.resize(0.1, 0, 2)
        assert core.end(0.2) == [Finish()]
        assert core.ready(0.3, 1) == []
        assert core.handle(RunStarted(), 0.4) == []
        assert core.feed(0.5, "A", 2) == [SendLease(0, 0, (("A", 0, 1),), 1, 1), SendLease(1, 1, (("A", 1, 2),), 1, 1)]

    def test_it_finishes_too(self) -> None:
        core = Driven(Ending(workers="auto"), Pipe(64))
        core.feed(0.0, "A", 1)
        core.resize(0.1, 0, 2)
        core.ready(0.2, 1)
        assert core.end(0.3) == [SendLease(0, 1, (), 0, 1, finish=True), SendLease(1, 2, (), 0, 1, finish=True)]

    def test_the_policy_sees_what_there_is(self) -> None:
        core = Driven(auto(), Pipe(64), Processor(job, workers=2), Pipe(64), Ending(workers="auto"), Pipe(8))
        core.feed(0.0, "A", 5)
        core.resize(1.0, 0, 2)
        first, second, third = core.step_loads
        assert (first.name, first.workers, first.starting, first.least, first.most) == ("job", 1, 0, 1, None)
        assert (first.waiting, first.bound, first.ended) == (4, 64, False)
        assert (first.calls, first.busy, first.cpu, first.blocked) == (0, 1.0, 0.0, 0.0)
        assert (second.least, second.most, third.least, third.most) == (2, 2, 1, None)
        core.resize(2.1, 2, 2)
        core.ready(2.2, 5)
        core.tick(3.2)
        # What a worker has to say at the end must not be lost with it.
        assert (core.step_loads[0].starting, core.step_loads[2].workers, core.step_loads[2].least) == (1, 2, 2)

    def test_the_timer_is_the_policys(self) -> None:
        core = Driven(auto(), Pipe(64))
        assert core.machine.timer is not None and core.machine.timer <= 0.0
        core.tick(0.5)
        assert core.machine.timer == 1.5
        core.end(0.6)
        assert core.machine.timer is None
        assert Driven(Processor(job), Pipe(64)).machine.timer is None


class Leaving(TestCase):
    """Workers are sent away."""

    def three(self) -> Driven:
        core = Driven(auto(), Pipe(64))
        core.resize(0.0, 0, 3)
        core.ready(0.1, 1)
        core.ready(0.2, 2)
        return core

    def test_one_that_has_nothing_to_do_goes_at_once(self) -> None:
        core = self.three()
        assert core.feed(1.0, "A", 2) == [SendLease(0, 0, (("A", 0, 1),), 1, 1), SendLease(1, 1, (("A", 1, 2),), 1, 1)]
        assert core.resize(2.0, 0, 2) == [EndWorker(2)]
        assert core.machine.stats(2.0).steps[0].workers == 2

    def test_a_busy_one_goes_when_it_is_done_and_gets_nothing_more(self) -> None:
        core = self.three()
        core.feed(1.0, "A", 4)
        assert core.resize(2.0, 0, 1) == []
        assert core.reply(2.1, 2, 2, 1, ("c", 1), seconds=1.0) == [EndWorker(2)]
        assert core.reply(2.2, 1, 1, 1, ("b", 1), seconds=1.0) == [EndWorker(1)]
        assert core.reply(2.3, 0, 0, 1, ("a", 1), seconds=1.0) == [
            Emit((("a", 0, 1),), 1),
            Emit((("b", 0, 1),), 1),
            Emit((("c", 0, 1),), 1),
            SendLease(0, 3, (("A", 3, 4),), 1, 1),
        ]

    def test_one_that_dies_at_work_before_it_has_gone_is_replaced(self) -> None:
        core = self.three()
        core.feed(1.0, "A", 2)
        assert core.resize(2.0, 0, 1) == [EndWorker(2)]
        # The other may have no room for its outputs until those before them are there.
        assert core.lose(2.2, 1, "killed") == [StartWorker(0, 3)]
        assert core.ready(2.3, 3) == [SendLease(3, 2, (("A", 1, 2),), 1, 1, attempt=2)]

    def test_one_that_dies_before_it_has_gone_and_had_nothing_is_not_replaced(self) -> None:
        core = self.three()
        core.feed(1.0, "A", 3)
        core.resize(2.0, 0, 1)
        core.reply(2.1, 1, 1, 0, ("b", 1), final=False, seconds=1.0)
        core.cancel(2.2)
        assert core.lose(2.3, 1, "killed") == []

    def test_one_that_has_not_gone_yet_may_stay(self) -> None:
        core = self.three()
        core.feed(1.0, "A", 4)
        assert core.resize(2.0, 0, 1) == []
        assert core.resize(3.0, 0, 4) == [StartWorker(0, 3)]
        assert core.reply(3.1, 2, 2, 1, ("c", 1), seconds=1.0) == [SendLease(2, 3, (("A", 3, 4),), 1, 1)]

    def test_the_last_one_stays(self) -> None:
        core = Driven(auto(), Pipe(64))
        core.resize(0.0, 0, 2)
        assert core.resize(1.0, 0, 1) == []
        assert core.feed(2.0, "A", 1) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]


class TakingBack(TestCase):
    """What a worker has not begun goes to another."""

    def unequal(self, ordered: bool = True) -> Driven:
        """Two workers: the first has the items 3 to 6, the second has nothing to do."""
        core = Driven(Processor(job, workers=2), Pipe(64), ordered=ordered)
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1), seconds=0.0001)
        core.feed(0.2, "B", 2)
        core.reply(0.3, 0, 1, 1, ("b", 1), seconds=0.0001)
        core.reply(0.4, 1, 2, 1, ("c", 1), seconds=0.0001)
        assert core.feed(1.0, "C", 4) == [SendLease(0, 3, (("C", 0, 2),), 2, 2), SendLease(1, 4, (("C", 2, 4),), 2, 2)]
        assert core.feed(1.001, "D", 8) == [SendLease(0, 5, (("D", 0, 8),), 8, 10)]
        return core

    def test_from_one_that_is_silent(self) -> None:
        core = self.unequal()
        assert core.machine.timer is None
        assert core.reply(1.002, 1, 4, 2, ("e", 2), seconds=0.0002) == []
        assert core.machine.timer == 1.0 + SILENT_WORKER_SECONDS
        assert core.tick(1.004) == []
        assert core.tick(1.011) == [Revoke(0, 3, 1)]
        # It is at the first unit, so the second one and the whole lease behind it go to the other.
        assert core.revoke_result(1.012, 0, 3, 1) == [
            SendLease(1, 6, (("C", 1, 2),), 1, 1),
        ]
        assert core.reply(1.013, 1, 6, 1, ("f", 1), seconds=0.0001) == [SendLease(1, 7, (("D", 0, 8),), 8, 10)]
        assert core.reply(1.014, 1, 7, 8, ("g", 8), seconds=0.0001) == []
        # All of it stands in its place in the order.
        assert core.reply(2.0, 0, 3, 1, ("d", 1), seconds=1.0) == [
            Emit((("d", 0, 1),), 1),
            Emit((("f", 0, 1),), 1),
            Emit((("e", 0, 2),), 2),
        ]
        # The lease of which nothing is left is given back empty, and then there may be others.
        assert core.feed(2.1, "E", 1) == [SendLease(1, 8, (("E", 0, 1),), 1, 1)]
        assert core.reply(2.2, 0, 5, 0) == [Emit((("g", 0, 8),), 8)]
        assert core.feed(2.3, "F", 1) == [SendLease(0, 9, (("F", 0, 1),), 1, 1)]

    def test_not_while_more_comes_in(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(64))
        for number in range(4):
            core.feed(0.1 * number, "AB"[number % 2], 1)
            core.reply(0.1 * number + 0.05, 0, number, 1, ("a", 1), seconds=0.016)
        assert core.feed(1.0, "C", 2) == [SendLease(0, 4, (("C", 0, 1),), 1, 1), SendLease(1, 5, (("C", 1, 2),), 1, 1)]
        assert core.feed(1.0005, "D", 1) == [SendLease(0, 6, (("D", 0, 1),), 1, 1)]
        # The second has nothing to do, and what the first has not begun takes 16 ms; but what comes next is for it.
        assert core.reply(1.001, 1, 5, 1, ("c", 1), seconds=0.016) == []
        assert core.machine.timer == 1.0005 + STEAL_WORTH_SECONDS
        assert core.feed(1.002, "E", 1) == [SendLease(1, 7, (("E", 0, 1),), 1, 1)]
        assert core.reply(1.003, 1, 7, 1, ("e", 1), seconds=0.016) == []
        assert core.tick(1.002 + STEAL_WORTH_SECONDS) == [Revoke(0, 4, 1)]

    def test_from_one_that_is_silent_as_long_as_more_comes_in(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(64), ordered=False)
        for number in range(4):
            core.feed(0.1 * number, "AB"[number % 2], 1)
            core.reply(0.1 * number + 0.05, 0, number, 1, ("a", 1), seconds=0.016)
            core.consume(0.1 * number + 0.06, 1)
        assert core.feed(1.0, "C", 2) == [SendLease(0, 4, (("C", 0, 1),), 1, 1), SendLease(1, 5, (("C", 1, 2),), 1, 1)]
        assert core.feed(1.0005, "D", 1) == [SendLease(0, 6, (("D", 0, 1),), 1, 1)]
        found: list[Any] = []
        lease = 5
        for count in range(8):
            # One item after the other is done by the second, each before 2 ms have passed.
            now = 1.001 + 0.0015 * count
            found += core.reply(now, 1, lease, 1, ("e", 1), seconds=0.001)
            core.consume(now, 1)
            (handed,) = [each for each in core.feed(now + 0.001, "E", 1) if isinstance(each, SendLease)]
            assert handed.worker == 1
            lease = handed.lease
        assert [each for each in found if isinstance(each, Revoke)] == [Revoke(0, 4, 1)]

    def test_at_once_where_nothing_more_comes(self) -> None:
        core = self.unequal()
        assert core.end(1.0015) == []
        assert core.reply(1.002, 1, 4, 2, ("e", 2), seconds=0.0002) == []
        assert core.machine.timer == 1.0 + SILENT_WORKER_SECONDS

    def test_without_order(self) -> None:
        core = self.unequal(ordered=False)
        core.reply(1.002, 1, 4, 2, ("e", 2), seconds=0.0002)
        core.tick(1.011)
        assert core.revoke_result(1.012, 0, 3, 1) == [SendLease(1, 6, (("C", 1, 2),), 1, 1)]
        assert core.reply(1.013, 1, 6, 1, ("f", 1), seconds=0.0001) == [
            Emit((("f", 0, 1),), 1),
            SendLease(1, 7, (("D", 0, 8),), 8, 10),
        ]

    def test_one_that_turns_out_not_to_have_begun_what_it_was_left(self) -> None:
        core = self.unequal()
        core.reply(1.002, 1, 4, 2, ("e", 2), seconds=0.0002)
        core.tick(1.011)
        # It may begin the second unit; and says later that it did not.
        assert core.revoke_result(1.012, 0, 3, 2) == [SendLease(1, 6, (("D", 0, 8),), 8, 10)]
        assert core.reply(1.013, 1, 6, 8, ("f", 8), seconds=0.0001) == []
        assert core.reply(1.014, 0, 3, 1, ("d", 1), seconds=0.0001) == [
            Emit((("d", 0, 1),), 1),
            SendLease(1, 7, (("C", 1, 2),), 1, 1),
        ]

    def test_what_is_expected_to_take_long_is_shared_at_once(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(64))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1), seconds=0.008)
        core.feed(0.2, "B", 2)
        core.reply(0.3, 0, 1, 1, ("b", 1), seconds=0.008)
        core.reply(0.4, 1, 2, 1, ("c", 1), seconds=0.008)
        assert core.feed(1.0, "C", 4) == [SendLease(0, 3, (("C", 0, 2),), 2, 2), SendLease(1, 4, (("C", 2, 4),), 2, 2)]
        assert core.feed(1.1, "D", 2) == [SendLease(0, 5, (("D", 0, 2),), 2, 2)]
        assert core.reply(1.2, 1, 4, 2, ("d", 2), seconds=0.016) == [Revoke(0, 3, 1)]
        assert core.revoke_result(1.2, 0, 3, 1) == [SendLease(1, 6, (("C", 1, 2),), 1, 1)]

    def test_nothing_is_taken_back_while_something_waits_or_nobody_is_free(self) -> None:
        core = self.unequal()
        assert core.tick(9.0) == []
        assert core.machine.timer is None

    def test_a_worker_that_dies_had_only_what_was_left_to_it(self) -> None:
        core = self.unequal()
        core.reply(1.002, 1, 4, 2, ("e", 2), seconds=0.0002)
        core.tick(1.011)
        core.revoke_result(1.012, 0, 3, 1)
        # It had one item left, and that is all that runs again.
        core.reply(1.013, 1, 6, 1, ("f", 1), seconds=0.0001)
        core.reply(1.014, 1, 7, 8, ("g", 8), seconds=0.0001)
        assert core.lose(1.1, 0, "killed") == [StartWorker(0, 2), SendLease(1, 8, (("C", 0, 1),), 1, 1, attempt=2)]

    def test_an_answer_that_comes_in_the_next_run_takes_nothing_back(self) -> None:
        core = self.unequal()
        core.reply(1.002, 1, 4, 2, ("e", 2), seconds=0.0002)
        assert [type(command) for command in core.tick(1.011)] == [Revoke]
        core.cancel(1.012)
        core.reply(1.1, 0, 3, 0)
        assert core.reply(1.2, 0, 5, 0) == [Finish()]
        core.handle(RunStarted(), 1.3)
        first, second = core.feed(1.4, "Z", 2)
        assert isinstance(first, SendLease) and isinstance(second, SendLease) and first.worker == 0
        assert core.revoke_result(1.5, 0, 3, 1) == []
        assert core.reply(1.6, 0, first.lease, 1, ("z", 1)) == [Emit((("z", 0, 1),), 1)]

    def test_a_cancelled_run_takes_nothing_back(self) -> None:
        core = self.unequal()
        core.reply(1.002, 1, 4, 2, ("e", 2), seconds=0.0002)
        core.tick(1.011)
        core.cancel(1.012)
        assert core.revoke_result(1.013, 0, 3, 1) == []
        assert core.reply(1.1, 0, 3, 0) == []
        assert core.reply(1.2, 0, 5, 0) == [Finish()]


class Histogram(TestCase):
    """How long calls take."""

    def test_shares(self) -> None:
        durations = Durations()
        assert durations.share(0.5) is None
        for number in range(1, 1001):
            durations.add(number / 1000)
        for share in (0.01, 0.5, 0.9, 0.99):
            found = durations.share(share)
            assert found is not None and 0.8 < found / share < 1.25, (share, found)
        assert durations.share(1.0) == 1.0

    def test_durations_that_cannot_be_told_from_none(self) -> None:
        durations = Durations()
        durations.add(0.0, times=3)
        assert durations.share(0.99) == 0.0


class Telling(TestCase):
    """What `Pipeline.stats()` says, inline."""

    def test_values(self) -> None:
        pipeline = Pipeline(engine="inline").add(Processor(str)).add(Pipe(5)).add(Processor(len, name="length"))
        pipeline.run(range(12))
        stats = pipeline.stats()
        assert [step.processor for step in stats.steps] == ["str", "length"]
        assert stats["length"].items_in == stats["str"].items_out == 12
        assert stats.bottleneck in ("str", "length")
        with self.assertRaisesRegex(KeyError, "no Processor is called 'x'; there are 'str', 'length'"):
            stats["x"]
        assert "length" in str(stats)
