"""The programs of the gallery run, and print what they say they print.

Law: a program is run as a user runs it.  Where a package that it needs is missing, its test is skipped; `.ci/run` has an
environment with all of them.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.support import ROOT, TestCase, nothing_left, slow

EXAMPLES = ROOT / "examples"
# These have tests of their own, and are longer.
PROGRAMS = ("stdlib_census.py", "watch_balancer.py", "service.py", "fetch.py")
GALLERY = sorted(path for path in EXAMPLES.glob("*.py") if path.name not in PROGRAMS)
NOTEBOOK = EXAMPLES / "notebook.ipynb"
# What executes it, and what its bar needs.
NOTEBOOK_NEEDS = ("nbclient", "ipykernel", "ipywidgets", "tqdm")
EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.execute(notebook, timeout=50)
nbformat.write(notebook, sys.argv[2])
"""
MOST_LINES = 40
# What stands in the first lines: what it shows, how to run it, what to change, what it prints.
HEADER = re.compile(
    r".+\n\n    .*python3 examples/(\w+\.py).*\n\n.*Change first: .*\n\nIt prints[^:]*:\n\n(.*)", re.DOTALL
)


def header(path: Path) -> tuple[str, str]:
    """The name that a program gives itself, and what it says it prints."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    match = HEADER.fullmatch(docstring)
    if match is None:
        raise AssertionError(f"{path.name}: its first lines are not those of the others")
    return match[1], "".join(f"{line[4:]}\n" for line in match[2].splitlines())


def own_lines(path: Path) -> int:
    """How many lines a program has beside its docstring, its imports and empty ones."""
    text = path.read_text("utf-8")
    body = ast.parse(text).body
    apart = [body[0], *(each for each in body if isinstance(each, ast.Import | ast.ImportFrom))]
    left_out = {line for each in apart for line in range(each.lineno, (each.end_lineno or 0) + 1)}
    return sum(1 for number, line in enumerate(text.splitlines(), 1) if line.strip() and number not in left_out)


class GalleryTest(TestCase):
    """examples/, and the page that lists them."""

    def test_each_is_short_and_says_what_it_is(self) -> None:
        self.assertGreaterEqual(len(GALLERY), 7)
        for path in GALLERY:
            with self.subTest(path.name):
                self.assertEqual(header(path)[0], path.name)
                self.assertLess(own_lines(path), MOST_LINES)

    def test_the_gallery_lists_each(self) -> None:
        text = (ROOT / "docs" / "gallery" / "index.md").read_text("utf-8")
        names = set(re.findall(r"\.\./\.\./examples/([\w.]+)\)", text))
        self.assertEqual(names, {path.name for path in (*EXAMPLES.glob("*.py"), NOTEBOOK)})

    def run_example(self, path: Path) -> None:
        """Run a program, and compare what it prints."""
        imported = re.findall(r"^(?:import|from) (\w+)", path.read_text("utf-8"), re.MULTILINE)
        missing = sorted({name for name in imported if importlib.util.find_spec(name) is None})
        if missing:
            self.skipTest(f"{', '.join(missing)}: not installed")
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with nothing_left():
            finished = subprocess.run(
                [sys.executable, str(path)],
                capture_output=True,
                text=True,
                encoding="utf-8",
                cwd=self.new_folder(),
                # Other libraries warn as they like.
                env={**os.environ, "PYTHONPATH": python_path, "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "default"},
                stdin=subprocess.DEVNULL,
                timeout=55,
            )
        self.assertEqual(finished.returncode, 0, finished.stderr)
        told = header(path)[1]
        if not doctest.OutputChecker().check_output(told, finished.stdout, doctest.ELLIPSIS):
            self.fail(f"{path.name} says it prints\n{told}\nand prints\n{finished.stdout}\n{finished.stderr}")


class NotebookTest(TestCase):
    """examples/notebook.ipynb, which is kept with its outputs."""

    def test_it_says_what_it_is_and_is_kept_as_it_was_executed(self) -> None:
        notebook = json.loads(NOTEBOOK.read_text("utf-8"))
        first = "".join(notebook["cells"][0]["source"])
        for part in ("It shows ", "jupyter lab examples/notebook.ipynb", "Change first: "):
            self.assertIn(part, first)
        cells = code_cells(notebook)
        self.assertEqual([cell["execution_count"] for cell in cells], list(range(1, len(cells) + 1)))
        # Times of day would change with each execution.
        self.assertTrue(all(not cell["metadata"] for cell in cells))
        kinds = [kind for cell in cells for kind in kinds_of(cell)]
        self.assertEqual(kinds.count("text/html"), 4)

    @slow
    def test_it_runs_and_shows_what_it_is_kept_with(self) -> None:
        missing = [name for name in NOTEBOOK_NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            self.skipTest(f"{', '.join(missing)}: not installed")
        executed = Path(self.new_folder(), "executed.ipynb")
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with nothing_left():
            finished = subprocess.run(
                [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(executed)],
                capture_output=True,
                text=True,
                encoding="utf-8",
                cwd=executed.parent,
                env={**os.environ, "PYTHONPATH": python_path, "PYTHONWARNINGS": "default"},
                stdin=subprocess.DEVNULL,
                timeout=55,
            )
        self.assertEqual(finished.returncode, 0, finished.stderr)
        kept, now = (code_cells(json.loads(path.read_text("utf-8"))) for path in (NOTEBOOK, executed))
        for cell, again in zip(kept, now, strict=True):
            with self.subTest(cell["id"]):
                self.assertEqual(kinds_of(again), kinds_of(cell))
                if "text/html" not in kinds_of(cell):
                    self.assertEqual(results_of(again), results_of(cell))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a notebook that are executed."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds_of(cell: dict[str, Any]) -> list[str]:
    """What kinds of output a cell has."""
    return sorted(kind for output in cell["outputs"] for kind in output.get("data", [output["output_type"]]))


def results_of(cell: dict[str, Any]) -> list[str]:
    """What a cell that ends in an expression says, as text."""
    results = [output for output in cell["outputs"] if output["output_type"] == "execute_result"]
    return ["".join(output["data"]["text/plain"]) for output in results]


def _test(path: Path) -> Callable[[GalleryTest], None]:
    def test(self: GalleryTest) -> None:
        self.run_example(path)

    test.__name__ = f"test_{path.stem}"
    return slow(test)  # type: ignore[no-any-return]


for _path in GALLERY:
    setattr(GalleryTest, f"test_{_path.stem}", _test(_path))
