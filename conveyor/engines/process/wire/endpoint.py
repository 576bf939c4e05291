"""The two ends of a channel, as those who use one see them, and the bytes of a frame.

Law: a channel joins exactly two processes, and no lock is shared by more.  A frame is a message (see `messages.py`) and
blobs: bytes that nobody in between looks into.  The broker's end never blocks; the other end simply waits.
"""

from __future__ import annotations

import errno
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.process.shm.shared_blob import BlobTracker, SharedBlob
from conveyor.engines.process.wire.messages import Message, decode, encode

if TYPE_CHECKING:
    from types import TracebackType

# A message and its blobs.
Frame = tuple[Message, list[Any]]

# The bytes of the rest of the frame, and of its description (message and blob lengths).
PREFIX = struct.Struct("!QI")
# How `multiprocessing` says that this side was closed, and that the other side was, in the middle of a message.
_LOST = ("handle is closed", "got end of file during message")
# Where a process cannot wait for the death of the other side, it looks for it so often.
PEER_CHECK_SECONDS = 0.25


def pack(message: Message, blobs: Sequence[Any]) -> list[Any]:
    """Return the buffers that make up one frame."""
    bodies: Sequence[Any]
    if SharedBlob in map(type, blobs):
        lengths = [len(blob) if type(blob) is not SharedBlob else blob.description for blob in blobs]
        bodies = [blob if type(blob) is not SharedBlob else blob.data for blob in blobs]
    else:
        lengths, bodies = list(map(len, blobs)), blobs
    description = encode(message, lengths)
    size = len(description) + sum(map(len, bodies))
    return [PREFIX.pack(size, len(description)) + description, *bodies]


def unpack(body: memoryview, described: int, tracker: BlobTracker | None = None) -> Frame:
    """Return the frame in `body`, the first `described` bytes of which are its description.

    `tracker` is told of blobs that are in shared memory.
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
            blobs.append(SharedBlob(bytes(body[start : start + length]), ranges, slots, tracker))
        start += length
    return message, blobs


class ConnectionLost(Exception):
    """The other side of a channel is gone, or this side is closed."""


class connection_lost:
    """In a `with`: raises ConnectionLost where an operation says that the other side is gone.

    Any other exception passes: a signal handler may raise what it likes, an OSError too, in the middle of a wait.  Each
    message passes here, and a generator would take longer.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        lost = isinstance(error, EOFError | ConnectionError)
        if isinstance(error, OSError) and not lost:
            lost = error.errno in (errno.EBADF, errno.ENOTCONN) or str(error) in _LOST
        if lost:
            raise ConnectionLost(str(error)) from None


class BlockingEndpoint(ABC):
    """The end of a worker or of the caller: it waits until a message has come, or has been sent.

    Each method raises ConnectionLost when the other side is gone.
    """

    def keep(self, tracker: BlobTracker) -> None:
        """From now on, tell `tracker` of blobs that come in shared memory."""
        self._tracker = tracker

    _tracker: BlobTracker | None = None

    @abstractmethod
    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        """Send a message."""

    def send_within(self, seconds: float, message: Message) -> bool:
        """Send a message if that takes no longer; return whether it was sent."""
        self.send(message)
        return True

    @abstractmethod
    def receive(self) -> Frame:
        """Wait for a message."""

    @abstractmethod
    def receive_within(self, seconds: float) -> Frame | None:
        """Return a message that comes within so many seconds, None where none does.

        Raises ConnectionLost also after an exception within `receive`: nobody knows where the next message begins.
        """

    @abstractmethod
    def ready(self, seconds: float = 0) -> bool:
        """Whether `receive` need not wait: something arrives within so many seconds, or the other side is gone."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the system lent."""

    @property
    def sender(self) -> threading.Thread | None:
        """The thread that writes messages, where there is one: a finalizer that runs in it must not send any."""
        return None

    def flush(self) -> None:
        """Wait until everything that was sent has left this process."""

    def watch(self, sentinel: Any) -> None:
        """Have `receive` raise ConnectionLost when `sentinel` says that the other side is gone."""

    def watch_parent(self) -> None:
        """Have `receive` raise ConnectionLost when the parent process, which is the other side, is gone."""

    def prepare(self, must_send: bool = False) -> None:
        """Take now what sending will need: afterwards a job may leave neither memory nor threads for it.

        `must_send`: this process ends where it cannot send a message.  Raises RuntimeError where the system has no
        thread left for it.
        """

    @property
    def is_forked_copy(self) -> bool:
        """Whether this process is a fork of the one whose end it is."""
        return self._is_forked_copy

    _is_forked_copy = False

    def become_forked_copy(self) -> None:
        """Take in that this process is a fork: what is sent or received here raises ConnectionLost."""
        self._is_forked_copy = True


class NonblockingEndpoint(ABC):
    """The end of the broker: it never waits.

    `sent` grows with each message.  `left` follows it, as messages leave this process.
    """

    sent = 0
    _tracker: BlobTracker | None = None

    def keep(self, tracker: BlobTracker) -> None:
        """From now on, tell `tracker` of blobs that come in shared memory."""
        self._tracker = tracker

    def prepare(self) -> None:
        """Start now what sending needs; raises RuntimeError where the system has no thread left for it."""

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
