"""A blob whose large parts are in shared memory, and the protocol of what tracks such blobs in a process.

Law: plain values, and a tracker that hears when this process no longer sees the blob.  `arena.py` writes and maps
blobs, and `broker/ports.py` counts who sees them.
"""

from __future__ import annotations

from conveyor._lean.typing import Any, Protocol

# A part: the slot that it is in, where it begins there, and its bytes.
Range = tuple[int, int, int]
# A slot: its place in the file, which is its name, and the bytes that belong to it.
Slot = tuple[int, int]
# How a message describes such a blob, beside the bytes that come with it.
Description = tuple[int, tuple[Range, ...], tuple[Slot, ...]]


class BlobTracker(Protocol):
    """What hears which shared blobs a process sees."""

    def retain(self, blob: SharedBlob) -> None:
        """Take in that this process sees a blob that came."""

    def release(self, blob: SharedBlob) -> None:
        """Take in that this process no longer sees that blob; called at any time, in any thread."""

    def opened(self, blob: SharedBlob) -> tuple[Any, list[Any]]:
        """Return what is to be unpickled, and the buffers for it."""


class SharedBlob:
    """A pickle, and the buffers that belong to it, which are `ranges` of shared memory.

    Without any `data` of its own the first of the ranges is the pickle.  `len` counts the bytes of all.

    >>> len(SharedBlob(b"pickle", ((0, 0, 4_000_000),), ((0, 4_194_304),)))
    4000006
    """

    __slots__ = ("_size", "_tracker", "data", "ranges", "slots")

    def __init__(
        self, data: Any, ranges: tuple[Range, ...], slots: tuple[Slot, ...], tracker: BlobTracker | None = None
    ) -> None:
        self._tracker = tracker
        self._size = len(data) + sum(size for _, _, size in ranges)
        self.data = data
        self.ranges = ranges
        self.slots = slots
        if tracker is not None:
            tracker.retain(self)

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        if self._tracker is not None:
            self._tracker.release(self)

    @property
    def description(self) -> Description:
        return len(self.data), self.ranges, self.slots

    def opened(self) -> tuple[Any, list[Any]]:
        """Return what is to be unpickled, and the buffers for it, which nobody else sees."""
        assert self._tracker is not None, "only what came can be opened"
        return self._tracker.opened(self)
