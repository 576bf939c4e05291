"""The methods of a `Pipeline` that tasks of an event loop await.

Law: nothing of `asyncio` is imported before one of them is called.  `event_loop.py` and `async_stream.py` have what
they do.
"""

from __future__ import annotations

import types
from collections.abc import AsyncIterable, Iterable

from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from conveyor.graph.builder import Description
    from conveyor.operations import Lifecycle
    from conveyor.stream import AsyncStream

In = TypeVar("In")
Out = TypeVar("Out")
Opened = TypeVar("Opened", bound="_Asynchronous[Any, Any]")


class _Asynchronous(Generic[In, Out]):
    """The methods of a `Pipeline` for programs of `asyncio`.  They block no event loop; threads open and close."""

    _description: Description
    _lifecycle: Lifecycle

    async def asubmit(self, item: In) -> list[Out]:
        """Send one item through, and return the list that `run([item])` would return, as soon as it is there.

        The pipeline has to be open.  Any number of tasks may submit at once, also in several event loops, and beside
        threads that call `submit`.  The task waits while as many items wait for the first Processor as its Pipe holds.
        To cancel the task is to cancel the item: what no worker has is dropped.

        With the inline engine, a thread works on the items, one at a time.

        Raises what `submit` and the `result` of its Future raise, and asyncio.CancelledError where the pipeline is
        closed with `cancel`, or by an exception that leaves its block.

        >>> import asyncio
        >>> from conveyor import Pipeline, Processor
        >>> async def main():
        ...     async with Pipeline(engine="inline").add(Processor(len)) as pipeline:
        ...         return await asyncio.gather(*(pipeline.asubmit(word) for word in ("one", "three")))
        >>> asyncio.run(main())
        [[3], [5]]
        """
        # Imported here: most programs have no event loop.
        from conveyor.event_loop import submitted

        given: list[Any] = [item]
        del item
        return await submitted(self._lifecycle, given)

    def astream(self, items: AsyncIterable[In] | Iterable[In] | In) -> AsyncStream[Out]:
        """Send items through, and return an asynchronous iterator over the results, as they come.

        `items` is an asynchronous iterable, or what `stream` takes.  The loop iterates over the former, and over a
        list, tuple, range, set or dict.  A thread iterates over any other iterable.  No more items are pulled
        ahead than the pipes hold.  Results come in the order of the input; with `ordered=False`, as soon as they are
        there.

        Each item is submitted, so others may submit meanwhile, and astream takes the pipelines that `submit` takes.  A
        pipeline that is not open is opened with the first result that is asked for, and closed at the end.  What is
        returned is an asynchronous context manager, too, and has `aclose`: both give up the rest.

        Raises RuleError (rule 9), at once, where a Processor has outputs that belong to no single item.  The iterator
        raises the errors of `run`, each in the place of the results, and nothing comes after it.

        >>> import asyncio
        >>> from conveyor import Pipeline, Processor
        >>> async def main():
        ...     return [length async for length in Pipeline(engine="inline").add(Processor(len)).astream(["a", "bc"])]
        >>> asyncio.run(main())
        [1, 2]
        """
        from conveyor.async_stream import new_stream

        given: list[Any] = [items]
        del items
        return new_stream(self, self._lifecycle, self._description, given, stacklevel=2)

    async def __aenter__(self: Opened) -> Opened:
        from conveyor.event_loop import opened, opening

        await opened(self._lifecycle, opening(self._lifecycle, entering=True, stacklevel=2))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        from conveyor.event_loop import left

        await left(self._lifecycle, abort=kind is not None)
