"""A shell for the core in a traced run: items are submitted one by one, fail, are withdrawn, and settle.

Law: plays what may happen in a broker, as `FakeShell` does, and keeps a book of its own: each submitted item settles
with the results that the inline engine gives for it alone, or fails, or was withdrawn, and that once.

    python3 -m tests.helpers.submitting --seeds 1000

runs many seeds.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any
from unittest import mock

from conveyor import Join, Pipe, Pipeline, Processor, ProcessorError, ReplicatingFork
from conveyor.core import commands, events
from conveyor.core.data.lineage import lineages_of
from conveyor.core.leasing.blame import ITEM_ATTEMPTS
from conveyor.core.nodes.forks import Fork
from conveyor.core.nodes.step import Step
from conveyor.engines.inline.session import Session
from conveyor.graph.plan import BalanceNode, Plan, StepNode
from conveyor.stages.processor import work_of
from tests.helpers.pipelines import Choose, processor, random_pipeline, several
from tests.helpers.shell import FakeShell, FakeWorker, GivenUp, materialize
from tests.helpers.variants import handed, loosened, tightened, work

MOST_EVENTS = 30_000
MOST_WORK = 2000


class Poisoned(Exception):
    """The job raises at the item that it is at."""


def raising(call: Callable[[Any], Any], poison: Any, item: Any) -> Any:
    """Call a job, unless the item must not be touched."""
    if item == poison:
        raise Poisoned
    return call(item)


class TracedWorker(FakeWorker):
    """Goes on behind a call that failed, and says so in one of the ways in which a worker does."""

    def __init__(self, number: int, node: StepNode, choose: Choose, poison: Any) -> None:
        super().__init__(number, node, grouped=True)
        self.choose = choose
        # The calls that have failed, by the lease and the index in it, and of which nothing was said.
        self.raised: list[tuple[int, int]] = []
        self.call = partial(self._called, work_of(self.job), poison)

    def _called(self, call: Callable[[Any], Any], poison: Any, item: Any) -> Any:
        try:
            return raising(call, poison, item)
        except Poisoned:
            way = self.choose(3)
            if way == 0:
                raise GivenUp(1, 0.0, "raised") from None
            return self._failing() if way == 1 else self._fails()

    def _fails(self) -> None:
        lease, _ = self.started
        self.raised.append((lease, self.at))

    def _failing(self) -> Iterator[Any]:
        yield 7
        self._fails()


class TracedShell(FakeShell):
    """One run of submitted items."""

    def __init__(
        self,
        plan: Plan,
        given: list[Any],
        expected: Callable[[Any], list[Any] | None],
        choose: Choose,
        poison: Any,
        streamed: bool = False,
    ) -> None:
        """`expected` says what comes of an item, None where that fails; `poison`: a step, and an item of it that fails.

        `streamed`: a source gives the items.
        """
        self.poison = poison
        super().__init__(plan, given, choose)
        self.given = given
        self.expected = expected
        self.parts: dict[int, list[tuple[Any, Any]]] = {}
        self.settled: set[int] = set()
        self.failed: set[int] = set()
        self.withdrawn: set[int] = set()
        # How many items were given up, by the count of a run.
        self.counted = 0
        # At how many deaths a worker may have been at an item, by the step and the number there.
        self.deaths: Counter[tuple[int, int]] = Counter()
        self.handle(events.RunStarted(traced=True, streamed=streamed))

    def add_worker(self, number: int, step: StepNode) -> None:
        poison = self.poison[1] if self.poison is not None and self.poison[0] == step.index else object()
        self.workers[number] = TracedWorker(number, step, self.choose, poison)
        self.unacknowledged[number] = {}

    def work(self, worker: FakeWorker) -> None:
        assert isinstance(worker, TracedWorker)
        reply = worker.reply(1 + self.choose(8), 1 + self.choose(4))
        raised, worker.raised = worker.raised, []
        for lease, index in raised:
            call = index - worker.acknowledged.get(lease, 0)
            self.handle(events.Raised(worker.number, lease, call, "raised"))
        self.handle(reply._replace(size=self.weight(sum(items for _, items in reply.blobs))))

    def kill(self, number: int) -> None:
        index = self.workers[number].node.index
        for lease in self.unacknowledged[number]:
            handed = self.machine.step_of(number).book.leases[lease]
            for item in range(handed.first, handed.first + handed.items):
                self.deaths[index, item] += 1
        super().kill(number)

    def withdraw(self) -> None:
        """The caller wants nothing more of some of the items."""
        origins = {self.choose(self.pulled) for _ in range(1 + self.choose(3))}
        self.withdrawn |= origins - self.settled - self.failed
        self.handle(events.Withdrawn(tuple(sorted(origins))))
        book = self.machine.origins
        assert book is not None
        for node in self.machine.nodes:
            queues = [node.intake.queue] if isinstance(node, Step) else [node.queue] if isinstance(node, Fork) else []
            for queue in queues:
                for lineage in lineages_of(tuple(queue._pieces)):
                    assert book.root_of(lineage[0]) not in self.withdrawn, "what nobody wants waits there still"

    def asides(self) -> list[Callable[[], None]]:
        possible = super().asides()
        if self.pulled and self.choose(6) == 0:
            possible.append(self.withdraw)
        return possible

    # What the machine wants

    def emit(self, command: commands.Emit) -> None:
        assert not command.items, "results that are of no submitted item"
        self.asked = self.unconsumed

    def deliver(self, command: commands.Deliver) -> None:
        results = materialize(command.pieces)
        assert len(results) == command.items == len(command.lineages)
        self.unconsumed += command.items
        if command.report_within_seconds == 0.0:
            self.asked = self.unconsumed
        for (origin, *places), result in zip(command.lineages, results, strict=True):
            assert origin not in self.settled, "a result of an item that had settled"
            assert origin not in self.failed | self.withdrawn, "a result that nobody wants"
            self.parts.setdefault(origin, []).append((places, result))
        for origin in command.settled:
            assert origin not in self.settled, "an item settled twice"
            assert origin not in self.failed | self.withdrawn, "an item settled that nobody waits for"
            self.settled.add(origin)
            parts = self.parts.pop(origin, [])
            places = [tuple(place) for place, _ in parts]
            assert len(set(places)) == len(places), "two results have one place"
            results = [result for _, result in sorted(parts, key=lambda part: part[0])]
            expected = self.expected(self.given[origin])
            assert results == expected, f"the results differ: {results} and not {expected}"

    def item_failed(self, command: commands.ItemFailed) -> None:
        origin = command.origin
        assert origin not in self.settled, "an item failed that had settled"
        if command.skipped:
            # Of what else there is of it, more may come; or nobody waits for it any more.
            return
        assert origin not in self.failed, "an item failed twice"
        assert origin not in self.withdrawn, "an item failed that nobody waits for"
        self.failed.add(origin)
        if command.why == "raised":
            assert self.expected(self.given[origin]) is None, "an item failed that is innocent"
        else:
            assert self.deaths[command.step, command.number] >= ITEM_ATTEMPTS, "an item is blamed for too few deaths"

    def gave_up(self, command: commands.GaveUp) -> None:
        self.counted += command.last - command.first + 1

    def check_over(self) -> None:
        """Each item has come to its end, once."""
        assert self.finished and not self.failure, self.failure
        origins = self.machine.origins
        assert origins is not None and not origins._open, "an item is still open"
        for origin in range(len(self.given)):
            ends = (origin in self.settled) + (origin in self.failed) + (origin in self.withdrawn)
            assert ends == 1, f"item {origin} has {ends} ends"


def zipped(choose: Choose) -> Pipeline[Any, Any]:
    """A fork that is zipped, in the branches of which outputs overtake each other; or nothing but the fork."""
    pipeline: Pipeline[Any, Any] = Pipeline(cores=2).add(processor(choose, plain=True)).add(Pipe(1 + choose(3)))
    pipeline.add(ReplicatingFork(4 if choose(3) == 0 else 2))
    if choose(3):
        pipeline.add(Processor(several, workers=2)).add(Pipe()).add(processor(choose, plain=True))
    pipeline.add(Pipe(1 + choose(3)))
    if choose(2):
        # Of four branches, two by two; of two, both.
        pipeline.add(Join(2, how="zip"))
        return pipeline if len(pipeline._description.layout.lanes) == 1 else pipeline.add(Pipe()).add(joined(choose))
    return pipeline.add(joined(choose))


def joined(choose: Choose) -> Join[Any]:
    """A Join of one kind or the other."""
    return Join(how="zip") if choose(2) else Join()


class Subject:
    """A pipeline, made from a seed, and what comes of an item in it alone."""

    def __init__(self, seed: int, hands: bool = False) -> None:
        source = random.Random(f"submitted {seed}")
        choose: Choose = source.randrange
        self.choose = choose
        self.pipeline = (
            zipped(choose) if choose(4) == 0 else random_pipeline(choose, choose(3), 1 + choose(3), plain=True, cores=2)
        )
        plan = self.pipeline._description.plan(cores=2, ordered=True)
        if choose(2):
            plan = tightened(plan, 1 + choose(4))
        if choose(2):
            plan = loosened(plan, source)
        if hands:
            plan = handed(plan, random.Random(f"hands {seed}"))
        # What is given up by policy is no failure of the item that was submitted.
        self.plan = replace(
            plan,
            nodes=tuple(replace(node, gives_up=False) if isinstance(node, StepNode) else node for node in plan.nodes),
        )
        # Behind a fork that balances, which branch an item comes to is a matter of time.
        dealt = next((node.index for node in self.plan.nodes if isinstance(node, BalanceNode)), len(self.plan.nodes))
        steps = [node.index for node in self.plan.nodes[:dealt] if isinstance(node, StepNode)]
        self.poison = (steps[choose(len(steps))], choose(50)) if choose(2) else None
        self._known: dict[Any, list[Any] | None] = {}
        items = [choose(50) for _ in range(choose(60))]
        while work(self.plan, len(items)) > MOST_WORK:
            items = items[: len(items) // 2]
        self.items = items

    def expected(self, item: Any) -> list[Any] | None:
        """What the inline engine gives for an item alone; None where it fails."""
        if item not in self._known:
            self._known[item] = self._alone(item)
        return self._known[item]

    def _alone(self, item: Any) -> list[Any] | None:
        nodes: list[Any] = list(self.plan.nodes)
        if self.poison is not None:
            index, poison = self.poison
            job = partial(raising, nodes[index].processor.job, poison)
            nodes[index] = replace(nodes[index], processor=Processor(job))
        session = Session(replace(self.plan, nodes=tuple(nodes)), redact=None)
        session.open()
        try:
            return list(chain.from_iterable(session.run([item]).chunks()))
        except ProcessorError:
            return None
        finally:
            session.abort()


def simulate(seed: int, hands: bool = False, streamed: bool = False) -> TracedShell:
    """Run a seed to its end; raise AssertionError where something is not as it must be."""
    subject = Subject(seed, hands)
    shell = TracedShell(subject.plan, subject.items, subject.expected, subject.choose, subject.poison, streamed)
    shell.kills = subject.choose(20) if subject.choose(2) else 0
    # Workers are killed wherever they are, so often enough at what they have just been handed.
    with mock.patch("conveyor.core.leasing.blame.RECEIVE_DEATHS", 1000):
        for _ in range(MOST_EVENTS):
            if shell.finished or shell.failure:
                break
            shell.step()
    shell.check_over()
    return shell


def main(arguments: list[str] | None = None) -> int:
    """Run many seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--hands", action="store_true", help="workers that begin several items at once")
    options = parser.parse_args(arguments)
    failed = settled = given_up = withdrawn = 0
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        try:
            shell = simulate(seed, options.hands)
        except Exception as error:
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {error}\n{Subject(seed).pipeline!r}")
        else:
            settled, given_up = settled + len(shell.settled), given_up + len(shell.failed)
            withdrawn += len(shell.withdrawn)
    print(f"{options.seeds} seeds, {failed} failed; {settled} items settled, {given_up} failed, {withdrawn} withdrawn")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
