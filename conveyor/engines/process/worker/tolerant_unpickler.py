"""An unpickler that goes on where an object cannot be rebuilt, so that the worker knows which item that was.

Law: only for pickles that the usual unpickler refused; it runs the same code of the user's again.  A placeholder with
the reason stands where an object cannot be rebuilt, and all else is as it was.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable

from conveyor._lean.typing import Any, ClassVar
from conveyor.engines.process.shm.shared_blob import SharedBlob
from conveyor.engines.process.wire.codec import decode


class Unloadable:
    """The placeholder of an object that could not be rebuilt; it takes whatever is done to that object, in vain."""

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


def load_tolerantly(blob: Any) -> list[Any]:
    """Return the items of a blob, some of which may be Unloadable, or hold something that is.

    Raises what unpickling raises where the pickle itself is broken.
    """
    data, buffers = blob.opened() if type(blob) is SharedBlob else (blob, [])
    items = _TolerantUnpickler(io.BytesIO(data), buffers=buffers).load()
    if type(items) is tuple:
        # Each was pickled by itself.
        return [_TolerantUnpickler(io.BytesIO(item)).load() for item in items]
    return items  # type: ignore[no-any-return]


def load_or_placeholder(blob: Any) -> list[Any]:
    """Return the items of a blob, in the usual way where that can be done."""
    try:
        return decode(blob)
    except BaseException:
        return load_tolerantly(blob)


def cause_of_unloadable(item: Any) -> BaseException | None:
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


def _tolerant(opcode: bytes, consumed: int) -> Callable[[Any], None]:
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


class _TolerantUnpickler(_Base):  # type: ignore[misc]
    """Puts an Unloadable where the user's own code raises."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_Base.dispatch,
        pickle.REDUCE[0]: _tolerant(pickle.REDUCE, 2),
        pickle.NEWOBJ[0]: _tolerant(pickle.NEWOBJ, 2),
        pickle.NEWOBJ_EX[0]: _tolerant(pickle.NEWOBJ_EX, 3),
        pickle.BUILD[0]: _tolerant(pickle.BUILD, 2),
        pickle.STACK_GLOBAL[0]: _tolerant(pickle.STACK_GLOBAL, 2),
    }
