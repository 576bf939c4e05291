"""What runs in a worker process: the job, and everything around it."""

from __future__ import annotations

from conveyor._lean.typing import Any
from conveyor.engines.process.system.descendants import prctl


def run_worker(*arguments: Any) -> None:
    """Call `main.main`; only the process that does is to import it, or one that has called `preload`."""
    from conveyor.engines.process.worker import main

    main.main(*arguments)


def preload() -> None:
    """Import what each worker needs: once, before workers are forked."""
    from conveyor.engines.process.worker import main  # noqa: F401

    prctl()
