"""What the broker sends before the core has taken in why: each command is carried out once, whatever stands before it."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from conveyor.core.commands import Command, Pull, SendLease
from conveyor.engines.process.broker.shell import ProcessShell
from tests.helpers.support import TestCase

LEASE, PULL = SendLease(1, 7, (("blob", 0, 1),), 1, 1, False, 0, None), Pull(2)


class CarriedOut(TestCase):
    """The shell, with a machine that foresees one command and wants these."""

    def carried_out(self, foreseen: Command | None, wanted: list[Command]) -> list[Command]:
        shell: Any = object.__new__(ProcessShell)
        done: list[Command] = []
        shell.machine = SimpleNamespace(foresee=lambda event: foreseen, handle=lambda event, now: wanted)
        shell.observers, shell.answers, shell.failed = (), deque(), False
        shell.pool = SimpleNamespace(closing=False)
        shell.carry_out = done.append
        shell.handle(object())
        return done

    def test_each_once(self) -> None:
        assert self.carried_out(LEASE, [LEASE]) == [LEASE]
        assert self.carried_out(LEASE, [LEASE, PULL]) == [LEASE, PULL]
        # The source waits for the room of the item that has gone on.
        assert self.carried_out(LEASE, [PULL, LEASE]) == [LEASE, PULL]
        assert self.carried_out(None, [PULL, LEASE]) == [PULL, LEASE]

    def test_what_is_not_wanted_is_an_error(self) -> None:
        with self.assertRaises(ValueError):
            self.carried_out(LEASE, [PULL])
