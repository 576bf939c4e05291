"""How many bytes one may give, who may give so many items.

Law: what is expected by the items before, and some more, but never more than the pipe holds; and always something.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.engines.process.wire.codec import (
    FIRST_BUDGET_BYTES,
    LEAST_BUDGET_BYTES,
    USUAL_PIPE_BYTES,
    ByteBudget,
    interval,
)
from conveyor.graph.plan import PIPE_BYTES
from tests.helpers.support import TestCase

EXAMPLES = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def may_give(budget: ByteBudget, size: int) -> int:
    """How many items of this size may be given, one by one, until it is spent; at most 1000."""
    for count in range(1000):
        if budget.spent:
            return count
        budget.take(1, size)
    return 1000


class ByteBudgetTest(TestCase):
    """In bytes."""

    def test_a_usual_pipe_is_what_the_plan_says(self) -> None:
        assert USUAL_PIPE_BYTES == PIPE_BYTES

    def test_before_anything_was_given(self) -> None:
        assert may_give(ByteBudget(PIPE_BYTES), FIRST_BUDGET_BYTES // 8) == 8
        # A quarter of the pipe.
        assert may_give(ByteBudget(1_000_000), 50_000) == 5
        assert may_give(ByteBudget(100 * PIPE_BYTES), FIRST_BUDGET_BYTES // 8) == 8

    def test_a_pipe_that_holds_less_than_an_item(self) -> None:
        budget = ByteBudget(1)
        assert may_give(budget, 300_000) == 1
        budget.renew(1)
        assert may_give(budget, 300_000) == 1

    def test_what_is_expected_and_some_more(self) -> None:
        budget = ByteBudget(PIPE_BYTES)
        budget.take(10, 10 * 10_000)
        budget.renew(100)
        # Four times as much as 100 items of 10 kB.
        assert may_give(budget, 40_000) == 100

    def test_light_items_that_become_heavy(self) -> None:
        for most, count in ((PIPE_BYTES, 4), (1_000_000, 1)):
            budget = ByteBudget(most)
            budget.take(100, 800)
            budget.renew(100)
            assert may_give(budget, LEAST_BUDGET_BYTES // 4) == count

    def test_never_more_than_the_pipe(self) -> None:
        budget = ByteBudget(1_000_000)
        budget.take(100, 100 * 20)
        budget.renew(50_000)
        assert may_give(budget, 300_000) == 4

    @EXAMPLES
    @given(st.integers(1, 10**9), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**5))
    def test_bounds(self, most: int, before: int, after: int, items: int) -> None:
        budget = ByteBudget(most)
        budget.take(1, before)
        budget.renew(items)
        given_bytes = may_give(budget, after) * after
        assert after <= given_bytes < most + after or given_bytes == after


class Intervals(TestCase):
    """Between two items that are weighed."""

    def test_a_pipe_that_holds_less_has_more_of_them_weighed(self) -> None:
        assert [interval(64, most) for most in (10 * PIPE_BYTES, PIPE_BYTES, PIPE_BYTES // 2, 1)] == [64, 64, 32, 8]
        assert interval(128, PIPE_BYTES // 8) == 16
