"""The report of a run: one file that holds all of it, for people and, as JSON, for programs.

Law: the page and its JSON say the same.  The file is there as a whole, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
from collections.abc import Sequence
from html import escape

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.diagram import Graph
from conveyor.errors import FailedItem
from conveyor.stats import Stats, duration
from conveyor.views import html
from conveyor.views.charts import timeline

LEGEND = (
    '<p class="soft">The area says how full the pipe in front of a step is, the line how many workers the step has. '
    "A triangle marks where the balancer changed that.</p>"
)


def environment(version: str, stats: Stats, settings: str) -> dict[str, str]:
    """Return where the run took place, and with which settings, in words."""
    told = {
        "Conveyor": version,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": f"{stats.cores} that may be used, of {os.cpu_count() or 1}",
    }
    if stats.start_method is not None:
        told["start method"] = stats.start_method + (f": {stats.start_reason}" if stats.start_reason else "")
    told["settings"] = f"Pipeline({settings})"
    return told


def report_html(graph: Graph, stats: Stats, failures: Sequence[FailedItem], settings: str, version: str) -> str:
    """Return the report as one page; `settings` are those of the Pipeline that are not the default, as code."""
    where, made = environment(version, stats, settings), time.strftime("%Y-%m-%d %H:%M:%S %z")
    failed = sum(step.failed for step in stats.steps)
    told = [("results", f"{stats.results:,}"), ("open for", duration(stats.seconds))]
    if stats.source is not None:
        told.insert(0, ("items taken", f"{stats.source.pulled:,}"))
    told += [("CPU time", duration(stats.cpu_seconds)), ("items given up", f"{failed:,}")]
    lost = sum(step.workers_lost for step in stats.steps)
    if lost:
        told.append(("workers lost", f"{lost:,}"))
    names = " → ".join(step.processor for step in stats.steps)
    body = [
        f'<header><h1>Report of a pipeline</h1><p class="soft">{escape(names)}</p>'
        f'<p class="soft">made {made} by Conveyor {version}</p></header>',
        html.cards(told),
        html.advice_list(stats),
        html.section("Graph", html.graph_with_numbers(graph, stats)),
        html.section("Steps", html.steps_table(stats)),
    ]
    over_time = timeline(stats)
    body.append(html.section("Over time", over_time and LEGEND + over_time))
    body.append(html.section("Decisions of the balancer", html.decisions_table(stats)))
    body.append(html.section("Failures", html.failures_list(failures)))
    body.append(html.section("Slowest calls", html.slowest_table(stats)))
    rows = [[escape(name), escape(value)] for name, value in where.items()]
    body.append(html.section("Environment", html.table(["what", "which"], rows, texts=1)))
    data = {
        "made": made,
        "environment": where,
        "graph": {
            "nodes": [{"index": each.index, "kind": each.kind, "name": each.name} for each in graph.nodes],
            "edges": [{"source": each.source, "target": each.target, "bound": each.bound} for each in graph.edges],
        },
        "stats": stats.to_dict(history=True),
        "failures": [_told(each) for each in failures],
    }
    return html.page(f"Report: {names}", "\n".join(body), html.json_in_html(json.dumps(data)))


def _told(failed: FailedItem) -> dict[str, Any]:
    return {
        "processor": failed.processor,
        "number": failed.number,
        "last": failed.last,
        "item": failed.item,
        "kind": failed.error.kind,
        "error": str(failed.error),
        "attempts": failed.attempts,
        "when": failed.when,
    }


def write_report(path: str | os.PathLike[str], text: str) -> None:
    """Write a report: all of it, or nothing; raises OSError where that cannot be done.

    Where the path is a link, the file that it leads to is replaced.  A pipe or a device is written to, and stays.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        else:
            _replace(os.path.realpath(os.fspath(path)), text)
    except OSError as error:
        # With the path that the user knows, and no other.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def _replace(whole: str, text: str) -> None:
    """Put a file with such a text in the place of another."""
    part = f"{whole}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        with open(part, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(part, whole)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
