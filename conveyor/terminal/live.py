"""The live view of the steps: on a terminal, in a notebook, or as a line now and then.

Law: the view stands below all that is printed meanwhile, and whatever the screen was given stays on it at the end.  No
item is shown.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Sequence

from conveyor._lean.short_repr import counted
from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.engines.process.system import streams
from conveyor.stats import Decision, Progress, Stats
from conveyor.terminal.bar import Log, Quiet, Redrawn, View, in_notebook, is_terminal, new_bar, size_of
from conveyor.terminal.table import BAD, FANCY, GAUGE, HEAD, SIMPLE, SLOWEST, SOFT, Piece, StepsTable, cells, count

NOTEBOOK_INTERVAL_SECONDS = 1.0
# How many decisions of the balancer one look tells of: the newest.
MOST_DECISIONS = 5
# What rich makes of each role.
_STYLES = {HEAD: "bold", SLOWEST: "bold yellow", BAD: "bold red", GAUGE: "cyan", SOFT: "dim"}


def new_live_view(total: int | None) -> View:
    """Return the best that there is for the standard error stream."""
    if in_notebook():
        # What displays may be missing, or too old.
        with contextlib.suppress(Exception):
            return NotebookView()
        return new_bar(total)
    # Below the view of another pipeline there is no room for a second one.
    if is_terminal(sys.stderr) and not isinstance(sys.stderr, _Above):
        return LiveView(sys.stderr)
    return StepsLog(sys.stderr)


class _Decisions:
    """Which decisions of the balancer belong to this run, and are news."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._since: float | None = None
        self._told: list[Decision] = []

    def news(self, stats: Stats) -> list[Decision]:
        """Return what was decided since the last call, or since the beginning: the oldest first."""
        if self._since is None:
            self._since = stats.seconds - (time.monotonic() - self._began)
        # Several may be of the same moment.
        new = [each for each in stats.decisions if each.at >= self._since and each not in self._told]
        if new:
            self._since = new[-1].at
            self._told = [each for each in [*self._told, *new] if each.at == self._since]
        return new


def _sentences(decisions: Sequence[Decision]) -> list[str]:
    skipped = len(decisions) - MOST_DECISIONS
    told = [f"{each.at:.1f} s  {each}" for each in decisions[-MOST_DECISIONS:]]
    return [f"{counted(skipped, 'more decision')} of the balancer", *told] if skipped > 0 else told


class StepsLog(Log):
    """The step that holds up the others, and what went wrong, in a line now and then."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._decisions = _Decisions()

    def text(self, progress: Progress, stats: Stats | None) -> str:
        parts = [str(progress)]
        if stats is None:
            return parts[0]
        slowest = stats.bottleneck
        if slowest is not None:
            step = stats[slowest]
            workers = counted(step.workers, "worker")
            parts.append(f"bottleneck {slowest} ({workers}, {step.busy:.0%} busy, {count(step.waiting)} waiting)")
        parts += [f"{step.processor}: {count(step.failed)} failed" for step in stats.steps if step.failed]
        return "\n".join([*_sentences(self._decisions.news(stats)), "; ".join(parts)])


class LiveView(Redrawn):
    """Several lines at the bottom of a terminal.  What this process prints to terminals stands above, too."""

    shows_beginning = True

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._table = StepsTable(FANCY if _can_write(stream, "".join(FANCY)) else SIMPLE)
        self._styled = _style_of(stream)
        self._decisions = _Decisions()
        # What was told last, the lines that this makes on a screen of some size, and how wide each line there is.
        self._told: tuple[Progress, Stats | None] | None = None
        self._size = (0, 0)
        self._lines: list[tuple[Piece, ...]] = []
        self._there: list[int] = []
        self._guards = {
            name: _Above(name, self) for name in streams.STANDARD_STREAMS if is_terminal(getattr(sys, name, None))
        }
        self._is_writing = False
        for each in self._guards.values():
            each.take()

    def draw(self, progress: Progress, stats: Stats | None) -> None:
        self._told, self._size = (progress, stats), (0, 0)
        if stats is not None:
            self._table.look(stats)
            if news := _sentences(self._decisions.news(stats)):
                self.erase()
                self._write("".join(f"{each}\n" for each in news))
        self.redraw()

    def erase(self) -> None:
        self._write(self._to_the_top() + "\x1b[J")
        self._there = []

    def redraw(self) -> None:
        if self._told is None:
            return
        if (size := size_of(self._stream)) != self._size:
            columns, rows = self._size = size
            # The cursor stands in the line below, and a full line would make some terminals go to the next.
            self._lines = self._table.lines(*self._told, columns - 1, rows - 1 if self._is_open else None)
        written = [self._to_the_top(), *(f"{self._styled(line)}\x1b[K\n" for line in self._lines), "\x1b[J"]
        self._there = [sum(cells(text) for text, _ in line) for line in self._lines]
        self._write("".join(written))

    def leave(self) -> None:
        self._stream.flush()

    def release(self) -> None:
        self._is_open = False
        for each in self._guards.values():
            each.give_back()

    def write_to(self, name: str, written: str | bytes) -> None:
        present, guard = getattr(sys, name, None), self._guards.get(name)
        if guard is not None and (present is guard or self._is_writing):
            streams.put_to(guard.below, written)
            return
        # What the program has put there since may write to the guard in its turn.
        self._is_writing = True
        try:
            streams.put_to(present, written)
        finally:
            self._is_writing = False

    def _to_the_top(self) -> str:
        """Return what moves the cursor to where the view begins."""
        columns, _ = size_of(self._stream)
        # Where the terminal has become narrower, its lines have been broken.
        rows = sum(max(1, -(-width // columns)) for width in self._there)
        return f"\r\x1b[{rows}A" if rows else "\r"

    def _write(self, text: str) -> None:
        streams.put_to(self._stream, text)
        self._stream.flush()


class _Above:
    """A standard stream of this process, of which a view shows whole lines above itself."""

    def __init__(self, name: str, view: LiveView) -> None:
        self._name = name
        self._view = view
        self._process = os.getpid()
        self.below: Any = getattr(sys, name)

    def take(self) -> None:
        setattr(sys, self._name, self)

    def give_back(self) -> None:
        # The program may have put another one there.
        if getattr(sys, self._name, None) is self:
            setattr(sys, self._name, self.below)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if os.getpid() == self._process:
            self._view.put(self._name, text)
        else:
            # In a process that was forked meanwhile there is no view.
            self.below.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


class NotebookView(Quiet):
    """A table in a cell of a notebook; raises where nothing can be displayed."""

    interval = NOTEBOOK_INTERVAL_SECONDS

    def __init__(self) -> None:
        from importlib import import_module

        display = import_module("IPython.display")
        self._page: Any = display.HTML
        self._handle = display.display(self._page("<p>0 items</p>"), display_id=True)

    def show(self, progress: Progress, stats: Stats | None) -> None:
        # Imported here: a terminal has no use for it.
        from conveyor.views.html import decisions_table, steps_table

        text = f"<p>{progress}</p>"
        if stats is not None:
            text += steps_table(stats) + decisions_table(stats)
        self._handle.update(self._page(text))

    close = show


def _can_write(stream: Any, text: str) -> bool:
    with contextlib.suppress(Exception):
        text.encode(stream.encoding)
        return True
    return False


def _style_of(stream: Any) -> Any:
    """Return what makes a line of its pieces: rich where it is installed, else nothing but the text."""
    with contextlib.suppress(Exception):
        from importlib import import_module

        console = import_module("rich.console").Console(
            file=io.StringIO(), force_terminal=True, width=10_000, highlight=False, legacy_windows=False
        )
        text_of = import_module("rich.text").Text.assemble

        def styled(line: tuple[Piece, ...]) -> str:
            with console.capture() as captured:
                console.print(text_of(*((text, _STYLES.get(role, "")) for text, role in line)), end="", soft_wrap=True)
            shown: str = captured.get()
            return shown

        styled((("", HEAD),))
        return styled
    return _plain


def _plain(line: tuple[Piece, ...]) -> str:
    return "".join(text for text, _ in line)
