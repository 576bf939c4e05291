"""The threads of this process that may hold a lock while it forks.

A forked child has only the thread that forked.  A lock that another thread held at that moment stays locked in the
child.  A pool of threads that compiled code started has no threads there.  Whoever waits for either waits for ever.

Law: looks, and changes nothing.  A thread counts unless it is known to be harmless.  What a thread does just now
matters for the main thread and for executors only; these get a moment to begin to wait.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from types import FrameType

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor._system.loop_threads import loop_threads

# Packages whose threads hold no lock that a job could want: the class of a thread tells, or what it calls.  Conveyor's
# own source threads wait between two items while this process forks (`engines/process/caller/fork_gate.py`).
HARMLESS_PACKAGES = frozenset(
    {"IPython", "_pydev_bundle", "_pydevd_bundle", "conveyor", "debugpy", "ipykernel", "pydevd", "rich", "tqdm"}
)
# The main thread is harmless while it waits in one of these functions, for another thread or for events.
WAITING_FUNCTIONS = frozenset(
    {
        ("conveyor.engines.thread.port", "ready"),
        ("conveyor.engines.thread.port", "receive"),
        ("multiprocessing.connection", "_recv"),
        ("multiprocessing.popen_fork", "poll"),
        ("selectors", "select"),
        ("threading", "_wait_for_tstate_lock"),
        ("threading", "join"),
        ("threading", "wait"),
    }
)
# So it is in these modules, where it waits for results of another pipeline.
WAITING_MODULES = (
    "conveyor.engines.process.system.waiting",
    "conveyor.engines.process.wire.pipe",
    "conveyor.engines.process.wire.queue",
)
# The threads of these modules are harmless while they wait for work in these functions.
POOL_LOOPS = {
    "anyio._backends._asyncio": "run",
    "concurrent.futures.thread": "_worker",
    "conveyor.engines.process.worker.call_threads": "_serve",
    "conveyor.engines.thread.worker": "_serve_all",
}
# Native threads of these names hold no lock over a fork.  ZeroMQ's serve sockets of this process alone, and jemalloc
# takes its locks itself before a fork.
HARMLESS_NATIVE_NAMES = ("ZMQbg/", "jemalloc_bg")
# OpenBLAS, and LLVM's and Intel's OpenMP, end or renew their threads around a fork (`pthread_atfork`); GNU's does not.
FORK_SAFE_LIBRARIES = ("libiomp", "libomp", "libmkl", "libblis")
# How long a thread may take to begin to wait, or to end; and how often this one looks.
MAX_SETTLING_SECONDS = 0.02
LOOK_INTERVAL_SECONDS = 0.001


class ForeignThreads(NamedTuple):
    """The names of Python's threads, and the native threads in words."""

    python: tuple[str, ...] = ()
    native: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.python or self.native)

    def __str__(self) -> str:
        words = [*map(repr, self.python[:5])]
        if len(self.python) > 5:
            words.append(f"{len(self.python) - 5} more")
        return ", ".join([*words, *self.native])


def foreign_threads() -> ForeignThreads:
    """Return the threads beside the one that asks, without those known to be harmless."""
    deadline = time.monotonic() + MAX_SETTLING_SECONDS
    while True:
        settled, found = _look()
        if settled or not found or time.monotonic() > deadline:
            return found
        time.sleep(LOOK_INTERVAL_SECONDS)


def _look() -> tuple[bool, ForeignThreads]:
    """Return what is found now, and whether that will last: a thread may be about to wait, or to end."""
    tasks = native_tasks()
    threads = [thread for thread in threading.enumerate() if thread.ident != threading.get_ident()]
    if not threads and len(tasks) <= 1:
        return True, ForeignThreads()
    frames = sys._current_frames()
    # This frame would refer to itself, and so keep the frames of other threads, with all that is in them.
    del frames[threading.get_ident()]
    lasting, passing = [], []
    loops = loop_threads()
    for thread in threads:
        # The loop that awaits this waits during the fork.
        if is_harmless(thread) or thread.ident in loops:
            continue
        frame = frames.get(thread.ident or 0)
        if (pool := POOL_LOOPS.get(_module_of(thread))) is not None:
            if not _is_idle(frame, pool):
                passing.append(thread.name)
        elif thread is not threading.main_thread():
            lasting.append(thread.name)
        elif not _is_waiting(frame):
            passing.append(thread.name)
    known = {threading.get_native_id(), *(thread.native_id for thread in threading.enumerate())}
    names = [name for task, name in tasks.items() if task not in known]
    named, unnamed = pools_of(names)
    native = (*named, *(_unnamed_pools(unnamed) if unnamed else ()))
    settled = bool(lasting or named) or not (passing or native)
    return settled, ForeignThreads((*lasting, *passing), native)


def _module_of(thread: threading.Thread) -> str:
    """Return the module of a thread's class, else of what it calls."""
    kind = type(thread)
    if kind.__module__ != "threading":
        return kind.__module__
    target = getattr(thread, "_target", None)
    owner = getattr(target, "__self__", None)
    module = getattr(target, "__module__", None) if owner is None else type(owner).__module__
    return module if isinstance(module, str) else ""


def is_harmless(thread: threading.Thread) -> bool:
    """Whether a thread is known to hold no lock that a child could want, whatever it does."""
    module = _module_of(thread)
    if thread.name.startswith("conveyor-"):
        # What a source thread calls is a method of a context, whose module says nothing.
        return True
    # Workers of the thread engine run jobs.  `multiprocessing` prepares the threads of its queues for forks itself.
    if module in POOL_LOOPS:
        return False
    return module.partition(".")[0] in HARMLESS_PACKAGES or module == "multiprocessing.queues"


def _is_waiting(frame: FrameType | None) -> bool:
    """Whether a thread waits, by its innermost frame."""
    if frame is None:
        return True
    module = frame.f_globals.get("__name__")
    return module in WAITING_MODULES or (module, frame.f_code.co_name) in WAITING_FUNCTIONS


def _is_idle(frame: FrameType | None, loop: str) -> bool:
    """Whether a thread is in the loop of its pool, and runs no work."""
    while frame is not None and (frame.f_globals.get("__name__") == "queue" or _is_waiting(frame)):
        frame = frame.f_back
    return frame is None or frame.f_code.co_name == loop


def native_tasks() -> dict[int, str]:
    """Return the names of the threads of this process by number; none where the system does not say."""
    tasks: dict[int, str] = {}
    try:
        numbers = os.listdir("/proc/self/task")
    except OSError:
        return tasks
    if len(numbers) == 1:
        return {int(numbers[0]): ""}
    for number in numbers:
        try:
            with open(f"/proc/self/task/{number}/comm", "rb") as file:
                tasks[int(number)] = file.read().decode(errors="replace").rstrip("\n")
        except OSError:
            # It has ended since.
            continue
    return tasks


def pools_of(names: Iterable[str]) -> tuple[tuple[str, ...], int]:
    """Return in words how many threads have each name, and how many have none of their own.

    >>> pools_of(["polars-0", "polars-1", "ZMQbg/IO/0", "python3"])
    (("2 native threads 'polars'",), 1)
    """
    inherited = {thread.name[:15] for thread in threading.enumerate()} | {_name_of_process()}
    pools: Counter[str] = Counter()
    unnamed = 0
    for name in names:
        if name.startswith(HARMLESS_NATIVE_NAMES):
            continue
        if name in inherited or name.startswith("python"):
            unnamed += 1
        else:
            pools[name.rstrip("0123456789").rstrip("-_/:") or name] += 1
    texts = (f"{count} native thread{'s' * (count > 1)} {name!r}" for name, count in pools.items())
    return tuple(texts), unnamed


def _name_of_process() -> str:
    try:
        with open("/proc/self/comm", "rb") as file:
            return file.read().decode(errors="replace").rstrip("\n")
    except OSError:
        return ""


def _unnamed_pools(count: int) -> tuple[str, ...]:
    """Describe `count` native threads without a name, except those that are safe over a fork."""
    libraries = _libraries()
    gnu = [path for path in libraries if os.path.basename(path).startswith("libgomp")]
    if not gnu and any(os.path.basename(path).startswith(FORK_SAFE_LIBRARIES) for path in libraries):
        return ()
    count -= sum(_openblas_threads(path) for path in libraries if "openblas" in os.path.basename(path))
    if count <= 0:
        return ()
    whose = f" of OpenMP ({', '.join(map(_short_path, gnu))})" if gnu else " of a compiled library"
    return (f"{count} native thread{'s' * (count > 1)}{whose}",)


def _short_path(path: str) -> str:
    """Return the end of a path, which says whose library it is.

    >>> _short_path("/usr/lib/python3/site-packages/scikit_learn.libs/libgomp-e985bcbb.so.1")
    'scikit_learn.libs/libgomp-e985bcbb.so.1'
    """
    return os.path.join(*path.split(os.sep)[-2:])


def _libraries() -> list[str]:
    """Return the paths of the shared libraries in this process."""
    try:
        with open("/proc/self/maps", "rb") as file:
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return sorted({line.split(maxsplit=5)[-1] for line in lines if ".so" in line})


def _openblas_threads(path: str) -> int:
    """Return how many threads a copy of OpenBLAS has beside those that call it; 0 where it does not say.

    As in `threadpoolctl`, the names are those that its builds give to `openblas_get_num_threads`.
    """
    import ctypes

    try:
        library: Any = ctypes.CDLL(path, mode=getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_NOW)
    except OSError:
        return 0
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            try:
                threads = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")()
                own = getattr(library, f"{prefix}openblas_get_parallel{suffix}")() == 1
            except AttributeError:
                continue
            return max(0, int(threads) - 1) if own else 0
    return 0
