"""The comparison with others: it runs, checks results, says who is missing or fails, and writes what it found."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from tests.helpers.support import ROOT, TestCase, nothing_left, slow

SCRIPT = ROOT / "benchmarks" / "compare.py"
GROWTH = ROOT / "benchmarks" / "growth.py"
# Runs a program of that folder which does not look for a while whether the machine is disturbed: nothing is measured here.
AT_ONCE = """
import runpy, sys
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
import measuring
measuring.LOOPS = 2
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMAND = sys.executable, "-c", AT_ONCE


class TestCompare(TestCase):
    """As a command, from a checkout, at sizes at which it measures nothing."""

    def compare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # What others warn of is their affair.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        with nothing_left():
            return subprocess.run(
                [*COMMAND, str(SCRIPT), "--rounds", "1", "--scale", "0.001", "--short", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=environment,
                timeout=50,
            )

    @slow
    def test_two_workloads(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path, page = Path(folder, "all.json"), Path(folder, "all.md")
            finished = self.compare(
                *("--only", "tiny", "start-fork", "--peers", "queues", "mpipe"),
                *("--json", str(path), "--markdown", str(page)),
            )
            self.assertEqual(finished.returncode, 0, finished.stderr)
            data = json.loads(path.read_text())
            text = page.read_text()
        self.assertEqual(list(data["workloads"]), ["tiny", "start-fork"])
        for name, peers in (
            ("tiny", ["conveyor", "conveyor", "queues"]),
            ("start-fork", ["conveyor", "queues"]),
        ):
            workload: dict[str, Any] = data["workloads"][name]
            self.assertEqual([entry["peer"] for entry in workload["entries"]], peers)
            self.assertTrue(workload["losses"])
            for entry in workload["entries"]:
                with self.subTest(name, entry=entry["name"]):
                    self.assertEqual(entry["failure"], "")
                    self.assertEqual(len(entry["runs"]), 1)
                    self.assertGreater(entry["median"], 0)
                    self.assertIn(entry["name"], finished.stdout)
                    self.assertIn(f"| {entry['name']} |", text)
            self.assertEqual(workload["entries"][0]["ratio"], 1)
        self.assertEqual("mpipe" in data["missing"], importlib.util.find_spec("mpipe") is None)
        self.assertIn("Python", data["versions"])

    @slow
    def test_growth(self) -> None:
        with tempfile.TemporaryDirectory() as folder, nothing_left():
            page = Path(folder, "growth.md")
            command = [*COMMAND, str(GROWTH), "--rounds", "1", "--most", "2", "--markdown", str(page)]
            finished = subprocess.run(
                [*command, "branches", "waits"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50
            )
            self.assertEqual(finished.returncode, 0, finished.stderr)
            text = page.read_text()
        for row in ("| 1 | 20,000 |", "| 2 | 20,000 |", "| 1 | 100 |", "| 2 | 200 |"):
            self.assertIn(row, text)
        self.assertIn("Branches of a ReplicatingFork", finished.stdout)

    def test_each_runs_where_conveyor_is_not_installed(self) -> None:
        for path in sorted(SCRIPT.parent.glob("*.py")):
            text = path.read_text()
            if "\nfrom conveyor" in text:
                self.assertRegex(text.partition("\nfrom conveyor")[0], r"sys\.path\.(append|insert)\(", path.name)

    @slow
    def test_waiting(self) -> None:
        command = [sys.executable, str(SCRIPT.parent / "waiting.py"), "--rounds", "1", "--pages", "40"]
        with nothing_left():
            finished = subprocess.run(command, capture_output=True, text=True, timeout=50)
        self.assertEqual(finished.returncode, 0, finished.stderr)
        for title in (
            "asyncio by hand",
            "ThreadPoolExecutor(32).map",
            "concurrency=100",
            "threads=32",
            'workers="auto"',
        ):
            self.assertIn(title, finished.stdout)

    def test_what_a_check_holds_it_to(self) -> None:
        with mock.patch.object(sys, "path", [str(SCRIPT.parent), *sys.path]):
            contest, report, thresholds = map(importlib.import_module, ("contest", "report", "thresholds"))
        workload, ours, peer, label, maximum = thresholds.THRESHOLDS[0]
        metric = contest.WORKLOADS[workload].metric

        def verdict(*seconds: float, standstill: float = 1.2) -> tuple[bool, str]:
            """What is said where Conveyor takes so long in its runs, and the other one second in each."""
            measured = []
            for each, times in ((("conveyor", ours), seconds), ((peer, label), (1.0, 1.1))):
                entry = next(entry for entry in contest.ENTRIES[workload] if (entry.peer, entry.label) == each)
                measured.append(report.Measured(entry, runs=[{metric: time} for time in times]))
            (found,) = report.checks([report.Comparison(workload, 1, measured, standstill)])
            return found

        kept, text = verdict(maximum * 0.99, maximum * 5)
        self.assertTrue(kept, "the best run counts")
        self.assertNotIn("not judged", text)
        self.assertFalse(verdict(maximum * 1.01, maximum * 1.5)[0])
        kept, text = verdict(maximum * 1.01, maximum * 3)
        self.assertTrue(kept)
        self.assertIn("not judged: the machine is disturbed, as runs differ 3.0 times", text)
        kept, text = verdict(maximum * 1.01, maximum * 1.5, standstill=1.6)
        self.assertTrue(kept)
        self.assertIn("not judged: the machine is disturbed, as a mere loop takes 1.6 times what it could", text)

    def test_on_a_disturbed_machine_the_shortest_runs_are_compared(self) -> None:
        with mock.patch.object(sys, "path", [str(SCRIPT.parent), *sys.path]):
            contest, report = map(importlib.import_module, ("contest", "report"))

        def ratio(workload: str, standstill: float) -> float:
            """How many times Conveyor's the other's is."""
            metric = contest.WORKLOADS[workload].metric
            entries = [entry for entry in contest.ENTRIES[workload] if entry.peer in ("conveyor", "executor")][:2]
            measured = [
                report.Measured(entry, runs=[{metric: value * 1e7} for value in values])
                for entry, values in zip(entries, ((2.0, 8.0, 9.0), (3.0, 4.0, 5.0)), strict=True)
            ]
            comparison = report.Comparison(workload, 1, measured, standstill)
            self.assertEqual("shortest runs" in report.count_line(comparison), workload != "memory" and standstill > 2)
            return report.as_data([comparison], {}, {}, {})["workloads"][workload]["entries"][1]["ratio"]

        self.assertEqual(ratio("start-fork", 1.2), 0.5)
        self.assertEqual(ratio("start-fork", 3.0), 1.5)
        # Nobody grows more where everybody stands still.
        self.assertEqual(ratio("memory", 3.0), 0.5)

    def test_the_short_form_ends_on_a_slow_machine(self) -> None:
        with mock.patch.object(sys, "path", [str(SCRIPT.parent), *sys.path]):
            compare, contest, measuring = map(importlib.import_module, ("compare", "contest", "measuring"))
        outcome = measuring.Outcome({"whole_seconds": 1.0}, "")
        entry = contest.ENTRIES["tiny"][0]

        def rounds(seconds: float, *arguments: str) -> int:
            """How many count where they take so long."""
            meter = compare.Meter(compare.parsed(["--rounds", "5", *arguments]), {})
            still = mock.patch.object(measuring, "standstill", return_value=1.0)
            said = io.StringIO()
            with mock.patch.object(meter, "once", return_value=outcome), still, contextlib.redirect_stderr(said):
                with mock.patch("time.monotonic", side_effect=itertools.count(0.0, seconds)):
                    (measured,) = meter.measure("tiny", [entry]).measured
            self.assertIn("round 3 of 5", said.getvalue())
            return len(measured.runs)

        self.assertEqual(rounds(1.0, "--short"), 5)
        self.assertEqual(rounds(60.0, "--short"), 3)
        self.assertEqual(rounds(60.0), 5)

    def test_who_hangs_is_ended(self) -> None:
        # Nobody has a result in no time, and so nothing is kept.
        finished = self.compare("--only", "memory", "--peers", "queues", "--limit", "0.01", "--check")
        self.assertEqual(finished.returncode, 1, finished.stderr)
        self.assertIn("ended, as it was not done after 0.01 s", finished.stdout)
        self.assertIn("Conveyor itself has no result here", finished.stdout)
