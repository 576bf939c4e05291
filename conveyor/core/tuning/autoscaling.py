"""How many workers each step has: the policy, as a pure function of what is seen of the steps.

Law: `decide` knows no clock and no process; the same sights at the same times give the same decisions.  Beyond the
workers that each step must have, workers are counted by the share of CPU in their work, `cpu / (cpu + waited)`.  No
decision to grow makes that sum more than the cores, or adds a worker that uses CPU while no core is idle; where the sum
has become more because the work changed, those that are not needed go.

The rules follow from one model: a step needs rate x service time workers.

1. *Need.* The best rate is where all cores are used, or some step has all the workers that it may have.  How often each
   step has to work for one unit of the first is measured by what came into its pipe and what left the step before.
2. *Stalled* is a step with work waiting whose workers are busy; one that starves or is blocked is not.  The one that
   stalls most, in seconds of work waiting per worker, is served first.
3. *Grow.* A stalled step gets what it needs and some headroom, as soon as the time lost to the stall amounts to what a
   start takes, and the first time at once where ten times as much waits.  Until its first unit is back its job counts
   as CPU alone, and till then workers at most double.  A step that has what it needs and goes on stalling, with cores
   idle, gets a few more.
4. *Give back.* Where a stalled step lacks workers and has no cores to grow on, the others keep what they need.
5. *Shrink.* Workers that were not needed for a while go.
6. *Rest.* Each turn, from growing to shrinking or back, makes a step wait four times as long before its next change.
   Once there was time to find out, there is one change in two minutes at most, beyond a few at once, until some step
   has needed many more workers than it has for a while: then the load has moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, inf

from conveyor._lean.dataclasses import NamedTuple

# How often to look: soon after the start, and after something changed or may have to, else ever more seldom.
FIRST_PAUSE_SECONDS, MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS, PAUSE_GROWTH = 0.01, 0.02, 0.25, 1.25
# Seconds of a stall before a step gets what it needs: a little less than the usual shortest pause, so one look will do.
STALL_BEFORE_GROWTH_SECONDS = 0.019
# A step counts as busy when its workers are at work for this share of the time.
BUSY_TIME_SHARE = 0.8
# Less than this share of the cores is not worth a worker; it may be an error of measurement.
IDLE_CORE_SHARE = 0.03
# Where so many of the cores are idle, but given out, it is worth moving workers; and where so many are, at once.
NOTABLE_IDLE_SHARE, URGENT_IDLE_SHARE = 0.1, 0.4
# A job that waits for less than this share of its time is bound by CPU, and one that waits for all but this share by
# everything else.
SLIGHT_WAIT_SHARE = 0.1
# Units differ, so rate x service is not enough: so much more for a job of CPU alone, and for one that only waits, whose
# workers have to make up for the waiting of the others at the right moment.
CPU_HEADROOM, WAITING_HEADROOM = 0.1, 0.3
# A need is an estimate; a difference of less than this is none.
NEED_TOLERANCE = 1.1
# A step that goes on stalling may have so many times what it needs.
REGROW_FACTOR = 1.5
# Workers of a step that waits, where nobody set a bound: so many for each core, and in all.
MAX_WAITING_WORKERS_PER_CORE, MAX_WAITING_WORKERS = 4, 32
# Seconds for which a step that has what it needs stalls before it gets more, and others stall before one gives back.
REGROW_DELAY_SECONDS = 0.5
# Seconds for which a worker was not needed before it goes, and how many times its start and a unit's time at least.  So
# many times a start is also what has to wait for a step to grow at once, and how long it takes to find out.
IDLE_BEFORE_SHRINK_SECONDS, IDLE_BEFORE_SHRINK_STARTS, IDLE_BEFORE_SHRINK_CALLS = 3.0, 10, 10
# A step keeps so many times the workers that are at work.
KEEP_FACTOR = 1.3
# Fewer workers than this share of all are not worth a change.
SHRINK_WORTH_SHARE = 0.7
# After so many seconds of work it has been found out who needs what: from then on there are so many changes at once,
# and so many in the long run, whatever noise says, until some step needs so many times the workers that it has, and has
# done so for so many seconds.
LEARNING_SECONDS, MAX_CHANGES, CHANGES_PER_SECOND, LOAD_MOVED_FACTOR, LOAD_MOVED_SECONDS = 30.0, 4.0, 1 / 120, 1.4, 5.0
# How far back costs, load, the flow between steps and turns are remembered: as costs may shift, and noise averages out.
COST_MEMORY_SECONDS, LOAD_MEMORY_SECONDS, FLOW_MEMORY_SECONDS, REVERSAL_MEMORY_SECONDS = 1.0, 1.0, 20.0, 1800.0


class StepLoad(NamedTuple):
    """What is known of one step at one moment.  Totals (units, busy, cpu, waited, blocked) count up and never fall."""

    name: str
    # Those that are up and were not told to leave; those started and not ready yet; the bounds on both together.
    workers: int
    starting: int
    least: int
    most: int | None
    # Units in the pipe in front; how many it holds; whether no more will come.
    waiting: int
    bound: int
    ended: bool
    calls: int
    # Seconds in which workers had work in hand, now included; of that, of units that are done, on a core and waiting
    # for something that is no core; and seconds in which workers held outputs with no room behind (not part of busy).
    busy: float
    cpu: float
    waited: float
    blocked: float
    # Seconds from starting a worker until it is ready.
    start: float


class Resize(NamedTuple):
    """A step, by its place among the sights, has so many workers, and is to have so many."""

    step: int
    before: int
    after: int
    reason: str


class StepHistory(NamedTuple):
    """What is remembered of one step, up to a sight."""

    load: StepLoad
    # Of recent work: what it cost.
    calls: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    waited: float = 0.0
    # Of recent time: the units that came, and those that left for the next step.
    came: float = 0.0
    left: float = 0.0
    # Since the last look, workers at work and blocked, on average, and how many came up; and those at work, smoothed.
    active: float = 0.0
    blocked: float = 0.0
    fresh: int = 0
    active_mean: float = 0.0
    # Seconds lost to stalls; a second without one makes up for a second with one.
    lost: float = 0.0
    # Since when, and at most how many, workers were needed that are fewer than all.
    quiet: float = 0.0
    peak: int = 0
    # The last change: when, and up or down; and how often that turned, of late.
    changed: float = -inf
    way: int = 0
    turns: float = 0.0

    @property
    def workers(self) -> int:
        """Those up, and those that will be."""
        return self.load.workers + self.load.starting

    @property
    def base(self) -> int:
        """The workers that it must have."""
        return max(1, self.load.least)

    @property
    def share(self) -> float:
        """The share of CPU in its work; all of it until something is known."""
        work = self.cpu + self.waited
        return self.cpu / work if work else 1.0

    @property
    def uses_cpu(self) -> bool:
        """Whether it is worth counting."""
        return self.share >= SLIGHT_WAIT_SHARE

    @property
    def service(self) -> float:
        """Seconds that a unit takes where no core is missing; a unit under way is taken to be half done."""
        return (self.cpu + self.waited) / self.calls if self.calls else 2 * self.load.busy / max(1, self.load.workers)

    @property
    def pace(self) -> float:
        """The share of a busy worker's time that is not spent waiting for a core."""
        return min(1.0, (self.cpu + self.waited) / self.busy) if self.calls and self.busy else 1.0

    @property
    def stall(self) -> float:
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
        """Workers at work now: those that were of late, some of them told to leave, and those that came up."""
        return max(self.active, min(self.active + self.fresh, self.load.workers))

    @property
    def patience(self) -> float:
        """Seconds for which a worker may be idle."""
        return max(
            IDLE_BEFORE_SHRINK_SECONDS,
            IDLE_BEFORE_SHRINK_STARTS * self.load.start,
            IDLE_BEFORE_SHRINK_CALLS * self.service,
        )

    def bound(self, cores: float) -> int:
        """The most workers that it may have."""
        if self.load.most is not None:
            return self.load.most
        waits = self.share <= 1 - SLIGHT_WAIT_SHARE
        most = (
            max(self.share * cores, min(MAX_WAITING_WORKERS_PER_CORE * cores, MAX_WAITING_WORKERS)) if waits else cores
        )
        return max(self.base, ceil(most))

    def seen(self, load: StepLoad, seconds: float) -> StepHistory:
        """Go on to a later sight."""
        before = self.load
        busy, done = load.busy - before.busy, load.calls - before.calls
        active, blocked = busy / seconds, (load.blocked - before.blocked) / seconds
        # Costs are forgotten by work, not by time: an idle step learns nothing new.
        fade = exp(-min(busy, seconds) / max(COST_MEMORY_SECONDS, 8 * self.service))
        smooth, flow = exp(-seconds / LOAD_MEMORY_SECONDS), exp(-seconds / FLOW_MEMORY_SECONDS)
        return self._replace(
            load=load,
            calls=self.calls * fade + done,
            busy=self.busy * fade + busy,
            cpu=self.cpu * fade + load.cpu - before.cpu,
            waited=self.waited * fade + load.waited - before.waited,
            came=self.came * flow + done + load.waiting - before.waiting + active - self.active,
            left=self.left * flow + done - blocked + self.blocked,
            active=active,
            blocked=blocked,
            fresh=max(0, load.workers - before.workers),
            active_mean=self.active_mean * smooth + active * (1 - smooth),
            turns=self.turns * exp(-seconds / REVERSAL_MEMORY_SECONDS),
        )

    def resized(self, workers: int, now: float) -> StepHistory:
        """Take in a decision."""
        way = 1 if workers > self.workers else -1
        turned = way * self.way < 0
        up = min(self.load.workers, workers)
        load = self.load._replace(workers=up, starting=workers - up)
        return self._replace(load=load, lost=0.0, quiet=now, peak=0, changed=now, way=way, turns=self.turns + turned)


class PolicyState(NamedTuple):
    """What the policy remembers; `next` is when it wants to be asked again."""

    next: float = -inf
    then: float = 0.0
    pause: float = MIN_PAUSE_SECONDS
    others: float = 0.0
    histories: tuple[StepHistory, ...] = ()
    # Since when something was done without a break, and how many changes may be made.
    since: float = 0.0
    changes: float = inf
    # For how long some step has needed many more workers than it has.
    moved: float = 0.0


def decide(
    memory: PolicyState, loads: Sequence[StepLoad], cores: float, others: float, now: float
) -> tuple[PolicyState, list[Resize]]:
    """Decide how many workers the steps are to have, in topological order.

    `others` is the total CPU time of everything else that belongs to the pipeline, in seconds.  A memory belongs to one
    set of steps whose totals go on.
    """
    if now < memory.next:
        return memory, []
    if memory.next == -inf or len(memory.histories) != len(loads):
        histories = tuple(StepHistory(load, quiet=now) for load in loads)
        return PolicyState(now + FIRST_PAUSE_SECONDS, now, FIRST_PAUSE_SECONDS, others, histories, now), []
    seconds = now - memory.then
    seen = [trace.seen(load, seconds) for trace, load in zip(memory.histories, loads, strict=True)]
    look = ScalingRound(seen, cores, max(0.0, cores - (others - memory.others) / seconds), now)
    look.watch(seconds)
    moved = memory.moved + seconds if look.moved() else 0.0
    since = memory.since if any(trace.active for trace in seen) and moved < LOAD_MOVED_SECONDS else now
    finding_out = max(LEARNING_SECONDS, *(IDLE_BEFORE_SHRINK_STARTS * load.start for load in loads))
    changes = inf if now - since < finding_out else min(MAX_CHANGES, memory.changes + seconds * CHANGES_PER_SECOND)
    if changes >= 1:
        look.grow()
    look.keep_within_cores()
    if changes >= 1:
        look.shrink()
    longest = min(MAX_PAUSE_SECONDS, memory.pause * PAUSE_GROWTH, look.soonest)
    pause = MIN_PAUSE_SECONDS if look.decisions else max(min(MIN_PAUSE_SECONDS, memory.pause), longest)
    # One look may take more of them than there are, and must not be paid for long after.
    changes = max(0.0, changes - len(look.decisions))
    return PolicyState(now + pause, now, pause, others, tuple(look.histories), since, changes, moved), look.decisions


def needs(histories: Sequence[StepHistory], cores: float, free: float) -> list[float]:
    """How many workers each step needs at the best rate; 0 where that is not known yet."""
    works = []
    # How often the last step that anything left has to work for one unit of the first, and what left it.
    flow = left = 1.0
    for index, trace in enumerate(histories):
        here = flow * trace.came / left if index else 1.0
        works.append(max(0.0, here) * trace.service if trace.calls and not trace.finished else 0.0)
        if trace.left >= 1:
            flow, left = here, trace.left
    cpu = sum(work * trace.share for work, trace in zip(works, histories, strict=True))
    free -= sum(trace.active for trace in histories if not trace.calls)
    rates = [trace.bound(cores) / work for work, trace in zip(works, histories, strict=True) if work]
    rate = min([*rates, max(free, 1.0) / cpu if cpu else inf])
    return [rate * work if work else 0.0 for work in works]


class ScalingRound:
    """One look at all steps, and what comes of it."""

    def __init__(self, histories: list[StepHistory], cores: float, free: float, now: float) -> None:
        self.histories = histories
        self.cores = cores
        self.now = now
        self.decisions: list[Resize] = []
        # In how many seconds a step may get more.
        self.soonest = inf
        self.needs = needs(histories, cores, free)
        # Cores that nobody uses; workers that start or have just come up count as if they worked.
        self.free = free - sum((trace.at_work * trace.pace + trace.load.starting) * trace.share for trace in histories)
        # Whether some step is at work whose costs nobody knows yet, so that no need is known either.
        self.guessing = any(trace.active and not trace.calls for trace in histories)
        # Workers beyond those that there must be, in cores.
        self.extra = sum((trace.workers - trace.base) * trace.share for trace in histories)

    def has_cores(self, trace: StepHistory) -> bool:
        """Whether one more worker would find a core, or needs none."""
        return not trace.uses_cpu or self.free > IDLE_CORE_SHARE * self.cores

    def watch(self, seconds: float) -> None:
        """Take in who stalls, and who is idle."""
        for index, trace in enumerate(self.histories):
            hurts = trace.stalled and (self.has_cores(trace) or self.needs[index] > trace.workers)
            lost = trace.lost + seconds if hurts else max(0.0, trace.lost - seconds)
            keep = max(trace.base, ceil(trace.active_mean * KEEP_FACTOR))
            needed = keep >= trace.workers or trace.load.starting
            quiet, peak = (self.now, 0) if needed else (trace.quiet, max(trace.peak, keep))
            self.histories[index] = trace._replace(lost=lost, quiet=quiet, peak=peak)

    def grow(self) -> None:
        """Give stalled steps what they need, the worst first."""
        stalled = [index for index, trace in enumerate(self.histories) if trace.stalled]
        for index in sorted(stalled, key=lambda index: -self.histories[index].stall):
            trace = self.histories[index]
            wanted, wait = self.wanted(trace, self.needs[index])
            if wanted > trace.workers:
                loss = max(trace.load.start, wait)
                # Before its first change there is nothing to wait for where so much waits that it is lost for certain.
                certain = trace.calls and trace.changed == -inf and trace.stall >= IDLE_BEFORE_SHRINK_STARTS * loss
                missing = 0.0 if certain else loss - trace.lost
                if missing <= 0:
                    self.add(index, wanted)
                elif self.has_cores(trace):
                    self.soonest = min(self.soonest, missing)

    def wanted(self, trace: StepHistory, need: float) -> tuple[int, float]:
        """How many workers a stalled step should have, and after how many seconds lost."""
        load = trace.load
        # Where no more comes, what waits is all there is, and must be worth the start.
        if load.ended and trace.stall < 2 * load.start:
            return 0, 0.0
        headroom = CPU_HEADROOM * trace.share + WAITING_HEADROOM * (1 - trace.share)
        wanted, wait = ceil(need * (1 + headroom)) if need else 2 * trace.workers, STALL_BEFORE_GROWTH_SECONDS
        if wanted <= trace.workers <= REGROW_FACTOR * need:
            wanted, wait = trace.workers + ceil(trace.workers / 8), REGROW_DELAY_SECONDS
        if self.guessing:
            wanted = min(wanted, 2 * trace.workers)
        # No more than there is work for; a pipe that is well filled does not show how much that is.
        filled = not load.ended and 2 * load.waiting >= load.bound
        if not filled:
            wanted = min(wanted, trace.workers + load.waiting)
        return min(wanted, trace.bound(self.cores)), wait * requeued_items(trace.turns)

    def add(self, index: int, wanted: int) -> None:
        """Give a step more workers, as far as there are cores, or have others give theirs back."""
        trace = self.histories[index]
        lacks = self.needs[index] > NEED_TOLERANCE * trace.workers
        reason = f"{figure(trace.stall)} s of work waiting"
        if not self.has_cores(trace):
            if lacks and trace.lost >= 2 * REGROW_DELAY_SECONDS * requeued_items(trace.turns):
                self.give_back(f"{reason} for {trace.load.name}", index)
            return
        over = self.extra + (wanted - trace.workers) * trace.share > self.cores
        if over and lacks and self.free > NOTABLE_IDLE_SHARE * self.cores:
            self.give_back(f"{reason} for {trace.load.name}", index)
        if trace.share:
            wanted = min(wanted, trace.workers + int((self.cores - self.extra) / trace.share + 1e-6))
        if wanted > trace.workers:
            cores = idle_cores(self.free) if trace.uses_cpu else "hardly any CPU needed"
            self.resize(index, wanted, f"{reason}, {cores}")

    def give_back(self, reason: str, receiver: int | None = None) -> None:
        """Have all other steps that use CPU keep no more than they need."""
        for index, trace in enumerate(self.histories):
            need = self.needs[index]
            keep = max(trace.base, ceil(need + 0.2))
            urgent = trace.workers > 2 * need or self.free > URGENT_IDLE_SHARE * self.cores
            if (
                index != receiver
                and trace.uses_cpu
                and (need or trace.finished)
                and trace.workers
                > (keep if self.free > NOTABLE_IDLE_SHARE * self.cores else max(keep, NEED_TOLERANCE * need + 0.5))
                and self.now - trace.changed >= REGROW_DELAY_SECONDS * (1.0 if urgent else requeued_items(trace.turns))
            ):
                self.resize(index, keep, f"{reason}: {enough(keep)} here")

    def moved(self) -> bool:
        """Whether the load seems to have moved to a step that has too few workers for it."""
        pairs = zip(self.histories, self.needs, strict=True)
        return any(trace.stalled and need > LOAD_MOVED_FACTOR * trace.workers for trace, need in pairs)

    def keep_within_cores(self) -> None:
        """Where the work has changed, let go those for whom there are no cores any more."""
        if self.extra > NEED_TOLERANCE * self.cores:
            self.give_back(f"more workers than {figure(self.cores)} cores can serve")

    def shrink(self) -> None:
        """Let go whom nobody needed for long."""
        rest = requeued_items(2 * sum(trace.turns for trace in self.histories))
        for index, trace in enumerate(self.histories):
            idle = self.now - trace.quiet
            if not trace.peak or idle < trace.patience * rest:
                continue
            if trace.peak > SHRINK_WORTH_SHARE * trace.workers:
                self.histories[index] = trace._replace(quiet=self.now, peak=0)
            else:
                rate = trace.active_mean * trace.pace / trace.service if trace.service else 0.0
                reason = f"idle for {figure(idle)} s: {enough(trace.peak)} for {figure(rate)} items/s"
                self.resize(index, trace.peak, reason)

    def resize(self, index: int, workers: int, reason: str) -> None:
        """Decide."""
        trace = self.histories[index]
        self.decisions.append(Resize(index, trace.workers, workers, reason))
        self.extra += (workers - trace.workers) * trace.share
        self.free -= max(0, workers - trace.workers) * trace.share
        self.histories[index] = trace.resized(workers, self.now)


def requeued_items(turns: float) -> float:
    """Return how many times longer than at first to wait after so many turns."""
    return float(4 ** min(turns, 4.0))


def figure(number: float) -> str:
    """Return a number for a reader, with two digits at most that are not whole."""
    return f"{number:.2g}" if number < 99.5 else f"{number:.0f}"


def enough(workers: int) -> str:
    """Return that so many workers are enough."""
    return "one worker is enough" if workers == 1 else f"{workers} workers are enough"


def idle_cores(cores: float) -> str:
    """Return that so many cores are idle."""
    return f"{figure(cores)} {'core' if figure(cores) == '1' else 'cores'} idle"
