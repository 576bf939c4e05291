"""Checks one Processor by itself, and writes jobs and settings as the source of a program would.

Law: it reads signatures and calls no code of the user but a `repr`.  What shows something never raises.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import FunctionType, ModuleType

from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any
from conveyor.stages.processor import Processor, has_finish, is_async, is_restartable, lacks_job, overrides
from conveyor.stages.routing import Element
from conveyor.stages.settings import PROCESSOR_SETTINGS


def code_of(job: object) -> str:
    """Return the source text for a callable, as far as it can be known.

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
    """Return the owner of a method: a plain value as it is, any other object by its class alone."""
    return short(owner) if type(owner) in (str, bytes, int, float) else f"{type(owner).__name__}(...)"


def _value_code(value: object) -> str:
    """Return the source text for a value: its `repr`, where its class has one."""
    if type(value).__repr__ is object.__repr__:
        return f"{type(value).__name__}()"
    try:
        return repr(value)
    except BaseException:
        return short(value)


def setting_code(value: object) -> str:
    """Return the source text for the value of a setting; classes and functions by their names.

    >>> setting_code((ValueError, OSError))
    '(ValueError, OSError)'
    """
    if type(value) is tuple:
        return f"({', '.join(map(setting_code, value))}{',' * (len(value) == 1)})"
    if isinstance(value, type):
        return value.__name__
    return code_of(value) if callable(value) else _value_code(value)


# CO_COROUTINE and CO_ASYNC_GENERATOR of `inspect`, which is slow to import.
_ASYNC = 0x80 | 0x200


def check_processor(processor: Processor[Any, Any]) -> None:
    """Raise TypeError or ValueError if `processor` cannot run.

    Both `Processor.__init__` and `Pipeline.add` call it, because a subclass may skip that `__init__`.
    """
    kind = type(processor).__name__
    if processor.job is not None:
        _check_job(kind, processor.job)
    goes_async = is_async(processor.process if overrides(processor, "process") else processor.job)
    for name, setting in PROCESSOR_SETTINGS.items():
        setting.check(f"{kind}: {name}", getattr(processor, name))
    if callable(processor.on_error):
        check_call(
            f"{kind}: on_error", processor.on_error, "a function such as `def on_error(item, error)`", arguments=2
        )
    if processor.max_workers is not None and isinstance(processor.workers, int):
        raise ValueError(
            f"{kind}: workers={processor.workers} is a number of workers, and max_workers={processor.max_workers} "
            'bounds that of workers="auto": leave out one of the two, or say workers="auto"'
        )
    _check_replacement(kind, processor)
    _check_lists(kind, processor)
    _check_async(kind, processor, goes_async)
    if processor.threads is not None:
        _check_threads(kind, processor, goes_async)
    if overrides(processor, "process"):
        check_call(f"{kind}.process", processor.process, "`def process(self, item)`", may_be_async=True)
    elif processor.job is None:
        raise TypeError(lacks_job(type(processor)))


def _check_lists(kind: str, processor: Processor[Any, Any]) -> None:
    """Raise ValueError for settings of lists without lists."""
    if processor.per_item and processor.batch is None:
        raise ValueError(f"{kind}: per_item=True needs the greatest length of a list: say batch=32, for instance")
    if processor.batch_timeout is not None and not processor.per_item:
        raise ValueError(
            f"{kind}: batch_timeout={processor.batch_timeout} is for a job that gives each item of its list an output: "
            "add per_item=True, or leave batch_timeout out"
        )


def _check_async(kind: str, processor: Processor[Any, Any], goes_async: bool) -> None:
    """Raise TypeError or ValueError for what only an async job may have, or what it may not have."""
    if goes_async:
        if processor.per_item:
            raise ValueError(
                f"{kind}: per_item=True is for a job that is not async: an async job is called with many items at once "
                "as it is, so leave per_item and batch out, and say concurrency=n instead"
            )
        return
    if processor.concurrency is not None:
        raise ValueError(
            f"{kind}: concurrency={processor.concurrency} is for an async job, and this one is not: write it as "
            f"`async def`, or say threads={processor.concurrency} or workers={processor.concurrency}"
        )
    for method in ("setup", "finish", "teardown"):
        if is_async(getattr(processor, method)):
            raise TypeError(
                f"{kind}.{method} is async, and no worker would await it beside a job that is not: make the job "
                "async, too"
            )


def _check_threads(kind: str, processor: Processor[Any, Any], goes_async: bool) -> None:
    """Raise ValueError where the calls of a job cannot be made in several threads."""
    threads = processor.threads
    if goes_async:
        raise ValueError(
            f"{kind}: threads={threads} is for a job that is not async: an async job makes many calls at once in one "
            f"event loop, so say concurrency={threads} instead"
        )
    if processor.per_item:
        raise ValueError(
            f"{kind}: threads={threads} makes many calls at once, and per_item=True one call for a list of what waits: "
            f"leave out threads, or per_item and batch; or say workers={threads}"
        )
    if overrides(processor, "process") and not processor.thread_safe:
        raise ValueError(
            f"{kind}: threads={threads} calls `process` from several threads at once, and they share what it keeps on "
            f"`self`: declare `thread_safe = True` in the class if they may, or say workers={threads}"
        )


def _check_replacement(kind: str, processor: Processor[Any, Any]) -> None:
    """Raise ValueError where `max_items` would replace workers that have state."""
    finishes = has_finish(processor)
    if processor.max_items is None or (is_restartable(processor) and not finishes):
        return
    lost = "the outputs of its `finish`" if finishes else "its state on `self`"
    remedy = "" if finishes else ", or declare `restartable = True` in the class if the state may be lost"
    raise ValueError(
        f"{kind}: max_items={processor.max_items} replaces workers, and each would lose {lost}: "
        f"leave out max_items{remedy}"
    )


def check_setup(processor: Processor[Any, Any], setup: object) -> None:
    """Raise TypeError unless `setup` can be the argument of that name."""
    kind = type(processor).__name__
    what = f"{kind}: setup={code_of(setup)}"
    if type(processor) is not Processor:
        raise TypeError(f"{what}: a subclass has a method `setup`: define that, and keep the state on `self`")
    if not callable(setup):
        raise TypeError(f"{kind}: setup must be a callable without arguments, or None, not {short(setup)}")
    check_call(what, setup, "a function such as `def setup()`", arguments=0)


def check_redact(what: str, redact: object) -> None:
    """Raise TypeError unless `redact` is None or can be called with an item."""
    if redact is None:
        return
    if not callable(redact):
        raise TypeError(f"{what} must be a callable of one argument, or None, not {short(redact)}")
    check_call(f"{what}={code_of(redact)}", redact, "a function such as `def redact(item)`")


def _check_job(kind: str, job: object) -> None:
    if isinstance(job, type) and issubclass(job, Processor):
        raise TypeError(
            f"{kind}({job.__name__}): {job.__name__} is a Processor class, not a job; pass the instance, "
            f"{job.__name__}(), to `add`"
        )
    if isinstance(job, Element):
        raise TypeError(f"{kind}({short(job)}): {short(job)} is an element of a pipeline, not a job; add it as it is")
    if not callable(job):
        raise TypeError(f"{kind}: the job must be a callable of one argument, not {short(job)}")
    check_call(f"{kind}({code_of(job)})", job, "a function such as `def job(item)`", may_be_async=True)


def _takes(function: FunctionType, arguments: int) -> bool:
    """Whether a plain function takes so many positional arguments and is not async; False where in doubt."""
    code = function.__code__
    if hasattr(function, "__wrapped__") or hasattr(function, "__signature__") or code.co_flags & _ASYNC:
        return False
    least = code.co_argcount - len(function.__defaults__ or ())
    return not code.co_kwonlyargcount and least <= arguments <= code.co_argcount


def check_call(
    what: str, call: Callable[..., Any], remedy: str, arguments: int = 1, may_be_async: bool = False
) -> None:
    """Raise TypeError unless `call` takes so many positional arguments and, but with `may_be_async`, is not async."""
    inner: Any = call
    if type(inner) is FunctionType and _takes(inner, arguments):
        return
    # The import is slow, and few jobs need it.
    import inspect

    while isinstance(inner, functools.partial):
        inner = inner.func
    if not (inspect.isroutine(inner) or isinstance(inner, type)):
        inner = type(inner).__call__
    if not may_be_async and (inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)):
        raise TypeError(f"{what} is async, and no worker would await it: pass {remedy} that calls asyncio.run itself")
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return  # Some callables written in C have no signature.
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        called = ("no argument", "one item", "an item and its error")[arguments]
        raise TypeError(f"{what} takes {signature}, but is called with {called}: pass {remedy}") from None
