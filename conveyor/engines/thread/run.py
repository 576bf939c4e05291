"""One stream of items through a session of threads, and the source that feeds it.

Law: both are those of the process engine, with other ways to keep an item: it goes on as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from conveyor._lean.typing import Any
from conveyor.engines.process.caller.run import Run
from conveyor.engines.process.caller.source import Input, Source
from conveyor.engines.process.wire.codec import ATOMS
from conveyor.engines.thread.items import Blob, gathered, size_of, size_of_all, snapshot, taken, without_twins


class ThreadInput(Input):
    """The caller's items, which go on as they are."""

    freeze = staticmethod(snapshot)
    weigh = staticmethod(size_of)

    def open(self) -> Iterator[Any]:
        items = self._items
        if self.is_prompt and isinstance(items, list | tuple):
            first = [item for item in items[:64] if type(item) not in ATOMS]
            # Each is given as an item of its own, whatever a job does to the others.
            self.detector.repeats = self.detector.repeats or len(set(map(id, first))) < len(first)
        return super().open()

    def pull(self, items: Iterator[Any], wanted: int, stoppable: bool) -> None:
        repeated = self.detector.repeats
        super().pull(items, wanted, stoppable)
        if self.is_prompt:
            if repeated:
                self.pulled = [snapshot(item) for item in self.pulled]
        elif wanted == 1 and self.pulled and (self.detector.undecided or self.detector.repeats):
            # Whoever gives it may change it when the next item is asked for.
            self.pulled[0] = snapshot(self.pulled[0])


class ThreadSource(Source):
    """What feeds one run; `takes` is how many takers each item has at most."""

    input_kind = ThreadInput
    takes = 1

    def _encoded(self, items: list[Any]) -> Any:
        kinds = set(map(type, items))
        items = without_twins(items, kinds)
        return Blob(items, size_of_all(items, kinds), 1)


class ThreadRun(Run):
    """One stream of items through the session."""

    _owner: Any

    def _decoded(self, spec: Any, blobs: list[Any]) -> list[Any]:
        items, refers = gathered(spec)
        return [taken(item) for item in items] if refers else items

    def cancel(self) -> None:
        if not (self.over or self._owner.ended or self._owner.is_forked_copy):
            super().cancel()
            self._owner.settle()
