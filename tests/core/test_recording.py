"""Recordings replay to the same commands, whatever happened, and hold nothing of the items."""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple
from unittest import mock

from conveyor import Pipeline, Processor
from conveyor.__main__ import main
from conveyor.core import events
from conveyor.core.machine import Machine
from conveyor.core.recording import Recorder, RecordingError, Replay
from conveyor.graph.plan import Plan
from tests.helpers.clocked import ClockedShell
from tests.helpers.support import TestCase
from tests.simulation.command_hash import clocked_plan

SEEDS = range(12)


@contextmanager
def recording(lines: list[bytes]) -> Iterator[None]:
    """Record all machines that are made meanwhile; their decisions about workers are those of the policy."""
    made, handled = Machine.__init__, Machine.handle

    def make(machine: Any, plan: Plan, now: float = 0.0, **others: Any) -> None:
        made(machine, plan, now)
        machine.recorder = Recorder(plan, now, "1.2.3", lines.append)

    def handle(machine: Any, event: events.Event, now: float) -> Any:
        wanted = None
        try:
            wanted = handled(machine, event, now)
        finally:
            machine.recorder.handled(now, event, wanted)
        return wanted

    with mock.patch.object(Machine, "__init__", make), mock.patch.object(Machine, "handle", handle):
        yield


def recorded(seed: int, first: int = 0) -> list[bytes]:
    """The lines of a random run in simulated time, of which some fail and some are cancelled."""
    source = random.Random(f"recorded {seed}")
    lines: list[bytes] = []
    with recording(lines):
        shell = ClockedShell(clocked_plan(source), range(first, first + 30), source, 1 << 20, False)
        for number in range(400):
            if shell.finished or shell.failure:
                break
            if number == 350:
                shell.cancel()
            else:
                shell.step()
    return lines


class ReplayTest(TestCase):
    def test_the_core_decides_as_it_did(self) -> None:
        for seed in SEEDS:
            with self.subTest(seed=seed):
                lines = recorded(seed)
                replay = Replay(lines)
                assert replay.run() is None
                assert (replay.events, replay.cut, replay.version) == (len(lines) - 1, False, "1.2.3")
                assert replay.commands

    def test_what_a_job_says_of_an_item_is_not_in_it(self) -> None:
        class Failure(NamedTuple):
            text: str

        lines: list[bytes] = []
        plan = Pipeline(engine="inline").add(Processor(abs, on_error="skip"))._description.plan(cores=1, ordered=True)
        with recording(lines):
            machine = Machine(plan)
            machine.handle(events.RunStarted(), 0.0)
            machine.handle(events.SourceItems("blob", 1, 1), 1.0)
            given_up = [(0, 1, 2.0, Failure("secret"))]
            machine.handle(events.Replied(0, 0, 1, None, (), 0, True, False, 1e-5, given_up=given_up), 2.0)
        assert any(command["is"] == "GaveUp" for command in json.loads(lines[-1])["wanted"])
        assert b"secret" not in b"".join(lines)
        assert Replay(lines).run() is None

    def test_a_difference_is_found_at_its_event(self) -> None:
        lines = recorded(1)
        # Of an event that had commands, one is taken away.
        number = next(number for number, line in enumerate(lines[1:], 1) if len(json.loads(line)["wanted"]) > 1)
        entry = json.loads(lines[number])
        missing = entry["wanted"].pop()
        lines[number] = json.dumps(entry).encode() + b"\n"
        difference = Replay(lines).run()
        assert difference is not None
        assert difference.event == number
        assert difference.recorded == entry["wanted"] and difference.replayed == [*entry["wanted"], missing]

    def test_an_event_that_the_core_cannot_handle_is_recorded(self) -> None:
        lines: list[bytes] = []
        plan = Pipeline(engine="inline").add(Processor(abs))._description.plan(cores=1, ordered=True)
        with recording(lines):
            machine = Machine(plan)
            with self.assertRaises(AssertionError):
                machine.handle(events.SourceItems("blob", 10**9, 1), 1.0)
        assert json.loads(lines[-1])["wanted"] is None
        assert Replay(lines).run() is None

    def test_what_was_cut_off_replays_to_its_last_whole_event(self) -> None:
        lines = recorded(2)
        for short in (lines[-1][:-1][: len(lines[-1]) // 2], b""):
            replay = Replay([*lines[:-1], short] if short else lines[:-1])
            assert replay.run() is None
            assert (replay.events, replay.cut) == (len(lines) - 2, bool(short))

    def test_what_cannot_be_read_is_refused(self) -> None:
        lines = recorded(3)
        other = json.dumps({**json.loads(lines[0]), "format": 99}).encode()
        for first in (b"", b"nonsense\n", b"{}\n", b"[1]\n", other):
            with self.subTest(first=first), self.assertRaises(RecordingError):
                Replay([first, *lines[1:]])
        with self.assertRaisesRegex(RecordingError, "line 3"):
            Replay([*lines[:2], b"nonsense\n", *lines[3:]]).run()

    def test_nothing_of_the_items_is_in_it(self) -> None:
        first = 98765432100000
        for seed in SEEDS:
            assert b"987654321" not in b"".join(recorded(seed, first))


class CommandTest(TestCase):
    def replay(self, content: bytes | None) -> tuple[int, str, str]:
        """What `python -m conveyor replay FILE` returns and prints for a file that holds this, or is not there."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "recorded")
            if content is not None:
                with open(path, "wb") as file:
                    file.write(content)
            with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
                status = main(["replay", path])
        return status, out.getvalue(), err.getvalue()

    def test_exit_status(self) -> None:
        lines = recorded(1)
        status, out, err = self.replay(b"".join(lines))
        assert (status, err) == (0, "") and "the core decides as it did" in out
        status, out, err = self.replay(b"".join(lines)[:-7])
        assert (status, err) == (0, "") and "cut off" in out
        number = next(number for number, line in enumerate(lines) if b'"wanted":[{' in line)
        entry = json.loads(lines[number])
        lines[number] = json.dumps({**entry, "wanted": []}).encode() + b"\n"
        status, out, err = self.replay(b"".join(lines))
        assert (status, err) == (1, "") and f"Event {number}," in out and "SendLease" in out
        for content in (None, b"", b"\xff\n"):
            status, out, err = self.replay(content)
            assert (status, out) == (2, "") and "cannot be replayed" in err
