"""How far a run is, for people and for programs: a bar, a line, or values for a callable.

Law: imported when a run is watched, and no run is harmed by who watches it.  One thread at a time tells how far the run
is: a thread of its own, and at the end the one that ends the run.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from operator import length_hint

from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.engines.base import Gathering, Outlet, Run, Session
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.engines.process.system import streams
from conveyor.stats import PROGRESS_VARIABLE, Progress, Stats
from conveyor.terminal.bar import Quiet, View, new_bar

# How long the end of a run waits for a callable that has not returned.
JOIN_SECONDS = 5.0
# How long the thread that tells waits for whoever has ended the run, before it tells the end itself.
END_SECONDS = 1.0
# The rate is that of so many of the last intervals.
RATE_INTERVALS = 40
# The value of `progress` that shows all steps.
STEPS = "steps"
_EXPECTED = 'progress must be True, False, None, "steps" or a callable'


def watch_for(progress: Any, total: Any) -> Watch | None:
    """Return what watches a run; None where nobody does.  Raises TypeError or ValueError."""
    if total is not None:
        if isinstance(total, bool) or not isinstance(total, int):
            raise TypeError(f"total must be an int (a number of items) or None, not {short(total)}")
        if total < 0:
            raise ValueError(f"total must be 0 or more, not {total}")
    if isinstance(progress, str) and progress != STEPS:
        raise ValueError(f"{_EXPECTED}, not {short(progress)}")
    if not (progress is None or isinstance(progress, bool | str) or callable(progress)):
        raise TypeError(f"{_EXPECTED}, not {short(progress)}")
    wanted = os.environ.get(PROGRESS_VARIABLE)
    if progress is None and wanted == "1":
        # Imported here: without the variable nobody asks.
        import multiprocessing

        progress = multiprocessing.parent_process() is None
    if (progress is True or progress == STEPS) and wanted == "0":
        progress = False
    if not progress and not callable(progress):
        return None if total is None else Watch(None, total)
    return Watch(_maker_of(progress), total)


def _maker_of(progress: Any) -> Callable[[int | None], View]:
    """Return what makes the view, once the total is known."""
    if progress is True:
        return new_bar
    if progress != STEPS:
        return _Callable(progress).made
    # Imported here: a bar has no use for it.
    from conveyor.terminal.live import new_live_view

    return new_live_view


class Watch:
    """Watches one run, from `start` to `end`."""

    def __init__(self, new_view: Callable[[int | None], View] | None, total: int | None) -> None:
        self._new_view = new_view
        self._total = total
        self._process = os.getpid()
        self._view: View | None = None
        self._session: Session
        self._run: Run
        self._outlet: Outlet | None = None
        self._thread: threading.Thread | None = None
        self._wanted_end = threading.Event()
        self._ends_itself = False
        # How many items were through at the times when somebody was told; the first is the beginning.
        self._began = 0.0
        self._told: deque[tuple[float, int]] = deque(maxlen=RATE_INTERVALS + 1)

    def start(self, session: Session) -> Callable[..., Run]:
        """Return what starts a run over items; only the session keeps these."""

        def start(items: Iterable[Any], *gathering: Gathering) -> Run:
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
                self._run = run = session.run(items, *gathering)
            except BaseException:
                # The terminal may show something already.
                with contextlib.suppress(Exception):
                    if self._view is not None and self._view.takes_prints:
                        self._view.close(Progress(0, self._total, None, None), None)
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
        pause = 0.0 if self._view is not None and self._view.shows_beginning else None
        while (view := self._view) is not None and not self._wanted_end.wait(view.interval if pause is None else pause):
            pause = None
            if self._run.over or self._session.ended:
                # Mostly the thread that ends it is about to say so.
                self._ends_itself |= not self._wanted_end.wait(END_SECONDS)
                break
            with gate.passed(), self._guarded():
                view.show(*self._look())
        if self._ends_itself:
            self._close()

    def put(self, name: str, written: str) -> None:
        """Write to a standard stream of this process, above what is shown."""
        view = self._view
        (streams if view is None else view).put(name, written)

    def end(self) -> None:
        """Tell how far the run is now, for the last time."""
        thread = self._thread
        # Where what shows it has failed, the thread may be about to say so.
        if (self._view is None and thread is None) or os.getpid() != self._process:
            return
        if thread is threading.current_thread():
            # The collector, or the callable, ends the run in the thread that tells of it.
            self._ends_itself = True
            self._wanted_end.set()
            return
        self._wanted_end.set()
        if thread is not None:
            thread.join(JOIN_SECONDS)
            if thread.is_alive():
                # What shows it does not return, and must not be called in two threads.
                self._stop_showing()
                self._thread = None
                return
        self._close()

    def _close(self) -> None:
        """Show the end, once."""
        view = self._view
        if view is not None:
            try:
                with self._guarded():
                    view.close(*self._look())
            finally:
                self._stop_showing()

    def _stop_showing(self) -> None:
        view, self._view = self._view, None
        outlet, self._outlet = self._outlet, None
        if view is not None:
            view.release()
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
            # Imported here: with what it needs itself, it takes longer to import than all that shows a run.
            import logging

            logging.getLogger("conveyor").warning(
                "What shows the progress of a run raised %s: it is left out for the rest of the run.",
                short(error),
                exc_info=True,
            )

    def _look(self) -> tuple[Progress, Stats | None]:
        """Return how far the run is, and what is known of its steps."""
        # This asks the process engine how many items are through.
        stats = self._session.stats()
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
        steps = () if stats is None else stats.steps
        return Progress(done, total, rate, 0.0 if finished else eta, steps), stats


def _length(items: Iterable[Any]) -> int | None:
    """Return how many items the input says that it has; None where it does not, or raises."""
    try:
        hint = length_hint(items, -1)
    except Exception:
        return None
    return None if hint < 0 else hint


class _Callable(Quiet):
    """Calls what the program has given."""

    def __init__(self, call: Callable[[Progress], object]) -> None:
        self._call = call

    def made(self, total: int | None) -> View:
        return self

    def show(self, progress: Progress, stats: Stats | None) -> None:
        self._call(progress)

    close = show
