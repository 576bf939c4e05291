"""Items that are submitted one by one: the round trip of one at a time, and many at once.

One item at a time goes through three Processors `x + 1`: by `submit`, and through a stream whose source waits for each
result.  Many at once go to one Processor that gives them back: by `submit`, and by a bare program of Futures, two
queues and one process.  The ways take turns, and each ratio is that of one round.

    python3 benchmarks/submitting.py [--rounds 5] [--trips 2000] [--items 10000]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from conveyor import Pipe, Pipeline, Processor


def increment(item: int) -> int:
    """The work of one step."""
    return item + 1


def same(item: Any) -> Any:
    """No work."""
    return item


def chain() -> Pipeline[int, int]:
    """Three steps."""
    pipeline = Pipeline().add(Processor(increment)).add(Pipe()).add(Processor(increment)).add(Pipe())
    return pipeline.add(Processor(increment))


def stream_trip(trips: int) -> float:
    """The median seconds from giving one item to a stream to having its result."""
    times: list[float] = []
    begun = 0.0
    taken = threading.Event()

    def one_at_a_time() -> Iterator[int]:
        nonlocal begun
        for item in range(trips):
            taken.wait()
            taken.clear()
            begun = time.perf_counter()
            yield item

    with chain() as pipeline:
        taken.set()
        for _ in pipeline.stream(one_at_a_time()):
            times.append(time.perf_counter() - begun)
            taken.set()
    return statistics.median(times)


def submit_trip(trips: int) -> float:
    """The median seconds from submitting one item to having its result."""
    times: list[float] = []
    with chain() as pipeline:
        for item in range(trips):
            begun = time.perf_counter()
            pipeline.submit(item).result()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def echo(items: Any, results: Any) -> None:
    """The process of the bare program: it gives back what it gets, up to None."""
    while (item := items.get()) is not None:
        results.put(item)
    results.put(None)


def many_by_hand(items: int) -> float:
    """The seconds that the bare program takes for so many items at once."""
    context = multiprocessing.get_context()
    to, back = context.Queue(), context.Queue()
    process = context.Process(target=echo, args=(to, back))
    process.start()
    pending: dict[int, Future[int]] = {}

    def resolve() -> None:
        while (reply := back.get()) is not None:
            number, result = reply
            pending.pop(number).set_result(result)

    resolver = threading.Thread(target=resolve)
    resolver.start()
    begun = time.perf_counter()
    futures: list[Future[int]] = []
    for number in range(items):
        future: Future[int] = Future()
        futures.append(future)
        pending[number] = future
        to.put((number, number))
    assert [future.result() for future in futures] == list(range(items))
    seconds = time.perf_counter() - begun
    to.put(None)
    resolver.join()
    process.join()
    return seconds


def many_by_submit(items: int) -> float:
    """The seconds that so many items take which are submitted at once."""
    with Pipeline().add(Processor(same)) as pipeline:
        pipeline.submit(0).result()
        begun = time.perf_counter()
        futures = [pipeline.submit(item) for item in range(items)]
        assert [future.result() for future in futures] == [[item] for item in range(items)]
        return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trips", type=int, default=2000)
    parser.add_argument("--items", type=int, default=10_000)
    arguments = parser.parse_args()
    print(f"Python {'.'.join(map(str, __import__('sys').version_info[:3]))}, {os.cpu_count()} cores")
    longer: list[float] = []
    faster: list[float] = []
    for _ in range(arguments.rounds):
        stream, submitted = stream_trip(arguments.trips), submit_trip(arguments.trips)
        by_hand, at_once = many_by_hand(arguments.items), many_by_submit(arguments.items)
        longer.append(submitted / stream)
        faster.append(by_hand / at_once)
        print(
            f"one at a time: stream {stream * 1e6:.0f} µs, submit {submitted * 1e6:.0f} µs; "
            f"{arguments.items:,} at once: by hand {by_hand:.3f} s, submit {at_once:.3f} s"
        )
    print(f"a submitted item takes {statistics.median(longer):.2f} times as long as one of a stream")
    print(f"many at once are {statistics.median(faster):.2f} times as fast as by hand")


if __name__ == "__main__":
    main()
