"""Memory that is mapped into this process, whether anything lives there, and whether it was changed.

Law: knows nothing of who wrote what for whom.  The number of references to a mapping tells whether something lives in
it, and the system tells whether it was changed.  A fork takes along nothing that another process may write anew.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import weakref

from conveyor._lean.typing import Any
from conveyor.engines.process.shm.region import MAX_KEPT_MAPPINGS, POPULATE, capacity_for
from conveyor.engines.process.shm.shared_blob import SharedBlob, Slot

# Each mapping takes a descriptor, of which a process has about a thousand.  What comes beyond this is copied.
MAX_LIVE_MAPPINGS = 128
MAX_BUFFERS = 8
# After a job changed in place what was mapped, the worker copies that many of the next: to copy an item costs less than
# to copy it page by page, as the job touches it.  Each further time quadruples the number, up to the second.
COPIES_AFTER_CHANGE, MAX_COPIES_AFTER_CHANGE = 15, 255
# Whether what lives in a mapping can be given other memory at its address: offsets in a file take a word.
HAS_WRITABLE_COPIES = sys.platform == "linux" and sys.maxsize > 1 << 32
_COPY_STRIDE_BYTES = 1 << 20
_PAGE_BYTES = mmap.PAGESIZE
_PRIVATE_AND_POPULATED = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0) | POPULATE
# The highest bytes of the words in /proc/self/pagemap whose page is as it is in the file: it is not there yet, or is
# one of the file (bit 61), and is not swapped out (bit 62).  See Documentation/admin-guide/mm/pagemap.rst.
_UNCHANGED = bytes(byte for byte in range(256) if not byte & 0x40 and (not byte & 0x80 or byte & 0x20))


class Memory:
    """A mapping; `address` is where it is, None where that cannot be told."""

    __slots__ = ("__weakref__", "address", "blob", "mapping")

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping = mapping
        self.address = address_of(mapping)
        # The blob that came there, as long as anything lives there.
        self.blob: SharedBlob | None = None

    @property
    def free(self) -> bool:
        """Whether nothing lives in it: every view of it counts as a reference."""
        return sys.getrefcount(self.mapping) <= _REFERENCES_OF_FREE

    def start_of(self, address: int, size: int) -> int | None:
        """Return where `size` bytes at an address begin in it, None where they are not all in it."""
        start = address - self.address if self.address is not None else -1
        return start if start >= 0 and start + size <= len(self.mapping) else None


class PrivateMapping(mmap.mmap):
    """A slot that is mapped privately.  When its arena is closed, it keeps the blob itself."""

    blob: SharedBlob | None = None


class WritableCopy(Memory):
    """A slot that is mapped to be written: what lives in it may change, until the slot is passed on.

    Once `detached`, the mapping is this process's own: a change of what lives in it changes nothing in the file.
    """

    __slots__ = ("_descriptor", "_place", "detached")

    def __init__(self, mapping: mmap.mmap, descriptor: int, place: int) -> None:
        super().__init__(mapping)
        self._descriptor = descriptor
        self._place = place
        self.detached = False
        _protect(self, _writable_copies)

    def detach(self) -> None:
        """Give what lives in it memory of its own, at the same address; raises OSError where there is none."""
        if self.detached:
            return
        import ctypes

        map_at = ctypes.CDLL(None, use_errno=True).mmap
        map_at.restype = ctypes.c_void_p
        map_at.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        found = map_at(self.address, len(self.mapping), protection, flags, self._descriptor, self._place)
        if found != self.address:
            raise OSError(ctypes.get_errno(), "memory cannot be mapped anew")
        self.detached = True
        _writable_copies.discard(self)
        # The file may be written there later.
        copy_pages(self.mapping)

    def ended(self) -> mmap.mmap:
        """Return the mapping, in which nothing lives any more."""
        _writable_copies.discard(self)
        return self.mapping


class SlotMappings:
    """The slots of others as this process sees them: mapped privately, or copied to buffers."""

    def __init__(self, descriptor: int, limit_bytes: int) -> None:
        self._descriptor = descriptor
        # What may be live at a time; and buffers take no more than that.
        self.limit_bytes = limit_bytes
        # All that is mapped, by place: the newest are at the end.  Something lives in the second only.
        self._mapped: dict[int, Memory] = {}
        self.live_mappings: dict[int, Memory] = {}
        self._buffers: list[Memory] = []
        self._copies_due, self._after_change = 0, COPIES_AFTER_CHANGE

    def map(self, slot: Slot) -> Memory | None:
        """Return a mapping of a slot in which nothing lives; None where there can be none."""
        place, capacity = slot
        if place in self.live_mappings:
            # It came twice, or is opened again: what lives there may have been changed.
            return None
        memory = self._mapped.pop(place, None)
        if memory is None or len(memory.mapping) < capacity:
            # Without a descriptor, or room in memory, the slot is read.
            with contextlib.suppress(OSError, ValueError):
                protection = mmap.PROT_READ | mmap.PROT_WRITE
                memory = Memory(PrivateMapping(self._descriptor, capacity, mmap.MAP_PRIVATE, protection, offset=place))
        if memory is None:
            return None
        self._mapped[place] = memory
        if len(self._mapped) > MAX_KEPT_MAPPINGS + len(self.live_mappings):
            del self._mapped[next(each for each in self._mapped if each not in self.live_mappings and each != place)]
        return memory

    def make_live(self, place: int, memory: Memory, blob: SharedBlob) -> None:
        """Let something live in a mapping, which keeps its blob."""
        memory.blob = blob
        self.live_mappings[place] = memory
        _protect(memory.mapping, _live_mappings)

    def retire_unused(self) -> None:
        """Release the blobs of mappings in which nothing lives any more; the mappings are kept for the next time."""
        for place, memory in list(self.live_mappings.items()):
            if not memory.free:
                continue
            _live_mappings.discard(memory.mapping)
            if memory.address is None or not unchanged(memory.address, len(memory.mapping)):
                # Nobody sees what was changed here.
                memory.mapping.madvise(mmap.MADV_DONTNEED)
                self.note_change()
            else:
                self._after_change = COPIES_AFTER_CHANGE
            del self.live_mappings[place]
            memory.blob = None

    def note_change(self) -> None:
        """Take in that a job changed what was mapped: the next items are copied."""
        if not self._copies_due:
            self._copies_due = self._after_change
            self._after_change = min(MAX_COPIES_AFTER_CHANGE, 4 * self._after_change + 3)

    def is_copy_due(self) -> bool:
        """Whether the next item is to be copied; asked once for each."""
        if self._copies_due or self.are_enough():
            self._copies_due = max(0, self._copies_due - 1)
            return True
        return False

    def are_enough(self) -> bool:
        """Whether no more mappings may be live."""
        return (
            len(self.live_mappings) >= MAX_LIVE_MAPPINGS
            or sum(len(memory.mapping) for memory in self.live_mappings.values()) >= self.limit_bytes
        )

    def buffer(self, size: int) -> memoryview:
        """Return memory of this process alone, if possible such as was touched before."""
        for memory in self._buffers:
            if size <= len(memory.mapping) <= 2 * size and memory.free:
                return memoryview(memory.mapping)[:size]
        if len(self._buffers) < MAX_BUFFERS and sum(len(each.mapping) for each in self._buffers) < self.limit_bytes:
            self._buffers.append(Memory(mmap.mmap(-1, capacity_for(size), _PRIVATE_AND_POPULATED)))
            return memoryview(self._buffers[-1].mapping)[:size]
        for index, memory in enumerate(self._buffers):
            if memory.free:
                # It has another size.
                del self._buffers[index]
                return self.buffer(size)
        return memoryview(bytearray(size))

    def drop_unused(self) -> None:
        """Keep nothing for the next time."""
        self._mapped = dict(self.live_mappings)
        self._buffers.clear()

    def close(self) -> None:
        """Let go of all mappings: the system gives each back when nothing lives there any more."""
        for memory in self.live_mappings.values():
            if isinstance(memory.mapping, PrivateMapping):
                memory.mapping.blob = memory.blob
        self.live_mappings.clear()
        self.drop_unused()


def address_of(buffer: Any) -> int | None:
    """Return where a buffer is in memory; None where it may not be changed, or that cannot be told."""
    try:
        import ctypes

        with memoryview(buffer) as view, view.cast("B") as flat:
            return ctypes.addressof(ctypes.c_char.from_buffer(flat))
    except (ImportError, TypeError, ValueError, BufferError):
        return None


def unchanged(address: int, size: int) -> bool:
    """Whether the system says that memory which is mapped privately is still as it is in the file."""
    first, last = address // _PAGE_BYTES, -(-(address + size) // _PAGE_BYTES)
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


def copy_pages(mapping: mmap.mmap) -> None:
    """Make all pages of a private mapping this process's own."""
    # Another thread may be changing it: the system copies without undoing that.
    with contextlib.suppress(OSError, ValueError):
        mapping.madvise(_MADV_POPULATE_WRITE)
        return
    with memoryview(mapping) as view:
        for start in range(0, len(view), _COPY_STRIDE_BYTES):
            view[start : start + _COPY_STRIDE_BYTES] = bytes(view[start : start + _COPY_STRIDE_BYTES])


# What a fork must not take along: mappings that other processes may write anew, and those that this one is writing.
_live_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_writable_copies: weakref.WeakSet[WritableCopy] = weakref.WeakSet()
_registered: list[bool] = []
# Python does not name these.  The second came with Linux 5.14; see madvise(2).
_MAP_FIXED = 0x10
_MADV_POPULATE_WRITE = 23


def _protect(what: Any, among: weakref.WeakSet[Any]) -> None:
    """Copy it before a fork: the child would see it too, and nobody would know."""
    if not _registered:
        os.register_at_fork(before=_copy_before_fork)
        _registered.append(True)
    among.add(what)


def _copy_before_fork() -> None:
    for mapping in list(_live_mappings):
        copy_pages(mapping)
        # Until something lives there anew, that need not be done again.
        _live_mappings.discard(mapping)
    for copy in list(_writable_copies):
        with contextlib.suppress(OSError):
            copy.detach()


# What `Memory.free` counts where there is no view; that differs from one Python to the next.
_REFERENCES_OF_FREE = 1 << 30
_alone = Memory(mmap.mmap(-1, _PAGE_BYTES))
_REFERENCES_OF_FREE = next(count for count in range(1, 100) if sys.getrefcount(_alone.mapping) <= count)
