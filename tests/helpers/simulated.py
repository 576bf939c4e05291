"""A shell for the core in which everything goes wrong that may: what `tests/helpers/simulation.py` runs.

Law: what may happen in a broker may happen here, and nothing else.  Messages take their time, those of one worker in
their order; workers stall, die, join and leave; what a lost worker said last may come again, and is held off by the
fence, which is the shell's and not the core's.  After every event the cheap checks are made for all, the dear ones for
one node in turn, and for all nodes every so often.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from conveyor.core import commands, events
from conveyor.core.leasing import blame
from conveyor.core.nodes.base import Node, Output
from conveyor.core.nodes.forks import Fork, ForkExit, Replicate
from conveyor.core.nodes.joins import Join, Zip
from conveyor.core.nodes.sink import Sink
from conveyor.core.nodes.step import Step
from conveyor.core.tuning.chunk_size import first_pull
from conveyor.graph.plan import Plan, StepNode
from conveyor.stages.processor import work_of
from tests.helpers.ledger import Page, inexact
from tests.helpers.shell import FakeShell, FakeWorker

Message = tuple[events.Event, list[int]]


class Chances(NamedTuple):
    """How likely what is, at each event; and how much of it there may be."""

    fault: float = 0.1
    delay: float = 0.3
    kills: int = 20
    # What a reply says that it took, in seconds.
    pace: float = 1e-5
    # Of the deaths, how many may end the run because they cannot be made up for.
    fatal: float = 0.02
    # All nodes are checked with every so many events.
    every: int = 32


CHANCES = Chances()


class Dies(Exception):
    """The worker dies at the item that it is at."""


class Raises(Exception):
    """The job raises at the item that it is at."""


def poisoned(call: Callable[[Any], Any], poison: Any, how: type[Exception], unit: Any) -> Any:
    """Call a job, unless the unit is, or has in it, the item that must not be touched."""
    if poison in unit if isinstance(unit, list) else unit == poison:
        raise how
    return call(unit)


def is_open(node: StepNode) -> bool:
    """Whether a worker may be at several leases at once."""
    return node.hands > 1 and not node.in_lists


class Counted(Output):
    """An output that counts what passes."""

    __slots__ = ("passed",)

    def __init__(self, output: Output) -> None:
        super().__init__(output.node, output.port)
        self.passed = 0

    def push(self, pieces: Any, items: int, runs: Any) -> None:
        """Hand on a chunk."""
        self.passed += items
        if items or runs:
            self.node.push(self.port, pieces, items, runs)

    def hand(self, hand_out: Any, *arguments: Any) -> None:
        """Hand on one item."""
        self.passed += 1
        super().hand(hand_out, *arguments)


class SimulatedShell(FakeShell):
    """A plan with its workers, over many runs."""

    def __init__(
        self,
        plan: Plan,
        random: Callable[[], float],
        manner: Callable[[Callable[[int], int]], Callable[[int], int]],
        heaviest: int = 8,
        chances: Chances = CHANCES,
        poison: tuple[int, Any, type[Exception]] | None = None,
    ) -> None:
        """`poison`: the index of a step, an item that ends its worker there, and how."""
        self.random = random
        self.manner = manner
        self.chances = chances
        self.poison = poison
        # What workers have said that has not arrived; the same of those that left; and what lost ones said last.
        self.wires: dict[int, deque[Message]] = {}
        self.left: list[Message] = []
        self.stale: list[events.Event] = []
        self.last_words: dict[int, events.Event] = {}
        self.units_sent: Counter[tuple[int, int]] = Counter()
        self.pulls: deque[int] = deque()
        self.stalled: dict[int, int] = {}
        # At how many deaths an item was the one for certain, by the step and its number there.
        self.deaths: Counter[tuple[int, int]] = Counter()
        self.expected_failure: tuple[str | None, int, int | None] | None = None
        # Which items have been judged, and given up, by the step and their number there.
        self.judged: set[tuple[int, int]] = set()
        self.given_up: set[tuple[int, int]] = set()
        self.count = self.rejected = self.runs = 0
        self.quiet = False
        self.inexact = inexact(plan)
        self.pages: dict[int, Page] = {}
        super().__init__(plan, (), lambda number: int(random() * number), heaviest)
        self.pick = manner(self.choose)
        self.kills = chances.kills

    # Runs

    def begin(self, items: Iterable[Any], expected: list[Any], ordered: bool | None) -> None:
        """Begin a run; `ordered`: in this order, or in any; None: what comes out is not known beforehand."""
        self.items = iter(items)
        self.expected = expected
        self.ordered = ordered
        self.missing = Counter(map(repr, expected)) if ordered is False else Counter()
        self.results = []
        self.compared = self.unconsumed = self.asked = self.pulled = 0
        self.finished = self.exhausted = self.cancelled = self.quiet = False
        self.credit = first_pull(self.plan)
        self.pulls.clear()
        self.finishing.clear()
        self.deaths.clear()
        self.judged.clear()
        self.given_up.clear()
        self.units_sent.clear()
        self.pages = {
            node.index: Page(getattr(node, "name", "the results"), node.index not in self.inexact)
            for node in self.plan.nodes
            if isinstance(node, StepNode) or node is self.plan.nodes[-1]
        }
        for worker in self.workers.values():
            worker.cancelled = False
            if not worker.node.restartable or self.poison is not None:
                self.equip(worker)
        self.runs += 1
        self.lazy = self.runs % 2 == 0
        if self.runs > 1:
            self.handle(events.RunStarted())
        else:
            self.count_edges()

    def equip(self, worker: FakeWorker) -> None:
        """Give a worker its job as it is at the beginning."""
        fresh = FakeWorker(worker.number, worker.node, worker.grouped)
        worker.job, worker.call = fresh.job, fresh.call
        if self.poison is not None and self.poison[0] == worker.node.index:
            worker.call = partial(poisoned, work_of(worker.job), *self.poison[1:])

    def add_worker(self, number: int, step: StepNode) -> None:
        super().add_worker(number, step)
        self.wires[number] = deque()
        if self.poison is not None:
            self.equip(self.workers[number])

    def count_edges(self) -> None:
        """Have all that passes from node to node counted."""
        self.arriving: dict[int, list[Counted]] = {node.index: [] for node in self.machine.nodes}
        for node in self.machine.nodes:
            if isinstance(node, Fork):
                node.outputs = [self._counted(output) for output in node.outputs]
            elif isinstance(node, Step):
                node.credit.output = self._counted(node.credit.output)
            elif isinstance(node, Join | ForkExit):
                node.output = self._counted(node.output)

    def _counted(self, output: Output) -> Counted:
        counted = Counted(output)
        self.arriving[output.node.index].append(counted)
        return counted

    # What could happen

    def step(self) -> None:
        """Let one thing happen."""
        if not self.quiet and self.random() < self.chances.fault and self.fault():
            return
        if self.random() < 0.1 and self.machine.timer is not None:
            self.tick()
            return
        possible = self.possible()
        if not possible and self.stalled:
            self.stalled.clear()
            possible = self.possible()
        assert possible, "nothing can happen any more, and the run is not over"
        action, *arguments = possible[self.pick(len(possible))]
        action(*arguments)

    def possible(self) -> list[tuple[Any, ...]]:
        """What could happen next, and in the end must: functions and what they are called with."""
        possible: list[tuple[Any, ...]] = []
        if self.credit and not self.exhausted and not self.cancelled:
            possible.append((self.feed,))
        if self.tells:
            possible.append((self.consume,))
        if self.pulls:
            possible.append((self.arrive,))
        stalled = self.stalled
        for number, worker in self.workers.items():
            if self.wires[number]:
                possible.append((self.deliver, number))
            if stalled and stalled.get(number, 0) > self.count:
                continue
            if worker.leases if worker.lease is None else not worker.waiting:
                possible.append((self.work, worker))
            if worker.revoke:
                possible.append((self.answer, worker))
        if self.starting:
            possible += [(self.start, number) for number in self.starting]
        if self.left:
            possible.append((self.deliver_of_the_left,))
        if self.holds_back:
            possible.append((self.tick,))
        return possible

    def fault(self) -> bool:
        """Let something go wrong; return whether it did."""
        kind = self.choose(6)
        if kind == 0 and self.workers:
            self.stalled[self.any_worker()] = self.count + 1 + self.choose(100)
        elif kind == 1 and self.kills > 0 and self.workers:
            return self.kill_any()
        elif kind == 2 and self.starting and self.kills > 0:
            number = next(iter(self.starting))
            if self.choose(8) == 0 and not self.machine.step_of(number).step_roster.is_hopeless(False, self.now + 1):
                del self.starting[number]
                self.kills -= 1
                self.handle(events.WorkerLost(number, "killed", None, ready=False))
                return True
        elif kind == 3 and self.stale:
            self.come_late(self.stale.pop(self.choose(len(self.stale))))
        elif kind == 4 and self.credit and not self.exhausted and not self.cancelled and self.choose(8) == 0:
            given_back, self.credit = self.credit, 0
            self.handle(events.CreditReturned(given_back))
            return True
        return False

    def between(self) -> None:
        """Let something happen between two runs."""
        kind = self.choose(3)
        if kind == 0 and self.kills > 0 and self.workers:
            self.kill_any()
        elif kind == 1 and self.starting:
            self.start(next(iter(self.starting)))
        elif self.stale:
            self.come_late(self.stale.pop())

    def any_worker(self) -> int:
        """The number of some worker."""
        return list(self.workers)[self.choose(len(self.workers))]

    def arrive(self) -> None:
        """The source hears that it may give more."""
        self.credit += self.pulls.popleft()

    # What workers say

    def work(self, worker: FakeWorker) -> None:
        try:
            reply = worker.reply(1 + self.choose(8), 1 + self.choose(4))
        except Dies:
            self.kill(worker.number)
            return
        except Raises:
            self.raise_at(worker)
            return
        self.units_sent[worker.number, reply.lease] += reply.calls
        size = self.weight(sum(items for _, items in reply.blobs))
        reply = reply._replace(size=size, seconds=self.chances.pace)
        self.say(worker.number, reply, [])

    def answer(self, worker: FakeWorker) -> None:
        known = list(self.unacknowledged[worker.number])
        event = worker.answer(self.choose(2))
        if self.choose(2):
            # Read in the memory that is shared with the worker, past what is on its way.
            self.answered(worker, event, known)
        else:
            self.say(worker.number, event, known)

    def say(self, number: int, event: events.Event, known: list[int]) -> None:
        """A worker sends a message: it arrives at once, or some time later."""
        wire = self.wires[number]
        wire.append((event, known))
        if len(wire) == 1 and self.random() >= self.chances.delay:
            self.deliver(number)

    def deliver(self, number: int) -> None:
        """The next message of a worker arrives."""
        event, known = self.wires[number].popleft()
        self.last_words[number] = event
        if isinstance(event, events.RevokeResult):
            self.answered(self.workers[number], event, known)
        else:
            self.handle(event)

    def deliver_of_the_left(self) -> None:
        """What a worker said before it left in peace arrives; it can change nothing."""
        event, _ = self.left.pop()
        assert isinstance(event, events.RevokeResult), "a worker left with something to say"
        assert self.machine.handle(event, self.now) == []

    def forgo(self, worker: FakeWorker, event: events.RevokeResult, known: list[int]) -> None:
        page, number = self.pages[worker.node.index], worker.number
        before = dict(self.unacknowledged[number])
        super().forgo(worker, event, known)
        for lease, items in self.unacknowledged[number].items():
            if items < before[lease]:
                page.release(number, lease, before[lease] - items)

    # The fence

    def fenced(self, number: int) -> bool:
        """Whether nothing that a worker says is let through any more: it was declared lost."""
        return number not in self.workers

    def come_late(self, event: Any) -> None:
        """What a lost worker said last comes once more."""
        if self.fenced(event.worker):
            self.rejected += 1
            return
        entered = [step.intake.entered for step in self.machine.steps]
        answer = self.machine.handle(event, self.now)
        assert not answer and entered == [step.intake.entered for step in self.machine.steps], (
            "a lost worker was listened to"
        )

    # Deaths

    def kill_any(self) -> bool:
        """Some worker dies, unless that could not be made up for; return whether one did."""
        number = self.any_worker()
        node = self.workers[number].node
        fatal = not node.restartable or (not self.finished and self.is_at_finish(number))
        if fatal and (self.finished or self.random() >= self.chances.fatal):
            return False
        # What is given up for such a death, the inline engine knows nothing of.
        harmless = node.gives_up or self.random() >= self.chances.fatal
        if not self.finished and self.lone_suspect(number) is not None and harmless:
            culprit = self.lone_suspect(number)
            if self.deaths[node.index, culprit or 0] + 1 >= blame.ITEM_ATTEMPTS:
                return False
        self.kills -= 1
        self.kill(number)
        return True

    def is_at_finish(self, number: int) -> bool:
        """Whether a worker has been told to finish, and has not by its own word."""
        leases = self.pages[self.workers[number].node.index].leases.get(number, {})
        return any(handed.finish for handed in leases.values())

    def lone_suspect(self, number: int) -> int | None:
        """The number of the item that a worker would have died at, were it to die now and leave a note."""
        worker = self.workers[number]
        page = self.pages[worker.node.index]
        suspects = page.suspects(number, worker.node.batch or 1, worker.started, is_open(worker.node))
        return None if suspects is None or not suspects[1] else self.number(page, number, suspects[0])

    def number(self, page: Page, worker: int, lease: int) -> int:
        """The number of the first item of a lease that was not acknowledged; where items are only counted, by the core's word."""
        if page.exact:
            return page.number(worker, lease)
        known = self.machine.step_of(worker).book.workers
        return next(each.first for one in known if one.number == worker for each in one.leases if each.number == lease)

    def kill(self, number: int) -> None:
        """A worker dies.  What it has sent arrives first, then the word of its death; the rest is lost."""
        worker = self.workers[number]
        if self.choose(3):
            self.drain(number)
        else:
            # It was at half a message: nothing of that one, or behind it, is there.
            self.wires[number].clear()
        if self.failure or number not in self.workers:
            return
        started = worker.started if self.choose(4) else None
        killed = self.choose(2) == 0
        node = worker.node
        attempts = blame.ITEM_ATTEMPTS + killed
        culprit: int | None = None
        page = self.pages[node.index]
        if not self.finished and not self.cancelled and node.restartable:
            suspects = page.suspects(number, node.batch or 1, started, is_open(node))
            if self.is_at_finish(number):
                self.expected_failure = ("finish", node.index, None)
            if suspects is not None and suspects[1] == 1:
                culprit = self.number(page, number, suspects[0])
                self.deaths[node.index, culprit] += 1
                if self.deaths[node.index, culprit] >= attempts and not node.gives_up:
                    self.expected_failure = ("item", node.index, culprit)
        elif not node.restartable:
            # To declare it restartable would not help one that has nothing but that to do.
            leases = page.leases.get(number, {}).values()
            at_finish = leases and all(handed.finish for handed in leases)
            self.expected_failure = ("finish" if at_finish else "state", node.index, None)
        page.lose(number)
        idle = not self.unacknowledged.pop(number)
        del self.workers[number]
        for event in (self.last_words.pop(number, None), *[message for message, _ in self.wires.pop(number)]):
            if event is not None and len(self.stale) < 8:
                self.stale.append(event)
        # One that has nothing to do was ended from outside.
        self.handle(events.WorkerLost(number, "killed", started, True, killed or idle))
        if culprit is not None and not self.failure and not node.gives_up:
            assert self.deaths[node.index, culprit] < attempts, "an item has more attempts than it may have"

    def drain(self, number: int) -> None:
        """Let all arrive that a worker has sent."""
        while number in self.workers and self.wires[number] and not self.failure:
            self.deliver(number)

    def raise_at(self, worker: FakeWorker) -> None:
        """A job raises; what the worker has sent arrives before the word of that."""
        self.drain(worker.number)
        if self.failure or worker.number not in self.workers or self.cancelled:
            self.poison = None
            if worker.number in self.workers:
                self.kill(worker.number)
            return
        lease, _ = worker.started
        calls = worker.at - self.units_sent[worker.number, lease]
        page = self.pages[worker.node.index]
        first = self.number(page, worker.number, lease) + calls * (worker.node.batch or 1)
        self.expected_failure = (None, worker.node.index, first)
        self.handle(events.Raised(worker.number, lease, calls, "raised"))

    # The books

    def _take_note(self, event: events.Event) -> None:
        if isinstance(event, events.Replied):
            number, lease = event.worker, event.lease
            page = self.pages[self.workers[number].node.index]
            unit = self.workers[number].node.batch or 1
            handed = page.leases[number][lease]
            calls = event.calls * unit
            assert calls < handed.items + unit, "a worker did what had been taken back from it"
            page.acknowledge(number, lease, min(calls, handed.items))
            page.outputs += sum(items for _, items in event.blobs)
            if event.final:
                page.close(number, lease)
        super()._take_note(event)

    def see(self, command: commands.Command) -> None:
        match command:
            case commands.SendLease(number, lease, pieces, items, _, finish, _, give_up):
                worker = self.workers[number]
                if give_up is not None:
                    self.check_verdict(worker.node, give_up)
                assert not self.finished, "a lease after the end"
                assert finish or number not in self.finishing, "items for a worker that was told to finish"
                if worker.revoke:
                    # A question of the run before, which it reads before what comes behind it.
                    self.wires[number].append((worker.answer(self.choose(2)), list(self.unacknowledged[number])))
                self.pages[worker.node.index].hand_out(number, lease, pieces, items, finish)
            case commands.Emit(pieces, items, _):
                assert not self.finished, "results after the end"
                self.pages[len(self.plan.nodes) - 1].pass_on(pieces, items)
            case commands.Pull(credit):
                if self.random() < self.chances.delay:
                    self.credit -= credit
                    self.pulls.append(credit)
            case commands.EndWorker(number):
                assert number in self.workers, "a worker is sent away twice"
                self.left += self.wires.pop(number)
            case commands.GaveUp(index, first):
                assert (index, first) not in self.given_up, "an item was given up twice"
                assert (index, first) in self.judged, "an item was given up that nobody had judged"
                self.given_up.add((index, first))
            case commands.Fail(index, _, first, _, _, loss):
                found = (loss, index, first)
                expected = self.expected_failure
                if expected is not None and expected[2] is None:
                    found = (loss, index, None)
                assert found == expected, f"given up was {found}, and to blame is {expected}"

    def check_verdict(self, node: StepNode, give_up: commands.GiveUp) -> None:
        """Raise AssertionError where an item is given up that was not the one for certain often enough."""
        assert node.gives_up and give_up.kind == "died", "a verdict that nobody asked for"
        culprit = (node.index, give_up.first)
        assert self.deaths[culprit] >= blame.ITEM_ATTEMPTS, f"given up is {culprit}, which is not to blame"
        self.judged.add(culprit)

    # The checks

    def verify(self, event: events.Event) -> None:
        self.count += 1
        if type(event) is events.RunStarted:
            self.count_edges()
        if self.failure:
            return
        assert self.expected_failure is None, "what cannot be made up for was passed over"
        self.check_results()
        machine = self.machine
        if machine.over:
            assert self.finished, "over without a word"
        elif self.count % self.chances.every == 0:
            machine.check()
            self._compare()
            assert self.cancelled or 0 <= machine.items_through() <= machine.source.given, "more is through than came"
            for node in machine.nodes:
                self.check_flow(node)
        elif self.count % 2:
            node = machine.nodes[self.count // 2 % len(machine.nodes)]
            node.check()
            self.check_flow(node)
        if self.finished:
            self.check_end()

    def check_results(self) -> None:
        """What has come out since the last look is what comes next in the inline engine."""
        results, compared = self.results, self.compared
        if compared == len(results):
            return
        if self.ordered:
            assert self.expected[compared : len(results)] == results[compared:], (
                f"the results differ after {compared}: {results[compared:]}"
            )
        elif self.ordered is not None:
            for result in map(repr, results[compared:]):
                self.missing[result] -= 1
                assert self.missing[result] >= 0, f"one too many of {result}"
        self.compared = len(results)

    def check_flow(self, node: Node) -> None:
        """What came to a node is there still, or has gone on, or was used up; and it holds no more than it may."""
        if self.cancelled:
            return
        arriving = self.arriving[node.index]
        arrived = sum(output.passed for output in arriving) if arriving else self.pulled
        if isinstance(node, Step):
            page = self.pages[node.index]
            taken = arrived - node.intake.queue.items - node.recovery.items
            assert taken == page.owned + page.done, f"an item of {page.name} is in no place, or in two"
            output = node.credit.output
            assert isinstance(output, Counted)
            held = sum(
                items
                for lease in node.order.entries
                for event in lease.held
                if event is not None
                for _, items in event.blobs
            )
            assert output.passed + held == page.outputs, f"an output of {page.name} got lost, or came twice"
            limit = capacity(output) + node.book.most_in_hand
            assert held <= node.credit.promised <= limit, f"more is promised to {page.name} than there can be room for"
        elif isinstance(node, Replicate):
            for output in node.outputs:
                assert isinstance(output, Counted)
                assert output.passed == arrived - node.queue.items, "a branch did not get what the others got"
        elif isinstance(node, Fork):
            passed = sum(output.passed for output in node.outputs if isinstance(output, Counted))
            assert passed == arrived - node.queue.items, "a fork lost an item"
        elif isinstance(node, Zip):
            assert isinstance(node.output, Counted)
            used = [each.passed - node.lanes[each.port].items for each in arriving]
            assert max(used) <= node.output.passed <= sum(used), "a zip lost a row"
        elif isinstance(node, Join):
            assert isinstance(node.output, Counted)
            waiting = sum(lane.items for lane in node.lanes)
            assert node.output.passed == arrived - waiting, "a join lost an item"
        elif isinstance(node, ForkExit):
            assert isinstance(node.output, Counted) and node.output.passed == arrived, "the end of a fork lost an item"
        elif isinstance(node, Sink):
            assert arrived == len(self.results) == self.pages[node.index].done, "a result got lost"

    def check_end(self) -> None:
        """Nothing is out when a run is over, and where it was not cancelled, all of it has been."""
        assert not any(self.unacknowledged.values()), "the run is over, and a worker has something"
        assert not any(step.outstanding for step in self.machine.steps)
        if self.cancelled:
            return
        for node in self.machine.nodes:
            self.check_flow(node)
        for page in self.pages.values():
            page.settle()
        assert self.machine.items_through() == self.machine.source.given, "all is through, and is not counted so"
        for step in self.machine.steps:
            assert step.intake.entered == self.pages[step.index].done, "an item was not acknowledged"
        assert self.exhausted, "the end before that of the source"
        assert self.ordered is None or len(self.results) == len(self.expected), "results are missing"

    def check_over(self) -> None:
        """No event changes anything when a run is over."""
        late: list[events.Event] = [events.Consumed(0), events.SourceEnded(), events.Cancelled(), events.Ticked(0.0)]
        for event in late:
            assert self.machine.handle(event, self.now) == [], "something happened after the end"


def capacity(output: Output) -> int:
    """How many items there is room for at most, whatever they weigh."""
    node = output.node
    if isinstance(node, ForkExit):
        return capacity(node.output)
    if isinstance(node, Join):
        return max(node.lanes[output.port].bound, node.min_batch)
    assert isinstance(node, Step | Fork | Sink)
    return max(node.bound, node.min_batch)
