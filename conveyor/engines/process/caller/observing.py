"""What the user asked to be told of a pipeline: the debug log, and a recording.

Law: it is asked once, when a pipeline is opened.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from itertools import count

from conveyor.engines.process.broker.observing import RECORD_VARIABLE
from conveyor.errors import ProcessError

_recordings = count(1)


def story_wanted() -> bool:
    """Return whether the logger "conveyor" takes records of the level DEBUG."""
    logging = sys.modules.get("logging")
    return logging is not None and bool(logging.getLogger("conveyor").isEnabledFor(logging.DEBUG))


def new_recording() -> str | None:
    """Return the path of a new, empty file to record to; None where no recording is wanted.

    The second pipeline of this process gets `FILE.2`, the third `FILE.3`.  Processes that `multiprocessing` started do
    not record.  Raises ProcessError where the file cannot be written.
    """
    wanted = os.environ.get(RECORD_VARIABLE)
    if not wanted or multiprocessing.parent_process() is not None:
        return None
    number = next(_recordings)
    path = os.path.abspath(wanted if number == 1 else f"{wanted}.{number}")
    try:
        with open(path, "wb"):
            return path
    except OSError as error:
        raise ProcessError(
            f"{RECORD_VARIABLE}={wanted}: the recording cannot be written ({error}). Remedy: name a file in a folder "
            f"that this process may write to, or unset {RECORD_VARIABLE}."
        ) from error
