"""The inline engine, as a pipeline sees it: jobs that are set up in the calling process, and the runs through them.

Law: one thread at a time is at a job.  Another one that closes the pipeline waits for that within a bound, and leaves
the rest to that thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from operator import length_hint

from conveyor._lean.short_repr import Redact, shown_by
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor._system.signals import interrupts_postponed
from conveyor.core.leasing.blame import too_many
from conveyor.core.tuning.roster import StepRoster
from conveyor.engines.base import Gathering, RunProgress, known_total
from conveyor.engines.failures import (
    failure_of,
    is_of_job,
    processor_error,
    source_raised,
    too_many_failures,
    unpicklable_input,
    without_our_frames,
)
from conveyor.engines.inline.hop import behind_hop
from conveyor.engines.inline.nodes import NOTHING, Failures, Walk, build
from conveyor.engines.inline.worker import InlineWorker
from conveyor.engines.process.wire.handles import guard_connections, job_copy
from conveyor.errors import FailedItem, ProcessorError, SourceError, StateError
from conveyor.graph.plan import Plan, StepNode
from conveyor.stages.outputs import WorkerRecord
from conveyor.stages.processor import Processor
from conveyor.stats import History, Sample, Stats, StepSample

if TYPE_CHECKING:
    from conveyor.engines.inline.gathered import InlineGatherer
    from conveyor.engines.inline.jobs import InlineJobRun

# How long a thread that closes a pipeline waits for another one that is at a job.
LETTING_GO_SECONDS = 1.0
CLOSED = "the pipeline was closed while a run was going on"
LEFT = "the stream was closed by another thread, or a signal handler, while it was waited for"


_everywhere: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """Jobs that are set up, from the start to `close`."""

    def __init__(self, plan: Plan, redact: Redact | None) -> None:
        self._plan = plan
        self.format_item = shown_by(redact)
        self._workers: dict[int, list[InlineWorker]] = {}
        self._ready: list[InlineWorker] = []
        self._run: InlineRun | InlineJobRun | None = None
        self.ended = False
        # Held by whoever is at a job, and whether somebody is.
        self._work = threading.RLock()
        self._at_work = False
        self._unwanted = False
        # What was given up last in the run that goes on, or was the last.
        self.failures: deque[FailedItem] = deque(maxlen=plan.setting("keep_failures"))
        self._opened = time.monotonic()
        self._closed: float | None = None
        # How far the run is that goes on, or was the last, None before the first; and samples of the steps.
        self._progress: RunProgress | None = None
        self._history = History()
        self._rosters = {step.index: StepRoster(step, range(step.workers)) for step in plan.steps}
        _everywhere.add(self)

    def warn(self, stacklevel: int) -> None:
        """There is nothing to warn of: nothing is started, and nothing shared."""

    def open(self) -> None:
        """Set the jobs up."""
        try:
            self.work(self._set_up)
        except BaseException:
            self.abort()
            raise

    def _set_up(self) -> None:
        for step in self._plan.steps:
            self._workers[step.index] = [self._new_worker(step, index) for index in range(step.workers)]
            for worker in self._workers[step.index]:
                if self._unwanted:
                    return
                try:
                    worker.set_up()
                except BaseException as error:
                    raise processor_error(step.name, failure_of(error, "setup"), None, None, error) from error
                self._ready.append(worker)

    def _new_worker(self, step: StepNode, index: int) -> InlineWorker:
        job = self._copy(step)
        record = WorkerRecord(step.name, index, job.job, self._plan.setting("shared"))
        record.is_stopping = self._is_stopping
        return InlineWorker(record, job)

    def _is_stopping(self) -> bool:
        """Whether nobody wants what the job at hand still gives: another thread closes the pipeline, or the stream."""
        return self._unwanted or (isinstance(self._run, InlineRun) and self._run.is_left)

    def work(self, call: Callable[[], Any]) -> Any:
        """Return what a call gives that runs jobs; raises StateError where the pipeline was closed meanwhile.

        One thread at a time is at a job.  Another one that closes the pipeline leaves it to that thread to tear the
        jobs down.
        """
        with self._work:
            try:
                self._at_work = True
                result = None if self._unwanted else call()
            finally:
                self._at_work = False
        if self._unwanted:
            raise StateError(CLOSED)
        return result

    def disown(self) -> None:
        """In a process that was forked since: end, where another thread was at a job, as that thread is not here."""
        if self._work.acquire(blocking=False):
            self._work.release()
        else:
            self._work = threading.RLock()
            self._at_work = False
            self._unwanted = self.ended = True

    def at_last(self, call: Callable[[], bool]) -> bool:
        """Return what a call gives that runs jobs; False where a thread is at a job, or the pipeline was closed."""
        if not self._work.acquire(blocking=False):
            return False
        try:
            if self._at_work or self._unwanted:
                return False
            self._at_work = True
            try:
                return call()
            finally:
                self._at_work = False
        finally:
            self._work.release()

    def between_jobs(self, call: Callable[[], None]) -> None:
        """Wait, within a bound, until no thread is at a job, and call something then; else leave it to that thread."""
        if self._work.acquire(timeout=LETTING_GO_SECONDS):
            try:
                if not self._at_work:
                    call()
            finally:
                self._work.release()

    def _copy(self, step: StepNode) -> Processor[Any, Any]:
        # State on `self` begins anew with each session, as it does in new processes.
        guard_connections()
        try:
            return job_copy(step.processor)
        except Exception as error:
            raise processor_error(step.name, failure_of(error, "load"), None, None, error) from error

    @property
    def prints(self) -> None:
        """Jobs print in this process."""

    @property
    def plan(self) -> Plan:
        """What runs."""
        return self._plan

    @property
    def names(self) -> list[str]:
        """The names of the Processors, in their order."""
        return [step.name for step in self._plan.steps]

    def judge(self, given_up: int, items: int, ended: bool) -> None:
        """Raise TooManyFailuresError where more was given up than may be, by a Processor of so many items or in all."""
        most, failed = self._plan.setting("max_failures"), 0 if self._progress is None else self._progress.failed
        if too_many(failed if isinstance(most, int) else given_up, items, ended, most):
            raise too_many_failures(failed, most, self.failures)

    def fail(self, failed: FailedItem) -> None:
        """Take in what was given up."""
        assert self._progress is not None
        self._progress.failed += 1
        self.failures.append(failed)

    @property
    def progress(self) -> RunProgress | None:
        """How far the run is that goes on, or was the last."""
        return self._progress

    def trace(self) -> None:
        """There are no workers to tell of."""
        return None

    @property
    def active(self) -> bool:
        """Whether a run is going on."""
        return self._run is not None

    def run(self, items: Iterable[Any], gathering: Gathering | None = None) -> InlineRun:
        """Start a run."""
        progress, gatherer = self._begin(known_total(items)), None
        if gathering is not None:
            # Few runs do that.
            from conveyor.engines.inline.gathered import InlineGatherer

            gatherer = InlineGatherer(self, progress, gathering)
        self._run = run = InlineRun(self, self._walk(gatherer), items, progress, gatherer)
        return run

    def submit_run(self) -> InlineJobRun:
        """Start a run of items that are submitted one by one."""
        # Few pipelines have any.
        from conveyor.engines.inline.jobs import InlineJobRun

        self._run = run = InlineJobRun(self, self._walk, self._begin(None))
        return run

    def _begin(self, total: int | None) -> RunProgress:
        """Begin to count what comes of a run with so many items; None: that is not known."""
        self.failures = deque(maxlen=self._plan.setting("keep_failures"))
        self._progress = progress = RunProgress(total)
        return progress

    def finished(self, run: InlineRun | InlineJobRun) -> None:
        """Take in that a run is over."""
        if self._run is run:
            self._run = None

    def _walk(self, failures: Failures | None = None) -> Walk:
        return build(self._plan, self._workers, self._rosters, self.format_item, failures or self)

    def stats(self) -> Stats:
        """Return what is known of the steps; the one that takes longest counts as having stalled all others."""
        passed, progress = (self._closed or time.monotonic()) - self._opened, self._progress
        steps = []
        for step in self._plan.steps:
            roster = self._rosters[step.index]
            busy = roster.totals.seconds
            spent = busy, 0.0, max(passed, busy), busy
            # All that is no call is done by the caller, between calls.
            steps.append(roster.stats(waiting=0, bound=step.bound, spent=spent, unreported=busy))
        stats = Stats(passed, self._plan.cores, tuple(steps), (), history=tuple(self._history.samples))
        return stats if progress is None else progress.added_to(stats)

    def sample(self) -> None:
        """Keep what the steps are like now, where it is time for that."""
        at = time.monotonic() - self._opened
        if self._history.is_due(at):
            all_totals = [self._rosters[step.index].totals for step in self._plan.steps]
            counts = [(each.items_in, each.items_out, each.failed, each.seconds) for each in all_totals]
            workers = [step.workers for step in self._plan.steps]
            samples = [StepSample(count, 0, *each) for count, each in zip(workers, counts, strict=True)]
            self._history.add(Sample(at, tuple(samples)))

    def close(self, deadline: float | None = None) -> None:
        """Tear the jobs down, however long that takes; raises ProcessorError for the first `teardown` that raised."""
        self._unwanted = True
        failures: list[ProcessorError] = []
        self.between_jobs(partial(self._tear_down, failures))
        run = self._run
        if run is not None:
            run.abandon()
        if failures:
            raise failures[0]

    def _tear_down(self, failures: list[ProcessorError]) -> None:
        if self.ended:
            return
        self.ended = True
        for worker in self._ready:
            try:
                worker.tear_down()
            except BaseException as error:
                if not is_of_job(error):
                    raise
                failures.append(processor_error(worker.record.name, failure_of(error, "teardown"), None, None, error))
        self._closed = time.monotonic()
        if self._run is not None:
            self._run.let_go()

    def abort(self) -> None:
        """Tear the jobs down, whatever they say."""
        with contextlib.suppress(ProcessorError):
            self.close()


class InlineRun:
    """One stream of items."""

    def __init__(
        self,
        session: Session,
        walk: Walk,
        items: Iterable[Any],
        progress: RunProgress,
        gatherer: InlineGatherer | None = None,
    ) -> None:
        self._session = session
        self._walk = walk
        self.progress = progress
        self._input: _Input | None = _Input(items, session.format_item)
        source = _counted(self._input.copies(beside=gatherer is not None), progress, session.sample)
        self._results: Generator[Any, None, None] | None
        self._results = _results_of(walk, source) if gatherer is None else gatherer.results_of(walk, source)
        # Whether each result is all that comes of an item, as a list.
        self._is_gathered = gatherer is not None
        self.rest: Iterator[Any] = iter(())
        # Whether nothing more will come, and whether it was given up.
        self.over = False
        self.is_left = False

    def chunks(self) -> Generator[list[Any], None, None]:
        """Yield the results, each in a list of its own."""
        try:
            while (result := self._session.work(self._next)) is not NOTHING:
                if self.is_left:
                    raise StateError(LEFT)
                if not self._is_gathered:
                    self.progress.results += 1
                    result = [result]
                yield result
            self.progress.finished = True
        except GeneratorExit:
            with interrupts_postponed():
                self.conclude()
            raise
        except BaseException:
            if not self.is_left:
                self._session.abort()
            raise
        finally:
            self._end()

    def _next(self) -> Any:
        return NOTHING if self._results is None else next(self._results, NOTHING)

    def _end(self) -> None:
        self.over = True
        self.let_go()
        self._session.finished(self)

    def let_go(self) -> None:
        """Refer to nothing of the input any more, and close a generator that gave it."""
        results, self._results, self._input = self._results, None, None
        if results is not None:
            results.close()

    def abandon(self) -> None:
        """Whoever is at a job sees that the session has ended."""

    def conclude(self) -> bool:
        """Where a consumer stops that has taken the last result, call `finish`; return whether that is so.

        An input whose length nobody knows has not ended before it says so, and it is not asked: it may take its time.
        """
        if self.over or self.is_left or length_hint(self.rest):
            return self.over
        try:
            over = self._session.at_last(self._conclude)
        except BaseException:
            self._session.abort()
            self._end()
            raise
        if over:
            self.progress.finished = True
            self._end()
        return over

    def _conclude(self) -> bool:
        if self._results is None or self._input is None:
            return False
        if self._walk.ended:
            # The consumer has had outputs of `finish`, and the run is not over where there are more.
            return self._next() is NOTHING
        try:
            settled = self._walk.settle() and self._input.has_ended()
        except Exception:
            # What goes wrong at items that the consumer does not want is no error.
            return False
        while settled and self._next() is not NOTHING:
            pass
        return settled

    def cancel(self) -> None:
        """Give the run up; whoever waits for its results gets StateError."""
        self.is_left = self.over = True
        self._session.between_jobs(self.let_go)
        self._session.finished(self)


def _results_of(walk: Walk, source: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Yield what comes of the items."""
    with contextlib.closing(source):
        for item in source:
            yield from walk.results_of(item)
    yield from walk.results_of_end()


def _counted(
    source: Generator[Any, None, None], progress: RunProgress, sample: Callable[[], None]
) -> Generator[Any, None, None]:
    """Yield the items of a source, and count them."""
    with contextlib.closing(source):
        for item in source:
            progress.pulled += 1
            yield item
            progress.through += 1
            sample()
    progress.ended = True


class _Input:
    """The caller's items; nothing here refers to them once they were pulled."""

    def __init__(self, items: Iterable[Any], format_item: Callable[[Any], str]) -> None:
        self._items: Iterable[Any] | None = items
        self._iterator: Iterator[Any] | None = None
        self._format_item = format_item

    def copies(self, beside: bool) -> Generator[Any, None, None]:
        """Yield the items as they are behind a hop, or `beside` the items themselves; closes a generator that gives
        them."""
        number, item = 0, None
        try:
            items, self._items = self._items, None
            assert items is not None
            self._iterator = iter(items)
            del items
            while True:
                try:
                    item = next(self._iterator)
                except StopIteration:
                    return
                try:
                    item = (item, behind_hop(item)) if beside else behind_hop(item)
                except (Exception, SystemExit) as error:
                    raise unpicklable_input(number, self._format_item(item), _bare(error)) from error
                yield item
                number += 1
        except SourceError:
            raise
        except BaseException as error:
            if not is_of_job(error):
                raise
            raise source_raised(number, _bare(error)) from error
        finally:
            item = None
            if isinstance(self._iterator, Generator):
                self._iterator.close()
            self._iterator = None

    def has_ended(self) -> bool:
        """Whether nothing is left, as far as that is known without waiting for the caller's own code."""
        left = self._iterator if self._items is None else self._items
        if left is None or length_hint(left, 1):
            return left is None
        return self._iterator is None or next(self._iterator, NOTHING) is NOTHING


def _bare(error: BaseException) -> BaseException:
    """Return an exception without the frames of this package, which hold the input."""
    return error.with_traceback(without_our_frames(error.__traceback__))


def _disown_all() -> None:
    for session in list(_everywhere):
        session.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
