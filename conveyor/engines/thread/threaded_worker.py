"""A worker thread whose job is called many times at once: an event loop of its own, and a thread for each call.

Law: it differs from the loop of a worker process by what hands items in and out, and by what a thread cannot have: one
that was abandoned waits for the calls that are under way.
"""

from __future__ import annotations

from conveyor._lean.typing import Any
from conveyor.engines.process.worker.async_lease import AsyncMeter
from conveyor.engines.process.worker.threaded_loop import ThreadedRetrier, ThreadedWorker
from conveyor.engines.thread.port import FORKED_EXITCODE, Port
from conveyor.engines.thread.worker import ThreadLeaseItems, ThreadOutbox, ThreadRetrier
from conveyor.stages.outputs import WorkerRecord
from conveyor.stages.processor import Processor


class ThreadsRetrier(ThreadedRetrier, ThreadRetrier):
    """Does so with the exceptions themselves, and calls `on_error` as if no event loop ran."""


class PortMeter(AsyncMeter):
    """Measures what all threads of a worker take together."""

    def __init__(self, port: Port) -> None:
        super().__init__(of_thread=True)
        # The system counts for one thread or for a process how often it waited, and not for some threads.
        self._usage = None
        self._cpu_clock = lambda: port.cpu_seconds


class ThreadedThreadWorker(ThreadedWorker):
    """The loop of a worker thread with a threaded job."""

    outbox_kind = ThreadOutbox
    lease_items_kind = ThreadLeaseItems
    retrier_kind = ThreadsRetrier
    freezes_early = True
    of_thread = True
    waits_when_lost = True
    forked_exitcode = FORKED_EXITCODE

    def __init__(self, config: Any, processor: Processor[Any, Any], port: Port, record: WorkerRecord) -> None:
        super().__init__(config, processor, port, port.progress, None, record)
        self._port = port
        self._meter = PortMeter(port)

    def _begin_thread(self) -> None:
        self._port.add_cpu_clock()
