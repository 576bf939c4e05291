"""Processor, the element that runs the user's code, and what its class says about that.

Law: a description only.  A Processor is a plain object, because a subclass keeps its state on `self`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, overload
from conveyor.stages.base import Element
from conveyor.stages.settings import PROCESSOR_ARGUMENTS, ProcessorSignature, _ProcessorSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    # Type checkers bring this module with them.  Only its TypeVar has a default before Python 3.13; without one, what a
    # job does not say is Never.
    from typing_extensions import Never, TypeVar, Unpack

    from conveyor.stages.settings import PolicySettings

    In_contra = TypeVar("In_contra", contravariant=True, default=Any)
    Out_co = TypeVar("Out_co", covariant=True, default=Any)

    class UnsolvedJob(Protocol):
        """A job that is generic, as `abs`, `list` and `sum` are: where nothing says of what, it gives any of these.

        Of the other jobs, only one that gives Any, or a collection of Any, is taken for such a one.
        """

        def __call__(
            self, item: Any, /
        ) -> Literal[0] | Sequence[Never] | Set[Never] | Mapping[Never, Any] | Iterator[Never]: ...

else:
    from conveyor._lean.typing import TypeVar

    In_contra = TypeVar("In_contra", contravariant=True)
    Out_co = TypeVar("Out_co", covariant=True)


class Processor(Element, _ProcessorSettings, Generic[In_contra, Out_co]):
    """One user-defined step, which runs in Python processes of its own.

    `job` is a callable of one argument.  What it returns goes on; for None nothing goes on, unless `keep_none`;
    of a generator each yielded value goes on.  `workers` is the number of processes (1), or "auto" to let the pipeline
    decide; with `batch` the job gets lists of so many items (the last may be shorter).  `name` is what it is called in
    errors, pictures and statistics, instead of the name of the job or the class.

    Instead of a job, subclass: `process(item)`, and where wanted `setup()` before the first item, `finish()` at the
    end of a stream (it may return or yield trailing outputs) and `teardown()`; keep any state on `self`.  Open files,
    connections and clients in `setup()`: what was open before, several forked workers would share.  The
    settings may be class attributes, over which those given to an instance win; `super().__init__()` need not be
    called.

    At an item at which the job raises one of `retry_on` (any Exception), it is called again, up to `retries` times (0),
    after a wait of
    `backoff` seconds (0.1) that doubles each time, up to 30, and of which a random part, at most half, is left out.
    With `timeout` (none), a worker that takes so many seconds for one call is killed and replaced, which counts as an
    `ItemTimeoutError` of the item.  What fails for good ends the run ("raise"), or `on_error` says otherwise: "skip"
    leaves the item out; a callable gets the item and the error (what the job raised, an ItemTimeoutError or a
    WorkerDiedError), and returns the one output that goes on in its place, or None for nothing.  What was given up is
    in `Pipeline.failures`.  With `max_items` (no limit), a worker is replaced after so many items, or batches.

    When a worker dies, what it was at runs again in a new one.  A subclass is taken to have state that is lost with its
    worker, which ends the run with WorkerDiedError, unless it has the class attribute `restartable = True`.  So does a
    death in `finish`.

    Raises TypeError or ValueError for an argument it cannot use.

    >>> Processor(len, workers=2)
    Processor(len, workers=2)
    >>> class Count(Processor[object, int]):
    ...     seen = 0
    ...     def process(self, item):
    ...         self.seen += 1
    ...     def finish(self):
    ...         return self.seen
    >>> Count()
    Count()
    """

    # On the class, like the settings, so that a subclass with an `__init__` of its own need not call this one.
    job: Callable[[Any], Any] | None = None

    if TYPE_CHECKING:
        _is_processor: Literal[True]

    # The first overload is for generic jobs.  What they take and give shows when items come, which no checker sees from
    # here: it would take Never for both, and reject every later use.
    @overload
    def __init__(
        self: Processor[Any, Any],
        job: UnsolvedJob,
        *,
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        batch: int | None = None,
        keep_none: bool = False,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    @overload
    def __init__(
        self,
        job: Callable[[list[In_contra]], Iterator[Out_co]],
        *,
        batch: int,
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        keep_none: bool = False,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    @overload
    def __init__(
        self,
        job: Callable[[list[In_contra]], Out_co],
        *,
        batch: int,
        keep_none: Literal[True],
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    @overload
    def __init__(
        self,
        job: Callable[[list[In_contra]], Out_co | None],
        *,
        batch: int,
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        keep_none: Literal[False] = False,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    @overload
    def __init__(
        self,
        job: Callable[[In_contra], Iterator[Out_co]],
        *,
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        batch: None = None,
        keep_none: bool = False,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    @overload
    def __init__(
        self,
        job: Callable[[In_contra], Out_co],
        *,
        keep_none: Literal[True],
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        batch: None = None,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    @overload
    def __init__(
        self,
        job: Callable[[In_contra], Out_co | None],
        *,
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        batch: None = None,
        keep_none: Literal[False] = False,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        batch: int | None = None,
        keep_none: bool = False,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    def __init__(self, job: Any = None, **settings: Any) -> None:
        for name in settings:
            if name not in PROCESSOR_ARGUMENTS:
                known = ", ".join(PROCESSOR_ARGUMENTS)
                raise TypeError(f"{type(self).__name__}: there is no setting {name!r}; there are {known}")
        # Only what was given is set, so that class attributes of a subclass stand.
        if job is not None:
            self.job = job
        for name, value in settings.items():
            setattr(self, name, value)
        # What a worker that imports the script has no use for is not imported with it.
        from conveyor.stages.checks import check_processor

        check_processor(self)

    def process(self, item: Any) -> Any:
        """Turn one item (with `batch`, a list of items) into one output, None, or a generator of outputs."""
        if self.job is None:
            raise TypeError(lacks_job(type(self)))
        return self.job(item)

    def setup(self) -> None:
        """Called once in each worker, before its first item."""

    def finish(self) -> Any:
        """Called at the end of each stream; what it returns or yields goes on after the last item."""
        return None

    def teardown(self) -> None:
        """Called once in each worker, after everything else."""

    def __repr__(self) -> str:
        from conveyor.stages.checks import code_of, setting_code

        if (initialize := type(self).__init__) is not Processor.__init__:
            # What that was called with is not known.
            code = getattr(initialize, "__code__", None)
            nothing = (
                code is not None and code.co_argcount == 1 and not code.co_kwonlyargcount and not code.co_flags & 0xC
            )
            return f"{type(self).__name__}({'' if nothing else '...'})"
        arguments = [] if self.job is None else [code_of(self.job)]
        for name in PROCESSOR_ARGUMENTS:
            if name in vars(self) and (value := getattr(self, name)) != getattr(type(self), name):
                arguments.append(f"{name}={setting_code(value)}")
        return f"{type(self).__name__}({', '.join(arguments)})"


if not TYPE_CHECKING:
    # Both say with what a Processor is made: the class, and the function.
    Processor.__signature__ = Processor.__init__.__wrapped__ = ProcessorSignature(Processor.__init__)


def overrides(processor: Processor[Any, Any], method: str) -> bool:
    """Whether the class of `processor` has a method of its own in the place of that of Processor."""
    return getattr(type(processor), method) is not getattr(Processor, method)


def is_restartable(processor: Processor[Any, Any]) -> bool:
    """Whether a new worker can take the place of one that died: the job is a plain callable, or its class says so."""
    return processor.restartable or not overrides(processor, "process")


def has_finish(processor: Processor[Any, Any]) -> bool:
    """Whether the class of `processor` has a `finish` of its own."""
    return overrides(processor, "finish")


def work_of(processor: Processor[Any, Any]) -> Callable[[Any], Any]:
    """The callable that a worker calls with each item (with `batch`, each list): `process` where the class has one,
    else the job itself.

    >>> work_of(Processor(len)) is len
    True
    """
    if overrides(processor, "process") or processor.job is None:
        return processor.process
    return processor.job


def label(processor: Processor[Any, Any]) -> str:
    """What `processor` is called in plans, pictures and errors: its name, else that of its job or its class.

    >>> label(Processor(len)), label(Processor(lambda item: item)), label(Processor(len, name="measure"))
    ('len', 'lambda', 'measure')
    """
    if processor.name is not None:
        return processor.name
    if type(processor) is not Processor:
        return type(processor).__name__
    return _job_label(processor.job)


def _job_label(job: object) -> str:
    while isinstance(job, functools.partial):
        job = job.func
    name = getattr(job, "__name__", None)
    if not isinstance(name, str):
        return type(job).__name__
    return "lambda" if name == "<lambda>" else name


def lacks_job(kind: type) -> str:
    """Say of a class of Processors that nothing is there to be called."""
    if kind is Processor:
        return "Processor() has no job: pass a callable of one argument, as in Processor(load)"
    name = kind.__name__
    return f"{name} has neither a process method nor a job: define `def process(self, item)` in class {name}"
