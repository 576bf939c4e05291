"""Survival: workers that die change nothing, whatever they are at; and what cannot be made up for is said.

Law: the faults are real.  Workers are killed by signals at moments that a seed chooses, or kill themselves at an item; what
comes out is compared with what would have come without, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
import unittest
from pathlib import Path

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor, ReplicatingFork, WorkerDiedError
from tests.helpers.support import ALL, TestCase, _descendants, _everyone, slow


def same(item):
    return item


def slowly(item):
    time.sleep(0.001)
    return item


def three(item):
    for index in range(3):
        yield item, index


def large(item):
    return bytes([item % 256]) * 8_000_000


def size(item):
    return len(item), item[:1]


class Once(Processor):
    """Lets its worker die at one item, the first time."""

    restartable = True

    def __init__(self, folder, item, how="kill"):
        self.path, self.item, self.how = os.path.join(folder, "died"), item, how

    def process(self, item):
        if item == self.item and not os.path.exists(self.path):
            Path(self.path).touch()
            end(self.how)
        return item


class OnceAmidAGenerator(Once):
    """The same, when half of its outputs have gone out."""

    def process(self, item):
        for index in range(400):
            if item == self.item and index == 200 and not os.path.exists(self.path):
                # Longer than a worker keeps what it has, so that the first half is out.
                time.sleep(0.02)
                yield item, index
                Path(self.path).touch()
                end(self.how)
            else:
                yield item, index


class OnceInSetup(Once):
    """The same, before it is ready."""

    def setup(self):
        if not os.path.exists(self.path):
            Path(self.path).touch()
            end(self.how)

    def process(self, item):
        return item


class Always(Processor):
    """Lets each worker die that comes to one item."""

    restartable = True

    def __init__(self, item, how):
        self.item, self.how = item, how

    def process(self, item):
        if item == self.item:
            end(self.how)
        return item


class Sum(Processor):
    """Has state."""

    total = 0

    def process(self, item):
        self.total += item
        return self.total


class RestartableSum(Sum):
    """Has state that may be lost."""

    restartable = True


def end(how):
    """End this process."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        os._exit(5)


HOW = {"kill": -signal.SIGKILL, "terminate": -signal.SIGTERM, "exit": 5}


def workers_of_the_pipeline():
    """The processes of all workers: those whose parent is a broker, a child of this process."""
    everyone = _everyone()
    brokers = {pid for pid, status in everyone.items() if status.parent == os.getpid()}
    return sorted(
        pid for pid in _descendants(everyone) if everyone[pid].parent in brokers and everyone[pid].state != "Z"
    )


def kill(pid, number=signal.SIGKILL):
    """Send a signal to a process that may be gone by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Survival:
    """For one start method and channel."""

    time_limit = 120.0
    settings = {"start_method": "fork", "channel": "pipe"}
    kills, items = 25, 5000
    most_kills, most_items = 40, 10_000

    def setUp(self):
        self.folder = self.new_folder()
        self.leave_nothing()

    def make(self, *elements, **more):
        pipeline = Pipeline(**self.settings, **more)
        for element in elements:
            pipeline.add(*(element if isinstance(element, tuple) else (element,)))
        return pipeline

    def storm(self, pipeline, expected, kills, seed=1, ordered=True):
        """Kill workers at random moments while a pipeline runs; what comes must be what is expected."""
        chooser = random.Random(seed)
        every = max(1, len(expected) // (kills + 1))
        results, killed = [], 0
        with pipeline:
            for result in pipeline.stream(range(self.items)):
                results.append(result)
                if killed < kills and len(results) % every == 0:
                    self.settle(pipeline)
                    # Some a moment later, amid whatever comes then.
                    time.sleep(chooser.choice((0.0, 0.0, 0.001)))
                    kill(chooser.choice(workers_of_the_pipeline() or [0x7FFFFFFF]))
                    killed += 1
            assert killed == kills
            if ordered:
                assert results == expected
            else:
                assert sorted(results) == sorted(expected)
            # And the workers are there for another run.
            assert len(pipeline.run(range(100))) == len(expected) * 100 // self.items

    def settle(self, pipeline):
        """Where it takes long to start a worker, wait for those being started: three that die in a row are the end."""
        while self.settings["start_method"] == "spawn" and any(step.starting for step in pipeline.stats().steps):
            time.sleep(0.002)

    def test_a_storm(self):
        self.kills, self.items = self.most_kills, self.most_items
        pipeline = self.make(Processor(same), Pipe(maxsize=200), Processor(same, workers=2), Pipe(), Processor(same))
        self.storm(pipeline, list(range(self.items)), self.kills)

    def test_a_storm_over_generators(self):
        pipeline = self.make(Processor(three, workers=2), Pipe(maxsize=100), Processor(same))
        expected = [(item, index) for item in range(self.items) for index in range(3)]
        self.storm(pipeline, expected, self.kills)

    def test_a_storm_over_forks(self):
        pipeline = self.make(
            Processor(same),
            Pipe(maxsize=300),
            ReplicatingFork(2),
            (Processor(same), Processor(three)),
            Pipe(maxsize=300),
            Join(how="zip"),
        )
        expected = [
            row for item in range(self.items) for row in ((item, (item, 0)), (None, (item, 1)), (None, (item, 2)))
        ]
        self.storm(pipeline, expected, self.kills)

    def test_a_storm_while_the_number_of_workers_changes(self):
        pipeline = self.make(
            Processor(same),
            Pipe(),
            BalancingFork(max=4),
            Processor(slowly),
            Pipe(),
            Join(),
            cores=2,
        )
        # An item takes a while: at a higher rate of kills one is hit twice now and then, and given up.
        self.items = min(self.items, 4000)
        self.storm(pipeline, list(range(self.items)), min(self.kills, 40))

    def test_a_storm_without_order(self):
        pipeline = self.make(Processor(same, workers=3), Pipe(maxsize=100), Processor(same), ordered=False)
        self.storm(pipeline, list(range(self.items)), self.kills, ordered=False)

    def test_an_item_at_which_a_worker_died_once(self):
        for how in HOW:
            with self.subTest(how=how):
                pipeline = self.make(Once(self.folder, 2500, how), Pipe(), Processor(same))
                assert pipeline.run(range(5000)) == list(range(5000))
                os.remove(os.path.join(self.folder, "died"))

    def test_a_generator_at_which_a_worker_died_once(self):
        for item in (0, 3):
            with self.subTest(item=item):
                pipeline = self.make(OnceAmidAGenerator(self.folder, item))
                # Half of the outputs were there when it died, and are not there twice.
                assert pipeline.run(range(5)) == [(number, index) for number in range(5) for index in range(400)]
                os.remove(os.path.join(self.folder, "died"))

    def test_an_item_that_always_kills_is_named(self):
        for how, exitcode in HOW.items():
            with self.subTest(how=how), self.assertRaises(WorkerDiedError) as caught:
                self.make(Processor(same), Pipe(), Always(2500, how)).run(range(5000))
            error = caught.exception
            assert (error.number, error.last, error.exitcode) == (2500, 2500, exitcode), str(error)
            assert "item 2500" in str(error) and "given up" in str(error)

    def test_all_workers_at_once(self):
        pipeline = self.make(
            Processor(same), Pipe(maxsize=50), Processor(same, workers=3), Pipe(maxsize=50), Processor(same)
        )
        with pipeline.stream(itertools.count()) as stream:
            for expected in range(3000):
                if expected in (500, 1500):
                    for pid in workers_of_the_pipeline():
                        kill(pid)
                assert next(stream) == expected

    def test_one_that_stands_still_and_is_killed(self):
        pipeline = self.make(Processor(same, workers=2), Pipe(maxsize=20), Processor(same))
        with pipeline.stream(itertools.count()) as stream:
            for expected in range(2000):
                assert next(stream) == expected
                if expected in (500, 1000):
                    pid = workers_of_the_pipeline()[0]
                    kill(pid, signal.SIGSTOP)
                    kill(pid)

    def test_amid_large_messages(self):
        self.use_no_shared_memory()
        pipeline = self.make(Processor(large), Pipe(maxsize=4), Processor(size, workers=2))
        chooser = random.Random(3)
        with pipeline, pipeline.stream(range(60)) as stream:
            for number in range(60):
                assert next(stream) == (8_000_000, bytes([number % 256]))
                if number % 6 == 3:
                    self.settle(pipeline)
                    time.sleep(chooser.uniform(0, 0.01))
                    kill(chooser.choice(workers_of_the_pipeline()))

    def test_an_idle_worker(self):
        with self.make(Processor(same), Pipe(), Processor(same)) as pipeline:
            for number in range(5):
                assert pipeline.run([number]) == [number]
                kill(workers_of_the_pipeline()[number % 2])

    def test_setup(self):
        pipeline = self.make(Processor(same), Pipe(), OnceInSetup(self.folder, None))
        assert pipeline.run(range(100)) == list(range(100))

    def test_state_is_not_restarted_unless_it_may_be(self):
        with self.assertRaisesRegex(WorkerDiedError, "restartable = True") as caught, self.make(Sum()) as pipeline:
            stream = pipeline.stream(itertools.count(1))
            assert [next(stream) for _ in range(3)] == [1, 3, 6]
            kill(workers_of_the_pipeline()[0])
            for _ in stream:
                pass
        assert caught.exception.processor == "Sum" and caught.exception.exitcode == -signal.SIGKILL
        with self.make(RestartableSum()) as pipeline:
            assert pipeline.run([1, 2]) == [1, 3]
            kill(workers_of_the_pipeline()[0])
            while pipeline.run([4])[0] != 4:
                pass


class ForkPipeTest(Survival, TestCase):
    """Forked workers, over socket pairs."""

    kills, items = (25, 5000) if ALL else (10, 2500)
    most_kills, most_items = (100, 20_000) if ALL else (20, 5000)


@slow
class ForkQueueTest(Survival, TestCase):
    """Forked workers, over queues."""

    settings = {"start_method": "fork", "channel": "queue"}
    # What the core decides, however messages travel.
    test_a_storm_over_forks = None
    test_a_storm_over_generators = None
    test_a_storm_while_the_number_of_workers_changes = None
    test_a_storm_without_order = None
    test_an_item_that_always_kills_is_named = None
    test_state_is_not_restarted_unless_it_may_be = None


@slow
class SpawnPipeTest(Survival, TestCase):
    """Workers that are fresh interpreters, over socket pairs."""

    settings = {"start_method": "spawn", "channel": "pipe"}
    kills, items = most_kills, most_items = 10, 5000
    # What does not depend on how processes start, nor on how messages travel.
    test_a_storm_over_generators = None
    test_a_storm_over_forks = None
    test_a_storm_without_order = None
    test_a_generator_at_which_a_worker_died_once = None
    test_an_item_that_always_kills_is_named = None
    test_one_that_stands_still_and_is_killed = None
    test_state_is_not_restarted_unless_it_may_be = None
    # What depends on how messages travel alone.
    test_amid_large_messages = None


@slow
class SpawnQueueTest(SpawnPipeTest):
    """Workers that are fresh interpreters, over queues, in a storm."""

    settings = {"start_method": "spawn", "channel": "queue"}
    # What depends on how processes start, or on how messages travel, but not on both.
    test_a_storm_while_the_number_of_workers_changes = None
    test_all_workers_at_once = None
    test_an_item_at_which_a_worker_died_once = None
    test_an_idle_worker = None
    test_setup = None


if __name__ == "__main__":
    unittest.main()
