"""A new channel, of the kind that the user or the system asks for; and the one over a socket pair, for systems that
have sockets as files.

Law: the broker's end takes what has arrived, half a frame included, and keeps what cannot be sent yet.  A queue is
imported only by those who use one.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import select
import sys
from collections import deque
from collections.abc import Sequence
from itertools import islice
from multiprocessing import reduction

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.engines.process.shm.shared_blob import BlobTracker
from conveyor.engines.process.system.waiting import new_poll
from conveyor.engines.process.wire.endpoint import (
    PEER_CHECK_SECONDS,
    PREFIX,
    BlockingEndpoint,
    ConnectionLost,
    Frame,
    NonblockingEndpoint,
    connection_lost,
    pack,
    unpack,
)
from conveyor.engines.process.wire.messages import Message
from conveyor.errors import ProcessError

PIPE, QUEUE = "pipe", "queue"
# How a system says that it has no named semaphores, or none for this user.
_NO_SEMAPHORES = {errno.ENOSYS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS}
_READ_BYTES = 64 * 1024
# One eager sender does not keep the others waiting: the broker reads from it so often at a time.
_READS = 8
# The kernel takes at most so many buffers in one call.
_BUFFERS = 256
# A program may have it that who writes to someone who has gone is ended by a signal.
_NO_SIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)
# What macOS has instead; Python has no name for it.
_SO_NOSIGPIPE = 0x1022


def channel(kind: str, context: Any) -> tuple[NonblockingEndpoint, BlockingEndpoint]:
    """Return the two ends of a new channel; both may be handed to a process of `context` when it is started.

    Raises OSError where there are too many already, ProcessError where the system has no semaphores for a queue.
    """
    if kind == PIPE:
        return pipe()
    # Few use one.
    from conveyor.engines.process.wire.queue import queue_pair

    try:
        return queue_pair(context)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_SEMAPHORES:
            raise
        raise ProcessError(
            f'channel="queue" needs semaphores, and none can be made here ({error}). Remedy: leave `channel` out, '
            "or let this process write to /dev/shm."
        ) from error


def pipe() -> tuple[NonblockingPipe, BlockingPipe]:
    """Return the two ends of a new channel."""
    near, far = _socket.socketpair()
    if sys.platform == "darwin":
        for each in (near, far):
            each.setsockopt(_socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
    return NonblockingPipe(near), BlockingPipe(far)


class FrameReader:
    """Puts messages together out of what a socket gives, one read at a time."""

    def __init__(self) -> None:
        self.messages: deque[Frame] = deque()
        self.tracker: BlobTracker | None = None
        # Read into again and again: fresh memory costs more than the copy of what came.
        self._scratch = bytearray()
        self._arrived = b""
        self._body: memoryview | None = None
        self._got = 0
        self._described = 0
        # Whether a read was left by an exception, so that some of what came may be lost.
        self.torn = False

    def read(self, connected: _socket.socket) -> int:
        """Read once; return the number of bytes, 0 when the other side has gone."""
        self.torn = True
        count = self._read(connected)
        self.torn = False
        return count

    def _read(self, connected: _socket.socket) -> int:
        if self._body is None:
            if not self._scratch:
                self._scratch = bytearray(_READ_BYTES)
            count = connected.recv_into(self._scratch)
            data = bytes(memoryview(self._scratch)[:count])
            if self._arrived:
                data = self._arrived + data
            if len(data) >= PREFIX.size:
                size, described = PREFIX.unpack_from(data)
                if len(data) == PREFIX.size + size:
                    # One message, as for most of those that somebody waits for.
                    self._arrived = b""
                    self.messages.append(unpack(memoryview(data)[PREFIX.size :], described, self.tracker))
                    return count
            self._take_apart(data)
            return count
        count = connected.recv_into(self._body[self._got :])
        self._got += count
        if self._got == len(self._body):
            self.messages.append(unpack(self._body, self._described, self.tracker))
            self._body = None
        return count

    def _take_apart(self, data: bytes) -> None:
        """Cut what has arrived into messages; the rest of a long one is then read in place, without a copy."""
        view = memoryview(data)
        start, end = 0, len(data)
        while end - start >= PREFIX.size:
            size, described = PREFIX.unpack_from(view, start)
            start += PREFIX.size
            if end - start < size:
                self._body = memoryview(bytearray(size))
                self._got = end - start
                self._body[: self._got] = view[start:]
                self._described = described
                start = end
                break
            self.messages.append(unpack(view[start : start + size], described, self.tracker))
            start += size
        self._arrived = data[start:] if start < end else b""


def _drop(unsent: deque[memoryview], count: int) -> None:
    """Remove the first `count` bytes, and what is empty."""
    while unsent:
        first = unsent[0]
        if count < len(first):
            unsent[0] = first[count:]
            return
        count -= len(first)
        unsent.popleft()


class BlockingPipe(BlockingEndpoint):
    """The far end of a socket pair."""

    def __init__(self, connected: _socket.socket) -> None:
        # The program's default timeout would apply otherwise.
        connected.setblocking(True)
        self._socket = connected
        self._incoming = FrameReader()
        self._watching = False
        # Whether a message is being sent, or was left by an exception: then the other side cannot read what follows.
        self._amid_message = False

    def __reduce__(self) -> Any:
        return _far_end_of, (reduction.DupFd(self._socket.fileno()),)

    def keep(self, tracker: BlobTracker) -> None:
        self._incoming.tracker = tracker

    def watch(self, sentinel: Any) -> None:
        # The end of the stream says that the other side is gone.  But a signal that comes just before a wait begins
        # does not end it, and Ctrl-C has to act although nothing else ever comes.
        self._watching = True

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        buffers = pack(message, blobs)
        with connection_lost():
            self._amid_message = True
            count = self._socket.sendmsg(buffers[:_BUFFERS], (), _NO_SIGNAL)
            if count < sum(map(len, buffers)):
                unsent = deque(memoryview(buffer) for buffer in buffers)
                _drop(unsent, count)
                while unsent:
                    _drop(unsent, self._socket.sendmsg(tuple(islice(unsent, _BUFFERS)), (), _NO_SIGNAL))
            self._amid_message = False

    def send_within(self, seconds: float, message: Message) -> bool:
        if self._amid_message:
            return False
        unsent = deque(memoryview(buffer) for buffer in pack(message, ()))
        deadline = time.monotonic() + seconds
        poll = new_poll()
        with connection_lost():
            poll.register(self._socket.fileno(), select.POLLOUT)
            self._amid_message = True
            while unsent:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    return False
                with contextlib.suppress(BlockingIOError):
                    _drop(unsent, self._socket.sendmsg(tuple(unsent), (), _NO_SIGNAL | _socket.MSG_DONTWAIT))
            self._amid_message = False
        return True

    def receive(self) -> Frame:
        messages = self._incoming.messages
        if not messages:
            with connection_lost():
                while not messages:
                    while self._watching and not self.ready(PEER_CHECK_SECONDS):
                        pass
                    if not self._incoming.read(self._socket):
                        raise ConnectionLost("the broker has gone")
        return messages.popleft()

    def receive_within(self, seconds: float) -> Frame | None:
        messages = self._incoming.messages
        deadline = time.monotonic() + seconds
        with connection_lost():
            while not messages:
                if self._incoming.torn:
                    raise ConnectionLost("what comes cannot be told apart any more")
                if not self.ready(max(0.0, deadline - time.monotonic())):
                    return None
                if not self._incoming.read(self._socket):
                    raise ConnectionLost("the broker has gone")
        return messages.popleft()

    def ready(self, seconds: float = 0) -> bool:
        descriptor = self._socket.fileno()
        if self._incoming.messages or descriptor < 0:
            return True
        # Not `select`, which knows no descriptor above 1023.
        poll = new_poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def become_forked_copy(self) -> None:
        super().become_forked_copy()
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


class NonblockingPipe(NonblockingEndpoint):
    """The broker's end of a socket pair."""

    def __init__(self, connected: _socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._incoming = FrameReader()
        self._unsent: deque[memoryview] = deque()
        # In bytes.
        self._left = 0

    def __reduce__(self) -> Any:
        return _broker_end_of, (reduction.DupFd(self._socket.fileno()),)

    def keep(self, tracker: BlobTracker) -> None:
        self._incoming.tracker = tracker

    def waitable(self) -> Any:
        return self._socket.fileno()

    @property
    def left(self) -> int:
        return self._left

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        buffers = pack(message, blobs)
        size = sum(map(len, buffers))
        self.sent += size
        if self._unsent:
            self._unsent.extend(map(memoryview, buffers))
            return
        try:
            count = self._socket.sendmsg(buffers[:_BUFFERS], (), _NO_SIGNAL)
        except BlockingIOError:
            count = 0
        except OSError:
            # The other side has gone: its end of the stream, or its death, says so.
            self._left = self.sent
            return
        self._left += count
        if count < size:
            self._unsent.extend(map(memoryview, buffers))
            _drop(self._unsent, count)
            self.flush()

    def flush(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                count = self._socket.sendmsg(tuple(islice(unsent, _BUFFERS)), (), _NO_SIGNAL)
                self._left += count
                _drop(unsent, count)
        except BlockingIOError:
            pass
        except OSError:
            # The other side has gone: its end of the stream, or its death, says so.
            unsent.clear()
            self._left = self.sent

    def receive(self) -> tuple[list[Frame], bool]:
        incoming, connected = self._incoming, self._socket
        alive = True
        try:
            # A few reads at most, so that one eager sender does not keep the others waiting.
            for _ in range(_READS):
                count = incoming.read(connected)
                if count < _READ_BYTES and (incoming.messages or not count):
                    alive = count > 0
                    break
        except BlockingIOError:
            pass
        except OSError:
            alive = False
        arrived = list(incoming.messages)
        incoming.messages.clear()
        return arrived, alive

    def close(self) -> None:
        self._unsent.clear()
        self._left = self.sent
        self._socket.close()


def _far_end_of(duplicate: Any) -> BlockingPipe:
    """Return, in another process, the end that was sent there."""
    return BlockingPipe(_socket.socket(fileno=duplicate.detach()))


def _broker_end_of(duplicate: Any) -> NonblockingPipe:
    """Return, in another process, the end that was sent there."""
    return NonblockingPipe(_socket.socket(fileno=duplicate.detach()))
