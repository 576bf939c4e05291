"""What the script defines, sent by value: with cloudpickle, every start method takes what a fork takes.

Law: each test is a script of its own, that has no guard or no file, and prints the same for each start method.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
import unittest

from tests.helpers.scripts import Script, ScriptTestCase
from tests.helpers.support import ROOT

BODY = """
import collections, dataclasses, enum, functools, sys
from conveyor import *

SCALE = 1
class Color(enum.Enum):
    RED = 1
    BLUE = 2
class Base:
    seen = 0
    def __init__(self, number):
        self.number = number
@dataclasses.dataclass
class Point(Base):
    number: int
    color: Color
    def moved(self):
        return Point(self.number + SCALE, Color.BLUE)
Pair = collections.namedtuple("Pair", "left right")
def closure(more):
    return lambda point: (assert_point(point), point.moved())[1].number + more
def assert_point(point):
    assert isinstance(point, Point) and isinstance(point, Base), type(point)
class Total(Processor):
    total = 0
    def process(self, item):
        self.total += item * SCALE
        return self.total
SCALE = 10
pipeline = Pipeline(start_method=METHOD)
"""


@unittest.skipIf(importlib.util.find_spec("cloudpickle") is None, "cloudpickle is not installed")
class ByValueTest(ScriptTestCase):
    """Scripts without a guard."""

    few_methods = ("spawn",)

    def same(self, expected: str, body: str, methods: tuple[str, ...] = ("spawn",)) -> None:
        """Run a script in which everything travels by value: the others have it so, or copy what the caller has."""
        body = BODY.replace("METHOD", "sys.argv[1]") + textwrap.dedent(body)
        self.all_print(expected, [Script(body, (method,)) for method in methods])

    def test_lambdas_closures_and_state(self):
        self.same(
            "[(10, 6), (30, 7)]",
            """
            pipeline.add(Processor(lambda n: Point(n, Color.RED))).add(Pipe()).add(ReplicatingFork(2))
            pipeline.add(Processor(lambda point: point.number, workers=2), Processor(closure(-5)))
            pipeline.add(Pipe()).add(Total(), Processor(lambda number: number)).add(Pipe()).add(Join(2, how="zip"))
            print(pipeline.run([1, 2]))
            """,
            self.methods(),
        )

    def test_items_and_results_are_of_the_scripts_own_classes(self):
        self.same(
            "[True, True] [<Color.BLUE: 2>, <Color.BLUE: 2>] True True",
            """
            results = pipeline.add(Processor(Point.moved)).run([Point(1, Color.RED), Point(2, Color.RED)])
            kinds = [type(result) is Point for result in results]
            print(kinds, [result.color for result in results], results[0].color is Color.BLUE, results[0] == Point(11, Color.BLUE))
            """,
        )

    def test_attributes_of_classes_stay_each_process_own(self):
        self.same(
            "[1, 2, 3, 4, 5] 7",
            """
            def count(item):
                Base.seen += 1
                return Base.seen - 7
            Base.seen = 7
            with pipeline.add(Processor(lambda item: count(item))):
                results = [pipeline.run([Base(1)])[0] for _ in range(5)]
            print(results, Base.seen)
            """,
            self.methods(),
        )

    def test_what_is_changed_between_two_pipelines(self):
        self.same(
            "7 8",
            """
            print(pipeline.add(Processor(lambda item: item.seen + 7)).run([Base(1)])[0], end=" ")
            Base.seen = 1
            again = Pipeline(start_method=sys.argv[1]).add(Processor(lambda item: item.seen + 7))
            print(again.run([Base(1)])[0])
            """,
        )

    def test_functions_and_local_classes_as_items(self):
        self.same(
            "[11, 12] ['Local', 'Pair']",
            """
            def make():
                class Local:
                    pass
                return Local()
            print(
                pipeline.add(Processor(lambda call: call(1))).run([lambda n: n + SCALE, functools.partial(lambda m, n: m + n, 11)]),
                [type(each).__name__ for each in Pipeline(start_method=sys.argv[1]).add(Processor(lambda each: each)).run([make(), Pair(1, 2)])],
            )
            """,
        )

    def test_large_items(self):
        self.same(
            "[900000, 900000]",
            """
            class Image:
                def __init__(self, data):
                    self.data = data
            def lengths(image):
                yield len(image.data)
            pipeline.add(Processor(lambda data: Image(bytearray(data)))).add(Pipe()).add(Processor(lengths))
            print(pipeline.run([bytes(900_000), bytes(900_000)]))
            """,
        )

    def test_errors_come_back(self):
        self.same(
            "Refused True one",
            """
            class Refused(Exception):
                pass
            def refuse(item):
                raise Refused(item)
            try:
                pipeline.add(Processor(refuse)).run(["one"])
            except ProcessorError as error:
                print(error.kind, type(error.__cause__) is Refused, error.__cause__)
            """,
        )

    def test_a_script_that_was_read_from_nowhere(self):
        body = (
            BODY.replace("METHOD", "sys.argv[-1]") + "print(pipeline.add(Processor(lambda n: n * SCALE)).run([1, 2]))\n"
        )
        started = [
            subprocess.Popen(
                [sys.executable, "-W", "error", *how, method],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for method in self.methods()
            for how in (["-c", body], ["-"])
        ]
        for process in started:
            with self.subTest(arguments=process.args), process:
                done = process.communicate(body, timeout=60)
                assert done == ("[10, 20]\n", ""), done


if __name__ == "__main__":
    unittest.main()
