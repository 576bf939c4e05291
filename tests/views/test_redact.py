"""What `redact` hides is nowhere to be seen: a secret goes through a pipeline, and all that tells of it is searched."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from conveyor import Pipe, Pipeline, ProcessorError, Progress
from conveyor import Processor as Step
from tests.helpers.late import mock
from tests.helpers.support import TestCase
from tests.views.test_page import Events, ask

SECRET = "4111-1111"
SHOWN = "an order, not shown"
# What shows items.
TELLING = ("page", "report", "numbers", "events", "progress", "failures", "table", "file", "error")


class Order:
    """What nobody is to see; its repr would tell."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.card = SECRET

    def __repr__(self) -> str:
        return f"Order({self.card})"


def shown(item: Any) -> str:
    return SHOWN


def charge(order: Order) -> Order:
    """Takes long, fails once and then not, or always."""
    threading.Event().wait(0.01)
    path = os.path.join(os.environ["ORDERS"], f"{order.number}")
    if order.number % 3 == 0 and not os.path.exists(path):
        Path(path).touch()
        raise ConnectionError("no answer")
    if order.number % 3 == 1:
        raise ValueError("refused")
    return order


def number_of(orders: list[Order]) -> list[int]:
    return [order.number for order in orders]


class RedactTest(TestCase):
    """All that shows something of an item."""

    redact = staticmethod(shown)

    def pipeline(self, engine: Any, **settings: Any) -> Pipeline[Any, Any]:
        pipeline = Pipeline(engine=engine, redact=self.redact, **settings)
        pipeline.add(Step(charge, retries=1, backoff=0.001, on_error="skip", timeout=30)).add(Pipe())
        return pipeline.add(Step(number_of, batch=2))

    def test_nothing_tells_a_secret(self) -> None:
        for engine in ("process", "thread", "inline"):
            with self.subTest(engine):
                told = self.told_by(engine)
                for name, text in told.items():
                    self.assertTrue(text, name)
                    assert SECRET not in text, (name, text[max(0, text.index(SECRET) - 200) :][:400])
                for name in TELLING:
                    assert SHOWN in told[name], name

    def test_this_test_sees_what_it_looks_for(self) -> None:
        with mock.patch.object(RedactTest, "redact", None):
            told = self.told_by("thread")
        for name in TELLING:
            assert SECRET in told[name], name

    def told_by(self, engine: str) -> dict[str, str]:
        """Run it, and return all that tells of it."""
        folder = Path(self.new_folder())
        settings: dict[str, Any] = {} if engine == "inline" else {"trace": folder / "run.json"}
        told: dict[str, str] = {}
        values: list[Progress] = []
        printed = io.StringIO()
        environment = {"ORDERS": str(folder), "CONVEYOR_RECORD": str(folder / "recorded")}
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, environment))
            logs = stack.enter_context(self.assertLogs("conveyor", logging.DEBUG))
            stack.enter_context(mock.patch.object(sys, "stderr", printed))
            pipeline = self.pipeline(engine, **settings)
            url = stack.enter_context(pipeline.serve())
            with pipeline:
                pipeline.run([Order(number) for number in range(6)], progress=values.append)
                events = Events(url)
                told["events"] = str(next(iter(events)))
                events.close()
                for name, path in (("page", "/"), ("report", "/report"), ("numbers", "/stats.json")):
                    told[name] = ask(url, path).text
                told["metrics"], told["trace so far"] = ask(url, "/metrics").text, ask(url, "/trace").text
                pipeline.run([Order(number) for number in (10, 2, 5)], progress=True)
            pipeline.report(folder / "run.html")
            told["pipeline"] = f"{pipeline!r}{pipeline}{pipeline._repr_html_()}"
            told["statistics"] = f"{pipeline.stats()}{pipeline.stats()._repr_html_()}"
            told["failures"], told["table"] = str(pipeline.failures), pipeline.failures._repr_html_()
            told["error"] = self.error_of(engine)
            logging.getLogger("conveyor").debug("the end")
        told["progress"] = f"{values[-1]!r}{values[-1]}"
        told["printed"] = printed.getvalue()
        told["log"] = "\n".join(logging.Formatter().format(record) for record in logs.records)
        told["file"] = (folder / "run.html").read_text("utf-8")
        if engine != "inline":
            told["trace"] = (folder / "run.json").read_text("utf-8")
            # Other pipelines of this process may have recorded before.
            told["recording"] = "".join(each.read_text("utf-8") for each in folder.glob("recorded*"))
        return told

    def error_of(self, engine: Any) -> str:
        """What is told of an item that fails for good, where that ends the run."""
        pipeline: Pipeline[Any, Any] = Pipeline(engine=engine, redact=self.redact).add(Step(charge))
        try:
            pipeline.run([Order(1)])
        except ProcessorError as error:
            return f"{error} {error!r} {error.item} {error.traceback}"
        raise AssertionError("it did not fail")
