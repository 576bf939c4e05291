"""Tests whose subject is a whole program: each is a script of its own, run by this Python.

Law: what a script prints is compared as a whole, its errors included, and every warning in it is an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from tests.helpers.support import ROOT, TestCase

METHODS = ("fork", "forkserver", "spawn")


class ScriptTestCase(TestCase):
    """Runs scripts, in a folder of the test's own."""

    options: tuple[str, ...] = ("-W", "error")

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.new_folder()

    def script(self, body: str, *arguments: str) -> tuple[int, str, str]:
        """Run a script in the folder; return its exit code, its output and its errors."""
        path = os.path.join(self.folder, "script.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(textwrap.dedent(body))
        done = subprocess.run(
            [sys.executable, *self.options, path, *arguments],
            capture_output=True,
            text=True,
            timeout=self.time_limit,
            check=False,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            # A signal to the script's group is none to that of the test.
            start_new_session=True,
        )
        return done.returncode, done.stdout.strip(), done.stderr

    def prints(self, expected: str, body: str, *arguments: str) -> None:
        """Fail unless the script prints this, and no errors."""
        code, output, errors = self.script(body, *arguments)
        assert (code, output, errors) == (0, expected, ""), f"exit code {code}\n{output}\n{errors}"

    def prints_by_every_method(self, expected: str, body: str, *arguments: str) -> None:
        """Likewise, with each start method of this system as the script's first argument."""
        import multiprocessing

        for method in METHODS:
            if method in multiprocessing.get_all_start_methods():
                with self.subTest(method=method):
                    self.folder = self.new_folder()
                    self.prints(expected, body, method, *arguments)
