"""How a value is shown in a message.

Law: the text is short, never raises, and costs no more for a large value than for a small one.
"""

from __future__ import annotations

from typing import Any

from conveyor._lean.short_repr import MOST_SORTED, short
from tests.helpers.support import TestCase


class Counting(int):
    """A key that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: Any) -> bool:
        Counting.compared += 1
        return int(self) < int(other)


class Short(TestCase):
    """Large values of the built-in kinds."""

    def test_of_many_bytes_some_are_shown(self) -> None:
        assert short(b"abc") == "b'abc'"
        assert short(bytes(100_000_000)) == repr(bytes(20)) + "... (100,000,000 bytes)"
        assert short(bytearray(b"x" * 200)) == f"bytearray(b'{'x' * 20}')... (200 bytes)"
        assert short([{"page": b"y" * 1000}]) == f"[{{'page': b'{'y' * 20}'... (1,000 bytes)}}]"

    def test_of_large_sets_and_dicts_few_are_sorted(self) -> None:
        keys = [Counting(number) for number in range(10_000)]
        for kind in (set, frozenset, dict.fromkeys):
            Counting.compared = 0
            text = short(kind(keys))
            assert text.endswith(("...}", "...})")), text
            assert Counting.compared <= 10 * MOST_SORTED
        assert short({2: "b", 1: "a"}) == "{1: 'a', 2: 'b'}"

    def test_a_repr_that_raises_is_no_error(self) -> None:
        class Shy:
            def __repr__(self) -> str:
                raise LookupError

        assert short([Shy()]).startswith("[<Shy instance at 0x")
