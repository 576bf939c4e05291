"""The story of a run, in sentences for the debug log.

Law: it tells what a user can act on: starts, ends, failures, decisions.  Leases and replies are counted, not told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conveyor.core import commands, events
from conveyor.graph.plan import Plan


class Story:
    """An observer that tells what happens.

    `say` takes one sentence.  Each begins with the seconds since `opened`.  `describe` gets sender, receiver and
    message, and returns the sentence for those that are worth one, else "".
    """

    def __init__(
        self,
        plan: Plan,
        opened: float,
        say: Callable[[str], object],
        describe: Callable[[str, str, object], str] = lambda sender, receiver, message: "",
    ) -> None:
        self._opened = opened
        self._say = say
        self._describe = describe
        self._names = {step.index: step.name for step in plan.steps}
        self._timeouts = {step.name: step.timeout for step in plan.steps}
        # The first workers are numbered through all steps, in their order.
        first = [step.name for step in plan.steps for _ in range(step.workers)]
        self._name_of = dict(enumerate(first))
        self._run = self._items = self._leases = self._results = 0
        # What an item is called that has results of its own.
        self._traced = "submitted item"

    def handled(self, now: float, event: events.Event, wanted: Sequence[commands.Command] | None) -> None:
        """Tell what happened, and what the core wants done about it."""
        sentences = [self._of_event(event)]
        if wanted is None:
            sentences.append(f"the core cannot handle {type(event).__name__}")
        sentences += map(self._of_command, wanted or ())
        for sentence in sentences:
            self._tell(now, sentence)

    def passed(self, now: float, sender: str, receiver: str, message: object) -> None:
        """Tell of a message."""
        self._tell(now, self._describe(sender, receiver, message))

    def _tell(self, now: float, sentence: str) -> None:
        if sentence:
            self._say(f"{now - self._opened:9.6f} s: {sentence}")

    def close(self) -> None:
        """Tell nothing: the last message is the end."""

    def _worker(self, number: int) -> str:
        return f"worker {number} of {self._name_of.get(number, '?')!r}"

    def _of_event(self, event: events.Event) -> str:
        match event:
            case events.SourceItems():
                self._items += event.items
                return f"run {self._run}: the first items are here" if self._items == event.items else ""
            case events.SourceEnded():
                return f"run {self._run}: the source ended after {_count(self._items, 'item')}"
            case events.RunStarted():
                self._run += 1
                self._items = self._leases = self._results = 0
                self._traced = "input item" if event.streamed else "submitted item"
                kind = ", with results for each item" if event.streamed else ", of items that are submitted one by one"
                return f"run {self._run} begins{kind if event.traced else ''}"
            case events.WorkerReady():
                return f"{self._worker(event.worker)} is ready, {event.seconds:.3f} s after its start"
            case events.WorkerNotStarted():
                return f"{self._worker(event.worker)} could not be started, and the others go on without it"
            case events.WorkerLost():
                when = "" if event.ready else " before it was ready"
                return f"{self._worker(event.worker)} died{when} (exit code {event.cause})"
            case events.Raised():
                return f"{self._worker(event.worker)} reports an error"
            case events.RevokeResult():
                return f"{self._worker(event.worker)} gives back all after call {event.calls} of lease {event.lease}"
            case events.CreditReturned():
                return f"the source waits: its items are much heavier than before ({event.items:,} fewer)"
            case events.Withdrawn():
                return f"the caller cancels {_count(len(event.origins), 'submitted item')}"
            case events.Cancelled():
                return f"run {self._run}: the caller gives it up"
            case _:
                return ""

    def _of_command(self, command: commands.Command) -> str:
        match command:
            case commands.SendLease():
                self._leases += 1
                give_up = command.give_up
                if give_up is None:
                    return ""
                return f"{self._worker(command.worker)} is to give up items {give_up.first} to {give_up.last}"
            case commands.Emit() | commands.Deliver():
                self._results += command.items
                return ""
            case commands.StartWorker():
                self._name_of[command.worker] = self._names[command.step]
                return f"the broker starts {self._worker(command.worker)}"
            case commands.EndWorker():
                return f"the broker has {self._worker(command.worker)} leave"
            case commands.KillWorker():
                timeout = self._timeouts.get(self._name_of.get(command.worker, ""))
                return f"the broker kills {self._worker(command.worker)}: a call takes longer than {timeout} s"
            case commands.Revoke():
                return f"the broker takes back from {self._worker(command.worker)} what it has not begun"
            case commands.GaveUp():
                name, attempts = self._names[command.step], command.attempts
                return f"{name!r} gave up items {command.first} to {command.last} after {_count(attempts, 'attempt')}"
            case commands.ItemFailed():
                name = self._names[command.step]
                what = "loses a part" if command.skipped else "fails"
                return f"{self._traced} {command.origin} {what} at {name!r}, as item {command.number} there"
            case commands.Finish():
                items, results = _count(self._items, "item"), _count(self._results, "result")
                return f"run {self._run} is over: {items} in, {results} out, {_count(self._leases, 'lease')}"
            case commands.Fail():
                reason = "an error of its job" if command.loss is None else f"reason {command.loss!r}"
                return f"run {self._run} fails at {self._names[command.step]!r}: {reason}"
            case _:
                return ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
