"""The trace of a pipeline: its format, what is in it, when it is there, and what happens where it cannot be written."""

from __future__ import annotations

import gzip
import json
import logging
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from conveyor import Pipe, Pipeline, ProcessError, Processor, ProcessorError
from conveyor.core import trace
from conveyor.core.machine import Machine
from conveyor.core.trace import Trace
from conveyor.engines.process.caller.broker_link import BrokerProcess
from conveyor.engines.process.caller.trace_file import WritingPeriod
from tests.helpers.clocked import ClockedShell
from tests.helpers.support import TestCase
from tests.simulation.command_hash import clocked_plan

# What each kind of event has to have, by the description of the format.
NEEDED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid", "args"},
    "i": {"name", "cat", "ts", "pid", "tid", "s", "args"},
    "C": {"name", "ts", "pid", "tid", "args"},
    "M": {"name", "pid", "tid", "args"},
}


def flaky(item):
    if item % 10 == 3:
        raise ValueError("secret")
    return item


def nap(item):
    time.sleep(0.005)
    return item


def killed_once(path_and_item):
    path, item = path_and_item
    if item == 3 and not os.path.exists(path):
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def kill_the_broker(item):
    os.kill(os.getppid(), signal.SIGKILL)
    return item


def check(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a trace, each of which has what its kind needs, in lanes of which no two slices overlap."""
    found: list[dict[str, Any]] = told["traceEvents"]
    ends: dict[tuple[int, int], float] = {}
    for event in found:
        kind = event["ph"]
        assert NEEDED[kind] <= set(event), event
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert kind == "M" or event["ts"] >= 0, event
        if kind == "i":
            # Perfetto has no name for the lane of one without a thread.
            assert event["s"] == "t"
        if kind == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
        if kind == "X":
            lane = event["pid"], event["tid"]
            assert event["dur"] >= 0 and event["ts"] >= ends.get(lane, 0.0), (event, ends[lane])
            ends[lane] = round(event["ts"] + event["dur"], 1)
    named = {event["pid"] for event in found if event["name"] == "process_name"}
    lanes = {(event["pid"], event["tid"]) for event in found if event["name"] == "thread_name"}
    assert {event["pid"] for event in found} <= named
    assert {(event["pid"], event["tid"]) for event in found if event["ph"] in "Xi"} == lanes
    # Perfetto takes a thread with the number of its process for the main one, and a number for one thread.
    threads = [thread for _, thread in lanes]
    assert len(set(threads)) == len(threads) and not named & set(threads)
    return found


def names_of(found: list[dict[str, Any]]) -> list[str]:
    return [event["name"] for event in found if event["ph"] == "i"]


class Files(TestCase):
    """What real runs leave."""

    def traced(self, *processors: Any, items: Any, name: str = "run.json", **settings: Any) -> list[dict[str, Any]]:
        path = os.path.join(self.new_folder(), name)
        pipeline = Pipeline(trace=path, **settings)
        for index, processor in enumerate(processors):
            (pipeline.add(Pipe()) if index else pipeline).add(processor)
        pipeline.run(items)
        # It is complete when the run returns.
        with gzip.open(path, "rt") if name.endswith(".gz") else open(path) as file:
            return check(json.load(file))

    def test_slices_say_what_was_done(self) -> None:
        for settings in ({}, {"start_method": "spawn"}, {"channel": "queue"}, {"engine": "thread"}):
            with self.subTest(**settings):
                found = self.traced(Processor(nap, workers=2), Processor(sum, batch=7), items=range(60), **settings)
                slices = [event for event in found if event["ph"] == "X"]
                for name, outputs in (("nap", 60), ("sum", 9)):
                    own = [event for event in slices if event["args"]["step"] == name]
                    self.assertEqual(sum(event["args"]["items"] for event in own), 60)
                    self.assertEqual(sum(event["args"]["outputs"] for event in own), outputs)
                    self.assertTrue(all(event["args"]["cpu_ms"] >= 0 for event in own))
                at_naps = [event for event in slices if event["args"]["step"] == "nap"]
                self.assertEqual(len({event["tid"] for event in at_naps}), 2)
                self.assertGreaterEqual(sum(event["dur"] for event in at_naps), 60 * 5000)
                self.assertIn("C", {event["ph"] for event in found})
                names = names_of(found)
                for name in ("worker is ready", "a run begins", "the input ended", "the run is over", "the trace ends"):
                    self.assertIn(name, names)

    def test_troubles(self) -> None:
        path = os.path.join(self.new_folder(), "died")
        found = self.traced(Processor(killed_once), items=[(path, item) for item in range(9)], name="run.json.gz")
        self.assertIn("worker died", names_of(found))
        self.assertIn("worker is being started", names_of(found))
        found = self.traced(Processor(flaky, retries=1, backoff=0, on_error="skip"), items=range(30))
        names = names_of(found)
        retried = [event["args"]["attempts"] for event in found if event["name"] == "attempts were made once more"]
        self.assertEqual((sum(retried), names.count("items were given up")), (3, 3))
        given_up = [event["args"] for event in found if event["name"] == "items were given up"]
        self.assertEqual(given_up[1], {"first": 13, "last": 13, "attempts": 2})
        self.assertNotIn("secret", json.dumps(found))

    def test_a_run_that_fails_leaves_one_as_well(self) -> None:
        path = os.path.join(self.new_folder(), "run.json")
        with self.assertRaises(ProcessorError):
            Pipeline(trace=path).add(Processor(flaky)).run(range(30))
        with open(path) as file:
            self.assertIn("the job raised", names_of(check(json.load(file))))

    def test_it_is_there_at_the_close_and_has_all_runs(self) -> None:
        path = Path(self.new_folder(), "run.json.gz")
        with Pipeline(trace=path).add(Processor(abs)) as pipeline:
            self.assertEqual(pipeline.run([-1]), [1])
            self.assertEqual(pipeline.run([-2]), [2])
            self.assertEqual(path.read_bytes(), b"")
        with gzip.open(path, "rt") as file:
            found = check(json.load(file))
        self.assertEqual(
            [event["args"] for event in found if event["name"] == "a run begins"], [{"run": 1}, {"run": 2}]
        )

    def test_the_decisions_of_the_balancer_with_their_reasons(self) -> None:
        found = self.traced(Processor(nap, workers="auto"), items=range(400), cores=3)
        decisions = [event for event in found if event.get("cat") == "decision"]
        self.assertRegex(decisions[0]["name"], r"^nap: 1 → \d+ workers: .+")
        self.assertIn("worker is being started", names_of(found))

    def test_a_path_that_cannot_be_written(self) -> None:
        folder = self.new_folder()
        for path, engine in ((folder, "process"), (os.path.join(folder, "none", "run.json"), "thread")):
            pipeline = Pipeline(trace=path, engine=engine).add(Processor(abs))
            with self.assertRaisesRegex(ProcessError, "trace=.*the trace cannot be written .*Remedy: name a file"):
                pipeline.run([1])
            with self.assertRaisesRegex(ProcessError, "the trace cannot be written"):
                pipeline.open()

    def test_a_full_disk_is_told_and_harms_nothing(self) -> None:
        if not os.path.exists("/dev/full"):
            self.skipTest("there is no /dev/full")
        for path, engine in (("/dev/full", "process"), (self.to_full_disk(), "process"), ("/dev/full", "thread")):
            pipeline = Pipeline(trace=path, engine=engine).add(Processor(abs))
            with self.assertLogs("conveyor", logging.WARNING) as caught:
                self.assertEqual(pipeline.run([-1, 2]), [1, 2])
            self.assertIn(f"The trace {path} could not be written: ", caught.output[0])

    def test_one_that_raises_is_told_once_and_left_out(self) -> None:
        with mock.patch.object(Trace, "_take_reply", side_effect=ZeroDivisionError):
            pipeline = Pipeline(trace=os.path.join(self.new_folder(), "run.json"), start_method="fork")
            with self.assertLogs("conveyor", logging.WARNING) as caught:
                self.assertEqual(pipeline.add(Processor(abs)).run([-1, 2]), [1, 2])
        self.assertEqual(len(caught.output), 1)
        self.assertIn("ends here: ZeroDivisionError.", caught.output[0])

    def test_a_broker_that_writes_slowly_is_not_killed_while_the_file_grows(self) -> None:
        path = Path(self.new_folder(), "run.json")
        path.touch()
        seen: list[str] = []

        class Child:
            """Writes a line each time that it is waited for; it takes longer than it is given at first."""

            exitcode = 0

            def wait(self, seconds: float) -> bool:
                with path.open("a") as file:
                    file.write("a line\n")
                time.sleep(seconds)
                seen.append("waited")
                return len(seen) == 20

            def end(self) -> None:
                seen.append("ended")

        broker: Any = SimpleNamespace(child=Child())
        with mock.patch("conveyor.engines.process.caller.trace_file.STANDSTILL_SECONDS", 0.05):
            BrokerProcess.wait_for_end(broker, WritingPeriod(0.0, str(path)))
        self.assertEqual(seen, ["waited"] * 20 + ["ended"])
        # One that writes nothing gets what it was given.
        period = WritingPeriod(0.0, None)
        self.assertEqual(period.left(), 0.0)

    def test_a_trace_that_takes_longer_than_the_grace_period_is_complete(self) -> None:
        def slowly(*what: Any) -> Iterator[str]:
            for line in lines(*what):
                # So much that it is in the file at once.
                yield " " * 100_000 + line
                time.sleep(0.03)

        lines, folder = trace._lines, self.new_folder()
        link = "conveyor.engines.process.caller"
        with (
            mock.patch("conveyor.core.trace._lines", slowly),
            mock.patch(f"{link}.trace_file.STANDSTILL_SECONDS", 1.0),
            mock.patch(f"{link}.broker_link.BROKER_EXIT_SECONDS", 0.0),
        ):
            path = os.path.join(folder, "run.json")
            pipeline = Pipeline(trace=path, start_method="fork").add(Processor(abs))
            with pipeline:
                for _ in range(20):
                    pipeline.run([1])
        with open(path) as file:
            self.assertGreater(len(json.load(file)["traceEvents"]), 65)

    def test_one_whose_broker_is_killed_is_not_complete_and_that_is_told(self) -> None:
        path = os.path.join(self.new_folder(), "run.json")
        pipeline = Pipeline(trace=path, start_method="fork").add(Processor(kill_the_broker))
        with self.assertLogs("conveyor", logging.WARNING) as caught, self.assertRaises(ProcessError):
            pipeline.run([1])
        self.assertIn(
            f"The trace {path} is not complete: the broker, which writes it, was killed by SIGKILL", caught.output[-1]
        )

    def to_full_disk(self) -> str:
        path = os.path.join(self.new_folder(), "run.json.gz")
        os.symlink("/dev/full", path)
        return path

    def test_what_is_no_path(self) -> None:
        for value, kind in ((7, TypeError), (b"run.json", TypeError), ("", ValueError)):
            with self.subTest(value), self.assertRaisesRegex(kind, "^Pipeline: trace must"):
                Pipeline(trace=value)  # type: ignore[arg-type]
        with self.assertRaisesRegex(ValueError, "trace='run.json' needs workers to tell of"):
            Pipeline(trace="run.json", engine="inline")


class Observing(TestCase):
    """The observer alone, over random runs in simulated time."""

    def simulated(self, seed: int) -> Iterator[tuple[Trace, Machine]]:
        source = random.Random(f"trace {seed}")
        shell = ClockedShell(clocked_plan(source), range(40), source, 1 << 20, False)
        observer = Trace(shell.plan, shell.machine, 0.0)
        shell.observers = (*shell.observers, observer)
        for _ in range(600):
            if shell.finished or shell.failure:
                break
            shell.step()
        observer.close()
        yield observer, shell.machine

    def test_every_lane_is_in_order_whatever_happens(self) -> None:
        slices = 0
        for seed in range(40):
            with self.subTest(seed=seed):
                for observer, _ in self.simulated(seed):
                    found = check(json.loads("".join(observer.lines())))
                    slices += sum(event["ph"] == "X" for event in found)
        self.assertGreater(slices, 1000)

    def test_the_newest_are_kept_and_the_file_says_so(self) -> None:
        with mock.patch.object(trace, "RING_EVENTS", 50):
            for observer, machine in self.simulated(3):
                told = json.loads("".join(observer.lines()))
                found = check(told)
                events = [event for event in found if event["ph"] != "M" and event.get("cat") != "decision"]
                # The last says only that the trace ends.
                self.assertEqual(len(events), 50 + 1)
                left_out = told["otherData"]["events_left_out"]
                self.assertGreater(left_out, 0)
                self.assertIn(f"{left_out:,} before them were left out", told["otherData"]["note"])
                self.assertGreater(events[0]["ts"], 0)
                self.assertAlmostEqual(events[-1]["ts"] / 1e6, machine.now, places=3)

    def test_one_that_is_not_full_says_nothing(self) -> None:
        for observer, _ in self.simulated(3):
            self.assertEqual(
                json.loads("".join(observer.lines()))["otherData"], {"source": "Conveyor", "events_left_out": 0}
            )
