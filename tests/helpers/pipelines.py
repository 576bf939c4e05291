"""Random pipelines and inputs, for the property tests.

Law: made from the elements and rules alone, by a chooser (random, or hypothesis); jobs are functions and classes
of this module, so that they can be sent anywhere, and have no state where timing would show in it.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from conveyor import BalancingFork, ImplicitPipeWarning, Join, Pipe, Pipeline, Processor, ReplicatingFork

Choose = Callable[[int], int]


def number_of(item: Any) -> int:
    """Some number that depends on all of an item."""
    if isinstance(item, list | tuple):
        return sum((index + 1) * number_of(each) for index, each in enumerate(item)) % 10007
    return 0 if item is None else int(item)


def same(item: Any) -> Any:
    return item


def increment(item: Any) -> int:
    return number_of(item) + 1


def triple(item: Any) -> int:
    return (number_of(item) * 3) % 10007


def drop_some(item: Any) -> Any:
    return None if number_of(item) % 3 == 0 else item


def drop_all(item: Any) -> Any:
    return None


def several(item: Any) -> Iterator[int]:
    for index in range(number_of(item) % 4):
        yield number_of(item) * 10 + index


def many(item: Any) -> Iterator[int]:
    if number_of(item) % 5 == 0:
        yield from range(25)


def pairs(item: Any) -> Any:
    return (item, number_of(item))


class Trailing(Processor[Any, Any]):
    """Passes items on, and something at the end, whatever came before."""

    def process(self, item: Any) -> Any:
        return item

    def finish(self) -> Any:
        yield 7
        yield 8
        yield 9


class Silent(Processor[Any, Any]):
    """Gives all that it has at the end."""

    def process(self, item: Any) -> Any:
        return None

    def finish(self) -> Any:
        return 5


class Sum(Processor[Any, Any]):
    """Has state, so it must stand where the order of its input is known."""

    def __init__(self) -> None:
        self.total = 0

    def process(self, item: Any) -> Any:
        self.total = (self.total + number_of(item)) % 10007
        return self.total

    def finish(self) -> Any:
        total, self.total = self.total, 0
        return total


FUNCTIONS: tuple[Callable[[Any], Any], ...] = (same, increment, triple, drop_some, drop_all, several, many, pairs)


class Each:
    """A job for lists, made of one for an item."""

    def __init__(self, job: Callable[[Any], Any]) -> None:
        self.job = job
        self.__name__ = f"each_{job.__name__}"

    def __call__(self, items: list[Any]) -> list[Any]:
        return [self.job(item) for item in items]


class Waiting:
    """An async job, made of one that is not."""

    def __init__(self, job: Callable[[Any], Any]) -> None:
        self.job = job
        self.__name__ = f"waiting_{job.__name__}"

    async def __call__(self, item: Any) -> Any:
        await asyncio.sleep(0.0002 * (number_of(item) % 4))
        return self.job(item)


def waiting(choose: Choose) -> Processor[Any, Any]:
    """A Processor with an async job."""
    job, workers = Waiting(FUNCTIONS[choose(len(FUNCTIONS))]), 1 + choose(3) if choose(3) == 0 else None
    return Processor(job, concurrency=1 + choose(9), workers=workers)


class Blocking:
    """A job that waits, made of one that does not."""

    def __init__(self, job: Callable[[Any], Any]) -> None:
        self.job = job
        self.__name__ = f"blocking_{job.__name__}"

    def __call__(self, item: Any) -> Any:
        time.sleep(0.0002 * (number_of(item) % 4))
        return self.job(item)


def threaded(choose: Choose) -> Processor[Any, Any]:
    """A Processor that makes several calls at once, in threads."""
    job, workers = Blocking(FUNCTIONS[choose(len(FUNCTIONS))]), 1 + choose(3) if choose(3) == 0 else None
    return Processor(job, threads=1 + choose(9), workers=workers)


def listed(choose: Choose) -> Processor[Any, Any]:
    """A Processor whose job gets lists and gives each item its output."""
    job, workers = Each(FUNCTIONS[choose(len(FUNCTIONS))]), 1 + choose(3) if choose(3) == 0 else None
    timeout = None if choose(3) else 0.001 * choose(4)
    return Processor(job, batch=1 + choose(9), per_item=True, batch_timeout=timeout, workers=workers)


def processor(choose: Choose, single: bool = True, counted: bool = True, plain: bool = False) -> Processor[Any, Any]:
    """One Processor; `single` says that what reaches it does not depend on timing, `counted` that neither does the
    number of its workers, each of which has its say at the end; `plain`, that each output is of one item."""
    if plain:
        return Processor(FUNCTIONS[choose(len(FUNCTIONS))], workers=1 + choose(3) if choose(3) == 0 else None)
    kind = choose(12)
    if kind == 8 and counted:
        return Trailing()
    if kind == 9 and single:
        return Sum()
    if kind == 10 and counted:
        return Silent()
    batch = 1 + choose(4) if choose(4) == 0 else None
    workers = 1 + choose(3) if choose(4) == 0 else None
    return Processor(FUNCTIONS[choose(len(FUNCTIONS))], batch=batch, workers=workers)


def pipe(choose: Choose) -> Pipe:
    maxsize = 1 + choose(6) if choose(3) else None
    return Pipe(maxsize, maxbytes=None if choose(4) else 1 + choose(200))


def random_pipeline(
    choose: Choose,
    depth: int = 2,
    longest: int = 3,
    plain: bool = False,
    special: Callable[[Choose], Processor[Any, Any]] | None = None,
    **settings: Any,
) -> Pipeline[Any, Any]:
    """A pipeline of a few elements, valid by construction; `depth` is how far forks may stand in forks.

    `plain`: no Processor works in batches, or has a `finish`.  `special` makes those that stand behind the first, and
    at the end.
    """
    pipeline: Pipeline[Any, Any] = Pipeline(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitPipeWarning)
        pipeline.add(processor(choose, plain=plain))
        if special is not None:
            pipeline.add(pipe(choose)).add(special(choose))
        _extend(pipeline, choose, depth=depth, length=1 + choose(longest), single=True, counted=True, plain=plain)
        if special is not None:
            pipeline.add(pipe(choose)).add(special(choose))
    return pipeline


def _extend(
    pipeline: Pipeline[Any, Any],
    choose: Choose,
    depth: int,
    length: int,
    single: bool,
    counted: bool,
    plain: bool,
) -> None:
    """Add some elements; `single` says that no BalancingFork is open, `counted` that none without a number is."""
    for _ in range(length):
        kind = choose(4) if depth else 0
        if choose(4):
            pipeline.add(pipe(choose))
        if kind <= 1:
            pipeline.add(processor(choose, single, counted, plain))
        elif kind == 2:
            count = 1 + choose(3)
            pipeline.add(ReplicatingFork(count))
            if choose(2) and single:
                # On branches of a BalancingFork, different Processors would make results a matter of timing.
                pipeline.add(*[processor(choose, single, counted, plain) for _ in range(count)])
            _extend(pipeline, choose, depth - 1, choose(2), single, counted, plain)
            if choose(3):
                pipeline.add(pipe(choose))
            if count == 2 and choose(3) == 0:
                pipeline.add(Join(how="zip"))
            elif count == 2 and choose(4) == 0:
                pipeline.add(Join(1))
                pipeline.add(Join())
            else:
                pipeline.add(Join())
        else:
            count = 1 + choose(3)
            fixed = choose(3) > 0
            pipeline.add(BalancingFork(count) if fixed else BalancingFork(max=2))
            if choose(2):
                pipeline.add(pipe(choose))
            _extend(pipeline, choose, depth - 1, 1 + choose(2), False, counted and fixed, plain)
            pipeline.add(Join())


def random_input(choose: Choose) -> list[int]:
    return [choose(50) for _ in range(choose(60))]
