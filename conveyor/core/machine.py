"""The state of a pipeline that is up, and the one door to it.

Law: `Machine.handle(event, now)` is the only way in, the list of commands that it returns the only way out;
nothing here knows a process, a clock or an item.  Within one event the nodes that have something to do are
pumped, each as often as another gave it reason to, until nothing moves any more.  The nodes are made anew for each
run; the staff stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from conveyor.core.commands import Command, Fail, Finish, GaveUp, Loss, Pull, SetFlushInterval, StartWorker
from conveyor.core.events import (
    BrokerLoad,
    Cancelled,
    Consumed,
    CreditReturned,
    Event,
    ProbeResult,
    Raised,
    Replied,
    RevokeResult,
    RunStarted,
    SourceEnded,
    SourceItems,
    Ticked,
    WorkerLost,
    WorkerReady,
)
from conveyor.core.leasing.blame import too_many
from conveyor.core.leasing.timeouts import was_overdue
from conveyor.core.nodes.base import Node, Output
from conveyor.core.nodes.fork_exit import ForkExit
from conveyor.core.nodes.forks import Balance, Fork, Replicate
from conveyor.core.nodes.joins import BalanceMerge, FreeMerge, Join, ReplicateMerge, Zip
from conveyor.core.nodes.sink import Sink
from conveyor.core.nodes.step import Step
from conveyor.core.tuning.autoscaling import PolicyState, Resize, StepLoad, decide
from conveyor.core.tuning.chunk_size import ChunkTarget, first_pull
from conveyor.core.tuning.roster import Roster, StepRoster
from conveyor.graph.plan import BalanceNode, LeaveNode, MergeNode, Plan, ReplicateNode, SinkNode, StepNode, ZipNode
from conveyor.stats import Decision, Stats

Policy = Callable[[PolicyState, Sequence[StepLoad], float, float, float], tuple[PolicyState, list[Resize]]]


class Machine:
    """A plan with its workers, from the first run to the last; the first begins at once.

    The workers of the beginning are numbered from 0 through all steps, in the order of the plan's nodes.
    """

    def __init__(self, plan: Plan, now: float = 0.0, policy: Policy = decide) -> None:
        self.now = now
        self._policy = policy
        self._opened = now
        self._plan = plan
        self.roster = Roster(plan)
        self.chunk_target = ChunkTarget()
        # The number of workers follows the load somewhere.
        self._balances = any(node.auto for node in plan.steps)
        self._step_of: dict[int, int] = {
            number: index for index, step_roster in self.roster.step_rosters.items() for number in step_roster.numbers
        }
        self._commands: list[Command] = []
        self._begin(plan)

    def _begin(self, plan: Plan) -> None:
        """Make a belt with nothing on it."""
        self._agenda: deque[Node] = deque()
        self._scheduled: set[int] = set()
        self._cancelled = False
        self._over = False
        self._source_ended = False
        self._pulled = first_pull(plan)
        self.source_items = 0
        # How many units were given up, and how many items of each step.
        self._given_up = 0
        self._given_up_at: dict[int, int] = {}
        self.nodes = [self._build(plan, index) for index in range(len(plan.nodes))]
        self._connect(plan)
        first, sink = self.nodes[0], self.nodes[-1]
        assert isinstance(first, Step)
        assert isinstance(sink, Sink)
        self.first = first
        self.sink = sink
        self.steps = [node for node in self.nodes if isinstance(node, Step)]
        first.upstream.append(self._pull)

    def _build(self, plan: Plan, index: int) -> Node:
        node = plan.nodes[index]
        match node:
            case StepNode():
                return Step(self.roster.step_rosters[index], self)
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
                return ForkExit(node, self)
            case SinkNode():
                return Sink(node, self)
            case _:
                raise TypeError(f"no element of the core runs {node!r}: add its case to Machine._build")

    def _connect(self, plan: Plan) -> None:
        # Backwards, so that what lies behind a node is complete when the node asks for its needs.
        for description, node in reversed(list(zip(plan.nodes, self.nodes, strict=True))):
            if isinstance(node, Fork) and isinstance(description, ReplicateNode | BalanceNode):
                outputs = [Output(self.nodes[target.node], target.port) for target in description.to]
                node.connect(outputs)
                if isinstance(node, Balance):
                    for output in outputs:
                        if isinstance(output.node, Step) and (output.node.shared or not node.strict):
                            output.node.report_demand()
            elif isinstance(node, Step | Join | ForkExit) and not isinstance(description, ReplicateNode | BalanceNode):
                assert not isinstance(description, SinkNode)
                outputs = [Output(self.nodes[description.to.node], description.to.port)]
                node.connect(outputs[0])
            else:
                continue
            for output in outputs:
                output.node.upstream.append(node.capacity_freed)
                output.node.in_flight = max(output.node.in_flight, len(node.workers) if isinstance(node, Step) else 0)
            if isinstance(description, MergeNode) and isinstance(node, BalanceMerge):
                fork = self.nodes[description.fork]
                assert isinstance(fork, Balance)
                fork.merges.append(node)
            if isinstance(description, LeaveNode) and description.tracked:
                fork = self.nodes[description.fork]
                assert isinstance(fork, Fork) and isinstance(node, ForkExit)
                fork.exits.append(node)

    # The door

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in what happened at `now` (seconds of a clock that never goes back); return what is to be done.

        Of the events that come after the run is over only `RunStarted` changes something, and news of the staff.
        """
        if isinstance(event, WorkerReady):
            self._worker_ready(event, now)
        elif isinstance(event, WorkerLost):
            self._worker_lost(event, now)
        elif isinstance(event, RunStarted):
            self.now = now
            self._begin(self._plan)
        if not self._over:
            self.now = now
            self._take_in(event)
            self._run_agenda()
        commands, self._commands = self._commands, []
        return commands

    def _take_in(self, event: Event) -> None:
        match event:
            case Replied():
                self.step_of(event.worker).handle_reply(event)
            case SourceItems():
                self.source_items += event.items
                assert self.source_items <= self._pulled, "the source gave more than it was asked for"
                if not self._cancelled:
                    self.first.feed(event.blob, event.items, event.size)
            case CreditReturned():
                # What it has been allowed since is on its way, and stays good.
                self._pulled -= event.items
                self._pull()
            case Consumed():
                self.sink.consumed(event.items)
            case SourceEnded():
                if not self._cancelled:
                    self._source_ended = True
                    self.first.end(0)
            case Raised():
                step = self.step_of(event.worker)
                self._commands.append(step.failure_of(event.worker, event.lease, event.calls, event.error))
                self._over = True
            case RevokeResult():
                self.step_of(event.worker).handle_revoke_result(event)
            case ProbeResult():
                self.step_of(event.worker).handle_probe_result(event)
            case Ticked():
                if not self._cancelled:
                    for step in self.steps:
                        step.wake()
                    if self._balances and self.now >= self.roster.memory.next:
                        self._balance(event.others)
            case BrokerLoad(share):
                if self.chunk_target.observe_load(share):
                    for step in self.steps:
                        for worker in step.workers:
                            self.command(SetFlushInterval(worker.number, self.chunk_target.flush_interval_seconds))
            case Cancelled():
                self._cancelled = True
                for node in self.nodes:
                    node.clear()
            case WorkerReady() | WorkerLost() | RunStarted():
                # `handle` has taken them in, as they count between two runs, too.
                pass
            case _:
                raise TypeError(f"the core knows no event {event!r}: add its case to Machine._take_in")
        if self._cancelled and not any(step.outstanding for step in self.steps):
            self.command(Finish())

    @property
    def under_way(self) -> int:
        """How many items the steps have: none, one, or 2 for more."""
        items = 0
        for step in self.steps:
            items += step.outstanding + step.held
            if items > 1:
                return 2
        return items

    def _run_agenda(self) -> None:
        agenda, scheduled = self._agenda, self._scheduled
        while agenda:
            node = agenda.popleft()
            scheduled.discard(node.index)
            if not self._cancelled and not self._over:
                node.pump()

    def step_of(self, worker: int) -> Step:
        """Return the step that a worker works at."""
        step = self.nodes[self._step_of[worker]]
        assert isinstance(step, Step)
        return step

    def _worker_ready(self, event: WorkerReady, now: float) -> None:
        step = self.step_of(event.worker)
        if step.step_roster.ready(event.worker, event.seconds) and not self._over:
            self.now = now
            step.add_worker(event.worker)
        if self.chunk_target.load_factor > 1:
            self.command(SetFlushInterval(event.worker, self.chunk_target.flush_interval_seconds))

    def _worker_lost(self, event: WorkerLost, now: float) -> None:
        step, running = self.step_of(event.worker), not self._over
        if running:
            self.now = now
        step_roster, index = step.step_roster, step.index
        failure: Fail | None = None
        worker = step.worker(event.worker)
        leaving, replaced = worker is not None and worker.leaving, worker is not None and worker.replaced
        if not event.ready and step_roster.hopeless(event.killed, now):
            failure = Fail(index, event.worker, None, None, event.cause, Loss.SETUP)
        elif event.ready and not step_roster.node.restartable:
            failure = self._loss_of_state(step, event)
        elif (
            event.ready and not leaving and not (worker and worker.leases) and step_roster.died_idle(event.killed, now)
        ):
            failure = Fail(index, event.worker, None, None, event.cause, Loss.WAIT)
        elif running:
            failure = step.handle_worker_lost(event)
        step_roster.lost(event.worker, event.ready, now)
        if failure is not None:
            self._commands.append(failure)
            self._over = True
        elif not leaving or (running and step.requeued_items and not replaced):
            # Even one that was to leave: all others may be waiting for the outputs of what it had.
            self.start_worker(step_roster)

    def _loss_of_state(self, step: Step, event: WorkerLost) -> Fail:
        worker = step.worker(event.worker)
        if worker is not None and worker.leases and all(lease.finish for lease in worker.leases):
            # To declare it restartable would not help.
            return Fail(step.index, event.worker, None, None, event.cause, Loss.FINISH)
        if worker is not None and event.started is not None and was_overdue(worker, event):
            number, calls = event.started
            lease = next(lease for lease in worker.leases if lease.number == number)
            first, last = lease.call_range(calls - 1, step.batch_size)
            return Fail(step.index, event.worker, first, last, step.step_roster.node.timeout, Loss.OVERDUE)
        return step.failure_of(event.worker, None, None, event.cause)._replace(loss=Loss.STATE)

    def _balance(self, others: float) -> None:
        """Have the numbers of workers follow the load."""
        loads = [step.step_load(self._waiting_in_front(step)) for step in self.steps]
        roster = self.roster
        roster.memory, decisions = self._policy(roster.memory, loads, self._plan.cores, others, self.now)
        for decision in decisions:
            step = self.steps[decision.step]
            name = step.step_roster.node.name
            at = self.now - self._opened
            roster.decided(Decision(at, name, decision.before, decision.after, decision.reason))
            step.resize(decision.after)

    def _waiting_in_front(self, step: Step) -> int:
        """How many items wait for a step in the fork or join in front of it, where it has no pipe of its own."""
        if not step.shared:
            return 0
        return sum(node.waiting_for(step) for node in self.nodes if isinstance(node, Fork | Join))

    def _pull(self) -> None:
        """Allow the source what there is room for, in amounts worth a message."""
        if self._source_ended or self._cancelled:
            return
        first = self.first
        ahead = self._pulled - self.source_items
        credit = first.free_capacity(0) - ahead
        # A little room is worth a message only where the source has to stop without it and no work is under way
        # that will make more of it.
        if credit >= max(1, first.item_weight.limit(first.bound) // 4) or (
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
        if isinstance(command, Finish) and not self._cancelled:
            # Of few items a share says something only now.
            done = {step.index: step.acknowledged for step in self.steps}
            failures = [self._too_many_at(index, done[index], ended=True) for index in self._given_up_at]
            command = next(filter(None, failures), command)
        self._commands.append(command)
        if isinstance(command, Finish | Fail):
            self._over = True

    def give_up(self, command: GaveUp, items: int) -> None:
        """Take in that a unit was given up, when the step was done with so many items, and end the run where that is
        one too many."""
        if self._cancelled:
            return
        self.command(command)
        self._given_up += 1
        given_up = command.last - command.first + 1
        self._given_up_at[command.step] = self._given_up_at.get(command.step, 0) + given_up
        self.roster.step_rosters[command.step].failed += given_up
        failure = self._too_many_at(command.step, items, ended=False)
        if failure is not None and not self._over:
            self.command(failure)

    def _too_many_at(self, index: int, items: int, ended: bool) -> Fail | None:
        """Return the failure where more was given up than the run may, or than the share of a step's items that may."""
        most = self._plan.max_failures
        given_up = self._given_up if isinstance(most, int) else self._given_up_at[index]
        if too_many(given_up, items, ended, most):
            return Fail(index, None, None, None, self._given_up, Loss.FAILURES)
        return None

    def start_worker(self, step_roster: StepRoster) -> None:
        """Have one more worker started."""
        number = self.roster.new_number()
        step_roster.starting.add(number)
        self._step_of[number] = step_roster.node.index
        self.command(StartWorker(step_roster.node.index, number))

    # What the shell asks for

    @property
    def timer(self) -> float | None:
        """When a `Ticked` is wanted, if nothing else happens before; None: not at all."""
        if self._over or self._cancelled:
            return None
        times = [at for step in self.steps for at in (step.look_at, step.timeout_monitor.due_at) if at is not None]
        if self._balances:
            times.append(self.roster.memory.next)
        return min(times, default=None)

    @property
    def timed(self) -> bool:
        """Whether a worker is at an item that may take only so long."""
        return self.timer is not None and any(step.timeout_monitor.due_at is not None for step in self.steps)

    def stats(self, now: float) -> Stats:
        """Return what is known of the steps; between two runs, what was known at the end of the last.

        Changes nothing: what time has passed since the last event is counted in the answer alone.
        """
        at = self.now if self._over else now
        steps = tuple(step.stats(at) for step in self.steps)
        decisions = tuple(self.roster.decisions)
        return Stats(at - self._opened, self._plan.cores, steps, decisions, unfused=self._plan.unfused)

    # What tests ask for

    @property
    def over(self) -> bool:
        """Whether the run has finished, failed or been cancelled to the end."""
        return self._over

    def check(self) -> None:
        """Raise AssertionError where an invariant of the run does not hold."""
        assert not self._agenda and not self._scheduled
        if not self._cancelled:
            assert self.source_items == self.first.entered, "an item got lost on its way in"
            assert self._pulled - self.source_items + self.first.held <= self.first.bound, (
                "the source was asked for too much"
            )
        for node in self.nodes:
            node.check()
