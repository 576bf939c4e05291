"""The pipeline: what a user describes, opens and runs.

Law: the face of it, and no more, because a worker that imports the script imports this.  What threads do to a pipeline
is in `operations.py`, what elements mean in `stages/`, where they may stand in `graph/`, how they run in `engines/`.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterable

from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, overload
from conveyor._system.signals import interrupts_held
from conveyor.errors import FailedItem
from conveyor.stages import BalancingFork, Join, Pipe, Processor, ReplicatingFork
from conveyor.stats import Stats
from conveyor.stream import Stream as Stream

if TYPE_CHECKING:
    # Type checkers bring this module with them.  Only its TypeVar has defaults before Python 3.13.
    from typing_extensions import TypeVar

    from conveyor.graph.diagram import Graph

    A = TypeVar("A", default=Any)
    B = TypeVar("B", default=Any)
    C = TypeVar("C", default=Any)
    D = TypeVar("D", default=Any)

    # What can stand on one of several branches.  What a Pipe gives there is Any, as nothing says what comes to it.
    Step = Processor[Any, A] | Pipe
else:
    from conveyor._lean.typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class Pipeline(Generic[In, Out]):
    """A chain of elements that runs on all cores.

    All arguments are keywords.  None, the default of most, means: what is best here.

    - `engine`: "process", where each Processor runs in processes of its own, or "inline", where everything runs in
      the calling process, one item at a time (for a debugger).
    - `start_method`: how processes start: "fork" (jobs may be lambdas and closures), "forkserver" (a fresh process
      forks the workers) or "spawn" (each worker is a fresh interpreter).
    - `channel`: "pipe", or "queue" for systems without it.
    - `ordered` (True): whether results come in the order of the input (then of the branch, then as yielded), or as
      they come.
    - `cores`: how many cores to use, instead of those that this process may use.
    - `max_failures`: a run ends that gives up more items, or batches, than this, or (a float) than this share of what
      comes to one Processor; None: no number of them ends it.
    - `keep_failures` (10,000): how many of the items, or batches, that a run has given up `failures` keeps: the last
      ones; None: all.  `stats` counts them all.
    - `fuse` (False): whether adjacent Processors that are plain functions run in one process, as many side by side as
      there are cores: for jobs so small that handing items on costs more than they do.  Nothing is copied between them
      then.  A job that may remember earlier items stays alone; `stats().unfused` says which did, and why.
    - `seed`: an int, from which each worker derives its random numbers (those of `random`, and of numpy and torch where
      they are loaded).  None: each derives them from the state of `random` here, and they differ at each opening.  The
      inline engine does not use it: jobs draw from the generators of the calling process there.
    - `redact`: what shows an item (or a batch) in errors: a callable that takes one, and returns the str that stands
      there instead of its repr; None: its repr, shortened.

    Every method and property may be called from any thread at any time.  One thread at a time adds, opens, runs or
    closes; what another one calls meanwhile raises StateError.  `close` ends what other threads do, and `stats` and
    `failures` disturb nobody.

    Raises TypeError or ValueError for an argument it cannot use.

    >>> Pipeline(engine="inline").add(Processor(str.strip)).add(Pipe()).add(Processor(len)).run([" a ", "bc"])
    [1, 2]
    """

    # To a type checker, a new pipeline is an EmptyPipeline (below).  mypy learns that from the `self` of `__init__`,
    # other checkers from `__new__`, which passes the arguments on to be checked there.
    if TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> EmptyPipeline: ...

    def __init__(  # type: ignore[misc]
        self: EmptyPipeline,
        *,
        engine: Literal["process", "inline"] | None = None,
        start_method: Literal["fork", "forkserver", "spawn"] | None = None,
        channel: Literal["pipe", "queue"] | None = None,
        ordered: bool = True,
        cores: int | None = None,
        max_failures: int | float | None = None,
        keep_failures: int | None = 10_000,
        fuse: bool = False,
        redact: Callable[[Any], str] | None = None,
        seed: int | None = None,
    ) -> None:
        # A worker that imports the script most often makes no pipeline.
        from conveyor.engines.base import PipelineSettings
        from conveyor.graph.builder import Description
        from conveyor.operations import Lifecycle

        self._settings = PipelineSettings(
            engine=engine,
            start_method=start_method,
            channel=channel,
            ordered=ordered,
            cores=cores,
            max_failures=max_failures,
            keep_failures=keep_failures,
            fuse=fuse,
            redact=redact,
            seed=seed,
        )
        self._description = Description()
        self._lifecycle = Lifecycle(self._settings, self._description)

    # Describing

    # For type checkers: a Processor alone has to take what comes.  Of several, each has to take what comes on its own
    # branch, and nothing says which part of all that comes this is; so what several take is not checked.  No overload
    # is for just any Element: it would let the wrong Processor pass, and where two fit a type that holds Any (such as
    # `Processor[str, list[Any]]`), mypy takes Any for the whole.

    @overload
    def add(self: Pipeline[In, A], element: Processor[A, B], /) -> Pipeline[In, B]: ...

    @overload
    def add(self, *elements: Pipe | ReplicatingFork | BalancingFork | Join[Literal["merge"]]) -> Pipeline[In, Out]: ...

    @overload
    def add(self, *elements: Join[Literal["zip"]]) -> Pipeline[In, tuple[Any, ...]]: ...

    @overload
    def add(self, *elements: Unchecked) -> Pipeline[In, Any]: ...

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

    def add(self, *elements: Any) -> Any:
        """Put one element behind what is there, or several on parallel branches, and return the pipeline.

        k elements on m open branches: one each where k is m; a copy on each branch where k is 1; contiguous groups
        where k divides the number of forks that opened the branches, or m.  Raises RuleError for an element that
        cannot stand there, TypeError or ValueError for a Processor that has set itself up so that it cannot run,
        StateError while the pipeline is open or running; the pipeline is then as before.  Where another thread adds
        just now, this one waits for a moment, and raises StateError after that.
        Warns with ImplicitPipeWarning where a Pipe was missing and has been put in.

        >>> Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len))
        Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len))
        """
        self._lifecycle.add(elements, stacklevel=2)
        return self

    def __repr__(self) -> str:
        return self._description.code(f"{type(self).__name__}({self._settings.code()})")

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Pipeline cannot be copied or pickled, as it has workers of its own: build another where one is "
            "wanted, for example with a function that returns it"
        )

    def __str__(self) -> str:
        # What most programs never ask for is not imported at the start of all.
        from conveyor.graph import drawing

        return drawing.draw(self._description)

    # Running

    def open(self) -> Pipeline[In, Out]:
        """Start the workers, and have them set up their jobs; they stay until `close`.

        Raises StateError when the pipeline is open, RuleError when nothing was added, JobPicklingError for a job (or
        `redact`) that has to be sent to a worker and cannot be pickled, MissingMainGuardError in a script that lacks
        the guard, ProcessorError where a `setup` raised, WorkerDiedError where workers die in it, ProcessError where a
        process cannot be started.  Nothing is left running then.  Warns with ImplicitJoinWarning where branches are
        open at the end, with SharedResourceWarning where several workers of a Processor would share what its job has
        open.

        `with` opens the pipeline as well.  One that is empty may be entered so: its workers start with the first run,
        and elements can be added until then.

        >>> pipeline = Pipeline(engine="inline").add(Processor(len)).open()
        >>> pipeline.run(["a"]), pipeline.run(["bc"])
        ([1], [2])
        >>> pipeline.close()
        """
        self._lifecycle.open(stacklevel=2)
        return self

    def close(self) -> None:
        """Have the workers tear down their jobs, and end them; a run still going on is given up.

        Does nothing when the pipeline is not open.  Raises ProcessorError where a `teardown` raised.  Whoever waits for
        the results of a run that is given up so gets StateError, and so does another thread that opens the pipeline.
        Where another thread closes it, this one waits for that.
        """
        self._lifecycle.leave(abort=False)

    def __del__(self) -> None:
        lifecycle = getattr(self, "_lifecycle", None)
        if lifecycle is None or lifecycle.session is None:
            return
        with interrupts_held(finalizing=True):
            ended = lifecycle.was_dropped()
        if ended:
            warnings.warn(f"{self!r} was dropped while it was open: close it", ResourceWarning, stacklevel=2)

    def __enter__(self) -> Pipeline[In, Out]:
        self._lifecycle.open(stacklevel=2, entering=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._lifecycle.leave(abort=kind is not None)

    def run(self, items: Iterable[In] | In) -> list[Out]:
        """Send all items through and return the results.

        `items` is any iterable; a str, bytes, bytearray or what is not iterable is one item.  The process engine pulls
        it in a thread of its own.  Raises what `open` raises, StateError while another run is going on, ProcessorError
        when a job fails, SourceError when the input does, TooManyFailuresError where more is given up than
        `max_failures` allows, ResultError when a result cannot be unpickled here, ProcessError when a process of the
        pipeline ends that should not; nothing is left running then.  Warns with SourceWarning where `items` is a table
        of pandas or polars, which gives its columns.

        >>> Pipeline(engine="inline").add(Processor(len)).run("word")
        [4]
        """
        # Handed over, so that no frame refers to it when it is let go of.
        given: list[Any] = [items]
        del items
        return self._lifecycle.run(self, given, stacklevel=2)

    def stream(self, items: Iterable[In] | In) -> Stream[Out]:
        """Send items through and return an iterator over the results, which come as soon as they are there.

        No more is pulled ahead than the pipes hold.  Closing the iterator, or dropping it, gives up the rest.
        Raises what `run` raises, at once or from the iterator.

        >>> next(Pipeline(engine="inline").add(Processor(len)).stream(["a", "bc"]))
        1
        """
        given: list[Any] = [items]
        del items
        return Stream(self._lifecycle.stream(self, given, stacklevel=2))

    # Looking on

    @property
    def opened(self) -> bool:
        """Whether the pipeline was opened, or entered by `with`, and not closed since.

        >>> with Pipeline(engine="inline") as pipeline:
        ...     results = pipeline.add(Processor(len)).run(["a", "bc"])
        ...     results, pipeline.opened
        ([1, 2], True)
        >>> pipeline.opened, pipeline.closed
        (False, True)
        """
        return self._lifecycle.opened

    @property
    def closed(self) -> bool:
        """Whether it is not `opened`: it was closed, or not opened yet."""
        return not self._lifecycle.opened

    @property
    def failures(self) -> tuple[FailedItem, ...]:
        """What was given up in the run that goes on, or was the last: by Processor, and by number within each.

        Of more than `keep_failures`, these are the last ones.
        Empty before the first run, and for pipelines none of whose Processors has an `on_error`.

        >>> pipeline = Pipeline(engine="inline").add(Processor(int, on_error="skip"))
        >>> pipeline.run(["1", "two", "3"])
        [1, 3]
        >>> [(failed.number, failed.item, failed.error.kind) for failed in pipeline.failures]
        [(1, "'two'", 'ValueError')]
        """
        return self._lifecycle.failures

    def stats(self) -> Stats:
        """Return what is known of each Processor now: how many workers it has, what waits in front of it, how long a
        call takes, which Processor held up the others, and why the balancer did what it did.

        May be called at any time and from any thread; when nothing is up, what was known at the end is returned.
        Totals begin anew each time that the pipeline is opened, or run without being open.  Raises StateError
        before the first time.

        >>> pipeline = Pipeline(engine="inline").add(Processor(len))
        >>> pipeline.run(["a", "bc"])
        [1, 2]
        >>> pipeline.stats()["len"].items_in
        2
        """
        return self._lifecycle.stats()

    def graph(self) -> Graph:
        """Return what was added as nodes and edges: the input, each Processor, fork and Join, and the results.

        Nodes have the names that statistics and errors use.  With `fuse`, Processors that run in one process are one
        node.  `to_mermaid()`, `to_dot()` and `to_svg()` of the graph return pictures, each as a str.  May be called at
        any time and from any thread.

        >>> graph = Pipeline().add(Processor(len)).graph()
        >>> [node.name for node in graph.nodes]
        ['input', 'len', 'results']
        """
        from conveyor._system.limits import usable_cores

        settings = self._settings
        return self._description.graph(
            cores=settings.cores or usable_cores(),
            ordered=settings.ordered,
            # No other engine fuses.
            fuse=settings.fuse and settings.engine in (None, "process"),
        )


if TYPE_CHECKING:

    class Unchecked(Protocol):
        """An Element of which nobody knows what it is; no Processor, as the attribute there has another type."""

        _is_processor: bool

    class EmptyPipeline(Pipeline[Any, Any]):
        """What `Pipeline()` makes: the first Processor says what goes in.

        It is a class of its own, as a `Pipeline[Any, Any]` would pass for a Pipeline of whatever marked it as empty.
        To a type checker it stays what it is, so a pipeline whose `add` is called for its effect alone is not checked.
        """

        @overload
        def add(self, element: Processor[A, B], /) -> Pipeline[A, B]: ...

        @overload
        def add(self, *elements: Unchecked) -> Pipeline[Any, Any]: ...

        @overload
        def add(self, first: Step, second: Step, /, *others: Step) -> Pipeline[Any, Any]: ...

        def add(self, *elements: Any) -> Any: ...
