"""What a pipeline and an engine know of each other: the settings that one gives, and the sessions that the other makes.

Law: protocols and values; nothing here runs anything.  A new engine is one module or folder, and one line in `ENGINES`.
To add a setting of a Pipeline, declare it in `PipelineSettings`, name it in the signature of `Pipeline`, and use it:
core, broker and both engines have it as `plan.setting(name)`, a worker as `config.setting(name)`.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from importlib import import_module
from operator import length_hint

from conveyor._lean.dataclasses import NamedTuple, dataclass, replace
from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any, Protocol
from conveyor._system.clock import time
from conveyor.stages.checks import check_redact, setting_code
from conveyor.stages.settings import check_flag, count, declared, optional, setting, settings_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import Future

    from conveyor.diagram import Graph
    from conveyor.engines.loops import LoopClient, Outcome
    from conveyor.errors import FailedItem
    from conveyor.graph.builder import Description
    from conveyor.graph.plan import Plan
    from conveyor.stats import Stats

# Where each engine is: what makes a session, as a module and a name in it.
ENGINES = {
    "process": "conveyor.engines.process:new_session",
    "inline": "conveyor.engines.inline:new_session",
    "thread": "conveyor.engines.thread:new_session",
    "dask": "conveyor.engines.dask:new_session",
}
START_METHODS = ("fork", "forkserver", "spawn")
# The engines by name that fuse steps.
_FUSING = (None, "process", "thread", "dask")
CHANNELS = ("pipe", "queue")
FORKED = "a pipeline belongs to the process that opened it: this one was forked from there since"
# Some 24 MB.
KEPT_FAILURES = 10_000


class Engine(Protocol):
    """Makes sessions: what an entry of `ENGINES` names."""

    def __call__(self, plan: Plan, settings: PipelineSettings, /) -> Session: ...


class Gathering(NamedTuple):
    """How what comes of each item of a run is given out.

    `with_input`: as a pair of the item and a list of its outputs.  `return_exceptions`: an item that was given up has
    its error in the place of its outputs, and the run goes on.
    """

    with_input: bool
    return_exceptions: bool


class RunProgress:
    """How far a run is, as the caller sees it: numbers alone, which stay when the input is gone."""

    def __init__(self, total: int | None = None, number: int = 0) -> None:
        # The number of the run in its session, where that counts them; whether somebody watches its progress; and when
        # it began.
        self.number = number
        self.is_watched = False
        self.began = time.monotonic()
        self.pulled = 0
        # How many items are known to be through; the process engine asks for that where the run is watched.
        self.through = 0
        self.total = total
        # Whether the input has no more.
        self.ended = False
        # How many results were given out, and how many items, or batches, were given up.
        self.results = self.failed = 0
        # Whether all is through.
        self.finished = False

    def added_to(self, stats: Stats) -> Stats:
        """Return statistics with what is known here."""
        from conveyor.stats import SourceStats

        return replace(stats, source=SourceStats(self.pulled, self.total, self.ended), results=self.results)


# What these modules have knows its length at once; the length of other objects may cost a query, or a whole pass.
_PROMPT_MODULES = frozenset({"array", "builtins", "collections", "itertools", "numpy"})


def known_total(items: Iterable[Any]) -> int | None:
    """Return how many items there are, where that is known without asking code of the program; None elsewhere.

    >>> known_total([1, 2]), known_total(iter(range(7))), known_total(each for each in [1, 2])
    (2, 7, None)
    """
    if type(items).__module__ not in _PROMPT_MODULES:
        return None
    hint = length_hint(items, -1)
    return None if hint < 0 else hint


class Outlet(Protocol):
    """Where prints of jobs arrive in this process."""

    # Whether jobs send also what they print to a terminal or a file, from the next run on.
    takes_all: bool
    # Writes to the stream of that name.
    put: Callable[[str, str | bytes], None]


class Session(Protocol):
    """What is up from `open` to `close`: jobs that are set up, in workers or here.

    Any method raises what ended the session; nothing of it is left then.  Any thread may call any method.
    """

    # What was given up in the run that goes on, or was the last.
    failures: deque[FailedItem]

    @property
    def plan(self) -> Plan:
        """What runs."""

    @property
    def names(self) -> list[str]:
        """The names of the Processors, in the order of the plan."""

    @property
    def progress(self) -> RunProgress | None:
        """How far the run is that goes on, or was the last; None before the first."""

    @property
    def prints(self) -> Outlet | None:
        """Where prints of jobs arrive; None where jobs print in this process."""

    @property
    def active(self) -> bool:
        """Whether a run is going on."""

    @property
    def ended(self) -> bool:
        """Whether the session is over, one way or the other."""

    def warn(self, stacklevel: int) -> None:
        """Warn of what the user is to know before anything starts; `stacklevel` is that of `warnings.warn`."""

    def open(self) -> None:
        """Have the jobs set up, and return when they are."""

    def run(self, items: Iterable[Any], gathering: Gathering | None = None) -> Run:
        """Start a run; there is none going on.  `gathering`: what comes of each item is to be told apart."""

    def submit_run(self) -> JobRun:
        """Start a run of items that are submitted one by one; there is none going on."""

    def stats(self) -> Stats | None:
        """Return what is known now, or was known at the end; None where nothing ever was."""

    def trace(self) -> Iterable[str] | None:
        """Return the lines of what the trace holds so far; None where there is none, or nobody answers."""

    def close(self, deadline: float | None = None) -> None:
        """Have the jobs torn down, until the deadline at most; raises ProcessorError where a `teardown` raised."""

    def abort(self) -> None:
        """End everything at once, and raise nothing."""


class Run(Protocol):
    """One stream of items through a session."""

    # Of the results that were yielded last, those that the consumer has not taken yet.
    rest: Iterator[Any]

    @property
    def progress(self) -> RunProgress:
        """How far it is."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""

    def chunks(self) -> Generator[list[Any], None, None]:
        """Yield the results in lists, as they come; closing the iterator gives the run up."""

    def conclude(self) -> bool:
        """Where a consumer stops that has taken the last result, end the run in peace; return whether that is so.

        Nothing is under way any more then but calls of `finish`.  They get the time that they need, and what they still
        give is dropped.  Raises what they raise.
        """

    def cancel(self) -> None:
        """Give the run up; does nothing where it is over."""


class JobRun(Protocol):
    """A run of items that are submitted one by one, from any thread.  A deadline is by the monotonic clock."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""

    def submit(self, item: Any, deadline: float | None) -> Future[list[Any]] | None:
        """Return the Future of an item; None where no more are taken.

        Raises TimeoutError where no room comes for it before the deadline.
        """

    def client(self, loop: AbstractEventLoop) -> LoopClient:
        """Return what submits the items of an event loop, in the thread of that loop."""

    def offer(self, outcome: Outcome) -> bool:
        """Take an item, as `Taker` says."""

    def close_if_idle(self) -> bool:
        """Take no more items, where none is pending; return whether that is so."""

    def drain(self, deadline: float | None) -> bool:
        """Take no more items, and wait for the outcome of each, or for the deadline; return whether all have one."""

    def finish(self, deadline: float | None = None) -> bool:
        """End the stream of items, and wait for that, or for the deadline; return whether it has ended.

        Raises what it ends with.
        """

    def cancel(self) -> None:
        """Give the run up, and cancel all that has no outcome."""


def _one_of(choices: Collection[str]) -> Callable[[str, Any], None]:
    def check(what: str, value: Any) -> None:
        if value is not None and not (isinstance(value, str) and value in choices):
            raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}, or None, not {short(value)}")

    return check


def _check_engine(what: str, value: Any) -> None:
    if not hasattr(value, "check_settings"):
        _one_of(ENGINES)(what, value)


def _check_address(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f'{what} must be a str such as "tcp://head:8786", or None, not {short(value)}')


def _check_channel(what: str, value: Any) -> None:
    _one_of(CHANNELS)(what, value)
    if value == "pipe" and sys.platform == "win32":
        raise ValueError(f'{what}="pipe" needs a POSIX system; leave it out, or use "queue"')


def _check_workers(what: str, value: Any) -> None:
    if value not in (None, "auto"):
        raise ValueError(f"{what} must be 'auto' or None, not {short(value)}: give a number to a Processor")


def _check_shared(what: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{what} must be a mapping from names (str) to objects, or None, not {short(value)}")


def _check_max_failures(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{what} must be an int (a number of items), a float (a share of them) or None, not {short(value)}"
        )
    # Written so that what is no number fails.
    if not (value >= 0 and (isinstance(value, int) or value <= 1)):
        raise ValueError(f"{what} must be 0 or more, and a share at most 1.0, not {short(value)}")


def _check_seed(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, or None, not {short(value)}")


def _check_path(what: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{what} must be the path of a file as a str or a path object, or None, not {short(value)}")
    if not os.fspath(value):
        raise ValueError(f"{what} must name a file, not {short(value)}")


# The settings that only the caller reads, or that are no plain data.
_OF_THE_CALLER = frozenset({"redact", "shared", "workers"})


@dataclass(frozen=True)
@declared
class PipelineSettings:
    """The settings of a Pipeline, checked; what each of them means says the docstring of `Pipeline`."""

    engine: Any = setting(None, _check_engine, "What runs the plan.")
    address: str | None = setting(None, optional(_check_address), "Where the scheduler of a cluster is.")
    start_method: str | None = setting(None, _one_of(START_METHODS), "How processes start.")
    channel: str | None = setting(None, _check_channel, "What a worker and the broker talk through.")
    ordered: bool = setting(True, check_flag, "Whether results come in the order of the input.")
    cores: int | None = setting(None, optional(count(1, ", or None")), "How many cores to use.")
    workers: str | None = setting(None, _check_workers, "How many workers a plain callable has.")
    max_failures: int | float | None = setting(
        None, optional(_check_max_failures), "More failures than this end a run."
    )
    keep_failures: int | None = setting(KEPT_FAILURES, optional(count(0, ", or None")), "How many failures are kept.")
    fuse: bool = setting(False, check_flag, "Whether adjacent plain functions run in one process.")
    redact: Callable[[Any], str] | None = setting(None, check_redact, "What shows an item in errors.")
    seed: int | None = setting(None, optional(_check_seed), "What random numbers of workers derive from.")
    shared: Mapping[str, Any] | None = setting(None, optional(_check_shared), "What all workers read.")
    trace: str | os.PathLike[str] | None = setting(None, optional(_check_path), "Where the trace is written.")

    def __post_init__(self) -> None:
        for name, each in settings_of(type(self)).items():
            each.check(f"Pipeline: {name}", getattr(self, name))
        if self.trace is not None and self.engine == "inline":
            raise ValueError(
                f"Pipeline: trace={os.fspath(self.trace)!r} needs workers to tell of, and engine={self.engine!r} "
                "has none: leave one of the two out"
            )
        if self.address is not None and self.engine != "dask":
            raise TypeError(
                f"Pipeline: address={self.address!r} says where a cluster is, and engine={self.engine!r} uses none: "
                'leave it out, or use engine="dask"'
            )
        if self.engine == "dask" or hasattr(self.engine, "check_settings"):
            engine_of(self).check_settings(self)

    def plain(self) -> tuple[tuple[str, Any], ...]:
        """Return the names and values that are plain data and that any process may need."""
        names = [name for name in settings_of(type(self)) if name not in _OF_THE_CALLER]
        # An engine that the user has made may hold what only this process can have.
        named = {} if self.engine is None or isinstance(self.engine, str) else {"engine": repr(self.engine)}
        return tuple((name, named.get(name, getattr(self, name))) for name in names)

    def graph_of(self, description: Description) -> Graph:
        """Return the graph of what was added, as it runs with these settings."""
        from conveyor._system.limits import usable_cores

        return description.graph(
            cores=self.cores or usable_cores(),
            ordered=self.ordered,
            auto=self.workers == "auto",
            # Neither the inline engine nor one that the user has made fuses.
            fuse=self.fuse and (self.engine in _FUSING or getattr(self.engine, "fuses", False)),
        )

    def code(self) -> str:
        """Return what differs from the defaults, as it would stand in a call."""
        given = [(name, getattr(self, name), each.default) for name, each in settings_of(type(self)).items()]
        return ", ".join(f"{name}={_code_of(name, value)}" for name, value, default in given if value != default)


def _code_of(name: str, value: Any) -> str:
    if name == "shared":
        # What a name stands for may be large.
        return f"{{{', '.join(f'{each!r}: ...' for each in value)}}}"
    return setting_code(value)


def new_session(plan: Plan, settings: PipelineSettings) -> Session:
    """Return a session of the engine that the settings name; only that engine is imported."""
    engine: Engine = engine_of(settings)
    return engine(plan, settings)


def engine_of(settings: PipelineSettings) -> Any:
    """Return the engine that the settings name, or hold."""
    if hasattr(settings.engine, "check_settings"):
        return settings.engine
    module, _, name = ENGINES[settings.engine or "process"].partition(":")
    return getattr(import_module(module), name)
