"""Starting a process: forked from here, or as a fresh interpreter, with nothing of the program's state disturbed.

Law: starting one never waits for it.  What it is told at its start lies in a file without a name, and the pipe carries
no more than where to find that: a process that dies while it starts leaves nobody waiting for it to read.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from multiprocessing import context
from operator import itemgetter

from conveyor._lean.typing import Any
from conveyor.engines.process.system.finalisation import finalizers_kept
from conveyor.engines.process.system.inherited_signals import signals_of_the_program_held, start_resource_tracker

FORK, FORKSERVER, SPAWN = "fork", "forkserver", "spawn"
PREFIX = "conveyor-"
# With this code a process ends that was to become a broker or a worker, and found itself importing a script that
# starts a pipeline.
UNGUARDED = 97
# What `multiprocessing` tells a new process of the script: it imports the script where one of them is there.
_MAIN = ("init_main_from_name", "init_main_from_path")


class FreshProcess(context.SpawnProcess):
    """A process of `multiprocessing` that is a new interpreter; `import_main`: it imports the script as it starts."""

    def __init__(self, *, import_main: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.import_main = import_main

    @staticmethod
    def _Popen(process: Any) -> Any:
        if os.name != "posix":
            return context.SpawnProcess._Popen(process)
        return _launched(process)


def process_of(method: str, import_main: bool, **arguments: Any) -> Any:
    """Return a process to be started: forked from here, or a fresh interpreter; `arguments` are those of `Process`."""
    if method == FORK:
        forking: Any = multiprocessing.get_context(FORK)
        return forking.Process(**arguments)
    return FreshProcess(import_main=import_main, **arguments)


class _Evaluated:
    """Stands in a pickle for what a call returns when the pickle is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@contextlib.contextmanager
def _nameless_file() -> Iterator[Any]:
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("conveyor-start"), "r+b") as file:
            yield file
        return
    # It takes long to import.
    import tempfile

    with tempfile.TemporaryFile() as file:
        yield file


def _pipe(descriptors: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    descriptors += ends
    return ends


def _close(*descriptors: int) -> None:
    for each in descriptors:
        os.close(each)


def _launched(process: Any) -> Any:
    """Return the `Popen` of a process that has been started."""
    # Only who starts one needs it, and it takes a while to import.
    from multiprocessing import popen_spawn_posix, reduction, resource_tracker, spawn, util

    # What the types say of it is not so.
    _exec: Any = util.spawnv_passfds

    class Popen(popen_spawn_posix.Popen):
        _fds: list[int]

        def _launch(self, process_obj: Any) -> None:
            tracker: Any = resource_tracker.getfd()
            self._fds.append(tracker)
            descriptors: list[int] = []
            with _nameless_file() as file:
                place = self.duplicate_for_child(file.fileno())
                message = self._written(process_obj, file, place)
                try:
                    # Whoever holds the far end of the first pipe sees that the process has ended; and the process sees
                    # by the second that this one has.
                    sentinel, ended = _pipe(descriptors)
                    self.sentinel = sentinel
                    read, write = _pipe(descriptors)
                    self._fds += [read, ended]
                    command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=read)
                    self.pid = _exec(spawn.get_executable(), command, self._fds)
                    # It fits into the pipe, so this waits for nobody.  This process still has the reading end, so no
                    # signal comes where the new process is dead already.
                    os.write(write, message)
                    for each in (read, ended):
                        descriptors.remove(each)
                        os.close(each)
                finally:
                    self.finalizer = util.Finalize(self, _close, descriptors)

        def _written(self, process_obj: Any, file: Any, place: int) -> bytes:
            """Write to the file what the process is told; return what tells it to read that there."""
            told = spawn.get_preparation_data(process_obj.name)
            if not process_obj.import_main:
                for key in _MAIN:
                    told.pop(key, None)
            parts = []
            context.set_spawning_popen(self)
            try:
                for each in (told, process_obj):
                    start = file.tell()
                    reduction.dump(each, file)
                    read = _Evaluated(os.pread, place, file.tell() - start, start)
                    parts.append(_Evaluated(pickle.loads, read))
            finally:
                context.set_spawning_popen(None)
            file.flush()
            # The process closes the file when it has read both.
            parts[1] = _Evaluated(itemgetter(0), (parts[1], _Evaluated(os.close, place)))
            return b"".join(map(pickle.dumps, parts))

    return Popen(process)


# To set a filter takes time at each fork, and earlier versions say nothing that it would have to ignore.
_WARNS_OF_FORKS: bool = sys.version_info >= (3, 12)


@contextlib.contextmanager
def fork_warning_ignored() -> Iterator[None]:
    """Have Python say nothing of a fork beside other threads; all else it says, as the child keeps these filters."""
    if not _WARNS_OF_FORKS:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded, use of", DeprecationWarning)
        yield


@contextlib.contextmanager
def signals_held(method: str) -> Iterator[None]:
    """Keep signals of the program back while a process is started, which has no handlers of its own yet.

    Its finalizers are kept back, too, and its choice of a default start method.
    """
    if method == SPAWN and os.name == "posix":
        # Else it would be started within, and let signals through.
        start_resource_tracker()
    with signals_of_the_program_held(), finalizers_kept(), default_method_left_open():
        yield


@contextlib.contextmanager
def default_method_left_open() -> Iterator[None]:
    """Let the program still choose its own default start method after the block.

    To start a process with "spawn" asks for that default, and so settles it.
    """
    settled: str | None = multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        if settled is None:
            multiprocessing.set_start_method(None, force=True)
