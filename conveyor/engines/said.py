"""What jobs say beside their results: what kinds there are, warnings to bytes and back, and who hears all that.

Law: what is said is worth less than the run; what the caller's handlers raise is reported, and goes no further.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any

from conveyor.engines.channels import Header
from conveyor.engines.codec import short
from conveyor.engines.plain import pickled, unpickled

# The first word of each message about what was said; the second says what it is.
SAID = "said"
RECORD, WARNING, DROPPED = "record", "warning", "dropped"


def packed_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None
) -> bytes:
    """Return a warning as bytes."""
    try:
        text = str.__str__(str(message))
    except Exception:
        text = short(message)
    where = str.__str__(str(filename)), int(lineno), None if line is None else str.__str__(str(line))
    return pickle.dumps((text, pickled(category), pickled(message), *where), 5)


# In the caller


def hear(header: Header, blobs: list[Any]) -> None:
    """Have the caller's own handlers deal with what was said."""
    kind = header[1]
    if kind == RECORD:
        from conveyor.engines import records

        records.handle(records.record_of(blobs[0]))
    elif kind == WARNING:
        _show(blobs[0])
    elif kind == DROPPED:
        from conveyor.engines import records

        text = "%d log records and warnings of workers were dropped, because they were not taken in time"
        records.handle(records.warning_of("conveyor", text, header[2]))


def _show(blob: Any) -> None:
    text, category_data, message_data, filename, lineno, line = pickle.loads(blob)
    category = unpickled(category_data, UserWarning)
    if not (isinstance(category, type) and issubclass(category, Warning)):
        category = UserWarning
    message = unpickled(message_data, None)
    if not isinstance(message, category):
        # Its own `__init__` may want something else, and is not asked.
        message = Warning.__new__(category, text)
    try:
        # With `line` only where there is one: it came late, and what stands in the place of `showwarning` may lack it.
        warnings.showwarning(message, category, filename, lineno, None, *([] if line is None else [line]))
    except Exception:
        from conveyor.engines import records

        records.report({"name": "py.warnings", "msg": text})
