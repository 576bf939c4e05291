"""What a job's return value means.

Law: no processes and no pickling.  The inline engine and the workers share these rules, so that they cannot
differ: None goes nowhere unless `keep_none`, a generator gives each value that it yields, anything else is one
output.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import GeneratorType

from conveyor._lean.typing import Any


def outputs_of(returned: Any, keep_none: bool) -> Iterator[Any]:
    """Yield the outputs that a job's return value stands for.

    >>> list(outputs_of(3, keep_none=False)), list(outputs_of(None, keep_none=False))
    ([3], [])
    >>> list(outputs_of((letter for letter in "ab"), keep_none=False))
    ['a', 'b']
    """
    if isinstance(returned, GeneratorType):
        yield from returned
    elif returned is not None or keep_none:
        yield returned


def is_generator_function(call: Any) -> bool:
    """Whether a call gives a generator, as the code of a function or method says.

    >>> is_generator_function(outputs_of), is_generator_function(len)
    (True, False)
    """
    # CO_GENERATOR of `inspect`, which takes long to import.
    code = getattr(getattr(call, "__func__", call), "__code__", None)
    return code is not None and bool(code.co_flags & 0x20)
