"""A shell for the core in which everything takes its time: what `tests/simulation/command_hash.py` runs beside the simulation.

Law: the clock is simulated, and all is drawn from one source of random numbers.  Workers take as long as their step
costs, get stuck, give up items and die; the balancer itself decides on their number.  Results are not compared here,
which the simulation does; the machine's invariants are checked now and then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from heapq import heappop, heappush
from typing import Any

from conveyor import Pipe, Pipeline, Processor
from conveyor.core import commands, events
from conveyor.core.tuning import autoscaling
from conveyor.core.tuning.autoscaling import PolicyState, Resize, StepLoad
from conveyor.graph.plan import Plan, StepNode
from conveyor.stats import Measures
from tests.helpers.pipelines import increment, number_of, same
from tests.helpers.shell import FakeShell, FakeWorker, GivenUp

# What goes wrong again and again: nothing, deaths now and then, deaths at nearly every item, items that take too long;
# deaths before a worker is up, with nothing to do, before it has begun what it was handed, or while it unpickles that;
# and jobs that raise.
TROUBLES = ("", "", "deaths", "deaths", "killers", "stuck", "setup", "idle", "receive", "unpickle", "raise")


def timed(plan: Plan, source: random.Random) -> Plan:
    """The plan with timeouts, items that are given up and workers that are replaced, at some steps without state."""
    nodes: list[Any] = []
    for node in plan.nodes:
        if isinstance(node, StepNode) and node.restartable and not node.finishes:
            node = replace(
                node,
                timeout=source.choice([None, 0.05, 1.0]),
                timeouts=source.randint(1, 3),
                gives_up=source.random() < 0.7,
                max_items=source.choice([None, None, 1, 7, 40]),
            )
        nodes.append(node)
    return replace(plan, nodes=tuple(nodes), settings=(("max_failures", source.choice([None, None, None, 3, 0.2])),))


def load_plan(source: random.Random) -> Plan:
    """A chain of steps whose number of workers follows the load."""
    pipeline: Pipeline[Any, Any] = Pipeline()
    for index in range(source.randint(2, 4)):
        if index:
            pipeline.add(Pipe(source.choice([10, 100, 1000])))
        pipeline.add(Processor(source.choice([same, increment]), workers="auto"))
    return pipeline._description.plan(cores=source.choice([2, 4, 8, 16]), ordered=True)


def seconds_of(source: random.Random, *decades: float) -> float:
    """A time in one of these decades; no power is taken, which other machines may round otherwise."""
    return source.choice(decades) * source.uniform(1, 10)


class Cost:
    """What the units of one step take."""

    def __init__(self, source: random.Random, is_load: bool) -> None:
        self.seconds = seconds_of(source, *((1e-3, 1e-2) if is_load else (1e-5, 1e-4, 1e-3, 1e-2)))
        self.share_of_cpu = source.choice([1.0, 1.0, 0.5, 0.02])
        self.start_seconds = seconds_of(source, 1e-2, 1e-1)
        # The items that fail, by the rest of their number.
        self.fails_at = source.randrange(23)


class ClockedShell(FakeShell):
    """One run of a plan, in simulated time."""

    moment = 0.0

    def __init__(
        self, plan: Plan, items: Iterable[Any], source: random.Random, heaviest: int, is_load: bool = False
    ) -> None:
        """`is_load`: nothing goes wrong, but the source pauses, and what the steps cost changes."""
        self.source = source
        self.is_load = is_load
        self.costs = {node.index: Cost(source, is_load) for node in plan.steps}
        self.trouble = "" if is_load else source.choice(TROUBLES)
        # What is to happen: when, in which order, and what.
        self.agenda: list[tuple[float, int, str, int]] = []
        self.numbered = 0
        # What is on the agenda already, so that it happens once.
        self.planned: set[tuple[str, int]] = set()
        self.stuck: dict[int, float] = {}
        # What busy workers are at: so many steps, and the seconds that these take.
        self.under_way: dict[int, tuple[int, float]] = {}
        self.source_pace = seconds_of(source, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
        self.consumer_pace = seconds_of(source, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
        if self.trouble == "idle":
            self.source_pace = 10.0
        if is_load:
            self.source_pace = self.consumer_pace = 0.001
        self.cpu_of_others = 0.0
        super().__init__(plan, items, source.randrange, heaviest)

    def policy(
        self, memory: PolicyState, step_loads: Sequence[StepLoad], cores: float, others: float, now: float
    ) -> tuple[PolicyState, list[Resize]]:
        """Decide as the balancer does."""
        return autoscaling.decide(memory, step_loads, cores, others, now)

    def add_worker(self, number: int, step: StepNode) -> None:
        super().add_worker(number, step)
        worker = self.workers[number]
        if step.gives_up:
            worker.call = partial(self.called, worker.call, self.costs[step.index].fails_at)

    def called(self, call: Callable[[Any], Any], fails_at: int, unit: Any) -> Any:
        """Call a job, unless it fails at this unit."""
        if number_of(unit) % 23 == fails_at:
            raise GivenUp(1 + number_of(unit) % 3, self.now, "failed")
        return call(unit)

    # What is to happen

    def plan_for(self, what: str, number: int, seconds: float) -> None:
        """Have something happen after so many seconds, unless it is to happen already."""
        if (what, number) not in self.planned:
            self.planned.add((what, number))
            self.numbered += 1
            heappush(self.agenda, (self.now + seconds, self.numbered, what, number))

    def plan_all(self) -> None:
        """Have all happen that could."""
        random = self.source.random
        if self.credit and not self.exhausted and not self.cancelled:
            pauses = self.is_load and not self.choose(50)
            self.plan_for("feed", 0, self.source_pace * random() + 5 * pauses)
        if self.tells:
            self.plan_for("consume", 0, self.consumer_pace * random())
        for number, worker in self.workers.items():
            if worker.busy and number not in self.stuck and ("work", number) not in self.planned:
                steps = 1 + self.choose(16 if self.is_load else 8)
                seconds = self.costs[worker.node.index].seconds * steps * (0.5 + random())
                self.under_way[number] = steps, seconds
                self.plan_for("work", number, seconds)
            if worker.revoke:
                self.plan_for("answer", number, 0.001 * random())
            if self.trouble == "idle" and not self.unacknowledged[number]:
                self.plan_for("die", number, 0.2 * random())
        for number, node in self.starting.items():
            self.plan_for("start", number, self.costs[node.index].start_seconds * random())

    def see(self, command: commands.Command) -> None:
        match command:
            case commands.ProbeWorker(number):
                self.plan_for("look", number, 0.0001)
            case commands.KillWorker(number):
                self.plan_for("kill", number, 0.001)

    def verify(self, event: events.Event) -> None:
        # What the simulation does after each event is too dear here.
        if len(self.log) % 8 == 0:
            super().verify(event)

    def step(self) -> None:
        """Let the next thing happen."""
        self.plan_all()
        timer = self.machine.timer
        if timer is not None and (not self.agenda or timer <= self.agenda[0][0]):
            self.now = max(self.now, timer)
            self.tick()
            return
        assert self.agenda, "nothing can happen any more, and the run is not over"
        at, _, what, number = heappop(self.agenda)
        self.planned.discard((what, number))
        self.now = max(self.now, at)
        if what in ("feed", "consume"):
            possible = self.tells if what == "consume" else self.credit and not self.exhausted and not self.cancelled
            if possible:
                getattr(self, what)()
        elif what == "start":
            if number in self.starting:
                self.started(number)
        elif number in self.workers:
            getattr(self, f"{what}_now")(self.workers[number])

    def tick(self) -> None:
        """Time passes."""
        self.cpu_of_others += 0.01 * self.source.random()
        self.handle(events.Ticked(self.cpu_of_others))
        if not self.choose(8):
            self.handle(events.BrokerLoad(self.choose(11) / 10))

    def started(self, number: int) -> None:
        """A worker is up, or dies before it is."""
        node = self.starting.pop(number)
        if self.trouble == "setup" and self.choose(8):
            self.handle(events.WorkerLost(number, "killed", None, ready=False, killed=not self.choose(3)))
            return
        self.add_worker(number, node)
        self.handle(events.WorkerReady(number, self.costs[node.index].start_seconds))

    # What workers do

    def work_now(self, worker: FakeWorker) -> None:
        """A worker goes on, replies, and may then be stuck at what it is at."""
        number, cost = worker.number, self.costs[worker.node.index]
        if not worker.busy or number in self.stuck:
            return
        if self.trouble in ("receive", "unpickle") and worker.lease is None and worker.leases and self.choose(10):
            self.lose(worker, (worker.leases[0].lease, 0), unpickling=self.trouble == "unpickle")
            return
        steps, seconds = self.under_way[number]
        reply = worker.reply(steps, 1 + self.choose(4))
        cpu = seconds * cost.share_of_cpu
        size = self.weight(sum(items for _, items in reply.blobs))
        self.handle(reply._replace(size=size, seconds=seconds, measures=Measures(cpu, seconds - cpu)))
        if number not in self.workers or self.failure or self.finished or worker.lease is None or worker.waiting:
            return
        if self.is_load:
            if not self.choose(400):
                cost.seconds *= self.source.choice([0.2, 5.0])
            return
        timed = worker.node.timeout is not None and not self.cancelled
        if self.trouble == "raise" and not self.choose(20):
            self.handle(events.Raised(number, worker.lease.lease, 0, "raised"))
        elif self.trouble == "killers" and self.choose(4):
            self.lose(worker, worker.started)
        elif self.trouble == "deaths" and not self.choose(10):
            self.lose(worker, worker.started if self.choose(4) else None)
        elif timed and (self.choose(4) > 0 if self.trouble == "stuck" else not self.choose(30)):
            self.stuck[number] = self.now

    def answer_now(self, worker: FakeWorker) -> None:
        """A worker says what it has begun."""
        if worker.revoke:
            self.answer(worker)

    def look_now(self, worker: FakeWorker) -> None:
        """The shell says for how long a worker has been at what it is at."""
        since = self.stuck.get(worker.number)
        if since is None and worker.lease is None:
            self.handle(events.ProbeResult(worker.number, 0, 0, None))
        else:
            self.handle(
                events.ProbeResult(worker.number, *worker.started, self.now - since if since is not None else 0.0)
            )

    def kill_now(self, worker: FakeWorker) -> None:
        """The shell kills a worker that takes too long."""
        self.lose(worker, worker.started, killed=True)

    def die_now(self, worker: FakeWorker) -> None:
        """A worker dies that has nothing to do."""
        if not self.unacknowledged[worker.number]:
            self.lose(worker, None, killed=not self.choose(3))

    def lose(
        self, worker: FakeWorker, started: tuple[int, int] | None, killed: bool = False, unpickling: bool = False
    ) -> None:
        """A worker is dead; what it had not replied is lost."""
        at_finish = worker.lease is not None and worker.lease.finish
        if not worker.node.restartable and not at_finish and self.choose(20):
            # A run that loses state ends, and most should go on.
            return
        number = worker.number
        del self.workers[number], self.unacknowledged[number]
        self.stuck.pop(number, None)
        self.handle(events.WorkerLost(number, "killed", started, True, killed, unpickling))

    def cancel(self) -> None:
        # Who is stuck comes to itself, or the run would not end.
        self.stuck.clear()
        super().cancel()
