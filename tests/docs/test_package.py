"""What the package says of itself: its version in one place, a changelog that tools can read, and extras that hold.

Law: a fact about the distribution that stands in two files is compared here.
"""

from __future__ import annotations

import configparser
import re
from typing import ClassVar

import conveyor
from tests.helpers.support import ROOT, TestCase

# What https://keepachangelog.com/en/1.1.0/ allows.
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
RELEASE = re.compile(r"## \[(\d+\.\d+\.\d+|Unreleased)\](?: - (\d{4}-\d{2}-\d{2}|Unreleased))?")


def read(name: str) -> str:
    """The text of a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


class PackageTest(TestCase):
    """setup.cfg, CHANGELOG.md and CITATION.cff."""

    EXTRAS: ClassVar[set[str]] = {"progress", "live", "notebook", "dask", "examples", "docs", "test", "benchmarks"}

    def setUp(self) -> None:
        super().setUp()
        self.metadata = configparser.ConfigParser(interpolation=None)
        self.metadata.read_string(read("setup.cfg"))

    def test_the_version_stands_in_the_package_alone(self) -> None:
        self.assertEqual(self.metadata["metadata"]["version"], "attr: conveyor.__version__")
        self.assertNotIn("version:", read("CITATION.cff").replace("cff-version:", ""))

    def test_name_and_extras(self) -> None:
        self.assertEqual(self.metadata["metadata"]["name"], "conveyor-pipeline")
        extras = self.metadata["options.extras_require"]
        self.assertEqual(set(extras), self.EXTRAS)
        # No extra is empty.
        self.assertTrue(all(extras[extra].split() for extra in extras))

    def test_each_extra_that_a_text_names_is_there(self) -> None:
        texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "conveyor").rglob("*.py")]
        for path in (*texts, *(ROOT / "examples").glob("*.py")):
            for name, extras in re.findall(r"install '(\.|[\w-]+)\[([\w,-]+)\]'", path.read_text(encoding="utf-8")):
                with self.subTest(path=path.name):
                    self.assertIn(name, (".", "conveyor-pipeline"))
                    self.assertLessEqual(set(extras.split(",")), self.EXTRAS)

    def test_the_changelog(self) -> None:
        headings = re.findall(r"^##+ .*", read("CHANGELOG.md"), re.MULTILINE)
        releases = [match[1] for heading in headings if (match := RELEASE.fullmatch(heading))]
        self.assertEqual(next(name for name in releases if name != "Unreleased"), conveyor.__version__)
        others = [heading for heading in headings if not RELEASE.fullmatch(heading)]
        self.assertLessEqual(set(others), {f"### {kind}" for kind in KINDS})
