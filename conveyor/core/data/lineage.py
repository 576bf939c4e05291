"""Lineages: which submitted item a piece comes of, and its place among all that came of that.

Law: pure values and counts.  A lineage is the number of an origin, and then places: of the branch, or of the output of
a call that gave several.  Those of one origin, sorted, are in the order in which a run of that item alone gives its
results.  An origin is open as long as something of it is under way, and settles once.

What enters a fork whose branches are zipped is an origin inside it, a scope: its rows can be made when it settles.  The
numbers of submitted items count from 0, in the order in which they come.  Those of scopes are negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from conveyor._lean.typing import Any
from conveyor.core.data.pieces import Piece, Pieces

Lineage = tuple[int, ...]


class Traced:
    """A source, with the lineages of its items from `first` on."""

    __slots__ = ("first", "lineages", "source")

    def __init__(self, source: Any, lineages: list[Lineage], first: int = 0) -> None:
        self.source = source
        self.lineages = lineages
        self.first = first

    def part(self, start: int, stop: int) -> list[Lineage]:
        """Return the lineages of the items from `start` to `stop`."""
        return self.lineages[start - self.first : stop - self.first]


def bare(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Return pieces of traced sources as pieces of those sources.

    >>> bare(((Traced("blob", [(0,), (1,)]), 0, 2),))
    (('blob', 0, 2),)
    """
    return tuple([(traced.source, start, stop) for traced, start, stop in pieces])


def lineages_of(pieces: tuple[Piece, ...]) -> list[Lineage]:
    """Return the lineage of each item of pieces of traced sources.

    >>> lineages_of(((Traced("blob", [(0,), (1,), (2,)]), 1, 3),))
    [(1,), (2,)]
    """
    lineages: list[Lineage] = []
    for traced, start, stop in pieces:
        lineages += traced.part(start, stop)
    return lineages


class Origins:
    """The origins that are open, with how much of each is under way.

    >>> origins = Origins(lambda: None)
    >>> origins.enter("blob", 2).lineages
    [(0,), (1,)]
    >>> origins.add(1, -1)
    >>> origins.take_settled()
    (1,)
    """

    __slots__ = ("_entered", "_open", "_owners", "_parents", "_scopes", "_settled", "_wake", "are_streamed", "dropped")

    def __init__(self, wake: Callable[[], None], are_streamed: bool = False) -> None:
        # Whether they come from a source, and are not submitted.
        self.are_streamed = are_streamed
        # How many submitted items have come, and how many scopes were opened.
        self._entered = self._scopes = 0
        # Of each origin, how many items and scopes of it are under way.
        self._open: dict[int, int] = {}
        # Of each scope, the lineage of its rows, and who makes them.
        self._parents: dict[int, Lineage] = {}
        self._owners: dict[int, Callable[[int, Lineage], None]] = {}
        # The open origins of which nothing is wanted any more.
        self.dropped: set[int] = set()
        # The submitted items that have settled and of which nobody was told; `wake` is called when there is one.
        self._settled: list[int] = []
        self._wake = wake

    def enter(self, source: Any, items: int) -> Traced:
        """Open an origin for each of so many submitted items."""
        first = self._entered
        self._entered = stop = first + items
        numbers = range(first, stop)
        self._open.update(dict.fromkeys(numbers, 1))
        return Traced(source, list(zip(numbers)))

    def open_scope(self, parent: Lineage, items: int, owner: Callable[[int, Lineage], None]) -> int:
        """Open a scope, of which so many items and scopes are under way; `owner` is called when it settles.

        What comes of it has the lineage `parent`, of whose origin the scope is a part.
        """
        self._scopes -= 1
        scope = self._scopes
        self._open[scope] = items
        self._parents[scope] = parent
        self._owners[scope] = owner
        if parent[0] in self.dropped:
            self.dropped.add(scope)
        return scope

    def add(self, origin: int, items: int) -> None:
        """Count that so many items more of an origin are under way, or fewer; none left means that it settles."""
        left = self._open[origin] = self._open[origin] + items
        if not left:
            self._settle(origin)

    def leave(self, lineages: list[Lineage]) -> None:
        """Count that these items are under way no more."""
        for origin, *_ in lineages:
            self.add(origin, -1)

    def _settle(self, origin: int) -> None:
        del self._open[origin]
        while origin < 0:
            parent, owner = self._parents.pop(origin), self._owners.pop(origin)
            if origin not in self.dropped:
                owner(origin, parent)
                return
            # No row comes of this scope, so with it ends what it was of the next one around it.
            self.dropped.discard(origin)
            owner(origin, ())
            origin = parent[0]
            left = self._open[origin] = self._open[origin] - 1
            if left:
                return
            del self._open[origin]
        if origin in self.dropped:
            self.dropped.discard(origin)
        else:
            self._settled.append(origin)
            self._wake()

    def root_of(self, origin: int) -> int:
        """Return the number of the submitted item that an origin is a part of."""
        while origin < 0:
            origin = self._parents[origin][0]
        return origin

    def drop(self, origin: int) -> bool:
        """Want nothing more of a submitted item; return whether it was open, and wanted."""
        if origin not in self._open or origin in self.dropped:
            return False
        self.dropped.add(origin)
        if self._parents:
            self.dropped.update([scope for scope in self._parents if self.root_of(scope) == origin])
        return True

    def drop_all(self, origins: Iterable[int]) -> bool:
        """Want nothing more of some submitted items; return whether any was open, and wanted."""
        dropped = [self.drop(origin) for origin in origins]
        return any(dropped)

    def is_alone(self, origin: int) -> bool:
        """Whether one item of a submitted item is under way, and nothing else."""
        return self._open[origin] == 1 and not self._parents

    def settles_with(self, origin: int) -> bool:
        """Whether the next item of a submitted item that leaves is the last thing to be told."""
        return self._open.get(origin) == 1 and not (origin < 0 or self._settled)

    def take_settled(self) -> tuple[int, ...]:
        """Return the submitted items that have settled since the last time."""
        settled, self._settled = tuple(self._settled), []
        return settled

    def wanted(self, traced: Traced, start: int, stop: int) -> list[Piece]:
        """Return a piece without what nobody wants any more, and count that out."""
        dropped = self.dropped
        if not dropped:
            return [(traced, start, stop)]
        pieces: list[Piece] = []
        begin = start
        for index, lineage in enumerate(traced.part(start, stop), start):
            if lineage[0] in dropped:
                if begin < index:
                    pieces.append((traced, begin, index))
                begin = index + 1
                self.add(lineage[0], -1)
        if begin < stop:
            pieces.append((traced, begin, stop))
        return pieces

    def purge(self, queue: Pieces) -> int:
        """Remove from a queue what nobody wants any more; return how many items that was."""
        items = queue.items
        kept: list[Piece] = []
        for piece in queue.take(items):
            kept += self.wanted(*piece)
        left = sum([stop - start for _, start, stop in kept])
        queue.extend(tuple(kept), left)
        return items - left

    def check(self) -> None:
        """Raise AssertionError where what is counted cannot be."""
        assert all(count > 0 for count in self._open.values()), "an origin is open, and nothing of it is under way"
        assert self._parents.keys() == self._owners.keys() <= self._open.keys(), "a scope has settled, or is not open"
        assert self.dropped <= self._open.keys(), "what has settled is still to be dropped"
