"""What the documentation shows is what happens: each example in README.md, docs/*.md and the package's docstrings runs.

Every fenced block marked `python` is a test:

- with `>>>` prompts it is a doctest;
- with `if __name__ == "__main__":` it is a script, run by a Python of its own;
- otherwise it is a module, run here.

Comments of the form `# prints some text`, in order, are the lines of the whole standard output; a block without them
may print what it likes. An HTML comment on the line above the fence, which a reader does not see, says more:

- `<!-- test: continues -->`: the block goes on with the names of the one before it in the same file;
- `<!-- test: skip, because ... -->`: the block is shown and not run.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import traceback
import types
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import conveyor
from tests.support import ROOT, TestCase, nothing_left

FENCE = re.compile(r"^```python[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!--\s*test:\s*(continues|skip)\b.*-->\s*\Z")
PRINTS = re.compile(r"#[ \t]*prints[ \t]?(.*)$", re.MULTILINE)


class Block(NamedTuple):
    """One example: where it is, and its source with that of the blocks it continues."""

    path: str
    line: int
    source: str

    @property
    def is_script(self) -> bool:
        """Whether it starts processes in a way that needs a main module of its own."""
        return re.search(r"^if __name__ == ", self.source, re.MULTILINE) is not None

    @property
    def is_doctest(self) -> bool:
        """Whether it shows an interactive session."""
        return re.search(r"^\s*>>> ", self.source, re.MULTILINE) is not None


def blocks(text: str, path: str) -> Iterator[Block]:
    """The blocks of one file that are to be run; each source is padded, so that its line numbers are the file's."""
    before = ""
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        mark = MARK.search(text, 0, match.start())
        if mark is not None and mark[1] == "skip":
            continue
        source = before if mark is not None else ""
        source += "\n" * (line - 1 - source.count("\n")) + match[1]
        yield Block(path, line, source)
        before = source


def all_blocks() -> Iterator[Block]:
    """The blocks of all documents."""
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if document.exists():
            yield from blocks(document.read_text(encoding="utf-8"), document.relative_to(ROOT).as_posix())


def run_block(block: Block) -> str:
    """Run one block in an empty folder and return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        if block.is_script:
            return run_as_script(block, Path(folder))
        before = os.getcwd()
        os.chdir(folder)
        try:
            return run_as_module(block)
        finally:
            os.chdir(before)


def run_as_module(block: Block) -> str:
    """Run the block in this process, as a module that is imported, so that its classes can be pickled."""
    module = types.ModuleType("documented_" + re.sub(r"\W", "_", f"{block.path}_{block.line}"))
    sys.modules[module.__name__] = module
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(block.source, block.path, "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return output.getvalue()


def run_as_script(block: Block, folder: Path) -> str:
    """Run the block as a user would: saved to a file and given to Python."""
    script = folder / "example.py"
    script.write_text(block.source, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(Path(conveyor.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        timeout=50,
    )
    if finished.returncode != 0:
        raise AssertionError(f"{block.path}:{block.line} ended with {finished.returncode}:\n{finished.stderr}")
    return finished.stdout


def run_doctests(tests: list[doctest.DocTest]) -> str:
    """Run doctests and return the report of those that failed."""
    report = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test, out=report.write)
    return report.getvalue()


def check_block(block: Block) -> None:
    """Run one block and compare what it printed with what it says it prints."""
    with nothing_left():
        if block.is_doctest:
            # The parser counts lines from 0, and the padding has put them where they are in the document.
            test = doctest.DocTestParser().get_doctest(block.source, {}, block.path, block.path, 0)
            report = run_doctests([test])
            if report:
                raise AssertionError(report)
            return
        output = run_block(block)
    expected = [line.rstrip() for line in PRINTS.findall(block.source)]
    printed = [line.rstrip() for line in output.splitlines()]
    if expected and expected != printed:
        raise AssertionError(f"{block.path}:{block.line} says it prints\n{expected}\nand prints\n{printed}")


class TestDocuments(TestCase):
    """One test for each block, named after its file and line."""

    def test_readme_has_examples(self) -> None:
        self.assertTrue([block for block in all_blocks() if block.path == "README.md"])


class TestDocstrings(TestCase):
    """One test for each module of the package."""


def _block_test(block: Block) -> Callable[[TestDocuments], None]:
    def test(self: TestDocuments) -> None:
        check_block(block)

    return test


def _docstring_test(name: str) -> Callable[[TestDocstrings], None]:
    def test(self: TestDocstrings) -> None:
        module = importlib.import_module(name)
        tests = [found for found in doctest.DocTestFinder(exclude_empty=True).find(module) if found.examples]
        with nothing_left():
            report = run_doctests(tests)
        if report:
            self.fail(report)

    return test


def _module_names() -> Iterator[str]:
    yield conveyor.__name__
    for module in pkgutil.walk_packages(conveyor.__path__, conveyor.__name__ + "."):
        if not module.name.endswith("__main__"):
            yield module.name


def _add(case: type[unittest.TestCase], name: str, test: Callable[..., None]) -> None:
    test.__name__ = "test_" + re.sub(r"\W", "_", name)
    test.__qualname__ = f"{case.__qualname__}.{test.__name__}"
    setattr(case, test.__name__, test)


for _block in all_blocks():
    _add(TestDocuments, f"{_block.path}_line_{_block.line}", _block_test(_block))
for _name in _module_names():
    _add(TestDocstrings, _name, _docstring_test(_name))


class TestScheme(TestCase):
    """The scheme itself: what is shown wrongly fails."""

    def check(self, *lines: str) -> list[Block]:
        found = list(blocks("\n".join(lines) + "\n", "made_up.md"))
        for block in found:
            check_block(block)
        return found

    def test_module(self) -> None:
        self.check("```python", "print(1)  # prints 1", "print('a b')", "# prints a b", "```")

    def test_module_that_prints_something_else(self) -> None:
        with self.assertRaisesRegex(AssertionError, "made_up.md:2 says it prints"):
            self.check("```python", "print(2)  # prints 1", "```")

    def test_module_that_raises_at_its_line(self) -> None:
        try:
            self.check("text", "```python", "1", "1 / 0", "```")
        except ZeroDivisionError as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.assertEqual((last.filename, last.lineno), ("made_up.md", 4))
        else:
            self.fail("nothing was raised")

    def test_script(self) -> None:
        self.check("```python", "if __name__ == '__main__':", "    print('main')  # prints main", "```")

    def test_script_that_fails(self) -> None:
        with self.assertRaisesRegex(AssertionError, "(?s)made_up.md:2 ended with 1:.*line 3"):
            self.check("```python", "if __name__ == '__main__':", "    1 / 0", "```")

    def test_doctest(self) -> None:
        self.check("```python", ">>> 1 + 1", "2", "```")
        with self.assertRaisesRegex(AssertionError, 'File "made_up.md", line 2'):
            self.check("```python", ">>> 1 + 1", "3", "```")

    def test_continued(self) -> None:
        found = self.check(
            "```python", "a = 1", "```", "more", "<!-- test: continues -->", "```python", "print(a)", "```"
        )
        self.assertEqual([block.line for block in found], [2, 7])

    def test_skipped_and_other_languages(self) -> None:
        found = self.check(
            "<!-- test: skip, because it has no end -->", "```python", "1 / 0", "```", "```sh", "false", "```"
        )
        self.assertEqual(found, [])

    def test_a_mark_reaches_only_the_next_block(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            self.check("<!-- test: skip -->", "```python", "```", "text", "```python", "1 / 0", "```")
