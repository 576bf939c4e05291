"""Data classes and named tuples that are quicker to define than those of the standard library.

Law: to a type checker, and to users of an instance, these are `dataclasses` and `typing.NamedTuple`.  Only the messages
about wrong arguments differ, and a named tuple has no `_make`.

The standard `dataclass` imports `inspect`, and compiles source for each method of each class.  The standard NamedTuple
compiles each annotation.  Together they took more than half of `import conveyor`, in every spawned process too.  Here
all classes share their methods.  `assembled` makes one class of parts that lie in several modules.
"""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
    from typing import NamedTuple as NamedTuple
    from typing import TypeVar

    Kind = TypeVar("Kind", bound=type)

    def assembled(cls: Kind) -> Kind: ...
else:
    from collections import namedtuple
    from operator import itemgetter

    _MISSING = object()

    class _Field:
        def __init__(self, default: Any, default_factory: Any, kw_only: bool) -> None:
            self.default = default
            self.default_factory = default_factory
            self.kw_only = kw_only

    def field(*, default=_MISSING, default_factory=_MISSING, kw_only=False):
        """Return the options of a field, to be assigned in a class body."""
        return _Field(default, default_factory, kw_only)

    def replace(value, /, **changes):
        return type(value)(**{**{name: getattr(value, name) for name in value._value_fields}, **changes})

    def dataclass(cls=None, /, *, frozen=False, eq=True, repr=True, init=True):
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, eq=eq, repr=repr, init=init)
        fields = dict(getattr(cls, "_value_fields", {}))
        for name in cls.__annotations__:
            each = cls.__dict__.get(name, _MISSING)
            if not isinstance(each, _Field):
                each = _Field(each, _MISSING, False)
            elif each.default is not _MISSING:
                setattr(cls, name, each.default)
            else:
                delattr(cls, name)
            fields[name] = each
        cls._value_fields = fields
        cls.__match_args__ = tuple(name for name, each in fields.items() if not each.kw_only)
        cls.__dataclass_fields__ = _StandardFields()
        if init:
            cls.__init__, cls.__signature__ = _init, _Signature()
        if repr:
            cls.__repr__ = _repr
        if eq:
            cls.__eq__, cls.__hash__ = _eq, (_hash if frozen else None)
        if frozen:
            cls.__setattr__, cls.__delattr__ = _refuse_to_set, _refuse_to_delete
        return cls

    def _init(self, /, *positional, **named):
        self.__dict__.update(_filled(type(self), positional, named))
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    def _filled(cls, positional, named):
        """Return the values of all fields by name, from arguments and defaults."""
        filled, names = {}, cls.__match_args__
        if len(positional) > len(names):
            raise TypeError(f"{cls.__name__}() takes {len(names)} positional arguments, not {len(positional)}")
        for name, value in zip(names, positional, strict=False):
            if name in named:
                raise TypeError(f"{cls.__name__}() got two values for {name!r}")
            named[name] = value
        for name, each in cls._value_fields.items():
            if name in named:
                filled[name] = named.pop(name)
            elif each.default is not _MISSING:
                filled[name] = each.default
            elif each.default_factory is not _MISSING:
                filled[name] = each.default_factory()
            else:
                raise TypeError(f"{cls.__name__}() is missing {name!r}")
        if named:
            raise TypeError(f"{cls.__name__}() has no {', '.join(map(repr, named))}")
        return filled

    def _values(value):
        return tuple([getattr(value, name) for name in value._value_fields])

    def _repr(self):
        return (
            f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._value_fields)})"
        )

    def _eq(self, other):
        return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented

    def _hash(self):
        return hash(_values(self))

    def _refuse_to_set(self, name, value):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_to_delete(self, name):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def assembled(cls):
        """Return the class with the members of its private bases as its own, so that `help()` shows one class.

        A decorator.  No method may use `super()` without arguments: it would ask for a class that is gone.
        """
        private = [base for base in cls.__mro__[1:] if base.__name__.startswith("_")]
        body = {"__annotations__": {}}
        for part in (*reversed(private), cls):
            own = dict(vars(part))
            body["__annotations__"].update(own.pop("__annotations__", {}))
            body.update(own)
        for name in ("__dict__", "__weakref__", "__orig_bases__"):
            body.pop(name, None)
        if not body["__annotations__"]:
            del body["__annotations__"]
        whole = type(cls)(cls.__name__, tuple(base for base in cls.__bases__ if base not in private), body)
        for member in body.values():
            member = getattr(member, "fget", member)
            if getattr(member, "__module__", "").startswith("conveyor.") and hasattr(member, "__code__"):
                member.__module__, member.__qualname__ = cls.__module__, f"{cls.__qualname__}.{member.__name__}"
        return whole

    class _Signature:
        """What a data class is called with, for `help()` and `inspect.signature`; made when somebody asks."""

        def __get__(self, instance, owner):
            if instance is not None or owner.__init__ is not _init:
                raise AttributeError("__signature__")
            from inspect import Parameter, Signature

            annotations = {}
            for kind in reversed(owner.__mro__):
                annotations.update(vars(kind).get("__annotations__", {}))
            parameters = []
            for name, each in owner._value_fields.items():
                has_none = each.default is _MISSING and each.default_factory is _MISSING
                default = Parameter.empty if has_none else ... if each.default is _MISSING else each.default
                kind = Parameter.KEYWORD_ONLY if each.kw_only else Parameter.POSITIONAL_OR_KEYWORD
                parameters.append(Parameter(name, kind, default=default, annotation=annotations[name]))
            parameters.sort(key=lambda parameter: parameter.kind)
            return Signature(parameters, return_annotation="None")

    class _StandardFields:
        """The attribute that the functions of `dataclasses` look for; made at the first access."""

        def __get__(self, instance, owner):
            from dataclasses import make_dataclass

            fields = make_dataclass(owner.__name__, list(owner._value_fields)).__dataclass_fields__
            owner.__dataclass_fields__ = fields
            return fields

    # The descriptor that reads the value at an index; the one of `namedtuple` is the fastest.
    _At = type(vars(namedtuple("_Pattern", ("first",)))["first"])
    if _At is property:

        def _At(index, doc):
            return property(itemgetter(index))

    # `help()` says by which name a method was defined, where it is another one.
    for _method, _name in (
        (_init, "__init__"),
        (_repr, "__repr__"),
        (_eq, "__eq__"),
        (_hash, "__hash__"),
        (_refuse_to_set, "__setattr__"),
        (_refuse_to_delete, "__delattr__"),
    ):
        _method.__name__ = _method.__qualname__ = _name

    class _NamedTupleMaker(type):
        """Makes a named tuple of a class body, as `typing.NamedTuple` does."""

        def __new__(mcs, name, bases, body):
            if "__annotations__" not in body and any(hasattr(base, "_fields") for base in bases):
                # A subclass of a named tuple adds methods, not fields.
                return super().__new__(mcs, name, bases, {"__slots__": (), **body})
            fields = tuple(body.setdefault("__annotations__", {}))
            defaults = {each: body.pop(each) for each in fields if each in body}
            body["_value_fields"] = {each: _Field(defaults.get(each, _MISSING), _MISSING, False) for each in fields}
            body.update((each, _At(index, "")) for index, each in enumerate(fields))
            body.update(__slots__=(), _fields=fields, __match_args__=fields, _field_defaults=defaults)
            # As in `typing.NamedTuple`, fields with defaults come last.
            body["_last_values"], body["_size"] = tuple(defaults.values()), len(fields)
            return super().__new__(mcs, name, bases, body)

    class NamedTuple(tuple, metaclass=_NamedTupleMaker):
        def __new__(cls, /, *values, **named):
            if len(values) == cls._size and not named:
                return tuple.__new__(cls, values)
            missing, last_values = cls._size - len(values), cls._last_values
            if named or not 0 < missing <= len(last_values):
                return tuple.__new__(cls, _filled(cls, values, named).values())
            return tuple.__new__(cls, values + last_values[-missing:])

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(map('{}={!r}'.format, self._fields, self))})"

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, /, **changes):
            return type(self)(**{**self._asdict(), **changes})

        # For `copy.replace`.
        __replace__ = _replace
