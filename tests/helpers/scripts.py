"""Tests whose subject is a whole program: each is a script of its own, run by this Python.

Law: what a script prints is compared as a whole, its errors included, and every warning in it is an error.  Scripts of
one test run side by side, each in a folder of its own.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Generator, Iterable, Mapping
from typing import NamedTuple

from tests.helpers.support import ALL, ROOT, TestCase

METHODS = ("fork", "forkserver", "spawn")
# More than there are cores: a script waits for the processes that it starts most of the time.
SIDE_BY_SIDE = 4


class Script(NamedTuple):
    """A program, its arguments, and what other files are in its folder."""

    body: str
    arguments: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    # How Python is given it: as a "file", by "-c", as a module by "-m", or from "stdin".
    how: str = "file"


class Outcome(NamedTuple):
    """How a script ended, and what it has said."""

    code: int
    output: str
    errors: str

    def told(self) -> str:
        """All of it, for whoever reads of a failure."""
        return f"exit code {self.code}\n{self.output}\n{self.errors}"


def interrupt_all(test: TestCase, body: str, arguments: Iterable[str], seconds: float) -> list[str]:
    """Run a script once with each argument, side by side; send each Ctrl-C once it has said "there", which ends it.

    Return what each has written to its error stream.
    """
    told = []
    path = os.path.join(test.new_folder(), "script.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(body)
    processes = [
        subprocess.Popen(
            [sys.executable, path, argument],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        for argument in arguments
    ]
    for process in processes:
        with test.subTest(arguments=process.args):
            assert process.stdout is not None
            test.assertEqual(process.stdout.readline(), "there\n")
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=seconds)
            test.assertIn(process.returncode, (-signal.SIGINT, 1), errors)
            test.assertIn("KeyboardInterrupt", errors)
            told.append(errors)
    return told


class ScriptTestCase(TestCase):
    """Runs scripts."""

    options: tuple[str, ...] = ("-W", "error")
    # The start methods that the shorter suite tries.
    few_methods: tuple[str, ...] = ("fork",)

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.new_folder()

    def methods(self) -> tuple[str, ...]:
        """The start methods of this system that are to be tried."""
        there = multiprocessing.get_all_start_methods()
        return tuple(method for method in (METHODS if ALL else self.few_methods) if method in there)

    def start_script(self, script: Script, folder: str) -> subprocess.Popen[str]:
        """Start a script in a folder."""
        path = os.path.join(folder, "script.py")
        for name, text in {**script.files, "script.py": script.body}.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(textwrap.dedent(text))
        commands = {"file": [path], "-c": ["-c", textwrap.dedent(script.body)], "-m": ["-m", "script"], "stdin": ["-"]}
        commands["pdb"] = ["-m", "pdb", "-c", "continue", "-c", "quit", path]
        with open(path if script.how == "stdin" else os.devnull, encoding="utf-8") as file:
            return subprocess.Popen(
                [sys.executable, *self.options, *commands[script.how], *script.arguments],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
                # A signal to the script's group is none to that of the test.
                start_new_session=True,
            )

    def script(self, body: str, *arguments: str) -> Outcome:
        """Run a script in the test's folder; return its exit code, its output and its errors."""
        return self.collect(self.start_script(Script(body, arguments), self.folder))

    def scripts(self, scripts: Iterable[Script]) -> Generator[Outcome, None, None]:
        """Run scripts side by side, each in a new folder; yield how each ended, in order."""
        running: collections.deque[subprocess.Popen[str]] = collections.deque()
        left = iter(scripts)
        try:
            while True:
                while len(running) < SIDE_BY_SIDE and (script := next(left, None)) is not None:
                    running.append(self.start_script(script, self.new_folder()))
                if not running:
                    return
                yield self.collect(running.popleft())
        finally:
            for process in running:
                process.kill()
                process.communicate()

    def collect(self, process: subprocess.Popen[str]) -> Outcome:
        """Wait for the end of a script."""
        try:
            output, errors = process.communicate(timeout=self.time_limit)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Outcome(process.returncode, output.strip(), errors)

    def prints(self, expected: str, body: str, *arguments: str) -> None:
        """Fail unless the script prints this, and no errors."""
        outcome = self.script(body, *arguments)
        assert outcome == (0, expected, ""), outcome.told()

    def all_print(self, expected: str, scripts: Iterable[Script]) -> None:
        """Likewise for each of several scripts."""
        scripts = list(scripts)
        with contextlib.closing(self.scripts(scripts)) as outcomes:
            for script, outcome in zip(scripts, outcomes, strict=True):
                with self.subTest(script=script):
                    assert outcome == (0, expected, ""), f"{outcome.told()}\n{script.arguments}\n{script.body}"

    def prints_by_every_method(self, expected: str, body: str, *arguments: str) -> None:
        """Likewise for a script with each start method that is to be tried as its first argument."""
        self.all_print(expected, [Script(body, (method, *arguments)) for method in self.methods()])
