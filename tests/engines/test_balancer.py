"""The balancer with real processes: workers come and go while a run goes on, and nobody but the statistics can tell.

Law: what is waited for is an event or a figure of the statistics, never a time; a pipeline that does not do what it
should stands still, and the test fails by its time limit.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import threading
import time
import unittest
from pathlib import Path

from conveyor import (
    BalancingFork,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    StateError,
)
from conveyor.core.tuning import chunk_size
from conveyor.engines.process.broker import broker
from conveyor.engines.process.wire.messages import Results
from conveyor.engines.process.worker.loop import MOST_LOOK_CALLS
from tests.helpers.late import mock, subprocess
from tests.helpers.support import ROOT, TestCase, nothing_left, slow


def same(item):
    return item


def nap(item):
    time.sleep(0.004)
    return item


def reciprocal(item):
    return 1 // item


class Sleeper(Processor):
    """Sleeps for as long as its item says, and notes who is there in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def setup(self):
        Path(self.folder, f"up-{os.getpid()}").touch()

    def process(self, item):
        number, seconds = item
        time.sleep(seconds)
        return number

    def teardown(self):
        Path(self.folder, f"down-{os.getpid()}").touch()


class WaitsForSetup(Processor):
    """Every worker but the first takes as long to set up as it takes somebody to write a file."""

    def __init__(self, folder):
        self.folder = folder

    def setup(self):
        try:
            Path(self.folder, "first").touch(exist_ok=False)
        except FileExistsError:
            Path(self.folder, "second").touch()
            while not os.path.exists(os.path.join(self.folder, "go")):
                time.sleep(0.002)

    def process(self, item):
        time.sleep(0.002)
        return item


class WaitsForAnother(Processor):
    """One item is not done before another, which stands some way behind it, has been begun elsewhere."""

    def __init__(self, folder, first, other):
        self.path, self.first, self.other = os.path.join(folder, "begun"), first, other

    def process(self, item):
        if item == self.other:
            Path(self.path).touch()
        if item == self.first:
            while not os.path.exists(self.path):
                time.sleep(0.001)
        return item


class Balancer:
    """For one start method and channel."""

    time_limit = 60.0
    settings = {"start_method": "fork", "channel": "pipe"}

    def setUp(self):
        self.folder = self.new_folder()
        self.leave_nothing()

    def test_a_step_that_stalls_gets_workers_within_its_bounds(self):
        pipeline = (
            Pipeline(cores=2, **self.settings)
            .add(Processor(same))
            .add(Pipe())
            .add(BalancingFork(max=5))
            .add(Processor(nap))
            .add(Pipe())
            .add(Join())
        )
        source = itertools.count()
        with pipeline:
            with pipeline.stream(source) as stream:
                for expected, result in enumerate(stream):
                    assert result == expected
                    if expected % 50 == 0 and pipeline.stats()["nap"].workers == 5:
                        break
            stats = pipeline.stats()
            # On a machine that stands still for a while, one may have been let go since.
            assert (stats["same"].workers, stats["nap"].most_workers) == (1, 5)
            assert stats.decisions[0].processor == "nap" and "work waiting" in stats.decisions[0].reason
            assert max(each.after for each in stats.decisions) == 5
            # They are there for the next run, too.
            assert pipeline.run(range(200)) == list(range(200))
            assert pipeline.stats()["nap"].items_in > 200

    def test_a_fixed_number_is_never_changed(self):
        pipeline = Pipeline(**self.settings).add(Processor(nap, workers=2))
        assert pipeline.run(range(100)) == list(range(100))
        stats = pipeline.stats()
        assert (stats["nap"].workers, stats["nap"].most_workers, stats.decisions) == (2, 2, ())

    def test_workers_that_are_not_needed_leave_and_lose_nothing(self):
        # First slow items, so that workers are wanted; then none for a while, and those that idle leave.
        numbers = itertools.count()
        idle = threading.Event()

        def source():
            while not idle.is_set():
                yield next(numbers), 0.01
            while True:
                yield next(numbers), 0.0
                time.sleep(0.01)

        pipeline = (
            Pipeline(cores=2, **self.settings)
            .add(BalancedSleeper(self.folder))
            .add(Pipe(maxsize=100))
            .add(Processor(same))
        )
        with pipeline:
            most = 0
            with pipeline.stream(source()) as stream:
                for expected, result in enumerate(stream):
                    assert result == expected
                    step = pipeline.stats().steps[0]
                    if step.workers > 2:
                        idle.set()
                    most = max(most, step.workers)
                    if idle.is_set() and step.workers < most:
                        break
            assert any(decision.after < decision.before for decision in pipeline.stats().decisions)
        up = {path.name[3:] for path in Path(self.folder).glob("up-*")}
        down = {path.name[5:] for path in Path(self.folder).glob("down-*")}
        # Each has torn down its job, those that left early included.
        assert up == down and len(up) > 2

    def test_a_setup_that_takes_long_holds_nobody_up(self):
        pipeline = Pipeline(cores=2, **self.settings).add(Auto(self.folder))
        with pipeline:
            second = Path(self.folder, "second")
            with pipeline.stream(itertools.count()) as stream:
                after = 0
                for expected, result in enumerate(stream):
                    assert result == expected
                    if second.exists():
                        after += 1
                        if after == 100:
                            assert pipeline.stats().steps[0].starting >= 1
                            Path(self.folder, "go").touch()
                        if after > 100 and pipeline.stats().steps[0].workers > 1:
                            break
            assert pipeline.run(range(100)) == list(range(100))

    def test_what_is_behind_a_long_item_goes_to_another_worker(self):
        for ordered in (True, False):
            with self.subTest(ordered=ordered):
                # Further behind than the calls that a worker begins at once, where they take next to nothing.
                job = WaitsForAnother(self.folder, 20_000, 20_100 + MOST_LOOK_CALLS)
                job.workers = 2
                results = Pipeline(ordered=ordered, **self.settings).add(job).run(range(21_000))
                assert (results if ordered else sorted(results)) == list(range(21_000))
                Path(self.folder, "begun").unlink()

    def test_few_slow_items_never_share_a_worker(self):
        # Each waits until all three have been begun.
        pipeline = Pipeline(**self.settings).add(Meet(self.folder, 3))
        assert pipeline.run(["a", "b", "c"]) == ["a", "b", "c"]
        pipeline = (
            Pipeline(**self.settings)
            .add(Processor(same))
            .add(Pipe())
            .add(BalancingFork(3))
            .add(Pipe())
            .add(*[MeetAlone(self.folder, 3, name) for name in "xyz"])
            .add(Pipe())
            .add(Join())
        )
        assert pipeline.run(["d", "e", "f"]) == ["d", "e", "f"]

    def test_statistics_while_it_runs_and_after(self):
        pipeline = Pipeline(**self.settings).add(Processor(same)).add(Pipe(maxsize=7)).add(Processor(reciprocal))
        with self.assertRaisesRegex(StateError, "there are no statistics yet"):
            pipeline.stats()
        with pipeline:
            assert pipeline.stats()["same"].items_in == 0
            with pipeline.stream(itertools.count(1)) as stream:
                for _ in itertools.islice(stream, 500):
                    pass
                found = []
                thread = threading.Thread(target=lambda: found.append(pipeline.stats()))
                thread.start()
                thread.join()
                assert found[0]["reciprocal"].items_in >= 500
                assert found[0]["reciprocal"].bound == 7
            assert pipeline.run([1, 2, 3]) == [1, 0, 0]
        stats = pipeline.stats()
        assert stats == pipeline.stats(), "it is over, so nothing changes any more"
        assert stats["same"].items_out >= 503 and 0 < stats["same"].busy <= 1
        with self.assertRaises(AttributeError):
            stats.cores = 5
        with self.assertRaises(ProcessorError):
            pipeline.run([1, 1, 1, 0])
        assert pipeline.stats()["same"].items_in >= 1


class ExampleTest(TestCase):
    """The example that shows the balancer."""

    def test_it_runs(self):
        folder = ROOT / "conveyor"
        script = [sys.executable, str(ROOT / "examples" / "watch_balancer.py"), str(folder), "--items", "20"]
        with nothing_left():
            done = subprocess.run(
                script, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "20 of 20 files" in done.stdout and "measure_repetition" in done.stdout


def blink(item):
    time.sleep(0.0005)
    return item


@unittest.skipUnless("fork" in multiprocessing.get_all_start_methods(), "the broker has to take over what is patched")
class BusyBrokerTest(TestCase):
    """A broker with much to do, or what is taken for one, has fewer messages."""

    def messages(self, share):
        """How many messages bring the results of 1,000 items where so large a share of a core is taken for much."""
        # However much waits, it is not more at once for that reason.
        settings = mock.patch.multiple(chunk_size, BUSY_SHARE=share, WAITING_SHARE=0.0)
        with settings, mock.patch.object(broker, "TELL_LOAD_SECONDS", 0.02):
            with Pipeline(start_method="fork").add(Processor(blink)) as pipeline:
                pipeline.run([1])
                receive, found = pipeline._lifecycle.session.receive, []

                def counted():
                    message, blobs = receive()
                    found.append(type(message))
                    return message, blobs

                with mock.patch.object(pipeline._lifecycle.session, "receive", counted):
                    assert pipeline.run(range(1000)) == list(range(1000))
        return found.count(Results)

    def test_workers_keep_longer_what_they_have_done(self):
        assert self.messages(share=-1.0) * 2 < self.messages(share=2.0)


class BalancedSleeper(Sleeper):
    """The same, by as many workers as it takes."""

    workers = "auto"


class Auto(WaitsForSetup):
    """The same, by as many workers as it takes."""

    workers = "auto"


class Meet(Processor):
    """Gives its item when so many have been begun."""

    workers = 3

    def __init__(self, folder, count):
        self.folder, self.count = folder, count

    def process(self, item):
        Path(self.folder, f"meet-{item}").touch()
        while sum(name.startswith("meet-") for name in os.listdir(self.folder)) < self.count:
            time.sleep(0.002)
        return item


class MeetAlone(Meet):
    """The same, in a branch of its own."""

    workers = None

    def __init__(self, folder, count, name):
        super().__init__(folder, count + 3)
        self.name = name


class ThreadTest(Balancer, TestCase):
    """Threads of this process."""

    settings = {"engine": "thread"}
    # It tells workers apart by their process.
    test_workers_that_are_not_needed_leave_and_lose_nothing = None


class ForkPipeTest(Balancer, TestCase):
    """Forked workers, over socket pairs."""


@slow
class SpawnPipeTest(Balancer, TestCase):
    """Workers that are fresh interpreters, over socket pairs."""

    settings = {"start_method": "spawn", "channel": "pipe"}
    # Who is dear to start is kept for longer.
    test_workers_that_are_not_needed_leave_and_lose_nothing = None
    # What the broker decides and counts, whatever it has started.
    test_a_fixed_number_is_never_changed = None
    test_few_slow_items_never_share_a_worker = None
    test_statistics_while_it_runs_and_after = None


if __name__ == "__main__":
    unittest.main()
