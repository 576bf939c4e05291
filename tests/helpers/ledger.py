"""Who has which item, kept by the tests beside the core.

Law: knows an item by the blob that it came in and its place there, and a woven row by its weave; believes the commands
and the words of the workers alone, and nothing that the core says of itself.  At every step an item has one owner at a
time, is acknowledged once, and is never handed out again after that.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import chain
from typing import Any

from conveyor.core.data.pieces import Piece, Weave
from conveyor.graph.plan import Plan, ReplicateNode, SinkNode, StepNode


def mask_of(start: int, stop: int) -> int:
    """The places from `start` to `stop`, as bits."""
    return ((1 << (stop - start)) - 1) << start


def inexact(plan: Plan) -> set[int]:
    """The nodes to which one blob may come by more than one branch, so that its place does not tell an item."""
    found: set[int] = set()

    def reached(node: int) -> set[int]:
        # What a step takes in does not come out of it.
        description = plan.nodes[node]
        if isinstance(description, StepNode | SinkNode):
            return {node}
        targets = description.to if isinstance(description.to, tuple) else (description.to,)
        branches = [reached(target.node) for target in targets]
        if isinstance(description, ReplicateNode):
            found.update(each for each, count in Counter(chain(*branches)).items() if count > 1)
        return set().union(*branches)

    for node in plan.nodes:
        reached(node.index)
    return found


class Handed:
    """A lease, as the ledger knows it: what the worker still has of it, and how much it has acknowledged."""

    __slots__ = ("acknowledged", "finish", "items", "pieces")

    def __init__(self, pieces: tuple[Piece, ...], items: int, finish: bool) -> None:
        self.pieces = deque(pieces)
        self.items = items
        self.finish = finish
        self.acknowledged = 0


class Page:
    """What came to one step, or to the results."""

    def __init__(self, name: str, exact: bool) -> None:
        self.name = name
        # Whether an item is known by its blob and its place there; where not, items are only counted.
        self.exact = exact
        self._woven: set[int] = set()
        # By the identity of a source, the places that are with a worker, those that are done, and those of either or of
        # none that were handed out at all.  Sources are kept, or another could have the same identity.
        self._owned: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._sources: dict[int, Any] = {}
        # For each source: from where to where it was handed out at once, and the number of the first of these items.
        self._spans: dict[int, list[tuple[int, int, int]]] = {}
        self.leases: dict[int, dict[int, Handed]] = {}
        # How many items were handed out, are with workers, and were acknowledged; how many outputs came.
        self.handed = 0
        self.owned = 0
        self.done = 0
        self.outputs = 0

    def hand_out(self, worker: int, lease: int, pieces: tuple[Piece, ...], items: int, finish: bool) -> None:
        """Items go to a worker: new ones, or some that another has lost or given back."""
        for source, start, stop in pieces if self.exact else ():
            mask = self._see(source, start, stop)
            key = id(source)
            owned = self._owned.get(key, 0)
            assert not owned & mask, f"an item has two owners at {self.name}"
            assert not self._done.get(key, 0) & mask, f"an item is handed out at {self.name} that was acknowledged"
            self._owned[key] = owned | mask
        self.owned += items
        self.leases.setdefault(worker, {})[lease] = Handed(pieces, items, finish)

    def pass_on(self, pieces: tuple[Piece, ...], items: int) -> None:
        """Items go where nobody acknowledges them."""
        for source, start, stop in pieces if self.exact else ():
            mask = self._see(source, start, stop)
            done = self._done.get(id(source), 0)
            assert not done & mask, f"an item comes twice to {self.name}"
            self._done[id(source)] = done | mask
        self.done += items

    def _see(self, source: Any, start: int, stop: int) -> int:
        """Take in items on their first way to a worker, or on another; return their places."""
        key, mask = id(source), mask_of(start, stop)
        known = self._known.get(key)
        if known is None:
            known = 0
            self._sources[key] = source
            if type(source) is Weave:
                self._see_woven(source)
        if not known & mask:
            self._spans.setdefault(key, []).append((start, stop, self.handed))
            self.handed += stop - start
        else:
            assert known & mask == mask, f"items that are new at {self.name} among others that are not"
        self._known[key] = known | mask
        return mask

    def _see_woven(self, weave: Weave) -> None:
        """What is woven into rows is not to come by another way as well."""
        if id(weave) in self._woven:
            return
        self._woven.add(id(weave))
        for source, start, stop in chain(*weave.lanes):
            key, mask = id(source), mask_of(start, stop)
            self._sources[key] = source
            done = self._done.get(key, 0)
            assert not (done | self._known.get(key, 0)) & mask, f"an item comes twice to {self.name}, once woven"
            self._done[key] = done | mask
            if type(source) is Weave:
                self._see_woven(source)

    def acknowledge(self, worker: int, lease: int, items: int) -> None:
        """A worker is done with the next items of a lease."""
        handed = self.leases[worker][lease]
        assert items <= handed.items, f"more was acknowledged at {self.name} than there was"
        handed.items -= items
        handed.acknowledged += items
        self.owned -= items
        self.done += items
        pieces = handed.pieces
        while items:
            source, start, stop = pieces[0]
            if stop - start <= items:
                pieces.popleft()
            else:
                pieces[0] = (source, start + items, stop)
                stop = start + items
            items -= stop - start
            if not self.exact:
                continue
            key, mask = id(source), mask_of(start, stop)
            done = self._done.get(key, 0)
            assert not done & mask, f"an item was acknowledged twice at {self.name}"
            self._owned[key] &= ~mask
            self._done[key] = done | mask

    def release(self, worker: int, lease: int, items: int) -> None:
        """The last items of a lease are nobody's."""
        handed = self.leases[worker][lease]
        handed.items -= items
        self.owned -= items
        while items:
            source, start, stop = handed.pieces.pop()
            if stop - start > items:
                handed.pieces.append((source, start, stop - items))
                start = stop - items
            items -= stop - start
            if self.exact:
                self._owned[id(source)] &= ~mask_of(start, stop)

    def close(self, worker: int, lease: int) -> None:
        """Nothing more comes for a lease: what was not acknowledged of it is nobody's."""
        self.release(worker, lease, self.leases[worker][lease].items)
        del self.leases[worker][lease]

    def lose(self, worker: int) -> None:
        """A worker is dead."""
        for lease in list(self.leases.get(worker, ())):
            self.close(worker, lease)

    def suspects(
        self, worker: int, unit: int, started: tuple[int, int] | None, several: bool = False
    ) -> tuple[int, int] | None:
        """The lease at whose first units a worker may have died, by its note, and how many units that may be.

        `several`: it may have been at several leases at once.
        """
        leases = self.leases.get(worker, {}).items()
        begun = [each for each, handed in leases if handed.items and (started is None or each <= started[0])]
        if several and len(begun) > 1:
            return begun[0], 2
        for lease, handed in leases:
            if not handed.items or (started is not None and lease < started[0]):
                # What stands before the lease that it had begun was done, whether or not the word of that arrived.
                continue
            calls = -(-handed.items // unit)
            if started is not None:
                calls = max(0, min(calls, started[1] - handed.acknowledged // unit)) if lease == started[0] else 0
            return lease, calls
        return None

    def number(self, worker: int, lease: int) -> int:
        """The number of the first item of a lease that was not acknowledged, in the order in which they came."""
        source, start, _ = self.leases[worker][lease].pieces[0]
        return next(first + start - begin for begin, end, first in self._spans[id(source)] if begin <= start < end)

    def settle(self) -> None:
        """Raise AssertionError unless all that was handed out is done."""
        assert not any(self.leases.values()), f"a lease of {self.name} is out at the end"
        assert not self.owned, f"{self.owned} items of {self.name} are out at the end"
        assert not self.exact or self.handed == self.done, f"{self.handed - self.done} items were lost at {self.name}"
