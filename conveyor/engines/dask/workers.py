"""The workers of a cluster, as the broker keeps them: a pool whose processes are children of nodes.

Law: all that the rest of the broker asks of a worker is answered here at once, or by an event later.  A worker is
placed on the node that has the fewest for its threads; one for which there is no node waits for one.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from functools import partial

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.core import events
from conveyor.engines.dask import messages as node_messages
from conveyor.engines.dask.cluster import Cluster, NodeLink
from conveyor.engines.dask.messages import relayed, unrelayed
from conveyor.engines.process.broker.dispatch import Dispatch
from conveyor.engines.process.broker.ports import Connection, WorkerPort
from conveyor.engines.process.broker.worker_pool import WorkerPool
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system.waiting import PauseDetector
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import BrokerConfig, WorkerConfig
from conveyor.engines.process.wire.endpoint import Frame, NonblockingEndpoint
from conveyor.engines.process.wire.handles import Handles
from conveyor.engines.process.wire.progress import LastWords
from conveyor.errors import HOST_LOST_EXITCODE, ProcessError

# The shared objects cross in parts of so many bytes.
PART_BYTES = 4 * 1024 * 1024


def _mapped(handles: Handles) -> memoryview:
    """Return what is in the file of the shared objects: the only descriptor that goes to a broker of a cluster."""
    descriptor = handles.duplicate(0)
    try:
        size = os.fstat(descriptor).st_size
        return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b"")
    finally:
        os.close(descriptor)


class _NoWaiter:
    """What a connection waits with that the pool wakes itself."""

    def add(self, thing: Any, callback: Any) -> None: ...

    def remove(self, thing: Any) -> None: ...

    def want_room(self, thing: Any, wanted: bool) -> None: ...


class RemoteEnd(NonblockingEndpoint):
    """The broker's end of the channel to a worker on a node."""

    def __init__(self, child: RemoteChild) -> None:
        self._child = child
        self.arrived: list[Frame] = []

    @property
    def left(self) -> int:
        return self.sent

    def send(self, message: messages.Message, blobs: Any = ()) -> None:
        self._child.tell(node_messages.Relayed(self._child.number), relayed(message, blobs))

    def receive(self) -> tuple[list[Frame], bool]:
        frames, self.arrived = self.arrived, []
        return frames, True

    def waitable(self) -> Any:
        return self

    def close(self) -> None:
        self.arrived = []


class RemoteChild:
    """A worker process on a node: what stands for a `Child`."""

    # Its number means nothing on this machine.
    pid: Any = None

    def __init__(self, number: int) -> None:
        self.number = number
        self.link: NodeLink | None = None
        self.exitcode: int | None = None
        # What is said before there is a node for it.
        self._unsaid: list[tuple[Any, Any]] = []

    def tell(self, message: Any, blobs: Any = ()) -> None:
        """Have the node do something."""
        if self.link is None:
            self._unsaid.append((message, blobs))
        else:
            self.link.send(message, blobs)

    def placed(self, link: NodeLink) -> None:
        """Take in which node it is on."""
        self.link = link
        link.workers.add(self.number)

    def told(self) -> list[tuple[Any, Any]]:
        """Return what was said before there was a node for it."""
        unsaid, self._unsaid = self._unsaid, []
        return unsaid

    def kill(self) -> None:
        self.tell(node_messages.Kill(self.number))

    def wake(self) -> None:
        self.tell(node_messages.Wake(self.number))


class RemoteProgress:
    """The progress slot of a worker on a node: what is known of it here."""

    def __init__(self, child: RemoteChild) -> None:
        self._child = child
        # What is known of it once it is dead.
        self.last_words = LastWords()

    @property
    def started(self) -> Any:
        """How far it had started what it was handed, once it is dead; None: nobody knows."""
        return self.last_words.started

    def allow_all(self) -> None:
        """Let everything be started again."""
        self._child.tell(node_messages.AllowAll(self._child.number))

    def revoke(self, lease: int, calls: int) -> tuple[int, int]:
        """Have the node answer, later, how far the worker may have started."""
        self._child.tell(node_messages.RevokeCalls(self._child.number, lease, calls))
        return lease, calls

    def working_since(self) -> tuple[tuple[int, int], float | None]:
        """Say that nobody knows here."""
        return (0, 0), None


class ClusterPool(WorkerPool):
    """The workers, by number; `cluster` is set by whoever makes a kind of pool for it."""

    cluster: Cluster

    def __init__(
        self,
        config: BrokerConfig,
        ends: list[NonblockingEndpoint],
        arena: Arena | None,
        handles: Handles | None,
        dispatch: Dispatch,
    ) -> None:
        super().__init__(config, ends, arena, handles, dispatch)
        # What the file of the shared objects has in it.
        self._shared: memoryview | None = None
        if any(each.shared is not None for each in config.workers.values()):
            assert handles is not None
            self._shared = _mapped(handles)
        self._waiting: deque[WorkerPort] = deque()
        self._alone_since: float | None = None
        self.waiter.add(self.cluster.waitable, self._take_in)
        if self.cluster.error is not None:
            self.cluster.put("failed", None, self.cluster.error)

    def _launch(self, config: WorkerConfig, number: int) -> None:
        child = RemoteChild(number)
        stand_in: Any = child
        progress: Any = RemoteProgress(child)
        each = WorkerPort(number, config, stand_in, progress, time.monotonic())
        near = RemoteEnd(child)
        nothing: Any = _NoWaiter()
        each.peer = Connection(
            near, nothing, partial(self._dispatch.from_worker, each), lambda: None, lambda blobs: None
        )
        each.end = near
        self.workers[number] = each
        if observers := self._dispatch.shell.observers:
            each.peer.observe(f"worker {number}", observers)
        self._waiting.append(each)
        self._place()

    def _place(self) -> None:
        """Place the workers that wait, as far as there are nodes."""
        cluster = self.cluster
        if not self._waiting:
            self._alone_since = None
        while self._waiting:
            shares = [
                ((len(cluster.links[address].workers) if address in cluster.links else 0) + 1, number, address)
                for address, number in cluster.cores.items()
                if address not in cluster.lost
            ]
            if not shares:
                self._alone_since = self._alone_since or time.monotonic()
                return
            self._alone_since = None
            _, _, address = min(shares, key=lambda share: (share[0] / max(1, share[1]), share[2]))
            self._place_on(self._waiting.popleft(), cluster.link(address))

    def _share_with(self, link: NodeLink) -> None:
        """Send a node the shared objects, before its first worker."""
        if self._shared is not None and not link.is_shared_with:
            link.is_shared_with = True
            for start in range(0, len(self._shared) or 1, PART_BYTES):
                link.send(node_messages.SharedPart(start), [self._shared[start : start + PART_BYTES]])

    def _place_on(self, each: WorkerPort, link: NodeLink) -> None:
        self._share_with(link)
        child: Any = each.child
        child.placed(link)
        config, blobs = each.config, [each.config.job, each.config.redact or b""]
        known = config.name in link.jobs
        link.jobs.add(config.name)
        bare = config._replace(job=b"", redact=None)
        link.send(node_messages.StartWorker(each.number, bare), [] if known else blobs)
        for message, unsaid in child.told():
            link.send(message, unsaid)

    def look(self) -> None:
        """Raise ProcessError where workers have waited for a node for too long."""
        since, bound = self._alone_since, self.cluster.facts.lost_after
        if since is not None and time.monotonic() > since + bound:
            raise ProcessError(
                f"The Dask cluster at {self.cluster.facts.address!r} has had no worker for {bound:g} s that Conveyor "
                "could use. Remedy: start some (`dask worker`, or `cluster.scale`)."
            )

    # What has happened

    def _take_in(self) -> None:
        for kind, link, what in self.cluster.take():
            match kind:
                case "data":
                    assert link is not None
                    for message, blobs in link.frames(what) if not link.is_lost else ():
                        self._from_node(message, blobs)
                case "lost":
                    assert link is not None
                    self._lose(link, what)
                case "round trip":
                    self._dispatch.shell.handle(events.RoundTrip(what))
                case "cores":
                    self._place()
                case "failed":
                    raise ProcessError(what)
                case _:
                    raise AssertionError(f"unknown: {kind!r}")
        self._place()

    def _from_node(self, message: Any, blobs: list[Any]) -> None:
        shell = self._dispatch.shell
        match message:
            case node_messages.Swept():
                shell.caller.logs.pass_on(messages.NoticeGiven("WARNING", message.text), [])
            case _:
                each = self.workers.get(message.number)
                if each is not None and not each.dead:
                    self._about_worker(each, message, blobs)

    def _about_worker(self, each: WorkerPort, message: Any, blobs: list[Any]) -> None:
        shell = self._dispatch.shell
        match message:
            case node_messages.Relayed():
                end: Any = each.end
                end.arrived.append(unrelayed(blobs))
                each.peer.drain()
            case node_messages.CallsRevoked():
                shell.handle(events.RevokeResult(each.number, message.lease, message.calls))
            case node_messages.Probed():
                shell.handle(events.ProbeResult(each.number, message.lease, message.calls, message.seconds))
            case node_messages.WorkerEnded():
                self._ended(each, message.exitcode, LastWords(*message.last))
            case node_messages.WorkerNotStarted():
                self._not_started(each, message.why)
            case _:
                raise messages.unexpected(message, "The broker, from a node,")

    def _ended(self, each: WorkerPort, exitcode: int | None, last: LastWords) -> None:
        each.child.exitcode = exitcode
        progress: Any = each.progress
        progress.last_words = last
        self._dispatch.worker_died(each)

    def _not_started(self, each: WorkerPort, why: str) -> None:
        shell = self._dispatch.shell
        self.bury(each)
        if not shell.machine.can_do_without(each.number):
            raise ProcessError(why)
        del self.workers[each.number]
        shell.go_on_without(each.number, why)
        shell.handle_answers()

    def _lose(self, link: NodeLink, why: str) -> None:
        """Take in that a node is lost, and all workers on it."""
        self.cluster.forget(link)
        dead = [self.workers[number] for number in sorted(link.workers) if number in self.workers]
        if not self.closing:
            where = f"{link.address} on {link.host}" if link.host else link.address
            text = f"The node on the Dask worker {where} is lost, and its workers with it ({len(dead)}): {why}."
            self._dispatch.shell.caller.logs.pass_on(messages.NoticeGiven("WARNING", text), [])
        for each in dead:
            if not each.dead:
                self._ended(each, HOST_LOST_EXITCODE, LastWords(None))

    def bury(self, each: WorkerPort, pauses: PauseDetector | None = None) -> LastWords:
        while each.peer.drain():
            pass
        each.peer.close()
        each.dead = True
        child: Any = each.child
        if child.link is not None:
            child.link.workers.discard(each.number)
        if each in self._waiting:
            self._waiting.remove(each)
        progress: Any = each.progress
        last_words: LastWords = progress.last_words
        return last_words

    @property
    def living(self) -> set[int]:
        """No worker is a child of this process."""
        return set()

    def close_workers(self, grace: float | None) -> None:
        super().close_workers(grace)
        # Those without a node have nothing to close.
        for each in list(self._waiting):
            self._ended(each, HOST_LOST_EXITCODE, LastWords(None))

    def end(self) -> None:
        for each in self.workers.values():
            each.dead = True
            each.peer.close()

    def close(self) -> None:
        self.cluster.close()
        super().close()
