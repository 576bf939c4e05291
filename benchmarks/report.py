"""What was measured, and what it says: medians, ratios, tables, and in words where Conveyor loses.

The law of this file: it measures nothing. What is in the JSON is everything; tables and words are made of it.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from contest import PEERS, STANDARD, WORKLOADS, Entry, Settings, Workload, version
from peers import CORES
from thresholds import DISTURBED, STANDSTILL, THRESHOLDS

# What differs by less than this is called equal.
LEVEL = 0.03


@dataclass
class Measured:
    """All that is known of one entry."""

    entry: Entry
    # Of the first round: each candidate, with its numbers or its failure.
    tried: list[dict[str, Any]] = field(default_factory=list)
    settings: Settings | None = None
    # Of the rounds that count.
    runs: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""

    def values(self, name: str) -> list[float]:
        """One of the numbers, of all rounds."""
        return [run[name] for run in self.runs if name in run]

    def median(self, name: str) -> float | None:
        """Its median, where there is any."""
        values = self.values(name)
        return statistics.median(values) if values else None

    @property
    def peak_bytes(self) -> float | None:
        """The largest memory of the process tree that was seen in any run with the settings that count."""
        peaks = self.values("peak_bytes")
        peaks += [each["numbers"]["peak_bytes"] for each in self.tried if self._seen(each)]
        return max(peaks, default=None)

    def _seen(self, each: dict[str, Any]) -> bool:
        return each["settings"] == self.settings and "peak_bytes" in each["numbers"]


@dataclass
class Comparison:
    """One workload, measured."""

    name: str
    count: int
    measured: list[Measured]
    # How many times as long a loop that needs nothing but a core took meanwhile, on average, as at best.
    standstill: float = 1.0

    @property
    def workload(self) -> Workload:
        """How it is shown."""
        return WORKLOADS[self.name]

    def find(self, peer: str, label: str) -> Measured | None:
        """An entry."""
        for each in self.measured:
            if (each.entry.peer, each.entry.label) == (peer, label):
                return each
        return None

    @property
    def disturbed(self) -> bool:
        """Whether the machine had other work meanwhile, which makes some runs longer, and none shorter."""
        return self.standstill > STANDSTILL

    def counted(self, measured: Measured | None) -> float | None:
        """What is compared, or the floor: the median; of times on a disturbed machine the least, as it tells most."""
        if measured is None:
            return None
        least = self.disturbed and self.workload.timed
        value = self.least(measured) if least else measured.median(self.workload.metric)
        return None if value is None else max(value, self.workload.floor * self.workload.divisor)

    def least(self, measured: Measured | None) -> float | None:
        """The least of what is compared."""
        values = measured.values(self.workload.metric) if measured else []
        return min(values) if values else None

    def spread(self, measured: Measured | None) -> float:
        """How many times as long the longest run took as the shortest."""
        values = measured.values(self.workload.metric) if measured else []
        least = self.least(measured)
        return max(values) / least if least else 1.0

    @property
    def reference(self) -> Measured | None:
        """Conveyor with nothing set: the 1.00 of all ratios."""
        return next((each for each in self.measured if each.entry.peer == "conveyor"), None)

    def ratio(self, measured: Measured) -> float | None:
        """How many times as much as Conveyor's is what counts of this one."""
        own, reference = self.counted(measured), self.counted(self.reference)
        return None if own is None or reference is None else own / reference


def versions(peers: Iterable[str]) -> dict[str, str]:
    """What all this was measured with."""
    found = {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(CORES),
        "Conveyor": conveyor_version(),
    }
    for peer in peers:
        title, _, distribution = PEERS[peer]
        if distribution:
            found[title] = version(distribution)
    if any(PEERS[peer][1] == "numpy" for peer in peers):
        found["numpy"] = version("numpy")
    return found


def conveyor_version() -> str:
    """Of the Conveyor that is measured, installed or not."""
    import conveyor

    return conveyor.__version__


# --------------------------------------------------------------------------------------------------------------- tables


def number(value: float | None) -> str:
    """Three digits that say something, or a dash."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if value >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"


def heading(comparison: Comparison) -> list[str]:
    """The first line of a table."""
    unit = comparison.workload.unit
    columns = [title for title, _, _ in comparison.workload.columns]
    return ["contestant", "settings", f"median, {unit}", "min to max", "ratio", *columns, "peak memory, MB"]


def rows(comparison: Comparison) -> Iterator[list[str]]:
    """The other lines, the best one first, and who failed last."""
    known = [each for each in comparison.measured if each.runs]
    known.sort(key=lambda each: comparison.counted(each) or 0.0)
    for each in known:
        divisor = comparison.workload.divisor
        values = [value / divisor for value in each.values(comparison.workload.metric)]
        ratio = comparison.ratio(each)
        cells = [each.entry.name, settings_text(each.entry, each.settings)]
        if values:
            cells += [number(statistics.median(values)), f"{number(min(values))} to {number(max(values))}"]
        else:
            cells += ["-", "-"]
        cells.append("-" if ratio is None else f"{ratio:.2f}")
        for _, name, column_divisor in comparison.workload.columns:
            value = each.median(name)
            if name == "whole_seconds" and each.entry.share != 1.0:
                value = None  # of a part of the items, and so nothing to be compared
            cells.append("-" if value is None else number(value / column_divisor))
        peak = each.peak_bytes
        cells.append("-" if peak is None else f"{peak / 1e6:,.0f}")
        yield cells
    width = len(heading(comparison))
    for each in comparison.measured:
        if each.failure:
            what = "failed later: " if each.runs else "not measured: "
            yield [each.entry.name, what + each.failure, *["-"] * (width - 2)]


def settings_text(entry: Entry, settings: Settings | None) -> str:
    """The settings, and which part of the items it was given."""
    parts = [f"{name}={value}" for name, value in (settings or {}).items()]
    if entry.share != 1.0:
        parts.append(f"{entry.share:g} of the items, extended")
    return ", ".join(parts)


def text_table(comparison: Comparison) -> str:
    """For a terminal."""
    lines = [heading(comparison), *rows(comparison)]
    # Why somebody failed is longer than any setting, and would push all columns away.
    lines = [[cell if index != 1 else _cut(cell) for index, cell in enumerate(line)] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = [
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  " + "  ".join(cells).rstrip())
    return "\n".join(texts)


def _cut(cell: str) -> str:
    return cell if len(cell) <= 60 else cell[:57] + "..."


def markdown_table(comparison: Comparison) -> str:
    """For a page."""
    return as_markdown_table([heading(comparison), *rows(comparison)], words=2)


def as_markdown_table(lines: Sequence[Sequence[str]], words: int = 0) -> str:
    """A table, the heading first; all columns but so many have numbers."""
    rule = ["---"] * words + ["---:"] * (len(lines[0]) - words)
    lines = [lines[0], rule, *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---------------------------------------------------------------------------------------------------------------- words


def losses(comparison: Comparison) -> list[str]:
    """Where Conveyor loses, and to whom, in words."""
    said = []
    reference = comparison.reference
    if reference is None or comparison.counted(reference) is None:
        return ["Conveyor itself has no result here."]
    if comparison.name == "long-chain":
        return _long_chain(comparison)
    ahead = []
    for each in comparison.measured:
        ratio = comparison.ratio(each)
        if each.entry.peer != "conveyor" and ratio is not None and ratio < 1 - LEVEL:
            ahead.append((ratio, each))
    for ratio, each in sorted(ahead, key=lambda pair: pair[0]):
        text = f"Conveyor loses to {each.entry.name}: its ratio is {ratio:.2f}"
        for other in comparison.measured:
            own = comparison.ratio(other)
            if other.entry.peer == "conveyor" and other is not reference and own is not None:
                text += f", and {ratio / own:.2f} against Conveyor with {other.entry.label}"
        said.append(text + ".")
    tail, median = reference.median("p99_ms"), reference.median("median_ms")
    if tail is not None and median is not None and tail > 3 * median:
        said.append(f"Conveyor's 99th percentile is {tail / median:.1f} times its median.")
    return said or ["Conveyor is ahead of all others here, or level with them."]


def _long_chain(comparison: Comparison) -> list[str]:
    said = []
    for peer, short, long in (("conveyor", "3 steps", "100 steps"), ("queues", "best, 3 steps", "best, 100 steps")):
        few, many = (comparison.counted(comparison.find(peer, label)) for label in (short, long))
        if few is not None and many is not None:
            said.append(f"{PEERS[peer][0]}: an item costs {many / few:.2f} times as much at each of 100 steps as of 3.")
    for ours, theirs in (("3 steps", "best, 3 steps"), ("100 steps", "best, 100 steps")):
        own, other = (
            comparison.counted(comparison.find("conveyor", ours)),
            comparison.counted(comparison.find("queues", theirs)),
        )
        if own is not None and other is not None and other / own < 1 - LEVEL:
            said.append(
                f"With {ours} Conveyor loses to the queues, which take {other / own:.2f} of what Conveyor does."
            )
    return said


def checks(comparisons: Iterable[Comparison]) -> list[tuple[bool, str]]:
    """For each threshold of the workloads that were measured: whether it is kept, and a line that says so."""
    verdicts = []
    by_name = {comparison.name: comparison for comparison in comparisons}
    for workload, ours, peer, label, maximum in THRESHOLDS:
        comparison = by_name.get(workload)
        other = comparison.find(peer, label) if comparison else None
        if comparison is None or other is None:
            continue
        conveyor = comparison.find("conveyor", ours)
        own, theirs = comparison.least(conveyor), comparison.least(other)
        name = f"{workload}: Conveyor{', ' + ours if ours else ''} against {other.entry.name}"
        if own is None:
            verdicts.append((False, f"{name}: Conveyor has no result"))
        elif theirs is None:
            # A peer that fails is no fault of Conveyor's, unless it is of the standard library.
            verdicts.append((peer not in STANDARD, f"{name}: the other has no result"))
        else:
            text = f"{name}: {own / theirs:.2f}, at most {maximum:.2f}"
            spread = max(comparison.spread(conveyor), comparison.spread(other))
            kept = own / theirs <= maximum
            why = ""
            if spread > DISTURBED:
                why = f"runs differ {spread:.1f} times"
            elif comparison.disturbed:
                why = f"a mere loop takes {comparison.standstill:.1f} times what it could"
            if not kept and why:
                kept, text = True, f"{text} (not judged: the machine is disturbed, as {why})"
            verdicts.append((kept, text))
    return verdicts


# ----------------------------------------------------------------------------------------------------------- everything


def as_data(
    comparisons: list[Comparison], found: dict[str, str], absent: dict[str, str], options: dict[str, Any]
) -> dict[str, Any]:
    """Everything, for the JSON."""
    workloads = {}
    for comparison in comparisons:
        entries = []
        for each in comparison.measured:
            values = each.values(comparison.workload.metric)
            entries.append(
                {
                    **asdict(each.entry),
                    "name": each.entry.name,
                    "settings": each.settings,
                    "tried": each.tried,
                    "runs": each.runs,
                    "failure": each.failure,
                    "median": statistics.median(values) if values else None,
                    "minimum": min(values, default=None),
                    "maximum": max(values, default=None),
                    "ratio": comparison.ratio(each),
                    "peak_bytes": each.peak_bytes,
                }
            )
        workloads[comparison.name] = {
            **asdict(comparison.workload),
            "items": comparison.count,
            "standstill": comparison.standstill,
            "entries": entries,
            "losses": losses(comparison),
        }
    verdicts = [{"kept": kept, "text": text} for kept, text in checks(comparisons)]
    return {
        "versions": found,
        "missing": absent,
        "options": options,
        "workloads": workloads,
        "checks": verdicts,
    }


def as_markdown(
    comparisons: list[Comparison], found: dict[str, str], absent: dict[str, str], options: dict[str, Any], plot: str
) -> str:
    """A page with all tables."""
    parts = ["# Conveyor beside others", preface(options)]
    parts.append("\n".join(f"- {name}: {value}" for name, value in found.items()))
    if absent:
        parts.append("Not measured: " + "; ".join(f"{PEERS[peer][0]} ({why})" for peer, why in absent.items()) + ".")
    if plot:
        parts.append(f"![The ratios of all workloads as bars]({plot})")
    for comparison in comparisons:
        parts.append(f"## {comparison.workload.title}")
        parts.append(count_line(comparison))
        parts.append(markdown_table(comparison))
        parts.append("\n".join(f"- {line}" for line in losses(comparison)))
    return "\n\n".join(parts) + "\n"


def count_line(comparison: Comparison) -> str:
    """How many items, and what there is to be known."""
    items = "1 item" if comparison.count == 1 else f"{comparison.count:,} items"
    said = f"{items}. {comparison.workload.note}".strip()
    if comparison.disturbed:
        said += f" The machine had other work: a mere loop took {comparison.standstill:.1f} times what it could."
        if comparison.workload.timed:
            said += " So the ratios here are those of the shortest runs."
    return said


def preface(options: dict[str, Any]) -> str:
    """What the numbers are."""
    return (
        f"Medians of {options['rounds']} rounds, in which the contestants take turns, each in a fresh process. "
        "Conveyor without settings is 1.00, and a larger ratio is slower. In the workload of memory a larger ratio "
        "grows more; in the long chain 1.00 is Conveyor with 3 steps. "
        '"Best" settings are the fastest of a few that were tried in an earlier round. '
        "Results are checked in each run. "
        "Times include the start and the end of all processes, but no imports, unless a heading says otherwise. "
        "Peak memory is that of the whole process tree, with shared memory counted once."
    )
