"""What grows with what: items, Processors in a chain, branches of a fork, workers of a step.

The law of this file: workers are up before the clock starts, sizes take turns, medians are compared; on a machine that
has other work the shortest runs, as that only ever makes them longer.  What is to be seen is that the cost of a unit
does not grow with the size, and what the broker takes of a core.

    python3 benchmarks/growth.py [--rounds 3] [--scale 1] [--most N] [--markdown FILE] [series ...]

Series: `items` (1,000 to 10,000,000 ints through three steps, results taken one by one and not kept; with `--scale 10`
ten times as many), `chain` (1 to 128 Processors, 100,000 ints), `branches` (1 to 64 that all get 20,000 ints, merged),
`waits` (1 to 64 workers of a step that sleeps for 10 ms, 100 items for each) and `short-waits` (the same with 1 ms, and
1,000 items).  The broker's share and the memory of all processes are known on Linux alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import measuring
from peers import CORES
from report import as_markdown_table
from thresholds import STANDSTILL

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor, ReplicatingFork

DOUBLING = (1, 2, 4, 8, 16, 32, 64)
HEADINGS = ("", "items", "s", "cost of a unit", "beside the first", "broker, cores", "memory, MB")


class Series(NamedTuple):
    """What is made larger, and what a unit is; functions take the size."""

    title: str
    # What a unit costs is told in so many seconds.
    scale: float
    unit: str
    sizes: Sequence[int]
    make: Callable[[int], Pipeline[Any, Any]]
    items: Callable[[int], int]
    units: Callable[[int], int]
    # How many results there are for each item.
    results: Callable[[int], int] = lambda size: 1


class Point(NamedTuple):
    """One run: seconds, cores that the broker used, and by how many bytes the memory of all grew; None: not known."""

    seconds: float
    broker: float | None
    growth: int | None


def increment(item: int) -> int:
    """As little as there is to do."""
    return item + 1


def wait(seconds: float, item: int) -> int:
    """A step that waits for something, such as the answer of another machine."""
    time.sleep(seconds)
    return item


def chain(length: int) -> Pipeline[Any, Any]:
    """So many steps."""
    pipeline: Pipeline[Any, Any] = Pipeline().add(Processor(increment))
    for _ in range(length - 1):
        pipeline.add(Pipe()).add(Processor(increment))
    return pipeline


def replicated(branches: int) -> Pipeline[Any, Any]:
    """One step, and so many that get all that it gives."""
    pipeline = chain(1).add(Pipe()).add(ReplicatingFork(branches)).add(Processor(increment))
    return pipeline.add(Pipe()).add(Join())


def balanced(seconds: float, workers: int) -> Pipeline[Any, Any]:
    """One step, and so many workers of one that waits."""
    pipeline = chain(1).add(Pipe()).add(BalancingFork(workers)).add(Processor(partial(wait, seconds)))
    return pipeline.add(Pipe()).add(Join())


SERIES = {
    "items": Series(
        *("Items through three steps", 1e-9, "ns for an item", [10**power for power in range(3, 8)]),
        *(lambda _: chain(3), lambda size: size, lambda size: size),
    ),
    "chain": Series(
        *("Processors in a chain", 1e-9, "ns for an item at each step", [*DOUBLING, 128]),
        *(chain, lambda _: 100_000, lambda size: 100_000 * size),
    ),
    "branches": Series(
        *("Branches of a ReplicatingFork, merged", 1e-9, "ns for a result", DOUBLING),
        *(replicated, lambda _: 20_000, lambda size: 20_000 * size, lambda size: size),
    ),
    "waits": Series(
        *("Workers of a step that waits for 10 ms", 1e-3, "ms for an item at its worker", DOUBLING),
        *(partial(balanced, 0.01), lambda size: 100 * size, lambda _: 100),
    ),
    "short-waits": Series(
        *("Workers of a step that waits for 1 ms", 1e-3, "ms for an item at its worker", DOUBLING),
        *(partial(balanced, 0.001), lambda size: 1000 * size, lambda _: 1000),
    ),
}


def cpu_seconds(process: int) -> float | None:
    """The CPU time of a process so far, where the system tells."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def broker_of_the_open_pipeline() -> int:
    """The broker of the only pipeline that is open here."""
    return next(child.pid or 0 for child in multiprocessing.active_children() if child.name == "conveyor-broker")


def measured(series: Series, size: int) -> Point:
    """Run it once, with its workers up and warm, and check how much comes out."""
    items = series.items(size)
    with series.make(size) as pipeline:
        pipeline.run(range(min(items, 100)))
        broker = broker_of_the_open_pipeline()
        before, memory = cpu_seconds(broker), measuring.tree_memory(os.getpid())
        count = peak = 0
        looks = {items * series.results(size) * tenth // 10 for tenth in range(1, 10)} if items >= 10**6 else set()
        looking = 0.0
        begun = time.perf_counter()
        for count, _ in enumerate(pipeline.stream(range(items)), 1):
            if count in looks:
                looked = time.perf_counter()
                peak = max(peak, measuring.tree_memory(os.getpid()))
                looking += time.perf_counter() - looked
        seconds = time.perf_counter() - begun - looking
        after = cpu_seconds(broker)
        peak = max(peak, measuring.tree_memory(os.getpid()))
    if count != items * series.results(size):
        raise ValueError(f"{count:,} results, {items * series.results(size):,} were expected")
    used = None if before is None or after is None else (after - before) / seconds
    return Point(seconds, used, peak - memory if memory else None)


def rows(series: Series, points: dict[int, list[Point]], disturbed: bool) -> list[list[str]]:
    """The table, without its head."""
    counted: Callable[[Iterable[float]], float] = min if disturbed else statistics.median
    found: list[list[str]] = []
    first: float | None = None
    for size, runs in points.items():
        seconds = counted(run.seconds for run in runs)
        cost = seconds / series.units(size) / series.scale
        first = first or cost
        broker = [run.broker for run in runs if run.broker is not None]
        growth = [run.growth for run in runs if run.growth is not None]
        found.append(
            [
                f"{size:,}",
                f"{series.items(size):,}",
                f"{seconds:.3f}",
                f"{cost:.3g}" if cost < 1000 else f"{cost:.0f}",
                f"{cost / first:.2f}",
                f"{statistics.median(broker):.2f}" if broker else "",
                f"{max(growth) / 1e6:.0f}" if growth else "",
            ]
        )
    return found


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """For a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("series", nargs="*", default=list(SERIES), metavar="series", help=", ".join(SERIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="so many times the items, in the series `items`")
    parser.add_argument("--most", type=int, metavar="N", help="no size above that")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables")
    arguments = parser.parse_args()
    where = f"Python {'.'.join(map(str, sys.version_info[:3]))}, {CORES} cores"
    print(where)
    parts = ["# What grows with what", f"{where}. Medians of {arguments.rounds} rounds, memory at its most."]
    before = measuring.standstill()
    for name in arguments.series:
        series = SERIES[name]
        sizes = [*series.sizes]
        if name == "items" and arguments.scale > 1:
            sizes.append(sizes[-1] * arguments.scale)
        sizes = [size for size in sizes if not arguments.most or size <= arguments.most]
        if not sizes:
            parser.error(f"--most {arguments.most} leaves nothing of {name}")
        points: dict[int, list[Point]] = {size: [] for size in sizes}
        for number in range(arguments.rounds):
            turned = number % len(sizes)
            for size in sizes[turned:] + sizes[:turned]:
                points[size].append(measured(series, size))
        after = measuring.standstill()
        standstill, before = max(before, after), after
        table = [[*HEADINGS], *rows(series, points, disturbed=standstill > STANDSTILL)]
        table[0][3] = series.unit
        parts.append(f"## {series.title}")
        print(f"\n{series.title}")
        if standstill > STANDSTILL:
            parts.append(
                f"The machine had other work: a mere loop took {standstill:.1f} times what it could. "
                "So the times here are those of the shortest runs."
            )
            print(parts[-1])
        print(text_table(table), flush=True)
        parts.append(as_markdown_table(table))
    if arguments.markdown:
        Path(arguments.markdown).write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
