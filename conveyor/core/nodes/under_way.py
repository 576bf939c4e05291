"""How many items of the input are under way, for whoever shows the progress of a run.

Law: looks, and changes nothing.  It counts from what the nodes hold, so a run that nobody watches keeps no account.  It
is imported when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from conveyor.core.nodes.base import Node, Output
from conveyor.core.nodes.forks import Fork, ForkExit, Replicate
from conveyor.core.nodes.joins import Join
from conveyor.core.nodes.sink import Sink
from conveyor.core.nodes.step import Step
from conveyor.graph.plan import MergeNode, Plan, ReplicateNode

# What is under way at an input and behind it: for each place there, so many of the items that come to that input.
Counts = dict[tuple[int, int], float]
# Sums of shares are rounded up, but for what is only lost in the arithmetic.
ROUNDING = 1e-6


def items_under_way(plan: Plan, nodes: list[Node]) -> int:
    """Return of how many input items something is under way, in a step or in front of one.

    What waits behind the last step is through, and so is what a step that gathers has taken.  Where each item gives at
    most one output, the count is exact.  Where items give several, their outputs count as equal shares.  Of the
    branches of a ReplicatingFork, the one counts that has most to do.
    """
    # Nothing is there for the inputs that only results are behind.
    known: dict[tuple[int, int], Counts] = {}
    for node in reversed(nodes):
        for port in range(len(node.lanes) if isinstance(node, Join) else 1):
            counts = _counts_at(plan, node, port, known)
            if counts is not None:
                known[node.index, port] = counts
    return ceil(sum(known[nodes[0].index, 0].values()) - ROUNDING)


def _counts_at(plan: Plan, node: Node, port: int, known: dict[tuple[int, int], Counts]) -> Counts | None:
    """Return what is under way at an input of a node and behind it; None where no step is there."""

    def behind(output: Output) -> Counts | None:
        port = output.port if isinstance(output.node, Join) else 0
        return known.get((output.node.index, port))

    place = node.index, port
    match node:
        case Sink():
            return None
        case Step():
            return {place: node.intake.entered - node.book.acknowledged, **_behind_step(node, behind)}
        case Fork():
            branches = [counts for output in node.outputs if (counts := behind(output)) is not None]
            if not branches:
                return None
            if isinstance(node, Replicate):
                branches.sort(key=lambda counts: sum(counts.values()))
                del branches[:-1]
            return {place: node.queue.items, **{key: count for counts in branches for key, count in counts.items()}}
        case Join():
            rest = behind(node.output)
            return None if rest is None else {place: node.lanes[port].items, **_shares(rest, _merged(plan, node))}
        case ForkExit():
            return behind(node.output)
        case _:
            raise TypeError(f"nobody knows what is under way at {node!r}: add its case to _counts_at")


def _behind_step(step: Step, behind: Callable[[Output], Counts | None]) -> Counts:
    """Return what is under way of a step's outputs, as shares of the items that it takes."""
    node, totals, rest = step.step_roster.node, step.step_roster.totals, behind(step.credit.output)
    if rest is None or node.batch is not None or node.finishes:
        return {}
    replies = [reply for entry in step.order.entries for reply in entry.held if reply is not None]
    held = sum(items for reply in replies for _, items in reply.blobs)
    return _shares({(step.index, -1): held, **rest}, totals.items_out / max(1, totals.items_in))


def _merged(plan: Plan, join: Join) -> int:
    """Return how many items a merge gives for each item that entered its fork."""
    node = plan.nodes[join.index]
    if isinstance(node, MergeNode) and isinstance(plan.nodes[node.fork], ReplicateNode):
        return sum(map(len, node.branches))
    return 1


def _shares(counts: Counts, each: float) -> Counts:
    """Return counts of outputs as counts of items that give so many outputs each: never more than one by one."""
    return counts if each <= 1 else {place: count / each for place, count in counts.items()}
