"""A graph as values, and its pictures: what is in them, what is escaped, and that nothing overlaps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from conveyor import (
    BalancingFork,
    Graph,
    GraphEdge,
    GraphNode,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ReplicatingFork,
)
from tests.helpers.support import TestCase

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'a "b"\n<c> & #d; `e` \\N {f} [g] %s\x00 \udc80 画像 end'


def work(item):
    return item


def step(name: str, **settings: Any) -> Processor:
    return Processor(work, name=name, **settings)


def graph_of(*rows: Any, **settings: Any) -> Graph:
    pipeline = Pipeline(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in rows:
            pipeline.add(*(row if isinstance(row, tuple) else (row,)))
    return pipeline.graph()


def large() -> Graph:
    """Twelve steps, with forks in forks, and branches of unlike lengths."""
    return graph_of(
        step("download", workers="auto"),
        Pipe(100),
        step("decode", workers=4),
        Pipe(),
        ReplicatingFork(3),
        (step("thumbnail"), step("face detection", batch=32), step("checksum")),
        Pipe(),
        Join(3, how="zip"),
        Pipe(50),
        BalancingFork(2),
        (step("index a"), step("index b")),
        Pipe(),
        (ReplicatingFork(2), Pipe()),
        (step("train bayes"), step("train svm"), step("a name that is very long indeed, and goes on and on")),
        Pipe(),
        Join(),
        Pipe(),
        (step("merge"), Pipe()),
        Pipe(),
        Join(),
        Pipe(),
        step("store", workers=30, batch=500),
    )


class Values(TestCase):
    """Nodes and edges."""

    def test_a_chain(self) -> None:
        graph = graph_of(step("load"), Pipe(7), step("parse", workers=3, batch=10), Pipe(), step("parse"))
        self.assertEqual(
            graph.nodes,
            (
                GraphNode(0, "input", "input"),
                GraphNode(1, "processor", "load", 1, 1, None),
                GraphNode(2, "processor", "parse", 3, 3, 10),
                GraphNode(3, "processor", "parse-2", 1, 1, None),
                GraphNode(4, "results", "results"),
            ),
        )
        # The first has no Pipe: what it holds is as much as the next.  The results hold as much as the last step.
        self.assertEqual(
            graph.edges, (GraphEdge(0, 1, 7), GraphEdge(1, 2, 7), GraphEdge(2, 3, 65536), GraphEdge(3, 4, 65536))
        )

    def test_forks_and_joins(self) -> None:
        graph = graph_of(
            step("load"),
            Pipe(),
            ReplicatingFork(2),
            (step("a"), Pipe(5)),
            Pipe(5),
            Join(how="zip"),
            Pipe(),
            BalancingFork(2),
            (step("b"), step("c")),
        )
        kinds = [(node.kind, node.name) for node in graph.nodes]
        self.assertEqual(
            kinds[2:],
            [
                ("replicate", "ReplicatingFork(2)"),
                ("processor", "a"),
                ("zip", "Join(2, how='zip')"),
                ("balance", "BalancingFork(2)"),
                ("processor", "b"),
                ("processor", "c"),
                # Put in at the end.
                ("merge", "Join(2)"),
                ("results", "results"),
            ],
        )
        # A step behind a fork has no pipe of its own.
        self.assertEqual([edge.bound for edge in graph.edges if edge.source == 2], [None, 5])

    def test_names_are_those_of_the_statistics(self) -> None:
        for settings in ({}, {"fuse": True, "cores": 2}):
            with self.subTest(**settings):
                pipeline: Any = Pipeline(**settings)
                pipeline.add(Processor(abs)).add(Pipe()).add(Processor(abs)).add(Pipe()).add(Processor(abs, batch=None))
                pipeline.run([1])
                names = [node.name for node in pipeline.graph().nodes if node.kind == "processor"]
                self.assertEqual(names, [each.processor for each in pipeline.stats().steps])

    def test_nothing_warns_and_nothing_is_changed(self) -> None:
        pipeline = Pipeline(engine="inline").add(Processor(abs)).add(Pipe()).add(ReplicatingFork(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first = pipeline.graph()
            self.assertEqual(first, pipeline.graph())
        self.assertEqual(pipeline.add(Pipe()).add(Join()).run([-1]), [1, 1])

    def test_an_empty_pipeline(self) -> None:
        graph = Pipeline().graph()
        self.assertEqual(graph, Graph((), ()))
        self.assertEqual(graph.to_mermaid(), "flowchart TD")
        self.assertEqual(graph.to_dot(), "digraph pipeline {\n}")
        self.assertIn("An empty pipeline", graph.to_svg())


class Pictures(TestCase):
    """The three languages."""

    def test_names_of_users_are_escaped(self) -> None:
        def hostile(item):
            return item

        hostile.__name__ = HOSTILE
        graph = graph_of(Processor(hostile), Pipe(3), step("plain (x), y"))
        mermaid = graph.to_mermaid().splitlines()
        self.assertEqual(mermaid[3], '    n2["plain (x), y"]')
        self.assertEqual(
            mermaid[2],
            '    n1["a #34;b#34; #60;c#62; #38; #35;d#59; #96;e#96; #92;N #123;f#125; #91;g#93; #37;s\ufffd \ufffd 画像 end"]',
        )
        dot = graph.to_dot()
        self.assertIn('label="a \\"b\\" <c> &amp; #d; `e` \\\\N {f} [g] %s\ufffd \ufffd 画像 end"', dot)
        # Every string ends in its line.
        for line in dot.splitlines():
            self.assertEqual(len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2, 0, line)
        root = ElementTree.fromstring(graph.to_svg())
        texts = [each.text for each in root.iter(f"{SVG}text")]
        self.assertIn('a "b" <c> & #d; `e` \\N {f} [g] %s\ufffd \ufffd 画像…', texts)
        titles = [each.text for each in root.iter(f"{SVG}title")]
        self.assertIn('a "b" <c> & #d; `e` \\N {f} [g] %s\ufffd \ufffd 画像 end', titles)
        for text in (graph.to_mermaid(), dot, graph.to_svg()):
            text.encode("utf-8")

    def test_every_line_of_mermaid_is_a_node_or_an_edge(self) -> None:
        graph = large()
        first, *lines = graph.to_mermaid().splitlines()
        self.assertEqual(first, "flowchart TD")
        node = re.compile(r'    n\d+(\(\["[^"`]*"\]\)|\["[^"`]*"\]|\{\{"[^"`]*"\}\})')
        edge = re.compile(r'    n\d+ -->(\|"[^"`]*"\|)? n\d+')
        nodes, edges = len(graph.nodes), len(graph.edges)
        self.assertTrue(all(map(node.fullmatch, lines[:nodes])))
        self.assertTrue(all(map(edge.fullmatch, lines[nodes:])))
        self.assertEqual(len(lines), nodes + edges)

    def test_what_a_step_says_of_itself(self) -> None:
        graph = graph_of(
            step("a", workers="auto"),
            Pipe(),
            BalancingFork(min=2, max=5),
            step("b"),
            Pipe(),
            Join(),
            step("c", workers=2),
        )
        details = [node.detail for node in graph.nodes if node.kind == "processor"]
        self.assertEqual(details, ["1 or more workers", "2 to 5 workers", "2 workers"])
        self.assertIn("2 to 5 workers", graph.to_svg())

    def boxes(self, svg: str) -> Iterator[tuple[float, float, float, float]]:
        for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
            rect = group.find(f"{SVG}rect")
            assert rect is not None
            x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
            yield x, y, x + width, y + height

    def test_nothing_overlaps_and_all_is_within(self) -> None:
        many = graph_of(step("a"), Pipe(), ReplicatingFork(9), step("b", workers=3), Pipe(), Join())
        bare = graph_of(step("a"), Pipe(), ReplicatingFork(3), (Pipe(), step("b"), Pipe()), Pipe(), Join())
        for graph in (large(), many, bare, graph_of(step("a"), Pipe(123456), step("b"))):
            svg = graph.to_svg()
            self.assertTrue(svg.startswith("<svg"))
            root = ElementTree.fromstring(svg)
            boxes = list(self.boxes(svg))
            self.assertEqual(len(boxes), len(graph.nodes))
            right, bottom = float(root.attrib["width"]), float(root.attrib["height"])
            for index, (x, y, x_end, y_end) in enumerate(boxes):
                self.assertTrue(x >= 0 and y >= 0 and x_end <= right and y_end <= bottom)
                for other in boxes[:index]:
                    apart = x >= other[2] or x_end <= other[0] or y >= other[3] or y_end <= other[1]
                    self.assertTrue(apart, (boxes[index], other))
            self.assertEqual(len(list(root.iter(f"{SVG}path"))), len(graph.edges))

    def test_every_node_is_below_those_in_front_and_branches_keep_their_order(self) -> None:
        graph = large()
        boxes = list(self.boxes(graph.to_svg()))
        tops = {int(each.attrib["data-index"]): box for each, box in zip(self.groups(graph), boxes, strict=True)}
        for edge in graph.edges:
            self.assertGreater(tops[edge.target][1], tops[edge.source][3])
        fork = next(node for node in graph.nodes if node.kind == "replicate")
        branches = [tops[edge.target][0] for edge in graph.edges if edge.source == fork.index]
        self.assertEqual(branches, sorted(branches))

    def groups(self, graph: Graph) -> list[ElementTree.Element]:
        return list(ElementTree.fromstring(graph.to_svg()).iter(f"{SVG}g"))

    def test_it_refers_to_nothing_outside(self) -> None:
        svg = large().to_svg()
        self.assertEqual(re.findall(r"https?://[^\"]*", svg), ["http://www.w3.org/2000/svg"])
        self.assertIsNone(re.search(r"href|url\(|@import|<script", svg))

    def test_parallel_edges_are_apart(self) -> None:
        """Branches with nothing on them lead from the fork to the Join, each by a way of its own."""
        svg = graph_of(step("a"), Pipe(), ReplicatingFork(3), Pipe(), Join()).to_svg()
        ways = [each.attrib["d"] for each in ElementTree.fromstring(svg).iter(f"{SVG}path")]
        self.assertEqual(len(set(ways)), len(ways))
