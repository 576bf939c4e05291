"""The state of a pipeline that is up.

Law: `Machine.handle(event, now)` is the only way in, and the list of commands that it returns the only way out.
Nothing here knows a process, a clock or an item.  Within one event the machine pumps the nodes that have something to
do, each as often as another gives it a reason, until nothing moves any more.  The nodes are made anew for each run; the
roster stays.
"""

from __future__ import annotations

from collections import deque

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, cast
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
    RoundTrip,
    RunStarted,
    SourceEnded,
    SourceItems,
    Ticked,
    Withdrawn,
    WorkerLost,
    WorkerNotStarted,
    WorkerReady,
)
from conveyor.core.leasing.blame import FailureBudget
from conveyor.core.leasing.credit import SourceCredit
from conveyor.core.leasing.recovery import overdue_items
from conveyor.core.nodes.base import Node, Output
from conveyor.core.nodes.forks import Balance, Fork, ForkExit, Replicate
from conveyor.core.nodes.joins import BalanceMerge, FreeMerge, Join, ReplicateMerge, Zip
from conveyor.core.nodes.lone import Awaited, Expected, await_reply, foresee, give, pass_on
from conveyor.core.nodes.sink import Sink
from conveyor.core.nodes.step import Step
from conveyor.core.nodes.step_load import load_of
from conveyor.core.tuning.autoscaling import decide
from conveyor.core.tuning.chunk_size import ChunkTarget, first_pull
from conveyor.core.tuning.roster import Look, Policy, Roster, StepRoster, sample_of, stats_of
from conveyor.graph.plan import BalanceNode, LeaveNode, MergeNode, Plan, ReplicateNode, SinkNode, StepNode, ZipNode
from conveyor.stats import Sample, Stats

if TYPE_CHECKING:
    from conveyor.core.data.lineage import Origins
    from conveyor.core.nodes.traced import TracedContext, TracedStep

# The events that count between two runs as well.
BETWEEN_RUNS = frozenset({WorkerReady, WorkerLost, WorkerNotStarted, RunStarted, RoundTrip})


class Conclusion(NamedTuple):
    """Whether a run is over for a consumer that stops, as nothing is left but calls of `finish`.

    `drops`: the consumer has had none of what these give, and whatever they still give is dropped.
    """

    over: bool
    drops: bool


class Machine:
    """A plan with its workers, from the first run to the last; the first begins at once.

    The workers of the beginning are numbered from 0 through all steps, in the order of the plan's nodes.
    """

    def __init__(self, plan: Plan, now: float = 0.0, policy: Policy = decide) -> None:
        self.now = now
        self._commands: list[Command] = []
        self.roster = Roster(plan, policy, now)
        self.chunk_target = ChunkTarget()
        self._step_of: dict[int, int] = {
            number: index for index, roster in self.roster.step_rosters.items() for number in roster.numbers
        }
        self._begin(plan, traced=False)

    def _begin(self, plan: Plan, traced: bool, streamed: bool = False) -> None:
        """Make the nodes of a run, with nothing in them."""
        self._agenda: deque[Node] = deque()
        self._cancelled = self._over = False
        # Where a lone item goes on, until something else happens.
        self.expected: Expected | None = None
        self._failures = FailureBudget(plan.setting("max_failures"))
        # Of a traced run, the submitted items that are under way.
        self.origins: Origins | None = None
        if traced:
            plan = self._begin_traced(plan, streamed)
        else:
            self.nodes = [self._build(plan, index) for index in range(len(plan.nodes))]
        self._connect(plan)
        self.steps = [node for node in self.nodes if isinstance(node, Step)]
        assert self.nodes[0] is self.first
        self.sink = cast("Sink", self.nodes[-1])
        self.source = SourceCredit(self.first, first_pull(plan), traced and not streamed)
        self.first.upstream.append(self._pull)

    def _begin_traced(self, plan: Plan, streamed: bool) -> Plan:
        """Make the nodes of a run whose items have results of their own; return the plan that they are of."""
        # Most pipelines have none, and would wait for that.
        from conveyor.core.data.lineage import Origins
        from conveyor.core.nodes import traced

        self.origins = Origins(lambda: self.sink.wake(), streamed)
        context, plan = cast("TracedContext", self), traced.untracked(plan)
        self.nodes = traced.nodes_of(plan, self.roster.step_rosters, context, self._build)
        return plan

    @property
    def first(self) -> Step:
        """The step that takes items from the source."""
        return self.steps[0]

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
        # Backwards, so that what lies behind a node is complete when the node asks for its batches.
        for description, node in reversed(list(zip(plan.nodes, self.nodes, strict=True))):
            if isinstance(node, Fork) and isinstance(description, ReplicateNode | BalanceNode):
                outputs = [Output(self.nodes[target.node], target.port) for target in description.to]
                node.connect(outputs)
                if isinstance(node, Balance):
                    for output in outputs:
                        if isinstance(output.node, Step) and (output.node.shares_pipe() or not node.strict):
                            output.node.reports_demand = True
            elif isinstance(node, Step | Join | ForkExit) and not isinstance(description, ReplicateNode | BalanceNode):
                assert not isinstance(description, SinkNode)
                outputs = [Output(self.nodes[description.to.node], description.to.port)]
                node.connect(outputs[0])
            else:
                continue
            for output in outputs:
                output.node.upstream.append(node.capacity_freed)
                if isinstance(node, Step):
                    output.node.in_flight = max(output.node.in_flight, node.book.most_in_hand)
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

        Once the run is over, only the events in `BETWEEN_RUNS` change something.
        """
        if type(event) in BETWEEN_RUNS:
            self._take_in_between_runs(event, now)
        if not self._over:
            self.now, self.expected = now, None
            self._take_in(event)
            self._run_agenda()
            if self.source.watched:
                self._look_whether_settled()
        commands, self._commands = self._commands, []
        return commands

    def foresee(self, event: Event) -> Command | None:
        """Return a command that `handle` will give, behind none but the source's; None: a short look does not tell."""
        return None if self._over or self._cancelled else foresee(self, event)

    def await_reply(self) -> Awaited | None:
        """Return what `foresee` will tell of the next reply, where that is known already; None elsewhere."""
        return None if self._over or self._cancelled else await_reply(self)

    def _take_in_between_runs(self, event: Event, now: float) -> None:
        if isinstance(event, WorkerReady):
            self._worker_ready(event, now)
        elif isinstance(event, WorkerLost):
            self._worker_lost(event, now)
        elif isinstance(event, WorkerNotStarted):
            self.step_of(event.worker).step_roster.not_started(event.worker, now)
        elif isinstance(event, RoundTrip):
            self.chunk_target.observe_round_trip(event.seconds)
        elif isinstance(event, RunStarted):
            self.roster.idle_seconds += now - self.now
            self.now = now
            self._begin(self.roster.plan, event.traced, event.streamed)

    def _take_in(self, event: Event) -> None:
        match event:
            case Replied():
                step = self.step_of(event.worker)
                if self._cancelled or not pass_on(step, event, self.now, self.origins):
                    step.handle_reply(event)
            case SourceItems():
                self.source.given += event.items
                assert self.source.given <= self.source.pulled, "the source gave more than it was asked for"
                if not self._cancelled:
                    blob = event.blob if self.origins is None else self.origins.enter(event.blob, event.items)
                    if event.items > 1 or not give(self.first, blob, event.size, self.now):
                        self.first.feed(blob, event.items, event.size)
                    if self.origins is not None:
                        self._run_agenda()
                        self._pull()  # Whoever submits the next one may wait for what is little room.
            case CreditReturned():
                # What the source has been allowed since is on its way, and stays good.
                self.source.pulled -= event.items
                self._pull()
            case Consumed():
                self.sink.consumed(event.items)
            case SourceEnded():
                if not self._cancelled:
                    self.source.ended = True
                    self.source.watched = any(step.step_roster.node.finishes for step in self.steps)
                    self.first.end(0)
            case Raised():
                step = self.step_of(event.worker)
                if self.origins is None or not cast("TracedStep", step).handle_raised(event):
                    self._commands.append(step.recovery.failure_of(event.worker, event.lease, event.call, event.error))
                    self._over = True
            case Withdrawn():
                if self.origins is not None and self.origins.drop_all(event.origins):
                    self.purge()
            case RevokeResult():
                self.step_of(event.worker).handle_revoke_result(event)
            case ProbeResult():
                self.step_of(event.worker).handle_probe_result(event)
            case Ticked():
                if not self._cancelled:
                    for step in self.steps:
                        step.wake()
                    if self.roster.autoscales and self.now >= self.roster.policy_state.next:
                        self._autoscale(event)
            case BrokerLoad(cpu_share):
                if self.chunk_target.observe_load(cpu_share):
                    for step in self.steps:
                        for worker in step.book.workers:
                            self.command(SetFlushInterval(worker.number, self.chunk_target.flush_interval_seconds))
            case Cancelled():
                self._cancelled = True
                for node in self.nodes:
                    node.clear()
            case WorkerReady() | WorkerLost() | WorkerNotStarted() | RunStarted() | RoundTrip():
                pass  # `_take_in_between_runs` has taken them in.
            case _:
                raise TypeError(f"the core knows no event {event!r}: add its case to Machine._take_in")
        if self._cancelled and not any(step.outstanding for step in self.steps):
            self.command(Finish())

    def _look_whether_settled(self) -> None:
        """Note how many results there were when nothing was under way any more but calls of `finish`."""
        if self._cancelled or all(node.is_idle() for node in self.nodes):
            self.sink.settled_at = None if self._cancelled else self.sink.emitted
            self.source.watched = False

    @property
    def under_way(self) -> int:
        """How many items the steps have: none, one, or 2 for more.  Looked up without a call, as it is asked often."""
        items = 0
        for step in self.steps:
            items += len(step.book.leases) + step.intake.queue.items + step.book.prefetched
            items += step.recovery.held if step.recovery.requeued else 0
            if items > 1:
                return 2
        return items

    def _run_agenda(self) -> None:
        agenda = self._agenda
        while agenda:
            self.expected = None
            node = agenda.popleft()
            node.scheduled = False
            if not self._cancelled and not self._over:
                node.pump()

    def step_of(self, worker: int) -> Step:
        """Return the step that a worker works at."""
        # Each reply passes here, and `cast` is a call.
        return self.nodes[self._step_of[worker]]  # type: ignore[return-value]

    def _worker_ready(self, event: WorkerReady, now: float) -> None:
        step = self.step_of(event.worker)
        clock = (self.now if self._over else now) - self.roster.idle_seconds
        if step.step_roster.ready(event.worker, event.seconds, clock) and not self._over:
            self.now = now
            step.add_worker(event.worker)
        if self.chunk_target.load_factor > 1:
            self.command(SetFlushInterval(event.worker, self.chunk_target.flush_interval_seconds))

    def _worker_lost(self, event: WorkerLost, now: float) -> None:
        step, running = self.step_of(event.worker), not self._over
        if running:
            self.now = now
        roster, worker = step.step_roster, step.book.worker(event.worker)
        leaving, replaced = worker is not None and worker.leaving, worker is not None and worker.replaced
        failure: Fail | None = None
        if not event.ready and roster.is_hopeless(event.killed, now, event.host_lost):
            failure = Fail(step.index, event.worker, None, None, event.cause, Loss.SETUP)
        elif event.ready and not roster.node.restartable:
            failure = self._loss_of_state(step, event)
        elif event.ready and not leaving and not (worker and worker.leases) and roster.died_idle(event, now):
            failure = Fail(step.index, event.worker, None, None, event.cause, Loss.WAIT)
        elif running:
            failure = step.handle_worker_lost(event)
        if worker is not None and worker.overdue:
            roster.timed_out += 1
        else:
            roster.workers_lost += 1
        roster.lost(event.worker, event.ready, now, event.host_lost)
        if failure is not None:
            self._commands.append(failure)
            self._over = True
        elif not leaving or (running and step.recovery.items and not replaced):
            # A worker that was to leave is replaced, too, where all others may wait for the outputs of what it had.
            self.start_worker(roster)

    def _loss_of_state(self, step: Step, event: WorkerLost) -> Fail:
        worker = step.book.worker(event.worker)
        if worker is not None and worker.leases and all(lease.finish for lease in worker.leases):
            # To declare the job restartable would not help.
            return Fail(step.index, event.worker, None, None, event.cause, Loss.FINISH)
        overdue = None if worker is None else overdue_items(step.step_roster.node, worker, event, step.batch_size)
        if overdue is not None:
            first, last = overdue
            return Fail(step.index, event.worker, first, last, step.step_roster.node.timeout, Loss.OVERDUE)
        return step.recovery.failure_of(event.worker, None, None, event.cause)._replace(loss=Loss.STATE)

    def _autoscale(self, event: Ticked) -> None:
        """Have the numbers of workers follow the load."""
        loads = [load_of(step, self._waiting_in_front(step), event.fitting) for step in self.steps]
        for resize in self.roster.decide(loads, event.other_cpu_seconds, self.now):
            self.steps[resize.step].resize(resize.after)

    def _waiting_in_front(self, step: Step) -> int:
        """How many items wait for a step in the fork or join in front of it, where it has no pipe of its own."""
        if not step.shares_pipe():
            return 0
        return sum(node.waiting_for(step) for node in self.nodes if isinstance(node, Fork | Join))

    def _pull(self) -> None:
        """Allow the source what there is room for."""
        if not self._cancelled and (credit := self.source.more()):
            self._commands.append(Pull(credit))

    # What nodes ask for

    def wake(self, node: Node) -> None:
        """Have a node pumped before the event at hand is done with."""
        node.scheduled = True
        self._agenda.append(node)

    def command(self, command: Command) -> None:
        """Have something done outside the core."""
        if isinstance(command, Finish) and not self._cancelled:
            # Of few items a share says something only now.
            failures = [self._too_many_at(step, self._done_at(step), ended=True) for step in self._failures.steps]
            command = next(filter(None, failures), command)
        self._commands.append(command)
        if isinstance(command, Finish | Fail):
            self._over = True

    def give_up(self, command: GaveUp, items: int) -> None:
        """Count that a call was given up, when the step was done with so many items; end the run where that is one
        too many."""
        if self._cancelled:
            return
        self.command(command)
        given_up = command.last - command.first + 1
        self._failures.add(command.step, given_up)
        self.roster.step_rosters[command.step].totals.failed += given_up
        failure = self._too_many_at(command.step, items, ended=False)
        if failure is not None and not self._over:
            self.command(failure)

    def purge(self) -> None:
        """Remove what nobody wants any more of what was submitted from wherever it waits."""
        from conveyor.core.nodes import traced

        assert self.origins is not None
        for node in self.nodes:
            traced.purge(node, self.origins)

    def _done_at(self, index: int) -> int:
        return next(step.book.acknowledged for step in self.steps if step.index == index)

    def _too_many_at(self, index: int, items: int, ended: bool) -> Fail | None:
        is_spent = self._failures.is_spent(index, items, ended)
        return Fail(index, None, None, None, self._failures.calls, Loss.FAILURES) if is_spent else None

    def start_worker(self, step_roster: StepRoster) -> None:
        """Have one more worker started."""
        number = self.roster.new_number()
        step_roster.start(number)
        self._step_of[number] = step_roster.node.index
        self.command(StartWorker(step_roster.node.index, number))

    # What the shell asks for

    def can_do_without(self, worker: int) -> bool:
        """Whether a worker is one more of a step that has others, and whose number of workers follows the load."""
        step = self.step_of(worker)
        return step.step_roster.node.auto and worker in step.step_roster.starting and bool(step.book.staying)

    @property
    def timer(self) -> float | None:
        """When a `Ticked` is wanted, if nothing else happens before; None: not at all."""
        if self._over or self._cancelled:
            return None
        times = [at for step in self.steps for at in step.wanted_at if at is not None]
        if self.roster.autoscales:
            times.append(self.roster.policy_state.next)
        return min(times, default=None)

    @property
    def timed(self) -> bool:
        """Whether a worker is at an item that may take only so long."""
        return self.timer is not None and any(step.timeout_monitor.due_at is not None for step in self.steps)

    def stats(self, now: float, look: Look | None = None) -> Stats:
        """Return what is known of the steps; between two runs, what was known at the end of the last.

        Changes nothing: what time has passed since the last event is counted in the answer alone.  `look` says what
        only the shell knows of a worker.
        """
        at = self.now if self._over else now
        steps = tuple(stats_of(step, at, at - self.roster.idle_seconds, look) for step in self.steps)
        seconds, decisions = at - self.roster.opened_at, tuple(self.roster.decisions)
        return Stats(seconds, self.roster.plan.cores, steps, decisions, unfused=self.roster.plan.unfused)

    def items_through(self) -> int:
        """Return of how many input items nothing is under way any more; changes nothing."""
        # Only runs whose progress is watched ask.
        from conveyor.core.nodes.under_way import items_under_way

        return max(0, self.source.given - items_under_way(self.roster.plan, self.nodes))

    @property
    def worker_cpu_seconds(self) -> float:
        """The CPU seconds that workers have reported."""
        return sum(step.step_roster.totals.cpu for step in self.steps)

    def sample(self, now: float) -> Sample:
        """Return what the steps are like at `now`; changes nothing."""
        at = self.now if self._over else now
        return Sample(at - self.roster.opened_at, tuple(sample_of(step, at) for step in self.steps))

    def conclusion(self, taken: int) -> Conclusion | None:
        """Return whether the run is over for a consumer that stops after `taken` results; changes nothing.

        None: that is known when the source gives another item, or ends.
        """
        emitted, settled_at = self.sink.emitted, self.sink.settled_at
        if settled_at is None and self._over:
            settled_at = emitted
        if settled_at is not None:
            return Conclusion(taken in (settled_at, emitted), taken == settled_at)
        if self.source.ended or self._cancelled or taken != emitted or not all(node.is_idle() for node in self.nodes):
            return Conclusion(False, False)
        return None

    @property
    def over(self) -> bool:
        """Whether the run has finished, failed or been cancelled to the end."""
        return self._over

    def check(self) -> None:
        """Raise AssertionError where an invariant of the run does not hold."""
        assert not self._agenda and not any(node.scheduled for node in self.nodes)
        if not self._cancelled:
            assert self.source.given == self.first.intake.entered, "an item got lost on its way in"
            assert self.source.ahead + self.first.held <= self.first.bound, "the source was asked for too much"
        for node in self.nodes:
            node.check()
        if self.origins is not None and not self._cancelled:
            self.origins.check()
