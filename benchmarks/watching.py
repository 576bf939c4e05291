"""What it costs to watch a run: CPU seconds of all its processes, with nothing, progress, a trace, a page, and all.

Each run is a program of its own, of which the system tells the CPU seconds, with those of its broker and workers.  The
ways take turns, and each ratio is that of one round to the run of that round that nobody watches.  The page has one
client, which belongs to the program that measures.

    python3 benchmarks/watching.py [--rounds 15] [--scale 1.0] [--workloads ints records steps]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

from conveyor import Pipe, Pipeline, Processor

WAYS = ("nothing", "progress", "trace", "page", "all")
STEP_SECONDS = 0.002


def increment(item: int) -> int:
    """The work of one step on a tiny int."""
    return item + 1


def parse(line: str) -> dict[str, str]:
    """Make a record of a line."""
    name, number, city = line.split(",")
    return {"name": name, "number": number, "city": city}


def enrich(record: dict[str, str]) -> dict[str, str]:
    """Put one more field into a record."""
    return {**record, "key": f"{record['city']}/{record['name']}"}


def total(record: dict[str, str]) -> int:
    """Return what is left of a record."""
    return len(record["key"]) + int(record["number"])


def compute(item: int) -> int:
    """Keep a core busy for 2 ms."""
    until = time.perf_counter() + STEP_SECONDS
    while time.perf_counter() < until:
        item += 1
    return item


def lines(count: int) -> Iterable[str]:
    """Yield lines of a file."""
    return (f"name {number % 97},{number},city {number % 13}" for number in range(count))


# For each workload: its jobs, its input, and how many items that has.
WORKLOADS: dict[str, tuple[tuple[Callable[[Any], Any], ...], Callable[[int], Iterable[Any]], int]] = {
    "ints": ((increment, increment, increment), range, 300_000),
    "records": ((parse, enrich, total), lines, 100_000),
    "steps": ((compute, compute), range, 1_000),
}


def run(workload: str, way: str, scale: float) -> None:
    """Run a workload in this process, watched in that way; print the address of the page, where there is one."""
    jobs, items, count = WORKLOADS[workload]
    count = max(1, int(count * scale))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trace = os.path.join(folder, "run.json") if way in ("trace", "all") else None
        pipeline: Any = Pipeline(trace=trace).add(Processor(jobs[0]))
        for job in jobs[1:]:
            pipeline.add(Pipe()).add(Processor(job))
        if way in ("page", "all"):
            print(stack.enter_context(pipeline.serve()), flush=True)
        progress = (lambda progress: None) if way in ("progress", "all") else None
        results = pipeline.run(items(count), progress=progress)
        assert len(results) == count


def look_on(url: str) -> None:
    """Take events until the page ends."""
    with contextlib.suppress(OSError):
        while True:
            with urllib.request.urlopen(url.replace("/?", "/events?")) as events:
                for line in events:
                    if line.startswith(b"event: end"):
                        return


def cpu_seconds(workload: str, way: str, scale: float) -> float:
    """Return the CPU seconds of a run, with all its processes."""
    command = [sys.executable, os.path.abspath(__file__), "--one", workload, way, "--scale", f"{scale}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    client = threading.Thread(target=look_on, args=(url,))
    if url:
        client.start()
    process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{workload}, {way}: exit status {process.returncode}"
    process.stdout.close()
    if url:
        client.join()
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the items")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--one", nargs=2, metavar=("WORKLOAD", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        workload, way = options.one
        run(workload, way, options.scale)
        return
    print(f"CPU seconds of all processes, medians of {options.rounds} rounds; in brackets beside nothing")
    print(f"{'':8}" + "".join(f" {way:>16}" for way in WAYS))
    for workload in options.workloads:
        rounds = []
        for number in range(options.rounds):
            # None is always the first, which may find the machine in another state.
            order = WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]
            taken = {way: cpu_seconds(workload, way, options.scale) for way in order}
            rounds.append([taken[way] for way in WAYS])
        cells = []
        for place in range(len(WAYS)):
            seconds = statistics.median(each[place] for each in rounds)
            ratio = statistics.median(each[place] / each[0] for each in rounds)
            cells.append(f"{seconds:.2f} ({ratio - 1:+.1%})")
        print(f"{workload:8}" + "".join(f" {cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
