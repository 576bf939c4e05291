"""Bounds: no more is under way than the pipes hold, and nothing that is ready waits for what is not.

Law: whoever would have to wait is made to, by an event that the other side sets, so that a pipeline that waits for
the wrong one stands still, and the test fails by its time limit; and what is counted is counted in the source.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import unittest
from pathlib import Path

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor, ReplicatingFork
from tests.helpers.late import mock, tempfile
from tests.helpers.support import TestCase, _descendants, _everyone, nothing_left, slow


def same(item):
    return item


def triple(item):
    for _ in range(3):
        yield item


def make_large(item):
    return bytes(100_000)


def settled(number, seconds=0.3, least=0):
    """Return what a changing number is once it has not changed for so long, and is as large as that or never will be."""
    begun = time.monotonic()
    while number() < least and time.monotonic() - begun < 10:
        time.sleep(0.01)
    value, since = number(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.01)
        if number() != value:
            value, since = number(), time.monotonic()
    return value


def large_later(item):
    return item if item < 3000 else bytes(1_000_000)


def large_later_in_a_generator(item):
    for number in range(3600):
        yield large_later(number)


def heavy(item):
    return bytes(300_000)


def heavy_record(item):
    return {"number": item, "text": "x" * 300_000}


def heavy_later(item):
    return item if item < 3000 else bytes(300_000)


def heavy_many(item):
    for _ in range(100):
        yield bytes(300_000)


def heavy_many_later(item):
    for number in range(10_000):
        yield heavy_later(number)


def many_or_one(item):
    if item > 1:
        time.sleep(0.05)  # for the other worker to take what is behind it
    yield from range(item)


def many_slowly_or_one(item):
    for number in many_or_one(item):
        if item > 1:
            time.sleep(0.012)  # so long that each is sent by itself
        yield number


def slowly(item):
    time.sleep(0.3 if item >= 3 else 0.05)  # for what comes beside it to be there before it
    return item


def heavy_soon(item):
    return item if item < 3 else bytes(64 << 20)


@contextlib.contextmanager
def never_told_late():
    """A consumer says what it has taken where that is worth a message, or somebody waits for it; else never."""
    never = 1000.0
    with (
        mock.patch("conveyor.core.nodes.sink.REPORT_SECONDS", never),
        mock.patch("conveyor.core.nodes.sink.REPORT_SOON_SECONDS", never),
    ):
        yield


class Counted:
    """A job that adds a byte to a file for each thing that another gives."""

    def __init__(self, path, job):
        self.path = path
        self.job = job

    def __call__(self, item):
        given = self.job(item)
        return self.each(given) if hasattr(given, "send") else next(self.each([given]))

    def each(self, given):
        for value in given:
            with open(self.path, "ab") as file:
                file.write(b".")
            yield value


class Ticks(Processor):
    """Adds a byte to a file for each item."""

    def __init__(self, path):
        self.path = path

    def process(self, item):
        with open(self.path, "ab") as file:
            file.write(b".")
        return item


class Bounds:
    """For one channel."""

    time_limit = 90.0
    settings = {"start_method": "fork", "channel": "pipe"}

    def setUp(self):
        self.leave_nothing()

    def make(self, *elements):
        pipeline = Pipeline(**self.settings)
        for element in elements:
            pipeline.add(*(element if isinstance(element, tuple) else (element,)))
        return pipeline

    def pulled_ahead(self, pipeline, taken, give=same, least=0):
        """How many items are pulled, at least so many, while the consumer has so many results and asks for no more.

        What is pulled is what `give` makes of 0, 1, 2 and so on.
        """
        return self.all_pulled_ahead([(pipeline, taken, give)], least)[0]

    def all_pulled_ahead(self, cases, least=0):
        """Likewise for several pipelines, which come to rest side by side."""
        counts = [0] * len(cases)

        def source(case, give):
            for number in itertools.count():
                counts[case] = number + 1
                yield give(number)

        with contextlib.ExitStack() as stack:
            # All are open before the first runs: a thread of a run is no company for those that start.
            opened = [stack.enter_context(pipeline) for pipeline, _, _ in cases]
            for case, (pipeline, (_, taken, give)) in enumerate(zip(opened, cases, strict=True)):
                stream = stack.enter_context(pipeline.stream(source(case, give)))
                for _ in range(taken):
                    next(stream)
            settled(lambda: sum(counts), least=least)
            return counts.copy()

    def test_no_more_is_pulled_than_the_pipes_hold(self):
        def chain(size, steps, **settings):
            elements = [Processor(same, **settings)]
            for _ in range(steps - 1):
                elements += [Pipe(maxsize=size), Processor(same, **settings)]
            return self.make(*elements)

        cases = [(1, 2, 1), (5, 2, 1), (5, 3, 7), (5, 4, 50), (50, 3, 1), (50, 3, 500)]
        pulled = self.all_pulled_ahead([(chain(size, steps), taken, same) for size, steps, taken in cases])
        for (size, steps, taken), count in zip(cases, pulled, strict=True):
            with self.subTest(size=size, steps=steps, taken=taken):
                ahead = count - taken
                # The pipes between, one in front of and one behind them all, and what is in hands: one for each
                # worker, one in the source's, and what the consumer is handed at once, a quarter of the last pipe.
                assert 0 < ahead <= size * (steps - 1) + 2 * size + steps + 1 + size // 4, ahead
        with self.subTest("batch and workers"):
            batches = self.make(Processor(tuple, batch=8), Pipe(maxsize=2), Processor(same))
            pulled = self.all_pulled_ahead([(chain(5, 3, workers=2), 10, same), (batches, 3, same)])
            assert pulled[0] - 10 <= 4 * 5 + 6 + 1, pulled
            assert pulled[1] - 3 * 8 <= 8 + 8 + (2 + 2 + 2) * 8 + 1, pulled

    def all_given_ahead(self, cases):
        """How many items each job gives while the consumer has so many results of a megabyte's pipes and asks for no more."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            paths = [os.path.join(folder, str(number)) for number in range(len(cases))]
            opened = [
                stack.enter_context(self.make(Processor(Counted(path, job)), Pipe(maxbytes=1_000_000), Processor(same)))
                for path, (job, _) in zip(paths, cases, strict=True)
            ]
            for pipeline, (_, taken) in zip(opened, cases, strict=True):
                stream = stack.enter_context(pipeline.stream(range(10_000)))
                for _ in range(taken):
                    next(stream)
            settled(lambda: sum(map(os.path.getsize, paths)))
            return [os.path.getsize(path) - taken for path, (_, taken) in zip(paths, cases, strict=True)]

    def test_heavy_items_are_bounded_in_bytes(self):
        # Three of them fill a pipe.
        slim = Pipe(maxbytes=1_000_000)
        cases = []
        for pipes, elements in (
            (2, [Processor(same), slim]),
            (3, [Processor(same), slim, Processor(same)]),
            (3, [Processor(same), slim, Processor(same, workers=2)]),
            (5, [Processor(same), slim, ReplicatingFork(2), slim, Processor(same), slim, Join(), slim]),
            (7, [Processor(same), slim, BalancingFork(2), slim, Processor(same), slim, Join(), slim]),
            (5, [Processor(same), slim, ReplicatingFork(2), slim, Processor(same), slim, Join(how="zip"), slim]),
        ):
            # A record is weighed in the same way whatever comes behind.
            cases += [(pipes, elements, give) for give in (heavy, heavy_record)[: 2 if pipes < 3 else 1]]
        pulled = self.all_pulled_ahead([(self.make(*elements), 4, give) for _, elements, give in cases])
        for (pipes, elements, give), count in zip(cases, pulled, strict=True):
            with self.subTest(elements=elements, give=give):
                # One more is in the hand of the source, of each worker, and of the consumer.
                assert 2 <= count - 4 <= 3 * pipes + 6, count

    def test_light_items_are_not_held_up_by_a_bound_in_bytes(self):
        slim = Pipe(maxbytes=1_000_000)
        pipeline = self.make(Processor(same), slim, Processor(same))
        ahead = self.pulled_ahead(pipeline, 1, lambda number: bytes(1000), least=1501) - 1
        # In each pipe about a thousand.
        assert 1500 <= ahead <= 3 * 1100, ahead

    def test_items_that_become_heavy_are_bounded_in_bytes(self):
        slim = Pipe(maxbytes=1_000_000)
        ahead = self.pulled_ahead(self.make(Processor(same), slim, Processor(same)), 3000, heavy_later) - 3000
        assert 2 <= ahead <= 9 + 3 + 40, ahead

    def test_jobs_whose_outputs_are_heavy_are_bounded_in_bytes(self):
        cases = [(heavy, 5), (heavy_later, 3000), (heavy_many, 5), (heavy_many_later, 3000)]
        for (job, taken), ahead in zip(cases, self.all_given_ahead(cases), strict=True):
            with self.subTest(job=job):
                assert 2 <= ahead <= (15 if taken == 5 else 60), ahead

    def test_everything_goes_through_a_pipe_that_holds_less_than_an_item(self):
        for job in (heavy, heavy_many):
            pipeline = self.make(Processor(job), Pipe(maxbytes=1), Processor(len, workers=2))
            count = 100 if job is heavy_many else 1
            assert pipeline.run(range(5)) == [300_000] * 5 * count
        # A short list, which is sent before any result is taken; and batches.
        pipeline = self.make(Processor(len), Pipe(maxbytes=1_000_000), Processor(sum, batch=8))
        assert pipeline.run([bytes(300_000)] * 40) == [8 * 300_000] * 5
        pipeline = self.make(Processor(same), Pipe(maxbytes=1_000_000), Processor(len, batch=8))
        assert pipeline.run([bytes(300_000)] * 40) == [8] * 5

    def test_forks_are_bounded_too(self):
        def forked(fork):
            pipe = Pipe(maxsize=5)
            return self.make(Processor(same), pipe, fork, pipe, Processor(same), pipe, Join(), pipe, Processor(same))

        pulled = self.all_pulled_ahead([(forked(fork), 10, same) for fork in (ReplicatingFork(2), BalancingFork(2))])
        assert max(pulled) <= 10 + 60, pulled

    def test_generators_are_bounded_by_their_outputs(self):
        pipeline = self.make(Processor(triple), Pipe(maxsize=5), Processor(same))
        ahead = self.pulled_ahead(pipeline, 3)
        assert ahead <= 1 + 5 + (5 + 5 + 2) / 3 + 2, ahead

    def test_who_waits_for_room_hears_at_once_that_there_is_some(self):
        # While the first lease gives its hundreds, later ones come to hold all the room but what one result takes.  The
        # consumer would tell of that one when it has more, and there is no more until it does.
        for job, many, runs in ((many_or_one, 600, 2), (many_slowly_or_one, 60, 1)):
            pipeline = self.make(Processor(same), Pipe(16), Processor(job, workers=2))
            with never_told_late(), pipeline:
                for _ in range(runs):
                    assert pipeline.run([1] * 20 + [many] + [1] * 200) == [0] * 20 + [*range(many)] + [0] * 200

    def test_what_becomes_heavy_behind_a_join_goes_on(self):
        # The results are light when they are handed out, and too many once the others, which wait for their turn, are
        # weighed.
        pipeline = self.make(Processor(same), Pipe(), ReplicatingFork(2), (Processor(slowly), Processor(heavy_soon)))
        pipeline.add(Pipe(100)).add(Join(2))
        with never_told_late(), pipeline:
            assert [len(result) if type(result) is bytes else result for result in pipeline.run(range(6))] == [
                *(0, 0, 1, 1, 2, 2),
                *(3, 64 << 20, 4, 64 << 20, 5, 64 << 20),
            ]

    def test_memory_does_not_grow(self):
        pipeline = self.make(Processor(make_large), Pipe(maxsize=10), Processor(same))

        def memory():
            total = 0
            for pid in {os.getpid(), *_descendants(_everyone())}:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
            return total

        with pipeline.stream(itertools.count()) as stream:
            for _ in itertools.islice(stream, 300):
                pass
            before = memory()
            for _ in itertools.islice(stream, 900):  # 90 MB
                pass
            assert memory() - before < 60_000_000, memory() - before

    def tree(self):
        """The most memory that each process of this one's tree has had, in bytes."""
        most = {}
        for pid in {os.getpid(), *_descendants(_everyone())}:
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    most[pid] = int(line.split()[1]) * 1024
        return most

    def test_results_that_are_heavy_go_on_and_on(self):
        # Fewer fit into the last pipe than are worth telling of while they are small.
        pipeline = self.make(Processor(make_large))
        assert sum(map(len, pipeline.run(range(1000)))) == 1000 * 100_000

    def test_a_short_list_of_heavy_items_does_not_hold_the_caller_up(self):
        # More than the pipes hold, so that some have to wait until the caller, who gave them, takes results.
        item = bytes(10_000_000)
        pipeline = self.make(Processor(len), Pipe(), Processor(same))
        assert pipeline.run([item] * 30) == [10_000_000] * 30
        assert sum(map(len, self.make(Processor(same)).run([item] * 20))) == 20 * 10_000_000

    @slow
    def test_items_that_become_heavy_fill_the_pipes_all_the_same(self):
        def source():
            yield from range(3000)
            for _ in range(600):
                yield bytes(1_000_000)

        # That what a job returns is weighed as what it yields, a test above says.
        for pipeline, items in (
            (self.make(Processor(same), Pipe(), Processor(same)), source()),
            (self.make(Processor(large_later_in_a_generator), Pipe(), Processor(same)), range(1)),
        ):
            before = self.tree()[os.getpid()]
            with pipeline.stream(items) as stream:
                next(stream)
                time.sleep(0.7)  # nobody takes a result: without a bound in bytes, 600 MB are on its way by now
                most = self.tree()
                assert most[os.getpid()] - before < 400_000_000, most
                assert all(each < 800_000_000 for each in most.values()), most
                assert sum(1 for _ in stream) == 3599

    def test_a_slow_source_delays_no_result(self):
        for pipeline in (
            self.make(Processor(same)),
            self.make(Processor(same), Pipe(maxsize=5), Processor(same, workers=2)),
        ):
            seen = threading.Event()

            def source(seen=seen):
                for number in range(30):
                    yield number
                    assert seen.wait(20), "the result did not come"
                    seen.clear()

            for count, result in enumerate(pipeline.stream(source())):
                assert result == count
                seen.set()
            assert count == 29

    def test_a_burst_goes_through_while_the_source_is_silent(self):
        for pipeline in (self.make(Processor(same)), self.make(Processor(same), Pipe(maxsize=20), Processor(same))):
            seen = threading.Event()

            def source(seen=seen):
                # At first as fast as can be, so that much is asked for at once.
                yield from range(1000)
                for start in range(1000, 1050, 5):
                    yield from range(start, start + 5)
                    assert seen.wait(20), "the burst did not come"
                    seen.clear()

            for count, result in enumerate(pipeline.stream(source())):
                assert result == count
                if count >= 1000 and count % 5 == 4:
                    seen.set()
            assert count == 1049

    def test_a_consumer_that_blocks_does_not_stop_the_belt(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "ticks")
            pipeline = self.make(Processor(same), Pipe(maxsize=20), Ticks(path))
            with pipeline.stream(itertools.count()) as stream:
                assert next(stream) == 0
                done = settled(lambda: os.path.getsize(path), least=15)
                assert 15 <= done <= 1 + 20 + 1 + 5, done
                assert list(itertools.islice(stream, 50)) == list(range(1, 51))

    def test_one_item_goes_through_at_once(self):
        with self.make(Processor(same), Pipe(), Processor(same), Pipe(), Processor(same)) as pipeline:
            waiting, answered = threading.Semaphore(0), []

            def source():
                for number in range(50):
                    begun.append(time.monotonic())
                    yield number
                    waiting.acquire()

            begun = []
            for _ in pipeline.stream(source()):
                answered.append(time.monotonic() - begun[-1])
                waiting.release()
            assert sorted(answered)[25] < 0.05, sorted(answered)[25]

    def test_a_generator_gives_at_once_what_it_gives_slowly(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "seen")
            pipeline = self.make(Processor(waits_for_the_consumer))
            for count, result in enumerate(pipeline.stream([path])):
                assert result == count
                Path(f"{path}{count}").touch()
            assert count == 29


def waits_for_the_consumer(path):
    """Yield numbers, each slowly, and only when the one before has been seen."""
    for number in range(30):
        # Longer than a worker keeps what it has for company.
        time.sleep(0.004)
        yield number
        deadline = time.monotonic() + 10
        while not os.path.exists(f"{path}{number}"):
            assert time.monotonic() < deadline, "the consumer did not see it"
            time.sleep(0.001)


class ThreadTest(Bounds, TestCase):
    """Threads of this process."""

    settings = {"engine": "thread"}
    # What is weighed, the tests before say; nothing travels here that would take memory twice.
    test_items_that_become_heavy_fill_the_pipes_all_the_same = None


class PipeBoundsTest(Bounds, TestCase):
    """Over socket pairs."""


@slow
class QueueBoundsTest(Bounds, TestCase):
    """Over queues."""

    settings = {"start_method": "fork", "channel": "queue"}
    # What is weighed, and how the core counts, is the same for both channels.
    test_items_that_become_heavy_fill_the_pipes_all_the_same = None
    test_items_that_become_heavy_are_bounded_in_bytes = None
    test_what_becomes_heavy_behind_a_join_goes_on = None
    test_jobs_whose_outputs_are_heavy_are_bounded_in_bytes = None
    test_everything_goes_through_a_pipe_that_holds_less_than_an_item = None
    test_forks_are_bounded_too = None
    test_generators_are_bounded_by_their_outputs = None
    test_heavy_items_are_bounded_in_bytes = None
    test_light_items_are_not_held_up_by_a_bound_in_bytes = None
    test_no_more_is_pulled_than_the_pipes_hold = None
    test_who_waits_for_room_hears_at_once_that_there_is_some = None


@slow
class SpawnQueueBytesTest(TestCase):
    """One look at fresh interpreters, over queues."""

    settings = {"start_method": "spawn", "channel": "queue"}
    make, pulled_ahead, all_pulled_ahead = Bounds.make, Bounds.pulled_ahead, Bounds.all_pulled_ahead

    def test_heavy_items_are_bounded_in_bytes(self):
        with nothing_left():
            pipeline = self.make(Processor(same), Pipe(maxbytes=1_000_000), Processor(same))
            ahead = self.pulled_ahead(pipeline, 4, heavy) - 4
            assert 2 <= ahead <= 3 * 3 + 6, ahead


if __name__ == "__main__":
    unittest.main()
