"""What all elements of a pipeline have in common: that `Pipeline.add` takes them.

Law: no state and no behaviour.  What is wrong with an element by itself is said when it is made; what is wrong with
its place is said by `graph/layout.py`.
"""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING


class Element:
    """What `Pipeline.add` takes: the base of Processor, Pipe, ReplicatingFork, BalancingFork and Join."""

    if TYPE_CHECKING:
        # There is no such attribute.  By its type, a checker tells a Processor from an Element that may be anything.
        _is_processor: bool
