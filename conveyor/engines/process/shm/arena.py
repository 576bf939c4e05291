"""Shared memory: one file without a name for all processes of a session, cut into a region for each that writes.

Law: the owner of a region writes a slot before any process hears of it.  It writes the slot again only when the broker
has said that no process sees it any more.  A reader maps a slot privately, so a job that changes an item in place
changes its own copy.  A second reader, or a retry after a crash, gets the item as it was written.  Nothing here has to
succeed: what finds no room goes through the channel.

Where a job changes in place what it gets, its worker reads that into a slot of its own: a writable copy.  When nothing
lives in that slot at the end of a lease, the worker passes the slot on as it is.  Where something still lives there,
that goes on living in other memory.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing import reduction

from conveyor._lean.typing import Any
from conveyor.engines.process.shm.mapping import (
    HAS_WRITABLE_COPIES,
    Memory,
    SlotMappings,
    WritableCopy,
    address_of,
    unchanged,
)
from conveyor.engines.process.shm.region import (
    CALLER_REGION,
    GRANULARITY_BYTES,
    MIN_MAPPED_BYTES,
    REGION_BYTES,
    Region,
    read_all,
    remove,
    remove_all,
    rounded_up,
)
from conveyor.engines.process.shm.shared_blob import Range, SharedBlob, Slot

# What one process may have written at least, before it has to use the channel.
MIN_LIMIT_BYTES = 64 * 1024 * 1024
# What the caller keeps for its next run.
KEPT_BYTES = 16 * 1024 * 1024
MAX_WRITABLE_COPIES = 8
# After a job held on to what it passed on, the worker makes no writable copy for a while.  Each further time doubles
# the number of copies that it leaves out, up to this.
MAX_SKIPPED_COPIES = 63


class WritableCopies:
    """The slots of this process that hold what came, and that its job may change, by their places."""

    def __init__(self, descriptor: int, region: Region, mappings: SlotMappings, allowed: bool) -> None:
        self._descriptor = descriptor
        self._region = region
        self._mappings = mappings
        self._allowed = allowed
        self.by_place: dict[int, WritableCopy] = {}
        self._to_skip = self._skipped_after_held = 0

    def copy(self, source: memoryview) -> memoryview | None:
        """Return a copy that may be passed on as it will be then; None where there can be none."""
        if self._to_skip or not self._allowed or self._are_enough():
            self._to_skip = max(0, self._to_skip - 1)
            return None
        taken = self._region.take_mapped(source)
        if taken is None:
            return None
        place, mapping = taken
        copy = WritableCopy(mapping, self._descriptor, place)
        if copy.address is None:
            # What lives there could not be given other memory.
            self._region.keep_mapping(place, copy.ended())
            self._region.freed([place])
            return None
        self.by_place[place] = copy
        return memoryview(mapping)[: len(source)]

    def _are_enough(self) -> bool:
        # Copies that a job keeps must not use up what it may write.
        held = sum(len(copy.mapping) for copy in self.by_place.values())
        limit = self._mappings.limit_bytes
        return len(self.by_place) >= MAX_WRITABLE_COPIES or held >= limit or self._mappings.are_enough()

    def free_unused(self) -> None:
        """Free the slots in which nothing lives, and which were not passed on: no process has heard of them."""
        for place, copy in list(self.by_place.items()):
            if copy.free:
                del self.by_place[place]
                if not copy.detached:
                    self._region.keep_mapping(place, copy.ended())
                self._region.freed([place])

    def pass_on(self, place: int) -> None:
        """Let a slot never change any more: what lives there goes on in other memory."""
        copy = self.by_place[place]
        if copy.free:
            self._region.keep_mapping(place, copy.ended())
            self._skipped_after_held = 0
        else:
            copy.detach()
            self._to_skip = self._skipped_after_held = min(MAX_SKIPPED_COPIES, 2 * self._skipped_after_held + 1)
        del self.by_place[place]


class Arena:
    """The file as one process has it: the region that it writes, and the slots of others that it reads."""

    def __init__(self, descriptor: int, number: int, expected_bytes: int) -> None:
        self._descriptor = descriptor
        self._number = number
        self._expected_bytes = expected_bytes
        self._pid = os.getpid()
        limit = max(2 * expected_bytes, MIN_LIMIT_BYTES)
        self._region = Region(descriptor, number, limit)
        self._mappings = SlotMappings(descriptor, limit // 4)
        allowed = HAS_WRITABLE_COPIES and number != CALLER_REGION
        self._copies = WritableCopies(descriptor, self._region, self._mappings, allowed)
        # The slots of each blob that came and that this process still sees; and those to be reported as released.
        self._retained: dict[int, tuple[Slot, ...]] = {}
        self._released: deque[tuple[Slot, ...]] = deque()
        self._ended = False
        # Never released: one thread closes the descriptor.
        self._closing = threading.Lock()
        # Whether the last pickle itself was large, beside its buffers.
        self.streams = False

    @classmethod
    def create(cls, expected_bytes: int) -> Arena | None:
        """Return a new arena for the caller, None where the system has no such memory.

        `expected_bytes`: what the pipe holds that this process writes to.
        """
        if not hasattr(os, "memfd_create") or not hasattr(mmap, "MADV_REMOVE"):
            return None
        try:
            return cls(os.memfd_create("conveyor", os.MFD_CLOEXEC), CALLER_REGION, expected_bytes)
        except OSError:
            return None

    def __getstate__(self) -> dict[str, Any]:
        # Only a process that is being started gets one.
        return {
            "descriptor": reduction.DupFd(self._descriptor),
            "number": self._number,
            "expected_bytes": self._expected_bytes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["descriptor"].detach(), state["number"], state["expected_bytes"])  # type: ignore[misc]

    def of_worker(self, number: int, expected_bytes: int) -> Arena | None:
        """Return the same file as the worker of that number sees it; None where the file has no region for it."""
        region = number + 1
        if (region + 1) * REGION_BYTES >= 1 << 63:
            return None
        return Arena(self._descriptor, region, expected_bytes)

    # Writing

    def store(
        self, buffers: Sequence[Any], writable: bool = False
    ) -> tuple[tuple[Range, ...], tuple[Slot, ...]] | None:
        """Write buffers, or find where they are already; return where they are, None where there is no room.

        A buffer is an object with the buffer protocol, or a list of such that are written one behind the other.
        `writable`: they may be found in writable copies, so the worker calls `pass_on` before it sends the blob.
        """
        found: list[Range | None] = []
        slots: dict[int, int] = {}
        wanted = 0
        for buffer in buffers:
            known = self._find(buffer, found, writable)
            if known is not None:
                place, capacity = known
                slots[place[0]] = capacity
                found.append(place)
            else:
                found.append(None)
                wanted += rounded_up(_size(buffer), GRANULARITY_BYTES)
        if wanted:
            taken = self._region.take(wanted)
            if taken is None:
                return None
            slot, warm = taken
            start = 0
            try:
                self._region.prepare(slot, warm)
                for index, buffer in enumerate(buffers):
                    if found[index] is None:
                        self._region.write(buffer, slot, start)
                        size = _size(buffer)
                        found[index] = (slot[0], start, size)
                        start += rounded_up(size, GRANULARITY_BYTES)
            except OSError:
                # The system has no memory left, or allows no file so long.
                self._region.freed([slot[0]])
                self._region.trim()
                return None
            slots[slot[0]] = slot[1]
        return tuple(place for place in found if place is not None), tuple(slots.items())

    def _find(self, buffer: Any, found: Sequence[Range | None], writable: bool) -> tuple[Range, int] | None:
        """Return where a buffer is that came and is passed on, and the bytes of that slot.

        It is unchanged, or in a writable copy.  Two buffers of one message must not become one memory, so each place
        is found only once in it.
        """
        maps: list[dict[int, Any]] = [
            each for each in (self._mappings.live_mappings, self._copies.by_place if writable else None) if each
        ]
        if not maps or self._number == CALLER_REGION or type(buffer) is list:
            return None
        address, size = address_of(buffer), _size(buffer)
        if address is None:
            return None
        for place, memory in [item for each in maps for item in each.items()]:
            start = memory.start_of(address, size)
            if start is None:
                continue
            for other in found:
                if other and other[0] == place and other[1] < start + size and start < other[1] + other[2]:
                    return None
            if type(memory) is WritableCopy:
                if memory.detached:
                    return None
            elif not unchanged(address, size):
                self._mappings.note_change()
                return None
            return (place, start, size), len(memory.mapping)
        return None

    def freed(self, places: Iterable[int]) -> None:
        """Take in that no process sees those slots of this process any more."""
        self._region.freed(places)

    def trim(self, kept_bytes: int = 0) -> None:
        """Give back the memory of slots that are not in use, except `kept_bytes`."""
        self._region.trim(kept_bytes)

    def rest(self) -> None:
        """Give back all that is kept for the next time only."""
        self._retire_unused()
        self._region.trim()
        self._mappings.drop_unused()
        self._region.drop_mappings()

    @property
    def has_writable_copies(self) -> bool:
        """Whether there are writable copies, in which an output may be."""
        return bool(self._copies.by_place)

    def pass_on(self, blobs: Iterable[Any]) -> None:
        """Let the writable copies that blobs refer to never change any more."""
        copies = self._copies
        if copies.by_place:
            slots = {slot for blob in blobs if type(blob) is SharedBlob for slot, _ in blob.slots}
            for place in slots & copies.by_place.keys():
                copies.pass_on(place)

    def remove(self, place: int, size: int) -> None:
        """Give back the memory of a slot that no process sees any more, and whose owner is dead."""
        remove(self._descriptor, place, size)

    def reclaim(self, number: int, used: Iterable[Slot]) -> None:
        """Give back what a dead worker has written and no process sees."""
        begin = (number + 1) * REGION_BYTES
        remove_all(self._descriptor, begin, begin + REGION_BYTES, used)

    # Reading

    def retain(self, blob: SharedBlob) -> None:
        self._retained[id(blob)] = blob.slots

    def release(self, blob: SharedBlob, finalizing: Any = sys.is_finalizing) -> None:
        slots = self._retained.pop(id(blob), None)
        if slots is None or finalizing() or os.getpid() != self._pid:
            return
        if not self._ended:
            self._released.append(slots)
            return
        with contextlib.suppress(OSError, ValueError):
            still = {slot for retained in list(self._retained.values()) for slot in retained}
            for place, capacity in set(slots) - still:
                remove(self._descriptor, place, capacity)
        self._close_when_last()

    def released(self) -> list[int]:
        """Return the slots that came and that this process has released: each once for each time that it came."""
        self._retire_unused()
        places: list[int] = []
        while self._released:
            places += [place for place, _ in self._released.popleft()]
        return places

    def _retire_unused(self) -> None:
        if self._mappings.live_mappings:
            self._mappings.retire_unused()
        if self._copies.by_place:
            self._copies.free_unused()

    def opened(self, blob: SharedBlob) -> tuple[Any, list[Any]]:
        extents: dict[int, tuple[int, int]] = {}
        for slot, start, size in blob.ranges:
            first, last = extents.get(slot, (start, start + size))
            extents[slot] = min(first, start), max(last, start + size)
        capacities = dict(blob.slots)
        views = {
            slot: self._view(blob, (slot, capacities[slot]), first, last - first)
            for slot, (first, last) in extents.items()
        }
        buffers = [
            views[slot][start - extents[slot][0] : start - extents[slot][0] + size] for slot, start, size in blob.ranges
        ]
        return (blob.data, buffers) if len(blob.data) else (buffers[0], buffers[1:])

    def _view(self, blob: SharedBlob, slot: Slot, start: int, size: int) -> memoryview:
        """Return what is in a slot from `start` on; a change of it here changes nothing there."""
        memory: Memory | None = self._mappings.map(slot) if size >= MIN_MAPPED_BYTES else None
        if memory is None:
            view = memoryview(bytearray(size))
            read_all(self._descriptor, view, slot[0] + start)
            return view
        if not self._mappings.is_copy_due():
            self._mappings.make_live(slot[0], memory, blob)
            return memoryview(memory.mapping)[start : start + size]
        with memoryview(memory.mapping) as whole, whole[start : start + size] as source:
            copy = self._copies.copy(source)
            if copy is None:
                copy = self._mappings.buffer(size)
                copy[:] = source
        return copy

    # The end

    def close(self) -> None:
        """Give back all but what this process still sees, and each slot of that as soon as it is released."""
        self._ended = True
        self._mappings.close()
        self._region.drop_mappings()
        self._copies.by_place.clear()
        if os.getpid() == self._pid and self._retained:
            with contextlib.suppress(OSError, ValueError):
                used = [slot for retained in list(self._retained.values()) for slot in retained]
                remove_all(self._descriptor, 0, 1 << 63, used)
        else:
            self._retained.clear()
        self._close_when_last()

    def _close_when_last(self) -> None:
        if not self._retained and self._closing.acquire(blocking=False):
            os.close(self._descriptor)


def _size(buffer: Any) -> int:
    if type(buffer) is list:
        return sum(map(_size, buffer))
    with memoryview(buffer) as view:
        return view.nbytes
