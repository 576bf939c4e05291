"""Items that were given up.

Law: an immutable value, made once, of which everything is known when it is made.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import dataclass
from conveyor.errors import ProcessorError


@dataclass(frozen=True)
class FailedItem:
    """An item, or with `batch` a list of items, that was given up, as the `on_error` of its Processor says.

    `processor` is the name of the Processor, and `number` that of the item, counted from 0 in the order in which items
    came to it; `last` is the same, or the number of the last item of a batch.  `item` is its shortened repr, or what
    `redact` says instead, None where nobody looked at it.  `error` is what would have been raised, with the job's own
    exception as its cause and the traceback in the worker as `error.traceback`.  `attempts` is how many times the job
    was called with it, and `when` the time of the last failure, in seconds since the epoch.
    """

    processor: str
    number: int
    last: int
    item: str | None
    error: ProcessorError
    attempts: int
    when: float
