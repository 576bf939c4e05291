"""How a worker says something beside its results: its end of the channel, shared by all who say something.

Law: one message is whole before the next begins, whoever sends it: the worker's loop, another thread of the job, a
signal handler, a finalizer.  Nobody waits for himself, and none but the loop waits long.  What is said is sent at once;
what comes amid another message, right behind it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.signals import signals_blocked
from conveyor.engines.process.shm.shared_blob import BlobTracker
from conveyor.engines.process.wire.configs import Levels
from conveyor.engines.process.wire.endpoint import BlockingEndpoint, ConnectionLost, Frame
from conveyor.engines.process.wire.log_records import packed_warning
from conveyor.engines.process.wire.messages import Message, WarningShown
from conveyor.engines.process.worker.log_handler import forwarder

if TYPE_CHECKING:
    import logging
    from importlib.machinery import ModuleSpec

# How long one who says something waits for another thread that is amid a message; then his own goes with the next.
TURN_SECONDS = 1.0
# The signals that programs set handlers for.  To keep back all that there are would cost twenty times as much.
_NAMES = "HUP INT QUIT USR1 USR2 ALRM TERM CHLD XCPU VTALRM PROF WINCH IO"
_HANDLED = frozenset(int(getattr(signal, f"SIG{name}")) for name in _NAMES.split() if hasattr(signal, f"SIG{name}"))


class SharedEndpoint(BlockingEndpoint):
    """The end of a worker's channel; `say` may be called by anyone, at any time."""

    def __init__(self, end: BlockingEndpoint) -> None:
        self._end = end
        # A signal handler may run in the thread that holds it, and must not wait then: so it can be taken again, and
        # `_sending` says whether a message is under way.
        self._lock = threading.RLock()
        self._sending = False
        self._waiting: deque[tuple[Message, Sequence[Any]]] = deque()

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        with self._lock:
            self._send(message, blobs)
            self._send_waiting()

    def say(self, message: Message, blobs: Sequence[Any]) -> None:
        """Send a message as soon as no other is under way; raises Gone when the other side is."""
        if self._end.sender is threading.current_thread():
            self._waiting.append((message, blobs))
            return
        # A handler that raises amid a message, to end what took too long, would leave half of it.
        with _signals_kept_back():
            if not self._lock.acquire(timeout=TURN_SECONDS):
                self._waiting.append((message, blobs))
                return
            try:
                self._waiting.append((message, blobs))
                if not self._sending:
                    self._send_waiting()
            finally:
                self._lock.release()

    def _send(self, message: Message, blobs: Sequence[Any]) -> None:
        self._sending = True
        try:
            self._end.send(message, blobs)
        finally:
            self._sending = False

    def _send_waiting(self) -> None:
        while self._waiting:
            self._send(*self._waiting.popleft())

    @property
    def sender(self) -> threading.Thread | None:
        return self._end.sender

    @property
    def is_forked_copy(self) -> bool:
        return self._end.is_forked_copy

    def keep(self, keeper: BlobTracker) -> None:
        self._end.keep(keeper)

    def receive(self) -> Frame:
        return self._end.receive()

    def receive_within(self, seconds: float) -> Frame | None:
        return self._end.receive_within(seconds)

    def ready(self, seconds: float = 0) -> bool:
        return self._end.ready(seconds)

    def flush(self) -> None:
        with self._lock:
            self._send_waiting()
            self._end.flush()

    def close(self) -> None:
        # Else another thread would write to what may be another file by then.
        with self._lock:
            self._end.close()

    def watch(self, sentinel: Any) -> None:
        self._end.watch(sentinel)

    def watch_parent(self) -> None:
        self._end.watch_parent()


@contextlib.contextmanager
def _signals_kept_back() -> Iterator[None]:
    """Have no signal handler of the job's run in the block; those of the main thread are all there are."""
    with signals_blocked(_HANDLED if threading.current_thread() is threading.main_thread() else ()):
        yield


class Awaited:
    """Calls `then` as soon as a module has been imported: a finder that goes before all others, once."""

    def __init__(self, module: str, then: Callable[[], None]) -> None:
        self._module = module
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._module:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        loader: Any = _Loader(spec.loader, self._loaded)
                        spec.loader = loader
                    return spec
        return None

    def _loaded(self) -> None:
        self.leave()
        self._then()

    def enter(self) -> None:
        """Begin to wait."""
        sys.meta_path = [self, *sys.meta_path]

    def leave(self) -> None:
        """Wait no longer."""
        # A new list: another thread may be looking through the old one.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]


class _Loader:
    """Loads a module as another loader does, which may load others as well, and calls `then`."""

    def __init__(self, loader: Any, then: Callable[[], None]) -> None:
        self._loader = loader
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        # What is loaded is to say who has loaded it.
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then()


class LogCapture:
    """What jobs say by way of `logging` and `warnings`, in this process: to be sent to the caller."""

    def __init__(self, end: SharedEndpoint, levels: Levels | None) -> None:
        self._end = end
        self._levels = levels
        self._forwarder: logging.Handler | None = None
        # Until the job, or what it uses, imports `logging`: a worker whose job does not is up sooner.
        self._awaited: Awaited | None = None
        # Kept, for a process that the job forks, and lest what they have not written yet be written at their end.
        self._replaced: list[tuple[logging.Logger, list[logging.Handler], bool]] = []
        self._show_before: Any = warnings.showwarning
        self._lent = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._give_back)

    def take_over(self) -> None:
        """Have all records and warnings sent; again, after code has run that may have set up handlers of its own."""
        self._lent = True
        if "logging" in sys.modules:
            self._take_over_records()
        elif self._awaited is None:
            self._awaited = Awaited("logging", self._take_over_records)
            self._awaited.enter()
        if warnings.showwarning != self._show:
            self._show_before = warnings.showwarning
            warnings.showwarning = self._show

    def _take_over_records(self) -> None:
        import logging

        if self._forwarder is None:
            self._forwarder = forwarder(self._end)
        root = logging.getLogger()
        for logger in (root, *root.manager.loggerDict.values()):
            if not isinstance(logger, logging.Logger):
                continue
            handlers = [handler for handler in logger.handlers if handler is not self._forwarder]
            if handlers or not logger.propagate:
                self._replaced.append((logger, handlers, logger.propagate))
            # Which of them are heard is for the caller's loggers to say.
            logger.handlers[:] = [self._forwarder] if logger is root else []
            logger.propagate = True
        if self._levels is not None:
            self._levels.apply()

    def _give_back(self) -> None:
        """In a process that the job has forked, have everything as it was: the channel is not its own."""
        if not self._lent:
            return
        self._lent = False
        if self._awaited is not None:
            self._awaited.leave()
        if self._forwarder is not None:
            import logging

            logging.getLogger().removeHandler(self._forwarder)
        for logger, handlers, propagate in self._replaced:
            logger.handlers[:0] = handlers
            logger.propagate = propagate
        self._replaced.clear()
        if warnings.showwarning == self._show:
            warnings.showwarning = self._show_before

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Stand in the place of `warnings.showwarning`."""
        if file is not None:
            file.write(warnings.formatwarning(message, category, filename, lineno, line))
            return
        with contextlib.suppress(ConnectionLost):
            self._end.say(WarningShown(), [packed_warning(message, category, filename, lineno, line)])
