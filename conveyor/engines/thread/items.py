"""Items on their way from thread to thread: the objects themselves, and copies where two would have the same one.

Law: between two Processors of a chain the object itself goes on.  Of what several branches get, each branch but the
last to take an item gets a copy.  A copy is made before its receiver, or anybody else, may change the object.

Free-threaded builds: a `Blob` that several threads take from has a lock.  Any other blob has one taker at a time, to
whom the shell has handed it.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
import threading
from collections.abc import Generator, Sequence, Set
from itertools import islice

from conveyor._lean.typing import Any, cast
from conveyor.core.data.pieces import Piece, Weave, unnested, woven
from conveyor.engines.failures import message_of
from conveyor.engines.process.wire.codec import ATOMS, LIGHT
from conveyor.engines.process.wire.handles import guard_connections
from conveyor.graph.plan import Plan, ReplicateNode, SinkNode, StepNode

# How deep `size_of` looks into an object, at how many parts of each, and how many items of a list are weighed.
_DEPTH, _PARTS, _WEIGHED = 3, 8, 8


class Blob:
    """Some items, as the core hands them about: `size` is about how many bytes they have.

    Each item is taken `takes` times at most: once, or by as many branches as can be.
    """

    __slots__ = ("_lock", "_taken", "items", "size", "takes")

    def __init__(self, items: list[Any], size: int, takes: int) -> None:
        self.items = items
        self.size = size
        self.takes = takes
        if takes > 1:
            self._lock = threading.Lock()
            self._taken = [0] * len(items)

    def __len__(self) -> int:
        return self.size

    def take(self, index: int) -> Any:
        """Return an item, for one of its takers alone: the item itself for the last one, and a copy for others."""
        # The last taker waits here while another one copies: it may change the item at once.
        with self._lock:
            self._taken[index] += 1
            if self._taken[index] == self.takes:
                item, self.items[index] = self.items[index], None
                return item
            return copied(self.items[index])

    def copy(self, index: int) -> Any:
        """Return a copy of an item, for a taker that may want it once more."""
        if self.takes == 1:
            return copied(self.items[index])
        with self._lock:
            return copied(self.items[index])


class _Reference:
    """An item of a blob that has several takers, until it is known that this one takes it."""

    __slots__ = ("blob", "index")

    def __init__(self, blob: Blob, index: int) -> None:
        self.blob = blob
        self.index = index


class _Row(tuple[Any, ...]):
    """A row of a zip, in which references may stand."""

    __slots__ = ()


def gathered(pieces: Sequence[Piece]) -> tuple[list[Any], bool]:
    """Return the items of pieces in their order, and whether some are references, or rows of some."""
    result: tuple[list[Any], bool] = unnested(_gathered(pieces))
    return result


def _gathered(pieces: Sequence[Piece]) -> Generator[Any, Any, tuple[list[Any], bool]]:
    if len(pieces) == 1:
        source, start, stop = pieces[0]
        if type(source) is Blob and source.takes == 1:
            items = source.items
            return items if stop - start == len(items) else items[start:stop], False
    found: list[Any] = []
    refers = False
    for source, start, stop in pieces:
        if type(source) is Weave:
            lanes = []
            for lane in source.lanes:
                lanes.append((yield _gathered(lane)))
            rows = woven([items for items, _ in lanes], source.group_sizes, source.zipped)[start:stop]
            if any(each for _, each in lanes):
                refers = True
                rows = list(map(_Row, cast(Any, rows))) if source.zipped else rows
            found += rows
        elif source.takes > 1:
            refers = True
            found += [_Reference(source, index) for index in range(start, stop)]
        else:
            found += source.items[start:stop]
    return found, refers


def blobs_of(pieces: Sequence[Piece]) -> list[Blob]:
    """Return the blobs in which the items of pieces stand."""
    blobs: list[Blob] = []
    todo = [source for source, _, _ in pieces]
    while todo:
        source = todo.pop()
        if type(source) is Weave:
            todo += [inner for lane in source.lanes for inner, _, _ in lane]
        else:
            blobs.append(source)
    return blobs


def taken(item: Any, again: bool = False) -> Any:
    """Return what stands behind an item that was gathered; a copy of all of it where it may be wanted `again`.

    Raises TypeError where it has to be copied and cannot be.
    """
    kind = type(item)
    if kind is _Row:
        row: tuple[Any, ...] = unnested(_taken_row(item, again))
        return row
    if kind is _Reference:
        return item.blob.copy(item.index) if again else item.blob.take(item.index)
    return copied(item) if again else item


def _taken_row(row: _Row, again: bool) -> Generator[Any, Any, tuple[Any, ...]]:
    items = []
    for each in row:
        items.append((yield _taken_row(each, again)) if type(each) is _Row else taken(each, again))
    return tuple(items)


def copied(item: Any) -> Any:
    """Return an item that nobody else has; the item itself where nobody can change it.

    Raises TypeError where it cannot be copied.

    >>> row = [1, 2]
    >>> copied(row) == row, copied(row) is row
    (True, False)
    """
    if type(item) in ATOMS or (type(item) is tuple and ATOMS.issuperset(map(type, item))):
        return item
    guard_connections()
    buffers: list[pickle.PickleBuffer] = []
    try:
        try:
            data = pickle.dumps(item, 5, buffer_callback=buffers.append)
            views = [buffer.raw() for buffer in buffers]
            # Each large buffer is copied once, and can be written to where it could be.
            return pickle.loads(data, buffers=[bytes(v) if v.readonly else bytearray(v) for v in views])
        except Exception:
            # Lambdas, and what a script has defined in a function, can be copied all the same.
            return copy.deepcopy(item)
        finally:
            for buffer in buffers:
                buffer.release()
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and threading.current_thread() is threading.main_thread():
            # A signal handler may be ending the program.
            raise
        raise TypeError(
            f"an item of type {type(item).__name__} cannot be copied ({type(error).__name__}: {message_of(error)}), "
            "and this Processor needs a copy of its own: it stands on a branch of a ReplicatingFork, or has "
            "`retries` or `on_error`. Remedy: pass what the item is made from (a path, a key), and make it in the job."
        ) from error


def snapshot(item: Any) -> Any:
    """Return an item as it is now, whatever its giver does to it; the item itself where it cannot be copied."""
    with contextlib.suppress(TypeError):
        return copied(item)
    return item


def _references(items: Sequence[Any], index: int) -> int:
    return sys.getrefcount(items[index])


# As many as an object has that only stands in a list; 0 where the number says nothing, as threads count apart.
_ALONE = _references([object()], 0) if getattr(sys, "_is_gil_enabled", lambda: True)() else 0


def is_alone(items: Sequence[Any], index: int) -> bool:
    """Whether nobody but this list has an item, so that nobody can change it; False where that is not known.

    >>> row = [1]
    >>> is_alone([row], 0)
    False
    """
    return _references(items, index) <= _ALONE


def without_twins(items: list[Any], kinds: Set[type]) -> list[Any]:
    """Return the items with copies of those that stand there more than once, so that none changes with another."""
    if ATOMS.issuperset(kinds) or len(set(map(id, items))) == len(items):
        return items
    known: set[int] = set()
    # Twins stay alive in `items`, so no number is used for two of them.
    return [snapshot(item) if id(item) in known or known.add(id(item)) else item for item in items]  # type: ignore[func-returns-value]


def size_of(item: Any, depth: int = _DEPTH) -> int:
    """Return about how many bytes an item has.

    >>> size_of(7), size_of(bytes(1000)), size_of([bytes(1000)] * 50) > 50_000
    (8, 1008, True)
    """
    kind = type(item)
    if kind in LIGHT:
        return 8
    if kind is bytes or kind is str:
        return 8 + len(item)
    try:
        size = getattr(item, "nbytes", None)
        if isinstance(size, int):
            return 8 + size
        size = sys.getsizeof(item)
        if not depth:
            return size
        if issubclass(kind, dict):
            return size + _parts_of(item, lambda key: size_of(key, 0) + size_of(item[key], depth - 1))
        if issubclass(kind, list | tuple | set | frozenset):
            return size + _parts_of(item, lambda each: size_of(each, depth - 1))
        fields = getattr(item, "__dict__", None)
        return size + size_of(fields, depth - 1) if type(fields) is dict else size
    except Exception:
        # Another thread may change it, or its class may say itself how large it is, and fail at that.
        return 8


def _parts_of(container: Any, size: Any) -> int:
    """Return the bytes of all parts of a container, as some of them tell."""
    count = len(container)
    looked = [size(part) for part in islice(container, _PARTS)]
    return sum(looked) * count // len(looked) if looked else 0


def size_of_all(items: Sequence[Any], kinds: Set[type]) -> int:
    """Return about how many bytes items of these types have together, of which there is at least one."""
    if LIGHT.issuperset(kinds):
        return 8 * len(items)
    step = -(-len(items) // _WEIGHED)
    weighed = [size_of(items[index]) for index in range(0, len(items), step)]
    return sum(weighed) * len(items) // len(weighed)


def takes_by_node(plan: Plan) -> list[int]:
    """Return for each node of a plan how many takers an item has at most that is sent there."""
    takes = [1] * len(plan.nodes)
    for node in reversed(plan.nodes):
        if isinstance(node, StepNode | SinkNode):
            continue
        behind = [takes[target.node] for target in node.outputs]
        takes[node.index] = sum(behind) if isinstance(node, ReplicateNode) else max(behind)
    return takes
