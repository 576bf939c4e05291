"""A job that takes a list and gives each item of it an output, as a job for single items.

Law: no processes and no clock.  The inline engine and the workers share it.  Where the job raises, it is called again
with the halves of the list, so that the item that it cannot take fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set

from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any
from conveyor.stages.processor import Processor, work_of


class PerItem:
    """A job that is called with lists of at most `most` items.

    >>> def halve(numbers):
    ...     return [number / 2 for number in numbers]
    >>> PerItem(halve, most=2)(3)
    1.5
    """

    def __init__(self, call: Callable[[list[Any]], Any], most: int) -> None:
        self._call = call
        self.most = most

    def __call__(self, item: Any) -> Any:
        """Return what the job gives for one item."""
        return _checked(_listed(self._call([item])), 1)[0]

    def over(
        self, part: Callable[[int, int], list[Any]], first: int, stop: int, again: Callable[[], object]
    ) -> Iterator[list[Any]]:
        """Yield what the job gives for the items from `first` to `stop`, in one or more lists, in their order.

        It ends with what the job raises at an item that is alone in its list.  `part` returns some of the items as they
        came, in a list that is the job's; `again` is called before each further call.

        >>> def inverted(numbers):
        ...     return [1 / number for number in numbers]
        >>> numbers = [1, 2, 4]
        >>> list(PerItem(inverted, most=4).over(lambda first, stop: numbers[first:stop], 0, 3, print))
        [[1.0, 0.5, 0.25]]
        """
        parts = [(first, stop)]
        whole = True
        while parts:
            first, stop = parts.pop()
            try:
                if not whole:
                    again()
                values = _listed(self._call(part(first, stop)))
            except BaseException:
                # Whatever ends a call of a worker is the job's: no Ctrl-C comes there.
                if stop - first == 1:
                    raise
                middle = (first + stop) // 2
                parts += [(middle, stop), (first, middle)]
                whole = False
                continue
            # Smaller lists would hide that the job does not do what it says.
            yield _checked(values, stop - first)


class _Other:
    """What a job returned that has no outputs."""

    def __init__(self, text: str) -> None:
        self.text = text


def _listed(returned: Any) -> list[Any] | _Other:
    """Return the outputs that a job returned, in a list."""
    if type(returned) is list:
        return returned
    # These can be gone through, and never mean one output for each item.
    if isinstance(returned, str | bytes | bytearray | Mapping | Set) or not hasattr(returned, "__iter__"):
        return _Other(short(returned))
    return list(returned)


def _checked(values: list[Any] | _Other, number: int) -> list[Any]:
    """Return the outputs that a job gave for so many items; raises TypeError or ValueError unless they are as many."""
    if isinstance(values, _Other):
        raise TypeError(f"{_RULE}, but it returned {values.text}: return a list with an output for each item")
    if len(values) != number:
        outputs = "1 output" if len(values) == 1 else f"{len(values)} outputs"
        items = "1 item" if number == 1 else f"{number} items"
        raise ValueError(f"{_RULE}, but it returned {outputs} for {items}: put None where an item has none")
    return values


_RULE = "with per_item=True the job returns as many outputs as it gets items"


def single_work_of(processor: Processor[Any, Any]) -> Callable[[Any], Any]:
    """Return the callable that a worker calls with each item (with `batch` alone, each list).

    >>> single_work_of(Processor(sorted, batch=8, per_item=True))("b")
    'b'
    """
    call = work_of(processor)
    return PerItem(call, processor.batch or 1) if processor.per_item else call
