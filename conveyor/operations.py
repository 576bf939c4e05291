"""Operations of threads on one pipeline: add, open, run and close, one at a time.

Law: no lock is ever held.  The turn changes by one call on a dict, which no other thread, signal handler or finalizer
can interrupt.  So a fork copies no held lock.  A run is ended once, by whoever claims it first: its own loop, another
thread or a finalizer.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Generator, Iterable

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.signals import interrupts_held, interrupts_postponed
from conveyor.engines.base import PipelineSettings, Run, Session, new_session
from conveyor.errors import ConveyorError, FailedItem, SourceWarning, StateError

if TYPE_CHECKING:
    from conveyor.graph.builder import Description
    from conveyor.stats import Stats

# How long a thread waits until another thread has stopped opening or running the pipeline.
ENDING_SECONDS = 5.0
# How long a thread waits until another thread has added its element.
ADDING_SECONDS = 1.0

ADD, OPEN, RUN, CLOSE = "add", "open", "run", "close"

_OPEN_ALREADY = "the pipeline is open or running already: close it, or its stream, first"
_NOT_YET_ADDED = "an element is being added to the pipeline: wait until `add` has returned"
_NOT_YET_OPEN = "the pipeline is being opened: wait until `open` has returned"
_RUNNING = "a run is going on: take all of its results, or close its stream, before the next run"
_NOT_YET_CLOSED = "the pipeline is being closed: wait until `close` has returned"
ADDED_TOO_LATE = "nothing can be added while the pipeline is open or running: close it first, or add before you open it"


def closed() -> StateError:
    """Return the error for an operation that another thread or a signal handler has ended."""
    return StateError("another thread or a signal handler has closed the pipeline meanwhile: open or run it again")


def refusal(wanted: str, held: str) -> StateError:
    """Return the error for an operation of the kind `wanted` while one of the kind `held` has the turn."""
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
    """One thread's operation on a pipeline: add, open, run or close.

    An operation is ended once, by the thread that claims it first.  Its own thread holds the claim from the beginning.
    It gives up the claim (`offer`) while the results of a run are taken.
    """

    __slots__ = ("_claims", "cancelled", "done", "ephemeral", "guard", "kind", "own", "process", "run", "session")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.process = os.getpid()
        # The claim of the operation's own thread.
        self.own = Claim()
        self._claims: dict[int, Claim] = {0: self.own}
        # Whether another thread wants to end it.
        self.cancelled = False
        self.done = threading.Event()
        self.session: Session | None = None
        self.guard: Guard | None = None
        # Whether the session belongs to this run alone and ends with it.
        self.ephemeral = False
        self.run: Run | None = None

    @property
    def here(self) -> bool:
        """Whether this process began it; a forked child inherits operations of its parent."""
        return self.process == os.getpid()

    @property
    def nested(self) -> bool:
        """Whether this thread is in the middle of it, and a signal handler or finalizer has interrupted it."""
        first = self._claims.get(0)
        return first is not None and first.thread == threading.get_ident()

    @property
    def starting(self) -> bool:
        """Whether it is still starting its session or run."""
        return self.kind == OPEN or (self.kind == RUN and self.run is None)

    def offer(self) -> None:
        """Let any thread claim it."""
        self._claims.pop(0, None)

    def claim(self, claim: Claim) -> bool:
        """Claim the operation, and return whether the claim came first: only its holder ends the operation."""
        return self._claims.setdefault(0, claim) is claim

    def claimed(self, claim: Claim) -> bool:
        return self._claims.get(0) is claim

    def wait(self, seconds: float | None) -> bool:
        """Wait up to `seconds` until another thread has ended it; return whether one has."""
        # No thread of this process ends an operation of the parent process.
        return self.here and not self.nested and self.done.wait(seconds)


class Turn:
    """The turn: at most one operation has it."""

    __slots__ = ("_holder",)

    def __init__(self) -> None:
        self._holder: dict[int, Operation] = {}

    def take(self, operation: Operation) -> Operation:
        """Return the operation that has the turn; this one takes it if no other has it."""
        return self._holder.setdefault(0, operation)

    def begin(self, operation: Operation) -> None:
        """Take the turn for an operation; raises StateError where another operation has it."""
        while (holder := self.take(operation)) is not operation:
            if holder.kind == ADD and not holder.here:
                self.release(holder)
            elif holder.kind != ADD or not holder.wait(ADDING_SECONDS):
                raise refusal(operation.kind, holder.kind)

    def release(self, operation: Operation) -> None:
        """Give back the turn of an operation that is over."""
        if self._holder.get(0) is operation:
            self._holder.pop(0, None)
        if operation.here:
            # In a forked child, a thread of the parent may have held the lock of the event.
            operation.done.set()


class Guard:
    """Ends the session of a dropped pipeline whose own finalizer did not complete.

    A Ctrl-C may interrupt a finalizer before it holds signals back; Python prints the KeyboardInterrupt and goes on.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        # The collector may drop the guard before the pipeline, whose finalizer still has to warn.
        self.was_needed = False

    def __del__(self) -> None:
        if not self._session.ended:
            self.was_needed = True
            with interrupts_held(finalizing=True):
                self._session.abort()


class Running:
    def __init__(self, owner: object, turn: Turn, operation: Operation, session: Session, run: Run) -> None:
        # Keeps the pipeline alive: when it is dropped, it ends its session.
        self._owner = owner
        self._turn = turn
        self._operation = operation
        self._session = session
        self._run = run
        self.chunks = run.chunks()
        # Whether somebody has tried to end it in peace.
        self._was_concluded = False

    def results(self) -> Generator[Any, None, None]:
        """Yield None at once, then each result; the run ends when the generator is closed or dropped."""
        try:
            yield None
            for chunk in self.chunks:
                self._run.rest = iter(chunk)
                yield from self._run.rest
        except GeneratorExit:
            with interrupts_postponed():
                self.conclude()
            raise
        finally:
            self.end()
            self._run.rest = iter(())

    def conclude(self) -> None:
        """Where the last result was taken, end the run, and a session of its own, in peace; `end` must follow.

        Raises ProcessorError where a `finish` or a `teardown` raised.
        """
        operation, claim = self._operation, Claim()
        if self._was_concluded or not operation.claim(claim):
            return
        self._was_concluded = True
        try:
            # Another thread may end everything meanwhile.
            with contextlib.suppress(StateError):
                if self._run.conclude() and operation.ephemeral:
                    self._session.close()
        finally:
            operation.offer()

    def end(self) -> None:
        """End the run and give up the results that nobody has taken, unless another thread ends the run."""
        operation, claim = self._operation, Claim()
        try:
            if not operation.claim(claim):
                # Another thread ends it.
                operation.wait(ENDING_SECONDS)
            elif self._run.over:
                if operation.ephemeral:
                    self._session.close()
            else:
                # This may run in a finalizer, when a stream is dropped.
                with interrupts_held(finalizing=True):
                    if operation.ephemeral:
                        # Nobody needs the workers any more, so nobody waits for their present calls.
                        self._session.abort()
                    self._run.cancel()
                    # ValueError: another thread is in the generator, and will leave it by itself.
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
        # Only the operation that has the turn changes the attributes that follow.
        self._turn = Turn()
        # A pipeline that was entered empty is opened, but has no session before its first run.
        self.opened = False
        self.session: Session | None = None
        self._guard: Guard | None = None
        # The last session, and the last statistics of the one before it.
        self._last: Session | None = None
        self._known: Stats | None = None

    # Each `stacklevel` counts as in a call of `warnings.warn` in place of the method.

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
        """Open a session, which stays until `leave`; `entering`: an empty pipeline starts one with its first run."""
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
        """End the session and the operations of other threads; `abort`: do not wait for jobs."""
        closing = Operation(CLOSE)
        failure: ConveyorError | None = None
        try:
            while (holder := self._turn.take(closing)) is not closing:
                if not holder.here:
                    # The operation goes on in the parent process.
                    self._turn.release(holder)
                    continue
                holder.cancelled = True
                try:
                    if self._end_run(holder, abort):
                        continue
                except ConveyorError as error:
                    failure = error
                    continue
                if (holder.starting or abort) and holder.session is not None:
                    holder.session.abort()
                # The holder ends by itself if this thread is in the middle of it, or if it takes too long.
                if not holder.wait(ENDING_SECONDS if holder.starting or holder.kind == ADD else None):
                    return
            session, self.session = self.session, None
            self.opened = False
            if session is not None:
                if abort:
                    session.abort()
                else:
                    session.close()
            if failure is not None:
                raise failure
        finally:
            failure = None
            self._turn.release(closing)

    def _end_run(self, operation: Operation, abort: bool) -> bool:
        """End a run whose results another call takes; return False where another thread ends it."""
        claim = Claim()
        try:
            if not operation.claim(claim):
                return False
            # An operation is offered only after both were set.
            assert operation.run is not None and operation.session is not None
            if not operation.run.over and (abort or not operation.run.conclude()):
                operation.session.abort()
            elif operation.ephemeral:
                operation.session.close()
            return True
        finally:
            if operation.claimed(claim):
                self._turn.release(operation)

    def was_dropped(self) -> bool:
        """End the session of a dropped pipeline; return whether there was one to end."""
        session = self.session
        if session is None or (session.ended and not (self._guard is not None and self._guard.was_needed)):
            return False
        # This comes before the warning, because a filter may turn the warning into an error.
        session.abort()
        return True

    def run(self, owner: object, given: list[Any], stacklevel: int) -> list[Any]:
        """Return the results of a run over the input in `given`.

        The input is taken out of that list, so that no frame keeps it alive.
        """
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
        """Return a run over the input in `given`, as in `run`; the run keeps `owner` alive."""
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
            # The last session died, or there was none: start a new one.
            operation.ephemeral = not self.opened
            session = self._start(operation, stacklevel + 1)
            if not operation.ephemeral:
                self.session, self._guard = session, operation.guard
        else:
            operation.session = session
        run = operation.run = session.run(_iterable(given.pop()))
        # From now on another thread may end the run.  A thread that tried earlier has set `cancelled`.
        operation.offer()
        if operation.cancelled:
            raise closed()
        return Running(owner, self._turn, operation, session, run)

    def _abandon(self, operation: Operation) -> None:
        """End an operation after an exception, which may have come at any moment."""
        claim = Claim()
        try:
            if operation.claim(claim) or operation.claimed(operation.own):
                session = operation.session
                if session is not None and (operation.kind == OPEN or operation.ephemeral or session.active):
                    session.abort()
                    if operation.kind == OPEN:
                        self.session, self.opened = None, False
            else:
                # Another thread ends it.
                operation.wait(ENDING_SECONDS)
        finally:
            if operation.claimed(claim) or operation.claimed(operation.own):
                self._turn.release(operation)

    def _start(self, operation: Operation, stacklevel: int) -> Session:
        # Imported here: a process that only describes a pipeline does not need them.
        from conveyor._system.limits import usable_cores, usable_memory

        settings = self._settings
        plan = self._description.plan(
            cores=settings.cores or usable_cores(),
            ordered=settings.ordered,
            memory=usable_memory(),
            stacklevel=stacklevel + 1,
        )
        plan = replace(plan, settings=settings.plain())
        session = new_session(plan, settings)
        session.warn(stacklevel + 1)
        operation.session = session
        operation.guard = Guard(session)
        if self._last is not None:
            self._known = self._last.stats() or self._known
        self._last = session
        try:
            # A thread that cancels the operation from now on ends the session too.
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
        """The items that the current or last run gave up, by Processor, and by number within each."""
        last = self._last
        if last is None:
            return ()
        places = {name: place for place, name in enumerate(last.names)}
        # A copy: the run may append meanwhile.
        return tuple(sorted(last.failures.copy(), key=lambda failed: (places[failed.processor], failed.number)))

    def stats(self) -> Stats:
        """Return the statistics of the last session; raises StateError before the first."""
        last, known = self._last, self._known
        stats = (None if last is None else last.stats()) or known
        if stats is None:
            raise StateError("there are no statistics yet: run the pipeline, or open it, before you call stats()")
        return stats


def _warn_of_table(kind: str, stacklevel: int) -> None:
    """Warn that iterating over a table of pandas or polars gives its columns, not its rows."""
    warnings.warn(
        f"the input is a {kind}, and iterating over it gives its columns, not its rows. Pass "
        "`frame.itertuples(index=False)` (pandas) or `frame.iter_rows()` (polars), or `list(frame)` for its columns",
        SourceWarning,
        stacklevel + 1,
    )


def _iterable(items: Any) -> Iterable[Any]:
    """Return an iterable of the items: a str, bytes, or a value that is not iterable is one item."""
    if isinstance(items, str | bytes | bytearray):
        return [items]
    # Ask the type: calling `iter` would start an iterator that can be used only once.
    kind = type(items)
    if hasattr(kind, "shape"):
        # An array without dimensions has `__iter__`, which raises.
        shape = getattr(items, "shape", None)
        if isinstance(shape, tuple) and not shape:
            return [items]
    # A class sets `__iter__` to None where its instances cannot be iterated over.
    iterable = kind.__iter__ is not None if hasattr(kind, "__iter__") else hasattr(kind, "__getitem__")
    return items if iterable else [items]
