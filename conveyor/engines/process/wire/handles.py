"""Locks, queues, shared values and connections of `multiprocessing`, and sockets, which pickle refuses or copies.

Jobs carry them to new interpreters as the arguments of a `Process` do.  The pickle of a job has a place instead of each
descriptor.  The descriptors are inherited: by the broker from the caller, and by each worker from the broker.

Law: of the program's own pickles nothing changes.  Items that hold one are refused.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import gc
import io
import os
import pickle
import sys
from collections.abc import Callable
from multiprocessing import context, reduction
from types import FrameType, FunctionType, ModuleType

from conveyor._lean.typing import Any
from conveyor.engines.process.wire import by_value
from conveyor.stages.processor import Processor, overrides

_MODULE = "multiprocessing.connection"
_guarded = False
# How `multiprocessing` pickles what pickle refuses, or would copy.
_REDUCERS = ("reduce_arena", "reduce_connection", "reduce_ctype", "_reduce_socket")
_SEMAPHORES = ("Lock", "RLock", "Semaphore", "BoundedSemaphore")
# Where all is defined that it hands over to processes.
_MODULES = {f"multiprocessing.{name}" for name in ("connection", "queues", "sharedctypes", "synchronize")}


class MadeForFork(RuntimeError):
    """A semaphore of `multiprocessing` has no name by which a new interpreter could find it."""

    remedy = 'multiprocessing.get_context("spawn").Lock(), say'


# Those to which the job that this process is loading refers.
_at_hand: Handles | None = None


class _Place:
    """The place of a descriptor among the handles of a session: it stands for the descriptor in a pickle."""

    def __init__(self, place: int) -> None:
        self._place = place

    def detach(self) -> int:
        """Return a descriptor of the process that loads the job."""
        if _at_hand is None:
            raise RuntimeError("the descriptors of a job are inherited by its worker alone")
        return _at_hand.duplicate(self._place)


class Handles:
    """The descriptors that jobs refer to: the caller's copies, or those that a broker or worker inherited.

    While `dumps` is at it, `multiprocessing` takes this for a process that is being started.
    """

    # What `multiprocessing` puts into a pickle for a place.
    DupFd = _Place

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors
        # Whether a job has asked for any.
        self.were_needed = False

    def __reduce__(self) -> Any:
        return _inherited, ([reduction.DupFd(each) for each in self._descriptors],)

    def dumps(self, job: Any, script_by_value: bool = False) -> bytes:
        """Return the pickle of a job, and keep copies of the descriptors that it refers to."""
        before = context.get_spawning_popen()
        kept = len(self._descriptors)
        if os.name == "posix":
            context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            if script_by_value:
                return by_value.dumps(job, _reducers())
            file = io.BytesIO()
            pickler = pickle.Pickler(file, 5)
            pickler.dispatch_table = {**copyreg.dispatch_table, **_reducers()}
            pickler.dump(job)
            return file.getvalue()
        except BaseException:
            self._close(kept)
            raise
        finally:
            context.set_spawning_popen(before)

    def loads(self, pickled: bytes) -> Any:
        """Return the job of a pickle; each object in it owns a new descriptor."""
        global _at_hand
        _at_hand = self
        try:
            return pickle.loads(pickled)
        finally:
            _at_hand = None

    def duplicate_for_child(self, descriptor: int) -> int:
        """Keep a copy of a descriptor, as its owner may close it; return its place."""
        self._descriptors.append(os.dup(descriptor))
        self.were_needed = True
        return len(self._descriptors) - 1

    def duplicate(self, place: int) -> int:
        """Return a new descriptor, of what has that place."""
        return os.dup(self._descriptors[place])

    def close(self) -> None:
        """Close all that is kept."""
        self._close(0)

    def _close(self, first: int) -> None:
        while len(self._descriptors) > first:
            os.close(self._descriptors.pop())


class CallerHandles(Handles):
    """The caller's: whatever breaks off a start, they are closed when they are dropped."""

    def __del__(self) -> None:
        self.close()


def _inherited(duplicates: list[Any]) -> Handles:
    """Return, in a new interpreter, the handles that it was started with."""
    return Handles([each.detach() for each in duplicates])


def _reducers() -> dict[type, Callable[[Any], Any]]:
    """Return how to pickle what jobs may hand over, by its type."""
    known: dict[type, Any] = reduction.ForkingPickler(io.BytesIO()).dispatch_table
    found = {
        kind: functools.partial(_reduced_ctype, reduce) if reduce.__name__ == "reduce_ctype" else reduce
        for kind, reduce in known.items()
        # Libraries add their own, which may count who has something: a job may be loaded many times.
        if getattr(reduce, "__name__", "") in _REDUCERS and reduce.__module__.startswith("multiprocessing.")
    }
    synchronize = sys.modules.get("multiprocessing.synchronize")
    if synchronize is not None:
        found.update((getattr(synchronize, name), _reduced_semaphore) for name in _SEMAPHORES)
    return found if os.name == "posix" else {}


def _reduced_ctype(reduce: Callable[[Any], Any], value: Any) -> Any:
    """Reduce a value of ctypes: what is in shared memory stays there, and any other is copied."""
    return reduce(value) if hasattr(value, "_wrapper") else value.__reduce_ex__(5)


def _reduced_semaphore(semaphore: Any) -> Any:
    """Reduce a semaphore or lock, unless no other process could find it: some versions would crash there."""
    if semaphore._semlock.name is None:
        raise MadeForFork(
            f"it has a SemLock ({type(semaphore).__name__}) that was created in a fork context of multiprocessing, and "
            "a new interpreter cannot find it"
        )
    return semaphore.__reduce_ex__(5)


def shared_in(job: Any) -> dict[int, Any]:
    """Return the memo with which `copy.deepcopy` leaves alone what this process and the copy of a job share."""
    reducers = _reducers()
    shared: dict[int, Any] = {}
    known: set[int] = set()
    waiting = [job]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if id(value) in known or issubclass(kind, type | ModuleType | FunctionType):
            continue
        known.add(id(value))
        if any(base.__module__ in _MODULES or base in reducers for base in kind.__mro__):
            shared[id(value)] = value
        else:
            waiting += gc.get_referents(value)
    return shared


def job_copy(processor: Processor[Any, Any]) -> Processor[Any, Any]:
    """Return a Processor for one worker of this process: what it has on `self` begins anew with each.

    A plain callable that cannot be copied, such as a method of a client, is shared by all workers.
    """
    try:
        return copy.deepcopy(processor, shared_in(processor))
    except Exception:
        if overrides(processor, "process") or processor.job is None:
            raise
        return copy.copy(processor)


def guard_connections() -> None:
    """Have the engines refuse to pickle or copy a connection, once there can be any in this process."""
    global _guarded
    module = sys.modules.get(_MODULE)
    if _guarded or module is None:
        return
    for name in ("Connection", "PipeConnection"):
        kind = getattr(module, name, None)
        # A program that has a way of its own to pickle them keeps it.
        if kind is not None and kind not in copyreg.dispatch_table:
            copyreg.pickle(kind, _reduced)
            _guarded = True


def _reduced(connection: Any) -> Any:
    """Reduce a connection as ever, except where an engine asks for it; `multiprocessing` has another way."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _package(frame) in ("copy", "cloudpickle"):
        frame = frame.f_back
    if not frame.f_globals.get("__name__", "").startswith("conveyor.engines."):
        return object.__reduce_ex__(connection, 4)
    raise TypeError(
        f"a {type(connection).__name__} of multiprocessing is a number of this process, which in another stands for "
        "something else: send what comes through it, or give it to the job that uses it"
    )


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
