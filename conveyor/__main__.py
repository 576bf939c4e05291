"""The commands of `python -m conveyor`.

Law: each sub-command is a function that takes the parsed arguments and returns the exit status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conveyor import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m conveyor", description="Tools for pipelines of Conveyor.")
    parser.add_argument("--version", action="version", version=f"Conveyor {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    replaying = commands.add_parser(
        "replay",
        help="drive the core through a recorded run, and say where it decides otherwise",
        description="Drive the core through a run that was recorded with CONVEYOR_RECORD=FILE.  The exit status is 0 "
        "where the core decides as it did then, 1 where it does not, and 2 where the file cannot be read.",
    )
    replaying.add_argument("file", help="the recording")
    replaying.set_defaults(command=replay)
    options = parser.parse_args(arguments)
    status: int = options.command(options)
    return status


def replay(options: argparse.Namespace) -> int:
    """Replay a recording, and print how that went."""
    import json

    from conveyor.core.recording import RecordingError, Replay

    try:
        with open(options.file, "rb") as file:
            recording = Replay(file)
            difference = recording.run()
    except (OSError, RecordingError) as error:
        print(f"{options.file} cannot be replayed: {error}", file=sys.stderr)
        return 2
    if recording.version != __version__:
        print(f"It was recorded with Conveyor {recording.version}; this is {__version__}.")
    if difference is not None:
        print(f"Event {difference.event}, {difference.kind} at {difference.at:.6f} s: the core decides otherwise.")
        for title, commands in (("recorded", difference.recorded), ("replayed", difference.replayed)):
            print(f"{title}:")
            for command in ["the core raised an error"] if commands is None else commands:
                print(f"    {command if isinstance(command, str) else json.dumps(command)}")
        return 1
    cut = "  Its last line was cut off." if recording.cut else ""
    print(
        f"{recording.events:,} events and {recording.commands:,} commands in {recording.seconds:.3f} s: "
        f"the core decides as it did.{cut}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
