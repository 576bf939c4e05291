"""What every session of workers does: which runs it has, which thread ends it, and how it is closed in peace.

Law: one run at a time, after those that were given up.  One thread ends the session; others wait for it, within a
bound.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections import deque

from conveyor._lean.typing import TYPE_CHECKING, Any, cast
from conveyor._system.clock import time
from conveyor.engines.base import FORKED, RunProgress
from conveyor.engines.failures import too_many_failures
from conveyor.engines.process.system.waiting import GracePeriod
from conveyor.engines.process.wire.messages import (
    Close,
    Closed,
    FailedByBroker,
    FailedByLimit,
    FailedBySource,
    Message,
    RunFinished,
    unexpected,
)
from conveyor.errors import ConveyorError, ProcessError, RemoteTraceback, StateError
from conveyor.graph.plan import Plan, SinkNode

if TYPE_CHECKING:
    from conveyor.engines.process.caller.jobs import JobRun
    from conveyor.engines.process.caller.run import Run
    from conveyor.engines.process.wire.endpoint import Frame
    from conveyor.errors import FailedItem

# How long a thread waits for another one that ends the same session.
ENDING_SECONDS = 5.0

CLOSED = "the pipeline was closed while a run was going on"


class Ending:
    """The end of a session: which thread is at it, and whether others want it."""

    def __init__(self) -> None:
        # The thread that starts the processes just now: it ends the session itself where another one wants that.
        self.starter: int | None = None
        self.is_wanted = False
        self.has_begun = False
        self.is_over = threading.Event()
        # Never released: one thread ends the session.
        self._claim = threading.Lock()
        self._thread: int | None = None

    def begin(self) -> bool:
        """Whether this thread is the first, which ends the session."""
        if not self._claim.acquire(blocking=False):
            return False
        self._thread = threading.get_ident()
        self.has_begun = True
        return True

    def wait(self) -> None:
        """Wait, within a bound, until another thread has ended the session."""
        if threading.get_ident() not in (self.starter, self._thread):
            self.is_over.wait(ENDING_SECONDS)

    def refuse_when_wanted(self) -> None:
        """Raise StateError where another thread wants the end."""
        if self.is_wanted:
            raise StateError("the pipeline was closed while it was being opened")


class RunKeeper(ABC):
    """What every session of workers does about its runs: one at a time, after those that were given up."""

    # How long workers that are still at an item of a run that was given up are waited for.
    settling_seconds: float
    # What decides about the items, as a message calls it.
    broker_name: str

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._runs = 0
        # How far the run is that goes on, or was the last; None before the first.
        self._progress: RunProgress | None = None
        self._active: Run | JobRun | None = None
        # A run that was given up, and whose workers are not all free yet.
        self._draining_run: Run | JobRun | None = None
        # The items that were given up in the active run, or in the last one.
        self.failures: deque[FailedItem] = deque(maxlen=plan.setting("keep_failures"))
        # Held by the thread that takes results, until they are unpickled.
        self.taking = threading.RLock()
        self._ending = Ending()

    @property
    def plan(self) -> Plan:
        """What runs."""
        return self._plan

    @property
    def names(self) -> list[str]:
        """The names of the Processors, in their order."""
        return [step.name for step in self._plan.steps]

    @property
    def progress(self) -> RunProgress | None:
        """How far the run is that goes on, or was the last."""
        return self._progress

    @property
    def active(self) -> bool:
        """Whether a run is going on."""
        return self._active is not None

    @property
    @abstractmethod
    def is_forked_copy(self) -> bool:
        """Whether this process was forked from the one that opened the session."""

    @property
    def ended(self) -> bool:
        """Whether the session is over, one way or the other."""
        return self._ending.has_begun

    @abstractmethod
    def receive(self) -> Frame:
        """Wait for a message about results; raises the error that it brings, with the session ended."""

    @abstractmethod
    def has_message(self, seconds: float) -> bool:
        """Whether a message is there, or comes within `seconds`."""

    @abstractmethod
    def send(self, message: Message) -> None:
        """Send a message about results."""

    @abstractmethod
    def abort(self) -> None:
        """End everything now."""

    def close(self, deadline: float | None = None) -> None:
        """End the workers in peace: they tear down their jobs first, until the deadline at most.

        Raises ProcessorError where a `teardown` raised.
        """
        if self.ended:
            return
        if self.is_forked_copy:
            self.abort()
            return
        try:
            # Nobody wants to know any more what became of the rest of a run that was given up.
            self.settle()
            if self._active is not None or self._draining_run is not None:
                self.abort()
                return
            self.send(Close())
            while deadline is None or self.has_message(max(0.0, deadline - time.monotonic())):
                if isinstance(self.receive()[0], Closed):
                    break
        except BaseException:
            self.abort()
            raise
        self.abort()

    def settle(self) -> None:
        """Wait a moment for workers to come out of a run that was given up: they have items of it until then."""
        grace = GracePeriod(self.settling_seconds)
        with contextlib.suppress(ConveyorError):
            while self._draining_run is not None and grace.left():
                if self.has_message(grace.slice()):
                    self._drain()

    def _error_of_any(self, failure: Message, run: Run | JobRun | None) -> BaseException:
        """Return the error to raise for what ended a run, where that is the same in every session of workers."""
        match failure:
            case FailedBySource():
                error: BaseException = cast(Any, run).source.error()
            case FailedByLimit():
                error = too_many_failures(failure.failures, self._plan.setting("max_failures"), self.failures)
            case FailedByBroker():
                error = ProcessError(failure.text or f"The {self.broker_name} failed.")
                error.__cause__ = RemoteTraceback(failure.traceback)
            case _:
                raise unexpected(failure, "The caller, over its channel of results,")
        return error

    def _written_trace(self) -> list[str] | None:
        """Return the lines of the trace that the session has left; None where there are none, or not yet."""
        path = self._plan.setting("trace")
        if path is None or not self._ending.is_over.is_set():
            return None
        opens: Any = open
        if os.fspath(path).endswith(".gz"):
            # Most programs never read one.
            import gzip

            opens = gzip.open
        try:
            with opens(path, "rt", encoding="utf-8") as file:
                return list(file) or None
        except (OSError, EOFError):
            return None

    def _prepare_run(self, total: int | None) -> tuple[SinkNode, RunProgress]:
        """Have the workers free of a run that was given up; return where results come from, and the count of items.

        `total`: how many items there will be; None: that is not known.
        """
        if self.is_forked_copy:
            raise StateError(FORKED)
        try:
            while self._draining_run is not None:
                self._drain()
        except StateError:
            raise
        except ConveyorError as error:
            raise StateError(
                "the workers had to be ended, because the rest of the run before, which was given up, failed: "
                "what follows starts anew"
            ) from error
        self._runs += 1
        self.failures = deque(maxlen=self._plan.setting("keep_failures"))
        self._progress = RunProgress(total, self._runs)
        sink = self._plan.nodes[-1]
        assert isinstance(sink, SinkNode)
        return sink, self._progress

    def finished(self, run: Run | JobRun) -> None:
        """Take in that a run is over, and its workers free for the next."""
        if self._draining_run is run:
            self._draining_run = None
        if self._active is run:
            self._active = None

    def _drain(self) -> None:
        """Take in one message while no run is active."""
        message, _ = self.receive()
        run = self._draining_run
        if run is not None and isinstance(message, RunFinished) and message.run == run.number:
            run.finished = True
            run.source.join()
            self.finished(run)
