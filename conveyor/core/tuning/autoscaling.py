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
FIRST_PAUSE, SHORTEST_PAUSE, LONGEST_PAUSE, SLOWER = 0.01, 0.02, 0.25, 1.25
# Seconds of a stall before a step gets what it needs: a little less than the usual shortest pause, so one look will do.
PROMPT = 0.019
# A step counts as busy when its workers are at work for this share of the time.
BUSY = 0.8
# Less than this share of the cores is not worth a worker; it may be an error of measurement.
IDLE = 0.03
# Where so many of the cores are idle, but given out, it is worth moving workers; and where so many are, at once.
NOTABLE, URGENT = 0.1, 0.4
# A job that waits for less than this share of its time is bound by CPU, and one that waits for all but this share by
# everything else.
SLIGHT = 0.1
# Units differ, so rate x service is not enough: so much more for a job of CPU alone, and for one that only waits, whose
# workers have to make up for the waiting of the others at the right moment.
HEADROOM_OF_CPU, HEADROOM_OF_WAITING = 0.1, 0.3
# A need is an estimate; a difference of less than this is none.
SLACK = 1.1
# A step that goes on stalling may have so many times what it needs.
MORE = 1.5
# Workers of a step that waits, where nobody set a bound: so many for each core, and in all.
MOST_FOR_A_CORE, MOST_WAITING = 4, 32
# Seconds for which a step that has what it needs stalls before it gets more, and others stall before one gives back.
SETTLING = 0.5
# Seconds for which a worker was not needed before it goes, and how many times its start and a unit's time at least.  So
# many times a start is also what has to wait for a step to grow at once, and how long it takes to find out.
PATIENCE, STARTS, UNITS = 3.0, 10, 10
# A step keeps so many times the workers that are at work.
KEEP = 1.3
# Fewer workers than this share of all are not worth a change.
WORTH = 0.7
# After so many seconds of work it has been found out who needs what: from then on there are so many changes at once,
# and so many in the long run, whatever noise says, until some step needs so many times the workers that it has, and has
# done so for so many seconds.
FINDING_OUT, MOST_CHANGES, CHANGES_PER_SECOND, MOVED, MOVING = 30.0, 4.0, 1 / 120, 1.4, 5.0
# How far back costs, load, the flow between steps and turns are remembered: as costs may shift, and noise averages out.
COSTS, LOAD, FLOW, TURNS = 1.0, 1.0, 20.0, 1800.0


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
    units: int
    # Seconds in which workers had work in hand, now included; of that, of units that are done, on a core and waiting
    # for something that is no core; and seconds in which workers held outputs with no room behind (not part of busy).
    busy: float
    cpu: float
    waited: float
    blocked: float
    # Seconds from starting a worker until it is ready.
    start: float


class Decision(NamedTuple):
    """A step, by its place among the sights, has so many workers, and is to have so many."""

    step: int
    before: int
    after: int
    reason: str


class Trace(NamedTuple):
    """What is remembered of one step, up to a sight."""

    sight: StepLoad
    # Of recent work: what it cost.
    units: float = 0.0
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
    load: float = 0.0
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
        return self.sight.workers + self.sight.starting

    @property
    def base(self) -> int:
        """The workers that it must have."""
        return max(1, self.sight.least)

    @property
    def share(self) -> float:
        """The share of CPU in its work; all of it until something is known."""
        work = self.cpu + self.waited
        return self.cpu / work if work else 1.0

    @property
    def uses_cpu(self) -> bool:
        """Whether it is worth counting."""
        return self.share >= SLIGHT

    @property
    def service(self) -> float:
        """Seconds that a unit takes where no core is missing; a unit under way is taken to be half done."""
        return (self.cpu + self.waited) / self.units if self.units else 2 * self.sight.busy / max(1, self.sight.workers)

    @property
    def pace(self) -> float:
        """The share of a busy worker's time that is not spent waiting for a core."""
        return min(1.0, (self.cpu + self.waited) / self.busy) if self.units and self.busy else 1.0

    @property
    def stall(self) -> float:
        """Seconds of work waiting, per worker."""
        return self.sight.waiting * self.service / max(1, self.workers)

    @property
    def stalled(self) -> bool:
        """Whether work waits because the workers are busy."""
        return self.sight.waiting > 0 and self.active >= BUSY * self.sight.workers > 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.sight.ended and not self.sight.waiting and not self.active

    @property
    def at_work(self) -> float:
        """Workers at work now: those that were of late, some of them told to leave, and those that came up."""
        return max(self.active, min(self.active + self.fresh, self.sight.workers))

    @property
    def patience(self) -> float:
        """Seconds for which a worker may be idle."""
        return max(PATIENCE, STARTS * self.sight.start, UNITS * self.service)

    def bound(self, cores: float) -> int:
        """The most workers that it may have."""
        if self.sight.most is not None:
            return self.sight.most
        waits = self.share <= 1 - SLIGHT
        most = max(self.share * cores, min(MOST_FOR_A_CORE * cores, MOST_WAITING)) if waits else cores
        return max(self.base, ceil(most))

    def seen(self, sight: StepLoad, seconds: float) -> Trace:
        """Go on to a later sight."""
        before = self.sight
        busy, done = sight.busy - before.busy, sight.units - before.units
        active, blocked = busy / seconds, (sight.blocked - before.blocked) / seconds
        # Costs are forgotten by work, not by time: an idle step learns nothing new.
        fade = exp(-min(busy, seconds) / max(COSTS, 8 * self.service))
        smooth, flow = exp(-seconds / LOAD), exp(-seconds / FLOW)
        return self._replace(
            sight=sight,
            units=self.units * fade + done,
            busy=self.busy * fade + busy,
            cpu=self.cpu * fade + sight.cpu - before.cpu,
            waited=self.waited * fade + sight.waited - before.waited,
            came=self.came * flow + done + sight.waiting - before.waiting + active - self.active,
            left=self.left * flow + done - blocked + self.blocked,
            active=active,
            blocked=blocked,
            fresh=max(0, sight.workers - before.workers),
            load=self.load * smooth + active * (1 - smooth),
            turns=self.turns * exp(-seconds / TURNS),
        )

    def resized(self, workers: int, now: float) -> Trace:
        """Take in a decision."""
        way = 1 if workers > self.workers else -1
        turned = way * self.way < 0
        up = min(self.sight.workers, workers)
        sight = self.sight._replace(workers=up, starting=workers - up)
        return self._replace(sight=sight, lost=0.0, quiet=now, peak=0, changed=now, way=way, turns=self.turns + turned)


class Memory(NamedTuple):
    """What the policy remembers; `next` is when it wants to be asked again."""

    next: float = -inf
    then: float = 0.0
    pause: float = SHORTEST_PAUSE
    others: float = 0.0
    traces: tuple[Trace, ...] = ()
    # Since when something was done without a break, and how many changes may be made.
    since: float = 0.0
    changes: float = inf
    # For how long some step has needed many more workers than it has.
    moved: float = 0.0


def decide(
    memory: Memory, sights: Sequence[StepLoad], cores: float, others: float, now: float
) -> tuple[Memory, list[Decision]]:
    """Decide how many workers the steps are to have, in topological order.

    `others` is the total CPU time of everything else that belongs to the pipeline, in seconds.  A memory belongs to one
    set of steps whose totals go on.
    """
    if now < memory.next:
        return memory, []
    if memory.next == -inf or len(memory.traces) != len(sights):
        traces = tuple(Trace(sight, quiet=now) for sight in sights)
        return Memory(now + FIRST_PAUSE, now, FIRST_PAUSE, others, traces, now), []
    seconds = now - memory.then
    seen = [trace.seen(sight, seconds) for trace, sight in zip(memory.traces, sights, strict=True)]
    look = Look(seen, cores, max(0.0, cores - (others - memory.others) / seconds), now)
    look.watch(seconds)
    moved = memory.moved + seconds if look.moved() else 0.0
    since = memory.since if any(trace.active for trace in seen) and moved < MOVING else now
    finding_out = max(FINDING_OUT, *(STARTS * sight.start for sight in sights))
    changes = inf if now - since < finding_out else min(MOST_CHANGES, memory.changes + seconds * CHANGES_PER_SECOND)
    if changes >= 1:
        look.grow()
    look.keep_within_cores()
    if changes >= 1:
        look.shrink()
    longest = min(LONGEST_PAUSE, memory.pause * SLOWER, look.soonest)
    pause = SHORTEST_PAUSE if look.decisions else max(min(SHORTEST_PAUSE, memory.pause), longest)
    # One look may take more of them than there are, and must not be paid for long after.
    changes = max(0.0, changes - len(look.decisions))
    return Memory(now + pause, now, pause, others, tuple(look.traces), since, changes, moved), look.decisions


def needs(traces: Sequence[Trace], cores: float, free: float) -> list[float]:
    """How many workers each step needs at the best rate; 0 where that is not known yet."""
    works = []
    # How often the last step that anything left has to work for one unit of the first, and what left it.
    flow = left = 1.0
    for index, trace in enumerate(traces):
        here = flow * trace.came / left if index else 1.0
        works.append(max(0.0, here) * trace.service if trace.units and not trace.finished else 0.0)
        if trace.left >= 1:
            flow, left = here, trace.left
    cpu = sum(work * trace.share for work, trace in zip(works, traces, strict=True))
    free -= sum(trace.active for trace in traces if not trace.units)
    rates = [trace.bound(cores) / work for work, trace in zip(works, traces, strict=True) if work]
    rate = min([*rates, max(free, 1.0) / cpu if cpu else inf])
    return [rate * work if work else 0.0 for work in works]


class Look:
    """One look at all steps, and what comes of it."""

    def __init__(self, traces: list[Trace], cores: float, free: float, now: float) -> None:
        self.traces = traces
        self.cores = cores
        self.now = now
        self.decisions: list[Decision] = []
        # In how many seconds a step may get more.
        self.soonest = inf
        self.needs = needs(traces, cores, free)
        # Cores that nobody uses; workers that start or have just come up count as if they worked.
        self.free = free - sum((trace.at_work * trace.pace + trace.sight.starting) * trace.share for trace in traces)
        # Whether some step is at work whose costs nobody knows yet, so that no need is known either.
        self.guessing = any(trace.active and not trace.units for trace in traces)
        # Workers beyond those that there must be, in cores.
        self.extra = sum((trace.workers - trace.base) * trace.share for trace in traces)

    def has_cores(self, trace: Trace) -> bool:
        """Whether one more worker would find a core, or needs none."""
        return not trace.uses_cpu or self.free > IDLE * self.cores

    def watch(self, seconds: float) -> None:
        """Take in who stalls, and who is idle."""
        for index, trace in enumerate(self.traces):
            hurts = trace.stalled and (self.has_cores(trace) or self.needs[index] > trace.workers)
            lost = trace.lost + seconds if hurts else max(0.0, trace.lost - seconds)
            keep = max(trace.base, ceil(trace.load * KEEP))
            needed = keep >= trace.workers or trace.sight.starting
            quiet, peak = (self.now, 0) if needed else (trace.quiet, max(trace.peak, keep))
            self.traces[index] = trace._replace(lost=lost, quiet=quiet, peak=peak)

    def grow(self) -> None:
        """Give stalled steps what they need, the worst first."""
        stalled = [index for index, trace in enumerate(self.traces) if trace.stalled]
        for index in sorted(stalled, key=lambda index: -self.traces[index].stall):
            trace = self.traces[index]
            wanted, wait = self.wanted(trace, self.needs[index])
            if wanted > trace.workers:
                loss = max(trace.sight.start, wait)
                # Before its first change there is nothing to wait for where so much waits that it is lost for certain.
                certain = trace.units and trace.changed == -inf and trace.stall >= STARTS * loss
                missing = 0.0 if certain else loss - trace.lost
                if missing <= 0:
                    self.add(index, wanted)
                elif self.has_cores(trace):
                    self.soonest = min(self.soonest, missing)

    def wanted(self, trace: Trace, need: float) -> tuple[int, float]:
        """How many workers a stalled step should have, and after how many seconds lost."""
        sight = trace.sight
        # Where no more comes, what waits is all there is, and must be worth the start.
        if sight.ended and trace.stall < 2 * sight.start:
            return 0, 0.0
        headroom = HEADROOM_OF_CPU * trace.share + HEADROOM_OF_WAITING * (1 - trace.share)
        wanted, wait = ceil(need * (1 + headroom)) if need else 2 * trace.workers, PROMPT
        if wanted <= trace.workers <= MORE * need:
            wanted, wait = trace.workers + ceil(trace.workers / 8), SETTLING
        if self.guessing:
            wanted = min(wanted, 2 * trace.workers)
        # No more than there is work for; a pipe that is well filled does not show how much that is.
        filled = not sight.ended and 2 * sight.waiting >= sight.bound
        if not filled:
            wanted = min(wanted, trace.workers + sight.waiting)
        return min(wanted, trace.bound(self.cores)), wait * resting(trace.turns)

    def add(self, index: int, wanted: int) -> None:
        """Give a step more workers, as far as there are cores, or have others give theirs back."""
        trace = self.traces[index]
        lacks = self.needs[index] > SLACK * trace.workers
        reason = f"{figure(trace.stall)} s of work waiting"
        if not self.has_cores(trace):
            if lacks and trace.lost >= 2 * SETTLING * resting(trace.turns):
                self.give_back(f"{reason} for {trace.sight.name}", index)
            return
        over = self.extra + (wanted - trace.workers) * trace.share > self.cores
        if over and lacks and self.free > NOTABLE * self.cores:
            self.give_back(f"{reason} for {trace.sight.name}", index)
        if trace.share:
            wanted = min(wanted, trace.workers + int((self.cores - self.extra) / trace.share + 1e-6))
        if wanted > trace.workers:
            cores = idle_cores(self.free) if trace.uses_cpu else "hardly any CPU needed"
            self.resize(index, wanted, f"{reason}, {cores}")

    def give_back(self, reason: str, receiver: int | None = None) -> None:
        """Have all other steps that use CPU keep no more than they need."""
        for index, trace in enumerate(self.traces):
            need = self.needs[index]
            keep = max(trace.base, ceil(need + 0.2))
            urgent = trace.workers > 2 * need or self.free > URGENT * self.cores
            if (
                index != receiver
                and trace.uses_cpu
                and (need or trace.finished)
                and trace.workers > (keep if self.free > NOTABLE * self.cores else max(keep, SLACK * need + 0.5))
                and self.now - trace.changed >= SETTLING * (1.0 if urgent else resting(trace.turns))
            ):
                self.resize(index, keep, f"{reason}: {enough(keep)} here")

    def moved(self) -> bool:
        """Whether the load seems to have moved to a step that has too few workers for it."""
        pairs = zip(self.traces, self.needs, strict=True)
        return any(trace.stalled and need > MOVED * trace.workers for trace, need in pairs)

    def keep_within_cores(self) -> None:
        """Where the work has changed, let go those for whom there are no cores any more."""
        if self.extra > SLACK * self.cores:
            self.give_back(f"more workers than {figure(self.cores)} cores can serve")

    def shrink(self) -> None:
        """Let go whom nobody needed for long."""
        rest = resting(2 * sum(trace.turns for trace in self.traces))
        for index, trace in enumerate(self.traces):
            idle = self.now - trace.quiet
            if not trace.peak or idle < trace.patience * rest:
                continue
            if trace.peak > WORTH * trace.workers:
                self.traces[index] = trace._replace(quiet=self.now, peak=0)
            else:
                rate = trace.load * trace.pace / trace.service if trace.service else 0.0
                reason = f"idle for {figure(idle)} s: {enough(trace.peak)} for {figure(rate)} items/s"
                self.resize(index, trace.peak, reason)

    def resize(self, index: int, workers: int, reason: str) -> None:
        """Decide."""
        trace = self.traces[index]
        self.decisions.append(Decision(index, trace.workers, workers, reason))
        self.extra += (workers - trace.workers) * trace.share
        self.free -= max(0, workers - trace.workers) * trace.share
        self.traces[index] = trace.resized(workers, self.now)


def resting(turns: float) -> float:
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
