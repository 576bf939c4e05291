"""One contestant does one workload once: the main program of each measured process of `compare.py`.

The law of this file: it measures and checks and has no opinion; what it found goes into a file, one `name=number` a
line. It imports next to nothing before the clock starts, and no library but by way of the contestant's own function.
"""

from __future__ import annotations

import sys
import time

import workloads

TYPE_CHECKING = False  # as in typing, which would have to be imported
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Numbers = dict[str, float]


class Collector:
    """Takes the results, and notes when the first one was there."""

    def __init__(self) -> None:
        self.first_at: float | None = None

    def __call__(self, results: Iterable[Any]) -> list[Any]:
        if isinstance(results, list):
            return results
        iterator = iter(results)
        collected = [next(iterator)]
        self.first_at = time.perf_counter()
        collected += iterator
        return collected


class CountedSource:
    """The ints of the workload `memory`: knows how many were pulled, and how large the process tree was at the start.

    "At the start" is when one in a hundred was pulled: all workers are up then, and hardly anything is stored yet.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pulled = 0
        self.baseline: int | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        import os

        import measuring

        for number in range(self.count):
            if number == self.count // 100:
                self.baseline = measuring.tree_memory(os.getpid())
            self.pulled = number + 1
            yield number


class Follower:
    """Takes the results one by one, keeps none, and sees how far the source is ahead of them."""

    def __init__(self, source: CountedSource) -> None:
        self.source = source
        self.ahead = 0

    def __call__(self, results: Iterable[Any]) -> list[Any]:
        number = total = 0
        for number, result in enumerate(results, 1):
            total += result
            if number % 256 == 0:
                self.ahead = max(self.ahead, self.source.pulled - number)
        return [number, total]


def results(way: Callable[..., Any], work: workloads.Work, settings: dict[str, Any]) -> Numbers:
    """Seconds from nothing to all results, with the start and the end of all processes."""
    run = way(work, **settings)
    collect = Collector()
    begun = time.perf_counter()
    collected = run(collect)
    ended = time.perf_counter()
    work.check(collected)
    first = (collect.first_at or begun) - begun
    # With a part of the items, what comes behind the first result is what would have taken longer.
    return {"seconds": first + (ended - begun - first) / work.share, "first_seconds": first}


def arrays(way: Callable[..., Any], work: workloads.Work, settings: dict[str, Any]) -> Numbers:
    """The same, with results that are looked at as they come."""
    check = workloads.ArrayCheck(work)
    run = way(work, **settings)
    begun = time.perf_counter()
    number = run(check.take)
    seconds = time.perf_counter() - begun
    check.finish(number)
    return {"seconds": seconds / work.share}


def latency(way: Callable[..., Any], work: workloads.Work, settings: dict[str, Any]) -> Numbers:
    """Milliseconds from giving an item to having its result; the first tenth is for warming up."""
    run = way(work, **settings)
    times = sorted(run()[work.count // 10 :])
    return {
        "median_ms": times[len(times) // 2] * 1000,
        "p99_ms": times[len(times) * 99 // 100] * 1000,
    }


def memory(way: Callable[..., Any], work: workloads.Work, settings: dict[str, Any]) -> Numbers:
    """How far the source runs ahead, and the memory at the start; how much it becomes is seen from outside."""
    source = CountedSource(work.count)
    work.items = source
    follow = Follower(source)
    run = way(work, **settings)
    begun = time.perf_counter()
    counted = run(follow)
    seconds = time.perf_counter() - begun
    if counted != [work.count, work.count * (work.count + 5) // 2]:
        raise ValueError(f"wrong results: number and sum are {counted}")
    numbers: Numbers = {"seconds": seconds, "pulled_ahead": follow.ahead}
    if source.baseline:
        numbers["baseline_bytes"] = source.baseline
    return numbers


def chain(way: Callable[..., Any], work: workloads.Work, settings: dict[str, Any]) -> Numbers:
    """Nanoseconds for each item and each Processor, in a chain that is up already.

    A short chain does it again until it has done as much as a long one does at once: what disturbs a machine now and
    then passes over one that is done in a moment, and makes the other look as if it grew.
    """
    processors = settings["processors"]
    times = max(1, workloads.LONG_CHAIN // processors)
    opened = way(work, **settings)
    begun = time.perf_counter()
    next(opened)
    open_seconds, seconds = time.perf_counter() - begun, 0.0
    for _ in range(times):
        begun = time.perf_counter()
        collected = next(opened)
        seconds += (time.perf_counter() - begun) / times
        if collected != list(range(processors, work.count + processors)):
            raise ValueError(f"wrong results: {len(collected):,} of them")
    opened.close()
    return {
        "ns_per_hop": seconds / work.count / processors * 1e9,
        "open_seconds": open_seconds,
        "run_seconds": seconds,
    }


KINDS = {"arrays": arrays, "latency": latency, "memory": memory, "long-chain": chain}


def value_of(text: str) -> Any:
    """A setting, as it stands on the command line."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main(arguments: list[str]) -> None:
    """Take `file workload way scale share setting=value ...`, do it, write the numbers."""
    import peers

    path, workload, way, scale, share, *rest = arguments
    settings = {name: value_of(value) for name, _, value in (each.partition("=") for each in rest)}
    work = workloads.Work(workload, float(scale), float(share))
    numbers = KINDS.get(workload, results)(getattr(peers, way), work, settings)
    with open(path, "w") as file:
        file.writelines(f"{name}={value!r}\n" for name, value in numbers.items())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BaseException:
        import os
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        # Not by way of the usual end, which would wait for processes that wait for items.
        os._exit(1)
