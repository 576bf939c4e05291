"""Conveyor: data pipelines out of plain functions, on all the cores of a machine.

>>> from conveyor import Pipe, Pipeline, Processor
>>> Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len)).run([" a ", "bc"])
[1, 2]
"""

from conveyor.errors import (
    ConveyorError,
    ImplicitJoinWarning,
    ImplicitPipeWarning,
    JobPicklingError,
    MissingMainGuardError,
    ProcessError,
    ProcessorError,
    RemoteTraceback,
    ResultError,
    RuleError,
    SourceError,
    StateError,
    WorkerDiedError,
)
from conveyor.pipeline import Pipeline, Stream
from conveyor.stages import BalancingFork, Element, Join, Pipe, Processor, ReplicatingFork

__version__ = "0.1.0"

__all__ = [
    "BalancingFork",
    "ConveyorError",
    "Element",
    "ImplicitJoinWarning",
    "ImplicitPipeWarning",
    "JobPicklingError",
    "Join",
    "MissingMainGuardError",
    "Pipe",
    "Pipeline",
    "ProcessError",
    "Processor",
    "ProcessorError",
    "RemoteTraceback",
    "ReplicatingFork",
    "ResultError",
    "RuleError",
    "SourceError",
    "StateError",
    "Stream",
    "WorkerDiedError",
]
