"""Ports: what leaves and enters the broker, and who sees which shared memory.

Law: a port knows its other side and nothing of the core.  `CallerPort` has the three channels to the caller,
`WorkerPort` the channel, the process and the progress of one worker.  A slot is free when no message that is kept here
refers to it and no process that got one does; it is freed once.  Nobody here looks at what is in a slot.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core.data.pieces import ONE, Spec, spec_of
from conveyor.engines.process.broker.log_relay import LogRelay
from conveyor.engines.process.shm.region import owner_of
from conveyor.engines.process.shm.shared_blob import SharedBlob, Slot
from conveyor.engines.process.system.waiting import Child, PauseDetector, Waiter
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import Blob
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.endpoint import NonblockingEndpoint
from conveyor.engines.process.wire.progress import ProgressSlot

if TYPE_CHECKING:
    from conveyor.core import commands
    from conveyor.core.shell import Observer

Receive = Callable[[messages.Message, list[Any]], None]


class Connection:
    """The other side of a channel, as the broker keeps it."""

    def __init__(
        self,
        end: NonblockingEndpoint,
        waiter: Waiter,
        receive: Receive,
        gone: Callable[[], None],
        sent: Callable[[Iterable[Any]], None],
    ) -> None:
        self._end = end
        self._sent = sent
        self._waiter = waiter
        # Takes in what has come.
        self.receive = receive
        self._gone = gone
        self._descriptor = end.waitable()
        self._wants_room = False
        self.open = True
        waiter.add(self._descriptor, self.ready)

    def send(self, message: messages.Message, blobs: Any = ()) -> None:
        """Send a message; to one who has gone, nothing."""
        if self.open:
            if blobs:
                self._sent(blobs)
            self._end.send(message, blobs)
            self._watch_room()

    def observe(self, name: str, observers: Sequence[Observer]) -> None:
        """Have observers see each message from now on.  One that nobody observes costs nothing more."""
        send, receive = self.send, self.receive

        def shown_and_sent(message: messages.Message, blobs: Any = ()) -> None:
            if self.open:
                for observer in observers:
                    observer.passed(time.monotonic(), "broker", name, message)
            send(message, blobs)

        def shown_and_received(message: messages.Message, blobs: list[Any]) -> None:
            for observer in observers:
                observer.passed(time.monotonic(), name, "broker", message)
            receive(message, blobs)

        self.send = shown_and_sent  # type: ignore[method-assign]
        self.receive = shown_and_received

    def ready(self) -> None:
        """Take in what has arrived, and send what there is room for."""
        if self._end.unsent:
            self._end.flush()
            self._watch_room()
        self.drain()

    def drain(self) -> bool:
        """Take in what has arrived; return whether that brought something, so that there may be more."""
        if not self.open:
            return False
        frames, alive = self._end.receive()
        for message, blobs in frames:
            self.receive(message, blobs)
        if not alive:
            self.close()
            self._gone()
        return bool(frames)

    def _watch_room(self) -> None:
        if self.open and self._end.unsent != self._wants_room:
            self._wants_room = self._end.unsent
            self._waiter.want_room(self._descriptor, self._wants_room)

    def close(self) -> None:
        if self.open:
            self.open = False
            self._waiter.remove(self._descriptor)
            self._end.close()


class WorkerPort:
    """A worker."""

    def __init__(self, number: int, config: WorkerConfig, child: Child, progress: ProgressSlot, started: float) -> None:
        self.number = number
        self.config = config
        self.child = child
        self.progress = progress
        self.started = started
        self.peer: Connection
        self.end: NonblockingEndpoint
        self.ready = False
        self.leaving = False
        self.closed = False
        self.dead = False
        self._revoked = False
        # The blob of which the worker has kept what was not its yet, and where that begins.
        self._kept: Blob | None = None
        self._kept_from = 0
        # How many items are unpickled with those of its lease, as they are in the same blobs: before them, and behind.
        self.beside = 0, 0

    def lease(self, command: commands.SendLease, traced: bool = False) -> None:
        """Hand over items, submitted ones if `traced`.

        A blob that is cut into many leases is sent, and unpickled there, only once.
        """
        pieces = command.pieces
        if self._revoked:
            # All that it had by then is settled.
            self._revoked = False
            self._kept = None
            self.progress.allow_all()
        if len(pieces) == 1 and self._kept is None and command.give_up is None:
            source, start, stop = pieces[0]
            if type(source) is Blob and not start and stop == source.items:
                # The whole of one blob, as for most: nothing is kept of it.
                self.beside = 0, 0
                self._send(command, ((0, 0, stop),), (source.data,), False, False, traced)
                return
        spec, blobs = spec_of(pieces)
        again = bool(blobs) and pieces[0][0] is self._kept and pieces[0][1] >= self._kept_from
        kept: Blob | None = None
        # What is to be given up may not even be unpickled, so of that nothing is kept.
        if pieces and command.give_up is None:
            source, _, stop = pieces[-1]
            # Sent twice, it stands for two objects, of which one would be kept.
            if type(source) is Blob and source is blobs[-1] and stop < source.items and spec[-1][0] == len(blobs) - 1:
                kept = source
                self._kept_from = stop
        self._kept = kept
        if pieces:
            (first, start, _), (last, _, stop) = pieces[0], pieces[-1]
            before = start if type(first) is Blob and not again else 0
            self.beside = before, last.items - stop if type(last) is Blob else 0
        data = [blob.data for blob in (blobs[1:] if again else blobs)]
        self._send(command, spec, data, again, kept is not None, traced)

    def lease_message(self, command: commands.SendLease, traced: bool) -> messages.StartLease | None:
        """Return what hands over the only item of a blob that is still to come, for `hand_on`.

        None: what the worker has kept plays a part.
        """
        if self._revoked or self._kept is not None:
            return None
        lease, credit, finish = command.lease, command.credit, command.finish
        skip, give_up, attempt = command.skip, command.give_up, command.attempt
        return messages.StartLease(lease, ONE, credit, finish, False, False, skip, give_up, traced, attempt)

    def hand_on(self, message: messages.StartLease, blobs: list[Any]) -> None:
        """Hand over what `lease_message` was made for."""
        self.beside = 0, 0
        self.peer.send(message, blobs)

    def _send(
        self, command: commands.SendLease, spec: Spec, data: Sequence[Any], again: bool, keeps: bool, traced: bool
    ) -> None:
        lease, credit, finish = command.lease, command.credit, command.finish
        skip, give_up, attempt = command.skip, command.give_up, command.attempt
        self.peer.send(
            messages.StartLease(lease, spec, credit, finish, again, keeps, skip, give_up, traced, attempt), data
        )

    def revoke(self, lease: int, calls: int) -> tuple[int, int]:
        """Have nothing started beyond that position; return how far may have been."""
        self._revoked = True
        return self.progress.revoke(lease, calls)

    def probe(self, pauses: PauseDetector) -> tuple[int, int, float | None]:
        """Return what it is at, and for how long, without the time in which nobody could run."""
        at, since = self.progress.working_since()
        seconds = None if since is None else time.monotonic() - since - pauses.since(since)
        return *at, seconds


class CallerPort:
    """The caller: `feed` for its source, `results` for its consumer, `questions` for whoever asks for statistics."""

    def __init__(
        self,
        endpoints: tuple[NonblockingEndpoint, NonblockingEndpoint, NonblockingEndpoint],
        waiter: Waiter,
        refcounts: SlotRefcounts,
        receivers: tuple[Receive, Receive, Receive],
        lost: Callable[[], None],
    ) -> None:
        sent = partial(refcounts.sent, None)
        # Only items come with blobs that may be in shared memory.
        endpoints[0].keep(refcounts)
        self.feed, self.results, self.questions = (
            Connection(endpoint, waiter, receive, lost, sent)
            for endpoint, receive in zip(endpoints, receivers, strict=True)
        )
        self._results_endpoint = endpoints[1]
        self._waiter = waiter
        self.logs = LogRelay(endpoints[1], lambda message, blobs: self.results.send(message, blobs))
        # The CPU seconds that the caller's process has used, as it said last.
        self.cpu_seconds = 0.0

    def observe(self, observers: Sequence[Observer]) -> None:
        """Have observers, where there are any, see each message from now on."""
        for each in (self.feed, self.results, self.questions) if observers else ():
            each.observe("caller", observers)

    def flush(self, seconds: float, meanwhile: Callable[[], None]) -> None:
        """Let the last messages out, as long as the caller is there and wants them.

        After each wait, of `seconds` at most, the broker does what is due `meanwhile`.
        """
        self._results_endpoint.last()
        while self.results.open and self._results_endpoint.unsent:
            for callback in self._waiter.wait(seconds):
                callback()
            meanwhile()

    def close(self) -> None:
        self.feed.close()
        self.results.close()
        self.questions.close()


class SlotRefcounts:
    """Counts, for each slot, how often it is referred to: by blobs that are kept here, and by those that were sent."""

    def __init__(self) -> None:
        self._uses: Counter[Slot] = Counter()
        # By the number of the worker; None is the caller.
        self._sent: dict[int | None, Counter[Slot]] = {}
        # The slots by their places, as those who got them know them.
        self._slots: dict[int, Slot] = {}
        self._released: deque[tuple[Slot, ...]] = deque()
        # Whether `free` may have something to return, and whether there ever was anything to count.
        self.changed = False
        self.ever = False

    def retain(self, blob: SharedBlob) -> None:
        """Take in a blob that came and is kept."""
        self.ever = True
        self._uses.update(blob.slots)
        self._slots.update((slot[0], slot) for slot in blob.slots)

    def release(self, blob: SharedBlob) -> None:
        """Take in that it is kept no more, at any time."""
        self._released.append(blob.slots)
        self.changed = True

    def opened(self, blob: SharedBlob) -> tuple[Any, list[Any]]:
        """Not here."""
        raise TypeError("the broker looks into no blob")

    def sent(self, to: int | None, blobs: Iterable[Any]) -> None:
        """Take in that someone is sent those blobs."""
        for blob in blobs:
            if type(blob) is SharedBlob:
                self._uses.update(blob.slots)
                self._sent.setdefault(to, Counter()).update(blob.slots)

    def gone(self, to: int | None, places: Iterable[int]) -> None:
        """Take in the word of someone who was sent them that he sees those slots no more, each as often as it came."""
        self.changed = True
        sent = self._sent[to]
        for place in places:
            slot = self._slots[place]
            sent[slot] -= 1
            self._uses[slot] -= 1
            if not sent[slot]:
                del sent[slot]

    def lost(self, to: int | None) -> None:
        """Take in that someone is dead."""
        self._uses.subtract(self._sent.pop(to, Counter()))
        self.changed = self.ever

    def free(self) -> dict[int | None, list[Slot]]:
        """Return the slots that nobody sees any more, by the numbers of those who wrote them; each is returned once."""
        self.changed = False
        while self._released:
            self._uses.subtract(self._released.popleft())
        free: dict[int | None, list[Slot]] = {}
        for slot in [slot for slot, uses in self._uses.items() if not uses]:
            free.setdefault(owner_of(slot[0]), []).append(slot)
            del self._uses[slot]
            del self._slots[slot[0]]
        return free

    def used(self) -> list[Slot]:
        """Return all slots that somebody sees."""
        return list(self._uses)
