"""The region of one process: which slots of the shared file it may write, and which of them are in use.

Law: only the owner of a region writes there, and never to a slot in use.  A process writes a slot with `pwrite` the
first time: where the system has no memory left, `pwrite` raises OSError, while a write to mapped memory ends the
process.  From then on the slot is warm: it has its memory.  The owner copies into a warm slot through a mapping,
without the kernel, which takes three times as long.  `MADV_REMOVE` gives memory back and makes a slot cold.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Iterator

from conveyor._lean.typing import Any
from conveyor.engines.process.shm.shared_blob import Slot

# The file is as long as the regions in use; what nothing was written to takes no memory.
REGION_BYTES = 1 << 36
# The region of the caller; the regions of workers follow, in the order of their numbers.
CALLER_REGION = 0
# A smaller slot is read into memory of its own: to map it takes as long.
MIN_MAPPED_BYTES = 256 * 1024
# Each mapping takes a descriptor, of which a process has about a thousand.
MAX_KEPT_MAPPINGS = 64
GRANULARITY_BYTES = mmap.ALLOCATIONGRANULARITY
# To have the system provide all pages at once takes half as long as page by page.
POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_SHARED_AND_POPULATED = getattr(mmap, "MAP_SHARED", 0) | POPULATE


class Region:
    """The slots of one process, by their places in the file."""

    def __init__(self, descriptor: int, number: int, limit_bytes: int) -> None:
        self._descriptor = descriptor
        # Below the limit one more slot may be taken, however large.
        self._limit_bytes = limit_bytes
        self._next = number * REGION_BYTES
        self._end = self._next + REGION_BYTES
        self._used: dict[int, int] = {}
        self.used_bytes = 0
        # Slots that are not in use, by their bytes: with memory, and without.
        self._warm: dict[int, list[int]] = {}
        self._warm_bytes = 0
        self._cold: dict[int, list[int]] = {}
        # Kept for the next time: a page costs as much when it is touched first as it takes to copy.
        self._mappings: dict[int, mmap.mmap] = {}

    def take(self, wanted: int) -> tuple[Slot, bool] | None:
        """Return a slot of at least `wanted` bytes, now in use, and whether it is warm; None where there is none."""
        if self.used_bytes >= self._limit_bytes:
            return None
        capacity = capacity_for(wanted)
        fitting = [each for each, places in self._warm.items() if places and capacity <= each <= 2 * capacity]
        if fitting:
            capacity = min(fitting)
            place = self._warm[capacity].pop()
            self._warm_bytes -= capacity
        else:
            if self.used_bytes + self._warm_bytes + capacity > self._limit_bytes:
                self.trim()
            if self._cold.get(capacity):
                place = self._cold[capacity].pop()
            elif self._next + capacity <= self._end:
                place = self._next
                self._next += capacity
            else:
                return None
        self._used[place] = capacity
        self.used_bytes += capacity
        return (place, capacity), bool(fitting)

    def take_mapped(self, source: memoryview) -> tuple[int, mmap.mmap] | None:
        """Write `source` to a slot; return its place and a mapping of it, which is no longer kept here.

        Return None where there is no room.
        """
        taken = self.take(len(source))
        if taken is None:
            return None
        slot, warm = taken
        place, capacity = slot
        try:
            self.prepare(slot, warm)
            if not warm:
                write_all(self._descriptor, source, place)
                self.prepare(slot, warm=True)
            mapping = self._mappings.pop(place, None) or mmap.mmap(self._descriptor, capacity, offset=place)
        except (OSError, ValueError):
            self.freed([place])
            self.trim()
            return None
        if warm:
            with memoryview(mapping) as memory:
                memory[: len(source)] = source
        return place, mapping

    def prepare(self, slot: Slot, warm: bool) -> None:
        """Make a slot ready to be written; raises OSError where there is no room."""
        place, capacity = slot
        if capacity < MIN_MAPPED_BYTES:
            return
        if not warm:
            # Now the file is long enough for the whole slot to be mapped.
            write_all(self._descriptor, memoryview(b"\0"), place + capacity - 1)
        elif place not in self._mappings:
            # A slot that cannot be mapped can still be written.
            with contextlib.suppress(OSError, ValueError):
                self.keep_mapping(place, mmap.mmap(self._descriptor, capacity, _SHARED_AND_POPULATED, offset=place))

    def write(self, buffer: Any, slot: Slot, start: int) -> None:
        """Write a buffer, or a list of buffers one behind the other, to a slot from `start` on."""
        mapping = self._mappings.get(slot[0])
        for part in buffer if type(buffer) is list else [buffer]:
            with memoryview(part) as view, view.cast("B") as rest:
                if mapping is not None:
                    with memoryview(mapping) as memory:
                        memory[start : start + len(rest)] = rest
                else:
                    write_all(self._descriptor, rest, slot[0] + start)
                start += len(rest)

    def keep_mapping(self, place: int, mapping: mmap.mmap) -> None:
        """Keep the mapping of a slot for the next time."""
        self._mappings[place] = mapping
        if len(self._mappings) > MAX_KEPT_MAPPINGS:
            del self._mappings[next(iter(self._mappings))]

    def freed(self, places: Iterable[int]) -> None:
        """Take in that no process sees those slots any more."""
        for place in places:
            capacity = self._used.pop(place)
            self.used_bytes -= capacity
            self._warm.setdefault(capacity, []).append(place)
            self._warm_bytes += capacity

    def trim(self, kept_bytes: int = 0) -> None:
        """Give back the memory of slots that are not in use, except `kept_bytes`."""
        for capacity, places in self._warm.items():
            while places and self._warm_bytes > kept_bytes:
                place = places.pop()
                self._warm_bytes -= capacity
                if place in self._mappings:
                    self._mappings.pop(place).close()
                remove(self._descriptor, place, capacity)
                self._cold.setdefault(capacity, []).append(place)

    def drop_mappings(self) -> None:
        """Keep no mapping for the next time."""
        self._mappings.clear()


def owner_of(place: int) -> int | None:
    """Return the number of the worker that owns a slot, None for the caller.

    >>> owner_of(4096), owner_of(REGION_BYTES + 4096)
    (None, 0)
    """
    region = place // REGION_BYTES
    return None if region == CALLER_REGION else region - 1


def rounded_up(size: int, unit: int) -> int:
    """Return the next multiple of `unit`."""
    return -(-size // unit) * unit


def capacity_for(size: int) -> int:
    """Return the bytes of the slot for a size: of few different capacities, with an eighth unused at most.

    >>> capacity_for(4_194_304), capacity_for(4_194_305)
    (4194304, 4718592)
    """
    return rounded_up(size, max(GRANULARITY_BYTES, 1 << max(0, (size - 1).bit_length() - 4)))


def remove(descriptor: int, place: int, size: int) -> None:
    """Give back the memory of a part of the file that no process sees any more."""
    end = min(place + size, os.fstat(descriptor).st_size)
    if end > place:
        with contextlib.suppress(OSError, ValueError), mmap.mmap(descriptor, end - place, offset=place) as mapping:
            mapping.madvise(mmap.MADV_REMOVE)


def remove_all(descriptor: int, begin: int, end: int, used: Iterable[Slot]) -> None:
    """Give back the memory of a part of the file, except for the slots in use."""
    at = begin
    for place, capacity in [*sorted(set(used)), (end, 0)]:
        if place + capacity <= begin or place > end:
            continue
        for start, stop in _parts_with_memory(descriptor, at, place):
            remove(descriptor, start, stop - start)
        at = max(at, place + capacity)


def _parts_with_memory(descriptor: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    while begin < end:
        try:
            start = os.lseek(descriptor, begin, os.SEEK_DATA)
            stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError:
            # No part follows.
            return
        if start < end:
            yield start, min(stop, end)
        begin = stop


def write_all(descriptor: int, rest: memoryview, place: int) -> None:
    """Write bytes to the file; raises OSError where there is no room."""
    done = 0
    while done < len(rest):
        done += os.pwrite(descriptor, rest[done:], place + done)


def read_all(descriptor: int, rest: memoryview, place: int) -> None:
    """Fill a buffer from the file."""
    done = 0
    while done < len(rest):
        count = os.preadv(descriptor, [rest[done:]], place + done)
        if not count:
            raise EOFError("the shared memory of the pipeline has ended before its time")
        done += count
