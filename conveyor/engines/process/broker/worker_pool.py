"""The crew: the worker processes, as the broker starts, keeps and ends them.

Law: knows nothing of the core, and decides nothing: who is to be started or ended, and what it means that one has died,
is for the broker to say.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from functools import partial

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.process.broker.slot_refcounts import SlotRefcounts
from conveyor.engines.process.shm.arena import Arena
from conveyor.engines.process.system.child import Child
from conveyor.engines.process.system.child_setup import prepare
from conveyor.engines.process.system.foreign_threads import ForeignThreads, foreign_threads
from conveyor.engines.process.system.grace_period import PauseDetector
from conveyor.engines.process.system.selector import Waiter
from conveyor.engines.process.system.spawning import (
    FORK,
    FORKSERVER,
    PREFIX,
    SPAWN,
    fork_warning_ignored,
    process_of,
    signals_held,
)
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.channel import PIPE, channel
from conveyor.engines.process.wire.codec import Blob, spec_of
from conveyor.engines.process.wire.configs import BrokerConfig, WorkerConfig
from conveyor.engines.process.wire.endpoint import NonblockingEndpoint
from conveyor.engines.process.wire.progress import ProgressBoard, ProgressSlot
from conveyor.engines.process.worker import main
from conveyor.engines.process.worker.seeding import Seats
from conveyor.errors import ProcessError

if TYPE_CHECKING:
    from conveyor.core import commands


class Connection:
    """The other side of a channel, as the broker keeps it."""

    def __init__(
        self,
        end: NonblockingEndpoint,
        waiter: Waiter,
        receive: Callable[[messages.Message, list[Any]], None],
        gone: Callable[[], None],
        sent: Callable[[Iterable[Any]], None],
    ) -> None:
        self._end = end
        self._sent = sent
        self._waiter = waiter
        self._receive = receive
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
            self._receive(message, blobs)
        if not alive:
            self.close()
            self._gone()
        return bool(frames)

    def _watch_room(self) -> None:
        if self.open and self._end.unsent != self._wants_room:
            self._wants_room = self._end.unsent
            self._waiter.want_room(self._descriptor, self._wants_room)

    def close(self) -> None:
        """Have no more to do with it."""
        if self.open:
            self.open = False
            self._waiter.remove(self._descriptor)
            self._end.close()


class WorkerProcess:
    """A worker, as the broker keeps it."""

    def __init__(
        self, number: int, assignment: WorkerConfig, child: Child, progress: ProgressSlot, started: float
    ) -> None:
        self.number = number
        self.assignment = assignment
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

    def lease(self, command: commands.SendLease) -> None:
        """Hand over items.  A blob that is cut into many leases is sent, and unpickled there, only once."""
        pieces = command.pieces
        if self._revoked:
            # All that it had by then is settled.
            self._revoked = False
            self._kept = None
            self.progress.allow_all()
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
        self.peer.send(
            messages.StartLease(
                command.lease,
                spec,
                command.credit,
                command.finish,
                starts_in_kept=again,
                keep_last=kept is not None,
                skip=command.skip,
                verdict=command.give_up,
            ),
            data,
        )

    def revoke(self, lease: int, calls: int) -> tuple[int, int]:
        """Have nothing started beyond that position; return how far may have been."""
        self._revoked = True
        return self.progress.revoke(lease, calls)

    def seen(self, standstills: PauseDetector) -> tuple[int, int, float | None]:
        """Return what it is at, and for how long, without the time in which nobody could run."""
        at, since = self.progress.working_since()
        seconds = None if since is None else time.monotonic() - since - standstills.since(since)
        return *at, seconds


class WorkerPool:
    """Those that are up or were, by number; one that left in peace is not among them.

    `ends` are those of the caller's channels.  `heard` is called with what a worker says, `died` when one is dead.
    """

    def __init__(
        self,
        orders: BrokerConfig,
        ends: list[NonblockingEndpoint],
        arena: Arena | None,
        heard: Callable[[WorkerProcess, messages.Message, list[Any]], None],
        died: Callable[[WorkerProcess], None],
    ) -> None:
        self._orders = orders
        # The ends of the caller's channels, and those of the workers', for a process that is forked to close.
        self._ends = ends
        # Where something that the script has imported has started threads, this process cannot fork safely, either.
        self.threads = foreign_threads() if orders.start_method == FORKSERVER else ForeignThreads()
        self._fork = orders.start_method == FORK or (orders.start_method == FORKSERVER and not self.threads)
        self._board = ProgressBoard(self._fork)
        self.arena = arena
        self.holdings = SlotRefcounts()
        self.waiter = Waiter()
        self._seats = Seats()
        self.workers: dict[int, WorkerProcess] = {}
        self._heard = heard
        self._died = died

    def start(self, step: int, number: int) -> None:
        """Start one more; raises ProcessError where there is nothing left to start it with."""
        assignment = self._seeded(step, number)
        try:
            if self._fork:
                # Done once; here, where it is an error of the start if it fails.
                prepare()
            self._launch(assignment, number)
        except OSError as error:
            # No descriptor, process or room for a semaphore is left.  To wait for better times may be to wait for ever.
            raise ProcessError(f"A worker of Processor {assignment.name!r} could not be started: {error}.") from error

    def _seeded(self, step: int, number: int) -> WorkerConfig:
        """Return what a worker is told, with a seed that no other has."""
        assignment = self._orders.assignments[step]
        if assignment.seed is None:
            return assignment
        index, before = self._seats.take(step, number, [each.number for each in self.workers.values() if not each.dead])
        return assignment._replace(seed=f"{assignment.seed} {step} {index} {before}")

    def _launch(self, assignment: WorkerConfig, number: int) -> None:
        started = time.monotonic()
        method = FORK if self._fork else SPAWN
        context: Any = multiprocessing.get_context(method)
        near, far = channel(self._orders.channel, context)
        progress = self._board.new()
        foreign = list(self._ends) if self._fork else []
        if self._fork and self._orders.channel == PIPE:
            # Else the worker would keep its own channel open, and never see its end.  Those of a queue are not apart.
            foreign.append(near)
        process = process_of(
            method,
            self._orders.import_main,
            target=main.main,
            args=(number, assignment if self._fork else None, far, progress, self.arena, foreign, os.getpid()),
            name=f"{PREFIX}{assignment.name}",
        )
        self._ends.append(near)
        # This process has one thread, and where channels are queues those that write to them, which the child does
        # not touch; threads of compiled libraries see to themselves.
        with signals_held(method), fork_warning_ignored():
            try:
                process.start()
            except OSError:
                near.close()
                raise
            finally:
                far.close()
        child = Child(process)
        each = WorkerProcess(number, assignment, child, progress, started)
        self.workers[number] = each
        # A worker whose channel has ended is dead or about to be, and its death is what counts.
        near.keep(self.holdings)
        sent = partial(self.holdings.sent, number)
        each.peer = Connection(near, self.waiter, partial(self._heard, each), lambda: None, sent)
        each.end = near
        self.waiter.add(child.waitable, partial(self._died, each))
        if not self._fork:
            # Not with its start: it may die before it reads them.
            each.peer.send(
                messages.ConfigureWorker(assignment._replace(job=b"", redact=None)),
                [assignment.job, assignment.redact or b""],
            )

    def bury(self, each: WorkerProcess) -> tuple[tuple[int, int], bool]:
        """Take in what one that has died said last, and let go of it.

        Return how far it had started what it was handed, and whether it was unpickling.
        """
        # A last message and the death can be ready together: the message comes first.
        while each.peer.drain():
            pass
        each.peer.close()
        self.waiter.remove(each.child.waitable)
        each.child.reap()
        each.dead = True
        self._ends.remove(each.end)
        self.holdings.lost(each.number)
        last_words = each.progress.started, each.progress.unpickling
        self._board.give_back(each.progress)
        return last_words

    def end(self) -> None:
        """Make sure that no worker is left, whatever happened."""
        for each in self.workers.values():
            if not each.dead:
                each.child.end()
                each.peer.close()
                each.dead = True

    def close(self) -> None:
        """Let go of what was needed to keep them."""
        self.waiter.close()
        self._board.close()
