"""The arena and the broker's accounts of it, without a pipeline: what is written where, and when it is written again.

Law: two arenas of one file play the processes; what a slot holds is read back from the file.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import mmap
import os
import pickle
import threading
import unittest
from functools import partial
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.engines.process.broker.ports import SlotRefcounts
from conveyor.engines.process.shm import arena as arenas
from conveyor.engines.process.shm import mapping as mappings
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.shm.region import CALLER_REGION, REGION_BYTES, Region
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.wire.codec import decode, encode
from tests.helpers.jobs_of_shared_memory import Buffer, Onlooker, buffer
from tests.helpers.support import TestCase
from tests.shm.test_shared_memory import HAS_ARENA

MIB = 1 << 20


@unittest.skipUnless(HAS_ARENA, "needs memory without a name")
class ArenaTest(TestCase):
    """One who writes, and one who reads."""

    def setUp(self):
        self.leave_nothing()
        self.writer = Arena.create(64 * MIB)
        self.descriptor = self.writer._descriptor
        self.reader = self.writer.of_worker(0, 64 * MIB)
        # The reader has no descriptor of its own.
        self.addCleanup(self.writer.close)
        self.addCleanup(self.reader.rest)

    def blocks(self):
        return os.fstat(self.descriptor).st_blocks * 512

    def received(self, sent, to=None):
        return SharedBlob(sent.data, sent.ranges, sent.slots, to or self.reader)

    def test_there_and_back(self):
        items = [buffer(number, 300_000) for number in range(5)]
        sent = encode(items, arena=self.writer)
        assert type(sent) is SharedBlob and len(sent) > 500_000 and len(sent.data) < 1000
        assert decode(self.received(sent)) == items

    def test_small_items_go_through_the_channel(self):
        for items in ([1, 2, 3], ["text", b"bytes"], [buffer(1, 100)], [[1], {}], [b"x" * 1000] * 200):
            blob = encode(items, arena=self.writer)
            assert type(blob) is bytes and decode(blob) == items
        assert self.blocks() == 0

    def test_large_bytes_are_recognized_after_the_first(self):
        items = [os.urandom(MIB), "text", bytearray(MIB)]
        for _ in range(3):
            sent = encode(items, arena=self.writer)
            assert type(sent) is SharedBlob and not sent.data
            assert decode(self.received(sent)) == items
        assert self.writer.streams
        assert decode(encode(["small"] * 10, arena=self.writer)) == ["small"] * 10
        assert not self.writer.streams

    def test_bytes_and_buffers_in_one_item(self):
        items = [{"name": os.urandom(MIB), "data": buffer(3, MIB)}, buffer(4)]
        for _ in range(2):
            assert decode(self.received(encode(items, arena=self.writer))) == items

    def test_an_item_that_cannot_be_pickled_behind_one_that_can(self):
        shared = decode(self.received(encode([buffer(1)], arena=self.writer)))
        for _ in range(10):
            cycle: list = []
            try:
                encode([*shared, cycle, threading.Lock()], arena=self.reader)
            except Exception as error:
                cycle += [cycle, error]
            assert len(cycle) == 2
            del cycle
            # It crashed the interpreter when views of the first were in that cycle.
            gc.collect()

    def test_each_gets_its_own(self):
        sent = encode([buffer(1)], arena=self.writer)
        first, second = decode(self.received(sent)), decode(self.received(sent))
        first[0].view()[:] = bytes(len(first[0].view()))
        assert second == [buffer(1)] and decode(self.received(sent)) == [buffer(1)]

    def test_a_slot_is_written_again_only_when_that_was_said(self):
        first = encode([buffer(1)], arena=self.writer)
        second = encode([buffer(2)], arena=self.writer)
        assert first.slots != second.slots
        self.writer.freed([first.slots[0][0]])
        third = encode([buffer(3)], arena=self.writer)
        assert third.slots == first.slots
        assert decode(self.received(third)) == [buffer(3)] and decode(self.received(second)) == [buffer(2)]

    def test_it_is_said_when_nobody_sees_it(self):
        blob = self.received(encode([buffer(1)], arena=self.writer))
        items = decode(blob)
        place = blob.slots[0][0]
        del blob
        assert self.reader.released() == []
        items[0] = items[0].view()[5:10]
        assert self.reader.released() == [], "a part is as good as all of it"
        items.clear()
        assert self.reader.released() == [place]
        assert self.reader.released() == []

    def test_what_is_passed_on(self):
        arrived = decode(self.received(encode([buffer(1), buffer(2)], arena=self.writer)))
        sent = encode([arrived[1]], arena=self.reader)
        assert [slot // REGION_BYTES for slot, _, _ in sent.ranges] == [CALLER_REGION]
        arrived[0].view()[0] ^= 1
        assert encode([arrived[1]], arena=self.reader).ranges == sent.ranges, "only its neighbour was changed"
        assert encode([arrived[0]], arena=self.reader).ranges[0][0] // REGION_BYTES == 1
        assert decode(self.received(sent, self.writer)) == [buffer(2)]

    def test_who_changes_in_place_gets_copies_for_a_while(self):
        kinds = []
        for number in range(6 * mappings.COPIES_AFTER_CHANGE):
            item = decode(self.received(encode([buffer(number)], arena=self.writer)))[0]
            kinds.append(item.mapping is not None)
            item.view()[0] ^= 1
            sent = encode([item], arena=self.reader)
            assert decode(self.received(sent, self.writer))[0].view() == item.view()
        # It is looked at again ever more seldom.
        assert [number for number, kind in enumerate(kinds) if kind] == [0, 16, 80]

    def writable_copies(self):
        """Items that come to a reader who changes what it gets, so that each gets a writable copy."""
        for number in itertools.count():
            items = decode(self.received(encode([buffer(number)], arena=self.writer)))
            items[0].view()[0] ^= 1
            if number:
                yield items.pop()
            else:
                encode(items, arena=self.reader)

    def passed_on(self, *items):
        """What is sent of items, all of which nobody else has."""
        sent = [encode([item], arena=self.reader, writable=True) for item in items]
        del items
        self.reader.pass_on(sent)
        return [self.received(blob, self.writer) for blob in sent]

    def changed(self, number):
        item = buffer(number)
        item.view()[0] ^= 1
        return item

    def test_what_was_changed_in_place_is_passed_on_as_it_is(self):
        copies, places = self.writable_copies(), []
        for number in range(1, 12):
            item = next(copies)
            sent = [encode([item], arena=self.reader, writable=True)]
            del item
            with mock.patch.object(self.reader._region, "write", side_effect=AssertionError("it was copied")):
                self.reader.pass_on(sent)
            assert self.received(sent[0], self.writer).slots[0][0] // REGION_BYTES == 1
            assert decode(self.received(sent[0], self.writer)) == [self.changed(number)]
            places.append(sent[0].slots[0][0])
        assert len(set(places)) == len(places), "nobody has said that they may be written again"
        self.reader.freed(places)
        (sent,) = self.passed_on(next(copies))
        assert sent.slots[0][0] in places and decode(sent) == [self.changed(12)]

    def test_what_is_held_goes_on_in_other_memory(self):
        copies = self.writable_copies()
        item = next(copies)
        (sent,) = self.passed_on(item)
        item.view()[-1] ^= 255
        assert decode(sent) == [self.changed(1)]
        place = sent.slots[0][0]
        self.reader.freed([place])
        # There is no writable copy for a while, and others are written to that slot.
        others = [encode([next(copies)], arena=self.reader, writable=True) for _ in range(3)]
        assert place in {slot for blob in others for slot, _ in blob.slots}
        expected = self.changed(1)
        expected.view()[-1] ^= 255
        assert item == expected

    def test_what_is_sent_twice_is_one_slot(self):
        item = next(self.writable_copies())
        sent = [encode([item], arena=self.reader, writable=True) for _ in range(2)]
        del item
        self.reader.pass_on(sent)
        assert sent[0].slots == sent[1].slots
        first, second = (decode(self.received(blob, self.writer))[0] for blob in sent)
        first.view()[7] ^= 1
        assert second == self.changed(1) != first

    def test_what_comes_amid_a_lease_is_copied(self):
        item = next(self.writable_copies())
        sent = encode([item], arena=self.reader)
        item.view()[7] ^= 1
        assert decode(self.received(sent, self.writer)) == [self.changed(1)]

    def test_what_is_not_passed_on_is_written_again(self):
        copies = self.writable_copies()
        before = self.blocks()
        for _ in range(10):
            next(copies)
            self.reader.released()
        assert self.blocks() <= before + 4 * MIB

    def test_writable_copies_that_are_kept_do_not_use_up_what_may_be_written(self):
        copies, kept = self.writable_copies(), []
        for number in range(1, 100):
            kept.append(next(copies))
            blob = encode([buffer(number, MIB)], arena=self.reader)
            assert type(blob) is SharedBlob
            self.reader.released()
            self.reader.freed([place for place, _ in blob.slots])
        assert self.reader._region.used_bytes < arenas.MAX_WRITABLE_COPIES * MIB
        assert kept == [self.changed(number) for number in range(1, 100)]

    def test_all_pages_are_copied_whether_the_system_can_do_that_or_not(self):
        for advice in (mappings._MADV_POPULATE_WRITE, 9999):
            with mock.patch.object(mappings, "_MADV_POPULATE_WRITE", advice):
                os.pwrite(self.descriptor, b"a" * 3 * MIB, 0)
                with mmap.mmap(self.descriptor, 3 * MIB, mmap.MAP_PRIVATE) as mapping:
                    mapping[5] = 0
                    mappings.copy_pages(mapping)
                    os.pwrite(self.descriptor, b"b" * 3 * MIB, 0)
                    assert mapping[:] == b"aaaaa\0" + b"a" * (3 * MIB - 6)

    def test_a_fork_takes_no_writable_copy_along(self):
        copies = self.writable_copies()
        item = next(copies)
        onlooker = Onlooker(partial(self.changed(1).__eq__, item))
        item.view()[7] ^= 1
        self.passed_on(item)
        del item
        self.reader.released()
        for number in range(2, 10):
            (sent,) = self.passed_on(next(copies))
            assert decode(sent) == [self.changed(number)]
            self.reader.freed([place for place, _ in sent.slots])
        assert onlooker.verdict() == 0

    def test_where_there_is_no_room_for_a_writable_copy(self):
        copies = self.writable_copies()
        next(copies)
        with mock.patch.object(os, "pwrite", side_effect=OSError), mock.patch.object(mmap, "mmap", side_effect=OSError):
            view = self.reader._copies.copy(memoryview(bytes(MIB)))
        assert view is None
        (sent,) = self.passed_on(next(copies))
        assert decode(sent) == [self.changed(2)]

    def test_where_the_system_does_not_say_what_was_changed(self):
        item = decode(self.received(encode([buffer(1)], arena=self.writer)))[0]
        with mock.patch.object(os, "open", side_effect=OSError):
            sent = encode([item], arena=self.reader)
        assert sent.ranges[0][0] // REGION_BYTES == 1
        assert decode(self.received(sent, self.writer)) == [buffer(1)]

    def test_where_nothing_can_be_mapped(self):
        blob = self.received(encode([buffer(1), buffer(2)], arena=self.writer))
        with mock.patch.object(mappings, "PrivateMapping", side_effect=OSError):
            items = decode(blob)
        assert items == [buffer(1), buffer(2)] and items[0].mapping is None

    def test_there_is_a_limit(self):
        writer = Arena(self.descriptor, 7, expected_bytes=MIB)
        sent = []
        while type(blob := encode([buffer(1, MIB)], arena=writer)) is SharedBlob:
            sent.append(blob)
        assert len(sent) == arenas.MIN_LIMIT_BYTES // MIB
        assert decode(blob) == [buffer(1, MIB)]
        writer.freed([sent[0].slots[0][0]])
        assert type(encode([buffer(1, 2 * MIB)], arena=writer)) is SharedBlob, "one may be larger than what is left"

    def test_memory_is_given_back(self):
        slots = [encode([buffer(1, MIB)], arena=self.writer).slots[0] for _ in range(8)]
        assert self.blocks() >= 8 * MIB
        self.writer.freed([place for place, _ in slots[:6]])
        self.writer.trim(kept_bytes=3 * MIB)
        assert 5 * MIB <= self.blocks() <= 6 * MIB
        self.writer.trim()
        assert self.blocks() <= 2 * MIB + 8192
        again = [encode([buffer(1, MIB)], arena=self.writer).slots[0] for _ in range(6)]
        assert sorted(again) == sorted(slots[:6]), "their places are used again"

    def test_what_a_dead_worker_left(self):
        dead = self.reader
        kept = encode([buffer(1, MIB)], arena=dead)
        for _ in range(3):
            encode([buffer(2, MIB)], arena=dead)
        mine = encode([buffer(3, MIB)], arena=self.writer)
        self.writer.reclaim(0, [*kept.slots, *mine.slots])
        assert 2 * MIB <= self.blocks() <= 2 * MIB + 16384
        assert decode(self.received(kept, self.writer)) == [buffer(1, MIB)]
        self.writer.reclaim(0, mine.slots)
        assert self.blocks() <= MIB + 8192

    def test_the_end(self):
        blobs = [encode([buffer(number, MIB)], arena=self.reader) for number in range(4)]
        held = [decode(self.received(blob, self.writer))[0] for blob in blobs[:2]]
        watched = os.dup(self.descriptor)
        self.addCleanup(os.close, watched)
        self.writer.close()
        assert 2 * MIB <= os.fstat(watched).st_blocks * 512 <= 2 * MIB + 16384
        assert held == [buffer(0, MIB), buffer(1, MIB)]
        held.pop()
        assert MIB <= os.fstat(watched).st_blocks * 512 <= MIB + 8192
        assert os.fstat(self.descriptor)
        held.pop()
        with contextlib.suppress(OSError):
            os.fstat(self.descriptor)
            raise AssertionError("it is still open")
        assert os.fstat(watched).st_blocks == 0

    def test_more_workers_than_there_are_regions(self):
        assert self.writer.of_worker(1 << 27, MIB) is None

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 3 * MIB), st.booleans()), max_size=40))
    def test_no_two_slots_overlap(self, wanted):
        region = Region(self.descriptor, 3, 128 * MIB)
        used = {}
        for size, free in wanted:
            taken = region.take(size)
            if taken is not None:
                slot, _ = taken
                assert slot[1] >= size
                used[slot[0]] = slot[1]
            if free and used:
                place = next(iter(used))
                del used[place]
                region.freed([place])
            places = sorted(used.items())
            assert all(place + size <= after for (place, size), (after, _) in itertools.pairwise(places))
            assert sum(used.values()) <= 128 * MIB + 4 * MIB


class SlotRefcountsTest(TestCase):
    """Who sees what, by the messages alone."""

    def shared(self, *places):
        return SharedBlob(b"", (), tuple((place, 4096) for place in places), self.holdings)

    def setUp(self):
        self.holdings = SlotRefcounts()

    def test_what_nobody_got(self):
        blob = self.shared(0, REGION_BYTES, 3 * REGION_BYTES + 8192)
        assert not self.holdings.free() and len(self.holdings.used()) == 3
        del blob
        assert self.holdings.changed
        free = self.holdings.free()
        assert free == {None: [(0, 4096)], 0: [(REGION_BYTES, 4096)], 2: [(3 * REGION_BYTES + 8192, 4096)]}
        assert not self.holdings.free() and not self.holdings.used() and not self.holdings.changed

    def test_who_got_it_twice_says_so_twice(self):
        blob = self.shared(0)
        self.holdings.sent(1, [blob, b"plain", blob])
        del blob
        assert not self.holdings.free()
        self.holdings.gone(1, [0])
        assert not self.holdings.free()
        self.holdings.gone(1, [0])
        assert self.holdings.free() == {None: [(0, 4096)]}

    def test_who_passes_it_on(self):
        blob = self.shared(0)
        self.holdings.sent(1, [blob])
        passed = self.shared(0)
        del blob
        self.holdings.gone(1, [0])
        assert not self.holdings.free()
        self.holdings.sent(None, [passed])
        del passed
        assert not self.holdings.free()
        self.holdings.gone(None, [0])
        assert self.holdings.free() == {None: [(0, 4096)]}

    def test_who_died(self):
        blob, other = self.shared(0), self.shared(4096)
        self.holdings.sent(1, [blob, blob, other])
        self.holdings.sent(2, [other])
        self.holdings.gone(1, [0])
        del blob, other
        self.holdings.lost(1)
        assert self.holdings.free() == {None: [(0, 4096)]}
        self.holdings.lost(2)
        assert self.holdings.free() == {None: [(4096, 4096)]}
        self.holdings.lost(3)

    def test_the_broker_looks_into_nothing(self):
        with self.assertRaises(TypeError):
            decode(self.shared(0))


class SharedBlobTest(TestCase):
    """The blob itself."""

    def test_it_says_once_that_it_is_gone(self):
        tracker = mock.Mock()
        blob = SharedBlob(b"abc", ((0, 0, 10),), ((0, 4096),), tracker)
        assert tracker.retain.call_count == 1 and not tracker.release.call_count
        assert len(blob) == 13 and blob.description == (3, ((0, 0, 10),), ((0, 4096),))
        tracker.reset_mock()
        del blob
        gc.collect()
        assert tracker.release.call_count == 1

    def test_what_was_not_sent_is_nobodys(self):
        assert pickle.loads(encode([Buffer(bytearray(5))])) == [Buffer(bytearray(5))]
        with self.assertRaises(AssertionError):
            decode(SharedBlob(b"", (), ()))


if __name__ == "__main__":
    unittest.main()
