"""How far a run is, for people and for programs: a bar, a line, or values for a callable.

Law: imported when a run is watched, and no run is harmed by who watches it.  One thread at a time tells how far the run
is: a thread of its own, and at the end the one that ends the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from operator import length_hint

from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any, Protocol
from conveyor._system.clock import time
from conveyor.engines.base import Outlet, Run, Session
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.system import streams
from conveyor.stats import PROGRESS_VARIABLE, Progress, StepStats

# How often a callable or a terminal is told, and how often a pipe or a file.
INTERVAL_SECONDS = 0.25
LOG_INTERVAL_SECONDS = 10.0
# How long the end of a run waits for a callable that has not returned.
JOIN_SECONDS = 5.0
# How long the thread that tells waits for whoever has ended the run, before it tells the end itself.
END_SECONDS = 1.0
# The rate is that of so many of the last intervals.
RATE_INTERVALS = 40
# What deletes a line of a terminal, and puts the cursor at its beginning.
CLEAR_LINE = "\r\x1b[K"


def watch_for(progress: Any, total: Any) -> Watch | None:
    """Return what watches a run; None where nobody does.  Raises TypeError or ValueError."""
    if total is not None:
        if isinstance(total, bool) or not isinstance(total, int):
            raise TypeError(f"total must be an int (a number of items) or None, not {short(total)}")
        if total < 0:
            raise ValueError(f"total must be 0 or more, not {total}")
    if isinstance(progress, str):
        raise ValueError(f"progress must be True, False, None or a callable, not {short(progress)}")
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress must be True, False, None or a callable, not {short(progress)}")
    wanted = os.environ.get(PROGRESS_VARIABLE)
    if progress is None and wanted == "1":
        # Imported here: without the variable nobody asks.
        import multiprocessing

        progress = multiprocessing.parent_process() is None
    if progress is True and wanted == "0":
        progress = False
    if not progress and not callable(progress):
        return None if total is None else Watch(None, total)
    return Watch(_new_bar if progress is True else _Callable(progress).made, total)


class _View(Protocol):
    """Shows how far a run is; any method may raise."""

    interval: float
    # Whether jobs are to send what they print, for `put`.
    takes_prints: bool

    def show(self, progress: Progress) -> None: ...

    def close(self, progress: Progress) -> None:
        """Show the end."""

    def put(self, name: str, written: str | bytes) -> None:
        """Write what a job has printed to the stream of that name."""


class Watch:
    """Watches one run, from `start` to `end`."""

    def __init__(self, new_view: Callable[[int | None], _View] | None, total: int | None) -> None:
        self._new_view = new_view
        self._total = total
        self._process = os.getpid()
        self._view: _View | None = None
        self._session: Session
        self._run: Run
        self._outlet: Outlet | None = None
        self._thread: threading.Thread | None = None
        self._wanted_end = threading.Event()
        self._ends_itself = False
        # How many items were through at the times when somebody was told; the first is the beginning.
        self._began = 0.0
        self._told: deque[tuple[float, int]] = deque(maxlen=RATE_INTERVALS + 1)

    def start(self, session: Session) -> Callable[[Iterable[Any]], Run]:
        """Return what starts a run over items; only the session keeps these."""

        def start(items: Iterable[Any]) -> Run:
            if self._total is None:
                self._total = _length(items)
            if self._new_view is not None:
                with self._guarded():
                    self._view = self._new_view(self._total)
            if self._view is not None and self._view.takes_prints:
                self._outlet = session.prints
                if self._outlet is not None:
                    self._outlet.takes_all, self._outlet.put = True, self._view.put
            try:
                self._run = run = session.run(items)
            except BaseException:
                # The terminal may show something already.
                with contextlib.suppress(Exception):
                    if self._view is not None and self._view.takes_prints:
                        self._view.close(Progress(0, self._total, None, None))
                self._stop_showing()
                raise
            run.progress.total = self._total
            if self._view is not None:
                run.progress.is_watched = True
                self._begin()
            return run

        self._session = session
        return start

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._told.append((self._began, 0))
        thread = threading.Thread(target=self._watch, name="conveyor-progress", daemon=True)
        # Where the system has no thread left, only the end is told.
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._thread = thread

    def _watch(self) -> None:
        while (view := self._view) is not None and not self._wanted_end.wait(view.interval):
            if self._run.over or self._session.ended:
                # Mostly the thread that ends it is about to say so.
                self._ends_itself |= not self._wanted_end.wait(END_SECONDS)
                break
            with gate.passed(), self._guarded():
                view.show(self._progress())
        if self._ends_itself:
            self._close()

    def end(self) -> None:
        """Tell how far the run is now, for the last time."""
        if self._view is None or os.getpid() != self._process:
            return
        thread = self._thread
        if thread is threading.current_thread():
            # The collector, or the callable, ends the run in the thread that tells of it.
            self._ends_itself = True
            self._wanted_end.set()
            return
        self._wanted_end.set()
        if thread is not None:
            thread.join(JOIN_SECONDS)
            if thread.is_alive():
                # The callable does not return, and must not be called in two threads.
                return
        self._close()

    def _close(self) -> None:
        """Show the end, once."""
        view = self._view
        if view is not None:
            try:
                with self._guarded():
                    view.close(self._progress())
            finally:
                self._stop_showing()

    def _stop_showing(self) -> None:
        view, self._view = self._view, None
        outlet, self._outlet = self._outlet, None
        # The next run may have begun meanwhile.
        if outlet is not None and view is not None and outlet.put == view.put:
            outlet.takes_all, outlet.put = False, streams.put

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        """Report what the block raises, and show nothing from then on."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self._stop_showing()
            logging.getLogger("conveyor").warning(
                "What shows the progress of a run raised %s: it is left out for the rest of the run.",
                short(error),
                exc_info=True,
            )

    def _progress(self) -> Progress:
        """Return how far the run is."""
        steps: tuple[StepStats, ...] = ()
        # This asks the process engine how many items are through.
        if (stats := self._session.stats()) is not None:
            steps = stats.steps
        known, now = self._run.progress, time.monotonic()
        finished, ended, pulled = known.finished, known.ended, known.pulled
        done = pulled if finished else min(pulled, max(known.through, self._told[-1][1]))
        total = self._total
        if finished or ended:
            total = pulled
        elif total is not None:
            total = max(total, pulled)
        since, before = (self._began, 0) if finished else self._told[0]
        self._told.append((now, done))
        rate = (done - before) / (now - since) if done and now > since else None
        eta = (total - done) / rate if total is not None and rate else None
        return Progress(done, total, rate, 0.0 if finished else eta, steps)


def _length(items: Iterable[Any]) -> int | None:
    """Return how many items the input says that it has; None where it does not, or raises."""
    try:
        hint = length_hint(items, -1)
    except Exception:
        return None
    return None if hint < 0 else hint


class _Quiet:
    """A view that leaves prints alone."""

    interval = INTERVAL_SECONDS
    takes_prints = False

    def put(self, name: str, written: str | bytes) -> None:
        streams.put(name, written)


class _Callable(_Quiet):
    """Calls what the program has given."""

    def __init__(self, call: Callable[[Progress], object]) -> None:
        self._call = call

    def made(self, total: int | None) -> _View:
        return self

    def show(self, progress: Progress) -> None:
        self._call(progress)

    close = show


def _new_bar(total: int | None) -> _View:
    """Return the best that there is for the standard error stream."""
    stream = sys.stderr
    in_notebook = _in_notebook()
    if not in_notebook and not _is_terminal(stream):
        return _Log(stream)
    # One that cannot be imported, whatever the reason, is as good as none.
    with contextlib.suppress(Exception):
        return _Tqdm(stream, total, in_notebook)
    return _Line(stream)


def _in_notebook() -> bool:
    """Whether the program runs in the kernel of a notebook."""
    with contextlib.suppress(Exception):
        return "IPKernelApp" in sys.modules["IPython"].get_ipython().config
    return False


def _is_terminal(stream: Any) -> bool:
    """Whether a line of the stream can be written anew."""
    with contextlib.suppress(Exception):
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    return False


class _Log(_Quiet):
    """A line now and then, for a pipe or a file."""

    interval = LOG_INTERVAL_SECONDS

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._last = ""

    def show(self, progress: Progress) -> None:
        line = str(progress)
        # A program without a console has no such stream.  The end often says what the last look has said.
        if self._stream is not None and line != self._last:
            self._last = line
            self._stream.write(f"{line}\n")
            self._stream.flush()

    close = show


class _Redrawn(ABC):
    """A line at the bottom of a terminal, with prints of jobs above it."""

    interval = INTERVAL_SECONDS
    takes_prints = True

    def __init__(self) -> None:
        self._drawing = threading.RLock()
        # What jobs have printed to each stream since the last end of a line.
        self._begun: dict[str, Any] = {}
        self._is_open = True

    @abstractmethod
    def draw(self, progress: Progress) -> None: ...

    @abstractmethod
    def erase(self) -> None: ...

    @abstractmethod
    def redraw(self) -> None: ...

    @abstractmethod
    def leave(self) -> None:
        """Leave the line as it is, and go to the next."""

    def show(self, progress: Progress) -> None:
        with self._drawing:
            self.draw(progress)

    def close(self, progress: Progress) -> None:
        with self._drawing:
            self._is_open = False
            begun, self._begun = self._begun, {}
            if begun:
                self.erase()
                for name, written in begun.items():
                    streams.put(name, written)
                    streams.put(name, "\n")
            self.draw(progress)
            self.leave()

    def put(self, name: str, written: Any) -> None:
        with self._drawing:
            if not self._is_open:
                streams.put(name, written)
                return
            before = self._begun.pop(name, None)
            if before is not None and type(before) is type(written):
                written = before + written
            elif before is not None:
                self._put_above(name, before)
            newline: Any = b"\n" if isinstance(written, bytes) else "\n"
            head, end, rest = written.rpartition(newline)
            if rest:
                self._begun[name] = rest
            if end:
                self._put_above(name, head + end)

    def _put_above(self, name: str, written: str | bytes) -> None:
        self.erase()
        try:
            streams.put(name, written)
        finally:
            self.redraw()


class _Line(_Redrawn):
    """A plain line of our own."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._text = ""

    def draw(self, progress: Progress) -> None:
        self._text = str(progress)
        self.redraw()

    def erase(self) -> None:
        self._stream.write(CLEAR_LINE)
        self._stream.flush()

    def redraw(self) -> None:
        columns = 80
        with contextlib.suppress(Exception):
            columns = os.get_terminal_size(self._stream.fileno()).columns or columns
        # A full line would make some terminals go to the next.
        self._stream.write(CLEAR_LINE + self._text[: columns - 1])
        self._stream.flush()

    def leave(self) -> None:
        self._stream.write("\n")
        self._stream.flush()


class _Tqdm(_Redrawn):
    """A bar of tqdm; raises where there is none."""

    def __init__(self, stream: Any, total: int | None, in_notebook: bool) -> None:
        super().__init__()
        settings: dict[str, Any] = {"total": total, "unit": " items", "dynamic_ncols": True, "disable": False}
        if in_notebook and (widget := _class_of("tqdm.notebook")) is not None:
            self._bar = widget(**settings)
        else:
            self._bar = _class_of("tqdm.std")(file=stream, **settings)

    def draw(self, progress: Progress) -> None:
        self._bar.total, self._bar.n = progress.total, progress.done
        self._bar.refresh()

    def erase(self) -> None:
        self._bar.clear()

    def redraw(self) -> None:
        self._bar.refresh()

    def leave(self) -> None:
        self._bar.close()


def _class_of(module: str) -> Any:
    """Return tqdm's class of a bar, without the thread and the semaphore that are left of it; None without widgets."""
    from importlib import import_module

    found = import_module(module)
    if getattr(found, "IProgress", found) is None:
        return None
    return type("Bar", (found.tqdm,), {"monitor_interval": 0, "_lock": threading.RLock()})
