"""Groups: which outputs belong to which item, kept as counts.

Law: pure values, no items.  Inside a fork, every stream is divided into groups: one for each item that entered the
fork, in order.  A step turns a group of inputs into the group of their outputs.  A join puts the groups of its
branches together.  `GroupSizes` is a list of `(size, repeat)`: `repeat` consecutive groups of `size` items each.

A chunk carries items, and the sizes of the groups that it closes.  A group may begin in one chunk and be closed by a
later one: a generator may yield for a long time.  The first size then counts only the items in the closing
chunk.  Items after the last closed group belong to a group that is still open.  When the stream has ended, they belong
to no group: they are trailing outputs, such as those of `finish`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

GroupSizes = list[tuple[int, int]]


def append_groups(group_sizes: GroupSizes, size: int, repeat: int) -> None:
    """Add `repeat` groups of `size` to `group_sizes`, in the shortest form.

    >>> group_sizes = [(1, 2)]
    >>> append_groups(group_sizes, 1, 3)
    >>> group_sizes
    [(1, 5)]
    """
    if not repeat:
        return
    if group_sizes and group_sizes[-1][0] == size:
        group_sizes[-1] = (size, group_sizes[-1][1] + repeat)
    else:
        group_sizes.append((size, repeat))


def group_sizes_of(sizes: Iterable[int]) -> GroupSizes:
    """Return the shortest `GroupSizes` for a sequence of sizes.

    >>> group_sizes_of([1, 1, 0, 2])
    [(1, 2), (0, 1), (2, 1)]
    """
    group_sizes: GroupSizes = []
    for size in sizes:
        append_groups(group_sizes, size, 1)
    return group_sizes


def with_one_less(group_sizes: GroupSizes, group: int) -> GroupSizes:
    """Return the sizes with one item less in the group of index `group`.

    >>> with_one_less([(1, 3), (2, 1)], 1)
    [(1, 1), (0, 1), (1, 1), (2, 1)]
    """
    sizes = [size for size, repeat in group_sizes for _ in range(repeat)]
    sizes[group] -= 1
    return group_sizes_of(sizes)


def total(group_sizes: Iterable[tuple[int, int]]) -> int:
    return sum(size * repeat for size, repeat in group_sizes)


class Groups:
    """The groups of a queue of items: closed groups, then `open` items of a group that is not closed."""

    __slots__ = ("_closed", "open")

    def __init__(self) -> None:
        self._closed: deque[tuple[int, int]] = deque()
        self.open = 0

    def push(self, group_sizes: GroupSizes, items: int) -> None:
        """Append a chunk of `items` items that closes the groups in `group_sizes`."""
        closed = self._closed
        if group_sizes:
            size, repeat = group_sizes[0]
            if self.open:
                closed.append((size + self.open, 1))
                repeat -= 1
            if repeat:
                closed.append((size, repeat))
            closed.extend(group_sizes[1:])
            self.open = items - total(group_sizes)
        else:
            self.open += items

    @property
    def items(self) -> int:
        """How many items there are in all, closed and open; counted anew each time."""
        return total(self._closed) + self.open

    @property
    def first(self) -> tuple[int, int] | None:
        """The first closed groups of one size, as `(size, repeat)`; None where no group is closed."""
        return self._closed[0] if self._closed else None

    def drop(self, groups: int) -> None:
        """Remove `groups` of the first closed groups of one size."""
        size, repeat = self._closed[0]
        if groups == repeat:
            self._closed.popleft()
        else:
            self._closed[0] = (size, repeat - groups)

    def shrink(self, items: int) -> None:
        """Take `items` items out of the first closed group, which stays, or else out of the open items."""
        if self._closed:
            size, _repeat = self._closed[0]
            self.drop(1)
            self._closed.appendleft((size - items, 1))
        else:
            self.open -= items

    def clear(self) -> None:
        self._closed.clear()
        self.open = 0


class Regroup:
    """Composes groups of elements and the outputs of each element to groups of outputs.

    In a step the elements are calls.  At the exit of a fork they are the items that entered it.

    >>> regroup = Regroup()
    >>> regroup.push([(2, 1), (0, 1), (1, 1)], 3)      # three elements in groups of 2, 0 and 1
    >>> regroup.feed([(1, 1), (3, 1)], 4)              # the first gave 1 output, the second 3
    [(4, 1), (0, 1)]
    """

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups = Groups()

    def push(self, group_sizes: GroupSizes, elements: int) -> None:
        """Append the groups of `elements` more elements."""
        self._groups.push(group_sizes, elements)

    def feed(self, group_sizes: GroupSizes, items: int) -> GroupSizes:
        """Return the groups that the next elements close; `group_sizes` are the numbers of their outputs.

        `items` counts all outputs.  Outputs beyond `group_sizes` belong to an unfinished element, and so to an open
        group.  Empty `group_sizes` close the empty groups that are due.
        """
        groups = self._groups
        closed: GroupSizes = []
        collected = 0
        for size, repeat in group_sizes:
            while repeat:
                first = groups.first
                if first is None:
                    # The elements belong to an open group or to none; their outputs follow the last closed group.
                    groups.open = max(0, groups.open - repeat)
                    collected += size * repeat
                    break
                wanted, times = first
                if not wanted:
                    append_groups(closed, collected, 1)
                    append_groups(closed, 0, times - 1)
                    groups.drop(times)
                    collected = 0
                elif wanted == 1:
                    step = min(repeat, times)
                    append_groups(closed, collected + size, 1)
                    append_groups(closed, size, step - 1)
                    groups.drop(step)
                    collected = 0
                    repeat -= step
                elif repeat >= wanted:
                    step = min(repeat // wanted, times)
                    append_groups(closed, collected + size * wanted, 1)
                    append_groups(closed, size * wanted, step - 1)
                    groups.drop(step)
                    collected = 0
                    repeat -= step * wanted
                else:
                    groups.shrink(repeat)
                    collected += size * repeat
                    break
        while groups.first is not None and groups.first[0] == 0:
            _, times = groups.first
            append_groups(closed, collected, 1)
            append_groups(closed, 0, times - 1)
            groups.drop(times)
            collected = 0
        return closed

    def clear(self) -> None:
        self._groups.clear()


class Batcher:
    """Turns groups of items into groups of calls; a call counts in the group of its last item.

    >>> batcher = Batcher(3)
    >>> batcher.calls([(1, 4)], 4)
    ([(0, 2), (1, 1), (0, 1)], 1)
    """

    __slots__ = ("_batch_size", "_phase")

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._phase = 0

    def calls(self, group_sizes: GroupSizes, items: int) -> tuple[GroupSizes, int]:
        """Return the chunk's groups measured in completed calls, and the number of calls completed in all."""
        if self._batch_size == 1:
            return group_sizes, items
        batch_size, phase = self._batch_size, self._phase
        converted: GroupSizes = []
        for size, repeat in group_sizes:
            if not size:
                append_groups(converted, 0, repeat)
                continue
            for _ in range(repeat):
                completed, phase = divmod(phase + size, batch_size)
                append_groups(converted, completed, 1)
        rest = items - total(group_sizes)
        completed, phase = divmod(phase + rest, batch_size)
        self._phase = phase
        return converted, total(converted) + completed
