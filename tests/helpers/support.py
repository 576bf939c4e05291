"""What every test of Conveyor is held to: warnings are errors, a hang is a failure with stacks, nothing is left behind.

- `TestCase`: the base class of all tests. In a test a warning is an error, so is an exception in a thread or in a
  finalizer that nobody would see; and a test that is not done after `time_limit` seconds dumps the stacks of all
  threads and of all forked children, and fails. `SIGALRM` is its clock, not a thread: a second thread in the process
  that forks is itself something Python 3.12 and later warn of, and would change what is tested.
- `nothing_left()`: a context manager that fails when its block leaves a process, thread, descriptor or shared-memory
  entry behind.
- `ALL` and `slow`: the whole suite runs with `CONVEYOR_TEST_ALL=1` in the environment; without, what is `slow` is left
  out, and other tests try fewer cases.  With `CONVEYOR_TEST_SECONDS=n` what is `slow` is left out once the run has taken
  so long.
"""

from __future__ import annotations

import _multiprocessing
import atexit
import contextlib
import ctypes
import faulthandler
import gc
import multiprocessing.process
import os
import signal
import stat
import sys
import threading
import time
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from tests.helpers.late import mock, tempfile

ROOT = Path(__file__).resolve().parents[2]

ALL = os.environ.get("CONVEYOR_TEST_ALL", "0") not in ("", "0")

# On a machine that is disturbed the whole suite may take several times as long as it should.
_SECONDS = float(os.environ.get("CONVEYOR_TEST_SECONDS") or "inf")
_BEGUN = time.monotonic()


def slow(what: Any) -> Any:
    """Mark a class of tests, or a test, as one that only the whole suite has."""
    what.is_slow = True
    return unittest.skipUnless(ALL, "CONVEYOR_TEST_ALL is not set")(what)


# glibc's name for it.  What threads had is given back only where they share the memory of the first one.
_M_ARENA_MAX = -8
with contextlib.suppress(OSError, AttributeError, TypeError):
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)

# What is frozen and in a cycle is never collected, and a file of which that is true is not flushed at the end.
atexit.register(gc.unfreeze)

# The names of the semaphores of this process and of all that it starts, so that they can be told from others.  Private to
# the standard library; where it has changed, no semaphore is counted.
_OWNER = os.getpid()
_SEMAPHORES = f"/mp-{_OWNER}"
multiprocessing.process.current_process()._config["semprefix"] = _SEMAPHORES  # type: ignore[attr-defined]

_HAS_ALARM = hasattr(signal, "setitimer")
# A signal that nobody else uses; 0 where there is none.
_DUMP = int(getattr(signal, "SIGRTMAX", 0))
# After the first alarm, the time a test has for its own clean-up before it is told again.
_GRACE_SECONDS = 10.0


class HungTest(BaseException):
    """Raised in a test that is past its time limit. Not an Exception, so that no handler on the way swallows it."""


class TestCase(unittest.TestCase):
    """A test in which warnings are errors, hidden exceptions are failures, and a hang ends with all stacks."""

    time_limit = 60.0

    @classmethod
    def tearDownClass(cls) -> None:
        """Give memory back: what was large in one class would make each fork in the others slow."""
        super().tearDownClass()
        gc.collect()
        # Nearly all that is left are modules, and to look through them again after each class takes long.
        gc.freeze()
        # Only one C library knows how.
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)

    def leave_nothing(self) -> None:
        """Fail when this test, its clean-ups so far included, leaves something behind."""
        leaves = nothing_left()
        leaves.__enter__()
        self.addCleanup(leaves.__exit__, None, None, None)

    def use_no_shared_memory(self) -> None:
        """Have this test's pipelines send what is heavy in messages, as where the system has nothing better."""
        from conveyor.engines.process.shm.arena import Arena

        patch = mock.patch.object(Arena, "create", return_value=None)
        patch.start()
        self.addCleanup(patch.stop)

    def new_folder(self) -> str:
        """A folder for this test alone."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return folder.name

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Run the test under this module's rules, whatever filters the runner has set, and show at once how it failed."""
        method = getattr(self, self._testMethodName)
        if (hasattr(method, "is_slow") or hasattr(self, "is_slow")) and time.monotonic() - _BEGUN > _SECONDS:
            setattr(self, self._testMethodName, self._out_of_time)
        told = [len(texts) for texts in _failures_of(result)]
        outcome = self._run_by_the_rules(result)
        for before, texts in zip(told, _failures_of(result), strict=True):
            for _, text in texts[before:]:
                # Runners tell of it at the end of all tests.
                print(f"\n{'=' * 70}\n{self.id()}\n{text}", file=sys.stderr, flush=True)
        return outcome

    def _run_by_the_rules(self, result: unittest.TestResult | None) -> unittest.TestResult | None:
        hidden: list[str] = []
        # Registered before the test's own clean-ups, so it runs after all of them.
        self.addCleanup(self._check_hidden, hidden)
        with warnings.catch_warnings(), _hidden_exceptions(hidden), _watchdog(self.time_limit, self.id()):
            warnings.simplefilter("error")
            return super().run(result)

    def _out_of_time(self) -> None:
        self.skipTest("the run has taken more than CONVEYOR_TEST_SECONDS")

    def _check_hidden(self, hidden: list[str]) -> None:
        if hidden:
            self.fail("exceptions that nobody handled:\n" + "\n".join(hidden))


def _failures_of(result: unittest.TestResult | None) -> list[list[Any]]:
    return [] if result is None else [result.errors, result.failures]


@contextlib.contextmanager
def _hidden_exceptions(hidden: list[str]) -> Iterator[None]:
    """Collect the exceptions that Python only prints: from threads, finalizers and callbacks."""
    thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        hidden.append(f"{arguments.exc_type.__name__}: {arguments.exc_value} (in {arguments.thread})")
        thread_hook(arguments)

    def unraisable(arguments: Any) -> None:
        # Only text is kept: the object itself is being finalized, and would come back to life.
        hidden.append(f"{arguments.exc_type.__name__}: {arguments.exc_value} (in {arguments.object!r})")
        unraisable_hook(arguments)

    threading.excepthook, sys.unraisablehook = in_thread, unraisable
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook


@contextlib.contextmanager
def _watchdog(seconds: float, test: str) -> Iterator[None]:
    """Raise HungTest in the main thread after `seconds`, with all stacks dumped before."""
    if not _HAS_ALARM or threading.current_thread() is not threading.main_thread():
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        return

    owner = os.getpid()

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return  # a forked child: its stacks are dumped, and its parent decides what becomes of it
        for process in _descendants(_everyone()):
            if _dumps_stacks(process):  # forked, so with the same handler; others the signal would kill
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, _DUMP)
        raise HungTest(f"{test} is not done after {seconds:g} s; the stacks are on standard error")

    before = signal.signal(signal.SIGALRM, on_alarm)
    # The dump happens in the signal handler proper, so it comes even while the main thread is stuck in C;
    # then `chain` calls the handler set above.
    faulthandler.register(signal.SIGALRM, file=_error_file(), all_threads=True, chain=True)
    if _DUMP:
        # For the children: those of Conveyor put handlers that Python knows of out of action.
        faulthandler.register(_DUMP, file=_error_file(), all_threads=True)
    signal.setitimer(signal.ITIMER_REAL, seconds, _GRACE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)
        if _DUMP:
            faulthandler.unregister(_DUMP)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)


def _dumps_stacks(process: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(errors="replace").splitlines():
            if line.startswith("SigCgt:"):
                return _DUMP > 0 and bool(int(line.split()[1], 16) >> (_DUMP - 1) & 1)
    return False


def _error_file() -> Any:
    # Runners may put an object without a descriptor in the place of sys.stderr.
    return sys.__stderr__ if sys.__stderr__ is not None else 2


@contextlib.contextmanager
def control_groups(membership: str, files: dict[str, str]) -> Iterator[tuple[Path, Path]]:
    """The root of a hierarchy of control groups with these files in it, and a file that says which groups are ours."""
    with tempfile.TemporaryDirectory() as name:
        own, root = Path(name, "self"), Path(name, "cgroup")
        own.write_text(membership)
        root.mkdir()
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        yield root, own


class Resources(NamedTuple):
    """What this process holds that must not outlive a run: for each thing its identity and a text that names it."""

    processes: dict[tuple[int, str], str]
    threads: dict[int, str]
    descriptors: dict[tuple[int, str], str]
    shared_memory: dict[str, str]

    def beyond(self, before: Resources) -> list[str]:
        """What is here and was not before, one line each."""
        pairs: list[tuple[str, dict[Any, str], dict[Any, str]]] = [
            ("processes", self.processes, before.processes),
            ("threads", self.threads, before.threads),
            ("descriptors", self.descriptors, before.descriptors),
            ("shared_memory", self.shared_memory, before.shared_memory),
        ]
        return [
            f"{kind}: {text}" for kind, now, then in pairs for identity, text in now.items() if identity not in then
        ]


def resources() -> Resources:
    """Look at what this process and its descendants hold; where there is no /proc, at threads and descriptors only."""
    return Resources(_processes(), _threads(), _descriptors(), _shared_memory())


@contextlib.contextmanager
def nothing_left(within: float = 1.0) -> Iterator[None]:
    """Fail when the block leaves something behind that is not gone `within` seconds after its end, and some looks later.

    Excepted are the standard library's own helpers, of which a process has one each and keeps it: the resource tracker
    and the fork server. What the test itself opened before the block is not counted.
    """
    before = resources()
    yield
    deadline = time.monotonic() + within
    looks = 0
    while left := resources().beyond(before):
        # A machine that stands still must not use up the time before what only a cycle holds was collected.
        if time.monotonic() > deadline and looks > 8:
            raise AssertionError(f"left behind {within:g} s after the end:\n  " + "\n  ".join(left))
        # What only a cycle still holds, such as the frames of a caught exception, is not a leak.  Most often it is a
        # process that ends just now, and to look through all objects takes longer than that.
        looks += 1
        if looks % 8 == 4:
            gc.collect()
        time.sleep(0.003)


class _Status(NamedTuple):
    name: str
    state: str
    parent: int
    group: int
    started: str


def _everyone() -> dict[int, _Status]:
    """All processes of the system; none where there is no /proc."""
    found: dict[int, _Status] = {}
    with contextlib.suppress(OSError):
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            # Tests ask hundreds of times a second while they wait, so no object is made that is not needed.
            with contextlib.suppress(OSError, IndexError):
                with open(f"/proc/{entry}/stat", "rb", buffering=0) as file:
                    text = file.read(4096).decode(errors="replace")
                # The name is in parentheses and may hold anything, so the fields are counted from its end.
                name, _, rest = text.partition("(")[2].rpartition(")")
                fields = rest.split(maxsplit=20)
                found[int(entry)] = _Status(name, fields[0], int(fields[1]), int(fields[2]), fields[19])
    return found


def _descendants(everyone: dict[int, _Status]) -> set[int]:
    below: set[int] = set()
    generation = {os.getpid()}
    while generation:
        generation = {pid for pid, status in everyone.items() if status.parent in generation and pid not in below}
        below |= generation
    return below


def _orphans(everyone: dict[int, _Status]) -> set[int]:
    """Processes that were below this one until their parent died: of our group, adopted by process 1 or another group.

    One that is dead waits for its new parent, which is not our affair.
    """
    group = os.getpgrp()
    ancestors = set()
    pid = os.getpid()
    while pid in everyone:
        ancestors.add(pid)
        pid = everyone[pid].parent
    return {
        pid
        for pid, status in everyone.items()
        if status.group == group and status.state != "Z" and pid not in ancestors
        if status.parent not in everyone or status.parent == 1 or everyone[status.parent].group != group
    }


def _processes() -> dict[tuple[int, str], str]:
    everyone = _everyone()
    ours = _descendants(everyone) | _orphans(everyone)
    ours -= {
        _helper("multiprocessing.resource_tracker", "_resource_tracker", "_pid"),
        _helper("multiprocessing.forkserver", "_forkserver", "_forkserver_pid"),
    }
    # The start time is part of the identity, as numbers are used again.
    return {
        (pid, everyone[pid].started): f"{pid} {everyone[pid].name}, state {everyone[pid].state}, "
        f"child of {everyone[pid].parent}"
        for pid in ours
    }


def _threads() -> dict[int, str]:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    try:
        tasks = [int(entry) for entry in os.listdir("/proc/self/task")]  # those that Python does not know, too
    except OSError:
        tasks = [number for number in names if number is not None]
    return {task: f"{task} {names.get(task, 'not started by Python')}" for task in tasks}


def _descriptors() -> dict[tuple[int, str], str]:
    helpers = {
        _helper("multiprocessing.resource_tracker", "_resource_tracker", "_fd"),
        _helper("multiprocessing.forkserver", "_forkserver", "_forkserver_alive_fd"),
    }
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found: dict[tuple[int, str], str] = {}
    with contextlib.suppress(OSError):
        for number in map(int, os.listdir(folder)):
            # The descriptor that lists the folder is in the list and closed by now.
            with contextlib.suppress(OSError):
                mode = stat.filemode(os.fstat(number).st_mode)
                target = os.readlink(f"{folder}/{number}") if folder.startswith("/proc") else mode
                if number not in helpers:
                    found[number, target] = f"{number} {target}"
    return found


def _shared_memory() -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError), os.scandir("/dev/shm") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                # What other programs have there comes and goes as they like: this is what the standard library makes.
                ours = entry.name.startswith((f"sem.{_SEMAPHORES[1:]}-", "psm_"))
                if status.st_uid == os.getuid() and ours:
                    found[entry.name] = f"/dev/shm/{entry.name}, {status.st_size:,} bytes"
    return found


@atexit.register
def unlink_semaphores() -> None:
    """Have no semaphore stay of brokers that tests have killed: those go with the caller, by its resource tracker.

    But where warnings are errors, as in scripts that tests start, that gives up at the first one that is gone already,
    as one is whose process was killed while it took it away.
    """
    # What this process made itself, and still refers to, it takes away at its end.
    util: Any = sys.modules.get("multiprocessing.util")
    finalizers = list(util._finalizer_registry.values()) if util is not None else []
    own = {argument for each in finalizers for argument in each._args or () if isinstance(argument, str)}
    for name in _shared_memory() if os.getpid() == _OWNER else ():
        if name.startswith("sem.") and f"/{name[4:]}" not in own:
            import multiprocessing.resource_tracker

            with contextlib.suppress(OSError):
                _multiprocessing.sem_unlink(f"/{name[4:]}")
                multiprocessing.resource_tracker.unregister(f"/{name[4:]}", "semaphore")


def _helper(module: str, singleton: str, field: str) -> int:
    # Private names of the standard library; where they have changed there is nothing to except, nor where nobody has
    # imported the module.
    number = getattr(getattr(sys.modules.get(module), singleton, None), field, None)
    return number if isinstance(number, int) else -1
