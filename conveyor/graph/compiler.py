"""Compiles a layout of elements to the plan that engines run.

Law: a pure function: the same layout and arguments give the same plan.  `graph/layout.py` has checked where elements
stand, and engines decide how items move.

Operations are compiled in order, so the nodes stand in topological order.  The target of a node is filled in when the
next node is made.  Three kinds of operation become no node:

- `BalancingFork()`, whose Processors get several workers instead;
- a `BalancingFork(n)` of n equal branches of one Processor each, which becomes one step with n workers;
- the Joins of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conveyor._lean.dataclasses import dataclass, field, replace
from conveyor.graph.layout import (
    EnclosingFork,
    ForkOperation,
    JoinOperation,
    Lane,
    LaneGroup,
    Layout,
    Operation,
    StepOperation,
    closed,
    one_pipe,
)
from conveyor.graph.plan import (
    PIPE_BYTES,
    BalanceNode,
    LeaveNode,
    MergeNode,
    Node,
    Plan,
    ReplicateNode,
    SinkNode,
    StepNode,
    Target,
    ZipNode,
)
from conveyor.stages.processor import Processor, hands_of, has_finish, is_restartable, label, list_size
from conveyor.stages.routing import BalancingFork, Pipe, ReplicatingFork
from conveyor.stages.settings import policy_of

_UNKNOWN = Target(-1)

# The share of the machine's memory that all pipes of a pipeline may fill together.  An item exists several
# times: pickled in broker and channel, and as a larger object in a worker.  The jobs need memory too.
_MEMORY_SHARE = 1 / 8
# In a smaller pipe, chunks would be so small that their hops cost more than their work.
_LEAST_BYTES = 1024 * 1024


@dataclass(frozen=True)
class _Wire:
    """The output `port` of a node, and the Pipe on it.

    Without a Pipe, the node itself holds the items, as many as the Pipe `behind` it.
    """

    node: int
    port: int = 0
    pipe: Pipe | None = None
    behind: Pipe = field(kw_only=True)

    @property
    def room(self) -> Pipe:
        return self.behind if self.pipe is None else self.pipe


class _Survey:
    """Facts about a whole layout that its first node may depend on."""

    def __init__(self, layout: Layout, *, ordered: bool) -> None:
        self._layout = layout
        self._behind: dict[tuple[int, int], Operation] = {}
        self._lane_groups: dict[int, LaneGroup] = {}
        zipped: set[int] = set()
        for operation in layout.operations:
            if isinstance(operation, JoinOperation):
                for lane in operation.lane_group.lanes():
                    self._behind[lane.source, lane.port] = operation
                for lane_group in operation.lane_group.lane_groups():
                    if operation.element.how == "zip":
                        zipped.add(lane_group.fork)
                    elif lane_group.whole:
                        self._lane_groups[lane_group.fork] = lane_group
            elif operation.lane is not None:
                self._behind[operation.lane.source, operation.lane.port] = operation
        self._source_of = {id(operation): index for index, operation in enumerate(layout.operations)}
        forks = [index for index, operation in enumerate(layout.operations) if isinstance(operation, ForkOperation)]
        self.collapsed = {fork for fork in forks if self._collapses(fork)}
        self.without_node = self.collapsed | {fork for fork in forks if layout.is_auto(fork)}
        # A fork within a tracked fork is tracked too.  Else merging the inner one would mix up the groups of the outer.
        self.tracked: set[int] = set()
        for fork in forks:
            operation = layout.operations[fork]
            assert isinstance(operation, ForkOperation)
            if fork not in self.without_node and (
                ordered or fork in zipped or self.is_tracked(operation.lane.enclosing)
            ):
                self.tracked.add(fork)

    def is_tracked(self, enclosing: tuple[EnclosingFork, ...]) -> bool:
        """Whether a lane in these forks is inside a tracked one."""
        return any(outer.fork in self.tracked for outer in enclosing)

    def _collapses(self, fork: int) -> bool:
        """Whether each branch is a copy of one Processor and nothing else, and one Join takes all branches."""
        element, lane_group = self._layout.fork(fork), self._lane_groups.get(fork)
        if not isinstance(element, BalancingFork) or element.n is None or lane_group is None:
            return False
        steps = [self._behind.get((fork, port)) for port in range(element.n)]
        first = steps[0]
        for step in steps:
            if not isinstance(step, StepOperation) or not isinstance(first, StepOperation) or step.lane is None:
                return False
            # A branch with a Pipe is to hold items of its own.
            if step.processor is not first.processor or step.lane.pipe is not None:
                return False
        if isinstance(first, StepOperation) and first.processor.workers not in (None, 1):
            return False
        ends = [part.source if isinstance(part, Lane) else None for part in lane_group.parts]
        return ends == [self._source_of[id(step)] for step in steps]

    def unit(self, fork: int) -> tuple[int, bool]:
        """Return how many items at a time a BalancingFork sends to a branch, and whether strictly in turn.

        Where every branch begins with the same `batch`, whole batches are sent.  Any other batch in the branches needs
        strict turns: else its boundaries would depend on timing.
        """
        element = self._layout.fork(fork)
        steps: list[tuple[int, StepOperation]] = [
            (outer.branches[0], operation)
            for operation in self._layout.operations
            if isinstance(operation, StepOperation) and operation.lane is not None
            for outer in operation.lane.enclosing
            if outer.fork == fork
        ]
        heads = [(branch, step) for branch, step in steps if step.lane is not None and self._fed_by(step.lane) == fork]
        batches = {list_size(step.processor) for _, step in heads}
        unit = next(iter(batches)) if len(batches) == 1 and len({branch for branch, _ in heads}) == element.n else None
        covered = [step for _, step in heads] if unit is not None else []
        strict = any(list_size(step.processor) is not None and step not in covered for _, step in steps)
        return unit or 1, strict

    def _fed_by(self, lane: Lane) -> int:
        """Return the operation in front of `lane`, past forks that have no node."""
        while lane.source in self.without_node:
            operation = self._layout.operations[lane.source]
            assert isinstance(operation, ForkOperation)
            lane = operation.lane
        return lane.source


class _Compiler:
    def __init__(self, layout: Layout, *, cores: int, ordered: bool, pipe_bytes: int, auto: bool = False) -> None:
        self._layout = layout
        self._cores = cores
        # Whether the number of workers of a plain callable follows the load, unless the Processor says otherwise.
        self._auto = auto
        # How many bytes a Pipe without `maxbytes` holds.
        self._pipe_bytes = pipe_bytes
        self._ordered = ordered
        self._survey = _Survey(layout, ordered=ordered)
        self._nodes: list[Node] = []
        # How often each name was wanted, or given with a number behind it.
        self._names: dict[str, int] = {}
        # The outputs of the operations, by operation and port.
        self._wires: dict[tuple[int, int], _Wire] = {}
        self._node_of_fork: dict[int, int] = {}

    def plan(self) -> Plan:
        for index, operation in enumerate(self._layout.operations):
            if isinstance(operation, StepOperation):
                self._step(index, operation)
            elif isinstance(operation, ForkOperation):
                self._fork(index, operation)
            elif operation.element.how == "zip":
                self._wires[index, 0] = self._zip(operation.lane_group)
            else:
                self._wires[index, 0] = self._merge(operation.lane_group)
        (last,) = self._layout.lanes
        wire = self._incoming(last)
        self._connect(wire, SinkNode(len(self._nodes), *self._bounds(wire.room)))
        return Plan(tuple(self._nodes), self._ordered, self._cores)

    def names(self) -> Iterator[str]:
        """Yield for each Processor added, in the order of the layout, the name of its node; once there is a plan."""
        for index, operation in enumerate(self._layout.operations):
            if isinstance(operation, StepOperation):
                node = self._nodes[self._wires[index, 0].node]
                assert isinstance(node, StepNode)
                yield node.name

    def _bounds(self, pipe: Pipe) -> tuple[int, int]:
        return pipe.bound, pipe.maxbytes or self._pipe_bytes

    def _all_bounds(self, wires: Sequence[_Wire]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the bounds, in items and in bytes, of the pipes in front of a Join."""
        items, sizes = zip(*(self._bounds(wire.room) for wire in wires), strict=True)
        return items, sizes

    def _incoming(self, lane: Lane) -> _Wire:
        """Return the wire at the end of `lane`, with its Pipe."""
        wire = self._wires[lane.source, lane.port]
        return replace(wire, pipe=one_pipe(wire.pipe, lane.pipe))

    def _connect(self, wire: _Wire, node: Node, port: int = 0) -> None:
        """Add `node`, unless it was added already, and connect `wire` to its `port`."""
        if node.index == len(self._nodes):
            self._nodes.append(node)
        target = Target(node.index, port)
        source = self._nodes[wire.node]
        if isinstance(source, StepNode) and source.index == 0:
            # No Pipe can stand in front of the first step: its input holds as much as the Pipe behind it.
            items, size = self._bounds(wire.pipe or Pipe())
            source = replace(source, bound=items, bound_bytes=size)
        outputs = source.outputs
        self._nodes[wire.node] = source.leading_to((*outputs[: wire.port], target, *outputs[wire.port + 1 :]))

    def _step(self, index: int, step: StepOperation) -> None:
        enclosing = step.lane.enclosing if step.lane is not None else ()
        workers, most = self._workers(step, enclosing)
        if enclosing and enclosing[-1].fork in self._survey.collapsed:
            fork, (branch,) = enclosing[-1].fork, enclosing[-1].branches
            if branch > 0:
                self._wires[index, 0] = self._wires[self._first_of(fork), 0]
                return
            if not any(self._layout.is_auto(outer.fork) for outer in enclosing):
                workers = most = self._layout.fork(fork).n or 1
        wire = None if step.lane is None else self._incoming(step.lane)
        policy = policy_of(step.processor)
        room = Pipe() if wire is None else wire.room
        bound, bound_bytes = self._bounds(room)
        node = StepNode(
            index=len(self._nodes),
            name=self._name(label(step.processor)),
            processor=step.processor,
            workers=workers,
            most=most,
            batch=list_size(step.processor),
            bound=bound,
            bound_bytes=bound_bytes,
            shared=wire is not None and wire.pipe is None,
            ordered=self._ordered or self._survey.is_tracked(enclosing),
            finishes=has_finish(step.processor),
            restartable=is_restartable(step.processor),
            to=_UNKNOWN,
            gives_up=policy.gives_up,
            timeout=step.processor.timeout,
            timeouts=policy.timeouts,
            max_items=step.processor.max_items,
            hands=hands_of(step.processor),
            threaded=step.processor.threads is not None,
            in_lists=step.processor.per_item,
            batch_timeout=step.processor.batch_timeout,
        )
        if wire is None:
            self._nodes.append(node)
        else:
            self._connect(wire, node)
        # Only the results can follow without a Pipe.  Their bound is that of the last step.
        self._wires[index, 0] = _Wire(node.index, behind=room)

    def _first_of(self, fork: int) -> int:
        return next(
            index
            for index, operation in enumerate(self._layout.operations)
            if isinstance(operation, StepOperation) and operation.lane is not None and operation.lane.source == fork
        )

    def _workers(self, step: StepOperation, enclosing: tuple[EnclosingFork, ...]) -> tuple[int, int | None]:
        """Return the first number of workers, and the greatest."""
        processor = step.processor
        forks = [self._layout.fork(outer.fork) for outer in reversed(enclosing)]
        for element in forks:
            if isinstance(element, BalancingFork) and element.auto:
                bounds = [each for each in (element.max, processor.max_workers) if each is not None]
                return element.min or 1, min(bounds, default=None)
        # A BalancingFork with a number has as many branches as there are to be workers.
        auto = (
            self._auto and type(processor) is Processor and not any(isinstance(each, BalancingFork) for each in forks)
        )
        workers = processor.workers or ("auto" if auto else 1)
        return (1, processor.max_workers) if workers == "auto" else (workers, workers)

    def _name(self, wanted: str) -> str:
        name, count = wanted, self._names.get(wanted, 0) + 1
        if count > 1:
            name = f"{wanted}-{count}"
            while name in self._names:
                count += 1
                name = f"{wanted}-{count}"
            self._names[name] = 1
        self._names[wanted] = count
        return name

    def _fork(self, index: int, fork: ForkOperation) -> None:
        wire = self._incoming(fork.lane)
        ports = fork.element.n or 1
        if index in self._survey.without_node:
            for port in range(ports):
                self._wires[index, port] = wire
            return
        tracked, to = index in self._survey.tracked, (_UNKNOWN,) * ports
        node = len(self._nodes)
        if isinstance(fork.element, ReplicatingFork):
            self._connect(wire, ReplicateNode(node, *self._bounds(wire.room), tracked, to))
        else:
            unit, strict = self._survey.unit(index)
            self._connect(wire, BalanceNode(node, *self._bounds(wire.room), unit, strict, tracked, to))
        self._node_of_fork[index] = node
        for port in range(ports):
            self._wires[index, port] = _Wire(node, port, behind=wire.room)

    def _merge(self, part: Lane | LaneGroup) -> _Wire:
        """Return the wire at the end of `part`, with its lanes merged, inner forks first."""
        if isinstance(part, Lane):
            return self._incoming(part)
        merged: dict[int, _Wire] = {}
        for lane_group in part.lane_groups():
            wires = [
                self._incoming(inner) if isinstance(inner, Lane) else merged[id(inner)] for inner in lane_group.parts
            ]
            merged[id(lane_group)] = self._merge_group(lane_group, wires)
        return merged[id(part)]

    def _merge_group(self, part: LaneGroup, wires: list[_Wire]) -> _Wire:
        """Return the wire at the end of a group, whose parts end in `wires`."""
        if part.fork in self._survey.without_node:
            pipe = wires[0].pipe
            for wire in wires[1:]:
                pipe = one_pipe(pipe, wire.pipe)
            return replace(wires[0], pipe=pipe)
        index, fork, tracked = len(self._nodes), self._node_of_fork[part.fork], part.fork in self._survey.tracked
        node = MergeNode(index, fork, part.branches, *self._all_bounds(wires), tracked, _UNKNOWN)
        return self._joined(node, part, wires)

    def _zip(self, lane_group: LaneGroup) -> _Wire:
        """Return the wire at the end of a zip of lanes, each of which leaves its inner forks first."""
        depth = len(lane_group.above) + 1
        lanes = lane_group.lanes()
        wires = []
        for lane in lanes:
            wire = self._incoming(lane)
            for inner in range(len(lane.enclosing) - 1, depth - 1, -1):
                wire = self._leave(wire, lane.enclosing[inner].fork, lane.enclosing[:inner])
            wires.append(wire)
        last_branch = max(branch for branches in lane_group.branches for branch in branches)
        index, fork = len(self._nodes), self._node_of_fork[lane_group.fork]
        return self._joined(ZipNode(index, fork, last_branch, *self._all_bounds(wires), _UNKNOWN), lane_group, wires)

    def _joined(self, node: MergeNode | ZipNode, lane_group: LaneGroup, wires: list[_Wire]) -> _Wire:
        """Add `node`, to which `wires` lead; return what comes out of it, out of the fork where that is over."""
        for port, wire in enumerate(wires):
            self._connect(wire, node, port)
        joined = _Wire(node.index, behind=Pipe(max(node.bounds), max(node.bounds_bytes)))
        return self._leave(joined, lane_group.fork, lane_group.above) if lane_group.whole else joined

    def _leave(self, wire: _Wire, fork: int, above: tuple[EnclosingFork, ...]) -> _Wire:
        """Return `wire` after the end of `fork`, within the forks `above`."""
        node = LeaveNode(len(self._nodes), self._node_of_fork[fork], self._survey.is_tracked(above), _UNKNOWN)
        self._connect(wire, node)
        return _Wire(node.index, behind=wire.room)


def compiled(layout: Layout, *, cores: int, ordered: bool, memory: int | None = None, auto: bool = False) -> Plan:
    """Return the plan of a layout without open branches; `cores`, `memory` and `auto` are as for `Description.plan`.

    Raises ValueError where a `max_workers` contradicts a number of workers.
    """
    plan = _Compiler(layout, cores=cores, ordered=ordered, pipe_bytes=PIPE_BYTES, auto=auto).plan()
    for step in plan.steps:
        _check_max_workers(step)
    if memory is None:
        return plan
    pipe_bytes = max(_LEAST_BYTES, min(PIPE_BYTES, int(memory * _MEMORY_SHARE / plan.pipes)))
    return _Compiler(layout, cores=cores, ordered=ordered, pipe_bytes=pipe_bytes, auto=auto).plan()


def _check_max_workers(step: StepNode) -> None:
    """Raise ValueError where the `max_workers` of a Processor says something else than its number of workers."""
    bound, least = step.processor.max_workers, step.workers
    if bound is None:
        return
    if step.auto and least > bound:
        raise ValueError(
            f"Processor {step.name!r} has max_workers={bound}, and its BalancingFork has min={least}: "
            "raise the one, or lower the other"
        )
    if not step.auto and bound != least:
        raise ValueError(
            f"Processor {step.name!r} has max_workers={bound}, and the number of its workers is {least}, whatever the "
            'load: say workers="auto", or leave max_workers out'
        )


def names_of(layout: Layout) -> list[str]:
    """What statistics and errors call each Processor of a layout, in the order in which they were added.

    Copies on several branches have a number each, unless one node runs them all.
    """
    if not layout.additions:
        return []
    compiler = _Compiler(closed(layout), cores=1, ordered=True, pipe_bytes=PIPE_BYTES)
    compiler.plan()
    return list(compiler.names())
