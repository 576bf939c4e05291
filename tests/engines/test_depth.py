"""Graphs that are deeper than Python lets calls be nested, in the engines that run the core.

Law: what the inline engine gives is right; its own depth is tested with it.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from conveyor import (
    BalancingFork,
    ImplicitJoinWarning,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
)
from conveyor.core import events
from conveyor.core.commands import Emit, SendLease
from conveyor.core.data.pieces import Weave
from conveyor.core.machine import Machine
from conveyor.core.recording import Recorder, Replay
from tests.helpers.support import TestCase, slow

# As many levels as Python's stack may have frames, so that nothing can call itself once a level.  What is done takes
# the square of their number.
DEPTH = 400


def same(item: Any) -> Any:
    """Return the item, unless it is 13."""
    if item == 13:
        raise ValueError(item)
    return item


def nested(pipeline: Any, fork: Any, join: str | None = None, levels: int = DEPTH) -> Any:
    """Return a pipeline with forks in branches of forks, of which the innermost has two branches with a Processor."""
    pipeline.add(Processor(abs)).add(Pipe())
    for level in range(1, levels + 1):
        pipeline.add(fork(2 if level == levels else 1)).add(Pipe())
    pipeline.add(Processor(same)).add(Pipe())
    for depth in range(levels if join else 0):
        pipeline.add(Join(1 if depth else 2, how=join)).add(Pipe())
    return pipeline


def bare(row: Any) -> Any:
    """Return what stands in a row of one item, however many such rows are around it."""
    while isinstance(row, tuple) and len(row) == 1:
        (row,) = row
    return row


class DepthTests(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(DEPTH)

    def check(self, engine: str, fork: Any, join: str | None, of_3: list[Any]) -> None:
        """Run a list through such a pipeline, and submit items to it: one that fails, and one that is cancelled."""
        with nested(Pipeline(engine=engine), fork, join) as pipeline:
            assert [bare(result) for result in pipeline.run([3, 3])] == of_3 * 2, engine
            futures = [pipeline.submit(item) for item in (3, 13, 3)]
            pipeline.submit(4).cancel()
            assert [[bare(result) for result in futures[place].result()] for place in (0, 2)] == [of_3] * 2, engine
            assert "ValueError: 13" in str(futures[1].exception()), engine
            assert sum(step.failed for step in pipeline.stats().steps) == 1
        with self.assertRaisesRegex(ProcessorError, "ValueError: 13"):
            pipeline.run([13])

    def test_forks_that_replicate(self) -> None:
        self.check("process", ReplicatingFork, "merge", [3, 3])

    def test_branches_that_are_zipped(self) -> None:
        self.check("thread", ReplicatingFork, "zip", [(3, 3)])

    def test_forks_that_balance(self) -> None:
        self.check("thread", BalancingFork, "merge", [3])

    def test_branches_that_are_left_open(self) -> None:
        warnings.simplefilter("ignore", ImplicitJoinWarning)
        self.check("process", BalancingFork, None, [3])

    @slow
    def test_a_spawned_broker(self) -> None:
        # A fresh interpreter has Python's own limit.
        pipeline = nested(Pipeline(start_method="spawn"), ReplicatingFork, "zip", levels=1000)
        assert [bare(row) for row in pipeline.run([1, 2])] == [(1, 1), (2, 2)]

    def test_pictures(self) -> None:
        pipeline = nested(Pipeline(), ReplicatingFork, "zip")
        assert len(pipeline.graph().nodes) == 2 * DEPTH + 5
        assert str(pipeline).count("ReplicatingFork(1)") == DEPTH - 1
        assert pipeline.graph().to_svg().count("ReplicatingFork(1)") >= DEPTH - 1

    def test_a_recording(self) -> None:
        plan = nested(Pipeline(), ReplicatingFork, "zip")._description.plan(cores=1, ordered=True)
        lines: list[bytes] = []
        machine, recorder = Machine(plan), Recorder(plan, 0.0, "1.2.3", lines.append)
        todo: list[Any] = [events.SourceItems("blob", 1, 8)]
        wanted: list[Any] = []
        for number, event in enumerate(todo):
            wanted = machine.handle(event, 1.0)
            recorder.handled(1.0, event, wanted)
            for lease in [command for command in wanted if isinstance(command, SendLease)]:
                blobs = ((f"blob {number}", 1),)
                todo.append(events.Replied(lease.worker, lease.lease, 1, [(1, 1)], blobs, 8, True, False, 0.001))
        assert any(isinstance(command, Emit) and type(command.pieces[0][0]) is Weave for command in wanted)
        assert Replay(lines).run() is None

    def test_many_ways_to_the_results(self) -> None:
        # Each fork doubles the ways, and no step stands on them.
        pipeline = Pipeline(engine="thread").add(Processor(abs)).add(Pipe())
        for _ in range(40):
            pipeline.add(BalancingFork(2)).add(Pipe()).add(Join(2)).add(Pipe())
        assert pipeline.run(range(10)) == list(range(10))
