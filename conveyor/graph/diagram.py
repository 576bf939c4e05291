"""The graph of a plan, as values that users see.

Law: pure.  It reads a plan, and knows no process, file or number of a run.
"""

from __future__ import annotations

from conveyor.diagram import Graph, GraphEdge, GraphNode
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


def graph_of(plan: Plan) -> Graph:
    """Return the graph of a plan; the ends of forks, which are no element of the user's, are not in it."""
    places = {node.index: place for place, node in enumerate(_shown(plan), 1)}

    def edge(source: int, target: Target) -> GraphEdge:
        node = plan.nodes[target.node]
        while isinstance(node, LeaveNode):
            target = node.to
            node = plan.nodes[target.node]
        shares = isinstance(node, StepNode) and node.shared
        return GraphEdge(source, places[node.index], None if shares else node.inputs[target.port].items)

    nodes = [GraphNode(0, "input", "input")]
    edges = [edge(0, Target(0))]
    for node in _shown(plan):
        nodes.append(_node_of(node, places[node.index]))
        edges += [edge(places[node.index], target) for target in node.outputs]
    return Graph(tuple(nodes), tuple(edges))


def _shown(plan: Plan) -> list[Node]:
    return [node for node in plan.nodes if not isinstance(node, LeaveNode)]


def _node_of(node: Node, index: int) -> GraphNode:
    match node:
        case StepNode():
            return GraphNode(
                index,
                "processor",
                node.name,
                node.workers,
                node.most,
                node.batch or (node.hands if node.in_lists else None),
            )
        case ReplicateNode():
            return GraphNode(index, "replicate", f"ReplicatingFork({len(node.to)})")
        case BalanceNode():
            return GraphNode(index, "balance", f"BalancingFork({len(node.to)})")
        case MergeNode():
            return GraphNode(index, "merge", f"Join({len(node.inputs)})")
        case ZipNode():
            return GraphNode(index, "zip", f"Join({len(node.inputs)}, how='zip')")
        case SinkNode():
            return GraphNode(index, "results", "results")
        case _:
            raise TypeError(f"no picture shows {node!r}: add its case to _node_of")
