"""The start method: which way to start processes is safe here, and whether the jobs can be sent that way.

Law: the caller decides and checks before it starts anything.  An error names the Processor and the remedy.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import sys
from types import FrameType

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.short_repr import Redact
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.process.system.foreign_threads import ForeignThreads, foreign_threads
from conveyor.engines.process.system.spawning import (
    FORK,
    FORKSERVER,
    PREFIX,
    SPAWN,
    UNGUARDED_EXITCODE,
    is_copy_of_frozen,
    is_frozen,
)
from conveyor.engines.process.wire import by_value as by_values
from conveyor.engines.process.wire.handles import CallerHandles, Handles, MadeForFork, guard_connections
from conveyor.errors import ConveyorError, JobPicklingError, MissingMainGuardError, ProcessError
from conveyor.graph.plan import Plan
from conveyor.stages.processor import Processor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conveyor.engines.process.caller.script import Main
    from conveyor.engines.process.wire.shared_objects import SharedObjects, SharedWriter


def importing() -> FrameType | None:
    """Return the frame of the outermost module that this thread imports; None where it imports none.

    The import holds a lock.  Another thread waits for it to pickle or unpickle something of that module.
    """
    found, frame = None, sys._getframe(1)
    back: FrameType | None = frame
    while back is not None:
        if back.f_code.co_name == "<module>":
            spec = back.f_globals.get("__spec__")
            if getattr(spec, "_initializing", False):
                found = back
        back = back.f_back
    return found


# The modules that unpickle jobs and items.
_UNPICKLING_MODULES = (
    "conveyor.engines.process.wire.codec",
    "conveyor.engines.process.wire.handles",
    "conveyor.engines.process.wire.shared_objects",
    "conveyor.engines.process.worker.lease_items",
    "conveyor._lean.short_repr",
)


FREEZE_SUPPORT = (
    'call `multiprocessing.freeze_support()` as the first thing under `if __name__ == "__main__":`. This program was '
    "frozen into an executable, and starts itself as its new processes: the call makes them that."
)


def module_being_loaded() -> str | None:
    """Return the module that this thread imports because a job or an item needs it; None where it imports none."""
    frame = module = importing()
    while frame is not None and module is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.startswith("conveyor."):
            return str(module.f_globals.get("__name__")) if name in _UNPICKLING_MODULES else None
        frame = frame.f_back
    return None


def check_importing() -> None:
    """Raise MissingMainGuardError in a process that is still being started: it may not start others."""
    if is_copy_of_frozen():
        # Nothing of the program's own end is to run twice.
        os._exit(UNGUARDED_EXITCODE)
    current = multiprocessing.current_process()
    if current.name.startswith(PREFIX) and (module := module_being_loaded()) is not None:
        raise MissingMainGuardError(
            f"The module {module!r} runs a pipeline while it is imported, and a process of that pipeline imports it to "
            "load a job or an item: put what runs the pipeline into a function, or under "
            '`if __name__ == "__main__":`.'
        )
    if getattr(current, "_inheriting", False):
        if current.name.startswith(PREFIX):
            # The exit code tells the caller, which raises the error where the user sees it.
            raise SystemExit(UNGUARDED_EXITCODE)
        raise MissingMainGuardError
    if current.daemon:
        raise ConveyorError(
            f"The process {current.name!r} is a daemon of multiprocessing (a worker of a Pool, say), and those may "
            "not start processes: run the pipeline in the main process, or use Pipeline(engine='inline') here."
        )


class Start(NamedTuple):
    """How the processes of a session start, and what reaches them.

    `reason`: why they start so.  `warning`: what the user is to know of that, None where there is nothing.
    `import_main`: a fresh interpreter imports the script.  `by_value`: what the script defines travels by value.
    `jobs`: each step's job as it reaches a worker, pickled unless workers are forked from here; so is `redact`.
    `threads`: those that may hold a lock, where this process forks.  `handles`: the descriptors that pickled jobs
    refer to.  `shared`: the shared objects, as they reach a worker.
    """

    method: str
    reason: str
    jobs: list[Processor[Any, Any] | bytes]
    redact: Redact | bytes | None
    import_main: bool = True
    by_value: bool = False
    threads: ForeignThreads = ForeignThreads()
    warning: str | None = None
    handles: Handles | None = None
    shared: SharedObjects | bytes | None = None


class Carried(NamedTuple):
    """What goes to the workers beside their jobs: the `redact` and the `shared` of the pipeline."""

    redact: Redact | None = None
    shared: Mapping[str, Any] | None = None


def start_for(plan: Plan, carried: Carried, wanted: str | None) -> Start:
    """Return how the processes are to be started; raises ConveyorError where they cannot be started as wanted.

    Where the user names no method and the system forks safely, it is "fork": nothing has to be pickled, so jobs may be
    lambdas and closures.  A lock that another thread holds at a fork stays held for ever in the child.  So beside
    threads not known to be harmless it is "forkserver": a fresh interpreter, without such threads, forks the workers.
    Where the jobs cannot be pickled, it is "fork" all the same.  The last two come with a warning.
    """
    available = multiprocessing.get_all_start_methods()
    if wanted is not None:
        if wanted not in available:
            raise ConveyorError(
                f"start_method={wanted!r} is not available on this system: choose one of {available}, or leave it out."
            )
        reason = f"start_method={wanted!r} was asked for"
        if wanted == FORK:
            return _forked(plan, carried, reason, foreign_threads())
        return _fresh(plan, carried, wanted, reason)
    if FORK not in available:
        return _fresh(plan, carried, SPAWN, "this system knows no other way")
    if not hasattr(select, "poll"):
        # A forked copy of eventlet's loop would go on with the greenlets of this process.
        return _fresh(plan, carried, SPAWN, "the module select was replaced, as eventlet does")
    if sys.platform == "darwin":
        return _fresh(plan, carried, FORKSERVER, "a fork is not safe beside the libraries of macOS")
    threads = foreign_threads()
    if not threads:
        return _forked(plan, carried, "no thread is alive that could hold a lock at a fork", threads)
    try:
        start = _fresh(plan, carried, FORKSERVER, f"other threads are alive: {threads}", beside_threads=True)
    except ConveyorError as error:
        start = _forked(plan, carried, f"other threads are alive ({threads}), but {_first_sentence(error)}", threads)
        return start._replace(warning=_warning_of_fork(threads, error))
    return start._replace(warning=_warning_of_fresh(threads, start))


def _forked(plan: Plan, carried: Carried, reason: str, threads: ForeignThreads) -> Start:
    jobs: list[Processor[Any, Any] | bytes] = [step.processor for step in plan.steps]
    shared = None
    if carried.shared is not None:
        # Few pipelines have any.
        from conveyor.engines.process.wire.shared_objects import shared_here

        shared = shared_here(carried.shared)
    return Start(FORK, reason, jobs, carried.redact, threads=threads, shared=shared)


def fresh_start(plan: Plan, carried: Carried, method: str, reason: str) -> Start:
    """Return a start with fresh interpreters that do not import the script; raises ConveyorError where jobs cannot go
    there.
    """
    return _fresh(plan, carried, method, reason, beside_threads=True)


def _fresh(plan: Plan, carried: Carried, method: str, reason: str, beside_threads: bool = False) -> Start:
    """Return a start with fresh interpreters; raises ConveyorError where the jobs cannot go there.

    `beside_threads`: the user named no start method, so the script may lack its main guard.
    """
    # A start by fork needs nothing of it.
    from conveyor.engines.process.caller.script import Main, is_guarded

    if beside_threads and is_frozen() and not is_guarded():
        raise ConveyorError(
            f"the frozen program does not call `multiprocessing.freeze_support()`. Remedy: {FREEZE_SUPPORT}"
        )
    installed = by_values.is_installed()
    main = Main(guarded=not (installed or beside_threads) or is_guarded(), optional=installed or beside_threads)
    main.check(method)
    by_values.forget_definitions()
    # What the program has set since its import reaches the workers, as it would with a fork.
    main.by_value = installed and (beside_threads or bool(main.why_not))
    handles = CallerHandles([])
    try:
        pickled = [
            _pickled(f"The job of Processor {step.name!r}", "the job", step.processor, method, main, step.name, handles)
            for step in plan.steps
        ]
        redact = carried.redact
        sent = None if redact is None else _pickled("The `redact` of the pipeline", "it", redact, method, main, None)
        shared = None if carried.shared is None else _shared_in_file(carried.shared, method, main, handles)
    except BaseException:
        handles.close()
        raise
    return Start(method, reason, [*pickled], sent, main.imported, main.by_value, handles=handles, shared=shared)


def _shared_in_file(objects: Mapping[str, Any], method: str, main: Main, handles: Handles) -> bytes:
    """Write the shared objects to a file without a name; return what each worker needs to map it."""
    from conveyor.engines.process.wire.shared_objects import SharedWriter

    writer = SharedWriter()
    try:
        for name, value in objects.items():
            what = f"The shared object {name!r}"
            writer.add(name, _pickled(what, "what it is made of", value, method, main, None, writer))
        return writer.sent(handles)
    except OSError as error:
        raise ProcessError(
            f"The shared objects of the pipeline could not be written to memory: {error}. Remedy: share less, or raise "
            "the limit on memory."
        ) from error
    finally:
        writer.close()


def _pickled(
    what: str,
    short: str,
    value: Any,
    method: str,
    main: Main,
    processor: str | None,
    handles: Handles | SharedWriter | None = None,
) -> bytes:
    """Return the pickle of a value that workers need; `what` and `short` name it in errors.

    `handles` make it: they take the descriptors that a job refers to, or the buffers of a shared object.
    """
    guard_connections()
    try:
        pickled = pickle.dumps(value, 5) if handles is None else handles.dumps(value)
        names = _names_in_main(pickled) if by_values.MAIN in pickled else set()
        if not names:
            return pickled
        if not main.by_value:
            why_not = main.why_not
            if not why_not:
                missing = main.lacking(names)
                if not missing:
                    return pickled
                why_not = (
                    f"{missing[0]} is defined under the main guard of the script, which other processes do not run"
                )
            # A class of the script is one class in all processes, so it never travels by value beside the script.
            is_class = any(isinstance(getattr(sys.modules["__main__"], name, None), type) for name in names)
            if main.why_not or is_class or not by_values.is_installed():
                raise JobPicklingError(_refusal(what, short, method, why_not), processor)
    except JobPicklingError:
        raise
    except Exception as error:
        if not by_values.is_installed():
            raise JobPicklingError(_refusal(what, short, method, error), processor) from error
    try:
        return by_values.dumps(value) if handles is None else handles.dumps(value, script_by_value=True)
    except Exception as error:
        raise JobPicklingError(_refusal(what, short, method, error), processor) from error


def _names_in_main(pickled: bytes) -> set[str]:
    """Return the names in `__main__` that a pickle refers to."""
    import pickletools

    names: set[str] = set()
    texts: list[Any] = []
    memo: list[Any] = []
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "STACK_GLOBAL" and texts[-2:-1] == ["__main__"]:
            names.add(str(texts[-1]).partition(".")[0])
        if operation.name == "MEMOIZE":
            memo.append(texts[-1] if texts else None)
        elif operation.name in ("BINGET", "LONG_BINGET"):
            texts.append(memo[int(argument or 0)])
        else:
            texts.append(argument if operation.name.endswith("UNICODE") else None)
    return names


def _refusal(what: str, short: str, method: str, reason: object) -> str:
    remedy = f"define {short} as a function or class at the top level of a module"
    if isinstance(reason, MadeForFork):
        remedy = f"make it, or what it is part of, in another context: {MadeForFork.remedy}"
    elif not by_values.is_installed():
        remedy += "; or `pip install cloudpickle`, which sends it by value"
    if FORK in multiprocessing.get_all_start_methods():
        remedy += '; or use Pipeline(start_method="fork"), if no other thread can hold a lock at that moment'
    return f'{what} has to be pickled for start_method="{method}", and cannot be: {reason}. Remedy: {remedy}.'


def _first_sentence(error: Exception) -> str:
    return str(error).partition(" Remedy: ")[0].rstrip(".")


def _warning_of_fresh(threads: ForeignThreads, start: Start) -> str:
    travels = (
        "what the script defines travels by value" if start.by_value else "what the program has set since is not there"
    )
    return (
        f"Other threads are alive that may hold a lock at a fork: {threads}. So a fresh interpreter starts the workers,"
        f' as start_method="forkserver" does: jobs are pickled, and {travels}. To decide for yourself, name a start '
        'method: Pipeline(start_method="forkserver"), or "fork" where no job needs what these threads may hold.'
    )


def _warning_of_fork(threads: ForeignThreads, error: Exception) -> str:
    return (
        f"Other threads are alive that may hold a lock at a fork: {threads}. The workers are forked all the same, "
        f"because a fresh interpreter cannot take the jobs: {_first_sentence(error)}. A job that needs such a lock, or "
        f"the threads of a compiled library, waits for ever. {_remedy_of(error)} Or name a start method: "
        'Pipeline(start_method="fork").'
    )


def _remedy_of(error: Exception) -> str:
    _, found, remedy = str(error).partition(" Remedy: ")
    remedy = remedy.partition("; or use Pipeline(")[0].rstrip(".")
    return f"Remedy: {remedy}." if found else "Remedy: start the pipeline before these threads."


# The warnings that this process has given.
_given: set[tuple[str, ...]] = set()


def is_news(start: Start) -> bool:
    """Whether a start has a warning that this process has not given yet; digits in the reason do not count."""
    if start.warning is None:
        return False
    key = (start.method, "".join(each for each in start.reason if not each.isdigit()))
    if key in _given:
        return False
    _given.add(key)
    return True
