"""Channels: how messages get from one process to another.

Law: a channel joins exactly two processes, and no lock is shared by more.  A message travels as a frame:
the message itself (see `messages.py`) and blobs (bytes that nobody in between looks into; of a heavy one, what is not
in shared memory).
The broker's end never blocks: it takes what has arrived, half a message included, and keeps what cannot be sent
yet.  The far end, a worker's or the caller's, simply waits.

There are two kinds.  "pipe" is a socket pair, for systems that have them as files.  "queue" is a pair of
`multiprocessing.Queue`, and works everywhere; its broker's end can be held up by a far end that stops in the
middle of a message.
"""

from __future__ import annotations

# Not `socket`: programs replace its classes (gevent, PySocks, pytest-socket), and ours would be of theirs.
import _socket
import contextlib
import errno
import os
import select
import signal
import struct
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing import reduction

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor._system.signals import signals_blocked
from conveyor.engines.process.shm.shared_blob import BlobTracker, SharedBlob
from conveyor.engines.process.system.inherited_signals import start_resource_tracker
from conveyor.engines.process.system.selector import wait_for, wait_for_any
from conveyor.engines.process.wire.messages import Message, decode, encode

# A message and its blobs.
Frame = tuple[Message, list[Any]]

PIPE, QUEUE = "pipe", "queue"
KINDS = (PIPE, QUEUE)

# The bytes of the rest of the frame, and of its description (message and blob lengths).
_PREFIX = struct.Struct("!QI")
_READ = 64 * 1024
_READS = 8
# The kernel takes at most so many buffers in one call.
_BUFFERS = 256
# How `multiprocessing` says that this side was closed, and that the other side was, in the middle of a message.
_GONE = ("handle is closed", "got end of file during message")
# Where the death of the other side cannot be waited for, it is looked for so often (seconds).
_LOOK_INTERVAL = 0.25
# A program may have it that who writes to someone who has gone is ended by a signal.
_NO_SIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)
# What macOS has instead; Python has no name for it.
_SO_NOSIGPIPE = 0x1022
# A worker that cannot send over its queue what it was asked to leaves with this code.
UNSENT = 4


def pack(message: Message, blobs: Sequence[Any]) -> list[Any]:
    """Return the buffers that make up one message."""
    lengths = [len(blob) if type(blob) is not SharedBlob else blob.description for blob in blobs]
    bodies = [blob if type(blob) is not SharedBlob else blob.data for blob in blobs]
    description = encode(message, lengths)
    size = len(description) + sum(map(len, bodies))
    return [_PREFIX.pack(size, len(description)) + description, *bodies]


def unpack(body: memoryview, described: int, keeper: BlobTracker | None = None) -> Frame:
    """Return the message in `body`, the first `described` bytes of which are its description.

    `keeper` is told of blobs that are in shared memory.
    """
    message, lengths = decode(body[:described])
    blobs: list[Any] = []
    start = described
    for length in lengths:
        if type(length) is int:
            blobs.append(body[start : start + length])
        else:
            length, ranges, slots = length
            # A copy of what is little beside the rest: else all that came with it would be kept as well.
            blobs.append(SharedBlob(bytes(body[start : start + length]), ranges, slots, keeper))
        start += length
    return message, blobs


class ConnectionLost(Exception):
    """The other side of a channel is gone, or this side is closed."""


@contextlib.contextmanager
def gone() -> Iterator[None]:
    """Raise Gone where an operation says that the other side is gone.

    Any other exception passes: a signal handler may raise what it likes, an OSError too, in the middle of a wait.
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ConnectionLost(str(error)) from None
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOTCONN) and str(error) not in _GONE:
            raise
        raise ConnectionLost(str(error)) from None


class BlockingEndpoint(ABC):
    """The end of a worker or of the caller: waits until a message is there, or until it is sent."""

    def keep(self, keeper: BlobTracker) -> None:
        """From now on, tell `keeper` of blobs that come in shared memory."""
        self._keeper = keeper

    _keeper: BlobTracker | None = None

    @abstractmethod
    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        """Send a message; raises Gone when the other side is."""

    def send_within(self, seconds: float, message: Message) -> bool:
        """Send a message if that takes no longer; return whether it was sent.  Raises Gone when the other side is."""
        self.send(message)
        return True

    @abstractmethod
    def receive(self) -> Frame:
        """Wait for a message; raises Gone when the other side is."""

    @abstractmethod
    def receive_within(self, seconds: float) -> Frame | None:
        """Return a message that is here within so many seconds, None where none is; raises Gone as `receive` does, also
        where a `receive` was left by an exception amid a message, so that it is not known where the next begins."""

    @abstractmethod
    def ready(self, seconds: float = 0) -> bool:
        """Whether `receive` has not to wait: something has arrived, or does within so many seconds, or never will."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the system lent."""

    @property
    def sender(self) -> threading.Thread | None:
        """A thread of its own by which messages leave: that must never send one itself, as a finalizer might there."""
        return None

    def flush(self) -> None:
        """Wait until everything that was sent has left this process."""

    def watch(self, sentinel: Any) -> None:
        """Have `receive` raise Gone when `sentinel` says that the other side is."""

    def watch_parent(self) -> None:
        """Have `receive` raise Gone when the parent process, which is the other side, is."""

    def prepare(self, must_send: bool = False) -> None:
        """Take now what sending will need: afterwards a job may leave neither memory nor threads for it.

        `must_send`: this process ends where it cannot send a message.
        """

    @property
    def forsaken(self) -> bool:
        """Whether this process is a copy of the one whose end it is."""
        return self._forsaken

    _forsaken = False

    def forsake(self) -> None:
        """Take in that this process is a copy: what is sent or received here raises Gone."""
        self._forsaken = True


class NonblockingEndpoint(ABC):
    """The end of the broker: never waits.

    `sent` grows with each message that is sent, and `left` up to that as they leave this process.
    """

    sent = 0
    _keeper: BlobTracker | None = None

    def keep(self, keeper: BlobTracker) -> None:
        """From now on, tell `keeper` of blobs that come in shared memory."""
        self._keeper = keeper

    @property
    @abstractmethod
    def left(self) -> int:
        """How much of what was sent has left."""

    @abstractmethod
    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        """Send a message now, or keep it until there is room."""

    @abstractmethod
    def receive(self) -> tuple[list[Frame], bool]:
        """Return the messages that have arrived, and whether the other side may send more."""

    @abstractmethod
    def waitable(self) -> Any:
        """What to wait on for `receive`: a descriptor, or what Windows has instead."""

    @property
    def unsent(self) -> bool:
        """Whether something waits for room: `flush` is to be called when there is some."""
        return False

    def flush(self) -> None:
        """Send what there is room for."""

    def last(self) -> None:
        """Say that nothing more will be sent."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the system lent, and drop what was not sent."""


def channel(kind: str, context: Any) -> tuple[NonblockingEndpoint, BlockingEndpoint]:
    """Return the two ends of a new channel; both may be handed to a process of `context` when it is started."""
    if kind == PIPE:
        near, far = _socket.socketpair()
        if sys.platform == "darwin":
            for each in (near, far):
                each.setsockopt(_socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
        return NonblockingPipe(near), BlockingPipe(far)
    if os.name == "posix" and context.get_start_method() != "fork":
        # Their semaphores are told to it.
        start_resource_tracker()
    inward, outward = context.Queue(), context.Queue()
    for queue in (inward, outward):
        # Else its feeder thread prints a traceback where the other side has gone.
        queue._ignore_epipe = True
    return NonblockingQueue(inward, outward), BlockingQueue(outward, inward)


class _Incoming:
    """Puts messages together out of what a socket gives, one read at a time."""

    def __init__(self) -> None:
        self.messages: deque[Frame] = deque()
        self.keeper: BlobTracker | None = None
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
                self._scratch = bytearray(_READ)
            count = connected.recv_into(self._scratch)
            data = bytes(memoryview(self._scratch)[:count])
            self._take_apart(self._arrived + data if self._arrived else data)
            return count
        count = connected.recv_into(self._body[self._got :])
        self._got += count
        if self._got == len(self._body):
            self.messages.append(unpack(self._body, self._described, self.keeper))
            self._body = None
        return count

    def _take_apart(self, data: bytes) -> None:
        """Cut what has arrived into messages; the rest of a long one is then read in place, without a copy."""
        view = memoryview(data)
        start, end = 0, len(data)
        while end - start >= _PREFIX.size:
            size, described = _PREFIX.unpack_from(view, start)
            start += _PREFIX.size
            if end - start < size:
                self._body = memoryview(bytearray(size))
                self._got = end - start
                self._body[: self._got] = view[start:]
                self._described = described
                start = end
                break
            self.messages.append(unpack(view[start : start + size], described, self.keeper))
            start += size
        self._arrived = bytes(view[start:])


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
        self._incoming = _Incoming()
        self._watching = False
        # Whether a message is being sent, or was left by an exception: then the other side cannot read what follows.
        self._amid_message = False

    def __reduce__(self) -> Any:
        return _far_end_of, (reduction.DupFd(self._socket.fileno()),)

    def keep(self, keeper: BlobTracker) -> None:
        self._incoming.keeper = keeper

    def watch(self, sentinel: Any) -> None:
        # The end of the stream says that the other side is gone.  But a signal that comes just before a wait begins
        # does not end it, and Ctrl-C has to act although nothing else ever comes.
        self._watching = True

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        unsent = deque(memoryview(buffer) for buffer in pack(message, blobs))
        with gone():
            self._amid_message = True
            while unsent:
                _drop(unsent, self._socket.sendmsg(tuple(islice(unsent, _BUFFERS)), (), _NO_SIGNAL))
            self._amid_message = False

    def send_within(self, seconds: float, message: Message) -> bool:
        if self._amid_message:
            return False
        unsent = deque(memoryview(buffer) for buffer in pack(message, ()))
        deadline = time.monotonic() + seconds
        poll = select.poll()
        with gone():
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
            with gone():
                while not messages:
                    while self._watching and not self.ready(_LOOK_INTERVAL):
                        pass
                    if not self._incoming.read(self._socket):
                        raise ConnectionLost("the broker has gone")
        return messages.popleft()

    def receive_within(self, seconds: float) -> Frame | None:
        messages = self._incoming.messages
        deadline = time.monotonic() + seconds
        with gone():
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
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def forsake(self) -> None:
        super().forsake()
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


class NonblockingPipe(NonblockingEndpoint):
    """The broker's end of a socket pair."""

    def __init__(self, connected: _socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._incoming = _Incoming()
        self._unsent: deque[memoryview] = deque()
        # In bytes.
        self._left = 0

    def __reduce__(self) -> Any:
        return _broker_end_of, (reduction.DupFd(self._socket.fileno()),)

    def keep(self, keeper: BlobTracker) -> None:
        self._incoming.keeper = keeper

    def waitable(self) -> Any:
        return self._socket.fileno()

    @property
    def left(self) -> int:
        return self._left

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        waiting = bool(self._unsent)
        buffers = pack(message, blobs)
        self.sent += sum(map(len, buffers))
        self._unsent.extend(map(memoryview, buffers))
        if not waiting:
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
        incoming = self._incoming
        alive = True
        try:
            # A few reads at most, so that one eager sender does not keep the others waiting.
            for _ in range(_READS):
                count = incoming.read(self._socket)
                alive = count > 0
                if not alive or (count < _READ and incoming.messages):
                    break
        except BlockingIOError:
            pass
        except OSError:
            alive = False
        messages = list(incoming.messages)
        incoming.messages.clear()
        return messages, alive

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


class BlockingQueue(BlockingEndpoint):
    """The far end of a pair of queues."""

    def __init__(self, inward: Any, outward: Any) -> None:
        self._inward = inward
        self._outward = outward
        self._sentinels: list[Any] = []
        self._parent: int | None = None
        # Whether taking a message was left by an exception.
        self._torn = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _keep_own_ends(self._inward, self._outward)

    def watch(self, sentinel: Any) -> None:
        self._sentinels = [sentinel]

    def watch_parent(self) -> None:
        self._parent = os.getppid()

    def prepare(self, must_send: bool = False) -> None:
        if must_send:
            self._outward._on_queue_feeder_error = _die_unsent
        # A feeder thread that finds no memory to begin with is waited for without end by the one who starts it.
        _start_feeder(self._outward)

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        _put(_open_queue(self._outward), message, blobs)

    def receive(self) -> Frame:
        inward = _open_queue(self._inward)
        with gone():
            while not wait_for(inward._reader, 0):
                self._wait(inward._reader)
            return self._take(inward)

    def receive_within(self, seconds: float) -> Frame | None:
        inward = _open_queue(self._inward)
        if self._torn:
            raise ConnectionLost("what comes cannot be told apart any more")
        with gone():
            return self._take(inward) if wait_for(inward._reader, seconds) else None

    def _take(self, inward: Any) -> Frame:
        self._torn = True
        data = inward.get()
        self._torn = False
        return _unpack_whole(data, self._keeper)

    def _wait(self, reader: Any) -> None:
        while True:
            ready = wait_for_any([reader, *self._sentinels], _LOOK_INTERVAL)
            if reader in ready:
                return
            if ready or (self._parent is not None and os.getppid() != self._parent):
                raise ConnectionLost("the broker has gone")

    def ready(self, seconds: float = 0) -> bool:
        # Another thread may close it at any moment.
        with contextlib.suppress(ConnectionLost), gone():
            return wait_for(_open_queue(self._inward)._reader, seconds)
        return True

    def forsake(self) -> None:
        super().forsake()
        self._inward = self._outward = None

    @property
    def sender(self) -> threading.Thread | None:
        thread: threading.Thread | None = None if self._outward is None else self._outward._thread
        return thread

    def flush(self) -> None:
        self._outward.close()
        self._outward.join_thread()

    def close(self) -> None:
        if self._inward is not None:
            _close_queues(self._inward, self._outward)
            if self._outward._thread is not None:
                # It ends by itself now; what comes next may look at how many threads there are.
                self._outward._thread.join(_LOOK_INTERVAL)
            # Their semaphores go with the queues, even where a caught exception or a stream still holds this end.
            self._inward = self._outward = None


class NonblockingQueue(NonblockingEndpoint):
    """The broker's end of a pair of queues; their feeder thread keeps what cannot be sent yet."""

    def __init__(self, inward: Any, outward: Any) -> None:
        self._inward = inward
        self._outward = outward
        self._said_last = False

    @property
    def left(self) -> int:
        # In messages: those that its thread has not yet taken up are still here.
        return self.sent - len(self._outward._buffer)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _keep_own_ends(self._inward, self._outward)

    def waitable(self) -> Any:
        reader = self._inward._reader
        return reader.fileno() if os.name == "posix" else reader

    @property
    def unsent(self) -> bool:
        # Only its end shows that a feeder thread has nothing left; before `last` there is nothing to wait for.
        return self._said_last and self._outward._thread is not None and self._outward._thread.is_alive()

    def last(self) -> None:
        self._said_last = True
        self._outward.close()

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        _put(self._outward, message, blobs)
        self.sent += 1

    def receive(self) -> tuple[list[Frame], bool]:
        messages: list[Frame] = []
        try:
            while wait_for(self._inward._reader, 0):
                messages.append(_unpack_whole(self._inward.get(), self._keeper))
        except (EOFError, OSError):
            return messages, False
        return messages, True

    def close(self) -> None:
        _close_queues(self._inward, self._outward)


def _open_queue(queue: Any) -> Any:
    """Return a queue of an end, as it was when it was looked at; raises Gone where the end was closed."""
    if queue is None:
        raise ConnectionLost("the channel is closed")
    return queue


def _start_feeder(queue: Any) -> None:
    """Start the thread that writes to a queue, without any signals.

    Whoever sends this process one means the job, which may block it, or wait for it; and where SIGPIPE ends whoever
    writes to someone who has gone, the write is to fail instead.
    """
    with queue._notempty, signals_blocked(signal.valid_signals()):
        if queue._thread is None:
            queue._start_thread()


def _put(queue: Any, message: Message, blobs: Sequence[Any]) -> None:
    try:
        if queue._thread is None and not queue._closed:
            _start_feeder(queue)
        queue.put(b"".join(pack(message, blobs)))
    except (ValueError, RuntimeError) as error:
        # A queue that was closed meanwhile, or whose thread cannot be started any more because the interpreter
        # is ending, is, to its user, another side that has gone.
        raise ConnectionLost(str(error)) from None


def _die_unsent(error: Exception, message: Any) -> None:
    """End this process, as a message of it is lost: the queue would go on without it, and its reader wait for ever."""
    try:
        import traceback

        traceback.print_exception(error)
        sys.stderr.flush()
    finally:
        # Nowhere to write to, or no memory for that either.
        os._exit(UNSENT)


def _unpack_whole(data: bytes, keeper: BlobTracker | None) -> Frame:
    _, described = _PREFIX.unpack_from(data)
    return unpack(memoryview(data)[_PREFIX.size :], described, keeper)


def _keep_own_ends(inward: Any, outward: Any) -> None:
    """In a process that was sent one end, close what belongs to the other.

    Else the end of a stream, also one amid a message, would never be seen there: this process could still write it.
    """
    inward._writer.close()
    outward._reader.close()


def _close_queues(inward: Any, outward: Any) -> None:
    """Close one end: what it reads from and what it writes to, and nothing of the other end."""
    with contextlib.suppress(OSError):
        inward._reader.close()
    if outward._thread is None:
        with contextlib.suppress(OSError):
            outward._writer.close()
    else:
        # What nobody reads any more must not hold up the end of this process.
        outward.cancel_join_thread()
        outward.close()
