"""A worker of the inline engine: a copy of a job, and what that can know of itself.

Law: it calls the job in the thread that asks, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from conveyor._lean.typing import TYPE_CHECKING, Any, TypeVar
from conveyor.stages.outputs import WorkerRecord, awaited, worker_variable
from conveyor.stages.per_item import single_work_of
from conveyor.stages.processor import Processor, is_async, work_of

if TYPE_CHECKING:
    from conveyor.stages.event_loop import EventLoop

Returned = TypeVar("Returned")


class InlineWorker:
    """A copy of a Processor's job, and what it can know of itself."""

    def __init__(self, record: WorkerRecord, job: Processor[Any, Any]) -> None:
        self.job = job
        self.record = record
        self._variable = worker_variable()
        self.loop: EventLoop | None = None
        if is_async(work_of(job)):
            # Few pipelines have such a job.
            from conveyor.stages.event_loop import EventLoop

            self.loop = EventLoop()

    @property
    def call(self) -> Callable[[Any], Any]:
        """What is called with an item."""
        call = single_work_of(self.job)
        return call if self.loop is None else lambda item: awaited(call(item), self.loop)

    def calling(self, call: Callable[[], Returned]) -> Returned:
        """Return what a call gives that runs the job."""
        token = self._variable.set(self.record)
        try:
            return call()
        finally:
            self._variable.reset(token)

    def set_up(self) -> None:
        self.record.state = self.calling(lambda: awaited(self.job.setup(), self.loop))

    def tear_down(self) -> None:
        try:
            self.calling(lambda: awaited(self.job.teardown(), self.loop))
        finally:
            if self.loop is not None:
                self.loop.close()
