"""The run of items that are submitted one by one, as the caller sees it.

Law: one thread takes results, and gives each Future its outcome.  Whatever ends that thread, it gives an outcome to
every Future that has none.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from operator import itemgetter

from conveyor._lean.typing import TYPE_CHECKING, Any, Protocol
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_held
from conveyor.core.data.pieces import items_of
from conveyor.engines.base import FORKED
from conveyor.engines.failures import unpicklable_input, unpicklable_result, without_our_frames
from conveyor.engines.jobs import Job, JobFuture, PendingJobs
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.caller.job_feed import LOOP_SECONDS, JobFeed
from conveyor.engines.process.caller.run import THREAD_EXIT_SECONDS, failed_item_of, tolerantly_decoded
from conveyor.engines.process.caller.run_keeper import CLOSED
from conveyor.engines.process.caller.unreported import Unreported
from conveyor.engines.process.system.spawning import cause_and_remedy, thread_started
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import decode
from conveyor.engines.process.wire.endpoint import ConnectionLost, Frame
from conveyor.errors import ProcessError, SourceError, StateError
from conveyor.graph.plan import SinkNode

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from conveyor.engines.loops import LoopClient, Outcome

# The thread that gives outcomes keeps event loops waiting for so long at most, and looks at the clock once in so many.
LOOP_WAITS_SECONDS, LOOK_ITEMS = 0.0005, 16

_place_of = itemgetter(0)


class JobOwner(Protocol):
    """What the run needs of its session."""

    # Held by the thread that takes results, until they are unpickled.
    taking: threading.RLock
    format_item: Callable[[Any], str]

    @property
    def ended(self) -> bool: ...
    @property
    def is_forked_copy(self) -> bool: ...
    def receive(self) -> Frame: ...
    def has_message(self, seconds: float) -> bool: ...
    def send(self, message: messages.Message) -> None: ...
    def finished(self, run: JobRun) -> None: ...
    def leave(self, run: JobRun) -> None: ...
    def abort(self) -> None: ...


class JobRun:
    """The run of the items that are submitted."""

    def __init__(self, owner: JobOwner, number: int, feed: JobFeed, pending: PendingJobs, sink: SinkNode) -> None:
        self._owner = owner
        self.number = number
        self._feed = feed
        self._pending = pending
        self._unreported = Unreported(sink)
        # Whether the broker has said that it is over, whether it was given up, and whether no thread listens any more.
        self.finished = False
        self._given_up = False
        self.over = False
        # What has ended it.
        self._error: BaseException | None = None
        self._threads: tuple[threading.Thread, ...] = ()

    def start(self) -> None:
        """Begin to listen, and to send."""
        # A start that is interrupted would leave a thread that is neither there nor gone.
        with interrupts_held():
            self._threads = tuple(
                threading.Thread(target=target, name=f"conveyor-{name}-{self.number}", daemon=True)
                for target, name in ((self._listen, "results"), (self._send, "submit"))
            )
            for index, thread in enumerate(self._threads):
                if not thread_started(thread):
                    self._threads = self._threads[:index]
                    what = "The threads that send submitted items and take their results"
                    raise ProcessError(f"{what} could not be started: {cause_and_remedy(None)}")

    # What the pipeline wants

    def submit(self, item: Any, deadline: float | None) -> JobFuture | None:
        """Return the Future of an item; None where no more are taken.

        Raises TimeoutError where no room comes for it before the deadline.  A callback of a Future does not wait for
        room, which only its own thread can make.
        """
        if self._owner.is_forked_copy:
            raise StateError(FORKED)
        feed, waits = self._feed, not self._is_here
        if waits and not feed.has_room():
            # Not with the item pickled, which may be large.
            feed.await_room(deadline)
        try:
            job = Job(feed.entry_of(item), future := JobFuture())
        except ConnectionLost:
            return None
        except (Exception, SystemExit) as error:
            future = JobFuture()
            future.set_exception(self._unpicklable(item, error))
            return future
        is_taken = False
        try:
            is_taken = feed.add(job, deadline, waits)
        finally:
            if not is_taken:
                feed.discard(job.entry)
        return future if is_taken else None

    def client(self, loop: AbstractEventLoop) -> LoopClient:
        """Return what submits the items of an event loop."""
        return self._pending.client(loop, self)

    def offer(self, outcome: Outcome) -> bool:
        """Take the item that an event loop awaits the outcome of; return False where there is no room for it."""
        feed = self._feed
        if self._owner.is_forked_copy:
            outcome.set_exception(StateError(FORKED))
            return True
        if not feed.has_room():
            return False
        try:
            job = Job(feed.entry_of(outcome.item, LOOP_SECONDS), outcome)
        except ConnectionLost:
            outcome.refuse()
            return True
        except (Exception, SystemExit) as error:
            outcome.set_exception(self._unpicklable(outcome.item, error))
            return True
        if feed.add(job, None, waits=False):
            outcome.item = None
        else:
            feed.discard(job.entry)
            outcome.refuse()
        return True

    def _unpicklable(self, item: Any, cause: BaseException) -> SourceError:
        """Return the error of an item that cannot be pickled."""
        error = unpicklable_input(0, self._owner.format_item(item), cause)
        error.__cause__ = cause.with_traceback(without_our_frames(cause.__traceback__))
        return error

    @property
    def _is_here(self) -> bool:
        """Whether this is the thread that gives Futures their outcome."""
        return bool(self._threads) and threading.current_thread() is self._threads[0]

    def close_if_idle(self) -> bool:
        """Take no more items, where none is pending; return whether that is so."""
        return self.over or self._pending.close_if_none()

    def drain(self, deadline: float | None) -> bool:
        """Take no more items, and wait for the outcome of each, or for the deadline; return whether all have one."""
        if self._is_here and len(self._pending):
            raise StateError(
                "a callback of a Future cannot wait for the other Futures, as it holds them up: use close(cancel=True)"
            )
        self._pending.close()
        self._feed.refuse()
        return self._pending.wait(deadline)

    def finish(self, deadline: float | None = None) -> bool:
        """End the stream of items, and wait for that, or for the deadline; raises what it ends with."""
        if self.over:
            return True
        self._feed.end()
        if self._is_here:
            while not self.finished and self._take():
                pass
        else:
            self._threads[0].join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self._error is not None:
            raise self._error
        return self.over or self.finished

    def cancel(self) -> None:
        """Give the run up, and cancel all that has no outcome."""
        owner = self._owner
        if not (self.over or owner.ended or owner.is_forked_copy):
            self._given_up = True
            self.stop()
            owner.leave(self)
        self._pending.end(None)
        self.join()

    # What the session wants

    @property
    def source(self) -> JobRun:
        """What is to be stopped, and waited for, at the end of the session."""
        return self

    def stop(self) -> None:
        """Send nothing more."""
        self._feed.stop()

    def join(self) -> None:
        """Wait, within a bound, for the threads; then cancel what they have left."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(THREAD_EXIT_SECONDS)
        if not self._is_here:
            # That thread knows what has ended the run.
            self._pending.end(self._error)

    # The thread that sends, and the one that listens

    def _send(self) -> None:
        """Send what waits."""
        try:
            self._feed.serve()
        except BaseException as error:
            self._error = error
            self._owner.abort()

    def _listen(self) -> None:
        """Give each Future its outcome."""
        error: BaseException | None = None
        try:
            while self._take():
                pass
            if self.finished:
                self._feed.stop()
                self._owner.finished(self)
        except StateError as closed:
            # The pipeline was closed, by another thread or at the end of the interpreter.
            error = self._error if self._owner.ended else closed
        except BaseException as raised:
            error = raised
            self._owner.abort()
        self.over = True
        self._error = error
        self._feed.stop()
        self._pending.end(error)

    def _take(self) -> bool:
        """Wait for a message, and take it in; return whether there will be more."""
        owner = self._owner
        with owner.taking:
            if self._given_up or self.finished:
                return False
            wait = self._unreported.patience
            if wait < math.inf and (wait == 0.0 or not owner.has_message(wait)):
                self._report()
            message, blobs = owner.receive()
        self._feed.heard()
        # What is unpickled here, and callbacks, may hold a lock.
        gate.enter(_nothing)
        try:
            return self._take_in(message, blobs)
        finally:
            gate.leave()

    def _take_in(self, message: messages.Message, blobs: list[Any]) -> bool:
        """Take in a message; return whether there will be more."""
        if getattr(message, "run", self.number) != self.number:
            # Of a run that was given up.
            return True
        if isinstance(message, messages.LOG_MESSAGES):
            # The session has dealt with that.
            return True
        match message:
            case messages.ItemResults():
                self._take_results(message, blobs)
            case messages.ItemGivenUp():
                self._take_failure(message)
            case messages.Pull():
                self._feed.grant(message.credit)
            case messages.Results():
                # Without results: somebody waits for the room of those that were taken.
                self._unreported.hurry(message.tell_within)
            case messages.RunFinished():
                self.finished = True
                return False
            case messages.RunCancelled():
                pass
            case _:
                raise messages.unexpected(message, "The caller, in a run of submitted items,")
        return True

    def _take_results(self, message: messages.ItemResults, blobs: list[Any]) -> None:
        begun = time.monotonic()
        if blobs:
            values = self._decoded(message, blobs)
            sent = self._feed.sent
            for lineage, value in zip(message.lineages, values, strict=True):
                job = sent.get(lineage[0])
                if job is not None:
                    job.parts.append((lineage, value))
            self._feed.progress.results += len(values)
            if self._unreported.add(len(values), sum(map(len, blobs))):
                self._report()
        self._unreported.hurry(message.tell_within)
        pending = self._pending
        for number in message.settled:
            job = self._feed.sent.pop(number, None)
            if job is not None:
                parts = job.parts
                if len(parts) > 1:
                    parts.sort(key=_place_of)
                pending.resolve(job, [value for _, value in parts])
            if not number % LOOK_ITEMS and time.monotonic() > begun + LOOP_WAITS_SECONDS:
                pending.give_way()
                begun = time.monotonic()
        if message.settled:
            pending.notify()

    def _take_failure(self, message: messages.ItemGivenUp) -> None:
        """Take in that an item has failed, or lost a part.  Where it has no origin, the session has dealt with that."""
        sent, origin = self._feed.sent, message.origin
        job = None if origin is None else sent.get(origin)
        if origin is None or job is None:
            return
        if message.skipped:
            # Only a stream asks for it.
            if job.future.is_of_loop:
                job.future.skipped = failed_item_of(message).error
        else:
            del sent[origin]
            self._pending.give_up(job, failed_item_of(message).error)

    def _report(self) -> None:
        """Tell the broker how many results were taken: it may send as many more."""
        self._owner.send(self._unreported.report(self.number))

    def _decoded(self, message: messages.ItemResults, blobs: list[Any]) -> list[Any]:
        try:
            return items_of(message.spec, [decode(blob) for blob in blobs])
        except (Exception, SystemExit) as error:
            if self._owner.ended:
                raise StateError(CLOSED) from None
            return self._decoded_tolerantly(message, blobs, error)

    def _decoded_tolerantly(self, message: messages.ItemResults, blobs: list[Any], error: BaseException) -> list[Any]:
        """Fail the items of which a result cannot be unpickled; return the others, with something in the place."""
        values, causes = tolerantly_decoded(message.spec, blobs, len(message.lineages), error)
        for lineage, cause in zip(message.lineages, causes, strict=True):
            job = self._feed.sent.get(lineage[0])
            if cause is not None and job is not None:
                self._pending.give_up(job, unpicklable_result(cause))
                self._feed.drop(job)
        return values


def _nothing() -> None:
    """A message cannot be hurried."""
