"""The core against the specification, on random pipelines, inputs, interleavings and chunkings.

Law: for every valid pipeline and input the ordered results equal those of the inline engine, whatever happens in
which order; a finite input comes to its end; a cancelled run ends when the last lease is back; and after every event
each item has one place, each chunk one owner, and each pipe is within its bound (`Machine.check`, and `FakeShell`'s
own count).  Pipelines and inputs are hypothesis's, so they shrink (with CONVEYOR_TEST_SHRINK=1 in the
environment); an interleaving is a seed, and is in the report.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

from conveyor.core.tuning import chunk_size
from conveyor.graph.plan import Plan, StepNode
from tests.helpers.pipelines import Choose, increment, pairs, random_input, random_pipeline, same, triple
from tests.helpers.shell import MOST_WORKERS, FakeShell
from tests.helpers.support import ALL, TestCase
from tests.helpers.variants import Manner, burst, eager, fair, indifferent, lazy, loosened, slimmed, tightened, work

SHRINK = os.environ.get("CONVEYOR_TEST_SHRINK", "0") not in ("", "0")

MOST_RESULTS = 3000
# What one example may take of the time of all.
MOST_WORK = 3000


def bounded(examples: int) -> settings:
    """Settings of a property: the same examples in each run, with no deadline on any of them.

    Making a failure smaller can take minutes, so it is done only where it is asked for.
    """
    return settings(
        max_examples=examples if ALL else examples // 2,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def case(
    source: random.Random,
    seed: int,
    ordered: bool = True,
    suits: Callable[[Plan], bool] = lambda plan: True,
    length: int | None = None,
) -> tuple[Plan, list[int], list[Any], Choose]:
    """A random pipeline, its plan, an input, what the inline engine makes of it, and a chooser for the rest."""
    pipeline = random_pipeline(source.randrange, engine="inline")
    items = random_input(source.randrange) if length is None else list(range(length))
    note(f"{pipeline!r}\ninput {items}\nseed {seed}")
    plan = pipeline._description.plan(cores=2, ordered=ordered)
    if source.randrange(2):
        plan = tightened(plan, 1 + source.randrange(4))
    if source.randrange(2):
        plan = loosened(plan, source)
    if source.randrange(2):
        plan = slimmed(plan, source, [1, 1000, 1 << 20, 64 << 20])
    assume(suits(plan) and work(plan, len(items)) <= MOST_WORK)
    expected = list(islice(pipeline.stream(items), MOST_RESULTS + 1))
    assume(len(expected) <= MOST_RESULTS)
    return plan, items, expected, random.Random(seed).randrange


MANNERS = st.sampled_from([fair, burst, eager, lazy])
SEEDS = st.integers(0, 2**32 - 1)
# From items that weigh nothing to some of which one fills a pipe.
WEIGHTS = st.sampled_from([8, 1 << 20, 16 << 20, 80 << 20])
SOURCES = st.randoms(use_true_random=False)


class Properties(TestCase):
    """What holds for any pipeline."""

    time_limit = 120.0

    @bounded(12)
    @given(SOURCES, SEEDS, MANNERS, WEIGHTS)
    def test_results_equal_those_of_the_inline_engine(
        self, source: random.Random, seed: int, manner: Manner, heaviest: int
    ) -> None:
        plan, items, expected, choose = case(source, seed)
        shell = FakeShell(plan, items, manner(choose), heaviest)
        shell.lazy = choose(2) == 0
        assert shell.run() == expected
        assert shell.finished and not shell.failure
        assert shell.pulled == len(items)
        # Nothing that comes late changes anything.
        shell.assert_over()

    @bounded(10)
    @given(SOURCES, SEEDS, MANNERS, st.booleans())
    def test_workers_that_die_change_nothing(
        self, source: random.Random, seed: int, manner: Manner, ordered: bool
    ) -> None:
        plan, items, expected, choose = case(source, seed, ordered, indifferent if not ordered else lambda plan: True)
        shell = FakeShell(plan, items, manner(choose))
        shell.kills = 1 + choose(30)
        # An item that is unlucky often enough would be given up, or end the run.
        with mock.patch.multiple("conveyor.core.leasing.blame", ITEM_ATTEMPTS=1000, RECEIVE_DEATHS=1000):
            results = shell.run()
        assert not shell.failure
        assert results == expected if ordered else Counter(map(repr, results)) == Counter(map(repr, expected))
        shell.assert_over()

    @bounded(8)
    @given(SOURCES, SEEDS, MANNERS, WEIGHTS)
    def test_without_order_the_results_are_the_same_ones(
        self, source: random.Random, seed: int, manner: Manner, heaviest: int
    ) -> None:
        plan, items, expected, choose = case(source, seed, ordered=False, suits=indifferent)
        shell = FakeShell(plan, items, manner(choose), heaviest)
        shell.lazy = choose(2) == 0
        assert Counter(map(repr, shell.run())) == Counter(map(repr, expected))
        shell.assert_over()

    @bounded(10)
    @given(SOURCES, SEEDS, MANNERS, st.integers(0, 300), st.booleans())
    def test_a_cancelled_run_ends_in_bounded_steps(
        self, source: random.Random, seed: int, manner: Manner, events: int, ordered: bool
    ) -> None:
        plan, items, expected, choose = case(source, seed, ordered=ordered)
        shell = FakeShell(plan, items, manner(choose))
        for _ in range(events):
            if shell.finished:
                return
            shell.step()
        if shell.finished:
            return
        results = len(shell.results)
        leases = sum(step.outstanding for step in shell.machine.steps)
        shell.cancel()
        for _ in range(leases):
            assert not shell.finished
            busy = [worker for worker in shell.workers.values() if worker.busy]
            shell.work(busy[choose(len(busy))])
        shell.assert_over()
        assert len(shell.results) == results
        if ordered:
            assert shell.results == expected[:results]

    @bounded(10)
    @given(SOURCES, SEEDS, MANNERS, st.integers(1, 6), st.booleans())
    def test_a_consumer_that_takes_nothing_stops_the_source(
        self, source: random.Random, seed: int, manner: Manner, most: int, ordered: bool
    ) -> None:
        plan, _, _, choose = case(source, seed, ordered=ordered, suits=one_for_one, length=0)
        # What is let in before anything was weighed may be more than a few bytes hold: that is for the next property.
        plan = slimmed(tightened(plan, most), source, [64 << 20])
        shell = FakeShell(plan, itertools.count(), manner(choose))
        shell.consumes = False
        while shell.actions():
            shell.step()
            assert shell.pulled <= capacity(plan), "pulled more than all pipes and hands hold"
        # And no less: what the results hold has been pulled.
        assert shell.unconsumed >= shell.machine.sink.bound

    @bounded(10)
    @given(SOURCES, SEEDS, MANNERS, st.booleans())
    def test_pipes_hold_no_more_than_their_bytes(
        self, source: random.Random, seed: int, manner: Manner, ordered: bool
    ) -> None:
        plan, _, _, choose = case(source, seed, ordered=ordered, suits=one_for_one, length=0)
        # Each item weighs 8 bytes, so that some pipes hold fewer than by their bound in items.
        plan = slimmed(tightened(plan, 6), source, [1, 8, 20, 48, 1 << 20])
        # What is let in before anything was weighed would be more than some of them hold.
        with mock.patch.object(chunk_size, "UNWEIGHED_ITEMS", 1):
            shell = FakeShell(plan, itertools.count(), manner(choose))
            shell.consumes = False
            # Without what may happen beside: workers that come and go by chance would do so for ever.
            while possible := shell.actions():
                possible[shell.choose(len(possible))]()
                assert shell.pulled <= capacity(plan), "pulled more than all pipes and hands hold"
            assert shell.machine.sink.free_capacity(0) <= 0


def one_for_one(plan: Plan) -> bool:
    """Whether each job gives one output for each item, or row, or batch, at once."""
    jobs = {increment, pairs, same, triple}
    return all(step.processor.job in jobs and step.batch is None for step in plan.steps)


def capacity(plan: Plan) -> int:
    """How many items of 8 bytes all pipes, and all hands, have room for."""
    held = 0
    for node in plan.nodes:
        if hasattr(node, "bound"):
            held += min(node.bound, max(1, node.bound_bytes // 8))
        elif hasattr(node, "bounds"):
            sizes = zip(node.bounds, node.bounds_bytes, strict=True)
            held += sum(min(bound, max(1, size // 8)) for bound, size in sizes)
        if isinstance(node, StepNode):
            held += 2 * (MOST_WORKERS if node.most is None else node.workers)
    return held
