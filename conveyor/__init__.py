"""Conveyor: data pipelines out of plain functions, on all the cores of a machine.

>>> from conveyor import Pipe, Pipeline, Processor
>>> Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len)).run([" a ", "bc"])
[1, 2]
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
