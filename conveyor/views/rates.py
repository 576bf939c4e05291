"""Items per second over the last minutes, as pictures that fit any width.

Law: pure; statistics in, text out.  What is said of a picture stands beside it in HTML, so that no text is stretched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from itertools import pairwise

from conveyor._lean.dataclasses import NamedTuple
from conveyor.diagram import Graph
from conveyor.stats import Stats, in_words

# What a picture shows at most, and with how many points.
SHOWN_SECONDS = 300.0
MOST_POINTS = 90
# A point is the mean of so many seconds at least: items are acknowledged in chunks.
LEAST_SECONDS = 0.9


class Rates(NamedTuple):
    """The ends of some intervals, the first of which begins at `begin`, and for each the items per second in it.

    `into` and `out` have a list for each step, in the order of the pipeline.
    """

    begin: float
    ends: Sequence[float]
    into: Sequence[Sequence[float]]
    out: Sequence[Sequence[float]]


def rates_of(stats: Stats) -> Rates | None:
    """Return the rates of the last minutes; None where too little is known."""
    now = stats.seconds
    points = [
        (sample.at, [(each.items_in, each.items_out) for each in sample.steps])
        for sample in stats.history
        if now - SHOWN_SECONDS <= sample.at <= now
    ]
    points.append((now, [(step.items_in, step.items_out) for step in stats.steps]))
    if len(points) < 2:
        return None
    least = max(LEAST_SECONDS, (now - points[0][0]) / MOST_POINTS)
    # From the newest on: what is left over is at the beginning.
    kept = [points[-1]]
    for point in reversed(points[:-1]):
        if point[0] <= kept[-1][0] - least:
            kept.append(point)
    if len(kept) < 2:
        kept.append(points[0])
    kept.reverse()
    pairs = [(before, after) for before, after in pairwise(kept) if after[0] > before[0]]
    if not pairs:
        return None
    both = [
        [
            [max(0, after[1][step][side] - before[1][step][side]) / (after[0] - before[0]) for before, after in pairs]
            for step in range(len(stats.steps))
        ]
        for side in (0, 1)
    ]
    return Rates(pairs[0][0][0], [after[0] for _, after in pairs], *both)


def first_and_last(graph: Graph) -> tuple[set[str], set[str]]:
    """Return the names of the Processors that items reach first, and of those that nothing but results comes behind."""
    targets = {node.index: [edge.target for edge in graph.edges if edge.source == node.index] for node in graph.nodes}
    sources = {node.index: [edge.source for edge in graph.edges if edge.target == node.index] for node in graph.nodes}
    return _nearest(graph, "input", targets), _nearest(graph, "results", sources)


def _nearest(graph: Graph, kind: str, ways: dict[int, list[int]]) -> set[str]:
    waiting = [node.index for node in graph.nodes if node.kind == kind]
    found, seen = set(), set(waiting)
    while waiting:
        for index in ways[waiting.pop()]:
            node = graph.nodes[index]
            if node.kind == "processor":
                found.add(node.name)
            elif index not in seen:
                seen.add(index)
                waiting.append(index)
    return found


def throughput(graph: Graph, stats: Stats, rates: Rates | None) -> str:
    """Return what the first steps took and what the last ones gave, as lines over time; "" where that is unknown."""
    if rates is None:
        return ""
    first, last = first_and_last(graph)
    names = [step.processor for step in stats.steps]
    taken, given = _sum(rates.into, names, first), _sum(rates.out, names, last)
    most = max([*taken, *given, 1e-9])
    span = rates.ends[-1] - rates.begin
    said = (
        f"Items per second over the last {in_words(span)}: {per_second(taken[-1])} taken now, {per_second(given[-1])} "
        f"given now, {per_second(most)} at most"
    )
    return (
        f'<figure class="plot" role="img" aria-label="{escape(said)}">'
        f'<div class="small">{per_second(most)} at most</div>'
        f'<svg viewBox="0 0 600 120" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="waiting" d="{_line(rates, taken, most, 600, 120, area=True)}"/>'
        f'<path class="taken" d="{_line(rates, taken, most, 600, 120)}"/>'
        f'<path class="given" d="{_line(rates, given, most, 600, 120)}"/></svg>'
        f'<figcaption class="small"><span>{in_words(span)} ago</span><span>now</span><span class="keys">'
        f'<i class="key taken"></i>taken by '
        f'{_steps(first)}: <b>{per_second(taken[-1])}</b> &ensp;<i class="key given"></i>given by {_steps(last)}: '
        f"<b>{per_second(given[-1])}</b></span></figcaption></figure>"
    )


def _steps(names: Collection[str]) -> str:
    return escape(next(iter(names))) if len(names) == 1 else f"{len(names)} steps"


def _sum(rates: Sequence[Sequence[float]], names: Sequence[str], wanted: Collection[str]) -> list[float]:
    return [sum(each) for each in zip(*(rates[names.index(name)] for name in wanted if name in names), strict=True)]


def spark(rates: Rates | None, step: int) -> str:
    """Return the rate of a step now, and a small picture of the last minutes."""
    if rates is None:
        return "-"
    values = rates.into[step]
    line = _line(rates, values, max([*values, 1e-9]), 100, 24)
    return (
        '<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="taken" d="{line}"/></svg>{per_second(values[-1])}'
    )


def _line(
    rates: Rates, values: Sequence[float], most: float, width: float, height: float, *, area: bool = False
) -> str:
    span = rates.ends[-1] - rates.begin
    places = [(0.0, values[0])]
    places += [((end - rates.begin) / span * width, value) for end, value in zip(rates.ends, values, strict=True)]
    points = [f"{x:.1f} {height - 1 - (height - 2) * value / most:.1f}" for x, value in places]
    line = f"M{'L'.join(points)}"
    return f"{line}L{width} {height}L0 {height}Z" if area else line


def per_second(rate: float) -> str:
    """Return a rate in words.

    >>> per_second(1234.5), per_second(3.456), per_second(0.0)
    ('1,234/s', '3.5/s', '0/s')
    """
    return f"{rate:,.0f}/s" if rate >= 10 or rate < 0.01 else f"{rate:.2g}/s"
