"""Small Pipes: `Pipe(maxsize)` between steps, beside `multiprocessing.Queue(maxsize)` by hand.

Ints go through three steps `x + 1`.  By hand, each step is a process that takes from a queue and puts into the next.
The ways take turns, and each ratio is that of one round.

    python3 benchmarks/small_pipes.py [--rounds 5] [--items 5000] [--sizes 2 10 20 100]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from conveyor import Pipe, Pipeline, Processor

STEPS = 3


def increment(item: int) -> int:
    """The work of one step."""
    return item + 1


def step(items: Any, results: Any) -> None:
    """A step by hand: from one queue to the next, up to None."""
    while (item := items.get()) is not None:
        results.put(increment(item))
    results.put(None)


def by_hand(size: int, count: int) -> float:
    """The seconds that so many items take through processes and queues."""
    context = multiprocessing.get_context()
    queues = [context.Queue(size) for _ in range(STEPS + 1)]
    processes = [context.Process(target=step, args=queues[at : at + 2]) for at in range(STEPS)]
    for process in processes:
        process.start()

    def feed() -> None:
        for item in range(count):
            queues[0].put(item)
        queues[0].put(None)

    queues[0].put(0)
    queues[-1].get()
    feeder = threading.Thread(target=feed)
    begun = time.perf_counter()
    feeder.start()
    results = list(iter(queues[-1].get, None))
    seconds = time.perf_counter() - begun
    assert results == [item + STEPS for item in range(count)]
    feeder.join()
    for process in processes:
        process.join()
    return seconds


def by_conveyor(size: int, count: int) -> float:
    """The seconds that so many items take through a Pipeline that is open."""
    pipeline: Any = Pipeline().add(Processor(increment))
    for _ in range(STEPS - 1):
        pipeline.add(Pipe(size)).add(Processor(increment))
    with pipeline:
        assert pipeline.run([0]) == [STEPS]
        begun = time.perf_counter()
        results = pipeline.run(range(count))
        seconds = time.perf_counter() - begun
    assert results == [item + STEPS for item in range(count)]
    return seconds


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 10, 20, 100])
    options = parser.parse_args()
    print(f"{options.items:,} ints through {STEPS} steps, medians of {options.rounds} rounds")
    print(f"{'maxsize':>7} {'Conveyor, s':>12} {'by hand, s':>11} {'ratio':>6}")
    for size in options.sizes:
        rounds = [(by_conveyor(size, options.items), by_hand(size, options.items)) for _ in range(options.rounds)]
        ours, theirs = (statistics.median(each) for each in zip(*rounds, strict=True))
        ratio = statistics.median(one / other for one, other in rounds)
        print(f"{size:>7} {ours:>12.3f} {theirs:>11.3f} {ratio:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
