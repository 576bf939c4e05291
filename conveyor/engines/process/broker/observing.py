"""Who observes the core of a broker: the debug log, the recorder and the trace, where the user asked for them.

Law: an observer changes nothing.  One that cannot write any more stops, and the run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.messages import NoticeGiven

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conveyor.core.commands import Command
    from conveyor.core.events import Event
    from conveyor.core.machine import Machine
    from conveyor.core.shell import Observer
    from conveyor.core.trace import KeptTrace, Trace
    from conveyor.engines.process.broker.log_relay import LogRelay
    from conveyor.engines.process.wire.configs import BrokerConfig

# Whoever closes the pipeline waits for the file.
COMPRESS_LEVEL = 3
RECORD_VARIABLE = "CONVEYOR_RECORD"
"""The environment variable that names the file for `python -m conveyor replay`."""


def observers_of(
    config: BrokerConfig, machine: Machine, opened: float, logs: LogRelay, inherited_fds: list[Any]
) -> list[Observer]:
    """Return the observers of a machine that the configuration asks for.

    What a forked worker is to close, because it belongs to an observer, is appended to `inherited_fds`.
    """
    observers: list[Observer] = []
    if config.tells_story:
        from conveyor.core.story import Story

        story = Story(config.plan, opened, lambda text: logs.pass_on(NoticeGiven("DEBUG", text), []), describe)
        observers.append(_Harmless(story, "debug log", logs))
    if config.record_to is not None:
        from conveyor.core.recording import Recorder

        version = str(vars(sys.modules["conveyor"])["__version__"])
        appender = _Appender(config.record_to, logs)
        inherited_fds.append(appender)
        recorder = Recorder(config.plan, opened, version, appender.write, appender.close)
        observers.append(_Harmless(recorder, f"recording {config.record_to}", logs))
    if config.trace_to is not None:
        from conveyor.core.trace import Trace

        observers.append(_TraceWriter(config.trace_to, Trace(config.plan, machine, opened), logs))
    return observers


def kept_trace(observers: Iterable[Observer]) -> KeptTrace | None:
    """Return what was traced so far; None where nobody traces."""
    for observer in observers:
        if isinstance(observer, _TraceWriter):
            return observer.trace.kept()
    return None


# Sentences for messages that say what no event of the core does; a function gets the sender and the message.
_SENTENCES: dict[type, Callable[[str, Any], str]] = {
    messages.Opened: lambda sender, message: "all workers are ready",
    messages.ForwardPrints: lambda sender, message: f"workers forward {' and '.join(message.streams)} from now on",
    messages.FailedBySource: lambda sender, message: f"run {message.run} fails: its source raised",
    messages.FailedByBroker: lambda sender, message: "the broker itself failed",
    messages.WorkerFailed: lambda sender, message: f"{sender} reports that {message.failure.phase!r} of its job failed",
    messages.Close: lambda sender, message: "the caller closes the pipeline",
    messages.Abort: lambda sender, message: "the caller ends everything at once",
    messages.Closed: lambda sender, message: f"{sender} ends" if sender != "broker" else "the broker ends",
}


def describe(sender: str, receiver: str, message: object) -> str:
    """Return a sentence for a message; "" for one to a worker, as commands of the core tell that, and for most others.

    >>> describe("caller", "broker", messages.Close()), describe("broker", "worker 0", messages.Close())
    ('the caller closes the pipeline', '')
    """
    sentence = None if receiver.startswith("worker") else _SENTENCES.get(type(message))
    return "" if sentence is None else sentence(sender, message)


class _Harmless:
    """Leaves out an observer that has raised; the caller is told once."""

    def __init__(self, observer: Observer, what: str, logs: LogRelay) -> None:
        self._observer = observer
        self._what = what
        self._logs = logs
        self._works = True

    def handled(self, now: float, event: Event, wanted: Sequence[Command] | None) -> None:
        """Have the observer take in an event, and what the core wants."""
        if self._works:
            try:
                self._observer.handled(now, event, wanted)
            except Exception as error:
                self._leave_out(error)

    def passed(self, now: float, sender: str, receiver: str, message: object) -> None:
        """Have the observer see a message."""
        if self._works:
            try:
                self._observer.passed(now, sender, receiver, message)
            except Exception as error:
                self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        # Before the caller is told: that is a message, too.
        self._works = False
        text = f"The {self._what} ends here: {str(error) or type(error).__name__}."
        self._logs.pass_on(NoticeGiven("WARNING", text), [])

    def close(self) -> None:
        """Have the observer close what it writes to."""
        try:
            self._observer.close()
        except Exception as error:
            if self._works:
                self._leave_out(error)


class _TraceWriter:
    """Writes a trace at the end.  One that fails ends there, and the caller is told once."""

    def __init__(self, path: str, trace: Trace, logs: LogRelay) -> None:
        self._path = path
        self.trace = trace
        self._logs = logs
        self._works = True

    def handled(self, now: float, event: Event, wanted: Sequence[Command] | None) -> None:
        """Have the trace take in an event, and what the core wants."""
        if self._works:
            try:
                self.trace.handled(now, event, wanted)
            except Exception as error:
                self._fail("ends here", error)

    def passed(self, now: float, sender: str, receiver: str, message: object) -> None:
        """Messages are not in a trace."""

    def _fail(self, what: str, error: Exception) -> None:
        self._works = False
        text = f"The trace {self._path} {what}: {str(error) or type(error).__name__}."
        self._logs.pass_on(NoticeGiven("WARNING", text), [])

    def close(self) -> None:
        """Write the file."""
        opens: Any = open
        if self._path.endswith(".gz"):
            import gzip

            opens = partial(gzip.open, compresslevel=COMPRESS_LEVEL)
        try:
            self.trace.close()
            with opens(self._path, "wt", encoding="utf-8") as file:
                file.writelines(self.trace.lines())
        except Exception as error:
            self._fail("could not be written", error)


class _Appender:
    """Appends to a file, unbuffered, so that what the core decided last is there when the broker is killed."""

    def __init__(self, path: str, logs: LogRelay) -> None:
        self._path = path
        self._logs = logs
        self._works = True
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def write(self, line: bytes) -> None:
        """Write a line; the first that fails is the last, and the caller is told."""
        if self._works:
            try:
                self._file.write(line)
            except OSError as error:
                self._works = False
                self._logs.pass_on(NoticeGiven("WARNING", f"The recording {self._path} ends here: {error}."), [])

    def close(self) -> None:
        """Close the file."""
        self._works = False
        self._file.close()
