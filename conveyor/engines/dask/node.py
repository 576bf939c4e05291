"""A node process: below the actor on a Dask worker, the parent of the pipeline's workers there.

Law: it relays, and decides nothing.  It ends with its workers when the actor is gone, or when the broker has not called
for `LEASE_SECONDS`.  It knows nothing of Dask, and is a fresh interpreter with one thread, so it can fork workers.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.dask import messages as node_messages
from conveyor.engines.dask.messages import relayed, unrelayed
from conveyor.engines.process.broker.ports import Connection, WorkerPort
from conveyor.engines.process.broker.worker_pool import WorkerPool
from conveyor.engines.process.shm.region import write_all
from conveyor.engines.process.system.child_setup import block_ignored_signals, reset_inherited_state
from conveyor.engines.process.system.descendants import Orphans
from conveyor.engines.process.system.spawning import FORKSERVER
from conveyor.engines.process.system.waiting import SLICE_SECONDS, PauseDetector, wait_for_any
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import BrokerConfig, WorkerConfig
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.process.wire.handles import Handles
from conveyor.engines.process.wire.pipe import PIPE, NonblockingPipe
from conveyor.engines.process.wire.shared_objects import nameless_file
from conveyor.errors import ProcessError

if TYPE_CHECKING:
    from conveyor.engines.process.broker.dispatch import Dispatch

# Without a call of the broker for so long, the node and its workers end.
LEASE_SECONDS = 10.0
# How often the node looks at its lease.
LOOK_SECONDS = 0.25
# While more than this waits for the broker, the node reads no more of its workers.
MOST_WAITING_BYTES = 64 * 1024 * 1024


class NodePool(WorkerPool):
    """The workers of one node: a pool like that of a broker, which is told each worker's configuration."""

    def __init__(self, link: NonblockingPipe, dispatch: Dispatch) -> None:
        plan: Any = None
        shared = Handles([])
        super().__init__(BrokerConfig(plan, {}, PIPE, FORKSERVER, os.getppid()), [link], None, shared, dispatch)
        self._next: WorkerConfig
        self._shared = shared
        self._shared_file: int | None = None
        # Why the shared objects are not there; None: they are, or there are none.
        self._unshared: OSError | None = None

    def launch(self, number: int, config: WorkerConfig) -> None:
        """Start a worker; raises ProcessError where there is nothing left to start it with."""
        if self._unshared is not None:
            raise ProcessError(
                f"The shared objects of the pipeline could not be written to memory on the node {platform.node()!r}: "
                f"{self._unshared}. Remedy: share less, or raise the limit on memory."
            )
        self._next = config
        self.start(0, number, 0)

    def take_in_shared(self, start: int, part: Any) -> None:
        """Write a part of the shared objects to the file that the workers map."""
        try:
            if self._shared_file is None:
                self._shared_file = nameless_file()
                # Theirs has the place that it had among the handles of the caller: the first.
                self._shared.duplicate_for_child(self._shared_file)
            write_all(self._shared_file, memoryview(part), start)
        except OSError as error:
            self._unshared = error

    def _placed(self, step: int, index: int) -> WorkerConfig:
        # The broker has seen to that.
        return self._next


class _NoObservers:
    observers = ()


class Node:
    """The loop of a node process, and what it does about what arrives."""

    shell = _NoObservers

    def __init__(self, connected: socket.socket) -> None:
        self._link = NonblockingPipe(connected)
        self.orphans = Orphans()
        stands_for_dispatch: Any = self
        self._pool = NodePool(self._link, stands_for_dispatch)
        self._waiter = self._pool.waiter
        self._broker = Connection(self._link, self._waiter, self.from_broker, self._end, lambda blobs: None)
        # The pickled jobs by the names of their Processors, each with the `redact` of the pipeline.
        self._jobs: dict[str, list[Any]] = {}
        self._heard_at = time.monotonic()
        self._ended = False
        # Whether any Processor has a timeout, so that pauses of the machine are looked for.
        self._timed = False
        self._pauses = PauseDetector()

    def serve(self) -> None:
        """Serve until the broker or the actor is gone, and leave nothing behind."""
        patience = LOOK_SECONDS
        try:
            while not self._ended:
                patience = SLICE_SECONDS if self._timed or self.orphans.sweeping else LOOK_SECONDS
                if self._link.sent - self._link.left > MOST_WAITING_BYTES:
                    self._make_room(patience)
                else:
                    for callback in self._waiter.wait(patience):
                        callback()
                if self._timed:
                    self._pauses.look(patience)
                if time.monotonic() > self._heard_at + LEASE_SECONDS:
                    self._end()
                self._sweep()
        finally:
            self._pool.end()
            self.orphans.sweep()
            while self.orphans.sweeping:
                self.orphans.look(self._pool.living)
                wait_for_any([], SLICE_SECONDS)

    def _make_room(self, seconds: float) -> None:
        """Wait until something has left; what workers say waits with them."""
        wait_for_any([self._link.waitable()], min(seconds, SLICE_SECONDS))
        self._broker.ready()

    def _end(self) -> None:
        self._ended = True

    def _sweep(self) -> None:
        if self.orphans.sweeping and (text := self.orphans.look(self._pool.living)):
            self._tell(node_messages.Swept(text))

    def _tell(self, message: Any, blobs: Any = ()) -> None:
        self._broker.send(message, blobs)

    # From the broker

    def from_broker(self, message: Any, blobs: list[Any]) -> None:
        """Take in what the broker wants."""
        self._heard_at = time.monotonic()
        match message:
            case node_messages.Beat():
                pass
            case node_messages.SharedPart():
                self._pool.take_in_shared(message.start, blobs[0])
            case node_messages.StartWorker():
                self._start(message.number, message.config, blobs)
            case _:
                worker = self._pool.workers.get(message.number)
                # Of one that is dead, the word of its death is on its way.
                if worker is not None and not worker.dead:
                    self._about_worker(worker, message, blobs)

    def _about_worker(self, worker: WorkerPort, message: Any, blobs: list[Any]) -> None:
        match message:
            case node_messages.Relayed():
                worker.peer.send(*unrelayed(blobs))
            case node_messages.AllowAll():
                worker.progress.allow_all()
            case node_messages.RevokeCalls():
                revoked = worker.progress.revoke(message.lease, message.calls)
                self._tell(node_messages.CallsRevoked(worker.number, *revoked))
            case node_messages.Probe():
                self._tell(node_messages.Probed(worker.number, *worker.probe(self._pauses)))
            case node_messages.Kill():
                worker.child.kill()
            case node_messages.Wake():
                worker.child.wake()
            case _:
                raise messages.unexpected(message, "A node")

    def _start(self, number: int, config: WorkerConfig, blobs: list[Any]) -> None:
        if blobs:
            self._jobs[config.name] = [bytes(blob) for blob in blobs]
        job, redact = self._jobs[config.name]
        self._timed = self._timed or config.timed
        try:
            self._pool.launch(number, config._replace(job=job, redact=redact or None))
        except ProcessError as error:
            self._tell(node_messages.WorkerNotStarted(number, str(error)))

    # From the workers: what a Dispatch does in a broker

    def from_worker(self, worker: WorkerPort, message: messages.Message, blobs: list[Any]) -> None:
        """Pass on what a worker says."""
        self._tell(node_messages.Relayed(worker.number), relayed(message, blobs))

    def worker_died(self, worker: WorkerPort) -> None:
        """Pass on what it said last, and that it is dead."""
        last = self._pool.bury(worker, self._pauses)
        self.orphans.left_by(worker.child.pid, worker.config.name)
        self._tell(node_messages.WorkerEnded(worker.number, worker.child.exitcode, tuple(last)))
        del self._pool.workers[worker.number]


def main(descriptor: int) -> None:
    """The whole life of a node process, which talks through that descriptor."""
    connected = socket.socket(fileno=descriptor)
    reset_inherited_state([])
    block_ignored_signals()
    with contextlib.suppress(ConnectionLost):
        Node(connected).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


# The actor keeps the parts of a program that run it: where to find Conveyor, and what to call.
PROGRAM = "import sys; sys.path[:] = {path!r}; from conveyor.engines.dask.node import main; main({descriptor})"


def program(path: list[str], descriptor: int) -> str:
    """Return the program of a node process that finds modules as this process does."""
    return PROGRAM.format(path=path, descriptor=descriptor)
