"""What would make a pipeline faster, in sentences, where its plan and its statistics leave no doubt.

Law: rather none than a wrong one.  An advice names what was seen and one change; it is given only where nothing that is
known of the jobs speaks against that change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from conveyor.graph.fusion import ALONE, fused
from conveyor.graph.plan import Plan, SinkNode, StepNode
from conveyor.graph.shared_resources import holds_resource
from conveyor.stages.job_inspection import memory_of
from conveyor.stages.outputs import Fused
from conveyor.stages.processor import Processor
from conveyor.stats import Stats, StepStats

# Less than this says nothing: what starts and ends takes a share of it.
LEAST_SECONDS, LEAST_CALLS = 2.0, 20
# A step holds up the others that has all its workers busy for this share of the time, while each other is busy for no
# more than that share of it.
HELD_UP_SHARE, OTHERS_BUSY_SHARE = 0.5, 0.75
# A core counts as idle that has this much to do at most.
IDLE_CORE_SHARE = 0.1
# Steps are worth fusing where handing items on takes this share of their time, and so many worker seconds in all.
HANDING_ON_SHARE, HANDING_ON_SECONDS, HANDING_ON_CALLS = 0.5, 1.0, 1000
# The results were taken slowly where the last step had no room for this share of its time.
BLOCKED_SHARE = 0.5
# So many reasons are given why nothing was fused.
REASONS = 3
_NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


class Advisor:
    """Gives advice for one plan, which is looked at once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._chains: list[list[str]] | None = None
        self._scalable: dict[str, bool] = {}

    def advice(self, stats: Stats) -> tuple[str, ...]:
        """Return what there is to say, the most important first."""
        return tuple(
            sentence
            for sentence in (
                self._for_workers(stats),
                self._for_fusing(stats),
                self._fused_nothing(),
                self._consumer(stats),
            )
            if sentence
        )

    def _for_workers(self, stats: Stats) -> str:
        """A step with a fixed number of workers holds up the others, and cores are idle."""
        if stats.seconds < LEAST_SECONDS or stats.bottleneck is None:
            return ""
        slow = stats[stats.bottleneck]
        others = [step for step in stats.steps if step is not slow]
        idle = math.floor(stats.cores - stats.cpu_seconds / stats.seconds + IDLE_CORE_SHARE)
        if (
            slow.stalled < HELD_UP_SHARE * stats.seconds
            or slow.units < LEAST_CALLS
            or slow.handing_on > HANDING_ON_SHARE
            or slow.blocked > 1 - OTHERS_BUSY_SHARE
            or any(step.busy > OTHERS_BUSY_SHARE for step in others)
            or idle < 1
            or not self._may_have_more_workers(slow.processor)
        ):
            return ""
        cores = "1 core" if idle == 1 else f"{idle} cores"
        whom = "the others" if others else "the input"
        return f'{slow.processor} held up {whom} with {cores} idle: try workers="auto"'

    def _may_have_more_workers(self, name: str) -> bool:
        """Whether nothing says that several workers may not do it, or that one is what the user wants."""
        if name not in self._scalable:
            step = next((step for step in self._plan.steps if step.name == name), None)
            self._scalable[name] = step is not None and _is_scalable(step)
        return self._scalable[name]

    def _for_fusing(self, stats: Stats) -> str:
        """Steps that can be fused spend their time with handing items on."""
        if any(type(step.processor.job) is Fused for step in self._plan.steps) or self._plan.unfused:
            return ""
        steps = {step.processor: step for step in stats.steps}
        if self._handing_on(list(steps.values())) is None:
            # Before the jobs are looked at.
            return ""
        if self._chains is None:
            jobs = [step.processor.job for step in fused(self._plan).steps]
            self._chains = [[name for name, *_ in job.named] for job in jobs if type(job) is Fused]
        shares = [(self._handing_on([steps[name] for name in chain if name in steps]), chain) for chain in self._chains]
        known = [(share, chain) for share, chain in shares if share is not None and share >= HANDING_ON_SHARE]
        if not known:
            return ""
        share, names = max(known)
        what = f"these {_number(len(names))} steps" if len(names) == len(stats.steps) else _listed(names)
        return f"handing items on takes {100 * share:.0f} % of the time of {what}: try Pipeline(fuse=True)"

    def _handing_on(self, steps: list[StepStats]) -> float | None:
        """Return which share of the time of steps handing items on took, None where that is too little to tell."""
        seconds = sum(step.busy_seconds for step in steps)
        if seconds < HANDING_ON_SECONDS or any(step.units < HANDING_ON_CALLS for step in steps):
            return None
        return sum(step.busy_seconds * step.handing_on for step in steps) / seconds

    def _fused_nothing(self) -> str:
        """Nothing was fused although that was asked for."""
        if not self._plan.unfused or any(type(step.processor.job) is Fused for step in self._plan.steps):
            return ""
        reasons = list(islice(self._reasons(), REASONS)) or ["no two Processors are next to each other"]
        return f"fuse=True fused nothing: {_listed(reasons)}"

    def _reasons(self) -> Iterator[str]:
        for each in self._plan.unfused:
            if each.reason.startswith("it has "):
                yield f"{each.processor} has {each.reason.removeprefix('it has ')}"
            elif each.reason != ALONE:
                yield f"{each.processor} stays alone, as {each.reason}"

    def _consumer(self, stats: Stats) -> str:
        """Whoever takes the results is slower than the steps."""
        nodes = self._plan.nodes
        last = [step.name for step in self._plan.steps if isinstance(nodes[step.to.node], SinkNode)]
        if stats.seconds < LEAST_SECONDS or len(last) != 1:
            return ""
        blocked = max((step.blocked for step in stats.steps if step.processor == last[0]), default=0.0)
        if blocked < BLOCKED_SHARE or stats[last[0]].units < LEAST_CALLS:
            return ""
        share = f"{100 * blocked:.0f} % of the time"
        return f"{last[0]} waited for room for its results {share}: whoever takes them is slower than the steps"


def _is_scalable(step: StepNode) -> bool:
    processor: Processor[object, object] = step.processor
    workers = processor.workers
    return (
        type(processor) is Processor
        and step.workers == step.most == (workers or 1)
        # One worker is most often said for a reason.
        and workers != 1
        and memory_of(processor.job) is None
        and not holds_resource(processor)
    )


def _number(count: int) -> str:
    return _NUMBERS[count - 2] if 2 <= count <= len(_NUMBERS) + 1 else str(count)


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
