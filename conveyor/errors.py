"""What can go wrong, as types.

Law: every error of a pipeline is a `ConveyorError` (an argument that cannot be used is a TypeError or ValueError),
says which value broke which rule and what to do about it, carries what it says as fields too, and survives
pickling with those fields.
"""

from __future__ import annotations

import signal

from conveyor._lean.dataclasses import dataclass
from conveyor._lean.typing import Any


class ConveyorError(Exception):
    """The base of all errors of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[ConveyorError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> ConveyorError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(fields)
    return error


class RuleError(ConveyorError, ValueError):
    """An element was added where it cannot stand, or none was.

    Fields: `rule`, the number of the rule in docs/rules.md.
    """

    def __init__(self, message: str, rule: int) -> None:
        super().__init__(message)
        self.rule = rule


class StateError(ConveyorError, RuntimeError):
    """The pipeline cannot do this now: it is running, or open, or closed, or has not run yet."""


class JobPicklingError(ConveyorError, TypeError):
    """A job, or the `redact` of the pipeline, has to be sent to a worker and cannot be pickled.

    Fields: `processor`, the name of the Processor; None for the `redact`.
    """

    def __init__(self, message: str, processor: str | None) -> None:
        super().__init__(message)
        self.processor = processor


class MissingMainGuardError(ConveyorError, RuntimeError):
    """A script starts a pipeline while it is being imported by a process of that very pipeline."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or 'The script has no `if __name__ == "__main__":` guard: the processes of a pipeline that are started by '
            '"spawn" or "forkserver" import the script again, and must not start the pipeline again when they do. '
            'Put everything that runs the pipeline under `if __name__ == "__main__":`, or use '
            'Pipeline(start_method="fork") where the system has it.'
        )


class ProcessError(ConveyorError, RuntimeError):
    """A process of the pipeline could not be started, or ended although nobody asked it to.

    Fields: `exitcode`, as in `multiprocessing.Process.exitcode`, None where it is not known.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode


class SourceError(ConveyorError):
    """The input of a run raised an exception, or gave an item that cannot be pickled.

    The exception is the `__cause__`.  Fields: `number`, of the input item, counted from 0; `item`, its
    shortened repr, or what `redact` says instead, None where the source raised instead of giving one.
    """

    def __init__(self, message: str, number: int, item: str | None = None) -> None:
        super().__init__(message)
        self.number = number
        self.item = item

    @classmethod
    def unpicklable(cls, number: int, item: str, cause: BaseException) -> SourceError:
        """Return the error for an item that cannot be sent to the first Processor."""
        return cls(
            f"Input item {number} cannot be pickled for the first Processor ({type(cause).__name__}: {cause}): {item}. "
            "Give plain data instead (a path, a key), and open or build the rest in the job.",
            number,
            item,
        )

    @classmethod
    def raised(cls, number: int, cause: BaseException) -> SourceError:
        """Return the error for a source that raised when it was asked for an item."""
        return cls(f"The input raised {type(cause).__name__} when it was asked for item {number}: {cause}", number)


class ResultError(ConveyorError):
    """A result cannot be unpickled in the calling process; the reason is the `__cause__`."""


class ProcessorError(ConveyorError):
    """A job failed.

    The job's own exception is the `__cause__`, and the traceback that it had in the worker stands behind that;
    where the exception cannot be rebuilt in this process, the `__cause__` is a `RemoteTraceback` alone.

    Fields:
        processor: the name of the Processor.
        phase: what the job was at: "process", "setup", "finish", "teardown", "on_error"; or what failed around it:
            "load" (the job could not be unpickled in its worker), "unpickle" (an item could not), "pickle" (an output
            cannot be), "receive" (an item ended the worker before that had begun it), "wait" (something that the job
            left behind raised between two items, or there was not enough memory for the next one).
        number: of the item, in the order in which items came to that Processor, counted from 0; None where the
            failure is not one item's.
        last: the same, or more where it is not known which of the items from `number` to `last` is to blame; of a
            batch, its last item.
        item: the shortened repr of the item (or batch), or what `redact` says instead; None where there is none.
        kind: the name of the exception's type.
        traceback: the traceback in the worker, as text.
        attempts: how many times the job was called with the item.
    """

    def __init__(
        self,
        message: str,
        *,
        processor: str,
        phase: str = "process",
        number: int | None = None,
        last: int | None = None,
        item: str | None = None,
        kind: str = "",
        traceback: str = "",
        attempts: int = 1,
    ) -> None:
        super().__init__(message)
        self.processor = processor
        self.phase = phase
        self.number = number
        self.last = number if last is None else last
        self.item = item
        self.kind = kind
        self.traceback = traceback
        self.attempts = attempts


class WorkerDiedError(ProcessorError):
    """A worker process died, and that could not be made up for.

    What a worker was at when it died runs again in another, and nothing is lost.  But an item at which two of them died
    is given up; what a job had on `self` is lost unless its class is `restartable`; and where workers die before they
    are ready, again and again, others would too.

    Fields, besides those of `ProcessorError`: `exitcode`, as in `multiprocessing.Process.exitcode`.  `number` and
    `last` are the first and the last of the items that the worker had not yet acknowledged.
    """

    def __init__(
        self, message: str, *, processor: str, exitcode: int | None, number: int | None, last: int | None
    ) -> None:
        super().__init__(message, processor=processor, number=number, last=last, kind="WorkerDiedError")
        self.exitcode = exitcode


class ItemTimeoutError(ProcessorError, TimeoutError):
    """An item took longer than the `timeout` of its Processor; the worker that was at it has been killed.

    Fields, besides those of `ProcessorError`: `seconds`, the timeout.
    """

    def __init__(
        self,
        message: str,
        *,
        processor: str,
        seconds: float,
        number: int | None,
        last: int | None,
        item: str | None = None,
    ) -> None:
        super().__init__(message, processor=processor, number=number, last=last, item=item, kind="ItemTimeoutError")
        self.seconds = seconds


class TooManyFailuresError(ConveyorError):
    """More items were given up than `max_failures` of the Pipeline allows; the last one's error is the `__cause__`.

    Fields: `failures`, how many were given up in this run.
    """

    def __init__(self, message: str, failures: int) -> None:
        super().__init__(message)
        self.failures = failures


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


class RemoteTraceback(Exception):
    """Stands in a chain of exceptions for the traceback that an exception had in another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text.rstrip()


class ImplicitPipeWarning(UserWarning):
    """A Pipe was put in where the rules want one and the pipeline has none."""


class SourceWarning(UserWarning):
    """The input of a run gives other items than its name promises, as a table gives its columns."""


class StartMethodWarning(UserWarning):
    """The pipeline starts its processes in another way than it would without the other threads of the program.

    It comes once in a process for each reason, and only where the user named no start method.
    """


class ImplicitJoinWarning(ImplicitPipeWarning):
    """Branches still open at the end of a pipeline were joined into its results."""


class SharedResourceWarning(UserWarning):
    """A job of several workers holds an open file, connection or client, which all of them would share."""


def cause_of_death(exitcode: int | None) -> str:
    """Say in words how a process ended.

    >>> cause_of_death(3)
    'exited with code 3'
    >>> cause_of_death(-9)
    'was killed by SIGKILL (often the out-of-memory killer)'
    """
    if exitcode is None:
        return "ended in a way that is not known"
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    hints = {
        "SIGKILL": " (often the out-of-memory killer)",
        "SIGSEGV": " (a crash in compiled code)",
        "SIGABRT": " (an abort in compiled code)",
        "SIGBUS": " (memory that could not be provided, or a crash in compiled code)",
    }
    return f"was killed by {name}{hints.get(name, '')}"
