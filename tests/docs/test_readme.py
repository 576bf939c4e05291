"""What the documentation shows is what happens: each example in README.md, docs/ and the package's docstrings runs.

Every fenced block marked `python` is a test:

- with `>>>` prompts it is a doctest;
- with `if __name__ == "__main__":` it is a script, run by a Python of its own;
- otherwise it is a module, run here.

Comments of the form `# prints some text`, in order, are the lines of the whole standard output; a block without them
may print what it likes. An HTML comment on the line above the fence, which a reader does not see, says more:

- `<!-- test: continues -->`: the block goes on with the names of the one before it in the same file;
- `<!-- test: skip, because ... -->`: the block is shown and not run;
- `<!-- test: needs numpy -->`: the block is skipped where one of these packages is missing;
- `<!-- test: file orders.py -->`: the block is a file that later blocks of the page find in their folder, and those of
  other pages of the same folder after `<!-- test: files of PAGE.md -->`;
- `<!-- test: output -->`, above a block that is marked `text`: all that the block before it prints, where `...` stands
  for any text.

README.md fits on 200 lines.  Every link between the documents leads to a file and a heading that are there, and
docs/index.md has a link to every page.  Each file and name that docs/internals has in code is there.  README.md shows no figure of a benchmark that the page of the benchmarks does not
have, and that page none that benchmarks/results.md, which benchmarks/compare.py wrote, does not have.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import itertools
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import traceback
import types
import unittest
import unittest.mock
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

import conveyor
from conveyor.engines.process.wire import by_value
from tests.helpers.support import ROOT, TestCase, nothing_left, slow

FENCE = re.compile(r"^```python[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!--\s*test:\s*(continues|skip|needs|file)\b,?[ \t]*(.*?)[ \t]*-->\s*\Z")
OUTPUT = re.compile(r"<!-- test: output -->\s*^```text\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
FILES_OF = re.compile(r"<!-- test: files of (\S+) -->")
PRINTS = re.compile(r"#[ \t]*prints[ \t]?(.*)$", re.MULTILINE)
# What is in a fence of any kind, and is no text.
FENCED = re.compile(r"^```.*?^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?)[ \t]*$", re.MULTILINE)
ANCHOR = re.compile(r'<a id="([^"]+)">')

# The columns of the benchmarks in README.md, and how docs/explanation/benchmarks.md calls the contestants.
CONTESTANTS = {
    "loop": "a plain loop",
    "queues": "multiprocessing.Queue by hand",
    "`Pool`": "Pool.imap",
    "executor": "ProcessPoolExecutor",
    "joblib": "joblib",
    "mpire": "mpire",
    "pypeln": "pypeln",
    "Ray": "Ray",
}

README_LINES = 200
README_CHARACTERS = 9216


class Block(NamedTuple):
    """One example: where it is, and its source with that of the blocks it continues."""

    path: str
    line: int
    source: str
    # Packages without which it is skipped.
    needs: tuple[str, ...] = ()
    # What else is in its folder, by name.
    files: tuple[tuple[str, str], ...] = ()
    # What it prints, where a block of text says so.
    output: str | None = None

    @property
    def is_script(self) -> bool:
        """Whether it starts processes in a way that needs a main module of its own."""
        return re.search(r"^if __name__ == ", self.source, re.MULTILINE) is not None

    @property
    def is_doctest(self) -> bool:
        """Whether it shows an interactive session."""
        return re.search(r"^\s*>>> ", self.source, re.MULTILINE) is not None


def files_in(text: str) -> Iterator[tuple[int, str, str]]:
    """The blocks of one file that are files for others: where each ends, its name and its text."""
    for match in FENCE.finditer(text):
        mark = MARK.search(text, 0, match.start())
        if mark is not None and mark[1] == "file":
            yield match.end(), mark[2], match[1]


def blocks(text: str, path: str, others: Mapping[str, str] | None = None) -> Iterator[Block]:
    """The blocks of one file that are to be run; each source is padded, so that its line numbers are the file's.

    `others` are the texts of all files, by path, for those that have files of other pages.
    """
    before = ""
    found = list(FENCE.finditer(text))
    of_others = [each[1:] for name in FILES_OF.findall(text) for each in files_in((others or {})[sibling(path, name)])]
    for match, following in itertools.zip_longest(found, found[1:]):
        line = text.count("\n", 0, match.start(1)) + 1
        mark = MARK.search(text, 0, match.start())
        kind = None if mark is None else mark[1]
        if kind in ("skip", "file"):
            continue
        needs = mark[2].split(", ") if mark is not None and kind == "needs" else []
        continues = kind == "continues" or "continues" in needs
        source = before if continues else ""
        source += "\n" * (line - 1 - source.count("\n")) + match[1]
        shown = OUTPUT.search(text, match.end(), len(text) if following is None else following.start())
        yield Block(
            path,
            line,
            source,
            tuple(name for name in needs if name != "continues"),
            (*of_others, *(each[1:] for each in files_in(text) if each[0] < match.start())),
            None if shown is None else shown[1],
        )
        before = source


def sibling(path: str, name: str) -> str:
    """The path of a page in the folder of another."""
    return f"{path.rpartition('/')[0]}/{name}"


def documents(root: Path = ROOT) -> dict[str, str]:
    """The text of README.md and of each page in docs/, by its path."""
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def all_blocks() -> Iterator[Block]:
    """The blocks of all documents."""
    texts = documents()
    for path, text in texts.items():
        yield from blocks(text, path, texts)


def run_block(block: Block) -> str:
    """Run one block in an empty folder and return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in block.files:
            Path(folder, name).write_text(text, encoding="utf-8")
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
    # The documents say what is so where nothing is installed beside Conveyor.
    with unittest.mock.patch.object(by_value, "is_installed", return_value=False):
        for test in tests:
            runner.run(test, out=report.write)
    return report.getvalue()


def check_block(block: Block) -> None:
    """Run one block and compare what it printed with what it says it prints."""
    missing = [name for name in block.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise unittest.SkipTest(f"{', '.join(missing)}: not installed")
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
    if block.output is not None:
        shown = "".join(f"{line.rstrip()}\n" for line in block.output.splitlines())
        if not doctest.OutputChecker().check_output(shown, "".join(f"{line}\n" for line in printed), doctest.ELLIPSIS):
            raise AssertionError(f"{block.path}:{block.line} says it prints\n{shown}\nand prints\n{output}")
    if expected and expected != printed:
        raise AssertionError(f"{block.path}:{block.line} says it prints\n{expected}\nand prints\n{printed}")


class TestDocuments(TestCase):
    """One test for each block, named after its file and line."""

    def test_readme_has_examples(self) -> None:
        self.assertTrue([block for block in all_blocks() if block.path == "README.md"])


def links(text: str) -> list[str]:
    """The targets of the links in a document, but for those that lead into the world."""
    return [target for target in LINK.findall(FENCED.sub("", text)) if "://" not in target]


def anchors(text: str) -> set[str]:
    """The names by which links lead to headings, and those that a page gives to places."""
    text = FENCED.sub("", text)
    headings = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}
    return headings | set(ANCHOR.findall(text))


def broken_links(root: Path) -> list[str]:
    """The links of documents that lead to a file or a heading that is not there."""
    broken = []
    for path, text in documents(root).items():
        for link in links(text):
            target, _, anchor = link.partition("#")
            file = (root / path).parent / target if target else root / path
            if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
                broken.append(f"{path}: {link}")
    return broken


def unknown_names(text: str, files: Mapping[str, str]) -> list[str]:
    """The files and names in the code of a page that are in none of these files, by their path."""
    return names_beyond(text, files, words_of(files))


def words_of(files: Mapping[str, str]) -> set[str]:
    """All words in these files."""
    return {word for each in files.values() for word in re.findall(r"\w+", each)}


def names_beyond(text: str, files: Mapping[str, str], words: Set[str]) -> list[str]:
    """The same, where the words of the files are known."""
    unknown = []
    for code in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)):
        if code.endswith(".py"):
            if not any(f"/{path}".endswith(f"/{code}") for path in files):
                unknown.append(code)
        elif re.fullmatch(r"[\w.]+", code):
            unknown += [code for name in code.split(".") if name not in words]
    return unknown


def table_rows(section: str) -> list[list[str]]:
    """The cells of all tables in a section."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]


def ratios(section: str, contestant: str) -> list[str]:
    """The ratios of a contestant in a section of the benchmarks, with the best settings where it has any."""
    rows = table_rows(section)
    column = rows[0].index("ratio")
    worse = ("defaults", "item by item")
    return [row[column] for row in rows if row[0].startswith(contestant) and not row[0].endswith(worse)]


class TestPages(TestCase):
    """What the documents are, beside their examples."""

    def test_the_readme_is_short(self) -> None:
        text = documents()["README.md"]
        self.assertLessEqual(len(text.splitlines()), README_LINES)
        self.assertLessEqual(len(text), README_CHARACTERS)

    def test_every_link_leads_somewhere(self) -> None:
        self.assertEqual(broken_links(ROOT), [])

    def test_a_link_that_leads_nowhere_is_found(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "docs").mkdir()
            (root / "docs" / "page.md").write_text("# A page\n[a](../README.md#one-two) [b](other.md) [c](#page)\n")
            (root / "README.md").write_text(
                "# One, two\n[a](docs/page.md#a-page) [b](#one) [c](https://example.org)\n```text\n# one\n[d](none)\n```\n"
            )
            broken = ["README.md: #one", "docs/page.md: other.md", "docs/page.md: #page"]
            self.assertEqual(broken_links(root), broken)

    def test_the_index_has_every_page(self) -> None:
        texts = documents()
        pages = {path.removeprefix("docs/") for path in texts if path.startswith("docs/")} - {"index.md"}
        self.assertEqual(pages - set(links(texts["docs/index.md"])), set())

    def test_what_the_internals_name_is_there(self) -> None:
        paths = [path for part in ("conveyor", "tests", "benchmarks") for path in (ROOT / part).rglob("*.py")]
        files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
        pages = {path: text for path, text in documents().items() if path.startswith("docs/internals/")}
        self.assertGreater(len(pages), 10)
        words = words_of(files)
        unknown = [(path, name) for path, text in pages.items() for name in names_beyond(text, files, words)]
        self.assertEqual(unknown, [])

    def test_what_is_not_there_is_found(self) -> None:
        files = {"conveyor/core/machine.py": "class Machine:\n    def handle(self) -> None: ...\n"}
        text = "`Machine.handle` `core/machine.py` `Machine.hand` `achine.py` `a b`\n```text\n`nobody`\n```\n"
        self.assertEqual(unknown_names(text, files), ["Machine.hand", "achine.py"])

    def test_the_figures_of_the_readme_are_those_of_the_benchmarks(self) -> None:
        texts = documents()
        sections = texts["docs/explanation/benchmarks.md"].split("\n## ")[1:]
        table = texts["README.md"].split("\n## Benchmarks\n")[1].split("\n## ")[0]
        heading, _, *rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
        self.assertEqual([cell.strip() for cell in heading[1:]], list(CONTESTANTS))
        for name, *figures in rows:
            [section] = [section for section in sections if section.startswith(name.strip())]
            for contestant, figure in zip(CONTESTANTS.values(), figures, strict=True):
                with self.subTest(workload=name, contestant=contestant):
                    self.assertEqual([figure.strip()], ratios(section, contestant) or [""])

    def test_the_figures_of_the_benchmarks_are_those_that_were_measured(self) -> None:
        page = documents()["docs/explanation/benchmarks.md"].split("\n## ")[1:]
        measured = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8").split("\n## ")[1:]
        all_rows = {section.splitlines()[0]: table_rows(section) for section in measured}
        shown = {title: section for section in page if (title := section.splitlines()[0]) in all_rows}
        self.assertEqual(list(shown), list(all_rows))
        for title, section in shown.items():
            heading, *rows = all_rows[title]
            columns = [heading.index(name) for name in table_rows(section)[0]]
            kept = [[row[column] for column in columns] for row in rows if len(row) == len(heading)]
            with self.subTest(workload=title):
                self.assertGreater(len(table_rows(section)), 3)
                self.assertEqual([row for row in table_rows(section)[2:] if row not in kept], [])
                # What beats Conveyor and has no row is named beside the table, with its ratio.
                told = {row[columns.index(heading.index("ratio"))] for row in table_rows(section)[2:]}
                ahead = {row[heading.index("ratio")] for row in rows if row[heading.index("ratio")][:2] == "0."}
                self.assertEqual({ratio for ratio in ahead - told if ratio not in section}, set())


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


_pages_with_scripts: set[str] = set()
for _block in all_blocks():
    _test = _block_test(_block)
    if _block.is_script and (_block.path in _pages_with_scripts or _block.path.startswith("docs/how-to/")):
        # Each takes a Python of its own, and often more for its workers.
        _test = slow(_test)
    elif _block.is_script and _block.path != "README.md":
        _pages_with_scripts.add(_block.path)
    _add(TestDocuments, f"{_block.path}_line_{_block.line}", _test)
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

    def test_output(self) -> None:
        lines = (
            "```python",
            "print('a 0.31 s b')",
            "print()",
            "print(2)",
            "```",
            "It prints:",
            "<!-- test: output -->",
            "```text",
        )
        self.check(*lines, "a ... s b", "", "2", "```")
        for wrong in ("a b", "a ... s b"):
            with self.assertRaisesRegex(AssertionError, "made_up.md:2 says it prints"):
                self.check(*lines, wrong, "```")
        # A block of text belongs to the block before it.
        found = self.check("```python", "print(1)", "```", *lines, "a 0.31 s b", "", "2", "```")
        self.assertEqual([block.output for block in found], [None, "a 0.31 s b\n\n2\n"])

    def test_files(self) -> None:
        page = ("<!-- test: file numbers_of.py -->", "```python", "ONE = 1", "```")
        script = (
            "```python",
            "from numbers_of import ONE",
            "if __name__ == '__main__':",
            "    print(ONE)  # prints 1",
            "```",
        )
        self.check(*page, *script)
        other = "\n".join(("<!-- test: files of a.md -->", *script)) + "\n"
        (block,) = blocks(other, "docs/b.md", {"docs/a.md": "\n".join(page) + "\n"})
        check_block(block)
        self.assertEqual([name for name, _ in block.files], ["numbers_of.py"])

    def test_what_is_not_installed(self) -> None:
        for mark in ("needs no_such_package", "needs continues, no_such_package, os"):
            with self.assertRaisesRegex(unittest.SkipTest, "^no_such_package: not installed"):
                self.check(f"<!-- test: {mark} -->", "```python", "1 / 0", "```")
        self.check(
            "```python",
            "a = 1",
            "```",
            "<!-- test: needs continues, os -->",
            "```python",
            "print(a)  # prints 1",
            "```",
        )

    def test_a_mark_reaches_only_the_next_block(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            self.check("<!-- test: skip -->", "```python", "```", "text", "```python", "1 / 0", "```")


if __name__ == "__main__" and sys.argv[1:] == ["needs"]:
    # What most environments skip: blocks that need other packages.  All are to be there.
    for _block in all_blocks():
        if _block.needs:
            print(f"{_block.path}:{_block.line}", flush=True)
            check_block(_block)
