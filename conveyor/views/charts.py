"""What the steps were like over time, as pictures in SVG: a strip for each step, all with the same seconds.

Law: pure; samples in, text out.  A picture has at most `MOST_POINTS` points a line, however long the run was.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from conveyor._lean.short_repr import counted
from conveyor.diagram import one_line
from conveyor.stats import Decision, Sample, Stats

WIDTH, LEFT, RIGHT = 860, 190, 60
STRIP, GAP, AXIS = 44, 14, 24
MOST_POINTS = 400
LONGEST_NAME = 24


def timeline(stats: Stats) -> str:
    """Return the workers, the waiting items and the decisions of each step over time; "" where there are no samples."""
    samples = _thinned(stats.history)
    if len(samples) < 2:
        return ""
    end = max(stats.seconds, samples[-1].at)
    height = len(stats.steps) * (STRIP + GAP) + AXIS
    lines = [
        f'<div class="wide"><svg width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui,sans-serif"><title>Workers and waiting items of each step over time</title>'
    ]
    for index, step in enumerate(stats.steps):
        top = index * (STRIP + GAP) + 4
        lines.append(_strip(index, step.processor, step.bound, samples, end, top))
        lines += [_mark(each, end, top) for each in stats.decisions if each.processor == step.processor]
    lines.append(_axis(end, height - AXIS + 4))
    return "".join([*lines, "</svg></div>"])


def _thinned(samples: Sequence[Sample]) -> Sequence[Sample]:
    every = -(-len(samples) // MOST_POINTS)
    return samples[::every] if every > 1 else samples


def _x(at: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (at / end if end else 0.0)


def _strip(index: int, name: str, bound: int, samples: Sequence[Sample], end: float, top: int) -> str:
    """Return one strip: an area for what waits, of what the pipe holds, and a line for the workers."""
    steps = [(sample.at, sample.steps[index]) for sample in samples if index < len(sample.steps)]
    most_waiting = max([bound, *(each.waiting for _, each in steps)], default=1) or 1
    most_workers = max([each.workers for _, each in steps], default=1) or 1
    base = top + STRIP
    area = [f"M{_x(steps[0][0], end):.1f} {base}"]
    line: list[str] = []
    before = ""
    for at, each in steps:
        x = f"{_x(at, end):.1f}"
        area.append(f"L{x} {base - STRIP * each.waiting / most_waiting:.1f}")
        y = f"{base - (STRIP - 4) * each.workers / most_workers:.1f}"
        # The number of workers changes at once.
        line.append(f"M{x} {y}" if not line else f"L{x} {before}L{x} {y}" if y != before else f"L{x} {y}")
        before = y
    area.append(f"L{_x(steps[-1][0], end):.1f} {base}Z")
    shown = one_line(name)
    shown = shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"
    workers = counted(most_workers, "worker")
    return (
        f'<g><title>{escape(one_line(name))}</title><text class="label" x="0" y="{top + 18}">{escape(shown)}</text>'
        f'<text class="small" x="0" y="{top + 34}">pipe of {counted(most_waiting, "item")}</text>'
        f'<path class="waiting" d="{"".join(area)}"/><path class="workers" d="{"".join(line)}"/>'
        f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>'
        f'<text class="small" x="{WIDTH - RIGHT + 6}" y="{top + 10}">{workers}</text></g>'
    )


def _mark(decision: Decision, end: float, top: int) -> str:
    """Return a triangle where the balancer changed the number of workers: up for more, down for fewer."""
    x, more = _x(min(decision.at, end), end), decision.after > decision.before
    tip, foot = (top - 4, top + 3) if more else (top + 3, top - 4)
    points = f"{x:.1f},{tip} {x - 4:.1f},{foot} {x + 4:.1f},{foot}"
    kind = "more" if more else "fewer"
    return f'<polygon class="{kind}" points="{points}"><title>{escape(one_line(str(decision)))}</title></polygon>'


def _axis(end: float, top: int) -> str:
    """Return the seconds, at round numbers."""
    step = next(size for size in _round_sizes() if end / size <= 8)
    marks = []
    count = int(end / step)
    for index in range(count + 1):
        x = _x(index * step, end)
        marks.append(f'<text class="small" x="{x:.1f}" y="{top + 12}" text-anchor="middle">{index * step:g} s</text>')
    return "".join(marks)


def _round_sizes() -> Sequence[float]:
    return [size * 10.0**power for power in range(-3, 9) for size in (1, 2, 5)]
