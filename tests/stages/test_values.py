"""Values: to whoever uses one, it is a frozen data class of the standard library.

Law: each property is compared with that of a class that `dataclasses` has made of the same source.
"""

from __future__ import annotations

import dataclasses
import pickle
import typing
import unittest
from typing import Any

from conveyor._lean import dataclasses as lean
from conveyor.core.commands import GiveUp
from conveyor.pipeline import Pipeline
from conveyor.stages import BalancingFork, Join, Pipe, Processor, ReplicatingFork
from conveyor.stats import Decision
from tests.helpers.support import ROOT, TestCase


def classes(module: Any) -> tuple[Any, Any, Any, Any]:
    """The same classes, made by that module."""

    @module.dataclass(frozen=True)
    class Point:
        x: int
        y: int = 5
        names: list[str] = module.field(default_factory=list)
        scale: float = module.field(default=1.0, kw_only=True)

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError(self.x)

    @module.dataclass(frozen=True)
    class Named(Point):
        name: str = "none"

    @module.dataclass
    class Open:
        x: int

    @module.dataclass(frozen=True, eq=False, repr=False)
    class Bare:
        x: int = 1

    return Point, Named, Open, Bare


OURS, THEIRS = classes(lean), classes(dataclasses)


class ValuesTest(TestCase):
    """Both ways give the same."""

    def same(self, what: Any) -> None:
        def tried(made: tuple[Any, Any, Any, Any]) -> Any:
            try:
                return what(*made)
            except Exception as error:
                return type(error)

        assert tried(OURS) == tried(THEIRS)

    def test_making_one(self) -> None:
        for arguments, named in [
            ((1,), {}),
            ((1, 2, ["a"]), {"scale": 2.0}),
            ((), {"x": 3}),
            ((), {}),
            ((1,), {"x": 1}),
            ((1, 2, [], 3.0), {}),
            ((1,), {"z": 1}),
            ((-1,), {}),
        ]:
            self.same(lambda point, *_, a=arguments, n=named: vars(point(*a, **n)))
            self.same(lambda _, named, *__, a=arguments, n=named: vars(named(*a, **n)))

    def test_defaults_are_nobodys(self) -> None:
        first, second = OURS[0](1), OURS[0](1)
        first.names.append("a")
        assert second.names == []

    def test_comparing(self) -> None:
        self.same(lambda point, named, *_: (point(1) == point(1, 5), point(1) == point(2), point(1) == named(1)))
        self.same(lambda point, *_: hash(point(1, 2, ())) == hash(point(1, 2, ())))
        self.same(lambda _, __, opened, ___: hash(opened(1)))
        self.same(lambda *made: made[3]() == made[3]())
        self.same(lambda point, *_: len({point(1, 2, ()), point(1, 2, ()), point(2, 2, ())}))

    def test_reading(self) -> None:
        self.same(lambda point, named, *_: (repr(point(1)), repr(named(1, name="a"))))
        self.same(lambda _, __, opened, ___: repr(opened("a")))

    def test_changing(self) -> None:
        self.same(lambda point, *_: setattr(point(1), "x", 2))
        self.same(lambda point, *_: delattr(point(1), "x"))
        with self.assertRaises(dataclasses.FrozenInstanceError):
            Pipe(3).maxsize = 4  # type: ignore[misc]
        opened = OURS[2](1)
        opened.x = 2
        assert opened == OURS[2](2)

    def test_replacing(self) -> None:
        for changes in ({"y": 7}, {"scale": 3.0}, {"x": -1}, {"z": 1}):
            replaced = [vars_or_error(module.replace, made[1](1, name="a"), changes) for module, made in PAIRS]
            assert replaced[0] == replaced[1]

    def test_matching(self) -> None:
        self.same(lambda point, named, *_: (point.__match_args__, named.__match_args__))

    def test_the_functions_of_the_standard_library(self) -> None:
        decision = Decision(0.5, "parse", 1, 2, "why")
        assert dataclasses.is_dataclass(decision)
        assert dataclasses.asdict(decision) == vars(decision)
        assert [each.name for each in dataclasses.fields(decision)] == list(vars(decision))
        assert dataclasses.replace(decision, after=3).after == 3

    def test_pickling(self) -> None:
        for value in (
            Pipe(3),
            ReplicatingFork(2),
            BalancingFork(min=1, max=2),
            Join(2, how="zip"),
            Decision(1, "a", 1, 2, "b"),
        ):
            assert pickle.loads(pickle.dumps(value)) == value


PAIRS = ((lean, OURS), (dataclasses, THEIRS))


def vars_or_error(replace: Any, value: Any, changes: dict[str, Any]) -> Any:
    """What comes of it."""
    try:
        return vars(replace(value, **changes))
    except Exception as error:
        return type(error)


def tuples(module: Any) -> tuple[Any, Any]:
    """The same named tuples, made by that module's `NamedTuple`."""

    class Point(module.NamedTuple):
        """A place."""

        x: int
        y: int = 5
        name: str | None = None

        @property
        def total(self) -> int:
            return int(self.x + self.y)

        def moved(self, by: int) -> Any:
            """Another."""
            return self._replace(x=self.x + by)

    class Alone(module.NamedTuple):
        x: int

    return Point, Alone


class NamedTuplesTest(TestCase):
    """Both ways give the same."""

    def test_everything(self) -> None:
        def matched(value: Any, point: Any) -> Any:
            match value:
                case point(x, name="a"):
                    return x

        def tried(what: Any, made: tuple[Any, Any]) -> Any:
            try:
                return what(*made)
            except Exception as error:
                return type(error)

        looks: tuple[Any, ...] = (
            lambda point, alone: (point(1), point(1, 2), point(x=3, name="a"), alone(4)),
            lambda point, alone: repr((point(1), alone(x=2))),
            lambda point, alone: (point(1).total, point(1).moved(2), point(1)._asdict(), hash(point(1))),
            lambda point, alone: (point._fields, point._field_defaults, point.__match_args__, alone._fields),
            lambda point, alone: (point.__name__, point.__qualname__, point.__module__, point.__doc__),
            lambda point, alone: (point.moved.__qualname__, issubclass(point, tuple), point(1) == (1, 5, None)),
            lambda point, alone: (matched(point(7, name="a"), point), matched(point(7), point)),
            lambda point, alone: point(),
            lambda point, alone: point(1, 2, "a", 4),
            lambda point, alone: point(1, z=2),
            lambda point, alone: point(1, x=2),
            lambda point, alone: vars(point(1)),
            lambda point, alone: point.moved(point(1, 2), by=3)[0],
            lambda point, alone: setattr(point(1), "x", 2),
        )
        ours, theirs = tuples(lean), tuples(typing)
        for number, look in enumerate(looks):
            with self.subTest(number=number):
                self.assertEqual(tried(look, ours), tried(look, theirs))

    def test_a_record_with_more_methods(self) -> None:
        class More(tuples(lean)[0]):
            """The same fields."""

            @property
            def double(self) -> int:
                return 2 * self.x

        assert (More(1, name="a"), More(4).double, More(4)._replace(y=1)) == ((1, 5, "a"), 8, (4, 1, None))
        assert not hasattr(More(1), "__dict__")

    def test_a_field_that_there_is_not(self) -> None:
        with self.assertRaisesRegex(TypeError, r"Alone\(\) has no 'y'"):
            tuples(lean)[1](1)._replace(y=2)

    def test_pickling(self) -> None:
        verdict = GiveUp("died", -9, 3, 1, 2)
        again = pickle.loads(pickle.dumps(verdict))
        assert type(again) is GiveUp and again == verdict


class HintsTest(TestCase):
    """Annotations, to tools that evaluate them when a program runs."""

    def test_they_can_be_evaluated(self) -> None:
        import inspect

        @dataclasses.dataclass
        class Scaled(Processor[float, float]):
            factor: float = 2.0

            def process(self, item: float) -> float:
                return item * self.factor

        for each in (Pipeline.run, Pipeline.stream, Pipeline.open, Processor, Processor.process, Join, Pipe, Scaled):
            with self.subTest(each=each):
                typing.get_type_hints(each)
        assert typing.get_type_hints(Scaled)["factor"] is float
        assert list(inspect.signature(Pipeline.run, eval_str=True).parameters)[:2] == ["self", "items"]

    def test_a_class_with_variables_of_its_own(self) -> None:
        kind = typing.TypeVar("kind")

        class Same(Processor[kind, kind], typing.Generic[kind]):
            def process(self, item: Any) -> Any:
                return item

        assert Pipeline(engine="inline").add(Same[int]()).run([1]) == [1]
        assert Pipeline[int, int](engine="inline").add(Same()).run([2]) == [2]


class ImportsTest(TestCase):
    """What importing the package brings along, and does not."""

    def test_what_is_dear_is_not_imported(self) -> None:
        import subprocess
        import sys

        code = (
            "import sys; sys.path[:0] = sys.argv[1:]; import conveyor, conveyor.engines.process.caller.session; "
            "dear = {'dataclasses', 'inspect', 'numpy', 'asyncio', 'concurrent.futures', 'unittest', 'tempfile', 'typing'}; "
            "print(*dear & set(sys.modules))"
        )
        # Without what an installation imports by itself.
        command = [sys.executable, "-S", "-c", code, ".", *sys.path[:1]]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        assert said.stdout.split() == [], said.stdout

    def test_what_a_script_imports_is_no_more_than_the_face_of_it(self) -> None:
        """Each worker that is spawned imports the script again, and has no use for the rest."""
        import subprocess
        import sys

        code = (
            "import sys; sys.path[:0] = sys.argv[1:]; from conveyor import Pipe, Pipeline, Processor\n"
            "print(*(name for name in sys.modules if name.partition('.')[0] == 'conveyor'))\n"
            "import conveyor; conveyor.errors.RuleError, conveyor.stages.Join, conveyor.stats, conveyor.stream\n"
            "assert set(conveyor.__all__) <= set(dir(conveyor))"
        )
        command = [sys.executable, "-S", "-c", code, ".", *sys.path[:1]]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        rooms = {".".join(name.split(".")[:2]) for name in said.stdout.split()}
        assert rooms == {
            "conveyor",
            "conveyor._lean",
            "conveyor._system",
            "conveyor.asynchronous",
            "conveyor.errors",
            "conveyor.inspection",
            "conveyor.pipeline",
            "conveyor.sending",
            "conveyor.stages",
            "conveyor.stats",
            "conveyor.stream",
        }, rooms


if __name__ == "__main__":
    unittest.main()
