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
from conveyor.core.commands import Command, Deliver, Emit, SendLease
from conveyor.core.events import RunStarted, Withdrawn
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

    def __init__(self, rows: tuple[Any, ...], ordered: bool, seed: int, traced: bool) -> None:
        self.core = Driven(*rows, ordered=ordered)
        # Whether items are submitted one by one.
        self.traced = traced
        if traced:
            self.core.handle(RunStarted(traced=True), 0.0)
        self.fed = 0
        self.random = random.Random(seed)
        self.out: list[SendLease] = []
        self.taken: list[int] = []
        self.now = 0.0
        self.told: list[Any] = []
        self.emitted = 0

    def run(self) -> list[Any]:
        """Return what the core wants, and what it says of itself, after each event."""
        for _ in range(EVENTS):
            self.now += 0.001 * (1 + self.random.randrange(3))
            kind = self.random.randrange(8)
            if self.out and kind < 5:
                self.reply(self.out.pop(0))
            elif self.core.machine.source.pulled > self.fed and len(self.out) < 2:
                items = 1 if kind else min(2, self.core.machine.source.pulled - self.fed)
                self.fed += items
                # A few are so heavy that hardly one has room.
                size = items * self.random.choice((8, 8, 8, 1 << 20, 1 << 24))
                self.note(self.core.feed(self.now, f"blob {self.fed}", items, size))
            elif self.traced and self.fed and not self.random.randrange(6):
                self.note(self.core.handle(Withdrawn((self.random.randrange(self.fed),)), self.now))
            elif self.emitted:
                items, self.emitted = self.emitted, 0
                self.note(self.core.consume(self.now, items))
        return self.told

    def reply(self, lease: SendLease) -> None:
        """Have a worker be done with a lease: each call gives one output, most often."""
        step = self.core.machine.step_of(lease.worker)
        outputs = min(lease.credit, lease.items) if self.random.randrange(10) else 0
        calls = -(-lease.items // step.batch_size)
        groups = None
        if self.traced:
            groups = [(1, calls)] if outputs else [(0, calls)]
        if outputs and lease.credit > outputs and not self.random.randrange(4):
            # One output of a call that has not ended, and with the next reply another.
            part: dict[str, Any] = {"final": False, "partial": 1, "group_sizes": [] if self.traced else None}
            self.note(self.core.reply(self.now, lease.worker, lease.lease, 0, ("part", 1), **part))
        blobs = [(f"of {lease.lease}", outputs)] if outputs else []
        what = self.now, lease.worker, lease.lease, calls
        self.note(self.core.reply(*what, *blobs, seconds=0.001, group_sizes=groups))

    def note(self, commands: list[Command]) -> None:
        """Keep the commands of an event, with all that can be asked of the core after it."""
        self.out += [command for command in commands if isinstance(command, SendLease)]
        self.emitted += sum(command.items for command in commands if isinstance(command, Emit | Deliver))
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
            for seed in range(4 if ALL else 2):
                # Between a fork and its ordered end, replies say which outputs belong together: no case of the short way.
                ordered = seed % 2 == 0 and not any(isinstance(row, ReplicatingFork) for row in rows)
                for traced in (False, True):
                    what = rows, ordered, seed, traced
                    with mock.patch.multiple(machine, give=_not_taken, pass_on=_not_taken):
                        expected = Course(*what).run()
                    with counted("give"), counted("pass_on"):
                        course = Course(*what)
                        found = course.run()
                    # What is foreseen is held to what is wanted, in both ways.
                    foreseen += course.core.foreseen
                    assert found == expected, f"chain {index}, seed {seed}, traced: {traced}"
        assert min(ways.values()) > (400 if ALL else 200), f"the short way was hardly ever taken: {ways}"
        assert foreseen["SendLease"] > sum(ways.values()) / 2 and min(foreseen["Emit"], foreseen["Deliver"]) > 30, (
            f"hardly any: {foreseen}"
        )


def _not_taken(*arguments: Any) -> bool:
    return False
