"""The text that shows a value in a message.

Law: the text is short, and making it never raises, whatever the value's `repr` does.  Where a pipeline has a `redact`,
only its result shows an item, even if `redact` fails.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from itertools import islice

from conveyor._lean.typing import Any

SHOWN = 200
"""How many characters of a value a message shows at most."""
# Of a larger set or dict, those that come first are looked at alone.
MOST_SORTED = 100


class _Shortener(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlong = 40

    # What is in an item may be large, and what is shown of it is little: making the text takes no longer for that.

    def repr_bytes(self, value: bytes | bytearray, level: int) -> str:
        if len(value) <= self.maxother:
            return self.repr_instance(value, level)
        return f"{value[: self.maxother // 4]!r}... ({len(value):,} bytes)"

    repr_bytearray = repr_bytes

    # reprlib sorts what it is given.

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(value.items(), MOST_SORTED)), level)

    def repr_set(self, value: set[Any], level: int) -> str:
        return super().repr_set(set(islice(value, MOST_SORTED)), level)

    def repr_frozenset(self, value: frozenset[Any], level: int) -> str:
        return super().repr_frozenset(frozenset(islice(value, MOST_SORTED)), level)


_SHORTENER = _Shortener()


def short(value: Any) -> str:
    """Return a repr of a value, cut to `SHOWN` characters; never raises.

    >>> short(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    try:
        text = _SHORTENER.repr(value)
    except BaseException as error:
        return f"<{type(value).__name__} object whose repr raised {type(error).__name__}>"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, which makes its plural with an s.

    >>> counted(1, "item"), counted(2000, "item")
    ('1 item', '2,000 items')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


Redact = Callable[[Any], str]


def shown_by(redact: Redact | bytes | None) -> Callable[[Any], str]:
    """Return the function that shows items: by a `redact`, by the pickle of one, or (None) by `short`.

    >>> shown_by(None)([1, 2])
    '[1, 2]'
    >>> shown_by(lambda user: user["id"])({"id": "u7", "password": "secret"})
    'u7'
    >>> shown_by(lambda user: user["id"])({"password": "secret"})
    '<item not shown: redact raised KeyError>'
    """
    return short if redact is None else _Shown(redact)


class _Shown:
    """Shows items by a `redact`, or by the pickle of one."""

    def __init__(self, redact: Redact | bytes) -> None:
        self._redact = redact

    def __call__(self, item: Any) -> str:
        try:
            if not callable(self._redact):
                import pickle

                # Unpickled at the first failure, because that may import the user's modules.
                self._redact = pickle.loads(self._redact)
            text = self._redact(item)  # type: ignore[operator]
            if not isinstance(text, str):
                return f"<item not shown: redact returned {type(text).__name__}, not str>"
            text = str.__str__(text)
        except BaseException as error:
            return f"<item not shown: redact raised {type(error).__name__}>"
        return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
