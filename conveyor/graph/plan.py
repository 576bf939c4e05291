"""The validated graph: what an engine runs, and nothing about how.

Law: frozen data only.  `graph/builder.py` makes a `Plan` out of the elements a user added; the inline engine
walks it, the core of every other engine routes chunks along it.  Nodes stand in topological order, so a
`Target` always points at a later node, and node 0 is the first Processor.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import NamedTuple, dataclass, replace
from conveyor._lean.typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from conveyor.stages.processor import Processor
    from conveyor.stats import Unfused

Self = TypeVar("Self")

PIPE_BYTES = 16 * 1024 * 1024
"""How many bytes of items a pipe holds at most where nothing else is said: more would hide no delay."""


@dataclass(frozen=True)
class Target:
    """Where a node's output goes: `port` counts the inputs of the node at `node`."""

    node: int
    port: int = 0


class Room(NamedTuple):
    """What the pipe at an input holds: so many items, or about so many bytes of them, whichever comes first."""

    items: int
    bytes: int


class _Node:
    """What all nodes have: the same ports, whatever they do between them."""

    @property
    def inputs(self: Any) -> tuple[Room, ...]:
        """The room of each pipe in front, by its port; a node that holds nothing has none."""
        return (Room(self.bound, self.bound_bytes),)

    @property
    def outputs(self: Any) -> tuple[Target, ...]:
        """Where its outputs go, by the port that they leave at."""
        return self.to if isinstance(self.to, tuple) else (self.to,)

    @property
    def carries_groups(self: Any) -> bool | None:
        """Whether what it gives is in groups; None: if what it gets is."""
        tracked: bool | None = getattr(self, "tracked", None)
        return tracked

    def leading_to(self: Self, targets: tuple[Target, ...]) -> Self:
        """Return the node with other targets of its outputs."""
        node: Any = self
        return replace(node, to=targets if isinstance(node.to, tuple) else targets[0])  # type: ignore[no-any-return]


class _JoinNode(_Node):
    """A Join: it has an input for each part of the fork that it covers."""

    @property
    def inputs(self: Any) -> tuple[Room, ...]:
        return tuple(map(Room, self.bounds, self.bounds_bytes))


@dataclass(frozen=True)
class StepNode(_Node):
    """One Processor with the workers that run it.

    `workers` is how many there are at first, and at least; `most` how many there may be while it runs: the same
    where the number is fixed, None where only the balancer's own bound holds.  `batch` is None where the job takes
    one item at a time.  `bound` is the number of items that the pipe in front holds, and `bound_bytes` about how many
    bytes of them, whichever comes first, here as in every other node; `shared` says that no Pipe of
    its own stands there, so that what it holds counts against the bound of the fork or join in front.  `name` is
    unique within the plan.  `restartable`: the job has no state that would be lost with a worker.  `gives_up`: the run
    goes on without an item that failed for good; one fails so that took longer than `timeout` seconds `timeouts` times.
    `max_items`: how many units a worker has before another takes its place.
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

    @property
    def auto(self) -> bool:
        """Whether the number of workers follows the load."""
        return self.most != self.workers


@dataclass(frozen=True)
class ReplicateNode(_Node):
    """A ReplicatingFork: every item goes to all of `to`.

    `tracked` says that its branches carry groups: which outputs belong to which item that entered the fork.
    """

    index: int
    bound: int
    bound_bytes: int
    tracked: bool
    to: tuple[Target, ...]


@dataclass(frozen=True)
class BalanceNode(_Node):
    """A BalancingFork with branches of its own: every `unit` consecutive items go to one of `to`.

    `strict` is round-robin without passing over a stalled branch, for branches in which the boundaries of a
    batch would else depend on timing.
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

    Port p carries what came down the fork's branches `branches[p]` (several, where an earlier Join already
    merged them) and its pipe holds `bounds[p]` items, or `bounds_bytes[p]` bytes of them.
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
    """`Join(how="zip")`: for each item that entered the fork at node `fork`, the ports' outputs side by side.

    `last_branch` is the highest branch of that fork from which a port is fed.
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
    """The end of a fork: what passes stops being grouped by the items of the fork at node `fork`, and is
    grouped by those of the fork around it again.  Holds nothing back."""

    index: int
    fork: int
    tracked: bool
    to: Target

    @property
    def inputs(self) -> tuple[Room, ...]:
        return ()


@dataclass(frozen=True)
class SinkNode(_Node):
    """The results: at most `bound` items wait there for the consumer, or `bound_bytes` bytes of them."""

    index: int
    bound: int
    bound_bytes: int

    @property
    def outputs(self) -> tuple[Target, ...]:
        return ()


Node = StepNode | ReplicateNode | BalanceNode | MergeNode | ZipNode | LeaveNode | SinkNode


@dataclass(frozen=True)
class Plan:
    """All nodes, in topological order; `cores` is what workers that follow the load may use together; a run ends where
    more than `max_failures` items are given up (a float: than that share of those of one step; None: however many).  Of
    these the last `keep_failures` are kept (None: all).  `unfused`: where fusing was asked for, what was left alone,
    and why."""

    nodes: tuple[Node, ...]
    ordered: bool
    cores: int
    max_failures: int | float | None = None
    unfused: tuple[Unfused, ...] = ()
    keep_failures: int | None = None

    def grouped(self) -> frozenset[int]:
        """The indices of the nodes whose input carries groups: those inside a tracked fork."""
        grouped: set[int] = set()
        for node in self.nodes:
            carries = node.index in grouped if node.carries_groups is None else node.carries_groups
            grouped.update(target.node for target in node.outputs if carries)
        return frozenset(grouped)

    def bytes_at(self, target: Target) -> int:
        """How many bytes of items the pipe holds that what is sent to `target` comes to."""
        node = self.nodes[target.node]
        return node.inputs[target.port].bytes if node.inputs else self.bytes_at(node.outputs[0])

    @property
    def pipes(self) -> int:
        """How many buffers there are: one at each input, but for those of steps that share the one in front."""
        return sum(len(node.inputs) for node in self.nodes) - sum(step.shared for step in self.steps)

    @property
    def steps(self) -> tuple[StepNode, ...]:
        return tuple(node for node in self.nodes if isinstance(node, StepNode))

    @property
    def replicated(self) -> tuple[StepNode, ...]:
        """The nodes whose Processor has several workers, or may have, those at all places where it stands together."""
        steps = self.steps
        places: dict[int, int] = {}
        for step in steps:
            places[id(step.processor)] = places.get(id(step.processor), 0) + 1
        return tuple(step for step in steps if step.most != 1 or places[id(step.processor)] > 1)
