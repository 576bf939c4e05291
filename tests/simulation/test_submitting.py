"""The simulation of traced runs: each submitted item settles once, and with what it gives alone.

Law: a fixed number of seeds passes, and each bug that is planted in what traces items is found;
the text of the failure says what finds it.  `python3 -m tests.helpers.submitting` goes on for longer.
"""

from __future__ import annotations

import re
import unittest
from unittest import mock

from conveyor.core.data.lineage import Origins
from conveyor.core.machine import Machine
from conveyor.core.nodes.traced import ScopedZip, TracedOrder, TracedReplicate, TracedSink, TracedStep
from tests.helpers.spread import spread
from tests.helpers.submitting import simulate
from tests.helpers.support import ALL, TestCase
from tests.simulation.test_planted_bugs import Bug, planted

SEEDS = 300

BUGS = (
    Bug(
        "an item that comes to nothing is forgotten",
        TracedOrder,
        "_lineages",
        "origins.add(lineage[0], size - 1)",
        "origins.add(lineage[0], max(0, size - 1))",
        "has 0 ends|still open",
    ),
    Bug(
        "of what a generator has given before a reply, nothing is known",
        TracedOrder,
        "_lineages",
        "index, given = self.at",
        "index, given = self.at[0], 0",
        "two results have one place|the results differ",
        first=11,
    ),
    Bug(
        "what nobody wants any more is handed on",
        TracedOrder,
        "accept",
        "origins.wanted(Traced(blob, lineages[start : start + items]), 0, items)",
        "[(Traced(blob, lineages[start : start + items]), 0, items)]",
        "that nobody wants",
    ),
    Bug(
        "a call that fails fails for each piece of what was submitted",
        TracedStep,
        "fail",
        "if origins.drop(origin):",
        "if origins.drop(origin) or True:",
        "failed twice|that nobody waits for",
        first=232,
    ),
    Bug(
        "a failure is that of the item in front",
        TracedStep,
        "_origin_of",
        "lineages_of(lease.pieces)[index]",
        "lineages_of(lease.pieces)[index - 1]",
        "that is innocent|the results differ|settled",
        first=177,
    ),
    Bug(
        "a branch of a fork is not counted",
        TracedReplicate,
        "_branches",
        "origins.add(lineage[0], under_way - 1)",
        "origins.add(lineage[0], max(0, under_way - 2))",
        "KeyError|settled twice|that had settled|the results differ|under way",
        first=5,
    ),
    Bug(
        "what a zip has taken in stands in the order in which it came",
        ScopedZip,
        "_make_rows",
        "sorted(each, key=_lineage_of)",
        "each",
        "the results differ",
        first=33,
    ),
    Bug(
        "a zip does not say that it has room for more",
        ScopedZip,
        "pump",
        "if moved or self._has_settled:",
        "if False:",
        "nothing can happen any more",
        first=14,
    ),
    Bug(
        "a result of something else settles an item",
        TracedSink,
        "pump",
        "origins.leave(lineages)",
        "origins.leave(lineages[::-1] and [lineages[0]] * len(lineages))",
        "KeyError|settled|still open|has 0 ends",
    ),
    Bug(
        "what is withdrawn is not removed from where it waits",
        Machine,
        "purge",
        "for node in self.nodes:",
        "for node in self.nodes[1:]:",
        "waits there still",
    ),
    Bug(
        "the scopes of what is dropped are not",
        Origins,
        "drop",
        "self.root_of(scope) == origin",
        "self.root_of(scope) == scope",
        "waits there still",
        first=14,
    ),
)


class Submitted(TestCase):
    """Whatever happens, each item has one end."""

    time_limit = 180.0

    def test_seeds(self) -> None:
        def ends(seed: int) -> tuple[int, int, int]:
            shell = simulate(seed, hands=seed % 4 == 3)
            return len(shell.settled), len(shell.failed), len(shell.withdrawn)

        found = spread(ends, range(50 if ALL else 20))
        settled, failed, withdrawn = map(sum, zip(*found, strict=True))
        assert settled > 300 and failed and withdrawn > 30, (settled, failed, withdrawn)

    def test_items_of_a_source(self) -> None:
        """Those that fail are given up as in any run."""

        def ends(seed: int) -> tuple[int, int]:
            shell = simulate(seed, hands=seed % 4 == 3, streamed=True)
            assert shell.counted == len(shell.failed), "what has failed is counted as given up"
            return len(shell.settled), len(shell.failed)

        found = spread(ends, range(500, 550 if ALL else 520))
        settled, failed = map(sum, zip(*found, strict=True))
        assert settled > 300 and failed, (settled, failed)


class Planted(TestCase):
    """Each bug by itself."""

    time_limit = 180.0

    def test_each_bug_is_found(self) -> None:
        def check(bug: Bug) -> None:
            with mock.patch.object(bug.owner, bug.method, planted(bug)):
                for seed in range(bug.first, bug.first + SEEDS):
                    try:
                        simulate(seed)
                    except Exception as failure:
                        text = f"{type(failure).__name__}: {failure}"
                        break
                else:
                    raise AssertionError(f"not found: {bug.name}")
            assert re.search(bug.found, text), f"{bug.name}: {text}"
            # Without the bug it passes.
            simulate(seed)

        spread(check, BUGS if ALL else BUGS[1::3])


if __name__ == "__main__":
    unittest.main()
