"""Data pipelines out of plain functions, on all the cores of a machine.

A pipeline is a chain of elements.  Each Processor calls a function of yours in worker processes of its own, and results
come in the order of the input.  In a script, the program goes below `if __name__ == "__main__":`.

>>> from conveyor import Pipe, Pipeline, Processor
>>> pipeline = Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len, workers=2))
>>> pipeline.run([" a ", "bc"])
[1, 2]

What to describe a pipeline with:

- `Pipeline`: takes elements by `add`.
- `Processor`: a step; `Element` is the base of all that `add` takes.
- `Pipe`: the buffer between two steps.
- `ReplicatingFork`, `BalancingFork`, `Join`: where branches begin and end.

What to run it with: `Pipeline.run` returns a list, `Pipeline.stream` a `Stream`, and `Pipeline.submit` a Future for one
item.  In a program of asyncio, `await Pipeline.asubmit`, and `Pipeline.astream` returns an `AsyncStream`.

What a job can ask: `worker` returns a `WorkerContext`, with the index of the worker, its state and shared objects.

What tells how it goes:

- `Pipeline.stats` returns `Stats`, which has `StepStats`, `WorkerStats`, `SourceStats`, `Decision`, `SlowCall` and
  `Unfused`.
- `Pipeline.graph` returns a `Graph` of `GraphNode` and `GraphEdge`.
- `Pipeline.failures` has a `FailedItem` for each item that was given up.
- A `Progress` is what the `progress` of a run is called with.

What can go wrong, each a `ConveyorError`:

- in the description: `RuleError`, `StateError`, `JobPicklingError`, `MissingMainGuardError`;
- in a job: `ProcessorError`, with a `RemoteTraceback` as its cause, `ItemTimeoutError`, `WorkerDiedError`,
  `TooManyFailuresError`;
- around it: `SourceError`, `ResultError`, `ProcessError`.

What warns: `ImplicitPipeWarning`, `ImplicitJoinWarning`, `SharedResourceWarning`, `SourceWarning`,
`StartMethodWarning`, `AbandonedThreadWarning`.

Read on with `help(conveyor.Pipeline)` and `help(conveyor.Processor)`.  `python -m conveyor doctor` shows what this
machine offers.  The folder `docs` has a tutorial, how-to pages and the reference.
"""

from conveyor._lean.typing import TYPE_CHECKING

if TYPE_CHECKING:
    # What freezes a program (PyInstaller, say) looks for imports, and an engine is imported by its name.
    from conveyor.diagram import Graph, GraphEdge, GraphNode
    from conveyor.engines import inline as inline
    from conveyor.engines import process as process
    from conveyor.engines import thread as thread
    from conveyor.errors import (
        AbandonedThreadWarning,
        ConveyorError,
        FailedItem,
        ImplicitJoinWarning,
        ImplicitPipeWarning,
        ItemTimeoutError,
        JobPicklingError,
        MissingMainGuardError,
        ProcessError,
        ProcessorError,
        RemoteTraceback,
        ResultError,
        RuleError,
        SharedResourceWarning,
        SourceError,
        SourceWarning,
        StartMethodWarning,
        StateError,
        TooManyFailuresError,
        WorkerDiedError,
    )
    from conveyor.pipeline import Pipeline
    from conveyor.stages import BalancingFork, Element, Join, Pipe, Processor, ReplicatingFork, WorkerContext, worker
    from conveyor.stats import Decision, Progress, SlowCall, SourceStats, Stats, StepStats, Unfused, WorkerStats
    from conveyor.stream import AsyncStream, Stream

__version__ = "0.2.0"

__all__ = [
    "AbandonedThreadWarning",
    "AsyncStream",
    "BalancingFork",
    "ConveyorError",
    "Decision",
    "Element",
    "FailedItem",
    "Graph",
    "GraphEdge",
    "GraphNode",
    "ImplicitJoinWarning",
    "ImplicitPipeWarning",
    "ItemTimeoutError",
    "JobPicklingError",
    "Join",
    "MissingMainGuardError",
    "Pipe",
    "Pipeline",
    "ProcessError",
    "Processor",
    "ProcessorError",
    "Progress",
    "RemoteTraceback",
    "ReplicatingFork",
    "ResultError",
    "RuleError",
    "SharedResourceWarning",
    "SlowCall",
    "SourceError",
    "SourceStats",
    "SourceWarning",
    "StartMethodWarning",
    "StateError",
    "Stats",
    "StepStats",
    "Stream",
    "TooManyFailuresError",
    "Unfused",
    "WorkerContext",
    "WorkerDiedError",
    "WorkerStats",
    "worker",
]

# The module of each public name that is no error.  A module is imported when the program asks for a name in it.  A
# spawned worker imports the script again, and would wait for all imports.
_MODULES = {
    "Pipeline": "pipeline",
    **dict.fromkeys(("Graph", "GraphEdge", "GraphNode"), "diagram"),
    **dict.fromkeys(
        ("BalancingFork", "Element", "Join", "Pipe", "Processor", "ReplicatingFork", "WorkerContext", "worker"),
        "stages",
    ),
    **dict.fromkeys(
        ("Decision", "Progress", "SlowCall", "SourceStats", "Stats", "StepStats", "Unfused", "WorkerStats"), "stats"
    ),
    **dict.fromkeys(("AsyncStream", "Stream"), "stream"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in __all__:
        value: object = getattr(import_module(f"conveyor.{_MODULES.get(name, 'errors')}"), name)
    elif name in ("errors", *_MODULES.values()):
        value = import_module(f"conveyor.{name}")
    else:
        raise AttributeError(f"module 'conveyor' has no attribute {name!r}")
    # The next access finds it there.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
