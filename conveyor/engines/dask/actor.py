"""The actor: what runs in a Dask worker for one pipeline.

Law: it starts the node process, and carries bytes between that and the broker.  It never waits in a thread: its methods
are coroutines of the Dask worker's loop.  One call of `tell` and one of `hear` are under way at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket
import subprocess
import sys

from conveyor._lean.typing import Any
from conveyor.engines.dask import messages
from conveyor.engines.dask.node import program

# How long `hear` waits for something to come.  The node's lease is several times as long.
HEAR_SECONDS = 2.0
MOST_BYTES = 16 * 1024 * 1024
# A socket has not much more at a time.
RECEIVE_BYTES = 256 * 1024
# How long a node process may take to end before it is killed.
END_SECONDS = 3.0
_BEAT: bytes = messages.packed(messages.Beat())


def versions() -> dict[str, str]:
    """Return what has to be equal on all nodes: pickles of one are read on another.

    >>> sorted(versions())
    ['Conveyor', 'Python']
    """
    conveyor = str(vars(sys.modules["conveyor"])["__version__"])
    return {"Python": ".".join(platform.python_version_tuple()[:2]), "Conveyor": conveyor}


class NodeActor:
    """A node, as Dask keeps it."""

    def __init__(self) -> None:
        self._process: Any = None
        self._socket: socket.socket | None = None
        self._writing: asyncio.Lock
        self._boundary = messages.Boundary()
        self._loop: Any = None
        # Done when something has come, while `hear` waits for that.
        self._arrived: Any = None

    async def start(self) -> dict[str, str]:
        """Start the node process; return the versions here, with the name of the machine as "host"."""
        from distributed.worker import get_worker

        self._writing = asyncio.Lock()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        path = [each or os.getcwd() for each in sys.path]
        with contextlib.suppress(Exception):
            # Where Dask puts uploaded files.
            path.append(get_worker().local_directory)
        try:
            command = [sys.executable, "-c", program(path, theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        finally:
            theirs.close()
        self._socket = ours
        return {**versions(), "host": platform.node(), "pid": str(self._process.pid)}

    async def tell(self, *parts: Any) -> None:
        """Give the node what the broker says, in bytes; raises OSError where the node is gone."""
        assert self._socket is not None
        async with self._writing:
            for each in parts:
                await asyncio.get_running_loop().sock_sendall(self._socket, each)

    async def hear(self) -> Any:
        """Return what the node has said, in bytes; none where nothing comes soon.  Raises EOFError where it is gone.

        A large message comes whole, as far as `MOST_BYTES` allow.
        """
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        if not self._writing.locked():
            async with self._writing:
                await loop.sock_sendall(self._socket, _BEAT)
        if not await self._is_readable(HEAR_SECONDS):
            return b""
        parts: list[bytes] = []
        size = self._receive(parts, 0)
        if not size:
            raise EOFError("the node process has ended")
        while self._boundary.is_amid and size < MOST_BYTES and await self._is_readable(HEAR_SECONDS):
            more = self._receive(parts, size)
            if not more:
                # The next call tells of the end.
                break
            size += more
        # Dask copies bytes where they arrive, and no view of some.
        return memoryview(b"".join(parts))

    def _receive(self, parts: list[bytes], size: int) -> int:
        """Take what has come, beside `size` bytes that are there; return how many bytes more that is."""
        assert self._socket is not None
        before = size
        with contextlib.suppress(BlockingIOError):
            while size < MOST_BYTES and (more := self._socket.recv(RECEIVE_BYTES)):
                parts.append(more)
                size += len(more)
                self._boundary.pass_by(more)
        return size - before

    async def _is_readable(self, seconds: float) -> bool:
        """Whether something comes within so many seconds.  To cancel a read instead might lose what it has read."""
        assert self._socket is not None
        self._loop, self._arrived = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        self._loop.add_reader(self._socket, _resolve, self._arrived)
        try:
            done, _ = await asyncio.wait([self._arrived], timeout=seconds)
            return bool(done) and self._socket is not None
        finally:
            self._stop_reading()

    def _stop_reading(self) -> None:
        # Before the socket is closed: the next one may get the same number, and the loop would take it for this one.
        if self._arrived is not None and self._socket is not None:
            self._loop.remove_reader(self._socket)
            _resolve(self._arrived)
            self._arrived = None

    async def end(self) -> None:
        """End the node process and its workers, and wait for that, within a bound."""
        self._close()
        for _ in range(int(END_SECONDS / 0.02)):
            if self._process is None or self._process.poll() is not None:
                return
            await asyncio.sleep(0.02)
        self._process.kill()

    def _close(self) -> None:
        if self._socket is not None:
            self._stop_reading()
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        # Dask drops an actor that no client wants any more: the end of the channel tells the node.
        self._close()


def _resolve(future: Any) -> None:
    if not future.done():
        future.set_result(None)
