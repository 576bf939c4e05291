"""The nodes of a plan at work, one item at a time.

Law: an item goes the whole way before the next one is pulled.  A fork serves its branches in order, and the end of the
stream runs through the graph in the same order.  What goes from one Processor to the next is copied, as it is between
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, zip_longest

from conveyor._lean.typing import Any, Protocol
from conveyor._system.clock import sleep, time
from conveyor.core.tuning.roster import StepRoster
from conveyor.engines.failures import failure_of, processor_error
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
from conveyor.stages.failure_policy import policy_of
from conveyor.stages.outputs import outputs_of
from conveyor.stages.processor import Processor, work_of

NOTHING = object()


class Failures(Protocol):
    """Who is told of what was given up."""

    def fail(self, failed: FailedItem) -> None: ...

    def judge(self, given_up: int, items: int, ended: bool) -> None: ...


class _InlineNode(Protocol):
    """One node at work: what comes of an item, or of the end, is yielded as it reaches the results."""

    def accept(self, port: int, item: Any) -> Iterator[Any]: ...

    def end(self, port: int) -> Iterator[Any]: ...


class Output:
    """One input of a node further down."""

    def __init__(self, part: _InlineNode, port: int) -> None:
        self._part = part
        self._port = port

    def accept(self, item: Any) -> Iterator[Any]:
        return self._part.accept(self._port, item)

    def end(self) -> Iterator[Any]:
        return self._part.end(self._port)


class InlineStep:
    """A Processor: its workers take turns."""

    def __init__(
        self,
        node: StepNode,
        jobs: list[Processor[Any, Any]],
        roster: StepRoster,
        output: Output,
        format_item: Callable[[Any], str],
        failures: Failures,
    ) -> None:
        self._node = node
        self._format_item = format_item
        self._policy = policy_of(node.processor)
        self._failures = failures
        self._given_up = 0
        self._jobs = jobs
        self._roster = roster
        self._output = output
        self._turn = 0
        self._started = 0
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
        self._failures.judge(self._given_up, self._started, ended=True)
        yield from self._output.end()

    def _finish(self, job: Processor[Any, Any]) -> Iterator[Any]:
        outputs = self._raising("finish", lambda: outputs_of(job.finish(), False))
        while (output := self._raising("finish", lambda: next(outputs, NOTHING))) is not NOTHING:
            yield from self._pass_on(output, None, None)

    def _raising(self, phase: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Exception, SystemExit) as error:
            raise self._error(error, phase, None) from error

    def _process(self, argument: Any, items: int) -> Iterator[Any]:
        number = self._started
        self._started += items
        self._roster.totals.items_in += items
        job = self._jobs[self._turn]
        self._turn = (self._turn + 1) % len(self._jobs)
        attempts = self._attempts(job, argument, number, items)
        seconds = 0.0
        while True:
            started = time.perf_counter()
            output = next(attempts, NOTHING)
            seconds += time.perf_counter() - started
            if output is NOTHING:
                self._roster.calls_done(1, seconds)
                return
            yield from self._pass_on(output, argument, (job, number, items))

    def _attempts(self, job: Processor[Any, Any], argument: Any, number: int, items: int) -> Iterator[Any]:
        """Yield what the job gives for a argument, in as many attempts as it may have."""
        policy, call, attempts, given = self._policy, work_of(job), 0, 0
        failed: BaseException | None = None
        while True:
            attempts += 1
            try:
                # The job may change what it gets, and has to get the same with each attempt.
                got = argument if policy.strict else copied(argument)
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
                    raise self._error(
                        failed, "process", number, items, self._format_item(argument), attempts
                    ) from failed
                replacement = self._give_up(job, failed, "process", argument, number, items, attempts)
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
        argument: Any,
        number: int,
        items: int,
        attempts: int = 1,
        output: Any = NOTHING,
    ) -> Any:
        """Report a argument, or an output of it; return what goes on in its place."""
        policy, shown, replacement, when = policy_of(job), self._format_item(argument), None, time.time()
        failed = self._error(error, phase, number, items, shown, attempts, output)
        if policy.replaces:
            assert callable(policy.on_error)
            try:
                replacement = policy.on_error(copied(argument), error)  # type: ignore[arg-type]
            except (Exception, SystemExit) as second:
                raise self._error(second, "on_error", number, items, shown) from second
            try:
                replacement = copied(replacement)
            except Exception as second:
                raise self._error(second, "pickle", number, items, shown, output=replacement) from second
        self._given_up += items
        self._roster.totals.failed += items
        self._failures.fail(
            FailedItem(self._node.name, number, number + items - 1, failed.item, failed, attempts, when)
        )
        self._failures.judge(self._given_up, self._started, ended=False)
        return replacement

    def _pass_on(
        self, output: Any, argument: Any, source: tuple[Processor[Any, Any], int, int] | None
    ) -> Iterator[Any]:
        """Pass on an output, as it is behind a hop.

        One that cannot be pickled is given up, or ends the run.
        """
        self._roster.totals.items_out += 1
        try:
            copy = copied(output)
        except Exception as error:
            if source is None:
                raise self._error(error, "pickle", None, output=output) from error
            job, number, items = source
            if not self._policy.gives_up:
                raise self._error(error, "pickle", number, items, self._format_item(argument), output=output) from error
            copy = self._give_up(job, error, "pickle", argument, number, items, output=output)
            if copy is None:
                self._roster.totals.items_out -= 1
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
        output: Any = NOTHING,
    ) -> ProcessorError:
        failure = failure_of(error, phase, item, attempts)
        if output is not NOTHING:
            failure = failure.about(self._format_item(output))
        last = None if number is None else number + items - 1
        return processor_error(self._node.name, failure, number, last, error)


class _Replicate:
    """A ReplicatingFork: the branches have the item one after another."""

    def __init__(self, outputs: list[Output], zips: list[tuple[int, _Zip]]) -> None:
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

    def __init__(self, unit: int, outputs: list[Output]) -> None:
        self._unit = unit
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

    def __init__(self, ports: int, output: Output) -> None:
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

    def __init__(self, ports: int, output: Output) -> None:
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


def build(
    plan: Plan,
    jobs: dict[int, list[Processor[Any, Any]]],
    rosters: dict[int, StepRoster],
    format_item: Callable[[Any], str],
    failures: Failures,
) -> Output:
    """Return where the items of a run go in; `jobs` and `rosters` are by the index of their step."""
    parts: dict[int, Any] = {}

    def output(target: Target) -> Output:
        return Output(parts[target.node], target.port)

    def part(node: Node) -> _InlineNode:
        outputs = [output(target) for target in node.outputs]
        match node:
            case StepNode():
                return InlineStep(node, jobs[node.index], rosters[node.index], outputs[0], format_item, failures)
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
                return _Zip(len(node.inputs), outputs[0])
            case LeaveNode():
                return _Merge(1, outputs[0])
            case SinkNode():
                return _Sink()
            case _:
                raise AssertionError(f"the inline engine has no part for {node!r}")

    for node in reversed(plan.nodes):
        parts[node.index] = part(node)
    return Output(parts[0], 0)
