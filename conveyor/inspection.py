"""What a user asks a `Pipeline` at any time: whether it is open, statistics, failures, its graph and a report.

Law: nothing here changes the pipeline.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager

from conveyor._lean.typing import TYPE_CHECKING
from conveyor.errors import FailedItem
from conveyor.stats import Stats

if TYPE_CHECKING:
    from conveyor.diagram import Graph
    from conveyor.engines.base import PipelineSettings
    from conveyor.graph.builder import Description
    from conveyor.operations import Lifecycle


class _Inspection:
    """The methods of a `Pipeline` that look on."""

    _settings: PipelineSettings
    _description: Description
    _lifecycle: Lifecycle

    @property
    def opened(self) -> bool:
        """Whether the pipeline was opened, or entered by `with`, and not closed since.

        >>> from conveyor import Pipeline, Processor
        >>> with Pipeline(engine="inline") as pipeline:
        ...     results = pipeline.add(Processor(len)).run(["a", "bc"])
        ...     results, pipeline.opened
        ([1, 2], True)
        >>> pipeline.opened, pipeline.closed
        (False, True)
        """
        return self._lifecycle.opened

    @property
    def closed(self) -> bool:
        """Whether the pipeline is not `opened`: it was closed, or not opened yet.

        >>> from conveyor import Pipeline, Processor
        >>> pipeline = Pipeline(engine="inline").add(Processor(len)).open()
        >>> pipeline.closed, pipeline.close(), pipeline.closed
        (False, None, True)
        """
        return not self._lifecycle.opened

    @property
    def failures(self) -> tuple[FailedItem, ...]:
        """The items that the current or last run gave up, ordered by Processor, and by number within each.

        It holds the last `keep_failures` of them.  It is empty before the first run, and where no Processor has an
        `on_error` and the run no `return_exceptions`.

        >>> from conveyor import Pipeline, Processor
        >>> pipeline = Pipeline(engine="inline").add(Processor(int, on_error="skip"))
        >>> pipeline.run(["1", "two", "3"])
        [1, 3]
        >>> [(failed.number, failed.item, failed.error.kind) for failed in pipeline.failures]
        [(1, "'two'", 'ValueError')]
        """
        return self._lifecycle.failures

    def stats(self) -> Stats:
        """Return statistics of each Processor: its workers, waiting items, times of calls, and the bottleneck.

        Any thread may call this at any time.  When the pipeline is closed, the last statistics are returned.  Totals
        begin anew each time that the pipeline is opened, or run without being open.  Raises StateError before the
        first time.

        >>> from conveyor import Pipeline, Processor
        >>> pipeline = Pipeline(engine="inline").add(Processor(len))
        >>> pipeline.run(["a", "bc"])
        [1, 2]
        >>> pipeline.stats()["len"].items_in
        2
        """
        return self._lifecycle.stats()

    def graph(self) -> Graph:
        """Return what was added as nodes and edges: the input, each Processor, fork and Join, and the results.

        Nodes have the names that statistics and errors use.  With `fuse`, Processors that run in one process are one
        node.  `to_mermaid()`, `to_dot()` and `to_svg()` of the graph return pictures, each as a str.  May be called at
        any time and from any thread.

        >>> from conveyor import Pipeline, Processor
        >>> graph = Pipeline().add(Processor(len)).graph()
        >>> [node.name for node in graph.nodes]
        ['input', 'len', 'results']
        """
        return self._settings.graph_of(self._description)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write what is known of the pipeline to one file: a page of HTML that needs no other file and no network.

        It shows the graph with numbers, the steps, workers and waiting items over time, the decisions of the balancer,
        failures, the slowest calls, advice and the environment, and holds the same as JSON, in the element `data`.
        Items are shown as `redact` shows them.  The file at `path` is replaced as a whole.  May be called while the
        pipeline is open, and after it was closed.  Raises StateError before it was first opened or run, and OSError
        where the file cannot be written.

        >>> from conveyor import Pipeline, Processor
        >>> import os, tempfile
        >>> pipeline = Pipeline(engine="inline").add(Processor(len))
        >>> pipeline.run(["a", "bc"])
        [1, 2]
        >>> path = os.path.join(tempfile.mkdtemp(), "run.html")
        >>> pipeline.report(path)
        >>> with open(path) as file:
        ...     file.readline()
        '<!doctype html>\\n'
        """
        # Imported here: a run has no use for it.
        from conveyor.views.report import report_html, write_report

        stats, graph = self.stats(), self.graph()
        version = str(vars(sys.modules["conveyor"])["__version__"])
        write_report(path, report_html(graph, stats, self.failures, self._settings.code(), version))

    def serve(self, port: int = 0) -> AbstractContextManager[str]:
        """Return a context manager that serves a page about the pipeline while it runs, and gives its address.

        The page shows the graph, rates, workers, failures and decisions, new twice a second.  It can be reached from
        this machine alone, and its address holds a token, without which there is no answer.  The token is random, or
        `CONVEYOR_TOKEN`.  What else the address leads to: `/stats.json`, `/metrics` for Prometheus, `/report`,
        `/trace`, and `/events`.

        `port` (0): where to listen, from 1 to 65535; 0 takes one that is free.  One that cannot be had warns with
        RuntimeWarning, and another one is taken.  The page ends with the block, or with `close`.  Nothing that goes
        wrong in it harms the run.  Raises TypeError or ValueError for what is no port, StateError where a page is
        served already, and OSError where no port can be had.

        >>> from conveyor import Pipeline, Processor
        >>> from urllib.request import urlopen
        >>> pipeline = Pipeline(engine="inline").add(Processor(len))
        >>> with pipeline.serve() as url:
        ...     results = pipeline.run(["a", "bc"])
        ...     with urlopen(url) as page:
        ...         page.status
        200
        """
        from conveyor.serving.page import Served

        return Served(self, self._lifecycle, port)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the graph, with numbers once it has run."""
        from conveyor.views.html import graph_with_numbers, in_notebook

        return in_notebook(graph_with_numbers(self.graph(), self._lifecycle.known_stats()))
