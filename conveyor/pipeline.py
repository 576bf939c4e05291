"""The class `Pipeline`, which a user describes, opens and runs.

Law: only the public class, because every worker that imports the script imports this module.  `operations.py` has the
operations of threads, `stages/` the elements, `graph/` the rules of their order, and `engines/` the running.
"""

from __future__ import annotations

import contextlib
import os
import types
import warnings
from collections.abc import Callable, Mapping

from conveyor._lean.dataclasses import assembled
from conveyor._lean.typing import TYPE_CHECKING, Any, Literal, Protocol, overload
from conveyor._system.signals import interrupts_held
from conveyor.asynchronous import _Asynchronous
from conveyor.inspection import _Inspection
from conveyor.sending import _Sending
from conveyor.stages import BalancingFork, Join, Pipe, Processor, ReplicatingFork
from conveyor.stream import AsyncStream as AsyncStream
from conveyor.stream import Stream as Stream

if TYPE_CHECKING:
    from concurrent.futures import Future

    # Type checkers bring this module with them.  Only its TypeVar has defaults before Python 3.13.
    from typing_extensions import TypeVar

    from conveyor.engines.dask import DaskEngine

    A = TypeVar("A", default=Any)
    B = TypeVar("B", default=Any)
    C = TypeVar("C", default=Any)
    D = TypeVar("D", default=Any)

    # An element on one of several branches.  A Pipe there gives Any, because no type tells which items reach it.
    Step = Processor[Any, A] | Pipe
else:
    from conveyor._lean.typing import TypeVar

    class Future:
        """What `typing.get_type_hints` finds: the class of `concurrent.futures`, imported when somebody asks."""

        def __class_getitem__(cls, result: Any) -> Any:
            from concurrent.futures import Future

            return Future[result]


In = TypeVar("In")
Out = TypeVar("Out")


@assembled
class Pipeline(_Inspection, _Asynchronous[In, Out], _Sending[In, Out]):
    """A chain of elements that runs on all cores.

    All arguments are keywords.  None, the default of most, lets the pipeline choose.

    - `engine`: "process", "thread" or "inline".  With "process" each Processor runs in processes of its own.  With
      "thread" each runs in threads of the calling process and gets the objects themselves, for jobs that release the
      interpreter lock or wait.  With "inline" the calling process runs everything, one item at a time (for a debugger).
      With "dask", or a `conveyor.engines.dask.DaskEngine`, workers are processes of a Dask cluster.
    - `address`: where the scheduler of the cluster is, such as "tcp://head:8786", with engine="dask" alone.  None: the
      program's own Dask client, or else a new cluster on this machine.
    - `start_method`: how processes start.  "fork": jobs may be lambdas and closures.  "forkserver": a fresh process
      forks the workers.  "spawn": each worker is a fresh interpreter.
    - `channel`: "pipe" (on POSIX systems) or "queue" (everywhere).
    - `ordered` (True): results come in the order of the input, then of the branch, then as yielded.  False: they come
      as soon as they are ready.
    - `cores`: how many cores to use; None: those that this process may use.
    - `workers`: "auto" decides while the pipeline runs how many workers each Processor with a plain callable has.  A
      Processor with `workers` of its own keeps to that, a subclass to one worker, and so does one on a branch of
      `BalancingFork(n)`.  None: each has one worker, unless it says otherwise.
    - `max_failures`: a run ends when it has given up more items, or batches, than this int.  A float is the share of
      the items of one Processor.  None: no limit.
    - `keep_failures` (10,000): how many of the items that a run gave up stay in `failures`: the last ones.  None: all.
      `stats` counts all.
    - `fuse` (False): adjacent Processors with plain functions share a process, and each core runs such a process.  It
      helps where passing an item on costs more than the job.  Items are not copied between fused jobs.  A job that may
      remember earlier items stays alone; `stats().unfused` tells which ones did, and why.
    - `seed`: an int from which each worker derives the random numbers of `random`, and of numpy and torch where they
      are loaded.  None: workers derive them from the caller's `random`, and they differ at each opening.  The
      inline and the thread engine ignore it: jobs use the generators of the calling process.
    - `redact`: a callable that takes an item (or a batch) and returns the str that shows it in errors and
      statistics.  None: the shortened repr.
    - `shared`: a dict of objects that every worker reads as `conveyor.worker().shared[name]`, such as a large table.
      They are sent once, and large arrays not at all or through shared memory.  Nobody may change them: arrays are
      read-only.
    - `trace`: the path of a file in the Trace Event Format, for Perfetto or `chrome://tracing`.  It is written when the
      pipeline is closed, or at the end of a run that opened it, and compressed where its name ends in ".gz".

    Any thread may call any method or property at any time.  One thread at a time adds, opens, runs or closes.  Such a
    call of another thread raises StateError meanwhile; only `close` ends the operations of other threads.  `stats` and
    `failures` work at any time.

    Raises TypeError or ValueError for an argument it cannot use, and ImportError where engine="dask" lacks its package.

    >>> Pipeline(engine="inline").add(Processor(str.strip)).add(Pipe()).add(Processor(len)).run([" a ", "bc"])
    [1, 2]
    """

    # To a type checker, a new pipeline is an EmptyPipeline (below).  The `self` of `__init__` tells mypy so, and
    # `__new__` tells other checkers.  `__init__` checks the arguments for both.
    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> EmptyPipeline: ...

    def __init__(  # type: ignore[misc]
        self: EmptyPipeline,
        *,
        engine: Literal["process", "thread", "inline", "dask"] | DaskEngine | None = None,
        address: str | None = None,
        start_method: Literal["fork", "forkserver", "spawn"] | None = None,
        channel: Literal["pipe", "queue"] | None = None,
        ordered: bool = True,
        cores: int | None = None,
        workers: Literal["auto"] | None = None,
        max_failures: int | float | None = None,
        keep_failures: int | None = 10_000,
        fuse: bool = False,
        redact: Callable[[Any], str] | None = None,
        seed: int | None = None,
        shared: Mapping[str, Any] | None = None,
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        # Imported here: a worker that imports the script rarely makes a pipeline.
        from conveyor.engines.base import PipelineSettings
        from conveyor.graph.builder import Description
        from conveyor.operations import Lifecycle

        self._settings = PipelineSettings(
            engine=engine,
            address=address,
            start_method=start_method,
            channel=channel,
            ordered=ordered,
            cores=cores,
            workers=workers,
            max_failures=max_failures,
            keep_failures=keep_failures,
            fuse=fuse,
            redact=redact,
            seed=seed,
            shared=shared,
            trace=trace,
        )
        self._description = Description()
        self._lifecycle = Lifecycle(self._settings, self._description)

    # Describing

    # For type checkers: the input type of a single Processor is checked.  Those of several are not, because no type
    # tells which items reach which branch.  No overload takes any Element: it would let a wrong Processor pass.  And
    # where two overloads fit a type that holds Any, such as `Processor[str, list[Any]]`, mypy infers Any.

    @overload
    def add(self: Pipeline[In, A], element: Processor[A, B], /) -> Pipeline[In, B]: ...

    @overload
    def add(self, *elements: Pipe | ReplicatingFork | BalancingFork | Join[Literal["merge"]]) -> Pipeline[In, Out]: ...

    @overload
    def add(self, *elements: Join[Literal["zip"]]) -> Pipeline[In, tuple[Any, ...]]: ...

    @overload
    def add(self, *elements: ElementOfUnknownKind) -> Pipeline[In, Any]: ...

    # The first one again.  Of those that take one element, pyright explains the last one, and this names both types.
    @overload
    def add(self: Pipeline[In, A], element: Processor[A, B], /) -> Pipeline[In, B]: ...

    @overload
    def add(self, first: Step[A], second: Step[B], /) -> Pipeline[In, A | B]: ...

    @overload
    def add(self, first: Step[A], second: Step[B], third: Step[C], /) -> Pipeline[In, A | B | C]: ...

    @overload
    def add(
        self, first: Step[A], second: Step[B], third: Step[C], fourth: Step[D], /
    ) -> Pipeline[In, A | B | C | D]: ...

    @overload
    def add(
        self, first: Step, second: Step, third: Step, fourth: Step, fifth: Step, /, *others: Step
    ) -> Pipeline[In, Any]: ...

    def add(self, *elements: Any) -> Pipeline[In, Any]:
        """Append one element, or several on parallel branches, and return the pipeline.

        k elements meet m open branches as follows:

        - k is m: one element on each branch.
        - k is 1: a copy on each branch.
        - k divides the number of forks that opened the branches, or m: each element gets a group of neighbours.

        Raises, and leaves the pipeline unchanged:

        - RuleError for an element that cannot stand there;
        - TypeError or ValueError for a Processor that cannot run;
        - StateError while the pipeline is open or running, or while another thread takes long to add an element.

        Warns with ImplicitPipeWarning where a Pipe was missing, and `add` has put one in.

        >>> Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len))
        Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len))
        """
        self._lifecycle.add(elements, stacklevel=2)
        return self

    def __repr__(self) -> str:
        return self._description.code(f"{type(self).__name__}({self._settings.code()})")

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Pipeline cannot be copied or pickled, because it has workers of its own: build another one, "
            "perhaps with a function that returns it"
        )

    def __str__(self) -> str:
        # Imported here: most programs never need it.
        from conveyor.graph import drawing

        return drawing.draw(self._description)

    # Running

    def open(self) -> Pipeline[In, Out]:
        """Start the workers, which set up their jobs and stay until `close`; return the pipeline.

        Raises, with nothing left running:

        - StateError when the pipeline is open already;
        - RuleError when nothing was added;
        - JobPicklingError for a job, or a `redact`, that workers need and that cannot be pickled;
        - MissingMainGuardError in a script without a main guard, where it needs one;
        - ProcessorError where a `setup` raised;
        - WorkerDiedError where workers died in `setup`;
        - ProcessError where a process cannot be started.

        Warns with ImplicitJoinWarning where branches are open at the end.  Warns with SharedResourceWarning where a
        job has a file, connection or client open that several workers would share.

        `with` opens the pipeline too.  An empty pipeline may be entered: its workers start with the first run, and
        elements can be added until then.

        >>> pipeline = Pipeline(engine="inline").add(Processor(len)).open()
        >>> pipeline.run(["a"]), pipeline.run(["bc"])
        ([1], [2])
        >>> pipeline.close()
        """
        self._lifecycle.open(stacklevel=2)
        return self

    def close(self, *, cancel: bool = False, timeout: float | None = None) -> None:
        """Let the workers tear down their jobs, and end them; a run that is going on is given up.

        Items that were submitted are waited for.  `cancel` (False): they are cancelled instead.  `timeout`: after so
        many seconds, the rest of them is cancelled, and the workers are ended; None: there is no limit.

        Does nothing when the pipeline is not open.  Raises ProcessorError where a `teardown` raised, and StateError in
        a callback of a Future while others are pending, unless with `cancel`.  A thread that waits for results of that
        run, or is opening the pipeline, gets StateError.  If another thread is closing it, this call waits for that.

        >>> pipeline = Pipeline(engine="inline").add(Processor(len)).open()
        >>> future = pipeline.submit("word")
        >>> pipeline.close()
        >>> future.result()
        [4]
        """
        self._lifecycle.leave(abort=False, cancel=cancel, timeout=timeout)

    def __del__(self) -> None:
        lifecycle = getattr(self, "_lifecycle", None)
        if lifecycle is None or (lifecycle.session is None and lifecycle.page is None):
            return
        with interrupts_held(finalizing=True):
            ended = lifecycle.was_dropped()
        if ended:
            shown = "a Pipeline"
            # Where Python ends it imports nothing any more.
            with contextlib.suppress(ImportError):
                shown = repr(self)
            warnings.warn(f"{shown} was dropped while it was open: close it", ResourceWarning, stacklevel=2)

    def __enter__(self) -> Pipeline[In, Out]:
        self._lifecycle.open(stacklevel=2, entering=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        self._lifecycle.leave(abort=kind is not None)

    def submit(self, item: In, *, timeout: float | None = None) -> Future[list[Out]]:
        """Send one item through, and return the Future of the list that `run([item])` would return.

        The pipeline has to be open.  Any thread may submit any number of items at once; none waits for what comes of
        another.  An item that fails fails its own Future, with the error that `run` would raise, and the pipeline stays
        open.  `cancel` of the Future succeeds until there is an outcome: what no worker has is dropped, and what has
        begun runs on for nothing.

        Waits while as many items wait for the first Processor as its Pipe holds; `timeout`: for so many seconds at
        most.  A callback that was added to a Future does not wait.  The inline engine returns a Future that is done.

        Raises StateError where the pipeline is not open or is being closed, where a run or a stream goes on, and in a
        process that was forked since; RuleError (rule 9) where a Processor has outputs that belong to no single item;
        TimeoutError where no room came in time; and what `open` raises, where the workers have to be started anew.

        >>> with Pipeline(engine="inline").add(Processor(len)) as pipeline:
        ...     pipeline.submit("word").result()
        [4]
        """
        given: list[Any] = [item]
        del item
        return self._lifecycle.submit(given, timeout, stacklevel=2)


if not TYPE_CHECKING:
    # It is for type checkers alone; there is no such class at run time.
    del Pipeline.__init__.__annotations__["self"]

if TYPE_CHECKING:

    class ElementOfUnknownKind(Protocol):
        """An Element of unknown kind, but no Processor: there the attribute has another type."""

        _is_processor: bool

    class EmptyPipeline(Pipeline[Any, Any]):
        """The type of `Pipeline()`: its first Processor decides the input type.

        It is a class of its own, because a `Pipeline[Any, Any]` would fit every overload.  A checker cannot follow an
        `add` whose result is not used, so such a pipeline is not checked.
        """

        @overload
        def add(self, element: Processor[A, B], /) -> Pipeline[A, B]: ...

        @overload
        def add(self, *elements: ElementOfUnknownKind) -> Pipeline[Any, Any]: ...

        @overload
        def add(self, element: Processor[A, B], /) -> Pipeline[A, B]: ...

        @overload
        def add(self, first: Step, second: Step, /, *others: Step) -> Pipeline[Any, Any]: ...

        def add(self, *elements: Any) -> Any: ...
