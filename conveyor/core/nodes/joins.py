"""Joins: several branches become one stream.

Law: the order of the outputs does not depend on timing.  They are ordered by the item that entered the fork, then by
branch, then as the branch gave them.  Trailing outputs come last, by branch.  A join moves as many items as it can at
once.  It passes on outputs of a group that is still open, so a full branch cannot stall the fork.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque

from conveyor.core.data.group_sizes import GroupSizes, append_groups
from conveyor.core.data.pieces import Piece, Weave
from conveyor.core.nodes.base import Lane, Node, NodeContext, Output, Weighings
from conveyor.graph.plan import MergeNode, ZipNode


class Join(Node):
    """The common part of all joins: a lane for each branch, and the end of the stream."""

    def __init__(self, node: MergeNode | ZipNode, context: NodeContext) -> None:
        super().__init__(node.index, context)
        self.lanes = [Lane(*bounds) for bounds in zip(node.bounds, node.bounds_bytes, strict=True)]
        self.tracked = isinstance(node, ZipNode) or node.tracked
        self.output: Output
        self.sharing = False
        self.ended = False

    def connect(self, output: Output) -> None:
        self.output = output
        self.takers = output.node.takers
        self.min_batch = output.node.min_batch
        self.sharing = output.node.shares_pipe()
        for lane in self.lanes:
            lane.bound = max(lane.bound, self.min_batch)

    def is_idle(self) -> bool:
        return not any(lane.items for lane in self.lanes)

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        lane = self.lanes[port]
        most = max(self.min_batch, lane.item_weight.limit(lane.bound) if weighed else lane.bound)
        return most - lane.items - self.output.node.shared_pipe_items()

    def weigh(self, port: int, items: int, size: int) -> Weighings:
        self.lanes[port].item_weight.weigh(items, size)
        return ((self.output, items, size),)

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        self.lanes[port].push(pieces, items, group_sizes)
        self.wake()

    def waiting_for(self, node: Node) -> int:
        """How many items wait here for `node`."""
        return sum(lane.items for lane in self.lanes) if self.output.node is node else 0

    def end(self, port: int) -> None:
        self.lanes[port].ended = True
        self.wake()

    def pump(self) -> None:
        moved = False
        while self.move():
            moved = True
        if not self.ended and all(lane.ended and not lane.items for lane in self.lanes):
            self.ended = True
            self.output.end()
        if moved or self.sharing:
            self.wake_upstream()
        if self.output.free_capacity() < 1 and any(lane.items for lane in self.lanes):
            self.output.node.request_flush()

    @abstractmethod
    def move(self) -> bool:
        """Move some items on; return whether anything moved."""

    def clear(self) -> None:
        for lane in self.lanes:
            lane.clear()

    def check(self) -> None:
        for lane in self.lanes:
            lane.pieces.check()
            assert lane.items <= lane.bound + self.in_flight, "pipe over its bound"
            assert not self.tracked or lane.groups.items == lane.items, "groups and items disagree"


class FreeMerge(Join):
    """Branches without order: each item goes on at once."""

    def move(self) -> bool:
        moved = False
        for lane in self.lanes:
            items = min(lane.items, self.output.free_capacity())
            if items > 0:
                self.output.push(lane.pieces.take(items), items, None)
                moved = True
        return moved


class ReplicateMerge(Join):
    """Branches of a ReplicatingFork: all of them have every group."""

    def __init__(self, node: MergeNode, context: NodeContext) -> None:
        super().__init__(node, context)
        self._turn = 0

    def move(self) -> bool:
        return (not self._turn and self._move_groups()) or self._move_items()

    def _move_groups(self) -> bool:
        """Move whole groups that are closed in every lane."""
        group_sizes, lane_sizes, items = closed_groups(self.lanes, self.output.free_capacity(), zipped=False)
        if not group_sizes:
            return False
        self.output.push(weave(self.lanes, lane_sizes, items, zipped=False), items, group_sizes)
        return True

    def _move_items(self) -> bool:
        """Move the items of the present group that the next lane has."""
        lane = self.lanes[self._turn]
        first = lane.groups.first
        items = min(lane.items if first is None else first[0], self.output.free_capacity())
        moved = False
        if items > 0:
            lane.groups.shrink(items)
            self.output.push(lane.pieces.take(items), items, [])
            moved = True
        first = lane.groups.first
        last_turn = self._turn == len(self.lanes) - 1
        if first is not None and first[0] == 0:
            lane.groups.drop(1)
            if last_turn:
                self.output.push((), 0, [(0, 1)])
            self._turn = 0 if last_turn else self._turn + 1
            return True
        if first is None and lane.ended and not lane.items and not last_turn:
            # This lane has given all its trailing outputs.
            self._turn += 1
            return True
        return moved

    def clear(self) -> None:
        super().clear()
        self._turn = 0


class BalanceMerge(Join):
    """Branches of a BalancingFork: each group is in one of them; the fork reports which."""

    def __init__(self, node: MergeNode, context: NodeContext) -> None:
        super().__init__(node, context)
        self._ports = {branch: port for port, branches in enumerate(node.branches) for branch in branches}
        self._route: deque[tuple[int, int]] = deque()
        self._route_ended = False
        self._turn = 0

    def route_ended(self) -> None:
        """Record that the fork has ended: items beyond the known groups are trailing outputs."""
        self._route_ended = True
        self.wake()

    def routed(self, branch: int, groups: int) -> None:
        """Record that the next `groups` items went down `branch`."""
        port = self._ports.get(branch)
        if port is None:
            return
        if self._route and self._route[-1][0] == port:
            self._route[-1] = (port, self._route[-1][1] + groups)
        else:
            self._route.append((port, groups))
        self.wake()

    def move(self) -> bool:
        if not self._route:
            return self._move_trailing()
        port, wanted = self._route[0]
        lane = self.lanes[port]
        capacity = self.output.free_capacity()
        first = lane.groups.first
        if first is None:
            items = min(lane.items, capacity)
            if items <= 0:
                return False
            lane.groups.shrink(items)
            self.output.push(lane.pieces.take(items), items, [])
            return True
        size, repeat = first
        groups = min(repeat, wanted, capacity // size if size else repeat)
        if groups <= 0:
            if capacity <= 0:
                return False
            lane.groups.shrink(capacity)
            self.output.push(lane.pieces.take(capacity), capacity, [])
            return True
        lane.groups.drop(groups)
        if groups == wanted:
            self._route.popleft()
        else:
            self._route[0] = (port, wanted - groups)
        self.output.push(lane.pieces.take(size * groups), size * groups, [(size, groups)])
        return True

    def _move_trailing(self) -> bool:
        """Move trailing outputs, by branch, once every group has left."""
        if not self._route_ended or self._turn == len(self.lanes):
            return False
        lane = self.lanes[self._turn]
        items = min(lane.items, self.output.free_capacity())
        if items > 0:
            lane.groups.shrink(items)
            self.output.push(lane.pieces.take(items), items, [])
        if lane.ended and not lane.items:
            self._turn += 1
            return True
        return items > 0

    def clear(self) -> None:
        super().clear()
        self._route.clear()


class Zip(Join):
    """Branches of a ReplicatingFork, zipped: each row has an item of each branch."""

    def weigh(self, port: int, items: int, size: int) -> Weighings:
        self.lanes[port].item_weight.weigh(items, size)
        return ((self.output, 1, round(sum(lane.item_weight.bytes for lane in self.lanes))),)

    def move(self) -> bool:
        return self._move_groups() or self._move_rows()

    def _move_groups(self) -> bool:
        """Move the rows of whole groups that are closed in every lane."""
        group_sizes, lane_sizes, items = closed_groups(self.lanes, self.output.free_capacity(), zipped=True)
        if not group_sizes:
            return False
        self.output.push(weave(self.lanes, lane_sizes, items, zipped=True), items, group_sizes)
        return True

    def _move_rows(self) -> bool:
        """Move complete rows of the present group, which some lane has not closed, or of the trailing outputs."""
        known = []
        for lane in self.lanes:
            first = lane.groups.first
            known.append((lane.items, lane.ended) if first is None else (first[0], True))
        still_open = [items for items, closed in known if not closed]
        rows = min(still_open) if still_open else max(items for items, _ in known)
        rows = min(rows, self.output.free_capacity())
        if rows <= 0:
            return False
        taken = [min(items, rows) for items, _ in known]
        pieces = tuple(lane.pieces.take(items) for lane, items in zip(self.lanes, taken, strict=True))
        for lane, items in zip(self.lanes, taken, strict=True):
            lane.groups.shrink(items)
        group_sizes: tuple[GroupSizes, ...] = tuple([(items, 1)] for items in taken)
        self.output.push(((Weave(pieces, group_sizes, True), 0, rows),), rows, [])
        return True


def closed_groups(lanes: list[Lane], capacity: int, *, zipped: bool) -> tuple[GroupSizes, list[GroupSizes], int]:
    """Remove the groups that all lanes have closed, as far as `capacity` allows.

    Return the groups of the join's output, the groups removed from each lane, and the number of output items.
    """
    group_sizes: GroupSizes = []
    lane_sizes: list[GroupSizes] = [[] for _ in lanes]
    items = 0
    while True:
        firsts = [lane.groups.first for lane in lanes]
        heads = [first for first in firsts if first is not None]
        if len(heads) < len(lanes):
            break
        sizes = [size for size, _ in heads]
        size = max(sizes) if zipped else sum(sizes)
        groups = min(repeat for _, repeat in heads)
        if size:
            groups = min(groups, (capacity - items) // size)
        if groups <= 0:
            break
        for lane, closed, each in zip(lanes, lane_sizes, sizes, strict=True):
            lane.groups.drop(groups)
            append_groups(closed, each, groups)
        append_groups(group_sizes, size, groups)
        items += size * groups
    return group_sizes, lane_sizes, items


def weave(lanes: list[Lane], lane_sizes: list[GroupSizes], items: int, *, zipped: bool) -> tuple[Piece, ...]:
    """Take the items of the given groups out of the lanes; return them as pieces in output order."""
    pieces = tuple(
        lane.pieces.take(sum(size * repeat for size, repeat in group_sizes))
        for lane, group_sizes in zip(lanes, lane_sizes, strict=True)
    )
    if not items:
        return ()
    if not zipped:
        filled = [each for each in pieces if each]
        if len(filled) == 1:
            return filled[0]
        if all(len(group_sizes) == 1 and group_sizes[0][1] == 1 for group_sizes in lane_sizes):
            return tuple(piece for each in pieces for piece in each)
    return ((Weave(pieces, tuple(lane_sizes), zipped), 0, items),)
