"""What runs in a worker process: the job, and everything around it."""

from __future__ import annotations

from conveyor._lean.typing import Any
from conveyor.engines.process.system.descendants import prctl


def run_worker(*arguments: Any) -> None:
    """Call `main.main`; only the process that does is to import it, or one that has called `preload`."""
    from conveyor.engines.process.worker import main

    main.main(*arguments)


def preload() -> None:
    """Import what workers need, or may need: once, before they, or a broker that forks them, are forked.

    The package may be replaced while a program runs, and no worker is to be half old and half new.
    """
    from conveyor.engines.process.worker import main, print_capture  # noqa: F401

    prctl()
