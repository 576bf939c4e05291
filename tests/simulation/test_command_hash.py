"""The hash over all that the core wants done, for as long as a test may take; `python3 -m tests.simulation.command_hash` makes all.

Law: the hash is the recorded one, whatever the seed of Python's own hashes, and what the core decides otherwise changes
it.  A change of the core that is meant is recorded with `--record`, in a commit that says why.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import typing
import unittest
from typing import Any
from unittest import mock

from conveyor import Processor
from conveyor.core import commands
from conveyor.core.machine import Machine
from tests.helpers.driving import Driven
from tests.helpers.spread import spread
from tests.helpers.support import ALL, ROOT, TestCase
from tests.simulation import command_hash
from tests.simulation.command_hash import FEATURES, FEW_SEEDS, KINDS, SEEDS, Writer, canonical, hash_of_seed, recorded


class RecordedHash(TestCase):
    """The hash of the first seeds, made by processes of their own."""

    time_limit = 180.0

    def test_it_is_the_recorded_one_in_every_process(self) -> None:
        self.assertEqual(sorted(recorded()), [FEW_SEEDS, SEEDS])
        # Side by side; they say which commands there were as well, and fail where one is missing.
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.simulation.command_hash", "--seeds", str(FEW_SEEDS)],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": seed},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
            for seed in ("0", "1")
        ]
        said = [process.communicate()[0] for process in running]
        self.assertEqual([process.returncode for process in running], [0, 0], "".join(said))
        self.assertEqual({output.splitlines()[0] for output in said}, {f"{FEW_SEEDS} {recorded()[FEW_SEEDS]}"})


class Table(TestCase):
    """The table of kinds and fields."""

    def test_it_has_every_command_with_all_its_fields(self) -> None:
        self.assertEqual(KINDS.keys(), {*typing.get_args(commands.Command), commands.GiveUp})
        letters = [letter for letter, _ in KINDS.values()]
        self.assertEqual(len(letters), len(set(letters)))
        for kind, (_, fields) in KINDS.items():
            with self.subTest(kind=kind.__name__):
                self.assertEqual(set(fields), set(kind._fields))  # type: ignore[attr-defined]

    def test_what_has_no_canonical_form_is_loud(self) -> None:
        with self.assertRaisesRegex(TypeError, "has no canonical form: add its type to KINDS"):
            canonical({1, 2})

    def test_a_command_is_written_with_its_fields_in_order(self) -> None:
        give_up = commands.GiveUp("died", "killed", 2, 0, 0)
        lease = commands.SendLease(1, 2, (([5, 6, 7], 1, 3),), 2, 4, False, 0, give_up)
        self.assertEqual(canonical(lease), "L 1 2 ((1 3)) (6 7) 2 4 f 0 V 'died' 'killed' 2 0 0 f 1")
        self.assertEqual(canonical(commands.SetFlushInterval(3, 0.5)), "N 3 0x1.0000000000000p-1")


class Sensitivity(TestCase):
    """What the core decides otherwise."""

    def changed(self, seed: int, name: str, value: object) -> bool:
        before = hash_of_seed(seed, Writer())
        with mock.patch(name, value):
            return before != hash_of_seed(seed, Writer())

    def test_a_constant_that_changes_changes_the_hash(self) -> None:
        self.assertTrue(self.changed(0, "conveyor.core.tuning.chunk_size.FLUSH_SHARE", 0.7))
        self.assertTrue(self.changed(9, "conveyor.core.tuning.autoscaling.IDLE_BEFORE_SHRINK_SECONDS", 3.3))

    def test_a_part_that_is_not_there_is_loud(self) -> None:
        said: list[str] = []
        with mock.patch.object(command_hash, "SEEDS", 1):
            self.assertEqual(command_hash.main(["--seeds", "1"], said.append), 1)
        self.assertIn("not there, and must be", said[-1])
        self.assertIn(FEATURES[-1], said[-1])

    def test_another_hash_than_the_recorded_one_is_loud(self) -> None:
        said: list[str] = []
        with mock.patch.object(command_hash, "recorded", return_value={FEW_SEEDS: "0"}):
            with mock.patch.object(command_hash, "hashes", return_value={FEW_SEEDS: "1"}):
                with mock.patch.object(Writer, "missing", []):
                    self.assertEqual(command_hash.main(["--seeds", str(FEW_SEEDS)], said.append), 1)
        self.assertIn("recorded: 0", said[-1])


class Statistics(TestCase):
    """To ask the core for statistics changes nothing, whenever and however often that is done."""

    time_limit = 180.0

    def test_the_commands_are_those_of_a_run_in_which_nobody_asks(self) -> None:
        handle = Machine.handle

        def asked(seed: int) -> int:
            source = random.Random(f"statistics {seed}")
            questions = 0

            def asking(machine: Machine, event: Any, now: float) -> Any:
                nonlocal questions
                wanted = handle(machine, event, now)
                for _ in range(source.randrange(3)):
                    questions += 1
                    machine.stats(now + source.random())
                return wanted

            before = hash_of_seed(seed, Writer())
            with mock.patch.object(Machine, "handle", asking):
                self.assertEqual(hash_of_seed(seed, Writer()), before, f"seed {seed}")
            return questions

        self.assertGreater(sum(spread(asked, range(FEW_SEEDS // 4 if ALL else FEW_SEEDS // 8))), 1000)

    def test_the_time_since_the_last_event_counts(self) -> None:
        driven = Driven(Processor(abs, workers=1))
        driven.feed(1.0, "A", 1)
        first, second = driven.machine.stats(2.0), driven.machine.stats(3.0)
        self.assertEqual((first.seconds, first.steps[0].busy), (2.0, 0.5))
        self.assertEqual((second.seconds, second.steps[0].busy), (3.0, 2 / 3))
        self.assertEqual(driven.machine.stats(2.0), first)


if __name__ == "__main__":
    unittest.main()
