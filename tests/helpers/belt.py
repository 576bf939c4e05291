"""A belt in simulated time: what `conveyor.core.tuning.autoscaling` decides, and how fast the work is done with it.

Law: deterministic by its load, with no clock and no process.  A source fills the first pipe; each worker takes one unit
at a time from the pipe of its step, uses a core and then waits for something that is no core, and hands its outputs on,
or holds them while the pipe behind is full.  The cores are shared evenly by the workers that want one.  What the
policy sees is what a broker can see: CPU and waiting time of units that are done, and how long workers were busy.

`best_split` searches for the fixed numbers of workers that are fastest, which the policy is measured by, and
`random_load` makes loads of ten kinds to measure it on.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from conveyor.core.tuning.autoscaling import PolicyState, Resize, StepLoad, decide

FOREVER = math.inf
Observer = Callable[[PolicyState, Sequence[StepLoad], list[Resize]], None]
# So many random factors are drawn for a step, and used again and again: drawing is slow.
FACTORS = 499


class Job(NamedTuple):
    """One step of a load: what a unit costs, in seconds, and within which bounds its workers may be changed."""

    cpu: float
    wait: float = 0.0
    # How far units differ: 0 not at all, 1 about exponentially, 2 with a heavy tail.
    spread: int = 0
    # What a unit costs from `Load.shift` on; the same where it is None.
    later: tuple[float, float] | None = None
    # How many outputs a unit has, on average.
    outputs: float = 1.0
    bound: int = 100
    least: int = 1
    most: int | None = None
    start: float = 0.02

    @property
    def fixed(self) -> bool:
        """Whether nobody may change the number of workers."""
        return self.least == self.most

    def service(self) -> float:
        """How long a unit takes when no core is missing."""
        return self.cpu + self.wait


class Load(NamedTuple):
    """Steps in a row, what comes into the first, and what it runs on."""

    name: str
    jobs: tuple[Job, ...]
    calls: int
    cores: float
    # When so many units become ready; None: all of them at once.
    arrivals: tuple[tuple[float, int], ...] | None = None
    # After which share of the units the costs become `Job.later`.
    shift: float = 1.0
    # How wrong it is what is measured between two looks, as a standard deviation.
    noise: float = 0.0
    seed: int = 0


class Change(NamedTuple):
    """What was decided, and when."""

    at: float
    decision: Resize


class Outcome(NamedTuple):
    """How a load went."""

    seconds: float
    # When the source had nothing more.
    fed: float
    changes: list[Change]
    split: tuple[int, ...]


def factors(spread: int, numbers: random.Random) -> list[float]:
    """Random factors with a mean of 1."""
    if not spread:
        return [1.0]
    drawn = [
        numbers.expovariate(1.0) if spread == 1 else min(numbers.lognormvariate(0.0, 1.4), 40.0) for _ in range(FACTORS)
    ]
    mean = sum(drawn) / FACTORS
    return [each / mean for each in drawn]


class Place:
    """One step of the belt, its pipe and its workers."""

    def __init__(self, name: str, job: Job, workers: int, seed: int) -> None:
        self.name = name
        self.job = job
        self.factors = factors(job.spread, random.Random(seed))
        self.waiting = 0
        self.taken = 0
        self.up = workers
        self.starting = 0
        self.retiring = 0
        self.busy = 0
        # Outputs that workers still hold: one number for each worker that is blocked.
        self.blocked: deque[int] = deque()
        self.ended = False
        self.owed = 0.0
        self.calls = 0
        self.cpu = 0.0
        self.waited = 0.0
        # Sums of ends less beginnings; with what is under way they give totals at any moment.
        self.busy_seconds = 0.0
        self.blocked_seconds = 0.0

    def begin(self, now: float, shifted: bool) -> tuple[float, float]:
        """Take a unit; return its CPU and waiting time."""
        factor = self.factors[self.taken % len(self.factors)]
        cpu, wait = self.job.later if shifted and self.job.later is not None else self.job[:2]
        self.waiting -= 1
        self.taken += 1
        self.busy += 1
        self.busy_seconds -= now
        return cpu * factor, wait * factor

    def end(self, now: float, cpu: float, wait: float) -> int:
        """Have done with a unit; return how many outputs it has."""
        self.busy -= 1
        self.busy_seconds += now
        self.calls += 1
        self.cpu += cpu
        self.waited += wait
        self.owed += self.job.outputs
        outputs = int(self.owed + 1e-9)
        self.owed -= outputs
        return outputs

    @property
    def done(self) -> bool:
        """Whether it is at its end."""
        return self.ended and not self.waiting and not self.busy and not self.blocked

    @property
    def idle(self) -> int:
        """How many workers could take a unit."""
        return self.up - self.busy - len(self.blocked)

    def resize(self, change: int) -> int:
        """Have more or fewer workers; return how many must be started."""
        if change >= 0:
            self.starting += change
            return change
        cancelled = min(-change, self.starting)
        self.starting -= cancelled
        self.retiring += -change - cancelled
        return 0

    def step_load(self, now: float) -> StepLoad:
        """What is known of this step."""
        return StepLoad(
            name=self.name,
            workers=self.up - self.retiring,
            starting=self.starting,
            least=self.job.least,
            most=self.job.most,
            waiting=self.waiting,
            bound=self.job.bound,
            ended=self.ended,
            calls=self.calls,
            busy=self.busy_seconds + self.busy * now,
            cpu=self.cpu,
            waited=self.waited,
            blocked=self.blocked_seconds + len(self.blocked) * now,
            start=self.job.start,
        )


class Belt:
    """One run of a load, with a fixed split or with the policy."""

    def __init__(self, load: Load, split: Sequence[int] | None = None, watch: Observer | None = None) -> None:
        self.load = load
        self.watch = watch
        self.now = 0.0
        # How much CPU a worker that always wanted a core has had: it runs at the pace at which each of them gets one.
        self.work = 0.0
        self.computing: list[tuple[float, int, int, float, float]] = []
        self.timers: list[tuple[float, int, str, int, float, float]] = []
        self.number = 0
        self.places = [
            Place(
                f"step {index}", job, split[index] if split is not None else max(1, job.least), load.seed * 100 + index
            )
            for index, job in enumerate(load.jobs)
        ]
        self.shift = round(load.shift * load.calls) if load.shift < 1 else load.calls + 1
        self.ready = 0
        self.delivered = 0
        self.fed = 0.0
        self.automatic = split is None
        self.memory = PolicyState()
        self.changes: list[Change] = []
        self.noise = random.Random(load.seed + 7)
        self.seen: list[StepLoad] | None = None
        self.true: list[StepLoad] | None = None

    def run(self) -> Outcome:
        """Do all the work."""
        if self.load.arrivals is None:
            self.ready = self.load.calls
        else:
            for at, count in self.load.arrivals:
                self._timer(at, "arrive", count)
        if self.automatic:
            self._timer(0.0, "decide", 0)
        self._settle(0)
        last = self.places[-1]
        while not last.done:
            self._step()
        return Outcome(
            self.now,
            self.fed,
            self.changes,
            tuple(each.up + each.starting - each.retiring for each in self.places),
        )

    def _timer(self, at: float, what: str, place: int, cpu: float = 0.0, wait: float = 0.0) -> None:
        self.number += 1
        heappush(self.timers, (at, self.number, what, place, cpu, wait))

    def _step(self) -> None:
        computing, timers = self.computing, self.timers
        pace = min(1.0, self.load.cores / len(computing)) if computing else 1.0
        done = self.now + (computing[0][0] - self.work) / pace if computing else FOREVER
        until = timers[0][0] if timers else FOREVER
        if done <= until:
            self.work = computing[0][0]
            self.now = done
            _, _, index, cpu, wait = heappop(computing)
            if wait:
                self._timer(done + wait, "waited", index, cpu, wait)
            else:
                self._done(index, cpu, wait)
            return
        assert until < FOREVER, "nothing will ever happen any more"
        self.work += (until - self.now) * pace
        self.now = until
        _, _, what, index, cpu, wait = heappop(timers)
        if what == "waited":
            self._done(index, cpu, wait)
        elif what == "decide":
            self._decide()
        elif what == "arrive":
            self.ready += index
            self._settle(0)
        else:
            place = self.places[index]
            if place.starting:  # else it was told to leave before it was ready
                place.starting -= 1
                place.up += 1
                self._settle(index)

    def _done(self, index: int, cpu: float, wait: float) -> None:
        place = self.places[index]
        outputs = place.end(self.now, cpu, wait)
        if outputs and index + 1 < len(self.places):
            place.blocked.append(outputs)
            place.blocked_seconds -= self.now
        self._settle(index)

    def _settle(self, index: int) -> None:
        """Move on whatever can move, beginning here."""
        places = self.places
        agenda = [index]
        while agenda:
            index = agenda.pop()
            place = places[index]
            if index + 1 < len(places) and place.blocked and self._hand_on(place, places[index + 1]):
                agenda.append(index + 1)
            if index == 0:
                self._deliver(place)
            if place.retiring and place.idle:
                leaving = min(place.retiring, place.idle)
                place.retiring -= leaving
                place.up -= leaving
            if place.waiting and place.idle:
                for _ in range(min(place.waiting, place.idle)):
                    self._begin(index, place)
                agenda.append(max(0, index - 1))
            if index + 1 < len(places) and place.done and not places[index + 1].ended:
                places[index + 1].ended = True
                agenda.append(index + 1)

    def _deliver(self, first: Place) -> None:
        moved = min(self.ready - self.delivered, first.job.bound - first.waiting)
        first.waiting += moved
        self.delivered += moved
        if not first.ended and self.delivered == self.load.calls:
            first.ended, self.fed = True, self.now

    def _hand_on(self, place: Place, behind: Place) -> bool:
        moved = False
        while place.blocked and behind.waiting < behind.job.bound:
            moved = True
            count = min(place.blocked[0], behind.job.bound - behind.waiting)
            behind.waiting += count
            place.blocked[0] -= count
            if not place.blocked[0]:
                place.blocked.popleft()
                place.blocked_seconds += self.now
        return moved

    def _begin(self, index: int, place: Place) -> None:
        cpu, wait = place.begin(self.now, place.taken >= self.shift)
        if cpu:
            self.number += 1
            heappush(self.computing, (self.work + cpu, self.number, index, cpu, wait))
        else:
            self._timer(self.now + wait, "waited", index, cpu, wait)

    def _sights(self) -> list[StepLoad]:
        true = [place.step_load(self.now) for place in self.places]
        if not self.load.noise:
            return true
        seen = self.seen or true
        before = self.true or true
        self.seen = [self._noisy(*each) for each in zip(seen, before, true, strict=True)]
        self.true = true
        return self.seen

    def _noisy(self, seen: StepLoad, before: StepLoad, true: StepLoad) -> StepLoad:
        grown = {
            field: getattr(seen, field)
            + (getattr(true, field) - getattr(before, field)) * max(0.0, self.noise.gauss(1.0, self.load.noise))
            for field in ("busy", "cpu", "waited", "blocked")
        }
        return true._replace(**grown)

    def _decide(self) -> None:
        step_loads = self._sights()
        self.memory, decisions = decide(self.memory, step_loads, self.load.cores, 0.0, self.now)
        if self.watch is not None:
            self.watch(self.memory, step_loads, decisions)
        for decision in decisions:
            place = self.places[decision.step]
            for _ in range(place.resize(decision.after - decision.before)):
                self._timer(self.now + place.job.start, "started", decision.step)
            self.changes.append(Change(self.now, decision))
            self._settle(decision.step)
        self._timer(max(self.memory.next, self.now + 1e-3), "decide", 0)


def peak_workers(job: Job, cores: float) -> int:
    """The most workers that anybody may give a step: its own bound, or the default one."""
    if job.most is not None:
        return job.most
    share = job.cpu / job.service()
    return math.ceil(cores if share > 0.9 else max(share * cores, min(4 * cores, 32)))


def flows(load: Load) -> list[float]:
    """How many units each step has for one of the first."""
    found = [1.0]
    for job in load.jobs[:-1]:
        found.append(found[-1] * job.outputs)
    return found


def fluid_rate(load: Load) -> float:
    """The most units a second: all cores used all the time, or the busiest step with all its workers at work."""
    works = [flow * job.service() for flow, job in zip(flows(load), load.jobs, strict=True)]
    cpu = sum(flow * job.cpu for flow, job in zip(flows(load), load.jobs, strict=True))
    most = [peak_workers(job, load.cores) for job in load.jobs]
    return min(
        load.cores / cpu if cpu else FOREVER, *(each / work for each, work in zip(most, works, strict=True)), 1e9
    )


def halves(load: Load) -> list[Load]:
    """The parts of a load before and after its costs change."""
    if load.shift >= 1:
        return [load]
    early = round(load.calls * load.shift)
    changed = [job if job.later is None else job._replace(cpu=job.later[0], wait=job.later[1]) for job in load.jobs]
    return [
        load._replace(calls=early, shift=1.0),
        load._replace(calls=load.calls - early, shift=1.0, jobs=tuple(changed)),
    ]


def lower_bound(load: Load) -> float:
    """No split is faster than this."""
    total = sum(half.calls / fluid_rate(half) for half in halves(load))
    return total if load.arrivals is None else max(total, load.arrivals[-1][0])


def best_time(load: Load) -> float:
    """The time of the best fixed split; of the best one for each half where the load shifts."""
    return sum(best_split(half)[0] for half in halves(load))


def best_split(load: Load) -> tuple[float, tuple[int, ...]]:
    """The shortest time of any fixed split within the budget that a local search finds, and the split."""
    times: dict[tuple[int, ...], float] = {}

    def time(split: tuple[int, ...]) -> float:
        if split not in times:
            times[split] = Belt(load, split).run().seconds
        return times[split]

    rate = fluid_rate(load)
    best = tuple(
        max(1, job.least, min(peak_workers(job, load.cores), math.ceil(rate * flow * job.service())))
        for flow, job in zip(flows(load), load.jobs, strict=True)
    )
    improved = True
    while improved:
        improved = False
        for split in neighbours(load, best):
            if time(split) < time(best) * 0.998:
                best, improved = split, True
                break
    return time(best), best


def neighbours(load: Load, split: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Splits that are a little different, all larger at once first."""
    free = [index for index, job in enumerate(load.jobs) if not job.fixed]

    def changed(indices: Sequence[int], by: float) -> tuple[int, ...]:
        found = list(split)
        for index in indices:
            count = math.ceil(split[index] * by) if by > 1 else math.floor(split[index] * by)
            job = load.jobs[index]
            found[index] = max(1, job.least, min(peak_workers(job, load.cores), count))
        return tuple(found)

    def extra(found: tuple[int, ...]) -> float:
        counts = zip(found, load.jobs, strict=True)
        return sum((count - max(1, job.least)) * job.cpu / job.service() for count, job in counts)

    ways = [(free, 1.3)] + [([index], by) for by in (1.3, 0.75) for index in free]
    splits = [changed(indices, by) for indices, by in ways]
    return [found for found in splits if found != split and extra(found) <= load.cores + 1e-9]


CORES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)
KINDS = ("fixed", "bursty", "shifting", "heavy", "waiting", "mixed", "rivals", "long", "small", "slow")


def random_load(kind: str, number: int) -> Load:
    """A load of some kind: a chain of 1 to 6 steps, with work for some 20 to 40 s (minutes where units or starts are long)."""
    numbers = random.Random(f"{kind}-{number}")
    cores = numbers.choice(CORES[:9] if kind == "slow" else CORES)
    steps = numbers.randint(2, 4) if kind == "rivals" else numbers.randint(1, 6)
    seconds = numbers.uniform(*{"long": (40, 100), "slow": (300, 600)}.get(kind, (20, 40)))
    calls = max(numbers.randint(600, 1500), 30 * cores)
    if kind == "long":
        calls = int(cores * seconds / numbers.uniform(2, 13)) + 1
    weights = [10 ** numbers.uniform(-1.5, 0) for _ in range(steps)]
    if kind == "rivals":
        weights = [weight / 10 for weight in weights]
        for index in numbers.sample(range(steps), 2):
            weights[index] = numbers.uniform(0.5, 1)
    costs = [cores * seconds / calls * weight / sum(weights) for weight in weights]
    # Units that are all the same and wait would do so in lockstep, all on the cores and then none.
    spread = {"heavy": 2, "mixed": 1}.get(kind, numbers.choice((0, 0, 1)))
    later = numbers.sample(costs, steps)
    jobs = [
        Job(
            *{
                "waiting": (cost * numbers.choice((0, 0.02)), cost * numbers.uniform(1, 4)),
                "mixed": (cost, cost * numbers.choice((0, 0.3, 1, 3))),
            }.get(kind, (cost, 0.0)),
            spread=spread,
            later=(later[index], 0.0) if kind == "shifting" else None,
            bound=numbers.randint(1, 10) if kind == "small" else min(numbers.choice((10, 100, 1000)), 5 + calls // 20),
            start=numbers.uniform(1, 10) if kind == "slow" else 10 ** numbers.uniform(-2, -0.5),
        )
        for index, cost in enumerate(costs)
    ]
    if steps > 1 and numbers.random() < 0.2:
        index = numbers.randrange(steps)
        jobs[index] = jobs[index]._replace(most=1)
    if steps > 1 and kind not in ("long", "shifting") and numbers.random() < 0.2:
        # One step has several outputs for a unit, or one for several.
        index, outputs = numbers.randrange(steps - 1), numbers.choice((0.25, 0.5, 2, 4))
        jobs[index] = jobs[index]._replace(outputs=outputs)
        jobs[index + 1 :] = [job._replace(cpu=job.cpu / outputs, wait=job.wait / outputs) for job in jobs[index + 1 :]]
    load = Load(
        f"{kind} {number}",
        tuple(jobs),
        calls,
        cores,
        shift=0.5 if kind == "shifting" else 1.0,
        noise=numbers.choice((0, 0.1)),
        seed=number,
    )
    # Those that wait may have many workers.
    load = load._replace(calls=max(calls, int(20 * fluid_rate(load))) if kind in ("waiting", "mixed") else calls)
    if kind == "bursty":
        bursts = numbers.randint(3, 12)
        pause = calls / fluid_rate(load) / bursts * numbers.uniform(1, 2.5)
        parts = [calls // bursts + (index < calls % bursts) for index in range(bursts)]
        load = load._replace(arrivals=tuple((index * pause, part) for index, part in enumerate(parts)))
    return load


def steady_load(kind: str, number: int, seconds: float) -> Load:
    """Such a load for so long, noisy; each third one comes at random, at a rate that the steps could keep up with."""
    load = random_load(kind, number)._replace(noise=0.1)
    rate = fluid_rate(load)
    load = load._replace(calls=int(seconds * rate))
    if number % 3 == 0:
        numbers = random.Random(number)
        rate *= numbers.uniform(0.3, 0.95)
        load = load._replace(calls=int(seconds * rate))
        at = 0.0
        arrivals = []
        for _ in range(load.calls):
            at += numbers.expovariate(rate)
            arrivals.append((at, 1))
        load = load._replace(arrivals=tuple(arrivals))
    return load
