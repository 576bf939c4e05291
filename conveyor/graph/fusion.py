"""Fusing: adjacent Processors of a chain share a process.  Dataflow engines call this operator chaining.

Law: a plan goes in, and a plan with the same results comes out.  Items are not copied between fused jobs, so a job
must not change an object that another job keeps.  A Processor with state or settings of its own stays alone.  So does
one whose job may remember earlier items, unless it has `workers="auto"`.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import Any
from conveyor.graph.plan import Node, Plan, StepNode
from conveyor.stages.outputs import Fused
from conveyor.stages.processor import Processor, is_async, setup_of
from conveyor.stages.settings import PROCESSOR_SETTINGS
from conveyor.stats import Unfused

# The settings of a Processor that a chain keeps, or that mean nothing without `retries`.  Any other one, also one that
# is new, keeps it alone.
_FUSABLE_SETTINGS = {"name", "workers", "keep_none", "retry_on", "backoff"}
ALONE = "no other that can be fused is next to it"


def fused(plan: Plan) -> Plan:
    """Return the plan with each chain of fusable Processors made one step, and reasons for all other Processors.

    A single chain gets a worker for each core.  Each of several chains gets up to that many, as the balancer decides.
    """
    reasons = {step.index: _why_alone(step) for step in plan.steps}
    chains = _chains(plan, {index for index, reason in reasons.items() if reason is None})
    chained = {node.index for chain in chains for node in chain}
    removed = {node.index for chain in chains for node in chain[1:]}
    kept = [node for node in plan.nodes if node.index not in removed]
    number = {node.index: index for index, node in enumerate(kept)}
    merged = {chain[0].index: _merged(chain, plan.cores, alone=len(chains) == 1) for chain in chains}
    nodes = tuple(_renumbered(merged.get(node.index, node), number) for node in kept)
    unfused = tuple(
        Unfused(step.name, reasons[step.index] or ALONE) for step in plan.steps if step.index not in chained
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
    """Return in words why a Processor cannot be fused; None where it can."""
    processor = step.processor
    if type(processor) is not Processor:
        return f"its class, {type(processor).__name__}, may keep state on `self`"
    # (1, 1) is the default of a Processor, and (1, None) is "auto".
    if isinstance(processor.workers, int):
        return f"it has workers={processor.workers}"
    if (step.workers, step.most) not in ((1, 1), (1, None)):
        return "it has a number of workers of its own"
    given = [
        name
        for name, each in PROCESSOR_SETTINGS.items()
        if name not in _FUSABLE_SETTINGS and getattr(processor, name) != each.default
    ]
    if is_async(processor.job):
        return "its job is async, and makes many calls at once"
    if given:
        return f"it has {' and '.join(given)} of its own"
    if step.most is None:
        # "auto" allows several workers, whatever the job remembers.
        return None
    one_worker = (
        'and it has one worker. If several workers, each with a memory of its own, are right too, say workers="auto"'
    )
    if setup_of(processor) is not None:
        return f"its job may remember something from one item to the next (what its `setup` returns), {one_worker}"
    # Imported here: workers import this module and need no inspection.
    from conveyor.stages.job_inspection import memory_of

    memory = memory_of(processor.job)
    if memory is None:
        return None
    return f"its job may remember something from one item to the next ({memory}), {one_worker}"


def _merged(chain: list[StepNode], cores: int, alone: bool) -> StepNode:
    first, last = chain[0], chain[-1]
    stages: list[tuple[str, Any, bool]] = [(node.name, node.processor.job, node.processor.keep_none) for node in chain]
    name = "+".join(node.name for node in chain)
    setups = tuple(setup_of(node.processor) for node in chain)
    job = Fused(stages, setups if any(setups) else ())
    setup = job.set_up if job.setups else None
    processor: Processor[Any, Any] = Processor(job, name=name, keep_none=last.processor.keep_none, setup=setup)
    return replace(first, name=name, processor=processor, workers=cores if alone else 1, most=cores, to=last.to)


def _renumbered(node: Node, number: dict[int, int]) -> Node:
    changes: dict[str, Any] = {name: number[getattr(node, name)] for name in ("index", "fork") if hasattr(node, name)}
    renumbered: Node = replace(node, **changes)
    targets = tuple(replace(target, node=number[target.node]) for target in node.outputs)
    return renumbered.leading_to(targets) if targets else renumbered
