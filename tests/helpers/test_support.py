"""The rules of `tests.helpers.support` hold: what breaks one of them fails, and what keeps them passes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import unittest
import warnings
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from tests.helpers.spread import spread
from tests.helpers.support import ROOT, TestCase, nothing_left

MISBEHAVING = """
    import os, threading, time, warnings
    from tests.helpers.support import TestCase

    class Misbehaving(TestCase):
        time_limit = 1.0

        def test_hangs(self):
            parent = os.getpid()
            if os.fork() == 0:
                hang_in_the_child(parent)
            hang_in_the_parent()

        def test_warns(self):
            warnings.warn("watch out", DeprecationWarning)

        def test_thread_raises(self):
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()

        def test_finalizer_raises(self):
            class Finalized:
                def __del__(self):
                    raise ValueError("in the finalizer")
            Finalized()

        def test_is_well_behaved(self):
            pass

    def hang_in_the_parent():
        try:
            time.sleep(30)
        except Exception:
            pass  # a handler that is too broad does not save a hung test

    def hang_in_the_child(parent):
        try:
            while os.getppid() == parent:
                time.sleep(0.05)
        finally:
            os._exit(0)
"""

TAKING_TIME = """
    from tests.helpers.support import TestCase, slow

    @slow
    class AllSlow(TestCase):
        def test_one(self):
            pass

    class SomeSlow(TestCase):
        @slow
        def test_two(self):
            pass

        def test_three(self):
            pass
"""


class TestRules(TestCase):
    """One misbehaving module, run by each runner in a process of its own."""

    def check(self, runner: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "test_misbehaving.py").write_text(textwrap.dedent(MISBEHAVING))
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), folder]), "PYTHONWARNINGS": ""}
            finished = subprocess.run(
                [sys.executable, "-m", runner, "test_misbehaving"],
                capture_output=True,
                text=True,
                cwd=folder,
                env=environment,
                timeout=40,
            )
        output = finished.stdout + finished.stderr
        with self.subTest("counts"):
            self.assertIn("Ran 5 tests", output)
            self.assertNotEqual(finished.returncode, 0)
            bad = sum(
                int(part.rpartition("=")[2])
                for part in output.strip().splitlines()[-1].removeprefix("FAILED (").rstrip(")").split(", ")
            )
            self.assertEqual(bad, 4, output)
        with self.subTest("when it happens, and at the end"):
            self.assertEqual(output.count("in the finalizer (in <function"), 2, output)
        for text in (
            "HungTest: test_misbehaving.Misbehaving.test_hangs is not done after 1 s",
            "in hang_in_the_parent",
            "in hang_in_the_child",
            "DeprecationWarning: watch out",
            "ZeroDivisionError",
            "in the finalizer",
        ):
            with self.subTest(text):
                self.assertIn(text, output)

    def test_under_unittest(self) -> None:
        self.check("unittest")

    def test_under_nose(self) -> None:
        if importlib.util.find_spec("nose") is None:
            self.skipTest("nose is not installed")
        self.check("nose")

    def test_what_is_slow_is_of_the_whole_suite_alone_and_left_out_when_time_is_up(self) -> None:
        verdicts = (
            ({}, "OK (skipped=2)"),
            ({"CONVEYOR_TEST_ALL": "1"}, "OK"),
            ({"CONVEYOR_TEST_ALL": "1", "CONVEYOR_TEST_SECONDS": "100"}, "OK"),
            ({"CONVEYOR_TEST_ALL": "1", "CONVEYOR_TEST_SECONDS": "0"}, "OK (skipped=2)"),
        )
        folder = self.new_folder()
        Path(folder, "test_taking_time.py").write_text(textwrap.dedent(TAKING_TIME))
        path = os.pathsep.join([str(ROOT), folder])
        unset = {"CONVEYOR_TEST_SECONDS": "", "CONVEYOR_TEST_ALL": ""}
        # They run side by side.
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "unittest", "test_taking_time"],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **unset, "PYTHONPATH": path, "PYTHONWARNINGS": "", **settings},
            )
            for settings, _ in verdicts
        ]
        for (settings, verdict), process in zip(verdicts, started, strict=True):
            with self.subTest(settings=settings), process:
                _, errors = process.communicate(timeout=40)
                self.assertIn("Ran 3 tests", errors)
                self.assertEqual(errors.strip().splitlines()[-1], verdict)

    def test_warning_is_an_error_in_a_started_python(self) -> None:
        finished = subprocess.run(
            [sys.executable, "-c", "import warnings; warnings.warn('watch out')"], capture_output=True, text=True
        )
        self.assertNotEqual(finished.returncode, 0)
        self.assertIn("UserWarning: watch out", finished.stderr)

    def test_filters_of_a_test_do_not_reach_the_next(self) -> None:
        before = list(warnings.filters)
        warnings.simplefilter("ignore")
        self.assertNotEqual(before, list(warnings.filters))
        self.assertEqual(before[0][0], "error")


class TestSpread(TestCase):
    """Computations on all cores."""

    def test_results_are_in_order(self) -> None:
        with nothing_left():
            self.assertEqual(spread(lambda number: number * 2, range(7)), [0, 2, 4, 6, 8, 10, 12])
            self.assertEqual(spread(str, []), [])

    def test_what_is_raised_is_told(self) -> None:
        with nothing_left(), self.assertRaisesRegex(AssertionError, "ZeroDivisionError"):
            spread(lambda number: 1 // (number - 3), range(5))


@unittest.skipUnless(sys.platform == "linux", "what is left is read from /proc")
class TestNothingLeft(TestCase):
    """Each kind of thing that can be left behind is seen and named."""

    def test_nothing(self) -> None:
        with nothing_left():
            pass

    def test_process(self) -> None:
        with self.assertRaisesRegex(AssertionError, "processes: "), nothing_left(within=0.05):
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        child.communicate(b"\n")

    def test_dead_process_that_is_not_reaped(self) -> None:
        with self.assertRaisesRegex(AssertionError, "processes: .*state Z"), nothing_left(within=0.5):
            child = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        os.waitpid(child, 0)

    def test_orphan(self) -> None:
        # The child starts a grandchild that waits for the end of its standard input, and dies first.
        script = (
            "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stderr=subprocess.DEVNULL)"
        )
        reading, writing = os.pipe()
        with self.assertRaisesRegex(AssertionError, "processes: "), nothing_left(within=0.05):
            subprocess.run([sys.executable, "-W", "ignore", "-c", script], stdin=reading, check=True)
        os.close(reading)
        os.close(writing)

    def test_thread(self) -> None:
        release = threading.Event()
        thread = threading.Thread(target=release.wait, name="forgotten")
        with self.assertRaisesRegex(AssertionError, "threads: .*forgotten"), nothing_left(within=0.05):
            thread.start()
        release.set()
        thread.join()

    def test_descriptor(self) -> None:
        with self.assertRaisesRegex(AssertionError, "(?s)descriptors: .*descriptors: "), nothing_left(within=0.05):
            ends = os.pipe()
        for end in ends:
            os.close(end)

    def test_shared_memory_and_not_its_tracker(self) -> None:
        with self.assertRaises(AssertionError) as caught, nothing_left(within=0.05):
            segment = SharedMemory(create=True, size=100)
        segment.close()
        segment.unlink()
        text = str(caught.exception)
        self.assertIn(f"shared_memory: /dev/shm/{segment.name}", text)
        self.assertNotIn("processes: ", text)

    def test_what_goes_in_time_is_not_left(self) -> None:
        with nothing_left(within=20):
            timer = threading.Timer(0.1, lambda: None)
            timer.start()
        self.assertFalse(timer.is_alive())

    def test_failure_in_the_block_comes_first(self) -> None:
        with self.assertRaises(KeyError), nothing_left():
            raise KeyError("the block's own")
