"""A count of one stands before a singular, in all that a user reads.

Law: what is shown of a pipeline, a run and its failures is looked through for any count of one with a plural behind it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from conveyor import Pipe, Pipeline, Processor, Progress, TooManyFailuresError
from conveyor.core.tuning.autoscaling import format_enough
from conveyor.engines.failures import too_many_failures
from conveyor.errors import FailedItem, ProcessorError
from conveyor.views.html import failures_list, failures_table, more_not_shown
from tests.helpers.support import TestCase

# A number before it, as in "21 items" or "0.1 items", is another count; "1 items/s" is a unit.
PLURAL_OF_ONE = re.compile(
    r"(?<![\d.,-])1 (?:more )?(?:items|workers|calls|steps|results|outputs|attempts|decisions|cores|events|commands"
    r"|failures|branches|processes|are|were)\b(?!/)"
)


def fail(item: int) -> int:
    raise ValueError("no")


class CountsTest(TestCase):
    """What is told of one."""

    def look_through(self, *texts: str) -> None:
        """None of the texts has a plural for one."""
        for text in texts:
            found = PLURAL_OF_ONE.search(text)
            assert found is None, text[max(0, found.start() - 100) : found.end() + 100]

    def test_the_search_finds_a_plural(self) -> None:
        for text in ("1 items", "1 of 1 items (100 %)", ">1 more are not", "of 1 cores used"):
            assert PLURAL_OF_ONE.search(text), text
        for text in ("21 items", "0.1 items", "1 items/s", "1 item", "1,001 items"):
            assert not PLURAL_OF_ONE.search(text), text

    def test_progress(self) -> None:
        assert str(Progress(done=1, total=None, rate=None, eta=None)) == "1 item"
        assert str(Progress(done=1, total=1, rate=1.0, eta=None)) == "1 of 1 item (100 %), 1 items/s"
        assert str(Progress(done=1, total=2, rate=None, eta=None)) == "1 of 2 items (50 %)"
        assert str(Progress(done=0, total=None, rate=None, eta=None)) == "0 items"

    def test_a_run_of_one_item(self) -> None:
        pipeline: Pipeline[Any, Any] = Pipeline(engine="thread").add(Processor(abs)).add(Pipe(1))
        pipeline.add(Processor(fail, on_error="skip", retries=1, backoff=0))
        assert pipeline.run([1]) == []
        page = Path(self.new_folder(), "run.html")
        pipeline.report(page)
        graph = pipeline.graph()
        self.look_through(
            page.read_text("utf-8"),
            str(pipeline.stats()),
            pipeline.stats()._repr_html_(),
            pipeline._repr_html_(),
            str(pipeline.failures),
            graph.to_mermaid(),
            graph.to_svg(),
        )
        assert [edge.detail for edge in graph.edges] == 3 * ["1 item"]

    def test_one_item_is_too_many(self) -> None:
        with self.assertRaisesRegex(TooManyFailuresError, "^1 item was given up, .* It is in `failures`"):
            Pipeline(engine="inline", max_failures=0).add(Processor(fail, on_error="skip")).run([1])
        failed = FailedItem("fail", 1, 1, "1", ProcessorError("m", processor="fail"), 1, 0.0)
        assert "2 items were given up" in str(too_many_failures(2, 1, [failed]))
        assert " The last one is in `failures`" in str(too_many_failures(2, 1, [failed]))
        assert " They are in `failures`" in str(too_many_failures(2, 1, [failed, failed]))
        assert " The last 2 are in `failures`" in str(too_many_failures(3, 1, [failed, failed]))

    def test_one_more_failure_than_a_page_shows(self) -> None:
        failed = FailedItem("fail", 1, 1, "1", ProcessorError("m", processor="fail"), 1, 0.0)
        for shown in (failures_list, failures_table):
            assert ">1 more is not shown.<" in shown([failed] * 101)
            assert ">2 more are not shown.<" in shown([failed] * 102)
        assert more_not_shown(1000) == "1,000 more are not shown."

    def test_decisions(self) -> None:
        self.look_through(format_enough(1), format_enough(2))
