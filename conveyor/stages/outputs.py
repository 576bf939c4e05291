"""The call of a job: which worker calls, what the return value means, and several fused jobs as one callable.

Law: no processes and no pickling.  The inline engine and the workers share these rules, so they cannot differ.  A None
is dropped unless `keep_none`.  A generator gives each value that it yields.  Any other value is one output.

What a worker is, an engine says once, and a job asks when it likes.  So a job that does not ask costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import length_hint
from types import GeneratorType, MappingProxyType

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.errors import StateError

if TYPE_CHECKING:
    from conveyor.stages.event_loop import EventLoop


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

    Each of `stages` is the name of a job, the job, and its `keep_none`.  `setups`: what the `setup` of each is, where
    any has one.

    >>> Fused([("strip", str.strip, False), ("int", int, False)])(" 7 ")
    7
    """

    def __init__(
        self,
        stages: list[tuple[str, Callable[[Any], Any], bool]],
        setups: tuple[Callable[[], Any] | None, ...] = (),
    ) -> None:
        self._names = [name for name, _, _ in stages]
        self._jobs = tuple(job for _, job, _ in stages)
        self._keep_none = [keep_none for _, _, keep_none in stages]
        self.setups = setups

    def set_up(self) -> list[Any]:
        """Call each `setup`, and return what they return, by the number of the job."""
        states: list[Any] = []
        for index, setup in enumerate(self.setups):
            try:
                states.append(None if setup is None else setup())
            except BaseException as error:
                raise StageError(self._names[index]) from error
        return states

    def stage_at_work(self) -> int:
        """Return the number of the job that called this, by the frames of its thread; the last one where none did."""
        frame = sys._getframe(1).f_back
        while frame is not None:
            stage_of = _STAGE_OF.get(frame.f_code)
            if stage_of is not None and (local := frame.f_locals).get("self") is self:
                return stage_of(len(self._jobs) - 1, local)
            frame = frame.f_back
        return len(self._jobs) - 1

    def name_of(self, stage: int) -> str:
        return self._names[stage]

    @property
    def named(self) -> list[tuple[str, Callable[[Any], Any], Callable[[], Any] | None]]:
        """The name, the job and the `setup` of each."""
        setups = self.setups or (None,) * len(self._jobs)
        return list(zip(self._names, self._jobs, setups, strict=True))

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


# Which job is at work in a frame of a method of `Fused`: from the number of the last job, and the local variables.
_STAGE_OF: dict[Any, Callable[[int, dict[str, Any]], int]] = {
    Fused.set_up.__code__: lambda last, local: local["index"],
    Fused.over.__code__: lambda last, local: local["index"],
    Fused._run.__code__: lambda last, local: last - length_hint(local["calls"]),
    Fused._each.__code__: lambda last, local: last - local["left"],
}


class WorkerRecord:
    """What an engine says of a worker.

    `attempt` changes while a call is made again.  `is_stopping` looks whether the worker is to stop.
    """

    __slots__ = ("attempt", "fused", "index", "is_stopping", "name", "shared", "state")

    def __init__(self, name: str, index: int, job: Any, shared: Mapping[str, Any] | None) -> None:
        self.name = name
        self.index = index
        self.fused: Fused | None = job if isinstance(job, Fused) else None
        self.attempt = 1
        self.state: Any = None
        self.shared: Mapping[str, Any] = MappingProxyType({}) if shared is None else shared
        self.is_stopping: Callable[[], bool] = bool

    def copy(self) -> WorkerRecord:
        """Return the same for one of several calls at once, each of which has an attempt of its own."""
        record = WorkerRecord(self.name, self.index, self.fused, self.shared)
        record.attempt, record.state, record.is_stopping = self.attempt, self.state, self.is_stopping
        return record


class WorkerContext:
    """What a job can know of the worker that calls it: the object that `conveyor.worker()` returns.

    >>> from conveyor import Pipeline, Processor, worker
    >>> def scaled(number):
    ...     return number * worker().state * worker().shared["unit"]
    >>> def factor():
    ...     return 10
    >>> Pipeline(engine="inline", shared={"unit": 2}).add(Processor(scaled, setup=factor)).run([1, 2])
    [20, 40]
    """

    __slots__ = ("_record",)

    def __init__(self, record: WorkerRecord) -> None:
        self._record = record

    @property
    def processor(self) -> str:
        """The name of the Processor, as in errors and statistics."""
        record = self._record
        return record.name if record.fused is None else record.fused.name_of(record.fused.stage_at_work())

    @property
    def index(self) -> int:
        """The place of this worker among those of the Processor, an int from 0 on.

        Whoever replaces the worker gets the same place.  With `workers="auto"` a new worker gets the lowest free one.
        """
        return self._record.index

    @property
    def attempt(self) -> int:
        """Which attempt at the item at hand this is: 1 at first, and one more with each retry.

        A call that its worker did not survive counts, where it is known which one that was.
        """
        return self._record.attempt

    @property
    def stopping(self) -> bool:
        """Whether the pipeline is being closed, or the run was given up: nobody wants what the job still gives."""
        return self._record.is_stopping()

    @property
    def state(self) -> Any:
        """What the `setup` of the Processor has returned in this worker; None without one, and until it returns."""
        record = self._record
        if record.fused is None or record.state is None:
            return record.state
        return record.state[record.fused.stage_at_work()]

    @property
    def shared(self) -> Mapping[str, Any]:
        """The objects of `Pipeline(shared=...)` by their names; empty without any.  Nobody may change them."""
        return self._record.shared

    def __repr__(self) -> str:
        return f"WorkerContext(processor={self.processor!r}, index={self.index}, attempt={self.attempt})"


def awaited(value: Any, loop: EventLoop | None) -> Any:
    """Return what a call has returned or, with a loop, what its coroutine gives."""
    return value if loop is None else loop.result_of(value)


# The worker that this process is, where it is one.
_of_process: WorkerRecord | None = None
# Which worker calls the job that runs: a ContextVar, where several workers share a process.
_of_context: Any = None


def become_worker(record: WorkerRecord | None) -> None:
    """Take in which worker this process is from now on; None: none, and nothing of its job is kept."""
    global _of_process
    _of_process = record
    if _of_context is not None:
        # A job of the process that was forked may have opened the pipeline.
        _of_context.set(record)


def worker_variable() -> Any:
    """Return the ContextVar that tells which worker calls the job that runs."""
    global _of_context
    if _of_context is None:
        # A worker process has no use for it.
        from contextvars import ContextVar

        _of_context = ContextVar("conveyor worker")
    return _of_context


def worker() -> WorkerContext:
    """Return what the worker is that calls this job: its Processor, its index, the attempt and its state.

    A job may call it, and whatever runs in its stead: `setup`, `finish`, `teardown` and `on_error`.

    Raises StateError anywhere else.

    >>> from conveyor import Pipeline, Processor, worker
    >>> def device(item):
    ...     return f"{worker().processor} on cuda:{worker().index}"
    >>> Pipeline(engine="inline").add(Processor(device, workers=2)).run([1, 2, 3])
    ['device on cuda:0', 'device on cuda:1', 'device on cuda:0']
    """
    record: WorkerRecord | None = None if _of_context is None else _of_context.get(None)
    record = record or _of_process
    if record is None:
        raise StateError(
            "conveyor.worker() was called outside of a job, where there is no worker: call it in a job, a `setup`, "
            "`finish`, `teardown` or `on_error`. A thread that a job starts knows its worker where it was started with "
            "`contextvars.copy_context().run`"
        )
    return WorkerContext(record)
