"""Starting processes: which way is safe here, and what can be sent that way.

Law: decides and checks in the caller, before anything is started; an error names the Processor and the remedy.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

from conveyor.engines.interrupts import signals_blocked
from conveyor.engines.redaction import Redact
from conveyor.errors import ConveyorError, JobPicklingError, MissingMainGuardError
from conveyor.hints import Any
from conveyor.plan import Plan
from conveyor.stages import Processor

FORK, FORKSERVER, SPAWN = "fork", "forkserver", "spawn"
PREFIX = "conveyor-"
# With this code a process ends that was to become a broker or a worker, and found itself importing a script that
# starts a pipeline.
UNGUARDED = 97


def check_importing() -> None:
    """Raise MissingMainGuardError in a process that is still being started, and may not start others."""
    current = multiprocessing.current_process()
    if getattr(current, "_inheriting", False):
        if current.name.startswith(PREFIX):
            # The caller hears of it by the code, and raises the error where the user sees it.
            raise SystemExit(UNGUARDED)
        raise MissingMainGuardError
    if current.daemon:
        raise ConveyorError(
            f"The process {current.name!r} is a daemon of multiprocessing (a worker of a Pool, say), and those may "
            "not start processes: run the pipeline in the main process, or use Pipeline(engine='inline') here."
        )


def choose_start_method(wanted: str | None) -> str:
    """Return how the processes are to be started.

    Where the system forks safely and this process has no thread but the one that asks, it is "fork": nothing
    has to be pickled, so jobs may be lambdas and closures.  A fork while another thread holds a lock can leave
    that lock held for ever in the child, so with other threads it is "forkserver": a fresh broker forks.
    """
    available = multiprocessing.get_all_start_methods()
    if wanted is not None:
        if wanted not in available:
            raise ConveyorError(
                f"start_method={wanted!r} is not available on this system: choose one of {available}, or leave it out."
            )
        return wanted
    if FORK not in available:
        return SPAWN
    if sys.platform == "darwin" or threading.active_count() > 1:
        return FORKSERVER
    return FORK


def jobs_for(plan: Plan, method: str, chosen: bool) -> list[Processor[Any, Any] | bytes]:
    """Return each step's job as it reaches a worker: itself where workers are forked from here, else pickled.

    `chosen`: the start method was not asked for by the user.
    """
    jobs: list[Processor[Any, Any] | bytes] = []
    if method != FORK:
        _check_where_processes_begin(method)
    for step in plan.steps:
        if method == FORK:
            jobs.append(step.processor)
            continue
        what = f"The job of Processor {step.name!r}"
        jobs.append(_pickled(what, "the job", step.processor, method, chosen, step.name))
    return jobs


def _check_where_processes_begin(method: str) -> None:
    """Raise ConveyorError where new processes would not find the script, or the directory, that they begin with."""
    remedy = 'or use Pipeline(start_method="fork") where the system has it.'
    if not _findable(sys.modules.get("__main__")):
        raise ConveyorError(
            f'The script was not read from a file, and start_method="{method}" has each process read it again: save it '
            f"as a file, {remedy}"
        )
    try:
        os.getcwd()
    except OSError as error:
        raise ConveyorError(
            f'The working directory is gone, and start_method="{method}" has new processes begin there ({error}): '
            f"change to one that exists, {remedy}"
        ) from error


def redact_for(redact: Redact | None, method: str, chosen: bool) -> Redact | bytes | None:
    """Return the `redact` of the pipeline as it reaches a worker."""
    if redact is None or method == FORK:
        return redact
    return _pickled("The `redact` of the pipeline", "it", redact, method, chosen, None)


def _pickled(what: str, short: str, value: Any, method: str, chosen: bool, processor: str | None) -> bytes:
    """Return the pickle of what workers need; `what` and `short` say what that is."""
    try:
        pickled = pickle.dumps(value, 5)
    except Exception as error:
        raise JobPicklingError(_refusal(what, short, method, chosen, error), processor) from error
    main = sys.modules.get("__main__")
    reason = "" if main is None or b"__main__" not in pickled else _why_not_importable(main)
    if reason and _looks_into_main(pickled):
        raise JobPicklingError(_refusal(what, short, method, chosen, reason), processor)
    return pickled


def _looks_into_main(pickled: bytes) -> bool:
    """Whether something in a pickle is to be looked up in `__main__`."""
    import pickletools

    texts: list[Any] = []
    memo: list[Any] = []
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "STACK_GLOBAL" and texts[-2:-1] == ["__main__"]:
            return True
        if operation.name == "MEMOIZE":
            memo.append(texts[-1] if texts else None)
        elif operation.name in ("BINGET", "LONG_BINGET"):
            texts.append(memo[int(argument or 0)])
        else:
            texts.append(argument if operation.name.endswith("UNICODE") else None)
    return False


def _why_not_importable(main: Any) -> str:
    """Say why new processes will not find what is defined in `__main__`; nothing where they will."""
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name.rpartition(".")[2] == "__main__":
        # `multiprocessing` leaves these out.
        return (
            "it is defined in the __main__.py of a package, a folder or an archive, which other processes do not import"
        )
    if spec is None and getattr(main, "__file__", None) is None:
        return (
            "it is defined in an interactive session, or a script that has ended, which other processes cannot import"
        )
    return ""


def _findable(main: Any) -> bool:
    """Whether new processes, which look for what `__main__` says it was read from, will find that."""
    path = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is not None or path is None or os.path.exists(path)


def _refusal(what: str, short: str, method: str, chosen: bool, reason: object) -> str:
    why = f'start_method="{method}"'
    if chosen and FORK in multiprocessing.get_all_start_methods():
        others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
        if others:
            why += f" (chosen because this process has other threads: {', '.join(others[:5])})"
    remedy = f"define {short} as a function or class at the top level of a module"
    if FORK in multiprocessing.get_all_start_methods():
        if chosen:
            remedy += "; or open the pipeline before any other thread is started"
        remedy += '; or use Pipeline(start_method="fork"), if no other thread can hold a lock at that moment'
    return f"{what} has to be pickled for {why}, and cannot be: {reason}. Remedy: {remedy}."


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
    """Keep Ctrl-C back while a process is started: the child must not see it before it has its own handler."""
    if method == SPAWN and hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        # Starting it would let the signal through.
        resource_tracker.ensure_running()
    with signals_blocked({signal.SIGINT}):
        yield
