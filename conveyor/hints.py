"""What annotations are written with, without `typing`: to import that takes 3 ms, at the start of each program and in
each process that is spawned.

Law: to a type checker each name is the one of `typing`.  When the program runs, no annotation is evaluated, and the
names do no more than to stand where Python looks at them.
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
        """What may be written with something in brackets, also as a base class."""

        __class_getitem__ = classmethod(GenericAlias)

    Any = ClassVar = Generic = Literal = Protocol = _Subscripted

    class TypeVar:
        """Something to write in brackets."""

        def __init__(self, name, **settings):
            self.__name__ = name

    def overload(function):
        """Return the function, which the next of its name replaces."""
        return function

    def cast(kind, value):
        """Return the value."""
        return value
