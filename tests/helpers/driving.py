"""Driving the core by hand: a plan from elements, events with few words, and the commands that come of them.

Law: after each event the machine's invariants are checked, and its commands come back as one whole list, but for what
it asks of the source, which is in a list of its own and the business of `test_sink.py`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from conveyor.core.commands import Command, Grant, Pull, SendLease
from conveyor.core.data.group_sizes import GroupSizes
from conveyor.core.events import (
    BrokerLoad,
    Cancelled,
    Consumed,
    Event,
    ProbeResult,
    Raised,
    Replied,
    RevokeResult,
    SourceEnded,
    SourceItems,
    Ticked,
    WorkerLost,
    WorkerReady,
)
from conveyor.core.machine import Machine
from conveyor.core.nodes.lone import ends_one_call
from conveyor.core.tuning.autoscaling import PolicyState, Resize, StepLoad
from conveyor.graph.builder import Description
from conveyor.graph.plan import Plan

Blob = tuple[Any, int]


def plan_of(*rows: Any, ordered: bool = True, cores: int = 2, max_failures: int | float | None = None) -> Plan:
    """The plan of a pipeline to which each row is added; a tuple is one `add` of several elements."""
    description = Description()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in rows:
            description.add(row if isinstance(row, tuple) else (row,))
        return replace(description.plan(cores=cores, ordered=ordered), settings=(("max_failures", max_failures),))


def check_awaited(machine: Machine, event: Event) -> None:
    """Hold what was known of a reply before it came to what is foreseen of it."""
    awaited = machine.await_reply()
    if awaited is None or not isinstance(event, Replied) or (event.worker, event.lease) != awaited[:2]:
        return
    is_one = [items for _, items in event.blobs] == [1] and event.size <= awaited.most_bytes
    if is_one and ends_one_call(event, machine.origins is not None):
        blob = event.blobs[0][0]
        assert machine.foresee(event) == awaited.command._replace(pieces=((blob, 0, 1),)), awaited


def check_foreseen(foreseen: Command, wanted: Sequence[Command]) -> None:
    """Hold what was foreseen to what is wanted: it is carried out before all else, of which the source hears alone."""
    others = list(wanted)
    assert foreseen in others, f"{foreseen} was foreseen, and {wanted} are wanted"
    before = others[: others.index(foreseen)]
    assert all(isinstance(each, Pull) for each in before), f"{before} would be carried out behind {foreseen}"


class Driven:
    """A machine whose invariants are checked after every event."""

    def __init__(
        self, *rows: Any, ordered: bool = True, cores: int = 2, max_failures: int | float | None = None
    ) -> None:
        self.plan = plan_of(*rows, ordered=ordered, cores=cores, max_failures=max_failures)
        # What the policy decides when it is asked next: pairs of a step and the number of workers that it should have.
        self.wanted: list[tuple[int, int]] = []
        self.step_loads: list[StepLoad] = []
        self.machine = Machine(self.plan, policy=self._policy)
        # What the last event made the machine ask of the source.
        self.pulls: list[Pull] = []
        # What it foresaw, by kind.
        self.foreseen: Counter[str] = Counter()
        # What each worker may still give for each lease.
        self._credit: dict[tuple[int, int], int] = {}

    def _policy(
        self, memory: PolicyState, step_loads: Sequence[StepLoad], cores: float, others: float, now: float
    ) -> tuple[PolicyState, list[Resize]]:
        self.step_loads = list(step_loads)
        decisions = []
        for step, after in self.wanted:
            decisions.append(Resize(step, step_loads[step].workers + step_loads[step].starting, after, "as wanted"))
        self.wanted = []
        return memory._replace(next=now + 1.0), decisions

    def resize(self, now: float, step: int, workers: int) -> list[Command]:
        """Have the policy want so many workers for a step."""
        self.wanted = [(step, workers)]
        return self.tick(now)

    def node(self, index: int) -> Any:
        """The running form of the plan's node `index`."""
        return self.machine.nodes[index]

    def handle(self, event: Event, now: float) -> list[Command]:
        """Hand over one event; return all that is to be done."""
        if isinstance(event, Replied):
            # A last reply may give more than its credit here, which saves many a test a Grant.
            self._credit[event.worker, event.lease] -= sum(items for _, items in event.blobs)
            left = self._credit[event.worker, event.lease]
            assert event.final or left >= 0, "the worker gives what it may not"
            assert not event.starving or left == 0, "the worker asks for more while it has some"
        check_awaited(self.machine, event)
        foreseen = self.machine.foresee(event)
        commands = self.machine.handle(event, now)
        if foreseen is not None:
            check_foreseen(foreseen, commands)
            self.foreseen[type(foreseen).__name__] += 1
        for command in commands:
            if isinstance(command, SendLease | Grant):
                credit = self._credit.setdefault((command.worker, command.lease), 0)
                self._credit[command.worker, command.lease] = credit + command.credit
        self.machine.check()
        assert self.machine.now == now or self.machine.over
        self.pulls = [command for command in commands if isinstance(command, Pull)]
        return [command for command in commands if not isinstance(command, Pull)]

    def feed(self, now: float, blob: Any, items: int, size: int | None = None) -> list[Command]:
        """Give items from the source, of 8 bytes each unless `size` says otherwise."""
        return self.handle(SourceItems(blob, items, 8 * items if size is None else size), now)

    def give(self, now: float, items: int) -> list[Command]:
        """Have the first step give so many items for one of its source: "a" with one, "b" with the rest."""
        self.feed(now, "A", 1)
        if items == 1:
            return self.reply(now, 0, 0, 1, ("a", 1))
        commands = self.reply(now, 0, 0, 0, ("a", 1), final=False, starving=True)
        return commands + self.reply(now, 0, 0, 1, ("b", items - 1))

    def end(self, now: float) -> list[Command]:
        """End the source."""
        return self.handle(SourceEnded(), now)

    def consume(self, now: float, items: int) -> list[Command]:
        """Take results."""
        return self.handle(Consumed(items), now)

    def cancel(self, now: float) -> list[Command]:
        """Give the run up."""
        return self.handle(Cancelled(), now)

    def raises(self, now: float, worker: int, lease: int, calls: int, error: Any) -> list[Command]:
        """Have a job raise."""
        return self.handle(Raised(worker, lease, calls, error), now)

    def lose(
        self,
        now: float,
        worker: int,
        cause: Any,
        started: tuple[int, int] | None = None,
        ready: bool = True,
        killed: bool = False,
        unpickling: bool = False,
        host_lost: bool = False,
    ) -> list[Command]:
        """Have a worker die."""
        return self.handle(WorkerLost(worker, cause, started, ready, killed, unpickling, host_lost=host_lost), now)

    def probe_result(self, now: float, worker: int, lease: int, calls: int, seconds: float | None) -> list[Command]:
        """Answer a Look."""
        return self.handle(ProbeResult(worker, lease, calls, seconds), now)

    def tick(self, now: float) -> list[Command]:
        """Let time pass."""
        return self.handle(Ticked(0.0), now)

    def observe_load(self, now: float, share: float) -> list[Command]:
        """Say which share of a core the broker uses."""
        return self.handle(BrokerLoad(share), now)

    def revoke_result(self, now: float, worker: int, lease: int, calls: int) -> list[Command]:
        """Have a worker answer a Recall."""
        return self.handle(RevokeResult(worker, lease, calls), now)

    def ready(self, now: float, worker: int) -> list[Command]:
        """Have a worker be up."""
        return self.handle(WorkerReady(worker, 0.01), now)

    def reply(
        self,
        now: float,
        worker: int,
        lease: int,
        calls: int,
        *blobs: Blob,
        group_sizes: GroupSizes | None = None,
        final: bool = True,
        starving: bool = False,
        seconds: float = 0.0001,
        size: int | None = None,
        partial: int = 0,
        given_up: Sequence[tuple[int, int, float, Any]] = (),
    ) -> list[Command]:
        """Have a worker reply; the outputs have 8 bytes each unless `size` says otherwise."""
        weight = 8 * sum(items for _, items in blobs) if size is None else size
        event = Replied(
            *(worker, lease, calls, group_sizes, blobs, weight, final, starving, seconds),
            partial=partial,
            given_up=given_up,
        )
        return self.handle(event, now)
