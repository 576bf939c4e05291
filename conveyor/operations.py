"""Operations of threads on one pipeline: add, open, run, submit and close.

Law: one operation at a time, as `turns.py` has it; only items may be submitted by many threads at once.  A run is ended
once, by whoever claims it first: its own loop, another thread or a finalizer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_held, interrupts_postponed
from conveyor.engines.base import JobRun, PipelineSettings, Session, new_session
from conveyor.errors import OF_THE_PROGRAM, ConveyorError, FailedItems, StateError
from conveyor.given import Given, iterable_of, warn_of_table
from conveyor.serving import close_page, serve_where_wanted
from conveyor.stages.settings import check_seconds
from conveyor.turns import (
    ADD,
    ADDED_TOO_LATE,
    CLOSE,
    ENDING_SECONDS,
    JOBS,
    OPEN,
    RUN,
    Claim,
    Guard,
    Operation,
    Turn,
    closed,
    refusal,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from conveyor.graph.builder import Description
    from conveyor.progress import Watch
    from conveyor.serving.page import Page
    from conveyor.stats import Stats

# How often a thread that submits an item looks whether another one has begun the run.
BEGINNING_SECONDS = 0.005

_NOT_OPEN = "items are submitted to an open pipeline: use `with pipeline:`, or call `pipeline.open()` first"


class Running:
    def __init__(self, owner: object, turn: Turn, operation: Operation, watch: Watch | None) -> None:
        assert operation.session is not None and operation.run is not None
        # Keeps the pipeline alive: when it is dropped, it ends its session.
        self._owner = owner
        self._turn = turn
        self._operation = operation
        self._session = operation.session
        self._run = operation.run
        self._watch = watch
        self.chunks = self._run.chunks()
        # Whether somebody has tried to end it in peace.
        self._was_concluded = False

    @staticmethod
    def is_busy(error: ValueError) -> bool:
        """Whether this is the error of a generator that another thread is executing."""
        return error.args == ("generator already executing",)

    @property
    def rest(self) -> Iterator[Any]:
        """The results that have come and that nobody has taken."""
        return self._run.rest

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
        except OF_THE_PROGRAM as error:
            raise error.with_traceback(None) from error.__cause__
        except ValueError as error:
            if not self.is_busy(error):
                raise
            # Another thread is just closing this stream.
            raise closed() from None
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
            if self._watch is not None:
                self._watch.end()


class Lifecycle:
    """The sessions and runs of one pipeline, one after the other."""

    def __init__(self, settings: PipelineSettings, description: Description) -> None:
        self.settings = settings
        self.description = description
        # Only the operation that has the turn changes the attributes that follow.
        self._turn = Turn()
        # A pipeline that was entered empty is opened, but has no session before its first run.
        self.opened = False
        self.session: Session | None = None
        self._guard: Guard | None = None
        # The last session, and the last statistics of the one before it.
        self.last: Session | None = None
        # The run of submitted items, where there is one.
        self.jobs: JobRun | None = None
        self._known: Stats | None = None
        self.page: Page | None = None

    # Each `stacklevel` counts as in a call of `warnings.warn` in place of the method.

    def add(self, elements: tuple[object, ...], stacklevel: int) -> None:
        """Add elements to the description; raises StateError while there is a session."""
        operation = Operation(ADD)
        try:
            self._turn.begin(operation)
            if self.session is not None:
                raise StateError(ADDED_TOO_LATE)
            self.description.add(elements, stacklevel + 1)
        finally:
            self._turn.release(operation)

    def open(self, stacklevel: int, entering: bool = False) -> None:
        """Open a session, which stays until `leave`; `entering`: an empty pipeline starts one with its first run."""
        operation = Operation(OPEN)
        try:
            self._turn.begin(operation)
            if self.opened:
                raise refusal(OPEN, OPEN)
            if not (entering and self.description.empty):
                self._start(operation, stacklevel + 1)
                self.session, self._guard = operation.session, operation.guard
            self.opened = True
        except OF_THE_PROGRAM as error:
            self._abandon(operation)
            raise error.with_traceback(None) from error.__cause__
        except BaseException:
            self._abandon(operation)
            raise
        finally:
            self._turn.release(operation)

    def leave(self, *, abort: bool, cancel: bool = False, timeout: float | None = None) -> None:
        """End the session and the operations of other threads; `abort`: do not wait for jobs.

        Pending items are waited for, for `timeout` seconds at most; with `abort` or `cancel`, they are cancelled.
        """
        closing, deadline = Operation(CLOSE), deadline_of("close: timeout", timeout)
        failure: ConveyorError | None = None
        try:
            while (holder := self._turn.take(closing)) is not closing:
                if not holder.here:
                    # The operation goes on in the parent process.
                    self.jobs = None
                    self._turn.release(holder)
                    continue
                if holder.jobs is not None:
                    if self._end_jobs(holder, abort, cancel, deadline) or holder.wait(left_until(deadline)):
                        continue
                    return
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
                    session.close(deadline)
            if failure is not None:
                raise failure
        except OF_THE_PROGRAM as error:
            raise error.with_traceback(None) from error.__cause__
        finally:
            failure = None
            close_page(self.page)
            self._turn.release(closing)

    def _end_jobs(self, holder: Operation, abort: bool, cancel: bool, deadline: float | None) -> bool:
        """End the run of submitted items; return False where another thread is at it."""
        run, session, claim = holder.jobs, holder.session, Claim()
        if run is None or session is None:
            return False
        try:
            if not holder.claim(claim):
                if abort or cancel:
                    # That thread may wait for what is pending.
                    run.cancel()
                return False
            holder.cancelled = True
            if abort:
                session.abort()
            elif cancel or not (run.drain(deadline) and run.finish(deadline)):
                run.cancel()
            return True
        except BaseException as error:
            if isinstance(error, StateError) and not run.over:
                # A callback of a Future cannot wait for the others.
                holder.cancelled = False
                holder.offer()
            else:
                session.abort()
            raise
        finally:
            if holder.claimed(claim):
                self.jobs = None
                self._turn.release(holder)

    def end_idle_jobs(self) -> None:
        """Make way for something else, where no submitted item is pending."""
        run, holder, claim = self.jobs, self._turn.holder, Claim()
        if run is None or holder is None or holder.jobs is not run:
            return
        if not holder.here:
            # The process that this one was forked from goes on with it.
            self.jobs = None
            self._turn.release(holder)
            return
        if not run.close_if_idle():
            return
        try:
            if holder.claim(claim) and not run.over:
                # What ends the session meanwhile ends this run, too, and nothing of it is pending.
                with contextlib.suppress(StateError):
                    run.finish()
        finally:
            if holder.claimed(claim):
                self.jobs = None
                self._turn.release(holder)

    def submit(self, given: list[Any], timeout: float | None, stacklevel: int) -> Future[list[Any]]:
        """Return the Future of the one element of `given`."""
        deadline = deadline_of("submit: timeout", timeout)
        while True:
            run = self.jobs
            if run is not None:
                future = run.submit(given[0], deadline)
                if future is not None:
                    return future
                self.end_idle_jobs()
            self.begin_jobs(stacklevel + 1)

    def begin_jobs(self, stacklevel: int) -> None:
        """Begin a run of submitted items, unless another thread has."""
        operation = Operation(JOBS)
        holder = self._turn.take(operation)
        try:
            if holder is not operation:
                if holder.kind != JOBS or not holder.here:
                    raise refusal(JOBS, holder.kind)
                if holder.cancelled:
                    raise refusal(JOBS, CLOSE)
                # Another thread begins it, or is just about to end it.
                holder.done.wait(BEGINNING_SECONDS)
                return
            if not self.opened:
                raise StateError(_NOT_OPEN)
            self.description.check_single_items()
            session = self.session
            if session is None or session.ended:
                session = self._start(operation, stacklevel + 1)
                self.session, self._guard = session, operation.guard
            else:
                operation.session = session
            operation.jobs = self.jobs = session.submit_run()
            operation.offer()
            if operation.cancelled:
                raise closed()
        except BaseException:
            if holder is operation:
                self._abandon(operation)
            raise

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
        close_page(self.page)
        session = self.session
        if session is None or (session.ended and not (self._guard is not None and self._guard.was_needed)):
            return False
        # This comes before the warning, because a filter may turn the warning into an error.
        session.abort()
        return True

    def run(self, owner: object, given: Given, watch: Watch | None, stacklevel: int) -> list[Any]:
        """Return the results of a run over the input in `given`.

        The input is taken out of that list, so that no frame keeps it alive.
        """
        results: list[Any] = []
        operation = Operation(RUN)
        try:
            running = self._running(owner, operation, given, watch, stacklevel + 1)
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

    def stream(self, owner: object, given: Given, watch: Watch | None, stacklevel: int) -> Running:
        """Return a run over the input in `given`, as in `run`; the run keeps `owner` alive."""
        operation = Operation(RUN)
        try:
            return self._running(owner, operation, given, watch, stacklevel + 1)
        except BaseException:
            given.clear()
            self._abandon(operation)
            raise

    def _running(
        self, owner: object, operation: Operation, given: Given, watch: Watch | None, stacklevel: int
    ) -> Running:
        warn_of_table(given[0], stacklevel + 1)
        self.end_idle_jobs()
        self._turn.begin(operation)
        gathering = () if given.gathering is None else (given.gathering,)
        if gathering:
            self.description.check_single_items("results cannot be given item by item")
        session = self.session
        if session is None or session.ended:
            # The last session died, or there was none: start a new one.
            operation.ephemeral = not self.opened
            session = self._start(operation, stacklevel + 1)
            if not operation.ephemeral:
                self.session, self._guard = session, operation.guard
        else:
            operation.session = session
        start = session.run if watch is None else watch.start(session)
        operation.run = start(iterable_of(given.pop()), *gathering)
        # From now on another thread may end the run.  A thread that tried earlier has set `cancelled`.
        operation.offer()
        if operation.cancelled:
            raise closed()
        return Running(owner, self._turn, operation, watch)

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

        settings = self.settings
        plan = self.description.plan(
            cores=settings.cores or usable_cores(),
            ordered=settings.ordered,
            memory=usable_memory(),
            auto=settings.workers == "auto",
            stacklevel=stacklevel + 1,
        )
        plan = replace(plan, settings=settings.plain())
        session = new_session(plan, settings)
        session.warn(stacklevel + 1)
        operation.session = session
        operation.guard = Guard(session)
        serve_where_wanted(self, operation)
        if self.last is not None:
            self._known = self.last.stats() or self._known
        self.last = session
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
    def failures(self) -> FailedItems:
        """The items that the current or last run gave up, by Processor, and by number within each."""
        last = self.last
        if last is None:
            return FailedItems()
        places = {name: place for place, name in enumerate(last.names)}
        # A copy: the run may append meanwhile.
        return FailedItems(sorted(last.failures.copy(), key=lambda failed: (places[failed.processor], failed.number)))

    def known_stats(self) -> Stats | None:
        """Return the statistics of the last session, if there was one."""
        last, known = self.last, self._known
        return (None if last is None else last.stats()) or known

    def stats(self) -> Stats:
        """Return the statistics of the last session; raises StateError before the first."""
        stats = self.known_stats()
        if stats is None:
            raise StateError("there are no statistics yet: run the pipeline, or open it, before you call stats()")
        return stats


def deadline_of(what: str, timeout: float | None) -> float | None:
    """Return when so many seconds are over, by the monotonic clock; None: never.  Raises for what is no timeout."""
    if timeout is None:
        return None
    check_seconds(what, timeout)
    return time.monotonic() + timeout


def left_until(deadline: float | None) -> float | None:
    """Return how many seconds are left; None: there is no deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
