"""The rosters: who works at which step, from run to run, and what that work has cost.

Law: outlives a run, and holds no item.  A number belongs to one worker for ever.  `core/tuning/autoscaling.py` decides
how many workers a step has.  A stretch of time counts as what was seen at its beginning, so whoever is about to change
that counts first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import log2

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import TYPE_CHECKING
from conveyor.core import SLOWEST_CALLS
from conveyor.core.commands import Loss
from conveyor.core.leasing.blame import CrashCounter
from conveyor.core.tuning.autoscaling import PolicyState, Resize, StepLoad
from conveyor.graph.plan import Plan, StepNode
from conveyor.stats import Decision, Measures, SlowCall, StepSample, StepStats, WorkerStats

if TYPE_CHECKING:
    from conveyor.core.events import WorkerLost
    from conveyor.core.nodes.step import Step

Policy = Callable[[PolicyState, Sequence[StepLoad], float, float, float], tuple[PolicyState, list[Resize]]]

# What a start is taken to cost until a worker has been started.
ASSUMED_START_SECONDS = 0.05
# A step fails once so many workers in a row die before they are ready, or two, where that takes so
# long.  Where they may have been killed from outside, it takes both.
FAILED_STARTS = 5
FAILED_START_SECONDS = 2.0
# Those lost with all else on their machines count apart: a cluster that is scaled down takes many along at once.  But a
# job may end machines in its `setup`.
LOST_HOSTS_SECONDS = 60.0
# What such starts have in common, in the place of an item.
_LOST_HOSTS = -1
# A step fails, too, once as many die with nothing in hand while no call is done, each within so many seconds of the one
# before.  Where they may have been killed from outside, that has to go on for as long.
IDLE_DEATH_SECONDS = 10.0
# The weight of a new start in the running mean.
START_WEIGHT = 0.3
# How long to wait, after a worker could not be started, before one more is tried.
RETRY_SECONDS = 5.0
# The history holds the newest decisions, as a pipeline that runs for months must not grow.
REMEMBERED_DECISIONS = 1000


class Durations:
    """A histogram of durations, in buckets that grow geometrically.

    >>> durations = Durations()
    >>> durations.add(0.001, times=99)
    >>> durations.add(0.5)
    >>> f"{durations.share(0.5):.3g} {durations.share(0.995):.2g}"
    '0.00106 0.5'
    """

    __slots__ = ("_buckets", "_count", "_longest")

    _LEAST_SECONDS = 1e-7
    _BUCKETS_PER_DOUBLING = 4

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0
        self._longest = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count `times` durations."""
        least = self._LEAST_SECONDS
        bucket = int(log2(seconds / least) * self._BUCKETS_PER_DOUBLING) if seconds > least else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + times
        self._count += times
        self._longest = max(self._longest, seconds)

    def share(self, share: float) -> float | None:
        """Return the duration that this share of all durations does not exceed; None without any."""
        wanted = share * self._count
        for bucket, count in sorted(self._buckets.items()):
            wanted -= count
            if wanted <= 0:
                middle = self._LEAST_SECONDS * float(2.0 ** ((bucket + 0.5) / self._BUCKETS_PER_DOUBLING))
                return min(self._longest, middle)
        return None


class StepTotals:
    """What a step has done in all runs, and the worker seconds of that."""

    def __init__(self) -> None:
        self.items_in = 0
        self.items_out = 0
        self.failed = 0
        self.retried = 0
        self.calls = 0
        # The wall time of calls; of that, on a core and waiting for something that is no core.
        self.seconds = 0.0
        self.cpu = 0.0
        self.waited = 0.0
        # What of it was spent in the job itself.
        self.job = 0.0
        # The time of workers, by what they spent it with.
        self.busy = 0.0
        self.blocked = 0.0
        self.present = 0.0
        self.stalled = 0.0
        self.durations = Durations()

    def add(self, measures: Measures) -> None:
        """Add what a worker has measured."""
        self.cpu += measures.cpu
        self.waited += measures.waited
        self.job += measures.job
        self.retried += measures.retried


class StepRoster:
    """The workers of one step."""

    def __init__(self, node: StepNode, numbers: Iterable[int]) -> None:
        self.node = node
        # The workers that are up, and those being started.
        self.numbers = list(numbers)
        self.starting: set[int] = set()
        # The place of each among the workers of the step, by its number: the lowest that was free.
        self._index_of = {number: index for index, number in enumerate(self.numbers)}
        self.peak = len(self.numbers)
        # Numbers of leases go on from run to run, so that no progress slot of an earlier run is taken for a new one.
        self.next_lease = 0
        self.start_seconds = ASSUMED_START_SECONDS
        self._starts = 0
        # When one more may be started again, after one could not be.
        self._retry_at = 0.0
        self._crashes = CrashCounter()
        self.totals = StepTotals()
        # The slowest calls, the slowest first; and since when each worker is up, by the clock of runs, with the seconds
        # that it has worked.
        self.slowest: list[SlowCall] = []
        self._times: dict[int, list[float]] = {}
        # How many workers were killed because a call took too long, and how many died unasked.
        self.timed_out = self.workers_lost = 0

    def start(self, number: int) -> None:
        """Take in that one more worker is being started."""
        self.starting.add(number)
        taken = set(self._index_of.values())
        self._index_of[number] = next(index for index in range(len(taken) + 1) if index not in taken)

    def index_of(self, number: int) -> int:
        """Return the place of a worker among those of the step, from 0 on."""
        return self._index_of[number]

    def give_index_back(self, number: int) -> None:
        """Let the next worker that is started have the place of this one."""
        self._index_of.pop(number, None)

    def ready(self, number: int, seconds: float, clock: float = 0.0) -> bool:
        """Take in that a worker is up, at `clock` by the clock of runs; return whether it is one more."""
        self._starts += 1
        self._times[number] = [clock, 0.0]
        self._crashes.clear(Loss.SETUP)
        self._crashes.clear(Loss.SETUP, _LOST_HOSTS)
        # The first set starts side by side, so the first worker to be up tells most.
        weight = 1.0 if self._starts == 1 else START_WEIGHT
        self.start_seconds += (seconds - self.start_seconds) * weight
        if number not in self.starting:
            return False
        self.starting.discard(number)
        self.numbers.append(number)
        self.peak = max(self.peak, len(self.numbers))
        return True

    def not_started(self, number: int, now: float) -> None:
        """Take in that a worker could not be started."""
        self.starting.discard(number)
        self.give_index_back(number)
        self._retry_at = now + RETRY_SECONDS

    def most(self, present: int, now: float) -> int | None:
        """Return how many workers there may be at `now`, beside those that are `present`; None: as many as help."""
        return self.node.most if now >= self._retry_at else max(1, present)

    @property
    def failed_starts(self) -> int:
        """How many workers in a row died before they were ready."""
        return self._crashes.count(Loss.SETUP)

    def is_hopeless(self, killed: bool, now: float, host_lost: bool = False) -> bool:
        """Whether one more worker that dies before it is ready is one too many."""
        if host_lost:
            since = self._crashes.since(Loss.SETUP, now, _LOST_HOSTS)
            failed = self._crashes.count(Loss.SETUP, _LOST_HOSTS) + 1
            return failed >= FAILED_STARTS and now - since >= LOST_HOSTS_SECONDS
        failed = self.failed_starts + 1
        often = failed >= FAILED_STARTS
        long = failed >= 2 and now - self._crashes.since(Loss.SETUP, now) >= FAILED_START_SECONDS
        return (often and long) if killed else (often or long)

    def died_idle(self, event: WorkerLost, now: float) -> bool:
        """Count a worker that died with nothing in hand; return whether that is one too many."""
        if event.host_lost:
            # What did nothing has not ended a machine.
            return False
        deaths, seconds = self._crashes.add(Loss.WAIT, 0, now, IDLE_DEATH_SECONDS)
        return deaths >= FAILED_STARTS and (not event.killed or seconds >= IDLE_DEATH_SECONDS)

    def lost(self, number: int, ready: bool, now: float, host_lost: bool = False) -> None:
        """Take in that a worker is dead."""
        if not ready:
            self._crashes.add(Loss.SETUP, _LOST_HOSTS if host_lost else 0, now)
        self.starting.discard(number)
        self.give_index_back(number)
        if number in self.numbers:
            self.left(number)

    def left(self, number: int) -> None:
        """Take in that a worker is not up any more."""
        self.numbers.remove(number)
        self.give_index_back(number)
        self._times.pop(number, None)

    def add_busy(self, number: int, seconds: float) -> None:
        """Count for how long a worker had something in hand."""
        times = self._times.get(number)
        if times is not None:
            times[1] += seconds

    def share_busy(self, number: int, clock: float, more: float) -> float:
        """Return in which share of its time a worker had work, `more` seconds included that are not counted yet."""
        since, seconds = self._times.get(number) or (clock, 0.0)
        return min(1.0, (seconds + more) / (clock - since)) if clock > since else 0.0

    def is_slow(self, seconds: float) -> bool:
        """Whether a call is one of the slowest so far."""
        return len(self.slowest) < SLOWEST_CALLS or seconds > self.slowest[-1].seconds

    def note_slow(self, number: int, seconds: float, item: str | None) -> None:
        """Take in a slow call by the number of its item, and keep it where it is one of the slowest."""
        self.slowest.append(SlowCall(number, seconds, item))
        self.slowest.sort(key=lambda each: -each.seconds)
        del self.slowest[SLOWEST_CALLS:]

    def calls_done(self, calls: int, seconds: float) -> None:
        """Count calls that took so many seconds of wall time together."""
        if self._crashes.counts:
            self._crashes.clear(Loss.WAIT)
        totals = self.totals
        totals.calls += calls
        totals.seconds += seconds
        totals.durations.add(seconds / calls, calls)

    def stats(
        self,
        waiting: int,
        bound: int,
        spent: tuple[float, float, float, float],
        *,
        bytes_waiting: int = 0,
        unreported: float = 0.0,
    ) -> StepStats:
        """Return what the user is told; `waiting` of at most `bound` items are in the pipe in front.

        `spent`: the worker seconds busy, blocked, present and stalled that are not in the totals yet.  `unreported`:
        for how many worker seconds workers have been at something that they have not reported.
        """
        totals, calls, seconds = self.totals, self.totals.calls, self.totals.seconds
        busy, present = totals.busy + spent[0], totals.present + spent[2]
        return StepStats(
            processor=self.node.name,
            workers=len(self.numbers),
            starting=len(self.starting),
            most_workers=self.peak,
            items_in=totals.items_in,
            items_out=totals.items_out,
            failed=totals.failed,
            waiting=waiting,
            bound=bound,
            units=calls,
            mean=seconds / calls if calls else None,
            p50=totals.durations.share(0.5),
            p99=totals.durations.share(0.99),
            busy=busy / present if present else 0.0,
            cpu=min(1.0, totals.cpu / seconds) if seconds else 0.0,
            blocked=(totals.blocked + spent[1]) / present if present else 0.0,
            stalled=totals.stalled + spent[3],
            retried=totals.retried,
            timed_out=self.timed_out,
            workers_lost=self.workers_lost,
            bytes_waiting=bytes_waiting,
            busy_seconds=busy,
            # What is not reported yet may all be spent in the job.
            handing_on=max(0.0, 1.0 - (totals.job + unreported) / busy) if busy else 0.0,
            slowest=tuple(self.slowest),
        )


class Roster:
    """The workers of all steps, and how their numbers follow the load."""

    def __init__(self, plan: Plan, policy: Policy, now: float) -> None:
        self.plan = plan
        self._policy = policy
        self.opened_at = now
        # How much of the time since then was between two runs.
        self.idle_seconds = 0.0
        self.next_worker = 0
        self.step_rosters: dict[int, StepRoster] = {}
        for node in plan.steps:
            self.step_rosters[node.index] = StepRoster(node, [self.new_number() for _ in range(node.workers)])
        # Whether the number of workers follows the load somewhere.
        self.autoscales = any(node.auto for node in plan.steps)
        self.policy_state = PolicyState()
        self.decisions: list[Decision] = []

    def new_number(self) -> int:
        """Return a number that no worker has had."""
        self.next_worker += 1
        return self.next_worker - 1

    def decide(self, loads: Sequence[StepLoad], other_cpu_seconds: float, now: float) -> list[Resize]:
        """Return which steps are to have more workers or fewer, and add that to the history."""
        cores = self.plan.cores
        self.policy_state, resizes = self._policy(self.policy_state, loads, cores, other_cpu_seconds, now)
        at = now - self.opened_at
        for each in resizes:
            self.decisions.append(Decision(at, loads[each.step].name, each.before, each.after, each.reason))
        del self.decisions[:-REMEMBERED_DECISIONS]
        return resizes


class Utilization:
    """Adds up the worker seconds of a step, and keeps how many workers do what now."""

    __slots__ = ("_since", "_totals", "blocked", "busy", "stalled")

    def __init__(self, totals: StepTotals, now: float) -> None:
        self._totals = totals
        self._since = now
        # How many workers are at work, and how many have no room for their outputs.
        self.busy = 0
        self.blocked = 0
        # Whether items wait because all workers are at work.
        self.stalled = False

    def count(self, now: float, present: int) -> None:
        """Add the time until now, with so many workers present."""
        passed, self._since = now - self._since, now
        if passed > 0:
            totals = self._totals
            totals.busy += passed * self.busy
            totals.blocked += passed * self.blocked
            totals.present += passed * present
            totals.stalled += passed * self.stalled

    def spent(self, now: float, present: int) -> tuple[float, float, float, float]:
        """Return the seconds busy, blocked, present and stalled that `count` would add; adds nothing."""
        passed = max(0.0, now - self._since)
        return passed * self.busy, passed * self.blocked, passed * present, passed * self.stalled

    def stop(self) -> None:
        """From now on, nothing goes on."""
        self.busy = self.blocked = 0
        self.stalled = False


# What is told of a step: whoever asks changes nothing, and has no part in what the core decides.

Look = Callable[[int], tuple[int | None, tuple[int, int], float | None]]
"""Says of a worker, by its number: its process id, how far it has started what it was handed, as a lease and a number
of calls, and for how many seconds it has been at the last of these, where that is known."""


def stats_of(step: Step, now: float, clock: float, look: Look | None) -> StepStats:
    """Return what the user is told at `now`, which is `clock` by the clock of runs."""
    workers, waiting = step.book.workers, step.waiting
    told = step.step_roster.stats(
        waiting,
        step.bound,
        step.utilization.spent(now, len(workers)),
        bytes_waiting=int(waiting * step.item_weight.bytes),
        unreported=sum(worker.unreported(now) for worker in workers),
    )
    return replace(told, worker_stats=_workers_of(step, now, clock, look))


def _workers_of(step: Step, now: float, clock: float, look: Look | None) -> tuple[WorkerStats, ...]:
    roster, told = step.step_roster, []
    workers = {worker.number: worker for worker in step.book.workers}
    for number in [*roster.numbers, *sorted(roster.starting)]:
        worker, item, first, last = workers.get(number), None, None, None
        pid, (at_lease, calls), seconds = (None, (0, 0), None) if look is None else look(number)
        leases = [] if worker is None else [lease for lease in worker.leases if lease.items]
        if leases:
            first, last = leases[0].first, leases[-1].first + leases[-1].items - 1
        for lease in leases:
            if seconds is not None and calls and lease.number == at_lease:
                item = lease.call_range(calls - 1, step.batch_size)[0]
        busy = roster.share_busy(number, clock, now - worker.began if worker is not None and worker.leases else 0.0)
        told.append(WorkerStats(number, pid, busy, None, first, last, item, None if item is None else seconds))
    return tuple(told)


def sample_of(step: Step, now: float) -> StepSample:
    """Return what the step is like at `now`."""
    roster, totals = step.step_roster, step.step_roster.totals
    busy = totals.busy + step.utilization.spent(now, len(step.book.workers))[0]
    items = totals.items_in, totals.items_out, totals.failed
    return StepSample(len(roster.numbers), step.waiting, *items, busy)
