"""The state of a run, and the one door to it.

Law: `Machine.handle(event, now)` is the only way in, the list of commands that it returns the only way out;
nothing here knows a process, a clock or an item.  Within one event the nodes that have something to do are
pumped, each as often as another gave it reason to, until nothing moves any more.
"""

from __future__ import annotations

from collections import deque

from conveyor.core.commands import Command, Finish, Pull
from conveyor.core.ends import Sink
from conveyor.core.events import Cancelled, Consumed, Event, Fed, Raised, Replied, SourceEnded, WorkerLost
from conveyor.core.forks import Balance, Fork, Replicate
from conveyor.core.joins import BalanceMerge, FreeMerge, Join, ReplicateMerge, Zip
from conveyor.core.leave import Leave
from conveyor.core.node import Node, Output
from conveyor.core.sizing import UNWEIGHED
from conveyor.core.step import Step
from conveyor.plan import BalanceNode, LeaveNode, MergeNode, Plan, ReplicateNode, SinkNode, StepNode, ZipNode


def first_pull(plan: Plan) -> int:
    """Return how many items the source may give without being asked, so that a run begins with an item."""
    first = plan.nodes[0]
    assert isinstance(first, StepNode)
    return min(max(first.bound, first.batch or 1), UNWEIGHED)


class Machine:
    """One run of a plan.

    Workers are numbered from 0 through all steps, in the order of the plan's nodes.
    """

    def __init__(self, plan: Plan) -> None:
        self.now = 0.0
        self._commands: list[Command] = []
        self._agenda: deque[Node] = deque()
        self._scheduled: set[int] = set()
        self._cancelled = False
        self._over = False
        self._source_ended = False
        self._pulled = first_pull(plan)
        self.fed = 0
        self.steps_by_worker: list[Step] = []
        self.nodes = [self._build(plan, index) for index in range(len(plan.nodes))]
        self._connect(plan)
        first, sink = self.nodes[0], self.nodes[-1]
        assert isinstance(first, Step)
        assert isinstance(sink, Sink)
        self.first = first
        self.sink = sink
        self.steps = [node for node in self.nodes if isinstance(node, Step)]
        first.feeders.append(self._pull)

    def _build(self, plan: Plan, index: int) -> Node:
        node = plan.nodes[index]
        match node:
            case StepNode():
                step = Step(node, len(self.steps_by_worker), self)
                self.steps_by_worker.extend([step] * node.workers)
                return step
            case ReplicateNode():
                return Replicate(node, self)
            case BalanceNode():
                return Balance(node, self)
            case MergeNode() if not node.tracked:
                return FreeMerge(node, self)
            case MergeNode():
                balanced = isinstance(plan.nodes[node.fork], BalanceNode)
                return BalanceMerge(node, self) if balanced else ReplicateMerge(node, self)
            case ZipNode():
                return Zip(node, self)
            case LeaveNode():
                return Leave(node, self)
            case SinkNode():
                return Sink(node, self)

    def _connect(self, plan: Plan) -> None:
        # Backwards, so that what lies behind a node is complete when the node asks for its needs.
        for description, node in reversed(list(zip(plan.nodes, self.nodes, strict=True))):
            if isinstance(node, Fork) and isinstance(description, ReplicateNode | BalanceNode):
                outputs = [Output(self.nodes[target.node], target.port) for target in description.to]
                node.connect(outputs)
            elif isinstance(node, Step | Join | Leave) and not isinstance(description, ReplicateNode | BalanceNode):
                assert not isinstance(description, SinkNode)
                outputs = [Output(self.nodes[description.to.node], description.to.port)]
                node.connect(outputs[0])
            else:
                continue
            for output in outputs:
                output.node.feeders.append(node.wake)
                output.node.hands = max(output.node.hands, len(node.workers) if isinstance(node, Step) else 0)
            if isinstance(description, MergeNode) and isinstance(node, BalanceMerge):
                fork = self.nodes[description.fork]
                assert isinstance(fork, Balance)
                fork.merges.append(node)
            if isinstance(description, LeaveNode) and description.tracked:
                fork = self.nodes[description.fork]
                assert isinstance(fork, Fork) and isinstance(node, Leave)
                fork.leaves.append(node)

    # The door

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in what happened at `now` (seconds of a clock that never goes back); return what is to be done.

        Events that come after the run is over change nothing.
        """
        self.now = now
        if not self._over:
            self._take_in(event)
            self._run_agenda()
        commands, self._commands = self._commands, []
        return commands

    def _take_in(self, event: Event) -> None:
        match event:
            case Replied():
                self.steps_by_worker[event.worker].replied(event)
            case Fed():
                self.fed += event.items
                assert self.fed <= self._pulled, "the source gave more than it was asked for"
                if not self._cancelled:
                    self.first.feed(event.blob, event.items, event.size)
            case Consumed():
                self.sink.consumed(event.items)
            case SourceEnded():
                if not self._cancelled:
                    self._source_ended = True
                    self.first.end(0)
            case Raised():
                step = self.steps_by_worker[event.worker]
                self._commands.append(step.blame(event.worker, event.lease, event.units, event.error))
                self._over = True
            case WorkerLost():
                step = self.steps_by_worker[event.worker]
                self._commands.append(step.blame(event.worker, None, None, event.cause))
                self._over = True
            case Cancelled():
                self._cancelled = True
                for node in self.nodes:
                    node.clear()
        if self._cancelled and not any(step.outstanding for step in self.steps):
            self.command(Finish())

    def _run_agenda(self) -> None:
        agenda, scheduled = self._agenda, self._scheduled
        while agenda:
            node = agenda.popleft()
            scheduled.discard(node.index)
            if not self._cancelled:
                node.pump()

    def _pull(self) -> None:
        """Allow the source what there is room for, in amounts worth a message."""
        if self._source_ended or self._cancelled:
            return
        first = self.first
        ahead = self._pulled - self.fed
        credit = first.room(0) - ahead
        # A little room is worth a message only where the source has to stop without it and no work is under way
        # that will make more of it.
        if credit >= max(1, first.scale.limit(first.bound) // 4) or (
            credit > 0 and not ahead and not first.outstanding
        ):
            self._pulled += credit
            self._commands.append(Pull(credit))

    # What nodes ask for

    def wake(self, node: Node) -> None:
        """Have a node pumped before the event at hand is done with."""
        if node.index not in self._scheduled:
            self._scheduled.add(node.index)
            self._agenda.append(node)

    def command(self, command: Command) -> None:
        """Have something done outside the core."""
        self._commands.append(command)
        if isinstance(command, Finish):
            self._over = True

    # What tests ask for

    @property
    def over(self) -> bool:
        """Whether the run has finished, failed or been cancelled to the end."""
        return self._over

    def check(self) -> None:
        """Raise AssertionError where an invariant of the run does not hold."""
        assert not self._agenda and not self._scheduled
        if not self._cancelled:
            assert self.fed == self.first.entered, "an item got lost on its way in"
            assert self._pulled - self.fed + self.first.held <= self.first.bound, "the source was asked for too much"
        for node in self.nodes:
            node.check()
