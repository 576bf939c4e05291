"""What a type checker makes of a pipeline: no error that is none, and a type of use, or else Any.

Law: one run of mypy over one generated file, `SOURCE`.  In it

- a line that ends in `# is T` is an expression, of which mypy has to say that its type is T;
- a line that ends in `# error: TEXT` has to be reported, with TEXT in the report;
- every other line has to pass without a word.

Names of modules are left out of types.  The examples of README.md and of docs/ are in the file too, each in a
function of its own; they have to pass but for `DOCUMENT_ERRORS`.  Where there is
pyright, it reads `PYRIGHT_SOURCE`.
"""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import typing
import unittest
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from conveyor import Pipeline
from tests.docs.test_readme import all_blocks
from tests.helpers.support import ROOT, TestCase, slow

SOURCE = """
from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from typing import Any

from conveyor import BalancingFork, Element, Join, Pipe, Pipeline, Processor, Progress, ReplicatingFork, worker

def unannotated(item):  # type: ignore[no-untyped-def]
    return item

def halves(number: int) -> Iterator[float]:
    yield number / 2

def all_known(numbers: list[int]) -> list[str | None]:
    return [str(number) if number else None for number in numbers]


def pairs(numbers: list[int]) -> Generator[tuple[int, int], None, None]:
    yield numbers[0], numbers[-1]

async def fetch(number: int) -> str | None:
    return str(number) if number else None

async def lines_of(number: int) -> AsyncIterator[bytes]:
    yield bytes(number)

def mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)

def known(number: int) -> str | None:
    return str(number) if number else None

def ratio(item: object) -> float:
    return 0.5

def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(text)]

def count(found: list[dict[str, Any]]) -> int:
    return len(found)

def pair(row: tuple[int, str]) -> str:
    return row[0] * row[1]

def done_of(progress: Progress) -> int:
    return progress.done

class Same(Processor):
    def process(self, item: Any) -> Any:
        return item

class Shout(Processor[str, str]):
    workers = 2

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def process(self, item: str) -> str:
        return item.upper() + self.mark

lines: list[str] = ["a b", "c"]
ages: dict[str, int] = {"Ada": 36}
seen: list[int] = []

# One step.
Pipeline().add(Processor(len))  # is Pipeline[Sized, int]
Pipeline(engine="inline", cores=2).add(Processor(len)).run(["a"])  # is list[int]
Pipeline().add(Processor(len)).run("word")  # is list[int]
Pipeline().add(Processor(len)).run([1])  # error: expected "Sized"
Pipeline().add(Processor(len)).stream(lines)  # is Stream[int]
Pipeline().add(Processor(len)).submit("word")  # is Future[list[int]]
Pipeline().add(Processor(len)).submit("word", timeout=1).result()  # is list[int]
Pipeline().add(Processor(len)).submit(1)  # error: expected "Sized"
Pipeline().add(Processor(len)).astream(lines)  # is AsyncStream[int]
Pipeline().add(Processor(len)).astream("word")  # is AsyncStream[int]
Pipeline().add(Processor(len)).submit("word", timeout="1")  # error: expected "float | None"
Pipeline().add(Processor(len)).run(lines, progress=True, total=3)  # is list[int]
Pipeline().add(Processor(len)).stream(lines, progress=done_of)  # is Stream[int]
Pipeline().add(Processor(len)).run(lines, progress=count)  # error: "progress"
Pipeline().add(Processor(len)).run(lines, progress="bar")  # error: No overload variant of "run"
next(Pipeline().add(Processor(len)).stream(lines))  # is int

# Results beside their inputs.
Pipeline().add(Processor(halves)).run([1], with_input=True)  # is list[tuple[int, list[float]]]
Pipeline().add(Processor(halves)).stream([1], with_input=True)  # is Stream[tuple[int, list[float]]]
Pipeline().add(Processor(halves)).run([1], with_input=False, return_exceptions=False)  # is list[float]
Pipeline().add(Processor(halves)).run([1], return_exceptions=True)  # is list[float | Exception]
Pipeline().add(Processor(halves)).stream([1], return_exceptions=True, total=1)  # is Stream[float | Exception]
both = Pipeline().add(Processor(halves)).run([1], with_input=True, return_exceptions=True)
both  # is list[tuple[int, list[float] | Exception]]
next(Pipeline().add(Processor(halves)).stream([1], with_input=True, return_exceptions=True))[0]  # is int
Pipeline().add(Processor(halves)).run([1], with_input=bool(lines), return_exceptions=True)  # is list[Any]
Pipeline().add(Processor(halves)).run(lines, with_input=True)  # error: No overload variant of "run"
Pipeline().add(Processor(halves)).run([1], with_input="yes")  # error: No overload variant of "run"
Pipeline().add(Processor(len)).open()  # is Pipeline[Sized, int]
Pipeline().add(Processor(str.split)).run(lines)  # is list[list[str]]
Pipeline().add(Processor(int)).run(["1"])  # is list[int]
Pipeline().add(Processor(halves)).run([1])  # is list[float]
Pipeline().add(Processor(known)).run([1])  # is list[str]
Pipeline().add(Processor(known, keep_none=True)).run([1])  # is list[str | None]
Pipeline().add(Processor(ages.get)).run(["Ada"])  # is list[int]
Pipeline().add(Processor(ages.get, keep_none=True)).run(["Ada"])  # is list[int | None]
Pipeline().add(Processor(records)).run(lines)  # is list[list[dict[str, Any]]]
Pipeline().add(Processor(Shout.upper))  # error: has no attribute "upper"
Pipeline().add(Shout("!")).run(lines)  # is list[str]
Pipeline().add(Shout("!")).run([1])  # error: expected "str"
Pipeline().add(Processor(seen.append)).run([1])  # is list[Any]
Pipeline().add(Processor(os._exit)).run([1])  # is list[Any]

# Batches.
Pipeline().add(Processor(mean, batch=2)).run([1, 2])  # is list[float]
Pipeline().add(Processor(pairs, batch=2)).run([1, 2])  # is list[tuple[int, int]]
Pipeline().add(Processor(mean, batch=2)).run(lines)  # error: incompatible type "list[str]"
Pipeline().add(Processor(halves, batch=2))  # error: incompatible type
Pipeline().add(Processor(all_known, batch=2, per_item=True)).run([1, 2])  # is list[str]
Pipeline().add(Processor(all_known, batch=2, per_item=True, keep_none=True)).run([1, 2])  # is list[str | None]
Pipeline().add(Processor(pairs, batch=2, per_item=True, batch_timeout=0.01)).run([1, 2])  # is list[tuple[int, int]]
Pipeline().add(Processor(all_known, batch=2, per_item=True)).run(lines)  # error: incompatible type "list[str]"
Pipeline().add(Processor(mean, batch=2, per_item=True))  # error: No overload variant of "Processor"

# Async jobs.
Pipeline().add(Processor(fetch)).run([1])  # is list[str]
Pipeline().add(Processor(fetch, keep_none=True)).run([1])  # is list[str | None]
Pipeline().add(Processor(lines_of, concurrency=3)).run([1])  # is list[bytes]
Pipeline().add(Processor(fetch)).run(lines)  # error: incompatible type "list[str]"

# Threaded jobs.
Pipeline().add(Processor(known, threads=4)).run([1])  # is list[str]
Pipeline().add(Processor(known, threads=4, keep_none=True)).run([1])  # is list[str | None]
Pipeline().add(Processor(mean, batch=2, threads=4)).run([1, 2])  # is list[float]
Pipeline().add(Processor(known, threads=4)).run(lines)  # error: incompatible type "list[str]"
Pipeline().add(Processor(known, threads="4"))  # error: No overload variant of "Processor"

# Jobs whose types depend on what they get, or that do not say.
Pipeline().add(Processor(abs)).run([-1])  # is list[Any]
Pipeline().add(Processor(list)).run(["ab"])  # is list[Any]
Pipeline().add(Processor(sorted)).run(["ab"])  # is list[Any]
Pipeline().add(Processor(max)).run(["ab"])  # is list[Any]
Pipeline().add(Processor(set)).run(["ab"])  # is list[Any]
Pipeline().add(Processor(Counter)).run(["ab"])  # is list[Any]
Pipeline().add(Processor(copy.copy)).run([1])  # is list[Any]
Pipeline().add(Processor(list.pop)).run([[1]])  # is list[Any]
Pipeline().add(Processor(sum, batch=3)).run(range(8))  # is list[Any]
Pipeline().add(Processor(lambda x: x + 1)).run([1])  # is list[Any]
Pipeline().add(Processor(lambda x: x.name)).run([1])  # is list[Any]
Pipeline().add(Processor(lambda x: [x])).run([1])  # is list[Any]
Pipeline().add(Processor(lambda x: str(x))).run([1])  # is list[str]
Pipeline().add(Processor(lambda xs: [x + 1 for x in xs], batch=2)).run([1])  # is list[Any]
Pipeline().add(Processor(partial(int, base=2))).run(["1"])  # is list[int]
Pipeline().add(Processor(partial(pow, 2))).run([1])  # is list[Any]
Pipeline().add(Processor(unannotated)).run([1])  # is list[Any]
Pipeline().add(Processor(json.loads)).run(lines)  # is list[Any]
Pipeline().add(Same()).run([1])  # is list[Any]

# What a job can know of its worker.
Pipeline().add(Processor(str.upper, setup=dict)).run(lines)  # is list[str]
Pipeline().add(Processor(known, keep_none=True, setup=lambda: 1)).run([1])  # is list[str | None]
Processor(str.upper, setup=3)  # error: No overload variant of "Processor"
worker()  # is WorkerContext
worker().index  # is int
worker().state  # is Any
worker().attempt = 2  # error: Property "attempt" defined in "WorkerContext" is read-only

# How many workers.
Pipeline(workers="auto").add(Processor(known, workers="auto", max_workers=3)).run([1])  # is list[str]
Pipeline(workers=4)  # error: expected "Literal['auto'] | None"
Processor(known, max_workers="3")  # error: No overload variant of "Processor"

# Shared objects.
Pipeline(shared={"ages": ages}).add(Processor(len)).run(lines)  # is list[int]
Pipeline(shared=["ages"])  # error: expected "Mapping[str, Any] | None"
worker().shared["ages"]  # is Any

# Chains.
Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len)).run(lines)  # is list[int]
Pipeline().add(Processor(len)).add(Pipe()).add(Processor(str.upper))  # error: expected "Callable[[int],
Pipeline().add(Processor(len)).add(Pipe()).add(Shout("!"))  # error: expected "Processor[int, str]"
Pipeline().add(Processor(len)).add(Processor(str.upper))  # error: expected "Callable[[int],
shout = Processor(str.upper)
Pipeline().add(Processor(len)).add(Pipe()).add(shout)  # error: "Processor[str, str]"; expected "Processor[int, str]"
Pipeline().add(Processor(halves)).add(Pipe()).add(Processor(known))  # error: expected "Callable[[float], AnyOutput]"
Pipeline().add(Processor(len)).add(Pipe()).add(Processor(halves)).run(lines)  # is list[float]
Pipeline().add(Processor(unannotated)).add(Pipe()).add(Processor(len)).run([1, 2])  # is list[int]
Pipeline().add(Same()).add(Pipe()).add(Processor(len)).run([1, 2])  # is list[int]
Pipeline().add(Processor(abs)).add(Pipe()).add(Processor(str)).run([-1])  # is list[str]
Pipeline().add(Processor(len)).add(Pipe()).add(Processor(abs))  # is Pipeline[Sized, Any]
Pipeline().add(Processor(len)).add(Pipe()).add(Processor(lambda n: str(n))).run(lines)  # is list[str]
Pipeline().add(Processor(records)).add(Pipe()).add(Processor(count))  # is Pipeline[str, int]
Pipeline().add(Processor(records)).add(Pipe()).add(Processor(str.upper))  # error: expected "Callable[[list[dict[

# Branches.
fork = Pipeline().add(Processor(str.split)).add(Pipe()).add(ReplicatingFork(2))
two = fork.add(Processor(len), Processor(str)).add(Pipe())
three = fork.add(Processor(len), Processor(str), Processor(ratio)).add(Pipe())
four = fork.add(Processor(len), Processor(str), Processor(ratio), Processor(list.copy)).add(Pipe())
five = fork.add(Processor(len), Processor(len), Processor(len), Processor(len), Processor(str)).add(Pipe())
two.add(Join()).run(lines)  # is list[int | str]
two.add(Join(2, how="zip")).run(lines)  # is list[tuple[Any, ...]]
three.add(Join(3)).run(lines)  # is list[int | str | float]
three.add(Join(3, how="zip")).run(lines)  # is list[tuple[Any, ...]]
four.add(Join(how="zip")).run(lines)  # is list[tuple[Any, ...]]
five.add(Join(how="zip")).run(lines)  # is list[tuple[Any, ...]]
# Each branch has its own place in the row, which no tuple of any length can say, or None.
two.add(Join(2, how="zip")).add(Processor(pair)).run(lines)  # is list[str]
two.add(Join(2, how="zip")).add(Processor(count))  # error: expected "Callable[[tuple[Any, ...]],
fork.add(Processor(len), Pipe())  # is Pipeline[str, int | Any]
fork.add(Pipe(), Pipe())  # is Pipeline[str, list[str]]
two.add(Processor(hex), Processor(str.upper))  # is Pipeline[str, str]
two.add(Processor(ratio))  # is Pipeline[str, float]
two.add(Processor(str.upper))  # error: expected "Callable[[int | str],
fork.add(BalancingFork(2)).add(Processor(len)).add(Pipe()).add(Join(2))  # is Pipeline[str, int]

# What is not known until it runs.
statements = Pipeline()
statements.add(Processor(str.split))
statements.add(Pipe())
statements.add(ReplicatingFork(2))
statements.add(Processor(len), Processor(max))
statements.run(lines)  # is list[Any]

def grow_by_anything(pipeline: Pipeline[str, int], element: Any) -> None:
    pipeline.add(Processor(element))  # is Pipeline[str, Any]
    pipeline.add(element)  # is Pipeline[Any, Any]
    Pipeline().add(element)  # is Pipeline[Any, Any]

def grow(pipeline: Pipeline[Any, Any], some: list[Element], steps: list[Processor[int, str]]) -> Pipeline[Any, Any]:
    for element in some:
        pipeline.add(element)
    for item in [Processor(len), Pipe()]:
        pipeline = pipeline.add(item)
    return pipeline.add(*some).add(*steps)

def build() -> Pipeline[str, int]:
    return Pipeline().add(Processor(len))

with Pipeline().add(Processor(len)) as opened:
    opened.run(lines)  # is list[int]

# Mistakes.
Pipeline().add(len)  # error: No overload variant of "add"
Pipeline().add(Shout)  # error: "add" of "EmptyPipeline" matches argument type "type[Shout]"
Pipeline().add(Processor(len)).add(Shout)  # error: "add" of "Pipeline" matches argument type "type[Shout]"
Pipeline().add(Processor(len)).add(Pipe)  # error: No overload variant of "add"
Pipeline(engine="cluster")  # error: expected "Literal['process', 'thread', 'inline', 'dask'] | DaskEngine | None"
Pipeline(core=2)  # error: Unexpected keyword argument "core"
Processor(len, workers="all")  # error: No overload variant of "Processor"
Processor(divmod)  # error: incompatible type
Processor(3)  # error: No overload variant of "Processor"
Join(how="product")  # error: No overload variant of "Join"
Join("zip")  # error: No overload variant of "Join" matches argument type "str"

# In a program of asyncio.
async def in_a_task(pipeline: Pipeline[str, int], numbers: AsyncIterator[int]) -> None:
    await pipeline.asubmit("word")  # is list[int]
    await Pipeline().add(Processor(ages.get)).asubmit("Ada")  # is list[int]
    await pipeline.asubmit(1)  # error: expected "str"
    pipeline.astream(numbers)  # error: Argument 1 to "astream"
    Pipeline().add(Processor(halves)).astream(numbers)  # is AsyncStream[float]
    async with Pipeline().add(Processor(len)) as opened:
        opened  # is Pipeline[Sized, int]
        await opened.asubmit("word")  # is list[int]
    pipeline.astream(lines, with_input=True)  # is AsyncStream[tuple[str, list[int]]]
    pipeline.astream(lines, return_exceptions=True)  # is AsyncStream[int | Exception]
    Pipeline().add(Processor(len)).astream("word", with_input=True, return_exceptions=bool(lines))  # is AsyncStream[Any]
    async for word, sizes in pipeline.astream(lines, with_input=True, return_exceptions=True):
        word  # is str
        sizes  # is list[int] | Exception
    pipeline.astream(lines, with_input=1)  # error: No overload variant of "astream"
    async for size in pipeline.astream(lines):
        size  # is int
    async with pipeline.astream(lines) as stream:
        stream  # is AsyncStream[int]
        await stream.__anext__()  # is int
"""

# Lines of documents that show a mistake, or that leave to Python what mypy has to be told.
DOCUMENT_ERRORS = {
    ">>> Pipeline().add(len)": "No overload variant of",
    ">>> Pipeline().add(Pipe)": "No overload variant of",
    ">>> seen = []": "Need type annotation",
    # A cell of a notebook that is run once more, with another function.
    ">>> def clean(word):": 'Name "clean" already defined',
    '>>> Pipeline(engine="inline").add(Processor(seen.append)).run([1, 2])': "incompatible type",  # for the same reason
}

FLAGS = (
    "--config-file=",
    "--no-error-summary",
    "--no-pretty",
    "--hide-error-context",
    "--follow-imports=silent",
    "--check-untyped-defs",
    "--disallow-any-generics",
    # A document gives a variable another pipeline, of another type.
    "--allow-redefinition",
)

IS = re.compile(r"(?P<indent>\s*)(?P<code>.*\S)  # is (?P<type>.+)")
ERROR = re.compile(r".*\S  # error: (?P<text>.+)")
REPORT = re.compile(r"[^:]+:(?P<line>\d+): (?P<kind>error|note): (?P<text>.*)")
REVEALED = re.compile(r'Revealed type is "(.*)"')
MODULE = re.compile(r"\b(?:\w+\.)+(?=\w)")


class Case(NamedTuple):
    """A line for mypy, and what it has to say: a type, a part of an error, or nothing."""

    code: str
    type: str = ""
    error: str = ""

    def accepts(self, reports: list[str]) -> bool:
        """Whether mypy said what it should."""
        if self.error:
            return len(reports) == 1 and reports[0].startswith("error: ") and self.error in reports[0]
        return reports == ([f"is {self.type}"] if self.type else [])


def source_cases() -> Iterator[Case]:
    """The lines of `SOURCE`."""
    for line in SOURCE.splitlines():
        if match := IS.fullmatch(line):
            yield Case(f"{match['indent']}reveal_type({match['code']})", type=match["type"])
        elif match := ERROR.fullmatch(line):
            yield Case(line, error=match["text"])
        else:
            yield Case(line)


def document_cases() -> Iterator[Case]:
    """The examples of README.md and of docs/."""
    for block in all_blocks():
        if block.needs:
            continue  # The verdict must not depend on what is installed.
        yield Case(f"def {re.sub(r'[^a-z]', '_', block.path.lower())}_line_{block.line}() -> None:")
        if block.is_doctest:
            for example in doctest.DocTestParser().get_examples(block.source):
                for number, line in enumerate(example.source.splitlines()):
                    error = DOCUMENT_ERRORS.get(f">>> {line}", "") if number == 0 else ""
                    yield Case(f"    {line}", error=error)
        else:
            for line in block.source.splitlines():
                yield Case(f"    {line}")


def reports_of_mypy(code: str, files: Mapping[str, str]) -> dict[int, list[str]]:
    """What mypy says of each line, counted from 1, beside these files: "is T" or "error: TEXT"."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        Path(folder, "cases.py").write_text(code, encoding="utf-8")
        outcome = subprocess.run(
            [sys.executable, "-m", "mypy", *FLAGS, "cases.py"],
            cwd=folder,
            env={**os.environ, "MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    reports: dict[int, list[str]] = {}
    for line in outcome.stdout.splitlines():
        match = REPORT.fullmatch(line)
        if match is None:
            raise AssertionError(f"mypy did not come to its end:\n{outcome.stdout}")
        if revealed := REVEALED.fullmatch(match["text"]):
            reports.setdefault(int(match["line"]), []).append("is " + MODULE.sub("", revealed[1]))
        elif match["kind"] == "error":
            reports.setdefault(int(match["line"]), []).append("error: " + match["text"])
    return reports


class HintsTest(TestCase):
    """What the annotations of public methods are when somebody asks at run time."""

    def test_they_can_be_evaluated(self) -> None:
        for name in ("run", "stream", "submit", "open", "close"):
            with self.subTest(name):
                assert "return" in typing.get_type_hints(getattr(Pipeline, name))
        assert typing.get_origin(typing.get_type_hints(Pipeline.submit)["return"]) is Future


class SourceTest(TestCase):
    """The file that mypy reads."""

    def test_it_is_python(self) -> None:
        compile(SOURCE, "SOURCE", "exec")


# A mistake for pyright in each line that it reports, and what its report has to say.
PYRIGHT_MISTAKES = {
    "pipeline.add(Processor(str.upper))": '"Processor[str, str]" is not assignable to "Processor[int, str]"',
    "pipeline.add(Shout())": '"Shout" is not assignable to "Processor[int, str]"',
    "pipeline.add(Shout)": 'Type "type[Shout]" is not assignable to type "Processor[int, ',
    "pipeline.add(len)": '"FunctionType" is not assignable to "Processor[int, ',
    "Pipeline().add(len)": '"FunctionType" is not assignable to "Processor[',
}

PYRIGHT_SOURCE = """
# pyright: strict
from typing import Any

from conveyor import Pipeline, Processor

class Shout(Processor[str, str]):
    def process(self, item: str) -> str:
        return item.upper()

def grow(pipeline: Pipeline[str, int], element: Any) -> list[Any]:
    grown = pipeline.add(element)
    return grown.run(["a"])

def mistakes(pipeline: Pipeline[str, int]) -> None:
"""


@unittest.skipUnless(shutil.which("pyright"), "pyright is not installed: pip3 install pyright")
class PyrightTest(TestCase):
    """What pyright says of a step that does not fit: it names the two types, in the lines of mistakes alone."""

    time_limit = 300.0

    @slow
    def test_it_names_the_two_types(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            code = PYRIGHT_SOURCE + "".join(f"    {mistake}\n" for mistake in PYRIGHT_MISTAKES)
            Path(folder, "cases.py").write_text(code, encoding="utf-8")
            Path(folder, "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}), encoding="utf-8")
            outcome = subprocess.run(
                ["pyright", "--outputjson", "--pythonpath", sys.executable],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        reports: dict[str, str] = {}
        for report in json.loads(outcome.stdout)["generalDiagnostics"]:
            line = code.splitlines()[report["range"]["start"]["line"]].strip()
            reports[line] = reports.get(line, "") + report["message"]
        self.assertEqual(list(reports), list(PYRIGHT_MISTAKES))
        for mistake, said in PYRIGHT_MISTAKES.items():
            with self.subTest(mistake):
                self.assertIn(said, reports[mistake])


@unittest.skipUnless(importlib.util.find_spec("mypy"), "mypy is not installed: pip3 install mypy")
class TypingTest(TestCase):
    """What mypy says of `SOURCE` and of the documents."""

    time_limit = 300.0

    @slow
    def test_each_line_has_its_type_or_its_error(self) -> None:
        cases = [*source_cases(), *document_cases()]
        files = dict(file for block in all_blocks() for file in block.files)
        reports = reports_of_mypy("".join(f"{case.code}\n" for case in cases), files)
        wrong = [
            f"{case.code.strip()}\n    should be: {case.type or case.error or 'accepted'}\n    mypy: {'; '.join(said)}"
            for case, said in ((case, reports.get(number, [])) for number, case in enumerate(cases, 1))
            if not case.accepts(said)
        ]
        if wrong:
            self.fail("mypy does not say what it should:\n" + "\n".join(wrong))
