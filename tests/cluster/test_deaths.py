"""What can go wrong on a cluster, on three nodes on loopback.

Law: a run ends with the exact list, or with an error that says what to do; never by a time limit of a test.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conveyor import (
    BalancingFork,
    ItemTimeoutError,
    Join,
    Pipe,
    Pipeline,
    ProcessError,
    Processor,
    ProcessorError,
    ReplicatingFork,
)
from conveyor.engines.dask import DaskEngine
from tests.cluster import jobs
from tests.helpers.cluster import (
    ClusterTestCase,
    LoopbackCluster,
    Member,
    await_that,
    children_of,
    node_processes,
    on_cluster,
    processes_of,
)
from tests.helpers.support import ROOT, TestCase


class OnCluster(ClusterTestCase):
    """Has a cluster that is made whole again before each test."""

    def setUp(self) -> None:
        self.cluster.heal()

    def pipeline(self, **settings: Any) -> Pipeline[Any, Any]:
        engine: Any = DaskEngine(self.cluster.address, lost_after=settings.pop("lost_after", 30))
        return Pipeline(engine=engine, **settings)

    def killed_amid(self, pipeline: Pipeline[Any, Any], items: int, at: dict[int, Any]) -> list[Any]:
        """The results of a run in which something is called when so many results have come."""
        results = []
        with pipeline, self.assertLogs("conveyor", logging.WARNING) as logs:
            for result in pipeline.stream(range(items)):
                results.append(result)
                if len(results) in at:
                    at[len(results)]()
            logging.getLogger("conveyor").warning("the run is over")
        self.said = "\n".join(logs.output)
        return results


@on_cluster
class Deaths(OnCluster):
    """One thing dies, and what is left goes on."""

    def worker_processes(self, member: Member) -> list[int]:
        """The worker processes of a node: what its node process has started."""
        return [pid for node in node_processes(member) for pid in children_of(node)]

    def test_a_worker_is_killed(self) -> None:
        def kill() -> None:
            os.kill(next(pid for each in self.cluster.workers for pid in self.worker_processes(each)), signal.SIGKILL)

        pipeline = self.pipeline().add(Processor(jobs.slowly, workers=3)).add(Pipe()).add(Processor(jobs.doubled))
        results = self.killed_amid(pipeline, 600, {100: kill})
        assert results == [2 * (n + 1) for n in range(600)]
        lost = sum(step.workers_lost for step in pipeline.stats().steps)
        assert lost == 1, pipeline.stats()

    def test_all_processes_of_a_node_are_killed_and_one_joins_later(self) -> None:
        pipeline = self.pipeline().add(Processor(jobs.same)).add(Pipe()).add(ReplicatingFork(2))
        pipeline.add(Processor(jobs.slowly, workers=2), Processor(jobs.doubled, workers=2))
        pipeline.add(Pipe()).add(Join(how="zip")).add(Pipe()).add(jobs.Total(workers=2))
        expected = [(n + 1, 2 * n) for n in range(900)]
        results = self.killed_amid(pipeline, 900, {100: self.kill_a_node, 400: self.kill_all_but_a_new_one})
        assert results == expected
        assert "is lost, and its workers with it" in self.said

    def kill_a_node(self) -> None:
        victim = max(self.cluster.workers, key=lambda each: len(each.alive))
        victim.kill()

    def kill_all_but_a_new_one(self) -> None:
        before = [each for each in self.cluster.workers if each.alive]
        self.cluster.workers = list(before)
        self.cluster.add()
        for each in before:
            each.kill()

    def test_a_worker_of_dask_that_is_closed_is_a_node_lost(self) -> None:
        def close() -> None:
            # What `cluster.scale` does to a worker: the process is told to end.
            os.kill(self.cluster.workers[0].process.pid, signal.SIGTERM)

        pipeline = self.pipeline().add(Processor(jobs.slowly, workers=3))
        assert self.killed_amid(pipeline, 600, {100: close}) == [n + 1 for n in range(600)]
        assert "is lost, and its workers with it" in self.said

    def endless_program(self) -> subprocess.Popen[bytes]:
        """Start a program that uses the cluster, in a session of its own, and wait for its first result."""
        program = textwrap.dedent(
            f"""
            from conveyor import Pipeline, Processor
            from tests.cluster import jobs
            if __name__ == "__main__":
                pipeline = Pipeline(engine="dask", address={self.cluster.address!r})
                for result in pipeline.add(Processor(jobs.slowly, workers=3)).stream(range(10**6)):
                    print(result, flush=True)
            """
        )
        path = Path(self.new_folder(), "program.py")
        path.write_text(program)
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        caller = subprocess.Popen(
            [sys.executable, str(path)], stdout=subprocess.PIPE, env=environ, start_new_session=True
        )
        assert caller.stdout is not None
        caller.stdout.readline()
        return caller

    def test_the_caller_is_killed(self) -> None:
        with self.endless_program() as caller:
            before = [len(each.alive) for each in self.cluster.workers]
            assert min(before) >= 3, before
            caller.kill()
        # One process is left of each: the Dask worker itself.
        await_that(lambda: all(len(each.alive) == 1 for each in self.cluster.workers), "the nodes are left alone", 15)

    def test_caller_and_broker_are_stopped_and_the_lease_ends_the_nodes(self) -> None:
        """What a machine that hangs, or is cut off, looks like to the nodes."""
        with self.endless_program() as caller:
            stopped = processes_of(caller.pid)
            try:
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                await_that(lambda: all(len(each.alive) == 1 for each in self.cluster.workers), "the lease ends", 20)
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGKILL)

    def test_a_job_that_ends_its_worker_takes_no_other_along(self) -> None:
        pipeline = self.pipeline().add(Processor(jobs.die_at_seven, workers=2, on_error="skip"))
        with pipeline:
            assert pipeline.run(range(50)) == [n for n in range(50) if n != 7]
            (failed,) = pipeline.failures
            assert (failed.number, failed.attempts) == (7, 2), failed

    def test_a_call_that_stands_still_is_killed(self) -> None:
        with self.pipeline().add(Processor(jobs.sleep_at_three, timeout=0.5)) as pipeline:
            with self.assertRaises(ItemTimeoutError) as caught:
                pipeline.run(range(10))
        assert caught.exception.number == 3

    def test_a_job_that_raises_and_one_that_logs(self) -> None:
        with self.pipeline().add(Processor(jobs.raise_at_five, workers=2)) as pipeline:
            with self.assertRaises(ProcessorError) as caught:
                pipeline.run(range(10))
        assert caught.exception.number == 5 and isinstance(caught.exception.__cause__, ValueError)
        with self.pipeline().add(Processor(jobs.tell)) as pipeline:
            with (
                self.assertLogs("tests.cluster", logging.WARNING) as logs,
                warnings.catch_warnings(record=True) as seen,
            ):
                warnings.simplefilter("always")
                assert pipeline.run([1]) == [1]
        assert logs.output == ["WARNING:tests.cluster:item 1"]
        assert [str(each.message) for each in seen] == ["about 1"]

    def test_an_endless_source_pulls_no_more_than_the_pipes_hold(self) -> None:
        pulled = 0

        def numbers() -> Iterator[int]:
            nonlocal pulled
            while True:
                pulled += 1
                yield pulled

        with self.pipeline().add(Processor(jobs.doubled)).add(Pipe(4)).add(Processor(jobs.doubled)) as pipeline:
            stream = pipeline.stream(numbers())
            assert [next(stream) for _ in range(3)] == [4, 8, 12]
            most = pulled
            # Room comes with what is taken alone; the pipes, and a lease for each worker, hold this many at most.
            assert most < 5000, most
            stream.close()

    def test_auto_workers_have_the_slots_of_the_cluster(self) -> None:
        with self.pipeline().add(jobs.Place(workers="auto")) as pipeline:
            places = set(pipeline.run(range(600)))
            assert pipeline.stats().cores == 3
        assert places <= {each.process.pid for each in self.cluster.workers}

    def test_forks_that_balance(self) -> None:
        pipeline = self.pipeline().add(Processor(jobs.same)).add(Pipe()).add(BalancingFork(2))
        pipeline.add(Processor(jobs.slowly), Processor(jobs.slowly))
        with pipeline.add(Pipe()).add(Join()):
            assert pipeline.run(range(100)) == [n + 1 for n in range(100)]


@on_cluster
class Starts(OnCluster):
    """What is wrong from the beginning."""

    def test_no_scheduler_at_the_address(self) -> None:
        begun = time.monotonic()
        with self.assertRaisesRegex(ProcessError, r"No Dask scheduler could be reached at 'tcp://127.0.0.1:9'"):
            Pipeline(engine="dask", address="tcp://127.0.0.1:9").add(Processor(abs)).run([1])
        assert time.monotonic() - begun < 60

    def test_a_node_with_another_conveyor(self) -> None:
        preload = Path(self.new_folder(), "older.py")
        preload.write_text("import conveyor\nconveyor.__version__ = '0.0.1'\n")
        cluster = LoopbackCluster(0)
        self.addCleanup(cluster.close)
        cluster.add(1, "--preload", str(preload))
        with self.assertRaisesRegex(ProcessError, r"has Conveyor 0\.0\.1, and this process has Conveyor \d"):
            Pipeline(engine="dask", address=cluster.address).add(Processor(abs)).run([1])

    def test_a_module_that_nodes_cannot_import(self) -> None:
        folder = self.new_folder()
        Path(folder, "only_here.py").write_text("def job(item):\n    return item\n")
        sys.path.insert(0, folder)
        self.addCleanup(sys.path.remove, folder)
        self.addCleanup(sys.modules.pop, "only_here", None)
        import only_here  # type: ignore[import-not-found]

        with self.assertRaisesRegex(ProcessorError, r"No module named 'only_here'.*upload_file"):
            self.pipeline().add(Processor(only_here.job)).run([1])
        from distributed import Client

        with Client(self.cluster.address, set_as_default=False) as client:
            client.upload_file(str(Path(folder, "only_here.py")))
            assert self.pipeline().add(Processor(only_here.job)).run([1]) == [1]

    def test_jobs_and_items_of_a_script_by_value(self) -> None:
        program = textwrap.dedent(
            f"""
            from conveyor import Pipe, Pipeline, Processor
            class Point:
                def __init__(self, x): self.x = x
            def shift(point): return Point(point.x + 1)
            factor = 3
            print(Pipeline(engine="dask", address={self.cluster.address!r}).add(Processor(shift)).add(Pipe())
                .add(Processor(lambda point: point.x * factor)).run(map(Point, range(3))))
            """
        )
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=120)
        assert done.stdout == "[3, 6, 9]\n", (done.stdout, done.stderr)

    def test_a_client_of_the_program(self) -> None:
        from distributed import Client

        with Client(self.cluster.address) as client:
            for engine in (DaskEngine(client), DaskEngine()):
                pipeline: Any = Pipeline(engine=engine).add(Processor(jobs.doubled))
                assert pipeline.run([1, 2]) == [2, 4]


@on_cluster
class Schedulers(TestCase):
    """The scheduler dies."""

    time_limit = 300.0

    def test_the_scheduler_is_killed(self) -> None:
        cluster = LoopbackCluster(2)
        self.addCleanup(cluster.close)
        pipeline: Any = Pipeline(engine=DaskEngine(cluster.address, lost_after=10))
        pipeline.add(Processor(jobs.slowly, workers=2))
        with self.assertRaisesRegex(ProcessError, "The Dask (scheduler|cluster) at"), pipeline:
            for count, _ in enumerate(pipeline.stream(range(10**6))):
                if count == 50:
                    cluster.scheduler.kill()
                    killed = time.monotonic()
        assert time.monotonic() - killed < 20
