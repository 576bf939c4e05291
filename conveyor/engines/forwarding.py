"""How a worker's log records leave it: a handler in the place of all others.

Law: imported where `logging` has been, and nowhere else.
"""

from __future__ import annotations

import logging
import threading

from conveyor.engines.channels import Gone
from conveyor.engines.records import RECORD, SAID, packed_record
from conveyor.engines.telling import SharedEnd


class Forwarder(logging.Handler):
    """Sends records to the caller, whose own handlers deal with them."""

    def __init__(self, end: SharedEnd) -> None:
        super().__init__()
        self._end = end
        self._within = threading.local()

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock of a handler: a signal handler could not have it amid a record of another thread.
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        depth = getattr(self._within, "depth", 0)
        self._within.depth = depth + 1
        try:
            # What an object says while it is pickled for a record must not have it pickled again.
            self._end.say((SAID, RECORD), [packed_record(record, pickles=not depth)])
        except Gone:
            pass
        except Exception:
            self.handleError(record)
        finally:
            self._within.depth = depth
