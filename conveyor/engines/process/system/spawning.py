"""How a process is started: forked from here, or as a fresh interpreter, with the program's state left alone.

Law: a start never waits for the new process.  What that process reads first lies in a file without a name, and the pipe
carries only where to find it.  So a process that dies while it starts leaves nobody waiting for it to read.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Iterator
from multiprocessing import context
from operator import itemgetter

from conveyor._lean.typing import Any
from conveyor.engines.process.system.child_setup import signals_of_the_program_held, start_resource_tracker
from conveyor.engines.process.system.finalisation import finalizers_kept

FORK, FORKSERVER, SPAWN = "fork", "forkserver", "spawn"
PREFIX = "conveyor-"
# The exit code of a new broker or worker that imported a script which starts a pipeline.
UNGUARDED_EXITCODE = 97
# The preparation data of `multiprocessing` that make a new process import the script.
_MAIN_KEYS = ("init_main_from_name", "init_main_from_path")


# What to do where the system has nothing left to start a process with.
_REMEDIES = {
    errno.EAGAIN: " The system lets this user have no more processes and threads. Remedy: raise the limit "
    "(`ulimit -u`, or the `pids` limit of a container), or use fewer workers.",
    errno.EMFILE: " Remedy: raise the limit (`ulimit -n`), close files, or use fewer workers.",
}


def cause_and_remedy(error: BaseException | None) -> str:
    """Return the end of a sentence: why a process or a thread could not be started, and what to do about it.

    For threads Python raises a RuntimeError, which names no cause: the system has too many.
    """
    if isinstance(error, OSError):
        return f"{error}.{_REMEDIES.get(error.errno or 0, '')}"
    return f"{error or 'no thread is left'}.{_REMEDIES[errno.EAGAIN]}"


def start_process(process: Any) -> None:
    """Start a process; raises OSError where the system has nothing left for it, and leaves no descriptor open then."""
    try:
        process.start()
    except OSError as error:
        _close_pipes_of_fork(error)
        raise


def thread_started(thread: threading.Thread) -> bool:
    """Start a thread; return whether the system had one left."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def _close_pipes_of_fork(error: OSError) -> None:
    """Close the pipes that `multiprocessing` makes before it forks, and leaves open where it cannot."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith("popen_fork.py") and trace.tb_frame.f_code.co_name == "_launch":
            for name in ("parent_r", "child_w", "child_r", "parent_w"):
                if name in trace.tb_frame.f_locals:
                    os.close(trace.tb_frame.f_locals[name])
        trace = trace.tb_next


# How `multiprocessing` starts a frozen program as a process of its own, and as its helpers.
_FROZEN_ARGUMENT = "--multiprocessing-fork"
_FROZEN_HELPER = "from multiprocessing."


def is_frozen() -> bool:
    """Whether this program was frozen into an executable, which is started in the place of an interpreter."""
    return bool(getattr(sys, "frozen", False))


def is_copy_of_frozen() -> bool:
    """Whether `multiprocessing` has started this frozen program as a process of its own, and nobody has told it so.

    `multiprocessing.freeze_support` tells it.
    """
    if not is_frozen() or multiprocessing.parent_process() is not None:
        return False
    arguments = [*sys.argv, *getattr(sys, "orig_argv", ())]
    return any(each == _FROZEN_ARGUMENT or each.startswith(_FROZEN_HELPER) for each in arguments)


class FreshProcess(context.SpawnProcess):
    """A process that is a new interpreter; `import_main`: it imports the script as it starts."""

    def __init__(self, *, import_main: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.import_main = import_main

    def __reduce__(self) -> Any:
        # There it is a process like any other, and need not import this module.
        return object.__new__, (context.SpawnProcess,), self.__dict__

    @staticmethod
    def _Popen(process: Any) -> Any:
        if os.name != "posix":
            return context.SpawnProcess._Popen(process)
        return _launched(process)


def process_of(method: str, import_main: bool, **arguments: Any) -> Any:
    """Return a process that is not started yet; `arguments` are those of `Process`."""
    if method == FORK:
        forking: Any = multiprocessing.get_context(FORK)
        return forking.Process(**arguments)
    return FreshProcess(import_main=import_main, **arguments)


class _Evaluated:
    """Pickles as a call, and is unpickled as its result."""

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


def _capacity(pipe: int) -> int:
    """Return how many bytes an empty pipe takes for certain."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        # Part of it may be lost to how the pages are filled.
        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) // 2
    return 512


def _kept_in(file: Any, data: list[bytes], place: int) -> list[bytes]:
    """Write pickles to a file; return shorter ones, which read them there.

    `place` is the descriptor of the file in the new process, which closes it when it has read all.
    """
    parts = []
    for each in data:
        parts.append(_Evaluated(pickle.loads, _Evaluated(os.pread, place, len(each), file.tell())))
        file.write(each)
    file.flush()
    parts[-1] = _Evaluated(itemgetter(0), (parts[-1], _Evaluated(os.close, place)))
    return [pickle.dumps(part) for part in parts]


def _pipe(descriptors: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    descriptors += ends
    return ends


def _close(*descriptors: int) -> None:
    for each in descriptors:
        os.close(each)


def _launched(process: Any) -> Any:
    """Return the `Popen` of a process that has been started."""
    # Imported here, as it takes a while: a worker never needs it.
    from multiprocessing import popen_spawn_posix, reduction, resource_tracker, spawn, util

    # The stubs know another signature.
    _exec: Any = util.spawnv_passfds

    class Popen(popen_spawn_posix.Popen):
        _fds: list[int]
        unread: tuple[int, int]

        def _launch(self, process_obj: Any) -> None:
            tracker: Any = resource_tracker.getfd()
            self._fds.append(tracker)
            descriptors: list[int] = []
            data = self._start_data(process_obj)
            with contextlib.ExitStack() as stack:
                try:
                    # The first pipe tells this process that the new one has ended, and the second the reverse.
                    sentinel, ended = _pipe(descriptors)
                    self.sentinel = sentinel
                    read, write = _pipe(descriptors)
                    self._fds += [read, ended]
                    if sum(map(len, data)) > _capacity(write):
                        file = stack.enter_context(_nameless_file())
                        data = _kept_in(file, data, self.duplicate_for_child(file.fileno()))
                    command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=read)
                    self.pid = _exec(spawn.get_executable(), command, self._fds)
                    # The data fits into the pipe, so this does not block.  This process still has the reading end,
                    # so no SIGPIPE comes where the new process is dead already.
                    os.write(write, b"".join(data))
                    self.unread = write, sum(map(len, data))
                    for each in (read, ended):
                        descriptors.remove(each)
                        os.close(each)
                finally:
                    self.finalizer = util.Finalize(self, _close, descriptors)

        def _start_data(self, process_obj: Any) -> list[bytes]:
            """Return the pickles that the new process reads first."""
            main = sys.modules.get("__main__")
            if main is not None and not hasattr(main, "__spec__"):
                # A debugger (pdb) runs the script in a module without one, and `spawn` asks for it.
                main.__spec__ = None
            preparation = spawn.get_preparation_data(process_obj.name)
            if not process_obj.import_main or is_frozen():
                # What is frozen has no script that could be read: it runs it anew, as far as `freeze_support`.
                for key in _MAIN_KEYS:
                    preparation.pop(key, None)
            context.set_spawning_popen(self)
            try:
                return [bytes(reduction.ForkingPickler.dumps(each)) for each in (preparation, process_obj)]
            finally:
                context.set_spawning_popen(None)

    return Popen(process)


# Earlier versions give no such warning, and to set a filter takes time at each fork.
_WARNS_OF_FORKS: bool = sys.version_info >= (3, 12)


@contextlib.contextmanager
def fork_warning_ignored() -> Iterator[None]:
    """Ignore Python's warning of a fork beside other threads, and no other: the child keeps these filters."""
    if not _WARNS_OF_FORKS:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded, use of", DeprecationWarning)
        yield


@contextlib.contextmanager
def signals_held(method: str) -> Iterator[None]:
    """Block the signals of the program while a process is started, which has no handlers of its own yet.

    The new process runs none of the program's finalizers, and the default start method stays undecided.
    """
    if method == SPAWN and os.name == "posix":
        # Otherwise `multiprocessing` starts it in the block, and unblocks signals.
        start_resource_tracker()
    # `multiprocessing` decides on a default when a process is started with "spawn".
    decided: str | None = multiprocessing.get_start_method(allow_none=True)
    try:
        with signals_of_the_program_held(), finalizers_kept():
            yield
    finally:
        if decided is None:
            multiprocessing.set_start_method(None, force=True)
