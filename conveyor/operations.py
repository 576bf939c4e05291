"""One operation at a time: which thread may change a pipeline just now.

Law: nothing here waits for a worker, or runs a user's code, and no lock is ever held.  Each step is one operation on a
dict, which no other thread, signal handler or finalizer can come into.  So a fork copies nothing that is locked.
"""

from __future__ import annotations

import os
import threading

from conveyor._lean.typing import Any
from conveyor.errors import StateError

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

    __slots__ = ("_claims", "cancelled", "done", "guard", "kind", "own", "passing", "process", "run", "session")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.process = os.getpid()
        # The claim of the thread that does it.
        self.own = Claim()
        self._claims: dict[int, Claim] = {0: self.own}
        # Whether another thread wants its end.
        self.cancelled = False
        self.done = threading.Event()
        self.session: Any = None
        # Ends the session where nobody else does.
        self.guard: Any = None
        # Whether the session belongs to this run alone, and ends with it.
        self.passing = False
        self.run: Any = None

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
