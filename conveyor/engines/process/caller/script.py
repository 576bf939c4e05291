"""The script, the module `__main__`: whether new processes may import it, and what they find of it.

Law: the caller looks at the module, its source and the line that runs now; it runs nothing of it.  Only a start with
new interpreters needs that.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType

from conveyor._lean.typing import Any
from conveyor.engines.process.system.spawning import is_frozen
from conveyor.errors import ConveyorError


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


class Main:
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

    @staticmethod
    def lacking(names: Iterable[str]) -> list[str]:
        """Return those of the names that new processes lack, as the script binds them under its main guard alone."""
        return sorted(name for name in names if is_under_guard(name))
