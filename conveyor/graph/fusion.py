"""Fusing: adjacent Processors of a chain in one process, several abreast.

Law: a plan goes in, a plan comes out, and what they give is the same, as long as no job changes an object that another
still has: between fused jobs nothing is copied.  A Processor with state, or with settings of its own, stays alone; so
does one whose job may remember what it was called with, unless the user has said that several workers may do it.
Dataflow engines call this operator chaining.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import Any
from conveyor.graph.plan import Node, Plan, StepNode
from conveyor.stages.failure_policy import policy_of
from conveyor.stages.outputs import Fused
from conveyor.stages.processor import Processor
from conveyor.stats import Unfused


def fused(plan: Plan) -> Plan:
    """Return the plan with its chains of Processors made one each, with as many workers as there are cores, or up to
    that where there are several chains.  It says of each Processor that is in no chain why it is not."""
    reasons = {step.index: _why_alone(step) for step in plan.steps}
    chains = _chains(plan, {index for index, reason in reasons.items() if reason is None})
    chained = {node.index for chain in chains for node in chain}
    removed = {node.index for chain in chains for node in chain[1:]}
    kept = [node for node in plan.nodes if node.index not in removed]
    number = {node.index: index for index, node in enumerate(kept)}
    merged = {chain[0].index: _merged(chain, plan.cores, alone=len(chains) == 1) for chain in chains}
    nodes = tuple(_renumbered(merged.get(node.index, node), number) for node in kept)
    unfused = tuple(
        Unfused(step.name, reasons[step.index] or "no other that can be fused is next to it")
        for step in plan.steps
        if step.index not in chained
    )
    return replace(plan, nodes=nodes, unfused=unfused)


def _chains(plan: Plan, fusable: set[int]) -> list[list[StepNode]]:
    fed: dict[int, int] = {}
    for node in plan.nodes:
        for target in node.outputs:
            fed[target.node] = fed.get(target.node, 0) + 1
    chains: list[list[StepNode]] = []
    taken: set[int] = set()
    for step in plan.steps:
        if step.index in taken or step.index not in fusable:
            continue
        chain = [step]
        while True:
            behind = plan.nodes[chain[-1].to.node]
            if not isinstance(behind, StepNode) or behind.index not in fusable or fed[behind.index] != 1:
                break
            chain.append(behind)
        if len(chain) > 1:
            chains.append(chain)
            taken.update(node.index for node in chain)
    return chains


def _why_alone(step: StepNode) -> str | None:
    """Return in words why a Processor cannot be one of several that are fused, None where it can."""
    processor = step.processor
    if type(processor) is not Processor:
        return f"its class, {type(processor).__name__}, may keep state on `self`"
    # One worker is what a Processor has of which nothing is said; with "auto" it is the least, and there is no most.
    if isinstance(processor.workers, int) or (step.workers, step.most) not in ((1, 1), (1, None)):
        return "it has a number of workers of its own"
    settings = ("batch", "timeout", "max_items")
    given = [name for name in settings if getattr(step, name) is not None]
    if not policy_of(processor).strict:
        given.append("retries" if processor.retries else "on_error")
    if given:
        return f"it has {' and '.join(given)} of its own"
    if step.most is None:
        # With "auto", the user has said that several workers may do it.
        return None
    # The process engine has it; a worker, which has this module, needs none.
    from conveyor.stages.job_inspection import memory_of

    memory = memory_of(processor.job)
    if memory is None:
        return None
    return (
        f"its job may remember something from one item to the next ({memory}), and has one worker: where several, each "
        'with its own, may do it, say workers="auto"'
    )


def _merged(chain: list[StepNode], cores: int, alone: bool) -> StepNode:
    first, last = chain[0], chain[-1]
    stages: list[tuple[str, Any, bool]] = [(node.name, node.processor.job, node.processor.keep_none) for node in chain]
    name = "+".join(node.name for node in chain)
    processor: Processor[Any, Any] = Processor(Fused(stages), name=name, keep_none=last.processor.keep_none)
    return replace(first, name=name, processor=processor, workers=cores if alone else 1, most=cores, to=last.to)


def _renumbered(node: Node, number: dict[int, int]) -> Node:
    changes: dict[str, Any] = {name: number[getattr(node, name)] for name in ("index", "fork") if hasattr(node, name)}
    renumbered: Node = replace(node, **changes)
    targets = tuple(replace(target, node=number[target.node]) for target in node.outputs)
    return renumbered.leading_to(targets) if targets else renumbered
