"""Conveyor: data pipelines out of plain functions, on all the cores of a machine.

>>> from conveyor import Pipe, Pipeline, Processor
>>> Pipeline().add(Processor(str.strip)).add(Pipe()).add(Processor(len)).run([" a ", "bc"])
[1, 2]
"""

from conveyor.errors import (
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
    StartMethodWarning,
    StateError,
    TooManyFailuresError,
    WorkerDiedError,
)
from conveyor.pipeline import Pipeline
from conveyor.stages import BalancingFork, Element, Join, Pipe, Processor, ReplicatingFork
from conveyor.stats import Decision, Stats, StepStats, Unfused
from conveyor.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "BalancingFork",
    "ConveyorError",
    "Decision",
    "Element",
    "FailedItem",
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
    "RemoteTraceback",
    "ReplicatingFork",
    "ResultError",
    "RuleError",
    "SharedResourceWarning",
    "SourceError",
    "StartMethodWarning",
    "StateError",
    "Stats",
    "StepStats",
    "Stream",
    "TooManyFailuresError",
    "Unfused",
    "WorkerDiedError",
]
