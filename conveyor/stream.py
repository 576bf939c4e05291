"""Streams, for threads and for tasks: the results of many items, as they come.

Law: only the stream keeps its run alive, so leaving the loop over it ends the run at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from operator import length_hint

from conveyor._lean.typing import TYPE_CHECKING, TypeVar
from conveyor._system.signals import interrupts_held
from conveyor.errors import StateError

if TYPE_CHECKING:
    from conveyor.operations import Running

Out = TypeVar("Out")


class Stream(Iterator[Out]):
    """The results of one run, as they come: an iterator, and a context manager that closes it.

    Dropping a stream closes it too.  `next` and the loop raise the errors of `run`.  One thread at a time takes
    results; another one that asks meanwhile gets StateError.

    >>> from conveyor import Pipeline, Processor
    >>> with Pipeline(engine="inline").add(Processor(len)).stream(["a", "bc", "def"]) as lengths:
    ...     next(lengths), next(lengths)  # leaving the block gives up the rest
    (1, 2)
    """

    # Users import it from there.
    __module__ = "conveyor.pipeline"

    def __init__(self, running: Running) -> None:
        self._running = running
        self._results: Generator[Out, None, None] = running.results()
        # The thread that takes results, as far as is known.
        self._taker = threading.get_ident()
        next(self._results)

    def __iter__(self) -> Iterator[Out]:
        self._taker = threading.get_ident()
        return self._results

    def __next__(self) -> Out:
        self._taker = threading.get_ident()
        try:
            return next(self._results)
        except ValueError as error:
            if self._running.is_busy(error):
                raise StateError(
                    "another thread waits for the next result of this stream: take results in one thread"
                ) from None
            raise

    def close(self) -> None:
        """End the run and give up the results that nobody has taken.

        If the pipeline was not open before, its workers end too.  After the last result there is nothing to give up:
        then the jobs' `finish`, whose outputs are dropped, and `teardown` get the time that they need.

        Any thread may call this.  A thread that waits for the next result gets StateError.  Raises ProcessorError where
        `finish` or `teardown` raises.

        >>> from itertools import count
        >>> from conveyor import Pipeline, Processor
        >>> stream = Pipeline(engine="inline").add(Processor(str)).stream(count())
        >>> next(stream), stream.close(), list(stream)
        ('0', None, [])
        """
        try:
            # The jobs may take long, so a Ctrl-C is not kept back meanwhile.
            self._running.conclude()
        finally:
            with interrupts_held():
                self._give_up()

    def _give_up(self) -> None:
        if self._taker == threading.get_ident():
            try:
                self._results.close()
            except ValueError as error:
                if not self._running.is_busy(error):
                    raise
                self._running.end()
        else:
            # Not by way of the generator, which that thread may resume at any moment.
            self._running.end()
            with contextlib.suppress(ValueError):
                deque(self._running.rest, maxlen=0)

    @property
    def _at_hand(self) -> int:
        """How many results have come that nobody has taken, as far as is known without asking for more."""
        return length_hint(self._running.rest)

    def __enter__(self) -> Stream[Out]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[Out]):
    """The results of many items, as they come: an asynchronous iterator, and a context manager that closes it.

    Dropping a stream closes it too.  The loop raises the errors of `run`.  One task at a time takes results; another
    one that asks meanwhile gets StateError.

    >>> import asyncio
    >>> from conveyor import Pipeline, Processor
    >>> async def first():
    ...     async with Pipeline(engine="inline").add(Processor(len)).astream(["a", "bc", "def"]) as lengths:
    ...         return await anext(lengths)
    >>> asyncio.run(first())
    1
    """

    # Users import it from there.
    __module__ = "conveyor.pipeline"

    def __init__(self, results: AsyncGenerator[Out, None]) -> None:
        self._results = results

    def __aiter__(self) -> AsyncIterator[Out]:
        return self._results

    async def __anext__(self) -> Out:
        with _explained():
            return await self._results.__anext__()

    async def aclose(self) -> None:
        """Give up the results that nobody has taken.

        If the stream has opened the pipeline, its workers end too.  Raises StateError while another task waits for the
        next result.

        >>> import asyncio
        >>> from itertools import count
        >>> from conveyor import Pipeline, Processor
        >>> async def first():
        ...     stream = Pipeline(engine="inline").add(Processor(str)).astream(count())
        ...     try:
        ...         return await anext(stream)
        ...     finally:
        ...         await stream.aclose()
        >>> asyncio.run(first())
        '0'
        """
        with _explained():
            await self._results.aclose()

    async def __aenter__(self) -> AsyncStream[Out]:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # A job's own error is never one: it is the cause of a ProcessorError.
        if not str(error).endswith("asynchronous generator is already running"):
            raise
        raise StateError(
            "another task waits for the next result of this stream: take results, and close it, in one task"
        ) from None
