"""Shared memory: one file without a name for all processes of a session, of which each one that writes has a region.

Law: a slot of the file is written by the owner of its region, before anybody hears of it, and not again until the
broker has said that nobody can see it any more.  Who reads maps it privately: what a job changes in place is its own,
and another that gets the same, or gets it again after a crash, gets it as it was written.  Nothing here has to succeed:
what finds no room goes through the channel.

It is written with `pwrite`: unlike a write to mapped memory that says so when there is no room, instead of ending the
process, needs no mapping to be kept, and takes a page that is new for half the price.  Pages are given back with
`MADV_REMOVE`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import reduction
from typing import Any

from conveyor.engines.heavy import Heavy, Range, Slot

# The file is as long as the regions that are in use; what nothing was written to takes no memory.
REGION_BYTES = 1 << 36
# The region of the caller; those of workers come behind it, in the order of their numbers.
CALLER = 0
# What one process may have written at least, before it has to use the channel.
LEAST_LIMIT = 64 * 1024 * 1024
# What one process keeps when it rests, for the next time.
KEPT_BYTES = 16 * 1024 * 1024
# Each mapping takes a descriptor, of which a process has a thousand or so.  Beyond that, what comes is copied.
MOST_MAPPED = 128
# After a job has changed in place what was mapped, so many times it gets a copy: that costs less than to copy page by
# page, as it is touched.  Then it is looked at again.
COPIED_AFTER_CHANGE = 15
# The bytes that a fork copies at once.
_STRIDE = 1 << 20
_GRAIN = mmap.ALLOCATIONGRANULARITY
_PAGE = mmap.PAGESIZE
# The highest bytes of those words of /proc/self/pagemap that say that a page is as it is in the file: it is not there
# yet, or is one of the file (bit 61), and is not swapped out (bit 62).  See Documentation/admin-guide/mm/pagemap.rst.
_UNCHANGED = bytes(byte for byte in range(256) if not byte & 0x40 and (not byte & 0x80 or byte & 0x20))

# All that this process has mapped, so that a fork does not take along what may be written anew.
_mappings: weakref.WeakSet[_Mapping] = weakref.WeakSet()


class _Mapping(mmap.mmap):
    """A part of the file, as one job sees it; `begin` is where in its slot it begins."""

    blob: Heavy
    slot: int
    begin: int
    address: int | None = None


class Arena:
    """What one process knows of the file: its own region, and what it sees of others'."""

    def __init__(self, descriptor: int, number: int, expected: int) -> None:
        self._descriptor = descriptor
        self._number = number
        # How many bytes of its own slots may be in use, and how many of others it may keep mapped; below that one more
        # may be begun, however large.
        self._expected = expected
        self._limit = max(2 * expected, LEAST_LIMIT)
        self._most_mapped = self._limit // 4
        self._process = os.getpid()
        self._ended = False
        self._last = threading.Lock()
        # Its own slots: those that may be written, by their bytes, and those of these that have no memory any more.
        self._warm: dict[int, list[int]] = {}
        self._cold: dict[int, list[int]] = {}
        self._next = number * REGION_BYTES
        self._used: dict[int, int] = {}
        self._used_bytes = 0
        self._warm_bytes = 0
        # What came and is still seen here, and the slots of what no longer is, to be said.
        self._seen: dict[int, tuple[Slot, ...]] = {}
        self._gone: deque[tuple[Slot, ...]] = deque()
        # What is mapped, and its bytes.
        self._live: dict[int, tuple[weakref.ref[_Mapping], int]] = {}
        self._copies = 0
        # Whether what was written last was large beside its buffers.
        self.streams = False

    @classmethod
    def create(cls, expected: int) -> Arena | None:
        """Return a new one for the caller's process, None where the system has nothing of the kind.

        `expected` is how many bytes the pipe holds that this process writes to.
        """
        if not hasattr(os, "memfd_create") or not hasattr(mmap, "MADV_REMOVE"):
            return None
        try:
            return cls(os.memfd_create("conveyor", os.MFD_CLOEXEC), CALLER, expected)
        except OSError:
            return None

    def __getstate__(self) -> dict[str, Any]:
        # Only ever sent to a process that is being started.
        return {
            "descriptor": reduction.DupFd(self._descriptor),
            "number": self._number,
            "expected": self._expected,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["descriptor"].detach(), state["number"], state["expected"])  # type: ignore[misc]

    def of_worker(self, number: int, expected: int) -> Arena | None:
        """Return the same file as the worker of that number is to see it; None where the file has no region for it."""
        region = number + 1
        if (region + 1) * REGION_BYTES >= 1 << 63:
            return None
        return Arena(self._descriptor, region, expected)

    # Who writes

    def store(self, buffers: Sequence[Any]) -> tuple[tuple[Range, ...], tuple[Slot, ...]] | None:
        """Write buffers, or find that they are here already; return where they are, None where there is no room.

        A buffer is something with the buffer protocol, or a list of such that are written one behind the other.
        """
        found: list[Range | None] = []
        slots: dict[int, int] = {}
        wanted = 0
        for buffer in buffers:
            known = self._known(buffer, found)
            if known is not None:
                place, capacity = known
                slots[place[0]] = capacity
                found.append(place)
            else:
                found.append(None)
                wanted += _rounded(_size(buffer), _GRAIN)
        if wanted:
            slot = self._take(wanted)
            if slot is None:
                return None
            start = 0
            try:
                for index, buffer in enumerate(buffers):
                    if found[index] is None:
                        self._write(buffer, slot[0] + start)
                        size = _size(buffer)
                        found[index] = (slot[0], start, size)
                        start += _rounded(size, _GRAIN)
            except OSError:
                # No memory, or files may not be so long.
                self.freed([slot[0]])
                self.trim()
                return None
            slots[slot[0]] = slot[1]
        return tuple(place for place in found if place is not None), tuple(slots.items())

    def _take(self, wanted: int) -> Slot | None:
        """Return a slot of at least so many bytes, which is in use from now on; None where there is none."""
        if self._used_bytes >= self._limit:
            return None
        capacity = _capacity(wanted)
        fitting = [each for each, places in self._warm.items() if places and capacity <= each <= 2 * capacity]
        if fitting:
            capacity = min(fitting)
            place = self._warm[capacity].pop()
            self._warm_bytes -= capacity
        else:
            if self._used_bytes + self._warm_bytes + capacity > self._limit:
                self.trim()
            if self._cold.get(capacity):
                place = self._cold[capacity].pop()
            elif self._next + capacity <= (self._number + 1) * REGION_BYTES:
                place = self._next
                self._next += capacity
            else:
                return None
        self._used[place] = capacity
        self._used_bytes += capacity
        return place, capacity

    def _write(self, buffer: Any, place: int) -> None:
        for part in buffer if type(buffer) is list else [buffer]:
            with memoryview(part) as view, view.cast("B") as rest:
                done = 0
                while done < len(rest):
                    done += os.pwrite(self._descriptor, rest[done:], place + done)
                place += done

    def freed(self, places: Iterable[int]) -> None:
        """Take in that nobody can see those slots any more."""
        for place in places:
            capacity = self._used.pop(place)
            self._used_bytes -= capacity
            self._warm.setdefault(capacity, []).append(place)
            self._warm_bytes += capacity

    def trim(self, kept: int = 0) -> None:
        """Give back the memory of slots that are not in use, but for so many bytes."""
        for capacity, places in self._warm.items():
            while places and self._warm_bytes > kept:
                place = places.pop()
                self._warm_bytes -= capacity
                self.remove(place, capacity)
                self._cold.setdefault(capacity, []).append(place)

    def remove(self, place: int, size: int) -> None:
        """Give back the memory of a part of the file that nobody can see any more."""
        _remove(self._descriptor, place, size)

    def reclaim(self, number: int, used: Iterable[Slot]) -> None:
        """Give back what a worker that is dead has written and nobody can see."""
        begin = (number + 1) * REGION_BYTES
        _remove_all(self._descriptor, begin, begin + REGION_BYTES, used)

    # Who reads

    def adopt(self, blob: Heavy) -> None:
        self._seen[id(blob)] = blob.slots

    def let_go(self, blob: Heavy, finalizing: Any = sys.is_finalizing) -> None:
        slots = self._seen.pop(id(blob), None)
        if slots is None or finalizing() or os.getpid() != self._process:
            return
        if not self._ended:
            self._gone.append(slots)
            return
        with contextlib.suppress(OSError, ValueError):
            still = {slot for seen in list(self._seen.values()) for slot in seen}
            for place, capacity in set(slots) - still:
                self.remove(place, capacity)
        self._close_when_last()

    def gone(self) -> list[int]:
        """Return the slots that came and are seen here no more: each once for each time that it came, and only now."""
        places: list[int] = []
        while self._gone:
            places += [place for place, _ in self._gone.popleft()]
        return places

    def opened(self, blob: Heavy) -> tuple[Any, list[Any]]:
        places: dict[int, tuple[int, int]] = {}
        for slot, start, size in blob.ranges:
            first, last = places.get(slot, (start, start + size))
            # A mapping begins with a page, what is passed on of an array may not.
            places[slot] = min(first, start // _GRAIN * _GRAIN), max(last, start + size)
        memory: dict[int, Any] = {}
        for slot, (first, last) in places.items():
            memory[slot] = memoryview(self._memory(blob, slot, first, last - first))
        buffers = [
            memory[slot][start - places[slot][0] : start - places[slot][0] + size] for slot, start, size in blob.ranges
        ]
        return (blob.data, buffers) if len(blob.data) else (buffers[0], buffers[1:])

    def _memory(self, blob: Heavy, slot: int, begin: int, size: int) -> Any:
        """Return what is in a slot from `begin` on, which may be changed here without a change there."""
        if self._copies:
            self._copies -= 1
        elif len(self._live) < MOST_MAPPED and sum(size for _, size in list(self._live.values())) < self._most_mapped:
            # Where there are no descriptors left, or no room for a mapping, what follows does without.
            with contextlib.suppress(OSError, ValueError):
                return self._mapped(blob, slot, begin, size)
        copy = bytearray(size)
        with memoryview(copy) as rest:
            done = 0
            while done < size:
                count = os.preadv(self._descriptor, [rest[done:]], slot + begin + done)
                if not count:
                    raise EOFError("shared memory of the pipeline has ended before its time")
                done += count
        return copy

    def _mapped(self, blob: Heavy, slot: int, begin: int, size: int) -> _Mapping:
        mapping = _Mapping(
            self._descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=slot + begin
        )
        # Alive as long as anything that lives in it.
        mapping.blob = blob
        mapping.slot = slot
        mapping.begin = begin
        mapping.address = _address(mapping)
        live, key = self._live, id(mapping)
        live[key] = weakref.ref(mapping, lambda _: live.pop(key, None)), size
        _protect_from_fork(mapping)
        return mapping

    def _known(self, buffer: Any, found: Sequence[Range | None]) -> tuple[Range, int] | None:
        """Return where a buffer is that came here and is passed on unchanged, and how long that slot is.

        Two in one message must not become one memory, so each is found only once in it.
        """
        if not self._live or self._number == CALLER or type(buffer) is list:
            return None
        address, size = _address(buffer), _size(buffer)
        if address is None:
            return None
        for reference, _ in list(self._live.values()):
            mapping = reference()
            if mapping is None or mapping.address is None:
                continue
            offset = address - mapping.address
            if offset >= 0 and offset + size <= len(mapping):
                start = mapping.begin + offset
                for place in found:
                    if place and place[0] == mapping.slot and place[1] < start + size and start < place[1] + place[2]:
                        return None
                if not _unchanged(address, size):
                    self._copies = COPIED_AFTER_CHANGE
                    return None
                return (mapping.slot, start, size), dict(mapping.blob.slots)[mapping.slot]
        return None

    # The end

    def close(self) -> None:
        """Give back all but what is still seen here, and that as soon as it no longer is."""
        self._ended = True
        if os.getpid() == self._process and self._seen:
            with contextlib.suppress(OSError, ValueError):
                used = [slot for seen in list(self._seen.values()) for slot in seen]
                _remove_all(self._descriptor, 0, 1 << 63, used)
        else:
            self._seen.clear()
        self._close_when_last()

    def _close_when_last(self) -> None:
        if not self._seen and self._last.acquire(blocking=False):
            # Never released: whoever comes next finds it closed.
            os.close(self._descriptor)


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _capacity(size: int) -> int:
    """Return the bytes of the slot for so many: few different ones, of which at most an eighth is in vain.

    >>> _capacity(4_194_304), _capacity(4_194_305)
    (4194304, 4718592)
    """
    return _rounded(size, max(_GRAIN, 1 << max(0, (size - 1).bit_length() - 4)))


def _size(buffer: Any) -> int:
    if type(buffer) is list:
        return sum(map(_size, buffer))
    with memoryview(buffer) as view:
        return view.nbytes


def _address(buffer: Any) -> int | None:
    """Return where a buffer is in memory; None where it may not be changed, or that cannot be told."""
    try:
        import ctypes

        with memoryview(buffer) as view, view.cast("B") as flat:
            return ctypes.addressof(ctypes.c_char.from_buffer(flat))
    except (ImportError, TypeError, ValueError, BufferError):
        return None


def _unchanged(address: int, size: int) -> bool:
    """Whether memory that is mapped privately is still as it is in the file, as the system says."""
    first, last = address // _PAGE, -(-(address + size) // _PAGE)
    try:
        descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    except OSError:
        return False
    try:
        words = os.pread(descriptor, 8 * (last - first), 8 * first)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    tops = words[7::8] if sys.byteorder == "little" else words[::8]
    return len(tops) == last - first and not tops.translate(None, _UNCHANGED)


def _remove(descriptor: int, place: int, size: int) -> None:
    end = min(place + size, os.fstat(descriptor).st_size)
    if end > place:
        with contextlib.suppress(OSError, ValueError), mmap.mmap(descriptor, end - place, offset=place) as mapping:
            mapping.madvise(mmap.MADV_REMOVE)


def _remove_all(descriptor: int, begin: int, end: int, used: Iterable[Slot]) -> None:
    """Give back the memory of a part of the file, without that of the slots that are in use."""
    at = begin
    for place, capacity in [*sorted(set(used)), (end, 0)]:
        if place + capacity <= begin or place > end:
            continue
        for start, stop in _written(descriptor, at, place):
            _remove(descriptor, start, stop - start)
        at = max(at, place + capacity)


def _written(descriptor: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that take memory."""
    while begin < end:
        try:
            start = os.lseek(descriptor, begin, os.SEEK_DATA)
            stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError:
            # Nothing more.
            return
        if start < end:
            yield start, min(stop, end)
        begin = stop


def _protect_from_fork(mapping: _Mapping) -> None:
    """Have a fork copy what is mapped: the child could see it, and nobody would know."""
    if not _mappings_are_copied:
        os.register_at_fork(before=_copy_mappings)
        _mappings_are_copied.append(True)
    _mappings.add(mapping)


_mappings_are_copied: list[bool] = []


def _copy_mappings() -> None:
    for mapping in list(_mappings):
        with memoryview(mapping) as view:
            for start in range(0, len(view), _STRIDE):
                view[start : start + _STRIDE] = bytes(view[start : start + _STRIDE])
