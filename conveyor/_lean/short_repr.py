"""How a value is shown in a message.

Law: short, and never an error of its own, whatever the value's `repr` does.
"""

from __future__ import annotations

import reprlib

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
