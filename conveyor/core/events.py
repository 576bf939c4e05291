"""What can happen to a run: the only way in to the core.

Law: frozen facts, no behaviour.  A run is the sequence of these events, each with the time at which it was
handled, and can be replayed from them.  Blobs are opaque handles: the core never looks inside one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from conveyor.core.groups import Runs


class Fed(NamedTuple):
    """`items` more input items came from the source, as one blob of `size` bytes."""

    blob: Any
    items: int
    size: int


class SourceEnded(NamedTuple):
    """The source has no more items."""


class Replied(NamedTuple):
    """A worker acknowledges the next `units` units of a lease and hands over `blobs`, each with its item count.

    Outputs beyond those of the acknowledged units belong to the unit it is working on.  `runs` tells the
    number of outputs of each acknowledged unit (None where nobody needs to know).  `final`: the lease is
    done.  `starving`: the worker holds an output that it has no credit for, and waits.  `seconds` is the wall
    time since its last reply that was spent on this lease, `size` the bytes of all blobs.
    """

    worker: int
    lease: int
    units: int
    runs: Runs | None
    blobs: tuple[tuple[Any, int], ...]
    size: int
    final: bool
    starving: bool
    seconds: float


class Raised(NamedTuple):
    """The job failed on the unit that comes `units` units after the last acknowledged one of `lease`.

    None: on one of those not acknowledged, nobody knows which.
    """

    worker: int
    lease: int
    units: int | None
    error: Any


class WorkerLost(NamedTuple):
    """A worker is dead and its channel drained to the end; `cause` says what is known of its death."""

    worker: int
    cause: Any


class Consumed(NamedTuple):
    """The consumer took `items` results."""

    items: int


class Cancelled(NamedTuple):
    """The consumer wants no more results of this run; the workers stay."""


Event = Fed | SourceEnded | Replied | Raised | WorkerLost | Consumed | Cancelled
