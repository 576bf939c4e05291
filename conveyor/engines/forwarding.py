"""How a worker's log records get to the caller: its loggers have no handler but the one here.

Law: imported only where `logging` is.  Which records are heard is for the caller's loggers to say.  A process that the
job forks has everything as it was.
"""

from __future__ import annotations

import logging
import threading

from conveyor.engines.channels import Gone
from conveyor.engines.records import Levels, packed_record
from conveyor.engines.said import RECORD, SAID
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


class Loggers:
    """All loggers of this process."""

    def __init__(self, end: SharedEnd, levels: Levels | None) -> None:
        self._levels = levels
        self._forwarder = Forwarder(end)
        # Kept, for a process that the job forks, and lest what they have not written yet be written at their end.
        self._replaced: list[tuple[logging.Logger, list[logging.Handler], bool]] = []

    def take_over(self) -> None:
        """Have all records sent; again, where there may be new handlers."""
        root = logging.getLogger()
        for logger in (root, *root.manager.loggerDict.values()):
            if not isinstance(logger, logging.Logger):
                continue
            handlers = [handler for handler in logger.handlers if handler is not self._forwarder]
            if handlers or not logger.propagate:
                self._replaced.append((logger, handlers, logger.propagate))
            # Which of them are heard is for the caller's loggers to say.
            logger.handlers[:] = [self._forwarder] if logger is root else []
            logger.propagate = True
        if self._levels is not None:
            self._levels.apply()

    def give_back(self) -> None:
        """Have everything as it was."""
        logging.getLogger().removeHandler(self._forwarder)
        for logger, handlers, propagate in self._replaced:
            logger.handlers[:0] = handlers
            logger.propagate = propagate
        self._replaced.clear()
