"""What is to be done: the jobs, the items and the checks of all workloads of `compare.py`.

The law of this file: it knows no library and no process, and imports next to nothing, because every measured process
imports it, also one whose start is what is measured.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import takes longer than this whole file
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Job = Callable[[Any], Any]

# How many items each workload has at scale 1, and how few it has at any scale.
SIZES = {
    "tiny": (500_000, 200),
    "records": (200_000, 200),
    "arrays": (200, 6),
    "fan-out": (200_000, 200),
    "latency": (2_000, 100),
    "start-fork": (1, 1),
    "start-spawn": (1, 1),
    "memory": (5_000_000, 20_000),
    "long-chain": (100_000, 2_000),
}

LONG_CHAIN = 100  # Processors
ARRAY_LENGTH = 1 << 20  # of float32: 4 MiB
TEMPLATES = 8
SLOW_EVERY = 1024
SLOW_SECONDS = 0.001


class Work:
    """One workload at one size, in all the forms in which a library may want it."""

    def __init__(self, name: str, scale: float, share: float) -> None:
        size, least = SIZES[name]
        self.name = name
        everything = max(least, round(size * scale))
        self.count = min(everything, max(least, round(size * scale * share)))
        # The part that this is of all items.
        self.share = self.count / everything
        self.jobs: tuple[Job, ...] = (increment, increment, increment)
        # The first of them where the item is the caller's own object; None: the same.
        self.first_on_copy: Job | None = None
        # All jobs at once, for what maps one function, and the same where nothing else copies the item.
        self.fused: Job = increment_thrice
        self.fused_on_copy: Job = increment_thrice
        # Whether `fused` gives a tuple of results for each item.
        self.flat = False
        self.ordered = True
        self.items: Iterable[Any] = range(self.count)
        if name == "records":
            import json

            self.jobs = (json.loads, change, json.dumps)
            self.fused = self.fused_on_copy = changed_record
            self.items = [record(number, "new") for number in range(self.count)]
        elif name == "arrays":
            self.jobs = (add_one, double, subtract_three)
            self.first_on_copy = add_one_on_copy
            self.fused = all_in_place
            self.fused_on_copy = all_on_copy
            self.items = Arrays(self.count)
        elif name == "fan-out":
            # The first job, and then the two branches.
            self.jobs = (increment, increment, negate)
            self.fused = self.fused_on_copy = to_both
            self.flat = True
            self.ordered = False
        elif name == "memory":
            self.jobs = (increment, increment, slow_increment)
            self.fused = self.fused_on_copy = slow_increment_thrice

    def check(self, results: list[Any]) -> None:
        """Raise ValueError where these are not the results."""
        if self.name == "records":
            expected: list[Any] = [record(number, "seen") for number in range(self.count)]
        elif self.name == "fan-out":
            expected = sorted([*range(2, self.count + 2), *range(-self.count, 0)])
            results = sorted(results)
        else:
            expected = list(range(3, self.count + 3))
        if results != expected:
            raise ValueError(f"wrong results: {len(results):,} of them, {len(expected):,} were expected")


# ---------------------------------------------------------------------------------------------------------------- ints


def increment(item: int) -> int:
    """A step that does as little as there is to do."""
    return item + 1


def increment_thrice(item: int) -> int:
    """Three such steps as one function."""
    return increment(increment(increment(item)))


def negate(item: int) -> int:
    """What the second branch does."""
    return -item


def to_both(item: int) -> tuple[int, int]:
    """The first step and both branches as one function."""
    first = increment(item)
    return increment(first), negate(first)


def slow_increment(item: int) -> int:
    """A step that cannot keep up: it waits a little, now and then, so that a wait is never too short to be a wait."""
    if item % SLOW_EVERY == 0:
        import time

        time.sleep(SLOW_SECONDS)
    return item + 1


def slow_increment_thrice(item: int) -> int:
    """The workload `memory` as one function."""
    return slow_increment(increment(increment(item)))


# ------------------------------------------------------------------------------------------------------------- records


def record(number: int, state: str) -> str:
    """About 200 bytes of JSON, just as `json.dumps` writes them; what is new becomes seen."""
    visits = number % 100 + (state == "seen")
    return (
        f'{{"id": {number}, "name": "somebody with number {number}", "state": "{state}", "visits": {visits}, '
        f'"tags": ["first", "second", "third"], "score": {number % 1000}.5, '
        '"address": {"street": "Long Street", "city": "Some Town"}}'
    )


def change(item: dict[str, Any]) -> dict[str, Any]:
    """What is done to a record."""
    item["state"] = "seen"
    item["visits"] += 1
    return item


def changed_record(item: str) -> str:
    """All three steps as one function."""
    import json

    return json.dumps(change(json.loads(item)))


# -------------------------------------------------------------------------------------------------------------- arrays


class Arrays:
    """So many arrays: a few that are given again and again, as making one anew would take longer than to send it."""

    def __init__(self, count: int) -> None:
        import numpy

        self.count = count
        self.templates: list[Any] = [
            (numpy.arange(ARRAY_LENGTH) % 1000 + number).astype(numpy.float32) for number in range(TEMPLATES)
        ]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.count):
            yield self.templates[number % TEMPLATES]


def add_one(item: Any) -> Any:
    """A cheap step, in place, as the receiver of an item may change it."""
    item += 1
    return item


def add_one_on_copy(item: Any) -> Any:
    """The same where the item may not be changed."""
    return item + 1


def double(item: Any) -> Any:
    """A cheap step, in place."""
    item *= 2
    return item


def subtract_three(item: Any) -> Any:
    """A cheap step, in place."""
    item -= 3
    return item


def all_in_place(item: Any) -> Any:
    """All three steps as one function."""
    return subtract_three(double(add_one(item)))


def all_on_copy(item: Any) -> Any:
    """The same where nothing has copied the item yet, or where it may not be changed."""
    return all_in_place(item.copy())


class ArrayCheck:
    """Looks at arrays as they come and keeps none but the last: together they are larger than many a memory.

    Of each array every 4099th value is compared, of the last one all are.
    """

    def __init__(self, work: Work) -> None:
        if not isinstance(work.items, Arrays):
            raise TypeError("these are no arrays")
        self.expected = [all_on_copy(template) for template in work.items.templates]
        self.samples = [array[::4099].copy() for array in self.expected]
        self.count = work.count
        self.last: Any = None

    def take(self, results: Iterable[Any]) -> int:
        """Compare all; return how many there were."""
        number = 0
        for number, result in enumerate(results, 1):
            if (result[::4099] != self.samples[(number - 1) % TEMPLATES]).any():
                raise ValueError(f"array {number - 1} is wrong")
            if number == self.count:
                self.last = result.copy()
        return number

    def finish(self, number: int) -> None:
        """Raise ValueError unless all came, and the last one is right everywhere."""
        if number != self.count or (self.last != self.expected[(number - 1) % TEMPLATES]).any():
            raise ValueError(f"wrong results: {number} arrays, {self.count} were expected")


# --------------------------------------------------------------------------------------------------- items in a package


class OnChunk:
    """A job for lists of items, for libraries that hand on one thing at a time."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, chunk: list[Any]) -> list[Any]:
        return list(map(self.job, chunk))


def chunks_of(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of `size`, the last one shorter."""
    from itertools import islice

    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
