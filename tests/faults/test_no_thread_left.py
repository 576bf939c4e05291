"""A system that has no thread left, in each engine: at each thread in turn that a pipeline starts.

Law: what was asked for is done, or fails with a ProcessError that names the remedy.  Nothing hangs, nothing is left,
and the pipeline works as ever once there are threads again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

from conveyor import Pipe, Pipeline, ProcessError, Processor
from tests.helpers.support import ALL, TestCase, nothing_left

REMEDY = "could not be started: no thread is left.*Remedy: raise the limit"
SECONDS = 30.0


def increment(number: int) -> int:
    return number + 1


def run(pipeline: Pipeline[Any, Any]) -> list[int]:
    return pipeline.run(iter(range(4)))


def submit(pipeline: Pipeline[Any, Any]) -> list[int]:
    with pipeline:
        return [pipeline.submit(number).result(SECONDS)[0] for number in range(4)]


def asubmit(pipeline: Pipeline[Any, Any]) -> list[int]:
    async def main() -> list[int]:
        async with pipeline:
            return [(await asyncio.wait_for(pipeline.asubmit(number), SECONDS))[0] for number in range(4)]

    return asyncio.run(main())


def astream(pipeline: Pipeline[Any, Any]) -> list[int]:
    async def main() -> list[int]:
        return [result async for result in pipeline.astream(iter(range(4)))]

    return asyncio.run(main())


class Refusal:
    """Refuses the start of the thread of that number, and of all that follow; None: of none."""

    def __init__(self, first: int | None) -> None:
        self.first = first
        self.started = 0
        self._start = threading.Thread.start

    def __enter__(self) -> Refusal:
        self._patch = mock.patch.object(threading.Thread, "start", lambda thread: self.start(thread))
        self._patch.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._patch.stop()

    def start(self, thread: threading.Thread) -> None:
        self.started += 1
        if self.first is not None and self.started > self.first:
            raise RuntimeError("can't start new thread")
        self._start(thread)


class NoThreadTest(TestCase):
    """Each thread that is started, in the calling process."""

    def sweep(self, use: Callable[[Pipeline[Any, Any]], list[int]], **settings: Any) -> None:
        pipeline: Pipeline[Any, Any] = Pipeline(**settings)
        pipeline.add(Processor(increment, workers=2)).add(Pipe()).add(Processor(abs))
        with Refusal(None) as all_of_them:
            self.assertEqual(use(pipeline), [1, 2, 3, 4])
        self.assertGreater(all_of_them.started, 0)
        for first in range(all_of_them.started):
            with self.subTest(use=use.__name__, settings=settings, first=first), nothing_left(), Refusal(first):
                try:
                    # Fewer are started where one has failed before, or where an item was done in time.
                    self.assertEqual(use(pipeline), [1, 2, 3, 4])
                except ProcessError as error:
                    self.assertRegex(str(error), REMEDY)
                pipeline.close()
            self.assertFalse(pipeline.opened)
        with nothing_left():
            self.assertEqual(use(pipeline), [1, 2, 3, 4])

    def test_threads(self) -> None:
        for use in (run, submit, asubmit, astream):
            self.sweep(use, engine="thread")

    def test_inline(self) -> None:
        for use in (asubmit, astream):
            self.sweep(use, engine="inline")

    def test_processes(self) -> None:
        # Those of a mere run are refused in `test_no_process_left.py`.
        for use in (submit, asubmit, astream) if ALL else (submit,):
            self.sweep(use, start_method="fork")

    def test_a_thread_that_watches_the_time(self) -> None:
        pipeline = Pipeline(engine="thread").add(Processor(increment, timeout=60.0))
        with Refusal(None) as names, mock.patch.object(names, "start", side_effect=names.start) as start:
            self.assertEqual(pipeline.run([1]), [2])
        self.assertIn("conveyor-ticker", [call.args[0].name for call in start.call_args_list])
        begin = threading.Thread.start

        def start_others(thread: threading.Thread) -> None:
            if thread.name == "conveyor-ticker":
                raise RuntimeError("can't start new thread")
            begin(thread)

        with (
            nothing_left(),
            mock.patch.object(threading.Thread, "start", start_others),
            self.assertRaisesRegex(ProcessError, f"The thread that watches the time {REMEDY}"),
        ):
            pipeline.run([1])

    def test_one_worker_more(self) -> None:
        """The balancer goes on with those that it has, and says so once."""
        begin, refused = threading.Thread.start, []
        most = threading.Semaphore(1)

        def start_one(thread: threading.Thread) -> None:
            if thread.name.endswith(" of sleep") and not most.acquire(blocking=False):
                refused.append(thread)
                raise RuntimeError("can't start new thread")
            begin(thread)

        def sleep(number: int) -> int:
            if not refused:
                time.sleep(0.01)
            return number

        with (
            nothing_left(),
            mock.patch.object(threading.Thread, "start", start_one),
            self.assertLogs("conveyor", logging.WARNING) as logs,
        ):
            pipeline = Pipeline(engine="thread", workers="auto").add(Processor(sleep)).add(Pipe()).add(Processor(abs))
            self.assertEqual(pipeline.run(range(2000)), [*range(2000)])
        self.assertTrue(refused)
        self.assertEqual(len(logs.records), 1)
        self.assertRegex(
            logs.records[0].getMessage(), "A worker of Processor 'sleep' could not be started.*goes on with"
        )


if __name__ == "__main__":
    unittest.main()
