"""The shell around the core: it hands events to the machine, and carries out the commands.

Law: one method for each kind of command, in the order in which the machine gave them; an unknown command is an error.
The broker is one shell, the simulation of the tests is another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from conveyor._lean.typing import Protocol
from conveyor.core import commands
from conveyor.core.events import Event
from conveyor.core.machine import Machine


class Observer(Protocol):
    """Sees what happens to a machine; it must not change anything."""

    def handled(self, now: float, event: Event, wanted: Sequence[commands.Command] | None) -> None:
        """The machine has handled `event` at `now` (seconds) and wants these commands; None: it raised."""

    def passed(self, now: float, sender: str, receiver: str, message: object) -> None:
        """A message has come from, or goes to, another process: "caller", "broker" or "worker 3", say.

        It is shown before anything is done about it.  The core has no messages: who drives it shows them.
        """

    def close(self) -> None:
        """Nothing more will happen."""


class Shell(ABC):
    """Drives a machine.

    Each abstract method but `read_clock` carries out the command of its name in `core/commands.py`.  One that learns
    something at once (what a worker has begun, say) appends an event to `answers`.  The shell handles those events
    after the last command of the event at hand.
    """

    def __init__(self, machine: Machine, observers: Sequence[Observer] = ()) -> None:
        self.machine = machine
        self.observers = observers
        self.answers: deque[Event] = deque()

    @abstractmethod
    def read_clock(self) -> float:
        """Return the time in seconds, by a clock that never goes back."""

    def handle(self, event: Event) -> None:
        """Have the machine decide on an event, and carry out what it wants."""
        for command in self.decide(event):
            self.carry_out(command)
        self.handle_answers()

    def handle_answers(self) -> None:
        """Have the machine decide on what was learned at once."""
        while self.answers:
            self.handle(self.answers.popleft())

    def decide(self, event: Event) -> Sequence[commands.Command]:
        """Return what the machine wants done about an event, and show it to the observers."""
        now = self.read_clock()
        if not self.observers:
            return self.machine.handle(event, now)
        wanted: Sequence[commands.Command] | None = None
        try:
            wanted = self.machine.handle(event, now)
        finally:
            for observer in self.observers:
                observer.handled(now, event, wanted)
        return wanted

    def carry_out(self, command: commands.Command) -> None:
        """Do what the machine wants.  Raises TypeError for what is no command."""
        match command:
            case commands.SendLease():
                self.send_lease(command)
            case commands.Emit():
                self.emit(command)
            case commands.Pull():
                self.pull(command.credit)
            case commands.Grant():
                self.grant(command)
            case commands.CancelLeases():
                self.cancel_leases(command.worker)
            case commands.Revoke():
                self.revoke(command)
            case commands.StartWorker():
                self.start_worker(command.step, command.worker)
            case commands.EndWorker():
                self.end_worker(command.worker)
            case commands.ProbeWorker():
                self.probe_worker(command.worker)
            case commands.KillWorker():
                self.kill_worker(command.worker)
            case commands.SetFlushInterval():
                self.set_flush_interval(command.worker, command.seconds)
            case commands.GaveUp():
                self.gave_up(command)
            case commands.Deliver():
                self.deliver(command)
            case commands.ItemFailed():
                self.item_failed(command)
            case commands.Finish():
                self.finish()
            case commands.Fail():
                self.fail(command)
            case _:
                raise TypeError(f"{command!r} is no command of the core: add a method for its kind to Shell")

    # To the workers

    @abstractmethod
    def send_lease(self, command: commands.SendLease) -> None: ...

    @abstractmethod
    def grant(self, command: commands.Grant) -> None: ...

    @abstractmethod
    def cancel_leases(self, worker: int) -> None: ...

    @abstractmethod
    def revoke(self, command: commands.Revoke) -> None: ...

    @abstractmethod
    def probe_worker(self, worker: int) -> None: ...

    @abstractmethod
    def set_flush_interval(self, worker: int, seconds: float) -> None: ...

    @abstractmethod
    def start_worker(self, step: int, worker: int) -> None: ...

    @abstractmethod
    def end_worker(self, worker: int) -> None: ...

    @abstractmethod
    def kill_worker(self, worker: int) -> None: ...

    # To the source and the consumer

    @abstractmethod
    def pull(self, credit: int) -> None: ...

    @abstractmethod
    def emit(self, command: commands.Emit) -> None: ...

    @abstractmethod
    def deliver(self, command: commands.Deliver) -> None: ...

    @abstractmethod
    def item_failed(self, command: commands.ItemFailed) -> None: ...

    @abstractmethod
    def gave_up(self, command: commands.GaveUp) -> None: ...

    @abstractmethod
    def finish(self) -> None: ...

    @abstractmethod
    def fail(self, command: commands.Fail) -> None: ...
