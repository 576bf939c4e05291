"""The caller's items, on their way to the broker.

Law: pulls no more than the broker asked for, and sends an item that was pulled at once when the next one is
slow to come.  The items are pulled in a thread of their own, so that neither a slow source holds back a result
nor a slow consumer the source; those of a short list in the caller's own frame, as far as there is room at once.
Whoever pulls the items also lets go of them, and closes the generator that gave them, before the run is over.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from operator import itemgetter
from types import TracebackType

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_held
from conveyor.engines.failures import clear_our_frames, without_our_frames
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.caller.main_module import importing
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import (
    BLOB_BYTES,
    LIGHT,
    ByteBudget,
    ReuseDetector,
    Unpicklable,
    encode,
    frozen,
    interval,
    unpicklable,
    weight,
)
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost
from conveyor.errors import SourceError

if TYPE_CHECKING:
    from conveyor.engines.process.shm.arena import Arena

# A chunk that was pulled faster than the first makes the next one larger; one slower than the second, smaller.
FAST_SECONDS = 0.0002
SLOW_SECONDS = 0.001
# How long an item may wait for the next one before it is sent alone.
DAWDLE_SECONDS = 0.002
# How long the caller waits for the source's thread: while that asks the caller's own code for an item, and while it
# closes the caller's generator or does something of ours.
JOIN_SECONDS = 0.2
CLOSING_SECONDS = 5.0
FEW = 64
# Iterating over these never makes anyone wait, and nobody changes an item to give it again.
_PROMPT = frozenset({list, tuple, range, dict, set, frozenset, str, bytes})


class Source:
    """The thread that feeds one run, of which the first pipe holds `most_bytes`."""

    def __init__(
        self,
        run: int,
        items: Iterable[Any],
        end: BlockingEndpoint,
        credit: int,
        most_bytes: int,
        shown: Callable[[Any], str],
        arena: Arena | None,
        lock: threading.RLock,
    ) -> None:
        self._run = run
        self._arena = arena
        # Whether what was sent last is in the arena: then it counts what of that may be written again.
        self._heavy = False
        self._credit = credit
        # Both are None when they were let go of.
        self._items: Iterable[Any] | None = items
        self._iterator: Iterator[Any] | None = None
        self._giver = ReuseDetector()
        self._growing = 1
        self._end = end
        # Held while something is sent: a thread of the run before may still be at it.
        self._lock = lock
        self._pulled: deque[Any] | list[Any] = []
        self._sent = 0
        self._blob_items = 1 << 30
        self._allowance = ByteBudget(most_bytes)
        self._interval = interval(FEW, most_bytes)
        # Holds something when there is no more.
        self._exhausted: list[None] = []
        self._stopped = False
        # Cleared by the look-out to stop a pull that is under way.
        self._tokens: list[None] = []
        # The tokens of the last pull that was stopped so, and whether one is under way that may be.
        self._cut_short: list[None] | None = None
        self._pulling = threading.Event()
        self._error: BaseException | None = None
        self._frames: TracebackType | None = None
        self._bad_item: str | None = None
        self._shown = shown
        self._over = threading.Event()
        self._look_out: threading.Thread | None = None
        # In the thread, what is raised is the input's doing; in the caller's own frame it may be a signal handler's.
        self._failures: tuple[type[BaseException], ...] = (BaseException,)
        # Whether it may wait for room: in the caller's own frame it would wait for what only the caller can make.
        self._may_wait = True
        # Whether the caller's own code is being asked for items.
        self._asking = False
        # Whether all of it is pulled in the caller's own frame, whenever that waits for results.
        self.stays = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to pull."""
        with contextlib.suppress(ConnectionLost), self._lock:
            self._end.send(messages.StartRun(self._run))
        if importing() is not None:
            # A thread would wait for this import where it pickles something of the module.
            self.stays = True
            self._failures, self._may_wait = (Exception, SystemExit), False
            return
        items = self._items
        if type(items) in _PROMPT and len(items) < min(self._credit, FEW):  # type: ignore[arg-type]
            # They are sent sooner than a thread is started, unless they are so heavy that some have to wait.
            failures, self._failures, self._may_wait = self._failures, (Exception, SystemExit), False
            self._feed()
            if self._over.is_set():
                return
            self._failures, self._may_wait = failures, True
        del items
        context = contextvars.copy_context()
        # A start that is interrupted would leave a thread that is neither there nor gone.
        with interrupts_held():
            self._thread = threading.Thread(
                target=context.run, args=(self._feed,), name=f"conveyor-source-{self._run}", daemon=True
            )
            self._thread.start()

    def feed(self) -> None:
        """Pull and send in the caller's own frame, as far as there is room."""
        if not self._over.is_set():
            self._feed()

    def stop(self) -> None:
        """Pull no more; an item being pulled just now is dropped."""
        self._stopped = True
        self._over.set()
        self._pulling.set()

    def join(self) -> None:
        """Wait for the thread to end; one that is stuck in the caller's own code is left to itself after a moment."""
        self.stop()
        for thread in (self._thread, self._look_out):
            # The caller's own code may close the pipeline, while it is being asked for an item.
            if thread is not None and thread.ident is not None and thread is not threading.current_thread():
                thread.join(JOIN_SECONDS)
                if thread.is_alive() and not self._asking:
                    thread.join(CLOSING_SECONDS)
        if self._thread is None:
            self._let_go()

    def _let_go(self) -> None:
        """Refer to nothing of the input any more, and close a generator that gave it: here, where it ran."""
        iterator = self._iterator
        self._items = self._iterator = None
        self._pulled = []
        self._giver = ReuseDetector()
        frames, self._frames = self._frames, None
        clear_our_frames(frames)
        if isinstance(iterator, Generator):
            iterator.close()

    def error(self) -> SourceError:
        """Return what went wrong, with the caller's exception as its cause."""
        assert self._error is not None
        if self._bad_item is not None:
            error = SourceError.unpicklable(self._sent, self._bad_item, self._error)
        else:
            error = SourceError.raised(self._sent, self._error)
        error.__cause__ = self._error
        return error

    def _feed(self) -> None:
        try:
            if not self._pull_all():
                return
        except ConnectionLost as error:
            # This is the business of whoever waits for results.
            self._frames = error.__traceback__
        except messages.ProtocolError as error:
            # In a thread: without this word the run would wait for items for ever.
            self._fail(error)
        try:
            # To close a generator runs the caller's own code.
            with gate.passed(lambda: None):
                self._let_go()
        finally:
            self._over.set()
            self._pulling.set()

    def _pull_all(self) -> bool:
        """Pull and send until there is no more, or no reason to; return False where there is no room and it must not
        wait for any: it goes on from there when it is called again."""
        try:
            self._asking = True
            if self._iterator is None:
                # Nothing is left where another thread has ended the run already.
                with gate.passed(lambda: None):
                    self._iterator = iter(() if self._items is None else self._items)
        except self._failures as error:
            self._fail(error)
            return True
        finally:
            self._asking = False
        iterator = chain(self._iterator, _note_the_end(self._exhausted))
        prompt, giver = type(self._items) in _PROMPT, self._giver
        while True:
            while not self._stopped and (
                not self._credit or ((self._heavy or self._credit < 2 * self._growing) and self._end.ready())
            ):
                if not self._may_wait and not self._end.ready():
                    return False
                message, _ = self._end.receive()
                match message:
                    case messages.Pull():
                        if message.run == self._run:
                            self._credit += message.credit
                            self._allowance.renew(self._credit)
                    case messages.SlotsFreed():
                        with self._lock:
                            self._arena.freed(message.slots)  # type: ignore[union-attr]
                    case messages.StopSource():
                        if message.run == self._run:
                            return True
                    case _:
                        raise messages.unexpected(message, "The caller's source")
            if self._stopped:
                return True
            wanted = 1 if giver.wary else min(self._credit, self._growing, self._blob_items)
            sent = self._sent
            with gate.passed(self._cut_pull_short):
                begun = time.perf_counter()
                try:
                    self._asking = True
                    if not self._pull_some(iterator, wanted, prompt):
                        return True
                finally:
                    self._asking = False
                elapsed = time.perf_counter() - begun
                if not self._send():
                    return True
            if self._exhausted:
                self._tell(messages.SourceEnded(self._run))
                return True
            self._credit -= self._sent - sent
            if self._credit and self._allowance.spent:
                self._tell(messages.ReturnCredit(self._run, self._credit))
                self._credit = 0
            if self._cut_short is self._tokens:
                self._growing = 1
                self._tokens = []
            elif elapsed < FAST_SECONDS:
                # A pull may be small for want of credit alone.
                self._growing = max(self._growing, wanted * 2)
            elif elapsed > SLOW_SECONDS:
                self._growing = max(1, wanted // 2)

    def _pull_some(self, iterator: Iterator[Any], wanted: int, prompt: bool) -> bool:
        """Pull as many items as wanted, or fewer; return whether that went well."""
        giver = self._giver
        try:
            if prompt or wanted == 1:
                self._pulled = []
                self._pull(iterator, wanted)
                if not prompt and self._pulled:
                    giver.gave(self._pulled[0])
            elif self.stays:
                self._pulled = []
                self._pull(map(frozen, iterator) if giver.repeats else iterator, wanted)
            else:
                part = self._stoppable(iterator, wanted)
                self._pulled = deque()
                self._pull(map(frozen, part) if giver.repeats else part, wanted)
                self._pulling.clear()
        except Unpicklable as refused:
            self._sent += len(self._pulled)
            self._fail(refused.__cause__ or refused, refused.item)
            return False
        except self._failures as error:
            self._fail(error)
            return False
        return True

    def _cut_pull_short(self) -> None:
        """Have the pull that is under way end with the item at hand."""
        if self._pulling.is_set():
            self._cut_short = self._tokens
            self._tokens.clear()

    def _pull(self, items: Iterator[Any], wanted: int) -> None:
        """Pull as many items as wanted, or fewer where they are heavy."""
        pulled, before = self._pulled, self._tokens
        while wanted > 0 and not self._exhausted:
            part = self._interval if wanted > self._interval else wanted
            pulled.extend(islice(items, part))
            wanted -= part
            if self._cut_short is before:
                return
            try:
                last = pulled[-1]
            except IndexError:
                # Of what the look-out has just sent there is nothing left to be weighed.
                continue
            if type(last) not in LIGHT and weight(last) * part > BLOB_BYTES:
                return

    def _tell(self, message: messages.Message) -> None:
        """Send a message about the run, as long as anybody wants to know."""
        with self._lock:
            if not self._stopped:
                self._end.send(message)

    def _stoppable(self, iterator: Iterator[Any], items: int) -> Iterator[Any]:
        """Return the next `items` items, with somebody on the look-out who can make them fewer."""
        if self._look_out is None:
            look_out = threading.Thread(target=self._watch, name="conveyor-look-out", daemon=True)
            look_out.start()
            # Not before: who gives the run up just now cannot wait for one that has not been started.
            self._look_out = look_out
        self._tokens = [None] * items
        self._pulling.set()
        return map(itemgetter(1), zip(self._tokens, iterator, strict=False))

    def _watch(self) -> None:
        """Where an item is slow to come, send those before it, and have no more than that one pulled with it."""
        try:
            while not self._over.is_set():
                self._pulling.wait()
                tokens = self._tokens
                if not self._over.wait(DAWDLE_SECONDS) and self._pulling.is_set() and tokens is self._tokens:
                    # Of a pull that ends this very moment, the next one has tokens of its own.
                    self._cut_short = tokens
                    tokens.clear()
                    with gate.passed(lambda: None):
                        self._send()
        except ConnectionLost as error:
            # This is the business of whoever waits for results.
            clear_our_frames(error.__traceback__)

    def _send(self) -> bool:
        """Send everything that was pulled, as one blob; return whether that went well."""
        with self._lock:
            if self._stopped or self._error is not None:
                return False
            pulled = self._pulled
            if isinstance(pulled, deque):
                # The other thread may be appending, so only what is known to be there is taken.
                items = [pulled.popleft() for _ in range(len(pulled))]
            else:
                items, self._pulled = pulled, []
            if not items:
                return True
            blob = self._encoded(items)
            if blob is None:
                return False
            self._blob_items = max(1, BLOB_BYTES * len(items) // len(blob))
            self._allowance.take(len(items), len(blob))
            self._heavy = type(blob) is SharedBlob
            self._end.send(messages.SourceItems(self._run, len(items), time.process_time()), [blob])
            self._sent += len(items)
            return True

    def _encoded(self, items: list[Any]) -> Any:
        """Return a blob of the items; None where one of them cannot be pickled, which is told then."""
        failures: list[BaseException] = []
        try:
            return encode(items, arena=self._arena)
        except self._failures as error:
            failures.append(error)
        # Here, where that one is handled no more: else it would be the context of the next, with all of its frames.
        index, cause = unpicklable(items) or (0, failures[0])
        failures.clear()
        self._sent += index
        self._fail(cause, items[index])
        return None

    def _fail(self, error: BaseException, *bad_item: Any) -> None:
        # What the look-out is sending just now goes out first, and whole.
        with self._lock:
            if self._stopped or self._error is not None:
                return
            if bad_item:
                self._bad_item = self._shown(*bad_item)
            else:
                self._sent += len(self._pulled)
            # The frames of this package hold the input, and are cleared when they are over.
            self._frames = error.__traceback__
            self._error = error.with_traceback(without_our_frames(error.__traceback__))
            self._tell(messages.SourceFailed(self._run))


def _note_the_end(exhausted: list[None]) -> Iterator[Any]:
    """Yield nothing, behind the last item.  It refers to no Source: that would be a cycle."""
    exhausted.append(None)
    yield from ()
