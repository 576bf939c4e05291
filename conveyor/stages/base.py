"""The base class of all elements of a pipeline.

Law: no state and no behaviour.  An element checks its own arguments; `graph/layout.py` checks its place.
"""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING


class Element:
    """The base of Processor, Pipe, ReplicatingFork, BalancingFork and Join, which `Pipeline.add` takes."""

    if TYPE_CHECKING:
        # There is no such attribute.  Its type lets a checker tell a Processor from any other Element.
        _is_processor: bool
