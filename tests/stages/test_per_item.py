"""How a job that gets lists is called: what is cut, and what is cut again where it raises.

Law: random items and bad items, compared with one item at a time; a bug that is planted in the cutting is found.
"""

from __future__ import annotations

import inspect
import random
import textwrap
import unittest
from typing import Any
from unittest import mock

from conveyor import Processor
from conveyor.stages import per_item
from conveyor.stages.per_item import PerItem, single_work_of
from tests.helpers.support import TestCase

# Each replaces a piece of the text of `PerItem.over`.
BUGS = {
    "the second half begins one too late": ("parts += [(middle, stop)", "parts += [(middle + 1, stop)"),
    "the halves are called in the wrong order": (
        "[(middle, stop), (first, middle)]",
        "[(first, middle), (middle, stop)]",
    ),
    "an item that is alone is called again and again": ("stop - first == 1", "stop - first == 0"),
    "a half is the whole list": ("parts += [(middle, stop), (first, middle)]", "parts += [(first, stop)] * 2"),
}
MOST_CALLS = 400


class Bad(Exception):
    """The job raises at an item."""


class Job:
    """Refuses bad items, and changes what it gets.  It refuses none any more once it seems to be called without end."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.calls = 0

    def __call__(self, rows: list[list[int]]) -> list[int]:
        self.calls += 1
        if self.calls > MOST_CALLS:
            return [0] * len(rows)
        numbers = [number for row in rows for number in row]
        for row in rows:
            row.append(-1)
        assert -1 not in numbers, "the job gets what it has changed"
        if not self.bad.isdisjoint(numbers):
            raise Bad
        rows.clear()
        return [number * 10 for number in numbers]


def outputs(call: PerItem, items: list[int]) -> list[Any]:
    """What comes of items: as a worker does it, which goes on behind an item that fails alone."""
    found: list[Any] = []
    while len(found) < len(items):
        stop = min(len(items), len(found) + call.most)
        try:
            for values in call.over(lambda first, last: [[each] for each in items[first:last]], len(found), stop, int):
                found += values
        except Bad:
            found.append("bad")
    return found


def check(seed: int) -> None:
    """Raise AssertionError where an item has another outcome than alone."""
    source = random.Random(seed)
    items = list(range(source.randrange(40)))
    bad = {item for item in items if source.random() < 0.1}
    job = Job(bad)
    call = PerItem(job, most=1 + source.randrange(12))
    assert outputs(call, items) == ["bad" if item in bad else item * 10 for item in items], f"seed {seed}"
    assert job.calls <= MOST_CALLS, f"seed {seed}: the job is called without end"


class Cutting(TestCase):
    """Lists, halves and single items."""

    def test_each_item_has_the_outcome_that_it_has_alone(self) -> None:
        for seed in range(300):
            check(seed)

    def test_planted_bugs_are_found(self) -> None:
        text = textwrap.dedent(inspect.getsource(PerItem.over))
        for name, (old, new) in BUGS.items():
            with self.subTest(bug=name):
                self.assertEqual(text.count(old), 1, "the code has changed, and this bug with it")
                namespace: dict[str, Any] = {}
                planted = "from __future__ import annotations\n" + text.replace(old, new)
                exec(compile(planted, name, "exec"), vars(per_item), namespace)
                with (
                    mock.patch.object(PerItem, "over", namespace["over"]),
                    self.assertRaises(AssertionError),
                ):
                    for seed in range(300):
                        check(seed)

    def test_one_bad_item_of_many_takes_few_calls(self) -> None:
        job = Job({500})
        self.assertEqual(outputs(PerItem(job, most=1024), list(range(1024))).count("bad"), 1)
        # Two for each time that the list is halved, and one for what is left.
        self.assertLessEqual(job.calls, 2 * 10 + 2)

    def test_a_processor_without_lists_has_its_job(self) -> None:
        self.assertIs(single_work_of(Processor(len)), len)
        self.assertIs(single_work_of(Processor(len, batch=2)), len)


if __name__ == "__main__":
    unittest.main()
