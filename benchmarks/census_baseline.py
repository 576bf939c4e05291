"""How near the census pipeline comes to plain processes that get an even share of the files each and nothing else.

The law of this file: every way does the same work with the same functions, the ways take turns, medians are compared.

    python3 benchmarks/census_baseline.py --rounds 5
    python3 benchmarks/census_baseline.py ~/project --processes 4

Ways: `serial`, this process alone; `plain`, processes given every n-th file beforehand that send their findings
back in one message; `pipeline`, what `examples/stdlib_census.py` runs, from the start of its workers to their end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from stdlib_census import (
    Census,
    Findings,
    build_pipeline,
    findings_from_pipeline,
    findings_serially,
    source_files,
    take_census,
)

TOP = 10


def send_findings(paths: list[str], connection: Connection) -> None:
    """What one plain process does: its share of the files, and one message at the end."""
    connection.send(list(findings_serially(paths)))
    connection.close()


def findings_from_plain_processes(paths: list[str], processes: int, start_method: str | None) -> Iterator[Findings]:
    """The findings of processes that share nothing; the files are dealt out like cards, the largest first."""
    context = multiprocessing.get_context(start_method)
    running = []
    for number in range(processes):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(  # type: ignore[attr-defined]
            target=send_findings, args=(paths[number::processes], sending)
        )
        process.start()
        sending.close()
        running.append((process, receiving))
    for process, receiving in running:
        yield from receiving.recv()
        receiving.close()
        process.join()


def main() -> int:
    """Run the rounds and print medians and ratios; the exit status is 1 where the results differ."""
    parser = argparse.ArgumentParser(
        description="Compare the census pipeline with plain processes and with one process."
    )
    parser.add_argument("folder", nargs="?", type=Path, help="default: this Python's standard library")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="plain processes (default: 2)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="parsing workers of the pipeline (default: it decides)"
    )
    parser.add_argument("--start-method", choices=("fork", "forkserver", "spawn"))
    options = parser.parse_args()
    folder = (options.folder or Path(sysconfig.get_paths()["stdlib"])).resolve()
    paths = source_files(folder)
    if not paths or options.rounds < 1 or options.processes < 1:
        parser.error("it takes at least one .py file, one round and one process")
    # Where fork is to be had it is the cheapest start, so the baseline is the hardest one to reach.
    plain_start = options.start_method or ("fork" if "fork" in multiprocessing.get_all_start_methods() else None)

    def serial() -> Iterator[Findings]:
        return findings_serially(paths)

    def plain() -> Iterator[Findings]:
        return findings_from_plain_processes(paths, options.processes, plain_start)

    def pipeline() -> Iterator[Findings]:
        return findings_from_pipeline(paths, build_pipeline(options.workers, options.start_method))

    ways = [serial, plain, pipeline]
    seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
    expected: Census | None = None
    equal = True
    for path in paths:  # so that the first round finds a warm disk as the others do
        Path(path).read_bytes()
    for number in range(options.rounds):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:  # nobody is always first
            started = time.perf_counter()
            census = take_census(way(), TOP)
            seconds[way.__name__].append(time.perf_counter() - started)
            expected = expected or census
            equal = equal and census == expected
        latest = "   ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
        print(f"round {number + 1} of {options.rounds}: {latest}", file=sys.stderr, flush=True)

    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{len(paths):,} files, medians of {options.rounds} rounds (fastest to slowest)")
    for name, times in seconds.items():
        speed_up = median["serial"] / median[name]
        print(f"  {name:<9} {median[name]:7.2f} s  ({min(times):.2f} to {max(times):.2f})  speed-up {speed_up:.2f}")
    share = median["plain"] / median["pipeline"]
    print(f"the pipeline reaches {share:.0%} of the speed-up of {options.processes} plain processes")
    print(f"results: {'equal' if equal else 'NOT EQUAL'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
