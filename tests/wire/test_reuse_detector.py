"""Who gives an object again, which may have been changed since, is found out; and nothing is kept that need not be.

Law: no process and no pickle; whether something is kept is told by a weak reference to it.
"""

from __future__ import annotations

import weakref

from conveyor.engines.process.wire.codec import BLOB_BYTES, HEAVY_OBJECTS_WATCHED, OBJECTS_WATCHED, ReuseDetector
from tests.helpers.support import TestCase


class Thing:
    """Something that can be changed."""


class Heavy(bytearray):
    """Something large, of which nobody can hold a weak reference."""

    __slots__ = ()


class Pooled:
    """Something that is never gone for good."""

    pool: list[Pooled]

    def __del__(self) -> None:
        self.pool.append(self)


class ReuseDetectorTest(TestCase):
    """The first few objects tell."""

    def test_one_that_gives_new_ones(self) -> None:
        detector = ReuseDetector()
        things = [Thing() for _ in range(OBJECTS_WATCHED + 1)]
        for thing in things:
            detector.observe(thing)
            assert detector.undecided is (thing is not things[-1])
        detector.observe(things[0])
        assert not detector.repeats, "that is known by now"

    def test_one_that_gives_two_in_turn(self) -> None:
        detector = ReuseDetector()
        things = Thing(), Thing()
        for thing in things:
            detector.observe(thing)
            assert detector.undecided
        detector.observe(things[0])
        assert detector.repeats and not detector.undecided

    def test_what_is_heavy_is_watched_for_less_long(self) -> None:
        detector = ReuseDetector()
        for number in range(HEAVY_OBJECTS_WATCHED + 1):
            detector.observe(Heavy(BLOB_BYTES))
            assert detector.undecided is (number < HEAVY_OBJECTS_WATCHED)
        assert not detector.repeats

    def test_what_nobody_else_has_is_not_kept(self) -> None:
        detector = ReuseDetector()
        thing = Thing()
        seen = weakref.ref(thing)
        detector.observe(thing)
        del thing
        assert seen() is None
        assert detector.undecided

    def test_a_new_one_where_another_was_is_not_the_same(self) -> None:
        for kind in (Thing, list):
            detector = ReuseDetector()
            for _ in range(OBJECTS_WATCHED + 1):
                # Without anybody to keep it, the next one has its address.
                detector.observe(kind())
            assert not detector.repeats and not detector.undecided

    def test_what_can_come_back_to_life_is_kept(self) -> None:
        Pooled.pool = []
        detector = ReuseDetector()
        detector.observe(Pooled())
        assert Pooled.pool == [], "from where it would be given again, as another by all that a weak reference says"
