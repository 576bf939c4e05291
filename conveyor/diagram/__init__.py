"""A pipeline as a graph of values, and that graph as text for Mermaid and Graphviz.

Law: pure.  It knows no plan, process, file or number of a run.  Names come from users, so each format escapes whatever
its own syntax might read in them.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import dataclass
from conveyor._lean.short_repr import counted
from conveyor._lean.typing import Literal
from conveyor.stages.routing import Pipe

Kind = Literal["input", "processor", "replicate", "balance", "merge", "zip", "results"]

# How each kind of node looks, for Mermaid and for Graphviz.
_MERMAID = {"processor": ('["', '"]'), "input": ('(["', '"])'), "results": ('(["', '"])')}
_DOT = {"processor": "box", "input": "oval", "results": "oval"}


@dataclass(frozen=True)
class GraphNode:
    """One node of a `Graph`: the input, a Processor, a fork, a Join, or the results.

    Fields:
        index: its place in `Graph.nodes`.
        kind: "input", "processor", "replicate", "balance", "merge", "zip" or "results".
        name: of a Processor, what statistics and errors call it; of others, what stands there, such as "Join(2)".
        workers: of a Processor, how many workers it has at first; None of others.
        most_workers: how many it has at most; None where the balancer alone decides, and of others.
        batch: how many items its job gets at once, None for one.

    >>> from conveyor import Pipeline, Processor
    >>> Pipeline().add(Processor(sum, batch=3, workers=2)).graph().nodes[1]
    GraphNode(index=1, kind='processor', name='sum', workers=2, most_workers=2, batch=3)
    """

    index: int
    kind: Kind
    name: str
    workers: int | None = None
    most_workers: int | None = None
    batch: int | None = None

    @property
    def detail(self) -> str:
        """What a picture says of a Processor below its name: its workers and its batch, "" for one of each."""
        said = []
        if self.workers is not None and self.workers != self.most_workers:
            most = "more" if self.most_workers is None else f"{self.most_workers}"
            said.append(f"{self.workers} {'or' if self.most_workers is None else 'to'} {most} workers")
        elif self.workers is not None and self.workers > 1:
            said.append(f"{self.workers} workers")
        if self.batch is not None:
            said.append(f"batches of {self.batch:,}")
        return ", ".join(said)


@dataclass(frozen=True)
class GraphEdge:
    """One edge of a `Graph`: items go from the node with the index `source` to the one with the index `target`.

    `bound` is how many items the pipe between them holds; None where it has none of its own.

    >>> from conveyor import Pipe, Pipeline, Processor
    >>> Pipeline().add(Processor(abs)).add(Pipe(10)).add(Processor(str)).graph().edges[1]
    GraphEdge(source=1, target=2, bound=10)
    """

    source: int
    target: int
    bound: int | None

    @property
    def detail(self) -> str:
        """What a picture says of it: its bound, where that is not the one of any Pipe."""
        return "" if self.bound is None or self.bound == Pipe().bound else counted(self.bound, "item")


@dataclass(frozen=True)
class Graph:
    """What `Pipeline.graph()` returns: the nodes in the order of the pipeline, and the edges in the order of branches.

    Two graphs are equal where all nodes and edges are.

    >>> from conveyor import Pipe, Pipeline, Processor
    >>> graph = Pipeline().add(Processor(str.strip)).add(Pipe(10)).add(Processor(len, workers=2)).graph()
    >>> [(node.kind, node.name) for node in graph.nodes]
    [('input', 'input'), ('processor', 'strip'), ('processor', 'len'), ('results', 'results')]
    >>> graph.edges[1]
    GraphEdge(source=1, target=2, bound=10)
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]

    def to_mermaid(self) -> str:
        """Return it as a flowchart of Mermaid, which GitHub and many editors show in Markdown.

        >>> from conveyor import Pipeline, Processor
        >>> print(Pipeline().add(Processor(len)).graph().to_mermaid())
        flowchart TD
            n0(["input"])
            n1["len"]
            n2(["results"])
            n0 --> n1
            n1 --> n2
        """
        lines = ["flowchart TD"]
        for node in self.nodes:
            before, behind = _MERMAID.get(node.kind, ('{{"', '"}}'))
            text = "<br/>".join(map(_mermaid_text, filter(None, (node.name, node.detail))))
            lines.append(f"    n{node.index}{before}{text}{behind}")
        for edge in self.edges:
            label = f'|"{_mermaid_text(edge.detail)}"|' if edge.detail else ""
            lines.append(f"    n{edge.source} -->{label} n{edge.target}")
        return "\n".join(lines)

    def to_dot(self) -> str:
        r"""Return it in the language of Graphviz: `dot -Tpng` makes a picture of it.

        >>> from conveyor import Pipeline, Processor
        >>> print(Pipeline().add(Processor(len, workers=2)).graph().to_dot())
        digraph pipeline {
            n0 [shape=oval, label="input"];
            n1 [shape=box, label="len\n2 workers"];
            n2 [shape=oval, label="results"];
            n0 -> n1;
            n1 -> n2;
        }
        """
        lines = ["digraph pipeline {"]
        for node in self.nodes:
            text = "\\n".join(map(_dot_text, filter(None, (node.name, node.detail))))
            lines.append(f'    n{node.index} [shape={_DOT.get(node.kind, "hexagon")}, label="{text}"];')
        for edge in self.edges:
            label = f' [label="{_dot_text(edge.detail)}"]' if edge.detail else ""
            lines.append(f"    n{edge.source} -> n{edge.target}{label};")
        return "\n".join([*lines, "}"])

    def to_svg(self) -> str:
        """Return it as a picture in SVG, which begins with `<svg`: for a file, or to stand in a page of HTML.

        >>> from conveyor import Pipeline, Processor
        >>> Pipeline().add(Processor(len)).graph().to_svg()[:4]
        '<svg'
        """
        from conveyor.diagram.svg import svg_of

        return svg_of(self)


def one_line(name: str) -> str:
    """Return a name without what would break a line, or could not be written: in a picture it has one line.

    >>> one_line("first\\nsecond\\x00")
    'first second\\ufffd'
    """
    return "".join(each if each.isprintable() else " " if each.isspace() else "\ufffd" for each in name)


def _mermaid_text(text: str) -> str:
    # Whatever is no letter, digit or plain punctuation goes by its number: a backtick would begin Markdown, "#" a
    # number, and "<" a tag.
    return "".join(
        each if each.isalnum() or each in " _-.,()=+" or ord(each) > 127 else f"#{ord(each)};"
        for each in one_line(text)
    )


def _dot_text(text: str) -> str:
    return one_line(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
