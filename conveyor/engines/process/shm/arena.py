"""Shared memory: one file without a name for all processes of a session, of which each one that writes has a region.

Law: a slot of the file is written by the owner of its region, before anybody hears of it, and not again until the
broker has said that nobody can see it any more.  Who reads maps it privately: what a job changes in place is its own,
and another that gets the same, or gets it again after a crash, gets it as it was written.  Nothing here has to succeed:
what finds no room goes through the channel.

A worker whose job changes in place what it gets reads it into a slot of its own, as a draft.  When the job is done with
that, nothing lives there any more, and it is passed on as it is; where something does, it goes on in other memory.

A slot is written with `pwrite` the first time: unlike a write to mapped memory, that says so when there is no room,
instead of ending the process.  From then on it has its memory.  What is large is then copied from one mapping to
another without the kernel, which would take three times as long; mappings are kept for the next time, as a page that is
touched for the first time costs as much as it takes to copy it.  Memory is given back with `MADV_REMOVE`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import reduction

from conveyor._lean.typing import Any
from conveyor.engines.process.shm.mapping import (
    CAN_DRAFT,
    Memory,
    Private,
    WritableCopy,
    address_of,
    protect_from_fork,
    unchanged,
    unprotect,
)
from conveyor.engines.process.shm.shared_blob import Range, SharedBlob, Slot

# The file is as long as the regions that are in use; what nothing was written to takes no memory.
REGION_BYTES = 1 << 36
# The region of the caller; those of workers come behind it, in the order of their numbers.
CALLER = 0
# What one process may have written at least, before it has to use the channel.
LEAST_LIMIT = 64 * 1024 * 1024
# What one process keeps when it rests, for the next time.
KEPT_BYTES = 16 * 1024 * 1024
# What is smaller is read into memory of its own: that is done as soon as it would be mapped.
LEAST_MAPPED = 256 * 1024
# Each mapping takes a descriptor, of which a process has a thousand or so.  So many slots of others may be seen here at
# a time, beyond that they are copied; so many mappings are kept of slots that are not, of others and of its own.
MOST_SEEN = 128
MOST_KEPT = 64
# So many buffers are kept for what is copied, and there are so many drafts, with as many bytes as may be seen.
MOST_BUFFERS = 8
# After a job has changed in place what was mapped, so many times it gets a copy: that costs less than to copy page by
# page, as it is touched.  Then it is looked at again; and each time that it has changed again, about four times as many
# times more, up to so many.
COPIED_AFTER_CHANGE, MOST_COPIED = 15, 255
# After it has held on to what it passed on, there is no draft for a while: each time that it has done so again, about
# twice as many times more, up to so many.
MOST_HELD = 63
_GRAIN = mmap.ALLOCATIONGRANULARITY
# What is mapped to be written whole: to have all of it at once takes half as long as page by page.
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_MAPPED_WHOLE = getattr(mmap, "MAP_SHARED", 0) | _POPULATE
_OWN_WHOLE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0) | _POPULATE


class Arena:
    """What one process knows of the file: its own region, and what it sees of others'."""

    def __init__(self, descriptor: int, number: int, expected: int) -> None:
        self._descriptor = descriptor
        self._number = number
        # How many bytes of its own slots may be in use, and how many of others it may keep mapped; below that one more
        # may be begun, however large.
        self._expected = expected
        self._limit = max(2 * expected, LEAST_LIMIT)
        self._most_seen = self._limit // 4
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
        # What is mapped, by its place: slots of others, of which some are seen, and its own, to be written; and memory
        # of nobody else's, for what is copied.
        self._mapped: dict[int, Memory] = {}
        self._in_sight: dict[int, Memory] = {}
        self._own: dict[int, mmap.mmap] = {}
        self._buffers: list[Memory] = []
        self._copies, self._after_change = 0, COPIED_AFTER_CHANGE
        # Its own slots in which there may be something that came and may be changed, by their places; and how many
        # times there is none yet.
        self._drafts: dict[int, WritableCopy] = {}
        self._no_draft = self._after_held = 0
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

    def store(self, buffers: Sequence[Any], drafts: bool = False) -> tuple[tuple[Range, ...], tuple[Slot, ...]] | None:
        """Write buffers, or find that they are here already; return where they are, None where there is no room.

        A buffer is something with the buffer protocol, or a list of such that are written one behind the other.
        `drafts`: they may be found in drafts, so `give` comes before anybody hears of them.
        """
        found: list[Range | None] = []
        slots: dict[int, int] = {}
        wanted = 0
        for buffer in buffers:
            known = self._known(buffer, found, drafts)
            if known is not None:
                place, capacity = known
                slots[place[0]] = capacity
                found.append(place)
            else:
                found.append(None)
                wanted += _rounded(_size(buffer), _GRAIN)
        if wanted:
            taken = self._take(wanted)
            if taken is None:
                return None
            slot, warm = taken
            start = 0
            try:
                self._prepare(slot, warm)
                for index, buffer in enumerate(buffers):
                    if found[index] is None:
                        self._write(buffer, slot, start)
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

    def _take(self, wanted: int) -> tuple[Slot, bool] | None:
        """Return a slot of at least so many bytes, which is in use from now on, and whether it has its memory; None
        where there is none."""
        if self._used_bytes >= self._limit:
            return None
        capacity = _capacity(wanted)
        fitting = [each for each, places in self._warm.items() if places and capacity <= each <= 2 * capacity]
        if fitting:
            capacity = min(fitting)
            place = self._warm[capacity].pop()
            self._warm_bytes -= capacity
            warm = True
        else:
            warm = False
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
        return (place, capacity), warm

    def _write(self, buffer: Any, slot: Slot, start: int) -> None:
        own = self._own.get(slot[0])
        for part in buffer if type(buffer) is list else [buffer]:
            with memoryview(part) as view, view.cast("B") as rest:
                if own is not None:
                    with memoryview(own) as memory:
                        memory[start : start + len(rest)] = rest
                else:
                    _write_all(self._descriptor, rest, slot[0] + start)
                start += len(rest)

    def _prepare(self, slot: Slot, warm: bool) -> None:
        """Have a slot of its own ready to be written."""
        place, capacity = slot
        if capacity < LEAST_MAPPED:
            return
        if not warm:
            # Now the file is long enough for all of it to be mapped.
            _write_all(self._descriptor, memoryview(b"\0"), place + capacity - 1)
        elif place not in self._own:
            # Where it cannot be mapped, it can still be written.
            with contextlib.suppress(OSError, ValueError):
                self._keep_mapped(place, mmap.mmap(self._descriptor, capacity, _MAPPED_WHOLE, offset=place))

    def _keep_mapped(self, place: int, mapping: mmap.mmap) -> None:
        """Have a slot of its own mapped for the next time."""
        self._own[place] = mapping
        if len(self._own) > MOST_KEPT:
            del self._own[next(iter(self._own))]

    def freed(self, places: Iterable[int]) -> None:
        """Take in that nobody can see those slots any more."""
        for place in places:
            capacity = self._used.pop(place)
            self._used_bytes -= capacity
            self._warm.setdefault(capacity, []).append(place)
            self._warm_bytes += capacity

    def rest(self) -> None:
        """Give back all that is only there for the next time."""
        self._look()
        self.trim()
        self._mapped = dict(self._in_sight)
        self._own.clear()
        self._buffers.clear()

    @property
    def drafting(self) -> bool:
        """Whether there are drafts, in which something may be that is passed on."""
        return bool(self._drafts)

    def give(self, blobs: Iterable[Any]) -> None:
        """Have what blobs refer to in drafts never change any more: what lives there goes on in other memory."""
        if not self._drafts:
            return
        for place in {
            place for blob in blobs if type(blob) is SharedBlob for place, _ in blob.slots
        } & self._drafts.keys():
            draft = self._drafts[place]
            if draft.free:
                self._keep_mapped(place, draft.ended())
                self._after_held = 0
            else:
                draft.detach()
                self._no_draft = self._after_held = min(MOST_HELD, 2 * self._after_held + 1)
            del self._drafts[place]

    def trim(self, kept: int = 0) -> None:
        """Give back the memory of slots that are not in use, but for so many bytes."""
        for capacity, places in self._warm.items():
            while places and self._warm_bytes > kept:
                place = places.pop()
                self._warm_bytes -= capacity
                if place in self._own:
                    self._own.pop(place).close()
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

    def adopt(self, blob: SharedBlob) -> None:
        self._seen[id(blob)] = blob.slots

    def let_go(self, blob: SharedBlob, finalizing: Any = sys.is_finalizing) -> None:
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
        self._look()
        places: list[int] = []
        while self._gone:
            places += [place for place, _ in self._gone.popleft()]
        return places

    def _look(self) -> None:
        for place, memory in list(self._in_sight.items()):
            if memory.free:
                self._lose_sight(place, memory)
        for place, draft in list(self._drafts.items()):
            if draft.free:
                # It was not passed on, and nobody has heard of it.
                del self._drafts[place]
                if not draft.detached:
                    self._keep_mapped(place, draft.ended())
                self.freed([place])

    def _lose_sight(self, place: int, memory: Memory) -> None:
        """Have a mapping ready for the next time."""
        unprotect(memory.mapping)
        if memory.address is None or not unchanged(memory.address, len(memory.mapping)):
            # What was changed here is nobody's.
            memory.mapping.madvise(mmap.MADV_DONTNEED)
            self._was_changed()
        else:
            self._after_change = COPIED_AFTER_CHANGE
        del self._in_sight[place]
        memory.blob = None

    def _was_changed(self) -> None:
        """What the job gets is to be copied for a while."""
        if not self._copies:
            self._copies = self._after_change
            self._after_change = min(MOST_COPIED, 4 * self._after_change + 3)

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
        """Return what is in a slot from `start` on, which may be changed here without a change there."""
        memory = self._map(slot) if size >= LEAST_MAPPED else None
        if memory is None:
            copy = bytearray(size)
            _read_all(self._descriptor, memoryview(copy), slot[0] + start)
            return memoryview(copy)
        if self._copies or self._sees_enough():
            self._copies = max(0, self._copies - 1)
            with memoryview(memory.mapping) as whole, whole[start : start + size] as source:
                draft = self._draft(source)
                if draft is not None:
                    return draft
                view = self._buffer(size)
                view[:] = source
            return view
        memory.blob = blob
        self._in_sight[slot[0]] = memory
        protect_from_fork(memory.mapping)
        return memoryview(memory.mapping)[start : start + size]

    def _sees_enough(self) -> bool:
        return (
            len(self._in_sight) >= MOST_SEEN
            or sum(len(memory.mapping) for memory in self._in_sight.values()) >= self._most_seen
        )

    def _map(self, slot: Slot) -> Memory | None:
        """Return a mapping of a slot of which nothing is seen yet; None where it cannot be had."""
        place, capacity = slot
        if place in self._in_sight:
            # It came twice, or is opened again: one of them may have changed what is seen.
            return None
        # The newest are at the end.
        memory = self._mapped.pop(place, None)
        if memory is None or len(memory.mapping) < capacity:
            # Without a descriptor, or room in memory, it is copied.
            with contextlib.suppress(OSError, ValueError):
                protection = mmap.PROT_READ | mmap.PROT_WRITE
                mapping = Private(self._descriptor, capacity, mmap.MAP_PRIVATE, protection, offset=place)
                memory = Memory(mapping)
                del mapping
        if memory is None:
            return None
        self._mapped[place] = memory
        if len(self._mapped) > MOST_KEPT + len(self._in_sight):
            del self._mapped[next(each for each in self._mapped if each not in self._in_sight and each != place)]
        return memory

    def _draft(self, source: memoryview) -> memoryview | None:
        """Return a copy in a slot of its own, to be passed on as it will be; None where that cannot be."""
        # Those that a job keeps must not use up what it may write.
        held = sum(len(draft.mapping) for draft in self._drafts.values())
        enough = self._sees_enough() or len(self._drafts) >= MOST_BUFFERS or held >= self._most_seen
        if self._no_draft or self._number == CALLER or not CAN_DRAFT or enough:
            self._no_draft = max(0, self._no_draft - 1)
            return None
        taken = self._take(len(source))
        if taken is None:
            return None
        (place, capacity), warm = taken
        try:
            self._prepare((place, capacity), warm)
            if not warm:
                # Now it has its memory.
                _write_all(self._descriptor, source, place)
                self._prepare((place, capacity), warm=True)
            mapping = self._own.pop(place, None) or mmap.mmap(self._descriptor, capacity, offset=place)
        except (OSError, ValueError):
            self.freed([place])
            self.trim()
            return None
        draft = WritableCopy(mapping, self._descriptor, place)
        del mapping
        if draft.address is None:
            # Who lived there could not be given other memory.
            self._keep_mapped(place, draft.ended())
            self.freed([place])
            return None
        self._drafts[place] = draft
        view = memoryview(draft.mapping)[: len(source)]
        if warm:
            view[:] = source
        return view

    def _buffer(self, size: int) -> memoryview:
        """Return memory of nobody else's, if possible such as was touched before."""
        for memory in self._buffers:
            if size <= len(memory.mapping) <= 2 * size and memory.free:
                return memoryview(memory.mapping)[:size]
        if len(self._buffers) < MOST_BUFFERS and sum(len(each.mapping) for each in self._buffers) < self._most_seen:
            self._buffers.append(Memory(mmap.mmap(-1, _capacity(size), _OWN_WHOLE)))
            return memoryview(self._buffers[-1].mapping)[:size]
        for index, memory in enumerate(self._buffers):
            if memory.free:
                # It has another size.
                del self._buffers[index]
                return self._buffer(size)
        return memoryview(bytearray(size))

    def _known(self, buffer: Any, found: Sequence[Range | None], drafts: bool) -> tuple[Range, int] | None:
        """Return where a buffer is that came here and is passed on, unchanged or as a draft, and how long that slot is.

        Two in one message must not become one memory, so each is found only once in it.
        """
        among: list[dict[int, Any]] = [each for each in (self._in_sight, self._drafts if drafts else None) if each]
        if not among or self._number == CALLER or type(buffer) is list:
            return None
        address, size = address_of(buffer), _size(buffer)
        if address is None:
            return None
        for place, memory in [item for each in among for item in each.items()]:
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
                self._was_changed()
                return None
            return (place, start, size), len(memory.mapping)
        return None

    # The end

    def close(self) -> None:
        """Give back all but what is still seen here, and that as soon as it no longer is."""
        self._ended = True
        for memory in self._in_sight.values():
            # From now on they are given back one by one, when the last that lives there is gone.
            if isinstance(memory.mapping, Private):
                memory.mapping.blob = memory.blob
        self._in_sight.clear()
        self._mapped.clear()
        self._own.clear()
        self._drafts.clear()
        self._buffers.clear()
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


def owner_of(place: int) -> int | None:
    """Return the number of the worker whose region a slot is in, None for the caller's.

    >>> owner_of(4096), owner_of(REGION_BYTES + 4096)
    (None, 0)
    """
    region = place // REGION_BYTES
    return None if region == CALLER else region - 1


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


def _write_all(descriptor: int, rest: memoryview, place: int) -> None:
    done = 0
    while done < len(rest):
        done += os.pwrite(descriptor, rest[done:], place + done)


def _read_all(descriptor: int, rest: memoryview, place: int) -> None:
    done = 0
    while done < len(rest):
        count = os.preadv(descriptor, [rest[done:]], place + done)
        if not count:
            raise EOFError("the shared memory of the pipeline has ended before its time")
        done += count
