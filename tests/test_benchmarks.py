"""The comparison with others: it runs, checks results, says who is missing or fails, and writes what it found."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import ROOT, TestCase, nothing_left

SCRIPT = ROOT / "benchmarks" / "compare.py"
GROWTH = ROOT / "benchmarks" / "growth.py"


class TestCompare(TestCase):
    """As a command, from a checkout, at sizes at which it measures nothing."""

    def compare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # What others warn of is their affair.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        with nothing_left():
            return subprocess.run(
                [sys.executable, str(SCRIPT), "--rounds", "1", "--scale", "0.001", "--short", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=environment,
                timeout=50,
            )

    def test_two_workloads(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path, page = Path(folder, "all.json"), Path(folder, "all.md")
            finished = self.compare(
                *("--only", "tiny", "start-fork", "--peers", "queues", "pool", "mpipe"),
                *("--json", str(path), "--markdown", str(page)),
            )
            self.assertEqual(finished.returncode, 0, finished.stderr)
            data = json.loads(path.read_text())
            text = page.read_text()
        self.assertEqual(list(data["workloads"]), ["tiny", "start-fork"])
        for name, peers in (
            ("tiny", ["conveyor", "conveyor", "queues", "pool"]),
            ("start-fork", ["conveyor", "queues", "pool"]),
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

    def test_growth(self) -> None:
        with tempfile.TemporaryDirectory() as folder, nothing_left():
            page = Path(folder, "growth.md")
            command = [sys.executable, str(GROWTH), "--rounds", "1", "--most", "2", "--markdown", str(page)]
            finished = subprocess.run(
                [*command, "branches", "waits"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50
            )
            self.assertEqual(finished.returncode, 0, finished.stderr)
            text = page.read_text()
        for row in ("| 1 | 20,000 |", "| 2 | 20,000 |", "| 1 | 100 |", "| 2 | 200 |"):
            self.assertIn(row, text)
        self.assertIn("Branches of a ReplicatingFork", finished.stdout)

    def test_who_hangs_is_ended(self) -> None:
        # Nobody has a result in no time, and so nothing is kept.
        finished = self.compare("--only", "memory", "--peers", "queues", "--limit", "0.01", "--check")
        self.assertEqual(finished.returncode, 1, finished.stderr)
        self.assertIn("ended, as it was not done after 0.01 s", finished.stdout)
        self.assertIn("Conveyor itself has no result here", finished.stdout)
