"""How a user sends items through a `Pipeline`: for a list, or a stream, of results.

Law: the operations themselves are in `operations.py`; here is what a user calls, and what type checkers know of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, Literal, overload
from conveyor.errors import OF_THE_PROGRAM
from conveyor.stats import PROGRESS_VARIABLE, Progress
from conveyor.stream import Stream

if TYPE_CHECKING:
    # Type checkers bring this module with them.  Only its TypeVar has defaults before Python 3.13.
    from typing_extensions import TypeVar

    from conveyor.operations import Lifecycle
    from conveyor.progress import Watch

    Shows = bool | Literal["steps"] | Callable[[Progress], object] | None
else:
    from conveyor._lean.typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class _Sending(Generic[In, Out]):
    """The methods of a `Pipeline` that send items through it."""

    _lifecycle: Lifecycle

    # For type checkers: what comes of each item stands beside it, or in its place.

    @overload
    def run(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: Literal[False] = False,
        return_exceptions: Literal[False] = False,
    ) -> list[Out]: ...

    @overload
    def run(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: Literal[False] = False,
        return_exceptions: Literal[True],
    ) -> list[Out | Exception]: ...

    @overload
    def run(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: Literal[True],
        return_exceptions: Literal[False] = False,
    ) -> list[tuple[In, list[Out]]]: ...

    @overload
    def run(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: Literal[True],
        return_exceptions: Literal[True],
    ) -> list[tuple[In, list[Out] | Exception]]: ...

    @overload
    def run(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: bool,
        return_exceptions: bool,
    ) -> list[Any]: ...

    def run(
        self,
        items: Iterable[In] | In,
        *,
        progress: bool | Literal["steps"] | Callable[[Progress], object] | None = None,
        total: int | None = None,
        with_input: bool = False,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Send all items through the pipeline and return the list of results.

        `items` is any iterable; a str, bytes, bytearray or a value that is not iterable is one item.  The process
        engine iterates over it in a thread of its own.

        - `progress` (None): True shows on the standard error stream how far the run is, and "steps" also what each
          Processor does.  A callable is called with a `Progress` every 0.25 seconds, in a thread of its own, and at the
          end, in the thread that ends the run.  One that raises is logged and left out.  None and False: nothing, but
          None is True where the environment has `CONVEYOR_PROGRESS=1`.
        - `total` (None): the number of items, for `progress` and `stats`.  None: `len` or `operator.length_hint`, where
          the input has that.
        - `with_input` (False): each result is a pair of the item and the list of its outputs, which is empty where it
          was filtered.  Pairs come in the order of the input; with `ordered=False`, as soon as they are complete.
        - `return_exceptions` (False): an item that was given up, for an exception of its job, a timeout or the death of
          workers, has its error in the place of its outputs, as in `asyncio.gather`, and the run goes on.  With
          `on_error`, so has an item of which nothing has come.

        Raises TypeError or ValueError for arguments it cannot use, and RuleError (rule 9) where one of the last two is
        True and outputs belong to no single item.  Raises the errors of `open`, and with nothing left running:

        - StateError while another run is going on;
        - ProcessorError when a job fails;
        - SourceError when the input raises, or gives an item that cannot be pickled;
        - TooManyFailuresError when more items are given up than `max_failures` allows;
        - ResultError when a result cannot be unpickled in this process;
        - ProcessError when a process of the pipeline ends unexpectedly.

        Warns with SourceWarning where `items` is a table of pandas or polars, which gives its columns.

        >>> from conveyor import Pipeline, Processor
        >>> Pipeline(engine="inline").add(Processor(len)).run("word")
        [4]
        >>> Pipeline(engine="inline").add(Processor(len)).run(["a", "bc"], with_input=True)
        [('a', [1]), ('bc', [2])]
        """
        # Imported here: a process that only describes a pipeline does not need it.
        from conveyor.given import given_of

        given = given_of(items, with_input, return_exceptions)
        del items
        try:
            return self._lifecycle.run(self, given, _watch_for(progress, total), stacklevel=2)
        except OF_THE_PROGRAM as error:
            raise error.with_traceback(None) from error.__cause__

    @overload
    def stream(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: Literal[False] = False,
        return_exceptions: Literal[False] = False,
    ) -> Stream[Out]: ...

    @overload
    def stream(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: Literal[False] = False,
        return_exceptions: Literal[True],
    ) -> Stream[Out | Exception]: ...

    @overload
    def stream(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: Literal[True],
        return_exceptions: Literal[False] = False,
    ) -> Stream[tuple[In, list[Out]]]: ...

    @overload
    def stream(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: Literal[True],
        return_exceptions: Literal[True],
    ) -> Stream[tuple[In, list[Out] | Exception]]: ...

    @overload
    def stream(
        self,
        items: Iterable[In] | In,
        *,
        progress: Shows = None,
        total: int | None = None,
        with_input: bool,
        return_exceptions: bool,
    ) -> Stream[Any]: ...

    def stream(
        self,
        items: Iterable[In] | In,
        *,
        progress: bool | Literal["steps"] | Callable[[Progress], object] | None = None,
        total: int | None = None,
        with_input: bool = False,
        return_exceptions: bool = False,
    ) -> Stream[Any]:
        """Send items through the pipeline and return an iterator over the results, as they come.

        The pipeline pulls no more items ahead than its pipes hold.  Closing the iterator, or dropping it, gives up the
        rest.  The other arguments are those of `run`.  Raises the errors of `run`, at once or from the iterator.

        >>> from conveyor import Pipeline, Processor
        >>> next(Pipeline(engine="inline").add(Processor(len)).stream(["a", "bc"]))
        1
        """
        # Imported here: a process that only describes a pipeline does not need it.
        from conveyor.given import given_of

        given = given_of(items, with_input, return_exceptions)
        del items
        return Stream(self._lifecycle.stream(self, given, _watch_for(progress, total), stacklevel=2))


def _watch_for(progress: Any, total: Any) -> Watch | None:
    """Return what watches a run, None where nobody does; raises TypeError or ValueError."""
    if progress is None and total is None and PROGRESS_VARIABLE not in os.environ:
        return None
    # Imported here: most runs are not watched.
    from conveyor.progress import watch_for

    return watch_for(progress, total)
