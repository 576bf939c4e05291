"""What it costs to watch a run: CPU seconds of all its processes, with nothing, progress, a trace, a page, and all.

Each run is a program of its own, of which the system tells the CPU seconds, with those of its broker and workers.  The
ways take turns, and each ratio is that of one round to the run of that round that nobody watches.  The page has one
client, which belongs to the program that measures.

    python3 benchmarks/watching.py [--rounds 15] [--scale 1.0] [--workloads ints records steps]

With `--memory` it runs one stream with all of it on, and prints the memory of caller and broker over time.  It fails
where that still grows when everything that has a bound is full (Linux alone):

    python3 benchmarks/watching.py --memory [--seconds 1200] [--items 2000000]
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from measuring import descendants

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from conveyor import Pipe, Pipeline, Processor

WAYS = ("nothing", "progress", "trace", "page", "all")
STEP_SECONDS = 0.002
# Of the input whose memory is watched, one line in so many fails, and so many of those are kept.
FAILS_EVERY, KEPT_FAILURES = 997, 100
# How often the page is asked for what, in seconds; and how often memory is looked at in all.
ASKED_EVERY = {"stats.json": 2.0, "metrics": 5.0, "report": 30.0, "trace": 60.0}
LOOKS = 40
# From the second quarter of the time to the last one, the least that a process occupies may grow by so many MiB: the
# history has all its samples after 500 s, and the trace all its events by then.  An object for each item would be four
# times as much.
MAY_GROW = 8.0


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


def paced(items: int, seconds: float) -> Iterator[str]:
    """Yield so many lines, evenly over so many seconds; now and then one that cannot be parsed."""
    began = time.monotonic()
    for number, line in enumerate(lines(items)):
        # So few at once that leases are small, and the trace is full long before the end.
        if number % 4 == 0:
            time.sleep(max(0.0, began + number * seconds / items - time.monotonic()))
        yield line if number % FAILS_EVERY else "broken"


def run_paced(items: int, seconds: float) -> None:
    """Run a stream in this process with all of it on; print the address of the page, and at the end what there was."""
    told = 0

    def tell(progress: Any) -> None:
        nonlocal told
        told += 1

    with tempfile.TemporaryDirectory() as folder:
        trace, report = os.path.join(folder, "run.json.gz"), os.path.join(folder, "run.html")
        pipeline: Any = Pipeline(trace=trace, keep_failures=KEPT_FAILURES)
        pipeline.add(Processor(parse, on_error="skip")).add(Pipe())
        pipeline.add(Processor(enrich, workers="auto")).add(Pipe()).add(Processor(total))
        with pipeline.serve() as url:
            print(url, flush=True)
            results = sum(1 for _ in pipeline.stream(paced(items, seconds), progress=tell, total=items))
        pipeline.report(report)
        with gzip.open(trace, "rt", encoding="utf-8") as file:
            events = json.load(file)
        stats = pipeline.stats()
        print(
            f"{results:,} results, {stats['parse'].failed:,} failures, {len(stats.history):,} samples, "
            f"{told:,} calls of progress, a report of {os.path.getsize(report):,} bytes, a trace of "
            f"{len(events['traceEvents']):,} events without {events['otherData']['events_left_out']:,} older ones"
        )


def ask(url: str, what: str, every: float, is_over: threading.Event) -> None:
    """Ask the page for something now and then, until it is gone."""
    while not is_over.wait(every):
        with contextlib.suppress(OSError), urllib.request.urlopen(url.replace("/?", f"/{what}?")) as answer:
            while answer.read(1 << 20):
                pass


def memory_of(process: int) -> tuple[float, float]:
    """Return the MiB of a process: its share of what it holds, and all that it holds; NaN once it has ended."""
    told: dict[str, float] = {}
    with contextlib.suppress(OSError), open(f"/proc/{process}/smaps_rollup", encoding="ascii") as file:
        for line in itertools.islice(file, 1, None):
            name, size, *_ = line.split()
            told[name] = int(size) / 1024
    return told.get("Pss:", float("nan")), told.get("Rss:", float("nan"))


def watch_memory(items: int, seconds: float) -> bool:
    """Print the memory of caller and broker while a stream runs with all of it on; return whether it stays."""
    command = [sys.executable, os.path.abspath(__file__), "--paced", f"{items}", f"{seconds}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url, is_over = process.stdout.readline().strip(), threading.Event()
    clients = [threading.Thread(target=look_on, args=(url,))]
    clients += [threading.Thread(target=ask, args=(url, *each, is_over)) for each in ASKED_EVERY.items()]
    for client in clients:
        client.start()
    print(f"{items:,} items in {seconds:.0f} s; MiB as PSS (and RSS)\n{'after':>8} {'caller':>16} {'broker':>16}")
    began, looks = time.monotonic(), []
    for number in range(1, LOOKS + 1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, began + number * seconds / (LOOKS + 1) - time.monotonic()))
        # The broker is the only child of the caller, and stands before its own.
        broker = descendants(process.pid)[:1]
        if process.returncode is not None:
            break
        if not broker:
            continue
        caller, (pss, rss) = memory_of(process.pid), memory_of(broker[0])
        looks.append((caller[1], rss))
        print(
            f"{time.monotonic() - began:6.0f} s {caller[0]:8.1f} ({caller[1]:5.1f}) {pss:8.1f} ({rss:5.1f})", flush=True
        )
    print(process.stdout.read(), end="")
    process.stdout.close()
    is_over.set()
    for client in clients:
        client.join()
    assert process.wait() == 0, f"exit status {process.returncode}"
    assert len(looks) > LOOKS // 2, "the stream was over too early"
    quarter, stays = len(looks) // 4, True
    for name, values in zip(("caller", "broker"), zip(*looks, strict=True), strict=True):
        # The least: while somebody fetches the trace, the caller holds the text of it.
        grown = min(values[-quarter:]) - min(values[quarter : 2 * quarter])
        stays &= grown <= MAY_GROW
        print(f"{name}: {grown:+.1f} MiB of RSS from the second quarter of the time to the last")
    return stays


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the items")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--one", nargs=2, metavar=("WORKLOAD", "WAY"), help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help="watch the memory of one stream with all of it on")
    parser.add_argument("--seconds", type=float, default=1200.0, help="with --memory: how long the stream lasts")
    parser.add_argument("--items", type=int, default=2_000_000, help="with --memory: how many items it has")
    parser.add_argument("--paced", nargs=2, metavar=("ITEMS", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.paced:
        run_paced(int(options.paced[0]), float(options.paced[1]))
        return
    if options.memory:
        sys.exit(not watch_memory(options.items, options.seconds))
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
