"""Heavy items: what goes through shared memory is the same as what goes through a channel, whoever dies or keeps it.

Law: the buffers are real, and large enough to be shared; what a test says of memory it asks the system.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import random
import resource
import time
import unittest
import zlib

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor, ReplicatingFork
from conveyor.engines.process.shm import arena as arenas
from conveyor.engines.process.shm import mapping as mappings
from conveyor.engines.process.shm.region import MAX_KEPT_MAPPINGS
from conveyor.engines.process.wire.codec import LEAST_BYTES, LEAST_STREAM_BYTES
from tests.faults.test_survival import Survival, kill, slowly, workers_of_the_pipeline
from tests.helpers.jobs_of_engines import same
from tests.helpers.jobs_of_shared_memory import (
    ChangeAndDie,
    ChangeAndRaise,
    ChangesLater,
    Forks,
    Keeping,
    Onlooker,
    add_one,
    buffer,
    buffers,
    change_the_first,
    checksum,
    is_shared,
    memory_of,
    number_and_sum,
    part,
    region,
    touch_first,
    touch_last,
    twice,
    wiped,
    wiped_by_another,
    wiped_inside,
)
from tests.helpers.late import mock
from tests.helpers.support import ALL, TestCase, nothing_left, slow

HAS_ARENA = hasattr(os, "memfd_create")


class Basics:
    """What is held by every start method and channel."""

    time_limit = 120.0
    settings = {"start_method": "fork", "channel": "pipe"}

    def setUp(self):
        self.folder = self.new_folder()
        self.leave_nothing()

    def make(self, *elements, **more):
        pipeline = Pipeline(**self.settings, **more)
        for element in elements:
            pipeline.add(*(element if isinstance(element, tuple) else (element,)))
        return pipeline

    def test_the_same_items_come_out(self):
        sizes = [0, 1, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 1, 100_000, 1_000_000, 3, 5_000_000]
        items = [buffer(number, size) for number, size in enumerate(sizes * 2)]
        items = [{"one": [item], "two": (item, "text")} for item in items]
        pipeline = self.make(Processor(same), Pipe(), Processor(same, workers=2), Pipe(), Processor(same))
        assert pipeline.run(items) == items

    def test_it_goes_through_shared_memory(self):
        assert self.make(Processor(is_shared)).run(buffers(10)) == [True] * 10
        assert self.make(Processor(is_shared)).run(buffers(10, LEAST_BYTES - 1)) == [False] * 10
        results = self.make(Processor(same)).run(buffers(10))
        assert all(map(is_shared, results)) and results == list(buffers(10))

    def test_what_is_passed_on_unchanged_is_not_copied(self):
        pipeline = self.make(Processor(same), Pipe(), Processor(part), Pipe(), Processor(same))
        results = list(map(region, pipeline.run(buffers(10))))
        assert results == [0] * 10
        pipeline = self.make(Processor(same), Pipe(), Processor(touch_last), Pipe(), Processor(same))
        results = pipeline.run(buffers(10))
        assert results == list(map(touch_last, buffers(10)))
        assert 0 not in map(region, results)

    def test_a_branch_sees_its_own_changes_only(self):
        pipeline = self.make(
            Processor(same),
            Pipe(),
            ReplicatingFork(3),
            (Processor(touch_first), Processor(same), Processor(touch_last)),
            Pipe(),
            Join(how="zip"),
        )
        for number, row in enumerate(pipeline.run(buffers(20))):
            item = buffer(number)
            assert row == (touch_first(buffer(number)), item, touch_last(buffer(number)))

    def test_a_storm_of_kills(self):
        count, kills = (200, 10) if ALL and self.settings["start_method"] != "spawn" else (100, 5)
        chooser = random.Random(5)
        pipeline = self.make(
            Processor(same), Pipe(), Processor(touch_first, workers=2), Pipe(maxbytes=5_000_000), Processor(slowly)
        )
        results = 0
        with pipeline:
            for number, result in enumerate(pipeline.stream(buffers(count))):
                assert result == touch_first(buffer(number)), number
                results += 1
                if number % (count // kills) == 3:
                    Survival.settle(self, pipeline)
                    kill(chooser.choice(workers_of_the_pipeline() or [0x7FFFFFFF]))
            assert results == count


class Behaviour(Basics):
    """The rest of it."""

    def test_a_part_of_it(self):
        pipeline = self.make(Processor(part), Pipe(), Processor(checksum))
        assert pipeline.run(buffers(3)) == [checksum(part(item)) for item in buffers(3)]
        assert self.make(Processor(part)).run(buffers(3)) == list(map(part, buffers(3)))

    def test_what_wipes_itself_arrives_as_it_was_given(self):
        expected = [(number, zlib.crc32(touch_first(buffer(number)).view())) for number in range(40)]
        for job in (wiped, wiped_inside, wiped_by_another):
            assert self.make(Processor(job), Pipe(), Processor(number_and_sum)).run(buffers(40)) == expected

    def test_two_views_of_one_memory_become_two(self):
        results = self.make(Processor(twice), Pipe(), Processor(change_the_first)).run(buffers(5))
        assert results == [[touch_first(item), buffer(item.number)] for item in buffers(5)]

    def test_all_the_changes_in_place(self):
        pipeline = self.make(Processor(add_one), Pipe(), Processor(touch_last), Pipe(), Processor(add_one))
        assert pipeline.run(buffers(60)) == [add_one(touch_last(add_one(item))) for item in buffers(60)]

    def test_who_died_after_a_change_leaves_the_item_as_it_was(self):
        pipeline = self.make(Processor(same), Pipe(), ChangeAndDie(self.folder, 7), Pipe(), Processor(same))
        assert pipeline.run(buffers(30)) == list(map(touch_first, buffers(30)))

    def test_so_does_who_tries_again(self):
        pipeline = self.make(Processor(same), Pipe(), ChangeAndRaise(self.folder, 7))
        assert pipeline.run(buffers(30)) == list(map(touch_first, buffers(30)))

    def test_results_live_as_long_as_they_are_held(self):
        with self.make(Processor(same), Pipe(), Processor(touch_last)) as pipeline:
            held = list(itertools.islice(pipeline.stream(buffers(400)), 5))
            held += pipeline.run(buffers(100))[:5]
            for result in pipeline.stream(buffers(200)):
                last = result
            held += [last]
        expected = [touch_last(buffer(number)) for number in (*range(5), *range(5), 199)]
        assert held == expected
        touch_first(held[3])
        assert held[3] == touch_first(expected[3]) and held[4] == expected[4]

    def test_a_job_may_keep_what_it_gets(self):
        results = self.make(Processor(same), Pipe(), Keeping()).run(buffers(200))
        assert results == [buffer(max(0, number - 9)) for number in range(200)]

    def test_a_job_may_change_what_it_has_passed_on(self):
        results = self.make(Processor(same), Pipe(), ChangesLater()).run(buffers(200))
        assert results == list(map(touch_first, buffers(200)))

    def test_a_job_may_fork(self):
        *results, codes = self.make(Processor(same), Pipe(), Forks()).run(buffers(200))
        assert results == list(map(touch_first, buffers(200)))
        assert codes == [0] * 5

    def test_large_text_and_bytes(self):
        items = [bytes([65 + number % 26]) * 300_000 for number in range(20)]
        assert self.make(Processor(same), Pipe(), Processor(same)).run(items) == items
        items = [bytearray(item) for item in items]
        assert self.make(Processor(same), Pipe(), Processor(same)).run(items) == items
        items = ["ä€" * 300_000, "\udcff" * 200_000, "a" * LEAST_STREAM_BYTES, "b"] * 5
        assert self.make(Processor(same), Pipe(), Processor(same)).run(items) == items

    def test_a_user_who_holds_hundreds(self):
        before = len(os.listdir("/proc/self/fd"))
        results = self.make(Processor(same)).run(buffers(400))
        assert len(os.listdir("/proc/self/fd")) - before <= mappings.MAX_LIVE_MAPPINGS + MAX_KEPT_MAPPINGS + 1
        assert results == list(buffers(400))


@unittest.skipUnless(HAS_ARENA, "needs memory without a name")
class ForkPipeTest(Behaviour, TestCase):
    """Forked workers, over socket pairs; and what is the same for all."""

    def test_memory_is_bounded_however_much_goes_through(self):
        with self.make(Processor(same), Pipe(), Processor(touch_first), Pipe(), Processor(slowly)) as pipeline:
            stream = pipeline.stream(buffer(0, 1_000_000) for _ in itertools.count())
            most = 0
            for _ in itertools.islice(stream, 450):
                most = max(most, memory_of(pipeline))
        # Three pipes and what is at hand on either side of each; 450 MB went through.
        assert most < 300_000_000, most

    def test_slots_are_used_again(self):
        with self.make(Processor(same), Pipe(maxsize=2), Processor(touch_first), Pipe(maxsize=2)) as pipeline:
            for _ in range(3):
                for _ in pipeline.stream(buffers(100, 1_000_000)):
                    pass
            # The first pipe, which nobody has made shorter, holds 16 MiB, and 300 MB went through.
            assert memory_of(pipeline) < 100_000_000

    def test_memory_is_given_back_when_nothing_runs(self):
        with self.make(Processor(same), Pipe(), Processor(touch_first)) as pipeline:
            held = pipeline.run(buffers(60, 1_000_000))[:2]
            # The word of what is held no more goes with the next run.
            pipeline.run([])
            deadline = time.monotonic() + 20
            # What the caller itself keeps for the next run, and what is held.
            while memory_of(pipeline) > arenas.KEPT_BYTES + 3_000_000:
                assert time.monotonic() < deadline, memory_of(pipeline)
                time.sleep(0.01)
            assert held == [touch_first(buffer(number, 1_000_000)) for number in range(2)]

    def test_what_is_held_past_the_end_is_all_that_is_kept(self):
        with self.make(Processor(same), Pipe(), Processor(touch_first)) as pipeline:
            held = pipeline.run(buffers(30, 1_000_000))[3:5]
            arena = pipeline._lifecycle.session._broker.arena
        descriptor = os.dup(arena._descriptor)
        self.addCleanup(os.close, descriptor)
        assert os.fstat(descriptor).st_blocks * 512 <= 2 * 1_200_000
        held.pop()
        gc.collect()
        assert os.fstat(descriptor).st_blocks * 512 <= 1_200_000
        assert held == [touch_first(buffer(3, 1_000_000))]
        held.clear()
        gc.collect()
        assert os.fstat(descriptor).st_blocks == 0

    def test_a_fork_keeps_what_it_sees(self):
        with self.make(Processor(same)) as pipeline:
            held = pipeline.run(buffers(1))
            onlooker = Onlooker(lambda: held == [buffer(0)])
            held.clear()
            # Enough to write to each slot again.
            for item in pipeline.stream(buffers(300)):
                assert item
            assert onlooker.verdict() == 0

    def test_without_room_it_goes_through_the_channel(self):
        expected = list(map(touch_first, buffers(30)))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        with self.make(Processor(touch_first), Pipe(), Processor(same)) as pipeline:
            assert pipeline.run(buffers(30)) == expected
        # No file may be so long any more; workers inherit that.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        with self.make(Processor(touch_first), Pipe(), Processor(same)) as pipeline:
            assert pipeline.run(buffers(30)) == expected

    def test_room_that_ends_in_the_middle(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))

        def items():
            for number in range(60):
                if number == 30:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
                # From then on they are too large for what has been written before.
                yield buffer(number, 300_000 if number < 30 else 900_000)

        with self.make(Processor(is_shared)) as pipeline:
            shared = pipeline.run(items())
            assert shared[0] and not any(shared[30:])

    def test_a_system_that_has_none(self):
        with mock.patch.object(os, "memfd_create", side_effect=OSError("none")), nothing_left():
            with self.make(Processor(is_shared)) as pipeline:
                assert pipeline.run(buffers(10)) == [False] * 10
            pipeline = self.make(Processor(touch_first), Pipe(), Processor(same))
            assert pipeline.run(buffers(10)) == list(map(touch_first, buffers(10)))

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "needs numpy")
    def test_arrays_of_numpy(self):
        import numpy

        def source():
            for number in range(40):
                array = numpy.arange(number, number + 100_000, dtype=numpy.float32).reshape(100, 1000)
                # In the order of Fortran, with gaps, read-only, and as it is.
                yield (array.T, array[:, ::2], numpy.broadcast_to(array, (1, 100, 1000)), array)[number % 4]

        def change(array):
            if array.flags.writeable:
                array *= 2
                array += 1
            return array

        def where(array):
            return array.flags.writeable, bool(array.flags.aligned), array

        pipeline = self.make(Processor(change), Pipe(), Processor(where), Pipe(), Processor(same))
        for array, (writable, aligned, result) in zip(source(), pipeline.run(source()), strict=True):
            assert aligned and writable == array.flags.writeable
            expected = change(array.copy()) if writable else array
            assert numpy.array_equal(expected, result) and array.dtype == result.dtype

    def test_an_abandoned_stream(self):
        with self.make(Processor(same), Pipe(), Processor(touch_last)) as pipeline:
            for _ in range(10):
                stream = pipeline.stream(buffer(0, 500_000) for _ in itertools.count())
                assert [next(stream) for _ in range(3)] == [touch_last(buffer(0, 500_000))] * 3
                stream.close()
            assert pipeline.run(buffers(5)) == list(map(touch_last, buffers(5)))

    def test_workers_that_come_and_go(self):
        pipeline = (
            self.make(Processor(same), Pipe(), Processor(touch_first, max_items=10), Pipe(), BalancingFork(max=3))
            .add(Processor(slowly))
            .add(Pipe())
            .add(Join())
        )
        assert pipeline.run(buffers(100)) == list(map(touch_first, buffers(100)))


@slow
@unittest.skipUnless(HAS_ARENA, "needs memory without a name")
class ForkQueueTest(Basics, TestCase):
    """Forked workers, over queues."""

    settings = {"start_method": "fork", "channel": "queue"}


@slow
@unittest.skipUnless(HAS_ARENA, "needs memory without a name")
class SpawnPipeTest(Basics, TestCase):
    """Workers that are fresh interpreters, over socket pairs: they are given the memory in another way, and use it likewise."""

    settings = {"start_method": "spawn", "channel": "pipe"}
    test_a_branch_sees_its_own_changes_only = None
    test_what_is_passed_on_unchanged_is_not_copied = None


@slow
@unittest.skipUnless(HAS_ARENA, "needs memory without a name")
class SpawnQueueTest(SpawnPipeTest):
    """Workers that are fresh interpreters, over queues."""

    settings = {"start_method": "spawn", "channel": "queue"}
    # What depends on how messages travel, or on how processes start, but not on both.
    test_a_storm_of_kills = None
    test_the_same_items_come_out = None


if __name__ == "__main__":
    unittest.main()
