"""Jobs and settings as they would stand in the code of a program.

Law: it shows what can be known without a call of the user's code, and never raises.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType

from conveyor._lean.short_repr import short


def code_of(job: object) -> str:
    """Return a callable as it would stand in code, as far as that can be known.

    >>> code_of(len)
    'len'
    """
    if isinstance(job, functools.partial):
        arguments = [code_of(job.func), *map(setting_code, job.args)]
        arguments += [f"{name}={setting_code(value)}" for name, value in job.keywords.items()]
        return f"partial({', '.join(arguments)})"
    name = getattr(job, "__name__", None)
    if name == "<lambda>" and (code := getattr(job, "__code__", None)) is not None:
        return f"<lambda at {os.path.basename(code.co_filename)}:{code.co_firstlineno}>"
    if not isinstance(name, str):
        return _value_code(job)
    owner = getattr(job, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        return f"{owner.__name__ if isinstance(owner, type) else _owner_code(owner)}.{name}"
    qualified = getattr(job, "__qualname__", name)
    return qualified if isinstance(qualified, str) and "<" not in qualified else name


def _owner_code(owner: object) -> str:
    """Return whose method it is: a plain value as it is, of the rest the class, as its own `repr` may say much."""
    return short(owner) if type(owner) in (str, bytes, int, float) else f"{type(owner).__name__}(...)"


def _value_code(value: object) -> str:
    """Return a value as it would stand in code, as far as its own `repr` says so."""
    if type(value).__repr__ is object.__repr__:
        return f"{type(value).__name__}()"
    try:
        return repr(value)
    except BaseException:
        return short(value)


def setting_code(value: object) -> str:
    """Return the value of a setting as it would stand in code: classes and functions by their names.

    >>> setting_code((ValueError, OSError))
    '(ValueError, OSError)'
    """
    if type(value) is tuple:
        return f"({', '.join(map(setting_code, value))}{',' * (len(value) == 1)})"
    if isinstance(value, type):
        return value.__name__
    return code_of(value) if callable(value) else _value_code(value)
