"""What broker and workers are told at their start.

Law: plain values, but for jobs and a `redact`, which are themselves where processes are forked, and pickles elsewhere.
"""

from __future__ import annotations

import sys

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.short_repr import Redact
from conveyor._lean.typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conveyor.graph.plan import Plan
    from conveyor.stages.processor import Processor


class Levels(NamedTuple):
    """Which records are made at all, as it was set in the caller when the pipeline was opened."""

    root: int
    disabled: int
    loggers: tuple[tuple[str, int, bool], ...]

    def apply(self) -> None:
        import logging

        root = logging.getLogger()
        root.setLevel(self.root)
        logging.disable(self.disabled)
        for name, level, disabled in self.loggers:
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.disabled = disabled


def levels() -> Levels | None:
    """Return the levels of this process; None where nobody has imported `logging`, let alone set them."""
    if "logging" not in sys.modules:
        return None
    import logging

    root = logging.getLogger()
    loggers = [
        (name, logger.level, bool(logger.disabled))
        for name, logger in list(root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and (logger.level or logger.disabled)
    ]
    return Levels(root.level, root.manager.disable, tuple(loggers))


class WorkerConfig(NamedTuple):
    """What a worker is told at its start.

    `job` is a Processor, or the pickle of one.  `grouped`: the number of outputs of each unit is to be told.  `timed`:
    the broker has to know since when the worker is at each unit.  `most_bytes` is what the pipe holds that its outputs
    go to.  `levels`: what log records it makes.  `redact`, or the pickle of it, shows items in errors.
    Random numbers derive from `seed`, where there is one.  What the job writes to the streams of `sys` in `forwarded`
    goes to the caller.  `settings` are those of the plan.  `place` is that among the workers of its step, from 0 on.
    `shared` are the objects of the pipeline's `shared`, or the pickle of what maps them.  `threads`: how many calls the
    worker makes at once, each in a thread; 0: its job needs none.
    """

    name: str
    job: Processor[Any, Any] | bytes
    batch: int | None
    keep_none: bool
    grouped: bool
    timed: bool
    most_bytes: int
    levels: Levels | None = None
    redact: Redact | bytes | None = None
    by_value: bool = False
    seed: str | None = None
    forwarded: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    place: int = 0
    shared: Mapping[str, Any] | bytes | None = None
    threads: int = 0

    def setting(self, name: str) -> Any:
        """Return what the user set for the pipeline by this name."""
        return dict(self.settings)[name]


class BrokerConfig(NamedTuple):
    """What the broker is told at its start: everything but the jobs themselves is plain data.

    `workers` has one for each step, by the index of its node; `caller` is the process that sends this.
    `import_main`: workers that are fresh interpreters import the script.  `pools`: the pools of native threads that the
    caller had when this process was forked from it, in words.  `tells_story`: the debug log tells what happens.
    `record_to`: the file that events and commands are appended to.  `caller_cpu_seconds`: what the caller's process had
    used before.  `trace_to`: the file that the trace is written to.
    """

    plan: Plan
    workers: dict[int, WorkerConfig]
    channel: str
    start_method: str
    caller: int
    import_main: bool = True
    pools: tuple[str, ...] = ()
    tells_story: bool = False
    record_to: str | None = None
    caller_cpu_seconds: float = 0.0
    trace_to: str | None = None


def without_blobs(config: BrokerConfig) -> tuple[BrokerConfig, list[Any]]:
    """Return the configuration without jobs and `redact`, and those: the sender never copies them on their way."""
    bare = {index: each._replace(job=b"", redact=None) for index, each in config.workers.items()}
    blobs = [blob for each in config.workers.values() for blob in (each.job, each.redact or b"")]
    return config._replace(workers=bare), blobs


def with_blobs(config: BrokerConfig, blobs: list[Any]) -> BrokerConfig:
    """Return the configuration as it was before `without_blobs`."""
    workers = {
        index: each._replace(job=blobs[2 * place], redact=blobs[2 * place + 1] or None)
        for place, (index, each) in enumerate(config.workers.items())
    }
    return config._replace(workers=workers)
