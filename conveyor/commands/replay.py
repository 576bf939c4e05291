"""The command `replay`: drive the core through a recorded run, and print how that went.

Law: says the same of the same recording, and where the core decides otherwise, the first event at which it does.
"""

from __future__ import annotations

import argparse
import json

from conveyor import __version__
from conveyor._lean.short_repr import counted
from conveyor.commands import _CommandError, show
from conveyor.core.recording import RecordingError, Replay


def main(options: argparse.Namespace) -> int:
    """Replay a recording, and print how that went."""
    try:
        with open(options.file, "rb") as file:
            recording = Replay(file)
            difference = recording.run()
    except (OSError, RecordingError) as error:
        raise _CommandError(f"{options.file} cannot be replayed: {error}") from None
    if recording.version != __version__:
        show(f"It was recorded with Conveyor {recording.version}; this is {__version__}.")
    if difference is not None:
        show(f"Event {difference.event}, {difference.kind} at {difference.at:.6f} s: the core decides otherwise.")
        for title, commands in (("recorded", difference.recorded), ("replayed", difference.replayed)):
            show(f"{title}:")
            for command in ["the core raised an error"] if commands is None else commands:
                show(f"    {command if isinstance(command, str) else json.dumps(command)}")
        return 1
    cut = "  Its last line was cut off." if recording.cut else ""
    show(
        f"{counted(recording.events, 'event')} and {counted(recording.commands, 'command')} "
        f"in {recording.seconds:.3f} s: "
        f"the core decides as it did.{cut}"
    )
    return 0
