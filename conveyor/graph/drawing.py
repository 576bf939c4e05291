"""A pipeline drawn as text, from top to bottom, with one column for each open branch.

Law: it reads a description and returns a str.  It knows no rules, only how many branches each element took and gave.
Each Processor has the name that statistics and errors give it.

A fork keeps its column and opens new ones to its right.  A join keeps the leftmost column.  Neighbouring branches keep
their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, pairwise

from conveyor._lean.dataclasses import dataclass, field
from conveyor.graph.builder import Description
from conveyor.graph.compiler import names_of
from conveyor.graph.layout import Addition, LaneChange
from conveyor.stages.processor import Processor
from conveyor.stages.routing import Element, Pipe

# How many names of copies of a Processor a line has at most, beside the last.
_NAMED = 4
_STEP, _PIPE, _PASS, _SINGLE, _END = "●", "║", "│", "◇", "▼"


@dataclass
class _Line:
    """One line of the picture: marks in columns, bars between columns, and the text."""

    text: str
    marks: list[tuple[int, str]] = field(default_factory=list)
    bars: list[tuple[int, int]] = field(default_factory=list)


class _Canvas:
    """The lines drawn so far and the columns of the open branches."""

    def __init__(self, names: Iterable[str]) -> None:
        # Of the Processors that are still to be drawn, branch by branch.
        self._names = iter(names)
        self.lines: list[_Line] = []
        self.open = [0]
        self._count = 1
        self._order: set[tuple[int, int]] = set()

    def draw(self, addition: Addition) -> None:
        """Draw one `add`: a line for each element that differs from the one before it."""
        self._put_in(addition.changes)
        changes = list(addition.changes)
        for index, element in enumerate(addition.elements):
            if index and _alike(element, addition.elements[index - 1]):
                continue
            alike = {index}
            while max(alike) + 1 < len(addition.elements) and _alike(element, addition.elements[max(alike) + 1]):
                alike.add(max(alike) + 1)
            changes = self._element(element, changes, alike)

    def end(self) -> None:
        self.lines.append(_Line("results", [(column, _END) for column in self.open]))

    def _put_in(self, changes: Sequence[LaneChange]) -> None:
        """Draw the Pipes that `add` put in."""
        marks, position = [], 0
        for change in changes:
            for offset in range(change.taken):
                marks.append((self.open[position + offset], _PIPE if offset in change.piped else _PASS))
            position += change.taken
        if any(change.piped for change in changes):
            self.lines.append(_Line(f"{_text(Pipe())}, put in", marks))

    def _element(self, element: Element, changes: list[LaneChange], alike: set[int]) -> list[LaneChange]:
        """Draw `element` on the lanes that it changes; return the changes for the elements after it."""
        line, now, rest, position = _Line(""), [], [], 0
        places = sum(change.element in alike for change in changes)
        names = list(islice(self._names, places)) if isinstance(element, Processor) else []
        line.text = _text(element, list(dict.fromkeys(names)))
        for change in changes:
            taken = self.open[position : position + change.taken]
            position += change.taken
            if change.element not in alike:
                line.marks += [(column, _PASS) for column in taken]
                now += taken
                rest.append(change)
                continue
            given = [*taken[:1], *(self._new() for _ in range(change.given - 1))]
            widest = taken if len(taken) > len(given) else given
            if len(widest) > 1:
                corner = "┘" if widest is taken else "┐"
                inner = "┴" if widest is taken else "┬"
                line.marks += [(widest[0], "├"), *((column, inner) for column in widest[1:-1]), (widest[-1], corner)]
                line.bars.append((widest[0], widest[-1]))
            else:
                line.marks.append((taken[0], _mark(element)))
            now += given
            rest += [LaneChange(None, 1, 1)] * change.given
        self.open = now
        self._order.update(pairwise(now))
        self.lines.append(line)
        return rest

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def picture(self) -> str:
        """Return all lines, with each column as far to the left as its neighbours allow."""
        place = [0] * self._count
        moved = True
        while moved:
            moved = False
            for left, right in self._order:
                if place[right] <= place[left]:
                    place[right] = place[left] + 1
                    moved = True
        width = 2 * max(place) + 1
        pictures = []
        for line in self.lines:
            cells = [" "] * width
            for start, stop in line.bars:
                cells[2 * place[start] : 2 * place[stop]] = "─" * (2 * (place[stop] - place[start]))
            for column, mark in line.marks:
                cells[2 * place[column]] = mark
            pictures.append(f"{''.join(cells)}  {line.text}")
        return "\n".join(pictures)


def _alike(one: Element, other: Element) -> bool:
    """Whether one line can stand for both; Processors compare by identity."""
    return one is other if isinstance(one, Processor) or isinstance(other, Processor) else one == other


def _mark(element: Element) -> str:
    if isinstance(element, Processor):
        return _STEP
    return _PIPE if isinstance(element, Pipe) else _SINGLE


def _text(element: Element, names: Sequence[str] = ()) -> str:
    """Return the text of a line: a Pipe with its bound in items, a Processor with its names at all its places."""
    if isinstance(element, Pipe):
        return repr(Pipe(element.bound, element.maxbytes))
    if not isinstance(element, Processor):
        return repr(element)
    set_values = (("workers", element.workers), ("max_workers", element.max_workers), ("batch", element.batch))
    settings = [f"{name}={value}" for name, value in set_values if value is not None]
    shown = [*names[:_NAMED], "…", names[-1]] if len(names) > _NAMED + 1 else names
    name = ", ".join(shown)
    return f"{name} ({', '.join(settings)})" if settings else name


def draw(description: Description) -> str:
    """Return a picture of `description`.

    ● is a step, ║ a Pipe, ├ a fork or join of several branches, ◇ one of a single branch, ▼ the results.

    >>> from conveyor.stages import Pipe, Processor
    >>> description = Description()
    >>> for element in (Processor(str.strip), Pipe(10), Processor(len, workers=2)):
    ...     description.add((element,))
    >>> print(draw(description))
    ●  strip
    ║  Pipe(maxsize=10)
    ●  len (workers=2)
    ▼  results
    """
    if not description.layout.additions:
        return "an empty pipeline"
    canvas = _Canvas(names_of(description.layout))
    for addition in description.layout.additions:
        canvas.draw(addition)
    canvas.end()
    return canvas.picture()
