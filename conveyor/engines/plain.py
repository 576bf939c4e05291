"""Values of any kind on their way to another process that may not know it.

Law: a value of Python's own types goes as it is; of any other goes its pickle, where that can be made and undone.
"""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

from conveyor.engines.codec import ATOMS

# A longer pickle is not worth it.
PICKLE_BYTES = 64 * 1024
# A collection of more values, or nested deeper, is not looked through: it is pickled by itself.
_PLAIN_VALUES = 100
_PLAIN_DEPTH = 3


def is_plain(value: Any, depth: int = _PLAIN_DEPTH) -> bool:
    """Whether a value and all that is in it is of Python's own types, so that every process can have it.

    >>> is_plain((1, "two", {"three": [None]})), is_plain([print])
    (True, False)
    """
    kind = type(value)
    if kind in ATOMS:
        return True
    if not depth or kind not in (tuple, list, dict) or len(value) > _PLAIN_VALUES:
        return False
    values = [*value, *value.values()] if kind is dict else value
    return all(is_plain(each, depth - 1) for each in values)


def pickled(value: Any) -> bytes | None:
    """Return the pickle of a value, None where there is none or it is too long."""
    with contextlib.suppress(Exception):
        data = pickle.dumps(value, 5)
        if len(data) <= PICKLE_BYTES:
            return data
    return None


def unpickled(data: bytes | None, otherwise: Any) -> Any:
    """Return the value of a pickle, or something else where there is none or it cannot be undone."""
    if data is not None:
        with contextlib.suppress(Exception):
            return pickle.loads(data)
    return otherwise
