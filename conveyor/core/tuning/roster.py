"""The staff: who works at which step, from run to run, and what that work has cost.

Law: outlives a run, and holds no item.  A number belongs to one worker for ever.  Nothing here decides how many workers
a step has: `core/tuning/autoscaling.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log2

from conveyor.core.tuning.autoscaling import PolicyState
from conveyor.graph.plan import Plan, StepNode
from conveyor.stats import Decision, StepStats

# What starting a worker is taken to cost until one has been started.
ASSUMED_START_SECONDS = 0.05
# So many workers in a row that die before they are ready are not replaced; nor are two where that has taken so long.
# Where they may have been ended from outside, it takes both.
FAILED_STARTS = 5
FAILED_START_SECONDS = 2.0
# Nor is one that dies with nothing in hand, where that many in a row have done so and nothing was done in between: with
# no more than so many seconds from one to the next, and, where they may have been ended from outside, for so long.
IDLE_DEATH_SECONDS = 10.0
# The weight of a new start in the running mean.
WEIGHT = 0.3
# The history holds the newest decisions; a pipeline that runs for months must not grow.
REMEMBERED_DECISIONS = 1000


class Durations:
    """A histogram of durations, from 100 ns on in buckets that are 19 % wide.

    >>> durations = Durations()
    >>> durations.add(0.001, times=99)
    >>> durations.add(0.5)
    >>> f"{durations.share(0.5):.3g} {durations.share(0.995):.2g}"
    '0.00106 0.5'
    """

    __slots__ = ("_buckets", "_count", "_longest")

    _LEAST = 1e-7
    _PER_DOUBLING = 4

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0
        self._longest = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Take in `times` durations."""
        bucket = int(log2(seconds / self._LEAST) * self._PER_DOUBLING) if seconds > self._LEAST else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + times
        self._count += times
        self._longest = max(self._longest, seconds)

    def share(self, share: float) -> float | None:
        """Return the duration that this share of all durations does not exceed; None without any."""
        wanted = share * self._count
        for bucket, count in sorted(self._buckets.items()):
            wanted -= count
            if wanted <= 0:
                return min(self._longest, self._LEAST * float(2.0 ** ((bucket + 0.5) / self._PER_DOUBLING)))
        return None


class StepRoster:
    """The workers of one step."""

    def __init__(self, node: StepNode, numbers: Iterable[int]) -> None:
        self.node = node
        # Those that are up, and those being started.
        self.numbers = list(numbers)
        self.starting: set[int] = set()
        self.peak = len(self.numbers)
        # The numbers of leases go on from run to run: a worker's note of where it is must not be taken for an old one.
        self.next_lease = 0
        self.start_seconds = ASSUMED_START_SECONDS
        self._starts = 0
        self.failed_starts = 0
        self._failing_since = 0.0
        self._idle_deaths = 0
        self._idle_since = self._idle_last = 0.0
        # Totals of all runs.
        self.items_in = 0
        self.items_out = 0
        self.failed = 0
        self.calls = 0
        self.seconds = 0.0
        self.busy = 0.0
        self.blocked = 0.0
        self.present = 0.0
        self.stalled = 0.0
        self.cpu = 0.0
        self.waited = 0.0
        self.durations = Durations()

    def ready(self, number: int, seconds: float) -> bool:
        """Take in that a worker is up; return whether it is one more."""
        self._starts += 1
        self.failed_starts = 0
        # Those of the first set start at the same time, side by side: the first to be up tells most.
        weight = 1.0 if self._starts == 1 else WEIGHT
        self.start_seconds += (seconds - self.start_seconds) * weight
        if number not in self.starting:
            return False
        self.starting.discard(number)
        self.numbers.append(number)
        self.peak = max(self.peak, len(self.numbers))
        return True

    def hopeless(self, killed: bool, now: float) -> bool:
        """Whether one more that dies before it is ready is one too many."""
        failed = self.failed_starts + 1
        often, long = failed >= FAILED_STARTS, failed >= 2 and now - self._failing_since >= FAILED_START_SECONDS
        return (often and long) if killed else (often or long)

    def died_idle(self, killed: bool, now: float) -> bool:
        """Take in that a worker has died that had nothing to do; return whether that is one too many."""
        if not self._idle_deaths or now - self._idle_last > IDLE_DEATH_SECONDS:
            self._idle_deaths, self._idle_since = 0, now
        self._idle_deaths += 1
        self._idle_last = now
        return self._idle_deaths >= FAILED_STARTS and (not killed or now - self._idle_since >= IDLE_DEATH_SECONDS)

    def lost(self, number: int, ready: bool, now: float) -> None:
        """Take in that a worker is dead."""
        if not ready:
            self.failed_starts += 1
            if self.failed_starts == 1:
                self._failing_since = now
        self.starting.discard(number)
        if number in self.numbers:
            self.numbers.remove(number)

    def stats(self, waiting: int, bound: int, spent: Sequence[float]) -> StepStats:
        """Return what the user is told; `waiting` of at most `bound` items are in the pipe in front.

        `spent`: the worker seconds busy, blocked, present and stalled that no total has yet.
        """
        busy, blocked, present, stalled = map(sum, zip(spent, self.time_totals, strict=True))
        return StepStats(
            processor=self.node.name,
            workers=len(self.numbers),
            starting=len(self.starting),
            most_workers=self.peak,
            items_in=self.items_in,
            items_out=self.items_out,
            failed=self.failed,
            waiting=waiting,
            bound=bound,
            units=self.calls,
            mean=self.seconds / self.calls if self.calls else None,
            p50=self.durations.share(0.5),
            p99=self.durations.share(0.99),
            busy=busy / present if present else 0.0,
            cpu=min(1.0, self.cpu / self.seconds) if self.seconds else 0.0,
            blocked=blocked / present if present else 0.0,
            stalled=stalled,
        )

    @property
    def time_totals(self) -> tuple[float, float, float, float]:
        """The worker seconds busy, blocked, present and stalled, up to the last count."""
        return self.busy, self.blocked, self.present, self.stalled

    def done(self, calls: int, seconds: float) -> None:
        """Take in that `units` units took `seconds` seconds of wall time."""
        self._idle_deaths = 0
        self.calls += calls
        self.seconds += seconds
        self.durations.add(seconds / calls, calls)


class Roster:
    """The teams of all steps."""

    def __init__(self, plan: Plan) -> None:
        self.step_rosters: dict[int, StepRoster] = {}
        self.next_worker = 0
        for node in plan.steps:
            self.step_rosters[node.index] = StepRoster(node, [self.new_number() for _ in range(node.workers)])
        self.memory = PolicyState()
        self.decisions: list[Decision] = []

    def new_number(self) -> int:
        """Return a number that no worker has had."""
        self.next_worker += 1
        return self.next_worker - 1

    def decided(self, decision: Decision) -> None:
        """Add to the history."""
        self.decisions.append(decision)
        del self.decisions[:-REMEMBERED_DECISIONS]
