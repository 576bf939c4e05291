"""The short way of a lone item, held to the general one: same commands, same state, event by event.

Law: each course is driven twice, once with the short way taken away.  Whoever changes one of the two ways breaks this.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any
from unittest import mock

from conveyor import Pipe, Processor, ReplicatingFork
from conveyor.core import machine
from conveyor.core.commands import Command, SendLease
from tests.helpers.driving import Driven
from tests.helpers.support import ALL, TestCase

CHAINS: tuple[tuple[Any, ...], ...] = (
    (Processor(abs), Pipe(8), Processor(abs), Pipe(1), Processor(abs)),
    (Processor(abs), Processor(abs), Pipe(2), Processor(abs)),
    (Processor(abs), Pipe(8), Processor(abs, workers=2), Pipe(8), Processor(abs)),
    (Processor(abs), Pipe(8), Processor(abs, batch=2), Pipe(8), Processor(abs)),
    (Processor(abs), Pipe(8), Processor(abs, max_items=3), Pipe(8), Processor(abs, timeout=1.0)),
    (Processor(abs), Pipe(8), ReplicatingFork(2), (Processor(abs), Processor(abs)), Pipe(8), Processor(abs)),
)
EVENTS = 120


class Course:
    """A machine, with what is out: leases by their workers, and results not yet taken."""

    def __init__(self, rows: tuple[Any, ...], ordered: bool, seed: int) -> None:
        self.core = Driven(*rows, ordered=ordered)
        self.random = random.Random(seed)
        self.out: list[SendLease] = []
        self.taken: list[int] = []
        self.now = 0.0
        self.told: list[Any] = []
        self.emitted = 0

    def run(self) -> list[Any]:
        """Return what the core wants, and what it says of itself, after each event."""
        fed = 0
        for _ in range(EVENTS):
            self.now += 0.001 * (1 + self.random.randrange(3))
            kind = self.random.randrange(8)
            if self.out and kind < 5:
                self.reply(self.out.pop(0))
            elif self.core.machine.source.pulled > fed and len(self.out) < 2:
                items = 1 if kind else min(2, self.core.machine.source.pulled - fed)
                fed += items
                self.note(self.core.feed(self.now, f"blob {fed}", items))
            elif self.emitted:
                items, self.emitted = self.emitted, 0
                self.note(self.core.consume(self.now, items))
        return self.told

    def reply(self, lease: SendLease) -> None:
        """Have a worker be done with a lease: each call gives one output, most often."""
        step = self.core.machine.step_of(lease.worker)
        outputs = min(lease.credit, lease.items) if self.random.randrange(10) else 0
        blobs = [(f"of {lease.lease}", outputs)] if outputs else []
        calls = -(-lease.items // step.batch_size)
        self.note(self.core.reply(self.now, lease.worker, lease.lease, calls, *blobs, seconds=0.001))

    def note(self, commands: list[Command]) -> None:
        """Keep the commands of an event, with all that can be asked of the core after it."""
        self.out += [command for command in commands if isinstance(command, SendLease)]
        self.emitted += sum(command.items for command in commands if type(command).__name__ == "Emit")
        self.told.append((commands, self.core.pulls, self.core.machine.stats(self.now), self.core.machine.timer))
        for node in self.core.machine.steps:
            kept = node.credit.promised, node.credit.outputs_per_call, node.credit.wants_capacity, node.intake.leased
            sizes = node.chunk_sizer.size, node.chunk_sizer.seconds, node.item_weight.bytes, node.book.prefetched
            self.told.append((kept, sizes, len(node.order.entries), node.held))


class TwoWays(TestCase):
    """The general way alone, and both."""

    def test_they_are_the_same(self) -> None:
        ways = {"give": 0, "pass_on": 0}
        foreseen: Counter[str] = Counter()

        def counted(name: str) -> Any:
            short = getattr(machine, name)

            def take(*arguments: Any) -> Any:
                taken = short(*arguments)
                ways[name] += taken
                return taken

            return mock.patch.object(machine, name, take)

        for index, rows in enumerate(CHAINS):
            for seed in range(6 if ALL else 2):
                # Between a fork and its ordered end, replies say which outputs belong together: no case of the short way.
                ordered = seed % 2 == 0 and not any(isinstance(row, ReplicatingFork) for row in rows)
                with mock.patch.object(machine, "give", _not_taken), mock.patch.object(machine, "pass_on", _not_taken):
                    expected = Course(rows, ordered, seed).run()
                with counted("give"), counted("pass_on"):
                    course = Course(rows, ordered, seed)
                    found = course.run()
                # What is foreseen is held to what is wanted, in both ways.
                foreseen += course.core.foreseen
                assert found == expected, f"chain {index}, seed {seed}"
        assert min(ways.values()) > (300 if ALL else 100), f"the short way was hardly ever taken: {ways}"
        assert foreseen["SendLease"] > sum(ways.values()) / 2 and foreseen["Emit"] > 30, f"hardly any: {foreseen}"


def _not_taken(*arguments: Any) -> bool:
    return False
