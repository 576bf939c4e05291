"""Pieces of payload, which the core cuts and joins without looking into them.

Law: pure values.  A piece is `(source, start, stop)`: the items `start` to `stop` of a source.  A source is a blob or a
`Weave`.  A blob is an opaque handle of the shell, and a `Weave` interleaves several lanes.  Only the process at the end
of a hop turns pieces into items.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
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
