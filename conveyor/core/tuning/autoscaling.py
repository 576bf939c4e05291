"""The autoscaler's policy: how many workers each step has, as a pure function of what is seen of the steps.

Law: `decide` knows no clock and no process.  The same loads at the same times give the same resizes.  Workers beyond
those that a step must have are counted by the share of CPU in their work, `cpu / (cpu + waited)`; one whose threads use
several cores at once, by these.  No resize to grow makes that sum more than the cores, or adds a worker that uses CPU
while no core is idle.  Where the work has changed and the sum is more, the workers that are not needed go.

The rules follow from one model: a step needs rate x service time workers.

1. *Need.* The best rate is where all cores are used, or some step has all the workers that it may have.  The policy
   measures how often each step is called for one call of the first: by what came into its pipe, and what left the step
   before.
2. *Stalled* is a step with work waiting whose workers are busy.  A step that starves or is blocked is not.  The one
   with most seconds of work waiting per worker is served first.
3. *Grow.* A stalled step gets what it needs and some headroom, once the stall has cost as much as a start does; the
   first time at once, where `GROW_AT_ONCE_STARTS` times as much waits.  Until its first call is done its job counts as
   CPU alone, and workers at most double.  A step that has what it needs and goes on stalling, with cores idle, gets
   more.  A step that waits gets a few for each core, and then twice as many again and again, as long as these do more
   and memory has room for them; those that do not do more go.
4. *Give back.* Where a stalled step lacks workers and has no cores to grow on, the others keep what they need.
5. *Shrink.* Workers that were not needed for a while go.
6. *Rest.* Each reversal, from growing to shrinking or back, makes a step wait longer before its next change.  Once
   there was time to learn, changes are rationed, until the load has moved: some step has needed many more workers than
   it has for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, inf

from conveyor._lean.dataclasses import NamedTuple
from conveyor.core.tuning.rating import Rating

# The policy looks soon after the start, and soon after a change or before one is due; else ever more seldom.
FIRST_PAUSE_SECONDS, MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS, PAUSE_GROWTH = 0.01, 0.02, 0.25, 1.25
# A step gets what it needs after a stall of so long: a little less than the shortest pause, so that one look will do.
STALL_BEFORE_GROWTH_SECONDS = 0.019
# A step counts as busy when its workers are at work for this share of the time.
BUSY_TIME_SHARE = 0.8
# Less than this share of the cores is not worth a worker, as it may be an error of measurement.
IDLE_CORE_SHARE = 0.03
# Where this share of the cores is idle, but given out, it is worth moving workers.  At the larger one, at once.
NOTABLE_IDLE_SHARE, URGENT_IDLE_SHARE = 0.1, 0.4
# A job that waits for less than this share of its time is bound by CPU.  One that uses CPU for less than this share
# only waits.
SLIGHT_WAIT_SHARE = 0.1
# Calls differ, so a step needs some workers more.  A job that only waits needs most, as its workers have to make up for
# the waiting of the others at the right moment.
CPU_HEADROOM, WAITING_HEADROOM = 0.1, 0.3
# A need is an estimate.  A difference of less than this is none.
NEED_TOLERANCE = 1.1
# A step that goes on stalling may have so many times the workers that it needs.
REGROW_FACTOR = 1.5
# How many workers a step that waits has, where nobody set a bound: so many for each core, and more while these help.
WAITING_WORKERS_PER_CORE, MAX_WAITING_WORKERS = 4, 32
# So long after more workers of such a step did not do more, it may have more again.
RATE_AGAIN_SECONDS = 60.0
# A step that has what it needs stalls for so long before it gets more.
REGROW_DELAY_SECONDS = 0.5
# A step gives workers back so long after its last change.  A stalled step waits twice as long before it asks for that.
GIVE_BACK_DELAY_SECONDS = 0.5
# A worker goes that was not needed for so long: in seconds, in times of its start, and in times of a call, the longest
# of these.
IDLE_BEFORE_SHRINK_SECONDS, IDLE_BEFORE_SHRINK_STARTS, IDLE_BEFORE_SHRINK_CALLS = 3.0, 10, 10
# A step grows at once the first time, where the work that waits takes so many times a start.
GROW_AT_ONCE_STARTS = 10
# A step keeps so many times the workers that are at work.
KEEP_FACTOR = 1.3
# A step shrinks only to less than this share of its workers.
SHRINK_WORTH_SHARE = 0.7
# After so long, in seconds and in times of the longest start, the policy has learned who needs what.
LEARNING_SECONDS, LEARNING_STARTS = 30.0, 10
# From then on it makes at most so many changes at once, and so many in the long run.
MAX_CHANGES, CHANGES_PER_SECOND = 4.0, 1 / 120
# It learns anew where some step needs so many times the workers that it has, for so long.
LOAD_MOVED_FACTOR, LOAD_MOVED_SECONDS = 1.4, 5.0
# How far back costs, workers at work, the flow between steps and reversals are remembered.  Costs may shift, and noise
# averages out.
COST_MEMORY_SECONDS, ACTIVE_MEMORY_SECONDS, FLOW_MEMORY_SECONDS, REVERSAL_MEMORY_SECONDS = 1.0, 1.0, 20.0, 1800.0


class StepLoad(NamedTuple):
    """What is known of one step at one moment.  Totals (calls, busy, cpu, waited, blocked) never fall."""

    name: str
    # Workers that are up and not told to leave; workers started and not ready yet; the bounds on both together.
    workers: int
    starting: int
    least: int
    most: int | None
    # Calls for which items wait in the pipe in front; for how many it has room; whether no more items will come.
    waiting: int
    bound: int
    ended: bool
    calls: int
    # Seconds in which workers had work in hand, up to now.  Of that, for calls that are done: on a core, and waiting
    # for something that is no core.  Seconds in which workers held outputs with no room behind, which are not busy.
    busy: float
    cpu: float
    waited: float
    blocked: float
    # Seconds from starting a worker until it is ready.
    start: float
    # In how many threads a worker makes calls, so that it may use as many cores at once.
    threads: int = 1
    # For how many such workers there is memory; None: nobody knows, or they take none.
    fitting: int | None = None


class Resize(NamedTuple):
    """A step, by its place among the loads, has `before` workers, and is to have `after`."""

    step: int
    before: int
    after: int
    reason: str


class StepHistory(NamedTuple):
    """What is remembered of one step, up to its last load."""

    load: StepLoad
    # What recent work cost.
    calls: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    waited: float = 0.0
    # The calls for which items came in recent time, and those done whose outputs left for the next step.
    arrived: float = 0.0
    departed: float = 0.0
    # Workers at work and blocked since the last look, on average; those that came up; those at work, smoothed.
    active: float = 0.0
    blocked: float = 0.0
    new_workers: int = 0
    mean_active: float = 0.0
    # Seconds of stalls, less the seconds without one.
    stalled_for: float = 0.0
    # Since when fewer workers than all were needed, and at most how many.
    unneeded_since: float = 0.0
    needed_peak: int = 0
    # The last change: when, and up or down; and how often the direction was reversed of late.
    changed_at: float = -inf
    direction: int = 0
    reversals: float = 0.0
    rating: Rating = Rating()

    @property
    def workers(self) -> int:
        """The workers that are up, and those that will be."""
        return self.load.workers + self.load.starting

    @property
    def least_workers(self) -> int:
        return max(1, self.load.least)

    @property
    def work(self) -> float:
        """Seconds that workers were at work, without the time in which they waited for a core."""
        work = self.cpu + self.waited
        # Several threads use more than one core, and that makes the worker's time no longer.
        return work if self.load.threads == 1 else min(work, self.busy)

    @property
    def cpu_share(self) -> float:
        """The cores that a worker uses while it is at work, on average; one until something is known."""
        work = self.work
        return self.cpu / work if work else 1.0

    @property
    def uses_cpu(self) -> bool:
        """Whether its use of CPU is worth counting."""
        return self.cpu_share >= SLIGHT_WAIT_SHARE

    @property
    def service(self) -> float:
        """Seconds that a call takes where no core is missing.  A call under way is taken to be half done."""
        return self.work / self.calls if self.calls else 2 * self.load.busy / max(1, self.load.workers)

    @property
    def run_share(self) -> float:
        """The share of a busy worker's time that is not spent waiting for a core."""
        return min(1.0, self.work / self.busy) if self.calls and self.busy else 1.0

    @property
    def backlog_seconds(self) -> float:
        """Seconds of work waiting, per worker."""
        return self.load.waiting * self.service / max(1, self.workers)

    @property
    def stalled(self) -> bool:
        """Whether work waits because the workers are busy."""
        return self.load.waiting > 0 and self.active >= BUSY_TIME_SHARE * self.load.workers > 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.load.ended and not self.load.waiting and not self.active

    @property
    def at_work(self) -> float:
        """Workers at work now: those of late, some of which were told to leave, and those that came up."""
        return max(self.active, min(self.active + self.new_workers, self.load.workers))

    @property
    def idle_limit(self) -> float:
        """Seconds for which a worker may be idle."""
        return max(
            IDLE_BEFORE_SHRINK_SECONDS,
            IDLE_BEFORE_SHRINK_STARTS * self.load.start,
            IDLE_BEFORE_SHRINK_CALLS * self.service,
        )

    def max_workers(self, cores: float) -> int:
        """The most workers that it may have."""
        if self.load.most is not None:
            return self.load.most
        waits, waiting = self.cpu_share <= 1 - SLIGHT_WAIT_SHARE, waiting_workers(cores)
        if self.rating.reach > waiting:
            fitting = MAX_WAITING_WORKERS if self.load.fitting is None else self.load.fitting
            waiting = max(waiting, min(self.rating.reach, MAX_WAITING_WORKERS, fitting))
        return max(self.least_workers, ceil(max(self.cpu_share * cores, waiting) if waits else cores))

    def advance(self, load: StepLoad, seconds: float) -> StepHistory:
        before = self.load
        busy, done = load.busy - before.busy, load.calls - before.calls
        active, blocked = busy / seconds, (load.blocked - before.blocked) / seconds
        # Costs are forgotten by work, not by time, as an idle step learns nothing new.
        fade = exp(-min(busy, seconds) / max(COST_MEMORY_SECONDS, 8 * self.service))
        smooth, flow = exp(-seconds / ACTIVE_MEMORY_SECONDS), exp(-seconds / FLOW_MEMORY_SECONDS)
        return self._replace(
            load=load,
            calls=self.calls * fade + done,
            busy=self.busy * fade + busy,
            cpu=self.cpu * fade + load.cpu - before.cpu,
            waited=self.waited * fade + load.waited - before.waited,
            arrived=self.arrived * flow + done + load.waiting - before.waiting + active - self.active,
            departed=self.departed * flow + done - blocked + self.blocked,
            active=active,
            blocked=blocked,
            new_workers=max(0, load.workers - before.workers),
            mean_active=self.mean_active * smooth + active * (1 - smooth),
            reversals=self.reversals * exp(-seconds / REVERSAL_MEMORY_SECONDS),
        )

    def resized(self, workers: int, now: float) -> StepHistory:
        """Return the history after a resize."""
        direction = 1 if workers > self.workers else -1
        turned = direction * self.direction < 0
        up = min(self.load.workers, workers)
        load = self.load._replace(workers=up, starting=workers - up)
        anew = self._replace(load=load, stalled_for=0.0, unneeded_since=now, needed_peak=0)
        return anew._replace(changed_at=now, direction=direction, reversals=self.reversals + turned)


class PolicyState(NamedTuple):
    """What the policy remembers; `next` is when it wants to be asked again."""

    next: float = -inf
    then: float = 0.0
    pause: float = MIN_PAUSE_SECONDS
    other_cpu_seconds: float = 0.0
    histories: tuple[StepHistory, ...] = ()
    # Since when some step has been at work without a break, and how many changes may be made.
    working_since: float = 0.0
    changes_left: float = inf
    # For how long some step has needed many more workers than it has.
    moved_for: float = 0.0


def decide(
    state: PolicyState, loads: Sequence[StepLoad], cores: float, other_cpu_seconds: float, now: float
) -> tuple[PolicyState, list[Resize]]:
    """Decide how many workers the steps are to have, in topological order.

    `other_cpu_seconds` is the CPU time that everything else of the pipeline has used so far.  A state belongs to one
    set of steps, whose totals go on.
    """
    if now < state.next:
        return state, []
    if state.next == -inf or len(state.histories) != len(loads):
        first = tuple(StepHistory(load, unneeded_since=now) for load in loads)
        return PolicyState(now + FIRST_PAUSE_SECONDS, now, FIRST_PAUSE_SECONDS, other_cpu_seconds, first, now), []
    seconds = now - state.then
    histories = [history.advance(load, seconds) for history, load in zip(state.histories, loads, strict=True)]
    used = (other_cpu_seconds - state.other_cpu_seconds) / seconds
    scaling = ScalingRound(histories, cores, max(0.0, cores - used), now)
    scaling.observe(seconds)
    moved_for = state.moved_for + seconds if scaling.load_has_moved() else 0.0
    goes_on = any(history.active for history in histories) and moved_for < LOAD_MOVED_SECONDS
    working_since = state.working_since if goes_on else now
    learning = max(LEARNING_SECONDS, *(LEARNING_STARTS * load.start for load in loads))
    changes_left = min(MAX_CHANGES, state.changes_left + seconds * CHANGES_PER_SECOND)
    if now - working_since < learning:
        changes_left = inf
    if changes_left >= 1:
        scaling.grow()
    scaling.keep_within_cores()
    if changes_left >= 1:
        scaling.shrink()
    longest = min(MAX_PAUSE_SECONDS, state.pause * PAUSE_GROWTH, scaling.grow_in)
    pause = MIN_PAUSE_SECONDS if scaling.decisions else max(min(MIN_PAUSE_SECONDS, state.pause), longest)
    # One look may make more changes than are left, and must not be paid for long after.
    changes_left = max(0.0, changes_left - len(scaling.decisions))
    remembered = other_cpu_seconds, tuple(scaling.histories), working_since, changes_left, moved_for
    return PolicyState(now + pause, now, pause, *remembered), scaling.decisions


def needed_workers(histories: Sequence[StepHistory], cores: float, free_cores: float) -> list[float]:
    """How many workers each step needs at the best rate; 0 where that is not known yet."""
    works = []
    # How often the last step that anything left is called for one call of the first, and what left it.
    flow = departed = 1.0
    for index, history in enumerate(histories):
        here = flow * history.arrived / departed if index else 1.0
        works.append(max(0.0, here) * history.service if history.calls and not history.finished else 0.0)
        if history.departed >= 1:
            flow, departed = here, history.departed
    cpu = sum(work * history.cpu_share for work, history in zip(works, histories, strict=True))
    free_cores -= sum(history.active for history in histories if not history.calls)
    rates = [history.max_workers(cores) / work for work, history in zip(works, histories, strict=True) if work]
    rate = min([*rates, max(free_cores, 1.0) / cpu if cpu else inf])
    return [rate * work if work else 0.0 for work in works]


class ScalingRound:
    """One look at all steps, and what comes of it."""

    def __init__(self, histories: list[StepHistory], cores: float, free_cores: float, now: float) -> None:
        self.histories = histories
        self.cores = cores
        self.now = now
        self.decisions: list[Resize] = []
        # In how many seconds a step may get more.
        self.grow_in = inf
        self.needed = needed_workers(histories, cores, free_cores)
        # Cores that nobody uses.  Workers that start or have just come up count as if they worked.
        used = [(each.at_work * each.run_share + each.load.starting) * each.cpu_share for each in histories]
        self.free_cores = free_cores - sum(used)
        # Whether a step is at work whose costs are not known yet, so that no need is known either.
        self.costs_unknown = any(history.active and not history.calls for history in histories)
        # Workers beyond those that there must be, in cores.
        self.extra_cores = sum((history.workers - history.least_workers) * history.cpu_share for history in histories)

    def has_cores(self, history: StepHistory) -> bool:
        """Whether one more worker would find a core, or needs none."""
        return not history.uses_cpu or self.free_cores > IDLE_CORE_SHARE * self.cores

    def observe(self, seconds: float) -> None:
        """Take in who stalls, and who is idle."""
        for index, history in enumerate(self.histories):
            hurts = history.stalled and (self.has_cores(history) or self.needed[index] > history.workers)
            stalled_for = history.stalled_for + seconds if hurts else max(0.0, history.stalled_for - seconds)
            keep = max(history.least_workers, ceil(history.mean_active * KEEP_FACTOR))
            is_needed = keep >= history.workers or history.load.starting
            since, peak = (self.now, 0) if is_needed else (history.unneeded_since, max(history.needed_peak, keep))
            load, rating = history.load, history.rating
            if load.most is None and load.workers >= waiting_workers(self.cores):
                again = rating.failed_at + RATE_AGAIN_SECONDS * wait_factor(history.reversals)
                is_steady = history.stalled and not load.starting
                done = load.calls, load.cpu + load.waited, history.service
                rating = rating.advance(load.workers if is_steady else 0, *done, self.now, again)
            self.histories[index] = history._replace(
                stalled_for=stalled_for, unneeded_since=since, needed_peak=peak, rating=rating
            )

    def grow(self) -> None:
        """Give stalled steps what they need, the worst first."""
        stalled = [index for index, history in enumerate(self.histories) if history.stalled]
        for index in sorted(stalled, key=lambda index: -self.histories[index].backlog_seconds):
            history = self.histories[index]
            wanted_workers, wait = self.wanted_workers(history, self.needed[index])
            if wanted_workers > history.workers:
                loss = max(history.load.start, wait)
                # A step that has never changed grows at once, where a start is certain to pay.
                first = history.calls and history.changed_at == -inf
                certain = first and history.backlog_seconds >= GROW_AT_ONCE_STARTS * loss
                missing = 0.0 if certain else loss - history.stalled_for
                if missing <= 0:
                    self.grow_step(index, wanted_workers)
                elif self.has_cores(history):
                    self.grow_in = min(self.grow_in, missing)

    def wanted_workers(self, history: StepHistory, need: float) -> tuple[int, float]:
        """How many workers a stalled step should have, and after how many seconds of a stall."""
        load = history.load
        # Where no more items come, those that wait are all there are, and must be worth the start.
        if load.ended and history.backlog_seconds < 2 * load.start:
            return 0, 0.0
        cpu_share = min(1.0, history.cpu_share)
        headroom = CPU_HEADROOM * cpu_share + WAITING_HEADROOM * (1 - cpu_share)
        wanted_workers, wait = ceil(need * (1 + headroom)) if need else 2 * history.workers, STALL_BEFORE_GROWTH_SECONDS
        if wanted_workers <= history.workers <= REGROW_FACTOR * need:
            wanted_workers, wait = history.workers + ceil(history.workers / 8), REGROW_DELAY_SECONDS
        if self.costs_unknown:
            wanted_workers = min(wanted_workers, 2 * history.workers)
        # No more workers than there is work for.  A pipe that is well filled does not show how much that is.
        filled = not load.ended and 2 * load.waiting >= load.bound
        if not filled:
            wanted_workers = min(wanted_workers, history.workers + load.waiting)
        return min(wanted_workers, history.max_workers(self.cores)), wait * wait_factor(history.reversals)

    def grow_step(self, index: int, wanted_workers: int) -> None:
        """Give a step more workers, as far as there are cores, or have others give theirs back."""
        history = self.histories[index]
        lacks = self.needed[index] > NEED_TOLERANCE * history.workers
        reason = f"{format_number(history.backlog_seconds)} s of work waiting"
        if not self.has_cores(history):
            if lacks and history.stalled_for >= 2 * GIVE_BACK_DELAY_SECONDS * wait_factor(history.reversals):
                self.give_back(f"{reason} for {history.load.name}", index)
            return
        over = self.extra_cores + (wanted_workers - history.workers) * history.cpu_share > self.cores
        if over and lacks and self.free_cores > NOTABLE_IDLE_SHARE * self.cores:
            self.give_back(f"{reason} for {history.load.name}", index)
        if history.cpu_share:
            affordable = int((self.cores - self.extra_cores) / history.cpu_share + 1e-6)
            wanted_workers = min(wanted_workers, history.workers + affordable)
        if wanted_workers > history.workers:
            cores = format_idle_cores(self.free_cores) if history.uses_cpu else "hardly any CPU needed"
            self.resize(index, wanted_workers, f"{reason}, {cores}")

    def give_back(self, reason: str, receiver: int | None = None) -> None:
        """Have all other steps that use CPU keep no more than they need."""
        for index, history in enumerate(self.histories):
            need = self.needed[index]
            if index == receiver or not history.uses_cpu or not (need or history.finished):
                continue
            keep = max(history.least_workers, ceil(need + 0.2))
            urgent = history.workers > 2 * need or self.free_cores > URGENT_IDLE_SHARE * self.cores
            delay = GIVE_BACK_DELAY_SECONDS * (1.0 if urgent else wait_factor(history.reversals))
            tolerated = keep if self.free_cores > NOTABLE_IDLE_SHARE * self.cores else NEED_TOLERANCE * need + 0.5
            if history.workers > max(keep, tolerated) and self.now - history.changed_at >= delay:
                self.resize(index, keep, f"{reason}: {format_enough(keep)} here")

    def load_has_moved(self) -> bool:
        """Whether the load seems to have moved to a step that has too few workers for it."""
        pairs = zip(self.histories, self.needed, strict=True)
        return any(history.stalled and need > LOAD_MOVED_FACTOR * history.workers for history, need in pairs)

    def keep_within_cores(self) -> None:
        """Where the work has changed, let workers go for whom there are no cores any more."""
        if self.extra_cores > NEED_TOLERANCE * self.cores:
            self.give_back(f"more workers than {format_number(self.cores)} cores can serve")

    def shrink(self) -> None:
        """Let workers go that nobody needed for long."""
        factor = wait_factor(2 * sum(history.reversals for history in self.histories))
        for index, history in enumerate(self.histories):
            rating = history.rating
            if rating.has_failed and rating.best < history.workers:
                self.resize(index, rating.best, f"{history.workers} workers do no more than {rating.best}")
                continue
            idle = self.now - history.unneeded_since
            if not history.needed_peak or idle < history.idle_limit * factor:
                continue
            if history.needed_peak > SHRINK_WORTH_SHARE * history.workers:
                self.histories[index] = history._replace(unneeded_since=self.now, needed_peak=0)
            else:
                rate = history.mean_active * history.run_share / history.service if history.service else 0.0
                enough = f"{format_enough(history.needed_peak)} for {format_number(rate)} items/s"
                self.resize(index, history.needed_peak, f"idle for {format_number(idle)} s: {enough}")

    def resize(self, index: int, workers: int, reason: str) -> None:
        history = self.histories[index]
        self.decisions.append(Resize(index, history.workers, workers, reason))
        self.extra_cores += (workers - history.workers) * history.cpu_share
        self.free_cores -= max(0, workers - history.workers) * history.cpu_share
        self.histories[index] = history.resized(workers, self.now)


def waiting_workers(cores: float) -> float:
    """Return how many workers a step that waits may have, whether they help or not."""
    return min(WAITING_WORKERS_PER_CORE * cores, MAX_WAITING_WORKERS)


def wait_factor(reversals: float) -> float:
    """Return how many times longer than at first to wait after so many reversals."""
    return float(4 ** min(reversals, 4.0))


def format_number(number: float) -> str:
    """Return a number for a reader, with two digits at most that are not whole."""
    return f"{number:.2g}" if number < 99.5 else f"{number:.0f}"


def format_enough(workers: int) -> str:
    """Return that so many workers are enough."""
    return "one worker is enough" if workers == 1 else f"{workers} workers are enough"


def format_idle_cores(cores: float) -> str:
    """Return that so many cores are idle."""
    return f"{format_number(cores)} {'core' if format_number(cores) == '1' else 'cores'} idle"
