"""The `shared` objects of a pipeline: what all workers read and nobody changes.

Law: each object is pickled once, when the pipeline is opened, with its buffers out of band.  Its buffers are read-only
wherever they are read.  Nobody copies them: they stay where they are in the caller, or lie in one file without a name
that each new interpreter maps.  A worker rebuilds an object when its job first asks for it.

A forked worker, and a thread, has the objects of the caller anyway.  An object whose pickle is large beside its
buffers, or that cannot be pickled, it gets as it is.
"""

from __future__ import annotations

import copyreg
import io
import mmap
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import reduction

from conveyor._lean.typing import Any
from conveyor.engines.process.shm.region import rounded_up, write_all
from conveyor.engines.process.wire import by_value
from conveyor.engines.process.wire.handles import Handles

# A pickle may have so many bytes beside its buffers, and this share of theirs, for an object to be rebuilt.
MOST_PICKLED_BYTES, MOST_PICKLED_SHARE = 1 << 20, 0.25
# Compiled libraries like the elements of an array to begin at a multiple of this.
ALIGNMENT_BYTES = 64
# Where in the file a pickle or a buffer begins, and its bytes.
Extent = tuple[int, int]


class SharedObjects(Mapping[str, Any]):
    """The objects by their names; `pickled` has the pickle and the buffers of those that are rebuilt."""

    def __init__(
        self, names: Iterable[str], ready: dict[str, Any], pickled: Mapping[str, tuple[Any, list[Any]]]
    ) -> None:
        self._names = tuple(names)
        self._ready = ready
        self._pickled = pickled
        # Threads of one process have the same objects.
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Any:
        try:
            return self._ready[name]
        except KeyError:
            return self._rebuilt(name)

    def _rebuilt(self, name: str) -> Any:
        if name not in self._pickled:
            there = ", ".join(map(repr, self._names)) or "none"
            raise KeyError(f"the pipeline has no shared object {name!r}; there are: {there}")
        with self._lock:
            if name not in self._ready:
                data, buffers = self._pickled[name]
                self._ready[name] = _read_only(pickle.loads(data, buffers=buffers))
            return self._ready[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"SharedObjects({', '.join(map(repr, self._names))})"


def _read_only(value: Any) -> Any:
    """Return an array of numpy as a view that cannot be written; anything else as it is."""
    if getattr(getattr(value, "flags", None), "writeable", False) is True and hasattr(value, "setflags"):
        value = value.view()
        value.setflags(write=False)
    return value


def _pickle(value: Any, file: Any, keep: Callable[[pickle.PickleBuffer], bool] | None) -> None:
    """Write the pickle of an object without its buffers, which `keep` gets; None: with them."""
    pickler = pickle.Pickler(file, 5, buffer_callback=keep)
    if keep is not None and (numpy := sys.modules.get("numpy")) is not None:
        # It pickles a part of an array that is not contiguous in band, and the copy could be written.
        pickler.dispatch_table = {**copyreg.dispatch_table, numpy.ndarray: _reduced_array}
    pickler.dump(value)


def _reduced_array(array: Any) -> Any:
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = array.copy()
    return array.__reduce_ex__(5)


# In this process and those that are forked from it


class _TooLarge(Exception):
    pass


class _Bounded(io.BytesIO):
    """A file that takes no more bytes than belong to so many bytes of `buffers`."""

    def __init__(self, buffers: list[memoryview]) -> None:
        super().__init__()
        self._buffers = buffers

    def write(self, data: Any) -> int:
        written = super().write(data)
        if self.tell() > MOST_PICKLED_BYTES + MOST_PICKLED_SHARE * sum(each.nbytes for each in self._buffers):
            raise _TooLarge
        return written


def shared_here(objects: Mapping[str, Any]) -> SharedObjects:
    """Return the objects for workers that share the memory of this process, or have a copy of it."""
    ready: dict[str, Any] = {}
    pickled: dict[str, tuple[Any, list[Any]]] = {}
    for name, value in objects.items():
        buffers: list[memoryview] = []
        file = _Bounded(buffers)
        try:
            _pickle(value, file, _into(buffers))
        except Exception:
            ready[name] = _read_only(value)
        else:
            pickled[name] = file.getvalue(), [each.toreadonly() for each in buffers]
    return SharedObjects(objects, ready, pickled)


def _into(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    def keep(buffer: pickle.PickleBuffer) -> bool:
        buffers.append(buffer.raw())
        return False

    return keep


# In new interpreters


class SharedWriter:
    """Writes objects to the file; while the caller checks whether they can be pickled, it stands for `Handles`."""

    def __init__(self) -> None:
        # Elsewhere a file cannot be inherited, and each worker has a copy.
        self._descriptor = nameless_file() if os.name == "posix" else -1
        self._end = 0
        self._buffers: list[memoryview] = []
        self._written: dict[str, tuple[Any, list[Extent]]] = {}

    def dumps(self, value: Any, script_by_value: bool = False) -> bytes:
        """Return the pickle of an object without its buffers; `add` is to follow."""
        self._forget_buffers()
        keep = _into(self._buffers) if os.name == "posix" else None
        if script_by_value:
            return by_value.dumps(value, buffer_callback=keep)
        file = io.BytesIO()
        _pickle(value, file, keep)
        return file.getvalue()

    def add(self, name: str, pickled: bytes) -> None:
        """Write an object of which `dumps` has just returned the pickle; raises OSError where there is no room."""
        if os.name != "posix":
            self._written[name] = pickled, []
            return
        self._written[name] = self._write(memoryview(pickled)), list(map(self._write, self._buffers))
        self._forget_buffers()

    def _write(self, view: memoryview) -> Extent:
        start = rounded_up(self._end, ALIGNMENT_BYTES)
        write_all(self._descriptor, view, start)
        self._end = start + view.nbytes
        return start, view.nbytes

    def sent(self, handles: Handles) -> bytes:
        """Return what a worker gets, which refers to the file; `handles` keep that for all workers."""
        needed = handles.were_needed
        try:
            return handles.dumps(self)
        finally:
            # It is no descriptor that a job asked for.
            handles.were_needed = needed

    def __reduce__(self) -> Any:
        duplicate = None if self._descriptor < 0 else reduction.DupFd(self._descriptor)
        return _mapped, (duplicate, self._end, self._written)

    def _forget_buffers(self) -> None:
        # Where an exception keeps this object in a cycle, the collector must find no view of what is in it too.
        for view in self._buffers:
            view.release()
        self._buffers = []

    def close(self) -> None:
        self._forget_buffers()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def nameless_file() -> int:
    """Return the descriptor of a new, empty file."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("conveyor-shared", os.MFD_CLOEXEC)
    # It takes long to import.
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _mapped(duplicate: Any, size: int, written: dict[str, tuple[Any, list[Extent]]]) -> SharedObjects:
    """Return the objects of the file, in a worker."""
    if duplicate is None:
        return SharedObjects(written, {}, written)
    descriptor = duplicate.detach()
    try:
        # Without a byte there is no object.
        whole = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b"")
    finally:
        os.close(descriptor)

    def part(extent: Extent) -> memoryview:
        return whole[extent[0] : sum(extent)]

    pickled = {name: (part(data), list(map(part, buffers))) for name, (data, buffers) in written.items()}
    return SharedObjects(written, {}, pickled)
