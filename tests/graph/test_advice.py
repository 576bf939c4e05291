"""What is advised, word for word, and that nothing is where it might be wrong."""

from __future__ import annotations

import functools
from typing import Any

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor, Stats, StepStats
from conveyor.graph.advice import Advisor
from conveyor.graph.fusion import fused
from conveyor.graph.plan import Plan
from tests.helpers.support import TestCase

SEEN: list[object] = []


def load(item):
    return item


def parse(item):
    return item


def store(item):
    return item


def remembering(item):
    SEEN.append(item)
    return item


class Learner(Processor):
    def process(self, item):
        return item


def plan_of(*processors: Any) -> Plan:
    pipeline = Pipeline()
    for index, each in enumerate(processors):
        (pipeline.add(Pipe()) if index else pipeline).add(each if isinstance(each, Processor) else Processor(each))
    return pipeline._description.plan(cores=4, ordered=True)


def step(name: str, **changes: Any) -> StepStats:
    """A step that has been at work for a tenth of ten seconds."""
    known: dict[str, Any] = {
        "processor": name,
        "workers": 1,
        "starting": 0,
        "most_workers": 1,
        "items_in": 5000,
        "items_out": 5000,
        "waiting": 0,
        "bound": 65536,
        "units": 5000,
        "mean": 0.0002,
        "p50": 0.0002,
        "p99": 0.0002,
        "busy": 0.1,
        "cpu": 1.0,
        "blocked": 0.0,
        "stalled": 0.0,
        "failed": 0,
        "busy_seconds": 1.0,
        "handing_on": 0.1,
    }
    return StepStats(**{**known, **changes})


def slow(name: str = "parse", **changes: Any) -> StepStats:
    """A step that holds up the others."""
    return step(name, **{"busy": 0.99, "stalled": 9.0, "busy_seconds": 9.9, **changes})


def stats_of(*steps: StepStats, **changes: Any) -> Stats:
    return Stats(**{"seconds": 10.0, "cores": 4, "steps": steps, "decisions": (), "cpu_seconds": 15.0, **changes})


class Workers(TestCase):
    """More workers for the step that holds up the others."""

    def advice(self, stats: Stats, *processors: Any) -> tuple[str, ...]:
        return Advisor(plan_of(*processors)).advice(stats)

    def test_it_holds_up_the_others(self) -> None:
        stats = stats_of(step("load"), slow(), step("store"))
        expected = 'parse held up the others with 2 cores idle: try workers="auto"'
        self.assertEqual(self.advice(stats, load, parse, store), (expected,))
        two = Processor(parse, workers=2)
        self.assertEqual(self.advice(stats, load, two, store), (expected,))

    def test_one_core_and_one_step(self) -> None:
        one = 'parse held up the input with 1 core idle: try workers="auto"'
        self.assertEqual(self.advice(stats_of(slow(), cpu_seconds=25.0), parse), (one,))

    def test_where_nothing_is_known_to_help(self) -> None:
        good = (step("load"), slow(), step("store"))
        for why, stats in (
            ("no core is idle", stats_of(*good, cpu_seconds=35.0)),
            ("too short a run", stats_of(*good, seconds=1.0)),
            ("it did not hold them up for long", stats_of(step("load"), slow(stalled=3.0), step("store"))),
            ("another is as slow", stats_of(step("load", busy=0.9), slow(), step("store"))),
            ("it waits for room itself", stats_of(step("load"), slow(blocked=0.5), step("store"))),
            ("a few calls", stats_of(step("load"), slow(units=5), step("store"))),
            (
                "the way to the worker takes the time",
                stats_of(step("load"), slow(handing_on=0.8, units=500), step("store")),
            ),
            ("nothing held anything up", stats_of(step("load"), step("parse"), step("store"))),
        ):
            with self.subTest(why):
                self.assertEqual(self.advice(stats, load, parse, store), ())

    def test_where_one_worker_is_wanted_or_more_may_be_wrong(self) -> None:
        stats = stats_of(step("load"), slow(), step("store"))
        self.addCleanup(SEEN.clear)
        for why, processor in (
            ("said", Processor(parse, workers=1)),
            ("follows the load already", Processor(parse, workers="auto")),
            ("state", Learner(name="parse")),
            ("remembers", Processor(remembering, name="parse")),
            ("what it is bound to", Processor([].append, name="parse")),
            ("a partial of that", Processor(functools.partial(remembering), name="parse")),
        ):
            with self.subTest(why):
                self.assertEqual(self.advice(stats, load, processor, store), ())
        with open(__file__) as file:
            self.assertEqual(self.advice(stats, load, Processor(lambda item: file, name="parse"), store), ())

    def test_workers_of_a_fork(self) -> None:
        pipeline = Pipeline().add(Processor(load)).add(Pipe()).add(BalancingFork(2)).add(Processor(parse))
        plan = pipeline.add(Pipe()).add(Join())._description.plan(cores=4, ordered=True)
        self.assertEqual(Advisor(plan).advice(stats_of(step("load"), slow())), ())


class Fusing(TestCase):
    """Steps so small that handing items on takes longer than they do."""

    def small(self, name: str, **changes: Any) -> StepStats:
        return step(name, **{"busy_seconds": 2.0, "handing_on": 0.61, **changes})

    def test_handing_items_on_takes_long(self) -> None:
        advisor = Advisor(plan_of(load, parse, store))
        stats = stats_of(self.small("load"), self.small("parse"), self.small("store"))
        expected = "handing items on takes 61 % of the time of these three steps: try Pipeline(fuse=True)"
        self.assertEqual(advisor.advice(stats), (expected,))

    def test_only_some_can_be_fused(self) -> None:
        advisor = Advisor(plan_of(load, parse, Processor(store, batch=9)))
        stats = stats_of(self.small("load", handing_on=0.8), self.small("parse"), self.small("store"))
        expected = "handing items on takes 70 % of the time of load and parse: try Pipeline(fuse=True)"
        self.assertEqual(advisor.advice(stats), (expected,))

    def test_where_it_would_not_help(self) -> None:
        small = self.small
        good = (small("load"), small("parse"), small("store"))
        for why, stats, plan in (
            ("fused already", stats_of(*good), fused(plan_of(load, parse, store))),
            ("none can be", stats_of(*good), plan_of(load, Processor(parse, workers=2), store)),
            ("the jobs take longer", stats_of(*(small(n, handing_on=0.4) for n in ("load", "parse", "store"))), None),
            ("too short", stats_of(*(small(n, busy_seconds=0.2) for n in ("load", "parse", "store"))), None),
            ("too few", stats_of(*(small(n, units=100) for n in ("load", "parse", "store"))), None),
        ):
            with self.subTest(why):
                self.assertEqual(Advisor(plan or plan_of(load, parse, store)).advice(stats), ())

    def test_nothing_was_fused(self) -> None:
        def advice(*processors: Any) -> tuple[str, ...]:
            return Advisor(fused(plan_of(*processors))).advice(stats_of(step("load"), step("parse")))

        self.assertEqual(advice(load, Processor(parse, workers=1)), ("fuse=True fused nothing: parse has workers=1",))
        self.assertEqual(
            advice(Processor(load, batch=3), Processor(parse, timeout=3)),
            ("fuse=True fused nothing: load has batch of its own and parse has timeout of its own",),
        )
        self.assertEqual(advice(load), ("fuse=True fused nothing: no two Processors are next to each other",))
        self.assertEqual(
            advice(load, Learner(name="parse")),
            ("fuse=True fused nothing: parse stays alone, as its class, Learner, may keep state on `self`",),
        )
        self.assertEqual(advice(load, parse), ())


class Consumer(TestCase):
    """Whoever takes the results is slow."""

    def test_the_last_step_has_no_room(self) -> None:
        advisor = Advisor(plan_of(load, parse))
        expected = "parse waited for room for its results 70 % of the time: whoever takes them is slower than the steps"
        self.assertEqual(advisor.advice(stats_of(step("load"), step("parse", blocked=0.7))), (expected,))
        self.assertEqual(advisor.advice(stats_of(step("load", blocked=0.7), step("parse", blocked=0.2))), ())
        self.assertEqual(advisor.advice(stats_of(step("load"), step("parse", blocked=0.7), seconds=1.0)), ())


class Engines(TestCase):
    """What a pipeline says that has run."""

    def test_in_the_statistics_and_in_the_table(self) -> None:
        pipeline = Pipeline(fuse=True).add(Processor(load)).add(Pipe()).add(Processor(parse, workers=1))
        pipeline.run(range(3))
        stats = pipeline.stats()
        self.assertEqual(stats.advice, ("fuse=True fused nothing: parse has workers=1",))
        self.assertTrue(str(stats).endswith("\nfuse=True fused nothing: parse has workers=1"))
        self.assertEqual(stats.to_dict()["advice"], list(stats.advice))

    def test_a_step_that_sleeps_is_to_have_more_workers(self) -> None:
        pipeline = Pipeline(cores=3).add(Processor(load)).add(Pipe()).add(Processor(napping, name="parse"))
        pipeline.run(range(110))
        self.assertRegex(
            "\n".join(pipeline.stats().advice), r'^parse held up the others with [123] cores? idle: try workers="auto"$'
        )


def napping(item):
    import time

    time.sleep(0.02)
    return item
