"""How a value is shown in a message.

Law: short, and never an error of its own, whatever the value's `repr` does.  Where a pipeline has a `redact`, nothing
but what that returns stands for an item, whatever goes wrong.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable

from conveyor._lean.typing import Any

SHOWN = 200
"""How many characters of a value a message shows at most."""


class _Shortener(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlong = 40


def short(value: Any) -> str:
    """Return a repr of at most `SHOWN` characters, or so many, whatever the value's own does.

    >>> short(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    try:
        text = _Shortener().repr(value)
    except BaseException as error:
        return f"<{type(value).__name__} object whose repr raised {type(error).__name__}>"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


Redact = Callable[[Any], str]


def shown_by(redact: Redact | bytes | None) -> Callable[[Any], str]:
    """Return what makes the text that stands for an item; of a `redact`, or its pickle, or its own repr.

    >>> shown_by(None)([1, 2])
    '[1, 2]'
    >>> shown_by(lambda user: user["id"])({"id": "u7", "password": "secret"})
    'u7'
    >>> shown_by(lambda user: user["id"])({"password": "secret"})
    '<item not shown: redact raised KeyError>'
    """
    return short if redact is None else _Shown(redact)


class _Shown:
    """Has a `redact` show items."""

    def __init__(self, redact: Redact | bytes) -> None:
        self._redact = redact

    def __call__(self, item: Any) -> str:
        try:
            if not callable(self._redact):
                import pickle

                # Not before it is needed: a worker whose items do well need not import what it needs.
                self._redact = pickle.loads(self._redact)
            text = self._redact(item)  # type: ignore[operator]
            if not isinstance(text, str):
                return f"<item not shown: redact returned {type(text).__name__}, not str>"
            text = str.__str__(text)
        except BaseException as error:
            return f"<item not shown: redact raised {type(error).__name__}>"
        return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
