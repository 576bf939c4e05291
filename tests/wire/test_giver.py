"""Who gives an object again, which may have been changed since, is found out; and nothing is kept that need not be.

Law: no process and no pickle; whether something is kept is told by a weak reference to it.
"""

from __future__ import annotations

import weakref

from conveyor.engines.process.wire.codec import BLOB_BYTES, WATCHED, WATCHED_HEAVY, ReuseDetector
from tests.helpers.support import TestCase


class Thing:
    """Something that can be changed."""


class SharedBlob(bytearray):
    """Something large, of which nobody can hold a weak reference."""

    __slots__ = ()


class Pooled:
    """Something that is never gone for good."""

    pool: list[Pooled]

    def __del__(self) -> None:
        self.pool.append(self)


class Givers(TestCase):
    """The first few objects tell."""

    def test_one_that_gives_new_ones(self) -> None:
        giver = ReuseDetector()
        things = [Thing() for _ in range(WATCHED + 1)]
        for thing in things:
            giver.observe(thing)
            assert giver.undecided is (thing is not things[-1])
        giver.observe(things[0])
        assert not giver.repeats, "that is known by now"

    def test_one_that_gives_two_in_turn(self) -> None:
        giver = ReuseDetector()
        things = Thing(), Thing()
        for thing in things:
            giver.observe(thing)
            assert giver.undecided
        giver.observe(things[0])
        assert giver.repeats and not giver.undecided

    def test_what_is_heavy_is_watched_for_less_long(self) -> None:
        giver = ReuseDetector()
        for number in range(WATCHED_HEAVY + 1):
            giver.observe(SharedBlob(BLOB_BYTES))
            assert giver.undecided is (number < WATCHED_HEAVY)
        assert not giver.repeats

    def test_what_nobody_else_has_is_not_kept(self) -> None:
        giver = ReuseDetector()
        thing = Thing()
        seen = weakref.ref(thing)
        giver.observe(thing)
        del thing
        assert seen() is None
        assert giver.undecided

    def test_a_new_one_where_another_was_is_not_the_same(self) -> None:
        for kind in (Thing, list):
            giver = ReuseDetector()
            for _ in range(WATCHED + 1):
                # Without anybody to keep it, the next one has its address.
                giver.observe(kind())
            assert not giver.repeats and not giver.undecided

    def test_what_can_come_back_to_life_is_kept(self) -> None:
        Pooled.pool = []
        giver = ReuseDetector()
        giver.observe(Pooled())
        assert Pooled.pool == [], "from where it would be given again, as another by all that a weak reference says"
