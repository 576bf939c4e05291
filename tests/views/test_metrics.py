"""Statistics as Prometheus reads them: each line is checked against the text format."""

from __future__ import annotations

import re
from typing import Any

from conveyor import Pipe, Pipeline, Processor, Stats
from conveyor.views.metrics import metrics_text
from tests.helpers.support import TestCase

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
KINDS = {"counter", "gauge", "summary"}
HOSTILE = 'a "b" \\ c{e="f"} # g'


def even(item: int) -> int:
    if item == 3:
        raise ValueError("odd")
    return item


class Metrics:
    """What the text says; raises AssertionError where it breaks a rule of the format, or of the names."""

    def __init__(self, text: str) -> None:
        self.kinds: dict[str, str] = {}
        self.values: dict[tuple[str, str], float] = {}
        assert text.endswith("\n")
        name, said = "", ""
        for line in text[:-1].split("\n"):
            if line.startswith("# HELP "):
                name, said = line[7:].split(" ", 1)
                assert re.fullmatch(NAME, name) and name not in self.kinds and said.endswith("."), line
            elif line.startswith("# TYPE "):
                # It follows the help of the same metric.
                assert line[7:].split(" ")[0] == name and said, line
                self.kinds[name], said = line.rpartition(" ")[2], ""
                assert self.kinds[name] in KINDS, line
            else:
                self.take(name, line)

    def take(self, name: str, line: str) -> None:
        """Take in a sample: all of one metric are together."""
        found = SAMPLE.fullmatch(line)
        assert found is not None, line
        full, labels, value = found.groups()
        kind = self.kinds[name]
        assert full in ({name, f"{name}_sum", f"{name}_count"} if kind == "summary" else {name}), line
        assert name.startswith("conveyor_") and name == name.lower(), line
        assert name.endswith("_total") == (kind == "counter"), line
        assert (full, labels or "") not in self.values, line
        self.values[full, labels or ""] = float(value)


class MetricsTest(TestCase):
    """The text."""

    def run_of(self, engine: Any, name: str = "second") -> Stats:
        pipeline = (
            Pipeline(engine=engine).add(Processor(even, on_error="skip")).add(Pipe(7)).add(Processor(abs, name=name))
        )
        pipeline.run(range(5))
        return pipeline.stats()

    def test_each_line(self) -> None:
        for engine in ("process", "thread", "inline"):
            with self.subTest(engine):
                stats = self.run_of(engine)
                told = Metrics(metrics_text(stats, True, "1.0"))
                step = 'processor="even"'
                for name, value in (
                    ("items_in_total", 5),
                    ("items_out_total", 4),
                    ("items_failed_total", 1),
                    ("call_seconds_count", 5),
                    ("workers", stats["even"].workers),
                    ("busy_seconds_total", stats["even"].busy_seconds),
                    ("stalled_seconds_total", stats["even"].stalled),
                ):
                    self.assertEqual(told.values[f"conveyor_{name}", step], value, name)
                self.assertEqual(told.values["conveyor_items_waiting_limit", 'processor="second"'], 7)
                self.assertEqual(told.values["conveyor_results_total", ""], 4)
                self.assertEqual(told.values["conveyor_source_items_total", ""], 5)
                self.assertEqual(told.values["conveyor_source_items_expected", ""], 5)
                self.assertEqual(told.values["conveyor_open", ""], 1)
                self.assertIn(("conveyor_call_seconds", f'{step},quantile="0.99"'), told.values)
                self.assertIn("conveyor_cpu_seconds_total", told.kinds)

    def test_names_of_users_are_escaped(self) -> None:
        told = Metrics(metrics_text(self.run_of("inline", HOSTILE), False, "1.0"))
        escaped = 'processor="a \\"b\\" \\\\ c{e=\\"f\\"} # g"'
        self.assertEqual(told.values["conveyor_items_in_total", escaped], 4)

    def test_before_any_run(self) -> None:
        told = Metrics(metrics_text(None, False, "1.0"))
        self.assertEqual(told.values["conveyor_open", ""], 0)

    def test_what_is_not_known_is_not_there(self) -> None:
        pipeline: Pipeline[Any, Any] = Pipeline(engine="inline").add(Processor(even))
        with pipeline:
            told = Metrics(metrics_text(pipeline.stats(), True, "1.0"))
        self.assertNotIn("conveyor_source_items_total", told.kinds)
        self.assertEqual(told.values["conveyor_call_seconds_count", 'processor="even"'], 0)
        self.assertNotIn(("conveyor_call_seconds", 'processor="even",quantile="0.5"'), told.values)

    def test_this_test_sees_what_it_looks_for(self) -> None:
        head = "# HELP conveyor_a_total It.\n# TYPE conveyor_a_total counter\n"
        Metrics(head + "conveyor_a_total 1\n")
        for text in (
            head + "conveyor_a_total 1",
            head + 'conveyor_a_total{processor="a"b"} 1\n',
            head + "conveyor_a_total one\n",
            head + "conveyor_a_total 1\nconveyor_a_total 2\n",
            head.replace("counter", "gauge") + "conveyor_a_total 1\n",
            "# TYPE conveyor_a_total counter\nconveyor_a_total 1\n",
        ):
            with self.subTest(text), self.assertRaises((AssertionError, KeyError)):
                Metrics(text)
