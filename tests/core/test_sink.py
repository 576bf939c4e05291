"""Where a run begins and ends, event by event.

Law: the source is asked for no more than the first pipe has room for; what comes to the end is handed out at once; no
more results wait for the consumer than the last pipe holds; items that are heavy count for more.
"""

from __future__ import annotations

from typing import Any

from conveyor import Pipe, Processor
from conveyor.core.commands import Emit, Finish, Grant, Pull, SendLease
from conveyor.core.events import CreditReturned
from conveyor.core.tuning.chunk_size import UNWEIGHED_ITEMS, first_pull
from tests.helpers.driving import Driven, plan_of
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Source(TestCase):
    """What the source may give."""

    def test_the_first_items_come_unasked(self) -> None:
        assert first_pull(plan_of(Processor(job), Pipe(8))) == 8
        assert first_pull(plan_of(Processor(job, batch=9), Pipe(8))) == 9
        assert first_pull(plan_of(Processor(job))) == UNWEIGHED_ITEMS
        # Without a whole batch no worker begins, and nobody would ask for more.
        assert first_pull(plan_of(Processor(job, batch=100))) == 100
        # A worker would wait in vain for the rest of its list.
        assert first_pull(plan_of(Processor(job, batch=100, per_item=True, batch_timeout=60))) == 100
        assert first_pull(plan_of(Processor(job, batch=100, per_item=True))) == UNWEIGHED_ITEMS

    def test_more_than_was_asked_for_is_an_error(self) -> None:
        core = Driven(Processor(job), Pipe(2))
        with self.assertRaisesRegex(AssertionError, "more than it was asked for"):
            core.feed(0.0, "A", 3)

    def test_room_is_asked_for_in_amounts_worth_a_message(self) -> None:
        core = Driven(Processor(job), Pipe(16))
        core.feed(0.0, "A", 16)
        assert core.pulls == []
        # With the source at its end, room for one is not worth a message while work is under way that makes more.
        core.reply(0.1, 0, 0, 1, ("a", 1), seconds=0.01)
        assert core.pulls == [Pull(1)]
        for lease, blob in ((1, "b"), (2, "c")):
            core.reply(0.2, 0, lease, 1, (blob, 1), seconds=0.01)
            assert core.pulls == []
        # A quarter of the pipe is.
        core.reply(0.4, 0, 3, 1, ("d", 1), seconds=0.01)
        assert core.pulls == [Pull(4)]

    def test_room_for_cheap_calls_is_asked_for_in_halves_of_a_small_pipe(self) -> None:
        core = Driven(Processor(job), Pipe(16))
        core.feed(0.0, "A", 16)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.pulls == [Pull(1)]
        for lease, blob in ((1, "b"), (2, "c")):
            core.reply(0.2, 0, lease, 2, (blob, 2))
            assert core.pulls == []
        core.reply(0.4, 0, 3, 4, ("d", 4))
        assert core.pulls == [Pull(8)]

    def test_a_source_is_never_left_waiting_with_nothing_under_way(self) -> None:
        core = Driven(Processor(job, batch=3), Pipe(4))
        asked = 0
        for _ in range(4):
            core.feed(0.0, "A", 1)
            asked += sum(pull.credit for pull in core.pulls)
        core.reply(0.2, 0, 0, 1, ("a", 1))
        asked += sum(pull.credit for pull in core.pulls)
        # One item waits, which is no batch: without two more the run would stand still.
        assert asked >= 2

    def test_nothing_is_asked_of_a_source_that_has_ended(self) -> None:
        core = Driven(Processor(job), Pipe(2))
        core.feed(0.0, "A", 1)
        assert core.end(0.1) == []
        assert core.reply(0.2, 0, 0, 1) == [Finish()]

    def test_heavy_items_fill_the_pipe_sooner(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        # 4 MiB each, so that four fill the 16 MiB of the pipe.
        assert core.feed(0.0, "A", 8, size=8 * 4 << 20) == [SendLease(0, 0, (("A", 0, 1),), 1, 1)]
        assert core.machine.first.free_capacity(0) == 4 - 7
        assert core.machine.first.free_capacity(0, weighed=False) == 64 - 7
        for lease in range(7):
            core.reply(1.0 + lease, 0, lease, 1, seconds=1.0)
        assert core.machine.first.free_capacity(0) == 4

    def test_items_that_have_become_heavy_are_asked_for_anew(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        # 64 were promised; with 2 MiB each, eight of them fill the pipe.
        core.feed(0.0, "A", 10, size=10 * 2 << 20)
        assert core.handle(CreditReturned(54), 0.1) == [] and core.pulls == []
        pulled = []
        for lease in range(5):
            core.reply(0.2 + lease, 0, lease, 1, seconds=1.0)
            pulled.append(core.pulls)
        assert pulled == [[], [], [Pull(1)], [Pull(2)], []]

    def test_what_is_allowed_while_the_source_gives_back_stays_good(self) -> None:
        core = Driven(Processor(job), Pipe(4))
        core.feed(0.0, "A", 2)
        assert core.pulls == [Pull(1)]
        # The source has not heard of that one when it gives the other two back.
        core.handle(CreditReturned(2), 0.1)
        assert core.pulls == [Pull(2)]
        core.feed(0.2, "B", 1 + 2)
        assert core.machine.first.free_capacity(0) == 0

    def test_what_is_on_its_way_to_a_source_that_gives_back_stays_allowed(self) -> None:
        core = Driven(Processor(job), Pipe(64))
        leases = core.feed(0.0, "A", 32)
        allowed = 0
        for lease in leases:
            assert isinstance(lease, SendLease)
            commands = core.reply(0.1, 0, lease.lease, lease.items, ("a", lease.items))
            leases += [command for command in commands if isinstance(command, SendLease)]
            allowed += sum(pull.credit for pull in core.pulls)
        assert allowed > 16
        # It has not heard of that yet, and gives back the other half of what it might give from the beginning.
        core.handle(CreditReturned(32), 0.2)
        core.feed(0.3, "B", allowed)
        with self.assertRaisesRegex(AssertionError, "more than it was asked for"):
            core.feed(0.4, "C", 1 + sum(pull.credit for pull in core.pulls) + 64)


class Sink(TestCase):
    """What the consumer has and has not taken."""

    def test_results_are_handed_out_at_once_and_counted_until_taken(self) -> None:
        core = Driven(Processor(job), Pipe(2))
        core.feed(0.0, "A", 1)
        assert core.reply(0.1, 0, 0, 0, ("a", 1), final=False) == [Emit((("a", 0, 1),), 1)]
        assert (core.machine.sink.waiting, core.machine.sink.free_capacity(0)) == (1, 1)
        assert core.consume(0.2, 1) == []
        assert (core.machine.sink.waiting, core.machine.sink.free_capacity(0)) == (0, 2)

    def test_heavy_results_fill_the_pipe_sooner(self) -> None:
        core = Driven(Processor(job), Pipe(8))
        core.feed(0.0, "A", 8)
        assert core.reply(0.1, 0, 0, 1, ("a", 1), size=64 << 20) == [
            Emit((("a", 0, 1),), 1, 0.0),
            SendLease(0, 1, (("A", 1, 2),), 1, 1),
        ]
        # One fills the pipe: the next is in the hands of the worker, and there it stays.
        assert core.reply(0.2, 0, 1, 1, ("b", 1), size=64 << 20) == [Emit((("b", 0, 1),), 1, 0.0)]
        assert core.consume(0.3, 1) == [SendLease(0, 2, (("A", 2, 3),), 1, 1)]

    def test_the_consumer_is_pressed_where_room_is_waited_for(self) -> None:
        core = Driven(Processor(job, workers=2), Pipe(8))
        core.feed(0.0, "A", 2)
        # The second lease gets all the room that there is but for what the first needs, and holds its outputs.
        assert core.reply(0.1, 1, 1, 0, ("b", 1), final=False, starving=True) == [Grant(1, 1, 7)]
        assert core.reply(0.2, 0, 0, 0, ("a", 1), final=False, starving=True) == [
            Emit((("a", 0, 1),), 1),
            Grant(0, 0, 1),
        ]
        # One that may give nothing more has given something before; it waits for room, and its worker has to hear of it.
        assert core.reply(0.3, 0, 0, 0, ("c", 1), final=False) == [Emit((("c", 0, 1),), 1)]
        assert core.reply(0.4, 0, 0, 0, final=False, starving=True) == [Emit((), 0, 0.0)]
        # Once is enough, until the consumer says something; and then there may still be somebody.
        assert core.reply(0.5, 1, 1, 0, ("e", 7), final=False, starving=True) == []
        assert core.consume(0.6, 1) == [Grant(0, 0, 1), Emit((), 0, 0.0)]
        assert core.consume(0.7, 1) == []

    def test_the_end_of_the_results_is_the_end_of_the_run(self) -> None:
        core = Driven(Processor(job), Pipe(2))
        core.feed(0.0, "A", 1)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert core.end(0.2) == [Finish()]
        # What the consumer takes later is of no concern.
        assert core.consume(0.3, 1) == []

    def test_two_pipes_in_a_row_hold_what_they_say(self) -> None:
        core = Driven(Processor(job), Pipe(3), Processor(job), Pipe(1))
        core.feed(0.0, "A", 1)
        assert core.reply(0.1, 0, 0, 0, ("a", 1), final=False, starving=True) == [
            SendLease(1, 0, (("a", 0, 1),), 1, 1),
            Grant(0, 0, 4),
        ]
        assert core.reply(0.2, 1, 0, 0, ("x", 1), final=False, starving=True) == [
            Emit((("x", 0, 1),), 1, 0.0),
            Grant(1, 0, 1),
        ]
        assert core.reply(0.3, 0, 0, 0, ("b", 4), final=False, starving=True) == []
        assert core.reply(0.4, 1, 0, 0, ("y", 1), final=False, starving=True) == [Emit((("y", 0, 1),), 1, 0.0)]
        # The results hold one, and one is in the hands of the second worker: both steps stand still.
        assert core.machine.sink.waiting == 2
        assert core.consume(0.5, 1) == [Grant(1, 0, 1)]


class Finishes(Processor[Any, Any]):
    """Has something to do at the end."""

    def process(self, item: Any) -> Any:
        return item

    def finish(self) -> Any:
        return "end"


class Stops(TestCase):
    """Whether the run is over for a consumer that takes no more."""

    def test_not_while_an_item_is_under_way(self) -> None:
        core = Driven(Finishes(), Pipe(8))
        core.feed(0.0, "A", 2)
        core.end(0.1)
        assert core.machine.conclusion(0) == (False, False)
        core.reply(0.2, 0, 0, 1, ("a", 1))
        assert core.machine.conclusion(1) == (False, False)

    def test_with_nothing_left_but_finish(self) -> None:
        core = Driven(Finishes(), Pipe(8))
        core.feed(0.0, "A", 1)
        core.end(0.1)
        core.reply(0.2, 0, 0, 1, ("a", 1))
        assert core.machine.conclusion(1) == (True, True)
        assert core.machine.conclusion(0) == (False, False), "one result was not taken"
        core.reply(0.3, 0, 1, 0, ("end", 1), final=False)
        assert core.machine.conclusion(1) == (True, True), "however fast it is"
        assert core.machine.conclusion(2) == (True, False), "it may give more, which is not dropped then"
        core.reply(0.4, 0, 1, 0)
        assert core.machine.over
        assert core.machine.conclusion(1) == (True, True)

    def test_not_before_the_source_says_that_it_has_ended(self) -> None:
        core = Driven(Finishes(), Pipe(8))
        assert core.machine.conclusion(0) is None
        core.feed(0.0, "A", 1)
        assert core.machine.conclusion(0) == (False, False)
        core.reply(0.1, 0, 0, 1, ("a", 1))
        assert (core.machine.conclusion(0), core.machine.conclusion(1)) == ((False, False), None)
        core.end(0.2)
        assert core.machine.conclusion(1) == (True, True)

    def test_without_finish_the_end_is_the_end(self) -> None:
        core = Driven(Processor(job), Pipe(8))
        core.feed(0.0, "A", 1)
        core.end(0.1)
        core.reply(0.2, 0, 0, 1, ("a", 1))
        assert (core.machine.conclusion(1), core.machine.conclusion(0)) == ((True, True), (False, False))

    def test_a_batch_that_waits_for_more_is_under_way(self) -> None:
        core = Driven(Finishes(), Pipe(8), Processor(job, batch=3))
        core.feed(0.0, "A", 1)
        core.end(0.1)
        core.reply(0.2, 0, 0, 1, ("a", 1))
        assert core.machine.conclusion(0) == (False, False)

    def test_a_run_that_was_given_up_is_not_over(self) -> None:
        core = Driven(Finishes(), Pipe(8))
        core.feed(0.0, "A", 2)
        core.cancel(0.1)
        assert core.machine.conclusion(0) == (False, False)
