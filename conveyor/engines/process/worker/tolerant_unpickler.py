"""Unpickling that goes on where an object cannot be rebuilt, so that it is known which item that was.

Law: only for pickles at which the usual way has failed; it runs the same code of the user's again.  What cannot be
rebuilt is left out, with the reason in its place, and all else is as it was.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable

from conveyor._lean.typing import Any, ClassVar
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.wire.codec import decode


class Unloadable:
    """Stands where an object could not be rebuilt; whatever would be done to that is done in vain."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise _Found(self.error)

    def append(self, item: Any) -> None:
        """Take no item."""

    extend = append

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take no value."""


class _Found(Exception):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


# The unpickler written in Python, which alone can be told what to do about a failure.  It is private, but always there.
_Base: Any = pickle._Unpickler


def items_sparing(blob: Any) -> list[Any]:
    """Return the items of a blob, some of which may be Broken, or have something Broken in them.

    Raises what unpickling raises where that cannot be done.
    """
    data, buffers = blob.opened() if type(blob) is SharedBlob else (blob, [])
    items = _Sparing(io.BytesIO(data), buffers=buffers).load()
    if type(items) is tuple:
        # Each was pickled by itself.
        return [_Sparing(io.BytesIO(item)).load() for item in items]
    return items  # type: ignore[no-any-return]


def items_anyhow(blob: Any) -> list[Any]:
    """Return the items of a blob, in the usual way where that can be done."""
    try:
        return decode(blob)
    except BaseException:
        return items_sparing(blob)


def what_broke(item: Any) -> BaseException | None:
    """Return why an item could not be rebuilt, None where it was."""
    if type(item) is Unloadable:
        return item.error
    try:
        pickle.dumps(item, 5)
    except _Found as found:
        return found.error
    except BaseException:
        # It cannot be pickled for another reason, which is no concern of whoever gets it.
        return None
    return None


def _spared(opcode: bytes, consumed: int) -> Callable[[Any], None]:
    """Return what to do at an opcode that takes so many objects off the stack, and puts one there."""
    usual = _Base.dispatch[opcode[0]]

    def load(unpickler: Any) -> None:
        stack = unpickler.stack
        depth = len(stack)
        if type(stack[depth - consumed]) is Unloadable:
            del stack[depth - consumed + 1 :]
            return
        try:
            usual(unpickler)
        except BaseException as error:
            del stack[depth - consumed :]
            stack.append(Unloadable(error))

    return load


class _Sparing(_Base):  # type: ignore[misc]
    """Puts a Broken where the user's own code raises."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_Base.dispatch,
        pickle.REDUCE[0]: _spared(pickle.REDUCE, 2),
        pickle.NEWOBJ[0]: _spared(pickle.NEWOBJ, 2),
        pickle.NEWOBJ_EX[0]: _spared(pickle.NEWOBJ_EX, 3),
        pickle.BUILD[0]: _spared(pickle.BUILD, 2),
        pickle.STACK_GLOBAL[0]: _spared(pickle.STACK_GLOBAL, 2),
    }
