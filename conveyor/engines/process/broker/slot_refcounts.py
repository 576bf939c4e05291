"""Who sees which shared memory: the broker's accounts.

Law: a slot is free when no message that is kept here refers to it and no process that got one does; it is freed once.
Only counts: what is in a slot nobody here looks at.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from conveyor._lean.typing import Any
from conveyor.engines.process.shm.region import owner_of
from conveyor.engines.process.shm.shared_blob import SharedBlob, Slot


class SlotRefcounts:
    """Counts, for each slot, how often it is referred to: by blobs that are kept here, and by those that were sent."""

    def __init__(self) -> None:
        self._uses: Counter[Slot] = Counter()
        # By the number of the worker; None is the caller.
        self._sent: dict[int | None, Counter[Slot]] = {}
        # The slots by their places, as those who got them know them.
        self._slots: dict[int, Slot] = {}
        self._released: deque[tuple[Slot, ...]] = deque()
        # Whether `free` may have something to return, and whether there ever was anything to count.
        self.changed = False
        self.ever = False

    def retain(self, blob: SharedBlob) -> None:
        """Take in a blob that came and is kept."""
        self.ever = True
        self._uses.update(blob.slots)
        self._slots.update((slot[0], slot) for slot in blob.slots)

    def release(self, blob: SharedBlob) -> None:
        """Take in that it is kept no more, at any time."""
        self._released.append(blob.slots)
        self.changed = True

    def opened(self, blob: SharedBlob) -> tuple[Any, list[Any]]:
        """Not here."""
        raise TypeError("the broker looks into no blob")

    def sent(self, to: int | None, blobs: Iterable[Any]) -> None:
        """Take in that someone is sent those blobs."""
        for blob in blobs:
            if type(blob) is SharedBlob:
                self._uses.update(blob.slots)
                self._sent.setdefault(to, Counter()).update(blob.slots)

    def gone(self, to: int | None, places: Iterable[int]) -> None:
        """Take in the word of someone who was sent them that he sees those slots no more, each as often as it came."""
        self.changed = True
        sent = self._sent[to]
        for place in places:
            slot = self._slots[place]
            sent[slot] -= 1
            self._uses[slot] -= 1
            if not sent[slot]:
                del sent[slot]

    def lost(self, to: int | None) -> None:
        """Take in that someone is dead."""
        self._uses.subtract(self._sent.pop(to, Counter()))
        self.changed = self.ever

    def free(self) -> dict[int | None, list[Slot]]:
        """Return the slots that nobody sees any more, by the numbers of those who wrote them; each is returned once."""
        self.changed = False
        while self._released:
            self._uses.subtract(self._released.popleft())
        free: dict[int | None, list[Slot]] = {}
        for slot in [slot for slot, uses in self._uses.items() if not uses]:
            free.setdefault(owner_of(slot[0]), []).append(slot)
            del self._uses[slot]
            del self._slots[slot[0]]
        return free

    def used(self) -> list[Slot]:
        """Return all slots that somebody sees."""
        return list(self._uses)
