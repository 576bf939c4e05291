"""What items become on their way: blobs of numbers, told apart from everything else."""

from __future__ import annotations

import pickle
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.engines.process.wire.codec import MANY_ITEMS, NUMBERS, encode, encode_numbers
from tests.helpers.support import TestCase


class Level(IntEnum):
    """A number that is an object of its own class."""

    LOW = 1


class Told(int):
    """A number that its class pickles."""


class Silent:
    """Something that can be added to a number, and that the pickler remembers."""

    def __radd__(self, other: Any) -> Any:
        return other


def silent() -> None:
    """A job."""


# What a list of numbers may hold in the middle, where nobody looks.
OTHERS: tuple[Any, ...] = (
    *(None, "", b"", "text", b"bytes", 1j, (), [], {}, set(), frozenset(), Level.LOW, Told(3), Silent()),
    *(Decimal(1), Fraction(1, 2), Ellipsis, NotImplemented, int, silent, range(3), bytearray(b"1"), iter(())),
)


class NumbersTest(TestCase):
    """What `encode_numbers` takes, and what it leaves."""

    def test_many_numbers(self) -> None:
        for numbers in (range(1000), [0.5] * MANY_ITEMS, [True, 1, 1.5] * 100, [10**400] * 100, [-1] * 5000):
            blob = encode_numbers(list(numbers))
            assert blob is not None
            assert pickle.loads(blob) == list(numbers)
            assert encode(list(numbers)) == blob

    def test_few_are_left(self) -> None:
        assert encode_numbers(list(range(MANY_ITEMS - 1))) is None
        assert encode_numbers([]) is None

    def test_whatever_else_is_among_them(self) -> None:
        for other in OTHERS:
            for place in (1, 50, 98):
                items: list[Any] = list(range(100))
                items[place] = other
                assert encode_numbers(items) is None, f"{other!r} at {place}"

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.one_of(st.integers(), st.floats(), st.booleans(), st.sampled_from(OTHERS)), min_size=1), st.data()
    )
    def test_any_list(self, few: list[Any], data: st.DataObject) -> None:
        items = [*([0] * MANY_ITEMS), *few]
        blob = encode_numbers(data.draw(st.permutations(items)))
        assert (blob is not None) == all(type(item) in NUMBERS for item in items)
