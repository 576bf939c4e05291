"""What runs in the broker process: everything between the caller and the workers."""

from __future__ import annotations

from conveyor._lean.typing import Any


def run_broker(*arguments: Any) -> None:
    """Call `broker.main`; only the process that does is to import it, or one that forks the broker."""
    from conveyor.engines.process.broker import broker

    broker.main(*arguments)
