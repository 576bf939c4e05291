"""The report of a run, and what a notebook shows."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork, StateError, Stats
from conveyor.stats import Decision, Sample, StepSample
from conveyor.views.charts import timeline
from conveyor.views.html import json_in_html
from tests.helpers.browser import needs_browser, page_of
from tests.helpers.late import tempfile
from tests.helpers.support import TestCase

HOSTILE = "</script><script>alert('no')</script><b>&\"'"
# Elements of HTML and SVG that have no end.
VOID = {"meta", "link", "input", "br", "hr", "img"}


def even(item: Any) -> Any:
    if item == 3 or isinstance(item, str):
        raise ValueError(f"{item} is odd")
    return item


def double(item: int) -> int:
    return item * 2


class Tree(HTMLParser):
    """Reads a page, and raises where an element is not closed in its turn."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.held: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> is out of turn"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.held[self.open[-1]] = self.held.get(self.open[-1], "") + data


def read(text: str) -> Tree:
    """Read a page; every element of it is closed in its turn."""
    tree = Tree()
    tree.feed(text)
    tree.close()
    assert not tree.open, tree.open
    return tree


def chain(engine: Any = "inline", **settings: Any) -> Pipeline[Any, Any]:
    pipeline = Pipeline(engine=engine, **settings).add(Processor(even, on_error="skip")).add(Pipe())
    return pipeline.add(Processor(double, name=HOSTILE))


class ReportTest(TestCase):
    """One file with all of a run."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.path = Path(holder.name) / "run.html"

    def report(self, pipeline: Pipeline[Any, Any]) -> str:
        pipeline.report(self.path)
        assert [each.name for each in self.path.parent.iterdir()] == [self.path.name]
        return self.path.read_text(encoding="utf-8")

    def test_it_holds_all_and_nothing_of_a_user_is_read_as_html(self) -> None:
        pipeline = chain()
        pipeline.run([1, 2, 3, HOSTILE])
        text = self.report(pipeline)
        tree = read(text)
        self.assertEqual(tree.seen.count("script"), 1)
        self.assertNotRegex(text, "https?:|//[a-z]|@import|src=")
        data = json.loads(tree.held["script"])
        self.assertEqual(data["stats"], json.loads(json.dumps(pipeline.stats().to_dict(history=True))))
        self.assertEqual([each["number"] for each in data["failures"]], [2, 3])
        self.assertEqual([each["name"] for each in data["graph"]["nodes"]][1:3], ["even", HOSTILE])
        self.assertIn("ValueError: 3 is odd", tree.held["pre"])
        self.assertIn("Conveyor", data["environment"])

    def test_items_are_shown_as_redact_shows_them(self) -> None:
        pipeline = chain(redact=lambda item: "a secret").add(Pipe()).add(Processor(str))
        pipeline.run([1, 3])
        text = self.report(pipeline)
        self.assertIn("a secret", text)
        self.assertEqual(json.loads(read(text).held["script"])["failures"][0]["item"], "a secret")

    def test_of_processes_open_and_closed(self) -> None:
        fork = Pipeline(start_method="fork").add(Processor(double, workers=2)).add(Pipe(5)).add(ReplicatingFork(2))
        fork.add(Processor(str), Processor(double)).add(Pipe()).add(Join(2, how="zip"))
        with fork as pipeline:
            pipeline.run(range(100))
            text = self.report(pipeline)
        for each in (text, self.report(pipeline)):
            data = json.loads(read(each).held["script"])
            self.assertEqual(data["stats"]["results"], 100)
            self.assertEqual(data["environment"]["start method"][:4], "fork")
            self.assertIn("100 items, ", each)

    def test_before_any_run(self) -> None:
        with self.assertRaisesRegex(StateError, "there are no statistics yet"):
            chain().report(self.path)
        self.assertFalse(self.path.exists())

    def test_where_it_cannot_be_written(self) -> None:
        pipeline = chain()
        pipeline.run([1])
        self.path.mkdir()
        nowhere = self.path.parent / "nowhere" / "run.html"
        for path, kind in ((self.path, IsADirectoryError), (nowhere, FileNotFoundError)):
            with self.assertRaises(kind) as caught:
                pipeline.report(path)
            self.assertEqual((caught.exception.filename, caught.exception.filename2), (str(path), None))
        self.assertEqual(os.listdir(self.path.parent), [self.path.name])

    def test_what_is_no_file_is_written_to_and_stays(self) -> None:
        pipeline = chain()
        pipeline.run([1])
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        # A pipe holds more than that, so nobody has to read meanwhile.
        pipeline.report(self.path)
        self.assertTrue(self.path.is_fifo())
        self.assertTrue(os.read(reader, 1_000_000).startswith(b"<!doctype html>"))

    def test_a_link_stays_and_leads_to_the_report(self) -> None:
        pipeline = chain()
        pipeline.run([1])
        target = self.path.with_name("first.html")
        target.write_text("another", encoding="utf-8")
        self.path.symlink_to(target)
        pipeline.report(self.path)
        self.assertTrue(self.path.is_symlink())
        self.assertTrue(target.read_text(encoding="utf-8").startswith("<!doctype html>"))

    def test_it_takes_the_place_of_another(self) -> None:
        self.path.write_text("another", encoding="utf-8")
        pipeline = chain()
        pipeline.run([1])
        self.assertTrue(self.report(pipeline).startswith("<!doctype html>"))

    @needs_browser
    def test_a_browser_shows_it_and_complains_of_nothing(self) -> None:
        pipeline = chain()
        pipeline.run([1, 2, 3, HOSTILE])
        self.report(pipeline)
        elements, console = page_of(self.path.as_uri())
        self.assertEqual(console, [])
        self.assertIn("Report of a pipeline", elements)
        picture = self.path.parent / "run.png"
        self.assertEqual(page_of(self.path.as_uri(), "400,900", picture)[1], [])
        self.assertGreater(picture.stat().st_size, 5_000)


class TimelineTest(TestCase):
    """Steps over time."""

    def test_many_steps_and_samples(self) -> None:
        pipeline = chain()
        pipeline.run([1])
        known = pipeline.stats()
        step = known.steps[0]
        samples = tuple(
            Sample(at * 0.25, tuple(StepSample(1 + at % 3, at % 7, at, at, 0, 0.1) for _ in range(12)))
            for at in range(2000)
        )
        decisions = (Decision(3.0, step.processor, 1, 2, "<b>"), Decision(9999.0, step.processor, 2, 1, "late"))
        stats = Stats(500.0, 2, (step,) * 12, decisions, history=samples)
        text = timeline(stats)
        self.assertEqual(len(re.findall('class="workers"', text)), 12)
        self.assertEqual(len(re.findall("<polygon", text)), 24)
        self.assertIn("&lt;b&gt;", text)
        self.assertLess(len(text), 400_000)
        read(text)

    def test_nothing_where_there_is_nothing(self) -> None:
        pipeline = chain()
        pipeline.run([1])
        known = pipeline.stats()
        self.assertEqual(timeline(Stats(1.0, 2, known.steps, ())), "")


class NotebookTest(TestCase):
    """What a notebook shows in the place of a repr."""

    def test_each(self) -> None:
        pipeline = chain()
        self.assertIn("even", pipeline._repr_html_())
        pipeline.run([1, 3, HOSTILE])
        for shown in (pipeline._repr_html_(), pipeline.stats()._repr_html_(), pipeline.failures._repr_html_()):
            tree = read(shown)
            self.assertNotIn("script", tree.seen)
            # It has the looks that it needs: a notebook has none for it, and its theme is its own.
            self.assertIn(".cv-back{fill:none}", shown)
            self.assertEqual(tree.seen.count("style"), 1 + shown.count("<svg"))
        self.assertIn("3 items", pipeline._repr_html_())
        self.assertIn("ValueError: 3 is odd", pipeline.failures._repr_html_())
        self.assertEqual(pipeline.failures[0].number, 1)
        self.assertIsInstance(pipeline.failures, tuple)


class EscapeTest(TestCase):
    """JSON that stands in a page."""

    def test_it_is_the_same_json(self) -> None:
        text = json_in_html(json.dumps({"item": HOSTILE, "more": ["<!--", "\u2028"]}))
        self.assertNotIn("<", text)
        self.assertEqual(json.loads(text), {"item": HOSTILE, "more": ["<!--", "\u2028"]})
