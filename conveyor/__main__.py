"""What `python -m conveyor` and the script `conveyor` run.

Law: imports nothing before it is called, because each process of a pipeline that the script starts imports the script.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; `arguments`: those of this process, if None."""
    try:
        # Imported here: see above.
        from conveyor.commands import run_command

        return run_command(arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
