"""Jobs that nodes import; slow enough that something can die amid a run."""

from __future__ import annotations

import logging
import os
import pickle
import time
import warnings
from typing import Any

from conveyor import Processor, worker


def slowly(item: int) -> int:
    """Return the item plus one, after some milliseconds."""
    time.sleep(0.005)
    return item + 1


def same(item: Any) -> Any:
    return item


def doubled(item: int) -> int:
    return item * 2


def all_doubled(batch: list[int]) -> list[int]:
    return [item * 2 for item in batch]


class Total(Processor[int, int]):
    """Has state that may be lost: passes items on, and counts them."""

    restartable = True

    def setup(self) -> None:
        self.seen = 0

    def process(self, item: int) -> int:
        self.seen += 1
        return item


class Place(Processor[Any, Any]):
    """Tells in which session of the system it runs: that of a node."""

    def process(self, item: Any) -> Any:
        time.sleep(0.01)
        return os.getsid(0)


class Table:
    """Has its bytes out of band, as an array has."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Table, (pickle.PickleBuffer(self.data),)


def looked_up(item: int) -> tuple[int, bool, Any]:
    """Return what the shared objects say of an item."""
    time.sleep(0.002)
    shared = worker().shared
    data = memoryview(shared["table"].data)
    return data[-1 - item], data.readonly, shared["name"]


def die_at_seven(item: int) -> int:
    """End the worker at an item, whoever has it."""
    if item == 7:
        os._exit(5)
    return item


def sleep_at_three(item: int) -> int:
    """Stand still at an item."""
    if item == 3:
        time.sleep(600)
    return item


def tell(item: int) -> int:
    """Log and warn."""
    logging.getLogger("tests.cluster").warning("item %d", item)
    with warnings.catch_warnings():
        # The package of the tests has made errors of them.
        warnings.simplefilter("always")
        warnings.warn(f"about {item}", UserWarning, stacklevel=1)
    return item


def raise_at_five(item: int) -> int:
    if item == 5:
        raise ValueError("five")
    return item
