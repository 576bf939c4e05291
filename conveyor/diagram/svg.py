"""A graph as a picture in SVG, from top to bottom, with branches side by side.

Law: pure; text in, text out.  A pipeline is planar, and the outputs of a node are in the order of its branches.  So no
two edges cross where each layer keeps the order in which the layer above reaches it.  The picture refers to nothing
outside of itself, and has colours for light and for dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from conveyor._lean.dataclasses import dataclass
from conveyor.diagram import Graph, GraphEdge, GraphNode, one_line

# Sizes in pixels.
NAME_SIZE, DETAIL_SIZE = 13, 11
NODE_HEIGHT, SMALL_HEIGHT, DETAIL_HEIGHT = 32, 24, 15
LAYER_GAP, COLUMN_GAP, MARGIN, PADDING = 34, 22, 16, 14
ARROW, BOUND_GAP = 5, 8
# What shows how full a pipe is; and widths are multiples of this where texts change, so that nothing moves each time.
GAUGE, GAUGE_HEIGHT, STEADY_WIDTH = 5, 9, 48
# How often the columns are moved towards what they are joined with, down and up.
SWEEPS = 12
LONGEST_NAME = 40
STYLE = (
    ".cv-back{fill:#fff}.cv-node rect{fill:#eef2f7;stroke:#5b6b7f}"
    ".cv-node.cv-processor rect{fill:#dbeafe;stroke:#2563eb}"
    ".cv-node.cv-input rect,.cv-node.cv-results rect{fill:#dcfce7;stroke:#15803d}"
    ".cv-name{fill:#111827}.cv-detail{fill:#4b5563}.cv-edge{fill:none;stroke:#6b7280;stroke-width:1.5}"
    ".cv-arrow{fill:#6b7280}.cv-bound{fill:#4b5563}.cv-node.cv-processor .cv-gauge{fill:#bfd3f2;stroke:none}"
    ".cv-node.cv-processor .cv-fill{fill:#2563eb;stroke:none}"
    "@media(prefers-color-scheme:dark){.cv-back{fill:#0d1117}.cv-node rect{fill:#21262d;stroke:#8b949e}"
    ".cv-node.cv-processor rect{fill:#172554;stroke:#60a5fa}"
    ".cv-node.cv-input rect,.cv-node.cv-results rect{fill:#052e16;stroke:#4ade80}"
    ".cv-name{fill:#e6edf3}.cv-detail{fill:#9ca3af}.cv-edge{stroke:#8b949e}.cv-arrow{fill:#8b949e}"
    ".cv-bound{fill:#9ca3af}.cv-node.cv-processor .cv-gauge{fill:#33457a}"
    ".cv-node.cv-processor .cv-fill{fill:#60a5fa}}"
)


@dataclass(eq=False)
class _Box:
    """What takes a place in a layer: a node, or an edge on its way past that layer."""

    node: GraphNode | None
    width: float
    height: float
    x: float = 0.0


class _Layout:
    """Where everything is: the boxes, layer by layer, and each edge as the boxes that it goes through."""

    def __init__(self, graph: Graph, details: Mapping[int, str], fills: Mapping[int, float] | None) -> None:
        self._details = details
        self._fills = fills or {}
        self._is_steady = fills is not None
        layers = _layers_of(graph)
        self.boxes: list[list[_Box]] = [[] for _ in range(max(layers, default=-1) + 1)]
        self.paths: list[tuple[GraphEdge, list[_Box]]] = []
        self._links: list[tuple[_Box, _Box]] = []
        boxes = [self._box(node) for node in graph.nodes]
        # The last box of each edge that has not come to its end yet, in the order from left to right.
        if graph.nodes:
            self.boxes[0].append(boxes[0])
        open_edges: list[tuple[int, list[_Box]]] = []
        for layer in range(1, len(self.boxes)):
            before, open_edges = open_edges, []
            passing = {id(path[-1]): (target, path) for target, path in before}
            for box in self.boxes[layer - 1]:
                if box.node is None:
                    open_edges.append(passing[id(box)])
                    continue
                for edge in graph.edges:
                    if edge.source == box.node.index:
                        path = [box]
                        self.paths.append((edge, path))
                        open_edges.append((edge.target, path))
            for target, path in open_edges:
                box = boxes[target] if layers[target] == layer else _Box(None, 2, 0)
                self._links.append((path[-1], box))
                path.append(box)
                if box not in self.boxes[layer]:
                    self.boxes[layer].append(box)
            # Those that are at their end are followed no further.
            open_edges = [each for each in open_edges if each[1][-1].node is None]
        self._place()

    def _box(self, node: GraphNode) -> _Box:
        detail = self._details.get(node.index, node.detail)
        width = max(width_of(_shortened(node.name), NAME_SIZE), width_of(detail, DETAIL_SIZE))
        if self._is_steady:
            width = -(-width // STEADY_WIDTH) * STEADY_WIDTH
        height = NODE_HEIGHT if node.kind == "processor" else SMALL_HEIGHT
        height += DETAIL_HEIGHT if detail else 0
        return _Box(node, width + 2 * PADDING, height + (GAUGE_HEIGHT if node.index in self._fills else 0))

    def _place(self) -> None:
        """Give each box its column, near to what it is joined with."""
        near: dict[int, tuple[list[_Box], list[_Box]]] = {id(box): ([], []) for layer in self.boxes for box in layer}
        for above, below in self._links:
            near[id(below)][0].append(above)
            near[id(above)][1].append(below)
        for layer in self.boxes:
            _spread(layer, [0.0] * len(layer))
        for sweep in range(2 * SWEEPS):
            for layer in reversed(self.boxes) if sweep % 2 else self.boxes:
                wanted = [_mean([each.x for each in near[id(box)][sweep % 2]], box.x) for box in layer]
                _spread(layer, wanted)


def _layers_of(graph: Graph) -> list[int]:
    """Return how far down each node is: one below the lowest of those in front of it.

    It is two below a fork from which several branches lead there with nothing on them, which else would be one line.
    """
    layers = [0] * len(graph.nodes)
    pairs = [(edge.source, edge.target) for edge in graph.edges]
    for source, target in sorted(pairs):
        layers[target] = max(layers[target], layers[source] + (2 if pairs.count((source, target)) > 1 else 1))
    return layers


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _spread(layer: Sequence[_Box], wanted: Sequence[float]) -> None:
    """Put the boxes of a layer as near as can be to where they are wanted, in their order, and with gaps between.

    Boxes that would overlap move together, to the mean of their places: the least squares for a given order.
    """
    offsets = [0.0]
    for left, right in pairwise(layer):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + COLUMN_GAP)
    blocks: list[tuple[float, int]] = []
    for place, offset in zip(wanted, offsets, strict=False):
        mean, count = place - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        blocks.append((mean, count))
    starts = [mean for mean, count in blocks for _ in range(count)]
    for box, start, offset in zip(layer, starts, offsets, strict=False):
        box.x = start + offset


def width_of(text: str, size: int) -> float:
    """Return about how wide a text is, in pixels; the letters of East Asia are as wide as they are high."""
    from unicodedata import east_asian_width

    return sum(size * (1.05 if east_asian_width(each) in "WF" else 0.6) for each in one_line(text))


def _shortened(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def svg_of(graph: Graph, details: Mapping[int, str] | None = None, fills: Mapping[int, float] | None = None) -> str:
    """Return the picture; `details` says by the index of a node what stands below its name, instead of its own.

    `fills` says of nodes how full the pipe in front of them is, 0 to 1: of a picture whose texts change.
    """
    details = details or {}
    layout = _Layout(graph, details, fills)
    boxes = [box for layer in layout.boxes for box in layer]
    left = min((box.x - box.width / 2 for box in boxes), default=0.0) - MARGIN
    rights = [path[-1].x + BOUND_GAP + width_of(edge.detail, DETAIL_SIZE) for edge, path in layout.paths]
    width = max([*rights, *(box.x + box.width / 2 for box in boxes)], default=0.0) + MARGIN - left
    middles, y = [], float(MARGIN)
    for layer in layout.boxes:
        height = max(box.height for box in layer)
        middles.append(y + height / 2)
        y += height + LAYER_GAP
    height = max(2.0 * MARGIN, y - LAYER_GAP + MARGIN)
    for box in boxes:
        box.x -= left
    middle_of = {id(box): middle for layer, middle in zip(layout.boxes, middles, strict=True) for box in layer}
    names = ", ".join(node.name for node in graph.nodes if node.kind == "processor")
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-family="system-ui,sans-serif">',
        f"<title>{_text(one_line(f'A pipeline: {names}' if names else 'An empty pipeline'))}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="cv-back" width="{width:.0f}" height="{height:.0f}"/>',
    ]
    for edge, path in layout.paths:
        lines += _edge(path, middle_of, edge.detail)
    for box in boxes:
        if box.node is not None:
            detail, fill = details.get(box.node.index, box.node.detail), (fills or {}).get(box.node.index)
            lines.append(_node(box, box.node, middle_of[id(box)], detail, fill))
    return "\n".join([*lines, "</svg>"])


def _node(box: _Box, node: GraphNode, middle: float, detail: str, fill: float | None) -> str:
    x, y = box.x - box.width / 2, middle - box.height / 2
    radius = 6 if node.kind == "processor" else box.height / 2
    lower = GAUGE_HEIGHT / 2 if fill is not None else 0
    baseline = middle + lower + NAME_SIZE * 0.35 - (DETAIL_HEIGHT / 2 if detail else 0)
    name, center = one_line(node.name), f"{box.x:.1f}"
    full = "" if fill is None else f": its pipe is {fill:.0%} full"
    lines = [
        f'<g class="cv-node cv-{node.kind}" data-index="{node.index}"><title>{_text(name)}{full}</title>',
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:g}"/>',
        f'<text class="cv-name" x="{center}" y="{baseline:.1f}" font-size="{NAME_SIZE}" text-anchor="middle">'
        f"{_text(_shortened(name))}</text>",
    ]
    if fill is not None:
        wide = box.width - 12
        gauge = f'x="{x + 6:.1f}" y="{y + 5:.1f}" height="{GAUGE}" rx="{GAUGE / 2:g}"'
        lines.append(f'<rect class="cv-gauge" {gauge} width="{wide:.1f}"/>')
        lines.append(f'<rect class="cv-fill" {gauge} width="{wide * fill:.1f}"/>' if fill else "")
    if detail:
        lines.append(
            f'<text class="cv-detail" x="{center}" y="{baseline + DETAIL_HEIGHT:.1f}" font-size="{DETAIL_SIZE}" '
            f'text-anchor="middle">{_text(one_line(detail))}</text>'
        )
    return "".join([*lines, "</g>"])


def _edge(path: Sequence[_Box], middle_of: Mapping[int, float], bound: str) -> list[str]:
    """Return an edge with its arrow, and its bound beside it."""
    start, end = path[0], path[-1]
    x, y = start.x, middle_of[id(start)] + start.height / 2
    steps = [f"M{x:.1f} {y:.1f}"]
    for box in path[1:]:
        x_there = box.x
        y_there = middle_of[id(box)] - (box.height / 2 + ARROW if box is end else 0)
        half = (y_there - y) / 2
        steps.append(f"C{x:.1f} {y + half:.1f} {x_there:.1f} {y_there - half:.1f} {x_there:.1f} {y_there:.1f}")
        x, y = x_there, y_there
    tip = f"{x - ARROW * 0.8:.1f},{y:.1f} {x + ARROW * 0.8:.1f},{y:.1f} {x:.1f},{y + ARROW:.1f}"
    lines = [f'<path class="cv-edge" d="{"".join(steps)}"/>', f'<polygon class="cv-arrow" points="{tip}"/>']
    if bound:
        lines.append(
            f'<text class="cv-bound" x="{x + BOUND_GAP:.1f}" y="{y - 6:.1f}" font-size="{DETAIL_SIZE}">'
            f"{_text(bound)}</text>"
        )
    return lines


def _text(text: str) -> str:
    """Return what stands for a text between tags.  (`xml.sax` would import the clients of the web for that.)"""
    return escape(text, quote=False)
