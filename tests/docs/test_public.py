"""What is public: every name, where it lives, what it is called with, and what it has.

Law: `PUBLIC` is the whole of it, as text.  A change that a user can see changes that text, on purpose and in the same
commit.  `python3 -m tests.docs.test_public` prints it as it is now, on every Python alike.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
import re
import types
from collections.abc import Iterator
from typing import Any

import conveyor
from conveyor import (
    AbandonedThreadWarning,
    BalancingFork,
    ConveyorError,
    Decision,
    FailedItem,
    GraphEdge,
    GraphNode,
    ImplicitJoinWarning,
    ImplicitPipeWarning,
    ItemTimeoutError,
    JobPicklingError,
    Join,
    MissingMainGuardError,
    Pipe,
    ProcessError,
    Processor,
    ProcessorError,
    Progress,
    RemoteTraceback,
    ReplicatingFork,
    ResultError,
    RuleError,
    SharedResourceWarning,
    SlowCall,
    SourceError,
    SourceStats,
    SourceWarning,
    StartMethodWarning,
    StateError,
    Stats,
    StepStats,
    TooManyFailuresError,
    WorkerDiedError,
    WorkerStats,
)
from tests.helpers.support import TestCase

# A name with its public bases, and the module that it says it is of; then what it is called with and what it has.  A
# field or an attribute of a class is `.name: type`, what is computed `.name -> type`; a field of an error is `.name`.
PUBLIC = """
conveyor.errors.AbandonedThreadWarning(UserWarning)

conveyor.pipeline.AsyncStream(AsyncIterator)
    (results: AsyncGenerator[Out, None])
    .__aenter__() -> AsyncStream[Out]
    .__aexit__(*exception: object)
    .__aiter__() -> AsyncIterator[Out]
    .__anext__() -> Out
    .aclose()

conveyor.stages.BalancingFork(Element)
    (n: int | None = None, *, min: int | None = None, max: int | None = None)
    .n: int | None
    .min: int | None
    .max: int | None
    .auto -> bool

conveyor.errors.ConveyorError(Exception)

conveyor.stats.Decision()
    (its fields, in this order)
    .at: float
    .processor: str
    .before: int
    .after: int
    .reason: str
    .__str__() -> str

conveyor.stages.Element()

conveyor.errors.FailedItem()
    (its fields, in this order)
    .processor: str
    .number: int
    .last: int
    .item: str | None
    .error: ProcessorError
    .attempts: int
    .when: float
    .__str__() -> str

conveyor.diagram.Graph()
    (its fields, in this order)
    .nodes: tuple[GraphNode, ...]
    .edges: tuple[GraphEdge, ...]
    .to_dot() -> str
    .to_mermaid() -> str
    .to_svg() -> str

conveyor.diagram.GraphEdge()
    (its fields, in this order)
    .source: int
    .target: int
    .bound: int | None
    .detail -> str

conveyor.diagram.GraphNode()
    (its fields, in this order)
    .index: int
    .kind: Kind
    .name: str
    .workers: int | None
    .most_workers: int | None
    .batch: int | None
    .detail -> str

conveyor.errors.ImplicitJoinWarning(ImplicitPipeWarning)

conveyor.errors.ImplicitPipeWarning(UserWarning)

conveyor.errors.ItemTimeoutError(ProcessorError, TimeoutError)
    (message: str, *, processor: str, seconds: float, number: int | None, last: int | None, item: str | None = None)
    .seconds

conveyor.errors.JobPicklingError(ConveyorError, TypeError)
    (message: str, processor: str | None)
    .processor

conveyor.stages.Join(Element)
    (n: int | None = None, *, how: Any = 'merge')
    .n: int | None
    .how: How_co
    .__class_getitem__(...)

conveyor.errors.MissingMainGuardError(ConveyorError, RuntimeError)
    (message: str | None = None)

conveyor.stages.Pipe(Element)
    (maxsize: int | None = None, maxbytes: int | None = None)
    .maxsize: int | None
    .maxbytes: int | None
    .bound -> int

conveyor.pipeline.Pipeline()
    (*, engine: Literal['process', 'thread', 'inline', 'dask'] | DaskEngine | None = None, address: str | None = None, start_method: Literal['fork', 'forkserver', 'spawn'] | None = None, channel: Literal['pipe', 'queue'] | None = None, ordered: bool = True, cores: int | None = None, workers: Literal['auto'] | None = None, max_failures: int | float | None = None, keep_failures: int | None = 10000, fuse: bool = False, redact: Callable[[Any], str] | None = None, seed: int | None = None, shared: Mapping[str, Any] | None = None, trace: str | os.PathLike[str] | None = None)
    .__aenter__() -> Opened
    .__aexit__(kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None)
    .__class_getitem__(...)
    .__enter__() -> Pipeline[In, Out]
    .__exit__(kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None)
    .__str__() -> str
    .add(*elements: Any) -> Pipeline[In, Any]
    .astream(items: AsyncIterable[In] | Iterable[In] | In, *, with_input: bool = False, return_exceptions: bool = False) -> AsyncStream[Any]
    .asubmit(item: In) -> list[Out]
    .close(*, cancel: bool = False, timeout: float | None = None)
    .closed -> bool
    .failures -> tuple[FailedItem, ...]
    .graph() -> Graph
    .open() -> Pipeline[In, Out]
    .opened -> bool
    .report(path: str | os.PathLike[str])
    .run(items: Iterable[In] | In, *, progress: bool | Literal['steps'] | Callable[[Progress], object] | None = None, total: int | None = None, with_input: bool = False, return_exceptions: bool = False) -> list[Any]
    .serve(port: int = 0) -> AbstractContextManager[str]
    .stats() -> Stats
    .stream(items: Iterable[In] | In, *, progress: bool | Literal['steps'] | Callable[[Progress], object] | None = None, total: int | None = None, with_input: bool = False, return_exceptions: bool = False) -> Stream[Any]
    .submit(item: In, *, timeout: float | None = None) -> Future[list[Out]]

conveyor.errors.ProcessError(ConveyorError, RuntimeError)
    (message: str, exitcode: int | None = None)
    .exitcode

conveyor.stages.Processor(Element)
    (job: Any = None, *, name: str | None = None, workers: int | Literal['auto'] | None = None, batch: int | None = None, per_item: bool = False, batch_timeout: float | None = None, keep_none: bool = False, retries: int = 0, retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception, backoff: float = 0.1, timeout: float | None = None, on_error: Any = 'raise', max_items: int | None = None, max_workers: int | None = None, concurrency: int | None = None, threads: int | None = None, setup: Callable[[], Any] | None = None)
    .__class_getitem__(...)
    .backoff: float = 0.1
    .batch: int | None = None
    .batch_timeout: float | None = None
    .concurrency: int | None = None
    .finish() -> Any
    .job: Callable[[Any], Any] | None = None
    .keep_none: bool = False
    .max_items: int | None = None
    .max_workers: int | None = None
    .name: str | None = None
    .on_error: Any = 'raise'
    .per_item: bool = False
    .process(item: Any) -> Any
    .restartable: bool = False
    .retries: int = 0
    .retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception
    .setup() -> Any
    .teardown() -> Any
    .thread_safe: bool = False
    .threads: int | None = None
    .timeout: float | None = None
    .workers: int | Literal['auto'] | None = None

conveyor.errors.ProcessorError(ConveyorError)
    (message: str, *, processor: str, phase: str = 'process', number: int | None = None, last: int | None = None, item: str | None = None, kind: str = '', traceback: str = '', attempts: int = 1)
    .processor
    .phase
    .number
    .last
    .item
    .kind
    .traceback
    .attempts

conveyor.stats.Progress()
    (its fields, in this order)
    .done: int
    .total: int | None
    .rate: float | None
    .eta: float | None
    .steps: tuple[StepStats, ...]
    .__str__() -> str

conveyor.errors.RemoteTraceback(Exception)
    (text: str)
    .text
    .__str__() -> str

conveyor.stages.ReplicatingFork(Element)
    (n: int)
    .n: int

conveyor.errors.ResultError(ConveyorError)

conveyor.errors.RuleError(ConveyorError, ValueError)
    (message: str, rule: int)
    .rule

conveyor.errors.SharedResourceWarning(UserWarning)

conveyor.stats.SlowCall()
    (its fields, in this order)
    .number: int
    .seconds: float
    .item: str | None

conveyor.errors.SourceError(ConveyorError)
    (message: str, number: int, item: str | None = None)
    .number
    .item

conveyor.stats.SourceStats()
    (its fields, in this order)
    .pulled: int
    .total: int | None
    .ended: bool

conveyor.errors.SourceWarning(UserWarning)

conveyor.errors.StartMethodWarning(UserWarning)

conveyor.errors.StateError(ConveyorError, RuntimeError)

conveyor.stats.Stats()
    (its fields, in this order)
    .seconds: float
    .cores: int
    .steps: tuple[StepStats, ...]
    .decisions: tuple[Decision, ...]
    .start_method: str | None
    .start_reason: str
    .unfused: tuple[Unfused, ...]
    .cpu_seconds: float
    .source: SourceStats | None
    .results: int
    .history: tuple[Sample, ...]
    .advice: tuple[str, ...]
    .__getitem__(processor: str) -> StepStats
    .__str__() -> str
    .bottleneck -> str | None
    .to_dict(*, history: bool = False) -> dict[str, Any]

conveyor.stats.StepStats()
    (its fields, in this order)
    .processor: str
    .workers: int
    .starting: int
    .most_workers: int
    .items_in: int
    .items_out: int
    .waiting: int
    .bound: int
    .units: int
    .mean: float | None
    .p50: float | None
    .p99: float | None
    .busy: float
    .cpu: float
    .blocked: float
    .stalled: float
    .failed: int
    .retried: int
    .timed_out: int
    .workers_lost: int
    .bytes_waiting: int
    .busy_seconds: float
    .handing_on: float
    .slowest: tuple[SlowCall, ...]
    .worker_stats: tuple[WorkerStats, ...]

conveyor.pipeline.Stream(Iterator)
    .__enter__() -> Stream[Out]
    .__exit__(*exception: object)
    .__iter__() -> Iterator[Out]
    .__next__() -> Out
    .close()

conveyor.errors.TooManyFailuresError(ConveyorError)
    (message: str, failures: int)
    .failures

conveyor.stats.Unfused()
    (its fields, in this order)
    .processor: str
    .reason: str
    .__str__() -> str

conveyor.stages.WorkerContext()
    .attempt -> int
    .index -> int
    .processor -> str
    .shared -> Mapping[str, Any]
    .state -> Any
    .stopping -> bool

conveyor.errors.WorkerDiedError(ProcessorError)
    (message: str, *, processor: str, exitcode: int | None, number: int | None, last: int | None)
    .exitcode

conveyor.stats.WorkerStats()
    (its fields, in this order)
    .number: int
    .pid: int | None
    .busy: float
    .memory: int | None
    .first: int | None
    .last: int | None
    .item: int | None
    .seconds: float | None

conveyor.stages.worker() -> WorkerContext
"""

# One of each error and warning, with all its fields.
ERRORS: tuple[BaseException, ...] = (
    SharedResourceWarning("text"),
    SourceWarning("text"),
    StartMethodWarning("text"),
    ConveyorError("text"),
    RuleError("text", 5),
    StateError("text"),
    JobPicklingError("text", "parse"),
    MissingMainGuardError(),
    ProcessError("text", exitcode=3),
    SourceError("text", 7, "'x'"),
    ResultError("text"),
    ProcessorError(
        "text",
        processor="parse",
        phase="unpickle",
        number=7,
        last=9,
        item="'x'",
        kind="ValueError",
        traceback="Traceback ...",
        attempts=3,
    ),
    WorkerDiedError("text", processor="parse", exitcode=-9, number=7, last=9),
    ItemTimeoutError("text", processor="parse", seconds=1.5, number=7, last=9, item="'x'"),
    TooManyFailuresError("text", 4),
    RemoteTraceback("Traceback ..."),
    ImplicitPipeWarning("text"),
    ImplicitJoinWarning("text"),
    AbandonedThreadWarning("text"),
)

# What is no error, and can be sent to another process as well.
VALUES: tuple[Any, ...] = (
    Pipe(3, maxbytes=100),
    ReplicatingFork(2),
    BalancingFork(max=4),
    Join(2, how="zip"),
    # Whatever fields these have.
    *(
        cls(**{field.name: 1 for field in dataclasses.fields(cls)})
        for cls in (Decision, StepStats, FailedItem, GraphEdge, GraphNode, SlowCall, SourceStats, WorkerStats)
    ),
    Progress(1, 1, 1.0, 1.0),
    Stats(**{field.name: () for field in dataclasses.fields(Stats)}),
)

# What only Conveyor makes: what it is called with is nobody's concern.
MADE_BY_CONVEYOR = ("Stream", "WorkerContext")

# What a `with`, a loop or an index calls.
PROTOCOLS = re.compile(r"__(a?enter|a?exit|a?iter|a?next|await|getitem|contains|len|bool|str|class_getitem)__")


def shown(value: Any) -> str:
    """A default, as a reader would write it."""
    return value.__name__ if isinstance(value, type) else repr(value)


def annotation(value: Any) -> str:
    """A type, as it stands in the source."""
    return value if isinstance(value, str) else inspect.formatannotation(value)


def signature(function: Any, method: bool) -> str:
    """What something is called with, and what it returns."""
    found = inspect.signature(function)
    parameters = list(found.parameters.values())[method:]
    said: list[str] = []
    kinds = [parameter.kind for parameter in parameters]
    for index, parameter in enumerate(parameters):
        kind = parameter.kind
        if kind is kind.KEYWORD_ONLY and not {kind.KEYWORD_ONLY, kind.VAR_POSITIONAL} & set(kinds[:index]):
            said.append("*")
        stars = {kind.VAR_POSITIONAL: "*", kind.VAR_KEYWORD: "**"}.get(kind, "")
        one = f"{stars}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            one += f": {annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            one += f" = {shown(parameter.default)}"
        said.append(one)
        if kind is kind.POSITIONAL_ONLY and kind not in kinds[index + 1 :]:
            said.append("/")
    returned = annotation(found.return_annotation) if found.return_annotation is not found.empty else "?"
    return f"({', '.join(said)})" + (f" -> {returned}" if returned != "None" else "")


def attributes(cls: type) -> dict[str, tuple[Any, type]]:
    """What a class has, beside what its public bases have; and which class that stands in."""
    private = [each for each in cls.__mro__[1:] if each.__name__.startswith("_")]
    found: dict[str, tuple[Any, type]] = {}
    for owner in [*reversed(private), cls]:
        for name, value in vars(owner).items():
            if not name.startswith("_") or PROTOCOLS.fullmatch(name):
                found[name] = value, owner
    return found


def lines_of(cls: Any) -> Iterator[str]:
    """What there is to say of a class, or of a function."""
    if isinstance(cls, types.FunctionType):
        yield f"{cls.__module__}.{cls.__name__}{signature(cls, False)}"
        return
    bases = [base.__name__ for base in cls.__bases__ if base is not object and not base.__name__.startswith("_")]
    yield f"{cls.__module__}.{cls.__name__}({', '.join(bases)})"
    is_value = dataclasses.is_dataclass(cls)
    made_by = next((owner for owner in cls.__mro__ if "__init__" in vars(owner)), object)
    if made_by is cls and cls.__name__ not in MADE_BY_CONVEYOR and isinstance(cls.__init__, types.FunctionType):  # type: ignore[misc]
        # One that is made of the fields is of the module that makes it.
        if cls.__init__.__module__ != "conveyor._lean.dataclasses":  # type: ignore[misc]
            yield "    " + signature(cls.__init__, True)  # type: ignore[misc]
        else:
            yield "    (its fields, in this order)"
    annotations = inspect.get_annotations(cls)
    fields = [field.name for field in dataclasses.fields(cls)] if is_value else []
    for name in fields:
        yield f"    .{name}: {annotation(annotations[name])}"
    for error in ERRORS:
        if type(error) is cls:
            inherited = [vars(other) for other in ERRORS if type(other) in cls.__mro__[1:]]
            yield from (f"    .{name}" for name in vars(error) if not any(name in names for names in inherited))
    for name, (value, owner) in sorted(attributes(cls).items()):
        if name in fields:
            continue
        if name == "__class_getitem__":
            yield "    .__class_getitem__(...)"
        elif isinstance(value, property):
            yield f"    .{name} -> {annotation(inspect.signature(value.fget).return_annotation)}"  # type: ignore[arg-type]
        elif isinstance(value, classmethod | staticmethod):
            yield f"    .{name}{signature(value.__func__, isinstance(value, classmethod))}"
        elif isinstance(value, types.FunctionType):
            yield f"    .{name}{signature(value, True)}"
        else:
            kind = inspect.get_annotations(owner).get(name)
            yield f"    .{name}{f': {annotation(kind)}' if kind is not None else ''} = {shown(value)}"


def public() -> str:
    """All that is public."""
    return "\n\n".join("\n".join(lines_of(getattr(conveyor, name))) for name in sorted(conveyor.__all__))


def fields_of(error: Any) -> Any:
    """All that an error or a value holds."""
    return type(error), getattr(error, "args", None), vars(error)


class Public(TestCase):
    """What is public."""

    maxDiff = None

    def test_it_is_what_is_written_down(self) -> None:
        self.assertEqual(public(), PUBLIC.strip(), "a user can see this: change PUBLIC, or take the change back")

    def test_each_name_can_be_imported_from_its_module(self) -> None:
        for name in conveyor.__all__:
            with self.subTest(name):
                value = getattr(conveyor, name)
                self.assertIs(getattr(importlib.import_module(value.__module__), name), value)

    def test_there_is_an_example_of_every_error(self) -> None:
        public = {name: getattr(conveyor, name) for name in conveyor.__all__}
        errors = {name for name, kind in public.items() if isinstance(kind, type) and issubclass(kind, BaseException)}
        self.assertEqual({type(error).__name__ for error in ERRORS}, errors)

    def test_errors_go_to_another_process_with_their_fields(self) -> None:
        for error in ERRORS:
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                with self.subTest(type(error).__name__, protocol=protocol):
                    again = pickle.loads(pickle.dumps(error, protocol))
                    self.assertEqual(fields_of(again), fields_of(error))
                    self.assertEqual(str(again), str(error))

    def test_values_go_to_another_process(self) -> None:
        for value in VALUES:
            with self.subTest(type(value).__name__):
                self.assertEqual(repr(pickle.loads(pickle.dumps(value))), repr(value))
        processor = pickle.loads(pickle.dumps(Processor(len, batch=2, retries=3)))
        self.assertEqual((processor.job, processor.batch, processor.retries), (len, 2, 3))


class Listing(TestCase):
    """The listing itself: what changes is seen."""

    def test_what_a_class_has(self) -> None:
        class Base:
            def inherited(self) -> int:
                return 1

        class Made(Base):
            size: int = 3
            _private = 4

            def __init__(self, first: int, /, second: str = "a", *rest: float, third: type = int, **more: Any) -> None:
                pass

            def __enter__(self) -> Made:
                return self

            def take(self, *, count: int | None = None) -> list[int]:
                return []

            @property
            def full(self) -> bool:
                return False

            @classmethod
            def make(cls, count: int) -> Made:
                return cls(count)

        self.assertEqual(
            list(lines_of(Made)),
            [
                "tests.docs.test_public.Made(Base)",
                "    (first: int, /, second: str = 'a', *rest: float, third: type = int, **more: Any)",
                "    .__enter__() -> Made",
                "    .full -> bool",
                "    .make(count: int) -> Made",
                "    .size: int = 3",
                "    .take(*, count: int | None = None) -> list[int]",
            ],
        )


if __name__ == "__main__":
    print(public())
