"""Failures of jobs, as the worker describes them, and the error that the caller raises.

Law: whatever a user's exception does, the worst result is a shorter report.  Its `repr` may raise, and its fields may
refuse to be pickled.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.errors import (
    HOST_LOST_EXITCODE,
    FailedItem,
    ItemTimeoutError,
    ProcessorError,
    RemoteTraceback,
    ResultError,
    SourceError,
    TooManyFailuresError,
    WorkerDiedError,
    cause_of_death,
)
from conveyor.stages.outputs import StageError

if TYPE_CHECKING:
    from conveyor.core.commands import LossReason


class Failure(NamedTuple):
    """An exception on its way to the caller; `pickled` is None where the caller could not rebuild it.

    Where the exception stays in its process, it stands there itself.
    """

    phase: str
    kind: str
    message: str
    traceback: str
    pickled: bytes | BaseException | None
    item: str | None
    attempts: int = 1
    processor: str | None = None

    def about(self, output: str) -> Failure:
        """Return the failure with the output named in its message."""
        return self._replace(message=f"{self.message} (the output was {output})")


class DiedAt(NamedTuple):
    """An item was given up because workers died at it, the last one with `exitcode`."""

    exitcode: int | None
    item: str | None


# What becomes of a worker that was too long at an item.
WORKER_KILLED = "the worker was killed"
THREAD_ABANDONED = "its thread was abandoned, as a thread cannot be killed"
CALL_CANCELLED = "the call was cancelled"


class OverdueAt(NamedTuple):
    """An item was given up because it took longer than the timeout of `seconds`; `end` says what came of that.

    `attempts`: how many there were, where the worker itself knows that.
    """

    seconds: float
    item: str | None
    end: str = WORKER_KILLED
    attempts: int = 1


GivenUpFor = Failure | DiedAt | OverdueAt


class LeaseFailed(Exception):
    """A lease failed at its call of this index, or at an unknown one (None)."""

    def __init__(self, index: int | None, failure: Any) -> None:
        super().__init__(index)
        self.index = index
        self.failure = failure


def failure_of(
    error: BaseException, phase: str, item: str | None = None, attempts: int = 1, stays: bool = False
) -> Failure:
    """Describe an exception so that another process can raise it again; `stays`: so that this one can."""
    if isinstance(error, StageError) and error.__cause__ is not None:
        failure = failure_of(error.__cause__, phase, item, attempts, stays)
        return failure._replace(processor=error.processor)
    pickled: bytes | None = None
    if stays:
        text = traceback_of(error)
        # The frames of this package hold items.
        error = error.with_traceback(without_our_frames(error.__traceback__))
        return Failure(phase, type(error).__name__, message_of(error), text, error, item, attempts)
    with contextlib.suppress(BaseException):
        dumped = pickle.dumps(error, 5)
        if type(pickle.loads(dumped)) is type(error):
            pickled = dumped
    return Failure(phase, type(error).__name__, message_of(error), traceback_of(error), pickled, item, attempts)


def is_of_job(error: BaseException) -> bool:
    """Whether an exception in a call of the user's code is that code's own, and not there to end the program.

    A job raises CancelledError where it awaits what was cancelled: the inline engine cancels no call.
    """
    if isinstance(error, Exception | SystemExit):
        return True
    exceptions = sys.modules.get("asyncio.exceptions")
    return exceptions is not None and isinstance(error, exceptions.CancelledError)


def message_of(error: BaseException) -> str:
    """Return the message of a user's exception; never raises."""
    try:
        # `join` turns an instance of a user's subclass into a plain str, which every process can unpickle.
        return "".join(str(error))
    except BaseException as second:
        return f"<its message could not be made: {type(second).__name__}>"


def traceback_of(error: BaseException) -> str:
    frames = None
    try:
        frames = without_our_frames(error.__traceback__) or error.__traceback__
        # The import is slow, and most programs never need it.
        import traceback

        return "".join(traceback.format_exception(type(error), error, frames))
    except BaseException as second:
        # Without free descriptors or memory, Python cannot import the module or read the source text.
        name = type(second).__name__
        return f"{_traceback_lines(frames)}{type(error).__name__} (more of its traceback could not be made: {name})\n"


def without_our_frames(frames: TracebackType | None) -> TracebackType | None:
    """Return a traceback without its first frames, as far as these are of this package: they tell a user nothing."""
    while frames is not None and _is_ours(frames.tb_frame):
        frames = frames.tb_next
    return frames


def clear_our_frames(frames: TracebackType | None) -> None:
    """Clear the finished frames of this package, so that they keep nothing alive.

    From Python 3.13 on, a user's frame in a traceback refers to its callers.
    """
    while frames is not None:
        frame: FrameType | None = frames.tb_frame
        if not _is_ours(frames.tb_frame):
            frame = frames.tb_frame.f_back
        while frame is not None and _is_ours(frame):
            # `clear` raises for a frame that still runs.
            with contextlib.suppress(RuntimeError):
                frame.clear()
            frame = frame.f_back
        frames = frames.tb_next


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return isinstance(name, str) and name.startswith("conveyor.")


def _traceback_lines(frames: TracebackType | None) -> str:
    lines = []
    while frames is not None:
        code = frames.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {frames.tb_lineno}, in {code.co_name}\n')
        frames = frames.tb_next
    return "Traceback (most recent call last):\n" + "".join(lines)


_WHAT_HAPPENED = {
    "process": "Processor {name!r} raised {kind}",
    "pickle": "Processor {name!r} gave an output that cannot be pickled for the next process: {kind}",
    "unpickle": "Processor {name!r} got an item that cannot be unpickled in its process: {kind}",
    "setup": "setup() of Processor {name!r} raised {kind}",
    "finish": "finish() of Processor {name!r} raised {kind}",
    "wait": "A signal handler or finalizer of the job of Processor {name!r} raised {kind} between two items",
    "on_error": "on_error of Processor {name!r} raised {kind}",
    "teardown": "teardown() of Processor {name!r} raised {kind}",
    "load": "The job of Processor {name!r} could not be loaded in its worker: {kind}",
}
_NO_MEMORY = "The worker process of Processor {name!r} had not enough memory to receive its next items: {kind}"


def unpicklable_input(number: int, item: str, cause: BaseException) -> SourceError:
    """Return the error for an input item, as `item` shows it, that cannot be sent to the first Processor."""
    return SourceError(
        f"Input item {number} cannot be pickled for the first Processor ({type(cause).__name__}: "
        f"{message_of(cause)}): {item}. Give plain data instead, such as a path or a key, "
        "and let the job open or build the rest.",
        number,
        item,
    )


def source_raised(number: int, cause: BaseException) -> SourceError:
    """Return the error for an input that raised when it was asked for item `number`."""
    return SourceError(
        f"The input raised {type(cause).__name__} when it was asked for item {number}: {message_of(cause)}", number
    )


def unpicklable_result(cause: BaseException) -> ResultError:
    """Return the error for a result that cannot be unpickled in the calling process."""
    error = ResultError(
        f"A result could not be unpickled in the calling process ({type(cause).__name__}: {message_of(cause)}). "
        "Return plain data, or objects that can be rebuilt from their pickle."
    )
    error.__cause__ = cause
    return error


def processor_error(
    name: str,
    failure: Failure | OverdueAt,
    number: int | None,
    last: int | None = None,
    original: BaseException | None = None,
) -> ProcessorError:
    """Return the error to raise for a failure, with the job's exception as its cause.

    `number` and `last` are the first and the last item that may be to blame.  `original` is the job's exception, if
    this process raised it.
    """
    if isinstance(failure, OverdueAt):
        return overdue(name, failure.seconds, number, number if last is None else last, failure.item, failure.end)
    if failure.processor is not None:
        # The job was fused with others; the failure names the one that raised.
        name = failure.processor
    happened = _NO_MEMORY if (failure.phase, failure.kind) == ("wait", "MemoryError") else _WHAT_HAPPENED[failure.phase]
    message = happened.format(name=name, kind=failure.kind)
    if failure.message:
        message += f": {failure.message}"
    if number is not None:
        items = f"item {number}" if last in (None, number) else f"items {number} to {last}"
        if failure.phase == "unpickle" and last != number:
            items = f"one of {items}"
        message += f" [{items}]" if failure.item is None else f" [{items}: {failure.item}]"
    if failure.attempts > 1:
        message += f" after {failure.attempts} attempts"
    if failure.phase == "pickle":
        message += ". Return plain data, or objects that can be pickled"
    error = ProcessorError(
        message,
        processor=name,
        phase=failure.phase,
        number=number,
        last=last,
        item=failure.item,
        kind=failure.kind,
        traceback=failure.traceback,
        attempts=failure.attempts,
    )
    if isinstance(failure.pickled, BaseException):
        original = failure.pickled
    if original is not None:
        # Nothing is assigned: the exception may be a frozen dataclass.
        original.with_traceback(without_our_frames(original.__traceback__) or original.__traceback__)
    error.__cause__ = original
    if original is None:
        remote = RemoteTraceback(failure.traceback)
        error.__cause__ = remote
        if isinstance(failure.pickled, bytes):
            with contextlib.suppress(Exception):
                rebuilt = pickle.loads(failure.pickled)
                rebuilt.__cause__ = remote
                error.__cause__ = rebuilt
    return error


def overdue(
    name: str, seconds: float, first: int | None, last: int | None, item: str | None = None, end: str = WORKER_KILLED
) -> ItemTimeoutError:
    """Return the error for an item or a batch that exceeded a Processor's timeout; None: its number is not known."""
    items = "an item" if first is None else f"item {first}" if last == first else f"items {first} to {last}"
    shown = "" if item is None else f": {item}"
    return ItemTimeoutError(
        f"Processor {name!r} took longer than its timeout of {seconds:g} s [{items}{shown}]: {end}. "
        "Raise the timeout, or find out what the job waits for.",
        processor=name,
        seconds=seconds,
        number=first,
        last=last,
        item=item,
    )


def failed_item(name: str, first: int, last: int, attempts: int, when: float, why: GivenUpFor) -> FailedItem:
    error: ProcessorError
    match why:
        case DiedAt():
            error = death(name, "process", why.exitcode, first, last, "item")
            error.item = why.item
        case OverdueAt():
            error = overdue(name, why.seconds, first, last, why.item, why.end)
        case Failure():
            error = processor_error(name, why, first, last)
        case _:
            raise TypeError(f"An item cannot be given up for {why!r}: give a Failure, DiedAt or OverdueAt.")
    error.attempts = attempts
    return FailedItem(name, first, last, why.item, error, attempts, when)


def too_many_failures(count: int, most: int | float | None, failures: Sequence[FailedItem]) -> TooManyFailuresError:
    """Return the error for a run that gave up more items than `max_failures` allows."""
    items = "1 item was" if count == 1 else f"{count} items were"
    share = f"{most:g}" if isinstance(most, int) else f"a share of {most:g} of what comes to a Processor"
    if len(failures) == count:
        kept = "It is" if count == 1 else "They are"
    else:
        kept = "The last one is" if len(failures) == 1 else f"The last {len(failures)} are"
    error = TooManyFailuresError(
        f"{items} given up, and max_failures allows {share}: the run was stopped. {kept} in "
        "`failures` of the pipeline.",
        count,
    )
    if failures:
        error.__cause__ = failures[-1].error
    return error


_WHY_IT_ENDS_THE_RUN: dict[LossReason, str] = {
    "item": ", as did the workers that had it before. The item is given up",
    "state": (
        ". The state that its job kept on `self` is lost. If a new worker may start without it, declare "
        "`restartable = True` in the class of the job"
    ),
    "unpickle": (
        " and unpickled its input, as did the workers before it. One item ends every process that unpickles it. Items "
        "are pickled together, so nobody can tell which it is"
    ),
    "receive": (
        " and had started none, as did the workers before it. The items may be too large for its memory: send smaller "
        "ones, such as paths"
    ),
    "setup": ", as did the workers before it",
    "wait": (
        " while it had nothing to do, as did the workers before it. No item is to blame; a thread that the job "
        "started may be"
    ),
    "finish": " in `finish`, which cannot be called again: no other worker has seen the same items",
}


def death(
    name: str, phase: str, exitcode: int | None, first: int | None, last: int | None, loss: LossReason
) -> WorkerDiedError:
    """Return the error to raise for a dead worker that no other can replace.

    `first` and `last` are the items that it had not acknowledged.
    """
    message = f"The worker process of Processor {name!r} {cause_of_death(exitcode)}"
    if first is not None:
        message += f" while it had item {first}" if last == first else f" while it had items {first} to {last}"
    elif phase == "setup":
        message += " before it was ready"
    message += _WHY_IT_ENDS_THE_RUN[loss]
    known = None if exitcode == HOST_LOST_EXITCODE else exitcode
    error = WorkerDiedError(message + ".", processor=name, exitcode=known, number=first, last=last)
    error.phase = phase
    return error
