"""Who observes the core of a broker: the debug log and the recorder, where the user asked for them.

Law: an observer changes nothing.  One that cannot write any more stops, and the run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.messages import NoticeGiven

if TYPE_CHECKING:
    from conveyor.core.shell import Observer
    from conveyor.engines.process.broker.log_relay import LogRelay
    from conveyor.engines.process.wire.configs import BrokerConfig

RECORD_VARIABLE = "CONVEYOR_RECORD"
"""The environment variable that names the file for `python -m conveyor replay`."""


def observers_of(config: BrokerConfig, opened: float, logs: LogRelay, inherited_fds: list[Any]) -> list[Observer]:
    """Return the observers that the configuration asks for.

    What a forked worker is to close, because it belongs to an observer, is appended to `inherited_fds`.
    """
    observers: list[Observer] = []
    if config.tells_story:
        from conveyor.core.story import Story

        observers.append(
            Story(config.plan, opened, lambda text: logs.pass_on(NoticeGiven("DEBUG", text), []), describe)
        )
    if config.record_to is not None:
        from conveyor.core.recording import Recorder

        version = str(vars(sys.modules["conveyor"])["__version__"])
        appender = _Appender(config.record_to, logs)
        inherited_fds.append(appender)
        observers.append(Recorder(config.plan, opened, version, appender.write, appender.close))
    return observers


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
