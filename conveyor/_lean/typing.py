"""What annotations are written with, without `typing`: to import that takes 3 ms, at the start of each program and in
each process that is spawned.

Law: to a type checker each name is the one of `typing`.  When the program runs, no annotation is evaluated but by tools
that ask for it, and the names do no more than to stand there.
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

    Any = ClassVar = Generic = Protocol = _Subscripted

    class Literal:
        """What may be written with values in brackets, which are no types."""

        def __class_getitem__(cls, values):
            return cls

    def TypeVar(name, **settings):
        """Return something to write in brackets, and beside other types."""
        return type(name, (), {})

    def overload(function):
        """Return the function, which the next of its name replaces."""
        return function

    def cast(kind, value):
        """Return the value."""
        return value
