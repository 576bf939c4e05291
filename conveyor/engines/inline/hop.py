"""The hop from one Processor to the next, as the inline engine makes it.

Law: an item that can be pickled, and not unpickled, fails where it is wanted, as it does between processes.  Who gives
it does not hear of that.
"""

from __future__ import annotations

from conveyor._lean.typing import Any
from conveyor.engines.failures import without_our_frames
from conveyor.engines.process.wire.codec import copied


class Unloadable:
    """Stands for an item that could not be unpickled; `cause` is the reason."""

    __slots__ = ("cause",)

    def __init__(self, cause: BaseException) -> None:
        # The frames of this package hold the item.
        self.cause = cause.with_traceback(without_our_frames(cause.__traceback__))


def behind_hop(item: Any) -> Any:
    """Return an item as it is behind a hop, an Unloadable where it cannot be unpickled; raises what pickling raises."""
    return item if type(item) is Unloadable else copied(item, Unloadable)


def first_unloadable(items: Any) -> Unloadable | None:
    """Return the first of some items that could not be unpickled."""
    return next((item for item in items if type(item) is Unloadable), None)
