"""Deterministic simulation of the core: random pipelines, and faults at random, for millions of events.

Law: all is made from a seed, so that a failure can be had again, and made smaller.

    python3 -m tests.helpers.simulation --seeds 1000 --events 3000

runs many seeds, each for so many events: run after run on one machine, until one cannot go on, then on another.  It says
how many events that were, and how fast.  For a seed that fails it says the pipeline, and the command that repeats it with
fewer items, runs, deaths and elements, as far as that fails too.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

from conveyor import ImplicitPipeWarning, Join, Pipeline, Processor, ReplicatingFork
from conveyor.engines.inline.session import Session
from conveyor.graph.plan import BalanceNode, Plan, StepNode
from tests.helpers.pipelines import Choose, Trailing, drop_all, pipe, processor, random_pipeline
from tests.helpers.simulated import Chances, Dies, Raises, SimulatedShell
from tests.helpers.variants import burst, eager, fair, handed, indifferent, lazy, loosened, tightened, work

MOST_RESULTS = 1000
MOST_WORK = 3000
# A run with no faults any more has to end within so many events.
PATIENCE = 50_000
# How long a failure may be made smaller for.
SECONDS = 20.0


class Scenario(NamedTuple):
    """What one seed is tried with; smaller numbers make a smaller failure."""

    seed: int
    events: int = 3000
    items: int = 60
    kills: int = 30
    runs: int = 1000
    depth: int = 2
    length: int = 3
    every: int = 32
    # Of a hundred seeds, in how many an item is bad for workers.
    poison: int = 25
    # Of a hundred seeds, in how many workers begin several items at once.
    hands: int = 0

    @property
    def command(self) -> str:
        """What repeats it."""
        given = [f"--{name} {value}" for name, value in self._asdict().items() if name != "seed"]
        return f"python3 -m tests.helpers.simulation --seeds 1 --first-seed {self.seed} " + " ".join(given)


class Failure(Exception):
    """A seed failed; the cause is what it failed with."""

    def __init__(self, scenario: Scenario, pipeline: Any, events: int) -> None:
        super().__init__(scenario, pipeline, events)
        self.scenario = scenario
        self.pipeline = pipeline
        self.events = events

    def __str__(self) -> str:
        cause = self.__cause__
        frames = traceback.extract_tb(cause.__traceback__ if cause else None)[-2:]
        where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
        return f"{type(cause).__name__}: {cause} ({where})"


class Tally(NamedTuple):
    """What was done: events, runs that ended, runs that could not go on, and late messages that were held off."""

    events: int = 0
    runs: int = 0
    failed_runs: int = 0
    rejected: int = 0

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def diamond(choose: Choose, **settings: Any) -> Pipeline[Any, Any]:
    """A fork of which one branch lets nothing through, with something before and behind."""
    pipeline: Pipeline[Any, Any] = Pipeline(**settings)
    pipeline.add(processor(choose)).add(pipe(choose))
    count = 2 + choose(2)
    branches = [processor(choose) for _ in range(count)]
    if choose(3) == 0:
        # Each of these has something to say at the end.
        branches[0] = Trailing(workers=2 + choose(2))
    branches[-1] = Processor(drop_all, workers=1 + choose(2))
    pipeline.add(ReplicatingFork(count)).add(*branches).add(pipe(choose))
    pipeline.add(Join(how="zip") if choose(3) == 0 else Join())
    if choose(2):
        pipeline.add(pipe(choose)).add(processor(choose))
    return pipeline


class Stage:
    """A pipeline with its plan, made from a seed."""

    def __init__(self, scenario: Scenario) -> None:
        # Each has numbers of its own, so that less of one leaves the others as they are.
        shape, self.inputs = (random.Random(f"{part} {scenario.seed}") for part in ("shape", "inputs"))
        choose: Choose = shape.randrange
        # Small ones often: they are fast, and what goes wrong in large ones goes wrong in them as well.
        depth, length = min(scenario.depth, choose(3)), min(scenario.length, 1 + choose(3))
        self.scenario = scenario
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImplicitPipeWarning)
            if choose(4) == 0:
                self.pipeline = diamond(choose, engine="inline", cores=2)
            else:
                self.pipeline = random_pipeline(choose, depth, length, engine="inline", cores=2)
        ordered = choose(5) > 0
        plan = self.pipeline._description.plan(cores=2, ordered=ordered)
        if choose(2):
            plan = tightened(plan, 1 + choose(4))
        if choose(2):
            plan = loosened(plan, shape)
        several = random.Random(f"hands {scenario.seed}")
        if several.randrange(100) < scenario.hands:
            plan = handed(plan, several)
        self.plan = plan
        # Whether the results are known, in order or in any.
        self.ordered = True if ordered else False if indifferent(plan) else None
        # An item without which the run goes on, and the step at which it ends workers.
        self.forgiven: tuple[int, Any] | None = None

    def forgive(self, poison: tuple[int, Any, type[Exception]] | None) -> None:
        """Have the run go on without an item that ends workers, where its step lets that be."""
        self.forgiven = None
        if poison is None or poison[2] is not Dies:
            return
        node = self.plan.nodes[poison[0]]
        assert isinstance(node, StepNode)
        plain = node.processor.job is not None and node.batch is None and not node.processor.keep_none
        # Behind a fork that balances, which branch an item comes to is a matter of time.
        dealt = any(isinstance(each, BalanceNode) and each.index < node.index for each in self.plan.nodes)
        if plain and not node.finishes and node.restartable and not dealt:
            self.forgiven = poison[:2]

    @property
    def plan_now(self) -> Plan:
        """The plan, with a step that gives up what ends its workers, where something is forgiven."""
        if self.forgiven is None:
            return self.plan
        nodes: list[Any] = list(self.plan.nodes)
        nodes[self.forgiven[0]] = replace(nodes[self.forgiven[0]], gives_up=True)
        return replace(self.plan, nodes=tuple(nodes))

    def results(self, items: list[int]) -> list[Any]:
        """What the inline engine makes of an input, as far as that is not too much."""
        if self.forgiven is None:
            return list(islice(self.pipeline.stream(items), MOST_RESULTS + 1))
        index, item = self.forgiven
        nodes: list[Any] = list(self.plan.nodes)
        job = partial(without, nodes[index].processor.job, item)
        nodes[index] = replace(nodes[index], processor=Processor(job))
        session = Session(replace(self.plan, nodes=tuple(nodes)), redact=None)
        session.open()
        results = list(islice(chain.from_iterable(session.run(items).chunks()), MOST_RESULTS + 1))
        session.close()
        return results

    def input(self) -> tuple[list[int], list[Any]] | None:
        """The input of the next run, and what comes of it; None where that is too much."""
        items = [self.inputs.randrange(50) for _ in range(self.inputs.randrange(60))][: self.scenario.items]
        if work(self.plan, len(items)) > MOST_WORK:
            return None
        expected = self.results(items)
        return (items, expected) if len(expected) <= MOST_RESULTS else None


def simulate(scenario: Scenario) -> Tally:
    """Run a scenario to its end; raise Failure where something is not as it must be."""
    stage = Stage(scenario)
    source = random.Random(f"schedule {scenario.seed}")
    manner = source.choice([fair, fair, burst, eager, lazy])
    heaviest = source.choice([8, 8, 1 << 20, 16 << 20, 80 << 20])
    chances = Chances(
        fault=source.choice([0.0, 0.05, 0.2]),
        delay=source.choice([0.0, 0.2, 0.8]),
        kills=min(scenario.kills, source.choice([0, 10, 30])),
        pace=source.choice([1e-5, 1e-5, 1e-3]),
        every=scenario.every,
    )
    poisoning = source.randrange(100) < scenario.poison
    tally = Tally()
    shell: SimulatedShell | None = None
    before = 0
    try:
        while tally.events < scenario.events and tally.runs < scenario.runs:
            if shell is None:
                bad = poison(stage, source) if poisoning else None
                stage.forgive(bad if source.randrange(2) else None)
                shell = SimulatedShell(stage.plan_now, source.random, manner, heaviest, chances, bad)
            given = stage.input()
            if given is None:
                # Too much for this pipeline: an empty input tells something as well.
                given = [], stage.results([])
            before = shell.count
            run(shell, given, stage.ordered, source)
            tally = tally.plus(Tally(shell.count - before, 1, shell.failure is not None, shell.rejected))
            shell.rejected = 0
            if shell.failure is not None:
                shell = None
    except Exception as error:
        done = tally.events + (shell.count - before if shell is not None else 0)
        raise Failure(scenario, stage.pipeline, done) from error
    return tally


def poison(stage: Stage, source: random.Random) -> tuple[int, Any, type[Exception]]:
    """An item that may come to a step, and what it does to a worker there."""
    steps = [node.index for node in stage.plan.nodes if isinstance(node, StepNode)]
    return source.choice(steps), source.randrange(50), source.choice([Dies, Raises])


def without(job: Callable[[Any], Any], item: Any, given: Any) -> Any:
    """Call a job, unless it is for the one item, or for a list with that in it, as one that works in batches gives."""
    return None if (item in given if isinstance(given, list) else given == item) else job(given)


def run(shell: SimulatedShell, given: tuple[list[int], list[Any]], ordered: bool | None, source: random.Random) -> None:
    """One run, to its end, and something of what may happen before the next."""
    shell.kills = shell.chances.kills
    shell.begin(*given, ordered)
    start = shell.count
    cancel_at = start + source.randrange(1 + source.randrange(400)) if source.randrange(3) == 0 else None
    quiet_at = start + 1 + source.randrange(2000)
    while not shell.finished and not shell.failure:
        if cancel_at is not None and shell.count >= cancel_at and not shell.cancelled:
            shell.cancel()
            continue
        if shell.count >= quiet_at:
            shell.quiet = True
            assert shell.count < quiet_at + PATIENCE, "no end, although nothing goes wrong any more"
        shell.step()
    shell.check_over()
    if not shell.failure:
        for _ in range(source.randrange(6)):
            shell.between()


def shrunk(failure: Failure, seconds: float = SECONDS) -> Failure:
    """A smaller scenario that fails, or the same one."""
    until = time.monotonic() + seconds
    best = failure
    while True:
        for scenario in smaller(best):
            if time.monotonic() > until:
                return best
            try:
                simulate(scenario)
            except Failure as again:
                best = again
                break
        else:
            return best


def smaller(failure: Failure) -> Iterator[Scenario]:
    """Variants of a scenario that are smaller, the much smaller first."""
    scenario = failure.scenario
    if failure.events + 1 < scenario.events:
        yield scenario._replace(events=failure.events + 1)
    if scenario.every > 1:
        # Checked more often, it fails sooner.
        yield scenario._replace(every=1)
    for name, least in (("runs", 1), ("kills", 0), ("depth", 0), ("length", 1), ("items", 0)):
        value = getattr(scenario, name)
        tried = {least, value // 2, value - 1} if name != "runs" else {1, 2, 3, value // 2}
        for each in sorted(tried):
            if least <= each < value:
                yield scenario._replace(**{name: each})


def all_of(scenarios: list[Scenario], say: Callable[[str], None]) -> tuple[Tally, int]:
    """Run scenarios, and say which fail; return what was done, and how many failed."""
    tally, failed = Tally(), 0
    for number, scenario in enumerate(scenarios):
        if number % 16 == 0:
            gc.collect()
        try:
            tally = tally.plus(simulate(scenario))
        except Failure as failure:
            failed += 1
            tally = tally.plus(Tally(events=failure.events))
            say(f"seed {scenario.seed}: {failure}\n{failure.pipeline!r}\n  {failure.scenario.command}")
            small = shrunk(failure) if len(scenarios) > 1 else failure
            if small is not failure:
                say(f"smaller: {small}\n{small.pipeline!r}\n  {small.scenario.command}")
    return tally, failed


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Run many seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    for name, value in Scenario(0)._asdict().items():
        if name != "seed":
            parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args(arguments))
    seeds, first = options.pop("seeds"), options.pop("first_seed")
    begun = time.process_time()
    # What a seed leaves is in cycles, and to look for them while it runs is dear.
    gc.disable()
    try:
        tally, failed = all_of([Scenario(seed, **options) for seed in range(first, first + seeds)], say)
    finally:
        gc.enable()
    seconds = time.process_time() - begun
    say(
        f"{tally.events:,} events, {seeds:,} seeds of which {failed} failed, {tally.events / max(seconds, 1e-9):,.0f} "
        f"events per second of one core; {tally.runs:,} runs, {tally.failed_runs:,} of them given up, "
        f"{tally.rejected:,} late messages held off"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
