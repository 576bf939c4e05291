"""How far a run is, on the standard error stream: a bar of tqdm, a line of Conveyor's own, or a line now and then.

Law: what a view shows is text that fits its line.  What jobs print stands above it, whole lines at a time.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from abc import ABC, abstractmethod

from conveyor._lean.typing import Any, Protocol
from conveyor.engines.process.system import streams
from conveyor.stats import Progress, Stats

# How often a callable or a terminal is told, and how often a pipe or a file.
INTERVAL_SECONDS = 0.25
LOG_INTERVAL_SECONDS = 10.0
# What deletes a line of a terminal, and puts the cursor at its beginning.
CLEAR_LINE = "\r\x1b[K"
DEFAULT_COLUMNS, DEFAULT_ROWS = 80, 24


class View(Protocol):
    """Shows how far a run is, with the statistics where there are some; any method but `release` may raise."""

    interval: float
    # Whether it shows the beginning, too.
    shows_beginning: bool
    # Whether jobs are to send what they print, for `put`.
    takes_prints: bool

    def show(self, progress: Progress, stats: Stats | None) -> None: ...

    def close(self, progress: Progress, stats: Stats | None) -> None:
        """Show the end."""

    def release(self) -> None:
        """Give back what the view has taken; it shows nothing more."""

    def put(self, name: str, written: str | bytes) -> None:
        """Write what a job has printed to the stream of that name."""


class Quiet:
    """A view that leaves prints alone."""

    interval = INTERVAL_SECONDS
    shows_beginning = False
    takes_prints = False

    def put(self, name: str, written: str | bytes) -> None:
        streams.put(name, written)

    def release(self) -> None:
        pass


def new_bar(total: int | None) -> View:
    """Return the best that there is for the standard error stream."""
    stream = sys.stderr
    is_notebook = in_notebook()
    if not is_notebook and not is_terminal(stream):
        return Log(stream)
    # One that cannot be imported, whatever the reason, is as good as none.
    with contextlib.suppress(Exception):
        return Tqdm(stream, total, is_notebook)
    return Line(stream)


def in_notebook() -> bool:
    """Whether the program runs in the kernel of a notebook."""
    with contextlib.suppress(Exception):
        return "IPKernelApp" in sys.modules["IPython"].get_ipython().config
    return False


def is_terminal(stream: Any) -> bool:
    """Whether a line of the stream can be written anew."""
    with contextlib.suppress(Exception):
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    return False


def size_of(stream: Any) -> tuple[int, int]:
    """Return how many columns and rows a terminal has now."""
    columns = rows = 0
    with contextlib.suppress(Exception):
        columns, rows = os.get_terminal_size(stream.fileno())
    return columns or DEFAULT_COLUMNS, rows or DEFAULT_ROWS


class Log(Quiet):
    """A line now and then, for a pipe or a file."""

    interval = LOG_INTERVAL_SECONDS

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._last = ""

    def show(self, progress: Progress, stats: Stats | None) -> None:
        line = self.text(progress, stats)
        # A program without a console has no such stream.  The end often says what the last look has said.
        if self._stream is not None and line != self._last:
            self._last = line
            self._stream.write(f"{line}\n")
            self._stream.flush()

    close = show

    def text(self, progress: Progress, stats: Stats | None) -> str:
        return str(progress)


class Redrawn(ABC):
    """What stands at the bottom of a terminal, with prints of jobs above it."""

    interval = INTERVAL_SECONDS
    shows_beginning = False
    takes_prints = True

    def __init__(self) -> None:
        self._drawing = threading.RLock()
        # What jobs have printed to each stream since the last end of a line.
        self._begun: dict[str, Any] = {}
        self._is_open = True

    @abstractmethod
    def draw(self, progress: Progress, stats: Stats | None) -> None: ...

    @abstractmethod
    def erase(self) -> None: ...

    @abstractmethod
    def redraw(self) -> None: ...

    @abstractmethod
    def leave(self) -> None:
        """Leave the line as it is, and go to the next."""

    def write_to(self, name: str, written: str | bytes) -> None:
        """Write to the standard stream of that name, where the view does not stand in the way."""
        streams.put(name, written)

    def show(self, progress: Progress, stats: Stats | None) -> None:
        with self._drawing:
            self.draw(progress, stats)

    def release(self) -> None:
        pass

    def close(self, progress: Progress, stats: Stats | None) -> None:
        with self._drawing:
            self._is_open = False
            begun, self._begun = self._begun, {}
            if begun:
                self.erase()
                for name, written in begun.items():
                    self.write_to(name, written)
                    self.write_to(name, "\n")
            self.draw(progress, stats)
            self.leave()

    def put(self, name: str, written: Any) -> None:
        with self._drawing:
            if not self._is_open:
                self.write_to(name, written)
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
            self.write_to(name, written)
        finally:
            self.redraw()


class Line(Redrawn):
    """A plain line of our own."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._text = ""

    def draw(self, progress: Progress, stats: Stats | None) -> None:
        self._text = str(progress)
        self.redraw()

    def erase(self) -> None:
        self._stream.write(CLEAR_LINE)
        self._stream.flush()

    def redraw(self) -> None:
        columns, _ = size_of(self._stream)
        # A full line would make some terminals go to the next.
        self._stream.write(CLEAR_LINE + self._text[: columns - 1])
        self._stream.flush()

    def leave(self) -> None:
        self._stream.write("\n")
        self._stream.flush()


class Tqdm(Redrawn):
    """A bar of tqdm; raises where there is none."""

    def __init__(self, stream: Any, total: int | None, is_notebook: bool) -> None:
        super().__init__()
        settings: dict[str, Any] = {"total": total, "unit": " items", "dynamic_ncols": True, "disable": False}
        if is_notebook and (widget := _class_of("tqdm.notebook")) is not None:
            self._bar = widget(**settings)
        else:
            self._bar = _class_of("tqdm.std")(file=stream, **settings)

    def draw(self, progress: Progress, stats: Stats | None) -> None:
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
