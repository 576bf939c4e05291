"""Every message between a broker and a node process, declared once.

Law: a message crosses as those between processes do: a frame of `wire/endpoint.py`.  What a worker and the broker say
to each other stays what it is in `wire/messages.py`; the blobs of a `Relayed` are the parts of its frame, uncopied.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.endpoint import PREFIX, Frame, pack, unpack

if TYPE_CHECKING:
    from conveyor.engines.process.wire.configs import WorkerConfig

# A buffer of so many bytes is not copied to go beside others: that costs more than it saves.
LARGE_BYTES = 64 * 1024


class StartWorker(NamedTuple):
    """Broker to node: start a worker.  Its job and `redact` follow as blobs, unless the node has those of that name."""

    number: int
    config: WorkerConfig


class Relayed(NamedTuple):
    """In both directions: the frame of a message to or from a worker, as the blobs: its beginning, and its blobs."""

    number: int


class SharedPart(NamedTuple):
    """Broker to node: a part of the file with the shared objects, in the blob, and where in the file it begins."""

    start: int


class AllowAll(NamedTuple):
    """Broker to node: let a worker start all that it is handed again."""

    number: int


class RevokeCalls(NamedTuple):
    """Broker to node: have a worker start nothing beyond the first `calls` calls of a lease."""

    number: int
    lease: int
    calls: int


class Probe(NamedTuple):
    """Broker to node: since when is a worker at its call?"""

    number: int


class Kill(NamedTuple):
    """Broker to node: kill a worker."""

    number: int


class Wake(NamedTuple):
    """Broker to node: continue a worker that was stopped."""

    number: int


class Beat(NamedTuple):
    """Actor to node: the broker has called."""


class CallsRevoked(NamedTuple):
    """Node to broker: a worker has started, or may still start, at most the first `calls` calls of a lease."""

    number: int
    lease: int
    calls: int


class Probed(NamedTuple):
    """Node to broker: a worker is for `seconds` at the last of the first `calls` calls of a lease; None: at none."""

    number: int
    lease: int
    calls: int
    seconds: float | None


class WorkerEnded(NamedTuple):
    """Node to broker: a worker is dead; `last` has the fields of `LastWords` in `wire/progress.py`."""

    number: int
    exitcode: int | None
    last: tuple[Any, ...]


class WorkerNotStarted(NamedTuple):
    """Node to broker: the node has nothing left to start a worker with."""

    number: int
    why: str


class Swept(NamedTuple):
    """Node to broker: the node has ended what dead workers had left running."""

    text: str


ToNode = StartWorker | SharedPart | Relayed | AllowAll | RevokeCalls | Probe | Kill | Wake | Beat
FromNode = Relayed | CallsRevoked | Probed | WorkerEnded | WorkerNotStarted | Swept

# `decode` of the wire finds them there.
messages.KINDS.update({kind.__name__: kind for kind in (*ToNode.__args__, *FromNode.__args__)})


def packed(message: Any, blobs: Any = ()) -> bytes:
    """Return the frame of a message to or from a node."""
    return b"".join(pack(message, blobs))


class Boundary:
    """Knows whether the bytes that have passed by end amid a frame.

    >>> boundary, frame = Boundary(), packed(Beat(), [b"blob"])
    >>> boundary.pass_by(frame[:20]), boundary.is_amid, boundary.pass_by(frame[20:]), boundary.is_amid
    (None, True, None, False)
    """

    def __init__(self) -> None:
        # The bytes of the frame that are still to come, and what is there of the prefix of the next one.
        self._left = 0
        self._prefix = b""

    @property
    def is_amid(self) -> bool:
        """Whether a frame is not yet whole."""
        return self._left > 0 or bool(self._prefix)

    def pass_by(self, data: bytes) -> None:
        """Take in that these bytes come next."""
        start = 0
        while start < len(data):
            if self._left:
                step = min(self._left, len(data) - start)
                self._left -= step
            else:
                step = min(PREFIX.size - len(self._prefix), len(data) - start)
                self._prefix += data[start : start + step]
                if len(self._prefix) == PREFIX.size:
                    self._left, _ = PREFIX.unpack(self._prefix)
                    self._prefix = b""
            start += step


def only_frame(data: Any) -> Frame | None:
    """Return the message and the blobs where this is one large frame, and nothing else.

    The blobs are views: a small one would keep alive all that came with it.
    """
    if len(data) < LARGE_BYTES:
        return None
    view = memoryview(data)
    size, described = PREFIX.unpack_from(view)
    return unpack(view[PREFIX.size :], described) if len(view) == PREFIX.size + size else None


def relayed(message: Any, blobs: Any) -> list[Any]:
    """Return the frame of a message to or from a worker, in parts."""
    return pack(message, blobs)


def unrelayed(parts: list[Any]) -> Frame:
    """Return the message, and its blobs, of such a frame."""
    message, _ = messages.decode(memoryview(parts[0])[PREFIX.size :])
    return message, parts[1:]
