"""The inline engine: everything in the calling process, one item at a time.

Law: this is the specification.  It is the simplest code that is right: an item goes the whole way before the
next one is pulled, a fork serves its branches in order, and the end of the stream runs through the graph in the
same order.  What goes from one Processor to the next is copied, as it is between processes.  Every other
engine's ordered results equal these.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import islice, zip_longest

from conveyor._lean.short_repr import Redact, shown_by
from conveyor._lean.typing import TYPE_CHECKING, Any, Protocol
from conveyor._system.clock import sleep, time
from conveyor.core.leasing.blame import too_many
from conveyor.core.tuning.roster import Durations
from conveyor.engines.failures import failure_of, processor_error, too_many_failures, without_our_frames
from conveyor.engines.process.wire.codec import copied
from conveyor.engines.process.wire.handles import guard_connections
from conveyor.errors import FailedItem, ProcessorError, SourceError, StateError
from conveyor.graph.plan import (
    BalanceNode,
    LeaveNode,
    MergeNode,
    Node,
    Plan,
    ReplicateNode,
    SinkNode,
    StepNode,
    ZipNode,
)
from conveyor.stages.failure_policy import policy_of
from conveyor.stages.outputs import outputs_of
from conveyor.stages.processor import Processor, work_of
from conveyor.stats import Stats, StepStats

if TYPE_CHECKING:
    from conveyor.engines import base
    from conveyor.engines.base import PipelineSettings

_NOTHING = object()
# How long a thread that closes a pipeline waits for another one that is at a job.
LETTING_GO_SECONDS = 1.0
CLOSED = "the pipeline was closed while a run was going on"
LEFT = "the stream was closed by another thread, or a signal handler, while it was waited for"


class _Part(Protocol):
    """One node at work: what comes of an item, or of the end, is yielded as it reaches the results."""

    def accept(self, port: int, item: Any) -> Iterator[Any]: ...

    def end(self, port: int) -> Iterator[Any]: ...


class _Output:
    """One input of a node further down."""

    def __init__(self, part: _Part, port: int) -> None:
        self._part = part
        self._port = port

    def accept(self, item: Any) -> Iterator[Any]:
        return self._part.accept(self._port, item)

    def end(self) -> Iterator[Any]:
        return self._part.end(self._port)


class _Tally:
    """What is counted of one Processor."""

    def __init__(self) -> None:
        self.items_in = 0
        self.items_out = 0
        self.failed = 0
        self.units = 0
        self.seconds = 0.0
        self.durations = Durations()

    def done(self, seconds: float) -> None:
        """Take in how long one call took."""
        self.units += 1
        self.seconds += seconds
        self.durations.add(seconds)

    def stats(self, node: StepNode, passed: float) -> StepStats:
        """Return what the user is told."""
        return StepStats(
            processor=node.name,
            workers=node.workers,
            starting=0,
            most_workers=node.workers,
            items_in=self.items_in,
            items_out=self.items_out,
            failed=self.failed,
            waiting=0,
            bound=node.bound,
            units=self.units,
            mean=self.seconds / self.units if self.units else None,
            p50=self.durations.share(0.5),
            p99=self.durations.share(0.99),
            busy=min(1.0, self.seconds / passed) if passed else 0.0,
            cpu=0.0,
            blocked=0.0,
            stalled=self.seconds,
        )


class _Step:
    """A Processor: its workers take turns."""

    def __init__(
        self,
        node: StepNode,
        jobs: list[Processor[Any, Any]],
        tally: _Tally,
        output: _Output,
        shown: Callable[[Any], str],
        session: Session,
    ) -> None:
        self._node = node
        self._shown = shown
        self._policy = policy_of(node.processor)
        self._session = session
        self._given_up = 0
        self._jobs = jobs
        self._tally = tally
        self._output = output
        self._turn = 0
        self._begun = 0
        self._batch: list[Any] = []

    def accept(self, port: int, item: Any) -> Iterator[Any]:
        if self._node.batch is None:
            yield from self._process(item, 1)
            return
        self._batch.append(item)
        if len(self._batch) == self._node.batch:
            batch, self._batch = self._batch, []
            yield from self._process(batch, len(batch))

    def end(self, port: int) -> Iterator[Any]:
        if self._batch:
            batch, self._batch = self._batch, []
            yield from self._process(batch, len(batch))
        if self._node.finishes:
            for job in self._jobs:
                yield from self._finish(job)
        self._session.judge(self._given_up, self._begun, ended=True)
        yield from self._output.end()

    def _finish(self, job: Processor[Any, Any]) -> Iterator[Any]:
        outputs = self._raising("finish", lambda: outputs_of(job.finish(), False))
        while (output := self._raising("finish", lambda: next(outputs, _NOTHING))) is not _NOTHING:
            yield from self._pass_on(output, None, None)

    def _raising(self, phase: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Exception, SystemExit) as error:
            raise self._error(error, phase, None) from error

    def _process(self, unit: Any, items: int) -> Iterator[Any]:
        number = self._begun
        self._begun += items
        self._tally.items_in += items
        job = self._jobs[self._turn]
        self._turn = (self._turn + 1) % len(self._jobs)
        attempts = self._attempts(job, unit, number, items)
        seconds = 0.0
        while True:
            begun = time.perf_counter()
            output = next(attempts, _NOTHING)
            seconds += time.perf_counter() - begun
            if output is _NOTHING:
                self._tally.done(seconds)
                return
            yield from self._pass_on(output, unit, (job, number, items))

    def _attempts(self, job: Processor[Any, Any], unit: Any, number: int, items: int) -> Iterator[Any]:
        """Yield what the job gives for a unit, in as many attempts as it may have."""
        policy, call, attempts, given = self._policy, work_of(job), 0, 0
        failed: BaseException | None = None
        while True:
            attempts += 1
            try:
                # The job may change what it gets, and has to get the same with each attempt.
                got = unit if policy.strict else copied(unit)
                for output in islice(outputs_of(call(got), self._node.processor.keep_none), given, None):
                    given += 1
                    yield output
                return
            except (Exception, SystemExit) as error:
                failed = error
            try:
                if policy.tries_again(failed, attempts):
                    sleep(policy.delay(attempts))
                    continue
                if not policy.gives_up:
                    raise self._error(failed, "process", number, items, self._shown(unit), attempts) from failed
                replacement = self._give_up(job, failed, "process", unit, number, items, attempts)
            finally:
                # Its traceback refers to this frame.
                failed = None
            if replacement is not None:
                yield replacement
            return

    def _give_up(
        self,
        job: Processor[Any, Any],
        error: BaseException,
        phase: str,
        unit: Any,
        number: int,
        items: int,
        attempts: int = 1,
        output: Any = _NOTHING,
    ) -> Any:
        """Report a unit, or an output of it; return what goes on in its place."""
        policy, shown, replacement, when = policy_of(job), self._shown(unit), None, time.time()
        failed = self._error(error, phase, number, items, shown, attempts, output)
        if policy.replaces:
            assert callable(policy.on_error)
            try:
                replacement = policy.on_error(copied(unit), error)  # type: ignore[arg-type]
            except (Exception, SystemExit) as second:
                raise self._error(second, "on_error", number, items, shown) from second
            try:
                replacement = copied(replacement)
            except Exception as second:
                raise self._error(second, "pickle", number, items, shown, output=replacement) from second
        self._given_up += items
        self._tally.failed += items
        self._session.fail(FailedItem(self._node.name, number, number + items - 1, failed.item, failed, attempts, when))
        self._session.judge(self._given_up, self._begun, ended=False)
        return replacement

    def _pass_on(self, output: Any, unit: Any, source: tuple[Processor[Any, Any], int, int] | None) -> Iterator[Any]:
        """Pass on an output, as it is behind a hop; one that cannot be pickled is given up, or ends the run."""
        self._tally.items_out += 1
        try:
            copy = copied(output)
        except Exception as error:
            if source is None:
                raise self._error(error, "pickle", None, output=output) from error
            job, number, items = source
            if not self._policy.gives_up:
                raise self._error(error, "pickle", number, items, self._shown(unit), output=output) from error
            copy = self._give_up(job, error, "pickle", unit, number, items, output=output)
            if copy is None:
                self._tally.items_out -= 1
                return
        yield from self._output.accept(copy)

    def _error(
        self,
        error: BaseException,
        phase: str,
        number: int | None,
        items: int = 1,
        item: str | None = None,
        attempts: int = 1,
        output: Any = _NOTHING,
    ) -> ProcessorError:
        failure = failure_of(error, phase, item, attempts)
        if output is not _NOTHING:
            failure = failure.about(self._shown(output))
        last = None if number is None else number + items - 1
        return processor_error(self._node.name, failure, number, last, error)


class _Replicate:
    """A ReplicatingFork: the branches have the item one after another."""

    def __init__(self, node: ReplicateNode, outputs: list[_Output], zips: list[tuple[int, _Zip]]) -> None:
        self._outputs = outputs
        self._zips = zips

    def accept(self, port: int, item: Any) -> Iterator[Any]:
        for branch, output in enumerate(self._outputs):
            yield from output.accept(copied(item))
            for last_branch, rows in self._zips:
                if last_branch == branch:
                    yield from rows.close_group()

    def end(self, port: int) -> Iterator[Any]:
        for output in self._outputs:
            yield from output.end()


class _Balance:
    """A BalancingFork: the branches take turns."""

    def __init__(self, node: BalanceNode, outputs: list[_Output]) -> None:
        self._unit = node.unit
        self._outputs = outputs
        self._given = 0

    def accept(self, port: int, item: Any) -> Iterator[Any]:
        branch = self._given // self._unit % len(self._outputs)
        self._given += 1
        yield from self._outputs[branch].accept(item)

    def end(self, port: int) -> Iterator[Any]:
        for output in self._outputs:
            yield from output.end()


class _Merge:
    """A Join that merges, or the end of a fork: items come in the right order already."""

    def __init__(self, ports: int, output: _Output) -> None:
        self._open = ports
        self._output = output

    def accept(self, port: int, item: Any) -> Iterator[Any]:
        return self._output.accept(item)

    def end(self, port: int) -> Iterator[Any]:
        self._open -= 1
        if not self._open:
            yield from self._output.end()


class _Zip:
    """A Join that zips: rows are made when all branches have had the item."""

    def __init__(self, ports: int, output: _Output) -> None:
        self._open = ports
        self._lanes: list[list[Any]] = [[] for _ in range(ports)]
        self._output = output

    def accept(self, port: int, item: Any) -> Iterator[Any]:
        self._lanes[port].append(item)
        return iter(())

    def close_group(self) -> Iterator[Any]:
        rows = list(zip_longest(*self._lanes))
        for lane in self._lanes:
            lane.clear()
        for row in rows:
            yield from self._output.accept(row)

    def end(self, port: int) -> Iterator[Any]:
        self._open -= 1
        if not self._open:
            yield from self.close_group()
            yield from self._output.end()


class _Sink:
    """The results."""

    def accept(self, port: int, item: Any) -> Iterator[Any]:
        yield item

    def end(self, port: int) -> Iterator[Any]:
        return iter(())


class Session:
    """Jobs that are set up, from the start to `close`."""

    def __init__(self, plan: Plan, redact: Redact | None) -> None:
        self._plan = plan
        self.shown = shown_by(redact)
        self._jobs: dict[int, list[Processor[Any, Any]]] = {}
        self._ready: list[tuple[str, Processor[Any, Any]]] = []
        self._run: InlineRun | None = None
        self.ended = False
        # Held by whoever is at a job, and whether somebody is.
        self._work = threading.RLock()
        self._at_work = False
        self._unwanted = False
        # What was given up last in the run that goes on, or was the last, and how many times that was.
        self.failures: deque[FailedItem] = deque(maxlen=plan.keep_failures)
        self._failed = 0
        self._opened = time.monotonic()
        self._closed: float | None = None
        self._tallies = {step.index: _Tally() for step in plan.steps}

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
            self._jobs[step.index] = [self._copy(step) for _ in range(step.workers)]
            for job in self._jobs[step.index]:
                if self._unwanted:
                    return
                try:
                    job.setup()
                except BaseException as error:
                    raise processor_error(step.name, failure_of(error, "setup"), None, None, error) from error
                self._ready.append((step.name, job))

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
            return copy.deepcopy(step.processor)
        except Exception as error:
            raise processor_error(step.name, failure_of(error, "load"), None, None, error) from error

    @property
    def names(self) -> list[str]:
        """The names of the Processors, in their order."""
        return [step.name for step in self._plan.steps]

    def judge(self, given_up: int, items: int, ended: bool) -> None:
        """Raise TooManyFailuresError where more was given up than may be, by a Processor of so many items or in all."""
        most = self._plan.max_failures
        if too_many(self._failed if isinstance(most, int) else given_up, items, ended, most):
            raise too_many_failures(self._failed, most, self.failures)

    def fail(self, failed: FailedItem) -> None:
        """Take in what was given up."""
        self._failed += 1
        self.failures.append(failed)

    @property
    def active(self) -> bool:
        """Whether a run is going on."""
        return self._run is not None

    def run(self, items: Iterable[Any]) -> InlineRun:
        """Start a run."""
        self.failures = deque(maxlen=self._plan.keep_failures)
        self._failed = 0
        self._run = InlineRun(self, self._build(), items)
        return self._run

    def finished(self, run: InlineRun) -> None:
        """Take in that a run is over."""
        if self._run is run:
            self._run = None

    def _build(self) -> _Output:
        parts: dict[int, _Part] = {}
        plan = self._plan

        def output(target: Any) -> _Output:
            return _Output(parts[target.node], target.port)

        for node in reversed(plan.nodes):
            parts[node.index] = self._part(node, output, parts)
        return _Output(parts[0], 0)

    def _part(self, node: Node, output: Any, parts: dict[int, Any]) -> _Part:
        match node:
            case StepNode():
                jobs, tally = self._jobs[node.index], self._tallies[node.index]
                return _Step(node, jobs, tally, output(node.to), self.shown, self)
            case ReplicateNode():
                zips = [
                    (each.last_branch, parts[each.index])
                    for each in self._plan.nodes
                    if isinstance(each, ZipNode) and each.fork == node.index
                ]
                return _Replicate(node, [output(target) for target in node.to], zips)
            case BalanceNode():
                return _Balance(node, [output(target) for target in node.to])
            case MergeNode():
                return _Merge(len(node.bounds), output(node.to))
            case ZipNode():
                return _Zip(len(node.bounds), output(node.to))
            case LeaveNode():
                return _Merge(1, output(node.to))
            case SinkNode():
                return _Sink()

    def stats(self) -> Stats:
        """Return what is known of the steps; the one that takes longest counts as having stalled all others."""
        passed = (self._closed or time.monotonic()) - self._opened
        steps = tuple(self._tallies[step.index].stats(step, passed) for step in self._plan.steps)
        return Stats(passed, self._plan.cores, steps, ())

    def close(self) -> None:
        """Tear the jobs down; raises ProcessorError for the first `teardown` that raised."""
        self._unwanted = True
        failures: list[ProcessorError] = []
        self.between_jobs(partial(self._tear_down, failures))
        if failures:
            raise failures[0]

    def _tear_down(self, failures: list[ProcessorError]) -> None:
        if self.ended:
            return
        self.ended = True
        for name, job in self._ready:
            try:
                job.teardown()
            except (Exception, SystemExit) as error:
                failures.append(processor_error(name, failure_of(error, "teardown"), None, None, error))
        self._closed = time.monotonic()
        if self._run is not None:
            self._run.let_go()

    def abort(self) -> None:
        """Tear the jobs down, whatever they say."""
        with contextlib.suppress(ProcessorError):
            self.close()


def new_session(plan: Plan, settings: PipelineSettings) -> base.Session:
    """Return a session of this engine: what `conveyor.engines.base.ENGINES` names."""
    return Session(plan, settings.redact)


class InlineRun:
    """One stream of items."""

    def __init__(self, session: Session, first: _Output, items: Iterable[Any]) -> None:
        self._session = session
        self._results: Generator[Any, None, None] | None = _results_of(first, _copies(items, session.shown))
        # Whether nothing more will come, and whether it was given up.
        self.over = False
        self._left = False

    def chunks(self) -> Generator[list[Any], None, None]:
        """Yield the results, each in a list of its own."""
        try:
            while (result := self._session.work(self._next)) is not _NOTHING:
                if self._left:
                    raise StateError(LEFT)
                yield [result]
        except GeneratorExit:
            raise
        except BaseException:
            if not self._left:
                self._session.abort()
            raise
        finally:
            self.over = True
            self.let_go()
            self._session.finished(self)

    def _next(self) -> Any:
        return _NOTHING if self._results is None else next(self._results, _NOTHING)

    def let_go(self) -> None:
        """Refer to nothing of the input any more, and close a generator that gave it."""
        results, self._results = self._results, None
        if results is not None:
            results.close()

    def cancel(self) -> None:
        """Give the run up; whoever waits for its results gets StateError."""
        self._left = self.over = True
        self._session.between_jobs(self.let_go)
        self._session.finished(self)


def _results_of(first: _Output, source: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Yield what comes of the items."""
    with contextlib.closing(source):
        for item in source:
            yield from first.accept(item)
    yield from first.end()


def _copies(items: Iterable[Any], shown: Callable[[Any], str]) -> Generator[Any, None, None]:
    """Yield the caller's items as they are behind a hop; closes a generator that gives them."""
    number, iterator, item = 0, None, None
    try:
        iterator = iter(items)
        del items
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            try:
                item = copied(item)
            except Exception as error:
                raise SourceError.unpicklable(number, shown(item), _bare(error)) from error
            yield item
            number += 1
    except SourceError:
        raise
    except (Exception, SystemExit) as error:
        raise SourceError.raised(number, _bare(error)) from error
    finally:
        item = None
        if isinstance(iterator, Generator):
            iterator.close()
        iterator = None


def _bare(error: BaseException) -> BaseException:
    """Return an exception without the frames of this package, which hold the input."""
    return error.with_traceback(without_our_frames(error.__traceback__))
