"""A shell for the core without processes: what the tests drive the machine with.

Law: plays the workers, the source and the consumer in the calling process, in an order that a chooser decides
(random, or hypothesis), and checks the machine's invariants after every event.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from conveyor.core import commands, events
from conveyor.core.data.group_sizes import GroupSizes, group_sizes_of
from conveyor.core.data.pieces import Piece, items_of, spec_of
from conveyor.core.machine import Machine
from conveyor.core.shell import Shell
from conveyor.core.tuning.autoscaling import PolicyState, Resize, StepLoad
from conveyor.core.tuning.chunk_size import first_pull
from conveyor.core.tuning.roster import FAILED_STARTS
from conveyor.graph.plan import Plan, StepNode
from conveyor.stages.outputs import outputs_of
from conveyor.stages.processor import work_of
from tests.helpers.driving import check_awaited, check_foreseen


def copied(value: Any) -> Any:
    """A copy of an item; most are integers, which nobody can change, and copying is slow."""
    return value if type(value) is int else copy.deepcopy(value)


def materialize(pieces: tuple[Piece, ...]) -> list[Any]:
    """The items of pieces whose blobs are plain lists."""
    if len(pieces) == 1 and type(pieces[0][0]) is list:
        source, start, stop = pieces[0]
        return [copied(item) for item in source[start:stop]]
    spec, blobs = spec_of(pieces)
    return [copied(item) for item in items_of(spec, blobs)]


class GivenUp(Exception):
    """The worker gives up the unit that it is at, as `on_error` says, and goes on."""

    def __init__(self, attempts: int, when: float, why: str) -> None:
        super().__init__(attempts, when, why)
        self.attempts = attempts
        self.when = when
        self.why = why


MOST_WORKERS = 4
"""How many workers a step has at most that leaves their number open."""


class FakeWorker:
    """Runs leases bit by bit, and replies when it is told to."""

    def __init__(self, number: int, node: StepNode, grouped: bool) -> None:
        self.number = number
        self.node = node
        self.job = copy.deepcopy(node.processor)
        self.call = work_of(self.job)
        self.grouped = grouped
        self.leases: deque[commands.SendLease] = deque()
        self.lease: commands.SendLease | None = None
        self.credit = 0
        self.waiting = False
        self.work: Iterator[tuple[str, Any]] = iter(())
        self.held: tuple[str, Any] | None = None
        self.cancelled = False
        # What it is at, in units begun of a lease, and which of these; and beyond what it begins nothing.
        self.started = (-1, 0)
        self.at = 0
        self.limit: tuple[int, int] | None = None
        self.revoke: commands.Revoke | None = None
        # What it has given up of the lease at hand, and has not said.
        self.given_up: list[tuple[int, int, float, Any]] = []
        # How many items of each lease have been acknowledged.
        self.acknowledged: dict[int, int] = {}

    @property
    def busy(self) -> bool:
        """Whether it can do something, beyond waiting for credit."""
        return bool(self.leases) if self.lease is None else not self.waiting

    def begin(self) -> commands.SendLease:
        """Take up the next lease."""
        self.lease = lease = self.leases.popleft()
        items = materialize(lease.pieces)
        size = self.node.batch
        if size is not None:
            items = [items[start : start + size] for start in range(0, len(items), size)]
        self.credit = lease.credit
        self.waiting = False
        self.work = self.values(lease, items)
        self.held = None
        self.given_up = []
        return lease

    def values(self, lease: commands.SendLease, calls: list[Any]) -> Iterator[tuple[str, Any]]:
        """Yield ("output", value) and ("unit",) as they fall."""
        if lease.finish:
            for value in outputs_of(self.job.finish(), False):
                yield "output", value
            return
        for index, unit in enumerate(calls):
            if lease.give_up is not None and (self.limit is None or (lease.lease, 0) < self.limit):
                self.started = (lease.lease, 1)
                self.given_up.append((0, lease.give_up.attempts, 0.0, lease.give_up))
                yield "unit", None
                return
            if self.limit is not None and (lease.lease, index) >= self.limit:
                return
            self.start(lease.lease, index, len(calls))
            try:
                result = self.call(unit)
            except GivenUp as given_up:
                self.given_up.append((index, given_up.attempts, given_up.when, given_up.why))
                yield "unit", None
                continue
            outputs = outputs_of(result, self.node.processor.keep_none)
            # What a worker that was lost has given already is not given again.
            for value in islice(outputs, 0 if index else lease.skip, None):
                yield "output", value
            yield "unit", None

    def start(self, lease: int, index: int, calls: int) -> None:
        """Be at a unit, and begin as many as it has hands for."""
        self.at = index
        if self.started < (lease, index + 1):
            stop = min(calls, index + self.node.hands)
            if self.limit is not None and self.limit[0] == lease:
                stop = min(stop, self.limit[1])
            self.started = (lease, stop)

    def answer(self, doubtful: int) -> events.RevokeResult:
        """Say what has been begun, and begin nothing more."""
        assert self.revoke is not None
        self.limit = max(self.started, (self.revoke.lease, self.revoke.calls))
        self.revoke = None
        # It may have been about to begin one more, and find then that it must not.
        lease, calls = self.limit
        return events.RevokeResult(self.number, lease, calls + doubtful)

    def reply(self, steps: int, cuts: int) -> events.Replied:
        """Go on for at most `steps` steps; return the reply."""
        lease = self.lease or self.begin()
        sizes: list[int] = []
        outputs: list[Any] = []
        count = 0
        starving = final = False
        while True:
            if self.cancelled:
                return self._final_reply(lease)
            if self.held is None:
                if steps <= 0:
                    break
                steps -= 1
                self.held = next(self.work, ("over", None))
            kind, value = self.held
            if kind == "over":
                final = True
                break
            if kind == "unit":
                sizes.append(count)
                count = 0
            elif not self.credit:
                starving = self.waiting = True
                break
            else:
                self.credit -= 1
                outputs.append(copied(value))
                count += 1
            self.held = None
        blobs: list[tuple[Any, int]] = []
        iterator = iter(outputs)
        while part := list(islice(iterator, cuts)):
            blobs.append((part, len(part)))
        group_sizes = group_sizes_of(sizes) if self.grouped else None
        event = events.Replied(
            *(self.number, lease.lease, len(sizes), group_sizes, tuple(blobs), 0, final, starving, 1e-5),
            partial=count,
            given_up=self.given_up if sizes else (),
        )
        if sizes:
            self.given_up = []
        if final:
            self.lease = None
        return event

    def _final_reply(self, lease: commands.SendLease) -> events.Replied:
        group_sizes: GroupSizes | None = [] if self.grouped else None
        event = events.Replied(self.number, lease.lease, 0, group_sizes, (), 0, True, False, 1e-5)
        self.lease = None
        return event


class FakeShell(Shell):
    """One run of a plan."""

    # How far the clock goes on before each event.
    moment = 0.001

    def __init__(self, plan: Plan, items: Iterable[Any], choose: Callable[[int], int], heaviest: int = 8) -> None:
        """`choose(n)` returns an int from 0 to n - 1; no item is taken to weigh more than `heaviest` bytes.

        The number of workers of a step that leaves it open is drawn anew each time that the machine asks for it.
        """
        self.plan = plan
        self.choose = choose
        self.items = iter(items)
        super().__init__(Machine(plan, policy=self.policy))
        self.workers: dict[int, FakeWorker] = {}
        # The items of each lease of each worker that it has not acknowledged.
        self.unacknowledged: dict[int, dict[int, int]] = {}
        for step in plan.steps:
            for _ in range(step.workers):
                self.add_worker(len(self.workers), step)
        # Those that were started and are not up yet, with their steps.
        self.starting: dict[int, StepNode] = {}
        # How often a worker was told to give something back, and how many may still die.
        self.revoked = 0
        self.kills = 0
        self.finishing: set[int] = set()
        self.credit = first_pull(plan)
        self.exhausted = False
        self.results: list[Any] = []
        self.unconsumed = 0
        # How many of those the consumer was asked to say that it has taken; and whether it never does without.
        self.asked = 0
        self.lazy = False
        self.finished = False
        self.failure: commands.Fail | None = None
        self.pulled = 0
        self.log: list[events.Event] = []
        self.now = 0.0
        self.heaviest = heaviest
        self.consumes = True
        self.cancelled = False

    def add_worker(self, number: int, step: StepNode) -> None:
        """Have one more worker."""
        self.workers[number] = FakeWorker(number, step, step.index in self.plan.grouped())
        self.unacknowledged[number] = {}

    def policy(
        self, memory: PolicyState, step_loads: Sequence[StepLoad], cores: float, others: float, now: float
    ) -> tuple[PolicyState, list[Resize]]:
        """Decide at random, within the bounds."""
        decisions = []
        for index, step_load in enumerate(step_loads):
            present = step_load.workers + step_load.starting
            wanted = max(step_load.least, 1 + self.choose(MOST_WORKERS)) if step_load.most is None else present
            if wanted != present:
                decisions.append(Resize(index, present, wanted, "by chance"))
        return memory._replace(next=now + 0.001 * self.choose(20)), decisions

    def handle(self, event: events.Event) -> None:
        """Hand an event to the machine, check it, and carry its commands out."""
        self.now += self.moment
        self.log.append(event)
        self._take_note(event)
        super().handle(event)
        self.verify(event)

    def decide(self, event: events.Event) -> Sequence[commands.Command]:
        """Hold what the machine wants to what it foresaw."""
        check_awaited(self.machine, event)
        foreseen = self.machine.foresee(event)
        wanted = super().decide(event)
        if foreseen is not None:
            check_foreseen(foreseen, wanted)
        return wanted

    def read_clock(self) -> float:
        """The time, which goes on with each event."""
        return self.now

    def carry_out(self, command: commands.Command) -> None:
        """Look at a command, and carry it out."""
        self.see(command)
        super().carry_out(command)

    def send_lease(self, command: commands.SendLease) -> None:
        if command.finish:
            assert not command.items and command.worker not in self.finishing, "finish twice"
            self.finishing.add(command.worker)
        assert not self.cancelled, "a lease after the run was cancelled"
        assert sum(stop - start for _, start, stop in command.pieces) == command.items
        self.unacknowledged[command.worker][command.lease] = command.items
        worker = self.workers[command.worker]
        if worker.limit is not None:
            assert not worker.leases and worker.lease is None, "a lease behind one that was taken back"
            worker.limit = None
        worker.leases.append(command)

    def grant(self, command: commands.Grant) -> None:
        worker = self.workers[command.worker]
        assert worker.lease is not None and worker.lease.lease == command.lease and worker.waiting
        worker.credit += command.credit
        worker.waiting = False

    def cancel_leases(self, worker: int) -> None:
        self.workers[worker].cancelled = True
        self.workers[worker].waiting = False

    def revoke(self, command: commands.Revoke) -> None:
        assert not self.workers[command.worker].revoke, "taken back twice"
        self.workers[command.worker].revoke = command

    def start_worker(self, step: int, worker: int) -> None:
        node = self.plan.nodes[step]
        assert isinstance(node, StepNode) and worker not in self.workers
        self.starting[worker] = node

    def end_worker(self, worker: int) -> None:
        assert not self.unacknowledged.pop(worker), "a worker that has something is sent away"
        del self.workers[worker]

    def pull(self, credit: int) -> None:
        self.credit += credit

    def emit(self, command: commands.Emit) -> None:
        assert not self.cancelled, "results after the run was cancelled"
        results = materialize(command.pieces)
        assert len(results) == command.items
        self.results += results
        self.unconsumed += command.items
        if command.report_within_seconds == 0.0:
            self.asked = self.unconsumed

    def finish(self) -> None:
        assert not self.finished, "the run finished twice"
        self.finished = True

    def fail(self, command: commands.Fail) -> None:
        self.failure = command

    # Whether and how these are carried out is for `see` to say.

    def probe_worker(self, worker: int) -> None:
        pass

    def kill_worker(self, worker: int) -> None:
        pass

    def set_flush_interval(self, worker: int, seconds: float) -> None:
        pass

    def gave_up(self, command: commands.GaveUp) -> None:
        pass

    def deliver(self, command: commands.Deliver) -> None:
        raise AssertionError("results of submitted items, in a run that has none")

    def item_failed(self, command: commands.ItemFailed) -> None:
        raise AssertionError("a submitted item failed, in a run that has none")

    def see(self, command: commands.Command) -> None:
        """Take in what the machine wants, before it is carried out."""

    def verify(self, event: events.Event) -> None:
        """Raise AssertionError where something is not as it must be after an event."""
        self.machine.check()
        self._compare()

    def _take_note(self, event: events.Event) -> None:
        """Count what a worker still has by its own word, whatever the machine makes of it."""
        if isinstance(event, events.Replied):
            leases = self.unacknowledged[event.worker]
            if event.final:
                del leases[event.lease]
            else:
                unit = self.workers[event.worker].node.batch or 1
                worker = self.workers[event.worker]
                leases[event.lease] = max(0, leases[event.lease] - event.calls * unit)
                worker.acknowledged[event.lease] = worker.acknowledged.get(event.lease, 0) + event.calls * unit

    def _compare(self) -> None:
        """Raise AssertionError where the machine's idea of who has what is not that of the workers."""
        if self.failure:
            return
        for worker in self.workers.values():
            step = self.machine.step_of(worker.number)
            known = next(each for each in step.book.workers if each.number == worker.number)
            leases = {lease.number: lease.items for lease in known.leases}
            expected = self.unacknowledged[worker.number]
            # Once the run is cancelled, what a worker has not begun makes no difference.
            assert leases.keys() == expected.keys() if self.cancelled else leases == expected, (
                "worker and machine disagree on a lease"
            )

    def actions(self) -> list[Callable[[], None]]:
        """What could happen next."""
        possible: list[Callable[[], None]] = []
        if self.credit and not self.exhausted and not self.cancelled:
            possible.append(self.feed)
        if self.tells and self.consumes:
            possible.append(self.consume)
        possible.extend(partial(self.work, worker) for worker in self.workers.values() if worker.busy)
        possible.extend(partial(self.answer, worker) for worker in self.workers.values() if worker.revoke)
        possible.extend(partial(self.start, number) for number in self.starting)
        if self.holds_back:
            possible.append(self.tick)
        return possible

    @property
    def holds_back(self) -> bool:
        """Whether items wait for others, or for their time to be over."""
        return not self.cancelled and any(step.intake.due_at is not None for step in self.machine.steps)

    def asides(self) -> list[Callable[[], None]]:
        """What may happen beside, without which all goes on as well."""
        possible: list[Callable[[], None]] = []
        if self.machine.timer is not None:
            possible.append(self.tick)
        if self.kills > 0:
            for number, worker in self.workers.items():
                if worker.node.restartable and not worker.node.finishes:
                    possible.append(partial(self.kill, number))
            # One more that dies before it is ready may be one too many in a row.
            if self.choose(4) == 0:
                possible.extend(partial(self.fail_to_start, number) for number in self.starting)
        return possible

    def kill(self, number: int) -> None:
        """A worker dies; what it had not replied is lost."""
        worker = self.workers.pop(number)
        # One that has nothing to do was ended from outside.
        idle = not self.unacknowledged.pop(number)
        self.kills -= 1
        # Where there is no note of how far it had begun, the machine has to do without.
        started = worker.started if self.choose(4) else None
        self.handle(events.WorkerLost(number, "killed", started, killed=idle))

    def fail_to_start(self, number: int) -> None:
        """A worker dies before it is ready."""
        if self.machine.step_of(number).step_roster.failed_starts < FAILED_STARTS - 1:
            del self.starting[number]
            self.kills -= 1
            self.handle(events.WorkerLost(number, "killed", None, ready=False))

    def tick(self) -> None:
        """Time passes."""
        assert self.machine.timer is not None
        self.now = max(self.now, self.machine.timer)
        self.handle(events.Ticked(0.0))
        if not self.choose(3):
            self.handle(events.BrokerLoad(self.choose(11) / 10))

    def start(self, number: int) -> None:
        """A worker is up."""
        self.add_worker(number, self.starting.pop(number))
        self.handle(events.WorkerReady(number, 0.01))

    def answer(self, worker: FakeWorker) -> None:
        """A worker says what it has begun, and the rest is not its any more."""
        self.answered(worker, worker.answer(self.choose(2)), list(self.unacknowledged[worker.number]))

    def answered(self, worker: FakeWorker, event: events.RevokeResult, known: list[int]) -> None:
        """An answer arrives; `known` are the leases that the worker had when it gave it."""
        self.forgo(worker, event, known)
        self.revoked += 1
        self.handle(event)

    def forgo(self, worker: FakeWorker, event: events.RevokeResult, known: list[int]) -> None:
        """What a worker has not begun, by its answer, is not its any more."""
        unit = worker.node.batch or 1
        leases = self.unacknowledged[worker.number]
        for lease in known:
            if lease >= event.lease and lease in leases:
                done = worker.acknowledged.get(lease, 0)
                started = event.calls * unit if lease == event.lease else 0
                leases[lease] = max(0, min(leases[lease], started - done))

    def feed(self) -> None:
        """The source gives some items, or ends."""
        wanted = 1 + self.choose(min(self.credit, 20))
        part = list(islice(self.items, wanted))
        if part:
            self.credit -= len(part)
            self.pulled += len(part)
            self.handle(events.SourceItems(part, len(part), self.weight(len(part))))
        if len(part) < wanted:
            self.exhausted = True
            self.handle(events.SourceEnded())

    @property
    def tells(self) -> bool:
        """Whether the consumer may say what it has taken.

        It does so where that is worth a message, and after some time; but no run may stand still until then.
        """
        return self.asked > 0 or (self.unconsumed > 0 and not self.lazy)

    def consume(self) -> None:
        """The consumer takes some results."""
        items = 1 + self.choose(self.unconsumed)
        self.unconsumed -= items
        self.asked = max(0, self.asked - items)
        self.handle(events.Consumed(items))

    def work(self, worker: FakeWorker) -> None:
        """A worker goes on a little, and replies."""
        reply = worker.reply(1 + self.choose(8), 1 + self.choose(4))
        self.handle(reply._replace(size=self.weight(sum(items for _, items in reply.blobs))))

    def weight(self, items: int) -> int:
        """What so many items weigh together."""
        return items * (8 if self.heaviest == 8 else 8 + self.choose(self.heaviest))

    def cancel(self) -> None:
        """The consumer wants no more."""
        self.cancelled = True
        self.handle(events.Cancelled())

    def step(self) -> None:
        """Let one thing happen."""
        possible = self.actions()
        assert possible, "nothing can happen any more, and the run is not over"
        asides = self.asides()
        if asides and not self.choose(3):
            asides[self.choose(len(asides))]()
        else:
            possible[self.choose(len(possible))]()

    def run(self, limit: int = 100_000) -> list[Any]:
        """Let things happen until the run is over; return the results."""
        for _ in range(limit):
            if self.finished or self.failure:
                return self.results
            self.step()
        raise AssertionError(f"no end after {limit} events")

    def assert_over(self) -> None:
        """Raise AssertionError unless the run is over, nobody holds a lease, and no event changes that."""
        assert self.finished and self.machine.over
        assert not any(self.unacknowledged.values()) and not any(step.outstanding for step in self.machine.steps)
        late: list[events.Event] = [events.Consumed(0), events.SourceEnded(), events.Cancelled()]
        for event in late:
            assert self.machine.handle(event, self.now) == []
