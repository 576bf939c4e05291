"""Parts of a page in HTML: the graph with numbers, tables, failures, and the frame around them.

Law: each function takes values and returns HTML, in which whatever came in is escaped.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from html import escape

from conveyor._lean.short_repr import counted
from conveyor._lean.typing import Any
from conveyor.diagram import Graph, GraphNode
from conveyor.diagram.svg import svg_of
from conveyor.errors import FailedItem
from conveyor.stats import Stats, StepStats, duration, troubles_of

# Of more failures, a page shows the first ones and says how many there are.
MOST_FAILURES = 100
# Of more decisions, the newest ones.
MOST_DECISIONS = 50
STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1f2328;--soft:#59636e;--line:#d1d9e0;--card:#f6f8fa;--accent:#2563eb;
--fill:#93c5fd;--bad:#cf222e;--good:#1a7f37}
@media(prefers-color-scheme:dark){:root{--back:#0d1117;--text:#e6edf3;--soft:#9198a1;--line:#30363d;--card:#151b23;
--accent:#60a5fa;--fill:#1d4ed8;--bad:#ff7b72;--good:#4ade80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1.5rem 1rem 4rem;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p{margin:.4rem 0}.soft{color:var(--soft)}.bad{color:var(--bad)}
.cards{display:flex;flex-wrap:wrap;gap:.6rem;margin:1.2rem 0;padding:0;list-style:none}
.cards li{flex:1 1 8rem;padding:.6rem .8rem;background:var(--card);border:1px solid var(--line);border-radius:8px}
.cards b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600}th:first-child,.left{text-align:left}
td.left{white-space:normal}
tbody th{color:inherit;font-weight:400;min-width:11rem;white-space:normal;overflow-wrap:anywhere}
tr.slowest th{color:var(--accent);font-weight:600}
.bar{display:inline-block;width:4rem;height:.55rem;margin-right:.4rem;background:var(--line);border-radius:3px}
.bar i{display:block;height:100%;background:var(--accent);border-radius:3px}
.graph svg{max-width:100%;height:auto}.graph .cv-back{fill:none}
.advice{padding:.6rem .9rem;border-left:4px solid var(--accent);background:var(--card);margin:.4rem 0}
details{margin:.4rem 0;border:1px solid var(--line);border-radius:8px;padding:.4rem .8rem}
summary{cursor:pointer;overflow-wrap:anywhere}
pre{overflow-x:auto;font:12.5px/1.45 ui-monospace,monospace;margin:.5rem 0}
.axis{stroke:var(--line)}.waiting{fill:var(--fill);opacity:.75}.workers{fill:none;stroke:var(--accent);stroke-width:2}
.more{fill:var(--good)}.fewer{fill:var(--bad)}.label{fill:var(--text);font-size:12px}.small{fill:var(--soft);font-size:11px}
@media(max-width:640px){.wide tr{display:grid;grid-template-columns:repeat(3,1fr);gap:.25rem .6rem;padding:.5rem .7rem;
margin:.5rem 0;border:1px solid var(--line);border-radius:8px}.wide table,.wide tbody{display:block}
.wide thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.wide tbody th,.wide td.left:last-child{grid-column:1/-1}
.wide tbody th{font-weight:600}.wide th,.wide td{display:block;padding:0;border:0;text-align:left;white-space:normal;
overflow-wrap:anywhere}.wide td::before{content:attr(data-head);display:block;color:var(--soft);font-size:11px;
line-height:1.3}.wide .bar{width:2.2rem;margin-right:.3rem}}
"""
# What a notebook shows stands on its page, whose theme need not be that of the system: so no background, and colours
# that can be seen on a light and on a dark one.
NOTEBOOK_STYLE = (
    ".cv-shown .cv-back{fill:none}.cv-shown .wide{overflow-x:auto}.cv-shown svg{max-width:100%;height:auto}"
    ".cv-shown table{font-variant-numeric:tabular-nums}.cv-shown th,.cv-shown td{white-space:nowrap}"
    ".cv-shown .left,.cv-shown th:first-child{text-align:left!important}.cv-shown td.left{white-space:normal}"
    ".cv-shown tbody th{min-width:11em;white-space:normal;overflow-wrap:anywhere}"
    ".cv-shown tr.slowest th{color:#3b82f6}.cv-shown .bad{color:#e5484d}"
    ".cv-shown .bar{display:inline-block;width:4em;height:.6em;margin-right:.4em;background:#8884;border-radius:3px}"
    ".cv-shown .bar i{display:block;height:100%;background:#3b82f6;border-radius:3px}"
    ".cv-shown .advice{padding:.3em .8em;border-left:4px solid #3b82f6}"
)


def in_notebook(body: str) -> str:
    """Return parts of a page such that they look well below a cell of a notebook."""
    return f'<div class="cv-shown"><style>{NOTEBOOK_STYLE}</style>{body}</div>'


def page(title: str, body: str, data: str = "", style: str = "") -> str:
    """Return a whole page; `data` is JSON that stands in it for programs, `style` what it has beside `STYLE`."""
    held = f'\n<script type="application/json" id="data">{data}</script>' if data else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}{held}\n</body>\n</html>\n"
    )


def json_in_html(text: str) -> str:
    """Return JSON such that no tag in it ends the element that holds it.

    >>> print(json_in_html('{"item": "</script>"}'))
    {"item": "\\u003c/script>"}
    """
    return text.replace("<", "\\u003c")


def section(title: str, body: str) -> str:
    """Return a part of a page with its title; nothing where it is empty."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 0, slowest: str | None = None) -> str:
    """Return a table of cells that are HTML; the last `texts` columns hold text, and the others but the first numbers.

    The row that begins with `slowest` stands out.
    """
    left = [' class="left"' if index >= len(heads) - texts else "" for index in range(len(heads))]
    # With their roles: on a phone a row looks like a card, and some browsers then take it for no row.
    lines = ['<div class="wide"><table role="table">', '<thead><tr role="row">']
    starts = [f'<th scope="col" role="columnheader"{each}>' for each in left]
    lines += [f"{start}{escape(head)}</th>" for start, head in zip(starts, heads, strict=True)]
    lines.append("</tr></thead><tbody>")
    starts = [f'<td role="cell" data-head="{escape(head)}"{each}>' for head, each in zip(heads, left, strict=True)]
    for first, *cells in rows:
        marked = ' class="slowest"' if slowest is not None and first == slowest else ""
        rest = "".join(f"{start}{cell}</td>" for start, cell in zip(starts[1:], cells, strict=True))
        lines.append(f'<tr role="row"{marked}><th scope="row" role="rowheader"{left[0]}>{first}</th>{rest}</tr>')
    return "".join([*lines, "</tbody></table></div>"])


def cards(told: Iterable[tuple[str, str]]) -> str:
    """Return a few numbers, each with what it says."""
    return (
        '<ul class="cards">'
        + "".join(f"<li><b>{escape(value)}</b>{escape(name)}</li>" for name, value in told)
        + "</ul>\n"
    )


def share_bar(share: float, said: str | None = None) -> str:
    """Return a share as a bar and in percent, or with what else is to be said of it."""
    percent = max(0.0, min(1.0, share)) * 100
    said = f"{percent:.0f}%" if said is None else said
    return f'<span class="bar"><i style="width:{percent:.0f}%"></i></span><span class="n">{said}</span>'


def numbers_of(step: StepStats, *, live: bool = False) -> str:
    """Return what stands below the name of a step in a picture; `live`: with the workers of now, not the most."""
    parts = [counted(step.items_in, "item"), f"{step.busy:.0%} busy"]
    workers = step.workers if live else step.most_workers
    if workers != 1:
        parts.append(f"{workers} workers")
    if step.failed:
        parts.append(f"{step.failed:,} failed")
    return ", ".join(parts)


def graph_with_numbers(graph: Graph, stats: Stats | None, *, live: bool = False) -> str:
    """Return the graph as a picture, with the numbers of each step where there are some.

    `live`: with a gauge of how full the pipe in front of each step is, and such that nothing moves when numbers grow.
    """
    steps = {} if stats is None else {step.processor: step for step in stats.steps}
    details = {node.index: _said_of(node, steps, stats, live) for node in graph.nodes}
    details = {index: said for index, said in details.items() if said}
    # Within a page, the name of the format is no address that anybody needs.
    fills = None
    if live:
        known = [(node.index, steps.get(node.name)) for node in graph.nodes if node.kind == "processor"]
        fills = {index: 0.0 if step is None else fill_of(step) for index, step in known}
    svg = svg_of(graph, details, fills).replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    return f'<div class="wide graph">{svg}</div>'


def fill_of(step: StepStats) -> float:
    """Return how full the pipe in front of a step is, 0 to 1."""
    return min(1.0, step.waiting / step.bound) if step.bound else 0.0


def _said_of(node: GraphNode, steps: dict[str, StepStats], stats: Stats | None, live: bool) -> str:
    if node.kind == "processor" and node.name in steps:
        return numbers_of(steps[node.name], live=live)
    if node.kind == "input" and stats is not None and stats.source is not None:
        pulled, total = stats.source.pulled, stats.source.total
        return counted(pulled, "item") if total is None else f"{pulled:,} of {counted(total, 'item')}"
    if node.kind == "results" and stats is not None:
        return f"{stats.results:,}"
    return node.detail


def steps_table(stats: Stats) -> str:
    """Return a table with a row for each step; a column for each kind of trouble that there was."""
    troubles = troubles_of(stats)
    heads = ["step", "workers", "in", "out", "waiting", "mean", "p99", "busy", "CPU", "blocked", "handing on"]
    rows = []
    for step in stats.steps:
        workers = f"{step.workers}" if step.workers == step.most_workers else f"{step.workers} (≤{step.most_workers})"
        row = [escape(step.processor), workers, f"{step.items_in:,}", f"{step.items_out:,}"]
        row += [f"{step.waiting:,}", duration(step.mean), duration(step.p99)]
        row += [share_bar(step.busy), f"{step.cpu:.0%}", f"{step.blocked:.0%}", f"{step.handing_on:.0%}"]
        rows.append([*row, *(trouble(getattr(step, name)) for _, name in troubles)])
    bottleneck = stats.bottleneck
    text = table([*heads, *(head for head, _ in troubles)], rows, slowest=bottleneck and escape(bottleneck))
    if bottleneck is not None:
        stalled = stats[bottleneck].stalled
        text += (
            f"<p>The bottleneck is <b>{escape(bottleneck)}</b>: items waited for it, while all its workers were busy, "
            f"for {stalled:.2f} s of {stats.seconds:.2f} s.</p>"
        )
    return text


def trouble(count: int) -> str:
    """Return a count that is better 0."""
    return f'<span class="bad">{count:,}</span>' if count else "0"


def slowest_table(stats: Stats) -> str:
    """Return the slowest calls of all steps, the slowest first."""
    calls = [(call, step.processor) for step in stats.steps for call in step.slowest]
    calls.sort(key=lambda each: -each[0].seconds)
    rows = [[escape(name), f"{call.number:,}", duration(call.seconds), _code(call.item)] for call, name in calls[:10]]
    return table(["step", "item", "took", "the item"], rows, texts=1) if rows else ""


def decisions_table(stats: Stats, most: int = MOST_DECISIONS) -> str:
    """Return what the balancer decided, the newest first."""
    rows = [
        [f"{each.at:.2f}&nbsp;s", escape(each.processor), f"{each.before} → {each.after}", escape(each.reason)]
        for each in reversed(stats.decisions[-most:])
    ]
    return table(["at", "step", "workers", "because"], rows, texts=3) if rows else ""


def failures_list(failures: Sequence[FailedItem]) -> str:
    """Return the items that were given up, each with its traceback."""
    lines = []
    for failed in failures[:MOST_FAILURES]:
        place = f"{failed.number:,}" if failed.last == failed.number else f"{failed.number:,} to {failed.last:,}"
        attempts = "" if failed.attempts == 1 else f", {failed.attempts:,} attempts"
        lines.append(
            f'<details data-key="{escape(failed.processor)} {failed.number}"><summary>'
            f"<b>{escape(failed.processor)}</b>, item {place}: "
            f"<span class=bad>{escape(failed.error.kind or type(failed.error).__name__)}</span>"
            f"{attempts} {_code(failed.item)}</summary><pre>{escape(_traceback(failed))}</pre></details>"
        )
    if len(failures) > MOST_FAILURES:
        lines.append(f"<p class=soft>{more_not_shown(len(failures) - MOST_FAILURES)}</p>")
    return "\n".join(lines)


def failures_table(failures: Sequence[FailedItem]) -> str:
    """Return the items that were given up, a row for each."""
    rows = [
        [escape(each.processor), f"{each.number:,}", f"{each.attempts}", _code(each.item), escape(_message(each))]
        for each in failures[:MOST_FAILURES]
    ]
    more = len(failures) - MOST_FAILURES
    text = table(["step", "item", "attempts", "the item", "error"], rows, texts=2)
    return text + (f"<p>{more_not_shown(more)}</p>" if more > 0 else "")


def more_not_shown(count: int) -> str:
    return "1 more is not shown." if count == 1 else f"{count:,} more are not shown."


def advice_list(stats: Stats) -> str:
    """Return what would make it faster, where that is known."""
    return "\n".join(f'<p class="advice">{escape(advice)}</p>' for advice in stats.advice)


def _message(failed: FailedItem) -> str:
    cause = failed.error.__cause__
    if cause is None:
        return str(failed.error)
    return traceback.format_exception_only(type(cause), cause)[-1].strip()


def _traceback(failed: FailedItem) -> str:
    cause = failed.error.__cause__
    if cause is None:
        return str(failed.error)
    return "".join(traceback.format_exception(type(cause), cause, cause.__traceback__)).strip()


def _code(item: Any) -> str:
    return "" if item is None else f"<code>{escape(str(item))}</code>"
