"""What the script defines, sent by value: with `cloudpickle`, where that is installed.

Pickle sends a function or a class as the name of its module and its own.  What `__main__`, a cell of a notebook or a
closure defines has no such name in another interpreter; cloudpickle sends the definition itself.

Law: used only for what plain pickle cannot send, and for what names `__main__` where fresh interpreters lack that.  A
class of the script is one class everywhere: its definition is sent along, and loaded where it is not there yet.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import sys
from collections.abc import Callable, Mapping

from conveyor._lean.typing import Any

# How many sessions are open that send the script by value; 1 in a worker that got it so.  While there are any, what
# names `__main__` is sent by value from this process.
sessions = 0

# Whether this process is a fresh interpreter of a pipeline, and the script's classes that it was sent, by name.
is_fresh = False
_defined: dict[str, Any] = {}

MAIN = b"__main__"
_NONE: Mapping[type, Any] = {}


@functools.cache
def is_installed() -> bool:
    """Whether cloudpickle is there to be imported."""
    if "cloudpickle" in sys.modules:
        return sys.modules["cloudpickle"] is not None
    from importlib.util import find_spec

    return find_spec("cloudpickle") is not None


def dumps(value: Any, reducers: Mapping[type, Callable[[Any], Any]] = _NONE, buffer_callback: Any = None) -> bytes:
    """Return the pickle of a value, with what the script defines by value.

    `reducers` pickle objects of their types; `buffer_callback` is that of `pickle.dumps`.
    """
    file = io.BytesIO()
    pickler = _pickler_class()(file, 5, buffer_callback)
    pickler.reducers = reducers
    pickler.dump(value)
    return file.getvalue()


def dumps_instead(value: Any) -> bytes | None:
    """Return the pickle by value of what plain pickle has refused; None where this cannot be made, either."""
    if is_installed():
        with contextlib.suppress(Exception):
            return dumps(value)
    return None


def of_main(name: str, definition: bytes) -> Any:
    """Return the script's class of that name: the one that is here, else the one that is defined by these bytes."""
    main: Any = sys.modules["__main__"]
    if not is_fresh:
        return getattr(main, name)
    if name not in _defined:
        _defined[name] = pickle.loads(definition)
        # Where plain pickle, and the job, look for it.
        setattr(main, name, _defined[name])
    return _defined[name]


@functools.cache
def _definition(kind: type) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(kind, 5)
    return data


def forget_definitions() -> None:
    """Define the script's classes anew for the workers to come: the program may have changed them since."""
    _definition.cache_clear()


def _is_of_main(kind: Any) -> bool:
    """Whether it is a class that stands in the script under its own name; a local class does not."""
    if not isinstance(kind, type) or kind.__module__ != "__main__":
        return False
    return getattr(sys.modules["__main__"], kind.__qualname__, None) is kind


@functools.cache
def _pickler_class() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        reducers: Mapping[type, Callable[[Any], Any]]

        def reducer_override(self, value: Any) -> Any:
            if _is_of_main(value):
                return of_main, (value.__qualname__, _definition(value))
            if type(value) in self.reducers:
                return self.reducers[type(value)](value)
            return super().reducer_override(value)

    return Pickler
