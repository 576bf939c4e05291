"""Recording: all events and commands of a pipeline as lines of text, and the core driven through them again.

Law: sizes and times only.  A blob becomes a number; an error becomes "opaque".  The first line holds the plan, each
other line one event with its time and what the core wanted then.  Nothing here opens a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any
from conveyor.core import commands, events
from conveyor.core.data.pieces import Weave, spec_of
from conveyor.core.machine import Machine
from conveyor.graph.plan import Node, Plan, Target
from conveyor.stats import Measures

FORMAT = 3
# The keys of what JSON lacks; no field has such a name.  An array is a tuple.
KIND, LIST, BLOB, WOVEN = "is", "[]", "#", "woven"
# The fields that may hold what a job made of items, such as the text of an error.
PRIVATE_FIELDS = frozenset({"error", "cause", "why", "processor"})
OPAQUE = "opaque"


_UNIONS: tuple[Any, ...] = (Node, events.Event, commands.Command)
_CLASSES: dict[str, Any] = {
    each.__name__: each
    for each in (
        Plan,
        Target,
        Measures,
        commands.GiveUp,
        *(kind for union in _UNIONS for kind in union.__args__),
    )
}


class RecordingError(ValueError):
    """A recording cannot be read."""


class Recorder:
    """An observer that writes each event with its commands, as a line.

    `write` takes the bytes of one line.  A line is written when the core has decided, or has raised.  `close` is called
    when nothing more will happen.
    """

    def __init__(
        self,
        plan: Plan,
        opened: float,
        version: str,
        write: Callable[[bytes], object],
        close: Callable[[], object] | None = None,
    ) -> None:
        self._write = write
        self._close = close
        self._encoder = _Encoder()
        self._numbers = count()
        self._line({"format": FORMAT, "conveyor": version, "opened": opened, "plan": self._encoder.encoded(plan)})

    def handled(self, now: float, event: events.Event, wanted: Sequence[commands.Command] | None) -> None:
        """Write an event, and what the core wanted."""
        for blob in _blobs_in(event):
            self._encoder.blobs[id(blob)] = next(self._numbers)
        self._line(
            {
                "at": now,
                "event": self._encoder.encoded(event),
                "wanted": None if wanted is None else [self._encoder.encoded(command) for command in wanted],
            }
        )

    def passed(self, now: float, sender: str, receiver: str, message: object) -> None:
        """Write nothing: what a message makes the core decide comes as an event."""

    def close(self) -> None:
        if self._close is not None:
            self._close()

    def _line(self, value: Any) -> None:
        self._write(json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n")


class _Encoder:
    """Makes what JSON knows of events, commands and plans."""

    def __init__(self) -> None:
        # The number of each blob by its address: a new one has the address of another only after that one has gone.
        self.blobs: dict[int, int] = {}

    def encoded(self, value: Any, field: str = "") -> Any:
        """Return a value of a field as it is written."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if field in PRIVATE_FIELDS:
            return OPAQUE
        if field in ("blob", "blobs", "pieces"):
            return self._sources(field, value)
        if field == "slow":
            return [(*each[:2], OPAQUE) for each in value]
        if field == "given_up":
            return [(*each[:3], OPAQUE) for each in value]
        if _CLASSES.get(type(value).__name__) is type(value):
            fields = _CLASSES[type(value).__name__]._value_fields
            return {KIND: type(value).__name__, **{name: self.encoded(getattr(value, name), name) for name in fields}}
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return {LIST: [self.encoded(each) for each in value]}
        if isinstance(value, tuple):
            return [self.encoded(each) for each in value]
        return OPAQUE

    def _sources(self, field: str, value: Any) -> Any:
        """Return what holds blobs; only here may an address stand for one."""
        if field == "blob":
            return {BLOB: self.blobs[id(value)]}
        if field == "blobs":
            return [[self._sources("blob", blob), items] for blob, items in value]
        if any(type(source) is Weave for source, _, _ in value):
            # As it is sent, so that no weave stands in another.
            spec, blobs = spec_of(value)
            return {WOVEN: [self.encoded(spec), [self._sources("blob", blob) for blob in blobs]]}
        return [[self._sources("blob", source), start, stop] for source, start, stop in value]


def _blobs_in(event: events.Event) -> Iterator[Any]:
    if isinstance(event, events.SourceItems):
        yield event.blob
    elif isinstance(event, events.Replied):
        for blob, _ in event.blobs:
            yield blob


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(each) for each in value)
    if not isinstance(value, dict):
        return value
    if BLOB in value:
        return _Blob(value[BLOB])
    if LIST in value:
        return [_decoded(each) for each in value[LIST]]
    fields = dict(value)
    return _CLASSES[fields.pop(KIND)](**{name: _decoded(each) for name, each in fields.items()})


class _Blob:
    """What stands for the items of a blob."""

    def __init__(self, number: int) -> None:
        self.number = number


class Difference(NamedTuple):
    """Where a replay wants something else than was recorded.

    `event` counts from 1.  `recorded` and `replayed` are commands as they stand in a recording; None: the core raised.
    """

    event: int
    at: float
    kind: str
    recorded: list[Any] | None
    replayed: list[Any] | None


class Replay:
    """The core, driven through a recording.

    `lines` are those of the file.  Raises RecordingError where the first line is no plan, or a line in the middle
    cannot be read.  Where the last line was cut off, the replay ends before it.

    Fields of a finished one: `events` and `commands` count what was replayed; `seconds` is how long it had taken; `cut`
    says that the last line was not whole; `version` is that of the Conveyor that recorded.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self.events = self.commands = 0
        self.seconds = 0.0
        self.cut = False
        self._lines = iter(lines)
        head = next(self._lines, b"")
        try:
            first = json.loads(head)
            if first["format"] != FORMAT:
                raise RecordingError(f"it has format {first['format']}, and this Conveyor reads format {FORMAT}")
            self.version = str(first["conveyor"])
            self._opened = float(first["opened"])
            self._machine = Machine(_decoded(first["plan"]), self._opened)
        except RecordingError:
            raise
        except Exception as error:
            raise RecordingError(f"its first line holds no plan ({type(error).__name__}: {error})") from error
        self._encoder = _Encoder()

    def run(self) -> Difference | None:
        """Replay all events; return the first difference, None where there is none."""
        for line, is_last in _with_last(self._lines):
            try:
                entry = json.loads(line)
                now, event = float(entry["at"]), _decoded(entry["event"])
                recorded = entry["wanted"]
            except Exception as error:
                if is_last:
                    self.cut = True
                    return None
                raise RecordingError(
                    f"line {self.events + 2} holds no event ({type(error).__name__}: {error})"
                ) from error
            self.events += 1
            self.seconds = now - self._opened
            replayed = self._replayed(event, now)
            if replayed != recorded:
                return Difference(self.events, self.seconds, type(event).__name__, recorded, replayed)
            self.commands += len(replayed or ())
        return None

    def _replayed(self, event: events.Event, now: float) -> list[Any] | None:
        for blob in _blobs_in(event):
            self._encoder.blobs[id(blob)] = blob.number
        try:
            return [self._encoder.encoded(command) for command in self._machine.handle(event, now)]
        except Exception:
            return None


def _with_last(lines: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each line, and whether it is the last."""
    line = next(lines, None)
    while line is not None:
        following = next(lines, None)
        yield line, following is None
        line = following
