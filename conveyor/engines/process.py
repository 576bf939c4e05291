"""The process engine, as the caller sees it: a session with a broker, and the runs in it.

Law: all that happens in the caller's process is here and in `source.py`: items are pickled and sent, results
received and unpickled.  Whatever ends a run early, a bad item, Ctrl-C, a broker that died, ends the session, and
the session leaves nothing behind before the error is raised.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

from conveyor.core.machine import first_pull
from conveyor.engines import broker
from conveyor.engines.broker import GRACE_SECONDS, Orders
from conveyor.engines.channels import PIPE, QUEUE, FarEnd, Header, channel, wait_for
from conveyor.engines.codec import decode, items_of
from conveyor.engines.failures import Failure, death, processor_error
from conveyor.engines.source import Source
from conveyor.engines.starting import (
    FORK,
    PREFIX,
    SPAWN,
    UNGUARDED,
    check_importing,
    choose_start_method,
    jobs_for,
    signals_held,
)
from conveyor.engines.worker import Assignment
from conveyor.errors import (
    ConveyorError,
    MissingMainGuardError,
    ProcessError,
    RemoteTraceback,
    ResultError,
    StateError,
    cause_of_death,
)
from conveyor.plan import Plan, SinkNode, StepNode

# What a broker gets, beyond the grace that it gives its workers, before it is killed itself.
PATIENCE_SECONDS = 0.5
# How long `close` waits for workers that are still at an item of a run that was given up.
LEAVING_SECONDS = 0.3

# The ends of all sessions in this process, for the broker of the next one to close its copies.
_open_ends: weakref.WeakSet[FarEnd] = weakref.WeakSet()


class Session:
    """Workers that are up, from `open` to `close`.

    Raises, from any method, what ended the session; nothing of it is left then.
    """

    def __init__(self, plan: Plan, start_method: str | None, kind: str | None) -> None:
        check_importing()
        method = choose_start_method(start_method)
        self._plan = plan
        self._method = method
        self._channel = kind or (PIPE if os.name == "posix" else QUEUE)
        jobs = jobs_for(plan, method, start_method is None)
        grouped = plan.grouped()
        assignments: list[Assignment] = []
        for step, job in zip(plan.steps, jobs, strict=True):
            for _ in range(step.workers):
                keep_none = step.processor.keep_none
                number = len(assignments)
                assignments.append(Assignment(number, step.name, job, step.batch, keep_none, step.index in grouped))
        sink = plan.nodes[-1]
        assert isinstance(sink, SinkNode)
        self._bound = sink.bound
        self.first_pull = first_pull(plan)
        self._runs = 0
        self._active: Run | None = None
        # A run that was given up, and whose workers are not all free yet.
        self._left: Run | None = None
        self._ended = False
        self._owner = os.getpid()
        self._open(Orders(bare(plan), tuple(assignments), self._channel, method))

    def _open(self, orders: Orders) -> None:
        context: Any = multiprocessing.get_context(FORK if self._method == FORK else SPAWN)
        near_feed, self.feed = channel(self._channel, context)
        near_results, self.results = channel(self._channel, context)
        foreign = [*_open_ends, self.feed, self.results] if self._method == FORK else []
        self._process = context.Process(
            target=broker.main, args=(orders, near_feed, near_results, foreign), name=f"{PREFIX}broker"
        )
        _open_ends.update((self.feed, self.results))
        atexit.register(self.abort)
        try:
            try:
                with signals_held(FORK if self._method == FORK else SPAWN), warnings.catch_warnings():
                    if threading.active_count() == 1:
                        # Threads of compiled libraries see to themselves; Python has none that could hold a lock.
                        warnings.simplefilter("ignore", DeprecationWarning)
                    self._process.start()
            finally:
                near_feed.close()
                near_results.close()
            for end in (self.feed, self.results):
                end.watch(self._process.sentinel)
            if self._channel == QUEUE:
                # Has the queue's thread started now: at the end of the interpreter it could not be.
                self.send("hello")
            self._expect("opened")
        except BaseException:
            self.abort()
            raise

    # Runs

    def run(self, items: Iterable[Any]) -> Run:
        """Start a run, once the workers have let go of one that was given up."""
        try:
            while self._left is not None:
                self._note(self.receive()[0])
        except ConveyorError as error:
            raise StateError(
                "the workers had to be ended, because the rest of the run before, which was given up, failed: "
                "what follows starts anew"
            ) from error
        self._runs += 1
        self._active = Run(self, self._runs, items, self._bound)
        return self._active

    def finished(self, run: Run) -> None:
        """Take in that a run is over, and its workers free for the next."""
        if self._active is run:
            self._active = None

    def leave(self, run: Run) -> None:
        """Give up a run; its workers finish the item at hand, and are free then."""
        self._active = None
        self._left = run
        self.send("cancel", run.number)

    def _note(self, header: Header) -> None:
        """Take in a message while no run is going on."""
        if self._left is not None and header == ("finished", self._left.number):
            self._left = None

    @property
    def active(self) -> bool:
        """Whether a run is going on."""
        return self._active is not None

    @property
    def mine(self) -> bool:
        """Whether this process opened the session, and is no copy of the one that did."""
        return os.getpid() == self._owner

    @property
    def ended(self) -> bool:
        """Whether the session is over, one way or the other."""
        return self._ended

    # Messages

    def receive(self) -> tuple[Header, list[Any]]:
        """Wait for a message about results; raises the error that it brings, with the session ended."""
        if not self.mine:
            raise StateError("a pipeline belongs to the process that opened it: this one was forked from there since")
        if self._ended:
            raise StateError("the pipeline was closed while a run was going on")
        try:
            header, blobs = self.results.receive()
        except (EOFError, OSError):
            if self._ended:
                raise StateError("the pipeline was closed while a run was going on") from None
            raise self._broker_died() from None
        if header[0] == "failed":
            self._raise(header[1])
        return header, blobs

    def send(self, *header: Any) -> None:
        """Send a message about results."""
        with contextlib.suppress(OSError, EOFError):
            # A broker that has gone left word why, or is missed by the next `receive`.
            self.results.send(header)

    def _expect(self, kind: str) -> None:
        while True:
            header, _ = self.receive()
            if header[0] == kind:
                return

    # Errors

    def _broker_died(self) -> ConveyorError:
        wait_for(self._process, PATIENCE_SECONDS)
        exitcode = self._process.exitcode
        self.abort()
        if exitcode == UNGUARDED:
            return MissingMainGuardError()
        return ProcessError(
            f"The broker process of the pipeline {cause_of_death(exitcode)}, although nobody asked it to. What it "
            "wrote to the standard error stream says more, where it could.",
            exitcode,
        )

    def _raise(self, news: Header) -> None:
        run = self._active or self._left
        self.abort()
        match news:
            case ("source", _):
                assert run is not None
                raise run.source.error()
            case ("raised", name, failure, first, last):
                raise processor_error(name, Failure(*failure), first, last)
            case ("died", name, phase, exitcode, first, last):
                if exitcode == UNGUARDED:
                    raise MissingMainGuardError
                raise death(name, phase, exitcode, first, last)
            case ("broken", text):
                raise ProcessError("The broker process of the pipeline failed.") from RemoteTraceback(text)

    # The end

    def close(self) -> None:
        """End the workers in peace: they tear down their jobs first, however long that takes.

        Raises ProcessorError where a `teardown` raised.
        """
        if self._ended:
            return
        if not self.mine:
            self.abort()
            return
        try:
            with contextlib.suppress(ConveyorError):
                # Nobody wants to know any more what became of the rest of a run that was given up.
                while self._left is not None and self.results.ready(LEAVING_SECONDS):
                    self._note(self.receive()[0])
            if self._active is not None or self._left is not None:
                self.abort()
                return
            self.send("close")
            self._expect("closed")
        except BaseException:
            self.abort()
            raise
        self.abort()

    def abort(self) -> None:
        """End everything now: workers get a moment to tear down their jobs, and are killed then."""
        if self._ended:
            return
        self._ended = True
        atexit.unregister(self.abort)
        if not self.mine:
            # A copy in a process forked from the caller has nothing to end, and no child to wait for at its own end.
            multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
            if self._channel == PIPE:
                self.feed.close()
                self.results.close()
            return
        if self._active is not None:
            self._active.source.stop()
        try:
            if self._process.pid is not None:
                self.send("abort")
                wait_for(self._process, GRACE_SECONDS + PATIENCE_SECONDS)
        finally:
            if self._process.pid is not None:
                if self._process.exitcode is None:
                    self._process.kill()
                self._process.join()
                self._process.close()
            if self._active is not None:
                self._active.source.join()
                self._active = None
            self.feed.close()
            self.results.close()
            _open_ends.discard(self.feed)
            _open_ends.discard(self.results)


class Run:
    """One stream of items through a session."""

    def __init__(self, session: Session, number: int, items: Iterable[Any], bound: int) -> None:
        self._session = session
        self.number = number
        # Room is given back in amounts worth a message.
        self._worth = max(1, bound // 4)
        self._untold = 0
        self._over = False
        self.source = Source(number, items, session.feed, session.first_pull)
        self.source.start()

    def chunks(self) -> Iterator[list[Any]]:
        """Yield the results in lists, as they come; closing the iterator cancels the run."""
        try:
            while True:
                header, blobs = self._session.receive()
                match header:
                    case ("results", run, spec, _) if run == self.number:
                        results = self._decoded(spec, blobs)
                        for start in range(0, len(results), self._worth):
                            part = results[start : start + self._worth] if len(results) > self._worth else results
                            self._untold += len(part)
                            if self._untold >= self._worth:
                                self._session.send("consumed", self.number, self._untold)
                                self._untold = 0
                            yield part
                    case ("finished", run) if run == self.number:
                        self._over = True
                        break
        except GeneratorExit:
            self.cancel()
            raise
        except BaseException:
            self._over = True
            self._session.abort()
            raise
        self.source.join()
        self._session.finished(self)

    def _decoded(self, spec: Any, blobs: list[Any]) -> list[Any]:
        try:
            return items_of(spec, [decode(blob) for blob in blobs])
        except Exception as error:
            raise ResultError(
                f"A result could not be unpickled in the calling process ({type(error).__name__}: {error}). "
                "Return plain data, or objects that can be rebuilt from their pickle."
            ) from error

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    def cancel(self) -> None:
        """Give the run up, where it is not over."""
        if self._over or self._session.ended or not self._session.mine:
            return
        self._over = True
        self.source.join()
        self._session.leave(self)


def bare(plan: Plan) -> Plan:
    """Return the plan without its jobs: all that the core needs."""
    nobody = cast(Any, None)
    nodes = tuple(replace(node, processor=nobody) if isinstance(node, StepNode) else node for node in plan.nodes)
    return replace(plan, nodes=nodes)
