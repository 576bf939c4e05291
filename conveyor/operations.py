"""What threads do to a pipeline: they add, open, run and close, one at a time.

Law: no lock is ever held.  Whose turn it is changes by one operation on a dict, which no other thread, signal handler
or finalizer can interrupt; so a fork copies nothing that is locked.  A run is ended once, by whoever comes first: its
own loop, another thread, a finalizer.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Generator, Iterable

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.signals import interrupts_held
from conveyor.engines.base import PipelineSettings, Run, Session, new_session
from conveyor.errors import FailedItem, SourceWarning, StateError

if TYPE_CHECKING:
    from conveyor.graph.builder import Description
    from conveyor.stats import Stats

# How long a thread waits for another one that must stop to open or run a pipeline.
ENDING_SECONDS = 5.0
# How long a thread waits for another one that adds an element.
ADDING_SECONDS = 1.0

ADD, OPEN, RUN, CLOSE = "add", "open", "run", "close"

_OPEN_ALREADY = "the pipeline is open or running already: close it, or its stream, first"
_NOT_YET_ADDED = "an element is being added to the pipeline: wait until `add` has returned"
_NOT_YET_OPEN = "the pipeline is being opened: wait until `open` has returned"
_RUNNING = "a run is going on: take all of its results, or close its stream, before the next"
_NOT_YET_CLOSED = "the pipeline is being closed: wait until `close` has returned"
ADDED_TOO_LATE = "nothing can be added while the pipeline is open or running: close it first, or add before you open it"


def closed() -> StateError:
    """Return the error for an operation that another thread, or a signal handler, has ended."""
    return StateError("the pipeline was closed meanwhile, by another thread or a signal handler")


def refusal(wanted: str, held: str) -> StateError:
    """Return the error for an operation of the kind `wanted`, when it is the turn of one of the kind `held`."""
    if held == ADD:
        return StateError(_NOT_YET_ADDED)
    if wanted == ADD:
        return StateError(ADDED_TOO_LATE)
    if held == CLOSE:
        return StateError(_NOT_YET_CLOSED)
    if wanted == OPEN:
        return StateError(_OPEN_ALREADY)
    return StateError(_NOT_YET_OPEN if held == OPEN else _RUNNING)


class Claim:
    """A thread's claim to end an operation."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Operation:
    """What one thread does to a pipeline: add, open, run or close.

    An operation is ended once, by whoever claims that first.  Its own thread has claimed it from the beginning, except
    while the results of a run are taken: then another thread may.
    """

    __slots__ = ("_claims", "cancelled", "done", "ephemeral", "guard", "kind", "own", "process", "run", "session")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.process = os.getpid()
        # The claim of the thread that does it.
        self.own = Claim()
        self._claims: dict[int, Claim] = {0: self.own}
        # Whether another thread wants its end.
        self.cancelled = False
        self.done = threading.Event()
        self.session: Session | None = None
        # Ends the session where nobody else does.
        self.guard: Guard | None = None
        # Whether the session belongs to this run alone, and ends with it.
        self.ephemeral = False
        self.run: Run | None = None

    @property
    def here(self) -> bool:
        """Whether it belongs to this process, which was not forked since."""
        return self.process == os.getpid()

    @property
    def nested(self) -> bool:
        """Whether this thread is to end it, further up: in what a signal handler or a finalizer has interrupted."""
        first = self._claims.get(0)
        return first is not None and first.thread == threading.get_ident()

    @property
    def starting(self) -> bool:
        """Whether it has still to start what it opens or runs."""
        return self.kind == OPEN or (self.kind == RUN and self.run is None)

    def offer(self) -> None:
        """Have whoever comes first end it."""
        self._claims.pop(0, None)

    def claim(self, claim: Claim) -> bool:
        """Whether the holder of this claim, and nobody else, is to end it."""
        return self._claims.setdefault(0, claim) is claim

    def claimed(self, claim: Claim) -> bool:
        """Whether this claim came first."""
        return self._claims.get(0) is claim

    def wait(self, seconds: float | None) -> bool:
        """Wait until another thread has ended it, for at most so many seconds; return whether that is so."""
        # Nobody is here to end what belongs to the process that this one was forked from.
        return self.here and not self.nested and self.done.wait(seconds)


class Turn:
    """Whose turn it is: at most one operation's."""

    __slots__ = ("_holder",)

    def __init__(self) -> None:
        self._holder: dict[int, Operation] = {}

    def take(self, operation: Operation) -> Operation:
        """Return the operation whose turn it is: this one, if it was nobody's."""
        return self._holder.setdefault(0, operation)

    def begin(self, operation: Operation) -> None:
        """Take the turn for an operation; raises StateError where it is another's."""
        while (holder := self.take(operation)) is not operation:
            if holder.kind == ADD and not holder.here:
                self.release(holder)
            elif holder.kind != ADD or not holder.wait(ADDING_SECONDS):
                raise refusal(operation.kind, holder.kind)

    def release(self, operation: Operation) -> None:
        """Take in that an operation is over."""
        if self._holder.get(0) is operation:
            self._holder.pop(0, None)
        if operation.here:
            # In a process that was forked since, somebody may seem to wait for it for ever.
            operation.done.set()


class Guard:
    """Ends the session of a pipeline that is dropped, where the pipeline's own finalizer was left half way.

    A Ctrl-C may come at any moment, also before a finalizer can keep it back; Python prints it then, and goes on.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        # The collector may drop it before the pipeline, which then has to say that it was left open.
        self.was_needed = False

    def __del__(self) -> None:
        if not self._session.ended:
            self.was_needed = True
            with interrupts_held(finalizing=True):
                self._session.abort()


class Running:
    """A run, and the end of it."""

    def __init__(self, owner: object, turn: Turn, operation: Operation, session: Session, run: Run) -> None:
        # Nobody else may have that pipeline any more, and it ends what it has opened when it is dropped.
        self._owner = owner
        self._turn = turn
        self._operation = operation
        self._session = session
        self._run = run
        self.chunks = run.chunks()

    def results(self) -> Generator[Any, None, None]:
        """Yield None at once, then each result; ends the run when it is closed or dropped."""
        try:
            yield None
            for chunk in self.chunks:
                yield from chunk
        finally:
            self.end()

    def end(self) -> None:
        """Give up what has not been taken; does nothing where another thread has ended the run."""
        operation, claim = self._operation, Claim()
        try:
            if not operation.claim(claim):
                # That thread may still be at it.
                operation.wait(ENDING_SECONDS)
            elif self._run.over:
                if operation.ephemeral:
                    self._session.close()
            else:
                # A stream that is dropped comes here while it is finalized.
                with interrupts_held(finalizing=True):
                    if operation.ephemeral:
                        # Nobody needs the workers any more, so nobody waits for the item that they are at.
                        self._session.abort()
                    self._run.cancel()
                    # Where another thread is in it, that thread leaves it by itself.
                    with contextlib.suppress(ValueError):
                        self.chunks.close()
        finally:
            if operation.claimed(claim):
                self._turn.release(operation)


class Lifecycle:
    """The sessions and runs of one pipeline, one after the other."""

    def __init__(self, settings: PipelineSettings, description: Description) -> None:
        self._settings = settings
        self._description = description
        # Only the operation whose turn it is changes what follows.
        self._turn = Turn()
        # Whether the pipeline was opened or entered, and its session: one that was empty then has none before a run.
        self.opened = False
        self.session: Session | None = None
        self._guard: Guard | None = None
        # The last session, for what it can tell when it is over, and what the one before it knew.
        self._last: Session | None = None
        self._known: Stats | None = None

    # Each `stacklevel` is that of `warnings.warn` called instead of the method.

    def add(self, elements: tuple[object, ...], stacklevel: int) -> None:
        """Add elements to the description; raises StateError while there is a session."""
        operation = Operation(ADD)
        try:
            self._turn.begin(operation)
            if self.session is not None:
                raise StateError(ADDED_TOO_LATE)
            self._description.add(elements, stacklevel + 1)
        finally:
            self._turn.release(operation)

    def open(self, stacklevel: int, entering: bool = False) -> None:
        """Open a session, which stays until it is left; `entering`: an empty pipeline has one only when it runs."""
        operation = Operation(OPEN)
        try:
            self._turn.begin(operation)
            if self.opened:
                raise refusal(OPEN, OPEN)
            if not (entering and self._description.empty):
                self._start(operation, stacklevel + 1)
                self.session, self._guard = operation.session, operation.guard
            self.opened = True
        except BaseException:
            self._abandon(operation)
            raise
        finally:
            self._turn.release(operation)

    def leave(self, *, abort: bool) -> None:
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
            session, self.session = self.session, None
            self.opened = False
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
            # It was offered, so both are there.
            assert operation.run is not None and operation.session is not None
            if not operation.run.over:
                operation.session.abort()
            elif operation.ephemeral:
                operation.session.close()
            return True
        finally:
            if operation.claimed(claim):
                self._turn.release(operation)

    def was_dropped(self) -> bool:
        """End the session of a pipeline that is dropped; return whether there was one to end."""
        session = self.session
        if session is None or (session.ended and not (self._guard is not None and self._guard.was_needed)):
            return False
        # Before the warning, which may be made an error.
        session.abort()
        return True

    def run(self, owner: object, given: list[Any], stacklevel: int) -> list[Any]:
        """Return what comes of the one element of `given`, which is taken out: so no frame refers to it longer."""
        results: list[Any] = []
        operation = Operation(RUN)
        try:
            running = self._running(owner, operation, given, stacklevel + 1)
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

    def stream(self, owner: object, given: list[Any], stacklevel: int) -> Running:
        """Return the run of the one element of `given`, which is taken out; it keeps the `owner` of this alive."""
        operation = Operation(RUN)
        try:
            return self._running(owner, operation, given, stacklevel + 1)
        except BaseException:
            given.clear()
            self._abandon(operation)
            raise

    def _running(self, owner: object, operation: Operation, given: list[Any], stacklevel: int) -> Running:
        kind = type(given[0])
        if hasattr(kind, "columns") and (hasattr(kind, "__dataframe__") or hasattr(kind, "__arrow_c_stream__")):
            _warn_of_table(kind.__name__, stacklevel + 1)
        self._turn.begin(operation)
        session = self.session
        if session is None or session.ended:
            # It died with its last run, or was never started: what follows starts anew.
            operation.ephemeral = not self.opened
            session = self._start(operation, stacklevel + 1)
            if not operation.ephemeral:
                self.session, self._guard = session, operation.guard
        else:
            operation.session = session
        run = operation.run = session.run(_iterable(given.pop()))
        # Now another thread may end it.  One that wanted to before has said so.
        operation.offer()
        if operation.cancelled:
            raise closed()
        return Running(owner, self._turn, operation, session, run)

    def _abandon(self, operation: Operation) -> None:
        """After an exception, which may have come at any moment, have nothing go on."""
        claim = Claim()
        try:
            if operation.claim(claim) or operation.claimed(operation.own):
                session = operation.session
                if session is not None and (operation.kind == OPEN or operation.ephemeral or session.active):
                    session.abort()
                    if operation.kind == OPEN:
                        self.session, self.opened = None, False
            else:
                # That thread may still be at it.
                operation.wait(ENDING_SECONDS)
        finally:
            if operation.claimed(claim) or operation.claimed(operation.own):
                self._turn.release(operation)

    def _start(self, operation: Operation, stacklevel: int) -> Session:
        # What a process that only describes a pipeline has no use for is not imported with the rest.
        from conveyor._system.limits import usable_cores, usable_memory

        settings = self._settings
        plan = self._description.plan(
            cores=settings.cores or usable_cores(),
            ordered=settings.ordered,
            memory=usable_memory(),
            stacklevel=stacklevel + 1,
        )
        plan = replace(plan, max_failures=settings.max_failures, keep_failures=settings.keep_failures)
        session = new_session(plan, settings)
        session.warn(stacklevel + 1)
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
        return session

    @property
    def failures(self) -> tuple[FailedItem, ...]:
        """What was given up in the run that goes on, or was the last: by Processor, and by number within each."""
        last = self._last
        if last is None:
            return ()
        places = {name: place for place, name in enumerate(last.names)}
        # More may be given up meanwhile.
        return tuple(sorted(last.failures.copy(), key=lambda failed: (places[failed.processor], failed.number)))

    def stats(self) -> Stats:
        """Return what is known of the last session; raises StateError before the first."""
        last, known = self._last, self._known
        stats = (None if last is None else last.stats()) or known
        if stats is None:
            raise StateError("nothing is known yet: run the pipeline, or open it, before you ask for stats()")
        return stats


def _warn_of_table(kind: str, stacklevel: int) -> None:
    """Warn that a table, as pandas and polars have, gives its columns and not its rows."""
    warnings.warn(
        f"the input is a {kind}, and an iteration over one gives its columns, not its rows: pass "
        "`frame.itertuples(index=False)` (pandas) or `frame.iter_rows()` (polars), or `list(frame)` for its columns",
        SourceWarning,
        stacklevel + 1,
    )


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
