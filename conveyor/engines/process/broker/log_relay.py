"""What workers say, on its way through the broker.

Law: it goes to the caller at once, between the results and in the order in which it came.  Of what the caller has
not taken yet the broker keeps only so much: what comes beyond is dropped, and the caller is told how many were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from conveyor._lean.typing import Any
from conveyor.engines.process.wire.endpoint import NonblockingEndpoint
from conveyor.engines.process.wire.messages import LogMessage, LogsDropped

KEPT_BYTES = 16 * 1024 * 1024
# What a message weighs besides its text.
OVERHEAD_BYTES = 500


class LogRelay:
    """Passes on what workers say.

    `end` is the broker's end of the channel of the results, `send` sends a message there.
    """

    def __init__(self, end: NonblockingEndpoint, send: Callable[[LogMessage, Any], None]) -> None:
        self._end = end
        self._send = send
        # What is still in this process: how much had been sent when it was, and its size.
        self._kept: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._dropped = 0

    def pass_on(self, message: LogMessage, blobs: list[Any]) -> None:
        """Send it on, or drop it."""
        self.look()
        size = sum(map(len, blobs)) + OVERHEAD_BYTES
        if self._dropped or (self._kept and self._bytes + size > KEPT_BYTES):
            self._dropped += 1
            return
        # A copy: what came in one read is one piece of memory, and would be kept as a whole.
        self._send(message, [bytes(blob) for blob in blobs])
        mark = self._end.sent
        if self._end.left < mark:
            self._kept.append((mark, size))
            self._bytes += size

    def look(self) -> None:
        """Take in what has left; once there is room again, say how many were dropped."""
        if self._kept:
            left = self._end.left
            while self._kept and self._kept[0][0] <= left:
                self._bytes -= self._kept.popleft()[1]
        if self._dropped and self._bytes <= KEPT_BYTES // 2:
            # Not sooner, lest every other one be about those dropped.
            self.tell()

    def tell(self) -> None:
        """Say how many were dropped, if any."""
        if self._dropped:
            self._send(LogsDropped(self._dropped), ())
            self._dropped = 0
