"""What a user adds to a pipeline: elements, and what their settings and jobs mean."""

from conveyor.stages.elements import (
    DEFAULT_MAXSIZE,
    BalancingFork,
    Element,
    Join,
    Pipe,
    Processor,
    ReplicatingFork,
)

__all__ = [
    "DEFAULT_MAXSIZE",
    "BalancingFork",
    "Element",
    "Join",
    "Pipe",
    "Processor",
    "ReplicatingFork",
]

for _element in (BalancingFork, Element, Join, Pipe, Processor, ReplicatingFork):
    # Where users find them.
    _element.__module__ = __name__
