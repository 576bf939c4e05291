"""The glossary tells the truth: each word stands once, and what it names is where it says."""

from __future__ import annotations

import re
import unittest

from tests.helpers.support import ROOT, TestCase


class GlossaryTest(TestCase):
    """Each line of the two glossaries: docs/explanation/glossary.md for users, docs/internals/glossary.md for the code."""

    def rows(self) -> list[tuple[str, str, str]]:
        """The word, the meaning and the file of each line."""
        texts = [(ROOT / "docs" / part / "glossary.md").read_text("utf-8") for part in ("explanation", "internals")]
        lines = [line.strip("| \n").split(" | ") for line in "\n".join(texts).splitlines() if line.startswith("| ")]
        return [(word, meaning, where.strip("`")) for word, meaning, where in lines if word != "word"]

    def test_each_word_stands_once(self) -> None:
        words = [word for word, _, _ in self.rows()]
        self.assertGreater(len(words), 110)
        self.assertEqual(len(words), len(set(words)))

    def test_what_a_word_names_is_there(self) -> None:
        wrong = []
        for word, meaning, where in self.rows():
            path = ROOT / "conveyor" / where
            if not path.is_file():
                wrong.append(f"{word}: there is no {where}")
                continue
            text = path.read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)`", meaning):
                # What the inline engine, `with` or the standard library calls so stands elsewhere.
                elsewhere = name in ("add", "open", "close", "logging", "warnings", "InlineStep", "start", "stop")
                if not elsewhere and not re.search(rf"\b{name}\b", text):
                    wrong.append(f"{word}: {where} does not name {name}")
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
