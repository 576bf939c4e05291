"""Bugs planted in the core, one at a time: the simulation finds each of them.

Law: a planted bug is the real source with one piece of text replaced, so it cannot outlive the code that it stands in:
where that text is gone, the test fails and says so.  The seeds are fixed, and the one that fails passes without the bug.  What finds which
bug is said with the bug, as the text of the failure.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import unittest
from typing import Any, NamedTuple
from unittest import mock

from conveyor.core.data.group_sizes import Groups
from conveyor.core.data.pieces import Pieces
from conveyor.core.leasing.blame import CrashBlame
from conveyor.core.leasing.credit import CreditLedger, OutputOrder, SourceCredit
from conveyor.core.leasing.leases import LeaseBook
from conveyor.core.leasing.recovery import Recovery
from conveyor.core.machine import Machine
from conveyor.core.nodes.base import Intake
from conveyor.core.nodes.forks import Replicate
from conveyor.core.nodes.sink import Sink
from conveyor.core.nodes.step import Step
from tests.helpers.simulated import SimulatedShell
from tests.helpers.simulation import Failure, Scenario, simulate
from tests.helpers.spread import spread
from tests.helpers.support import ALL, TestCase

# So many seeds are tried at most: where the core has changed, its courses have, and another finds the bug.
SEEDS = 1000
EVENTS = 400


class Bug(NamedTuple):
    """A piece of the text of a method, what stands there instead, and what the failure says."""

    name: str
    owner: type
    method: str
    old: str
    new: str
    found: str
    # The seed to begin with, where those before it do not show the bug, and in how many of a hundred an item is bad.
    first: int = 0
    poison: int = 25
    # Of a hundred seeds, in how many workers begin several items at once.
    hands: int = 0

    def scenario(self, seed: int) -> Scenario:
        """What it is looked for in."""
        return Scenario(seed, events=EVENTS, poison=self.poison, hands=self.hands)


BUGS = (
    Bug(
        "items are acknowledged when they are begun, before their outputs are there",
        Recovery,
        "lose",
        "requeued = self.requeue(lease, last - first + 1)",
        "self._book.acknowledged += lease.items; self._book.add_outstanding(lease.worker, -lease.items); lease.items = 0\n"
        "    return None",
        "is in no place, or in two",
    ),
    Bug(
        "no fence: what a lost worker said last is let through",
        SimulatedShell,
        "fenced",
        "return number not in self.workers",
        "return False",
        "KeyError",
    ),
    Bug(
        "the credit of a lease that was lost is forgotten",
        CreditLedger,
        "release",
        "self.promised -= lease.credit",
        "pass",
        "more is promised|check:|nothing can happen any more",
    ),
    Bug(
        "a step lets outputs out in the order in which they arrive",
        OutputOrder,
        "accept",
        "lease.held.append(event)",
        "self.emit(event)",
        "the results differ",
        first=8,
    ),
    Bug(
        "a join lets out what arrives as it arrives",
        Machine,
        "_build",
        "case MergeNode() if not node.tracked:",
        "case MergeNode():",
        "groups and items disagree|the results differ|results are missing",
    ),
    Bug(
        "a payload that is cut loses the item at the cut",
        Pieces,
        "take",
        "self._pieces[0] = (source, start + items, stop)",
        "self._pieces[0] = (source, start + items + 1, stop)",
        "an item was counted wrong|an empty piece|list index|deque",
    ),
    Bug(
        "of a payload that is cut the wrong end is kept",
        Pieces,
        "take",
        "self._pieces[0] = (source, start + items, stop)",
        "self._pieces[0] = (source, start, stop - items)",
        "items that are new|has two owners|that was acknowledged",
    ),
    Bug(
        "a worker is sent away twice",
        Step,
        "_end_worker",
        "self.context.command(EndWorker(worker.number))",
        "self.context.command(EndWorker(worker.number)); self.context.command(EndWorker(worker.number))",
        "a worker is sent away twice",
    ),
    Bug(
        "what a lost worker had is handed out twice",
        Recovery,
        "lose",
        "requeued = self.requeue(lease, last - first + 1)",
        "requeued = self.requeue(lease, last - first + 1)\n"
        "    pieces = requeued.pieces; twin = RequeuedItems(requeued.number, requeued.first, tuple(pieces._pieces), pieces.items)\n"
        "    self.requeued.append(twin)\n"
        "    if self._order.ordered:\n"
        "        self._order.entries.insert(self._order.entries.index(requeued), twin)",
        "acknowledged twice|two owners|that was acknowledged|in no place, or in two|out of order|nothing can happen",
    ),
    Bug(
        "what is taken back from a worker is left to it as well",
        Step,
        "handle_revoke_result",
        "started = min(lease.given, event.calls * self.batch_size)",
        "started = min(lease.given, (event.calls - 1) * self.batch_size)",
        "disagree on a lease|had been taken back|has two owners|in no place, or in two",
        first=15,
    ),
    Bug(
        "a merge forgets a group",
        Groups,
        "push",
        "closed.extend(group_sizes[1:])",
        "closed.extend(group_sizes[2:])",
        "groups and items disagree|the results differ|nothing can happen any more",
        first=11,
    ),
    Bug(
        "a batch is made up before its time",
        Step,
        "_lease",
        "if short and (requeued is not None or self.intake.ended):",
        "if short and (requeued is not None or self.intake.ended or calls):",
        "the results differ",
        first=70,
    ),
    Bug(
        "a generator that runs again gives again what is there already",
        Step,
        "_hand_out",
        "give_up, attempt = requeued.terms\n",
        "give_up, attempt = requeued.terms\n        skip = 0\n",
        "the results differ|one too many",
        first=11,
    ),
    Bug(
        "what the source was allowed and has not given is allowed again",
        SourceCredit,
        "more",
        "ahead = self._step, self.ahead",
        "ahead = self._step, 0",
        "the source was asked for too much|pipe over its bound",
    ),
    Bug(
        "what the source has not heard of counts as given back",
        Machine,
        "_take_in",
        "self.source.pulled -= event.items",
        "self.source.pulled = self.source.given",
        "the source gave more than it was asked for",
        first=4,
    ),
    Bug(
        "the end is passed on before the last lease is back",
        Step,
        "_finish",
        "if not self.book.leases:",
        "if True:",
        "after the end|a worker has something",
    ),
    Bug(
        "a cancelled run is over before the last lease is back",
        Machine,
        "_take_in",
        "if self._cancelled and not any(step.outstanding for step in self.steps):",
        "if self._cancelled:",
        "a worker has something",
    ),
    Bug(
        "an answer to a question of the run before counts in this one",
        Step,
        "handle_revoke_result",
        "if worker is None or event.lease < self.book.first_lease:",
        "if worker is None:",
        "disagree on a lease|had been taken back|has two owners|in no place, or in two",
        first=92,
    ),
    Bug(
        "whoever is first in line is blamed, alone or not",
        Recovery,
        "lose",
        "exact = at_work and is_only and (started == 1 or (self._node.timeout is not None and self._node.hands == 1))",
        "exact, started = at_work, 1",
        "given up was|not to blame",
        first=161,
        poison=100,
    ),
    Bug(
        "what was done before the item that a worker died at is blamed",
        Step,
        "handle_worker_lost",
        "noted = -1 if event.started is None else event.started[0]",
        "noted = -1",
        "given up was|was passed over|more attempts|not to blame",
        first=862,
        poison=100,
    ),
    Bug(
        "an item may end any number of workers",
        CrashBlame,
        "died",
        "if deaths < ITEM_ATTEMPTS + event.killed:",
        "if deaths < 1000:",
        "was passed over|more attempts",
        first=3,
        poison=100,
    ),
    Bug(
        "later leases take the room that the first one needs",
        CreditLedger,
        "spare",
        " - self.reserve * waits",
        "",
        "nothing can happen any more|more is promised",
        first=151,
    ),
    Bug(
        "a step that has looked for room in vain does not hear of more",
        Step,
        "capacity_freed",
        "if self.credit.wants_capacity:",
        "if self.credit.starving:",
        "nothing can happen any more",
    ),
    Bug(
        "the item behind the one that was judged is given up",
        Recovery,
        "lose",
        "requeued.give_up = give_up",
        "requeued.give_up = give_up and give_up._replace(first=give_up.first + 1)",
        "which is not to blame",
        poison=100,
    ),
    Bug(
        "what was given up is told of another item",
        Step,
        "_acknowledge",
        "*lease.call_range(index, batch_size)",
        "*lease.call_range(index + 1, batch_size)",
        "that nobody had judged|is not to blame",
        first=13,
        poison=100,
    ),
    Bug(
        "a step that is blocked does not ask the consumer for room",
        Step,
        "_update_utilization",
        "self.credit.output.node.request_flush()",
        "pass",
        "nothing can happen any more",
        first=536,
    ),
    Bug(
        "a consumer is asked for room only once",
        Sink,
        "consumed",
        "self.flush_requested = False",
        "pass",
        "nothing can happen any more",
        first=131,
    ),
    Bug(
        "the last branch of a fork is left out",
        Replicate,
        "pump",
        "for output in self.outputs:",
        "for output in self.outputs[:2]:",
        "did not get what the others got",
    ),
    Bug(
        "nobody is to be woken for what is held back",
        Intake,
        "holds_back",
        "self.due_at = at",
        "pass",
        "nothing can happen any more",
        hands=100,
    ),
    Bug(
        "what a worker of several hands is at counts as waiting in the pipe",
        LeaseBook,
        "add_outstanding",
        "at_once, before = self.batch_size * self.hands,",
        "at_once, before = self.batch_size,",
        "check_step|nothing can happen any more",
        hands=100,
    ),
)


def planted(bug: Bug) -> Any:
    """The method with the bug in it."""
    function = inspect.unwrap(vars(bug.owner)[bug.method])
    text = textwrap.dedent(inspect.getsource(function))
    if text.count(bug.old) != 1:
        raise AssertionError(f"{bug.owner.__name__}.{bug.method} has changed, and this bug with it: {bug.old}")
    namespace: dict[str, Any] = {}
    exec(compile(text.replace(bug.old, bug.new), f"<{bug.name}>", "exec"), function.__globals__, namespace)
    return namespace[bug.method]


class Planted(TestCase):
    """Each bug by itself."""

    time_limit = 180.0

    def find(self, bug: Bug) -> tuple[int, Failure] | None:
        """The first seed that fails with a bug."""
        with mock.patch.object(bug.owner, bug.method, planted(bug)):
            for seed in range(bug.first, bug.first + SEEDS):
                try:
                    simulate(bug.scenario(seed))
                except Failure as failure:
                    return seed, failure
        return None

    def test_each_bug_is_found(self) -> None:
        def check(bug: Bug) -> None:
            found = self.find(bug)
            assert found is not None, f"not found: {bug.name}"
            seed, failure = found
            assert re.search(bug.found, str(failure)), f"{bug.name}: {failure}"
            # Without the bug it passes.
            simulate(bug.scenario(seed))

        # The shorter suite looks for every third bug.
        spread(check, BUGS if ALL else BUGS[1::3])

    def test_a_bug_in_code_that_has_changed_is_told(self) -> None:
        with self.assertRaisesRegex(AssertionError, "Pieces.take has changed"):
            planted(Bug("", Pieces, "take", "no such text", "", ""))


if __name__ == "__main__":
    unittest.main()
