"""A consumer that stops: after the last result, the run is over; before, it is given up.

Law: `finish` and `teardown` of a run that is over get the time that they need, and what `finish` still gives is dropped.
Each test looks at what the jobs wrote, as nothing else tells how a worker ended.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import threading
import time
import unittest
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor, ProcessorError, ReplicatingFork
from conveyor.core.machine import Conclusion
from conveyor.engines.process.broker import dispatch
from conveyor.engines.process.system.waiting import GRACE_SECONDS
from conveyor.engines.process.wire import messages
from tests.helpers.support import ALL, TestCase, nothing_left

# Longer than a worker of a run that was given up may still take.
SECONDS = GRACE_SECONDS + 0.1


class Writes(Processor[int, Any]):
    """Passes items on, and writes how far it came at the end, slowly."""

    def __init__(self, path: str, gives: int, seconds: float) -> None:
        super().__init__(workers=1)
        self.path = path
        self.gives = gives
        self.seconds = seconds

    def process(self, item: int) -> int:
        return item

    def write(self, what: str) -> None:
        time.sleep(self.seconds)
        with open(self.path, "a") as file:
            file.write(f"{what} ")

    def finish(self) -> Iterator[str]:
        self.write("finish")
        yield from map(str, range(self.gives))

    def teardown(self) -> None:
        self.write("teardown")


class GivesFirst(Writes):
    """Has given what it gives when it takes its time."""

    def finish(self) -> Iterator[str]:
        yield from map(str, range(self.gives))
        self.write("finish")


class Hangs(Writes):
    """Takes its time in `finish` alone."""

    def teardown(self) -> None:
        """Nothing to do."""


class HangsForAMoment(Writes):
    """Takes its time in `finish` alone, and writes in `teardown` at once."""

    def teardown(self) -> None:
        self.seconds = 0.0
        super().teardown()


class Raises(Writes):
    """Fails at the end."""

    def finish(self) -> Iterator[str]:
        self.write("finish")
        raise ValueError("at the end")


def same(item: Any) -> Any:
    return item


def small(item: int) -> int | None:
    return item if item < 3 else None


class Slowly:
    """Takes its time with the items from the fourth on, and drops them."""

    def __call__(self, item: int) -> int | None:
        if item >= 3:
            time.sleep(SECONDS / 2)
            return None
        return item


class Shared:
    """What holds for every engine."""

    settings: dict[str, Any] = {"engine": "inline"}
    # What a job takes that takes its time; the inline engine ends none that does.
    seconds = 0.01
    # How much `finish` gives, and of which kind it is.
    ends: tuple[tuple[int, type[Writes]], ...] = ((0, Writes), (1, GivesFirst), (500, Writes), (500, GivesFirst))

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.path = os.path.join(self.new_folder(), "written")  # type: ignore[attr-defined]

    def make(self, *elements: Any, **settings: Any) -> Pipeline[Any, Any]:
        pipeline: Pipeline[Any, Any] = Pipeline(**{**self.settings, **settings})
        for element in elements:
            pipeline.add(*(element if isinstance(element, tuple) else (element,)))
            pipeline.add(Pipe())
        return pipeline

    def written(self) -> list[str]:
        """What was written, and forget it."""
        with contextlib.suppress(FileNotFoundError):
            with open(self.path) as file:
                text = file.read()
            os.unlink(self.path)
            return text.split()
        return []

    def test_the_last_result(self) -> None:
        for gives, kind in self.ends:
            with nothing_left(), self.make(kind(self.path, gives, self.seconds)).stream(range(5)) as stream:
                assert list(itertools.islice(stream, 5)) == [0, 1, 2, 3, 4]
            assert self.written() == ["finish", "teardown"], (gives, kind)

    def test_a_stream_that_is_dropped(self) -> None:
        with nothing_left():
            for number, result in zip(
                range(3), self.make(Writes(self.path, 0, self.seconds)).stream([0, 1, 2]), strict=False
            ):
                assert number == result
        assert self.written() == ["finish", "teardown"]

    def test_a_stream_that_the_collector_finds(self) -> None:
        with nothing_left():
            pipeline = self.make(Writes(self.path, 0, self.seconds))
            stream = pipeline.stream([7])
            assert next(stream) == 7
            cycle: list[Any] = [stream]
            cycle.append(cycle)
            del cycle, stream
            gc.collect()
        assert self.written() == ["finish", "teardown"]

    def test_a_pipeline_that_is_closed_first(self) -> None:
        for opened in (False, True):
            with nothing_left():
                pipeline = self.make(Writes(self.path, 0, self.seconds))
                if opened:
                    pipeline.open()
                stream = pipeline.stream([0, 1])
                assert list(itertools.islice(stream, 2)) == [0, 1]
                pipeline.close()
                stream.close()
            assert self.written() == ["finish", "teardown"]

    def test_the_next_run_of_an_open_pipeline(self) -> None:
        with nothing_left(), self.make(Writes(self.path, 1, 0.0)) as pipeline:
            for _ in range(3):
                assert list(itertools.islice(pipeline.stream([0, 1]), 2)) == [0, 1]
                assert pipeline.run([5]) == [5, "0"]
                assert pipeline.stats().steps[0].items_in % 3 == 0
        assert self.written() == ["finish"] * 6 + ["teardown"]

    def test_before_the_last_result(self) -> None:
        with nothing_left(), self.make(Writes(self.path, 0, 0.0)) as pipeline:
            assert list(itertools.islice(pipeline.stream(itertools.count()), 4)) == [0, 1, 2, 3]
        assert self.written() == ["teardown"]

    def test_no_result_at_all(self) -> None:
        with nothing_left():
            self.make(Writes(self.path, 0, self.seconds)).stream([]).close()
        assert self.written() == ["finish", "teardown"]
        with nothing_left():
            # More than could be through by then.
            stream = self.make(Writes(self.path, 0, 0.0)).stream(range(1_000_000))
            stream.close()
        assert "finish" not in self.written()

    def test_amid_what_finish_gives(self) -> None:
        with nothing_left(), self.make(Writes(self.path, 5000, 0.0)) as pipeline:
            # The rest of it is given up, as it could be without end.
            assert list(itertools.islice(pipeline.stream([7]), 3)) == [7, "0", "1"]
        with nothing_left(), self.make(Writes(self.path, 2, 0.0), Writes(self.path, 0, self.seconds)) as pipeline:
            assert list(itertools.islice(pipeline.stream([7]), 3)) == [7, "0", "1"]
        assert self.written()[-4:] == ["finish", "finish", "teardown", "teardown"]

    def test_forks_and_joins(self) -> None:
        last = HangsForAMoment(self.path, 0, self.seconds)
        graphs: list[tuple[Any, ...]] = [
            (Processor(same), ReplicatingFork(2), (Processor(same), Processor(same)), Join(), last),
            (Processor(same), ReplicatingFork(2), (last, Processor(same)), Join(how="zip")),
            (Processor(same), BalancingFork(2), (Processor(same), last), Join()),
            (Processor(same, workers=2), last, Processor(same)),
        ]
        # Without order the last result is told in the same way, whatever the graph.
        for ordered, number, expected in [(True, 0, 8), (True, 1, 4), (True, 2, 4), (True, 3, 4), (False, 0, 8)]:
            with nothing_left():
                stream = self.make(*graphs[number], ordered=ordered).stream(range(4))
                assert len(list(itertools.islice(stream, expected))) == expected
                stream.close()
            assert self.written() == ["finish", "teardown"], (ordered, number)

    def test_an_error_at_the_end(self) -> None:
        with nothing_left():
            stream = self.make(Raises(self.path, 0, 0.0)).stream([7])
            assert next(stream) == 7
            with unittest.TestCase().assertRaisesRegex(ProcessorError, "at the end"):
                stream.close()
        with nothing_left():
            pipeline = self.make(Raises(self.path, 0, 0.0)).open()
            stream = pipeline.stream([7])
            assert next(stream) == 7
            with unittest.TestCase().assertRaisesRegex(ProcessorError, "at the end"):
                pipeline.close()
            assert pipeline.closed

    def test_ctrl_c_meanwhile(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for dropped in (False, True):
            with nothing_left():
                stream = self.make(Hangs(self.path, 0, 30.0)).stream([7])
                assert next(stream) == 7
                timer = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
                timer.start()
                with contextlib.suppress(KeyboardInterrupt):
                    if dropped:
                        del stream
                    else:
                        stream.close()
                    # It acts a moment later where the stream was dropped.
                    threading.Event().wait(20.0)
                    raise AssertionError("no Ctrl-C")
                timer.join()
            assert "finish" not in self.written()


class InlineTest(Shared, TestCase):
    """The inline engine knows the end of an input by its length."""

    def test_a_generator_has_not_ended_before_it_says_so(self) -> None:
        asked: list[int] = []

        def source() -> Iterator[int]:
            for number in range(3):
                asked.append(number)
                yield number
            asked.append(-1)

        assert list(itertools.islice(self.make(Writes(self.path, 0, 0.0)).stream(source()), 3)) == [0, 1, 2]
        assert (asked, self.written()) == ([0, 1, 2], ["teardown"])

    def test_a_job_that_yields_is_not_asked_for_more(self) -> None:
        asked: list[int] = []

        def job(item: int) -> Iterator[int]:
            yield item
            asked.append(item)

        assert list(itertools.islice(self.make(Processor(job), Writes(self.path, 0, 0.0)).stream([7]), 1)) == [7]
        assert (asked, self.written()) == ([], ["teardown"])


class ProcessTest(Shared, TestCase):
    """The process engine."""

    settings: dict[str, Any] = {"start_method": "fork"}
    seconds = SECONDS

    def test_a_generator(self) -> None:
        with nothing_left():
            stream = self.make(Writes(self.path, 0, self.seconds)).stream(item for item in range(5))
            assert list(itertools.islice(stream, 5)) == [0, 1, 2, 3, 4]
            stream.close()
        assert self.written() == ["finish", "teardown"]

    def test_a_generator_that_does_not_say_whether_it_has_ended(self) -> None:
        held = threading.Event()

        def source() -> Iterator[int]:
            yield 7
            held.wait()

        with nothing_left():
            stream = self.make(Writes(self.path, 0, self.seconds)).stream(source())
            assert next(stream) == 7
            started = time.monotonic()
            stream.close()
            assert time.monotonic() - started < 10
            held.set()
        assert "finish" not in self.written()

    def test_items_under_way_that_give_nothing(self) -> None:
        """What becomes of them is not known, so the run is not over while they are under way."""
        with nothing_left():
            stream = self.make(Processor(Slowly()), Writes(self.path, 0, self.seconds)).stream(range(20))
            assert list(itertools.islice(stream, 3)) == [0, 1, 2]
            started = time.monotonic()
            stream.close()
            assert time.monotonic() - started < 17 * SECONDS / 2
        assert "finish" not in self.written()

    def test_many_results(self) -> None:
        """They are cut into parts, and room for more is given back while what `finish` gives is dropped."""
        for bound in (1, 40):
            with nothing_left():
                pipeline: Pipeline[Any, Any] = Pipeline(**self.settings)
                pipeline.add(Writes(self.path, 200, 0.4)).add(Pipe(bound)).add(Processor(same)).add(Pipe(bound))
                assert len(list(itertools.islice(pipeline.stream(range(200)), 200))) == 200
            assert self.written() == ["finish", "teardown"]

    def test_a_failure_of_what_nobody_waits_for(self) -> None:
        def fail(item: int) -> int:
            if item:
                raise ValueError("not wanted")
            return item

        with nothing_left():
            stream = self.make(Processor(fail)).stream([0, 1, 2])
            assert next(stream) == 0
            stream.close()

    def test_another_thread_closes_the_pipeline_meanwhile(self) -> None:
        with nothing_left():
            pipeline = self.make(Writes(self.path, 0, self.seconds)).open()
            stream = pipeline.stream([7])
            assert next(stream) == 7
            thread = threading.Thread(target=stream.close)
            thread.start()
            pipeline.close()
            thread.join()
        assert self.written() == ["finish", "teardown"]

    def test_another_thread_fails_meanwhile(self) -> None:
        with nothing_left():
            with contextlib.suppress(ZeroDivisionError), self.make(Writes(self.path, 0, 30.0)) as pipeline:
                stream = pipeline.stream([7])
                assert next(stream) == 7
                thread = threading.Thread(target=stream.close)
                thread.start()
                _ = 1 / 0
            thread.join()
        assert self.written() == []


@unittest.skipUnless(ALL, "CONVEYOR_TEST_ALL is not set")
class SpawnOverQueuesTest(ProcessTest):
    """Another start method, and another channel."""

    settings: dict[str, Any] = {"start_method": "spawn", "channel": "queue"}
    ends = ((500, GivesFirst),)

    # The broker alone decides it; here, only that what it says comes in time over another channel, and ends workers.
    test_forks_and_joins = None  # type: ignore[assignment]
    test_a_failure_of_what_nobody_waits_for = None  # type: ignore[assignment]
    test_items_under_way_that_give_nothing = None  # type: ignore[assignment]
    test_the_next_run_of_an_open_pipeline = None  # type: ignore[assignment]
    test_before_the_last_result = None  # type: ignore[assignment]
    test_amid_what_finish_gives = None  # type: ignore[assignment]
    test_an_error_at_the_end = None  # type: ignore[assignment]
    # The caller alone knows of it.
    test_a_stream_that_is_dropped = None  # type: ignore[assignment]
    test_a_stream_that_the_collector_finds = None  # type: ignore[assignment]
    test_a_pipeline_that_is_closed_first = None  # type: ignore[assignment]
    test_another_thread_fails_meanwhile = None  # type: ignore[assignment]
    test_no_result_at_all = None  # type: ignore[assignment]
    test_many_results = None  # type: ignore[assignment]
    test_ctrl_c_meanwhile = None  # type: ignore[assignment]
    test_a_generator = None  # type: ignore[assignment]
    test_a_generator_that_does_not_say_whether_it_has_ended = None  # type: ignore[assignment]


class QuestionsTest(TestCase):
    """The question whether a run is over, and its start, come to the broker over two channels."""

    def setUp(self) -> None:
        self.sent: list[messages.Message] = []
        answers = iter([None, Conclusion(True, True)])
        machine = SimpleNamespace(conclusion=lambda taken: next(answers))
        caller = SimpleNamespace(results=SimpleNamespace(send=self.sent.append), cpu_seconds=0.0)
        pool = SimpleNamespace(workers={})
        # Else this process would adopt the orphans of all tests that follow.
        with mock.patch.object(dispatch, "Orphans"):
            self.dispatch = dispatch.Dispatch()
        shell: Any = SimpleNamespace(run=1, handle=lambda event: None, machine=machine, caller=caller, pool=pool)
        self.dispatch.shell = shell

    def tell(self, message: messages.Message) -> None:
        self.dispatch.from_source(message, [b"items"])

    def test_one_that_comes_before_the_start_of_its_run_is_kept(self) -> None:
        self.dispatch.from_consumer(messages.ConclusionRequest(2, 0), [])
        # The run before goes on meanwhile, and is not what was asked about.
        self.tell(messages.SourceItems(1, 1, 0.0))
        self.tell(messages.SourceEnded(1))
        self.tell(messages.StartRun(2))
        self.tell(messages.SourceItems(2, 1, 0.0))
        self.assertEqual(self.sent, [])
        self.tell(messages.SourceEnded(2))
        self.assertEqual(self.sent, [messages.ConclusionReply(2, True, True)])

    def test_one_about_a_run_that_is_over_is_dropped(self) -> None:
        self.dispatch.from_consumer(messages.ConclusionRequest(0, 0), [])
        self.tell(messages.SourceEnded(1))
        self.assertEqual(self.sent, [])


if __name__ == "__main__":
    unittest.main()
