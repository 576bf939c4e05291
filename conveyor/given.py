"""The input of a run, as the user gave it.

Law: nothing here asks the input for an item.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from conveyor._lean.typing import Any
from conveyor.engines.base import Gathering
from conveyor.errors import SourceWarning
from conveyor.stages.settings import check_flag


class Given(list[Any]):
    """The input of a run, as the only element, and how its results are wanted.

    Whoever starts the run takes the input out, so that no frame keeps it alive.
    """

    gathering: Gathering | None = None


def given_of(items: Any, with_input: Any, return_exceptions: Any) -> Given:
    """Return the input of a run; raises TypeError for flags it cannot use.

    It is handed over in a list, so that no frame keeps the input alive once the run has released it.
    """
    given = Given([items])
    if with_input is not False or return_exceptions is not False:
        check_flag("with_input", with_input)
        check_flag("return_exceptions", return_exceptions)
        given.gathering = Gathering(with_input, return_exceptions)
    return given


def warn_of_table(items: object, stacklevel: int) -> None:
    """Warn that iterating over a table of pandas or polars gives its columns, not its rows."""
    kind = type(items)
    if hasattr(kind, "columns") and (hasattr(kind, "__dataframe__") or hasattr(kind, "__arrow_c_stream__")):
        warnings.warn(
            f"the input is a {kind.__name__}, and iterating over it gives its columns, not its rows. Pass "
            "`frame.itertuples(index=False, name=None)` (pandas), `frame.iter_rows()` (polars), or `list(frame)` for "
            "its columns",
            SourceWarning,
            stacklevel + 1,
        )


def iterable_of(items: Any) -> Iterable[Any]:
    """Return an iterable of the items: a str, bytes, or a value that is not iterable is one item."""
    if isinstance(items, str | bytes | bytearray):
        return [items]
    # Ask the type: calling `iter` would start an iterator that can be used only once.
    kind = type(items)
    if hasattr(kind, "shape"):
        # An array without dimensions has `__iter__`, which raises.
        shape = getattr(items, "shape", None)
        if isinstance(shape, tuple) and not shape:
            return [items]
    # A class sets `__iter__` to None where its instances cannot be iterated over.
    iterable = kind.__iter__ is not None if hasattr(kind, "__iter__") else hasattr(kind, "__getitem__")
    return items if iterable else [items]
