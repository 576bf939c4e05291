"""A run of the thread engine that gives out what comes of each item beside it.

Law: all is as in the process engine.  A job gets a copy of the item, so that the item is as the input gave it when it
is given out.
"""

from __future__ import annotations

from conveyor._lean.typing import Any
from conveyor.engines.process.caller.gathered import GatheredRun, GatheredSource
from conveyor.engines.process.caller.source import Input
from conveyor.engines.process.wire import messages
from conveyor.engines.thread.items import gathered, size_of, snapshot, taken
from conveyor.engines.thread.run import ThreadInput, ThreadRun, ThreadSource


class _KeptInput(ThreadInput):
    """The caller's items, of which the jobs get copies."""

    freeze = staticmethod(snapshot)
    weigh = staticmethod(size_of)
    # A copy is made of each before the next one is asked for, or it is one already.
    open, pull = Input.open, Input.pull


class _CopyingSource(ThreadSource):
    """Hands out copies of the items."""

    input_kind = _KeptInput

    def _encoded(self, items: list[Any]) -> Any:
        return super()._encoded(list(map(snapshot, items)))


class GatheredThreadSource(GatheredSource, _CopyingSource):
    """Keeps the items, and hands out copies of them."""


class GatheredThreadRun(GatheredRun, ThreadRun):
    """The run, as the consumer sees it."""

    def _values_of(self, message: messages.ItemResults, blobs: list[Any]) -> list[Any]:
        items, refers = gathered(message.spec)
        if not refers:
            return items
        return [self._taken(item, lineage[0]) for item, lineage in zip(items, message.lineages, strict=True)]

    def _taken(self, item: Any, origin: int) -> Any:
        """Return a result; one that has to be copied and cannot be is the failure of its item."""
        try:
            return taken(item)
        except TypeError as error:
            if not self._gatherer.return_exceptions:
                raise
            self._gatherer.mark(origin, error)
            return None
