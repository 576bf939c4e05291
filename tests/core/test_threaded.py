"""Workers of several threads, in the core: which calls were too long when one is killed, and that nobody else is blamed.

Law: what each worker is at is written out, and so is what becomes of each of its items.
"""

from __future__ import annotations

from typing import Any

from conveyor import Pipe, Processor
from conveyor.core.commands import Command, Fail, GiveUp, KillWorker, ProbeWorker, SendLease, StartWorker
from conveyor.core.events import WorkerLost
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase

TIMEOUT = 1.0
# What a call has taken that was overdue when its worker was first asked.
LATE = 1.05


def job(item: Any) -> Any:
    return item


class Safe(Processor[Any, Any]):
    """Keeps state, which threads may share."""

    thread_safe = True

    def process(self, item: Any) -> Any:
        return item


def leases(commands: list[Command]) -> list[SendLease]:
    """The leases among commands."""
    return [command for command in commands if isinstance(command, SendLease)]


def span(lease: SendLease) -> tuple[int, int]:
    """The first item of a lease with one piece, and the one behind its last."""
    (_, start, stop) = lease.pieces[0]
    return start, stop


class Timeouts(TestCase):
    """A worker that is at calls for too long."""

    def driven(self, **settings: Any) -> tuple[Driven, SendLease]:
        """A worker that has all four of its items in one lease."""
        core = Driven(Processor(job, threads=4, timeout=TIMEOUT, **settings), Pipe(64))
        commands = core.feed(0.0, "A", 4)
        found = leases(commands)
        while len(found) > 1 or span(found[0]) != (0, 4):
            # The first leases are short, as nothing is known of the calls.
            for lease in found:
                start, stop = span(lease)
                commands = core.reply(0.0, 0, lease.lease, stop - start, ("a", stop - start))
            core.consume(0.0, 4)
            found = leases(core.feed(0.0, "A", 4))
        return core, found[0]

    def lost(
        self,
        core: Driven,
        now: float,
        started: tuple[int, int],
        *under_way: tuple[int, int, float],
        silent: float = 0.01,
    ) -> list[Command]:
        """Have the worker be killed at these calls."""
        return core.handle(WorkerLost(0, -9, started, True, True, False, under_way, silent), now)

    def killed_at(self, core: Driven, lease: SendLease, calls: int) -> None:
        """Have the worker be found overdue at a call."""
        for number in range(3):
            commands = core.probe_result(TIMEOUT + 0.02 * number, 0, lease.lease, calls, LATE)
        assert commands == [KillWorker(0)]

    def test_a_reply_puts_no_probe_off(self) -> None:
        core, lease = self.driven()
        assert ProbeWorker(0) not in core.reply(0.9, 0, lease.lease, 1, ("a", 1), final=False)
        assert ProbeWorker(0) in core.tick(1.0)
        # The call that takes longest tells when to look again.
        core.probe_result(1.0, 0, lease.lease, 3, 0.25)
        assert core.tick(1.74) == []
        assert ProbeWorker(0) in core.tick(1.75)

    def test_only_the_call_that_took_too_long_is_given_up(self) -> None:
        core, lease = self.driven(on_error="skip")
        first = core.node(0).book.leases[lease.lease].first
        self.killed_at(core, lease, 2)
        number = lease.lease
        commands = self.lost(core, 1.1, (number, 4), (number, 2, LATE + 0.04), (number, 4, 0.3))
        assert [type(command) for command in commands] == [StartWorker]
        found = leases(core.ready(1.2, 1))
        told = [(span(each), each.give_up, each.attempt) for each in found]
        assert told[0] == ((0, 1), None, 1)
        give_up = GiveUp("overdue", TIMEOUT, 1, first + 1, first + 1)
        # What is given up has nothing beside it.
        assert len(told) == 1
        commands = core.reply(1.3, 1, found[0].lease, 1, ("a", 1))
        (second,) = leases(commands)
        assert (span(second), second.give_up) == ((1, 2), give_up)
        given_up = [(0, 1, 0.0, "why")]
        (third,) = leases(core.reply(1.4, 1, second.lease, 1, given_up=given_up))
        assert (span(third), third.give_up, third.attempt) == ((2, 4), None, 1)

    def test_a_retry_counts_for_that_call_alone(self) -> None:
        core, lease = self.driven(retries=1)
        self.killed_at(core, lease, 1)
        number = lease.lease
        self.lost(core, 1.1, (number, 3), (number, 1, LATE + 0.04), (number, 3, 0.3))
        found = leases(core.ready(1.2, 1))
        assert [(span(each), each.attempt) for each in found] == [((0, 1), 2), ((1, 3), 1), ((3, 4), 1)]

    def test_the_run_fails_with_that_call(self) -> None:
        core, lease = self.driven()
        first = core.node(0).book.leases[lease.lease].first
        self.killed_at(core, lease, 3)
        number = lease.lease
        commands = self.lost(core, 1.1, (number, 4), (number, 1, 0.2), (number, 3, LATE + 0.04))
        assert commands == [Fail(0, 0, first + 2, first + 2, TIMEOUT, "overdue")]

    def test_of_a_state_that_is_lost_too(self) -> None:
        core = Driven(Safe(threads=4, timeout=TIMEOUT), Pipe(64))
        (lease,) = leases(core.feed(0.0, "A", 1))
        second = leases(core.feed(0.0, "B", 1))[0]
        for number in range(3):
            core.probe_result(TIMEOUT + 0.02 * number, 0, second.lease, 1, LATE)
        under_way = (lease.lease, 1, 0.2), (second.lease, 1, LATE + 0.04)
        assert self.lost(core, 1.1, (second.lease, 1), *under_way) == [Fail(0, 0, 1, 1, TIMEOUT, "overdue")]

    def test_several_at_once(self) -> None:
        core, lease = self.driven(retries=1)
        self.killed_at(core, lease, 1)
        number = lease.lease
        under_way = [(number, calls, LATE + 0.04) for calls in (1, 2)]
        self.lost(core, 1.1, (number, 3), *under_way, (number, 3, 1.01))
        found = leases(core.ready(1.2, 1))
        # The third was not overdue yet when the worker was asked first.
        assert [(span(each), each.attempt) for each in found] == [((0, 1), 2), ((1, 2), 2), ((2, 3), 1), ((3, 4), 1)]

    def test_a_call_that_has_ended_meanwhile_is_not_to_blame(self) -> None:
        core, lease = self.driven()
        self.killed_at(core, lease, 4)
        number = lease.lease
        commands = self.lost(core, 1.1, (number, 4), (number, 2, 0.2))
        assert [type(command) for command in commands] == [StartWorker]
        assert [(span(each), each.attempt) for each in leases(core.ready(1.2, 1))] == [((0, 4), 1)]

    def test_where_the_interpreter_stood_still_each_call_is_tried_alone(self) -> None:
        core, lease = self.driven(on_error="skip")
        self.killed_at(core, lease, 1)
        number = lease.lease
        under_way = [(number, calls, LATE + 0.04) for calls in (1, 3)]
        self.lost(core, 1.1, (number, 3), *under_way, silent=0.9)
        (alone,) = leases(core.ready(1.2, 1))
        assert (span(alone), alone.give_up, alone.attempt) == ((0, 1), None, 1)


class Balancing(TestCase):
    """What the balancer is told."""

    def test_how_many_threads_a_worker_has(self) -> None:
        core = Driven(Processor(job, threads=4, workers="auto"), Pipe(64))
        core.feed(0.0, "A", 4)
        core.tick(0.1)
        assert [load.threads for load in core.step_loads] == [4]
