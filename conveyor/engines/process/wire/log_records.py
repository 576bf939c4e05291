"""Log records and warnings of jobs, to bytes and back.

Law: a log message is worth less than the run.  A value of Python's own types goes as it is; of any other goes its
pickle, together with text for where that cannot be made or undone.  What the caller's handlers raise is reported as
`logging` reports it, and goes no further.  `logging` is imported by who uses it: a program that does not starts sooner.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings

from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.codec import ATOMS

if TYPE_CHECKING:
    import logging

# A value whose pickle is longer goes as text.
PICKLE_BYTES = 64 * 1024
# A collection of more values, or nested deeper, is not looked through: it is pickled by itself.
_PLAIN_VALUES = 100
_PLAIN_DEPTH = 3
# Where the parts of the message stand in a record; they go together, or as one text.
_MESSAGE = ("msg", "args")

# A pickle, None where there is none, and the text that stands for it then.
_Pickled = tuple[bytes | None, str]


# In the worker


def packed_record(record: logging.LogRecord, pickles: bool) -> bytes:
    """Return a record as bytes; raises what making its message raises, where that has to be made here.

    `pickles`: values may be pickled, which runs their own code.
    """
    import logging

    fields: dict[str, Any] = {}
    pickled: dict[str, _Pickled] = {}
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
            pickled[key] = (_pickle(value) if pickles else None, short(value))
    return pickle.dumps((fields, message, pickled), 5)


def _packed_message(record: logging.LogRecord, pickles: bool) -> _Pickled:
    data = _pickle((record.msg, record.args)) if pickles else None
    try:
        return data, str.__str__(record.getMessage())
    except Exception:
        if data is None:
            raise
        # The caller's handlers find out, and report it.
        return data, short(record.msg)


def packed_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None
) -> bytes:
    try:
        text = str.__str__(str(message))
    except Exception:
        text = short(message)
    where = str.__str__(str(filename)), int(lineno), None if line is None else str.__str__(str(line))
    return pickle.dumps((text, _pickle(category), _pickle(message), *where), 5)


def is_plain(value: Any, depth: int = _PLAIN_DEPTH) -> bool:
    """Whether a value and all that is in it is of Python's own types, so that every process can have it.

    >>> is_plain((1, "two", {"three": [None]})), is_plain([print])
    (True, False)
    """
    kind = type(value)
    if kind in ATOMS:
        return True
    if not depth or kind not in (tuple, list, dict) or len(value) > _PLAIN_VALUES:
        return False
    values = [*value, *value.values()] if kind is dict else value
    return all(is_plain(each, depth - 1) for each in values)


def _pickle(value: Any) -> bytes | None:
    with contextlib.suppress(Exception):
        data = pickle.dumps(value, 5)
        if len(data) <= PICKLE_BYTES:
            return data
    return None


# In the caller


def handle_log_message(message: messages.Message, blobs: list[Any]) -> None:
    """Hand what a job logged to the caller's own handlers."""
    if isinstance(message, messages.WarningShown):
        _show(blobs[0])
        return
    try:
        import logging  # noqa: F401
    except Exception:
        # No descriptor is left to read it by, say.
        return
    match message:
        case messages.RecordLogged():
            _handle(record_of(blobs[0]))
        case messages.LogsDropped():
            text = "%d log records, warnings and prints of workers were dropped, because they were not taken in time"
            _handle(_own_record("WARNING", text, message.dropped))
        case messages.NoticeGiven():
            _handle(_own_record(message.level, "%s", message.text))
        case _:
            raise messages.unexpected(message, "The caller's logging")


def _own_record(level: str, text: str, *values: Any) -> logging.LogRecord:
    import logging

    fields = {"name": "conveyor", "levelno": getattr(logging, level), "levelname": level}
    return logging.makeLogRecord({**fields, "msg": text, "args": values})


def record_of(blob: Any) -> logging.LogRecord:
    import logging

    fields, packed, pickled = pickle.loads(blob)
    for key, (data, text) in pickled.items():
        fields[key] = _unpickled(data, text)
    if packed is not None:
        fields["msg"], fields["args"] = _unpickled(packed[0], (packed[1], ()))
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


def _handle(record: logging.LogRecord) -> None:
    import logging

    try:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:
        _report(record)


def _report(record: logging.LogRecord) -> None:
    """Print what a handler raised."""
    import logging

    # It raises where the standard error stream is closed, or of the program's own making.
    with contextlib.suppress(Exception):
        logging.NullHandler().handleError(record)


def _show(blob: Any) -> None:
    text, category_data, message_data, filename, lineno, line = pickle.loads(blob)
    category = _unpickled(category_data, UserWarning)
    if not (isinstance(category, type) and issubclass(category, Warning)):
        category = UserWarning
    message = _unpickled(message_data, None)
    if not isinstance(message, category):
        # Its own `__init__` may want something else, and is not asked.
        message = Warning.__new__(category, text)
    try:
        # With `line` only where there is one: it came late, and what stands in the place of `showwarning` may lack it.
        warnings.showwarning(message, category, filename, lineno, None, *([] if line is None else [line]))
    except Exception:
        with contextlib.suppress(Exception):
            import logging

            _report(logging.makeLogRecord({"name": "py.warnings", "msg": text}))


def _unpickled(data: bytes | None, otherwise: Any) -> Any:
    if data is not None:
        with contextlib.suppress(Exception):
            return pickle.loads(data)
    return otherwise
