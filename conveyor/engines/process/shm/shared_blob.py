"""A blob of which the heavy parts are in shared memory, and the process that sees one.

Law: plain values, and who is to be told when nobody here sees it any more.  What it means is the business of
`arena.py`, which writes and maps it, and of `broker/slot_refcounts.py`, which counts who sees what.
"""

from __future__ import annotations

from conveyor._lean.typing import Any, Protocol

# A part: the slot that it is in, where it begins there, and its bytes.
Range = tuple[int, int, int]
# A slot: its place in the file, which is its name, and the bytes that belong to it.
Slot = tuple[int, int]
# How a heavy blob is described in a message, beside the bytes that come with it.
Description = tuple[int, tuple[Range, ...], tuple[Slot, ...]]


class BlobTracker(Protocol):
    """Who is told what becomes of heavy blobs in a process."""

    def adopt(self, blob: SharedBlob) -> None:
        """Take in that this process sees a blob that came."""

    def let_go(self, blob: SharedBlob) -> None:
        """Take in that it sees that blob no more; called at any time, in any thread."""

    def opened(self, blob: SharedBlob) -> tuple[Any, list[Any]]:
        """Return what is to be unpickled, and the buffers for it."""


class SharedBlob:
    """A pickle, and the buffers that belong to it, which are `ranges` of shared memory.

    Without any `data` of its own the first of the ranges is the pickle.  `len` counts the bytes of all.

    >>> len(SharedBlob(b"pickle", ((0, 0, 4_000_000),), ((0, 4_194_304),)))
    4000006
    """

    __slots__ = ("_keeper", "_size", "data", "ranges", "slots")

    def __init__(
        self, data: Any, ranges: tuple[Range, ...], slots: tuple[Slot, ...], keeper: BlobTracker | None = None
    ) -> None:
        self._keeper = keeper
        self._size = len(data) + sum(size for _, _, size in ranges)
        self.data = data
        self.ranges = ranges
        self.slots = slots
        if keeper is not None:
            keeper.adopt(self)

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        if self._keeper is not None:
            self._keeper.let_go(self)

    @property
    def description(self) -> Description:
        """What is said of it in a message."""
        return len(self.data), self.ranges, self.slots

    def opened(self) -> tuple[Any, list[Any]]:
        """Return what is to be unpickled, and the buffers for it, which nobody else sees."""
        assert self._keeper is not None, "only what came can be opened"
        return self._keeper.opened(self)
