"""The arguments of the lease at hand: what the job is called with.

Law: what was unpickled for one lease and belongs to the next is kept, so that nothing is unpickled twice.  An argument
can be had once more as it came, where a job may have changed it before it failed.

Where the usual unpickler refuses an item, another one goes on, so that the worker knows which item that was.  It runs
the same code of the user's again.  A placeholder stands where an object cannot be rebuilt, and all else is as it was.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable

from conveyor._lean.typing import TYPE_CHECKING, Any, ClassVar
from conveyor.core.data.pieces import items_of
from conveyor.engines.failures import Failure, LeaseFailed, failure_of
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.wire.codec import decode
from conveyor.engines.process.wire.messages import StartLease

if TYPE_CHECKING:
    from conveyor.engines.process.wire.progress import ProgressSlot


class Unloadable:
    """The placeholder of an object that could not be rebuilt; it takes whatever is done to that object, in vain."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise _Found(self.error)

    def append(self, item: Any) -> None:
        """Take no item."""

    extend = append

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take no value."""


class _Found(Exception):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


# The unpickler written in Python, which alone can be told what to do about a failure.  It is private, but always there.
_Base: Any = pickle._Unpickler


def load_tolerantly(blob: Any) -> list[Any]:
    """Return the items of a blob, some of which may be Unloadable, or hold something that is.

    Raises what unpickling raises where the pickle itself is broken.
    """
    data, buffers = blob.opened() if type(blob) is SharedBlob else (blob, [])
    items = _TolerantUnpickler(io.BytesIO(data), buffers=buffers).load()
    if type(items) is tuple:
        # Each was pickled by itself.
        return [_TolerantUnpickler(io.BytesIO(item)).load() for item in items]
    return items  # type: ignore[no-any-return]


def load_or_placeholder(blob: Any) -> list[Any]:
    """Return the items of a blob, in the usual way where that can be done."""
    try:
        return decode(blob)
    except BaseException:
        return load_tolerantly(blob)


def cause_of_unloadable(item: Any) -> BaseException | None:
    """Return why an item could not be rebuilt, None where it was."""
    if type(item) is Unloadable:
        return item.error
    try:
        pickle.dumps(item, 5)
    except _Found as found:
        return found.error
    except BaseException:
        # It cannot be pickled for another reason, which is no concern of whoever gets it.
        return None
    return None


def _tolerant(opcode: bytes, consumed: int) -> Callable[[Any], None]:
    """Return what to do at an opcode that takes so many objects off the stack, and puts one there."""
    usual = _Base.dispatch[opcode[0]]

    def load(unpickler: Any) -> None:
        stack = unpickler.stack
        depth = len(stack)
        if type(stack[depth - consumed]) is Unloadable:
            del stack[depth - consumed + 1 :]
            return
        try:
            usual(unpickler)
        except BaseException as error:
            del stack[depth - consumed :]
            stack.append(Unloadable(error))

    return load


class _TolerantUnpickler(_Base):  # type: ignore[misc]
    """Puts an Unloadable where the user's own code raises."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_Base.dispatch,
        pickle.REDUCE[0]: _tolerant(pickle.REDUCE, 2),
        pickle.NEWOBJ[0]: _tolerant(pickle.NEWOBJ, 2),
        pickle.NEWOBJ_EX[0]: _tolerant(pickle.NEWOBJ_EX, 3),
        pickle.BUILD[0]: _tolerant(pickle.BUILD, 2),
        pickle.STACK_GLOBAL[0]: _tolerant(pickle.STACK_GLOBAL, 2),
    }


_USED = object()


class LeaseItems:
    """Turns messages into arguments: items, or lists of `batch_size` items.

    `progress` says to the broker that the worker is unpickling.  `may_want_again`: an argument may be
    wanted once more.
    """

    def __init__(self, batch_size: int | None, progress: ProgressSlot, may_want_again: bool) -> None:
        self._batch_size = batch_size
        self._progress = progress
        self._may_want_again = may_want_again
        self.all: list[Any] = []
        # How many of them the job has had in lists, and may have changed.
        self._listed = 0
        # Of submitted items, why some could not be unpickled, by their index.
        self.broken: dict[int, Failure] = {}
        # What they were unpickled from, where a job may be called again that has changed its item; and those once more.
        self._source: tuple[Any, list[Any]] = ((), [])
        self._afresh: list[Any] = []
        # The items of a blob of which the next lease may have more, as the only item of a list, and the blob.
        self._kept: list[list[Any]] = []
        self._kept_blob: Any = None

    def take(self, lease: StartLease, blobs: list[Any], start: Callable[[int, int], int]) -> list[Any]:
        """Return the arguments of a lease; raises LeaseFailed where one cannot be unpickled that `start` lets it start.

        `blobs` is empty afterwards where they are not needed once more, so that nobody has what lives nowhere else.
        """
        spec, keep = lease.spec, lease.keep_last
        # Of a blob that was sent with an earlier lease, only what is left of it is used, so its items are fresh.
        all_blobs, known = ([self._kept_blob, *blobs], self._kept) if lease.starts_in_kept else (blobs, [])
        if self._may_want_again:
            self._source, self._afresh = (spec, all_blobs), []
        self._progress.unpickling = True
        try:
            # No `map` here or below: a list reads a StopIteration that unpickling raises as the end of one.
            decoded = [*known, *[decode(blob) for blob in all_blobs[len(known) :]]]
            self._kept = decoded[-1:] if keep else []
        except BaseException as error:
            decoded, self._kept = self._decoded_tolerantly(lease, all_blobs, error, start), []
        self._kept_blob = all_blobs[-1] if keep else None
        if not self._may_want_again:
            blobs.clear()
        self._progress.unpickling = False
        self._listed = 0
        self.all = self._cut(items_of(spec, decoded))
        return self.all

    def follow(self, before: LeaseItems) -> None:
        """Take over what was kept of the lease before."""
        self._kept, self._kept_blob = before._kept, before._kept_blob

    def leave(self) -> None:
        """Have no arguments any more: what is in none of the outputs is nobody's then."""
        self.all = []
        if self.broken:
            self.broken = {}
        self._source, self._afresh = ((), []), []

    def _decoded_tolerantly(
        self, lease: StartLease, blobs: list[Any], error: BaseException, start: Callable[[int, int], int]
    ) -> list[Any]:
        """Return the items of blobs of which some cannot be unpickled; raises LeaseFailed for one of this lease.

        Of submitted items it only takes note, as each fails for itself.
        """
        try:
            decoded = [load_tolerantly(blob) for blob in blobs]
            broken = list(map(cause_of_unloadable, items_of(lease.spec, decoded)))
        except BaseException:
            raise LeaseFailed(None, failure_of(error, "unpickle")) from None
        for index, cause in enumerate(broken):
            if cause is not None:
                call = index // (self._batch_size or 1)
                if lease.traced:
                    self.broken[call] = failure_of(cause, "unpickle")
                    continue
                if start(0, call + 1) > call:
                    raise LeaseFailed(call, failure_of(cause, "unpickle"))
                # The broker has given this item to another worker.  The job is never called with the placeholder.
                break
        return decoded

    def _cut(self, items: list[Any]) -> list[Any]:
        size = self._batch_size
        if size is None:
            return items
        return [items[start : start + size] for start in range(0, len(items), size)]

    def fresh(self, index: int) -> Any:
        """Return an argument as it came: the job that failed at it may have changed it."""
        if not self._afresh or self._afresh[index] is _USED:
            spec, blobs = self._source
            self._afresh = list(self._cut(items_of(spec, [load_or_placeholder(blob) for blob in blobs])))
        argument, self._afresh[index] = self._afresh[index], _USED
        return argument

    def part(self, first: int, stop: int) -> list[Any]:
        """Return the arguments from `first` to `stop` as they came, in a list for the job."""
        known = min(max(first, self._listed), stop)
        self._listed = max(stop, self._listed)
        return [*map(self.fresh, range(first, known)), *self.all[known:stop]]

    def text_of(self, index: int, format_item: Callable[[Any], str]) -> str | None:
        """Return what a message says of an argument, None where there is none."""
        if index >= len(self.all):
            return None
        argument = self.all[index]
        if self._may_want_again:
            # One that cannot be had once more is shown as the job left it.
            with contextlib.suppress(Exception):
                again = self.fresh(index)
                argument = argument if type(again) is Unloadable else again
        return format_item(argument)
