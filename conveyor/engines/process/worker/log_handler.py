"""How a worker's log records leave it: a handler in the place of all others.

Law: `logging` is imported when a handler is wanted, and not before; this module is there by then, whatever has become
of its file.
"""

from __future__ import annotations

import threading

from conveyor._lean.typing import TYPE_CHECKING
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.process.wire.log_records import packed_record
from conveyor.engines.process.wire.messages import RecordLogged

if TYPE_CHECKING:
    import logging

    from conveyor.engines.process.worker.log_capture import SharedEndpoint


def forwarder(end: SharedEndpoint) -> logging.Handler:
    """Return a handler that sends records to the caller, whose own handlers deal with them."""
    import logging

    within = threading.local()

    class Forwarder(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            # Without the lock of a handler: a signal handler could not have it amid a record of another thread.
            self.emit(record)
            return True

        def emit(self, record: logging.LogRecord) -> None:
            depth = getattr(within, "depth", 0)
            within.depth = depth + 1
            try:
                # What an object says while it is pickled for a record must not have it pickled again.
                end.say(RecordLogged(), [packed_record(record, pickles=not depth)])
            except ConnectionLost:
                pass
            except Exception:
                self.handleError(record)
            finally:
                within.depth = depth

    return Forwarder()
