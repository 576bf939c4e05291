"""A census of Python source: which functions are the most complex, and what the modules import.

The law of this file: the census that the pipeline takes equals the one taken serially, or the exit status says so.

    python3 examples/stdlib_census.py                   # the standard library of the Python that runs it
    python3 examples/stdlib_census.py ~/project --top 5

The layout, and why it is this one:

    paths -> [read] -> [parse, prune] x workers -> ReplicatingFork(2) -> [functions] -> Join(2, how="zip") -> report
                                                                      -> [imports]   ->

A syntax tree is dear to send to another process: over the standard library of Python 3.11, pickling the trees and
loading them again took 1.4 times as long as parsing them, and each of the two branches would have to load its own copy.
So the balanced workers parse, and what goes on is the tree pruned to what the branches ask about:
its scopes, the decisions in each, and its imports. Both branches walk that small tree.

Cyclomatic complexity is one, plus one for every `if`, `elif`, `for`, `while`, `except`, `assert`, conditional
expression, comprehension clause, guard of a `case` and `case` that can fail, plus one for every further operand of
`and` and `or`. A nested function or class is counted for itself, a lambda with the scope that holds it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import heapq
import io
import os
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

try:
    from conveyor import BalancingFork, ConveyorError, Join, Pipe, Pipeline, Processor, ReplicatingFork, Stats
except ModuleNotFoundError:  # run from a checkout, without an installation
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from conveyor import BalancingFork, ConveyorError, Join, Pipe, Pipeline, Processor, ReplicatingFork, Stats


# Where other programs use more than this share of the cores, a comparison of times says nothing.
MOST_OTHERS = 0.1

# The serial census says so often how far it is, as often as the pipeline's progress does in a file.
SECONDS_BETWEEN_REPORTS = 10.0


class Import(NamedTuple):
    """One imported module as it is written: `from ..a import b` has level 2 and module "a"."""

    module: str
    level: int


class Scope(NamedTuple):
    """A module, class or function of a syntax tree, without everything that the census does not ask about."""

    name: str
    line: int
    is_function: bool
    decisions: int
    imports: tuple[Import, ...]
    inner: tuple[Scope, ...]


class Text(NamedTuple):
    """A file as it was read, or why it could not be."""

    path: str
    source: bytes
    problem: str | None


class Outline(NamedTuple):
    """A source file after parsing: its pruned tree, or why there is none."""

    path: str
    lines: int
    tree: Scope | None
    problem: str | None


class Function(NamedTuple):
    """One function and its cyclomatic complexity."""

    complexity: int
    path: str
    line: int
    name: str


class FunctionsOfModule(NamedTuple):
    """What the first branch says about one file."""

    path: str
    lines: int
    functions: tuple[Function, ...]
    problem: str | None


class ImportsOfModule(NamedTuple):
    """What the second branch says about one file: the top-level names of what it imports, each once."""

    path: str
    modules: tuple[str, ...]


class Broken(NamedTuple):
    """A file that could not be read or parsed."""

    path: str
    problem: str


class Census(NamedTuple):
    """The whole result, in an order that depends on nothing but the files."""

    files: int
    lines: int
    functions: int
    most_complex: tuple[Function, ...]
    most_imported: tuple[tuple[str, int], ...]
    imported_modules: int
    broken: tuple[Broken, ...]


class Timed(NamedTuple):
    """A census, the seconds that it took, and how many cores other programs used meanwhile."""

    census: Census
    seconds: float
    others: float


Findings = tuple[FunctionsOfModule, ImportsOfModule]

_DECISIONS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.IfExp, ast.ExceptHandler, ast.Assert)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Leaves of every tree and most of its nodes; they hold nothing to count, so the walk does not go into them.
_LEAVES = (ast.Name, ast.Constant, ast.expr_context, ast.operator, ast.cmpop, ast.unaryop, ast.boolop, ast.alias)


def read(path: str) -> Text:
    """Read one file; bytes, so that the parser itself follows the coding line. A broken file is a finding."""
    try:
        return Text(path, Path(path).read_bytes(), None)
    except OSError as error:
        return Text(path, b"", f"{type(error).__name__}: {error}")


def parse(text: Text) -> Outline:
    """Parse a file to a syntax tree, and prune the tree. What does not parse is a finding too."""
    if text.problem is not None:
        return Outline(text.path, 0, None, text.problem)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the census's own user could do nothing about
            tree = ast.parse(text.source, text.path)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # A syntax error's own text repeats the path, and its line is worth having.
        problem = str(error)
        if isinstance(error, SyntaxError):
            problem = error.msg if error.lineno is None else f"line {error.lineno}: {error.msg}"
        return Outline(text.path, 0, None, f"{type(error).__name__}: {problem}")
    return Outline(text.path, text.source.count(b"\n"), prune(tree), None)


def prune(root: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Scope:
    """Reduce a syntax tree to its scopes, the decisions of each and its imports, in the order of the source."""
    decisions = 0
    imports: list[Import] = []
    inner: list[Scope] = []
    # A stack of its own and not recursion: an expression may nest deeper than Python functions may.
    waiting: list[ast.AST] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _DECISIONS):
            decisions += 1
        elif isinstance(node, ast.BoolOp):
            decisions += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            decisions += 1 + len(node.ifs)
        elif isinstance(node, ast.match_case):
            can_fail = not (isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None)
            decisions += can_fail + (node.guard is not None)
        elif isinstance(node, ast.Import):
            imports.extend(Import(alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.append(Import(node.module or "", node.level))
        elif isinstance(node, _SCOPES) and node is not root:
            inner.append(prune(node))
            continue
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                for child in value:
                    if isinstance(child, ast.AST) and not isinstance(child, _LEAVES):
                        waiting.append(child)
            elif isinstance(value, ast.AST) and not isinstance(value, _LEAVES):
                waiting.append(value)
    # The stack takes the last first, so the order is restored here, where there are few.
    inner.sort(key=lambda scope: (scope.line, scope.name))
    name, line = ("", 0) if isinstance(root, ast.Module) else (root.name, root.lineno)
    is_function = isinstance(root, (ast.FunctionDef, ast.AsyncFunctionDef))
    return Scope(name, line, is_function, decisions, tuple(sorted(imports)), tuple(inner))


def functions_of_module(outline: Outline) -> FunctionsOfModule:
    """Branch one: every function of the module with its complexity."""
    functions: list[Function] = []

    def visit(scope: Scope, prefix: str) -> None:
        for child in scope.inner:
            name = prefix + child.name
            if child.is_function:
                functions.append(Function(1 + child.decisions, outline.path, child.line, name))
            visit(child, name + ".")

    if outline.tree is not None:
        visit(outline.tree, "")
    return FunctionsOfModule(outline.path, outline.lines, tuple(functions), outline.problem)


def imports_of_module(outline: Outline) -> ImportsOfModule:
    """Branch two: what the module imports, by top-level name, without its own package's relative imports."""
    modules: set[str] = set()

    def visit(scope: Scope) -> None:
        modules.update(entry.module.partition(".")[0] for entry in scope.imports if entry.level == 0)
        for child in scope.inner:
            visit(child)

    if outline.tree is not None:
        visit(outline.tree)
    return ImportsOfModule(outline.path, tuple(sorted(modules)))


def build_pipeline(workers: int | None = None, start_method: Any = None) -> Pipeline[Any, Any]:
    """The census as a pipeline; with `workers=None` their number follows the load while it runs."""
    return (
        Pipeline(start_method=start_method)
        .add(Processor(read))
        .add(Pipe(maxsize=64))
        .add(BalancingFork(workers) if workers else BalancingFork())
        .add(Processor(parse))
        .add(Pipe())
        .add(Join())
        .add(Pipe())
        .add(ReplicatingFork(2))
        .add(Processor(functions_of_module), Processor(imports_of_module))
        .add(Pipe())
        .add(Join(2, how="zip"))
    )


def findings_from_pipeline(
    paths: Iterable[str], pipeline: Pipeline[Any, Any], progress: bool = False
) -> Iterator[Findings]:
    """One pair of findings for each file, worked out by the pipeline's processes; with `progress` it shows how far."""
    with pipeline:
        yield from pipeline.stream(paths, progress=progress)


def where_the_time_went(stats: Stats, seconds: float) -> str:
    """What each step took, and how many cores did work, as text for a person."""
    whole = sum(step.busy_seconds for step in stats.steps) or 1.0
    width = max(len(step.processor) for step in stats.steps)
    text = ["Where the time went", f"  {'step':<{width}}  workers  seconds  share"]
    for step in stats.steps:
        share = step.busy_seconds / whole
        text.append(f"  {step.processor:<{width}}  {step.most_workers:>7}  {step.busy_seconds:>7.2f}  {share:>5.0%}")
    text.append(f"  {stats.cpu_seconds / seconds:.1f} cores did work on average, of {stats.cores} that may be used")
    return "\n".join([*text, *(f"  {advice}" for advice in stats.advice)])


def machine_cpu_seconds() -> float | None:
    """The CPU seconds that all programs of the machine have used since it started; None where it does not say."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, _, _, irq, soft_irq, stolen = map(int, first[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft_irq + stolen) / os.sysconf("SC_CLK_TCK")


def findings_serially(paths: Iterable[str]) -> Iterator[Findings]:
    """The same findings, by the same functions, in this process alone."""
    for path in paths:
        outline = parse(read(path))
        yield functions_of_module(outline), imports_of_module(outline)


def reported(findings: Iterable[Findings], files: int) -> Iterator[Findings]:
    """The same findings; every 10 s a line on the standard error stream says how far they are."""
    said = time.perf_counter()
    for done, finding in enumerate(findings, 1):
        yield finding
        if (now := time.perf_counter()) - said >= SECONDS_BETWEEN_REPORTS:
            print(f"{done:,} of {files:,} files", file=sys.stderr)
            said = now


def take_census(findings: Iterable[Findings], top: int) -> Census:
    """Sum up the findings. The order of the findings makes no difference."""
    files = lines = functions = 0
    most_complex: list[Function] = []
    imported: Counter[str] = Counter()
    broken: list[Broken] = []
    for by_functions, by_imports in findings:
        files += 1
        lines += by_functions.lines
        functions += len(by_functions.functions)
        most_complex = heapq.nsmallest(top, (*most_complex, *by_functions.functions), key=_hardest_first)
        imported.update(by_imports.modules)
        if by_functions.problem is not None:
            broken.append(Broken(by_functions.path, by_functions.problem))
    most_imported = sorted(imported.items(), key=lambda entry: (-entry[1], entry[0]))[:top]
    return Census(
        files, lines, functions, tuple(most_complex), tuple(most_imported), len(imported), tuple(sorted(broken))
    )


def _hardest_first(function: Function) -> tuple[int, str, int, str]:
    return -function.complexity, function.path, function.line, function.name


def comparison(parallel: Timed, serial: Timed, cores: int) -> str:
    """How long the two ways took, where the times can be compared; else why they cannot, without the two times."""
    others = max(parallel.others, serial.others)
    if others > MOST_OTHERS * cores:
        used = f"other programs used {others:.1f} of {cores} cores meanwhile"
        return f"Times not compared: {used}. Run it again without them."
    times_as_fast = serial.seconds / parallel.seconds
    return f"Pipeline: {parallel.seconds:.2f} s   serial: {serial.seconds:.2f} s   {times_as_fast:.2f} times as fast"


def source_files(folder: Path) -> list[str]:
    """Every .py file under the folder except installed packages, the largest first.

    Largest first, so that no worker is left with a big file when the others have run out of work.
    """
    sizes = {
        str(path): path.stat().st_size
        for path in folder.rglob("*.py")
        if path.is_file() and not {"site-packages", "dist-packages"} & set(path.relative_to(folder).parts)
    }
    return sorted(sizes, key=lambda path: (-sizes[path], path))


def render(census: Census, folder: Path) -> str:
    """The census as text for a person."""

    def short(path: str) -> str:
        return Path(path).relative_to(folder).as_posix()

    text = [
        f"Census of {folder}",
        f"{census.files:,} files, {census.lines:,} lines, {census.functions:,} functions, "
        f"{census.imported_modules:,} modules imported, {len(census.broken):,} that could not be read or parsed",
    ]
    if census.most_complex:
        text += ["", "Most complex functions", "  complexity  function"]
        for function in census.most_complex:
            text.append(f"  {function.complexity:>10,}  {function.name}  ({short(function.path)}:{function.line})")
    if census.most_imported:
        longest = census.most_imported[0][1]
        text += ["", "Most imported modules", "  files  module"]
        width = max(len(module) for module, _ in census.most_imported)
        for module, count in census.most_imported:
            text.append(f"  {count:>5,}  {module:<{width}}  {'#' * max(1, round(40 * count / longest))}")
    if census.broken:
        text += ["", "Files that could not be read or parsed"]
        text += [f"  {short(broken.path)}: {broken.problem}" for broken in census.broken]
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """Take the census and print it; the exit status is 1 where pipeline and serial differ, 2 where nothing was done."""
    parser = argparse.ArgumentParser(
        description="Count the most complex functions and the most imported modules of a folder of Python source."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where the .py files are (default: this Python's standard library)"
    )
    parser.add_argument("--top", type=_positive, default=10, metavar="N", help="lines in each list (default: 10)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="parsing processes (default: as many as help)")
    parser.add_argument("--serial", action="store_true", help="work in this process alone, with nothing to compare")
    parser.add_argument("--start-method", choices=("fork", "forkserver", "spawn"), help="how processes are started")
    options = parser.parse_args(arguments)
    folder = (options.folder or Path(sysconfig.get_paths()["stdlib"])).resolve()
    if not folder.is_dir():
        parser.error(f"{folder} is no folder")
    paths = source_files(folder)
    if not paths:
        parser.error(f"there is no .py file under {folder}")
    for path in paths:  # once, so that neither of the two ways pays alone for a disk that is still cold
        with contextlib.suppress(OSError):  # the census itself says so
            Path(path).read_bytes()

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path or a message may hold what the terminal cannot show

    def timed(what: str, findings: Iterator[Findings], workers: Callable[[], float] | None = None) -> Timed:
        print(f"{what} (the largest come first, so what is left goes faster)", file=sys.stderr)
        before, started, used_before = machine_cpu_seconds(), time.perf_counter(), time.process_time()
        census = take_census(findings, options.top)
        seconds, after = time.perf_counter() - started, machine_cpu_seconds()
        ours = time.process_time() - used_before if workers is None else workers()
        others = 0.0 if before is None or after is None else max(0.0, after - before - ours) / seconds
        return Timed(census, seconds, others)

    if options.serial:
        serial = timed(f"{len(paths):,} files in this process alone", reported(findings_serially(paths), len(paths)))
        print(render(serial.census, folder))
        print(f"\nSerial: {serial.seconds:.2f} s")
        return 0
    pipeline = build_pipeline(options.workers, options.start_method)
    try:
        parallel = timed(
            f"{len(paths):,} files through the pipeline",
            findings_from_pipeline(paths, pipeline, progress=True),
            lambda: pipeline.stats().cpu_seconds,
        )
    except ConveyorError as error:
        print(f"the pipeline failed: {error}", file=sys.stderr)
        return 2
    serial = timed("Now the same without Conveyor, to compare", reported(findings_serially(paths), len(paths)))
    stats, is_equal = pipeline.stats(), parallel.census == serial.census
    print(render(parallel.census, folder))
    print(f"\n{where_the_time_went(stats, parallel.seconds)}")
    print(f"\n{comparison(parallel, serial, stats.cores)}   results: {'equal' if is_equal else 'NOT EQUAL'}")
    return 0 if is_equal else 1


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
