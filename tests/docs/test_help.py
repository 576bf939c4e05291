"""What `help()` prints of the public names: one page each, which names no private part.

Law: the text of `pydoc`, as at a prompt.
"""

from __future__ import annotations

import inspect
import pydoc
import re
import unittest

import conveyor
from conveyor import Join, Pipeline, Processor, Stats, StepStats
from tests.helpers.support import TestCase

CLASSES = {name: getattr(conveyor, name) for name in conveyor.__all__ if isinstance(getattr(conveyor, name), type)}

# A heading of a section, the line of the bases, or one of the method resolution order, with a private class.
PRIVATE_CLASS = re.compile(
    r"^(?:class .*|[ |]+\w.* inherited from .*|[ |]+[\w.]*)\b_[A-Za-z]\w*\b[:), \w.]*$", re.MULTILINE
)


def help_of(thing: object) -> str:
    """What `help()` prints."""
    return pydoc.plain(pydoc.render_doc(thing))


class ModuleTest(TestCase):
    """What `help(conveyor)` says first."""

    def test_it_says_of_each_public_name_what_it_is_for(self) -> None:
        said = set(re.findall(r"`(?:Pipeline\.)?(\w+)`", conveyor.__doc__ or ""))
        self.assertEqual(sorted(set(conveyor.__all__) - said), [])

    def test_it_names_nothing_that_is_not_there(self) -> None:
        for name in re.findall(r"`Pipeline\.(\w+)`", conveyor.__doc__ or ""):
            with self.subTest(name):
                self.assertTrue(hasattr(Pipeline, name))


class ClassTest(TestCase):
    """What `help()` says of a class."""

    def test_it_shows_no_private_class(self) -> None:
        for name, kind in CLASSES.items():
            with self.subTest(name):
                self.assertEqual(PRIVATE_CLASS.findall(help_of(kind)), [])

    def test_what_finds_private_classes_finds_them(self) -> None:
        class _Part:
            def part(self) -> None:
                """Do nothing."""

        class Whole(_Part):
            pass

        found = "\n".join(PRIVATE_CLASS.findall(help_of(Whole)))
        for line in ("class Whole(", "inherited from", "|      "):
            with self.subTest(line):
                self.assertIn(line, found)

    def test_each_method_of_a_pipeline_is_its_own(self) -> None:
        for name, method in vars(Pipeline).items():
            method = method.fget if isinstance(method, property) else method
            if inspect.isfunction(method) and not name.startswith("_"):
                with self.subTest(name):
                    self.assertEqual(f"{method.__module__}.{method.__qualname__}", f"conveyor.pipeline.Pipeline.{name}")
                    self.assertTrue(inspect.getdoc(method))
        self.assertLessEqual({"add", "run", "stream", "submit", "asubmit", "stats", "failures"}, vars(Pipeline).keys())

    def test_values_show_their_fields_and_defaults(self) -> None:
        shown = str(inspect.signature(Stats))
        self.assertTrue(shown.startswith("(seconds: 'float', cores: 'int', "), shown)
        self.assertIn("start_method: 'str | None' = None", shown)
        self.assertEqual(list(inspect.signature(StepStats).parameters), list(StepStats.__match_args__))
        self.assertNotIn("_refuse", help_of(Stats))

    def test_a_class_that_is_made_of_parts_is_a_class_as_others(self) -> None:
        class Both(Processor[int, str]):
            timeout = 2.0

        self.assertEqual(Both.__mro__[1:], (Processor, conveyor.Element, object))
        self.assertEqual(inspect.signature(Both).parameters["timeout"].default, 2.0)
        self.assertIs(type(Join(how="zip")), Join)
        self.assertEqual(str(inspect.signature(Pipeline.__init__).parameters["self"]), "self")


if __name__ == "__main__":
    unittest.main()
