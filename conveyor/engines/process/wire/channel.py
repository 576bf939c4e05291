"""A new channel, of the kind that the user or the system asks for.

Law: only who makes channels imports this: a process that gets an end needs the module of that end alone.
"""

from __future__ import annotations

import errno

from conveyor._lean.typing import Any
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, NonblockingEndpoint
from conveyor.engines.process.wire.pipe import pipe
from conveyor.engines.process.wire.queue import queue_pair
from conveyor.errors import ProcessError

PIPE, QUEUE = "pipe", "queue"
# How a system says that it has no named semaphores, or none for this user.
_NO_SEMAPHORES = {errno.ENOSYS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS}


def channel(kind: str, context: Any) -> tuple[NonblockingEndpoint, BlockingEndpoint]:
    """Return the two ends of a new channel; both may be handed to a process of `context` when it is started.

    Raises OSError where there are too many already, ProcessError where the system has no semaphores for a queue.
    """
    if kind == PIPE:
        return pipe()
    try:
        return queue_pair(context)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_SEMAPHORES:
            raise
        raise ProcessError(
            f'channel="queue" needs semaphores, and none can be made here ({error}). Remedy: leave `channel` out, '
            "or let this process write to /dev/shm."
        ) from error
