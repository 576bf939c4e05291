"""The trace of a pipeline, in the Trace Event Format, which Perfetto and `chrome://tracing` open.

Law: an observer of the core, and a reader of it; it changes nothing, and holds no item.  The newest `RING_EVENTS` are
kept, as numbers, so that a pipeline that runs for months does not grow.  Nothing here opens a file.

Each step is a process of the trace, and each of its workers a thread: a lane.  A slice is one lease, from the moment at
which the worker could begin it: a worker that has two works at the first, so the slices of a lane never overlap.  What
happens to no worker has a lane of its own: Perfetto has no name for instants without a thread.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any
from conveyor.core import commands, events
from conveyor.core.machine import Machine
from conveyor.core.tuning.roster import sample_of
from conveyor.graph.plan import Plan
from conveyor.stats import Decision

RING_EVENTS = 200_000
# So many numbers stand for an event: its kind, step, worker, time and duration, and up to three more.
FIELDS = 8
# What waits in front of the steps is looked at no more often.
COUNTER_SECONDS = 0.05
# Of the sentences of decisions, as many as the statistics remember.
DECISIONS = 1000

SLICE, COUNTER, LOST, STARTED, READY, KILLED, LEAVES, STEAL, RETRIED, GAVE_UP, RAISED, RUN, SOURCE_ENDED, OVER = range(
    14
)
# What an instant is called, and what its numbers are.
INSTANTS: dict[int, tuple[str, tuple[str, ...]]] = {
    LOST: ("worker died", ()),
    STARTED: ("worker is being started", ()),
    READY: ("worker is ready", ()),
    KILLED: ("worker is killed: its call takes too long", ()),
    LEAVES: ("worker leaves", ()),
    STEAL: ("items that were not begun are taken back", ("lease", "calls_left")),
    RETRIED: ("attempts were made once more", ("attempts",)),
    GAVE_UP: ("items were given up", ("first", "last", "attempts")),
    RAISED: ("the job raised", ()),
    RUN: ("a run begins", ("run",)),
    SOURCE_ENDED: ("the input ended", ()),
    OVER: ("the run is over", ("run",)),
}
# What belongs to the pipeline and to no step, or to a step and to none of its workers.
NONE = -1
# The number of the first worker's thread.  Perfetto takes a thread with the number of its process for the main one, and
# puts it before the others.
FIRST_THREAD = 10_000
_SILENT = frozenset(
    {events.SourceItems, events.Consumed, events.BrokerLoad, commands.Emit, commands.Pull, commands.Grant}
)


class _Lease:
    """What a worker was handed: when, and what has come of it so far."""

    __slots__ = ("calls", "cpu", "items", "outputs", "sent")

    def __init__(self, sent: float, items: int) -> None:
        self.sent = sent
        self.items = items
        self.calls = self.outputs = 0
        self.cpu = 0.0


class _Ring:
    """The newest events; once there are `RING_EVENTS`, a new one takes the place of the oldest."""

    def __init__(self, numbers: bytes = b"", count: int = 0) -> None:
        self._numbers = array("d", numbers)
        self._count = count

    def kept(self) -> tuple[int, bytes]:
        """Return what makes another one like it."""
        return self._count, self._numbers.tobytes()

    @property
    def left_out(self) -> int:
        """How many events are not here any more."""
        return max(0, self._count - RING_EVENTS)

    def add(self, event: tuple[float, ...]) -> None:
        """Take in an event."""
        if len(event) < FIELDS:
            event += (0.0,) * (FIELDS - len(event))
        if self._count < RING_EVENTS:
            self._numbers.extend(event)
        else:
            place = self._count % RING_EVENTS * FIELDS
            self._numbers[place : place + FIELDS] = array("d", event)
        self._count += 1

    def __iter__(self) -> Iterator[Sequence[float]]:
        for number in range(self.left_out, self._count):
            place = number % RING_EVENTS * FIELDS
            yield self._numbers[place : place + FIELDS]


class KeptTrace(NamedTuple):
    """What a trace holds so far, as it goes to another process.

    The names of the steps, the newest decisions, when the pipeline was opened, how long ago that is, how many events
    there were, and the numbers of those that are kept, as bytes.
    """

    names: dict[int, str]
    decisions: tuple[Decision, ...]
    opened: float
    seconds: float
    events: int
    numbers: bytes

    def lines(self) -> Iterator[str]:
        """Yield the lines of the file."""
        ring = _Ring(self.numbers, self.events)
        return _lines(ring, self.names, self.decisions, self.opened, self.seconds)


class Trace:
    """Takes in what happens; `lines` gives the file."""

    def __init__(self, plan: Plan, machine: Machine, opened: float) -> None:
        self._names = {step.index: step.name for step in plan.steps}
        self._batch_of = {step.index: step.batch or 1 for step in plan.steps}
        self._machine = machine
        self._opened = opened
        self._ring = _Ring()
        self._decisions: deque[Decision] = deque(maxlen=DECISIONS)
        self._step_of = {
            number: index for index, roster in machine.roster.step_rosters.items() for number in roster.numbers
        }
        # What each worker has, by the number of the lease, and when it was done with the last one.
        self._leases: dict[int, dict[int, _Lease]] = {}
        self._free_at: dict[int, float] = {}
        # When it was last looked at how many items wait, and what that gave.
        self._counted_at = 0.0
        self._counted: dict[int, int] = {}
        self._run = 0

    def handled(self, now: float, event: events.Event, wanted: Sequence[commands.Command] | None) -> None:
        """Take in what happened, and what the core wants done about it."""
        # This runs for each lease, so it looks at types first: most events and commands say nothing here.
        kind: Any = type(event)
        if kind is events.Replied:
            self._take_reply(now, event)  # type: ignore[arg-type]
        elif kind not in _SILENT:
            self._take_in(now, event)
        for command in wanted or ():
            kind = type(command)
            if kind is commands.SendLease:
                self._hand_out(now, command)  # type: ignore[arg-type]
            elif kind not in _SILENT:
                self._take_in_command(now, command)
        if now >= self._counted_at + COUNTER_SECONDS:
            self._count_waiting(now)

    def passed(self, now: float, sender: str, receiver: str, message: object) -> None:
        """Messages are not in a trace."""

    def close(self) -> None:
        """End the slices of what workers still have."""
        for worker in list(self._leases):
            self._close_leases(self._machine.now, worker)

    def _hand_out(self, now: float, command: commands.SendLease) -> None:
        leases = self._leases.get(command.worker)
        if leases is None:
            leases = self._leases[command.worker] = {}
        leases[command.lease] = _Lease(now, command.items)

    def _take_reply(self, now: float, event: events.Replied) -> None:
        worker = event.worker
        if event.measures.retried:
            self._instant(RETRIED, now, worker, event.measures.retried)
        leases = self._leases.get(worker)
        lease = None if leases is None else leases.get(event.lease)
        if leases is None or lease is None:
            return
        lease.calls += event.calls
        lease.cpu += event.measures.cpu
        for _, outputs in event.blobs:
            lease.outputs += outputs
        if event.final:
            del leases[event.lease]
            self._slice(now, worker, lease)

    def _slice(self, now: float, worker: int, lease: _Lease) -> None:
        begun = max(lease.sent, self._free_at.get(worker, lease.sent))
        self._free_at[worker] = now
        step = self._step_of.get(worker, NONE)
        # What was taken back from it, it has not done.
        items = min(lease.items, lease.calls * self._batch_of.get(step, 1))
        self._ring.add((SLICE, step, worker, begun, max(0.0, now - begun), items, lease.outputs, lease.cpu))

    def _close_leases(self, now: float, worker: int) -> None:
        leases = list(self._leases.pop(worker, {}).values())
        if leases:
            # It was at the first, and has begun none of the others.
            self._slice(now, worker, leases[0])

    def _take_in(self, now: float, event: events.Event) -> None:
        match event:
            case events.WorkerReady():
                self._instant(READY, now, event.worker)
            case events.WorkerLost():
                self._close_leases(now, event.worker)
                self._instant(LOST, now, event.worker)
                self._forget(event.worker)
            case events.Raised():
                self._instant(RAISED, now, event.worker)
            case events.RunStarted():
                self._run += 1
                self._ring.add((RUN, NONE, NONE, now, 0.0, self._run))
            case events.SourceEnded():
                self._ring.add((SOURCE_ENDED, NONE, NONE, now))
            case events.Ticked():
                self._take_decisions()
            case _:
                pass

    def _take_in_command(self, now: float, command: commands.Command) -> None:
        match command:
            case commands.StartWorker():
                self._step_of[command.worker] = command.step
                self._instant(STARTED, now, command.worker)
            case commands.EndWorker():
                self._instant(LEAVES, now, command.worker)
                self._forget(command.worker)
            case commands.KillWorker():
                self._instant(KILLED, now, command.worker)
            case commands.Revoke():
                self._instant(STEAL, now, command.worker, command.lease, command.calls)
            case commands.GaveUp():
                what = command.first, command.last, command.attempts
                self._ring.add((GAVE_UP, command.step, NONE, now, 0.0, *what))
            case commands.Finish() | commands.Fail():
                self._ring.add((OVER, NONE, NONE, now, 0.0, self._run))
            case _:
                pass

    def _instant(self, kind: int, now: float, worker: int, *numbers: float) -> None:
        self._ring.add((kind, self._step_of.get(worker, NONE), worker, now, 0.0, *numbers))

    def _forget(self, worker: int) -> None:
        """A worker has gone; its number never comes again."""
        self._step_of.pop(worker, None)
        self._free_at.pop(worker, None)
        self._leases.pop(worker, None)

    def _take_decisions(self) -> None:
        """Take in the decisions since the last time; the roster keeps the newest alone."""
        known, new = self._decisions[-1] if self._decisions else None, []
        for decision in reversed(self._machine.roster.decisions):
            if decision is known:
                break
            new.append(decision)
        self._decisions.extend(reversed(new))

    def _count_waiting(self, now: float) -> None:
        """Take in how many items wait in front of each step, where that has changed."""
        self._counted_at = now
        for step in self._machine.steps:
            waiting = sample_of(step, now).waiting
            if self._counted.get(step.index) != waiting:
                self._counted[step.index] = waiting
                self._ring.add((COUNTER, step.index, NONE, now, 0.0, waiting))

    # The file

    def lines(self) -> Iterator[str]:
        """Yield the lines of the file."""
        return _lines(self._ring, self._names, self._decisions, self._opened, self._seconds)

    def kept(self) -> KeptTrace:
        """Return what there is so far; of leases that workers have, nothing."""
        return KeptTrace(self._names, tuple(self._decisions), self._opened, self._seconds, *self._ring.kept())

    @property
    def _seconds(self) -> float:
        return max(0.0, self._machine.now - self._opened)


def _lines(
    ring: _Ring, names: Mapping[int, str], decisions: Iterable[Decision], opened: float, seconds: float
) -> Iterator[str]:
    left_out = ring.left_out
    told: dict[str, Any] = {"source": "Conveyor", "events_left_out": left_out}
    if left_out:
        were = "was" if left_out == 1 else "were"
        told["note"] = (
            f"Only the newest {RING_EVENTS:,} events are here. {left_out:,} before them {were} left out, as no more "
            "are kept."
        )
    yield f'{{"displayTimeUnit":"ms","otherData":{json.dumps(told)},"traceEvents":[\n'
    processes = {NONE: len(names) + 1, **{index: place for place, index in enumerate(sorted(names), 1)}}
    for index, name in {NONE: "the pipeline", **names}.items():
        yield _metadata(processes[index], 0, "process_name", name=name)
        yield _metadata(processes[index], 0, "process_sort_index", sort_index=index + 1)
    lanes: set[tuple[int, int]] = set()

    def lane(step: int, worker: int) -> Iterator[str]:
        if (step, worker) not in lanes:
            lanes.add((step, worker))
            name = f"worker {worker}" if worker != NONE else "runs and decisions" if step == NONE else "given up"
            yield _metadata(processes[step], _thread(processes[step], worker), "thread_name", name=name)

    for event in ring:
        kind, step, worker = map(int, event[:3])
        if kind != COUNTER:
            yield from lane(step, worker)
        yield f"{_line(names, opened, kind, step, processes[step], worker, event[3:])},\n"
    yield from lane(NONE, NONE)
    for decision in decisions:
        at = _micros(decision.at)
        yield f"{_instant_line(str(decision), 'decision', at, processes[NONE], NONE, {})},\n"
    # Without a comma behind it.
    yield f"{_instant_line('the trace ends', 'pipeline', _micros(seconds), processes[NONE], NONE, {})}\n]}}\n"


def _line(
    names: Mapping[int, str], opened: float, kind: int, step: int, process: int, worker: int, numbers: Sequence[float]
) -> str:
    begun, (seconds, *values) = numbers[0] - opened, numbers[1:]
    at, where = _micros(begun), f'"pid":{process},"tid":{_thread(process, worker)}'
    # Most events are of these two kinds, and whoever closes the pipeline waits for all of them.
    if kind == SLICE:
        # Of two slices side by side, one ends where the other begins, also when both are rounded.
        lasting = round(_micros(begun + seconds) - at, 1)
        name, (items, outputs, cpu) = json.dumps(names.get(step, "?")), values
        return (
            f'{{"name":{name},"cat":"lease","ph":"X","ts":{at},"dur":{lasting},{where},"args":{{"step":{name},'
            f'"items":{items:.0f},"outputs":{outputs:.0f},"cpu_ms":{cpu * 1e3:.3f}}}}}'
        )
    if kind == COUNTER:
        # Perfetto calls it "items waiting": the two names together.
        return f'{{"name":"items","ph":"C","ts":{at},{where},"args":{{"waiting":{values[0]:.0f}}}}}'
    name, fields = INSTANTS[kind]
    what = {field: int(value) for field, value in zip(fields, values, strict=False)}
    return _instant_line(name, "pipeline", at, process, worker, what)


def _thread(process: int, worker: int) -> int:
    """Return the thread of a worker in the trace, or of what happens to no worker; no two processes share one."""
    return FIRST_THREAD - process if worker == NONE else FIRST_THREAD + worker


def _micros(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def _metadata(process: int, thread: int, kind: str, **what: Any) -> str:
    return json.dumps({"name": kind, "ph": "M", "pid": process, "tid": thread, "args": what}) + ",\n"


def _instant_line(name: str, kind: str, at: float, process: int, worker: int, what: dict[str, Any]) -> str:
    lane = {"pid": process, "tid": _thread(process, worker)}
    return json.dumps({"name": name, "cat": kind, "ph": "i", "s": "t", "ts": at, **lane, "args": what})
