"""The commands of `python -m conveyor`: what each of them is called with, and which module runs it.

Each module of this folder has one command, in a function `main` that takes the parsed arguments and returns the exit
status.  It is imported when its command is called.  Exit statuses: 0, all went well; 1, the run failed; 2, the command
was called with what it cannot use; 130, Ctrl-C; 141, nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module

from conveyor import __version__

FAILED = 1
USAGE = 2
# What a shell tells of a program that SIGPIPE has ended, as it ends most programs before `| head`.
OUTPUT_CLOSED = 141

_HELP_COLUMNS = 78
_TARGET = (
    "module:name, or path/to/file.py:name, of a pipeline or of a function without arguments that returns one. "
    "The name may be left out where there is only one pipeline"
)


class _CommandError(Exception):
    """Ends a command: the message, and the exit status."""

    def __init__(self, message: str, status: int = USAGE) -> None:
        super().__init__(message)
        self.status = status


def run_command(arguments: Sequence[str] | None) -> int:
    """Run one command and return its exit status; whoever reads the output may leave at any time."""
    options = _parser().parse_args(arguments)
    try:
        status: int = import_module(options.module).main(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except _CommandError as error:
        tell(str(error))
        status = error.status
    except BrokenPipeError:
        _drop_output()
        return OUTPUT_CLOSED
    except OSError as error:
        # A command deals with its files; what is left is the standard output.
        _drop_output()
        tell(f"the standard output cannot be written: {error}")
        return FAILED
    return status


def _drop_output() -> None:
    """Have nothing more written: what Python flushes at its end would meet the same error."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())


def show(line: str) -> None:
    """Write a line to the standard output at once; characters that its encoding does not have are escaped."""
    # A program without a console has no such stream.
    if sys.stdout is not None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def tell(message: str) -> None:
    """Write a message to the standard error stream, in a line of its own."""
    # A program without a console has no such stream.
    if sys.stderr is not None:
        sys.stderr.write(f"conveyor: {message}\n")


def _parser() -> argparse.ArgumentParser:
    is_module = os.path.basename(sys.argv[0]) in ("__main__.py", "-m")
    parser = _Parser(
        "python -m conveyor" if is_module else "conveyor",
        "Tools for pipelines of Conveyor.",
        "draw flow.py:pipeline",
    )
    parser.add_argument("--version", action="version", version=f"Conveyor {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=_Parser)
    _declare_draw(
        _command(commands, parser.prog, "draw", "draw a pipeline", "flow.py:pipeline --svg --output flow.svg")
    )
    _declare_run(
        _command(
            commands,
            parser.prog,
            "run",
            "run a pipeline over the lines of the standard input",
            "flow.py:pipeline --json --progress < items.jsonl > results.jsonl",
            "Each line is an item, without its newline, and each result is written as a line, as soon as it has come. "
            "What the module and its jobs print goes to the standard error stream.  The exit status is 1 where the run "
            "fails, 2 where an argument cannot be used, 130 after Ctrl-C, and 141 where nobody reads on.",
        )
    )
    _command(
        commands,
        parser.prog,
        "doctor",
        "tell what Conveyor finds on this machine",
        "",
        "Tell which Python, start method, cores, memory and optional packages a pipeline would have here, and try one. "
        "The exit status is 0 whatever is missing.",
    )
    replaying = _command(
        commands,
        parser.prog,
        "replay",
        "drive the core through a recorded run, and say where it decides otherwise",
        "recorded.jsonl",
        "Drive the core through a run that was recorded with CONVEYOR_RECORD=FILE.  The exit status is 0 where the "
        "core decides as it did then, 1 where it does not, and 2 where the file cannot be read.",
    )
    replaying.add_argument("file", help="the recording")
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends with an example."""

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=textwrap.fill(description, _HELP_COLUMNS),
            epilog=f"example:\n  {f'{prog} {example}'.rstrip()}",
            # An example is one line.
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def _command(
    commands: argparse._SubParsersAction[_Parser],
    program: str,
    name: str,
    summary: str,
    example: str,
    description: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        prog=f"{program} {name}",
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        example=example,
    )
    parser.set_defaults(module=f"{__name__}.{name}")
    return parser


def _declare_draw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="module:pipeline", help=_TARGET)
    kinds = parser.add_mutually_exclusive_group()
    for kind, help_text in (
        ("mermaid", "a flowchart of Mermaid, for Markdown"),
        ("dot", "a graph for Graphviz"),
        ("svg", "a picture that needs nothing else"),
    ):
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=help_text)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write to this file instead; without another option .svg, .dot, .gv and .mmd say what it is to be",
    )


def _declare_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="module:pipeline", help=_TARGET)
    parser.add_argument("--json", action="store_true", help="each line is a JSON value, and so is each result")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--progress", action="store_true", help="show on the standard error stream how far the run is")
    shown.add_argument(
        "--steps", dest="progress", action="store_const", const="steps", help="show what each step does, too"
    )
    parser.add_argument("--report", metavar="FILE", help="write a page about the run, also where it fails")
    parser.add_argument("--trace", metavar="FILE", help="write a trace for Perfetto; a name in .gz compresses it")
    parser.add_argument(
        "--serve", action="store_true", help="serve a page about the run meanwhile, and tell its address first"
    )
