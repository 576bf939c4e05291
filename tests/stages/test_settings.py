"""The settings of a Processor: declared once, from which the signature, the checks and the type checker's view follow."""

from __future__ import annotations

import ast
import inspect
import unittest
from typing import Any

from conveyor import Processor
from conveyor.stages import settings
from tests.helpers.support import ROOT, TestCase


class Tenfold(Processor[Any, Any]):
    batch = 10
    retries = 3

    def process(self, items: Any) -> Any:
        return items


class OfItsOwn(Processor[Any, Any]):
    def __init__(self, size: int = 4) -> None:
        super().__init__(batch=size)

    def process(self, items: Any) -> Any:
        return items


def defaults(of: Any) -> dict[str, Any]:
    """What a signature says of the keywords that are not given."""
    parameters = inspect.signature(of).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


class SignatureTest(TestCase):
    """What `help()`, editors and `inspect.signature` show."""

    def test_the_defaults_are_those_that_hold(self) -> None:
        for shown in (defaults(Processor), defaults(Processor.__init__)):
            declared = {name: getattr(Processor, name) for name in settings.PROCESSOR_ARGUMENTS}
            self.assertEqual(shown, {**declared, "setup": None})
        self.assertEqual(str(inspect.signature(Processor)).count("\n"), 0)
        self.assertEqual(next(iter(inspect.signature(Processor).parameters)), "job")
        self.assertEqual(next(iter(inspect.signature(Processor.__init__).parameters)), "self")

    def test_a_class_that_declares_settings_shows_them(self) -> None:
        # It has a method `setup`, and takes no such argument.
        shown = {name: value for name, value in defaults(Processor).items() if name != "setup"}
        self.assertEqual(defaults(Tenfold), {**shown, "batch": 10, "retries": 3})
        self.assertEqual((Tenfold().batch, Tenfold(batch=2).batch, Tenfold(batch=2).retries), (10, 2, 3))

    def test_a_class_with_an_init_of_its_own_shows_that(self) -> None:
        self.assertEqual(list(inspect.signature(OfItsOwn).parameters), ["size"])
        self.assertEqual(OfItsOwn(7).batch, 7)

    def test_an_instance_that_can_be_called_shows_its_call(self) -> None:
        class Callable(Tenfold):
            def __call__(self, item: Any) -> Any:
                return item

        self.assertEqual(list(inspect.signature(Callable()).parameters), ["item"])


class DeclarationTest(TestCase):
    """Each setting has all that belongs to one."""

    def test_a_name_that_is_no_setting(self) -> None:
        with self.assertRaises(TypeError) as raised:
            Processor(len, bacth=3)  # type: ignore[call-overload]
        self.assertIn("no setting 'bacth'", str(raised.exception))
        self.assertIn("batch", str(raised.exception))
        with self.assertRaisesRegex(TypeError, "no setting 'restartable'"):
            Processor(len, restartable=True)  # type: ignore[call-overload]

    def test_each_default_keeps_its_own_rule(self) -> None:
        for name, each in settings.PROCESSOR_SETTINGS.items():
            with self.subTest(name):
                each.check(name, each.default)
                self.assertTrue(each.doc.endswith("."))
                with self.assertRaisesRegex((TypeError, ValueError), f"^{name} must "):
                    each.check(name, -1.5)

    def test_type_checkers_know_each_of_them(self) -> None:
        """Those that decide nothing about types stand in one place for them, the others in overloads."""
        tree = ast.parse((ROOT / "conveyor" / "stages" / "settings.py").read_text(encoding="utf-8"))
        classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

        def fields(name: str) -> set[str]:
            return {node.target.id for node in classes[name].body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]

        in_overloads = {"name", "workers", "batch", "per_item", "keep_none"}
        self.assertEqual(fields("PolicySettings"), {*settings.PROCESSOR_ARGUMENTS, "setup"} - in_overloads)
        self.assertEqual(fields("_ProcessorSettings"), set(settings.PROCESSOR_SETTINGS))


if __name__ == "__main__":
    unittest.main()
