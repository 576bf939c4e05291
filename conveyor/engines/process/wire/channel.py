"""A new channel, of the kind that the user or the system asks for.

Law: only who makes channels imports this: a process that gets an end needs the module of that end alone.
"""

from __future__ import annotations

from conveyor._lean.typing import Any
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, NonblockingEndpoint
from conveyor.engines.process.wire.pipe import pipe
from conveyor.engines.process.wire.queue import queue_pair

PIPE, QUEUE = "pipe", "queue"


def channel(kind: str, context: Any) -> tuple[NonblockingEndpoint, BlockingEndpoint]:
    """Return the two ends of a new channel; both may be handed to a process of `context` when it is started."""
    return pipe() if kind == PIPE else queue_pair(context)
