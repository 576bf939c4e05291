"""The start method: which way to start processes is safe here, and whether the jobs can be sent that way.

Law: the caller decides and checks before it starts anything.  An error names the Processor and the remedy.  Of the
script, the module `__main__`, the caller looks at the module, its source and the line that runs now; it runs nothing of
it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.short_repr import Redact
from conveyor._lean.typing import Any
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
from conveyor.errors import ConveyorError, JobPicklingError, MissingMainGuardError
from conveyor.graph.plan import Plan
from conveyor.stages.processor import Processor


def why_not_importable() -> str:
    """Return why new processes will not find what is defined in `__main__`; "" where they will."""
    if is_frozen():
        return ""
    main = sys.modules.get("__main__")
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


def is_findable() -> bool:
    """Whether new processes will find the file that `__main__` says it was read from."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return is_frozen() or getattr(main, "__spec__", None) is not None or path is None or os.path.exists(path)


def is_guarded() -> bool:
    """Whether new processes may import the script: the line that runs now stands under its main guard.

    They may also where the script has ended, or is not what runs here.  A frozen program calls
    `multiprocessing.freeze_support` instead, as far as can be seen.
    """
    if is_frozen():
        return _calls_freeze_support()
    frame = _frame_of_script()
    if frame is None or _is_plainly_guarded(frame):
        return True
    # Imported here, as it takes a while, and is seldom needed: beside other threads, without a start method.
    import ast

    try:
        with open(frame.f_code.co_filename, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return False
    return _stands_under_guard(tree, frame.f_lineno)


def _calls_freeze_support() -> bool:
    """Whether something that runs in the main thread, or a function that it defines, names `freeze_support`."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    waiting: list[CodeType] = []
    while frame is not None:
        waiting.append(frame.f_code)
        frame = frame.f_back
    while waiting:
        code = waiting.pop()
        if "freeze_support" in code.co_names:
            return True
        waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
    return False


def _is_plainly_guarded(frame: FrameType) -> bool:
    """Whether the last line without indentation is a main guard: to see that is quicker than to parse the script."""
    try:
        with open(frame.f_code.co_filename, "rb") as file:
            lines = file.read().splitlines()[: frame.f_lineno]
    except OSError:
        return False
    outermost = next(
        (line for line in reversed(lines) if line[:1] not in (b"", b" ", b"\t", b"#", b")", b"]", b"}")), b""
    )
    return outermost.startswith(b"if ") and b"__name__" in outermost


def _frame_of_script() -> FrameType | None:
    """Return the frame in which the script's own lines run."""
    variables = vars(sys.modules["__main__"]) if "__main__" in sys.modules else None
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_globals is variables and frame.f_code.co_name == "<module>":
            return frame
        frame = frame.f_back
    return None


def _stands_under_guard(node: Any, line: int) -> bool:
    """Whether a line of a module stands under an `if` that tests `__name__`."""
    import ast

    for each in ast.iter_child_nodes(node):
        if getattr(each, "lineno", line + 1) <= line <= (getattr(each, "end_lineno", None) or 0):
            if isinstance(each, ast.If) and _tests_name(each):
                return True
            return _stands_under_guard(each, line)
    return False


def is_under_guard(name: str) -> bool:
    """Whether the script binds this name under its main guard alone: other processes, which import it, lack it."""
    try:
        with open(getattr(sys.modules["__main__"], "__file__", None) or os.devnull, "rb") as file:
            source = file.read()
    except OSError:
        return False
    # Most are plain definitions: to see that is quicker than to parse the script.
    if any(line.startswith((f"def {name}(", f"class {name}")) for line in source.decode("latin-1").splitlines()):
        return False
    import ast

    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    guarded = [each for each in tree.body if isinstance(each, ast.If) and _tests_name(each)]
    elsewhere = {found for each in tree.body if each not in guarded for found in _names_bound(each)}
    elsewhere |= {found for each in guarded for other in each.orelse for found in _names_bound(other)}
    inside = {found for each in guarded for other in each.body for found in _names_bound(other)}
    return name in inside - elsewhere


def _names_bound(node: Any) -> Iterator[str]:
    """Yield the names that a statement binds in its own scope."""
    import ast

    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    elif isinstance(node, ast.Lambda):
        return
    for each in ast.iter_child_nodes(node):
        yield from _names_bound(each)


def _tests_name(node: Any) -> bool:
    """Whether an `if` tests `__name__`."""
    import ast

    return any(isinstance(name, ast.Name) and name.id == "__name__" for name in ast.walk(node.test))


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
    refer to.
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


def start_for(plan: Plan, redact: Redact | None, wanted: str | None) -> Start:
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
            return _forked(plan, redact, reason, foreign_threads())
        return _fresh(plan, redact, wanted, reason)
    if FORK not in available:
        return _fresh(plan, redact, SPAWN, "this system knows no other way")
    if not hasattr(select, "poll"):
        # A forked copy of eventlet's loop would go on with the greenlets of this process.
        return _fresh(plan, redact, SPAWN, "the module select was replaced, as eventlet does")
    if sys.platform == "darwin":
        return _fresh(plan, redact, FORKSERVER, "a fork is not safe beside the libraries of macOS")
    threads = foreign_threads()
    if not threads:
        return _forked(plan, redact, "no thread is alive that could hold a lock at a fork", threads)
    try:
        start = _fresh(plan, redact, FORKSERVER, f"other threads are alive: {threads}", beside_threads=True)
    except ConveyorError as error:
        start = _forked(plan, redact, f"other threads are alive ({threads}), but {_first_sentence(error)}", threads)
        return start._replace(warning=_warning_of_fork(threads, error))
    return start._replace(warning=_warning_of_fresh(threads, start))


def _forked(plan: Plan, redact: Redact | None, reason: str, threads: ForeignThreads) -> Start:
    jobs: list[Processor[Any, Any] | bytes] = [step.processor for step in plan.steps]
    return Start(FORK, reason, jobs, redact, threads=threads)


def _fresh(plan: Plan, redact: Redact | None, method: str, reason: str, beside_threads: bool = False) -> Start:
    """Return a start with fresh interpreters; raises ConveyorError where the jobs cannot go there.

    `beside_threads`: the user named no start method, so the script may lack its main guard.
    """
    if beside_threads and is_frozen() and not is_guarded():
        raise ConveyorError(
            f"the frozen program does not call `multiprocessing.freeze_support()`. Remedy: {FREEZE_SUPPORT}"
        )
    installed = by_values.is_installed()
    main = _Main(guarded=not (installed or beside_threads) or is_guarded(), optional=installed or beside_threads)
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
        sent = None if redact is None else _pickled("The `redact` of the pipeline", "it", redact, method, main, None)
    except BaseException:
        handles.close()
        raise
    return Start(method, reason, [*pickled], sent, main.imported, main.by_value, handles=handles)


class _Main:
    """What is known of the script that new processes import.

    `guarded`: it may be imported as it is.  `optional`: new processes need not import it.
    """

    def __init__(self, guarded: bool, optional: bool) -> None:
        self._optional = optional
        self.why_not = why_not_importable()
        if not self.why_not and not guarded:
            self.why_not = 'it is defined in a script that has no `if __name__ == "__main__":` guard'
        # Whether what it defines travels by value.
        self.by_value = False
        self.imported = is_findable() and not (optional and self.why_not)

    def check(self, method: str) -> None:
        """Raise ConveyorError where new processes would not find the script, or the directory that they begin in."""
        remedy = 'or use Pipeline(start_method="fork") where the system has it.'
        if not self.imported and not self._optional:
            raise ConveyorError(
                f'The script was not read from a file, and start_method="{method}" has each process read it again: '
                f"save it as a file, {remedy}"
            )
        try:
            os.getcwd()
        except OSError as error:
            raise ConveyorError(
                f'The working directory is gone, and start_method="{method}" has new processes begin there ({error}): '
                f"change to one that exists, {remedy}"
            ) from error


def _pickled(
    what: str,
    short: str,
    value: Any,
    method: str,
    main: _Main,
    processor: str | None,
    handles: Handles | None = None,
) -> bytes:
    """Return the pickle of a value that workers need; `what` and `short` name it in errors.

    `handles` take the descriptors that a job refers to.
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
                missing = sorted(name for name in names if is_under_guard(name))
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
