"""Log records: to bytes, back, and to the caller's handlers.

Law: what is logged is worth less than the run.  With the pickle of what is not of Python's own types goes text, for
where that cannot be made or undone.  What the caller's handlers raise is reported as `logging` reports it, and goes no
further.  Who has nothing to do with `logging` does not import this: that takes as long as to start a process.
"""

from __future__ import annotations

import logging
import pickle
from typing import Any

from conveyor.engines.codec import short
from conveyor.engines.plain import is_plain, pickled, unpickled
from conveyor.values import NamedTuple

# Where the parts of the message stand in a record; they go together, or as one text.
_MESSAGE = ("msg", "args")

# Prints what a handler raised; it handles nothing itself.
_reporter = logging.NullHandler()

# A pickle, None where there is none, and the text that stands for it then.
_Pickled = tuple[bytes | None, str]


class Levels(NamedTuple):
    """Which records are made at all, as it was set in the caller when the pipeline was opened."""

    root: int
    disabled: int
    loggers: tuple[tuple[str, int, bool], ...]

    def apply(self) -> None:
        """Set them in this process."""
        root = logging.getLogger()
        root.setLevel(self.root)
        logging.disable(self.disabled)
        for name, level, disabled in self.loggers:
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.disabled = disabled


def levels() -> Levels:
    """Return the levels of this process."""
    root = logging.getLogger()
    loggers = [
        (name, logger.level, bool(logger.disabled))
        for name, logger in list(root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and (logger.level or logger.disabled)
    ]
    return Levels(root.level, root.manager.disable, tuple(loggers))


# In the worker


def packed_record(record: logging.LogRecord, pickles: bool) -> bytes:
    """Return a record as bytes; raises what making its message raises, where that has to be made here.

    `pickles`: values may be pickled, which runs their own code.
    """
    fields: dict[str, Any] = {}
    others: dict[str, _Pickled] = {}
    # A traceback is of no use in another process, but for its text.
    values = {**record.__dict__, "exc_info": None}
    if record.exc_info and not record.exc_text:
        values["exc_text"] = logging.Formatter().formatException(record.exc_info)
    # A number or a name of the user's own kind could not be unpickled everywhere.
    values["name"], values["levelno"] = str.__str__(record.name), int(record.levelno)
    message: _Pickled | None = None
    if not all(is_plain(values.get(key)) for key in _MESSAGE):
        message = _packed_message(record, pickles)
        for key in _MESSAGE:
            values.pop(key, None)
    for key, value in values.items():
        if is_plain(value):
            fields[key] = value
        else:
            others[key] = (pickled(value) if pickles else None, short(value))
    return pickle.dumps((fields, message, others), 5)


def _packed_message(record: logging.LogRecord, pickles: bool) -> _Pickled:
    data = pickled((record.msg, record.args)) if pickles else None
    try:
        return data, str.__str__(record.getMessage())
    except Exception:
        if data is None:
            raise
        # The caller's handlers find out, and report it.
        return data, short(record.msg)


# In the caller


def record_of(blob: Any) -> logging.LogRecord:
    """Return the record."""
    fields, message, others = pickle.loads(blob)
    for key, (data, text) in others.items():
        fields[key] = unpickled(data, text)
    if message is not None:
        fields["msg"], fields["args"] = unpickled(message[0], (message[1], ()))
    number = fields["levelno"]
    if fields.get("levelname") == f"Level {number}":
        # A fresh interpreter does not know what the caller calls it.
        fields["levelname"] = logging.getLevelName(number)
    try:
        return logging.makeLogRecord(fields)
    except Exception:
        # A factory of the caller's own, that wants more than `logging` says it gets.
        record = logging.LogRecord("", 0, "", 0, "", None, None)
        record.__dict__.update(fields)
        return record


def handle(record: logging.LogRecord) -> None:
    """Have the caller's own handlers deal with a record."""
    try:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:
        _reporter.handleError(record)


def warning_of(name: str, message: str, *arguments: Any) -> logging.LogRecord:
    """Return a record of our own."""
    fields = {"name": name, "msg": message, "args": arguments, "levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord(fields)


def report(fields: dict[str, Any]) -> None:
    """Have an error that is being handled reported as one of a handler, at a record with these fields."""
    _reporter.handleError(logging.makeLogRecord(fields))
