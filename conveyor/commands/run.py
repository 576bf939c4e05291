"""The command `run`: send the lines of the standard input through a pipeline, and write each result as a line.

Law: the standard output has the results and nothing else, each as soon as it has come.  Nothing is gathered.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import BinaryIO, TextIO

from conveyor import ConveyorError, Pipeline, ProcessorError, StateError
from conveyor._lean.dataclasses import replace
from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.commands import FAILED, _CommandError, tell
from conveyor.commands.output import output_alone
from conveyor.commands.target import find_pipeline

if TYPE_CHECKING:
    from conveyor.progress import Watch


def main(options: argparse.Namespace) -> int:
    """Run the pipeline; return 0, or 1 where the run fails."""
    warnings.formatwarning = _warning_text
    with output_alone() as output:
        pipeline = find_pipeline(options.target)
        if options.trace is not None:
            _trace_to(pipeline, options.trace)
        if sys.stdin is None:
            raise _CommandError("there is no standard input to read items from")
        try:
            _run(pipeline, output, options)
        except BrokenPipeError:
            raise
        except ConveyorError as error:
            raise _CommandError(_in_words(error), FAILED) from None
        except OSError as error:
            raise _CommandError(f"the results cannot be written: {error}", FAILED) from None
        finally:
            if options.report is not None:
                _report_to(pipeline, options.report)
        given_up = sum(step.failed for step in pipeline.stats().steps)
        if given_up:
            tell(f"{given_up:,} {'item was' if given_up == 1 else 'items were'} given up; --report FILE tells which")
    return 0


def _run(pipeline: Pipeline[Any, Any], output: BinaryIO, options: argparse.Namespace) -> None:
    items, encoded = (_values, _as_json) if options.json else (_lines, _as_text)
    with contextlib.ExitStack() as stack:
        if options.serve:
            url = stack.enter_context(pipeline.serve())
            tell(f"the page about this run is at {url}")
        stream = stack.enter_context(pipeline.stream(items(sys.stdin), progress=options.progress or None))
        write = _writer(output, stream._running._watch)
        for number, result in enumerate(stream):
            write(_line(result, number, encoded))
            # Whoever reads gets what is there, before this process waits for more.
            if not stream._at_hand:
                output.flush()
        output.flush()


def _writer(output: BinaryIO, watch: Watch | None) -> Callable[[bytes], object]:
    """Return what writes a line: above what is shown, where both are on terminals."""
    if watch is None or not (output.isatty() and sys.stderr.isatty()):
        return output.write

    def write(line: bytes) -> None:
        watch.put("stdout", line.decode(sys.stdout.encoding, "surrogateescape"))

    return write


def _line(result: Any, number: int, encoded: Callable[[Any], bytes]) -> bytes:
    try:
        return encoded(result) + b"\n"
    except Exception as error:
        raise _CommandError(f"result {number} cannot be written: {short(error)}", FAILED) from None


def _as_json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair is JSON only where it is escaped.
        return json.dumps(value).encode()


def _as_text(value: Any) -> bytes:
    return str(value).encode(sys.stdout.encoding, "surrogateescape")


def _lines(source: TextIO) -> Iterator[str]:
    """Yield the lines without their newlines.  Bytes that are no text in this encoding are kept, as in file names."""
    _reconfigure(source, newline="\n", errors="surrogateescape")
    for line in source:
        yield line[: -2 if line.endswith("\r\n") else -1] if line.endswith("\n") else line


def _values(source: TextIO) -> Iterator[Any]:
    """Yield what the lines are in JSON; an empty line is none.  An error names its line, and comes when that is due."""
    _reconfigure(source, encoding="utf-8", newline="\n", errors="surrogateescape")
    for number, line in enumerate(source, start=1):
        # Editors of Windows begin a file with a mark.
        text = line.removeprefix("\ufeff") if number == 1 else line
        if not text.isspace():
            yield _value(text.rstrip("\r\n"), number)


def _value(text: str, number: int) -> Any:
    """Return what the line of this number is in JSON; raises ValueError."""
    try:
        # Bytes that are no text stand there as halves of surrogate pairs.
        text.encode()
        return json.loads(text)
    except UnicodeEncodeError as error:
        reason = f"is not UTF-8 (column {error.start + 1})"
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} (column {error.colno})"
    except RecursionError:
        reason = "cannot be read: it is nested too deeply"
    except ValueError as error:
        # An int may have too many digits.
        reason = f"cannot be read: {error}"
    raise ValueError(f"line {number} {reason}")


def _reconfigure(stream: TextIO, **settings: Any) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(**settings)


def _trace_to(pipeline: Pipeline[Any, Any], path: str) -> None:
    if pipeline.opened:
        raise _CommandError("--trace needs a pipeline that is not open yet, and the module has opened this one")
    try:
        settings = replace(pipeline._settings, trace=path)
    except (TypeError, ValueError) as error:
        raise _CommandError(f"--trace cannot be used: {error}") from None
    pipeline._settings = pipeline._lifecycle.settings = settings


def _report_to(pipeline: Pipeline[Any, Any], path: str) -> None:
    # Where nothing has run, the error says enough.
    with contextlib.suppress(StateError):
        try:
            pipeline.report(path)
        except OSError as error:
            tell(f"the report cannot be written: {error}")


def _in_words(error: Exception) -> str:
    """Return what has failed, with the traceback of what the user has written, where there is one."""
    if isinstance(error, ProcessorError) and error.traceback:
        return f"{error}\n{error.traceback.rstrip()}"
    return str(error)


def _warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as it is shown; a line of this command tells the user nothing."""
    where = "conveyor" if os.path.dirname(filename) == os.path.dirname(__file__) else f"{filename}:{lineno}"
    return f"{where}: {category.__name__}: {message}\n"
