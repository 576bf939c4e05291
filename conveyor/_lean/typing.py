"""The names of `typing` for annotations, without its import, which slows every start and every spawned process.

Law: to a type checker each name is that of `typing`.  At run time nothing evaluates annotations, and these stand-ins
do nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import Generic as Generic
    from typing import Literal as Literal
    from typing import Protocol as Protocol
    from typing import TypeVar as TypeVar
    from typing import cast as cast
    from typing import overload as overload
else:
    from types import GenericAlias

    class _Subscripted:
        """A name that takes anything in brackets, also as a base class."""

        __class_getitem__ = classmethod(GenericAlias)

    Any = ClassVar = Generic = Protocol = _Subscripted

    class Literal:
        """A name that takes values in brackets."""

        def __class_getitem__(cls, values):
            return cls

    def TypeVar(name, **settings):
        """Return a new class, which can stand wherever a type can."""
        return type(name, (), {})

    def overload(function):
        return function

    def cast(kind, value):
        return value
