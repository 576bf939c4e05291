"""Items to bytes and back.

Law: this is the only place that pickles or unpickles items.  A blob is the pickle of a list of items, so that a
thousand small ones cost little more than one.  An object that stands twice in the list must not become one object
behind the hop: a job that changes an item would change another.  Such items are pickled one by one, and the blob is the
pickle of a tuple of their pickles.  A source or a job may change an object and give it again.  `ReuseDetector` finds
that out, and each item is pickled then before the next is asked for.
"""

from __future__ import annotations

import contextlib
import pickle
import weakref
from collections.abc import Callable, Sequence, Set
from functools import partial
from types import GeneratorType

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.wire import by_value
from conveyor.engines.process.wire.handles import guard_connections

if TYPE_CHECKING:
    from conveyor.engines.process.shm.arena import Arena

# Types whose values cannot be changed, so that sharing one shows nowhere.
ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
# Those of which none is heavy.
LIGHT = ATOMS - {str, bytes}
NUMBERS = frozenset({int, float, bool})
# So many items that to look at each takes longer than to make a pickler.
MANY_ITEMS = 64

# The sender makes blobs of about so many bytes.
BLOB_BYTES = 256 * 1024
# A buffer of fewer bytes is pickled with the rest.  A rest of fewer bytes goes through the channel.
LEAST_BYTES = 32 * 1024
LEAST_STREAM_BYTES = 128 * 1024
# `PIPE_BYTES` of `graph/plan.py`, for which a worker has no other use.
USUAL_PIPE_BYTES = 16 * 1024 * 1024
# The budget while nothing is known of the items, and the smallest.  Of a pipe that holds less, it is the same share.
FIRST_BUDGET_BYTES = USUAL_PIPE_BYTES // 4
LEAST_BUDGET_BYTES = USUAL_PIPE_BYTES // 64
# The sender weighs one item of so many, or fewer, however little the pipe holds.
LEAST_INTERVAL = 8

# `ReuseDetector` watches so many objects for one that comes again.
OBJECTS_WATCHED = 16
# It watches fewer of the heavy ones: those without weak references are kept meanwhile.
HEAVY_OBJECTS_WATCHED = 4


def encode(items: list[Any], kinds: Set[type] | None = None, arena: Arena | None = None, writable: bool = False) -> Any:
    """Return one blob; raises whatever pickling raises.  `kinds`: the types of the items, where they are known.

    With an arena, heavy items go there, and the blob is a SharedBlob then.  `writable`: what is in writable copies of
    the arena is passed on as it is.  The worker calls `Arena.pass_on` before it sends such a blob.
    """
    if kinds is None:
        if (data := encode_numbers(items)) is not None:
            return data
        kinds = kinds_of(items)
    # The types are told apart faster than the items: most often, that is the end of it.
    if LIGHT.issuperset(kinds):
        return pickle.dumps(items, 5)
    guard_connections()
    if ATOMS.issuperset(kinds) or (Frozen not in kinds and len(set(map(id, items))) == len(items)):
        return dumps(items) if arena is None else _encode_into(arena, items, writable)
    return pickle.dumps(tuple([item.data if type(item) is Frozen else dumps(item) for item in items]), 5)


def encode_numbers(items: list[Any]) -> bytes | None:
    """Return a blob of many items that are all numbers; None where some are not, or they are few.

    The pickler tells that in passing, so nobody has to look at each item.  It remembers every object that could stand
    twice in a list, and no number.  Nor does it remember None, to which nothing can be added.
    """
    if len(items) < MANY_ITEMS or not NUMBERS.issuperset(map(type, (items[0], items[len(items) // 2], items[-1]))):
        return None
    parts = _Parts()
    pickler = pickle.Pickler(parts, 5)
    pickler.dump(items)
    if len(pickler.memo.copy()) > 1:
        return None
    try:
        sum(items)
    except Exception:
        return None
    return b"".join(parts)


def _pickled(value: Any) -> bytes:
    """Return the plain pickle; where that is refused, the one by value.  Raises the refusal where there is none."""
    try:
        return pickle.dumps(value, 5)
    except Exception:
        instead = by_value.dumps_instead(value)
        if instead is None:
            raise
        return instead


def dumps(value: Any) -> bytes:
    """Return the pickle of an item, or of a list of items; what the script defines by value, where it travels so."""
    data = _pickled(value)
    return by_value.dumps(value) if by_value.sessions and by_value.MAIN in data else data


class _Parts(list[Any]):
    """A file, to the pickler; what is large it writes without a copy, so there must not be made one here."""

    def write(self, data: Any) -> None:
        """Keep what is written, until it is written where it is to be."""
        # What a view is of may be gone by then.
        self.append(bytes(data) if type(data) is memoryview else data)


def _encode_into(arena: Arena, items: list[Any], writable: bool) -> Any:
    """Return a blob of which large buffers, and what is large of the rest, are in the arena, if that has room."""
    buffers: list[memoryview] = []
    held: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < LEAST_BYTES:
            return True
        buffers.append(view)
        held.append(buffer)
        return False

    try:
        parts = _Parts()
        writable = writable and arena.has_writable_copies and not by_value.sessions
        streams = writable or (arena.streams and not by_value.sessions)
        pickler: pickle.Pickler | None = None
        data = b""
        try:
            if streams:
                # The pickle itself is large, as it was the last time; or the memo is looked through for finalizers.
                pickler = pickle.Pickler(parts, 5, buffer_callback=keep_in_band)
                pickler.dump(items)
            else:
                data = pickle.dumps(items, 5, buffer_callback=keep_in_band)
        except Exception:
            instead = by_value.dumps_instead(items)
            if instead is None:
                raise
            return instead
        if by_value.sessions and by_value.MAIN in data:
            return by_value.dumps(items)
        if pickler is not None:
            writable = writable and not _has_finalizer(pickler)
            size = sum(map(len, parts))
        else:
            size = len(data)
            parts.append(data)
        arena.streams = size >= max(LEAST_STREAM_BYTES, LEAST_BYTES * len(items))
        if arena.streams:
            stored = arena.store([list(parts), *buffers], writable)
            data = b""
        else:
            data = data or b"".join(parts)
            if not buffers:
                return data
            stored = arena.store(buffers, writable)
    finally:
        # Where an exception leaves this frame in a cycle, the interpreter would crash on views of what is gone already:
        # the collector of CPython clears a memoryview although it is exported.
        for view in buffers:
            view.release()
        for buffer in held:
            buffer.release()
    return dumps(items) if stored is None else SharedBlob(data, *stored)


def _has_finalizer(pickler: Any) -> bool:
    """Whether something that was pickled has a `__del__` or `weakref.finalize`, which may change it at its end."""
    return any(
        hasattr(type(each), "__del__") or any(seen.__callback__ is not None for seen in weakref.getweakrefs(each))
        for _, each in pickler.memo.copy().values()
    )


def kinds_of(items: Sequence[Any]) -> Set[type]:
    """Return the types of the items, of which there is at least one."""
    kinds = list(map(type, items))
    first = kinds[0]
    # Most often they are all of one type, which is told faster than a set is made.
    return {first} if kinds.count(first) == len(kinds) else set(kinds)


def first_without_kind(items: Sequence[Any]) -> int:
    """Return the index of the first item for which `kinds_of` raises; 0 where it raises for none alone.

    A class may say itself how it is told from others, and fail at that.
    """
    for index in range(len(items)):
        try:
            kinds_of(items[index : index + 1])
        except BaseException:
            return index
    return 0


def decode(blob: Any) -> list[Any]:
    """Return the items of a blob."""
    if type(blob) is SharedBlob:
        data, buffers = blob.opened()
        items = pickle.loads(data, buffers=buffers)
    else:
        items = pickle.loads(blob)
    if type(items) is tuple:
        return [pickle.loads(item) for item in items]
    return items  # type: ignore[no-any-return]


def weight(item: Any) -> int:
    """Return about how many bytes an item has when it is pickled; 0 where it cannot be.

    >>> weight(7), weight(bytes(1000)) >= 1000
    (8, True)
    """
    kind = type(item)
    if kind in LIGHT:
        return 8
    if kind is bytes or kind is str:
        return len(item)
    try:
        if kind is Frozen:
            return len(item.data)
        sizes: list[int] = []
        # A large buffer is not copied for that.
        data = pickle.dumps(item, 5, buffer_callback=lambda buffer: sizes.append(buffer.raw().nbytes))
    except BaseException:
        return 0
    return len(data) + sum(sizes)


def is_heavy(item: Any, count: int, weigh: Callable[[Any], int]) -> bool:
    """Whether so many items like that one are more than a blob is to have.

    >>> is_heavy(bytes(5000), 10, weight), is_heavy(bytes(5000), 100, weight), is_heavy(5, 1_000_000, weight)
    (False, True, False)
    """
    try:
        return type(item) not in LIGHT and weigh(item) * count > BLOB_BYTES
    except Exception:
        # A class may say itself how it is told from others, and fail at that: who encodes the item tells of it.
        return False


def interval(usual: int, most: int) -> int:
    """Return how many items go by for each one that is weighed, on the way to a pipe that holds `most` bytes.

    >>> interval(64, most=16 * 1024 * 1024), interval(64, most=1_000_000)
    (64, 8)
    """
    return max(LEAST_INTERVAL, min(usual, usual * most // USUAL_PIPE_BYTES))


class ByteBudget:
    """How many bytes a sender may send before it asks for credit anew.

    Credit counts items.  A sender got credit for thousands while items were small.  If they become much heavier, that
    credit would overfill the pipe, which holds `most` bytes.

    >>> budget = ByteBudget(most=16 * 1024 * 1024)
    >>> budget.take(items=100, size=1000)
    >>> budget.renew(items=1000)
    >>> budget.take(items=3, size=3_000_000)
    >>> budget.spent
    True
    """

    __slots__ = ("_first", "_least", "_left", "_mean", "_most", "items_per_blob", "spent")

    def __init__(self, most: int) -> None:
        self._most = most
        self._first = max(1, min(FIRST_BUDGET_BYTES, most // 4))
        self._least = max(1, min(LEAST_BUDGET_BYTES, most // 64))
        self._mean = 0.0
        self._left = self._first
        # How many items make a blob, as far as the last ones tell; and whether nothing more may be sent.
        self.items_per_blob = 1 << 30
        self.spent = False

    def renew(self, items: int) -> None:
        expected = int(4 * items * self._mean) if self._mean else self._first
        self._left = max(self._least, min(expected, self._most))
        self.spent = False

    def take(self, items: int, size: int) -> None:
        """Take in what was sent: so many items, of `size` bytes together."""
        self._mean = size / items
        self._left -= size
        self.spent = self._left <= 0
        self.items_per_blob = max(1, BLOB_BYTES * items // size)


def copied(item: Any, stand_in: Callable[[BaseException], Any] | None = None) -> Any:
    """Return an item as it is behind a hop.

    `stand_in` makes of the reason what stands for an item that cannot be unpickled; None: that raises.
    """
    if type(item) in ATOMS:
        return item
    guard_connections()
    # In the same process each name means what it says, so what the script defines goes by its name.
    data = _pickled(item)
    try:
        return pickle.loads(data)
    except (Exception, SystemExit) as error:
        if stand_in is None:
            raise
        return stand_in(error)


class ReuseDetector:
    """Finds out whether a source or a job gives an object again, and so may have changed it.

    A generator that fills one buffer again and again is the usual case.  The first few objects tell.  While this is
    `undecided`, items are encoded one at a time.  When one `repeats`, each item is frozen from then on.

    >>> detector = ReuseDetector()
    >>> buffer = bytearray(8)
    >>> detector.observe(buffer)
    >>> detector.undecided, detector.repeats
    (True, False)
    >>> detector.observe(buffer)
    >>> detector.undecided, detector.repeats
    (False, True)
    """

    __slots__ = ("_first", "_known", "_weigh", "repeats", "undecided")

    def __init__(self, weigh: Callable[[Any], int] = weight) -> None:
        self._weigh = weigh
        self._first: list[Callable[[], Any]] = []
        self._known = False
        self.undecided = False
        self.repeats = False

    def observe(self, item: Any) -> None:
        """Take in an item; those that cannot be changed tell nothing."""
        if self._known or type(item) in ATOMS:
            return
        self.repeats = any(item is each() for each in self._first)
        self._first.append(_watched(item))
        most = (
            OBJECTS_WATCHED
            if len(self._first) <= HEAVY_OBJECTS_WATCHED or self._weigh(item) < BLOB_BYTES
            else HEAVY_OBJECTS_WATCHED
        )
        self._known = self.repeats or len(self._first) > most
        self.undecided = not self._known
        if self._known:
            self._first.clear()


def _watched(item: Any) -> Callable[[], Any]:
    """Return a function that returns an item, as long as anybody else has it.

    What nobody has any more does not come again.  What lives in shared memory is passed on without a copy only if it is
    not kept here.
    """
    # One that has a finalizer may be saved by that, and come again, when nothing can be seen of it any more.
    if not hasattr(type(item), "__del__"):
        with contextlib.suppress(TypeError):
            return weakref.ref(item)
    return partial(_same, item)


def _same(item: Any) -> Any:
    return item


class Unpicklable(Exception):
    """An item could not be frozen; the reason is the `__cause__`."""

    def __init__(self, item: Any) -> None:
        super().__init__()
        self.item = item


class Frozen:
    """An item as it was when the job gave it: its pickle."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


def frozen(item: Any) -> Any:
    """Return what stands for an item until it is encoded, whatever the job does to it; raises Unpicklable."""
    if type(item) in ATOMS or type(item) is GeneratorType:
        return item
    guard_connections()
    try:
        return Frozen(dumps(item))
    except BaseException as error:
        raise Unpicklable(item) from error


class Blob:
    """The pickled items of one hop, as the broker keeps them: `data` is opaque, `items` counts what is in it."""

    __slots__ = ("data", "items")

    def __init__(self, data: Any, items: int) -> None:
        self.data = data
        self.items = items

    def __len__(self) -> int:
        return len(self.data)


def unpicklable(items: Sequence[Any]) -> tuple[int, BaseException] | None:
    """Return the index of the first item that cannot be pickled, with the reason; None where all can be."""
    for index, item in enumerate(items):
        try:
            dumps(item)
        except BaseException as error:
            return index, error
    return None
