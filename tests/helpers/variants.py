"""Variants of a plan, and manners of choosing, for the tests of the core.

Law: plain functions; a variant of a plan gives the same results.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conveyor.graph.plan import BalanceNode, Plan, ReplicateNode, SinkNode, StepNode
from tests.helpers.pipelines import Choose, Sum, many, several

# About how many outputs a job gives for one item, where that is more than one.
GROWTH: dict[Any, int] = {many: 8, several: 2}

Manner = Callable[[Choose], Choose]


def work(plan: Plan, items: int) -> float:
    """About how many times all jobs together are called, and items are passed on."""
    arriving = {0: float(items)}
    called = 0.0
    for node in plan.nodes:
        here = arriving.get(node.index, 0.0)
        called += here
        if isinstance(node, SinkNode):
            return called
        if isinstance(node, StepNode):
            here = here / (node.batch or 1) * GROWTH.get(node.processor.job, 1) + 3 * node.finishes
        for target in node.to if isinstance(node, ReplicateNode | BalanceNode) else [node.to]:
            share = here / len(node.to) if isinstance(node, BalanceNode) else here
            arriving[target.node] = arriving.get(target.node, 0.0) + share
    raise AssertionError("a plan without results")


def indifferent(plan: Plan) -> bool:
    """Whether what each job gives depends on nothing but its item, so that order shows in order alone."""
    return all(step.batch is None and not isinstance(step.processor, Sum) for step in plan.steps)


def tightened(plan: Plan, most: int) -> Plan:
    """The plan with pipes that hold at most `most` items."""
    nodes: list[Any] = []
    node: Any
    for node in plan.nodes:
        if hasattr(node, "bound"):
            node = replace(node, bound=min(node.bound, most))
        elif hasattr(node, "bounds"):
            node = replace(node, bounds=tuple(min(bound, most) for bound in node.bounds))
        nodes.append(node)
    return replace(plan, nodes=tuple(nodes))


def loosened(plan: Plan, source: random.Random) -> Plan:
    """The plan with steps whose number of workers changes at any time, where that makes no difference."""
    nodes: list[Any] = []
    for node in plan.nodes:
        if isinstance(node, StepNode) and not node.finishes and source.randrange(2):
            node = replace(node, most=None)
        nodes.append(node)
    return replace(plan, nodes=tuple(nodes))


def handed(plan: Plan, source: random.Random) -> Plan:
    """The plan with steps whose workers begin several items at once, some of which wait for others to go with."""
    nodes: list[Any] = []
    for node in plan.nodes:
        if isinstance(node, StepNode) and node.batch is None and source.randrange(3):
            timeout = source.choice([None, None, 0.0, 0.01])
            node = replace(node, hands=2 + source.randrange(6), in_lists=source.random() < 0.5, batch_timeout=timeout)
        nodes.append(node)
    return replace(plan, nodes=tuple(nodes))


def slimmed(plan: Plan, source: random.Random, sizes: list[int]) -> Plan:
    """The plan with pipes that hold so many bytes, each as many as comes by chance."""
    nodes: list[Any] = []
    node: Any
    for node in plan.nodes:
        if hasattr(node, "bound_bytes"):
            node = replace(node, bound_bytes=source.choice(sizes))
        elif hasattr(node, "bounds_bytes"):
            node = replace(node, bounds_bytes=tuple(source.choice(sizes) for _ in node.bounds))
        nodes.append(node)
    return replace(plan, nodes=tuple(nodes))


def fair(choose: Choose) -> Choose:
    """A chooser that likes nothing better than anything else."""
    return choose


def burst(choose: Choose) -> Choose:
    """A chooser in which one thing happens for a while before another does."""
    last: dict[int, int] = {}

    def chosen(number: int) -> int:
        if number not in last or choose(6) == 0:
            last[number] = choose(number)
        return last[number]

    return chosen


def eager(choose: Choose) -> Choose:
    """A chooser that likes the first of what could happen: the source before the consumer before the workers."""
    return lambda number: 0 if choose(4) else choose(number)


def lazy(choose: Choose) -> Choose:
    """A chooser that likes the last of what could happen: the last worker before everything in front of it."""
    return lambda number: number - 1 if choose(4) else choose(number)
