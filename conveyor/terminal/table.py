"""The live view of the steps as text: a line for each step, with what it did in the last seconds.

Law: pure; statistics in, lines out.  No line is wider than it may be, and colour says nothing that the text does not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from unicodedata import combining, east_asian_width

from conveyor._lean.dataclasses import NamedTuple
from conveyor.stats import Progress, Stats, StepStats

# What the shares and rates are of.
WINDOW_SECONDS = 5.0
# A shorter time says nothing.
LEAST_SECONDS = 0.1
# A step is the bottleneck of the moment if items waited for it for so large a share of the time.
LEAST_STALLED = 0.1
NEARLY = 0.9
# With fewer columns there is a line about the whole run alone.
LEAST_COLUMNS = 20
LEAST_NAME, MOST_NAME = 10, 40
LEAST_GAUGE, MOST_GAUGE = 8, 20
# Where columns are missing, these are left out, the first first.
LEFT_OUT = ("waiting", "rate", "pipe", "failed", "items", "workers")
_WIDTHS = {"pipe": LEAST_GAUGE, "waiting": 7, "workers": 7, "busy": 5, "items": 9, "rate": 8, "failed": 6}

# A piece of a line: the text, and the role in which it is shown.
Piece = tuple[str, str]
HEAD, SLOWEST, BAD, GAUGE, SOFT, PLAIN = "head", "slowest", "bad", "gauge", "soft", ""


class Signs(NamedTuple):
    """The characters that are no letters."""

    mark: str
    eighths: str
    empty: str
    more: str


FANCY = Signs("▸", " ▏▎▍▌▋▊▉█", "·", "…")
# For a stream whose encoding has no others.
SIMPLE = Signs(">", "-#", "-", "~")


class _Totals(NamedTuple):
    """What a step has done so far; `available` is in worker seconds, and counts from the first look."""

    items: int = 0
    busy: float = 0.0
    stalled: float = 0.0
    available: float = 0.0


class _Recent(NamedTuple):
    """What a step did lately."""

    rate: float
    busy: float
    stalled: float


_Look = tuple[float, dict[str, _Totals]]


class StepsTable:
    """Remembers the last seconds, and makes lines of them."""

    def __init__(self, signs: Signs) -> None:
        self._signs = signs
        self._looks: deque[_Look] = deque()
        # At the beginning of the run.
        self._first: _Look | None = None

    def look(self, stats: Stats) -> None:
        """Take in what the steps have done so far."""
        last, before = self._looks[-1] if self._looks else (stats.seconds, {})
        passed = max(0.0, stats.seconds - last)
        totals = {}
        for step in stats.steps:
            available = before.get(step.processor, _Totals()).available + passed * max(1, step.workers)
            totals[step.processor] = _Totals(step.items_in, step.busy_seconds, step.stalled, available)
        self._looks.append((stats.seconds, totals))
        self._first = self._first or self._looks[0]
        # The first one of those left is older than the window.
        while len(self._looks) > 2 and self._looks[1][0] < stats.seconds - WINDOW_SECONDS:
            self._looks.popleft()

    def lines(self, progress: Progress, stats: Stats | None, columns: int, rows: int | None) -> list[tuple[Piece, ...]]:
        """Return the view in at most so many columns and rows; without `rows`: of the whole run, with all steps."""
        told: list[tuple[Piece, ...]] = [((self._joined(str(progress).split(", "), columns), HEAD),)]
        if stats is None or not stats.steps or columns < LEAST_COLUMNS or (rows is not None and rows < 4):
            return told[: 1 if rows is None else max(0, rows)]
        recent = {step.processor: self._recent(step, stats, rows is None) for step in stats.steps}
        slowest = self._slowest(recent)
        shown = list(stats.steps)
        if rows is not None and len(shown) > rows - 3:
            shown = _busiest(shown, recent, slowest, max(0, rows - 4))
        widths = self._widths(shown, columns)
        told.append((("  " + _head(widths), SOFT),))
        told += [self._row(step, recent[step.processor], widths, step.processor == slowest) for step in shown]
        left_out = [recent[step.processor].busy for step in stats.steps if step not in shown]
        if left_out:
            text = f"  {self._signs.more} {len(left_out)} more, at most {max(left_out):.0%} busy"
            told.append(((fit(text, columns, self._signs), SOFT),))
        told.append(self._foot(stats, slowest, recent, columns))
        return told

    def _recent(self, step: StepStats, stats: Stats, is_end: bool) -> _Recent:
        """Return what a step did in the last seconds or, at the end, in the run."""
        begin, first = (is_end and self._first) or self._looks[0]
        now, last = self._looks[-1]
        before, after = first.get(step.processor, _Totals()), last.get(step.processor, _Totals())
        seconds, available = now - begin, after.available - before.available
        if seconds < LEAST_SECONDS or available <= 0:
            # Too little was seen: all since the opening.
            seconds = max(stats.seconds, LEAST_SECONDS)
            return _Recent(step.items_in / seconds, min(1.0, step.busy), min(1.0, step.stalled / seconds))
        return _Recent(
            max(0, after.items - before.items) / seconds,
            min(1.0, max(0.0, after.busy - before.busy) / available),
            max(0.0, after.stalled - before.stalled) / seconds,
        )

    @staticmethod
    def _slowest(recent: dict[str, _Recent]) -> str | None:
        most = max(each.stalled for each in recent.values())
        if most < LEAST_STALLED:
            return None
        # Steps in front of the slowest one wait for it, and items wait for them.
        return [name for name, each in recent.items() if each.stalled >= NEARLY * most][-1]

    def _widths(self, steps: Sequence[StepStats], columns: int) -> dict[str, int]:
        """Return the columns that there are, and how wide they are; each but the name has a space before it."""
        widths = dict(_WIDTHS)
        if not any(step.failed for step in steps):
            del widths["failed"]
        wanted = min(MOST_NAME, max([LEAST_NAME, *(cells(step.processor) for step in steps)]))

        def rest() -> int:
            return columns - 2 - sum(width + 1 for width in widths.values())

        for name in LEFT_OUT:
            if rest() < LEAST_NAME:
                widths.pop(name, None)
        name_width = max(1, min(wanted, rest()))
        if "pipe" in widths:
            widths["pipe"] = max(LEAST_GAUGE, min(MOST_GAUGE, LEAST_GAUGE + rest() - name_width))
        return {"step": name_width, **widths}

    def _row(self, step: StepStats, recent: _Recent, widths: dict[str, int], is_slowest: bool) -> tuple[Piece, ...]:
        role = SLOWEST if is_slowest else PLAIN
        name = fit(step.processor, widths["step"], self._signs)
        pieces: list[Piece] = [
            (f"{self._signs.mark if is_slowest else ' '} ", role),
            (name + " " * (widths["step"] - cells(name)), role),
        ]
        workers = f"{step.workers}+{step.starting}" if step.starting else f"{step.workers}"
        texts = {
            "waiting": count(step.waiting),
            "workers": workers,
            "busy": f"{recent.busy:.0%}",
            "items": count(step.items_in),
            "rate": f"{count(recent.rate)}/s",
            "failed": count(step.failed),
        }
        for column, width in widths.items():
            if column == "pipe":
                pieces += [(" ", PLAIN), (self._gauge(step.waiting, step.bound, width), GAUGE)]
            elif column == "failed":
                pieces.append((f" {texts[column]:>{width}}", BAD if step.failed else SOFT))
            elif column != "step":
                pieces.append((f" {texts[column]:>{width}}", role if column == "busy" else PLAIN))
        return tuple(pieces)

    def _gauge(self, waiting: int, bound: int, width: int) -> str:
        """Return how full a pipe is.  One that is not empty shows something, and only a full one is full."""
        steps = len(self._signs.eighths) - 1
        filled = 0
        if waiting:
            filled = min(width * steps, max(1, math.floor(waiting / max(1, bound) * width * steps)))
        whole, part = divmod(filled, steps)
        drawn = self._signs.eighths[-1] * whole + (self._signs.eighths[part] if part else "")
        return drawn + self._signs.empty * (width - len(drawn))

    def _foot(self, stats: Stats, slowest: str | None, recent: dict[str, _Recent], columns: int) -> tuple[Piece, ...]:
        workers = sum(step.workers for step in stats.steps)
        of_all = [_counted(workers, "worker"), _counted(stats.cores, "core")]
        if slowest is None:
            return ((self._joined([f"  {of_all[0]}", of_all[1]], columns), SOFT),)
        share = f"{recent[slowest].stalled:.0%} of the time"
        parts = [f"{self._signs.mark} {slowest} holds up the others", share, *of_all]
        return ((self._joined(parts, columns), SLOWEST),)

    def _joined(self, parts: Sequence[str], columns: int) -> str:
        """Return as many of the first parts as there is room for."""
        kept = len(parts)
        while kept > 1 and cells(", ".join(parts[:kept])) > columns:
            kept -= 1
        return fit(", ".join(parts[:kept]), columns, self._signs)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _busiest(steps: Sequence[StepStats], recent: dict[str, _Recent], slowest: str | None, most: int) -> list[StepStats]:
    """Return the steps that have most to do, in their order."""
    ranked = sorted(steps, key=lambda step: (step.processor == slowest, recent[step.processor].busy), reverse=True)
    kept = {step.processor for step in ranked[:most]}
    return [step for step in steps if step.processor in kept]


def _head(widths: dict[str, int]) -> str:
    return " ".join(f"{name:{'<' if name in ('step', 'pipe') else '>'}{width}}" for name, width in widths.items())


def count(number: float) -> str:
    """Return a number in at most 7 characters, as long as it is less than 10 ** 15.

    >>> count(0), count(0.25), count(12.6), count(65_536), count(1_234_567), count(12_345_678_901)
    ('0', '0.25', '13', '65,536', '1.23M', '12.3G')
    """
    if not isinstance(number, int) and number < 10:
        return f"{number:.2g}"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        # What would be rounded up to a thousand is of the next unit.
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}"


def cells(text: str) -> int:
    """Return how many columns a text takes.

    >>> cells("größe"), cells("数値")
    (5, 4)
    """
    if text.isascii():
        return len(text)
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


def fit(text: str, width: int, signs: Signs = FANCY) -> str:
    """Return a text of at most so many columns: where it is too long, its middle is left out.

    >>> fit("normalise_every_record-12", 12), fit("short", 12), fit("数値数値", 5)
    ('normali…d-12', 'short', '数値…')
    """
    text = "".join(each if each.isprintable() else "?" for each in text)
    if cells(text) <= width:
        return text
    # The end often is the number of a copy.
    behind = (width - 1) * 2 // 5
    end = len(text)
    while end > 0 and cells(text[end - 1 :]) <= behind:
        end -= 1
    begin, before = 0, width - 1 - cells(text[end:])
    while cells(text[: begin + 1]) <= before:
        begin += 1
    return f"{text[:begin]}{signs.more}{text[end:]}" if width > 0 else ""
