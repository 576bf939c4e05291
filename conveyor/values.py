"""Frozen data classes and named tuples, without what the standard library's cost at every import.

Law: to a type checker, and to whoever uses an instance, these are `dataclasses` and `typing.NamedTuple`; only how they
come to be differs.  The former write the source of each method and compile it, some 1 ms for each class, and need
`inspect` for that, another 9 ms: that was more than half of what `import conveyor` took, in each process of a pipeline
that is spawned as well.  The latter compiles each annotation, which took two thirds of the time for a class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
    from typing import NamedTuple as NamedTuple
else:
    from collections import namedtuple

    _MISSING = object()

    class _Field:
        """What `field` returns: what is special about one."""

        def __init__(self, default: Any, default_factory: Any, kw_only: bool) -> None:
            self.default = default
            self.default_factory = default_factory
            self.kw_only = kw_only

    def field(*, default=_MISSING, default_factory=_MISSING, kw_only=False):
        """Say of a field what its annotation and value do not."""
        return _Field(default, default_factory, kw_only)

    def replace(value, /, **changes):
        """Return a copy with some fields changed."""
        return type(value)(**{**{name: getattr(value, name) for name in value._value_fields}, **changes})

    def dataclass(cls=None, /, *, frozen=False, eq=True, repr=True, init=True):
        """Make a class one of values."""
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
            cls.__init__ = _init
        if repr:
            cls.__repr__ = _repr
        if eq:
            cls.__eq__, cls.__hash__ = _eq, (_hash if frozen else None)
        if frozen:
            cls.__setattr__, cls.__delattr__ = _refuse_to_set, _refuse_to_delete
        return cls

    def _init(self, /, *positional, **named):
        fields, given = self._value_fields, self.__dict__
        names = self.__match_args__
        if len(positional) > len(names):
            raise TypeError(f"{type(self).__name__}() takes {len(names)} positional arguments, not {len(positional)}")
        for name, value in zip(names, positional, strict=False):
            if name in named:
                raise TypeError(f"{type(self).__name__}() got two values for {name!r}")
            named[name] = value
        for name, each in fields.items():
            if name in named:
                given[name] = named.pop(name)
            elif each.default is not _MISSING:
                given[name] = each.default
            elif each.default_factory is not _MISSING:
                given[name] = each.default_factory()
            else:
                raise TypeError(f"{type(self).__name__}() is missing {name!r}")
        if named:
            raise TypeError(f"{type(self).__name__}() has no {', '.join(map(repr, named))}")
        if hasattr(self, "__post_init__"):
            self.__post_init__()

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

    class _StandardFields:
        """What the functions of `dataclasses` look for; made when the first of them does."""

        def __get__(self, instance, owner):
            from dataclasses import make_dataclass

            fields = make_dataclass(owner.__name__, list(owner._value_fields)).__dataclass_fields__
            owner.__dataclass_fields__ = fields
            return fields

    class _NamedTupleMaker(type):
        """Makes of a class body what `typing.NamedTuple` would make of it."""

        def __new__(mcs, name, bases, body):
            if not bases:
                return super().__new__(mcs, name, bases, body)
            annotations = body.pop("__annotations__", {})
            defaults = [body.pop(each) for each in annotations if each in body]
            made = namedtuple(name, annotations, defaults=defaults, module=body.pop("__module__"))
            made.__annotations__ = made.__new__.__annotations__ = annotations
            for each, value in body.items():
                setattr(made, each, value)
            return made

    class NamedTuple(metaclass=_NamedTupleMaker):
        """A tuple whose fields have names."""
