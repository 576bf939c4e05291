"""Log records and warnings of a worker's job: captured, and sent to the caller beside the results.

Law: one message is whole before the next begins, whoever sends it: the worker's loop, another thread of the job, a
signal handler, a finalizer.  Nobody waits for himself, and none but the loop waits long.  A log message is sent at
once; one that comes amid another message is sent right behind it.  `logging` is imported when a job imports it.
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
from conveyor.engines.process.wire.log_records import packed_record, packed_warning
from conveyor.engines.process.wire.messages import LogMessage, Message, RecordLogged, WarningShown

if TYPE_CHECKING:
    import logging
    from importlib.machinery import ModuleSpec

    from conveyor.engines.process.worker.print_capture import ForwardedStream

# A thread that logs waits so long for another one that is amid a message; then its own message goes with the next.
TURN_SECONDS = 1.0
# The signals that programs set handlers for.  To keep back all that there are would cost twenty times as much.
_NAMES = "HUP INT QUIT USR1 USR2 ALRM TERM CHLD XCPU VTALRM PROF WINCH IO"
_HANDLED = frozenset(int(getattr(signal, f"SIG{name}")) for name in _NAMES.split() if hasattr(signal, f"SIG{name}"))


class SharedEndpoint(BlockingEndpoint):
    """The end of a worker's channel; `send_log` may be called by anyone, at any time."""

    def __init__(self, end: BlockingEndpoint) -> None:
        self._end = end
        # A signal handler may run in the thread that holds it, and must not wait then: so it can be taken again, and
        # `_sending` says whether a message is under way.
        self._lock = threading.RLock()
        self._sending = False
        self._pending: deque[tuple[Message, Sequence[Any]]] = deque()
        # The streams of the job that are sent to the caller.
        self._streams: list[ForwardedStream] = []

    def forward_prints(self, names: Sequence[str]) -> None:
        """Send what is written to these streams of `sys` from now on, and print it here no more."""
        from conveyor.engines.process.worker.print_capture import ForwardedStream

        for name in names:
            self._streams.append(ForwardedStream(self, name, getattr(sys, name, None)))
            setattr(sys, name, self._streams[-1])

    def send(self, message: Message, blobs: Sequence[Any] = ()) -> None:
        # What a call has printed is there before what it gave, also where no line has ended.
        for stream in self._streams:
            stream.flush()
        with self._lock:
            self._send(message, blobs)
            self._send_pending()

    def send_log(self, message: LogMessage, blobs: Sequence[Any]) -> None:
        """Send a message as soon as no other is under way; raises ConnectionLost when the other side is gone."""
        if self._end.sender is threading.current_thread():
            self._pending.append((message, blobs))
            return
        # A handler that raises amid a message, to end what took too long, would leave half of it.
        with _handlers_held_back():
            if not self._lock.acquire(timeout=TURN_SECONDS):
                self._pending.append((message, blobs))
                return
            try:
                self._pending.append((message, blobs))
                if not self._sending:
                    self._send_pending()
            finally:
                self._lock.release()

    def _send(self, message: Message, blobs: Sequence[Any]) -> None:
        self._sending = True
        try:
            self._end.send(message, blobs)
        finally:
            self._sending = False

    def _send_pending(self) -> None:
        while self._pending:
            try:
                message, blobs = self._pending.popleft()
            except IndexError:
                # A signal handler that came just now has sent them all.
                return
            self._send(message, blobs)

    @property
    def sender(self) -> threading.Thread | None:
        return self._end.sender

    @property
    def is_forked_copy(self) -> bool:
        return self._end.is_forked_copy

    def keep(self, tracker: BlobTracker) -> None:
        self._end.keep(tracker)

    def receive(self) -> Frame:
        return self._end.receive()

    def receive_within(self, seconds: float) -> Frame | None:
        return self._end.receive_within(seconds)

    def ready(self, seconds: float = 0) -> bool:
        return self._end.ready(seconds)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()
        with self._lock:
            self._send_pending()
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
def _handlers_held_back() -> Iterator[None]:
    """Have no signal handler of the job's run in the block; those of the main thread are all there are."""
    with signals_blocked(_HANDLED if threading.current_thread() is threading.main_thread() else ()):
        yield


class ImportHook:
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
        self.remove()
        self._then()

    def install(self) -> None:
        """Begin to wait for the import."""
        sys.meta_path = [self, *sys.meta_path]

    def remove(self) -> None:
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
    """Stands in the place of all handlers of `logging` and of `warnings.showwarning`, and sends all to the caller."""

    def __init__(self, end: SharedEndpoint, levels: Levels | None) -> None:
        self._end = end
        self._levels = levels
        self._handler: logging.Handler | None = None
        # Until the job, or what it uses, imports `logging`: a worker whose job does not is up sooner.
        self._hook: ImportHook | None = None
        # Kept, for a process that the job forks, and lest what they have not written yet be written at their end.
        self._replaced: list[tuple[logging.Logger, list[logging.Handler], bool]] = []
        self._previous_showwarning: Any = warnings.showwarning
        self._installed = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._restore)

    def install(self) -> None:
        """Have all records and warnings sent; again, after code has run that may have set up handlers of its own."""
        self._installed = True
        if "logging" in sys.modules:
            self._install_handler()
        elif self._hook is None:
            self._hook = ImportHook("logging", self._install_handler)
            self._hook.install()
        if warnings.showwarning != self._show_warning:
            self._previous_showwarning = warnings.showwarning
            warnings.showwarning = self._show_warning

    def _install_handler(self) -> None:
        import logging

        if self._handler is None:
            self._handler = log_handler(self._end)
        root = logging.getLogger()
        for logger in (root, *root.manager.loggerDict.values()):
            if not isinstance(logger, logging.Logger):
                continue
            handlers = [handler for handler in logger.handlers if handler is not self._handler]
            if handlers or not logger.propagate:
                self._replaced.append((logger, handlers, logger.propagate))
            # Which of them are heard is for the caller's loggers to say.
            logger.handlers[:] = [self._handler] if logger is root else []
            logger.propagate = True
        if self._levels is not None:
            self._levels.apply()

    def _restore(self) -> None:
        """In a process that the job has forked, have everything as it was: the channel is not its own."""
        if not self._installed:
            return
        self._installed = False
        if self._hook is not None:
            self._hook.remove()
        if self._handler is not None:
            import logging

            logging.getLogger().removeHandler(self._handler)
        for logger, handlers, propagate in self._replaced:
            logger.handlers[:0] = handlers
            logger.propagate = propagate
        self._replaced.clear()
        if warnings.showwarning == self._show_warning:
            warnings.showwarning = self._previous_showwarning

    def _show_warning(
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
            self._end.send_log(WarningShown(), [packed_warning(message, category, filename, lineno, line)])


def log_handler(end: SharedEndpoint) -> logging.Handler:
    """Return a handler that sends records to the caller, whose own handlers deal with them."""
    import logging

    within = threading.local()

    class Forwarder(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            # Without the lock of a handler: a signal handler could not have it amid a record of another thread.
            self.emit(record)
            return True

        def emit(self, record: logging.LogRecord) -> None:
            depth = getattr(within, "depth", 0)
            within.depth = depth + 1
            try:
                # What an object logs while it is pickled for a record must not have it pickled again.
                end.send_log(RecordLogged(), [packed_record(record, pickles=not depth)])
            except ConnectionLost:
                pass
            except Exception:
                self.handleError(record)
            finally:
                within.depth = depth

    return Forwarder()
