"""What a new process of ours does first, whether it was forked or not.

Law: whatever the caller's program was set up to do with signals and streams is undone before the user's code runs.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

from conveyor._lean.typing import Any
from conveyor.engines.process.system import descendants
from conveyor.engines.process.system.descendants import prctl
from conveyor.engines.process.system.inherited_signals import settle_signals
from conveyor.engines.process.system.streams import settle_streams

# A worker whose broker has gone leaves with this code; nobody is there to see it.
ORPHANED = 3


def settle(foreign: list[Any]) -> None:
    """Make a new process one of ours: its own signals and streams, and no end of a channel that is not its own."""
    # What came with the fork is shared with its parent as long as nobody looks through it for garbage; and all that is
    # made from now on can be told from it.
    gc.freeze()
    settle_signals()
    for end in foreign:
        end.close()
    settle_streams()
    _forget_executors()


def _forget_executors() -> None:
    """Let the executors of the program be the program's: at its end, this process would wait for their threads.

    One of them may be the thread that forked this process, which cannot wait for itself.
    """
    for module, threads in (("thread", "_threads_queues"), ("process", "_threads_wakeups")):
        known = getattr(sys.modules.get(f"concurrent.futures.{module}"), threads, None)
        if known is not None:
            known.clear()


def prepare() -> None:
    """Find what every worker needs and nobody else: better once, before they are forked."""
    if os.name == "posix":
        prctl()
        descendants.prepare()


def die_with_parent(parent: int) -> None:
    """Ask the kernel, where it can be asked, to end this process when its parent dies, busy or not."""
    if os.name == "posix":
        call = prctl()
        if call is not None:
            call(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(ORPHANED)
