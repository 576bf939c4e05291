"""What a job holds, seen without calling it.

Law: it looks, and runs nothing of the user's.  What cannot be seen from the job is not guessed: that a function calls a
method of some object at module level, and that the object remembers the call, nobody can know.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)

from conveyor.hints import Any

_MISSING = object()

# Values of these types never change, nor does what can be reached from them.
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
# Objects of these types can be called, and do not change.
_STATELESS = frozenset(
    {
        "numpy.ufunc",
        "numpy._ArrayFunctionDispatcher",
        "operator.attrgetter",
        "operator.itemgetter",
        "operator.methodcaller",
    }
)
# Methods by which the containers of the standard library change.
_CHANGING = frozenset(
    {
        *("append", "extend", "insert", "remove", "reverse", "sort"),
        *("appendleft", "extendleft", "popleft", "rotate"),
        *("clear", "pop", "popitem", "setdefault", "update", "move_to_end", "subtract"),
        *("add", "discard", "difference_update", "intersection_update", "symmetric_difference_update"),
    }
)

_lru_cache_wrapper: Any = type(functools.lru_cache(len))


def memory_of(job: Any) -> str | None:
    """Return in words what a job may remember from one call to the next, None where nothing is known that it could.

    >>> memory_of(str.strip), memory_of([].append)
    (None, 'a method of a list')
    """
    return _memory_of(job, set())


def _memory_of(job: Any, known: set[int]) -> str | None:
    """Return the same; `known` are the jobs at which somebody looks already."""
    if id(job) in known:
        return None
    known.add(id(job))
    kind = type(job)
    if kind is FunctionType:
        return _memory_of_function(job, known)
    if kind is MethodType and issubclass(type(job.__self__), type):
        return _memory_of_class(job.__self__, [job.__func__], known)
    if issubclass(kind, MethodType | BuiltinFunctionType | MethodWrapperType):
        # What a builtin function is bound to is its module.
        if not _is_fixed(job.__self__, known):
            return f"a method of {_a(job.__self__)}"
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
                return f"a partial with {_a(each)}"
        return _memory_of(job.func, known)
    if kind is _lru_cache_wrapper:
        # What it caches, it would compute again.
        return _memory_of(job.__wrapped__, known)
    if kind is staticmethod:
        return _memory_of(job.__func__, known)
    return None if _is_a(kind, _STATELESS) else f"the state of {_a(job)}"


def _memory_of_function(function: FunctionType, known: set[int]) -> str | None:
    for name in function.__code__.co_freevars:
        # That one is for `super()`.
        if name != "__class__":
            return f"the closure variable {name!r}"
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        if not _is_fixed(default, known):
            return f"a default that is {_a(default)}"
    for name in function.__dict__:
        if name != "__wrapped__":
            return f"the attribute {name!r} of the function"
    for code in _codes(function.__code__):
        found = _memory_in_globals(code, function.__globals__, known)
        if found is not None:
            return found
    return None


def _memory_in_globals(code: CodeType, variables: dict[str, Any], known: set[int]) -> str | None:
    """Return what code plainly changes, or reads on in, among the variables of its module."""
    # Only a few pipelines ask, and all would wait for the import.
    import dis

    steps = [(each.opname, each.argval) for each in dis.get_instructions(code)]
    operations = {operation for operation, _ in steps}
    stores = not operations.isdisjoint({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"})
    # `counter.value += 1` copies the object on the stack, and reads the attribute first.
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
            return f"the global variable {name!r}, {_a(value)}"
        if type(value) is FunctionType and value.__globals__ is variables:
            found = _memory_of(value, known)
            if found is not None:
                return f"that of {name}(), which it calls: {found}"
    return None


def _memory_of_class(owner: type, functions: list[Any], known: set[int]) -> str | None:
    """Return what functions of a class remember, in containers of the class as well."""
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
                    return f"the class attribute {name!r}, {_a(value)}"
    return None


def _methods(owner: type, name: str) -> list[Any]:
    """Return the functions of that name in a class and in those that it inherits from."""
    found = [vars(base)[name] for base in owner.__mro__ if name in vars(base)]
    return [each.__func__ if isinstance(each, staticmethod) else each for each in found]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and that of the functions within."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _is_fixed(value: Any, known: set[int]) -> bool:
    """Whether a value cannot change, nor remember that it was called."""
    kind = type(value)
    if kind in _ATOMS or issubclass(kind, type | ModuleType) or _is_a(kind, _FIXED):
        return True
    if kind is frozenset or (issubclass(kind, tuple) and not hasattr(value, "__dict__")):
        return all(_is_fixed(each, known) for each in value)
    return callable(value) and _memory_of(value, known) is None


def _is_container(value: Any) -> bool:
    """Whether things can be put into a value."""
    return issubclass(type(value), set) or hasattr(type(value), "__setitem__")


def _is_a(kind: type, names: frozenset[str]) -> bool:
    """Whether a type, or one that it inherits from, has one of these names; nothing is imported to find out."""
    return any(f"{base.__module__}.{base.__qualname__}" in names for base in kind.__mro__)


def _a(value: Any) -> str:
    """Name the type of a value, with an article."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
