"""Pieces and weaves, against plain lists.

Law: whatever is cut and glued, each item is there once and in order; a weave is the groups of its lanes, side by side.
"""

from __future__ import annotations

import pickle
from itertools import zip_longest
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.core.data.group_sizes import group_sizes_of
from conveyor.core.data.pieces import Piece, Pieces, Weave, items_of, spec_of, woven
from conveyor.core.nodes.base import Lane
from conveyor.core.nodes.joins import closed_groups, weave
from tests.helpers.support import ALL, TestCase

EXAMPLES = settings(max_examples=100 if ALL else 50, deadline=None, derandomize=True, database=None)


def items_in(pieces: tuple[Piece, ...]) -> list[Any]:
    """The items of pieces whose blobs are lists, by way of what is sent to a process."""
    spec, blobs = spec_of(pieces)
    return items_of(spec, blobs)


class PiecesTests(TestCase):
    """A queue that can be cut anywhere."""

    def test_a_blob_is_cut_and_not_copied(self) -> None:
        blob = object()
        queue = Pieces()
        queue.push(blob, 5)
        queue.extend(((blob, 7, 9),), 2)
        assert queue.take(3) == ((blob, 0, 3),)
        assert queue.take(3) == ((blob, 3, 5), (blob, 7, 8))
        assert queue.items == 1
        assert queue.take(0) == ()
        assert queue.take(1) == ((blob, 8, 9),)
        queue.check()

    def test_more_than_there_is(self) -> None:
        queue = Pieces()
        queue.push("blob", 1)
        with self.assertRaises(AssertionError):
            queue.take(2)

    def test_clear(self) -> None:
        queue = Pieces()
        queue.push("blob", 1)
        queue.clear()
        assert queue.items == 0 and queue.take(0) == ()

    @EXAMPLES
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=30))
    def test_any_cuts(self, steps: list[tuple[bool, int]]) -> None:
        queue = Pieces()
        model: list[int] = []
        number = 0
        for push, items in steps:
            if push:
                blob = list(range(number, number + items))
                number += items
                queue.push(blob, items)
                model += blob
            else:
                items = min(items, len(model))
                pieces = queue.take(items)
                assert items_in(pieces) == model[:items]
                assert all(start < stop for _, start, stop in pieces)
                del model[:items]
            assert queue.items == len(model)
            queue.check()


def model_of(lanes: list[list[list[str]]], zipped: bool) -> list[Any]:
    """What a weave of these lanes, lists of groups, gives."""
    found: list[Any] = []
    for parts in zip(*lanes, strict=True):
        found += zip_longest(*parts) if zipped else [item for part in parts for item in part]
    return found


@st.composite
def lanes_of_groups(draw: st.DrawFn) -> list[list[list[str]]]:
    """Some lanes, each a list of groups, each a list of items that are like no other."""
    count, groups = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return [
        [[f"{lane}.{group}.{item}" for item in range(draw(st.integers(0, 3)))] for group in range(groups)]
        for lane in range(count)
    ]


def flat(groups: list[list[str]]) -> list[str]:
    return [item for group in groups for item in group]


class WeaveTests(TestCase):
    """Several lanes, put in order."""

    @EXAMPLES
    @given(lanes_of_groups(), st.booleans())
    def test_woven_is_the_groups_side_by_side(self, lanes: list[list[list[str]]], zipped: bool) -> None:
        group_sizes = tuple(group_sizes_of(map(len, groups)) for groups in lanes)
        assert list(woven([list(flat(groups)) for groups in lanes], group_sizes, zipped)) == model_of(lanes, zipped)

    @EXAMPLES
    @given(lanes_of_groups(), st.booleans(), st.integers(0, 12))
    def test_closed_groups_of_lanes_as_far_as_there_is_room(
        self, lanes: list[list[list[str]]], zipped: bool, room: int
    ) -> None:
        waiting = []
        for groups in lanes:
            lane = Lane(100)
            blob: Any = flat(groups)
            if blob:
                lane.push(((blob, 0, len(blob)),), len(blob), group_sizes_of(map(len, groups)))
            else:
                lane.push((), 0, group_sizes_of(map(len, groups)))
            waiting.append(lane)
        group_sizes, lane_sizes, items = closed_groups(waiting, room, zipped=zipped)
        got = items_in(weave(waiting, lane_sizes, items, zipped=zipped))
        taken = sum(repeat for _, repeat in group_sizes)
        assert got == model_of([groups[:taken] for groups in lanes], zipped)
        assert len(got) == items <= room
        if taken < len(lanes[0]):
            following = [groups[taken : taken + 1] for groups in lanes]
            assert items + len(model_of(following, zipped)) > room, "there was room for another group"

    def test_a_slice_of_a_weave(self) -> None:
        weaving = Weave(((([1, 2], 0, 2),), ((["a", "b"], 0, 2),)), ([(1, 2)], [(1, 2)]), False)
        assert items_in(((weaving, 0, 4),)) == [1, "a", 2, "b"]
        assert items_in(((weaving, 1, 3), ([9], 0, 1))) == ["a", 2, 9]

    def test_a_weave_of_weaves(self) -> None:
        inner = Weave(((([1, 2], 0, 2),), (([3], 0, 1),)), ([(1, 2)], [(0, 1), (1, 1)]), True)
        outer = Weave((((inner, 0, 2),), ((["a", "b"], 0, 2),)), ([(1, 2)], [(1, 2)]), False)
        assert items_in(((outer, 0, 4),)) == [(1, None), "a", (2, 3), "b"]

    def test_weaves_in_weaves_are_sent_without_nesting(self) -> None:
        source: Any = [1]
        for _ in range(1000):
            source = Weave((((source, 0, 1),),), ([(1, 1)],), True)
        spec, blobs = spec_of(((source, 0, 1),))
        (row,) = items_of(pickle.loads(pickle.dumps(spec)), blobs)
        for _ in range(1000):
            (row,) = row
        assert row == 1

    def test_a_blob_that_stands_in_several_pieces_is_sent_once(self) -> None:
        blob = [1, 2, 3]
        weaving = Weave((((blob, 1, 2),), ((blob, 2, 3),)), ([(1, 1)], [(1, 1)]), True)
        spec, blobs = spec_of(((blob, 0, 1), (weaving, 0, 1)))
        assert blobs == [blob] and items_of(spec, blobs) == [1, (2, 3)]

    def test_an_item_that_stands_in_two_pieces_is_sent_twice(self) -> None:
        # It becomes two objects at the other end: what one branch does to its own, no other sees.
        blob = [[1], [2]]
        spec, blobs = spec_of(((blob, 0, 2), (blob, 0, 2)))
        assert blobs == [blob, blob] and [number for number, _, _ in spec] == [0, 1]
