"""Memory that is mapped into this process, and whether anything lives there.

Law: knows nothing of who wrote what for whom.  Whether something lives in a mapping is told by the references to it,
and whether it was changed by the system; a fork takes along nothing that may be written anew.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import weakref

from conveyor._lean.typing import Any
from conveyor.engines.process.shm.shared_blob import SharedBlob

# The bytes that are copied at once where all pages are.
_STRIDE = 1 << 20
# Where what lives in a mapping can be given other memory: offsets in a file have a word.
CAN_DRAFT = sys.platform == "linux" and sys.maxsize > 1 << 32
_PAGE = mmap.PAGESIZE
# The highest bytes of those words of /proc/self/pagemap that say that a page is as it is in the file: it is not there
# yet, or is one of the file (bit 61), and is not swapped out (bit 62).  See Documentation/admin-guide/mm/pagemap.rst.
_UNCHANGED = bytes(byte for byte in range(256) if not byte & 0x40 and (not byte & 0x80 or byte & 0x20))


class Memory:
    """Something that is mapped, and may be in use: by nobody but this object, as long as `free` says so.

    `address` is where it is, None where that cannot be told.
    """

    __slots__ = ("__weakref__", "address", "blob", "mapping")

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping = mapping
        self.address = address_of(mapping)
        # What came there, as long as it is seen.
        self.blob: SharedBlob | None = None

    @property
    def free(self) -> bool:
        """Whether nothing lives in it: every view of it counts as a reference."""
        return sys.getrefcount(self.mapping) <= _REFERENCES

    def start_of(self, address: int, size: int) -> int | None:
        """Return where so many bytes at an address begin in it, None where they are not all in it."""
        start = address - self.address if self.address is not None else -1
        return start if start >= 0 and start + size <= len(self.mapping) else None


class Private(mmap.mmap):
    """A part of a file, mapped privately; where nobody looks after it any more, it keeps what came there."""

    blob: SharedBlob | None = None


class WritableCopy(Memory):
    """A part of a file that is mapped to be written: what lives in it may change until it is given to others.

    Once `detached` it is nobody else's, and what is in the file is no more changed by whoever lives in it.
    """

    __slots__ = ("_descriptor", "_place", "detached")

    def __init__(self, mapping: mmap.mmap, descriptor: int, place: int) -> None:
        super().__init__(mapping)
        self._descriptor = descriptor
        self._place = place
        self.detached = False
        _protect(self, _drafts)

    def detach(self) -> None:
        """Have whoever lives in it live on in memory of its own, at the same address; raises OSError where there is
        none."""
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
        _drafts.discard(self)
        # The file may be written there by and by.
        copy_pages(self.mapping)

    def ended(self) -> mmap.mmap:
        """Return the mapping, in which nothing lives any more that could change what is there."""
        _drafts.discard(self)
        return self.mapping


def address_of(buffer: Any) -> int | None:
    """Return where a buffer is in memory; None where it may not be changed, or that cannot be told."""
    try:
        import ctypes

        with memoryview(buffer) as view, view.cast("B") as flat:
            return ctypes.addressof(ctypes.c_char.from_buffer(flat))
    except (ImportError, TypeError, ValueError, BufferError):
        return None


def unchanged(address: int, size: int) -> bool:
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


def copy_pages(mapping: mmap.mmap) -> None:
    """Have all of what is mapped privately be of this process alone."""
    # Another thread may be changing it: the system copies without undoing that.
    with contextlib.suppress(OSError, ValueError):
        mapping.madvise(_MADV_POPULATE_WRITE)
        return
    with memoryview(mapping) as view:
        for start in range(0, len(view), _STRIDE):
            view[start : start + _STRIDE] = bytes(view[start : start + _STRIDE])


# What this process sees that a fork must not take along: what others may write anew, and what it is writing itself.
_seen: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_drafts: weakref.WeakSet[WritableCopy] = weakref.WeakSet()
_forks_copy: list[bool] = []
# Which Python does not name.  The second came with Linux 5.14; see madvise(2).
_MAP_FIXED = 0x10
_MADV_POPULATE_WRITE = 23


def protect_from_fork(mapping: mmap.mmap) -> None:
    """Have a fork copy what is seen: the child would see it too, and nobody would know."""
    _protect(mapping, _seen)


def unprotect(mapping: mmap.mmap) -> None:
    """Nothing lives there any more."""
    _seen.discard(mapping)


def _protect(what: Any, among: weakref.WeakSet[Any]) -> None:
    if not _forks_copy:
        os.register_at_fork(before=_copy_what_is_seen)
        _forks_copy.append(True)
    among.add(what)


def _copy_what_is_seen() -> None:
    for mapping in list(_seen):
        copy_pages(mapping)
        # Until it is seen anew, that need not be done again.
        _seen.discard(mapping)
    for draft in list(_drafts):
        with contextlib.suppress(OSError):
            draft.detach()


# What `Memory.free` counts where there is no view: how many that are differs from one Python to the next.
_REFERENCES = 1 << 30
_alone = Memory(mmap.mmap(-1, _PAGE))
_REFERENCES = next(count for count in range(1, 100) if sys.getrefcount(_alone.mapping) <= count)
