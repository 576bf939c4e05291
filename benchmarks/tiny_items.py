"""Tiny items: what the machinery costs when the work costs nothing.

Three Processors `x + 1` over 500,000 integers, against `multiprocessing.Pool(2).imap` over one fused function at its
best chunk size, in one interleaved run; then the round trip of one item at a time through three Processors.

    python3 benchmarks/tiny_items.py [--rounds 5] [--items 500000]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from conveyor import Pipe, Pipeline, Processor

CHUNK_SIZES = (100, 300, 1000, 3000, 10000)


def increment(item: int) -> int:
    """The work."""
    return item + 1


def fused(item: int) -> int:
    """The work of all three steps at once."""
    return increment(increment(increment(item)))


def chain() -> Pipeline[int, int]:
    """Three steps."""
    return (
        Pipeline().add(Processor(increment)).add(Pipe()).add(Processor(increment)).add(Pipe()).add(Processor(increment))
    )


def timed(call: Callable[[], int]) -> float:
    """Run `call`, which returns the number of results; return the seconds that it took."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def by_conveyor(items: int) -> int:
    """Start the workers, run, and end them."""
    results = chain().run(range(items))
    assert results[-1] == items + 2
    return len(results)


def by_pool(items: int, chunk_size: int) -> int:
    """The same with the standard library."""
    with multiprocessing.Pool(2) as pool:
        results = list(pool.imap(fused, range(items), chunk_size))
    assert results[-1] == items + 2
    return len(results)


def round_trips(count: int) -> list[float]:
    """Seconds from giving one item to having its result, with nothing else in the pipeline."""
    times: list[float] = []
    begun = 0.0

    def one_at_a_time() -> Iterator[int]:
        nonlocal begun
        for item in range(count):
            taken.wait()
            taken.clear()
            begun = time.perf_counter()
            yield item

    import threading

    taken = threading.Event()
    with chain() as pipeline:
        taken.set()
        for _ in pipeline.stream(one_at_a_time()):
            times.append(time.perf_counter() - begun)
            taken.set()
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=500_000)
    arguments = parser.parse_args()
    print(f"Python {'.'.join(map(str, __import__('sys').version_info[:3]))}, {os.cpu_count()} cores")
    contestants: dict[str, Callable[[], int]] = {"conveyor": lambda: by_conveyor(arguments.items)}
    for size in CHUNK_SIZES:
        contestants[f"Pool(2).imap chunksize={size}"] = partial(by_pool, arguments.items, size)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, call in contestants.items():
            times[name].append(timed(call))
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, median in medians.items():
        rate = arguments.items / median / 1e6
        spread = f"(min {min(times[name]):.3f}, max {max(times[name]):.3f})"
        print(f"{name:32} {median:6.3f} s  {rate:5.2f} M items/s  {spread}")
    best = min(median for name, median in medians.items() if name != "conveyor")
    print(f"conveyor is {best / medians['conveyor']:.2f} times as fast as Pool(2).imap at its best chunk size")
    trips = round_trips(2000)
    print(
        f"one item at a time: median {statistics.median(trips) * 1000:.3f} ms, "
        f"99th percentile {statistics.quantiles(trips, n=100)[98] * 1000:.3f} ms"
    )


if __name__ == "__main__":
    main()
