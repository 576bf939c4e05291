"""The debug log and the recorder, with real processes: recordings replay, the log tells the story, nothing else changes."""

from __future__ import annotations

import glob
import io
import logging
import multiprocessing
import os
from contextlib import redirect_stdout

from conveyor import Pipe, Pipeline, ProcessError, Processor
from conveyor.__main__ import main
from tests.helpers.late import mock
from tests.helpers.scripts import ScriptTestCase
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
    assert pipeline.run([1, 2]) == [1, 2]
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
        for method in self.methods():
            with self.subTest(method=method):
                for path in glob.glob(os.path.join(self.folder, "*")):
                    os.unlink(path)
                outcome = self.script(RUNS, method)
                assert (outcome.code, outcome.output, outcome.errors) == (0, "good", ""), outcome.told()
                recordings = sorted(glob.glob(os.path.join(self.folder, "recorded*")))
                assert [os.path.basename(path) for path in recordings] == ["recorded", "recorded.2", "recorded.3"]
                for path in recordings:
                    with redirect_stdout(io.StringIO()) as out:
                        assert main(["replay", path]) == 0, out.getvalue()
                    assert "the core decides as it did." in out.getvalue()

    def test_the_broker_is_killed(self) -> None:
        path = os.path.join(self.new_folder(), "recorded")
        first = mock.patch("conveyor.engines.process.caller.observing._recordings", iter([1]))
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
        ):
            assert part in story, story

    def test_info_tells_nothing(self) -> None:
        assert self.tell(logging.INFO) == ["the level is 20"]
