"""The event loop of an async job, for code that is not async.

Law: a loop belongs to one thread and one job.  It is made when it is first needed, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import closing, contextmanager

from conveyor._lean.typing import Any

_END = object()


@contextmanager
def loop_hidden() -> Iterator[None]:
    """Have code in the block see no running loop in this thread, so that it can run one itself."""
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)


class EventLoop:
    """Runs coroutines to their end; also while another loop runs in this thread, as in a notebook.

    >>> async def double(item):
    ...     return item * 2
    >>> loop = EventLoop()
    >>> loop.result_of(double(4)), loop.result_of(5)
    (8, 5)
    >>> loop.close()
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Return what an awaitable gives."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        with loop_hidden():
            return self._loop.run_until_complete(awaitable)

    def result_of(self, value: Any) -> Any:
        """Return what a value gives that may be awaited, or the value; of an async generator an iterator."""
        if hasattr(value, "__aiter__"):
            return self._each(value)
        return self.run(value) if hasattr(value, "__await__") else value

    def _each(self, values: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while (value := self.run(anext(values, _END))) is not _END:
                yield value
        finally:
            # A generator that is left behind the end of its loop was closed with that.
            if self._loop is not None and hasattr(values, "aclose"):
                self.run(values.aclose())

    def close(self) -> None:
        """Cancel what is left of the job's tasks, and give the loop back."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        with loop_hidden(), closing(loop):
            if tasks := asyncio.all_tasks(loop):
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
