"""What a pipeline on one machine has beside its results, on a Dask cluster.

Law: one short run for each feature; what it does in detail, the tests of the other engines say.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

from conveyor import Pipe, Pipeline, Processor, Progress
from tests.cluster import jobs
from tests.engines.test_trace import check, names_of
from tests.helpers.cluster import ClusterTestCase, on_cluster
from tests.helpers.late import mock


@on_cluster
class Features(ClusterTestCase):
    """Each with the cluster that all tests share."""

    def setUp(self) -> None:
        self.cluster.heal()

    def pipeline(self, **settings: Any) -> Pipeline[Any, Any]:
        return Pipeline(engine="dask", address=self.cluster.address, **settings)

    def test_submit_and_asubmit_beside_each_other(self) -> None:
        async def awaited(pipeline: Pipeline[int, int]) -> list[list[int]]:
            return await asyncio.gather(*(pipeline.asubmit(item) for item in range(20)))

        with self.pipeline().add(Processor(jobs.slowly, workers=2)) as pipeline:
            futures = [pipeline.submit(item) for item in range(100, 120)]
            assert asyncio.run(awaited(pipeline)) == [[item + 1] for item in range(20)]
            assert [future.result(60) for future in futures] == [[item + 1] for item in range(100, 120)]

    def test_shared_objects(self) -> None:
        # More than crosses in one part, and a second node that gets it later.
        table = jobs.Table(bytes(range(256)) * (5 << 12))
        expected = [(255 - item % 256, True, "name") for item in range(600)]
        with self.pipeline(shared={"table": table, "name": "name"}).add(
            Processor(jobs.looked_up, workers=3)
        ) as pipeline:
            assert pipeline.run(range(600)) == expected
            results = []
            for result in pipeline.stream(range(600)):
                results.append(result)
                if len(results) == 50:
                    self.cluster.workers[0].kill()
            assert results == expected
            assert sum(step.workers_lost for step in pipeline.stats().steps) > 0
        # Nothing is something, too.
        with self.pipeline(shared={}).add(Processor(jobs.same)) as pipeline:
            assert pipeline.run([1]) == [1]

    def test_fused_steps(self) -> None:
        pipeline = self.pipeline(fuse=True).add(Processor(jobs.slowly, workers="auto")).add(Pipe())
        with pipeline.add(Processor(jobs.same, workers="auto")).add(Pipe()).add(jobs.Total()):
            assert pipeline.run(range(3000)) == list(range(1, 3001))
            fused, total = pipeline.stats().steps
        assert (fused.processor, total.processor) == ("slowly+same", "Total"), (fused, total)
        assert fused.most_workers > 1, fused

    def test_progress(self) -> None:
        got: list[Progress] = []
        with mock.patch("conveyor.progress._Callable.interval", 0.01):
            results = self.pipeline().add(Processor(jobs.slowly)).run(range(100), progress=got.append)
        assert results == [item + 1 for item in range(100)]
        dones = [each.done for each in got]
        assert dones == sorted(dones) and len(dones) > 1, dones
        assert (got[-1].done, got[-1].total, got[-1].eta) == (100, 100, 0.0), got[-1]
        assert [step.processor for step in got[-1].steps] == ["slowly"]

    def test_a_trace(self) -> None:
        path = Path(self.new_folder(), "run.json")
        self.pipeline(trace=str(path)).add(Processor(jobs.slowly, workers=2)).run(range(60))
        found = check(json.loads(path.read_text()))
        slices = [event for event in found if event["ph"] == "X"]
        assert sum(event["args"]["items"] for event in slices) == 60, slices
        assert sum(event["args"]["outputs"] for event in slices) == 60, slices
        # Of a clock that all machines share nothing is known: what a call took is.
        assert sum(event["dur"] for event in slices) >= 60 * 5000, slices
        for name in ("worker is ready", "a run begins", "the input ended", "the run is over", "the trace ends"):
            assert name in names_of(found), name

    def test_a_report_and_a_page(self) -> None:
        pipeline = self.pipeline().add(Processor(jobs.slowly)).add(Pipe(4)).add(Processor(jobs.doubled))
        with pipeline, pipeline.serve() as url, pipeline.stream(iter(range(200))) as stream:
            results = [next(stream)]
            # The run is under way.
            with urllib.request.urlopen(url.replace("/?", "/stats.json?"), timeout=60) as answer:
                told = json.load(answer)
            assert [step["processor"] for step in told["steps"]] == ["slowly", "doubled"], told
            results += stream
            assert results == [2 * (item + 1) for item in range(200)]
            path = Path(self.new_folder(), "run.html")
            pipeline.report(path)
        text = path.read_text()
        assert "Report of a pipeline" in text and "slowly" in text and "200" in text

    def test_inputs_beside_results_and_errors_in_the_place_of_them(self) -> None:
        pipeline = (
            self.pipeline().add(Processor(jobs.raise_at_five, workers=2)).add(Pipe()).add(Processor(jobs.doubled))
        )
        with pipeline:
            pairs = pipeline.run(range(8), with_input=True, return_exceptions=True)
            assert [item for item, _ in pairs] == list(range(8))
            assert [results for _, results in pairs[:5] + pairs[6:]] == [[2 * n] for n in (0, 1, 2, 3, 4, 6, 7)]
            error = pairs[5][1]
            assert isinstance(error, Exception) and isinstance(error.__cause__, ValueError), error

    def test_lists_that_give_one_output_for_each_item(self) -> None:
        pipeline = self.pipeline().add(Processor(jobs.all_doubled, batch=7, per_item=True, workers=2))
        with pipeline.add(Pipe()).add(Processor(jobs.slowly)):
            assert pipeline.run(range(50)) == [2 * item + 1 for item in range(50)]
            pairs = pipeline.run(range(9), with_input=True)
        assert pairs == [(item, [2 * item + 1]) for item in range(9)]
