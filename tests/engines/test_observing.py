"""The debug log and the recorder, with real processes: recordings replay, the log tells the story, nothing else changes."""

from __future__ import annotations

import glob
import io
import itertools
import logging
import multiprocessing
import os
import unittest
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

from conveyor import Pipe, Pipeline, ProcessError, Processor, SourceError
from conveyor.__main__ import main
from conveyor.engines.process.broker import broker
from tests.helpers.late import mock
from tests.helpers.scripts import Script, ScriptTestCase
from tests.helpers.support import TestCase

# In each script: `record` opens pipelines; those of a job and of a program that a job starts do not record.
RUNS = """
import os, signal, subprocess, sys
from conveyor import Pipe, Pipeline, Processor

def nested(item):
    assert Pipeline(start_method=sys.argv[1]).add(Processor(abs)).run([-item]) == [item]
    script = "from conveyor import Pipeline, Processor; print(Pipeline().add(Processor(abs)).run([-1]))"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE).stdout == b"[1]\\n"
    return item

def dies_at_five(item):
    if item == 5 and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return item

def open_files(item):
    # Where the system shows them.
    return [link(number) for number in (os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else ())]

def link(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""

def skips(item):
    return 1 // (item % 7)

if __name__ == "__main__":
    method = sys.argv[1]
    os.environ["CONVEYOR_RECORD"] = "recorded"
    pipeline = Pipeline(start_method=method).add(Processor(nested)).add(Pipe()).add(Processor(abs))
    assert pipeline.run([1]) == [1]
    with Pipeline(start_method=method).add(Processor(dies_at_five, workers=2)).add(Pipe()).add(
        Processor(skips, on_error="skip")
    ) as pipeline:
        assert len(pipeline.run(range(700))) == 600
        for result in pipeline.stream(range(10_000)):
            break
        assert len(pipeline.run(range(70))) == 60
    (files,) = Pipeline(start_method=method).add(Processor(open_files)).run([1])
    assert not [path for path in files if "recorded" in path], files
    print("good")
"""


class RecordTest(ScriptTestCase):
    def test_a_recording_replays(self) -> None:
        methods = [method for method in self.methods() if method != "forkserver"]
        folders = [self.new_folder() for _ in methods]
        started = [
            self.start_script(Script(RUNS, (method,)), folder) for method, folder in zip(methods, folders, strict=True)
        ]
        for method, folder, process in zip(methods, folders, started, strict=True):
            with self.subTest(method=method):
                outcome = self.collect(process)
                assert (outcome.code, outcome.output, outcome.errors) == (0, "good", ""), outcome.told()
                recordings = sorted(glob.glob(os.path.join(folder, "recorded*")))
                assert [os.path.basename(path) for path in recordings] == ["recorded", "recorded.2", "recorded.3"]
                for path in recordings:
                    with redirect_stdout(io.StringIO()) as out:
                        assert main(["replay", path]) == 0, out.getvalue()
                    assert "the core decides as it did." in out.getvalue()

    def test_the_broker_is_killed(self) -> None:
        path = os.path.join(self.new_folder(), "recorded")
        first = mock.patch("conveyor.engines.process.caller.broker_link._recordings", iter([1]))
        with first, mock.patch.dict(os.environ, CONVEYOR_RECORD=path), Pipeline().add(Processor(abs)) as pipeline:
            pipeline.run(range(10))
            (broker,) = multiprocessing.active_children()
            broker.kill()
            broker.join()
            with self.assertRaises(ProcessError):
                pipeline.run(range(10))
        with redirect_stdout(io.StringIO()):
            assert main(["replay", path]) == 0

    def test_a_file_that_cannot_be_written(self) -> None:
        path = os.path.join(self.new_folder(), "not there", "recorded")
        with mock.patch.dict(os.environ, CONVEYOR_RECORD=path), self.assertRaisesRegex(ProcessError, "Remedy"):
            Pipeline().add(Processor(abs)).run([1])


class StoryTest(TestCase):
    def tell(self, level: int) -> list[str]:
        """What the logger "conveyor" says of two runs."""
        logger = logging.getLogger("conveyor")
        with self.assertLogs(logger, level) as caught:
            logger.log(level, "the level is %d", level)
            with Pipeline().add(Processor(abs)).add(Pipe()).add(Processor(float, on_error="skip")) as pipeline:
                assert pipeline.run(range(100)) == list(range(100))
                assert pipeline.run(range(3)) == [0, 1, 2]
        return [record.getMessage() for record in caught.records]

    def test_debug_tells_the_story(self) -> None:
        story = "\n".join(self.tell(logging.DEBUG))
        for part in (
            "worker 0 of 'abs' is ready",
            "worker 1 of 'float' is ready",
            "run 1 begins",
            "run 1: the source ended after 100 items",
            "run 1 is over: 100 items in, 100 results out",
            "run 2 is over: 3 items in, 3 results out",
            "all workers are ready",
            "the caller closes the pipeline",
            "worker 1 ends",
            "the broker ends",
        ):
            assert part in story, story

    def test_debug_tells_of_a_source_that_fails(self) -> None:
        def source() -> Iterator[int]:
            yield 1
            raise LookupError("no more")

        with self.assertLogs("conveyor", logging.DEBUG) as caught, self.assertRaises(SourceError):
            Pipeline().add(Processor(abs)).run(source())
        assert "run 1 fails: its source raised" in "\n".join(caught.output), caught.output

    def test_debug_tells_of_a_stream_that_is_left(self) -> None:
        # Nothing but the word of the caller ends the broker here.
        with self.assertLogs("conveyor", logging.DEBUG) as caught:
            with Pipeline().add(Processor(abs)).stream(itertools.count()) as stream:
                next(stream)
        assert "the caller ends everything at once" in "\n".join(caught.output), caught.output

    def test_info_tells_nothing(self) -> None:
        assert self.tell(logging.INFO) == ["the level is 20"]


class Listener:
    """An observer that writes each message to a file: when, from whom, to whom, of which kind."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "w", buffering=1)

    def handled(self, now: float, event: Any, wanted: Any) -> None:
        pass

    def passed(self, now: float, sender: str, receiver: str, message: object) -> None:
        print(now, sender, receiver, type(message).__name__, sep=",", file=self.file)

    def close(self) -> None:
        self.file.close()


@unittest.skipUnless("fork" in multiprocessing.get_all_start_methods(), "the broker has to take over what is patched")
class MessagesTest(TestCase):
    """What the processes of a pipeline say to each other."""

    maxDiff = None

    def messages(self, runs: Sequence[list[int]]) -> dict[tuple[str, str], list[str]]:
        """The kinds of the messages of a pipeline of one step, by sender and receiver, in their order."""
        path = os.path.join(self.new_folder(), "messages")
        patched = mock.patch.object(broker, "observers_of", lambda *_: [Listener(path)])
        pipeline = Pipeline(start_method="fork").add(Processor(abs))
        with patched, pipeline:
            for items in runs:
                assert pipeline.run(items) == items
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        times = []
        with open(path) as file:
            for line in file:
                now, sender, receiver, kind = line.rstrip().split(",")
                times.append(float(now))
                # A caller that has to wait for more on a busy machine says so.
                if kind != "Consumed":
                    found[sender, receiver].append(kind)
        assert times == sorted(times)
        return found

    def test_an_open_pipeline_without_a_run(self) -> None:
        expected = {
            ("worker 0", "broker"): ["Ready", "Closed"],
            ("broker", "caller"): ["Opened", "Closed"],
            ("caller", "broker"): ["Close"],
            ("broker", "worker 0"): ["Close"],
        }
        self.assertEqual(dict(self.messages([])), expected)

    def test_two_runs_of_one_item(self) -> None:
        expected = {
            ("caller", "broker"): ["StartRun", "SourceItems", "SourceEnded"] * 2 + ["Close"],
            ("broker", "worker 0"): ["StartLease"] * 2 + ["Close"],
            ("worker 0", "broker"): ["Ready", "Reply", "Reply", "Closed"],
            ("broker", "caller"): ["Opened", *["Pull", "Results", "StopSource", "RunFinished"] * 2, "Closed"],
        }
        self.assertEqual(dict(self.messages([[1], [2]])), expected)


class BrokenTest(TestCase):
    """An observer that raises is told of once, and left out: the run does not notice."""

    def logs_of(self, engine: Any, place: str, level: int, **settings: Any) -> list[str]:
        """Run with something broken that a forked broker inherits; return the warnings."""
        pipeline = Pipeline(engine=engine, **settings).add(Processor(abs)).add(Pipe()).add(Processor(str))
        with mock.patch(place, side_effect=ZeroDivisionError("broken")), self.assertLogs("conveyor", level) as logs:
            self.assertEqual(pipeline.run(range(100)), [str(each) for each in range(100)])
            # One at least is asked for.
            logging.getLogger("conveyor").warning("the end")
        return [record.getMessage() for record in logs.records if record.levelno >= logging.WARNING]

    @unittest.skipUnless("fork" in multiprocessing.get_all_start_methods(), "what is broken here is not there")
    def test_each(self) -> None:
        folder = self.new_folder()
        for engine in ("process", "thread"):
            settings: dict[str, Any] = {"start_method": "fork"} if engine == "process" else {}
            for place in ("handled", "passed") if engine == "process" else ("handled",):
                told = self.logs_of(engine, f"conveyor.core.story.Story.{place}", logging.DEBUG, **settings)
                self.assertEqual(told, ["The debug log ends here: broken.", "the end"], (engine, place))
            path = os.path.join(folder, engine)
            with mock.patch.dict(os.environ, {"CONVEYOR_RECORD": path}):
                told = self.logs_of(engine, "conveyor.core.recording.Recorder.handled", logging.INFO, **settings)
            self.assertRegex(told[0], rf"\AThe recording {path}(\.\d+)? ends here: broken\.\Z")
            self.assertEqual(told[1:], ["the end"])
            told = self.logs_of(
                engine, "conveyor.core.trace.Trace.handled", logging.INFO, trace=f"{path}.json", **settings
            )
            self.assertEqual(told, [f"The trace {path}.json ends here: broken.", "the end"])


class NobodyObservesTest(TestCase):
    def test_a_message_takes_the_way_it_takes_without_observers(self) -> None:
        port = broker.CallerPort.__new__(broker.CallerPort)
        broker.CallerPort.observe(port, [])
        assert not vars(port)
