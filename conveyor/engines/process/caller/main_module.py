"""What new interpreters find of the script: the module `__main__` of this process.

Law: looks at the module, at its source and at the line that runs now; runs nothing of it.
"""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType

from conveyor._lean.typing import Any


def why_not_importable() -> str:
    """Return why new processes will not find what is defined in `__main__`; "" where they will."""
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
    return getattr(main, "__spec__", None) is not None or path is None or os.path.exists(path)


def is_guarded() -> bool:
    """Whether new processes may import the script: the line that runs now stands under its main guard.

    They may also where the script has ended, or is not what runs here.
    """
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
            if isinstance(each, ast.If) and any(
                isinstance(name, ast.Name) and name.id == "__name__" for name in ast.walk(each.test)
            ):
                return True
            return _stands_under_guard(each, line)
    return False


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
