"""The laws of the design that the text of the package can prove.

Law: a module that breaks one is named here, with the line; nothing has to be added for a new module.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import conveyor
from conveyor import errors
from conveyor.engines.process.wire import messages
from tests.helpers.support import ROOT, TestCase

PACKAGE = ROOT / "conveyor"
FORBIDDEN = {"multiprocessing", "threading", "queue", "time", "os", "random", "pickle", "logging"}
# What else would bring a process, a thread, a clock or a file into the core.
FORBIDDEN |= {
    "_thread",
    "asyncio",
    "concurrent",
    "datetime",
    "io",
    "pathlib",
    "select",
    "selectors",
    "signal",
    "socket",
}
FORBIDDEN |= {"subprocess", "sys", "tempfile", "uuid", "weakref"}
LONGEST = 500
MOST_ATTRIBUTES, LONGEST_FUNCTION = 15, 60
EXCEPTIONS = ROOT / "tests/house_exceptions.txt"
MOST_EXCEPTIONS = 5


def modules() -> dict[str, Path]:
    """All modules of the package, by name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
CORE = [name for name in MODULES if name == "conveyor.core" or name.startswith("conveyor.core.")]


def is_for_types(node: ast.stmt) -> bool:
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a module, made anew.

    Nobody keeps them: what is found in trees would lie among them, so that their memory could not be given back, and would
    make each fork of the other tests slow.
    """
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(name: str) -> list[tuple[int, str]]:
    """The lines and names of what a module imports when it runs, wherever in it that is."""
    return list(find_imports(name))


def find_imports(name: str) -> Iterator[tuple[int, str]]:
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield node.lineno, base
            # A name that is imported may be a module.
            yield from ((node.lineno, f"{base}.{each.name}") for each in node.names if f"{base}.{each.name}" in MODULES)
        else:
            waiting += node.orelse if isinstance(node, ast.If) and is_for_types(node) else ast.iter_child_nodes(node)


def reached(name: str) -> set[str]:
    """The modules of the package that a module needs when it runs, itself among them.

    What is only above it is not: `conveyor/__init__.py` imports everything, for users.
    """
    found: set[str] = set()
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each in MODULES and each not in found:
            found.add(each)
            waiting += [imported for _, imported in imports(each)]
    return found


class TheHouse(TestCase):
    """Imports point one way, from folder to folder; what is only for types counts, too."""

    # From what imports nothing of the others to what may import all of them; those of one line may not import each other.
    FLOORS = (
        ("conveyor._lean",),
        ("conveyor._system",),
        ("conveyor.errors", "conveyor.stats"),
        ("conveyor.stages",),
        ("conveyor.diagram",),
        ("conveyor.views",),
        ("conveyor.graph",),
        ("conveyor.core",),
        ("conveyor.engines.loops",),
        ("conveyor.engines.failures", "conveyor.engines.base"),
        ("conveyor.engines.jobs",),
        ("conveyor.engines.process.shm", "conveyor.engines.process.system"),
        ("conveyor.engines.process.wire",),
        ("conveyor.engines.process.worker",),
        ("conveyor.engines.process.broker",),
        ("conveyor.engines.process.caller", "conveyor.engines.inline"),
        ("conveyor.engines.thread", "conveyor.engines.dask"),
        ("conveyor.terminal", "conveyor.serving"),
        ("conveyor.progress", "conveyor.turns", "conveyor.given"),
        ("conveyor.operations",),
        ("conveyor.stream", "conveyor.inspection"),
        ("conveyor.event_loop",),
        ("conveyor.async_stream",),
        ("conveyor.asynchronous",),
        ("conveyor.sending",),
        ("conveyor.pipeline",),
        ("conveyor",),
        ("conveyor.commands",),
        ("conveyor.__main__",),
    )

    def place(self, module: str) -> tuple[int, str] | None:
        """The floor and the room of a module; None of a package that holds nothing but rooms."""
        if module in ("conveyor.engines", "conveyor.engines.process"):
            return None
        for floor, rooms in enumerate(self.FLOORS):
            for room in rooms:
                if module == room or (room != "conveyor" and module.startswith(f"{room}.")):
                    return floor, room
        raise AssertionError(f"{module} has no place in the house")

    def test_every_arrow_points_down(self) -> None:
        wrong = []
        for module, path in MODULES.items():
            here = self.place(module)
            for node in ast.walk(tree_of(path)):
                if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("conveyor"):
                    continue
                names = [f"{node.module}.{each.name}" for each in node.names]
                for imported in {name if name in MODULES else str(node.module) for name in names}:
                    there = self.place(imported)
                    if here is not None and there is not None and here[1] != there[1] and here[0] <= there[0]:
                        wrong.append(f"{module}:{node.lineno} imports {imported}")
        assert not wrong, "\n".join(wrong)

    def test_a_module_that_a_string_names_is_there(self) -> None:
        """What compares the names of modules would otherwise go on in silence when one is moved."""
        named = [
            (f"{module}:{node.lineno}", node.value)
            for module, path in MODULES.items()
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Constant) and re.fullmatch(r"conveyor(\.\w+)+", str(node.value))
        ]
        assert named
        assert not [f"{place} names {name}" for place, name in named if name not in MODULES]


class TheCore(TestCase):
    """Law 1: it knows no process, no thread, no clock and no file."""

    def test_imports(self) -> None:
        assert len(CORE) > 10
        broken = [
            f"{module}:{line} imports {imported} (reached from {name})"
            for name in CORE
            for module in sorted(reached(name))
            for line, imported in imports(module)
            if imported.partition(".")[0] in FORBIDDEN
        ]
        assert not broken, "\n".join(broken)

    def test_it_reaches_no_further_than_the_plan_and_what_is_told_of_it(self) -> None:
        assert set().union(*map(reached, CORE)) - set(CORE) == {
            "conveyor._lean.typing",
            "conveyor.graph.plan",
            "conveyor.stats",
            "conveyor._lean.dataclasses",
        }

    def test_calls_that_need_no_import(self) -> None:
        broken = []
        for name in MODULES:
            if name.startswith("conveyor.core"):
                for node in ast.walk(tree_of(MODULES[name])):
                    if isinstance(node, ast.Name) and node.id in {
                        "open",
                        "print",
                        "input",
                        "__import__",
                        "exec",
                        "eval",
                    }:
                        broken.append(f"{name}:{node.lineno} uses {node.id}")
        assert not broken, "\n".join(broken)

    def test_this_test_sees_what_it_looks_for(self) -> None:
        """Of the engines it says what it must never say of the core."""
        found = {imported for name in reached("conveyor.engines.inline") for _, imported in imports(name)}
        assert {"pickle", "signal"} <= found


class TheMessages(TestCase):
    """A message is built, matched and read by its class and its fields, so that a misspelt one cannot vanish."""

    MODULES: ClassVar[dict[str, Path]] = {
        name: path
        for name, path in MODULES.items()
        if name.startswith(("conveyor.engines.process", "conveyor.engines.dask")) and name != messages.__name__
    }
    # What a variable is called that holds a message, and what sends one.
    HOLDERS = frozenset({"message", "header", "reply"})
    SENDERS = frozenset({"send", "send_within", "say", "pass_on", "_tell"})

    def nodes(self, tree: ast.AST, kind: Any) -> Iterator[Any]:
        return (node for node in ast.walk(tree) if isinstance(node, kind))

    def kinds(self, case: ast.match_case) -> Iterator[ast.MatchClass]:
        """The patterns of a case that name a kind of message."""
        for pattern in self.nodes(case.pattern, ast.MatchClass):
            module, _, kind = ast.unparse(pattern.cls).rpartition(".")
            if kind in messages.KINDS and module in ("", "messages"):
                yield pattern

    def broken(self, tree: ast.AST) -> Iterator[int]:
        """The lines at which a message is built or read by position, or a match over messages passes over one."""
        for call in self.nodes(tree, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else None
            if name in self.SENDERS and any(isinstance(value, ast.Tuple | ast.Constant) for value in call.args[:1]):
                yield call.lineno
        for each in self.nodes(tree, ast.Subscript | ast.Starred):
            if isinstance(each.value, ast.Name) and each.value.id in self.HOLDERS:
                yield each.lineno
        for each in self.nodes(tree, ast.Assign):
            taken_apart = any(isinstance(target, ast.Tuple | ast.List) for target in each.targets)
            if taken_apart and isinstance(each.value, ast.Name) and each.value.id in self.HOLDERS:
                yield each.lineno
        for match in self.nodes(tree, ast.Match):
            subject = match.subject.id if isinstance(match.subject, ast.Name) else ""
            for case in match.cases:
                if subject in self.HOLDERS and any(self.nodes(case.pattern, ast.MatchSequence)):
                    yield case.pattern.lineno
                yield from (pattern.cls.lineno for pattern in self.kinds(case) if pattern.patterns)
            last = match.cases[-1]
            otherwise = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None and last.guard is None
            loud = otherwise and isinstance(last.body[-1], ast.Raise)
            if not loud and any(any(self.kinds(case)) for case in match.cases):
                yield match.lineno

    def test_no_message_is_built_or_read_by_position(self) -> None:
        broken = [f"{name}:{line}" for name, path in self.MODULES.items() for line in self.broken(tree_of(path))]
        assert not broken, f"{broken}: build, match and read a message by its class and fields, and raise `unexpected`"

    def test_no_kind_is_declared_in_vain(self) -> None:
        """Each is built somewhere and matched somewhere."""
        trees = [tree_of(path) for path in self.MODULES.values()]
        built = {ast.unparse(call.func).rpartition(".")[2] for tree in trees for call in self.nodes(tree, ast.Call)}
        matched = {
            ast.unparse(pattern.cls).rpartition(".")[2]
            for tree in trees
            for pattern in self.nodes(tree, ast.MatchClass)
        }
        assert set(messages.KINDS) - built == set() and set(messages.KINDS) - matched == set()

    def test_this_test_sees_what_it_looks_for(self) -> None:
        for line in (
            'self._end.send(("reply", 1))',
            'self.send("hello")',
            "kind = message[0]",
            "kind, run = header",
            "f(*message)",
            'match message:\n    case ("reply", run): pass\n    case _: raise ValueError',
            "match each:\n    case messages.Reply(lease): pass\n    case _: raise ValueError",
            "match each:\n    case Reply(lease=7): pass",
            "match each:\n    case Reply(): pass\n    case _: pass",
            "match each:\n    case Reply(): pass\n    case _ if big: raise ValueError",
        ):
            with self.subTest(line):
                assert list(self.broken(ast.parse(line)))
        for line in (
            "match each:\n    case Reply(lease=7): pass\n    case _: raise ValueError",
            "match number:\n    case 7: pass",
            "self._end.send(Reply(1), [blob])",
        ):
            with self.subTest(line):
                assert not list(self.broken(ast.parse(line)))


class TheClock(TestCase):
    """One module has the system's clocks; what is imported elsewhere, a test suite may replace."""

    def test_imports(self) -> None:
        broken = [
            f"{name}:{line}"
            for name in MODULES
            for line, imported in imports(name)
            if imported == "time" and name != "conveyor._system.clock"
        ]
        assert not broken, f"{broken}: import it from conveyor._system.clock"


class Errors(TestCase):
    """Law 5: every exception survives pickling, with its fields."""

    def samples(self) -> Iterator[BaseException]:
        """One exception of each class in the module, made from what its `__init__` asks for."""
        values: dict[str, Any] = {"int": 7, "str": "text", "int | None": -9, "str | None": "more", "": "message"}
        values["float"] = 1.5
        for _, kind in inspect.getmembers(errors, inspect.isclass):
            if not issubclass(kind, BaseException) or kind.__module__ != errors.__name__:
                continue
            positional: list[Any] = []
            keywords: dict[str, Any] = {}
            if any("__init__" in vars(each) for each in kind.__mro__ if each.__module__ == errors.__name__):
                for number, parameter in enumerate(inspect.signature(kind).parameters.values()):
                    if parameter.kind is parameter.VAR_POSITIONAL:
                        positional.append("a message")
                        continue
                    value = values[str(parameter.annotation)]
                    value = f"{value} {number}" if isinstance(value, str) else value + number
                    if parameter.kind is parameter.KEYWORD_ONLY:
                        keywords[parameter.name] = value
                    else:
                        positional.append(value)
            else:
                positional.append("a message")
            yield kind(*positional, **keywords)

    def test_round_trip(self) -> None:
        seen = set()
        for error in self.samples():
            seen.add(type(error).__name__)
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with self.subTest(error=type(error).__name__, protocol=protocol):
                    again = pickle.loads(pickle.dumps(error, protocol))
                    assert type(again) is type(error)
                    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
        assert {"RuleError", "ProcessorError", "WorkerDiedError", "RemoteTraceback", "ImplicitPipeWarning"} <= seen

    def test_fields_are_there_to_be_lost(self) -> None:
        """Each parameter of an error is a field of it, so that the test above has something to compare."""
        for error in self.samples():
            with self.subTest(error=type(error).__name__):
                if isinstance(error, errors.ConveyorError) and "__init__" in vars(type(error)):
                    wanted = set(inspect.signature(type(error)).parameters) - {"message"}
                    assert wanted <= set(vars(error))

    def test_a_subclass_of_a_user(self) -> None:
        error = Mine("text", 3)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is Mine and (again.rule, again.args) == (3, ("text",))

    def test_all_errors_can_be_imported_from_the_package(self) -> None:
        for _, kind in inspect.getmembers(errors, inspect.isclass):
            if issubclass(kind, BaseException) and kind.__module__ == errors.__name__:
                assert getattr(conveyor, kind.__name__) is kind
                assert kind.__name__ in conveyor.__all__

    def test_every_error_of_the_package_is_in_that_module(self) -> None:
        """So that none is forgotten above."""
        for name in MODULES:
            for kind in vars(importlib.import_module(name)).values():
                if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__module__ == name:
                    # A signal within an engine, which no user ever sees.
                    signals = {"CallRaised", "ConnectionLost", "LeaseFailed", "LeaseStopped", "MadeForFork"}
                    signals |= {"ProtocolError", "RecordingError", "StageError", "Unanswered", "Unpicklable"}
                    internal = kind.__name__.startswith("_") or kind.__name__ in signals
                    assert name == errors.__name__ or internal, f"{name}.{kind.__name__}"


class Mine(errors.RuleError):
    """What a user may derive."""


class Dependencies(TestCase):
    """Law 7: the package needs nothing but Python; what an extra brings is imported only where it is used."""

    EXTRAS: ClassVar[dict[str, set[str]]] = {
        "conveyor.engines.process.wire.by_value": {"cloudpickle"},
        "conveyor.engines.dask": {"distributed"},
        "conveyor.engines.dask.actor": {"distributed"},
        "conveyor.engines.dask.cluster": {"distributed"},
    }

    def test_only_the_standard_library(self) -> None:
        broken = [
            f"{name}:{line} imports {imported}"
            for name in MODULES
            for line, imported in imports(name)
            if imported.partition(".")[0] not in {"conveyor", *sys.stdlib_module_names, *self.EXTRAS.get(name, ())}
        ]
        assert not broken, "\n".join(broken)

    def test_it_imports_where_nothing_is_installed(self) -> None:
        """In a Python without site-packages, every module."""
        names = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "conveyor.")]
        assert set(names) | {"conveyor"} == set(MODULES)
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "".join(f"import {name}\n" for name in names)
        result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def attributes(node: ast.ClassDef) -> set[str]:
    """What the instances of a class have: what its methods assign to on `self`, and its slots."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        each = waiting.pop()
        if isinstance(each, ast.ClassDef):
            continue
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self":
            found.add(each.attr)
        waiting += ast.iter_child_nodes(each)
    for statement in node.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__slots__":
            found.update(ast.literal_eval(statement.value))
    return found


def oversized(path: str, text: str) -> dict[str, str]:
    """What is too large in a module: its place, as `path:name`, or `path` for the module itself; and how large."""
    tree = ast.parse(text)
    lines = len(text.splitlines())
    found = {path: f"{lines} lines"} if lines > LONGEST else {}
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, parent = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            name = prefix
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}.{node.name}".lstrip(".")
                if isinstance(node, ast.ClassDef):
                    count = len(attributes(node))
                    size = f"{count} attributes" if count > MOST_ATTRIBUTES else ""
                else:
                    count = (node.end_lineno or 0) - node.lineno + 1
                    size = f"{count} lines" if count > LONGEST_FUNCTION else ""
                if size:
                    found[f"{path}:{name}"] = size
            waiting.append((name, node))
    return found


class Sizes(TestCase):
    """A class has at most 15 attributes, a function at most 60 lines, a module at most 500."""

    @staticmethod
    @functools.cache
    def found() -> dict[str, str]:
        """All that is too large in the package."""
        sizes: dict[str, str] = {}
        for path in MODULES.values():
            name = path.relative_to(ROOT).as_posix()
            sizes.update(oversized(name, path.read_text(encoding="utf-8")))
        return sizes

    def exceptions(self) -> dict[str, str]:
        """What stays whole, and why."""
        lines = EXCEPTIONS.read_text(encoding="utf-8").splitlines()
        split = [line.split(": ", 1) for line in lines if line and not line.startswith("#")]
        assert all(len(each) == 2 and each[1].strip() for each in split), "a line is `path:name: reason`"
        return {each[0]: each[1] for each in split}

    def test_nothing_is_larger_than_the_law_allows(self) -> None:
        exceptions = self.exceptions()
        too_large = {place: size for place, size in self.found().items() if place not in exceptions}
        assert not too_large, f"{too_large}: make two of it, or give its reason in {EXCEPTIONS.relative_to(ROOT)}"

    def test_exceptions_are_few_and_needed(self) -> None:
        exceptions = self.exceptions()
        assert len(exceptions) <= MOST_EXCEPTIONS, sorted(exceptions)
        needless = exceptions.keys() - self.found().keys()
        assert not needless, f"{needless}: no larger than the law allows"

    def test_this_test_sees_what_it_looks_for(self) -> None:
        """A class that has too much, a function within it that is too long, and a module that is."""
        slots = ", ".join(f"'slot_{index}'" for index in range(8))
        body = "\n".join(f"        self.each_{index} = 0" for index in range(LONGEST_FUNCTION))
        text = f"class Large:\n    __slots__ = ({slots})\n    def work(self):\n{body}\n"
        expected = {"a.py:Large": "68 attributes", "a.py:Large.work": "61 lines"}
        self.assertEqual(oversized("a.py", text), expected)
        self.assertEqual(oversized("a.py", text + "\n" * LONGEST), {**expected, "a.py": f"{LONGEST + 63} lines"})
        inside = "class A:\n    def f(self):\n        class B:\n            def g(self):\n                self.x = 1\n"
        (found,) = ast.parse(inside).body
        assert isinstance(found, ast.ClassDef)
        self.assertEqual(attributes(found), set())


class Texts(TestCase):
    """What every module looks like."""

    def test_every_module_says_its_law(self) -> None:
        without = []
        for name, path in MODULES.items():
            text = ast.get_docstring(tree_of(path)) or ""
            # A package says what is in it, its modules say the rest.
            if not text or (path.name != "__init__.py" and "Law: " not in text):
                without.append(name)
        assert not without, without

    def test_every_test_file_says_its_law(self) -> None:
        without = [path.name for path in sorted((ROOT / "tests").glob("*.py")) if not ast.get_docstring(tree_of(path))]
        assert not without, without
