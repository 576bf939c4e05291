"""The threads of event loops that stop at a safe place while this process forks.

Such a thread runs the user's callbacks, which may hold a lock at any moment.  Between two callbacks it holds none.

Law: only names them; `engines/process/caller/fork_gate.py` makes them stop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from conveyor._lean.typing import Any

# Of each block of `stoppable` that is under way: the thread, and what has it call a function soon.
_known: dict[object, tuple[int, Callable[[Callable[[], None]], Any]]] = {}


@contextlib.contextmanager
def stoppable(thread: int, call_soon: Callable[[Callable[[], None]], Any]) -> Iterator[None]:
    """Have a thread whose loop runs on stop for each fork during the block, which is in another thread.

    `thread`: its number.  `call_soon` has it call a function; it raises RuntimeError once the loop is closed.
    """
    key = object()
    _known[key] = thread, call_soon
    try:
        yield
    finally:
        del _known[key]


def loop_threads() -> dict[int, Callable[[Callable[[], None]], Any]]:
    """Return what has each of these threads call a function, by the number of the thread."""
    return dict(list(_known.values()))
