"""The rules of building a pipeline: which element may stand where on its open branches.

Law: pure functions from a layout and added elements to a new layout, or to a RuleError.  Nothing here warns, and no
layout ever changes.

A layout is a list of operations in topological order, and the remaining lanes (open branches) in order.  Each lane
knows the forks around it, outermost first, so the lanes are the leaves of a tree.  Adjacent lanes are neighbours in
that tree.  A `BalancingFork()` opens one lane; the running pipeline decides how many copies of it work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conveyor._lean.dataclasses import dataclass, replace
from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any
from conveyor.errors import RuleError
from conveyor.stages.checks import check_processor, code_of
from conveyor.stages.processor import Processor
from conveyor.stages.routing import BalancingFork, Element, Join, Pipe, ReplicatingFork

KINDS: tuple[type[Element], ...] = (Processor, Pipe, ReplicatingFork, BalancingFork, Join)
ForkElement = ReplicatingFork | BalancingFork


@dataclass(frozen=True)
class EnclosingFork:
    """A fork around a lane, by the index of its operation, and which of its branches the lane carries."""

    fork: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Lane:
    """An open branch: output `port` of operation `source`, and the Pipe added since, if any."""

    source: int
    port: int
    enclosing: tuple[EnclosingFork, ...]
    pipe: Pipe | None = None


@dataclass(frozen=True, eq=False)
class StepOperation:
    """A Processor on a lane; the first Processor has none."""

    processor: Processor[Any, Any]
    lane: Lane | None


@dataclass(frozen=True)
class ForkOperation:
    element: ForkElement
    lane: Lane


@dataclass(frozen=True)
class LaneGroup:
    """Neighbouring parts of one fork that become one lane.  A part is a lane, or the group of a whole inner fork.

    `branches` lists the fork's branches of each part.  `whole`: the parts are all of the fork, so the result stands in
    the forks `above` alone.
    """

    fork: int
    parts: tuple[Lane | LaneGroup, ...]
    branches: tuple[tuple[int, ...], ...]
    whole: bool
    above: tuple[EnclosingFork, ...]

    @property
    def enclosing(self) -> tuple[EnclosingFork, ...]:
        """The forks around the resulting lane."""
        if self.whole:
            return self.above
        return (*self.above, EnclosingFork(self.fork, tuple(branch for part in self.branches for branch in part)))

    def lane_groups(self) -> list[LaneGroup]:
        """Return this group and all groups within it, inner ones first."""
        found: list[LaneGroup] = []
        todo = [self]
        while todo:
            found.append(todo.pop())
            todo += [part for part in found[-1].parts if isinstance(part, LaneGroup)]
        return found[::-1]

    def lanes(self) -> list[Lane]:
        """Return the lanes that end here, in order."""
        found: list[Lane] = []
        todo: list[Lane | LaneGroup] = [self]
        while todo:
            part = todo.pop()
            if isinstance(part, Lane):
                found.append(part)
            else:
                todo += part.parts[::-1]
        return found


@dataclass(frozen=True)
class JoinOperation:
    element: Join[Any]
    lane_group: LaneGroup


Operation = StepOperation | ForkOperation | JoinOperation


@dataclass(frozen=True)
class LaneChange:
    """The effect of one `add` on neighbouring lanes: `taken` of them became `given`.

    `element` is the position of the element within the `add`; None where a Join passed a lane by.  `piped` lists the
    taken lanes on which a Pipe was put in.
    """

    element: int | None
    taken: int
    given: int
    piped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Addition:
    """One `add`: its elements as the user gave them, and the changes of the lanes, from first to last."""

    elements: tuple[Element, ...]
    changes: tuple[LaneChange, ...]

    @property
    def piped(self) -> int:
        return sum(len(change.piped) for change in self.changes)


@dataclass(frozen=True)
class Layout:
    """The elements added so far, as operations and open lanes."""

    operations: tuple[Operation, ...] = ()
    lanes: tuple[Lane, ...] = ()
    additions: tuple[Addition, ...] = ()

    def fork(self, index: int) -> ForkElement:
        operation = self.operations[index]
        assert isinstance(operation, ForkOperation)
        return operation.element

    def is_auto(self, index: int) -> bool:
        """Whether the running pipeline decides the number of branches of the fork."""
        element = self.fork(index)
        return isinstance(element, BalancingFork) and element.auto

    def branches(self, fork: int) -> list[tuple[int, ...]]:
        """Return the open parts of the fork that is operation `fork`, each as the branches that it carries."""
        found: dict[tuple[int, ...], None] = {}
        for lane in self.lanes:
            for outer in reversed(lane.enclosing):
                # Of two forks around a lane, the inner one was added later.
                if outer.fork <= fork:
                    if outer.fork == fork:
                        found[outer.branches] = None
                    break
        return list(found)


def extended(layout: Layout, elements: Sequence[object]) -> Layout:
    """Return `layout` with `elements` added on its lanes by rules 1 to 6.

    Raises RuleError, and TypeError or ValueError for a Processor that cannot run.
    """
    checked = tuple(_element(value) for value in elements)
    for element in checked:
        if isinstance(element, Processor):
            check_processor(element)
    lanes = len(layout.lanes) or 1
    if not checked:
        raise RuleError(f"add() got 0 elements for {_open(lanes)}: pass at least one", rule=5)
    if not layout.additions:
        return _started(checked)
    _one_kind(checked)
    by_width = _groups_by_width(layout, checked)
    groups = by_width or _groups(layout, checked)
    builder = _Builder(layout, uneven=by_width is not None)
    for position, (element, group) in enumerate(zip(checked, groups, strict=True)):
        builder.place(position, element, group)
    return builder.built(checked)


def closed(layout: Layout) -> Layout:
    """Return `layout` with its open branches merged into one (rule 7)."""
    if not any(lane.enclosing for lane in layout.lanes):
        return layout
    builder = _Builder(layout)
    cluster = [_with_pipe(lane) for lane in layout.lanes]
    builder.join_lanes(Join(), _grouped(layout, Join(), cluster, everything=True))
    return replace(builder.built(()), additions=layout.additions)


def _open(lanes: int) -> str:
    return f"{lanes} open branch{'es' if lanes > 1 else ''}"


def _element(value: object) -> Element:
    """Return `value` as an element, or raise by rule 1."""
    if isinstance(value, KINDS):
        assert isinstance(value, Element)
        return value
    if isinstance(value, type) and issubclass(value, KINDS):
        remedy = f"{value.__name__} is the class; add the instance, {value.__name__}(...)"
    elif callable(value) and not (isinstance(value, type) and issubclass(value, Element)):
        code = code_of(value)
        remedy = f"wrap it: Processor({'...' if code.startswith('<') else code})"
    elif isinstance(value, list | tuple):
        remedy = "pass its elements one by one, as in add(*elements), for parallel branches"
    else:
        remedy = f"add one of {', '.join(kind.__name__ for kind in KINDS)}"
    raise RuleError(f"{short(value)} is not an element of a pipeline: {remedy}", rule=1)


def _started(elements: tuple[Element, ...]) -> Layout:
    """Return the layout that begins with `elements`, by rules 2 and 5."""
    for element in elements:
        if not isinstance(element, Processor):
            raise RuleError(f"a pipeline starts with a Processor, not with {element!r}: add a Processor first", rule=2)
    if len(elements) > 1:
        raise RuleError(
            f"add() got {len(elements)} elements for {_open(1)}, the start of the pipeline: "
            "start with one Processor, and add a fork first",
            rule=5,
        )
    first = elements[0]
    assert isinstance(first, Processor)
    return Layout((StepOperation(first, None),), (Lane(0, 0, ()),), (Addition(elements, (LaneChange(0, 1, 1),)),))


def _kind(element: Element) -> type[Element]:
    return next(kind for kind in KINDS if isinstance(element, kind))


def _one_kind(elements: tuple[Element, ...]) -> None:
    """Raise by rule 5 unless the elements are of one kind; only Pipe mixes with another."""
    kinds = list(dict.fromkeys(_kind(element).__name__ for element in elements if not isinstance(element, Pipe)))
    if len(kinds) > 1:
        raise RuleError(
            f"one add() got {' and '.join(kinds)}: only Pipe mixes with another kind of element. "
            "Add one kind now, with Pipe() on the other branches, and the other kind next",
            rule=5,
        )


def _groups_by_width(layout: Layout, elements: tuple[Element, ...]) -> list[Sequence[Lane]] | None:
    """Return the lanes in groups as wide as the Joins among `elements`, with one lane for each Pipe.

    Return None where the widths do not add up to all lanes.
    """
    widths = [element.n if isinstance(element, Join) else 1 for element in elements if isinstance(element, Join | Pipe)]
    if len(widths) != len(elements) or all(isinstance(element, Pipe) for element in elements) or None in widths:
        return None
    groups: list[Sequence[Lane]] = []
    start = 0
    for width in widths:
        assert width is not None
        groups.append(layout.lanes[start : start + width])
        start += width
    return groups if start == len(layout.lanes) else None


def _groups(layout: Layout, elements: tuple[Element, ...]) -> list[Sequence[Lane]]:
    """Return the lanes in as many groups of neighbours as there are elements, by rule 5."""
    lanes, count = layout.lanes, len(elements)
    if count == 1:
        return [lanes]
    runs = _runs(lanes)
    # Groups of forks need the lanes of each fork to be neighbours.
    forks = len(runs) if len({fork for fork, _ in runs}) == len(runs) else 0
    if forks and forks % count == 0:
        size = forks // count
        return [[lane for _, run in runs[start : start + size] for lane in run] for start in range(0, forks, size)]
    if len(lanes) % count == 0:
        size = len(lanes) // count
        return [lanes[start : start + size] for start in range(0, len(lanes), size)]
    if not any(lane.enclosing for lane in lanes):
        remedy = "add one element, or a fork first"
    elif len(lanes) == 1:
        remedy = "add one element"
    else:
        remedy = f"add 1 (a copy on every branch), {len(lanes)} (one each), or a number that divides {len(lanes)}" + (
            f" or {forks}, the number of forks" if forks > 1 else ""
        )
    if any(layout.is_auto(outer.fork) for lane in lanes for outer in lane.enclosing):
        remedy += (
            "; BalancingFork() opens one branch, and all its copies are alike: for different branches give it a "
            "number, as in BalancingFork(2)"
        )
    widths = [element.n for element in elements if isinstance(element, Join)]
    numbers = [width for width in widths if width is not None]
    if numbers and len(numbers) == len(widths):
        width = sum(numbers) + count - len(numbers)
        remedy += f"; or Joins and Pipes that take all {len(lanes)} branches together (these take {width})"
    raise RuleError(f"add() got {count} elements for {_open(len(lanes))}: {remedy}", rule=5)


def _runs(lanes: Iterable[Lane]) -> list[tuple[int | None, list[Lane]]]:
    """Return the lanes in runs of neighbours with the same innermost fork."""
    runs: list[tuple[int | None, list[Lane]]] = []
    for lane in lanes:
        fork = lane.enclosing[-1].fork if lane.enclosing else None
        if runs and runs[-1][0] == fork:
            runs[-1][1].append(lane)
        else:
            runs.append((fork, [lane]))
    return runs


class _Builder:
    """Carries out one `add`: takes the lanes of a layout group by group, and makes new ones."""

    def __init__(self, layout: Layout, uneven: bool = False) -> None:
        self._layout = layout
        # Joins that together take all branches may cover uneven parts of a fork.
        self._uneven = uneven
        self._operations = list(layout.operations)
        self._lanes: list[Lane] = []
        self._changes: list[LaneChange] = []

    def built(self, elements: tuple[Element, ...]) -> Layout:
        addition = Addition(elements, tuple(self._changes))
        return Layout(tuple(self._operations), tuple(self._lanes), (*self._layout.additions, addition))

    def place(self, position: int, element: Element, group: Sequence[Lane]) -> None:
        """Put the element at `position` of this `add` on the lanes of its group."""
        if isinstance(element, Join):
            self._place_joins(position, element, group)
            return
        for lane in group:
            if isinstance(element, Pipe):
                self._lanes.append(replace(lane, pipe=one_pipe(lane.pipe, element)))
                self._changes.append(LaneChange(position, 1, 1))
            elif isinstance(element, Processor):
                # Rule 3: a fork or a join in front replaces the Pipe.
                missing = lane.pipe is None and isinstance(self._operations[lane.source], StepOperation)
                source = self._operation(StepOperation(element, _with_pipe(lane) if missing else lane))
                self._lanes.append(Lane(source, 0, lane.enclosing))
                self._changes.append(LaneChange(position, 1, 1, (0,) if missing else ()))
            else:
                assert isinstance(element, ForkElement)
                source = self._operation(ForkOperation(element, _with_pipe(lane)))
                ports = element.n or 1
                for port in range(ports):
                    self._lanes.append(Lane(source, port, (*lane.enclosing, EnclosingFork(source, (port,)))))
                self._changes.append(LaneChange(position, 1, ports, () if lane.pipe else (0,)))

    def _place_joins(self, position: int, join: Join[Any], group: Sequence[Lane]) -> None:
        for cluster, joined in _clusters(self._layout, join, group):
            if not joined:
                self._lanes += cluster
                self._changes += [LaneChange(None, 1, 1)] * len(cluster)
                continue
            missing = tuple(index for index, lane in enumerate(cluster) if lane.pipe is None)
            lanes = [_with_pipe(lane) for lane in cluster]
            self.join_lanes(join, _grouped(self._layout, join, lanes, uneven=self._uneven))
            self._changes.append(LaneChange(position, len(cluster), 1, missing))

    def join_lanes(self, join: Join[Any], lane_group: LaneGroup) -> None:
        self._lanes.append(Lane(self._operation(JoinOperation(join, lane_group)), 0, lane_group.enclosing))

    def _operation(self, operation: Operation) -> int:
        self._operations.append(operation)
        return len(self._operations) - 1


def _with_pipe(lane: Lane) -> Lane:
    return replace(lane, pipe=lane.pipe or Pipe())


def one_pipe(first: Pipe | None, second: Pipe | None) -> Pipe | None:
    """Return the one Pipe that replaces a Pipe after a Pipe.

    For items and for bytes, a given bound wins over the default, and the larger over the smaller.
    """
    if first is None or second is None:
        return first or second
    items = [pipe.maxsize for pipe in (first, second) if pipe.maxsize is not None]
    sizes = [pipe.maxbytes for pipe in (first, second) if pipe.maxbytes is not None]
    return Pipe(max(items, default=None), max(sizes, default=None))


def _clusters(layout: Layout, join: Join[Any], group: Sequence[Lane]) -> list[tuple[list[Lane], bool]]:
    """Return the clusters of lanes that `join` takes together, by rule 6; False with those that it leaves alone."""
    if not any(lane.enclosing for lane in group):
        raise RuleError(f"{join!r}: no fork is open: add a ReplicatingFork or BalancingFork before it", rule=6)
    if join.n is not None:
        if len(group) % join.n:
            for lane in group:
                if lane.enclosing:
                    _check_fork(layout, join, lane.enclosing[-1].fork)
            divisor = f", or a number that divides {len(group)}" if len(group) > 1 else ""
            raise RuleError(
                f"{join!r} on {_open(len(group))}: {join.n} does not divide {len(group)}. A Join covers whole forks "
                f"or an even part of one; use Join() for the branches of the innermost fork{divisor}",
                rule=6,
            )
        return [(list(group[start : start + join.n]), True) for start in range(0, len(group), join.n)]
    # A fork is innermost only where no other is open on any of its branches.
    outer = {outer.fork for lane in layout.lanes for outer in lane.enclosing[:-1]}
    clusters = [(run, fork is not None and fork not in outer) for fork, run in _runs(group)]
    if not any(joined for _, joined in clusters):
        raise RuleError(
            f"{join!r} on {_open(len(group))}: other branches of the same fork have open forks within. "
            "Join those first, with Pipe() on the other branches",
            rule=6,
        )
    return clusters


def _grouped(
    layout: Layout, join: Join[Any], cluster: Sequence[Lane], *, everything: bool = False, uneven: bool = False
) -> LaneGroup:
    """Return the lanes of `cluster` as one group, made fork by fork from the innermost.

    `everything`: go on until no fork is left.  `uneven`: the part of a fork need not be an even one.
    """
    items: list[Lane | LaneGroup] = list(cluster)
    while True:
        depth = max(len(item.enclosing) for item in items)
        if depth == 0:
            raise RuleError(f"{join!r}: no fork is open: add a ReplicatingFork or BalancingFork before it", rule=6)
        rest: list[Lane | LaneGroup] = []
        deepest: dict[int, list[Lane | LaneGroup]] = {}
        for item in items:
            if len(item.enclosing) < depth:
                rest.append(item)
                continue
            fork = item.enclosing[-1].fork
            if fork not in deepest:
                deepest[fork] = []
                rest.append(item)  # A placeholder for the group.
            deepest[fork].append(item)
        alone = len(rest) == 1
        for fork, parts in deepest.items():
            lane_group = _group(layout, join, fork, parts, alone=alone, uneven=uneven)
            if not everything:
                _check_fork(layout, join, fork)
            rest[rest.index(parts[0])] = lane_group
        items = rest
        if alone and not (everything and items[0].enclosing):
            break
    (result,) = items
    assert isinstance(result, LaneGroup)
    return result


def _group(
    layout: Layout, join: Join[Any], fork: int, parts: list[Lane | LaneGroup], *, alone: bool, uneven: bool
) -> LaneGroup:
    """Return `parts` of one fork as a group.

    They are the whole fork.  If they stand `alone` under the Join, an even part will do, and with `uneven` any part.
    """
    branches = tuple(part.enclosing[-1].branches for part in parts)
    present = layout.branches(fork)
    whole = len(branches) == len(present)
    if not whole:
        what = f"{join!r} covers {len(branches)} of the {len(present)} open branches of {layout.fork(fork)!r}"
        if not alone:
            raise RuleError(
                f"{what} and branches of another fork: a Join covers whole forks or an even part of one. "
                "Use Join() for the branches of each innermost fork, and then join the results",
                rule=6,
            )
        if not uneven and (len(present) % len(branches) or present.index(branches[0]) % len(branches)):
            # A single Join(n) is copied onto all open branches, so n must divide their number.
            number = f"Join({len(present)}) or " if len(layout.lanes) % len(present) == 0 else ""
            raise RuleError(
                f"{what}, which is not an even part: use {number}Join() for all of them, "
                f"or a number that divides {len(present)}",
                rule=6,
            )
    return LaneGroup(fork, tuple(parts), branches, whole, parts[0].enclosing[:-1])


def _check_fork(layout: Layout, join: Join[Any], fork: int) -> None:
    """Raise by rule 6 if `join` does not fit the kind of fork."""
    element = layout.fork(fork)
    if join.how == "zip" and not isinstance(element, ReplicatingFork):
        raise RuleError(
            f"{join!r} covers {element!r}, which sends each item to one branch, so there is nothing to zip: "
            "use how='merge', or a ReplicatingFork",
            rule=6,
        )
    if join.n is not None and layout.is_auto(fork):
        raise RuleError(
            f"{join!r} covers {element!r}, and only the running pipeline decides its number of branches: "
            "close it with Join()",
            rule=6,
        )
