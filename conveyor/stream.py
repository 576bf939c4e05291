"""A stream: the results of one run as they come, and the end of that run.

Law: a run is ended once, by whoever comes first: its own loop, another thread, a finalizer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

from conveyor._lean.typing import Any, TypeVar
from conveyor._system.signals import interrupts_held
from conveyor.errors import StateError
from conveyor.operations import ENDING_SECONDS, Claim, Operation, Turn

Out = TypeVar("Out")


class Guard:
    """Ends the session of a pipeline that is dropped, where the pipeline's own finalizer was left half way.

    A Ctrl-C may come at any moment, also before a finalizer can keep it back; Python prints it then, and goes on.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        # The collector may drop it before the pipeline, which then has to say that it was left open.
        self.was_needed = False

    def __del__(self) -> None:
        if not self._session.ended:
            self.was_needed = True
            with interrupts_held(finalizing=True):
                self._session.abort()


class Stream(Iterator[Out]):
    """The results of one run, as they come.

    An iterator, and a context manager that closes it.  Dropping it closes it too.
    """

    # Where users find it.
    __module__ = "conveyor.pipeline"

    def __init__(self, running: Running) -> None:
        # Only the generator keeps the run going, so that a loop that is left by `break` ends it at once.
        self._running = running
        self._results: Generator[Out, None, None] = running.results()
        next(self._results)

    def __iter__(self) -> Iterator[Out]:
        return self._results

    def __next__(self) -> Out:
        try:
            return next(self._results)
        except ValueError as error:
            if _is_busy(error):
                raise StateError("another thread waits for the next result of this stream") from None
            raise

    def close(self) -> None:
        """Give up what has not been taken; where the pipeline was opened for this run alone, end its workers.

        May be called from any thread: whoever waits for the next result gets StateError.
        """
        with interrupts_held():
            try:
                self._results.close()
            except ValueError as error:
                if not _is_busy(error):
                    raise
                self._running.end()

    def __enter__(self) -> Stream[Out]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _is_busy(error: ValueError) -> bool:
    """Whether a generator says that it cannot go on, as it is being executed elsewhere."""
    return error.args == ("generator already executing",)


class Running:
    """A run, and the end of it."""

    def __init__(self, pipeline: Any, turn: Turn, operation: Operation) -> None:
        # Nobody else may have it any more, and it ends what it has opened when it is dropped.
        self._pipeline = pipeline
        self._turn = turn
        self._operation = operation
        self.chunks: Generator[list[Any], None, None] = operation.run.chunks()

    def results(self) -> Generator[Any, None, None]:
        """Yield None at once, then each result; ends the run when it is closed or dropped."""
        try:
            yield None
            for chunk in self.chunks:
                yield from chunk
        finally:
            self.end()

    def end(self) -> None:
        """Give up what has not been taken; does nothing where another thread has ended the run."""
        operation, claim = self._operation, Claim()
        try:
            if not operation.claim(claim):
                # That thread may still be at it.
                operation.wait(ENDING_SECONDS)
            elif operation.run.over:
                if operation.passing:
                    operation.session.close()
            else:
                # A stream that is dropped comes here while it is finalized.
                with interrupts_held(finalizing=True):
                    if operation.passing:
                        # Nobody needs the workers any more, so nobody waits for the item that they are at.
                        operation.session.abort()
                    operation.run.cancel()
                    # Where another thread is in it, that thread leaves it by itself.
                    with contextlib.suppress(ValueError):
                        self.chunks.close()
        finally:
            if operation.claimed(claim):
                self._turn.release(operation)
