"""What a pipeline tells of itself: values that do not change.

Law: frozen data and how it reads; nothing here measures anything.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One change of the number of workers of a step.

    `at` is in seconds since the pipeline was opened; `before` and `after` count the workers that are up or being
    started.

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
    """A Processor that `Pipeline(fuse=True)` left in processes of its own, and the reason in words.

    >>> print(Unfused("parse", "it has timeout of its own"))
    parse: not fused: it has timeout of its own
    """

    processor: str
    reason: str

    def __str__(self) -> str:
        return f"{self.processor}: not fused: {self.reason}"


@dataclass(frozen=True)
class StepStats:
    """What is known of one Processor; totals count from the moment at which the pipeline was opened.

    Fields:
        processor: its name.
        workers: how many are up now.
        starting: how many more are being started.
        most_workers: the most that were up at the same time.
        items_in: the items that its workers have taken up and acknowledged.
        items_out: the outputs that have gone on.
        waiting: the items in the pipe in front and with workers that have not begun them.
        bound: how many items the pipe in front holds.
        units: how many times the job was called: once an item or, with `batch`, once a list.
        mean, p50, p99: seconds that a call took, None before the first. Calls that take less than 8 ms are timed in
            chunks, and the percentiles are those of the chunks' means.
        busy: the share of the workers' time, 0 to 1, in which they had work.
        cpu: the share of the time that calls took in which they used a core; 0 with the inline engine, which does not
            ask.
        blocked: the share of the workers' time in which they could not go on because the pipe behind was full.
        stalled: the seconds in which items waited in front of it while all its workers were busy.
        failed: the items that were given up, however many of them `failures` keeps.
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
    """What `Pipeline.stats()` returns.

    Fields:
        seconds: since the pipeline was opened.
        cores: how many cores its workers may use.
        steps: one `StepStats` for each Processor, in the order of the pipeline.
        decisions: the changes of the numbers of workers, oldest first; at most the newest thousand.
        start_method: how the processes were started: "fork", "forkserver" or "spawn"; None with the inline engine.
        start_reason: why they were started so.
        unfused: with `Pipeline(fuse=True)`, one `Unfused` for each Processor that was not fused with a neighbour, in
            the order of the pipeline.
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
        """The name of the Processor that held up the others for the longest, None where none did."""
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
