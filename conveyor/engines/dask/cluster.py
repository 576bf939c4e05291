"""The cluster, as the broker sees it: which Dask workers there are, and the link to the node on each that is used.

Law: a thread of its own runs the Dask client.  It carries bytes, and never waits without a bound.  All else is the
broker's: what arrives goes into `inbox`, and one byte into a pipe that the broker waits for.  A node that was lost is
lost for good: what it may still say is never read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Awaitable, Iterator

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any, TypeVar
from conveyor._system.clock import time
from conveyor.engines.dask.actor import NodeActor, versions
from conveyor.engines.dask.messages import LARGE_BYTES, Boundary, only_frame
from conveyor.engines.process.wire.endpoint import Frame, pack
from conveyor.engines.process.wire.pipe import FrameReader

# How long to look for a scheduler.
CONNECT_SECONDS = 10.0
# How long a node may take to start, while its Dask worker answers: that imports modules, on a machine that may be busy.
START_SECONDS = 60.0
# How long what was cancelled may take to end before it is cancelled again.
CANCEL_SECONDS = 0.5
# How often a Dask worker is asked meanwhile whether it is there.
PING_SECONDS = 0.5
# How often the scheduler is asked which workers it has.
LOOK_SECONDS = 0.5
# A scheduler that refuses connections has this long to come back.
REFUSED_SECONDS = 5.0
# A node that was lost is tried again after so long, where there is no other.
RETRY_SECONDS = 5.0
# How long nodes may take to end when the broker ends.
END_SECONDS = 1.0
# What a call carries that tells of the round trip: more takes long for its size.
SMALL_BYTES = 64 * 1024
# One call carries not much more: it has to end within `lost_after`.
CALL_BYTES = 16 * 1024 * 1024
# The weight of one round trip in the running mean; and by how much that has to change to be told.
WEIGHT, WORTH_TELLING = 0.1, 1.25

T = TypeVar("T")


class ClusterFacts(NamedTuple):
    """What the caller tells the broker of a cluster: plain data.

    `security` is what Dask's own client has, None for the default.  `lost_after`: the seconds without a word after
    which a node or the scheduler is lost.
    """

    address: str
    slots: int | None
    lost_after: float
    security: Any = None


class _Arrived:
    """Bytes that have come, read as from a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.left = len(data)

    def recv_into(self, buffer: Any) -> int:
        count = min(len(buffer), self.left)
        start = len(self._data) - self.left
        buffer[:count] = self._data[start : start + count]
        self.left -= count
        return count


class _Incoming:
    """Puts messages together out of the answers of an actor."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._boundary = Boundary()

    def frames(self, data: Any) -> list[Frame]:
        """Return the messages that are whole with these bytes."""
        if not self._boundary.is_amid and (frame := only_frame(data)) is not None:
            return [frame]
        arrived = _Arrived(data)
        while arrived.left:
            self._reader.read(arrived)  # type: ignore[arg-type]
        found = list(self._reader.messages)
        self._reader.messages.clear()
        self._boundary.pass_by(data)
        return found


class NodeLink:
    """The link to one node, of which the broker's thread calls `send` and `frames`, and the other all else."""

    def __init__(self, cluster: Cluster, address: str) -> None:
        self.address = address
        self._cluster = cluster
        self._key = f"conveyor-node-{os.getpid()}-{os.urandom(6).hex()}"
        self._future: Any = None
        self._unsent: list[Any] = []
        self._has_unsent = asyncio.Event()
        self._incoming = _Incoming()
        self._heard_at = time.monotonic()
        self.host = ""
        # The names of the Processors whose jobs the node has.
        self.jobs: set[str] = set()
        # Whether the node has, or is to get, the shared objects of the pipeline.
        self.is_shared_with = False
        # The workers there, by number, as far as they are not known to be dead.
        self.workers: set[int] = set()
        self.is_up = self.is_lost = False
        self.task: Any = None

    # The broker's thread

    def send(self, message: Any, blobs: Any = ()) -> None:
        """Send a message, as soon as the node is up; to one that is lost, nothing."""
        if not self.is_lost:
            wakes = not self._unsent
            self._unsent.extend(pack(message, blobs))
            if wakes:
                self._cluster.call(self._has_unsent.set)

    def frames(self, data: Any) -> list[Frame]:
        """Return the messages that are whole with these bytes."""
        return self._incoming.frames(data)

    # The thread of the cluster

    async def serve(self) -> None:
        """Start the node and carry messages, until it is lost."""
        try:
            async with _all_or_none(self._start(), self._ping_all()) as started:
                await _within(START_SECONDS, started)
            async with _all_or_none(self._tell_all(), self._hear_all()) as ended:
                await ended
        except asyncio.CancelledError:
            raise
        except _Mismatch as error:
            self._cluster.fail(str(error))
        except _Silent:
            self._cluster.lose(self, f"no answer within {self._cluster.facts.lost_after:g} s")
        except asyncio.TimeoutError:
            self._cluster.lose(self, f"its Dask worker answers, but has not started it within {START_SECONDS:g} s")
        except BaseException as error:
            self._cluster.lose(self, error)

    async def _start(self) -> None:
        client = self._cluster.client
        options = {"workers": [self.address], "allow_other_workers": False, "pure": False, "retries": 0}
        self._future = client.submit(NodeActor, actor=True, key=self._key, **options)
        try:
            await self._future
            there = await self._call("start")
        except ImportError as error:
            raise _Mismatch(
                f"The Dask worker {self.address} cannot import what Conveyor needs there ({error}). Remedy: install "
                f"Conveyor {versions()['Conveyor']} on each node."
            ) from error
        self.host = there["host"]
        for what, here in versions().items():
            if there[what] != here:
                raise _Mismatch(
                    f"The Dask worker {self.address} on {self.host} has {what} {there[what]}, and this process has "
                    f"{what} {here}: what one pickles, the other may read in another way. Remedy: have the same "
                    f"version of {what} on all nodes."
                )
        self.is_up = True
        self._heard()

    async def _ping_all(self) -> None:
        """Ask the Dask worker again and again whether it is there; one that is cut off would let a start wait."""
        rpc = self._cluster.client.rpc(self.address)
        while True:
            await self._soon(rpc.ping())
            await asyncio.sleep(PING_SECONDS)

    async def _soon(self, answer: Awaitable[T]) -> T:
        """Await an answer; raises _Silent where it does not come for as long as makes a node a lost one."""
        try:
            return await _within(self._cluster.facts.lost_after, answer)
        except asyncio.TimeoutError as error:
            raise _Silent from error

    async def _call(self, name: str, *arguments: Any) -> Any:
        from distributed.protocol import to_serialize

        rpc = self._cluster.client.rpc(self.address)
        given = [to_serialize(each) for each in arguments]
        answer = await rpc.actor_execute(actor=self._key, function=name, args=given, kwargs={})
        if answer["status"] != "OK":
            raise answer["exception"]
        return answer["result"]

    async def _tell_all(self) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            while self._unsent:
                # The broker may append meanwhile: to a new list, or to this one before it was taken.
                unsent, self._unsent = self._unsent, []
                for parts, size in _calls(unsent):
                    begun = time.monotonic()
                    await self._soon(self._call("tell", *parts))
                    if size < SMALL_BYTES:
                        self._cluster.note_round_trip(time.monotonic() - begun)

    async def _hear_all(self) -> None:
        while True:
            data = await self._soon(self._call("hear"))
            self._heard()
            if data:
                self._cluster.put("data", self, data)

    def _heard(self) -> None:
        self._heard_at = time.monotonic()

    async def end(self) -> None:
        """Have the node end, and Dask drop the actor."""
        if self.is_up and not self.is_lost:
            with contextlib.suppress(Exception):
                await self._call("end")
        self.release()

    def release(self) -> None:
        """Have Dask drop the actor, and not make it anew on another worker."""
        if self._future is not None:
            with contextlib.suppress(Exception):
                self._future.release()
            self._future = None


def _calls(buffers: list[Any]) -> Iterator[tuple[list[Any], int]]:
    """Yield what to send in one call each, and its bytes: large buffers as they are, and small ones joined."""
    parts: list[Any] = []
    small: list[Any] = []
    size = 0
    for each in buffers:
        if len(each) < LARGE_BYTES:
            small.append(each)
        else:
            parts += [b"".join(small), each] if small else [each]
            small = []
        size += len(each)
        if size >= CALL_BYTES:
            yield ([*parts, b"".join(small)] if small else parts), size
            parts, small, size = [], [], 0
    if size:
        yield ([*parts, b"".join(small)] if small else parts), size


class _Mismatch(Exception):
    """A node that cannot work with this process; the text is for the user."""


class _Silent(Exception):
    """A node that has not answered for so long that it is lost."""


class _all_or_none:
    """Two coroutines as tasks: awaits the first of them to end, and cancels the other at the end of the block."""

    def __init__(self, *coroutines: Any) -> None:
        self._coroutines = coroutines

    async def __aenter__(self) -> Awaitable[None]:
        self._tasks = [asyncio.ensure_future(each) for each in self._coroutines]
        return self._first()

    async def _first(self) -> None:
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()

    async def __aexit__(self, *what: Any) -> None:
        left = set(self._tasks)
        while left:
            # What Dask awaits may take in a first attempt.
            for each in left:
                each.cancel()
            _, left = await asyncio.wait(left, timeout=CANCEL_SECONDS)
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Cluster:
    """The Dask client in its thread, and the links."""

    def __init__(self, facts: ClusterFacts) -> None:
        self.facts = facts
        self.client: Any = None
        # What happened, for the broker's thread: a kind, a link and something; and where that wakes it.
        self.inbox: deque[tuple[str, NodeLink | None, Any]] = deque()
        self.waitable, self._wake = os.pipe()
        os.set_blocking(self.waitable, False)
        os.set_blocking(self._wake, False)
        self._loop: Any = None
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conveyor-dask", daemon=True)
        self._ending: asyncio.Event
        self._links: dict[str, NodeLink] = {}
        # The cores of the workers that Dask has, by address; and when others were lost.
        self.cores: dict[str, int] = {}
        self.lost: dict[str, float] = {}
        # What ended all, as a text for the user.
        self.error: str | None = None
        self._round_trip = self._told = 0.0

    # The broker's thread

    def connect(self) -> None:
        """Connect to the scheduler, and look which workers it has; `error` says why that failed, where it did."""
        self._thread.start()
        if not self._connected.wait(CONNECT_SECONDS + 5):
            self.error = self._unreachable("no answer")

    def link(self, address: str) -> NodeLink:
        """Return the link to the node on a Dask worker, which is started if it was not."""
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = NodeLink(self, address)
            self.call(self._serve, link)
        return link

    @property
    def links(self) -> dict[str, NodeLink]:
        """Those that are in use, by address."""
        return self._links

    def call(self, function: Any, *arguments: Any) -> None:
        """Have the other thread call something soon."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def take(self) -> list[tuple[str, NodeLink | None, Any]]:
        """Return what has happened since the last call."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.waitable, 4096):
                pass
        taken = []
        while self.inbox:
            taken.append(self.inbox.popleft())
        return taken

    def forget(self, link: NodeLink) -> None:
        """Have no more to do with a node that was lost."""
        if self._links.get(link.address) is link:
            del self._links[link.address]

    def close(self) -> None:
        """End all nodes, within a bound."""
        if self._loop is not None and self._thread.is_alive():
            self.call(lambda: self._ending.set())
            self._thread.join(END_SECONDS + 0.5)

    # The thread of the cluster

    def put(self, kind: str, link: NodeLink | None, what: Any) -> None:
        """Tell the broker's thread that something has happened."""
        self.inbox.append((kind, link, what))
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"x")

    def fail(self, text: str) -> None:
        """Tell the broker's thread that nothing goes on."""
        self.error = self.error or text
        self.put("failed", None, text)

    def lose(self, link: NodeLink, why: object) -> None:
        """Take in that a node is lost."""
        if not link.is_lost:
            link.is_lost = True
            self.lost[link.address] = time.monotonic()
            self.cores.pop(link.address, None)
            link.release()
            self.put("lost", link, str(why) or type(why).__name__)

    def note_round_trip(self, seconds: float) -> None:
        """Take in how long it took to tell a node something; the broker hears of it where that has changed."""
        mean = self._round_trip
        self._round_trip = mean = mean + (seconds - mean) * WEIGHT if mean else seconds
        if not self._told / WORTH_TELLING <= mean <= self._told * WORTH_TELLING:
            self._told = mean
            self.put("round trip", None, mean)

    def _run(self) -> None:
        asyncio.run(self._live())

    def _unreachable(self, why: object) -> str:
        return (
            f"No Dask scheduler could be reached at {self.facts.address!r} within {CONNECT_SECONDS:g} s ({why}). "
            "Remedy: start one there (`dask scheduler`), and give the address that it prints."
        )

    async def _live(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        import logging

        from distributed import Client

        # What it logs of ends and new attempts, the broker tells the caller in its own words.
        for name in ("distributed", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        options = {"asynchronous": True, "direct_to_workers": True, "timeout": CONNECT_SECONDS}
        try:
            security = {} if self.facts.security is None else {"security": self.facts.security}
            client: Any = Client(self.facts.address, **options, **security)
            self.client = await asyncio.wait_for(_awaited(client), CONNECT_SECONDS + 1)
            self.cores = await asyncio.wait_for(self.client.scheduler.ncores(), CONNECT_SECONDS)
        except BaseException as error:
            self.error = self._unreachable(str(error) or type(error).__name__)
            return
        finally:
            self._connected.set()
        watching = asyncio.ensure_future(self._watch())
        await self._ending.wait()
        watching.cancel()
        for link in self._links.values():
            if link.task is not None:
                link.task.cancel()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.gather(*(link.end() for link in self._links.values())), END_SECONDS)
        # The end of this process closes the rest: the client would wait for what nobody needs.

    def _serve(self, link: NodeLink) -> None:
        link.task = asyncio.ensure_future(link.serve())

    async def _watch(self) -> None:
        """Ask the scheduler again and again which workers it has."""
        seen = time.monotonic()
        refused = None
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                cores = await _within(self.facts.lost_after / 2, self.client.scheduler.ncores())
            except Exception as error:
                now = time.monotonic()
                if not isinstance(error, asyncio.TimeoutError):
                    refused = refused or now
                bound = min(REFUSED_SECONDS, self.facts.lost_after / 2)
                if now - seen >= self.facts.lost_after / 2 or (refused and now - refused >= bound):
                    self.fail(
                        f"The Dask scheduler at {self.facts.address!r} is gone, or cannot be reached any more "
                        f"({str(error) or type(error).__name__}). A run ends with it. Remedy: look at the log of the "
                        "scheduler, and run the pipeline again."
                    )
                    return
                continue
            seen, refused = time.monotonic(), None
            self._take_in(dict(cores))

    def _take_in(self, cores: dict[str, int]) -> None:
        now = time.monotonic()
        # Where Dask has no other, one that was lost is tried again soon.
        patience = 2 * self.facts.lost_after if set(cores) - set(self.lost) else RETRY_SECONDS
        for address in [each for each, since in self.lost.items() if each not in cores or now > since + patience]:
            del self.lost[address]
        for address, link in list(self._links.items()):
            if address not in cores:
                if link.task is not None:
                    link.task.cancel()
                self.lose(link, "Dask has it no more")
        usable = {address: number for address, number in cores.items() if address not in self.lost}
        if usable != self.cores:
            self.cores = usable
            self.put("cores", None, usable)


async def _awaited(client: Any) -> Any:
    return await client


async def _within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Await something for so long; raises asyncio.TimeoutError.

    Unlike `asyncio.wait_for` before Python 3.12, it is cancelled also where the answer comes at the same moment.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()
