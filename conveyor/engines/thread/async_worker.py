"""A worker thread with an async job: an event loop of its own, with many calls at once.

Law: it differs from the loop of a worker process by what hands items in and out alone.
"""

from __future__ import annotations

from conveyor._lean.typing import Any
from conveyor.engines.process.worker.async_loop import AsyncWorker
from conveyor.engines.thread.port import Port
from conveyor.engines.thread.worker import ThreadLeaseItems, ThreadOutbox, ThreadRetrier
from conveyor.stages.event_loop import EventLoop
from conveyor.stages.outputs import WorkerRecord
from conveyor.stages.processor import Processor


class AsyncThreadWorker(AsyncWorker):
    """The loop of a worker thread with an async job."""

    outbox_kind = ThreadOutbox
    lease_items_kind = ThreadLeaseItems
    retrier_kind = ThreadRetrier
    freezes_early = True
    of_thread = True

    def __init__(
        self, config: Any, processor: Processor[Any, Any], port: Port, record: WorkerRecord, loop: EventLoop
    ) -> None:
        super().__init__(config, processor, port, port.progress, None, record, loop=loop)
