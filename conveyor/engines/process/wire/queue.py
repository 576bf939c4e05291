"""A channel over a pair of `multiprocessing.Queue`, which works everywhere.

Law: a feeder thread of this process sends what was put into a queue.  The broker's end can be held up by a far end that
stops in the middle of a frame.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence

from conveyor._lean.typing import Any
from conveyor._system.signals import signals_blocked
from conveyor.engines.process.shm.shared_blob import BlobTracker
from conveyor.engines.process.system.child_setup import start_resource_tracker
from conveyor.engines.process.system.waiting import wait_for, wait_for_any
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

# A worker that cannot send over its queue what it was asked to leaves with this code.
UNSENT_EXIT_CODE = 4


def queue_pair(context: Any) -> tuple[NonblockingQueue, BlockingQueue]:
    """Return the two ends of a new channel."""
    if os.name == "posix" and context.get_start_method() != "fork":
        # Their semaphores are told to it.
        start_resource_tracker()
    inward, outward = context.Queue(), context.Queue()
    for queue in (inward, outward):
        # Else its feeder thread prints a traceback where the other side has gone.
        queue._ignore_epipe = True
    return NonblockingQueue(inward, outward), BlockingQueue(outward, inward)


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
        with connection_lost():
            while not wait_for(inward._reader, 0):
                self._wait(inward._reader)
            return self._take(inward)

    def receive_within(self, seconds: float) -> Frame | None:
        inward = _open_queue(self._inward)
        if self._torn:
            raise ConnectionLost("what comes cannot be told apart any more")
        with connection_lost():
            return self._take(inward) if wait_for(inward._reader, seconds) else None

    def _take(self, inward: Any) -> Frame:
        self._torn = True
        data = inward.get()
        self._torn = False
        return _unpack_whole(data, self._tracker)

    def _wait(self, reader: Any) -> None:
        while True:
            ready = wait_for_any([reader, *self._sentinels], PEER_CHECK_SECONDS)
            if reader in ready:
                return
            if ready or (self._parent is not None and os.getppid() != self._parent):
                raise ConnectionLost("the broker has gone")

    def ready(self, seconds: float = 0) -> bool:
        # Another thread may close it at any moment.
        with contextlib.suppress(ConnectionLost), connection_lost():
            return wait_for(_open_queue(self._inward)._reader, seconds)
        return True

    def become_forked_copy(self) -> None:
        super().become_forked_copy()
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
                self._outward._thread.join(PEER_CHECK_SECONDS)
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

    def prepare(self) -> None:
        _start_feeder(self._outward)

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        _put(self._outward, message, blobs)
        self.sent += 1

    def receive(self) -> tuple[list[Frame], bool]:
        messages: list[Frame] = []
        try:
            while wait_for(self._inward._reader, 0):
                messages.append(_unpack_whole(self._inward.get(), self._tracker))
        except (EOFError, OSError):
            return messages, False
        return messages, True

    def close(self) -> None:
        _close_queues(self._inward, self._outward)


def _open_queue(queue: Any) -> Any:
    """Return a queue of an end, as it was when it was looked at; raises ConnectionLost where the end was closed."""
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
            try:
                queue._start_thread()
            except RuntimeError:
                # Else it would be waited for.
                queue._thread = None
                raise


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
        os._exit(UNSENT_EXIT_CODE)


def _unpack_whole(data: bytes, tracker: BlobTracker | None) -> Frame:
    _, described = PREFIX.unpack_from(data)
    return unpack(memoryview(data)[PREFIX.size :], described, tracker)


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
