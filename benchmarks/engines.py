"""Processes, threads, and threads by hand: what each takes for the same work, in one interleaved run.

    python3 benchmarks/engines.py [--rounds 5] [--scale 1.0] [--markdown]

Arrays of 4 MiB through three cheap steps (needs numpy), one item's round trip, the start to the first result, zlib over
blocks of 1 MB with two workers, and tiny ints.  The last column says how many times as long threads of Conveyor take as
what is written by hand (for tiny ints, as processes of Conveyor).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import queue
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from conveyor import Pipe, Pipeline, Processor

Job = Callable[[Any], Any]
END = object()


def increment(item: int) -> int:
    """The work on an int."""
    return item + 1


def double(array: Any) -> Any:
    """A new array."""
    return array * 2


def add_one(array: Any) -> Any:
    """The same array, changed."""
    array += 1
    return array


def first_of(array: Any) -> float:
    """What is left of it."""
    return float(array[0])


def arrays(count: int) -> Iterator[Any]:
    """So many arrays of 4 MiB."""
    import numpy

    template: Any = numpy.arange(1 << 20, dtype=numpy.float32)
    for _ in range(count):
        yield template.copy()


def by_hand(jobs: Sequence[Job], items: Iterable[Any]) -> list[Any]:
    """A thread for each job, and queues between them."""
    queues: list[queue.Queue[Any]] = [queue.Queue(16) for _ in range(len(jobs) + 1)]

    def feed() -> None:
        for item in items:
            queues[0].put(item)
        queues[0].put(END)

    threads = [threading.Thread(target=feed)]
    threads += [threading.Thread(target=work, args=(job, *queues[n : n + 2])) for n, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    results = []
    while (result := queues[-1].get()) is not END:
        results.append(result)
    for thread in threads:
        thread.join()
    return results


def work(job: Job, source: Any, target: Any) -> None:
    """What a thread by hand does."""
    while (item := source.get()) is not END:
        target.put(job(item))
    target.put(END)


def pipeline(jobs: Sequence[Job], engine: Any, **settings: Any) -> Pipeline[Any, Any]:
    """The same with Conveyor."""
    made: Any = Pipeline(engine=engine)
    for number, job in enumerate(jobs):
        made = made.add(Pipe()) if number else made
        made = made.add(Processor(job, **settings))
    return made  # type: ignore[no-any-return]


def timed(call: Callable[[], object]) -> float:
    """How many seconds a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def trips_by_hand(count: int) -> float:
    """The median round trip of one item, over `SimpleQueue`."""
    queues: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(4)]
    threads = [threading.Thread(target=work, args=(increment, *queues[n : n + 2])) for n in range(3)]
    for thread in threads:
        thread.start()
    times = []
    for item in range(count):
        begun = time.perf_counter()
        queues[0].put(item)
        queues[-1].get()
        times.append(time.perf_counter() - begun)
    queues[0].put(END)
    for thread in threads:
        thread.join()
    return statistics.median(times)


def trips(engine: str, count: int) -> float:
    """The median round trip of one item: from where the source gives it to where its result is had."""
    taken = threading.Event()
    begun, times = [0.0], []

    def one_at_a_time() -> Iterator[int]:
        for item in range(count):
            taken.wait()
            taken.clear()
            begun[0] = time.perf_counter()
            yield item

    with pipeline([increment] * 3, engine) as chain:
        taken.set()
        for _ in chain.stream(one_at_a_time()):
            times.append(time.perf_counter() - begun[0])
            taken.set()
    return statistics.median(times)


def start(engine: str) -> float:
    """From nothing but the import to the first result."""
    begun = time.perf_counter()
    with pipeline([increment] * 3, engine).stream([1]) as results:
        next(results)
        return time.perf_counter() - begun


def in_a_pool(blocks: list[bytes]) -> list[bytes]:
    """What the standard library has for one step."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(zlib.compress, blocks))


def contests(scale: float) -> dict[str, dict[str, Callable[[], float]]]:
    """The workloads, each with its contestants: what gives the seconds of one run."""
    number = max(2, int(200 * scale))
    blocks = [os.urandom(500_000) + bytes(500_000) for _ in range(max(4, int(48 * scale)))]
    ints, count = range(max(1000, int(500_000 * scale))), max(50, int(2000 * scale))
    steps = [double, add_one, first_of]
    found: dict[str, dict[str, Callable[[], float]]] = {
        "one item's round trip": {
            "by hand": lambda: trips_by_hand(count),
            "thread": lambda: trips("thread", count),
            "process": lambda: trips("process", count),
        },
        "start to the first result": {
            "by hand": lambda: timed(lambda: by_hand([increment] * 3, [1])),
            "thread": lambda: start("thread"),
            "process": lambda: start("process"),
        },
        "zlib, blocks of 1 MB": {
            "by hand": lambda: timed(lambda: in_a_pool(blocks)),
            "thread": lambda: timed(lambda: pipeline([zlib.compress], "thread", workers=2).run(blocks)),
            "process": lambda: timed(lambda: pipeline([zlib.compress], "process", workers=2).run(blocks)),
        },
        "tiny ints, three steps": {
            "thread": lambda: timed(lambda: pipeline([increment] * 3, "thread").run(ints)),
            "process": lambda: timed(lambda: pipeline([increment] * 3, "process").run(ints)),
        },
    }
    if importlib.util.find_spec("numpy") is not None:
        found["arrays of 4 MiB, three steps"] = {
            "by hand": lambda: timed(lambda: by_hand(steps, arrays(number))),
            "thread": lambda: timed(lambda: pipeline(steps, "thread").run(arrays(number))),
            "process": lambda: timed(lambda: pipeline(steps, "process").run(arrays(number))),
        }
    return found


def shown(seconds: float | None) -> str:
    """A time, as a reader wants it."""
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.3g} ms"


def main() -> None:
    """Measure, by turns, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"Python {version}, {os.cpu_count()} cores, medians of {options.rounds} rounds")
    rows = []
    for name, contestants in contests(options.scale).items():
        times: dict[str, list[float]] = {each: [] for each in contestants}
        for _ in range(options.rounds):
            for each, run in contestants.items():
                times[each].append(run())
        medians = {each: statistics.median(seconds) for each, seconds in times.items()}
        ratio = medians["thread"] / medians.get("by hand", medians["process"])
        rows.append([name, *[shown(medians.get(each)) for each in ("by hand", "thread", "process")], f"{ratio:.2f}"])
    heads = ["", "threads by hand", 'engine="thread"', 'engine="process"', "ratio"]
    if options.markdown:
        rows.insert(0, ["---"] * len(heads))
    for row in [heads, *rows]:
        print(
            "| " + " | ".join(row) + " |" if options.markdown else f"{row[0]:30}" + "".join(f"{x:>18}" for x in row[1:])
        )


if __name__ == "__main__":
    main()
