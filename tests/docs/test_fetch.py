"""The example that fetches pages: `examples/fetch.py`.

Law: it runs as a user runs it, against its own server.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import unittest

from tests.helpers.support import ROOT, TestCase, nothing_left

SCRIPT = ROOT / "examples" / "fetch.py"


class Fetch(TestCase):
    """The pages are fetched in each way, and few lines do it."""

    def test_it_fetches_all_pages(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        for way in ([], ["threads"], ["processes"]):
            with self.subTest(way), nothing_left():
                command = [sys.executable, str(SCRIPT), "30", *way]
                said = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
                self.assertEqual(said.stdout, f"30 pages, {sum(range(30))} words\n")
                self.assertNotIn("Error", said.stderr)

    def test_it_is_short(self) -> None:
        text = SCRIPT.read_text(encoding="utf-8")
        others = ast.Import | ast.ImportFrom | ast.Try | ast.Expr
        parts = [node for node in ast.parse(text).body if not isinstance(node, others)]
        lines = [line for node in parts for line in text.splitlines()[node.lineno - 1 : node.end_lineno]]
        self.assertLess(len([line for line in lines if line.strip()]), 50)


if __name__ == "__main__":
    unittest.main()
