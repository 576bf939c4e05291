"""Kills at random moments, on a cluster of three nodes: run after run of one pipeline, and each list is the exact one.

    python3 -m tests.cluster.storm [--seconds 300] [--seed 1] [--pause 2]

Law: a seed decides who is killed, and in which way; only the moments are the machine's.  One node is left at each moment.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork
from conveyor.engines.dask import DaskEngine
from tests.cluster import jobs
from tests.helpers.cluster import LoopbackCluster, Member, await_that, children_of, node_processes

NODES = 3
LOST_AFTER = 20.0


class Killer(threading.Thread):
    """Kills something of the cluster again and again, and has new nodes join, until `ended` is set."""

    def __init__(self, cluster: LoopbackCluster, seed: int, pause: float) -> None:
        super().__init__(name="killer", daemon=True)
        self.cluster = cluster
        self.kills: collections.Counter[str] = collections.Counter()
        self.ended = threading.Event()
        # Set with each result that comes.
        self.came = threading.Event()
        self.error: BaseException | None = None
        self._chooser = random.Random(seed)
        self._pause = pause

    def run(self) -> None:
        """Kill until the end; what goes wrong is kept in `error`."""
        from distributed import Client

        try:
            with Client(self.cluster.address, set_as_default=False) as client:
                while not self.ended.wait(self._chooser.uniform(0, 2 * self._pause)):
                    if self._await_result():
                        self._strike(set(client.nthreads()))
        except BaseException as error:
            self.error = error

    def _await_result(self) -> bool:
        """Wait until something comes; False at the end.  Else, where starts take long, one item is hit until given up."""
        self.came.clear()
        while not self.ended.is_set():
            if self.came.wait(0.1):
                return True
        return False

    def _strike(self, known: set[str]) -> None:
        """Kill one thing, and replace what is gone."""
        self.cluster.workers = [each for each in self.cluster.workers if each.process.poll() is None]
        nodes = [each for each in self.cluster.workers if node_processes(each)]
        how = self._chooser.choice(
            [self.worker, self.worker, self.node_process, self.dask_worker, self.closed, self.everything]
        )
        # One that has just died may be known still: so many are up for certain.
        certain = len(known) - (NODES - len(self.cluster.workers))
        if nodes and (how == self.worker or certain > 1):
            victim = self._chooser.choice(nodes)
            if how(victim):
                self.kills[how.__name__.replace("_", " ")] += 1
        alive = [each for each in self.cluster.workers if each.process.poll() is None]
        if len(alive) < NODES:
            self.cluster.start(NODES - len(alive))

    def worker(self, victim: Member) -> bool:
        """One worker of the pipeline."""
        workers = [pid for node in node_processes(victim) for pid in children_of(node)]
        return bool(workers) and _killed(self._chooser.choice(workers))

    def node_process(self, victim: Member) -> bool:
        """The parent of the workers on a node."""
        return _killed(node_processes(victim)[0])

    def dask_worker(self, victim: Member) -> bool:
        """The Dask worker of a node, with the actor."""
        return _killed(victim.process.pid)

    def closed(self, victim: Member) -> bool:
        """The Dask worker, which is told to end."""
        return _killed(victim.process.pid, signal.SIGTERM)

    def everything(self, victim: Member) -> bool:
        """All processes of a node at once."""
        victim.kill()
        return True


def _killed(pid: int, number: int = signal.SIGKILL) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


class Tally:
    """What a storm has come to."""

    def __init__(self) -> None:
        self.kills: collections.Counter[str] = collections.Counter()
        self.runs = self.items = self.workers_lost = self.nodes_lost = 0
        self.longest_gap = self.seconds = 0.0

    def __str__(self) -> str:
        kills = ", ".join(f"{count} of {what}" for what, count in sorted(self.kills.items()))
        return (
            f"{sum(self.kills.values())} kills ({kills}); {self.nodes_lost} nodes and {self.workers_lost} workers lost; "
            f"{self.runs} runs, {self.items:,} results, all exact; longest gap {self.longest_gap:.1f} s; "
            f"{self.seconds:.0f} s"
        )


class _Lost(logging.Handler):
    """Counts the nodes that the broker gives up."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "is lost, and its workers with it" in record.getMessage()


def layout(cluster: LoopbackCluster) -> Pipeline[Any, Any]:
    """Return a pipeline with a fork, a zip, and state that may be lost."""
    pipeline: Any = Pipeline(engine=DaskEngine(cluster.address, lost_after=LOST_AFTER))
    pipeline.add(Processor(jobs.same)).add(Pipe()).add(ReplicatingFork(2))
    pipeline.add(Processor(jobs.slowly, workers=3), Processor(jobs.doubled, workers=2))
    pipeline.add(Pipe()).add(Join(how="zip")).add(Pipe()).add(jobs.Total(workers=2))
    return pipeline  # type: ignore[no-any-return]


def storm(
    cluster: LoopbackCluster,
    seconds: float,
    seed: int = 1,
    pause: float = 2.0,
    items: int = 3000,
    say: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Run until so many seconds are over; AssertionError where a list is not the exact one, or a process is left.

    `pause`: the seconds between two kills, on the average.  `items`: those of one run.
    """
    tally, killer, lost = Tally(), Killer(cluster, seed, pause), _Lost()
    begun = time.monotonic()
    logging.getLogger("conveyor").addHandler(lost)
    try:
        with layout(cluster) as pipeline:
            killer.start()
            while time.monotonic() < begun + seconds and killer.is_alive():
                _one_run(pipeline, items, tally, killer)
                tally.workers_lost = sum(step.workers_lost for step in pipeline.stats().steps)
                tally.nodes_lost, tally.kills = lost.count, killer.kills
                tally.seconds = time.monotonic() - begun
                say(str(tally))
            killer.ended.set()
            killer.join()
    finally:
        killer.ended.set()
        logging.getLogger("conveyor").removeHandler(lost)
    if killer.error is not None:
        raise killer.error
    # The Dask worker itself is left.
    await_that(lambda: all(len(each.alive) <= 1 for each in cluster.workers), "the nodes are left alone", 15)
    return tally


def _one_run(pipeline: Pipeline[Any, Any], items: int, tally: Tally, killer: Killer) -> None:
    last, count = time.monotonic(), 0
    for result in pipeline.stream(range(items)):
        killer.came.set()
        now = time.monotonic()
        tally.longest_gap, last = max(tally.longest_gap, now - last), now
        assert result == (count + 1, 2 * count), f"result {count} of run {tally.runs} is {result}"
        count += 1
    assert count == items, f"run {tally.runs} has {count} results"
    tally.runs += 1
    tally.items += items


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=2, help="seconds between two kills, on the average")
    options = parser.parse_args()
    cluster = LoopbackCluster(NODES)
    # That nodes are lost is what is wanted here.
    logging.getLogger("conveyor").propagate = False
    try:
        storm(cluster, options.seconds, options.seed, options.pause, say=lambda text: print(text, flush=True))
    except BaseException:
        Path("storm.log").write_text(cluster.logs())
        print("the logs of the cluster are in storm.log", file=sys.stderr)
        raise
    finally:
        cluster.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
