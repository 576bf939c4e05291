"""The census: the pipeline's result equals the serial one's, and a broken file is a finding."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import conveyor
from tests.helpers.support import ALL, ROOT, TestCase, nothing_left

SCRIPT = ROOT / "examples" / "stdlib_census.py"

FILES = {
    "plain.py": b"import os, sys\nimport os.path\n\ndef one(a):\n    return a\n",
    "package/inner.py": (
        b"from . import sibling\nfrom collections.abc import Iterable\n\n"
        b"class Kind:\n"
        b"    def many(self, a, b):\n"
        b"        import json\n"
        b"        if a and b or not a:\n"  # if, and, or
        b"            return [x for x in a if x]\n"  # for, if
        b"        elif b:\n"  # elif
        b"            return None\n"
        b"        try:\n"
        b"            def nested():\n"
        b"                return 1 if a else 2\n"  # counted in nested
        b"        except ValueError:\n"  # except
        b"            assert b\n"  # assert
        b"        while True:\n"  # while
        b"            match b:\n"
        b"                case 1: pass\n"  # case
        b"                case x if x: pass\n"  # a guard alone
        b"                case _: pass\n"
    ),
    "site-packages/other.py": b"import never_counted\n",
    "empty.py": b"",
    "latin.py": b"# -*- coding: latin-1 -*-\nname = '\xe4'\n",
    "broken.py": b"def (:\n",
    "not_utf8.py": b"name = '\xe4'\n",
    "null.py": b"name = 1\x00\n",
    "unknown_coding.py": b"# -*- coding: nothing-known -*-\n",
    "too_deep.py": b"(" * 2000 + b")" * 2000,
    "warns.py": b"name = '\\d' is 1\n",
}
BROKEN = {"broken.py", "not_utf8.py", "null.py", "unknown_coding.py", "too_deep.py"}


def load_script() -> Any:
    """The example as a module; its classes are pickled by name, so it has to be found under one."""
    specification = importlib.util.spec_from_file_location("stdlib_census", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["stdlib_census"] = module
    specification.loader.exec_module(module)
    return module


census_script = load_script()


class TestCensus(TestCase):
    """On a small folder that holds every kind of file."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name).resolve()
        for name, content in FILES.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        (self.folder / "folder.py").mkdir()

    def run_main(self, *arguments: str) -> tuple[int, str, str]:
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), nothing_left():
            status = census_script.main([str(self.folder), *arguments])
        return status, output.getvalue(), errors.getvalue()

    def run_script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [str(Path(conveyor.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            timeout=50,
        )

    def test_pipeline_equals_serial(self) -> None:
        paths = census_script.source_files(self.folder)
        with nothing_left():
            by_pipeline = list(census_script.findings_from_pipeline(paths, census_script.build_pipeline()))
        self.assertEqual(by_pipeline, list(census_script.findings_serially(paths)))

    def test_numbers(self) -> None:
        census = census_script.take_census(
            census_script.findings_serially(census_script.source_files(self.folder)), top=10
        )
        self.assertEqual(census.files, len(FILES) - 1)
        self.assertEqual(census.functions, 3)
        self.assertEqual(
            [(found.complexity, found.name) for found in census.most_complex],
            [(12, "Kind.many"), (2, "Kind.many.nested"), (1, "one")],
        )
        self.assertEqual(census.most_imported, (("collections", 1), ("json", 1), ("os", 1), ("sys", 1)))
        self.assertEqual({Path(broken.path).name for broken in census.broken}, BROKEN)

    def test_order_of_findings_makes_no_difference(self) -> None:
        findings = list(census_script.findings_serially(census_script.source_files(self.folder)))
        self.assertEqual(
            census_script.take_census(findings, top=2), census_script.take_census(reversed(findings), top=2)
        )

    def test_report(self) -> None:
        status, output, errors = self.run_main()
        self.assertEqual(status, 0)
        self.assertIn("results: equal", output)
        self.assertIn("Kind.many  (package/inner.py:5)", output)
        self.assertRegex(output, re.compile(r"^ +1  json +#+$", re.MULTILINE))
        for name in BROKEN:
            self.assertRegex(output, re.compile(rf"^  {name}: \w+Error: .*$", re.MULTILINE))
        self.assertNotIn("never_counted", output)
        self.assertRegex(output, re.compile(r"^  parse +\d+ +\d+\.\d\d +\d+%$", re.MULTILINE))
        self.assertRegex(output, re.compile(r"^  \d+\.\d cores did work on average, of \d+", re.MULTILINE))
        self.assertIn(f"{len(FILES) - 1} of {len(FILES) - 1} items (100 %)", errors)

    def test_times_are_compared_where_nothing_else_used_the_machine(self) -> None:
        for used, expected in (
            (0.0, r"\d times as fast   results: equal"),
            (
                1e6,
                r"Times not compared: other programs used .* cores meanwhile\. Run it again without them\.   results: equal",
            ),
        ):
            seconds = itertools.count(0.0, used)
            with self.subTest(used), mock.patch.object(census_script, "machine_cpu_seconds", seconds.__next__):
                self.assertRegex(self.run_main()[1], expected)
        with mock.patch.object(census_script, "machine_cpu_seconds", lambda: None):
            self.assertIn("times as fast", self.run_main()[1])

    def test_times_that_cannot_be_compared_are_not_shown(self) -> None:
        seconds = itertools.count(0.0, 1e6)
        with mock.patch.object(census_script, "machine_cpu_seconds", seconds.__next__):
            self.assertNotIn("serial:", self.run_main()[1])

    def test_both_ways_say_what_they_do_and_how_far_they_are(self) -> None:
        files = len(FILES) - 1
        with mock.patch.object(census_script, "SECONDS_BETWEEN_REPORTS", 0.0):
            errors = self.run_main()[2]
        before, after = errors.split("Now the same without Conveyor, to compare")
        self.assertIn(f"{files} files through the pipeline", before)
        self.assertNotIn(f"1 of {files} files\n", before)
        self.assertEqual(after.splitlines()[1:], [f"{done} of {files} files" for done in range(1, files + 1)])

    def test_report_is_as_long_as_asked(self) -> None:
        output = self.run_main("--serial", "--top", "1")[1]
        self.assertIn("Kind.many ", output)
        self.assertNotIn("Kind.many.nested", output)

    def test_difference_is_said_by_the_exit_status(self) -> None:
        class Forgetful(conveyor.Pipeline):
            def stream(self, items: Any, **settings: Any) -> Any:
                return super().stream(list(items)[1:], **settings)

        original = census_script.Pipeline
        self.addCleanup(setattr, census_script, "Pipeline", original)
        census_script.Pipeline = Forgetful
        status, output, _ = self.run_main()
        self.assertEqual(status, 1)
        self.assertIn("results: NOT EQUAL", output)

    def test_as_a_script_under_each_start_method(self) -> None:
        for method in multiprocessing.get_all_start_methods()[: None if ALL else 1]:
            with self.subTest(method), nothing_left():
                finished = self.run_script(str(self.folder), "--start-method", method, "--workers", "2")
                self.assertEqual(finished.returncode, 0, finished.stderr)
                self.assertIn("results: equal", finished.stdout)

    def test_folder_without_source(self) -> None:
        finished = self.run_script(str(self.folder / "folder.py"))
        self.assertEqual(finished.returncode, 2)
        self.assertIn("there is no .py file under", finished.stderr)
