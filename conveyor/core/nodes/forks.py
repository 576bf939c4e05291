"""Forks: one stream becomes several branches; and the end of a fork, where the groups around it come back.

Law: a fork never looks at an item, and never holds one back that its branches have capacity for.  With `tracked`, each
item that enters is a group of its own in the branches.  The exits of the fork are told how these items were grouped
around it.
"""

from __future__ import annotations

from abc import abstractmethod

from conveyor.core.data.group_sizes import GroupSizes, Regroup
from conveyor.core.data.pieces import Piece, Pieces
from conveyor.core.nodes.base import Node, NodeContext, Output, Weighings, takers_of
from conveyor.core.nodes.joins import BalanceMerge
from conveyor.core.nodes.step import Step
from conveyor.graph.plan import BalanceNode, LeaveNode, ReplicateNode


class ForkExit(Node):
    """The running form of a `LeaveNode`."""

    def __init__(self, node: LeaveNode, context: NodeContext) -> None:
        super().__init__(node.index, context)
        self.tracked = node.tracked
        self.output: Output
        self._end: Output
        self._regroup = Regroup()

    def connect(self, output: Output) -> None:
        """Take in where everything goes."""
        self.output = output
        # Where all that comes here ends up, past other ends of forks.
        self._end = output.node._end if isinstance(output.node, ForkExit) else output
        self.min_batch = output.node.min_batch
        self.takers = output.node.takers

    def push_outer_groups(self, group_sizes: GroupSizes, items: int) -> None:
        """Take in how `items` more items that entered the fork are grouped around it."""
        self._regroup.push(group_sizes, items)
        self.wake()

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        return self._end.free_capacity(weighed)

    def weigh(self, port: int, items: int, size: int) -> Weighings:
        return ((self._end, items, size),)

    def request_flush(self) -> None:
        self._end.node.request_flush()

    def shares_pipe(self) -> bool:
        return self._end.node.shares_pipe()

    def shared_pipe_items(self) -> int:
        return self._end.node.shared_pipe_items()

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        node: Node = self
        # Any number of ends of forks may follow each other.
        while isinstance(node, ForkExit) and (items or group_sizes):
            group_sizes = node._regroup.feed(group_sizes or [], items) if node.tracked else None
            output = node.output
            node = output.node
        output.push(pieces, items, group_sizes)

    def end(self, port: int) -> None:
        self._end.end()

    def pump(self) -> None:
        if self.tracked:
            self.output.push((), 0, self._regroup.feed([], 0))
        self.wake_upstream()

    def clear(self) -> None:
        self._regroup.clear()


class Fork(Node):
    """What both kinds share: the pipe in front, and the news for the exits of the fork."""

    def __init__(self, node: ReplicateNode | BalanceNode, context: NodeContext) -> None:
        super().__init__(node.index, context, node.bound_bytes)
        self.bound = node.bound
        self.tracked = node.tracked
        self.outputs: list[Output] = []
        self.exits: list[ForkExit] = []
        self.sharing = False
        self.queue = Pieces()
        self.ended = False

    def connect(self, outputs: list[Output]) -> None:
        """Take in where the branches go."""
        self.outputs = outputs
        self.takers = takers_of(outputs)
        self.min_batch = max(self.min_batch, *(output.node.min_batch for output in outputs))
        self.bound = max(self.bound, self.min_batch)
        self.sharing = any(output.node.shares_pipe() for output in outputs)

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        return self.most(self.bound, weighed) - self.queue.items - self.branches_held()

    def weigh(self, port: int, items: int, size: int) -> Weighings:
        super().weigh(port, items, size)
        return tuple([(output, items, size) for output in self.outputs])

    def is_idle(self) -> bool:
        return not self.queue.items

    @abstractmethod
    def branches_held(self) -> int:
        """How many items in the branches count against the pipe in front."""

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        if group_sizes is not None:
            for each in self.exits:
                each.push_outer_groups(group_sizes, items)
        self.queue.extend(pieces, items)
        self.wake()

    def waiting_for(self, node: Node) -> int:
        """How many items wait here for one of the branches."""
        return self.queue.items if any(output.node is node for output in self.outputs) else 0

    def end(self, port: int) -> None:
        self.ended = True
        self.wake()

    def end_branches(self) -> None:
        """Pass the end on, once, when nothing waits here any more."""
        if self.ended and not self.queue.items:
            self.ended = False
            for output in self.outputs:
                output.end()

    def clear(self) -> None:
        self.queue.clear()

    def check(self) -> None:
        self.queue.check()
        assert self.queue.items + self.branches_held() <= self.bound + self.in_flight, "pipe over its bound"


class Replicate(Fork):
    """Every item goes to all branches, once all have capacity for it."""

    def branches_held(self) -> int:
        return max(output.node.shared_pipe_items() for output in self.outputs)

    def pump(self) -> None:
        moved = False
        while items := min(self.queue.items, min(output.free_capacity() for output in self.outputs)):
            if items < 0:
                break
            pieces = self.queue.take(items)
            for output in self.outputs:
                output.push(pieces, items, [(1, items)] if self.tracked else None)
            moved = True
        self.end_branches()
        if moved or self.sharing:
            self.wake_upstream()


class Balance(Fork):
    """Every batch of items goes to one branch: round-robin, passing over a branch that has no capacity."""

    def __init__(self, node: BalanceNode, context: NodeContext) -> None:
        super().__init__(node, context)
        self.batch_size = self.min_batch = node.unit
        self.strict = node.strict
        self.merges: list[BalanceMerge] = []
        self._next = 0
        # How many batches have been dealt out.
        self._dealt = 0

    def branches_held(self) -> int:
        return sum(output.node.shared_pipe_items() for output in self.outputs)

    def pump(self) -> None:
        moved = False
        while self.queue.items >= self.batch_size or (self.ended and self.queue.items):
            capacities = [self._capacity(output) for output in self.outputs]
            branch = self._choose(capacities) if self.queue.items >= self.batch_size else self._last(capacities)
            if branch is None:
                break
            batches = -(-self.queue.items // self.batch_size) if self.ended else self.queue.items // self.batch_size
            open_branches = sum(1 for capacity in capacities if capacity >= self.batch_size)
            size, chunk = self.batch_size, self.outputs[branch].node.preferred_chunk()
            share = 1 if self.strict else max(1, min(-(-batches // open_branches), chunk // self.batch_size))
            items = min(share * size, capacities[branch] // size * size, self.queue.items)
            pieces = self.queue.take(items)
            self._next = (branch + 1) % len(self.outputs)
            self._dealt += -(-items // self.batch_size)
            for merge in self.merges:
                merge.routed(branch, items)
            self.outputs[branch].push(pieces, items, [(1, items)] if self.tracked else None)
            moved = True
        self.end_branches()
        if moved or self.sharing:
            self.wake_upstream()

    def end_branches(self) -> None:
        if self.ended and not self.queue.items:
            for merge in self.merges:
                merge.route_ended()
        super().end_branches()

    def _capacity(self, output: Output) -> int:
        # A branch with busy workers counts as stalled, whatever its pipe would hold: another may take what waits here.
        if isinstance(output.node, Step) and (output.node.shares_pipe() or not self.strict):
            return output.node.demand()
        return output.free_capacity()

    def _last(self, capacities: list[int]) -> int | None:
        """Return the branch of a short last batch.  Its outputs are trailing ones, by branch, so timing must not decide
        on it."""
        branch = self._dealt % len(capacities)
        return branch if capacities[branch] >= self.batch_size else None

    def _choose(self, capacities: list[int]) -> int | None:
        count = len(capacities)
        for offset in range(1 if self.strict else count):
            branch = (self._next + offset) % count
            if capacities[branch] >= self.batch_size:
                return branch
        return None
