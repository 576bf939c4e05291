"""The plan: the validated graph that an engine runs.

Law: frozen data only, and nothing about how an engine runs it.  Nodes stand in topological order, so a `Target` always
points at a later node.  Node 0 is the first Processor.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import NamedTuple, dataclass, replace
from conveyor._lean.typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from conveyor.stages.processor import Processor
    from conveyor.stats import Unfused

Self = TypeVar("Self")

PIPE_BYTES = 16 * 1024 * 1024
"""How many bytes of items a pipe without `maxbytes` holds at most.  A larger pipe would hide no further delay."""


@dataclass(frozen=True)
class Target:
    """The input that an output goes to: input `port` of node `node`."""

    node: int
    port: int = 0


class Room(NamedTuple):
    """The bound of the pipe at an input, in items and in bytes, whichever comes first."""

    items: int
    bytes: int


class _Node:
    """The ports that all nodes have in common."""

    @property
    def inputs(self: Any) -> tuple[Room, ...]:
        """The room of the pipe at each input, by port; a node that holds no items has none."""
        return (Room(self.bound, self.bound_bytes),)

    @property
    def outputs(self: Any) -> tuple[Target, ...]:
        return self.to if isinstance(self.to, tuple) else (self.to,)

    @property
    def carries_groups(self: Any) -> bool | None:
        """Whether its outputs are in groups; None: they are if its input is."""
        tracked: bool | None = getattr(self, "tracked", None)
        return tracked

    def leading_to(self: Self, targets: tuple[Target, ...]) -> Self:
        node: Any = self
        return replace(node, to=targets if isinstance(node.to, tuple) else targets[0])  # type: ignore[no-any-return]


class _JoinNode(_Node):
    """A Join, with an input for each part of the fork that it covers."""

    @property
    def inputs(self: Any) -> tuple[Room, ...]:
        return tuple(map(Room, self.bounds, self.bounds_bytes))


@dataclass(frozen=True)
class StepNode(_Node):
    """One Processor and its workers.

    Fields, where the name does not say all:
        name: unique within the plan.
        workers: the first and the least number of workers.
        most: the greatest number of workers; None: the balancer's own bound.
        batch: None where the job takes one item at a time.
        bound, bound_bytes: the items, and about the bytes, that the pipe in front holds, as in every node.
        shared: no Pipe stands in front; items here count against the bound of the fork or join in front.
        restartable: the job has no state that would be lost with a worker.
        gives_up: the run goes on without an item that failed for good.
        timeout, timeouts: an item fails when it has taken longer than `timeout` seconds `timeouts` times.
        max_items: how many calls a worker makes before it is replaced.
        hands: how many items a worker works on at once, each as a call of its own for the core.
        threaded: each of these calls is made in a thread, and is known to be under way since when.
        in_lists: the job gets so many items in a list, and gives each its output (`per_item`).
        batch_timeout: how many seconds such a list waits to be filled; None: not at all.
    """

    index: int
    name: str
    processor: Processor[Any, Any]
    workers: int
    most: int | None
    batch: int | None
    bound: int
    bound_bytes: int
    shared: bool
    ordered: bool
    finishes: bool
    restartable: bool
    to: Target
    gives_up: bool = False
    timeout: float | None = None
    timeouts: int = 1
    max_items: int | None = None
    hands: int = 1
    threaded: bool = False
    in_lists: bool = False
    batch_timeout: float | None = None

    @property
    def auto(self) -> bool:
        """Whether the number of workers follows the load."""
        return self.most != self.workers


@dataclass(frozen=True)
class ReplicateNode(_Node):
    """A ReplicatingFork: every item goes to all targets in `to`.

    `tracked`: its branches carry groups, which tell the outputs of each item that entered the fork.
    """

    index: int
    bound: int
    bound_bytes: int
    tracked: bool
    to: tuple[Target, ...]


@dataclass(frozen=True)
class BalanceNode(_Node):
    """A BalancingFork with branches of its own: `unit` consecutive items at a time go to one target in `to`.

    `strict`: the branches take turns, even where one is full.  Else the boundaries of batches in the branches would
    depend on timing.
    """

    index: int
    bound: int
    bound_bytes: int
    unit: int
    strict: bool
    tracked: bool
    to: tuple[Target, ...]


@dataclass(frozen=True)
class MergeNode(_JoinNode):
    """`Join(how="merge")` over branches of the fork at node `fork`, in the order of its items and branches.

    Port p carries the fork's branches `branches[p]`; these are several where an earlier Join merged them.  Its pipe
    holds `bounds[p]` items, or `bounds_bytes[p]` bytes of them.
    """

    index: int
    fork: int
    branches: tuple[tuple[int, ...], ...]
    bounds: tuple[int, ...]
    bounds_bytes: tuple[int, ...]
    tracked: bool
    to: Target


@dataclass(frozen=True)
class ZipNode(_JoinNode):
    """`Join(how="zip")`: for each item that entered the fork at node `fork`, a tuple of the ports' outputs.

    `last_branch` is the highest branch of that fork that feeds a port.
    """

    index: int
    fork: int
    last_branch: int
    bounds: tuple[int, ...]
    bounds_bytes: tuple[int, ...]
    to: Target

    @property
    def carries_groups(self) -> bool:
        return True


@dataclass(frozen=True)
class LeaveNode(_Node):
    """The end of the fork at node `fork`: items are grouped by the enclosing fork again.  It holds no items."""

    index: int
    fork: int
    tracked: bool
    to: Target

    @property
    def inputs(self) -> tuple[Room, ...]:
        return ()


@dataclass(frozen=True)
class SinkNode(_Node):
    """The results: at most `bound` items, or about `bound_bytes` bytes, wait for the consumer."""

    index: int
    bound: int
    bound_bytes: int

    @property
    def outputs(self) -> tuple[Target, ...]:
        return ()


Node = StepNode | ReplicateNode | BalanceNode | MergeNode | ZipNode | LeaveNode | SinkNode


@dataclass(frozen=True)
class Plan:
    """All nodes in topological order, and the settings of the pipeline that any process may need.

    `cores` bounds the workers of all steps whose number follows the load.  `unfused` lists the steps that fusing left
    alone.  `settings` are the names and values that the user set, as far as they are plain data: `setting` reads one.
    """

    nodes: tuple[Node, ...]
    ordered: bool
    cores: int
    unfused: tuple[Unfused, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    def setting(self, name: str) -> Any:
        """Return what the user set for the pipeline by this name; None where the plan was made without."""
        return dict(self.settings).get(name)

    def grouped(self) -> frozenset[int]:
        """Return the indices of the nodes whose input carries groups: the nodes inside a tracked fork."""
        grouped: set[int] = set()
        for node in self.nodes:
            carries = node.index in grouped if node.carries_groups is None else node.carries_groups
            grouped.update(target.node for target in node.outputs if carries)
        return frozenset(grouped)

    def bytes_at(self, target: Target) -> int:
        """Return how many bytes the first pipe at or behind `target` holds."""
        while not self.nodes[target.node].inputs:
            target = self.nodes[target.node].outputs[0]
        return self.nodes[target.node].inputs[target.port].bytes

    @property
    def pipes(self) -> int:
        """How many pipes there are: one at each input, without those of steps that share the pipe in front."""
        return sum(len(node.inputs) for node in self.nodes) - sum(step.shared for step in self.steps)

    @property
    def steps(self) -> tuple[StepNode, ...]:
        return tuple(node for node in self.nodes if isinstance(node, StepNode))

    @property
    def replicated(self) -> tuple[StepNode, ...]:
        """The steps whose Processor has, or may have, several workers, at all its places together."""
        steps = self.steps
        places: dict[int, int] = {}
        for step in steps:
            places[id(step.processor)] = places.get(id(step.processor), 0) + 1
        return tuple(step for step in steps if step.most != 1 or places[id(step.processor)] > 1)
