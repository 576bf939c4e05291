"""What a user adds to a pipeline: elements, and what their settings and jobs mean."""

# What the annotations of the elements name: tools evaluate them where the elements say that they are.
from collections.abc import Callable as Callable

from conveyor._lean.typing import Any as Any
from conveyor._lean.typing import Literal as Literal
from conveyor.stages.outputs import WorkerContext, worker
from conveyor.stages.processor import Processor
from conveyor.stages.routing import DEFAULT_MAXSIZE, BalancingFork, Element, Join, Pipe, ReplicatingFork
from conveyor.stages.routing import How_co as How_co

__all__ = [
    "DEFAULT_MAXSIZE",
    "BalancingFork",
    "Element",
    "Join",
    "Pipe",
    "Processor",
    "ReplicatingFork",
    "WorkerContext",
    "worker",
]

for _public in (BalancingFork, Element, Join, Pipe, Processor, ReplicatingFork, WorkerContext, worker):
    # Where users find them.
    _public.__module__ = __name__
