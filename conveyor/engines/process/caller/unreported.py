"""Results that the consumer has taken, and of which the broker has not heard.

Law: a report makes room for as many results more, so each costs a message; and whoever waits for room is not kept
waiting.
"""

from __future__ import annotations

import math

from conveyor._system.clock import time
from conveyor.engines.process.wire.messages import Consumed
from conveyor.graph.plan import SinkNode

# Where the last report is not older, the consumer takes its results at once.  Of those that came in one message, it
# then reports so many together, although of a small pipe each by itself would be worth a message.
AT_ONCE_SECONDS = 0.005
FEW_RESULTS = 8


class Unreported:
    """What is to be in the next report, and when that is due.

    >>> unreported = Unreported(SinkNode(index=3, bound=2, bound_bytes=1_000_000))
    >>> unreported.add(results=1, size=5), unreported.add(results=2, size=10)
    (True, True)
    >>> unreported.report(run=7).items, unreported.results
    (3, 0)
    """

    def __init__(self, sink: SinkNode) -> None:
        self._worth_results = max(1, sink.bound // 4)
        self._worth_bytes = max(1, sink.bound_bytes // 8)
        self.results = 0
        self._bytes = 0
        self._within = math.inf
        self._reported_at = -math.inf

    def stride(self, results: int, size: int) -> int:
        """Return how many of so many results, of so many bytes, the consumer is given at a time."""
        if size > self._worth_bytes:
            return max(1, min(self._worth_results, self._worth_bytes * results // size))
        return self._worth_results

    def add(self, results: int, size: int, behind: int = 0) -> bool:
        """Take in that results were taken, with `behind` of the same message to come; return whether to report."""
        self.results += results
        self._bytes += size
        if self._bytes >= self._worth_bytes:
            return True
        if behind and self.results < FEW_RESULTS and time.monotonic() < self._reported_at + AT_ONCE_SECONDS:
            return False
        return self.results >= self._worth_results

    def hurry(self, seconds: float) -> None:
        """Take in that a report is due where no message comes for so long."""
        self._within = min(seconds, self._within)

    @property
    def patience(self) -> float:
        """For how many seconds to wait for a message before a report."""
        return self._within if self.results else math.inf

    def report(self, run: int) -> Consumed:
        """Return the message, and begin anew."""
        message = Consumed(run, self.results, time.process_time())
        self.results = self._bytes = 0
        self._within = math.inf
        self._reported_at = time.monotonic()
        return message
