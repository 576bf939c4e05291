"""The process engine, the Dask engine and plain Dask, beside each other in one interleaved run on this machine.

    python3 benchmarks/cluster.py [--rounds 5] [--short] [--address tcp://head:8786]

It needs `distributed`, and numpy for the arrays.  Without an address it starts a LocalCluster with one worker process
for each core.  Each round runs all contestants by turns, and the table has the best of each.  Plain Dask is written as
its users would: `Client.map` over chunks of items, all steps in one function.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conveyor import Pipe, Pipeline, Processor
from conveyor.engines.dask import DaskEngine

RECORD = json.dumps({"name": "n" * 150, "value": 1234, "tags": ["a", "b"]})
Contestant = Callable[[], float]


def parse(line: str) -> Any:
    """Return a record."""
    return json.loads(line)


def touch(record: Any) -> Any:
    """Return the record, with one value changed."""
    record["value"] += 1
    return record


def dump(record: Any) -> str:
    """Return the record as text."""
    return json.dumps(record)


def add_one(array: Any) -> Any:
    """Return an array like this one."""
    return array + 1


def same(item: Any) -> Any:
    """Return the item."""
    return item


def spin(item: int) -> int:
    """Use a core for 2 ms."""
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass
    return item


def in_chunk(functions: list[Callable[[Any], Any]], chunk: list[Any]) -> list[Any]:
    """Call all functions on each item: the task of plain Dask."""
    results = []
    for item in chunk:
        for function in functions:
            item = function(item)
        results.append(item)
    return results


class Measured:
    """One load, for each of the three; what a contestant returns is items in a second."""

    def __init__(self, name: str, functions: list[Callable[[Any], Any]], items: Iterable[Any], workers: int) -> None:
        self.name = name
        self.functions = functions
        self.items = list(items)
        self.workers = workers

    def with_engine(self, engine: Any) -> Pipeline[Any, Any]:
        """Return a pipeline with a Processor for each function."""
        pipeline: Any = Pipeline(engine=engine)
        for number, function in enumerate(self.functions):
            if number:
                pipeline.add(Pipe())
            pipeline.add(Processor(function, workers=self.workers))
        return pipeline  # type: ignore[no-any-return]

    def run(self, pipeline: Pipeline[Any, Any]) -> float:
        """Return the rate of one run of an open pipeline."""
        begun = time.perf_counter()
        results = pipeline.run(self.items)
        seconds = time.perf_counter() - begun
        assert len(results) == len(self.items)
        return len(results) / seconds

    def plainly(self, client: Any, size: int) -> float:
        """Return the rate of plain Dask, with chunks of so many items."""
        begun = time.perf_counter()
        chunks = [self.items[start : start + size] for start in range(0, len(self.items), size)]
        futures = client.map(lambda chunk: in_chunk(self.functions, chunk), chunks, pure=False)
        results = [item for chunk in client.gather(futures) for item in chunk]
        assert len(results) == len(self.items)
        return len(results) / (time.perf_counter() - begun)


def loads(short: bool) -> list[tuple[Measured, int]]:
    """Return the loads, each with the chunks of plain Dask, in items."""
    scale = 1 if short else 4
    found = [
        (Measured("200-byte JSON, 3 steps, items/s", [parse, touch, dump], [RECORD] * (20_000 * scale), 1), 1000),
        (Measured("one item, 3 steps, items/s", [same, same, same], [1], 1), 1),
        (Measured("2 ms of CPU, items/s", [spin], range(300 * scale), os.cpu_count() or 1), 20),
    ]
    try:
        import numpy
    except ImportError:
        print("numpy is not installed: no arrays", file=sys.stderr)
    else:
        arrays = [numpy.zeros(1 << 19) for _ in range(16 * scale)]
        found.insert(1, (Measured("4 MiB arrays, 2 steps, items/s", [add_one, add_one], arrays, 1), 2))
    return found


def measure(client: Any, rounds: int, short: bool) -> None:
    """Print a line for each load."""
    engine = DaskEngine(client)
    print(f"{'':34}{'process':>12}{'dask engine':>13}{'plain Dask':>12}")
    for load, size in loads(short):
        best = [0.0, 0.0, 0.0]
        with load.with_engine("process") as near, load.with_engine(engine) as far:
            for _ in range(rounds):
                rates = load.run(near), load.run(far), load.plainly(client, size)
                best = [max(pair) for pair in zip(best, rates, strict=True)]
        print(f"{load.name:34}{best[0]:12,.0f}{best[1]:13,.0f}{best[2]:12,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="a quarter of the items")
    parser.add_argument("--address", help="the scheduler of a cluster that is up, whose nodes can import this file")
    arguments = parser.parse_args()
    from distributed import Client, LocalCluster

    if arguments.address:
        with Client(arguments.address) as client:
            measure(client, arguments.rounds, arguments.short)
    else:
        with LocalCluster(threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
            measure(client, arguments.rounds, arguments.short)


if __name__ == "__main__":
    main()
