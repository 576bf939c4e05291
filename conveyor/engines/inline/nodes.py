"""The nodes of a plan at work, one item at a time.

Law: an item goes the whole way before the next one is pulled.  A fork serves its branches in order, and the end of the
stream runs through the graph in the same order.  What goes from one Processor to the next is copied, as it is between
processes.  A node says what goes where, and calls no other node: `Walk` does, so that a graph may be as deep as it
likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, zip_longest
from types import GeneratorType

from conveyor._lean.typing import Any, Protocol
from conveyor._system.clock import sleep, time
from conveyor.core import SLOW_CALL_SECONDS
from conveyor.core.tuning.roster import StepRoster
from conveyor.engines.failures import failure_of, is_of_job, processor_error, unpicklable_result
from conveyor.engines.inline.hop import Unloadable, behind_hop, first_unloadable
from conveyor.engines.inline.worker import InlineWorker
from conveyor.engines.process.wire.codec import copied
from conveyor.errors import FailedItem, ProcessorError
from conveyor.graph.plan import (
    BalanceNode,
    LeaveNode,
    MergeNode,
    Node,
    Plan,
    ReplicateNode,
    SinkNode,
    StepNode,
    Target,
    ZipNode,
)
from conveyor.stages.outputs import awaited, outputs_of
from conveyor.stages.settings import policy_of

NOTHING = object()
# What is delivered at the end of the stream, in the place of an item.
_END = object()


class Failures(Protocol):
    """Who is told of what was given up."""

    def fail(self, failed: FailedItem) -> None: ...

    def judge(self, given_up: int, items: int, ended: bool) -> None: ...


class _InlineNode(Protocol):
    """One node at work: it yields what is to be delivered because of an item, or of the end."""

    def accept(self, port: int, item: Any) -> Iterator[Delivery]: ...

    def end(self, port: int) -> Iterator[Delivery]: ...

    @property
    def idle(self) -> bool:
        """Whether nothing is kept here, and no generator of a job is under way."""


class Output:
    """One input of a node further down."""

    __slots__ = ("accept", "end", "is_sink")

    def __init__(self, part: _InlineNode, port: int) -> None:
        # An item that waits for no batch goes to the job directly.
        accept = part.process if isinstance(part, InlineStep) and not part.batches else part.accept
        self.accept: Callable[[Any], Iterator[Delivery]] = partial(accept, port)
        self.end: Callable[[], Iterator[Delivery]] = partial(part.end, port)
        self.is_sink = isinstance(part, _Sink)


# An item, or the end, and where it goes.
Delivery = tuple[Output, Any]


class Walk:
    """The way of the items through the graph: what each node on it has still to deliver, the last node on top."""

    def __init__(self, parts: list[_InlineNode], first: Output) -> None:
        self.parts = parts
        self._first = first
        self._stack: list[Iterator[Delivery]] = []
        self.ended = False

    def results_of(self, item: Any) -> Iterator[Any]:
        """Yield what comes of an item."""
        stack = self._stack
        try:
            stack.append(self._first.end() if item is _END else self._first.accept(item))
            while stack:
                delivery = next(stack[-1], None)
                if delivery is None:
                    stack.pop()
                    continue
                output, item = delivery
                if item is _END:
                    if not output.is_sink:
                        stack.append(output.end())
                elif output.is_sink:
                    if type(item) is Unloadable:
                        raise unpicklable_result(item.cause)
                    yield item
                else:
                    stack.append(output.accept(item))
        finally:
            # Generators of jobs are closed by that, the last one first.
            while stack:
                stack.pop()

    def results_of_end(self) -> Iterator[Any]:
        """Yield what comes of the end of the stream."""
        self.ended = True
        return self.results_of(_END)

    def forget(self) -> None:
        """Keep nothing of an item that failed half way."""
        for part in self.parts:
            if isinstance(part, ZipRows):
                part.clear()

    def settle(self) -> bool:
        """Whether nothing is under way that could give a result before the end of the stream; runs no job."""
        if not all(part.idle for part in self.parts):
            return False
        while self._stack:
            if next(self._stack[-1], None) is not None:
                # The next branch of a fork, say.
                return False
            self._stack.pop()
        return True


class InlineStep:
    """A Processor: its workers take turns."""

    def __init__(
        self,
        node: StepNode,
        workers: list[InlineWorker],
        roster: StepRoster,
        output: Output,
        format_item: Callable[[Any], str],
        failures: Failures,
    ) -> None:
        self.node = node
        self._format_item = format_item
        self._policy = policy_of(node.processor)
        self._failures = failures
        # How many items came here, and how many of them were given up.
        self._started = self._given_up = 0
        self._workers = workers
        self._roster = roster
        self._output = output
        self._turn = 0
        self._batch: list[Any] = []
        self.batches = node.batch is not None
        # Whether a generator that the job has returned is under way.
        self._is_generating = False

    @property
    def idle(self) -> bool:
        return not self._batch and not self._is_generating

    def accept(self, port: int, item: Any) -> Iterator[Delivery]:
        self._batch.append(item)
        if len(self._batch) < (self.node.batch or 1):
            return iter(())
        batch, self._batch = self._batch, []
        return self.process(port, batch, len(batch))

    def end(self, port: int) -> Iterator[Delivery]:
        if self._batch:
            batch, self._batch = self._batch, []
            yield from self.process(port, batch, len(batch))
        if self.node.finishes:
            for worker in self._workers:
                yield from self._finish(worker)
        self._failures.judge(self._given_up, self._started, ended=True)
        yield self._output, _END

    def _finish(self, worker: InlineWorker) -> Iterator[Delivery]:
        outputs = self._finishing(worker, lambda: outputs_of(awaited(worker.job.finish(), worker.loop), False))
        while (output := self._finishing(worker, lambda: next(outputs, NOTHING))) is not NOTHING:
            yield self._output, self._copy(output, None, None)

    def _finishing(self, worker: InlineWorker, call: Callable[[], Any]) -> Any:
        try:
            return worker.calling(call)
        except BaseException as error:
            if not is_of_job(error):
                raise
            raise self._error(error, "finish", None) from error

    def process(self, port: int, argument: Any, items: int = 1) -> Iterator[Delivery]:
        """Call the job with an item or a batch of so many `items`, and yield where its outputs go."""
        number = self._started
        self._started += items
        self._roster.totals.items_in += items
        unloadable = first_unloadable(argument if self.batches else (argument,))
        if unloadable is not None:
            raise self._error(unloadable.cause, "unpickle", number, items) from unloadable.cause
        worker = self._workers[self._turn]
        self._turn = (self._turn + 1) % len(self._workers)
        attempts = self._attempts(worker, argument, number, items)
        following = partial(next, attempts, NOTHING)
        seconds = 0.0
        while True:
            started = time.perf_counter()
            output = worker.calling(following)
            seconds += time.perf_counter() - started
            if output is NOTHING:
                self._roster.calls_done(1, seconds)
                if seconds >= SLOW_CALL_SECONDS and self._roster.is_slow(seconds):
                    self._roster.note_slow(number, seconds, self._format_item(argument))
                return
            copy = self._copy(output, argument, (worker, number, items))
            if copy is not NOTHING:
                yield self._output, copy

    def _attempts(self, worker: InlineWorker, argument: Any, number: int, items: int) -> Iterator[Any]:
        """Yield what the job gives for a argument, in as many attempts as it may have."""
        policy, call, attempts, given = self._policy, worker.call, 0, 0
        failed: BaseException | None = None
        while True:
            attempts += 1
            worker.record.attempt = attempts
            try:
                # The job may change what it gets, and has to get the same with each attempt.
                got = argument if policy.strict else copied(argument)
                returned = call(got)
                self._is_generating = type(returned) is GeneratorType
                for output in islice(outputs_of(returned, self.node.processor.keep_none), given, None):
                    given += 1
                    yield output
                return
            except BaseException as error:
                if not is_of_job(error):
                    raise
                failed = error
            finally:
                self._is_generating = False
            try:
                if policy.tries_again(failed, attempts):
                    self._roster.totals.retried += 1
                    sleep(policy.delay(attempts))
                    continue
                if not policy.gives_up:
                    raise self._error(
                        failed, "process", number, items, self._format_item(argument), attempts
                    ) from failed
                replacement = self._give_up(worker, failed, "process", argument, number, items, attempts)
            finally:
                # Its traceback refers to this frame.
                failed = None
            if replacement is not None:
                yield replacement
            return

    def _give_up(
        self,
        worker: InlineWorker,
        error: BaseException,
        phase: str,
        argument: Any,
        number: int,
        items: int,
        attempts: int = 1,
        output: Any = NOTHING,
    ) -> Any:
        """Report a argument, or an output of it; return what goes on in its place."""
        policy, shown, replacement, when = policy_of(worker.job), self._format_item(argument), None, time.time()
        failed = self._error(error, phase, number, items, shown, attempts, output)
        if policy.replaces:
            on_error = policy.on_error
            assert callable(on_error)
            try:
                replacement = worker.calling(lambda: on_error(copied(argument), error))  # type: ignore[arg-type]
            except BaseException as second:
                if not is_of_job(second):
                    raise
                raise self._error(second, "on_error", number, items, shown) from second
            try:
                replacement = behind_hop(replacement)
            except (Exception, SystemExit) as second:
                raise self._error(second, "pickle", number, items, shown, output=replacement) from second
        last = number + items - 1
        self.note_given_up(FailedItem(self.node.name, number, last, failed.item, failed, attempts, when), items)
        return replacement

    def note_given_up(self, failed: FailedItem, items: int) -> None:
        """Take in that so many items were given up."""
        self._given_up += items
        self._roster.totals.failed += items
        self._failures.fail(failed)
        self._failures.judge(self._given_up, self._started, ended=False)

    def _copy(self, output: Any, argument: Any, source: tuple[InlineWorker, int, int] | None) -> Any:
        """Return an output as it is behind a hop, or what goes on in its place.

        One that cannot be pickled is given up, or ends the run; NOTHING where nothing goes on.
        """
        self._roster.totals.items_out += 1
        try:
            return behind_hop(output)
        except (Exception, SystemExit) as error:
            if source is None:
                raise self._error(error, "pickle", None, output=output) from error
            worker, number, items = source
            if not self._policy.gives_up:
                raise self._error(error, "pickle", number, items, self._format_item(argument), output=output) from error
            copy = self._give_up(worker, error, "pickle", argument, number, items, output=output)
            if copy is None:
                self._roster.totals.items_out -= 1
                return NOTHING
            return copy

    def _error(
        self,
        error: BaseException,
        phase: str,
        number: int | None,
        items: int = 1,
        item: str | None = None,
        attempts: int = 1,
        output: Any = NOTHING,
    ) -> ProcessorError:
        failure = failure_of(error, phase, item, attempts)
        if output is not NOTHING:
            failure = failure.about(self._format_item(output))
        last = None if number is None else number + items - 1
        return processor_error(self.node.name, failure, number, last, error)


class _Passing:
    """A node that keeps nothing."""

    idle = True


class _Replicate(_Passing):
    """A ReplicatingFork: the branches have the item one after another."""

    def __init__(self, outputs: list[Output], zips: list[tuple[int, ZipRows]]) -> None:
        self._outputs = outputs
        self._zips = zips

    def accept(self, port: int, item: Any) -> Iterator[Delivery]:
        for branch, output in enumerate(self._outputs):
            yield output, behind_hop(item)
            for last_branch, rows in self._zips:
                if last_branch == branch:
                    yield from rows.close_group()

    def end(self, port: int) -> Iterator[Delivery]:
        for output in self._outputs:
            yield output, _END


class _Balance(_Passing):
    """A BalancingFork: the branches take turns."""

    def __init__(self, unit: int, outputs: list[Output]) -> None:
        self._unit = unit
        self._outputs = outputs
        self._given = 0

    def accept(self, port: int, item: Any) -> Iterator[Delivery]:
        branch = self._given // self._unit % len(self._outputs)
        self._given += 1
        return iter(((self._outputs[branch], item),))

    def end(self, port: int) -> Iterator[Delivery]:
        for output in self._outputs:
            yield output, _END


class _Merge(_Passing):
    """A Join that merges, or the end of a fork: items come in the right order already."""

    def __init__(self, ports: int, output: Output) -> None:
        self._open = ports
        self._output = output

    def accept(self, port: int, item: Any) -> Iterator[Delivery]:
        return iter(((self._output, item),))

    def end(self, port: int) -> Iterator[Delivery]:
        self._open -= 1
        if not self._open:
            yield self._output, _END


class ZipRows:
    """A Join that zips: rows are made when all branches have had the item."""

    def __init__(self, ports: int, output: Output) -> None:
        self._open = ports
        self._lanes: list[list[Any]] = [[] for _ in range(ports)]
        self._output = output

    @property
    def idle(self) -> bool:
        return not any(self._lanes)

    def accept(self, port: int, item: Any) -> Iterator[Delivery]:
        self._lanes[port].append(item)
        return iter(())

    def close_group(self) -> Iterator[Delivery]:
        rows = list(zip_longest(*self._lanes))
        for lane in self._lanes:
            lane.clear()
        for row in rows:
            yield self._output, first_unloadable(row) or row

    def clear(self) -> None:
        """Forget what an item has left that failed half way."""
        for lane in self._lanes:
            lane.clear()

    def end(self, port: int) -> Iterator[Delivery]:
        self._open -= 1
        if not self._open:
            yield from self.close_group()
            yield self._output, _END


class _Sink(_Passing):
    """The results: the walk ends here."""

    def accept(self, port: int, item: Any) -> Iterator[Delivery]:
        raise AssertionError("a result goes no further")

    def end(self, port: int) -> Iterator[Delivery]:
        raise AssertionError("the end goes no further")


def build(
    plan: Plan,
    workers: dict[int, list[InlineWorker]],
    rosters: dict[int, StepRoster],
    format_item: Callable[[Any], str],
    failures: Failures,
) -> Walk:
    """Return the way of a run's items; `workers` and `rosters` are by the index of their step."""
    parts: dict[int, Any] = {}

    def output(target: Target) -> Output:
        return Output(parts[target.node], target.port)

    def part(node: Node) -> _InlineNode:
        outputs = [output(target) for target in node.outputs]
        match node:
            case StepNode():
                return InlineStep(node, workers[node.index], rosters[node.index], outputs[0], format_item, failures)
            case ReplicateNode():
                zips = [
                    (each.last_branch, parts[each.index])
                    for each in plan.nodes
                    if isinstance(each, ZipNode) and each.fork == node.index
                ]
                return _Replicate(outputs, zips)
            case BalanceNode():
                return _Balance(node.unit, outputs)
            case MergeNode():
                return _Merge(len(node.inputs), outputs[0])
            case ZipNode():
                return ZipRows(len(node.inputs), outputs[0])
            case LeaveNode():
                return _Merge(1, outputs[0])
            case SinkNode():
                return _Sink()
            case _:
                raise AssertionError(f"the inline engine has no part for {node!r}")

    for node in reversed(plan.nodes):
        parts[node.index] = part(node)
    return Walk(list(parts.values()), Output(parts[0], 0))
