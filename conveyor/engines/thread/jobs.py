"""Items that are submitted one by one to the thread engine.

Law: all is as in the process engine, but for the ways of an item: each is copied when it is submitted, and goes on as
that object from then on.
"""

from __future__ import annotations

import threading

from conveyor._lean.typing import TYPE_CHECKING, Any, cast
from conveyor.core.tuning.chunk_size import first_pull
from conveyor.engines.base import RunProgress
from conveyor.engines.jobs import Job, PendingJobs
from conveyor.engines.process.caller.job_feed import JobFeed
from conveyor.engines.process.caller.jobs import JobRun
from conveyor.engines.process.wire import messages
from conveyor.engines.thread.items import Blob, gathered, size_of_all, snapshot, taken
from conveyor.engines.thread.shell import Feed, ThreadAbandoned
from conveyor.graph.plan import Plan, SinkNode

if TYPE_CHECKING:
    from conveyor.engines.thread.session import Session


class ThreadJobFeed(JobFeed):
    """Hands submitted items to the shell."""

    def entry_of(self, item: Any, seconds: float = -1) -> Any:
        """Return an item as it is now, whatever the caller does to it; itself where it cannot be copied."""
        return snapshot(item)

    def _encoded(self, entries: list[Any]) -> Blob:
        return Blob(entries, size_of_all(entries, set(map(type, entries))), 1)

    @staticmethod
    def _is_sent_fast(job: Job) -> bool:
        # No channel can be full.  But the thread that sends may have to run the core for other threads as well.
        return not job.future.is_of_loop


class ThreadJobRun(JobRun):
    """The run of the items that are submitted."""

    def _take_in(self, message: Any, blobs: list[Any]) -> bool:
        # The session has warned of an abandoned thread.
        return isinstance(message, ThreadAbandoned) or super()._take_in(message, blobs)

    def _decoded(self, message: messages.ItemResults, blobs: list[Any]) -> list[Any]:
        items, refers = gathered(message.spec)
        if not refers:
            return items
        return [self._taken(item, lineage[0]) for item, lineage in zip(items, message.lineages, strict=True)]

    def _taken(self, item: Any, origin: int) -> Any:
        """Return a result; where it has to be copied and cannot be, fail the submitted item that it came of."""
        try:
            return taken(item)
        except TypeError as error:
            job = self._feed.sent.get(origin)
            if job is not None:
                self._pending.give_up(job, error)
                self._feed.drop(job)
            return None


def new_job_run(
    session: Session, plan: Plan, number: int, end: Feed, sink: SinkNode, progress: RunProgress
) -> ThreadJobRun:
    """Return a run of submitted items, which the shell knows of."""
    pending = PendingJobs()
    room = first_pull(plan), plan.steps[0].bound_bytes
    feed = ThreadJobFeed(number, cast(Any, end), room, None, threading.RLock(), pending, progress)
    end.send(messages.StartRun(number, traced=True))
    return ThreadJobRun(cast(Any, session), number, feed, pending, sink)
