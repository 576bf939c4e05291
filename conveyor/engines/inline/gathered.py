"""What comes of each item of a run, gathered, in the inline engine.

Law: an item goes the whole way before the next one is pulled, so what comes of it is all that comes meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.base import Gathering, RunProgress
from conveyor.engines.inline.nodes import InlineStep, Walk
from conveyor.errors import FailedItem, ProcessorError, ResultError

if TYPE_CHECKING:
    from conveyor.engines.inline.session import Session


class InlineGatherer:
    """Makes a list of results of what comes of an item; it is told what is given up meanwhile."""

    def __init__(self, session: Session, progress: RunProgress, gathering: Gathering) -> None:
        self._session = session
        self._progress = progress
        self._gathering = gathering
        # The error of what was given up last of the item at hand.
        self._skipped: ProcessorError | None = None

    def fail(self, failed: FailedItem) -> None:
        """Take in what was given up."""
        self._skipped = failed.error
        self._session.fail(failed)

    def judge(self, given_up: int, items: int, ended: bool) -> None:
        """Raise TooManyFailuresError where more was given up than may be."""
        self._session.judge(given_up, items, ended)

    def results_of(self, walk: Walk, source: Generator[Any, None, None]) -> Generator[list[Any], None, None]:
        """Yield the results of each item of a source that gives it with its copy."""
        with contextlib.closing(source):
            for item, copy in source:
                outcome = self._outcome_of(walk, copy)
                outputs = [outcome] if isinstance(outcome, BaseException) else outcome
                if outputs is outcome:
                    self._progress.results += len(outputs)
                yield [(item, outcome)] if self._gathering.with_input else outputs
                del item, copy, outcome, outputs
        # No `finish` of such a pipeline gives anything.
        for _ in walk.results_of_end():
            pass

    def _outcome_of(self, walk: Walk, item: Any) -> list[Any] | BaseException:
        """Return the outputs of an item, or its error."""
        self._skipped = None
        try:
            outputs = list(walk.results_of(item))
        except (ProcessorError, ResultError) as error:
            # What it has left would come with the next one.
            walk.forget()
            if not self._gathering.return_exceptions:
                raise
            if isinstance(error, ProcessorError):
                self._give_up(walk, error)
            return error
        return outputs if outputs or not self._gathering.return_exceptions else self._skipped or outputs

    def _give_up(self, walk: Walk, error: ProcessorError) -> None:
        """Count an item that has failed at a Processor without a policy."""
        steps = [part for part in walk.parts if isinstance(part, InlineStep)]
        step = next(each for each in steps if each.node.name == error.processor)
        number = error.number or 0
        step.note_given_up(
            FailedItem(error.processor, number, number, error.item, error, error.attempts, time.time()), 1
        )
