"""Statistics in the text format of Prometheus, version 0.0.4.

Law: pure; statistics in, text out.  Names keep to the conventions of Prometheus: base units, `_total` behind what only
grows, one label `processor`.  Totals begin anew when the pipeline is opened, which Prometheus takes for a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from conveyor._lean.typing import Any
from conveyor.stats import Stats, StepStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Of each Processor: the name, the kind, the sentence, and the value.
_OF_STEPS: Sequence[tuple[str, str, str, Callable[[StepStats], float]]] = (
    ("items_in_total", "counter", "Items that workers have acknowledged.", lambda step: step.items_in),
    ("items_out_total", "counter", "Outputs that have gone on.", lambda step: step.items_out),
    ("items_failed_total", "counter", "Items that were given up.", lambda step: step.failed),
    ("retries_total", "counter", "Attempts that were made once more.", lambda step: step.retried),
    ("timeouts_total", "counter", "Workers killed as a call took longer than timeout.", lambda step: step.timed_out),
    ("workers_lost_total", "counter", "Workers that died unasked.", lambda step: step.workers_lost),
    ("busy_seconds_total", "counter", "Worker seconds with work.", lambda step: step.busy_seconds),
    ("stalled_seconds_total", "counter", "Seconds in which items waited for busy workers.", lambda step: step.stalled),
    ("workers", "gauge", "Workers that are up.", lambda step: step.workers),
    ("workers_starting", "gauge", "Workers that are being started.", lambda step: step.starting),
    ("items_waiting", "gauge", "Items that no worker has begun.", lambda step: step.waiting),
    ("items_waiting_limit", "gauge", "Items that the pipe in front holds.", lambda step: step.bound),
    ("waiting_bytes", "gauge", "Bytes of the items that wait, as pickles.", lambda step: step.bytes_waiting),
    (
        "worker_memory_bytes",
        "gauge",
        "Memory that the workers occupy, in sum.",
        lambda step: sum(each.memory or 0 for each in step.worker_stats),
    ),
    ("busy_ratio", "gauge", "Share of the workers' time with work.", lambda step: step.busy),
    ("blocked_ratio", "gauge", "Share of the workers' time behind a full pipe.", lambda step: step.blocked),
    ("cpu_ratio", "gauge", "Share of the time of calls on a core.", lambda step: step.cpu),
)


def metrics_text(stats: Stats | None, is_open: bool, version: str) -> str:
    """Return all metrics; `stats` is None before the first run.

    >>> print(metrics_text(None, False, "1.0"), end="")
    # HELP conveyor_info The version of Conveyor, and how its processes start.
    # TYPE conveyor_info gauge
    conveyor_info{version="1.0",start_method=""} 1
    # HELP conveyor_open Whether the workers are up: 1 or 0.
    # TYPE conveyor_open gauge
    conveyor_open 0
    """
    method = "" if stats is None else stats.start_method or ""
    lines = _metric(
        "info",
        "gauge",
        "The version of Conveyor, and how its processes start.",
        [("", {"version": version, "start_method": method}, 1)],
    )
    lines += _metric("open", "gauge", "Whether the workers are up: 1 or 0.", [("", {}, int(is_open))])
    if stats is not None:
        lines += _of_the_pipeline(stats)
        for name, kind, said, value_of in _OF_STEPS:
            lines += _metric(
                name, kind, said, [("", {"processor": each.processor}, value_of(each)) for each in stats.steps]
            )
        said = "Seconds that a call took; those of less than 8 ms are timed in chunks."
        lines += _metric("call_seconds", "summary", said, [each for step in stats.steps for each in _summary(step)])
    return "\n".join([*lines, ""])


Value = tuple[str, dict[str, Any], float]


def _of_the_pipeline(stats: Stats) -> list[str]:
    lines = _metric("up_seconds", "gauge", "Seconds since the pipeline was opened.", [("", {}, stats.seconds)])
    lines += _metric("cores", "gauge", "Cores that the workers may use.", [("", {}, stats.cores)])
    said = "CPU seconds of workers, broker and caller."
    lines += _metric("cpu_seconds_total", "counter", said, [("", {}, stats.cpu_seconds)])
    said = "Results that were given out, in the run that goes on or was the last."
    lines += _metric("results_total", "counter", said, [("", {}, stats.results)])
    if stats.source is not None:
        said = "Items that were taken from the input, in the run that goes on or was the last."
        lines += _metric("source_items_total", "counter", said, [("", {}, stats.source.pulled)])
        if stats.source.total is not None:
            said = "Items that the input has."
            lines += _metric("source_items_expected", "gauge", said, [("", {}, stats.source.total)])
    return lines


def _summary(step: StepStats) -> list[Value]:
    labels = {"processor": step.processor}
    values: list[Value] = [
        ("", {**labels, "quantile": name}, value)
        for name, value in (("0.5", step.p50), ("0.99", step.p99))
        if value is not None
    ]
    return [*values, ("_sum", labels, step.units * (step.mean or 0.0)), ("_count", labels, step.units)]


def _metric(name: str, kind: str, said: str, values: Iterable[Value]) -> list[str]:
    """Return the lines of one metric; each value has what stands behind the name, and its labels."""
    lines = [f"# HELP conveyor_{name} {said}", f"# TYPE conveyor_{name} {kind}"]
    for suffix, labels, value in values:
        held = ",".join(f'{label}="{escaped(str(text))}"' for label, text in labels.items())
        lines.append(f"conveyor_{name}{suffix}{held and f'{{{held}}}'} {value!r}")
    return lines


def escaped(text: str) -> str:
    r"""Return the value of a label.

    >>> print(escaped('a "b" \\ c\nd'))
    a \"b\" \\ c\nd
    """
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
