"""The source of a run: how the caller's items are pulled, and sent to the broker.

Law: the source pulls no more than the broker asked for.  It sends an item at once where the next one is slow to come.
It pulls in a thread of its own: a slow input holds back no result, and a slow consumer does not hold back the input.
It pulls a short list in the caller's thread, as far as there is room at once.  The thread that pulls items also drops
them, and closes the generator that gave them, before the run is over.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from operator import itemgetter
from types import TracebackType

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_held
from conveyor.engines.base import RunProgress
from conveyor.engines.failures import clear_our_frames, source_raised, unpicklable_input, without_our_frames
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.caller.start_method import importing
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.system.spawning import cause_and_remedy, thread_started
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
from conveyor.errors import ProcessError, SourceError

if TYPE_CHECKING:
    from conveyor.engines.process.shm.arena import Arena

# A pull faster than the first makes the next one larger; one slower than the second makes it smaller.
FAST_PULL_SECONDS, SLOW_PULL_SECONDS = 0.0002, 0.001
# How long an item may wait for the next one before it is sent alone.
MAX_ITEM_WAIT_SECONDS = 0.002
# How long the caller waits for the source's thread: while that asks the caller's own code for an item, and while it
# closes the caller's generator or does something of ours.
JOIN_SECONDS, CLOSING_SECONDS = 0.2, 5.0
# A list shorter than this is pulled in the caller's thread; and every item after that many is weighed.
FEW_ITEMS = 64
# Iterating over these never makes anyone wait, and nobody changes an item to give it again.
_PROMPT_TYPES = frozenset({list, tuple, range, dict, set, frozenset, str, bytes})


class Pace:
    """How many items to pull at a time: what the broker has room for, what one blob holds, and what comes quickly."""

    __slots__ = ("_budget", "credit", "growing", "uses_arena")

    def __init__(self, credit: int, max_bytes: int) -> None:
        # How many items the broker has asked for, and did not get yet.
        self.credit = credit
        self.growing = 1
        self._budget = ByteBudget(max_bytes)
        # Whether the last blob is in the arena: then it counts which slots may be written again.
        self.uses_arena = False

    def grant(self, credit: int) -> None:
        self.credit += credit
        self._budget.renew(self.credit)

    def wanted(self) -> int:
        """Return how many items to pull."""
        return min(self.credit, self.growing, self._budget.items_per_blob)

    def note_blob(self, items: int, blob: Any) -> None:
        self._budget.take(items, len(blob))
        self.uses_arena = type(blob) is SharedBlob

    def note_pull(self, wanted: int, sent: int, seconds: float, was_cut_short: bool) -> int:
        """Take in how many items were sent, and how quickly they came; return how much credit goes back."""
        self.credit -= sent
        returned = 0
        if self.credit and self._budget.spent:
            returned, self.credit = self.credit, 0
        if was_cut_short:
            self.growing = 1
        elif seconds < FAST_PULL_SECONDS:
            # A pull may be small for want of credit alone.
            self.growing = max(self.growing, wanted * 2)
        elif seconds > SLOW_PULL_SECONDS:
            self.growing = max(1, wanted // 2)
        return returned


class Input:
    """The caller's items, and how they are pulled: another thread can cut a pull short, after the item at hand."""

    freeze, weigh = staticmethod(frozen), staticmethod(weight)

    def __init__(self, items: Iterable[Any], max_bytes: int) -> None:
        # Both are None once they were dropped.
        self._items: Iterable[Any] | None = items
        self._iterator: Iterator[Any] | None = None
        self.is_prompt = type(items) in _PROMPT_TYPES
        self.detector = ReuseDetector(self.weigh)
        self._interval = interval(FEW_ITEMS, max_bytes)
        # Holds something when there is no more.
        self.exhausted: list[None] = []
        # What was pulled and not sent yet; a deque where another thread may take it meanwhile.
        self.pulled: deque[Any] | list[Any] = []
        # One for each item of the pull that may be cut short: to clear them cuts it short.
        self._tokens: list[None] = []
        # The tokens of the last pull that was cut short.
        self._cut_tokens: list[None] | None = None
        # Whether a pull is under way that may be cut short.
        self.pulling = threading.Event()
        # Whether the caller's own code is being asked for items.
        self.is_asking = False
        # Frames of this package that hold the input.
        self.frames: TracebackType | None = None

    def is_short(self, limit: int) -> bool:
        """Whether there are fewer items than that, and they come at once."""
        return self.is_prompt and len(self._items) < limit  # type: ignore[arg-type]

    def open(self) -> Iterator[Any]:
        """Return what is left of the items."""
        try:
            self.is_asking = True
            if self._iterator is None:
                # Nothing is left where another thread has ended the run already.
                with gate.passed():
                    self._iterator = iter(() if self._items is None else self._items)
        finally:
            self.is_asking = False
        return chain(self._iterator, _note_the_end(self.exhausted))

    def pull(self, items: Iterator[Any], wanted: int, stoppable: bool) -> None:
        """Pull as many items as wanted, or fewer; raises what the caller's code raises, and Unpicklable."""
        if self.is_prompt or wanted == 1:
            self.pulled = []
            self._pull(items, wanted)
            if not self.is_prompt and self.pulled:
                self.detector.observe(self.pulled[0])
            return
        if stoppable:
            self._tokens = [None] * wanted
            self.pulling.set()
            items = map(itemgetter(1), zip(self._tokens, items, strict=False))
        self.pulled = deque() if stoppable else []
        self._pull(map(self.freeze, items) if self.detector.repeats else items, wanted)
        if stoppable:
            self.pulling.clear()

    def _pull(self, items: Iterator[Any], wanted: int) -> None:
        pulled, before = self.pulled, self._tokens
        while wanted > 0 and not self.exhausted:
            part = self._interval if wanted > self._interval else wanted
            pulled.extend(islice(items, part))
            wanted -= part
            if self._cut_tokens is before:
                return
            try:
                last = pulled[-1]
            except IndexError:
                # Another thread has just sent what there was: nothing is left to be weighed.
                continue
            if type(last) not in LIGHT and self.weigh(last) * part > BLOB_BYTES:
                return

    def cut_pull_short(self) -> None:
        """Let the pull that is under way end with the item at hand."""
        if self.pulling.is_set():
            self._cut_tokens = self._tokens
            self._tokens.clear()

    def cut_slow_pull_short(self, over: threading.Event) -> bool:
        """Wait for a pull; where an item of it is slow to come, cut it short.  Return whether that was so."""
        self.pulling.wait()
        tokens = self._tokens
        if over.wait(MAX_ITEM_WAIT_SECONDS) or not self.pulling.is_set() or tokens is not self._tokens:
            return False
        # Where that pull ends this very moment, the next one has tokens of its own.
        self._cut_tokens = tokens
        tokens.clear()
        return True

    def was_cut_short(self) -> bool:
        """Whether the last pull was cut short; asked once for each."""
        if self._cut_tokens is not self._tokens:
            return False
        self._tokens = []
        return True

    def take_pulled(self, in_passing: bool = False) -> list[Any]:
        """Return what was pulled, and keep it no more; `in_passing`: another thread may be pulling."""
        pulled = self.pulled
        if in_passing:
            # Only what is known to be there; what is pulled into a list is sent as soon as it is there.
            return [pulled.popleft() for _ in range(len(pulled))] if isinstance(pulled, deque) else []
        self.pulled = []
        return list(pulled) if isinstance(pulled, deque) else pulled

    def drop(self) -> None:
        """Refer to nothing of the input any more, and close a generator that gave it: here, where it ran."""
        iterator = self._iterator
        self._items = self._iterator = None
        self.pulled = []
        self.detector = ReuseDetector(self.weigh)
        frames, self.frames = self.frames, None
        clear_our_frames(frames)
        if isinstance(iterator, Generator):
            iterator.close()


class Source:
    """What feeds one run, whose first pipe holds `max_bytes`."""

    input_kind: type[Input] = Input
    first_message: Callable[[int], messages.Message] = messages.StartRun

    def __init__(
        self,
        run: int,
        items: Iterable[Any],
        end: BlockingEndpoint,
        credit: int,
        max_bytes: int,
        format_item: Callable[[Any], str],
        arena: Arena | None,
        lock: threading.RLock,
        progress: RunProgress,
    ) -> None:
        self._run = run
        self._end = end
        self._arena = arena
        self._format_item = format_item
        # Held while something is sent: the thread of the run before may still send.
        self._lock = lock
        self._input = self.input_kind(items, max_bytes)
        self._pace = Pace(credit, max_bytes)
        self.progress = progress
        # What the input raised, or why an item cannot be pickled, and that item as text.
        self._failure: tuple[BaseException, str | None] | None = None
        self._stopped = False
        self._over = threading.Event()
        # The thread that pulls; and the look-out, which sends what was pulled when the next item is slow to come.
        self._thread: threading.Thread | None = None
        self._look_out: threading.Thread | None = None
        # Whether it pulls in a thread of its own.  There it may wait for room, and whatever is raised is the input's
        # doing.  In the caller's thread it would wait for room that only the caller can make, and a signal handler may
        # raise.
        self._may_wait = True
        # Whether the caller's thread pulls everything, whenever that waits for results.
        self.stays = False

    def start(self) -> None:
        with contextlib.suppress(ConnectionLost), self._lock:
            self._end.send(self.first_message(self._run))
        if importing() is not None:
            # A thread would wait for this import where it pickles something of the module.
            self.stays, self._may_wait = True, False
            return
        if self._input.is_short(min(self._pace.credit, FEW_ITEMS)):
            # They are sent sooner than a thread is started, unless they are so large that some have to wait.
            self._may_wait = False
            self._feed()
            if self._over.is_set():
                return
            self._may_wait = True
        context = contextvars.copy_context()
        # A start that is interrupted would leave a thread that is neither there nor gone.
        with interrupts_held():
            name, call = f"conveyor-source-{self._run}", (self._feed_beside, (sys.stdin, sys.__stdin__))
            self._thread = threading.Thread(target=context.run, args=call, name=name, daemon=True)
            if not thread_started(self._thread):
                self._thread = None
                raise ProcessError(f"The thread that pulls the input could not be started: {cause_and_remedy(None)}")

    def _feed_beside(self, kept: object) -> None:
        """Pull and send in a thread of its own, which keeps these objects as long as it lives.

        A thread that reads the standard input at the end of the interpreter holds its lock.  Python aborts where it
        closes that stream then, and it closes what nobody refers to any more.
        """
        self._feed()

    def feed(self) -> None:
        """Pull and send in the caller's thread, as far as there is room."""
        if not self._over.is_set():
            self._feed()

    def stop(self) -> None:
        """Pull no more; an item being pulled just now is dropped."""
        self._stopped = True
        self._over.set()
        self._input.pulling.set()

    def ends_at_once(self) -> bool:
        """Whether it has ended, or asks nobody who may take long for its items."""
        return self._input.is_prompt or self._over.is_set()

    def join(self) -> None:
        """Wait for the threads to end; after a moment, leave one alone that is stuck in the caller's own code."""
        self.stop()
        for thread in (self._thread, self._look_out):
            # The caller's own code may close the pipeline, while it is being asked for an item.
            if thread is not None and thread.ident is not None and thread is not threading.current_thread():
                thread.join(JOIN_SECONDS)
                if thread.is_alive() and not self._input.is_asking:
                    thread.join(CLOSING_SECONDS)
        if self._thread is None:
            self._input.drop()

    def error(self) -> SourceError:
        """Return what went wrong, with the caller's exception as its cause."""
        assert self._failure is not None
        cause, bad_item = self._failure
        error = source_raised(self.progress.pulled, cause)
        if bad_item is not None:
            error = unpicklable_input(self.progress.pulled, bad_item, cause)
        error.__cause__ = cause
        return error

    @property
    def _failures(self) -> tuple[type[BaseException], ...]:
        """What of that is raised while items are pulled is the input's doing."""
        return (BaseException,) if self._may_wait else (Exception, SystemExit)

    def _feed(self) -> None:
        try:
            if not self._pull_all():
                return
        except ConnectionLost as error:
            # The thread that waits for results raises that.
            self._input.frames = error.__traceback__
        except messages.ProtocolError as error:
            # Without this word the run would wait for items for ever.
            self._fail(error)
        try:
            # To close a generator runs the caller's own code.
            with gate.passed():
                self._input.drop()
        finally:
            self._over.set()
            self._input.pulling.set()

    def _pull_all(self) -> bool:
        """Pull and send until there is no more, or no reason to.

        Return False where there is no room and it must not wait for any: the next call goes on from there.
        """
        source, pace = self._input, self._pace
        try:
            iterator = source.open()
        except self._failures as error:
            self._fail(error)
            return True
        while True:
            while not self._stopped and (
                not pace.credit or ((pace.uses_arena or pace.credit < 2 * pace.growing) and self._end.ready())
            ):
                if not self._may_wait and not self._end.ready():
                    return False
                self._receive()
            if self._stopped:
                return True
            wanted = 1 if source.detector.undecided else pace.wanted()
            sent = self.progress.pulled
            gate.enter(source.cut_pull_short)
            try:
                begun = time.perf_counter()
                source.is_asking = True
                if not self._pull(iterator, wanted):
                    return True
                source.is_asking = False
                seconds = time.perf_counter() - begun
                if not self._send():
                    return True
            finally:
                source.is_asking = False
                gate.leave()
            if source.exhausted:
                self.progress.ended = True
                self._tell(messages.SourceEnded(self._run))
                return True
            if returned := pace.note_pull(wanted, self.progress.pulled - sent, seconds, source.was_cut_short()):
                self._tell(messages.ReturnCredit(self._run, returned))

    def _receive(self) -> None:
        """Wait for a message from the broker, and take it in."""
        message, _ = self._end.receive()
        match message:
            case messages.Pull():
                if message.run == self._run:
                    self._pace.grant(message.credit)
            case messages.SlotsFreed():
                assert self._arena is not None
                with self._lock:
                    self._arena.freed(message.slots)
            case messages.StopSource():
                if message.run == self._run:
                    self._stopped = True
            case _:
                raise messages.unexpected(message, "The caller's source")

    def _pull(self, iterator: Iterator[Any], wanted: int) -> bool:
        """Pull as many items as wanted, or fewer; return whether that went well."""
        stoppable = wanted > 1 and not self.stays and not self._input.is_prompt
        if stoppable and self._look_out is None:
            look_out = threading.Thread(target=self._watch, name="conveyor-look-out", daemon=True)
            # Without a look-out, items are pulled one by one, so that none waits for the next.
            wanted, stoppable = (wanted, True) if thread_started(look_out) else (1, False)
            # Not before: a thread that gives the run up just now cannot wait for one that has not been started.
            self._look_out = look_out if stoppable else None
        try:
            self._input.pull(iterator, wanted, stoppable)
        except Unpicklable as refused:
            self.progress.pulled += len(self._input.pulled)
            self._fail(refused.__cause__ or refused, refused.item)
            return False
        except self._failures as error:
            self._fail(error)
            return False
        return True

    def _watch(self) -> None:
        """Where an item is slow to come, send those before it, and pull no more than that one with it."""
        try:
            while not self._over.is_set():
                if self._input.cut_slow_pull_short(self._over):
                    with gate.passed():
                        self._send(in_passing=True)
        except ConnectionLost as error:
            # The thread that waits for results raises that.
            clear_our_frames(error.__traceback__)

    def _tell(self, message: messages.Message) -> None:
        """Send a message about the run, unless it was given up."""
        with self._lock:
            if not self._stopped:
                self._end.send(message)

    def _send(self, in_passing: bool = False) -> bool:
        """Send everything that was pulled, as one blob; return whether that went well."""
        with self._lock:
            if self._stopped or self._failure is not None:
                return False
            items = self._input.take_pulled(in_passing)
            if not items:
                return True
            blob = self._encoded(items)
            if blob is None:
                return False
            self._pace.note_blob(len(items), blob)
            self._end.send(messages.SourceItems(self._run, len(items), time.process_time()), [blob])
            self.progress.pulled += len(items)
            return True

    def _encoded(self, items: list[Any]) -> Any:
        """Return a blob of the items; where one of them cannot be pickled, fail, and return None."""
        failures: list[BaseException] = []
        try:
            return encode(items, arena=self._arena)
        except self._failures as error:
            failures.append(error)
        # Here, where that exception is handled no more: otherwise it would be the context of the next, with its frames.
        index, cause = unpicklable(items) or (0, failures[0])
        failures.clear()
        self.progress.pulled += index
        self._fail(cause, items[index])
        return None

    def _fail(self, error: BaseException, *bad_item: Any) -> None:
        """Tell the broker that the source failed, at the item behind those that were sent."""
        # What the look-out sends just now goes out first, and whole.
        with self._lock:
            if self._stopped or self._failure is not None:
                return
            # The frames of this package hold the input; they are cleared when they are over.
            self._input.frames = error.__traceback__
            text = self._format_item(*bad_item) if bad_item else None
            if not bad_item:
                self.progress.pulled += len(self._input.pulled)
            self._failure = error.with_traceback(without_our_frames(error.__traceback__)), text
            self._tell(messages.SourceFailed(self._run))


def _note_the_end(exhausted: list[None]) -> Iterator[Any]:
    """Yield nothing, behind the last item.  It refers to no Source: that would be a cycle."""
    exhausted.append(None)
    yield from ()
