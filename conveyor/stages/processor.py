"""Processor, the element that runs the user's code.

Law: it describes and runs nothing.  It is an ordinary mutable object, because a subclass keeps its state on `self`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

from conveyor._lean.dataclasses import assembled
from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, overload
from conveyor.stages.routing import Element
from conveyor.stages.settings import PROCESSOR_ARGUMENTS, ProcessorSignature, _ProcessorSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence, Set

    # Type checkers bring this module with them.  Before Python 3.13 only its TypeVar has a default.  Without a default,
    # a type that the job leaves open is Never.
    from typing_extensions import Never, TypeVar, Unpack

    from conveyor.stages.settings import PolicySettings

    In_contra = TypeVar("In_contra", contravariant=True, default=Any)
    Out_co = TypeVar("Out_co", covariant=True, default=Any)

    class UnsolvedJob(Protocol):
        """A generic job, such as `abs`, `list` and `sum`.  Without an item type, a checker infers one of these results.

        Other jobs match only if they return Any or a collection of Any.
        """

        def __call__(
            self, item: Any, /
        ) -> Literal[0] | Sequence[Never] | Set[Never] | Mapping[Never, Any] | Iterator[Never]: ...

    class AnyOutput:
        """What no job returns.  Of a job that fits no overload, mypy explains the first one that takes a Callable.

        Its message then has the input type that was expected, and leaves the output type open.
        """

else:
    from conveyor._lean.typing import TypeVar

    In_contra = TypeVar("In_contra", contravariant=True)
    Out_co = TypeVar("Out_co", covariant=True)


# How many calls of an async job a worker makes at once, unless the Processor says otherwise.
CONCURRENCY = 100
# CO_COROUTINE and CO_ASYNC_GENERATOR of `inspect`, which is slow to import.
_ASYNC = 0x80 | 0x200


@assembled
class Processor(Element, _ProcessorSettings, Generic[In_contra, Out_co]):
    """One user-defined step, which runs in Python processes of its own.

    Arguments, all but `job` by keyword:

    - `job`: a callable of one argument.  Its return value is the output.  None gives no output, and a generator gives
      each value that it yields.  An `async def` function or an async generator is called many times at once.
    - `name` (a str; None: the name of the job or class): the name in errors, pictures and statistics.
    - `workers` (an int or "auto"; None: 1): how many processes run the job; "auto": the pipeline decides.
    - `batch` (an int; None): the job gets lists of this many items; the last list may be shorter.  None: the job gets
      one item at a time.
    - `per_item` (False): the job gets a list of at most `batch` items and returns as many outputs.  Each goes on by
      itself, in the place of its item; None at a place gives no output.  A list is what waits when a worker is free.
      If the job raises, it is called again with the halves of the list, down to single items, so that a bad item fails
      alone.
    - `batch_timeout` (None): with `per_item`, the seconds that an item waits at most for its list to be filled; None:
      it waits for nothing.
    - `keep_none` (False): whether a None that the job returns is an output.
    - `retries` (0): how many times the job is called again with an item at which it raised one of `retry_on`.
    - `retry_on` (Exception): an exception class, or a tuple of classes.
    - `backoff` (0.1): the seconds before the first retry.  The wait doubles each time, up to 30 seconds.  A random
      part of it, at most half, is left out.
    - `timeout` (None): the seconds that a call may take.  A worker that takes longer is killed and replaced; the call
      of an async job is cancelled first.  The item fails with ItemTimeoutError.
    - `on_error` ("raise"): what happens to an item that failed for good.  "raise" ends the run, and "skip" leaves out
      the item.  A callable gets the item and the error, and returns the output in place of the item; None is no
      output.  The error is the job's own, an ItemTimeoutError or a WorkerDiedError.  `Pipeline.failures` lists the
      items that were given up.
    - `max_items` (None): a worker is replaced after this many items, or batches (with `per_item`, items).
    - `max_workers` (an int; None: as many as help): the greatest number of processes with `workers="auto"`.
    - `concurrency` (None: 100): how many calls of an async job one worker makes at once, in an event loop.  With
      `workers=n`, each of them does.
    - `threads` (None): how many calls of a job one worker makes at once, in threads, 4,096 at most: for a job that
      waits, or lets go of the interpreter lock.  With `workers=n`, each of them does.  A `timeout` kills the worker,
      and the calls beside the one that took too long are made again.
    - `setup` (a callable without arguments; None): called in each worker before its first item.  What it returns, such
      as a model, is `conveyor.worker().state` in the job.

    Instead of passing a job, write a subclass with `process(item)`, and keep its state on `self`.  It may have
    `setup()`, `finish()` and `teardown()` too.  Open files, connections and clients in `setup()`: forked workers share
    whatever was open before.  Class attributes may give the settings, and arguments win over them.  A subclass need
    not call `super().__init__()`.

    When a worker dies, a new worker repeats its unacknowledged items.  If the job is a subclass, the state on `self` is
    lost, and the run ends with WorkerDiedError.  A subclass with the class attribute `restartable = True` goes on.  A
    death in `finish` always ends the run.  A subclass with `threads` has to declare `thread_safe = True`, because its
    calls share one `self`.

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

    # A class attribute, like the settings: a subclass with its own `__init__` need not call this one.
    job: Callable[[Any], Any] | None = None

    if TYPE_CHECKING:
        _is_processor: Literal[True]

    # The first overload is for generic jobs.  A checker cannot know their types here: it would infer Never, and reject
    # every later use.
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

    # No job fits this one, which is there for the message: see `AnyOutput`.
    @overload
    def __init__(
        self,
        job: Callable[[In_contra], AnyOutput],
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
        job: Callable[[list[In_contra]], Iterable[Out_co]],
        *,
        batch: int,
        per_item: Literal[True],
        keep_none: Literal[True],
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    @overload
    def __init__(
        self,
        job: Callable[[list[In_contra]], Iterable[Out_co | None]],
        *,
        batch: int,
        per_item: Literal[True],
        keep_none: Literal[False] = False,
        name: str | None = None,
        workers: int | Literal["auto"] | None = None,
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
        job: Callable[[In_contra], AsyncIterator[Out_co]],
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
        job: Callable[[In_contra], Coroutine[Any, Any, Out_co]],
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
        job: Callable[[In_contra], Coroutine[Any, Any, Out_co | None]],
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
        per_item: bool = False,
        keep_none: bool = False,
        **policy: Unpack[PolicySettings],
    ) -> None: ...

    def __init__(self, job: Any = None, *, setup: Any = None, **settings: Any) -> None:
        for name in settings:
            if name not in PROCESSOR_ARGUMENTS:
                known = ", ".join((*PROCESSOR_ARGUMENTS, "setup"))
                raise TypeError(f"{type(self).__name__}: there is no setting {name!r}; there are {known}")
        # A setting that was not given must not hide a class attribute of a subclass.
        if job is not None:
            self.job = job
        for name, value in settings.items():
            setattr(self, name, value)
        # Imported here: workers that import the script do not need it.
        from conveyor.stages.checks import check_processor, check_setup

        check_processor(self)
        if setup is not None:
            check_setup(self, setup)
            vars(self)["setup"] = setup

    def process(self, item: Any) -> Any:
        """Turn one item (with `batch`, a list of items) into one output, None, or a generator of outputs.

        >>> from conveyor import Pipeline, Processor
        >>> class Words(Processor[str, str]):
        ...     def process(self, item):
        ...         yield from item.split()
        >>> Pipeline(engine="inline").add(Words()).run(["one two", "three"])
        ['one', 'two', 'three']
        """
        if self.job is None:
            raise TypeError(lacks_job(type(self)))
        return self.job(item)

    def setup(self) -> Any:
        """Prepare a worker; called once in each, before its first item.

        >>> from conveyor import Pipeline, Processor
        >>> class Prices(Processor[str, int]):
        ...     def setup(self):
        ...         self.prices = {"tea": 3, "cake": 4}
        ...     def process(self, item):
        ...         return self.prices[item]
        >>> Pipeline(engine="inline").add(Prices()).run(["cake", "tea"])
        [4, 3]
        """
        return None

    def finish(self) -> Any:
        """Return or yield trailing outputs, which follow those of the last item; called at the end of each stream.

        >>> from conveyor import Pipeline, Processor
        >>> class Total(Processor[int, int]):
        ...     total = 0
        ...     def process(self, item):
        ...         self.total += item
        ...     def finish(self):
        ...         return self.total
        >>> Pipeline(engine="inline").add(Total()).run([1, 2, 3])
        [6]
        """
        return None

    def teardown(self) -> Any:
        """Clean up a worker; called once in each, after everything else.

        >>> from conveyor import Pipeline, Processor
        >>> class Lines(Processor[str, None]):
        ...     def setup(self):
        ...         self.lines = []
        ...     def process(self, item):
        ...         self.lines.append(item)
        ...     def teardown(self):
        ...         print(self.lines)
        >>> Pipeline(engine="inline").add(Lines()).run(["a", "b"])
        ['a', 'b']
        []
        """
        return None

    def __repr__(self) -> str:
        from conveyor.stages.checks import code_of, setting_code

        if (initialize := type(self).__init__) is not Processor.__init__:
            # Nobody kept the arguments of the subclass's own `__init__`.
            code = getattr(initialize, "__code__", None)
            nothing = (
                code is not None and code.co_argcount == 1 and not code.co_kwonlyargcount and not code.co_flags & 0xC
            )
            return f"{type(self).__name__}({'' if nothing else '...'})"
        arguments = [] if self.job is None else [code_of(self.job)]
        for name in PROCESSOR_ARGUMENTS:
            if name in vars(self) and (value := getattr(self, name)) != getattr(type(self), name):
                arguments.append(f"{name}={setting_code(value)}")
        if (setup := setup_of(self)) is not None:
            arguments.append(f"setup={setting_code(setup)}")
        return f"{type(self).__name__}({', '.join(arguments)})"


if not TYPE_CHECKING:
    # Tools ask the class or the function for its signature.
    Processor.__signature__ = Processor.__init__.__wrapped__ = ProcessorSignature(Processor.__init__)


def overrides(processor: Processor[Any, Any], method: str) -> bool:
    """Whether the class of `processor` overrides this method of Processor."""
    return getattr(type(processor), method) is not getattr(Processor, method)


def setup_of(processor: Processor[Any, Any]) -> Callable[[], Any] | None:
    """Return the `setup` that was given as an argument; None where there is none."""
    setup: Callable[[], Any] | None = vars(processor).get("setup")
    return setup


def is_restartable(processor: Processor[Any, Any]) -> bool:
    """Whether a new worker can replace a dead one: the job is a plain callable, or its class says so."""
    return processor.restartable or not overrides(processor, "process")


def has_finish(processor: Processor[Any, Any]) -> bool:
    """Whether the class of `processor` overrides `finish`."""
    return overrides(processor, "finish")


def work_of(processor: Processor[Any, Any]) -> Callable[[Any], Any]:
    """Return the callable that a worker calls with each item (with `batch`, each list): `process`, or the job itself.

    >>> work_of(Processor(len)) is len
    True
    """
    if overrides(processor, "process") or processor.job is None:
        return processor.process
    return processor.job


def list_size(processor: Processor[Any, Any]) -> int | None:
    """Return how many items a call takes whose outputs belong to all of them; None: each output belongs to one item."""
    return None if processor.per_item else processor.batch


def hands_of(processor: Processor[Any, Any]) -> int:
    """Return how many items that are calls of their own a worker works on at once."""
    if processor.per_item:
        return processor.batch or 1
    return (processor.concurrency or CONCURRENCY) if is_async(work_of(processor)) else processor.threads or 1


def is_async(call: Any) -> bool:
    """Whether a call of this gives a coroutine or an async generator.

    >>> async def job(item):
    ...     return item
    >>> is_async(job), is_async(functools.partial(job)), is_async(len)
    (True, True, False)
    """
    while isinstance(call, functools.partial):
        call = call.func
    call = getattr(call, "__func__", call)
    code = getattr(call, "__code__", None)
    if code is None and callable(call):
        code = getattr(type(call).__call__, "__code__", None)
    return code is not None and bool(code.co_flags & _ASYNC)


def label(processor: Processor[Any, Any]) -> str:
    """Return the name of `processor` in plans, pictures and errors: its own, or that of its job or class.

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
    """Return the message for a class of Processors that has nothing to call."""
    if kind is Processor:
        return "Processor() has no job: pass a callable of one argument, as in Processor(load)"
    name = kind.__name__
    return f"{name} has neither a process method nor a job: define `def process(self, item)` in class {name}"
