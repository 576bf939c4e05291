"""Unpickling that goes on: which item it was, and that all others are as they were.

Law: pickles are made by the codec, and each kind of object whose rebuilding can fail is tried among others that are
whole, and deep within one.
"""

from __future__ import annotations

import pickle
import unittest
from collections import OrderedDict
from typing import Any

from conveyor import Pipe, Pipeline, Processor, ProcessorError
from conveyor.engines.process.wire.codec import encode
from conveyor.engines.process.worker.lease_items import Unloadable, cause_of_unloadable, load_tolerantly
from tests.helpers.support import TestCase


class Refusal(Exception):
    """What the classes below raise."""


class Fine:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is Fine and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


class RefusesState(Fine):
    def __setstate__(self, state: Any) -> None:
        raise Refusal("state")


def refuse(*arguments: Any) -> None:
    raise Refusal("call")


class RefusesCall(Fine):
    def __reduce__(self) -> Any:
        return refuse, (self.value,)


class RefusesCallWithMore(Fine):
    """Of what is built in vain, items and values are left as well."""

    def __reduce__(self) -> Any:
        return refuse, (), {"state": 1}, iter([1, 2, 3]), iter([("key", Fine(1))])


class RefusesNew(Fine):
    def __new__(cls, *arguments: Any) -> RefusesNew:
        if not arguments:
            raise Refusal("new")
        return super().__new__(cls)


class RefusesNewWithKeywords(Fine):
    def __new__(cls, *, value: Any = None, fine: bool = True) -> RefusesNewWithKeywords:
        if not fine:
            raise Refusal("new, with keywords")
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> Any:
        return (), {"fine": False}

    def __init__(self, value: Any = None) -> None:
        super().__init__(value)


class Vanishes(Fine):
    """Is not there any more where it is to be rebuilt."""


BAD = (
    RefusesState(1),
    RefusesCall(1),
    RefusesCallWithMore(1),
    RefusesNew(1),
    RefusesNewWithKeywords(),
)


def number_of(item: Any) -> Any:
    return item["number"]


def bad_at(number: int) -> Any:
    return {"number": number, "more": RefusesState(number) if number == 57 else Fine(number)}


class SparingTest(TestCase):
    """Blobs."""

    def test_each_kind(self) -> None:
        for bad in BAD:
            for item in (bad, [bad], {"key": (1, bad)}, OrderedDict(key=bad), Fine([bad, Fine(2)])):
                with self.subTest(bad=type(bad).__name__, within=type(item).__name__):
                    good = [Fine(1), 2, "three", [Fine([4])], {"five": Fine(5)}]
                    blob = encode([*good[:3], item, *good[3:]])
                    with self.assertRaises(Refusal):
                        pickle.loads(blob)
                    items = load_tolerantly(blob)
                    assert [cause_of_unloadable(each) is None for each in items] == [True] * 3 + [False] + [True] * 2
                    assert isinstance(cause_of_unloadable(items[3]), Refusal)
                    assert items[:3] + items[4:] == good

    def test_what_is_gone(self) -> None:
        blob = encode([1, Vanishes(2), 3])
        kind = globals().pop("Vanishes")
        try:
            items = load_tolerantly(blob)
        finally:
            globals()["Vanishes"] = kind
        assert (items[0], items[2]) == (1, 3) and isinstance(cause_of_unloadable(items[1]), AttributeError)

    def test_items_pickled_one_by_one(self) -> None:
        shared = Fine(1)
        items = load_tolerantly(encode([shared, shared, RefusesState(2)]))
        assert items[:2] == [shared, shared] and items[0] is not items[1]
        assert isinstance(items[2], Unloadable) and isinstance(cause_of_unloadable(items[2]), Refusal)

    def test_what_cannot_be_pickled_is_not_broken(self) -> None:
        assert cause_of_unloadable(lambda: None) is None and cause_of_unloadable(7) is None

    def test_what_is_no_pickle_at_all(self) -> None:
        with self.assertRaises(Exception):
            load_tolerantly(b"nonsense")

    def test_the_item_is_named_and_no_other(self) -> None:
        # However the items are cut into leases, and whoever gets which.
        for workers in (1, 3):
            pipeline = Pipeline().add(Processor(bad_at)).add(Pipe(maxsize=9)).add(Processor(number_of, workers=workers))
            for _ in range(5):
                results = []
                with self.assertRaises(ProcessorError) as caught:
                    for result in pipeline.stream(range(100)):
                        results.append(result)
                error = caught.exception
                assert (error.processor, error.phase, error.number, error.last) == ("number_of", "unpickle", 57, 57)
                assert results == list(range(len(results))) and len(results) <= 57


if __name__ == "__main__":
    unittest.main()
