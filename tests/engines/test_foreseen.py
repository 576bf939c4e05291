"""What the broker sends before the core has taken in why: each command is carried out once, whatever stands before it."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from conveyor.core.commands import Command, Pull, SendLease
from conveyor.core.nodes.lone import Awaited
from conveyor.engines.process.broker.shell import Prepared, ProcessShell
from conveyor.engines.process.wire import messages
from tests.helpers.support import TestCase

REPLY = messages.Reply(6, 1, None, [1], True, False, 0.1, (0.1, 0.0, 0.1, 0), 0, (), (), ())
MESSAGE = messages.StartLease(7, ((0, 0, 1),), 1, False, False, False, 0, None)
LEASE, PULL = SendLease(1, 7, (("blob", 0, 1),), 1, 1, False, 0, None), Pull(2)

ABOUT = Awaited(3, 6, LEASE, 100.0)


class CarriedOut(TestCase):
    """The shell, with a machine that foresees one command and wants these."""

    def carried_out(self, foreseen: Command | None, wanted: list[Command]) -> list[Command]:
        shell: Any = object.__new__(ProcessShell)
        done: list[Command] = []
        shell.machine = SimpleNamespace(
            foresee=lambda event: foreseen, handle=lambda event, now: wanted, await_reply=lambda: None
        )
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


class SentOn(TestCase):
    """A reply, where the message about it was made before it came."""

    def sent(self, about: Awaited, reply: messages.Reply, *, traced: bool = False, closing: bool = False) -> list[Any]:
        """Return what is sent on of a reply of worker 3 with a blob of 5 bytes."""
        shell: Any = object.__new__(ProcessShell)
        done: list[Any] = []
        shell._prepared = Prepared(about, lambda message, blobs: done.append((message, blobs)), MESSAGE)
        shell.begun, shell.failed = messages.StartRun(1, traced=traced), False
        shell.pool = SimpleNamespace(closing=closing)
        assert shell.pass_on(3, reply, [b"bytes"]) == bool(done)
        return done

    def test_what_was_expected(self) -> None:
        assert self.sent(ABOUT, REPLY) == [(MESSAGE, [b"bytes"])]
        assert self.sent(ABOUT, REPLY._replace(group_sizes=[(1, 1)]), traced=True) == [(MESSAGE, [b"bytes"])]

    def test_all_else_is_for_the_core(self) -> None:
        others: list[dict[str, Any]] = [
            {"lease": 8},
            {"calls": 0},
            {"final": False},
            {"starving": True},
            {"partial": 1},
            {"blob_items": []},
            {"blob_items": [2]},
            {"group_sizes": [(1, 1)]},
            {"given_up": [(0, 1, 0.1, None)]},
            {"slow": [(0, 0.1, None)]},
        ]
        for other in others:
            with self.subTest(other):
                assert self.sent(ABOUT, REPLY._replace(**other)) == []
        assert self.sent(ABOUT._replace(worker=4), REPLY) == []
        assert self.sent(ABOUT._replace(most_bytes=4.9), REPLY) == []
        assert self.sent(ABOUT, REPLY, closing=True) == []
        # One that was filtered.
        assert self.sent(ABOUT, REPLY._replace(group_sizes=[(0, 1)]), traced=True) == []
