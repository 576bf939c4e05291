"""Modules that take long to import, each imported where it is first used.

Law: a worker that is a fresh interpreter imports the module of its job, and the tests start thousands of them.  So the
modules that define jobs take from here what no job uses.
"""

from __future__ import annotations

import importlib
from typing import Any


class Late:
    """Stands for a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


mock: Any = Late("unittest.mock")
subprocess: Any = Late("subprocess")
tempfile: Any = Late("tempfile")
