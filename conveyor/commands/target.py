"""The pipeline that a command names: `module:name` or `path/to/file.py:name`.

Law: the module is imported under the name that other processes find it by, so that its functions can be pickled.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from types import FunctionType, ModuleType, TracebackType

from conveyor import Pipeline
from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any
from conveyor.commands import FAILED, _CommandError


def find_pipeline(target: str) -> Pipeline[Any, Any]:
    """Return the pipeline that `target` names; raises _CommandError where there is none."""
    place, colon, name = target.rpartition(":")
    # A drive of Windows has a colon, too.
    if not colon or name.endswith(".py"):
        place, name = target, ""
    module = _module(place)
    value: Any = module
    for part in (name or _only_name(module, place)).split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise _CommandError(f"{place} has no {name!r}: {_choice(module)}") from None
    return _as_pipeline(value, target, module)


def _as_pipeline(value: Any, target: str, module: ModuleType) -> Pipeline[Any, Any]:
    if isinstance(value, Pipeline):
        return value
    if not callable(value) or (isinstance(value, type) and not issubclass(value, Pipeline)):
        raise _CommandError(
            f"{target} is {short(value)}, and neither a pipeline nor a function that returns one: {_choice(module)}"
        )
    try:
        made = value()
    except Exception as error:
        if isinstance(error, TypeError) and _depth(error.__traceback__) == 1:
            raise _CommandError(f"{target} cannot be called without arguments: {error}") from None
        raise _CommandError(f"{target}() raised an error\n{_trace(error)}", FAILED) from None
    if not isinstance(made, Pipeline):
        raise _CommandError(f"{target}() returned {short(made)}, and no pipeline: {_choice(module)}")
    return made


def _module(place: str) -> ModuleType:
    # As `python -m` has it: the current folder comes first.
    _put_first(os.getcwd())
    if not place.endswith(".py"):
        return _imported(place, place)
    path = os.path.abspath(place)
    if not os.path.isfile(path):
        raise _CommandError(f"there is no file {place}")
    folder, parts = os.path.dirname(path), [os.path.basename(path)[:-3]]
    # A module of a package may import its neighbours.
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, package = os.path.split(folder)
        parts.insert(0, package)
    if any(not part.isidentifier() for part in parts):
        raise _CommandError(
            f"{place} cannot be imported, as {'.'.join(parts)!r} is no name of a module: rename the file, "
            "so that the processes of the pipeline can import it, too"
        )
    _put_first(folder)
    module = _imported(".".join(parts), place)
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, path):
        raise _CommandError(
            f"{place} cannot be imported, as the module {'.'.join(parts)!r} is "
            f"{'built in' if found is None else found}: rename the file"
        )
    return module


def _put_first(folder: str) -> None:
    sys.path[:] = [folder, *(each for each in sys.path if each != folder)]


def _imported(name: str, place: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise _CommandError(f"{name!r} is no name of a module: write module:pipeline, or path/to/file.py:pipeline")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise _CommandError(f"there is no module {error.name!r} in the current folder or on sys.path") from None
        raise _CommandError(f"{place} raised an error while it was imported\n{_trace(error)}", FAILED) from None
    except Exception as error:
        raise _CommandError(f"{place} raised an error while it was imported\n{_trace(error)}", FAILED) from None
    except SystemExit as error:
        raise _CommandError(
            f"{place} ends the program while it is imported ({error!r}): put what runs the pipeline under "
            '`if __name__ == "__main__":`'
        ) from None


def _only_name(module: ModuleType, place: str) -> str:
    names = _names(module)
    if len(names) != 1:
        raise _CommandError(f"which pipeline of {place}? {_choice(module)}")
    return names[0]


def _choice(module: ModuleType) -> str:
    names = _names(module)
    if not names:
        return f"no name of {module.__name__} is a pipeline, or a function that says -> Pipeline"
    return f"pipelines there: {', '.join(names)}"


def _names(module: ModuleType) -> list[str]:
    """Return the names of the pipelines in a module, and of the functions that say that they return one."""
    return [name for name, value in vars(module).items() if isinstance(value, Pipeline) or _says_pipeline(value)]


def _says_pipeline(value: Any) -> bool:
    says: Any = None
    # Python 3.14 evaluates them now, and a name may be there for type checkers only.
    with contextlib.suppress(Exception):
        says = value.__annotations__.get("return") if isinstance(value, FunctionType) else None
    told = says if isinstance(says, str) else getattr(says, "__name__", "")
    return told.partition("[")[0].rpartition(".")[2] == "Pipeline"


def _depth(where: TracebackType | None) -> int:
    depth = 0
    while where is not None:
        depth, where = depth + 1, where.tb_next
    return depth


def _trace(error: BaseException) -> str:
    """Return the traceback from the first line of the user's own on."""
    own, where = os.path.dirname(os.path.abspath(__file__)), error.__traceback__
    while where is not None and (
        os.path.abspath(where.tb_frame.f_code.co_filename).startswith(own)
        or where.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "importlib"
        or where.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        where = where.tb_next
    return "".join(traceback.format_exception(type(error), error, where)).rstrip()
