"""A node whose link goes down, and comes back: no socket is closed, and nothing tells that something is wrong.

Law: the run goes on with the other nodes, and gives the exact list.  What the lost node says when it is back is not taken.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork
from conveyor.engines.dask import DaskEngine
from tests.cluster import jobs, relay
from tests.helpers.cluster import ClusterTestCase, LoopbackCluster, Member, await_that, on_cluster
from tests.helpers.namespaces import Namespaces, why_no_namespaces
from tests.helpers.support import ROOT, TestCase

# Long enough for nodes that answer on a busy machine, and shorter than the lease of a node, which is 10 s: it is still
# there, with something to say, when the link is back.
LOST_AFTER = 8.0
LOST = "is lost, and its workers with it"


@on_cluster
class CutLinks(ClusterTestCase):
    """On loopback, where the system still takes what is sent: the broker notices by its own clock."""

    @contextlib.contextmanager
    def node_behind_a_relay(self) -> Iterator[tuple[subprocess.Popen[bytes], Member]]:
        """A node that all others reach through a program, which SIGSTOP makes a cut cable."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        scheduler = int(self.cluster.address.rpartition(":")[2])
        command = [sys.executable, str(Path(relay.__file__)), str(port), str(scheduler)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as passing:
            try:
                assert passing.stdout is not None
                to_node, to_scheduler = map(int, passing.stdout.readline().split())
                places = ["--listen-address", f"tcp://127.0.0.1:{port}"]
                places += ["--contact-address", f"tcp://127.0.0.1:{to_node}"]
                (node,) = self.cluster.add(1, *places, scheduler=f"tcp://127.0.0.1:{to_scheduler}", host=None)
                yield passing, node
                node.kill()
            finally:
                passing.kill()

    def test_a_node_is_cut_off_and_back_in_one_run(self) -> None:
        with self.node_behind_a_relay() as (passing, node):
            self.check(passing, node)

    def test_a_node_is_cut_off_before_it_is_used(self) -> None:
        with self.node_behind_a_relay() as (passing, _):
            passing.send_signal(signal.SIGSTOP)
            engine: Any = DaskEngine(self.cluster.address, lost_after=LOST_AFTER)
            with self.assertLogs("conveyor", logging.WARNING) as logs:
                results = Pipeline(engine=engine).add(Processor(jobs.slowly, workers=4)).run(range(100))
        assert results == [n + 1 for n in range(100)]
        said = [line for line in logs.output if LOST in line]
        assert len(said) == 1 and f"no answer within {LOST_AFTER:g} s" in said[0], logs.output

    def check(self, passing: subprocess.Popen[bytes], node: Member) -> None:
        """Cut a node off amid a run, have it back in the same run, and look at all results."""
        lost = threading.Event()

        class Lost(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if LOST in record.getMessage():
                    lost.set()

        def numbers() -> Iterator[int]:
            # When the run goes on, the node is lost, and back.
            yield from range(400)
            assert lost.wait(60), "the broker has noticed"
            passing.send_signal(signal.SIGCONT)
            yield from range(400, 1200)

        pipeline: Any = Pipeline(engine=DaskEngine(self.cluster.address, lost_after=LOST_AFTER))
        pipeline.add(Processor(jobs.same)).add(Pipe()).add(ReplicatingFork(2))
        pipeline.add(Processor(jobs.slowly, workers=4), Processor(jobs.doubled, workers=4))
        pipeline.add(Pipe()).add(Join(how="zip")).add(Pipe()).add(jobs.Total(workers=4))
        results = []
        with self.assertLogs("conveyor", logging.WARNING) as logs, pipeline:
            logging.getLogger("conveyor").addHandler(Lost())
            assert len(node.alive) > 1, "it has workers"
            for result in pipeline.stream(numbers()):
                results.append(result)
                if len(results) == 50:
                    passing.send_signal(signal.SIGSTOP)
            assert sum(step.workers_lost for step in pipeline.stats().steps) > 0
        assert results == [(n + 1, 2 * n) for n in range(1200)]
        said = [line for line in logs.output if LOST in line]
        assert len(said) == 1 and f"no answer within {LOST_AFTER:g} s" in said[0], logs.output
        # One process is left: the Dask worker.  The node has ended itself and its workers.
        await_that(lambda: len(node.alive) == 1, "the node that was lost has ended", 30)


@on_cluster
class Namespace(TestCase):
    """Three network namespaces, with a cable that is pulled out of one of them."""

    time_limit = 300.0

    def test_a_cable_is_pulled_out_and_put_in_again(self) -> None:
        if why := why_no_namespaces():
            raise unittest.SkipTest(why)
        network = Namespaces(2)
        self.addCleanup(network.close)
        # Dask's own time, far below `lost_after`: it is Dask that notices.
        patience = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s"}
        cluster = LoopbackCluster(0, host=network.heads[0], prefix=network.inside("head"), **patience)
        self.addCleanup(cluster.close)
        for index, own in enumerate(network.nodes):
            head = cluster.address.replace(network.heads[0], network.heads[index])
            cluster.add(1, scheduler=head, host=own, prefix=network.inside(f"node{index}"), **patience)
        program = textwrap.dedent(
            f"""
            import logging, sys
            from conveyor import Pipeline, Processor
            from conveyor.engines.dask import DaskEngine
            from tests.cluster import jobs

            class Told(logging.Handler):
                def emit(self, record):
                    print(record.getMessage(), flush=True)

            def numbers():
                yield from range(400)
                sys.stdin.readline()
                yield from range(400, 1200)

            if __name__ == "__main__":
                logging.getLogger("conveyor").addHandler(Told())
                results = []
                pipeline = Pipeline(engine=DaskEngine({cluster.address!r}))
                for result in pipeline.add(Processor(jobs.slowly, workers=4)).stream(numbers()):
                    results.append(result)
                    if len(results) == 50:
                        print("cut", flush=True)
                print(results == [number + 1 for number in range(1200)], flush=True)
            """
        )
        path = Path(self.new_folder(), "program.py")
        path.write_text(program)
        caller = subprocess.Popen(
            [*network.inside("head"), sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **patience},
        )
        with caller:
            assert caller.stdin is not None and caller.stdout is not None
            try:
                assert caller.stdout.readline() == "cut\n"
                network.cut(1)
                said = caller.stdout.readline()
                assert f"tcp://{network.nodes[1]}:" in said and LOST in said, said
                assert "no answer within" not in said, said
                network.mend(1)
                caller.stdin.write("\n")
                caller.stdin.flush()
                assert caller.stdout.read() == "True\n"
                await_that(lambda: len(cluster.workers[1].alive) <= 1, "the node that was lost has ended", 30)
            finally:
                caller.kill()
