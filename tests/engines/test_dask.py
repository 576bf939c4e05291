"""The Dask engine without a cluster: what is refused when a pipeline is made, with and without the package.

Law: no test here needs Dask; `tests/cluster/` has those that do.
"""

from __future__ import annotations

import asyncio
import importlib.util
import pickle
import socket
import subprocess
import sys
from typing import Any

from conveyor import Pipeline, Processor
from conveyor.engines import dask
from conveyor.engines.base import PipelineSettings
from conveyor.engines.dask import DaskEngine, cluster, messages
from conveyor.engines.dask.node import program
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.messages import Close, Ready, Reply
from conveyor.engines.process.wire.pipe import BlockingPipe
from tests.helpers.late import mock
from tests.helpers.support import TestCase


class Construction(TestCase):
    """What `Pipeline` and `DaskEngine` refuse."""

    def setUp(self) -> None:
        # As if it were there, and nothing of it needed yet.
        for name, value in (("_check_installed", None), ("_is_client", False)):
            patch = mock.patch.object(dask, name, return_value=value)
            patch.start()
            self.addCleanup(patch.stop)

    def test_an_address_is_for_this_engine_alone(self) -> None:
        for engine in (None, "process", "thread", "inline", DaskEngine("tcp://head:8786")):
            with self.subTest(engine), self.assertRaisesRegex(TypeError, "address='tcp://head:8786' says where"):
                Pipeline(engine=engine, address="tcp://head:8786")  # type: ignore[arg-type]
        with self.assertRaisesRegex(TypeError, "address must be a str"):
            Pipeline(engine="dask", address=8786)  # type: ignore[arg-type]

    def test_settings_without_a_meaning_on_a_cluster(self) -> None:
        for settings in ({"start_method": "fork"}, {"channel": "queue"}, {"cores": 2}):
            for engine in ("dask", DaskEngine("tcp://head:8786")):
                wanted: Any = {"engine": engine, **settings}
                with (
                    self.subTest(wanted),
                    self.assertRaisesRegex(ValueError, f"{next(iter(settings))}=.* on a Dask cluster"),
                ):
                    Pipeline(**wanted)

    def test_arguments_of_the_engine(self) -> None:
        wrong: list[tuple[type[Exception], dict[str, Any], str]] = [
            (TypeError, {"client_or_address": 8786}, "client_or_address must be a str"),
            (ValueError, {"client_or_address": "inproc://1/2"}, "from its own process alone"),
            (TypeError, {"slots": 2.5}, "slots must be an int"),
            (TypeError, {"slots": True}, "slots must be an int"),
            (ValueError, {"slots": 0}, "slots must be 1 or more"),
            (TypeError, {"lost_after": "30"}, "lost_after must be a number"),
            (ValueError, {"lost_after": 4.9}, "lost_after must be 5 seconds or more"),
            (ValueError, {"lost_after": float("inf")}, "lost_after must be 5 seconds or more"),
        ]
        for kind, arguments, text in wrong:
            with self.subTest(arguments), self.assertRaisesRegex(kind, text):
                DaskEngine(**arguments)

    def test_an_engine_is_shown_and_travels_as_text(self) -> None:
        engine = DaskEngine("tcp://head:8786", slots=4)
        settings = PipelineSettings(engine=engine)
        assert (
            dict(settings.plain())["engine"] == repr(engine) == "DaskEngine('tcp://head:8786', slots=4, lost_after=30)"
        )
        assert pickle.loads(pickle.dumps(settings.plain())) == settings.plain()
        assert "DaskEngine('tcp://head:8786'" in repr(Pipeline(engine=engine).add(Processor(abs)))


class WithoutThePackage(TestCase):
    def test_the_error_says_what_to_install(self) -> None:
        with mock.patch.object(importlib.util, "find_spec", return_value=None):
            for make in (lambda: Pipeline(engine="dask"), DaskEngine):
                with self.assertRaisesRegex(ImportError, r"pip install 'conveyor-pipeline\[dask\]'"):
                    make()

    def test_only_the_engine_that_is_used_is_imported(self) -> None:
        code = "import sys, conveyor; conveyor.Pipeline(); print([m for m in sys.modules if 'dask' in m])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


class Nodes(TestCase):
    """A node process, with this test as its broker."""

    def test_a_node_runs_a_worker_and_ends_with_its_channel(self) -> None:
        ours, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        command = [sys.executable, "-c", program(sys.path, descriptor)]
        with subprocess.Popen(command, pass_fds=[descriptor]) as node, ours:
            theirs.close()
            end = BlockingPipe(ours)
            settings = PipelineSettings().plain()
            config = WorkerConfig("abs", b"", None, False, False, False, 1 << 24, settings=settings)
            end.send(messages.StartWorker(3, config), [pickle.dumps(Processor(abs)), b""])
            assert self.said_by_worker(end) == Ready()
            end.send(messages.Probe(3))
            message, _ = end.receive()
            self.assertEqual(message, messages.Probed(3, 0, 0, None))
            end.send(messages.Relayed(3), messages.relayed(Close(), []))
            while not isinstance(message, messages.WorkerEnded):
                message, _ = end.receive()
            self.assertEqual(message, messages.WorkerEnded(3, 0, ((0, 0), False, (), 0.0)))
            # What is meant for a worker that has gone is not answered.
            end.send(messages.Kill(3))
            end.close()
            assert node.wait(20) == 0

    def said_by_worker(self, end: BlockingPipe) -> Any:
        message, blobs = end.receive()
        assert isinstance(message, messages.Relayed), message
        return messages.unrelayed(blobs)[0]

    def test_a_frame_is_relayed_as_it_is(self) -> None:
        reply = Reply(7, 2, None, [2], True, False, 0.5, (0.1, 0.0, 0.1, 0), 0, (), (), ())
        message, blobs = messages.unrelayed(messages.relayed(reply, [b"items", bytes(70_000)]))
        assert message == reply
        assert [bytes(blob) for blob in blobs] == [b"items", bytes(70_000)]

    def test_a_large_frame_alone_is_not_copied(self) -> None:
        frame = messages.packed(messages.Relayed(7), [b"head", bytes(70_000)])
        found = messages.only_frame(memoryview(frame))
        assert found is not None
        message, blobs = found
        assert message == messages.Relayed(7) and [len(blob) for blob in blobs] == [4, 70_000]
        assert blobs[1].obj is frame
        # A small one, a part of one, and more than one are put together elsewhere.
        for data in (messages.packed(messages.Beat()), frame[:-1], frame + frame):
            assert messages.only_frame(data) is None

    def test_the_end_of_a_frame_is_known_wherever_it_is_cut(self) -> None:
        frames = messages.packed(messages.Beat()) + messages.packed(messages.Kill(3), [b"blob"])
        ends = {len(messages.packed(messages.Beat())), len(frames)}
        for step in (1, 2, 3, 5, 7):
            boundary = messages.Boundary()
            for start in range(0, len(frames), step):
                boundary.pass_by(frames[start : start + step])
                end = min(start + step, len(frames))
                assert boundary.is_amid == (end not in ends), (step, end)


class Waiting(TestCase):
    """What the thread of a cluster waits with."""

    def test_a_wait_is_cancelled_also_as_the_answer_comes(self) -> None:
        async def again_and_again(answer: asyncio.Future[int]) -> None:
            while True:
                await cluster._within(600, asyncio.shield(answer))
                await asyncio.sleep(600)

        async def cancel_after(steps: int) -> bool:
            answer = asyncio.get_running_loop().create_future()
            task = asyncio.ensure_future(again_and_again(answer))
            await asyncio.sleep(0.001)
            answer.set_result(1)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=10)
            ended = task.cancelled()
            task.cancel()
            return ended

        for steps in range(8):
            assert asyncio.run(cancel_after(steps)), steps

    def test_what_takes_in_a_cancellation_is_cancelled_again(self) -> None:
        taken_in = 0

        async def stubborn() -> None:
            nonlocal taken_in
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                taken_in += 1
            await asyncio.sleep(600)

        async def brief() -> None:
            await asyncio.sleep(0.001)

        async def both() -> None:
            async with cluster._all_or_none(stubborn(), brief()) as ended:
                await ended

        with mock.patch.object(cluster, "CANCEL_SECONDS", 0.01):
            asyncio.run(both())
        assert taken_in == 1

    def test_a_wait_has_an_end(self) -> None:
        async def nothing() -> None:
            await asyncio.sleep(600)

        with self.assertRaises(asyncio.TimeoutError):
            asyncio.run(cluster._within(0.001, nothing()))
