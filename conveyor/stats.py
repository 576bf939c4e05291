"""Statistics of a pipeline, as frozen values.

Law: data and its text; nothing here measures anything.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import NamedTuple, dataclass
from conveyor._lean.typing import Any

# A sample of each step is taken after so many seconds; the history holds so many, and is thinned by half when it is
# full.
SAMPLE_SECONDS = 0.25
HISTORY_SAMPLES = 2000
# "1": runs show their progress where they do not say otherwise.  "0": none shows a bar.
PROGRESS_VARIABLE = "CONVEYOR_PROGRESS"
# The address at which pipelines of this process serve a page.
SERVE_VARIABLE = "CONVEYOR_SERVE"


@dataclass(frozen=True)
class Decision:
    """One change of the number of workers of a Processor.

    Fields:
        at: the seconds since the pipeline was opened.
        processor: the name of the Processor.
        before: how many workers it had, with those that were being started.
        after: how many it has now, likewise.
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

    Fields:
        processor: the name of the Processor.
        reason: why it stays alone.

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
    The job itself took `job` seconds, and `retried` attempts were made once more.
    """

    cpu: float = 0.0
    waited: float = 0.0
    job: float = 0.0
    retried: int = 0


@dataclass(frozen=True)
class SlowCall:
    """One of the slowest calls of a Processor.

    Fields:
        number: the number of its item, from 0, in the order in which items came to that Processor in their run; with
            `batch`, that of the first item.
        seconds: how long it took, with all its attempts, but without what it waited for room behind.
        item: the item, or the batch, as `redact` shows it and as the job left it; None where it would have taken too
            long to show it.

    >>> SlowCall(number=7, seconds=1.5, item="'a.jpg'").seconds
    1.5
    """

    number: int
    seconds: float
    item: str | None


@dataclass(frozen=True)
class WorkerStats:
    """What is known of one worker that is up or being started.

    Fields:
        number: no other worker of the pipeline has it, or had it.
        pid: its process id; None where it has no process, or has none yet.
        busy: the share of its time, 0 to 1, in which it had work, or outputs that wait for room; of runs alone.
        memory: the bytes of memory that it occupies; None where the system does not say, or where it has ended.
        first: the number of the first item that it was handed and has not acknowledged; None without any.
        last: the number of the last one.
        item: the number of the item that it is at, where calls take 8 ms or more, or have a timeout; else None.
        seconds: for how long it has been at that item.

    >>> from conveyor import Pipeline, Processor
    >>> with Pipeline(engine="thread").add(Processor(len, workers=2)) as pipeline:
    ...     results = pipeline.run(["a", "bc"])
    ...     [each.number for each in pipeline.stats()["len"].worker_stats]
    [0, 1]
    """

    number: int
    pid: int | None = None
    busy: float = 0.0
    memory: int | None = None
    first: int | None = None
    last: int | None = None
    item: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class SourceStats:
    """What is known of the input of the run that goes on, or was the last.

    Fields:
        pulled: how many items were taken from it.
        total: how many there are, where `total=` says so, or the input is a container that knows it, or an iterator
            over one; else None.
        ended: whether it has no more.

    >>> from conveyor import Pipeline, Processor
    >>> pipeline = Pipeline(engine="inline").add(Processor(len))
    >>> pipeline.run(["a", "bc"])
    [1, 2]
    >>> pipeline.stats().source
    SourceStats(pulled=2, total=2, ended=True)
    """

    pulled: int
    total: int | None
    ended: bool


class StepSample(NamedTuple):
    """What a step was like at one moment; `busy` is in worker seconds, and counts from the opening like the items."""

    workers: int
    waiting: int
    items_in: int
    items_out: int
    failed: int
    busy: float


class Sample(NamedTuple):
    """What all steps were like, so many seconds after the opening, in the order of the pipeline."""

    at: float
    steps: tuple[StepSample, ...]


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
        mean: the seconds that a call took on average; None before the first.
        p50: the median of these seconds; None before the first. Calls of less than 8 ms are timed in chunks. The
            percentiles are then those of the means of the chunks.
        p99: their 99th percentile, likewise.
        busy: the share of the workers' time, 0 to 1, in which they had items.
        cpu: the share of the time of calls, 0 to 1, in which they used a core.  The inline engine does not measure
            it and gives 0.
        blocked: the share of the workers' time, 0 to 1, in which they waited because the next pipe was full.
        stalled: the seconds in which items waited in its pipe while all its workers were busy.
        failed: the items that were given up, also those that `failures` no longer keeps.
        retried: how many attempts were made once more because the job had raised.
        timed_out: how many workers were killed because a call took longer than `timeout`.
        workers_lost: how many workers died that nobody had asked to end.
        bytes_waiting: about how many bytes the items in `waiting` have as pickles; 0 with the inline engine.
        busy_seconds: the worker seconds that `busy` is a share of its workers' time of.
        handing_on: the share of these, 0 to 1, that were not spent in the job: with pickling, and with the way to the
            worker and back.
        slowest: the slowest calls, of those that took 8 ms or more and were timed by themselves: one `SlowCall` each,
            the slowest first, at most 5.
        worker_stats: one `WorkerStats` for each worker that is up or being started; none with the inline engine.

    >>> from conveyor import Pipeline, Processor
    >>> pipeline = Pipeline(engine="inline").add(Processor(str.split, on_error="skip"))
    >>> pipeline.run(["a b", 7])
    [['a', 'b']]
    >>> step = pipeline.stats()["split"]
    >>> step.items_in, step.items_out, step.failed, step.bound
    (2, 1, 1, 65536)
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
    retried: int = 0
    timed_out: int = 0
    workers_lost: int = 0
    bytes_waiting: int = 0
    busy_seconds: float = 0.0
    handing_on: float = 0.0
    slowest: tuple[SlowCall, ...] = ()
    worker_stats: tuple[WorkerStats, ...] = ()


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
        cpu_seconds: the CPU seconds that workers, broker and the caller's process have used since the pipeline was
            opened, as far as they have said; 0 with the inline engine.
        source: what is known of the input; None before the first run.
        results: how many results were given out, in the run that goes on, or was the last.
        history: samples of the steps, oldest first: at most 2,000, at least 0.25 s apart.
        advice: what would make it faster, in sentences, where that is known.

    >>> from conveyor import Pipeline, Processor
    >>> pipeline = Pipeline(engine="inline").add(Processor(len))
    >>> pipeline.run(["a", "bc"])
    [1, 2]
    >>> stats = pipeline.stats()
    >>> stats["len"].items_in, stats.results, stats.decisions, stats.advice
    (2, 2, (), ())
    """

    seconds: float
    cores: int
    steps: tuple[StepStats, ...]
    decisions: tuple[Decision, ...]
    start_method: str | None = None
    start_reason: str = ""
    unfused: tuple[Unfused, ...] = ()
    cpu_seconds: float = 0.0
    source: SourceStats | None = None
    results: int = 0
    history: tuple[Sample, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def bottleneck(self) -> str | None:
        """The name of the Processor with the most `stalled` seconds; None where no items had to wait.

        >>> from conveyor import Pipeline, Processor
        >>> pipeline = Pipeline(engine="inline").add(Processor(len))
        >>> pipeline.run(["a", "bc"]), pipeline.stats().bottleneck
        ([1, 2], 'len')
        """
        worst = max(self.steps, key=lambda step: step.stalled, default=None)
        return worst.processor if worst is not None and worst.stalled > 0 else None

    def __getitem__(self, processor: str) -> StepStats:
        """The statistics of the Processor with this name; raises KeyError where there is none."""
        for step in self.steps:
            if step.processor == processor:
                return step
        known = ", ".join(repr(step.processor) for step in self.steps)
        raise KeyError(f"no Processor is called {processor!r}; there are {known}")

    def to_dict(self, *, history: bool = False) -> dict[str, Any]:
        """Return all of it as dicts, lists, str, numbers, bools and None, as `json` takes them.

        Keys are the names of the fields, of `Stats` itself and of each value in it, and the key "bottleneck".  The
        `history` is long, so it is only there where it is asked for.  No key goes or changes its meaning in a later
        version; more may come.

        >>> from conveyor import Pipeline, Processor
        >>> pipeline = Pipeline(engine="inline").add(Processor(abs))
        >>> pipeline.run([1, -2])
        [1, 2]
        >>> told = pipeline.stats().to_dict()
        >>> told["steps"][0]["items_in"], told["source"]
        (2, {'pulled': 2, 'total': 2, 'ended': True})
        """
        told: dict[str, Any] = _plain(self)
        told["bottleneck"] = self.bottleneck
        if not history:
            del told["history"]
        return told

    def __str__(self) -> str:
        width = max([20, *(len(step.processor) for step in self.steps)])
        troubles = troubles_of(self)
        lines = [
            f"{'processor':{width}} {'workers':>8} {'in':>10} {'out':>10} {'waiting':>8} "
            f"{'mean':>9} {'p99':>9} {'busy':>5} {'CPU':>5}" + "".join(f" {head:>9}" for head, _ in troubles)
        ]
        for step in self.steps:
            workers = (
                f"{step.workers}" if step.most_workers == step.workers else f"{step.workers} (≤{step.most_workers})"
            )
            lines.append(
                f"{step.processor:{width}} {workers:>8} {step.items_in:>10,} {step.items_out:>10,} {step.waiting:>8,} "
                f"{duration(step.mean):>9} {duration(step.p99):>9} {step.busy:>5.0%} {step.cpu:>5.0%}"
                + "".join(f" {getattr(step, name):>9,}" for _, name in troubles)
            )
        bottleneck = self.bottleneck
        if bottleneck is not None:
            lines.append(f"bottleneck: {bottleneck}, {self[bottleneck].stalled:.2f} s of {self.seconds:.2f} s")
        return "\n".join([*lines, *map(str, self.unfused), *map(str, self.decisions), *self.advice])

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the table, and the advice."""
        # By its name: what is told does not know who shows it.
        from importlib import import_module

        html = import_module("conveyor.views.html")
        shown: str = html.in_notebook(f"{html.steps_table(self)}{html.advice_list(self)}")
        return shown


_TROUBLES = (("failed", "failed"), ("retried", "retried"), ("timed out", "timed_out"), ("lost", "workers_lost"))


def troubles_of(stats: Stats) -> list[tuple[str, str]]:
    """Return the kinds of trouble that there was: for each, the head of its column, and the field of `StepStats`."""
    return [(head, name) for head, name in _TROUBLES if any(getattr(step, name) for step in stats.steps)]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    fields = getattr(type(value), "_value_fields", None)
    if fields is not None:
        return {name: _plain(getattr(value, name)) for name in fields}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Fields:
        done: how many items of the input are through: all that came of such an item has left the last Processor, or
            was filtered or given up.  A Processor that gathers items (with `batch` or `finish`) ends their way when it
            has taken them.
        total: how many items there are; None where that is not known yet.
        rate: how many items have got through per second lately; None before the first.  At the end: of the whole run.
        eta: the seconds that the rest will take at that rate; None where that is not known.
        steps: the statistics of each Processor.

    >>> print(Progress(done=410, total=1000, rate=83.0, eta=7.1))
    410 of 1,000 items (41 %), 83 items/s, 7 s left
    """

    done: int
    total: int | None
    rate: float | None
    eta: float | None
    steps: tuple[StepStats, ...] = ()

    def __str__(self) -> str:
        items = "item" if (self.done if self.total is None else self.total) == 1 else "items"
        parts = [f"{self.done:,} {items}"]
        if self.total is not None:
            # 100 % only where all is through.
            percent = 100 * self.done // self.total if self.total else 100
            parts = [f"{self.done:,} of {self.total:,} {items} ({percent} %)"]
        if self.rate is not None:
            parts.append(f"{self.rate:,.0f} items/s" if self.rate >= 10 else f"{self.rate:.2g} items/s")
        if self.eta:
            parts.append(f"{in_words(self.eta)} left")
        return ", ".join(parts)


def in_words(seconds: float) -> str:
    """Return seconds in words.

    >>> in_words(7.1), in_words(187), in_words(7380)
    ('7 s', '3 min 07 s', '2 h 03 min')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def duration(seconds: float | None) -> str:
    """Return seconds as a person reads them.

    >>> duration(None), duration(2.5), duration(0.012), duration(3e-6)
    ('-', '2.5 s', '12 ms', '3 µs')
    """
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


class History:
    """Samples of the steps, oldest first: no more than `HISTORY_SAMPLES`, and no closer than `interval` seconds.

    When it is full, every second sample goes, and the interval doubles.

    >>> history = History()
    >>> for at in range(HISTORY_SAMPLES + 1):
    ...     history.add(Sample(at * 0.25, ()))
    >>> len(history.samples), history.interval
    (1001, 0.5)
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.interval = SAMPLE_SECONDS

    def is_due(self, at: float) -> bool:
        """Whether a sample of that moment is wanted."""
        # The clock that is asked again after a wait may be a little before its end.
        return not self.samples or at >= self.samples[-1].at + self.interval * 0.99

    def add(self, sample: Sample) -> None:
        """Take in a sample, unless it is too close to the one before."""
        if not self.is_due(sample.at):
            return
        if len(self.samples) >= HISTORY_SAMPLES:
            del self.samples[1::2]
            self.interval *= 2
            if not self.is_due(sample.at):
                return
        self.samples.append(sample)

    def take(self) -> tuple[Sample, ...]:
        """Return all samples, and forget them."""
        samples, self.samples = tuple(self.samples), []
        return samples
