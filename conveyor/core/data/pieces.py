"""Pieces of payload, which the core cuts and joins without looking into them.

Law: pure values.  A piece is `(source, start, stop)`: the items `start` to `stop` of a source.  A source is a blob or a
`Weave`.  A blob is an opaque handle of the shell, and a `Weave` interleaves several lanes.  Only the process at the end
of a hop turns pieces into items.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from itertools import zip_longest

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any
from conveyor.core.data.group_sizes import GroupSizes


class Weave(NamedTuple):
    """The items of several lanes, interleaved group by group.

    `lanes[i]` holds pieces, and `group_sizes[i]` the sizes of that lane's groups.  All lanes have the same number of
    groups.  With `zipped` a group gives rows: a tuple of an item of each lane, None where a lane has fewer.  Else it
    gives the items of the first lane, then those of the second, and so on.
    """

    lanes: tuple[tuple[Piece, ...], ...]
    group_sizes: tuple[GroupSizes, ...]
    zipped: bool


Piece = tuple[Any, int, int]

# Pieces with numbers for their sources: that of a blob, or -1, -2, ... for the weaves.  Those are the source of a first
# piece that has no items.  A weave stands behind what it is woven of, so nothing is nested, however deep a graph is.
Spec = tuple[tuple[Any, int, int], ...]
# That of one item: the whole of one blob.
ONE: Spec = ((0, 0, 1),)


class Pieces:
    """A queue of pieces that can be cut anywhere.

    >>> queue = Pieces()
    >>> queue.push("blob", 10)
    >>> queue.take(4)
    (('blob', 0, 4),)
    >>> queue.items
    6
    """

    __slots__ = ("_pieces", "items")

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self.items = 0

    def push(self, source: Any, items: int) -> None:
        self._pieces.append((source, 0, items))
        self.items += items

    def extend(self, pieces: tuple[Piece, ...], items: int) -> None:
        self._pieces.extend(pieces)
        self.items += items

    def take(self, items: int) -> tuple[Piece, ...]:
        """Remove the first `items` items and return the pieces that hold them."""
        assert 0 <= items <= self.items, (items, self.items)
        self.items -= items
        taken = []
        while items:
            piece = self._pieces[0]
            source, start, stop = piece
            if stop - start <= items:
                self._pieces.popleft()
                taken.append(piece)
                items -= stop - start
            else:
                taken.append((source, start, start + items))
                self._pieces[0] = (source, start + items, stop)
                items = 0
        return tuple(taken)

    def clear(self) -> None:
        self._pieces.clear()
        self.items = 0

    def check(self) -> None:
        """Raise AssertionError where the count is not that of the pieces, or a piece is empty."""
        assert self.items == sum(stop - start for _, start, stop in self._pieces), "an item was counted wrong"
        assert all(start < stop for _, start, stop in self._pieces), "an empty piece"


def woven(lanes: list[list[object]], group_sizes: tuple[GroupSizes, ...], zipped: bool) -> list[object]:
    """Return the items of a `Weave`, given the items of its lanes.

    >>> woven([[1, 2], ["a"]], ([(1, 2)], [(0, 1), (1, 1)]), zipped=False)
    [1, 2, 'a']
    >>> woven([[1, 2], ["a"]], ([(1, 2)], [(0, 1), (1, 1)]), zipped=True)
    [(1, None), (2, 'a')]
    """
    rows: list[object] = []
    starts = [0] * len(lanes)
    for sizes, repeat in _stretches(group_sizes):
        parts = []
        for lane, size in enumerate(sizes):
            start = starts[lane]
            starts[lane] = stop = start + size * repeat
            parts.append(lanes[lane][start:stop])
        if repeat > 1:
            # Slices handle any number of equal groups at once.
            rows += _zipped(sizes, parts, repeat) if zipped else _merged(sizes, parts, repeat)
        elif zipped:
            rows += zip_longest(*parts)
        else:
            for part in parts:
                rows += part
    return rows


def _merged(sizes: Sequence[int], parts: list[list[object]], repeat: int) -> list[object]:
    height, offset = sum(sizes), 0
    rows: list[object] = [None] * (height * repeat)
    for size, part in zip(sizes, parts, strict=True):
        for index in range(size):
            rows[offset + index :: height] = part[index::size]
        offset += size
    return rows


def _zipped(sizes: Sequence[int], parts: list[list[object]], repeat: int) -> Iterator[object]:
    height = max(sizes)
    columns = []
    for size, part in zip(sizes, parts, strict=True):
        column: list[object] = part if size == height else [None] * (height * repeat)
        if size < height:
            for index in range(size):
                column[index::height] = part[index::size]
        columns.append(column)
    return zip(*columns, strict=True)


def _stretches(group_sizes: tuple[GroupSizes, ...]) -> Iterator[tuple[Sequence[int], int]]:
    """Yield the group sizes of all lanes, and how many groups in a row have them."""
    if all(len(each) == 1 for each in group_sizes):
        yield [each[0][0] for each in group_sizes], group_sizes[0][0][1]
        return
    iterators = [iter(each) for each in group_sizes]
    sizes, left = [0] * len(group_sizes), [0] * len(group_sizes)
    while True:
        for lane, repeat in enumerate(left):
            if not repeat:
                sizes[lane], left[lane] = next(iterators[lane], (0, 0))
        repeat = min(left)
        if not repeat:
            assert not any(left), "lanes of different lengths"
            return
        yield sizes, repeat
        left = [each - repeat for each in left]


def spec_of(pieces: tuple[Piece, ...]) -> tuple[Spec, list[Any]]:
    """Return a description of the pieces for a message, and the blobs that it refers to by number, each once.

    >>> weave = Weave((((("x", "y"), 0, 2),), ((("z",), 0, 1),)), ([(2, 1)], [(1, 1)]), zipped=False)
    >>> spec_of(((weave, 0, 3),))
    ((((((((0, 0, 2),), ((1, 0, 1),)), ([(2, 1)], [(1, 1)]), False),), 0, 0), (-1, 0, 3)), [('x', 'y'), ('z',)])
    """
    if len(pieces) == 1 and type(pieces[0][0]) is not Weave:
        source, start, stop = pieces[0]
        return ((0, start, stop),), [source]
    described = _Described()
    spec: Spec = unnested(described.all(pieces))
    return (((tuple(described.weaves), 0, 0), *spec) if described.weaves else spec), described.blobs


class _Described:
    """The state of `spec_of`.  No closure: that would be a cycle, and keep the blobs until the collector comes by."""

    def __init__(self) -> None:
        self.blobs: list[Any] = []
        self.weaves: list[Any] = []
        # What stands twice in the pieces is sent twice, to become two objects: each number is used forwards only.
        self._numbers: dict[int, list[int]] = {}
        self._stops: dict[int, int] = {}

    def all(self, pieces: tuple[Piece, ...]) -> Generator[Any, Any, Spec]:
        described = []
        for source, start, stop in pieces:
            mine = self._numbers.setdefault(id(source), [])
            number = next((each for each in mine if self._stops[each] <= start), None)
            if number is None:
                if type(source) is Weave:
                    lanes = []
                    for lane in source.lanes:
                        lanes.append((yield self.all(lane)))
                    self.weaves.append((tuple(lanes), source.group_sizes, source.zipped))
                    number = -len(self.weaves)
                else:
                    number = len(self.blobs)
                    self.blobs.append(source)
                mine.append(number)
            self._stops[number] = stop
            described.append((number, start, stop))
        return tuple(described)


def unnested(call: Generator[Any, Any, Any]) -> Any:
    """Return what a generator returns that yields further ones, for what these return: calls that are not nested."""
    calls, returned = [call], None
    while calls:
        try:
            calls.append(calls[-1].send(returned))
            returned = None
        except StopIteration as stop:
            calls.pop()
            returned = stop.value
    return returned


def items_of(spec: Spec, blobs: Sequence[list[Any]]) -> list[Any]:
    """Return the items that a message describes, given those of its blobs."""
    if len(spec) == 1:
        number, start, stop = spec[0]
        items = blobs[number]
        return items if stop - start == len(items) else items[start:stop]
    sources: dict[int, list[Any]] = dict(enumerate(blobs))
    if spec and type(spec[0][0]) is tuple:
        (weaves, _, _), *spec = spec  # type: ignore[assignment]
        for number, (lanes, group_sizes, zipped) in enumerate(weaves, 1):
            sources[-number] = woven([_gathered(lane, sources) for lane in lanes], group_sizes, zipped)
    return _gathered(spec, sources)


def _gathered(spec: Spec, sources: dict[int, list[Any]]) -> list[Any]:
    items: list[Any] = []
    for number, start, stop in spec:
        items += sources[number][start:stop]
    return items
