"""Connections of `multiprocessing`: to pickle, they are a number, which in another process stands for something else.

Law: of the program's own pickles nothing changes; refused is what the engines pickle and copy.
"""

from __future__ import annotations

import copyreg
import sys
from types import FrameType

from conveyor._lean.typing import Any

_MODULE = "multiprocessing.connection"
_guarded = False


def guard_connections() -> None:
    """Have the engines refuse to pickle or copy a connection, once there can be any in this process."""
    global _guarded
    module = sys.modules.get(_MODULE)
    if _guarded or module is None:
        return
    for name in ("Connection", "PipeConnection"):
        kind = getattr(module, name, None)
        # A program that has a way of its own to pickle them keeps it.
        if kind is not None and kind not in copyreg.dispatch_table:
            copyreg.pickle(kind, _reduced)
            _guarded = True


def _reduced(connection: Any) -> Any:
    """Reduce a connection as ever, except where an engine asks for it; `multiprocessing` has another way."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _package(frame) in ("copy", "cloudpickle"):
        frame = frame.f_back
    if not frame.f_globals.get("__name__", "").startswith("conveyor.engines."):
        return object.__reduce_ex__(connection, 4)
    raise TypeError(
        f"a {type(connection).__name__} of multiprocessing is a number of this process, which in another stands for "
        "something else: send what comes through it, or have the process that uses it open it, in `setup` say"
    )


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
