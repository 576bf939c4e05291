"""The ratios of all workloads as horizontal bars.

The law of this file: matplotlib is wanted and not needed; without it there is no picture, and nobody fails.
"""

from __future__ import annotations

import math
from typing import Any

from contest import PEERS
from report import Comparison, Measured, number

COLUMNS = 3
CONVEYOR, AHEAD, OTHERS = "#1f6fb2", "#d9822b", "#9aa5b1"


def draw(comparisons: list[Comparison], path: str, footer: str) -> str:
    """Write the picture, and return a line that says so, or why not."""
    try:
        import matplotlib
    except ImportError:
        return "no plot: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [comparison for comparison in comparisons if comparison.counted(comparison.reference) is not None]
    if not shown:
        return "no plot: there is nothing to be compared"
    # The same words in the same places each time, so that two SVGs can be compared.
    matplotlib.rcParams["svg.hashsalt"] = "conveyor"
    columns = min(COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    most = max(len(bars_of(comparison)) for comparison in shown)
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(6.4 * columns, lines * (1.3 + 0.27 * most)), squeeze=False, layout="constrained"
    )
    panels = [panel for line in grid for panel in line]
    for comparison, panel in zip(shown, panels, strict=False):
        _panel(panel, comparison)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    figure.suptitle(
        "What others take when Conveyor takes 1. To the right: more; to the left: less. Rings: with defaults"
    )
    figure.supxlabel(footer, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"plot: {path}"


def bars_of(comparison: Comparison) -> list[tuple[str, float, float | None, Measured]]:
    """For each bar: its name, its ratio, and that of the same peer with its defaults."""
    bars = []
    for each in comparison.measured:
        ratio = comparison.ratio(each)
        if ratio is None:
            continue
        plain = each.entry.label.startswith(("defaults", "item by item"))
        partner = next((other for other in comparison.measured if _is_best_of(other, each)), None)
        if plain and partner is not None and comparison.ratio(partner) is not None:
            continue
        default = None
        if each.entry.label.startswith("best"):
            for other in comparison.measured:
                if other.entry.peer == each.entry.peer and other.entry.label.startswith(("defaults", "item by item")):
                    default = comparison.ratio(other)
        label = each.entry.label.removeprefix("best").strip(" ,")
        title = PEERS[each.entry.peer][0]
        bars.append((f"{title}, {label}" if label else title, ratio, default, each))
    bars.sort(key=lambda bar: bar[1])
    return bars


def _is_best_of(other: Measured, each: Measured) -> bool:
    return other.entry.peer == each.entry.peer and other.entry.label.startswith("best")


def _panel(panel: Any, comparison: Comparison) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    bars = bars_of(comparison)
    reference = comparison.reference
    places = range(len(bars))
    colors = []
    for _, ratio, _, each in bars:
        colors.append(CONVEYOR if each.entry.peer == "conveyor" else AHEAD if ratio < 1 else OTHERS)
    ratios = [ratio for _, ratio, _, _ in bars]
    ends = ratios + [default for _, _, default, _ in bars if default is not None]
    low, high = min(0.7, min(ends)), max(1.5, max(ends))
    margin = (high / low) ** 0.16  # for the numbers at the ends of the bars
    low, high = low / margin, high * margin
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    panel.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colors, height=0.72)
    for place, (_, ratio, default, each) in zip(places, bars, strict=True):
        text = f"{ratio:.2f}" if ratio < 10 else number(ratio)
        if each is reference:
            own = comparison.counted(each)
            assert own is not None
            text = f"1 = {number(own / comparison.workload.divisor)} {comparison.workload.unit}"
            panel.plot([1], [place], marker="D", markersize=6, color=CONVEYOR, linestyle="none")
        faster = ratio < 1
        at = ratio
        if default is not None:
            panel.plot(
                [default], [place], marker="o", markersize=5, fillstyle="none", color="#444444", linestyle="none"
            )
            # Not under the ring.
            beyond = ratio / default if faster else default / ratio
            at = default if 1 <= beyond < margin else ratio
        panel.annotate(
            text,
            (at, place),
            xytext=(-6 if faster else 6, 0),
            textcoords="offset points",
            ha="right" if faster else "left",
            va="center",
            fontsize=8,
        )
    panel.axvline(1.0, color=CONVEYOR, linewidth=0.8)
    panel.set_yticks(list(places), [name for name, _, _, _ in bars], fontsize=8)
    panel.invert_yaxis()
    title, _, rest = comparison.workload.title.partition(": ")
    panel.set_title(
        f"{title}\n{rest}" if len(comparison.workload.title) > 55 else comparison.workload.title, fontsize=9
    )
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 60 else (1.0,)))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.tick_params(axis="x", labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
