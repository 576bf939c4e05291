"""What the balancer is worth: steps of unequal cost with `workers="auto"`, against splits that an expert chose.

The law of this file: all ways of one load do the same work, results are checked, the ways take turns, medians are
compared, and the time to find out what the steps need, and to start workers, counts.

    python3 benchmarks/balancing.py [--rounds 5] [--scale 1.0] [load ...]

Loads: `cpu` (three steps of 0.2, 2 and 0.2 ms of CPU), `sleep` (three steps that sleep 1, 8 and 1 ms), `shift` (half
way the bottleneck moves from the first step to the last), `tail` (1 % of the items cost 200 times the rest).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor

Job = Callable[[int], int]
# The items of each round.
Items = Callable[[int], Sequence[int]]
CHUNK_SIZES = (1, 4, 16, 64)


def spin(seconds: float) -> None:
    """Use a core for so long, whoever else wants it."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def light(item: int) -> int:
    """A cheap step."""
    spin(0.0002)
    return item


def heavy(item: int) -> int:
    """A dear step."""
    spin(0.002)
    return item


def fused(item: int) -> int:
    """All three steps at once."""
    return light(heavy(light(item)))


def short_wait(item: int) -> int:
    """A step that waits a little."""
    time.sleep(0.001)
    return item


def long_wait(item: int) -> int:
    """A step that waits."""
    time.sleep(0.008)
    return item


def dear_first(half: int, item: int) -> int:
    """Dear for the first half of the items."""
    spin(0.002 if item < half else 0.0002)
    return item


def dear_last(half: int, item: int) -> int:
    """Dear for the second half of the items."""
    spin(0.0002 if item < half else 0.002)
    return item


def heavy_tailed(item: int) -> int:
    """Dear for a few items."""
    spin(0.0005 if item % 100 else 0.1)
    return item


# ------------------------------------------------------------------------------------------- what others write by hand


def _stage(job: Job, inward: Any, outward: Any) -> None:
    while (item := inward.get()) is not None:
        outward.put(job(item))


def by_queues(jobs: Sequence[Job], workers: Sequence[int], items: Sequence[int], window: int = 256) -> list[int]:
    """A chain of `multiprocessing.Queue`, with so many processes for each step."""
    queues: list[Any] = [multiprocessing.Queue(window) for _ in range(len(jobs) + 1)]
    processes: list[list[Any]] = []
    for number, (job, count) in enumerate(zip(jobs, workers, strict=True)):
        step = []
        for _ in range(count):
            process = multiprocessing.Process(target=_stage, args=(job, queues[number], queues[number + 1]))
            process.start()
            step.append(process)
        processes.append(step)
    results: list[int] = []
    fed = 0
    while len(results) < len(items):
        while fed < len(items) and fed - len(results) < window:
            queues[0].put(items[fed])
            fed += 1
        results.append(queues[-1].get())
    for number, step in enumerate(processes):
        for _ in step:
            queues[number].put(None)
        for process in step:
            process.join()
    for queue in queues:
        queue.close()
        queue.join_thread()
    return sorted(results)


def by_pool(job: Job, cores: int, chunk_size: int, items: Sequence[int], ordered: bool = True) -> list[int]:
    """`multiprocessing.Pool` over one fused function."""
    with multiprocessing.Pool(cores) as pool:
        call = pool.imap if ordered else pool.imap_unordered
        return sorted(call(job, items, chunk_size))


def by_conveyor(
    jobs: Sequence[Job],
    workers: Sequence[Any],
    items: Sequence[int],
    most: dict[int, int] | None = None,
) -> list[int]:
    """Conveyor; `most` bounds the workers of some steps."""
    pipeline: Pipeline[Any, Any] = Pipeline()
    for number, (job, count) in enumerate(zip(jobs, workers, strict=True)):
        if number:
            pipeline.add(Pipe())
        if most and number in most:
            pipeline.add(BalancingFork(max=most[number])).add(Processor(job, name=f"step {number}"))
            pipeline.add(Pipe()).add(Join())
        else:
            pipeline.add(Processor(job, name=f"step {number}", workers=count))
    return sorted(pipeline.run(items))


# --------------------------------------------------------------------------------------------------------------- loads


def in_order(count: int) -> Items:
    """So many items, in their order."""
    return lambda number: range(count)


def shuffled(count: int) -> Items:
    """So many items, in another order in each round: in any one order some chunk size is lucky."""
    return lambda number: random.Random(number).sample(range(count), count)


def cpu(cores: int, scale: float) -> tuple[Items, dict[str, Callable[[Sequence[int]], list[int]]]]:
    """Three steps of CPU, the middle one ten times as dear as the others."""
    jobs = (light, heavy, light)
    ways: dict[str, Callable[[Sequence[int]], list[int]]] = {
        "conveyor, auto": partial(by_conveyor, jobs, ("auto",) * 3),
        "conveyor, one worker each": partial(by_conveyor, jobs, (1, 1, 1)),
        f"queues, (1, {cores}, 1)": partial(by_queues, jobs, (1, cores, 1)),
    }
    for size in CHUNK_SIZES:
        ways[f"Pool({cores}).imap, chunksize={size}"] = partial(by_pool, fused, cores, size)
    return in_order(int(4000 * scale)), ways


def sleep(cores: int, scale: float) -> tuple[Items, dict[str, Callable[[Sequence[int]], list[int]]]]:
    """Three steps that wait."""
    jobs = (short_wait, long_wait, short_wait)
    return in_order(int(2000 * scale)), {
        "conveyor, auto, most 8": partial(by_conveyor, jobs, ("auto",) * 3, most={1: 8}),
        "queues, (1, 8, 1)": partial(by_queues, jobs, (1, 8, 1)),
    }


def shift(cores: int, scale: float) -> tuple[Items, dict[str, Callable[[Sequence[int]], list[int]]]]:
    """The bottleneck moves; the best fixed split of each half is that of a run over this half alone."""
    count = int(4000 * scale)
    half = count // 2
    jobs = (partial(dear_first, half), light, partial(dear_last, half))

    def halves(items: Sequence[int]) -> list[int]:
        first = by_conveyor(jobs, (cores, 1, 1), items[:half])
        return first + by_conveyor(jobs, (1, 1, cores), items[half:])

    return in_order(count), {
        "conveyor, auto": partial(by_conveyor, jobs, ("auto",) * 3),
        "conveyor, best split of each half": halves,
    }


def tail(cores: int, scale: float) -> tuple[Items, dict[str, Callable[[Sequence[int]], list[int]]]]:
    """Some items cost 200 times the others."""
    job = heavy_tailed
    ways: dict[str, Callable[[Sequence[int]], list[int]]] = {
        "conveyor, auto": partial(by_conveyor, (job,), ("auto",)),
        f"conveyor, {cores} workers": partial(by_conveyor, (job,), (cores,)),
    }
    for size in CHUNK_SIZES:
        name = f"Pool({cores}).imap_unordered, chunksize={size}"
        ways[name] = partial(by_pool, job, cores, size, ordered=False)
    return shuffled(int(4000 * scale)), ways


LOADS = {"cpu": cpu, "sleep": sleep, "shift": shift, "tail": tail}


def measured(
    items: Items, ways: dict[str, Callable[[Sequence[int]], list[int]]], rounds: int
) -> dict[str, list[float]]:
    """The seconds that each way took, in each round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        given = items(number)
        # Another way comes first in each round.
        for name in _turned(list(ways), number):
            begun = time.perf_counter()
            results = ways[name](given)
            times[name].append(time.perf_counter() - begun)
            assert results == sorted(given), f"{name} lost something"
    return times


def _turned(names: list[str], number: int) -> Iterator[str]:
    yield from names[number % len(names) :]
    yield from names[: number % len(names)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loads", nargs="*", default=list(LOADS), metavar="load", help=", ".join(LOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the items")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    print(f"Python {'.'.join(map(str, sys.version_info[:3]))}, {arguments.cores} cores")
    for name in arguments.loads:
        items, ways = LOADS[name](arguments.cores, arguments.scale)
        times = measured(items, ways, arguments.rounds)
        medians = {way: statistics.median(each) for way, each in times.items()}
        print(f"\n{name}: {len(items(0))} items, median of {arguments.rounds}")
        for way, median in medians.items():
            auto = next(each for each in medians if each.startswith("conveyor, auto"))
            spread = f"(min {min(times[way]):.3f}, max {max(times[way]):.3f})"
            print(f"  {way:36} {median:7.3f} s  {spread:28}  auto / this: {medians[auto] / median:.2f}")


if __name__ == "__main__":
    main()
