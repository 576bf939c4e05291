"""The meaning of a job's return value, and several fused jobs as one callable.

Law: no processes and no pickling.  The inline engine and the workers share these rules, so they cannot differ.  A None
is dropped unless `keep_none`.  A generator gives each value that it yields.  Any other value is one output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from types import GeneratorType

from conveyor._lean.typing import Any


def outputs_of(returned: Any, keep_none: bool) -> Iterator[Any]:
    """Yield the outputs that a job's return value means.

    >>> list(outputs_of(3, keep_none=False)), list(outputs_of(None, keep_none=False))
    ([3], [])
    >>> list(outputs_of((letter for letter in "ab"), keep_none=False))
    ['a', 'b']
    """
    if isinstance(returned, GeneratorType):
        yield from returned
    elif returned is not None or keep_none:
        yield returned


def is_generator_function(call: Any) -> bool:
    """Whether this is a function or method whose call gives a generator.

    >>> is_generator_function(outputs_of), is_generator_function(len)
    (True, False)
    """
    code = getattr(getattr(call, "__func__", call), "__code__", None)
    return code is not None and bool(code.co_flags & _CO_GENERATOR)


# As `inspect` has it, which is slow to import.
_CO_GENERATOR = 0x20
# Types of return values that may not be one output.
_SPECIAL = frozenset({GeneratorType, type(None)})


class StageError(Exception):
    """One of several fused jobs raised; its exception is the `__cause__`.

    `items` holds the item that the job was called with.  It is empty where a generator raised.
    """

    def __init__(self, processor: str, *items: Any) -> None:
        super().__init__()
        self.processor = processor
        self.items = items


class Fused:
    """Several jobs as one callable: the outputs of each are the items of the next.

    Each of `stages` is the name of a job, the job, and its `keep_none`.

    >>> Fused([("strip", str.strip, False), ("int", int, False)])(" 7 ")
    7
    """

    def __init__(self, stages: list[tuple[str, Callable[[Any], Any], bool]]) -> None:
        self._names = [name for name, _, _ in stages]
        self._jobs = tuple(job for _, job, _ in stages)
        self._keep_none = [keep_none for _, _, keep_none in stages]

    @property
    def named(self) -> list[tuple[str, Callable[[Any], Any]]]:
        return list(zip(self._names, self._jobs, strict=True))

    @property
    def last(self) -> str:
        return self._names[-1]

    def __call__(self, item: Any) -> Any:
        return self._run(self._jobs, item)

    def over(self, items: list[Any]) -> Iterable[Any]:
        """Return the outputs of all items, up to the first item at which a job raises.

        Each job is called with all items before the next job is.  That is faster than one item after the other.

        >>> list(Fused([("strip", str.strip, False), ("int", int, False)]).over([" 7 ", "8"]))
        [7, 8]
        """
        values: list[Any] = items
        error: StageError | None = None
        for index, job in enumerate(self._jobs):
            given: list[Any] = []
            try:
                # `map` would not do: a StopIteration that the job raises would end it in silence.
                for value in values:
                    given.append(job(value))
            except BaseException as cause:
                # This replaces the error of an earlier job, which was raised at a later item.
                error = StageError(self._names[index], values[len(given)])
                error.__cause__ = cause
            values = given
            if not _SPECIAL.isdisjoint(map(type, values)):
                return _then_raise(error, (self._after(index, value) for value in values))
        return values if error is None else _then_raise(error, values)

    def _after(self, index: int, value: Any) -> Any:
        """Return what the jobs after number `index` make of its return value, as a job would return it."""
        jobs = self._jobs[index + 1 :]
        if value is None and not self._keep_none[index]:
            return _nothing() if self._keep_none[-1] else None
        if type(value) is GeneratorType:
            return self._each(value, len(jobs))
        return self._run(jobs, value)

    def _run(self, jobs: tuple[Callable[[Any], Any], ...], value: Any) -> Any:
        """Return what the last jobs make of a value, as a job would return it."""
        # If a call raises, the length of the rest tells which call it was.  Counting would be slower.
        calls = iter(jobs)
        try:
            for call in calls:
                value = call(value)
                if value is None:
                    if not self._keep_none[-1 - length_hint(calls)]:
                        return _nothing() if self._keep_none[-1] else None
                elif type(value) is GeneratorType:
                    break
            else:
                return value
        except BaseException as error:
            raise StageError(self._names[-1 - length_hint(calls)], value) from error
        return self._each(value, length_hint(calls))

    def _each(self, generator: Iterator[Any], left: int) -> Iterator[Any]:
        """Yield the outputs of the `left` last jobs for each value of a generator."""
        name, jobs = self._names[-1 - left], self._jobs[len(self._jobs) - left :]
        while True:
            try:
                value = next(generator)
            except StopIteration:
                return
            except BaseException as error:
                raise StageError(name) from error
            if not jobs:
                yield value
                continue
            value = self._run(jobs, value)
            if type(value) is GeneratorType:
                yield from value
            elif value is not None or self._keep_none[-1]:
                yield value


def _then_raise(error: StageError | None, values: Iterable[Any]) -> Iterator[Any]:
    yield from values
    if error is not None:
        raise error


def _nothing() -> Iterator[Any]:
    yield from ()
