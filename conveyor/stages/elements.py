"""The elements a pipeline is described with: Processor, Pipe, the two forks, Join.

Law: descriptions only.  Nothing here starts, buffers or counts anything.  Pipes, forks and joins are immutable
values; a Processor is a plain object, because a subclass keeps its state on `self`.  What is wrong with one element
by itself is said when it is made; what is wrong with its place is said by `graph/layout.py`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType

from conveyor._lean.dataclasses import dataclass
from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, overload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    # Type checkers bring this module with them.  Only its TypeVar has a default before Python 3.13; without one, what a
    # job does not say is Never.
    from typing_extensions import Never, TypedDict, TypeVar, Unpack

    In_contra = TypeVar("In_contra", contravariant=True, default=Any)
    Out_co = TypeVar("Out_co", covariant=True, default=Any)

    class UnsolvedJob(Protocol):
        """A job that is generic, as `abs`, `list` and `sum` are: where nothing says of what, it gives any of these.

        Of the other jobs, only one that gives Any, or a collection of Any, is taken for such a one.
        """

        def __call__(
            self, item: Any, /
        ) -> Literal[0] | Sequence[Never] | Set[Never] | Mapping[Never, Any] | Iterator[Never]: ...

    class PolicySettings(TypedDict, total=False):
        """What a Processor does about an item at which its job fails."""

        retries: int
        retry_on: type[BaseException] | tuple[type[BaseException], ...]
        backoff: float
        timeout: float | None
        on_error: Literal["raise", "skip"] | Callable[[Any, Exception], Any]
        max_items: int | None

else:
    from conveyor._lean.typing import TypeVar

    In_contra = TypeVar("In_contra", contravariant=True)
    Out_co = TypeVar("Out_co", covariant=True)

How_co = TypeVar("How_co", bound=str, covariant=True)

DEFAULT_MAXSIZE = 65536
"""How many items a Pipe without `maxsize` holds."""

_SETTINGS = (
    "name",
    "workers",
    "batch",
    "keep_none",
    "retries",
    "retry_on",
    "backoff",
    "timeout",
    "on_error",
    "max_items",
)


class _Unsaid:
    """What stands for a setting that was not given."""

    def __repr__(self) -> str:
        return "<as the class says>"


_UNSAID: Any = _Unsaid()

# Of a function whose call gives something to be awaited: CO_COROUTINE and CO_ASYNC_GENERATOR of `inspect`.
_ASYNC = 0x80 | 0x200


class Element:
    """What `Pipeline.add` takes: the base of Processor, Pipe, ReplicatingFork, BalancingFork and Join."""

    if TYPE_CHECKING:
        # There is no such attribute.  By its type, a checker tells a Processor from an Element that may be anything.
        _is_processor: bool


def _check_count(owner: str, argument: str, value: object, *, or_else: str = "") -> None:
    """Raise unless `value` is an int of 1 or more."""
    # bool is an int to Python, and never meant as a count.
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {argument} must be an int of 1 or more{or_else}, not {short(value)}")
    if value < 1:
        raise ValueError(f"{owner}: {argument} must be 1 or more{or_else}, not {short(value)}")


class Processor(Element, Generic[In_contra, Out_co]):
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

    # Defaults on the class, so that a subclass with an `__init__` of its own need not call this one.
    name: str | None = None
    workers: int | Literal["auto"] | None = None
    batch: int | None = None
    keep_none: bool = False
    job: Callable[[Any], Any] | None = None
    retries: int = 0
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception
    backoff: float = 0.1
    timeout: float | None = None
    on_error: Any = "raise"
    max_items: int | None = None
    # Whether a worker of a subclass may be replaced when it dies, with all that it had on `self`.
    restartable: bool = False

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

    def __init__(
        self,
        job: Any = None,
        *,
        name: str | None = _UNSAID,
        workers: int | Literal["auto"] | None = _UNSAID,
        batch: int | None = _UNSAID,
        keep_none: bool = _UNSAID,
        retries: int = _UNSAID,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = _UNSAID,
        backoff: float = _UNSAID,
        timeout: float | None = _UNSAID,
        on_error: Any = _UNSAID,
        max_items: int | None = _UNSAID,
    ) -> None:
        # Only what was given is set, so that class attributes of a subclass stand.
        if job is not None:
            self.job = job
        given = (name, workers, batch, keep_none, retries, retry_on, backoff, timeout, on_error, max_items)
        for setting, value in zip(_SETTINGS, given, strict=True):
            if value is not _UNSAID:
                setattr(self, setting, value)
        check_processor(self)

    def process(self, item: Any) -> Any:
        """Turn one item (with `batch`, a list of items) into one output, None, or a generator of outputs."""
        if self.job is None:
            raise TypeError(_lacks_job(type(self)))
        return self.job(item)

    def setup(self) -> None:
        """Called once in each worker, before its first item."""

    def finish(self) -> Any:
        """Called at the end of each stream; what it returns or yields goes on after the last item."""
        return None

    def teardown(self) -> None:
        """Called once in each worker, after everything else."""

    def __repr__(self) -> str:
        if (initialize := type(self).__init__) is not Processor.__init__:
            # What that was called with is not known.
            code = getattr(initialize, "__code__", None)
            nothing = (
                code is not None and code.co_argcount == 1 and not code.co_kwonlyargcount and not code.co_flags & 0xC
            )
            return f"{type(self).__name__}({'' if nothing else '...'})"
        arguments = [] if self.job is None else [_job_code(self.job)]
        for setting in _SETTINGS:
            if setting in vars(self) and (value := getattr(self, setting)) != getattr(type(self), setting):
                arguments.append(f"{setting}={_setting_code(value)}")
        return f"{type(self).__name__}({', '.join(arguments)})"


def _overrides(processor: Processor[Any, Any], method: str) -> bool:
    return getattr(type(processor), method) is not getattr(Processor, method)


def is_restartable(processor: Processor[Any, Any]) -> bool:
    """Whether a new worker can take the place of one that died: the job is a plain callable, or its class says so."""
    return processor.restartable or not _overrides(processor, "process")


def has_finish(processor: Processor[Any, Any]) -> bool:
    """Whether the class of `processor` has a `finish` of its own."""
    return _overrides(processor, "finish")


def work_of(processor: Processor[Any, Any]) -> Callable[[Any], Any]:
    """The callable that a worker calls with each item (with `batch`, each list): `process` where the class has one,
    else the job itself.

    >>> work_of(Processor(len)) is len
    True
    """
    if _overrides(processor, "process") or processor.job is None:
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


def _job_code(job: object) -> str:
    """`job` as it would stand in code, as far as that can be known."""
    if isinstance(job, functools.partial):
        arguments = [_job_code(job.func), *map(_setting_code, job.args)]
        arguments += [f"{name}={_setting_code(value)}" for name, value in job.keywords.items()]
        return f"partial({', '.join(arguments)})"
    name = getattr(job, "__name__", None)
    if name == "<lambda>" and (code := getattr(job, "__code__", None)) is not None:
        return f"<lambda at {os.path.basename(code.co_filename)}:{code.co_firstlineno}>"
    if not isinstance(name, str):
        return _value_code(job)
    owner = getattr(job, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        return f"{owner.__name__ if isinstance(owner, type) else _owner_code(owner)}.{name}"
    qualified = getattr(job, "__qualname__", name)
    return qualified if isinstance(qualified, str) and "<" not in qualified else name


def _owner_code(owner: object) -> str:
    """Whose method it is: itself where that is a plain value, else its class, as its own `repr` may say much."""
    return short(owner) if type(owner) in (str, bytes, int, float) else f"{type(owner).__name__}(...)"


def _value_code(value: object) -> str:
    """A value as it would stand in code, as far as its own `repr` says so."""
    if type(value).__repr__ is object.__repr__:
        return f"{type(value).__name__}()"
    try:
        return repr(value)
    except BaseException:
        return short(value)


def _setting_code(value: object) -> str:
    """The value of a setting as it would stand in code: classes and functions by their names."""
    if type(value) is tuple:
        return f"({', '.join(map(_setting_code, value))}{',' * (len(value) == 1)})"
    if isinstance(value, type):
        return value.__name__
    return _job_code(value) if callable(value) else _value_code(value)


def _lacks_job(kind: type) -> str:
    if kind is Processor:
        return "Processor() has no job: pass a callable of one argument, as in Processor(load)"
    name = kind.__name__
    return f"{name} has neither a process method nor a job: define `def process(self, item)` in class {name}"


def check_processor(processor: Processor[Any, Any]) -> None:
    """Raise TypeError or ValueError if `processor` cannot run; called when it is made and again when it is added,
    because a subclass may set itself up without `Processor.__init__`."""
    kind = type(processor).__name__
    name, workers, keep_none = processor.name, processor.workers, processor.keep_none
    if processor.job is not None:
        _check_job(kind, processor.job)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"{kind}: name must be a str or None, not {short(name)}")
    if name == "":
        raise ValueError(f"{kind}: name must not be empty; leave it out to use the name of the job")
    if name is not None and not name.isprintable():
        raise ValueError(f"{kind}: name must be printable, without line breaks, not {short(name)}")
    if isinstance(workers, str):
        if workers != "auto":
            raise ValueError(f"{kind}: workers must be an int of 1 or more, 'auto' or None, not {short(workers)}")
    elif workers is not None:
        _check_count(kind, "workers", workers, or_else=", 'auto' or None")
    if processor.batch is not None:
        _check_count(kind, "batch", processor.batch, or_else=" or None")
    if not isinstance(keep_none, bool):
        raise TypeError(f"{kind}: keep_none must be True or False, not {short(keep_none)}")
    if not isinstance(processor.restartable, bool):
        raise TypeError(f"{kind}: restartable must be True or False, not {short(processor.restartable)}")
    _check_policy(kind, processor)
    if _overrides(processor, "process"):
        _check_call(f"{kind}.process", processor.process, "`def process(self, item)`")
    elif processor.job is None:
        raise TypeError(_lacks_job(type(processor)))


def _check_policy(kind: str, processor: Processor[Any, Any]) -> None:
    """Raise TypeError or ValueError for settings about failing items that cannot be used."""
    retries, retry_on, on_error = processor.retries, processor.retry_on, processor.on_error
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"{kind}: retries must be an int of 0 or more, not {short(retries)}")
    if retries < 0:
        raise ValueError(f"{kind}: retries must be 0 or more, not {short(retries)}")
    classes = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if not classes or not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
        raise TypeError(f"{kind}: retry_on must be an exception class or a tuple of some, not {short(retry_on)}")
    _check_seconds(kind, "backoff", processor.backoff, least="0 or more")
    if processor.timeout is not None:
        _check_seconds(kind, "timeout", processor.timeout, least="more than 0")
    if isinstance(on_error, str) or not callable(on_error):
        if on_error not in ("raise", "skip"):
            raise (ValueError if isinstance(on_error, str) else TypeError)(
                f"{kind}: on_error must be 'raise', 'skip' or a callable of an item and its error, "
                f"not {short(on_error)}"
            )
    else:
        _check_call(f"{kind}: on_error", on_error, "a function such as `def on_error(item, error)`", arguments=2)
    if processor.max_items is None:
        return
    _check_count(kind, "max_items", processor.max_items, or_else=", or None for no limit")
    lost = "its `finish` would say" if has_finish(processor) else "is on `self`"
    if has_finish(processor) or not is_restartable(processor):
        remedy = "" if has_finish(processor) else ", or declare `restartable = True` in the class where that is no loss"
        raise ValueError(
            f"{kind}: max_items={processor.max_items} replaces workers, and what {lost} would be lost with each: "
            f"leave it out{remedy}"
        )


def _check_seconds(kind: str, argument: str, value: object, least: str) -> None:
    """Raise unless `value` is a finite number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{kind}: {argument} must be a number of seconds, not {short(value)}")
    # Written so that what is no number fails.
    if not (0 <= value < float("inf")) or (value == 0 and least != "0 or more"):
        raise ValueError(f"{kind}: {argument} must be a finite number of seconds, {least}, not {short(value)}")


def _check_job(kind: str, job: object) -> None:
    if isinstance(job, type) and issubclass(job, Processor):
        raise TypeError(
            f"{kind}({job.__name__}): {job.__name__} is a Processor already; pass the instance, "
            f"{job.__name__}(), where you would pass a Processor"
        )
    if isinstance(job, Element):
        raise TypeError(f"{kind}({short(job)}): the job is an element of a pipeline itself; add {short(job)} as it is")
    if not callable(job):
        raise TypeError(f"{kind}: the job must be a callable of one argument, not {short(job)}")
    _check_call(f"{kind}({_job_code(job)})", job, "a function such as `def job(item)`")


def _takes(function: FunctionType, arguments: int) -> bool:
    """Whether a function takes so many positional arguments and is no coroutine; False where that is not plain."""
    code = function.__code__
    if hasattr(function, "__wrapped__") or hasattr(function, "__signature__") or code.co_flags & _ASYNC:
        return False
    least = code.co_argcount - len(function.__defaults__ or ())
    return not code.co_kwonlyargcount and least <= arguments <= code.co_argcount


def _check_call(what: str, call: Callable[..., Any], remedy: str, arguments: int = 1) -> None:
    """Raise unless `call` takes so many positional arguments and is no coroutine."""
    inner: Any = call
    if type(inner) is FunctionType and _takes(inner, arguments):
        return
    # It takes long to import, and is needed for few.
    import inspect

    while isinstance(inner, functools.partial):
        inner = inner.func
    if not (inspect.isroutine(inner) or isinstance(inner, type)):
        inner = type(inner).__call__
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(f"{what} is async, and nobody would await it: pass {remedy}, which may call asyncio.run itself")
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return  # Some callables written in C do not say what they take.
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        called = "one item" if arguments == 1 else "an item and its error"
        raise TypeError(f"{what} takes {signature}, but is called with {called}: pass {remedy}") from None


@dataclass(frozen=True, repr=False, init=False)
class Pipe(Element):
    """A producer-consumer buffer between two steps, in order; when it is full its producer waits.

    It is full when it holds `maxsize` items, or items of about `maxbytes` bytes as they are pickled, whichever comes
    first; but what the step behind it needs to go on, one item or one batch, always finds room.  Without `maxsize` it
    holds `DEFAULT_MAXSIZE` items; without `maxbytes` a share of the machine's memory, 16 MiB at most.  Raises TypeError
    or ValueError unless each is an int of 1 or more, or None.

    >>> Pipe(), Pipe(10), Pipe(maxbytes=1_000_000), Pipe(maxsize=10, maxbytes=1_000_000)
    (Pipe(), Pipe(maxsize=10), Pipe(maxbytes=1000000), Pipe(maxsize=10, maxbytes=1000000))
    """

    maxsize: int | None
    maxbytes: int | None

    def __init__(self, maxsize: int | None = None, maxbytes: int | None = None) -> None:
        for name, value in (("maxsize", maxsize), ("maxbytes", maxbytes)):
            if value is not None:
                _check_count("Pipe", name, value, or_else=", or None for the default")
            object.__setattr__(self, name, value)

    @property
    def bound(self) -> int:
        """How many items it holds."""
        return DEFAULT_MAXSIZE if self.maxsize is None else self.maxsize

    def __repr__(self) -> str:
        said = (("maxsize", self.maxsize), ("maxbytes", self.maxbytes))
        return f"Pipe({', '.join(f'{name}={value}' for name, value in said if value is not None)})"


@dataclass(frozen=True, repr=False, init=False)
class ReplicatingFork(Element):
    """Each item goes to all of `n` branches; what one branch does to its copy, no other branch sees.

    Raises TypeError or ValueError unless `n` is an int of 1 or more.

    >>> ReplicatingFork(2)
    ReplicatingFork(2)
    """

    n: int

    def __init__(self, n: int) -> None:
        _check_count("ReplicatingFork", "the number of branches", n)
        object.__setattr__(self, "n", n)

    def __repr__(self) -> str:
        return f"ReplicatingFork({self.n})"


@dataclass(frozen=True, repr=False, init=False)
class BalancingFork(Element):
    """Each item goes to one of `n` branches, in turn, passing over a branch whose pipe is stalled.

    Without `n` it opens one branch, of which the pipeline runs as many copies as it sees fit while it runs: at least
    `min`, at most `max`.  Raises TypeError or ValueError for what is not an int of 1 or more, for `min` above
    `max`, and for `n` along with either.

    >>> BalancingFork(3), BalancingFork(), BalancingFork(min=1, max=4)
    (BalancingFork(3), BalancingFork(), BalancingFork(min=1, max=4))
    """

    n: int | None
    min: int | None
    max: int | None

    def __init__(self, n: int | None = None, *, min: int | None = None, max: int | None = None) -> None:
        for name, value in (("n", n), ("min", min), ("max", max)):
            object.__setattr__(self, name, value)
        if self.n is not None:
            _check_count(
                "BalancingFork",
                "the number of branches",
                self.n,
                or_else=", or left out to have it decided while the pipeline runs",
            )
        for name, value in (("min", self.min), ("max", self.max)):
            if value is None:
                continue
            _check_count("BalancingFork", name, value, or_else=" or None")
            if self.n is not None:
                raise ValueError(
                    f"BalancingFork({self.n}, {name}={value}): a fixed number of branches leaves nothing "
                    f"to decide; leave out {self.n} or {name}"
                )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"{self!r}: min must not be more than max, but {self.min} > {self.max}")

    @property
    def auto(self) -> bool:
        """Whether the number of branches is decided while the pipeline runs."""
        return self.n is None

    def __repr__(self) -> str:
        arguments = [] if self.n is None else [str(self.n)]
        arguments += [f"{name}={value}" for name, value in (("min", self.min), ("max", self.max)) if value is not None]
        return f"BalancingFork({', '.join(arguments)})"


@dataclass(frozen=True, repr=False, init=False)
class Join(Element, Generic[How_co]):
    """`n` branches become one stream; without `n`, the branches of the innermost open fork.

    `how="merge"` passes on every output; `how="zip"` makes one tuple per input item, from the branches of a
    ReplicatingFork.  Raises TypeError or ValueError for any other `n` or `how`.

    >>> Join(), Join(2), Join(2, how="zip")
    (Join(), Join(2), Join(2, how='zip'))
    """

    n: int | None
    how: How_co

    @overload
    def __init__(self: Join[Literal["merge"]], n: int | None = None, *, how: Literal["merge"] = "merge") -> None: ...

    @overload
    def __init__(self: Join[Literal["zip"]], n: int | None = None, *, how: Literal["zip"]) -> None: ...

    def __init__(self, n: int | None = None, *, how: Any = "merge") -> None:
        if n is not None:
            _check_count("Join", "the number of branches", n, or_else=", or left out to join the innermost open fork")
        if not isinstance(how, str):
            raise TypeError(f"Join: how must be 'merge' or 'zip', not {short(how)}")
        if how not in ("merge", "zip"):
            raise ValueError(f"Join: how must be 'merge' or 'zip', not {short(how)}")
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "how", how)

    def __repr__(self) -> str:
        arguments = [] if self.n is None else [str(self.n)]
        if self.how != "merge":
            arguments.append(f"how={self.how!r}")
        return f"Join({', '.join(arguments)})"


def check_redact(redact: object) -> None:
    """Raise unless it is None, or can be called with an item."""
    if redact is None:
        return
    if not callable(redact):
        raise TypeError(f"Pipeline: redact must be a callable of one argument, or None, not {short(redact)}")
    _check_call(f"Pipeline: redact={_job_code(redact)}", redact, "a function such as `def redact(item)`")


def code_of(call: object) -> str:
    """A callable as it would stand in code, as far as that can be known.

    >>> code_of(len)
    'len'
    """
    return _job_code(call)
