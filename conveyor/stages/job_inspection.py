"""Inspects a job without calling it: which objects it holds, and what it may remember between two calls.

Law: it runs no code of the user and guesses nothing.  So it misses an object at module level that remembers calls of
its methods.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)

from conveyor._lean.typing import Any

_MISSING = object()
# The flags of generators and of coroutines.
_SUSPENDS = 0x20 | 0x80 | 0x200

# Values of these types never change, nor does any object that they refer to.
_ATOMS = frozenset({int, float, complex, bool, str, bytes, range, type(None), type(...), type(NotImplemented)})
_FIXED = frozenset(
    {
        "datetime.date",
        "datetime.time",
        "datetime.timedelta",
        "datetime.tzinfo",
        "decimal.Decimal",
        "enum.Enum",
        "fractions.Fraction",
        "pathlib.PurePath",
        "re.Pattern",
        "uuid.UUID",
    }
)
# Callable objects of these types never change.
_STATELESS = frozenset(
    {
        "numpy.ufunc",
        "numpy._ArrayFunctionDispatcher",
        "operator.attrgetter",
        "operator.itemgetter",
        "operator.methodcaller",
    }
)
# Methods that change a container of the standard library.
_CHANGING = frozenset(
    {
        *("append", "extend", "insert", "remove", "reverse", "sort"),
        *("appendleft", "extendleft", "popleft", "rotate"),
        *("clear", "pop", "popitem", "setdefault", "update", "move_to_end", "subtract"),
        *("add", "discard", "difference_update", "intersection_update", "symmetric_difference_update"),
    }
)

_lru_cache_wrapper: Any = type(functools.lru_cache(len))

# Callables that hold other objects.
CALLABLES: tuple[Any, ...] = (
    *(FunctionType, MethodType, BuiltinFunctionType, MethodWrapperType),
    *(functools.partial, _lru_cache_wrapper),
)


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects that a job, or an object within it, holds, each with its place in words.

    >>> import functools
    >>> list(parts_of(functools.partial(pow, 2)))
    [('what a partial calls', <built-in function pow>), ('an argument of a partial', 2)]
    """
    kind = type(value)
    if kind is FunctionType:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            # An empty cell raises ValueError.
            with contextlib.suppress(ValueError):
                yield f"the closure variable {name!r}", cell.cell_contents
        for default in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield "a default argument", default
        for name, each in value.__dict__.items():
            yield f"the attribute {name!r}", each
        for name in dict.fromkeys(name for code in _codes(value.__code__) for name in code.co_names):
            each = value.__globals__.get(name)
            # A function of another module is not the user's to mend.
            if type(each) is not FunctionType or each.__globals__ is value.__globals__:
                yield f"the global variable {name!r}", each
    elif issubclass(kind, MethodType | BuiltinFunctionType | MethodWrapperType):
        yield "the object of a method", value.__self__
        if kind is MethodType:
            yield "the function of a method", value.__func__
    elif kind is functools.partial:
        yield "what a partial calls", value.func
        for each in (*value.args, *value.keywords.values()):
            yield "an argument of a partial", each
    elif kind is _lru_cache_wrapper:
        yield "the function behind a cache", value.__wrapped__
    elif issubclass(kind, list | tuple | set | frozenset):
        for each in value:
            yield f"an element of a {kind.__name__}", each
    elif issubclass(kind, dict):
        for each in value.values():
            yield f"a value of a {kind.__name__}", each
    else:
        for name, each in _attributes(value):
            yield f"the attribute {name!r}", each
        for call in _methods(kind, "__call__"):
            yield "the function by which it is called", call


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an instance without running any code of its class."""
    with contextlib.suppress(AttributeError):
        yield from object.__getattribute__(value, "__dict__").items()
    for base in type(value).__mro__:
        for name, member in vars(base).items():
            if type(member) is MemberDescriptorType and base.__module__ not in sys.builtin_module_names:
                with contextlib.suppress(AttributeError):
                    yield name, member.__get__(value)


def memory_of(job: Any) -> str | None:
    """Return in words what a job may remember from one call to the next; None where it shows nothing of that kind.

    >>> memory_of(str.strip), memory_of([].append)
    (None, 'a method of a list')
    """
    return _memory_of(job, set())


def _memory_of(job: Any, known: set[int]) -> str | None:
    """Return the same; `known` holds the ids of the jobs that are being inspected already."""
    if id(job) in known:
        return None
    known.add(id(job))
    kind = type(job)
    if kind is FunctionType:
        return _memory_of_function(job, known)
    if kind is MethodType and issubclass(type(job.__self__), type):
        return _memory_of_class(job.__self__, [job.__func__], known)
    if issubclass(kind, MethodType | BuiltinFunctionType | MethodWrapperType):
        # A builtin function is bound to its module, which counts as fixed.
        if not _is_fixed(job.__self__, known):
            return f"a method of {_described(job.__self__)}"
        return _memory_of(job.__func__, known) if kind is MethodType else None
    if kind in (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType):
        return None
    if issubclass(kind, type):
        if _is_a(job, _FIXED):
            return None
        making = [each for name in ("__new__", "__init__") for each in _methods(job, name)]
        return _memory_of_class(job, making, known) or _memory_of_class(kind, _methods(kind, "__call__"), known)
    if kind is functools.partial:
        for each in (*job.args, *job.keywords.values()):
            if not _is_fixed(each, known):
                return f"a partial with {_described(each)}"
        return _memory_of(job.func, known)
    if kind is _lru_cache_wrapper:
        # Losing the cache loses no result: the function computes it again.
        return _memory_of(job.__wrapped__, known)
    if kind is staticmethod:
        return _memory_of(job.__func__, known)
    return None if _is_a(kind, _STATELESS) else f"the state of {_described(job)}"


def _memory_of_function(function: FunctionType, known: set[int]) -> str | None:
    for name in function.__code__.co_freevars:
        # The compiler adds `__class__` for `super()`.
        if name != "__class__":
            return f"the closure variable {name!r}"
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        if not _is_fixed(default, known):
            return f"a default that is {_described(default)}"
    for name in function.__dict__:
        if name != "__wrapped__":
            return f"the attribute {name!r} of the function"
    for code in _codes(function.__code__):
        found = _memory_in_globals(code, function.__globals__, known)
        if found is not None:
            return found
    return None


def _memory_in_globals(code: CodeType, variables: dict[str, Any], known: set[int]) -> str | None:
    """Return which global variable the code changes, or which iterator at module level it advances."""
    # The import is slow, and few pipelines need it.
    import dis

    steps = [(each.opname, each.argval) for each in dis.get_instructions(code)]
    operations = {operation for operation, _ in steps}
    stores = not operations.isdisjoint({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"})
    # The bytecode of `counter.value += 1` copies the object on the stack and reads the attribute first.
    nothing = ("", None)
    for step, second, third in zip(steps, [*steps[1:], nothing], [*steps[2:], nothing, nothing], strict=True):
        operation, name = step
        if operation in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            return f"the global variable {name!r}"
        if operation != "LOAD_GLOBAL":
            continue
        updated = second[0] in ("COPY", "DUP_TOP") and third[0] == "LOAD_ATTR" and ("STORE_ATTR", third[1]) in steps
        if second[0] in ("STORE_ATTR", "DELETE_ATTR") or updated:
            return f"an attribute of the global variable {name!r}"
        value = variables.get(name, _MISSING)
        changes = second[0] in ("LOAD_ATTR", "LOAD_METHOD") and second[1] in _CHANGING
        if ((changes or stores) and _is_container(value)) or hasattr(type(value), "__next__"):
            return f"the global variable {name!r}, {_described(value)}"
        if type(value) is FunctionType and value.__globals__ is variables:
            found = _memory_of(value, known)
            if found is not None:
                return f"that of {name}(), which it calls: {found}"
    return None


def _memory_of_class(owner: type, functions: list[Any], known: set[int]) -> str | None:
    """Return what functions of a class may remember, also in containers that are class attributes."""
    for function in functions:
        if type(function) is not FunctionType:
            continue
        found = _memory_of(function, known)
        if found is not None:
            return found
        names = {name for code in _codes(function.__code__) for name in code.co_names}
        for base in owner.__mro__:
            for name in names.intersection(vars(base)):
                value = vars(base)[name]
                if _is_container(value) or hasattr(type(value), "__next__"):
                    return f"the class attribute {name!r}, {_described(value)}"
    return None


def _methods(owner: type, name: str) -> list[Any]:
    found = [vars(base)[name] for base in owner.__mro__ if name in vars(base)]
    return [each.__func__ if isinstance(each, staticmethod) else each for each in found]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _is_fixed(value: Any, known: set[int]) -> bool:
    """Whether a value cannot change and cannot remember a call."""
    kind = type(value)
    if kind in _ATOMS or issubclass(kind, type | ModuleType) or _is_a(kind, _FIXED):
        return True
    if kind is frozenset or (issubclass(kind, tuple) and not hasattr(value, "__dict__")):
        return all(_is_fixed(each, known) for each in value)
    return callable(value) and _memory_of(value, known) is None


def _is_container(value: Any) -> bool:
    return issubclass(type(value), set) or hasattr(type(value), "__setitem__")


def _is_a(kind: type, names: frozenset[str]) -> bool:
    """Whether a type or one of its bases has one of these names.  Names need no import of their modules."""
    return any(f"{base.__module__}.{base.__qualname__}" in names for base in kind.__mro__)


def _described(value: Any) -> str:
    """Return the name of the type of a value, with an article."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def may_give(function: Any) -> bool:
    """Return whether a function may return something else than None, or yield, as far as its code shows.

    >>> may_give(lambda self: None), may_give(lambda self: 1)
    (False, True)
    """
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or code.co_flags & _SUSPENDS:
        return True
    # Few programs come here.
    import dis

    before: dis.Instruction | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "RETURN_CONST" and instruction.argval is not None:
            return True
        if instruction.opname == "RETURN_VALUE" and (
            instruction.is_jump_target or before is None or before.opname != "LOAD_CONST" or before.argval is not None
        ):
            return True
        before = instruction
    return False
