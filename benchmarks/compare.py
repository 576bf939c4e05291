"""Conveyor beside every library that one would take instead, and beside what one would write by hand.

The law of this file: everybody is measured in the same run, in turns, each time in a fresh process, with results that
are checked; a contestant that is missing, fails or hangs is said to, and costs the others nothing.

    python3 benchmarks/compare.py [--rounds 5] [--scale 1.0] [--short [--check]] [--json FILE] [--markdown FILE]
                                  [--plot FILE] [--only WORKLOAD ...] [--peers NAME ...]

What is done is in `workloads.py`, how in `peers.py`, who takes part in `contest.py`; `measuring.py` and `one_run.py`
measure, `report.py` and `plotting.py` say what came of it, and `thresholds.py` what `--check` holds it to.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import contest
import measuring
import report
from contest import ENTRIES, PEERS, STANDARD, WORKLOADS, Entry
from plotting import draw
from report import Comparison, Measured
from workloads import SIZES

ROOT = Path(__file__).resolve().parent.parent
# After so many seconds a run is ended; the longest of those that work takes a fifth of it.
LIMIT_SECONDS = 120.0
SHORT_LIMIT_SECONDS = 30.0
SHORT_SCALE = 0.2
# In the short form, a workload that has taken so long, on a slow machine, has had enough rounds with so many.
SHORT_SECONDS, ENOUGH_ROUNDS = 30.0, 3
# What has to be smaller still in the short form, or larger, to take about as long as the others.
SHORT_FACTORS = {"memory": 0.25, "arrays": 1.5, "long-chain": 0.5}


class Meter:
    """Measures entries, one run at a time, and keeps what came of it."""

    def __init__(self, options: argparse.Namespace, variables: dict[str, str]) -> None:
        self.options = options
        self.variables = variables

    def scale_for(self, name: str) -> float:
        """So many times the items."""
        factor = SHORT_FACTORS.get(name, 1.0) if self.options.short else 1.0
        return float(self.options.scale * factor)

    def once(self, name: str, entry: Entry, settings: contest.Settings, *, first: bool) -> measuring.Outcome:
        """One run; in the first round memory is looked at, which takes time, so that round's times do not count."""
        return measuring.run_once(
            name,
            entry.way,
            self.scale_for(name),
            entry.share,
            settings,
            variables=self.variables,
            limit=self.options.limit,
            sampled=first or WORKLOADS[name].sampled,
        )

    def try_all(self, name: str, measured: Measured) -> None:
        """The first round: each candidate once; the best one is it."""
        entry = measured.entry
        candidates = entry.candidates[:1] if self.options.short else entry.candidates
        best = float("inf")
        for settings in candidates:
            outcome = self.once(name, entry, settings, first=True)
            measured.tried.append({"settings": settings, "numbers": outcome.numbers, "failure": outcome.failure})
            if outcome.failure:
                measured.failure = outcome.failure
                if outcome.late:
                    break  # what hangs with the first settings is not waited for with others
                continue
            value = outcome.numbers.get(WORKLOADS[name].metric, outcome.numbers["whole_seconds"])
            if value < best:
                best, measured.settings = value, settings
        if measured.settings is not None:
            measured.failure = ""

    def measure(self, name: str, entries: list[Entry]) -> Comparison:
        """All rounds of one workload."""
        begun = time.monotonic()
        everybody = [Measured(entry) for entry in entries]
        before = measuring.standstill()
        count = max(SIZES[name][1], round(SIZES[name][0] * self.scale_for(name)))
        for measured in everybody:
            self.try_all(name, measured)
            say(f"  first round: {measured.entry.name}: {measured.failure or measured.settings}")
        for number in range(self.options.rounds):
            if self.options.short and number >= ENOUGH_ROUNDS and time.monotonic() - begun > SHORT_SECONDS:
                say(f"  no more rounds: they have taken more than {SHORT_SECONDS:g} s")
                break
            turned = number % len(everybody)  # nobody is always first
            for measured in everybody[turned:] + everybody[:turned]:
                if measured.failure or measured.settings is None:
                    continue
                outcome = self.once(name, measured.entry, measured.settings, first=False)
                if outcome.failure:
                    measured.failure = outcome.failure
                else:
                    measured.runs.append(outcome.numbers)
            say(f"  round {number + 1} of {self.options.rounds}")
        return Comparison(name, count, everybody, max(before, measuring.standstill()))


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)


def root_of_conveyor() -> str:
    """What each run needs on its path to find the same Conveyor: the checkout, or nothing where it is installed."""
    import conveyor

    return str(ROOT) if Path(conveyor.__file__).resolve().is_relative_to(ROOT) else ""


def chosen(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The peers that take part, and why the others do not."""
    names = list(options.peers or (STANDARD if options.short else PEERS))
    if "conveyor" not in names:
        names.insert(0, "conveyor")  # the measure of all others
    absent = {name: why for name in names if (why := contest.missing(name))}
    return [name for name in names if name not in absent], absent


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds that count (default: 5)")
    parser.add_argument("--scale", type=float, metavar="X", help=f"so many times the items (1.0; short: {SHORT_SCALE})")
    parser.add_argument(
        "--short", action="store_true", help="a few minutes: the standard library only, fewer items, nothing tried"
    )
    parser.add_argument("--check", action="store_true", help="exit status 1 where a ratio is over its threshold")
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=f"for each run (default: {LIMIT_SECONDS:g})")
    for name, what in (("json", "everything"), ("markdown", "the tables"), ("plot", "a picture, .png or .svg")):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write {what}")
    options = parser.parse_args(arguments)
    options.scale = options.scale or (SHORT_SCALE if options.short else 1.0)
    if not options.limit:
        options.limit = SHORT_LIMIT_SECONDS if options.short else LIMIT_SECONDS * max(1.0, options.scale)
    if options.rounds < 1 or options.scale <= 0:
        parser.error("it takes at least one round, and a scale above 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; the exit status is 1 where `--check` finds a ratio that is over its threshold."""
    options = parsed(arguments)
    begun = time.monotonic()
    names, absent = chosen(options)
    found = report.versions(names)
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    for peer, why in absent.items():
        print(f"not measured: {PEERS[peer][0]}: {why}")
    measuring.adopt_orphans()
    comparisons = []
    with tempfile.TemporaryDirectory(prefix="bench.") as compiled:
        meter = Meter(options, measuring.environment(root_of_conveyor(), compiled))
        for name in options.only or WORKLOADS:
            entries = [entry for entry in ENTRIES[name] if entry.peer in names and (entry.short or not options.short)]
            needs = WORKLOADS[name].needs
            print(f"\n{WORKLOADS[name].title}")
            if needs and importlib.util.find_spec(needs) is None:
                print(f"  not measured: {needs} is not installed")
                continue
            say(f"  ({time.monotonic() - begun:.0f} s so far)")
            try:
                comparison = meter.measure(name, entries)
            except KeyboardInterrupt:
                measuring.end_descendants()
                print("  interrupted: what follows is what was there before")
                break
            comparisons.append(comparison)
            print(f"  {report.count_line(comparison)}")
            print(report.text_table(comparison))
            print("\n".join(f"  {line}" for line in report.losses(comparison)), flush=True)
    return finish(options, comparisons, found, absent, time.monotonic() - begun)


def finish(
    options: argparse.Namespace,
    comparisons: list[Comparison],
    found: dict[str, str],
    absent: dict[str, str],
    seconds: float,
) -> int:
    """Write the files, say what the check says, return the exit status."""
    told: dict[str, Any] = {**vars(options), "seconds": round(seconds, 1)}
    print()
    if options.plot:
        footer = f"{found['Python']}, {found['cores']} cores, medians of {options.rounds} rounds"
        print(draw(comparisons, options.plot, footer))
    if options.json:
        data = report.as_data(comparisons, found, absent, told)
        Path(options.json).write_text(json.dumps(data, indent=1) + "\n")
    if options.markdown:
        # The page and the picture may lie in different folders.
        plot = ""
        if options.plot and os.path.exists(options.plot):
            plot = os.path.relpath(options.plot, os.path.dirname(os.path.abspath(options.markdown)))
        Path(options.markdown).write_text(report.as_markdown(comparisons, found, absent, told, plot))
    verdicts = report.checks(comparisons) if options.check else []
    for kept, text in verdicts:
        print(f"{'kept' if kept else 'OVER'}  {text}")
    print(f"{seconds:.0f} s")
    return 0 if all(kept for kept, _ in verdicts) and (verdicts or not options.check) else 1


if __name__ == "__main__":
    sys.exit(main())
