"""Items that are submitted one by one to the inline engine.

Law: each goes the whole way in the thread that submits it, so its Future is done when it is returned.  What tasks of an
event loop submit goes the whole way in a thread that is there for them, one after the other.  One thread at a time is
at a job.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.base import RunProgress
from conveyor.engines.failures import unpicklable_input, without_our_frames
from conveyor.engines.inline.hop import behind_hop
from conveyor.engines.inline.nodes import Failures, Walk
from conveyor.engines.jobs import Job, JobFuture, PendingJobs
from conveyor.engines.process.system.spawning import cause_and_remedy, thread_started
from conveyor.errors import (
    ConveyorError,
    FailedItem,
    ProcessError,
    ProcessorError,
    ResultError,
    SourceError,
    StateError,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from conveyor.engines.inline.session import Session
    from conveyor.engines.loops import LoopClient, Outcome


class InlineJobRun:
    """The run of the items that are submitted."""

    def __init__(self, session: Session, new_walk: Callable[[Failures], Walk], progress: RunProgress) -> None:
        self._session = session
        self._walk = new_walk(self)
        self._progress = progress
        # The error of what was given up last of the item at hand, while the run goes on.
        self._skipped: BaseException | None = None
        # Those that event loops wait for, and those of them that nobody works on yet.
        self._pending = PendingJobs()
        self._waiting: deque[Job] = deque()
        # Held while a thread for them begins, or finds none left.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.over = False
        # What has ended it, unless it was closed.
        self._error: BaseException | None = None

    @property
    def _takes_more(self) -> bool:
        return not (self._pending.closed or self.over or self._session.ended)

    def submit(self, item: Any, deadline: float | None) -> Future[list[Any]] | None:
        """Return the Future of an item, which is done; None where no more are taken."""
        if not self._takes_more:
            return None
        future = JobFuture()
        try:
            future.set_result(self._results_of(self._copy_of(item))[0])
        except (ProcessorError, ResultError, SourceError) as error:
            future.set_exception(error.with_traceback(None))
        except StateError as error:
            future.set_exception(self._error or error)
            self._end_closed()
        except ConveyorError as error:
            # Too much was given up.
            self._end(error)
            future.set_exception(error)
        except Exception as error:
            self._end(error)
            raise
        except BaseException:
            # Ctrl-C ends what runs in this thread.  Event loops that wait in others would end of it, too.
            self._end(None)
            raise
        return future

    def client(self, loop: AbstractEventLoop) -> LoopClient:
        """Return what submits the items of an event loop."""
        return self._pending.client(loop, self)

    def offer(self, outcome: Outcome) -> bool:
        """Take the item that an event loop awaits the outcome of; a thread works on it."""
        if not self._takes_more:
            outcome.refuse()
            return True
        try:
            job = Job(self._copy_of(outcome.item), outcome)
        except SourceError as error:
            outcome.set_exception(error)
            return True
        outcome.withdraw = partial(self._pending.withdraw, job)
        if not self._pending.add(job):
            outcome.refuse()
            return True
        outcome.item = None
        with self._lock:
            self._waiting.append(job)
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="conveyor-inline", daemon=True)
                if thread_started(thread):
                    self._thread = thread
                else:
                    self._waiting.remove(job)
                    text = f"The thread that works on items could not be started: {cause_and_remedy(None)}"
                    self._pending.fail(job, ProcessError(text))
        return True

    def _serve(self) -> None:
        """Work on what event loops wait for, until none is left."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                job = self._waiting.popleft()
            if job in self._pending:
                item, job.entry = job.entry, None
                try:
                    results, job.future.skipped = self._results_of(item)
                    self._pending.resolve(job, results)
                    self._pending.notify()
                except (ProcessorError, ResultError) as error:
                    self._pending.give_up(job, error.with_traceback(None))
                except StateError:
                    self._end_closed()
                except BaseException as error:
                    self._end(error)

    def _copy_of(self, item: Any) -> Any:
        """Return an item as it is now; raises SourceError for one that cannot be pickled."""
        try:
            return behind_hop(item)
        except (Exception, SystemExit) as error:
            cause = error.with_traceback(without_our_frames(error.__traceback__))
            raise unpicklable_input(0, self._session.format_item(item), cause) from error

    def fail(self, failed: FailedItem) -> None:
        """Take in what was given up, while the run goes on."""
        self._skipped = failed.error
        self._session.fail(failed)

    def judge(self, given_up: int, items: int, ended: bool) -> None:
        """Raise TooManyFailuresError where more was given up than may be."""
        self._session.judge(given_up, items, ended)

    def _results_of(self, item: Any) -> tuple[list[Any], BaseException | None]:
        """Return what comes of an item, and the error of what was given up meanwhile."""
        self._progress.pulled += 1
        self._session.sample()

        def work() -> tuple[list[Any], BaseException | None]:
            self._skipped = None
            return list(self._walk.results_of(item)), self._skipped

        try:
            found: tuple[list[Any], BaseException | None] = self._session.work(work)
        except BaseException:
            # What it has left would come with the next one.
            self._walk.forget()
            raise
        self._progress.results += len(found[0])
        return found

    def _end_closed(self) -> None:
        """End all, where the session was closed: by the user, or by another thread that has ended this run."""
        self._end(self._error)

    def _end(self, error: BaseException | None) -> None:
        """End all, with an error for what event loops wait for; None: cancel that."""
        self.over = True
        # Before the session ends: a thread that hears of that gives its item the same error.
        self._error = error
        # The session ends before anybody hears of it: who does may submit at once, to a session that begins anew.
        self._session.finished(self)
        self._session.abort()
        self._pending.end(error)

    def let_go(self) -> None:
        """Nothing of any item is kept."""

    def abandon(self) -> None:
        """Cancel what has no outcome, as the session has ended; a thread may still be at a job."""
        self._pending.end(None)

    def close_if_idle(self) -> bool:
        """Take no more items, where none is pending; return whether that is so."""
        return self._pending.close_if_none()

    def drain(self, deadline: float | None) -> bool:
        """Take no more items, and wait for the outcome of each, or for the deadline; return whether all have one."""
        if threading.current_thread() is self._thread and len(self._pending):
            raise StateError("a job cannot wait for itself: use close(cancel=True)")
        self._pending.close()
        return self._pending.wait(deadline)

    def finish(self, deadline: float | None = None) -> bool:
        """End the stream of items; raises what a `finish` raises."""
        if not self.over:
            self.over = self._progress.ended = True
            try:
                self._session.work(lambda: list(self._walk.results_of_end()))
            except BaseException:
                self._session.abort()
                raise
            finally:
                self._session.finished(self)
        return True

    def cancel(self) -> None:
        """Take no more items, and cancel all that have no outcome."""
        self.over = True
        self._pending.end(None)
        self._session.finished(self)
