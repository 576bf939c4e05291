"""Items that are submitted one by one to the inline engine.

Law: each goes the whole way in the thread that submits it, so its Future is done when it is returned.  One thread at a
time is at a job.
"""

from __future__ import annotations

from concurrent.futures import Future

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.base import RunProgress
from conveyor.engines.failures import without_our_frames
from conveyor.engines.inline.nodes import Walk
from conveyor.engines.jobs import JobFuture
from conveyor.engines.process.wire.codec import copied
from conveyor.errors import ConveyorError, ProcessorError, SourceError

if TYPE_CHECKING:
    from conveyor.engines.inline.session import Session


class InlineJobRun:
    """The run of the items that are submitted."""

    def __init__(self, session: Session, walk: Walk, progress: RunProgress) -> None:
        self._session = session
        self._walk = walk
        self._progress = progress
        self._closed = False
        self.over = False

    def submit(self, item: Any, deadline: float | None) -> Future[list[Any]] | None:
        """Return the Future of an item, which is done; None where no more are taken."""
        if self._closed or self.over or self._session.ended:
            return None
        future = JobFuture()
        try:
            future.set_result(self._results_of(item))
        except (ProcessorError, SourceError) as error:
            future.set_exception(error)
        except ConveyorError as error:
            # Too much was given up, or another thread has closed the pipeline.
            self._end()
            future.set_exception(error)
        except BaseException:
            self._end()
            raise
        return future

    def _results_of(self, item: Any) -> list[Any]:
        try:
            item = copied(item)
        except Exception as error:
            cause = error.with_traceback(without_our_frames(error.__traceback__))
            raise SourceError.unpicklable(0, self._session.format_item(item), cause) from error
        self._progress.pulled += 1
        self._session.sample()
        try:
            results: list[Any] = self._session.work(lambda: list(self._walk.results_of(item)))
        except BaseException:
            # What it has left would come with the next one.
            self._walk.forget()
            raise
        self._progress.results += len(results)
        return results

    def _end(self) -> None:
        self.over = True
        self._session.abort()
        self._session.finished(self)

    def let_go(self) -> None:
        """Nothing of any item is kept."""

    def close_if_idle(self) -> bool:
        """Take no more items: none is ever pending."""
        self._closed = True
        return True

    def drain(self, deadline: float | None) -> bool:
        """Take no more items: none is ever pending."""
        return self.close_if_idle()

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
        """Take no more items."""
        self._closed = self.over = True
        self._session.finished(self)
