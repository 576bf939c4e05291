"""The methods of a `Pipeline` that tasks of an event loop await.

Law: nothing of `asyncio` is imported before one of them is called.  `event_loop.py` and `async_stream.py` have what
they do.
"""

from __future__ import annotations

import types
from collections.abc import AsyncIterable, Iterable

from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

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

    # For type checkers: what comes of each item stands beside it, or in its place.

    @overload
    def astream(
        self,
        items: AsyncIterable[In] | Iterable[In] | In,
        *,
        with_input: Literal[False] = False,
        return_exceptions: Literal[False] = False,
    ) -> AsyncStream[Out]: ...

    @overload
    def astream(
        self,
        items: AsyncIterable[In] | Iterable[In] | In,
        *,
        with_input: Literal[False] = False,
        return_exceptions: Literal[True],
    ) -> AsyncStream[Out | Exception]: ...

    @overload
    def astream(
        self,
        items: AsyncIterable[In] | Iterable[In] | In,
        *,
        with_input: Literal[True],
        return_exceptions: Literal[False] = False,
    ) -> AsyncStream[tuple[In, list[Out]]]: ...

    @overload
    def astream(
        self,
        items: AsyncIterable[In] | Iterable[In] | In,
        *,
        with_input: Literal[True],
        return_exceptions: Literal[True],
    ) -> AsyncStream[tuple[In, list[Out] | Exception]]: ...

    @overload
    def astream(
        self, items: AsyncIterable[In] | Iterable[In] | In, *, with_input: bool, return_exceptions: bool
    ) -> AsyncStream[Any]: ...

    def astream(
        self,
        items: AsyncIterable[In] | Iterable[In] | In,
        *,
        with_input: bool = False,
        return_exceptions: bool = False,
    ) -> AsyncStream[Any]:
        """Send items through, and return an asynchronous iterator over the results, as they come.

        `items` is an asynchronous iterable, or what `stream` takes.  The loop iterates over the former, and over a
        list, tuple, range, set or dict.  A thread iterates over any other iterable.  No more items are pulled
        ahead than the pipes hold.  Results come in the order of the input; with `ordered=False`, as soon as they are
        there.

        - `with_input` (False): each result is a pair of the item and the list of its outputs, which is empty where it
          was filtered.
        - `return_exceptions` (False): an item that fails has its error in the place of its outputs, as in
          `asyncio.gather`, and the stream goes on.  With `on_error`, so has an item of which nothing has come.

        Each item is submitted, so others may submit meanwhile, and astream takes the pipelines that `submit` takes.  A
        pipeline that is not open is opened with the first result that is asked for, and closed at the end.  What is
        returned is an asynchronous context manager, too, and has `aclose`: both give up the rest.

        Raises TypeError for flags it cannot use, and RuleError (rule 9) where a Processor has outputs that belong to no
        single item, both at once.  The iterator raises the errors of `run`, each in the place of the results, and
        nothing comes after it.

        >>> import asyncio
        >>> from conveyor import Pipeline, Processor
        >>> async def main(**flags):
        ...     pipeline = Pipeline(engine="inline").add(Processor(len))
        ...     return [each async for each in pipeline.astream(["a", "bc"], **flags)]
        >>> asyncio.run(main()), asyncio.run(main(with_input=True))
        ([1, 2], [('a', [1]), ('bc', [2])])
        """
        from conveyor.async_stream import new_stream
        from conveyor.given import given_of

        given = given_of(items, with_input, return_exceptions)
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
