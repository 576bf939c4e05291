"""Groups as counts, against groups as lists.

Law: however items and groups are cut into chunks, the counts say what the lists say.
"""

from __future__ import annotations

import random
from itertools import accumulate, pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.core.data.group_sizes import Batcher, Groups, GroupSizes, Regroup, append_groups, group_sizes_of, total
from tests.helpers.support import ALL, TestCase

EXAMPLES = settings(max_examples=100 if ALL else 50, deadline=None, derandomize=True, database=None)
SIZES = st.lists(st.integers(0, 4), max_size=20)
CUTS = st.lists(st.integers(0, 100), max_size=6)
TRAILING = st.integers(0, 5)


def sizes_of(group_sizes: GroupSizes) -> list[int]:
    """The plain sequence of sizes that runs stand for."""
    return [size for size, repeat in group_sizes for _ in range(repeat)]


def chunks(sizes: list[int], trailing: int, cuts: list[int]) -> list[tuple[GroupSizes, int]]:
    """Groups of these sizes, and `trailing` items behind them, as the chunks between some cuts.

    A group is closed in the chunk in which its last item is, an empty one right behind the group before it.
    """
    items = sum(sizes) + trailing
    ends = list(accumulate(sizes))
    borders = sorted({cut % (items + 1) for cut in cuts} | {items})
    found = []
    closed = begin = 0
    for border in borders:
        inside = []
        while closed < len(ends) and ends[closed] <= border:
            inside.append(min(sizes[closed], ends[closed] - begin))
            closed += 1
        found.append((group_sizes_of(inside), border - begin))
        begin = border
    return found


def joined(parts: list[tuple[GroupSizes, int]]) -> tuple[list[int], int]:
    """The sizes of the groups in chunks, and how many items are behind the last closed one."""
    groups = Groups()
    for group_sizes, items in parts:
        groups.push(group_sizes, items)
    return drained(groups), groups.open


def drained(groups: Groups) -> list[int]:
    """Take all closed groups out."""
    sizes = []
    while groups.first is not None:
        sizes.append(groups.first[0])
        groups.drop(1)
    return sizes


class RunsTests(TestCase):
    """A sequence of sizes in its shortest form."""

    def test_nothing_is_nothing(self) -> None:
        group_sizes: GroupSizes = []
        append_groups(group_sizes, 3, 0)
        assert group_sizes == [] and group_sizes_of([]) == [] and total([]) == 0

    @EXAMPLES
    @given(SIZES)
    def test_there_and_back(self, sizes: list[int]) -> None:
        group_sizes = group_sizes_of(sizes)
        assert sizes_of(group_sizes) == sizes and total(group_sizes) == sum(sizes)
        assert all(repeat > 0 for _, repeat in group_sizes)
        assert all(one[0] != other[0] for one, other in pairwise(group_sizes))


class GroupsTests(TestCase):
    """The groups of a queue."""

    def test_a_group_in_three_chunks(self) -> None:
        groups = Groups()
        groups.push([(1, 1)], 3)
        assert (groups.first, groups.open) == ((1, 1), 2)
        groups.push([], 4)
        assert groups.open == 6
        groups.push([(1, 2)], 2)
        assert (drained(groups), groups.open) == ([1, 7, 1], 0)

    def test_a_group_closed_by_a_chunk_without_items(self) -> None:
        groups = Groups()
        groups.push([], 2)
        groups.push([(0, 3)], 0)
        assert drained(groups) == [2, 0, 0]

    def test_items_are_taken_out_of_the_first_group(self) -> None:
        groups = Groups()
        groups.push([(3, 2)], 8)
        groups.shrink(2)
        assert groups.items == 6
        assert (drained(groups), groups.open) == ([1, 3], 2)
        groups.shrink(1)
        assert groups.open == 1 and groups.items == 1

    def test_clear(self) -> None:
        groups = Groups()
        groups.push([(3, 2)], 8)
        groups.clear()
        assert groups.first is None and groups.open == 0 and groups.items == 0

    @EXAMPLES
    @given(SIZES, TRAILING, CUTS)
    def test_chunks_say_what_the_whole_says(self, sizes: list[int], trailing: int, cuts: list[int]) -> None:
        parts = chunks(sizes, trailing, cuts)
        assert sum(items for _, items in parts) == sum(sizes) + trailing
        assert joined(parts) == (sizes, trailing)

    @EXAMPLES
    @given(SIZES, TRAILING, st.integers(0, 2**32))
    def test_taking_items_and_groups(self, sizes: list[int], trailing: int, seed: int) -> None:
        choose = random.Random(seed).randrange
        groups, model = Groups(), list(sizes)
        groups.push(group_sizes_of(sizes), sum(sizes) + trailing)
        while model:
            assert groups.items == sum(model) + trailing
            assert groups.first is not None and groups.first[0] == model[0]
            size, repeat = groups.first
            if choose(2):
                several = 1 + choose(repeat)
                groups.drop(several)
                del model[:several]
            else:
                taken = choose(size + 1)
                groups.shrink(taken)
                model[0] -= taken
                if not model[0] and choose(2):
                    groups.drop(1)
                    del model[0]
        assert groups.first is None and groups.open == trailing


def composed(outer: list[int], inner: list[int]) -> tuple[list[int], int]:
    """Groups of elements, and what came of each element: the groups of that, and what is behind them."""
    found, position = [], 0
    for size in outer:
        found.append(sum(inner[position : position + size]))
        position += size
    return found, sum(inner[position:])


class RegroupTests(TestCase):
    """Two levels into one."""

    def test_empty_groups_are_closed_as_soon_as_they_are_due(self) -> None:
        regroup = Regroup()
        regroup.push([(0, 2), (1, 1), (0, 1)], 1)
        assert regroup.feed([], 0) == [(0, 2)]
        assert regroup.feed([], 0) == []
        assert regroup.feed([], 5) == []
        assert regroup.feed([(2, 1)], 2) == [(2, 1), (0, 1)]

    def test_elements_of_a_group_that_is_still_open(self) -> None:
        regroup = Regroup()
        regroup.push([], 2)
        assert regroup.feed([(3, 1)], 3) == []
        regroup.push([(1, 1)], 1)
        assert regroup.feed([(4, 1)], 4) == []
        # The last element closes the group, and the chunk in which it is says only what is new.
        assert regroup.feed([(5, 1)], 5) == [(5, 1)]

    def test_clear(self) -> None:
        regroup = Regroup()
        regroup.push([(0, 2)], 0)
        regroup.clear()
        assert regroup.feed([], 0) == []

    @EXAMPLES
    @given(SIZES, st.integers(0, 3), TRAILING, CUTS, CUTS, st.integers(0, 2**32))
    def test_composition(
        self, outer: list[int], beyond: int, trailing: int, cuts: list[int], others: list[int], seed: int
    ) -> None:
        """Whatever chunks the elements came in, and their outputs after them."""
        elements = sum(outer) + beyond
        choose = random.Random(seed).randrange
        inner = [choose(4) for _ in range(elements)]
        regroup = Regroup()
        source_items: list[tuple[GroupSizes, int]] = []
        pushed, reported = 0, 0
        waiting = chunks(outer, beyond, cuts)
        for group_sizes, items in chunks(inner, trailing, others):
            reported += sum(repeat for _, repeat in group_sizes)
            # An element comes in before anything comes of it, and all do before what is trailing; some come sooner.
            while waiting and (pushed <= reported or choose(2)):
                groups, count = waiting.pop(0)
                regroup.push(groups, count)
                pushed += count
            source_items.append((regroup.feed(group_sizes, items), items))
        for groups, count in waiting:
            regroup.push(groups, count)
        source_items.append((regroup.feed([], 0), 0))
        found, behind = composed(outer, inner)
        sizes, rest = joined(source_items)
        assert sum(sizes) + rest == sum(inner) + trailing
        assert (sizes, rest) == (found, behind + trailing)


class BatcherTests(TestCase):
    """Groups of items into groups of batches."""

    def test_a_unit_of_one_is_an_item(self) -> None:
        assert Batcher(1).calls([(2, 3)], 7) == ([(2, 3)], 7)

    @EXAMPLES
    @given(st.integers(1, 5), SIZES, TRAILING, CUTS)
    def test_a_batch_counts_where_its_last_item_is(
        self, unit: int, sizes: list[int], trailing: int, cuts: list[int]
    ) -> None:
        batcher = Batcher(unit)
        parts = [batcher.calls(group_sizes, items) for group_sizes, items in chunks(sizes, trailing, cuts)]
        ends = list(accumulate(sizes))
        expected = [end // unit - begin // unit for begin, end in zip([0, *ends], ends, strict=False)]
        whole = (sum(sizes) + trailing) // unit
        assert joined(parts) == (expected, whole - sum(expected))


def test_the_model_itself() -> None:
    """Chunks of what the docstring of the module tells: a group that begins in one chunk and ends in the next."""
    parts: list[Any] = chunks([3, 0, 2], 1, [1])
    assert parts == [([], 1), ([(2, 1), (0, 1), (2, 1)], 5)]
