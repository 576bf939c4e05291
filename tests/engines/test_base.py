"""What a pipeline and an engine know of each other: the table of engines, and the settings of a Pipeline."""

from __future__ import annotations

import inspect
import unittest
from collections import deque
from importlib import import_module
from typing import Any
from unittest import mock

from conveyor import Pipe, Pipeline, Processor
from conveyor._lean.dataclasses import replace
from conveyor.engines import base
from conveyor.engines.process import new_session
from conveyor.graph.builder import Description
from conveyor.stages.settings import settings_of
from tests.helpers.support import TestCase


class Doubling:
    """A session of an engine that does no more than it must: each item stands twice in the results."""

    def __init__(self, plan: Any, settings: base.PipelineSettings) -> None:
        self.names = [step.name for step in plan.steps]
        self.settings = settings
        self.failures: deque[Any] = deque()
        self.active = self.ended = False
        self.over = False

    def warn(self, stacklevel: int) -> None:
        pass

    def open(self) -> None:
        pass

    def run(self, items: Any) -> Any:
        self.items = items
        return self

    def chunks(self) -> Any:
        for item in self.items:
            yield [item, item]
        self.over = True

    def stats(self) -> None:
        return None

    def close(self) -> None:
        self.ended = True

    cancel = abort = close


class EngineTest(TestCase):
    """A new engine takes one line."""

    def test_a_third_engine(self) -> None:
        with mock.patch.dict(base.ENGINES, third=f"{__name__}:Doubling"):
            pipeline: Any = Pipeline(engine="third")  # type: ignore[arg-type]
            pipeline.add(Processor(len)).add(Pipe())
            self.assertEqual(pipeline.run([1, 2]), [1, 1, 2, 2])
            self.assertEqual(list(pipeline.stream([1])), [1, 1])

    def test_each_engine_of_the_table_is_there(self) -> None:
        for name in base.ENGINES:
            if name == "dask":
                # What needs a package that may be missing; `tests/cluster/` has it.
                assert callable(import_module("conveyor.engines.dask").new_session)
                continue
            with self.subTest(name):
                pipeline: Any = Pipeline(engine=name)  # type: ignore[arg-type]
                plan = pipeline.add(Processor(len))._description.plan(cores=1, ordered=True)
                session = base.new_session(plan, pipeline._settings)
                self.assertEqual((session.names, session.active, session.ended), (["len"], False, False))
                session.abort()


class SettingsTest(TestCase):
    """A setting of a Pipeline is declared once; its signature repeats that, for editors."""

    def test_the_signature_is_what_is_declared(self) -> None:
        parameters = list(inspect.signature(Pipeline).parameters.values())
        declared = settings_of(base.PipelineSettings)
        self.assertEqual([each.name for each in parameters], list(declared))
        for each in parameters:
            self.assertEqual((each.kind, each.default), (each.KEYWORD_ONLY, declared[each.name].default), each.name)

    def test_each_default_keeps_its_own_rule(self) -> None:
        for name, each in settings_of(base.PipelineSettings).items():
            with self.subTest(name):
                each.check(name, each.default)
                self.assertTrue(each.doc.endswith("."))
                with self.assertRaisesRegex((TypeError, ValueError), f"{name} must be "):
                    each.check(name, [])

    def test_whoever_acts_on_one_has_it(self) -> None:
        settings = base.PipelineSettings(seed=3, keep_failures=7, redact=str)
        description = Description()
        description.add((Processor(abs),))
        plan = replace(description.plan(cores=1, ordered=True), settings=settings.plain())
        session: Any = new_session(plan, settings)
        config = session._broker.config
        for name in settings_of(base.PipelineSettings):
            # What shows items may be a function that no other process can have.
            expected = None if name == "redact" else getattr(settings, name)
            self.assertEqual(config.plan.setting(name), expected, name)
        for worker in config.workers.values():
            self.assertEqual((worker.setting("seed"), worker.setting("keep_failures")), (3, 7))

    def test_they_do_not_change(self) -> None:
        settings = base.PipelineSettings(seed=3)
        with self.assertRaises(AttributeError):
            settings.seed = 4  # type: ignore[misc]
        self.assertEqual(settings, base.PipelineSettings(seed=3))

    def test_the_code_that_makes_the_same(self) -> None:
        for code in (
            "Pipeline()",
            "Pipeline(engine='inline', ordered=False, keep_failures=None)",
            "Pipeline(start_method='fork', channel='queue', cores=2, max_failures=0.5, fuse=True, redact=len, seed=0)",
        ):
            self.assertEqual(repr(eval(code)), code)


if __name__ == "__main__":
    unittest.main()
