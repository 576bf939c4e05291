"""A traced run whose items a source gives: what is given up counts as in any run, and is told of each item."""

from __future__ import annotations

import unittest
from typing import Any

from conveyor import Pipe, Processor
from conveyor.core.commands import Command, Deliver, Fail, Finish, GaveUp, ItemFailed
from conveyor.core.events import Raised, RunStarted
from tests.helpers.driving import Driven
from tests.helpers.support import TestCase


def job(item: Any) -> Any:
    return item


class Streamed(TestCase):
    """One item that is given up, and what comes of that."""

    def driven(self, streamed: bool = True, max_failures: int | None = None, **policy: Any) -> Driven:
        """A machine in a traced run, with the first item at its worker, as lease 0."""
        core = Driven(Processor(job, **policy), Pipe(64), max_failures=max_failures)
        assert core.end(0.0) == [Finish()]
        core.handle(RunStarted(traced=True, streamed=streamed), 0.0)
        core.feed(0.1, "A", 1)
        return core

    def give_up(self, core: Driven) -> list[Command]:
        return core.reply(0.2, 0, 0, 1, group_sizes=[(0, 1)], given_up=[(0, 2, 7.0, "why")])

    def test_an_item_that_fails_is_given_up(self) -> None:
        core = self.driven()
        assert self.give_up(core) == [ItemFailed(0, 0, 0, 2, "why"), GaveUp(0, 0, 0, 2, 7.0, "why")]
        assert core.machine.stats(0.3).steps[0].failed == 1
        assert core.end(0.3) == [Finish()]

    def test_one_that_was_submitted_fails_and_counts_nowhere(self) -> None:
        core = self.driven(streamed=False, max_failures=0)
        assert self.give_up(core) == [ItemFailed(0, 0, 0, 2, "why")]
        assert core.machine.stats(0.3).steps[0].failed == 1
        assert core.end(0.3) == [Finish()]

    def test_a_call_that_a_policy_gave_up_is_told_of_with_its_item(self) -> None:
        for streamed in (True, False):
            skipped, gave_up, settled = self.give_up(self.driven(streamed, on_error="skip"))
            assert skipped == ItemFailed(0, 0, 0, 2, "why", skipped=True)
            assert gave_up == GaveUp(0, 0, 0, 2, 7.0, "why")
            assert isinstance(settled, Deliver) and settled.settled == (0,)

    def test_a_job_that_raises(self) -> None:
        core = self.driven()
        assert core.handle(Raised(0, 0, 0, "why"), 0.2) == [
            ItemFailed(0, 0, 0, 0, "why"),
            GaveUp(0, 0, 0, 0, 0.0, "why"),
        ]

    def test_one_too_many_ends_the_run(self) -> None:
        core = self.driven(max_failures=0)
        assert self.give_up(core)[2:] == [Fail(0, None, None, None, 1, "failures")]
        core = self.driven(max_failures=0, on_error="skip")
        assert self.give_up(core)[2:] == [Fail(0, None, None, None, 1, "failures")]


if __name__ == "__main__":
    unittest.main()
