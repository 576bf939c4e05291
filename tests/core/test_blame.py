"""Items that fail, in the core, event by event: timeouts, verdicts, what was given up, workers that have had enough.

Law: only the item that a worker was at for certain is to blame, for its death or for the time that it takes; and what is
given up is told once.
"""

from __future__ import annotations

from typing import Any

from conveyor import Pipe, Processor
from conveyor.core.commands import (
    Command,
    Emit,
    EndWorker,
    Fail,
    Finish,
    GaveUp,
    GiveUp,
    KillWorker,
    ProbeWorker,
    SendLease,
    StartWorker,
)
from conveyor.core.events import WorkerLost
from conveyor.core.leasing.recovery import OVERDUE_ANSWERS
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Stateful(Processor[Any, Any]):
    """Has state, as far as anyone knows."""

    def process(self, item: Any) -> Any:
        return item


def chunk(core: Driven, size: int) -> SendLease:
    """Have a machine hand out a lease of so many items, number 1 and behind, to worker 0."""
    core.feed(0.0, "A", 1)
    core.reply(0.0, 0, 0, 1, ("a", 1))
    lease, items = 0, 1
    while items < size:
        items *= 2
        lease += 1
        core.feed(0.0, "B", items)
        if items >= size:
            break
        core.reply(0.0, 0, lease, items, ("b", items))
    (found,) = core.node(0).book.workers[0].leases
    return found  # type: ignore[no-any-return]


def too_long(core: Driven, now: float, worker: int, lease: int, calls: int) -> list[Command]:
    """Have a worker be at the same unit for too long, however often it is asked; return what comes of the last answer."""
    commands: list[Command] = []
    for _ in range(OVERDUE_ANSWERS):
        commands += core.probe_result(now, worker, lease, calls, 1.5)
    return commands


class Timeouts(TestCase):
    """A worker is too long at an item."""

    def test_it_is_looked_at_when_it_may_be(self) -> None:
        core = Driven(Processor(job, timeout=1.0), Pipe(64))
        assert core.machine.timer is None
        assert core.feed(5.0, "A", 1) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.machine.timer == 6.0
        assert core.tick(5.5) == []
        assert core.tick(6.0) == [ProbeWorker(0)]
        # It has begun it later than it was handed it.
        assert core.probe_result(6.0, 0, 0, 1, 0.75) == []
        assert core.machine.timer == 6.25
        # It may have stood still with the whole machine, and have to come to itself.
        assert core.tick(6.25) == [ProbeWorker(0)]
        assert core.probe_result(6.25, 0, 0, 1, 1.0) == []
        assert core.machine.timer == 6.27
        assert core.tick(6.27) == [ProbeWorker(0)]
        assert core.probe_result(6.27, 0, 0, 1, 1.02) == []
        assert core.tick(6.29) == [ProbeWorker(0)]
        assert core.probe_result(6.29, 0, 0, 1, 1.04) == [KillWorker(0)]
        # It is told once.
        assert core.tick(9.0) == [] and core.machine.timer is None
        assert core.lose(9.1, 0, -9, started=(0, 1), killed=True) == [Fail(0, 0, 0, 0, 1.0, "overdue")]

    def test_one_that_says_something_is_not(self) -> None:
        core = Driven(Processor(job, timeout=1.0), Pipe(64))
        core.feed(0.0, "A", 1)
        assert core.reply(0.9, 0, 0, 0, ("a", 1), final=False, partial=1) == [Emit((("a", 0, 1),), 1)]
        assert core.machine.timer == 1.9
        assert core.reply(1.8, 0, 0, 1) == []
        assert core.tick(5.0) == [] and core.machine.timer is None

    def test_one_that_waits_is_not(self) -> None:
        core = Driven(Processor(job, timeout=1.0), Pipe(64))
        core.feed(0.0, "A", 1)
        assert core.tick(1.0) == [ProbeWorker(0)]
        assert core.probe_result(1.0, 0, 0, 1, None) == []
        assert core.machine.timer == 2.0

    def test_one_that_goes_on_after_all_is_not(self) -> None:
        core = Driven(Processor(job, timeout=1.0), Pipe(64))
        lease = chunk(core, 4)
        for now, calls, seconds in ((1.0, 1, 1.5), (1.02, 1, 1.52), (1.04, 2, 1.2), (1.06, 2, 1.22)):
            assert core.tick(now) == [ProbeWorker(0)]
            assert core.probe_result(now, 0, lease.number, calls, seconds) == []
        # It goes on, and is too long at the third.
        assert core.tick(1.25) == [ProbeWorker(0)]
        assert core.probe_result(1.25, 0, lease.number, 3, 0.25) == []
        assert core.machine.timer == 2.0
        for now, commands in ((2.0, []), (2.02, []), (2.04, [KillWorker(0)])):
            assert core.tick(now) == [ProbeWorker(0)]
            assert core.probe_result(now, 0, lease.number, 3, now - 1.0) == commands

    def test_one_that_waited_meanwhile_is_not(self) -> None:
        core = Driven(Processor(job, timeout=1.0), Pipe(64))
        core.feed(0.0, "A", 1)
        for now, seconds in ((1.0, 1.5), (1.02, 1.52), (1.04, None), (2.04, 1.0), (2.06, 1.02)):
            assert core.tick(now) == [ProbeWorker(0)]
            assert core.probe_result(now, 0, 0, 1, seconds) == []

    def test_one_that_was_done_in_time_is_not_to_blame(self) -> None:
        core = Driven(Processor(job, timeout=1.0), Pipe(64))
        core.feed(0.0, "A", 1)
        core.tick(1.0)
        assert too_long(core, 1.0, 0, 0, 1) == [KillWorker(0)]
        # It had replied just before it was killed.
        assert core.reply(1.1, 0, 0, 1, ("a", 1)) == [Emit((("a", 0, 1),), 1)]
        assert core.lose(1.1, 0, -9, started=(0, 1), killed=True) == [StartWorker(0, 1)]
        assert core.ready(1.2, 1) == []
        assert core.feed(1.3, "B", 1) == [SendLease(1, 1, (("B", 0, 1),), 1, 1)]

    def test_one_that_is_to_be_killed_gets_nothing_more(self) -> None:
        core = Driven(Processor(job, timeout=1.0), Pipe(64))
        core.feed(0.0, "A", 1)
        core.tick(1.0)
        too_long(core, 1.0, 0, 0, 1)
        assert core.feed(1.1, "B", 1) == []

    def test_what_stands_before_it_is_not_to_blame(self) -> None:
        core = Driven(Processor(job, timeout=1.0, on_error="skip"), Pipe(64))
        lease = chunk(core, 4)
        # It is at the third of the four; what it made of the first two is lost with it.
        assert core.tick(1.0) == [ProbeWorker(0)]
        assert too_long(core, 1.0, 0, lease.number, 3) == [KillWorker(0)]
        assert core.lose(1.1, 0, -9, started=(lease.number, 3), killed=True) == [StartWorker(0, 1)]
        first = lease.begin
        give_up = GiveUp("overdue", 1.0, 1, first + 2, first + 2)
        number = lease.number
        (again,) = core.ready(1.2, 1)
        assert again == SendLease(1, number + 1, (("B", 0, 2),), 2, 2)
        (judged,) = core.reply(1.3, 1, number + 1, 2, ("c", 2))[1:]
        assert judged == SendLease(1, number + 2, (("B", 2, 3),), 1, 1, give_up=give_up)
        given_up = [(0, 1, 7.0, "why")]
        commands = core.reply(1.4, 1, number + 2, 1, given_up=given_up)
        assert commands[:1] == [GaveUp(0, first + 2, first + 2, 1, 7.0, "why")]

    def test_it_may_be_tried_again(self) -> None:
        core = Driven(Processor(job, timeout=1.0, retries=1, on_error="skip"), Pipe(64))
        core.feed(0.0, "A", 1)
        core.tick(1.0)
        too_long(core, 1.0, 0, 0, 1)
        assert core.lose(1.1, 0, -9, started=(0, 1), killed=True) == [StartWorker(0, 1)]
        assert core.ready(1.2, 1) == [SendLease(1, 1, (("A", 0, 1),), 1, 1, attempt=2)]
        core.tick(2.2)
        too_long(core, 2.2, 1, 1, 1)
        core.lose(2.3, 1, -9, started=(1, 1), killed=True)
        give_up = GiveUp("overdue", 1.0, 2, 0, 0)
        assert core.ready(2.4, 2) == [SendLease(2, 2, (("A", 0, 1),), 1, 1, give_up=give_up, attempt=2)]

    def test_state_is_lost(self) -> None:
        core = Driven(Stateful(timeout=1.0, on_error="skip"), Pipe(64))
        lease = chunk(core, 4)
        core.tick(1.0)
        too_long(core, 1.0, 0, lease.number, 2)
        culprit = lease.begin + 1
        assert core.lose(1.1, 0, -9, started=(lease.number, 2)) == [Fail(0, 0, culprit, culprit, 1.0, "overdue")]


class Deaths(TestCase):
    """Workers die at an item."""

    def test_it_is_judged_when_it_is_known_for_certain(self) -> None:
        core = Driven(Processor(job, on_error="skip"), Pipe(64))
        core.feed(0.0, "A", 1)
        for attempt in range(2):
            assert core.lose(0.1, attempt, 3, started=(attempt, 1)) == [StartWorker(0, attempt + 1)]
            give_up = GiveUp("died", 3, 2, 0, 0) if attempt else None
            lease = SendLease(attempt + 1, attempt + 1, (("A", 0, 1),), 1, 1, give_up=give_up, attempt=2)
            assert core.ready(0.2, attempt + 1) == [lease]
        # One that dies of that, too, is not even looked at.
        assert core.lose(0.3, 2, 4, started=(2, 1)) == [StartWorker(0, 3)]
        blind = GiveUp("died", 3, 2, 0, 0, skip_unpickling=True)
        assert core.ready(0.4, 3) == [SendLease(3, 3, (("A", 0, 1),), 1, 1, give_up=blind, attempt=2)]
        # However often.
        assert core.lose(0.5, 3, -9, started=(3, 1), killed=True) == [StartWorker(0, 4)]
        assert core.ready(0.6, 4) == [SendLease(4, 4, (("A", 0, 1),), 1, 1, give_up=blind, attempt=2)]
        assert core.end(0.7) == []
        assert core.reply(0.8, 4, 4, 1, given_up=[(0, 2, 7.0, "why")]) == [GaveUp(0, 0, 0, 2, 7.0, "why"), Finish()]

    def test_what_it_was_done_with_is_not_to_blame(self) -> None:
        # Its last words about that are lost, as they may be in a queue.
        for settings in ({}, {"timeout": 9.0}):
            core = Driven(Processor(job, **settings), Pipe(64))
            core.feed(0.0, "A", 1)
            core.reply(0.0, 0, 0, 1, ("a", 1))
            core.feed(0.0, "B", 2)
            core.feed(0.0, "C", 2)
            _, second = core.node(0).book.workers[0].leases
            assert core.lose(0.1, 0, 3, started=(second.number, 1)) == [StartWorker(0, 1)]
            attempts = core.node(0).recovery.crash_blame
            assert attempts.died(1, 1, WorkerLost(1, 3)) is None, "it was to blame already"
            assert attempts.died(second.first, second.first, WorkerLost(1, 3)) is not None

    def test_a_verdict_is_not_lost_with_a_worker_that_had_not_begun_it(self) -> None:
        core = Driven(Processor(job, on_error="skip"), Pipe(64))
        core.feed(0.0, "A", 1)
        core.lose(0.1, 0, 3, started=(0, 1))
        core.ready(0.1, 1)
        core.lose(0.1, 1, 3, started=(1, 1))
        (lease,) = core.ready(0.1, 2)
        assert isinstance(lease, SendLease) and lease.give_up is not None
        assert core.lose(0.2, 2, -9, started=(1, 1), killed=True) == [StartWorker(0, 3)]
        assert core.ready(0.3, 3) == [lease._replace(worker=3, lease=3)]

    def test_nobody_is_accused_of_what_comes_of_unpickling(self) -> None:
        core = Driven(Processor(job, on_error="skip"), Pipe(64))
        number = chunk(core, 4).number
        for attempt in range(2):
            assert core.lose(0.1, attempt, 3, started=(number + attempt, 1), unpickling=True) == [
                StartWorker(0, attempt + 1)
            ]
            assert core.ready(0.2, attempt + 1) == [
                SendLease(attempt + 1, number + attempt + 1, (("B", 0, 4),), 4, 5),
            ]
        assert core.lose(0.3, 2, 3, started=(number + 2, 1), unpickling=True) == [Fail(0, 2, 3, 6, 3, "unpickle")]

    def test_what_no_worker_lives_to_begin(self) -> None:
        # Many deaths at the same items do, but not those of a burst of kills from outside; nor do many at others.
        for killed, attempts, last in ((False, 5, 0.3), (True, 50, 10.3)):
            core = Driven(Processor(job, on_error="skip"), Pipe(64))
            number = chunk(core, 4).number
            for attempt in range(attempts - 1):
                started = (number + attempt - 1, 4)
                assert core.lose(0.1, attempt, 3, started=started, killed=killed) == [StartWorker(0, attempt + 1)]
                core.ready(0.2, attempt + 1)
            commands = core.lose(last, attempts - 1, 3, started=(number, 1), killed=killed)
            assert commands == [Fail(0, attempts - 1, 3, 6, 3, "receive")]
        core = Driven(Processor(job), Pipe(64))
        for item in range(10):
            core.feed(0.1, "A", 1)
            assert core.lose(0.2, item, -9, started=(0, 0), killed=True) == [StartWorker(0, item + 1)]
            core.ready(0.3, item + 1)
            core.reply(0.4, item + 1, 2 * item + 1, 1, ("a", 1))
            core.consume(0.5, 1)


class Counting(TestCase):
    """How much may be given up."""

    def give_up(self, core: Driven, lease: int) -> Any:
        core.feed(0.1, "A", 1)
        commands = core.reply(0.2, 0, lease, 1, given_up=[(0, 1, 7.0, "why")])
        assert commands[0] == GaveUp(0, lease, lease, 1, 7.0, "why")
        return commands[1:]

    def test_a_number(self) -> None:
        core = Driven(Processor(job, on_error="skip"), Pipe(64), max_failures=2)
        assert self.give_up(core, 0) == self.give_up(core, 1) == []
        assert self.give_up(core, 2) == [Fail(0, None, None, None, 3, "failures")]
        assert core.machine.over

    def test_a_share(self) -> None:
        core = Driven(Processor(job, on_error="skip"), Pipe(64), max_failures=0.5)
        for lease in range(99):
            assert self.give_up(core, lease) == []
        assert self.give_up(core, 99) == [Fail(0, None, None, None, 100, "failures")]

    def test_a_share_of_few(self) -> None:
        core = Driven(Processor(job, on_error="skip"), Pipe(64), max_failures=0.5)
        assert self.give_up(core, 0) == []
        assert core.end(0.3) == [Fail(0, None, None, None, 1, "failures")]

    def test_a_share_as_it_was_at_that_item(self) -> None:
        # Of 64, and 65 that are acknowledged at once, the 31st to the 60th of the latter: more than 0.24 of the 124 that
        # there were then, and less than of all 129.
        core = Driven(Processor(job, on_error="skip"), Pipe(1024), max_failures=0.24)
        core.machine.first.chunk_sizer.size = 150
        core.feed(0.0, "A", 64)
        core.reply(0.1, 0, 0, 64)
        core.machine.first.chunk_sizer.size = 150
        assert core.feed(0.2, "B", 65) == [SendLease(0, 1, (("B", 0, 65),), 65, 65)]
        commands = core.reply(0.3, 0, 1, 65, given_up=[(index, 1, 7.0, "why") for index in range(30, 60)])
        assert commands[-1] == Fail(0, None, None, None, 30, "failures")
        assert [type(command) for command in commands[:-1]] == [GaveUp] * 30

    def test_none(self) -> None:
        core = Driven(Processor(job, on_error="skip"), Pipe(64))
        for lease in range(200):
            assert self.give_up(core, lease) == []
        assert core.end(0.3) == [Finish()]

    def test_in_a_chunk(self) -> None:
        core = Driven(Processor(job, on_error="skip", batch=2), Pipe(64))
        core.feed(0.0, "A", 3)
        core.end(0.0)
        assert core.reply(0.1, 0, 0, 1, given_up=[(0, 1, 7.0, "why")])[0] == GaveUp(0, 0, 1, 1, 7.0, "why")
        # The last batch may be shorter.
        assert core.reply(0.2, 0, 1, 1, given_up=[(0, 1, 8.0, "why")])[0] == GaveUp(0, 2, 2, 1, 8.0, "why")


class Replacing(TestCase):
    """Workers that have had as many items as they may."""

    def test_another_is_started_with_the_last_lease(self) -> None:
        core = Driven(Processor(job, max_items=2), Pipe(64))
        assert core.feed(0.0, "A", 4) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.reply(0.1, 0, 0, 1, ("a", 1)) == [
            Emit((("a", 0, 1),), 1),
            SendLease(0, 1, (("A", 1, 2),), 1, 1),
            StartWorker(0, 1),
        ]
        assert core.ready(0.2, 1) == [SendLease(1, 2, (("A", 2, 4),), 2, 2), StartWorker(0, 2)]
        assert core.reply(0.3, 0, 1, 1, ("b", 1)) == [Emit((("b", 0, 1),), 1), EndWorker(0)]
        assert core.machine.roster.step_rosters[0].numbers == [1]

    def test_it_dies_before(self) -> None:
        core = Driven(Processor(job, max_items=1), Pipe(64))
        assert core.feed(0.0, "A", 1) == [SendLease(0, 0, (("A", 0, 1),), 1, 1), StartWorker(0, 1)]
        # There is another already.
        assert core.lose(0.1, 0, -9, started=(0, 1), killed=True) == []
        assert core.ready(0.2, 1) == [SendLease(1, 1, (("A", 0, 1),), 1, 1, attempt=2), StartWorker(0, 2)]
