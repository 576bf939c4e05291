"""The turn at a pipeline: which operation has it, and which thread ends that operation.

Law: no lock is ever held.  The turn changes by one call on a dict, which no other thread, signal handler or finalizer
can interrupt.  So a fork copies no held lock.
"""

from __future__ import annotations

import os
import threading

from conveyor._lean.typing import TYPE_CHECKING
from conveyor._system.signals import interrupts_held
from conveyor.engines.base import JobRun, Run, Session
from conveyor.errors import StateError

if TYPE_CHECKING:
    from conveyor.serving.page import Page

# How long a thread waits until another thread has stopped opening or running the pipeline.
ENDING_SECONDS = 5.0
# How long a thread waits until another thread has added its element.
ADDING_SECONDS = 1.0

ADD, OPEN, RUN, JOBS, CLOSE = "add", "open", "run", "jobs", "close"

_OPEN_ALREADY = "the pipeline is open or running already: close it, or its stream, first"
_NOT_YET_ADDED = "an element is being added to the pipeline: wait until `add` has returned"
_NOT_YET_OPEN = "the pipeline is being opened: wait until `open` has returned"
_RUNNING = "a run is going on: take all of its results, or close its stream, before the next run"
_RUNNING_WHILE_SUBMITTED = (
    "a run is going on, and nothing can be submitted meanwhile: take all of its results, or close its stream; to do "
    "both at once, use a second pipeline"
)
_PENDING = (
    "items that were submitted are still pending, and nothing else can run meanwhile: wait for their Futures; to do "
    "both at once, use a second pipeline"
)
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
    if held == OPEN:
        return StateError(_NOT_YET_OPEN)
    if held == JOBS:
        return StateError(_PENDING)
    return StateError(_RUNNING_WHILE_SUBMITTED if wanted == JOBS else _RUNNING)


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


class Claim:
    """A thread's claim to end an operation."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Operation:
    """An operation on a pipeline: one thread adds, opens, runs or closes, or any number submit items (`JOBS`).

    An operation is ended once, by the thread that claims it first.  Its own thread holds the claim from the beginning.
    It gives up the claim (`offer`) while the results of a run are taken.
    """

    __slots__ = (
        "_claims",
        "cancelled",
        "done",
        "ephemeral",
        "guard",
        "jobs",
        "kind",
        "own",
        "page",
        "process",
        "run",
        "session",
    )

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
        self.jobs: JobRun | None = None
        # The page that came with it.
        self.page: Page | None = None

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
        return self.kind == OPEN or (self.kind in (RUN, JOBS) and self.run is None and self.jobs is None)

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

    @property
    def holder(self) -> Operation | None:
        """The operation that has the turn."""
        return self._holder.get(0)

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
        if operation.page is not None:
            operation.page.session_over()
        if self._holder.get(0) is operation:
            self._holder.pop(0, None)
        if operation.here:
            # In a forked child, a thread of the parent may have held the lock of the event.
            operation.done.set()
