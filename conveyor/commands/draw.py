"""The command `draw`: write a picture of a pipeline.

Law: the pipeline is described, and never opened.
"""

from __future__ import annotations

import argparse
import os
import sys

from conveyor import Pipeline
from conveyor._lean.typing import Any
from conveyor.commands import FAILED, _CommandError
from conveyor.commands.output import output_alone
from conveyor.commands.target import find_pipeline

# What a file is to hold, by the end of its name.
_KINDS = {".svg": "svg", ".dot": "dot", ".gv": "dot", ".mmd": "mermaid"}


def main(options: argparse.Namespace) -> int:
    """Write the picture to a file, or to the standard output."""
    with output_alone() as output:
        pipeline = find_pipeline(options.target)
        try:
            if options.output is not None:
                write_picture(pipeline, options.kind, options.output)
            else:
                # Not every terminal has the characters of the picture.
                output.write(_picture(pipeline, options.kind).encode(sys.stdout.encoding, "backslashreplace"))
                output.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _CommandError(f"the picture cannot be written: {error}", FAILED) from None
    return 0


def write_picture(pipeline: Pipeline[Any, Any], kind: str | None, path: str) -> None:
    """Write a picture of this kind to a file; None: the end of its name says of which, and else it is text."""
    picture = _picture(pipeline, kind or _KINDS.get(os.path.splitext(path)[1].lower()))
    with open(path, "w", encoding="utf-8") as file:
        file.write(picture)


def _picture(pipeline: Pipeline[Any, Any], kind: str | None) -> str:
    if kind is None:
        text = str(pipeline)
    else:
        graph = pipeline.graph()
        text = {"svg": graph.to_svg, "dot": graph.to_dot, "mermaid": graph.to_mermaid}[kind]()
    return f"{text.rstrip()}\n"
