"""How docstrings become pages: `Fields:` is a section, as `Attributes:` is for Griffe, and examples are sessions.

Law: it changes what the site shows and not what `help()` says.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from conveyor.stages import Processor

# From a prompt to the next empty line.
SESSION = re.compile(r"^([ \t]*)>>> .*(?:\n[ \t]*\S.*)*", re.MULTILINE)


def fenced(match: re.Match[str]) -> str:
    """An interactive session in a fence of its own."""
    return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"


def parameter(each: inspect.Parameter) -> griffe.Parameter:
    """A parameter as Griffe knows it."""
    default = None if each.default is each.empty else each.default
    shown = default.__name__ if isinstance(default, type) else repr(default)
    return griffe.Parameter(
        each.name,
        annotation=None if each.annotation is each.empty else str(each.annotation),
        kind=getattr(griffe.ParameterKind, each.kind.name.lower()),
        default=None if each.default is each.empty else shown,
    )


class Fields(griffe.Extension):
    """Has Griffe read the docstrings of Conveyor."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Translate the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nFields:\n", "\nAttributes:\n")
            obj.docstring.value = SESSION.sub(fenced, text)

    def on_class_members(self, *, cls: Any, **_: Any) -> None:
        """Show the settings of a Processor: its signature is made where they are declared."""
        if cls.path == "conveyor.stages.processor.Processor":
            parameters = inspect.signature(Processor).parameters.values()
            own = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
            cls.members["__init__"].parameters = griffe.Parameters(own, *map(parameter, parameters))
