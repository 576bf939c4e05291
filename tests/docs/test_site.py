"""The reference has every public name, and the check of the built site finds what is wrong with one.

Law: the site itself is built where its generator is installed, by `make docs` and `.ci/run`.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import conveyor
from conveyor import errors
from tests.helpers.support import ROOT, TestCase


def load_check() -> Any:
    """docs/site/check.py as a module."""
    specification = importlib.util.spec_from_file_location("site_check", ROOT / "docs" / "site" / "check.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class ReferenceTest(TestCase):
    """docs/reference."""

    def test_it_has_each_public_name(self) -> None:
        pages = (ROOT / "docs" / "reference").rglob("*.md")
        names = re.findall(r"^::: [\w.]+\.(\w+)$", "\n".join(page.read_text("utf-8") for page in pages), re.MULTILINE)
        self.assertEqual(len(names), len(set(names)))
        # Nobody imports this one from the package: it names an engine.
        self.assertEqual(set(names) - {"DaskEngine"}, set(conveyor.__all__))

    def test_each_error_has_its_anchor_its_cause_and_its_remedy(self) -> None:
        text = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
        entries = re.findall(
            r'^<a id="(\w+)"></a>\n\n### (\w+)\n\n\*\*Cause\.\*\* .+?\n\n\*\*Remedy\.\*\* .+?\n\n::: conveyor\.errors\.(\w+)$',
            text,
            re.MULTILINE | re.DOTALL,
        )
        classes = {name for name in conveyor.__all__ if getattr(conveyor, name).__module__ == errors.__name__}
        self.assertEqual({name for name, *_ in entries}, classes)
        self.assertEqual([entry for entry in entries if len(set(entry)) > 1], [])


class CheckTest(TestCase):
    """docs/site/check.py, on small sites."""

    def troubles(self, *lines: str, **files: str) -> list[str]:
        """What is wrong with a page of these lines, beside another with one anchor."""
        folder = Path(self.new_folder())
        (folder / "deep").mkdir()
        (folder / "deep" / "page.html").write_text("\n".join(lines), encoding="utf-8")
        (folder / "other one.html").write_text('<h1 id="top">x</h1>', encoding="utf-8")
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
        found: list[str] = load_check().troubles(folder)
        return found

    def test_a_site_that_is_whole(self) -> None:
        lines = (
            '<link rel="canonical" href="https://example.org/page"><link rel="stylesheet" href="../site.css">',
            '<a href="https://example.org">x</a> <a href="mailto:a@example.org">x</a> <a href="../other%20one.html#top">',
            '<a name="here"></a><a href="#here">x</a><img src="data:image/png;base64,AA==">',
        )
        self.assertEqual(self.troubles(*lines, site_css="a { background: url(x.png) }"), [])

    def test_what_comes_from_a_network(self) -> None:
        for line in (
            '<script src="https://example.org/x.js"></script>',
            '<img src="//example.org/x.png">',
            '<link rel="stylesheet" href="https://example.org/x.css">',
            '<link rel="preconnect" href="https://example.org">',
        ):
            with self.subTest(line):
                (trouble,) = self.troubles(line)
                self.assertRegex(trouble, r"^deep/page.html loads .*//example\.org")
        for text in ('@import "https://example.org/x";', "a { background: url(//example.org/x) }"):
            with self.subTest(text):
                (trouble,) = self.troubles("", site_css=text)
                self.assertRegex(trouble, r"^site.css loads .*//example\.org/x")

    def test_what_is_not_there(self) -> None:
        for line, trouble in (
            ('<a href="other.html">', "there is no other.html"),
            ('<a href="../other one.html#bottom">', "there is no anchor ../other one.html#bottom"),
            ('<a href="#here">', "there is no anchor #here"),
            ('<img src="x.png">', "there is no x.png"),
        ):
            with self.subTest(line):
                self.assertEqual(self.troubles(line), [f"deep/page.html: {trouble}"])
        self.assertEqual(load_check().troubles(Path(self.new_folder()))[0][:16], "there is no page")
