"""The errors and warnings of the package.

Law: every error of a pipeline is a `ConveyorError`; a wrong argument is a TypeError or ValueError.  The message names
the value, the rule it broke and the remedy.  The same facts are fields, and pickling keeps them.
"""

from __future__ import annotations

import signal

from conveyor._lean.dataclasses import dataclass
from conveyor._lean.short_repr import SHOWN
from conveyor._lean.typing import Any

# Of what was given up, so many are printed.
MOST_LINES = 100


class ConveyorError(Exception):
    """The base of all errors of this package.

    >>> from conveyor import Pipeline
    >>> try:
    ...     results = Pipeline(engine="inline").run([1])
    ... except ConveyorError as error:
    ...     print(type(error).__name__, error, sep=": ")
    RuleError: the pipeline is empty: add a Processor first, as in .add(Processor(load))
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[ConveyorError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> ConveyorError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(fields)
    return error


class RuleError(ConveyorError, ValueError):
    """An element was added where it cannot stand, or none was.

    Fields: `rule`, the number of the rule in docs/reference/rules.md.
    """

    def __init__(self, message: str, rule: int) -> None:
        super().__init__(message)
        self.rule = rule


class StateError(ConveyorError, RuntimeError):
    """The pipeline cannot do this now: it is running, or open, or closed, or has not run yet."""


class JobPicklingError(ConveyorError, TypeError):
    """A job, an object of `shared`, or the `redact` of the pipeline cannot be pickled, and workers need its pickle.

    Fields: `processor`, the name of the Processor (a str); None where it is not the job of one Processor.
    """

    def __init__(self, message: str, processor: str | None) -> None:
        super().__init__(message)
        self.processor = processor


class MissingMainGuardError(ConveyorError, RuntimeError):
    """A script starts a pipeline while it is being imported by a process of that very pipeline."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or 'The script has no `if __name__ == "__main__":` guard. With "spawn" or "forkserver", the processes of '
            "the pipeline import the script, and must not start the pipeline again. "
            'Put everything that runs the pipeline under `if __name__ == "__main__":`, or use '
            'Pipeline(start_method="fork") where the system has it.'
        )


class ProcessError(ConveyorError, RuntimeError):
    """A process of the pipeline could not be started, or ended although nobody asked it to.

    Fields: `exitcode` (an int), as in `multiprocessing.Process.exitcode`; None where it is not known.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode


class SourceError(ConveyorError):
    """The input of a run raised an exception, or gave an item that cannot be pickled.

    The exception is the `__cause__`.

    Fields:
        number: the number of the input item, an int counted from 0.
        item: the str that shows the item: what `redact` returns, or the shortened repr; None where the source raised.
    """

    def __init__(self, message: str, number: int, item: str | None = None) -> None:
        super().__init__(message)
        self.number = number
        self.item = item


class ResultError(ConveyorError):
    """A result cannot be unpickled in the calling process; the reason is the `__cause__`."""


class ProcessorError(ConveyorError):
    """A job failed.

    The job's own exception is the `__cause__`, and its traceback in the worker is the `__cause__` of that.  If this
    process cannot rebuild the exception, the `__cause__` is a `RemoteTraceback`.

    Fields:
        processor: the name of the Processor, a str.
        phase: what failed, a str.  The job itself: "process", "setup", "finish", "teardown" or "on_error".  Around it:
            "load": the worker could not unpickle the job.
            "unpickle": the worker could not unpickle an item.
            "pickle": the worker could not pickle an output.
            "receive": the worker died while it received an item.
            "wait": a signal handler or thread of the job raised between two items, or memory ran out there.
        number: the number of the item, an int counted from 0 in the order in which items came to the Processor; None
            where the failure does not belong to an item.
        last: the number of the last item that may be to blame, an int or None.  It differs from `number` for a batch,
            or where nobody knows which item it was.
        item: the str that shows the item (or batch): what `redact` returns, or the shortened repr; None where there
            is no item.
        kind: the name of the exception's type, a str.
        traceback: the traceback in the worker, a str; "" where there is none.
        attempts: how many times the job was called with the item, an int.

    >>> from conveyor import Pipeline, Processor
    >>> try:
    ...     results = Pipeline(engine="inline").add(Processor(int)).run(["1", "two"])
    ... except ProcessorError as error:
    ...     print(error.processor, error.phase, error.number, error.item, error.kind, error.attempts)
    int process 1 'two' ValueError 1
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
    """A worker process died, and no other worker could take over its items.

    When a worker dies, another worker usually repeats its items, and nothing is lost.  This error is raised where:

    - workers died at one item again and again;
    - the job kept state on `self`, and its class does not declare `restartable = True`;
    - workers died again and again before they were ready.

    Fields, besides those of `ProcessorError`: `exitcode` (an int, or None where it is not known), as in
    `multiprocessing.Process.exitcode`.  `number` and `last` are the first and the last of the items that the worker had
    not acknowledged.
    """

    def __init__(
        self, message: str, *, processor: str, exitcode: int | None, number: int | None, last: int | None
    ) -> None:
        super().__init__(message, processor=processor, number=number, last=last, kind="WorkerDiedError")
        self.exitcode = exitcode


class ItemTimeoutError(ProcessorError, TimeoutError):
    """A call took longer than the `timeout` of its Processor.

    Its worker was killed, its thread abandoned, or the call of an async job cancelled.

    Fields, besides those of `ProcessorError`: `seconds` (a float), the timeout.
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
    """More items were given up than `max_failures` of the Pipeline allows.

    The error of the last such item is the `__cause__`.  Fields: `failures` (an int), how many items were given up in
    this run.
    """

    def __init__(self, message: str, failures: int) -> None:
        super().__init__(message)
        self.failures = failures


# What goes wrong in the program's own code: the frames of this package tell its reader nothing, and are left out.
OF_THE_PROGRAM = (ProcessorError, SourceError, TooManyFailuresError)


@dataclass(frozen=True)
class FailedItem:
    """An item (with `batch`, a list of items) that was given up, by an `on_error` or `return_exceptions`.

    Fields:
        processor: the name of the Processor.
        number: the number of the item, counted from 0 in the order in which items came to the Processor.
        last: the number of the last item of a batch; else `number`.
        item: the text that shows the item: what `redact` returns, or the shortened repr; None where no process
            had unpickled it.
        error: the error that the run would have raised otherwise.  Its cause is the job's own exception.
        attempts: how many times the job was called with the item.
        when: the time of the last failure, in seconds since the epoch.

    >>> from conveyor import Pipeline, Processor
    >>> pipeline = Pipeline(engine="inline").add(Processor(int, on_error="skip", retries=1, backoff=0))
    >>> pipeline.run(["1", "two"])
    [1]
    >>> [failed] = pipeline.failures
    >>> failed.processor, failed.number, failed.item, failed.error.kind, failed.attempts
    ('int', 1, "'two'", 'ValueError', 2)

    Its `str` is a line for a reader, with at most 200 characters of the item, and as many of the error:

    >>> print(failed)
    int: item 1 ('two') failed after 2 attempts: ValueError: invalid literal for int() with base 10: 'two'
    """

    processor: str
    number: int
    last: int
    item: str | None
    error: ProcessorError
    attempts: int
    when: float

    def __str__(self) -> str:
        items = f"item {self.number}" if self.last == self.number else f"items {self.number} to {self.last}"
        shown = "" if self.item is None else f" ({self.item})"
        attempts = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return " ".join(f"{self.processor}: {items}{shown} failed{attempts}: {_reason(self.error)}".splitlines())


class FailedItems(tuple[FailedItem, ...]):
    """What `Pipeline.failures` is: a tuple, which has a line for each item as its `str`, and is a table in a notebook.

    The `str` has the first 100 lines, and says how many more there are.  The `repr` is that of a tuple.

    >>> from conveyor import Pipeline, Processor
    >>> pipeline = Pipeline(engine="inline").add(Processor(int, on_error="skip"))
    >>> print(pipeline.run(["1", "two", "", "4"]), pipeline.failures, sep="\\n")
    [1, 4]
    int: item 1 ('two') failed: ValueError: invalid literal for int() with base 10: 'two'
    int: item 2 ('') failed: ValueError: invalid literal for int() with base 10: ''
    """

    __slots__ = ()

    def __str__(self) -> str:
        if not self:
            return "no item was given up"
        lines = [str(failed) for failed in self[:MOST_LINES]]
        if len(self) > MOST_LINES:
            lines.append(f"and {len(self) - MOST_LINES:,} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        # By its name: what is told does not know who shows it.
        from importlib import import_module

        html = import_module("conveyor.views.html")
        shown: str = html.in_notebook(html.failures_table(self))
        return shown


class RemoteTraceback(Exception):
    """The traceback that an exception had in another process or thread, as the cause of that exception.

    Fields: `text`, the traceback (a str).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text.rstrip()


def _reason(error: ProcessorError) -> str:
    """Return in a line why an item was given up; whatever the job's exception does, never raises."""
    if isinstance(error, ItemTimeoutError):
        return f"{error.kind}: it took longer than {error.seconds:g} s"
    if isinstance(error, WorkerDiedError):
        return f"{error.kind}: its worker {cause_of_death(error.exitcode)}"
    cause, message = error.__cause__, ""
    if cause is None or isinstance(cause, RemoteTraceback):
        # The last line: the exception could not be rebuilt in this process, or not with its cause.
        message = error.traceback.rstrip().rpartition("\n")[2].partition(": ")[2]
    else:
        try:
            message = str(cause)
        except Exception as second:
            message = f"<its message could not be made: {type(second).__name__}>"
    reason = f"{error.kind}: {message}" if message else error.kind
    return reason if len(reason) <= SHOWN else reason[: SHOWN - 3] + "..."


class ImplicitPipeWarning(UserWarning):
    """The rules want a Pipe here, and `add` has put one in."""


class SourceWarning(UserWarning):
    """The input of a run gives other items than one would think: a table gives its columns."""


class StartMethodWarning(UserWarning):
    """Other threads of the program make a fork unsafe, and that affects how the pipeline starts its processes.

    A process warns once for each reason, and only where the user named no start method.
    """


class AbandonedThreadWarning(UserWarning):
    """A thread of the thread engine goes on although nobody waits for it any more: its job has not returned.

    It was too long at an item, or the pipeline has ended meanwhile.
    """


class ImplicitJoinWarning(ImplicitPipeWarning):
    """Branches still open at the end of a pipeline were joined into its results."""


class SharedResourceWarning(UserWarning):
    """A job holds an open file, connection or client, and several workers would share it."""


# In the place of the exit code of a worker that was lost with all else on its machine.  It is that of no process.
HOST_LOST_EXITCODE = -1_000


def cause_of_death(exitcode: int | None) -> str:
    """Return in words how a process with this exit code ended.

    >>> cause_of_death(3)
    'exited with code 3'
    >>> cause_of_death(-9)
    'was killed by SIGKILL (often the out-of-memory killer)'
    """
    if exitcode is None:
        return "ended in a way that is not known"
    if exitcode == HOST_LOST_EXITCODE:
        return "was lost with its node"
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
