"""The page of one pipeline: what it says when it is asked, from the first word to the last.

Law: however many look on, the pipeline is asked for events no more often than each `FRESH_SECONDS`.  Nothing of a view
is kept but the last one, and the newest failures alone are in it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable
from itertools import islice

from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any, Protocol
from conveyor._system.clock import time
from conveyor.engines.base import PipelineSettings, RunProgress, Session
from conveyor.errors import FailedItem, StateError
from conveyor.serving.address import check_port, port_of_environment, token, token_of_process, url_of
from conveyor.serving.requests import Answers, Unanswered
from conveyor.serving.server import Server
from conveyor.stats import SERVE_VARIABLE, Progress, Stats
from conveyor.views.live import View, event_of, page_html, parts_of
from conveyor.views.metrics import metrics_text
from conveyor.views.report import report_html

if TYPE_CHECKING:
    from conveyor.graph.builder import Description

FRESH_SECONDS = 0.3
# How long a request waits for another one that asks the pipeline just now.
LOOK_SECONDS = 5.0
# Of the items that were given up, the newest.
MOST_FAILURES = 20
# The rate is that of so many seconds.
RATE_SECONDS = 10.0
_TOO_EARLY = "There are no statistics yet: the pipeline has not been opened or run."


class Watched(Protocol):
    """A pipeline, as far as a page asks it."""

    page: Page | None
    opened: bool

    @property
    def settings(self) -> PipelineSettings: ...

    @property
    def description(self) -> Description: ...

    @property
    def last(self) -> Session | None: ...

    @property
    def failures(self) -> tuple[FailedItem, ...]: ...

    def known_stats(self) -> Stats | None: ...


class Pace:
    """How far a run is, and how fast it was lately."""

    def __init__(self) -> None:
        self._progress: RunProgress | None = None
        # When it was looked at, and how many items were through; whether that was the end.
        self._told: deque[tuple[float, int]] = deque()
        self._is_over = False

    def watch(self, progress: RunProgress) -> None:
        """Have the next statistics say how far that run is."""
        if progress is not self._progress:
            self._progress, self._is_over = progress, False
            self._told.clear()
            if not progress.finished:
                self._told.append((progress.began, 0))
        progress.is_watched = True

    def of(self, progress: RunProgress, stats: Stats) -> Progress:
        """Return how far it is, after the statistics were asked for."""
        now, finished = time.monotonic(), progress.finished
        before = self._told[-1][1] if self._told else 0
        done = progress.pulled if finished else min(progress.pulled, max(progress.through, before))
        total = progress.total
        if finished or progress.ended:
            total = progress.pulled
        elif total is not None:
            total = max(total, progress.pulled)
        if finished and not self._told:
            # Nobody has looked on, and knows how long it took.
            return Progress(done, total, None, 0.0, stats.steps)
        if not self._is_over:
            self._told.append((now, done))
            self._is_over = finished
        while not finished and len(self._told) > 2 and self._told[0][0] < now - RATE_SECONDS:
            self._told.popleft()
        since, first = (progress.began, 0) if finished else self._told[0]
        until, last = self._told[-1]
        rate = (last - first) / (until - since) if last > first and until > since else None
        eta = (total - done) / rate if total is not None and rate else None
        return Progress(done, total, rate, 0.0 if finished else eta, stats.steps)


class Page(Answers):
    """Looks at a pipeline for those who ask, until it is closed."""

    def __init__(self, watched: Watched, port: int, token: str, *, of_environment: bool = False) -> None:
        self.token = token
        self.of_environment = of_environment
        self._watched = watched
        # Held by whoever asks the pipeline.
        self._looking = threading.Lock()
        self._view: View | None = None
        self._looked_at = 0.0
        # The parts of the page, of the view that was last made into some: all who look on get the same.
        self._parts: tuple[View, dict[str, str]] | None = None
        self._pace = Pace()
        self._has_failed = False
        self.refusal: str | None = None
        try:
            self._server = Server(port, self)
        except OSError as error:
            if not port:
                raise
            self._server = Server(0, self)
            self.refusal = (
                f"port {port} cannot be used ({error.strerror or error}): the page of this pipeline is at port "
                f"{self._server.server_port} instead"
            )
        self._server.resume()

    @property
    def url(self) -> str:
        """The address, with the token."""
        return url_of(self._server.server_port, self.token)

    def session_over(self) -> None:
        """Take in that an operation is over: a page that the environment wants is there for a session alone."""
        if self.of_environment and not self._watched.opened:
            self.close()

    def close(self) -> None:
        """Tell who looks on how it ended, and end all threads."""
        if self._watched.page is self:
            self._watched.page = None
        # What is told at the end is to be new.
        self._looked_at = 0.0
        self._server.close()

    # What the pipeline says

    def view(self, fresh: float = 0.0) -> View:
        """Return what is known now, or was so many seconds ago."""
        if not self._looking.acquire(timeout=LOOK_SECONDS):
            if self._view is None:
                raise Unanswered("The pipeline does not answer just now.", later=True)
            return self._view
        try:
            if self._view is None or time.monotonic() > self._looked_at + fresh:
                self._view, self._looked_at = self._look(), time.monotonic()
            return self._view
        finally:
            self._looking.release()

    def _look(self) -> View:
        watched, session = self._watched, self._watched.last
        progress = None if session is None else session.progress
        if progress is not None:
            self._pace.watch(progress)
        stats = watched.known_stats()
        pace = None if progress is None or stats is None else self._pace.of(progress, stats)
        failed = () if session is None else islice(reversed(session.failures.copy()), MOST_FAILURES)
        return View(
            _state_of(session, progress),
            watched.settings.graph_of(watched.description),
            stats,
            pace,
            tuple(failed),
            _version(),
            watched.settings.trace is not None,
        )

    def page(self, nonce: str) -> str:
        return page_html(self.view(), self.token, nonce)

    def event(self, known: dict[str, str]) -> str:
        view = self.view(FRESH_SECONDS)
        if self._parts is None or self._parts[0] is not view:
            self._parts = view, parts_of(view)
        return event_of(*self._parts, known)

    def _stats(self) -> Stats:
        stats = self.view().stats
        if stats is None:
            raise Unanswered(_TOO_EARLY, later=True)
        return stats

    def numbers(self) -> str:
        return json.dumps(self._stats().to_dict())

    def metrics(self) -> str:
        session = self._watched.last
        return metrics_text(self.view().stats, session is not None and not session.ended, _version())

    def report_page(self) -> str:
        watched, stats = self._watched, self._stats()
        graph = watched.settings.graph_of(watched.description)
        return report_html(graph, stats, watched.failures, watched.settings.code(), _version())

    def trace(self) -> Iterable[str]:
        settings, session = self._watched.settings, self._watched.last
        if settings.trace is None:
            raise Unanswered('This pipeline keeps no trace. Remedy: Pipeline(trace="run.json.gz").')
        if session is None:
            raise Unanswered(_TOO_EARLY, later=True)
        lines = session.trace()
        if lines is None:
            raise Unanswered("The pipeline has no trace to give just now.", later=True)
        return lines

    def report(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            # Handlers are the program's, and may raise.
            with contextlib.suppress(Exception):
                logging.getLogger("conveyor").warning(
                    "The page of a pipeline failed to answer: %s. The run goes on.", short(error), exc_info=error
                )


def _version() -> str:
    return str(vars(sys.modules["conveyor"])["__version__"])


def _state_of(session: Session | None, progress: RunProgress | None) -> str:
    if session is None:
        return "Not started yet"
    if session.active:
        return "Running"
    if progress is not None and progress.finished:
        return "Done" if session.ended else "Done, and open for more"
    return "Ended" if session.ended else "Open" if progress is None else "Open, after a run that was given up"


class Served(contextlib.AbstractContextManager[str]):
    """What `Pipeline.serve` returns: a context manager, as which it gives the address."""

    def __init__(self, owner: object, watched: Watched, port: int) -> None:
        check_port(port)
        # Keeps the pipeline alive: when it is dropped, its page ends.
        self._owner = owner
        self._watched = watched
        self._port = port
        self._page: Page | None = None

    def __enter__(self) -> str:
        before = self._watched.page
        if before is not None and not before.of_environment:
            raise StateError(
                "a page of this pipeline is served already: use the address of that, or leave its `with` first"
            )
        if before is not None:
            before.close()
        self._page = page = self._watched.page = Page(self._watched, self._port, token())
        if page.refusal is not None:
            try:
                warnings.warn(f"serve: {page.refusal}", RuntimeWarning, stacklevel=2)
            except BaseException:
                page.close()
                raise
        return page.url

    def __exit__(self, *exception: object) -> None:
        if self._page is not None:
            self._page.close()


def page_of_environment(watched: Watched) -> Page | None:
    """Return a page at the address in `CONVEYOR_SERVE`, and print where it is; None in a worker.

    Raises ValueError where that is no such address.
    """
    if multiprocessing.parent_process() is not None:
        return None
    port = port_of_environment(os.environ[SERVE_VARIABLE])
    try:
        page = Page(watched, port, token_of_process(), of_environment=True)
    except OSError as error:
        _print(f"conveyor: {SERVE_VARIABLE}: there is no page, as no port can be had ({error})")
        return None
    if page.refusal is not None:
        _print(f"conveyor: {SERVE_VARIABLE}: {page.refusal}")
    _print(f"conveyor: the pipeline can be looked at: {page.url}")
    return page


def _print(line: str) -> None:
    stream: Any = sys.stderr
    # A program may have none, or one that is closed.
    with contextlib.suppress(Exception):
        stream.write(f"{line}\n")
        stream.flush()
