"""The pipeline: what a user describes, opens and runs.

Law: holds a description and, while it is up, a session; checks that nobody changes the one during the other.
What elements mean is in `stages/`, where they may stand in `graph/layout.py`, how they run in `engines/`.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterable

from conveyor._lean.dataclasses import replace
from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, overload
from conveyor._system.cpu import usable_cores
from conveyor._system.memory import usable_memory
from conveyor._system.signals import interrupts_held
from conveyor.errors import FailedItem, StartMethodWarning, StateError
from conveyor.graph.builder import Description
from conveyor.graph.fusion import fused
from conveyor.operations import (
    ADD,
    ADDED_TOO_LATE,
    CLOSE,
    ENDING_SECONDS,
    OPEN,
    RUN,
    Claim,
    Operation,
    Turn,
    closed,
    refusal,
)
from conveyor.stages.checks import check_redact
from conveyor.stages.processor import Processor
from conveyor.stages.routing import BalancingFork, Join, Pipe, ReplicatingFork
from conveyor.stages.source_code import code_of
from conveyor.stats import Stats
from conveyor.stream import Guard, Running
from conveyor.stream import Stream as Stream

if TYPE_CHECKING:
    # Type checkers bring this module with them.  Only its TypeVar has defaults before Python 3.13.
    from typing_extensions import TypeVar

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

ENGINES = ("process", "inline")
START_METHODS = ("fork", "forkserver", "spawn")
CHANNELS = ("pipe", "queue")
# Some 24 MB.
KEPT_FAILURES = 10_000


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
        keep_failures: int | None = KEPT_FAILURES,
        fuse: bool = False,
        redact: Callable[[Any], str] | None = None,
        seed: int | None = None,
    ) -> None:
        _check_choice("engine", engine, ENGINES)
        _check_choice("start_method", start_method, START_METHODS)
        _check_choice("channel", channel, CHANNELS)
        if channel == "pipe" and sys.platform == "win32":
            raise ValueError('Pipeline: channel="pipe" needs a POSIX system; leave it out, or use "queue"')
        if not isinstance(ordered, bool):
            raise TypeError(f"Pipeline: ordered must be True or False, not {short(ordered)}")
        if not isinstance(fuse, bool):
            raise TypeError(f"Pipeline: fuse must be True or False, not {short(fuse)}")
        if cores is not None:
            if isinstance(cores, bool) or not isinstance(cores, int):
                raise TypeError(f"Pipeline: cores must be an int of 1 or more, or None, not {short(cores)}")
            if cores < 1:
                raise ValueError(f"Pipeline: cores must be 1 or more, not {short(cores)}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"Pipeline: seed must be an int, or None, not {short(seed)}")
        if max_failures is not None:
            if isinstance(max_failures, bool) or not isinstance(max_failures, int | float):
                raise TypeError(
                    "Pipeline: max_failures must be an int (a number of items), a float (a share of them) or None, not "
                    f"{short(max_failures)}"
                )
            if not (max_failures >= 0 and (isinstance(max_failures, int) or max_failures <= 1)):
                raise ValueError(
                    f"Pipeline: max_failures must be 0 or more, and a share at most 1.0, not {short(max_failures)}"
                )
        if keep_failures is not None:
            if isinstance(keep_failures, bool) or not isinstance(keep_failures, int):
                raise TypeError(
                    f"Pipeline: keep_failures must be an int of 0 or more, or None, not {short(keep_failures)}"
                )
            if keep_failures < 0:
                raise ValueError(f"Pipeline: keep_failures must be 0 or more, not {short(keep_failures)}")
        check_redact(redact)
        self._engine = engine or "process"
        self._start_method = start_method
        self._channel = channel
        self._ordered = ordered
        self._cores = cores
        self._max_failures = max_failures
        self._keep_failures = keep_failures
        self._fuse = fuse
        self._redact = redact
        self._seed = seed
        self._description = Description()
        # Only the operation whose turn it is changes what follows.
        self._turn = Turn()
        # Whether it was opened or entered, and its session: one that was empty then has none before its first run.
        self._opened = False
        self._session: Any = None
        self._guard: Guard | None = None
        # The last session, for what it can tell when it is over, and what the one before it knew.
        self._last: Any = None
        self._known: Stats | None = None

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
        operation = Operation(ADD)
        try:
            self._turn.begin(operation)
            if self._session is not None:
                raise StateError(ADDED_TOO_LATE)
            self._description.add(elements, stacklevel=2)
        finally:
            self._turn.release(operation)
        return self

    def __repr__(self) -> str:
        settings = {
            "engine": None if self._engine == "process" else self._engine,
            "start_method": self._start_method,
            "channel": self._channel,
            "ordered": None if self._ordered else False,
            "cores": self._cores,
            "max_failures": self._max_failures,
            "fuse": self._fuse or None,
            "seed": self._seed,
        }
        arguments = [f"{name}={value!r}" for name, value in settings.items() if value is not None]
        if self._keep_failures != KEPT_FAILURES:
            arguments.append(f"keep_failures={self._keep_failures!r}")
        if self._redact is not None:
            arguments.append(f"redact={code_of(self._redact)}")
        given = ", ".join(arguments)
        return self._description.code(f"{type(self).__name__}({given})")

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
        self._open(stacklevel=2)
        return self

    def _open(self, stacklevel: int, entering: bool = False) -> None:
        operation = Operation(OPEN)
        try:
            self._turn.begin(operation)
            if self._opened:
                raise refusal(OPEN, OPEN)
            if not (entering and self._description.empty):
                self._start(operation, stacklevel + 1)
                self._session, self._guard = operation.session, operation.guard
            self._opened = True
        except BaseException:
            self._abandon(operation)
            raise
        finally:
            self._turn.release(operation)

    def close(self) -> None:
        """Have the workers tear down their jobs, and end them; a run still going on is given up.

        Does nothing when the pipeline is not open.  Raises ProcessorError where a `teardown` raised.  Whoever waits for
        the results of a run that is given up so gets StateError, and so does another thread that opens the pipeline.
        Where another thread closes it, this one waits for that.
        """
        self._leave(abort=False)

    def _leave(self, *, abort: bool) -> None:
        """End what there is, in peace or at once, and whatever other threads do."""
        closing = Operation(CLOSE)
        try:
            while (holder := self._turn.take(closing)) is not closing:
                if not holder.here:
                    # The process that this one was forked from goes on with it.
                    self._turn.release(holder)
                    continue
                holder.cancelled = True
                if self._end_run(holder):
                    continue
                if holder.starting and holder.session is not None:
                    holder.session.abort()
                # What this thread is at, further up, ends there.  So does what others still do after so long.
                if not holder.wait(ENDING_SECONDS if holder.starting or holder.kind == ADD else None):
                    return
            session, self._session = self._session, None
            self._opened = False
            if session is not None:
                if abort:
                    session.abort()
                else:
                    session.close()
        finally:
            self._turn.release(closing)

    def _end_run(self, operation: Operation) -> bool:
        """End a run whose results another call takes; return False where somebody else ends it."""
        claim = Claim()
        try:
            if not operation.claim(claim):
                return False
            if not operation.run.over:
                operation.session.abort()
            elif operation.passing:
                operation.session.close()
            return True
        finally:
            if operation.claimed(claim):
                self._turn.release(operation)

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and (not session.ended or (self._guard is not None and self._guard.was_needed)):
            with interrupts_held(finalizing=True):
                # Before the warning, which may be made an error.
                session.abort()
            warnings.warn(f"{self!r} was dropped while it was open: close it", ResourceWarning, stacklevel=2)

    def __enter__(self) -> Pipeline[In, Out]:
        self._open(stacklevel=2, entering=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._leave(abort=kind is not None)

    def run(self, items: Iterable[In] | In) -> list[Out]:
        """Send all items through and return the results.

        `items` is any iterable; a str, bytes, bytearray or what is not iterable is one item.  The process engine pulls
        it in a thread of its own.  Raises what `open` raises, StateError while another run is going on, ProcessorError
        when a job fails, SourceError when the input does, TooManyFailuresError where more is given up than
        `max_failures` allows, ResultError when a result cannot be unpickled here, ProcessError when a process of the
        pipeline ends that should not; nothing is left running then.

        >>> Pipeline(engine="inline").add(Processor(len)).run("word")
        [4]
        """
        results: list[Out] = []
        operation = Operation(RUN)
        # Handed over, so that no frame refers to it when it is let go of.
        given: list[Any] = [items]
        del items
        try:
            running = self._running(operation, given, stacklevel=2)
            try:
                for chunk in running.chunks:
                    results += chunk
            finally:
                running.end()
        except BaseException:
            given.clear()
            self._abandon(operation)
            raise
        return results

    def stream(self, items: Iterable[In] | In) -> Stream[Out]:
        """Send items through and return an iterator over the results, which come as soon as they are there.

        No more is pulled ahead than the pipes hold.  Closing the iterator, or dropping it, gives up the rest.
        Raises what `run` raises, at once or from the iterator.

        >>> next(Pipeline(engine="inline").add(Processor(len)).stream(["a", "bc"]))
        1
        """
        operation = Operation(RUN)
        given: list[Any] = [items]
        del items
        try:
            return Stream(self._running(operation, given, stacklevel=2))
        except BaseException:
            given.clear()
            self._abandon(operation)
            raise

    def _running(self, operation: Operation, given: list[Any], stacklevel: int) -> Running:
        self._turn.begin(operation)
        session = self._session
        if session is None or session.ended:
            # It died with its last run, or was never started: what follows starts anew.
            operation.passing = not self._opened
            self._start(operation, stacklevel=stacklevel + 1)
            if not operation.passing:
                self._session, self._guard = operation.session, operation.guard
        else:
            operation.session = session
        operation.run = operation.session.run(_iterable(given.pop()))
        # Now another thread may end it.  One that wanted to before has said so.
        operation.offer()
        if operation.cancelled:
            raise closed()
        return Running(self, self._turn, operation)

    def _abandon(self, operation: Operation) -> None:
        """After an exception, which may have come at any moment, have nothing go on."""
        claim = Claim()
        try:
            if operation.claim(claim) or operation.claimed(operation.own):
                session = operation.session
                if session is not None and (operation.kind == OPEN or operation.passing or session.active):
                    session.abort()
                    if operation.kind == OPEN:
                        self._session, self._opened = None, False
            else:
                # That thread may still be at it.
                operation.wait(ENDING_SECONDS)
        finally:
            if operation.claimed(claim) or operation.claimed(operation.own):
                self._turn.release(operation)

    def _start(self, operation: Operation, stacklevel: int) -> None:
        """Give an operation a session of its own."""
        cores = self._cores or usable_cores()
        plan = self._description.plan(
            cores=cores, ordered=self._ordered, memory=usable_memory(), stacklevel=stacklevel + 1
        )
        plan = replace(plan, max_failures=self._max_failures, keep_failures=self._keep_failures)
        if self._engine == "inline":
            from conveyor.engines import inline

            session: Any = inline.Session(plan, self._redact)
        else:
            from conveyor.engines.process.caller.session import Session

            if self._fuse:
                plan = fused(plan)
            session = Session(plan, self._start_method, self._channel, self._redact, self._seed)
            if (warning := session.start_warning) is not None:
                warnings.warn(warning, StartMethodWarning, stacklevel=stacklevel + 1)
            session.warn_of_shared(stacklevel=stacklevel + 1)
        operation.session = session
        operation.guard = Guard(session)
        if self._last is not None:
            self._known = self._last.stats() or self._known
        self._last = session
        try:
            # Whoever cancels it from now on ends the session.
            if operation.cancelled:
                raise closed()
            session.open()
            if operation.cancelled:
                raise closed()
        except BaseException:
            session.abort()
            raise

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
        return self._opened

    @property
    def closed(self) -> bool:
        """Whether it is not `opened`: it was closed, or not opened yet."""
        return not self._opened

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
        last = self._last
        if last is None:
            return ()
        places = {name: place for place, name in enumerate(last.names)}
        # More may be given up meanwhile.
        return tuple(sorted(last.failures.copy(), key=lambda failed: (places[failed.processor], failed.number)))

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
        last, known = self._last, self._known
        stats: Stats | None = (None if last is None else last.stats()) or known
        if stats is None:
            raise StateError("nothing is known yet: run the pipeline, or open it, before you ask for stats()")
        return stats


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


def _iterable(items: Any) -> Iterable[Any]:
    """Return what is to be iterated over: a str, bytes or what is not iterable is one item."""
    if isinstance(items, str | bytes | bytearray):
        return [items]
    # Asking the type does not start what can be iterated over only once.
    kind = type(items)
    if hasattr(kind, "shape"):
        # An array without dimensions says that it can be iterated over, and then cannot.
        shape = getattr(items, "shape", None)
        if isinstance(shape, tuple) and not shape:
            return [items]
    # None says there that it cannot be.
    iterable = kind.__iter__ is not None if hasattr(kind, "__iter__") else hasattr(kind, "__getitem__")
    return items if iterable else [items]


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value is not None and not (isinstance(value, str) and value in choices):
        raise ValueError(
            f"Pipeline: {name} must be one of {', '.join(map(repr, choices))}, or None, not {short(value)}"
        )
