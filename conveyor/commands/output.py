"""The standard output of a command, for what it was asked for alone.

Law: what modules and jobs print while the command runs goes to the standard error stream.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from conveyor.commands import _CommandError


@contextlib.contextmanager
def output_alone() -> Iterator[BinaryIO]:
    """Give the standard output, and have all else that is printed in the block go to the standard error stream."""
    if sys.stdout is None or sys.stderr is None:
        raise _CommandError("results need a standard output, and messages a standard error stream: one is closed")
    sys.stdout.flush()
    at = sys.stdout.fileno()
    output = os.fdopen(os.dup(at), "wb")
    os.dup2(sys.stderr.fileno(), at)
    try:
        yield output
        output.flush()
    finally:
        sys.stdout.flush()
        os.dup2(output.fileno(), at)
        # What could not be written is told of already.
        with contextlib.suppress(OSError):
            output.close()
