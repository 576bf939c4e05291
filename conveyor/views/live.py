"""The page of a pipeline that runs: its parts as HTML, which a script in it replaces by newer ones.

Law: pure; values in, text out.  The first HTML holds names and numbers already.  Nothing in it refers to anything but
what the same server has, by a name without an address.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from conveyor._lean.dataclasses import dataclass
from conveyor._lean.short_repr import counted
from conveyor.diagram import Graph, one_line
from conveyor.errors import FailedItem
from conveyor.stats import Progress, Stats, StepStats, WorkerStats, duration, troubles_of
from conveyor.views import html
from conveyor.views.live_script import SCRIPT
from conveyor.views.rates import Rates, per_second, rates_of, spark, throughput

LONGEST_TITLE = 60
# The graph is made no smaller than this.
LEAST_SCALE = 0.75
# Of more decisions, the newest ones.
MOST_DECISIONS = 8
STYLE = """
h1,h3,p,.keys{overflow-wrap:anywhere}.keys{min-width:0}#headline{font-size:1.05rem;font-variant-numeric:tabular-nums}
#lost{padding:.6rem .9rem;border-left:4px solid var(--bad);background:var(--card)}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
nav{margin:.6rem 0}nav a{display:inline-block;margin-right:1rem;padding:.35rem 0;color:var(--accent)}
progress{width:100%;height:.8rem;accent-color:var(--accent)}.bar{vertical-align:middle}
.plot{position:relative;margin:0}.plot svg{display:block;width:100%;height:9rem;border-bottom:1px solid var(--line)}
.plot figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.2rem 1rem;margin-top:.3rem}
.small{font-size:12px;color:var(--soft)}.plot .keys{flex-basis:100%;text-align:center}.plot .waiting{opacity:.35}
.plot b{color:var(--text);font-variant-numeric:tabular-nums}
.taken,.given{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}.taken{stroke:var(--accent)}
.given{stroke:var(--good);stroke-dasharray:5 3}
.key{display:inline-block;width:1.4rem;margin:0 .3rem .25rem 0;border-top:2px solid var(--accent)}
.key.given{border-top:2px dashed var(--good)}
.spark{width:4.2rem;height:1.3rem;margin-right:.5rem;vertical-align:middle}
#graph{overflow-x:auto}#graph .wide{overflow:visible}.graph{padding:.5rem 0}
main th,main td{padding:.3rem .5rem}main td,main th{font-size:14px}main .bar{width:2.6rem}
.n{display:inline-block;min-width:2.7rem}
h3{margin:1rem 0 .3rem;font-size:1rem}h3 .soft{font-weight:400}
.flow{display:flex;flex-wrap:wrap;gap:0 2rem}.flow section{min-width:0;max-width:100%}
.flow .side{flex:1 1 26rem;min-width:0}
.staff{display:grid;grid-template-columns:repeat(auto-fill,minmax(11.5rem,1fr));gap:.4rem;margin:0;padding:0;list-style:none}
.staff li{padding:.35rem .6rem;border:1px solid var(--line);border-radius:6px;font-size:13px;line-height:1.4;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.staff .who{display:inline-block;min-width:5.6rem}.staff .bar{width:2.2rem}.staff .at,.staff .small{display:block}
.cards{margin:1rem 0;gap:.5rem}.cards li{flex-basis:7rem;font-size:13px}.cards b{font-size:1.15rem;white-space:nowrap}
@media(max-width:640px){body{padding:1rem .8rem 3rem}.cards li{flex-basis:6.2rem;padding:.35rem .6rem}
.staff{grid-template-columns:1fr 1fr}.staff .who{min-width:100%}.cards b{font-size:1.05rem}
.spark{display:block;width:100%;margin:0}.plot svg{height:6.5rem}}
"""


@dataclass(frozen=True)
class View:
    """What is known of a pipeline at one moment.

    `state` is a sentence such as "Running".  `stats` is None before there are some, and `progress` where there is no
    run.  `failures` holds the newest items that were given up, the newest first.
    """

    state: str
    graph: Graph
    stats: Stats | None
    progress: Progress | None
    failures: Sequence[FailedItem]
    version: str
    has_trace: bool


# The parts of the page, in their order, with their titles.
SECTIONS = {
    "graph": "Graph",
    "throughput": "Throughput",
    "decisions": "Decisions of the balancer",
    "steps": "Steps",
    "workers": "Workers",
    "failures": "Failures",
    "slowest": "Slowest calls",
}


def parts_of(view: View) -> dict[str, str]:
    """Return the parts of the page that change, by the `id` of the element that holds each."""
    stats = view.stats
    parts = {"headline": escape(headline(view)), "done": _done(view.progress), "numbers": "", "advice": ""}
    parts["graph"] = _graph(view)
    if stats is None:
        return {**parts, **{name: _none("nothing yet") for name in SECTIONS if name != "graph"}}
    rates = rates_of(stats)
    parts["numbers"] = html.cards(_numbers(view, stats))
    parts["advice"] = html.advice_list(stats)
    parts["throughput"] = throughput(view.graph, stats, rates) or _none("not known yet")
    parts["steps"] = _steps(stats, rates)
    parts["workers"] = _workers(stats) or _none("no workers are up")
    failed = sum(step.failed for step in stats.steps)
    parts["failures"] = _failures(view.failures, failed) or _none("none")
    parts["decisions"] = html.decisions_table(stats, MOST_DECISIONS) or _none("none")
    parts["slowest"] = html.slowest_table(stats) or _none("none that took 8 ms or more")
    return parts


def headline(view: View) -> str:
    """Return in a sentence how it goes."""
    return view.state if view.progress is None else f"{view.state}: {view.progress}"


def title_of(view: View) -> str:
    """Return what a tab of the browser shows."""
    names = [one_line(node.name) for node in view.graph.nodes if node.kind == "processor"]
    text = " → ".join(names) or "an empty pipeline"
    if len(text) > LONGEST_TITLE:
        text = f"{names[0][:30]} → … → {names[-1][:30]} ({len(names)} steps)"
    return text


def page_html(view: View, token: str, nonce: str) -> str:
    """Return the whole page; its script, with that nonce, asks for newer parts with the token."""
    parts = parts_of(view)
    links = {"report": "Report", "stats.json": "Numbers as JSON", "metrics": "Metrics", "trace": "Trace"}
    if not view.has_trace:
        del links["trace"]
    ways = "".join(f'<a href="{name}?token={quote(token)}">{text}</a>' for name, text in links.items())
    body = [
        f'<header><h1>{escape(title_of(view))}</h1><p id="headline">{parts["headline"]}</p>'
        f'<div id="done">{parts["done"]}</div>'
        '<p id="lost" role="alert" hidden></p><p id="spoken" class="hidden" role="status" aria-live="polite"></p>'
        f'</header>\n<nav aria-label="The same in other forms">{ways}</nav>\n<main>',
        f'<div id="numbers">{parts["numbers"]}</div><div id="advice">{parts["advice"]}</div>',
    ]
    for name, title in SECTIONS.items():
        note = f'<p class="soft">{_NOTES[name]}</p>' if name in _NOTES else ""
        before, behind = _AROUND.get(name, ("", ""))
        body.append(
            f'{before}<section aria-labelledby="about-{name}"><h2 id="about-{name}">{title}</h2>{note}'
            f'<div id="{name}"{_SCROLLS.get(name, "")}>{parts[name]}</div></section>{behind}'
        )
    body.append(
        f'</main>\n<footer class="soft"><p>Conveyor {escape(view.version)}. The numbers are new twice a second.</p>'
        f"<noscript><p>Without JavaScript they are those of the moment at which the page was loaded.</p></noscript>"
        f'</footer>\n<script nonce="{nonce}">{SCRIPT}</script>'
    )
    return html.page(title_of(view), "\n".join(body), style=STYLE)


_NOTES = {"graph": "The bar in a step says how full the pipe in front of it is."}
# Where there is room, the graph stands beside what changes most.
_AROUND = {
    "graph": ('<div class="flow">', ""),
    "throughput": ('<div class="side">', ""),
    "decisions": ("", "</div></div>"),
}
# What is wider than a phone can be scrolled, with keys too.
_SCROLLS = {"graph": ' tabindex="0" role="group" aria-labelledby="about-graph"'}


def event_of(view: View, parts: dict[str, str], known: dict[str, str]) -> str:
    """Return what is new as JSON: the parts that differ from those in `known`, which takes them in."""
    new = {name: part for name, part in parts.items() if known.get(name) != part}
    known.update(new)
    return json.dumps({"state": view.state, "said": headline(view), "title": title_of(view), "parts": new})


def _graph(view: View) -> str:
    """Return the graph, which a phone shows no smaller than what can be read."""
    text = html.graph_with_numbers(view.graph, view.stats, live=True)
    width = re.search(r'<svg width="(\d+)"', text)
    least = 0 if width is None else int(int(width[1]) * LEAST_SCALE)
    return text.replace("<svg ", f'<svg style="min-width:{least}px" ', 1)


def _none(text: str) -> str:
    return f'<p class="soft">{text}</p>'


def _done(progress: Progress | None) -> str:
    if progress is None or progress.total is None:
        return ""
    return (
        f'<progress aria-label="Items that are through" max="{max(1, progress.total)}" '
        f'value="{progress.done if progress.total else 1}"></progress>'
    )


def _numbers(view: View, stats: Stats) -> list[tuple[str, str]]:
    """Return the most important numbers, each behind what it says."""
    progress, told = view.progress, []
    if progress is not None:
        of = "items through" if progress.total is None else f"of {counted(progress.total, 'item')}"
        told.append((of, f"{progress.done:,}"))
        if progress.rate is not None:
            told.append(("lately", per_second(progress.rate)))
        if progress.eta:
            told.append(("left", duration_in_words(progress.eta)))
    told.append(("results", f"{stats.results:,}"))
    told.append(("items given up", f"{sum(step.failed for step in stats.steps):,}"))
    workers = sum(step.workers for step in stats.steps)
    told.append(("worker" if workers == 1 else "workers", f"{workers:,}"))
    if stats.cpu_seconds:
        told.append((f"of {counted(stats.cores, 'core')} used", f"{stats.cpu_seconds / max(stats.seconds, 1e-9):.1f}"))
    told.append(("open", duration_in_words(stats.seconds)))
    return told


def duration_in_words(seconds: float) -> str:
    """Return seconds as a page shows them, where they change all the time.

    >>> duration_in_words(0.4), duration_in_words(75), duration_in_words(4000)
    ('0 s', '1:15 min', '1:06 h')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600:,}:{whole % 3600 // 60:02} h"


def _steps(stats: Stats, rates: Rates | None) -> str:
    troubles = troubles_of(stats)
    heads = ["step", "taken", "in", "out", "waiting", "workers", "busy", "CPU", "blocked", "mean", "p99"]
    rows = []
    for place, step in enumerate(stats.steps):
        workers = f"{step.workers}" if step.workers == step.most_workers else f"{step.workers} (≤{step.most_workers})"
        if step.starting:
            workers += f" +{step.starting}"
        row = [_name(step), spark(rates, place), f"{step.items_in:,}", f"{step.items_out:,}"]
        row += [html.share_bar(html.fill_of(step), f"{step.waiting:,}"), workers, html.share_bar(step.busy)]
        row += [f"{step.cpu:.0%}", f"{step.blocked:.0%}", duration(step.mean), duration(step.p99)]
        rows.append([*row, *(html.trouble(getattr(step, name)) for _, name in troubles)])
    slowest = next((_name(step) for step in stats.steps if step.processor == stats.bottleneck), None)
    said = ""
    if slowest is not None:
        stalled = stats[str(stats.bottleneck)].stalled
        said = f"<p>The bottleneck is <b>{slowest}</b>: items waited for it for {stalled:.1f} s.</p>"
    return html.table([*heads, *(head for head, _ in troubles)], rows, slowest=slowest) + said


def _name(step: StepStats) -> str:
    return escape(one_line(step.processor))


def _workers(stats: Stats) -> str:
    """Return the workers of each step, each with what it is at."""
    lines = []
    for step in stats.steps:
        if step.worker_stats:
            count = len(step.worker_stats)
            head = f"{_name(step)} <span class=soft>{count:,} {'worker' if count == 1 else 'workers'}</span>"
            lines.append(f'<h3>{head}</h3><ul class="staff">{"".join(map(_worker, step.worker_stats))}</ul>')
    return "".join(lines)


def _worker(worker: WorkerStats) -> str:
    at = "idle"
    if worker.item is not None:
        at = f"at item {worker.item:,}"
        if worker.seconds is not None:
            at += f" for {duration(worker.seconds)}"
    elif worker.first is not None:
        at = f"item {worker.first:,}" if worker.first == worker.last else f"items {worker.first:,} to {worker.last:,}"
    process = "" if worker.pid is None else f"process {worker.pid}"
    memory = "" if worker.memory is None else _size(worker.memory)
    told = ", ".join(filter(None, (memory, process)))
    return (
        f'<li><span class="who">worker {worker.number}</span>{html.share_bar(worker.busy)}'
        f'<span class="at">{at}</span><span class="small">{told}</span></li>'
    )


def _size(size: float) -> str:
    """Return bytes as a person reads them.

    >>> _size(2048), _size(34e6)
    ('2 KB', '34 MB')
    """
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if size >= least:
            return f"{size / least:.1f} {unit}" if size < 10 * least else f"{size / least:,.0f} {unit}"
    return f"{size / 1e3:.0f} KB"


def _failures(failures: Sequence[FailedItem], count: int) -> str:
    if not failures:
        return ""
    more = count - len(failures)
    text = html.failures_list(failures)
    return text + (f'<p class="soft">{html.more_not_shown(more)}</p>' if more > 0 else "")
