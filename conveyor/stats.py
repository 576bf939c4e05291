"""Statistics of a pipeline, as frozen values.

Law: data and its text; nothing here measures anything.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import NamedTuple, dataclass


@dataclass(frozen=True)
class Decision:
    """One change of the number of workers of a Processor.

    Fields:
        at: the seconds since the pipeline was opened.
        processor: the name of the Processor.
        before, after: how many workers it had, and has, with those that are being started.
        reason: the reason for the change, in words.

    >>> print(Decision(0.31, "parse", 1, 3, "1.4 s of work waiting, 2 cores idle"))
    parse: 1 → 3 workers: 1.4 s of work waiting, 2 cores idle
    """

    at: float
    processor: str
    before: int
    after: int
    reason: str

    def __str__(self) -> str:
        noun = "worker" if self.after == 1 else "workers"
        return f"{self.processor}: {self.before} → {self.after} {noun}: {self.reason}"


@dataclass(frozen=True)
class Unfused:
    """A Processor that `Pipeline(fuse=True)` did not fuse with another, and the reason in words.

    >>> print(Unfused("parse", "it has timeout of its own"))
    parse: not fused: it has timeout of its own
    """

    processor: str
    reason: str

    def __str__(self) -> str:
        return f"{self.processor}: not fused: {self.reason}"


class Measures(NamedTuple):
    """What a worker measures of its calls, beside the time they took: each a sum since its last reply.

    It used a core for `cpu` seconds, and waited for something that is no core for `waited` seconds.
    """

    cpu: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class StepStats:
    """The statistics of one Processor; totals count from the moment at which the pipeline was opened.

    Fields:
        processor: the name of the Processor.
        workers: how many workers are up now.
        starting: how many more are being started.
        most_workers: the most workers that were up at the same time.
        items_in: the items that its workers have acknowledged.
        items_out: the outputs that have gone on.
        waiting: the items in its pipe, and those that workers have received but not started.
        bound: how many items the pipe in front of it holds.
        units: the calls of the job: one for each item or, with `batch`, for each list.
        mean, p50, p99: the seconds that a call took; None before the first. Calls of less than 8 ms are timed in
            chunks. The percentiles are then those of the means of the chunks.
        busy: the share of the workers' time, 0 to 1, in which they had items.
        cpu: the share of the time of calls, 0 to 1, in which they used a core.  The inline engine does not measure
            it and gives 0.
        blocked: the share of the workers' time, 0 to 1, in which they waited because the next pipe was full.
        stalled: the seconds in which items waited in its pipe while all its workers were busy.
        failed: the items that were given up, also those that `failures` no longer keeps.
    """

    processor: str
    workers: int
    starting: int
    most_workers: int
    items_in: int
    items_out: int
    waiting: int
    bound: int
    units: int
    mean: float | None
    p50: float | None
    p99: float | None
    busy: float
    cpu: float
    blocked: float
    stalled: float
    failed: int


@dataclass(frozen=True)
class Stats:
    """The statistics that `Pipeline.stats()` returns.

    Fields:
        seconds: the seconds since the pipeline was opened.
        cores: how many cores its workers may use.
        steps: one `StepStats` for each Processor, in the order of the pipeline.
        decisions: the changes of the numbers of workers, oldest first; at most the newest thousand.
        start_method: how the processes were started: "fork", "forkserver" or "spawn"; None with the inline engine.
        start_reason: why this start method was chosen.
        unfused: with `Pipeline(fuse=True)`, one `Unfused` for each Processor that stayed alone, in the order of the
            pipeline.
    """

    seconds: float
    cores: int
    steps: tuple[StepStats, ...]
    decisions: tuple[Decision, ...]
    start_method: str | None = None
    start_reason: str = ""
    unfused: tuple[Unfused, ...] = ()

    @property
    def bottleneck(self) -> str | None:
        """The name of the Processor with the most `stalled` seconds; None where no items had to wait."""
        worst = max(self.steps, key=lambda step: step.stalled, default=None)
        return worst.processor if worst is not None and worst.stalled > 0 else None

    def __getitem__(self, processor: str) -> StepStats:
        """The statistics of the Processor with this name; raises KeyError where there is none."""
        for step in self.steps:
            if step.processor == processor:
                return step
        known = ", ".join(repr(step.processor) for step in self.steps)
        raise KeyError(f"no Processor is called {processor!r}; there are {known}")

    def __str__(self) -> str:
        width = max([20, *(len(step.processor) for step in self.steps)])
        lines = [
            f"{'processor':{width}} {'workers':>8} {'in':>10} {'out':>10} {'waiting':>8} "
            f"{'mean':>9} {'p99':>9} {'busy':>5} {'CPU':>5}"
        ]
        for step in self.steps:
            workers = (
                f"{step.workers}" if step.most_workers == step.workers else f"{step.workers} (≤{step.most_workers})"
            )
            lines.append(
                f"{step.processor:{width}} {workers:>8} {step.items_in:>10,} {step.items_out:>10,} {step.waiting:>8,} "
                f"{_duration(step.mean):>9} {_duration(step.p99):>9} {step.busy:>5.0%} {step.cpu:>5.0%}"
            )
        bottleneck = self.bottleneck
        if bottleneck is not None:
            lines.append(f"bottleneck: {bottleneck}, {self[bottleneck].stalled:.2f} s of {self.seconds:.2f} s")
        return "\n".join([*lines, *map(str, self.unfused), *map(str, self.decisions)])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"
