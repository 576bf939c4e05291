"""The end of a worker or a broker: what came into being there is finalised, what came with a fork is not.

Law: a new interpreter finalises all that it has at its end, a forked process ends without.  So a forked worker flushes
the files that its job opened, and runs the job's finalizers.  Objects of the parent are the parent's: no child
finalises them, or writes what they had in a buffer.  A new interpreter that has nothing to finalise leaves at once, as
the caller waits for its end.
"""

from __future__ import annotations

import atexit
import contextlib
import copyreg
import gc
import io
import multiprocessing
import multiprocessing.util
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType, MethodType

from conveyor._lean.typing import Any

_NOTHING = object()
# How far from the job, in references, what is its own is looked for.
_DEPTH = 3
# Set in the flags of a class that was made when the program ran.
_WRITTEN_IN_PYTHON = 1 << 9

# What is never to be finalised in this process.
_kept: list[Any] = []
# The threads that fork one of our processes at this moment.
_forking: set[int] = set()
# Among the objects that came with the fork as long as nobody has mixed them with those made since.
_old = [object()]


def forked() -> bool:
    """Whether this process of `multiprocessing` was forked."""
    return multiprocessing.get_start_method(allow_none=True) == "fork"


@contextlib.contextmanager
def finalizers_kept() -> Iterator[None]:
    """Have a process that is forked in the block, by this thread, run no `weakref.finalize` that it came with."""
    _forking.add(threading.get_ident())
    try:
        yield
    finally:
        _forking.discard(threading.get_ident())


def _set_finalizers_aside() -> None:
    """At once in the new process: since Python 3.13 `multiprocessing` drops there what `atexit` refers to."""
    if threading.get_ident() in _forking:
        finalize: Any = weakref.finalize
        _kept.append(finalize._registry)
        finalize._registry = {}
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_set_finalizers_aside)


class Inherited:
    """A job that came with a fork, as it was then: what it and its parts referred to."""

    def __init__(self, job: Any) -> None:
        self._dictionaries: list[tuple[dict[str, Any], dict[str, Any]]] = []
        # Slots of objects, and the contents of closure cells, which are an attribute of the cell.
        self._attributes: list[tuple[Any, str, Any]] = []
        self._seen: list[Any] = []
        self._remember(job, _DEPTH)
        _kept.append(self)

    def _remember(self, each: Any, depth: int) -> None:
        kind = type(each)
        if depth == 0 or issubclass(kind, type) or any(each is other for other in self._seen):
            return
        self._seen.append(each)
        parts: list[Any] = []
        if kind is FunctionType:
            parts += [self._remember_attribute(cell, "cell_contents") for cell in each.__closure__ or ()]
        elif kind is MethodType:
            parts += each.__self__, each.__func__
        elif kind is partial:
            parts += each.func, *each.args, *each.keywords.values()
        elif kind.__flags__ & _WRITTEN_IN_PYTHON:
            state = _attribute(each, "__dict__")
            if type(state) is dict:
                self._dictionaries.append((state, state.copy()))
                parts += state.values()
            if any("__slots__" in vars(base) for base in kind.__mro__):
                slots: Any = copyreg
                parts += [self._remember_attribute(each, name) for name in slots._slotnames(kind)]
        for part in parts:
            if depth == _DEPTH or callable(part):
                self._remember(part, depth - 1)

    def _remember_attribute(self, each: Any, name: str) -> Any:
        self._attributes.append((each, name, _attribute(each, name)))
        return self._attributes[-1][2]

    @property
    def changed(self) -> bool:
        """Whether it refers to anything else by now."""
        return any(_attribute(each, name) is not value for each, name, value in self._attributes) or any(
            len(state) != len(before) or any(before.get(name, _NOTHING) is not value for name, value in state.items())
            for state, before in self._dictionaries
        )

    def restore(self) -> None:
        """Have the job refer to what it referred to then, and to nothing that was made since."""
        for each, name, value in self._attributes:
            with contextlib.suppress(AttributeError, TypeError):
                if value is _NOTHING:
                    object.__delattr__(each, name)
                else:
                    object.__setattr__(each, name, value)
        for state, before in self._dictionaries:
            state.clear()
            state.update(before)


def _attribute(each: Any, name: str) -> Any:
    """Return an attribute, without what the object's class might do when it is asked for."""
    try:
        return object.__getattribute__(each, name)
    except (AttributeError, ValueError):
        # A cell says so with the latter.
        return _NOTHING


def finalise(inherited: Inherited | None) -> None:
    """Finalise what this process owns; `inherited` is its job, unless that was made here."""
    if not forked():
        # The interpreter does it at its end, with all that it may look through.  But of a file that is part of a cycle
        # it closes the inner part first, and loses what the outer one has not written.
        write_buffers()
        gc.unfreeze()
        return
    # First whoever may still use it ends, as at the end of every process of `multiprocessing`.
    util: Any = multiprocessing.util
    util._exit_function()
    threads: Any = threading
    threads._shutdown()
    finalize: Any = weakref.finalize
    owned = _owned()
    if inherited is not None and not inherited.changed and not any(owned.values()) and not finalize._registry:
        return
    _flush(owned)
    del owned
    if inherited is not None:
        inherited.restore()
    gc.collect()
    finalize._exitfunc()
    # What modules, and objects that came with the fork, still refer to.
    left = _owned()
    for each in left[_FINALIZER]:
        _Dropped(partial(type(each).__del__, each))
    _flush(left)
    for file in left[_FILE]:
        _quietly(file.close)
    _flush(left)


# What has code of its own to run when it is dropped half way.
_SUSPENDED = (GeneratorType, CoroutineType, AsyncGeneratorType)
# Modules of the standard library whose objects are written in C, and may have something to do when they are dropped.
_DO_MORE = ("_dbm", "_gdbm", "_sqlite3", "_tkinter")


def leave() -> None:
    """End a new interpreter at once, with all that Python does at its end, where no object has anything to do then.

    Returns where that is not certain; then the interpreter takes itself apart, as ever.
    """
    if forked() or not hasattr(os, "register_at_fork") or any(map(_may_do_more, [*sys.modules])):
        return
    # The order is that of Python's own end; what has been done here is not done again there.
    util: Any = multiprocessing.util
    util._exit_function()
    threads: Any = threading
    threads._shutdown()
    callbacks: Any = atexit
    callbacks._run_exitfuncs()
    # Collects what is in cycles, as that end does.
    gc.collect()
    owned = _owned(everything=True)
    if owned[_FINALIZER] or owned[_FILE] or any(type(each) in _SUSPENDED for each in gc.get_objects()):
        return
    _flush(owned)
    util._flush_std_streams()
    os._exit(0)


def _may_do_more(name: str) -> bool:
    """Whether a module may have made objects, in C, that have something to do when they are dropped."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return name in _DO_MORE
    spec = vars(sys.modules[name]).get("__spec__") if type(sys.modules[name]) is type(sys) else None
    # The script itself has none.
    if spec is None:
        return name not in ("__main__", "__mp_main__")
    return not str(spec.origin).endswith((".py", ".pyc"))


# Kinds of objects, as far as they have something to do at their end.
_OTHER, _FINALIZER, _TEXT, _FILE, _BUFFER = range(5)


def _kind_of(kind: type) -> int:
    bases = kind.__mro__
    if io.TextIOWrapper in bases:
        return _TEXT
    if io.BufferedWriter in bases or io.BufferedRandom in bases or io.BufferedRWPair in bases:
        return _BUFFER
    if io.IOBase.__base__ in bases:
        # Written in Python (GzipFile, BZ2File), and what it keeps is written when it is closed.
        return _FILE if any(type(vars(base).get("close")) is FunctionType for base in bases) else _OTHER
    return _FINALIZER if any(type(vars(base).get("__del__")) is FunctionType for base in bases) else _OTHER


def _owned(everything: bool = False) -> dict[int, list[Any]]:
    """Return what was made here and has something to do at its end, by its kind; `everything` was made here."""
    kinds: dict[type, int] = {}
    found: dict[int, list[Any]] = {_OTHER: [], _FINALIZER: [], _TEXT: [], _FILE: [], _BUFFER: []}
    for each in gc.get_objects():
        if each is _old and not everything:
            # Somebody has thawed what came with the fork, so that it cannot be told from the rest.
            return {every: [] for every in found}
        kind = kinds.get(type(each))
        if kind is None:
            kind = kinds[type(each)] = _kind_of(type(each))
        if kind != _OTHER:
            found[kind].append(each)
    return found


def write_buffers() -> None:
    """Write what files that were opened here have in their buffers."""
    _flush(_owned())


def _flush(files: dict[int, list[Any]]) -> None:
    """Write what is in buffers, the outer ones first."""
    for kind in (_TEXT, _FILE, _BUFFER):
        for file in files[kind]:
            _quietly(file.flush)


class _Dropped:
    """Calls something when it is dropped, which is at once: Python says of an exception there that it is ignored."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __del__(self) -> None:
        self._call()


def _quietly(call: Callable[[], Any]) -> None:
    """Write what can be written, as Python does with a file that is dropped."""
    with contextlib.suppress(Exception):
        call()
