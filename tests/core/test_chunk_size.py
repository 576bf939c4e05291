"""How many items make a chunk, and how many a pipe holds.

Law: a chunk starts at one item, at most doubles, and is aimed at so much time and so many bytes; a pipe holds what it
says, or less where items are heavy.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.core import LONGEST_SECONDS, TARGET_SECONDS, commands, events
from conveyor.core.machine import Machine
from conveyor.core.tuning.chunk_size import (
    FEW_ITEMS,
    FEW_ITEMS_BYTES,
    MAX_CHUNK_ITEMS,
    PIPE_BYTES,
    TARGET_BYTES,
    UNWEIGHED_ITEMS,
    ChunkSizer,
    ChunkTarget,
    ItemWeight,
)
from conveyor.graph.builder import Description
from conveyor.stages import Processor
from tests.helpers.support import ALL, TestCase

EXAMPLES = settings(max_examples=100 if ALL else 50, deadline=None, derandomize=True, database=None)


def sizes(seconds: float, limit: int = 1000, replies: int = 20, weight: int = 0) -> list[int]:
    """The sizes of chunks of items that take so long each and weigh so much."""
    scale = ItemWeight()
    if weight:
        scale.weigh(1, weight)
    chunk_sizer = ChunkSizer(limit, scale, ChunkTarget())
    found = []
    for _ in range(replies):
        found.append(chunk_sizer.size)
        chunk_sizer.observe(chunk_sizer.size, seconds * chunk_sizer.size)
    return found


class Chunks(TestCase):
    """The size of a chunk."""

    def test_it_doubles_up_to_the_limit(self) -> None:
        assert sizes(1e-7, limit=100)[:9] == [1, 2, 4, 8, 16, 32, 64, 100, 100]

    def test_it_is_aimed_at_some_time(self) -> None:
        assert sizes(TARGET_SECONDS / 10.5)[:6] == [1, 2, 4, 8, 10, 10]
        assert sizes(TARGET_SECONDS * 3) == [1] * 20

    def test_it_is_aimed_at_some_bytes(self) -> None:
        assert sizes(1e-7, weight=TARGET_BYTES // 500, limit=10_000)[8:12] == [256, 500, 500, 500]
        # Of few items more, up to a bound of its own.
        assert sizes(1e-7, weight=TARGET_BYTES // 100)[:10] == [1, 2, 4, 8, 16, 32, 64, 128, FEW_ITEMS, FEW_ITEMS]
        assert sizes(1e-7, weight=FEW_ITEMS_BYTES // 5)[:5] == [1, 2, 4, 5, 5]
        assert sizes(1e-7, weight=FEW_ITEMS_BYTES * 5) == [1] * 20

    def test_it_is_a_quarter_of_a_small_pipe(self) -> None:
        scale = ItemWeight(most=4000)
        scale.weigh(1, 100)
        chunk_sizer = ChunkSizer(1000, scale, ChunkTarget())
        for size in (1, 2, 4, 8, 10, 10):
            assert chunk_sizer.size == size
            chunk_sizer.observe(size, size * 1e-7)

    def test_a_limit_that_makes_no_sense(self) -> None:
        assert ChunkSizer(0, ItemWeight(), ChunkTarget()).size == 1
        assert max(sizes(0.0, limit=10**9, replies=40)) == MAX_CHUNK_ITEMS

    def test_one_slow_chunk_is_not_the_end(self) -> None:
        chunk_sizer = ChunkSizer(1000, ItemWeight(), ChunkTarget())
        for _ in range(10):
            chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 2e-5)
        assert chunk_sizer.size == int(TARGET_SECONDS / 2e-5)
        # A hiccup of 100 ms in a chunk of 16 ms.
        chunk_sizer.observe(chunk_sizer.size, 0.1)
        assert 400 < chunk_sizer.size < 700
        for _ in range(20):
            chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 2e-5)
        assert chunk_sizer.size > 780

    def test_a_dear_item_among_cheap_ones_changes_little(self) -> None:
        chunk_sizer, found = ChunkSizer(1000, ItemWeight(), ChunkTarget()), []
        for number in range(200):
            # One chunk in six has an item that costs 200 times the rest.
            dear = number % 6 == 5
            chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 0.0005 + 0.1 * dear)
            found.append(chunk_sizer.size)
        assert min(found[20:]) >= 20, found

    def test_two_dear_chunks_in_a_row_are_no_accident(self) -> None:
        chunk_sizer = ChunkSizer(1000, ItemWeight(), ChunkTarget())
        for _ in range(20):
            chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 0.0005)
        assert chunk_sizer.size == 32
        chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 0.1)
        assert chunk_sizer.size == 22
        chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 0.1)
        assert chunk_sizer.size == 1

    def test_where_much_waits_they_are_a_part_of_it(self) -> None:
        chunk_sizer = ChunkSizer(1000, ItemWeight(), ChunkTarget())
        for size, longest in ((1, 1), (2, 2), (4, 4), (8, 8), (10, 16), (10, 32), (10, 64), (10, 84), (10, 84)):
            # However long the line is, they at most double.
            assert (chunk_sizer.size, chunk_sizer.size_of(10**6)) == (size, longest)
            chunk_sizer.observe(size, size * TARGET_SECONDS / 10.5)
        assert [chunk_sizer.size_of(waiting) for waiting in (0, 79, 88, 160, 640, 672)] == [10, 10, 11, 20, 80, 84]

    def test_however_much_waits_a_stretched_one_is_not_stretched_again(self) -> None:
        aim = ChunkTarget()
        for seconds in (TARGET_SECONDS * 2, TARGET_SECONDS * 4, TARGET_SECONDS * 8):
            assert aim.observe_load(1.0) and aim.seconds == seconds
            chunk_sizer = ChunkSizer(1000, ItemWeight(), aim)
            for _ in range(10):
                chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * TARGET_SECONDS / 10.5)
            assert chunk_sizer.size_of(10**6) == 84

    def test_however_much_waits_a_dear_item_is_a_chunk(self) -> None:
        chunk_sizer = ChunkSizer(1000, ItemWeight(), ChunkTarget())
        for seconds, size in ((TARGET_SECONDS * 5, 1), (TARGET_SECONDS * 3, 2)):
            for _ in range(30):
                chunk_sizer.observe(1, seconds)
            assert (chunk_sizer.size, chunk_sizer.size_of(10**6)) == (1, size)

    def test_however_much_waits_they_keep_within_the_pipe(self) -> None:
        chunk_sizer = ChunkSizer(25, ItemWeight(), ChunkTarget())
        for _ in range(10):
            chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * TARGET_SECONDS / 10.5)
        assert (chunk_sizer.size, chunk_sizer.size_of(10**6)) == (10, 25)
        scale = ItemWeight(most=4000)
        scale.weigh(1, 80)
        chunk_sizer = ChunkSizer(1000, scale, ChunkTarget())
        for _ in range(10):
            chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * TARGET_SECONDS / 10.5)
        assert (chunk_sizer.size, chunk_sizer.size_of(10**6)) == (10, 12)

    def test_a_broker_with_much_to_do_has_larger_chunks(self) -> None:
        aim = ChunkTarget()
        chunk_sizer = ChunkSizer(1000, ItemWeight(), aim)
        for share, size in ((0.6, 8), (0.8, 16), (0.8, 32), (0.3, 32), (0.9, 64), (0.9, 64), (0.1, 32), (0.0, 16)):
            aim.observe_load(share)
            for _ in range(8):
                chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 0.002)
            assert chunk_sizer.size == size, (share, chunk_sizer.size)

    def test_of_batches_all_items_are_weighed(self) -> None:
        scale = ItemWeight()
        scale.weigh(1, 1000)
        for unit, size in ((1, 256), (16, 16), (100, 2), (1000, 1)):
            chunk_sizer = ChunkSizer(10_000, scale, ChunkTarget(), unit)
            for _ in range(14):
                chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 1e-7)
            assert chunk_sizer.size == size, (unit, chunk_sizer.size)

    def test_it_has_more_bytes_in_each_too(self) -> None:
        aim, scale = ChunkTarget(), ItemWeight()
        scale.weigh(1, TARGET_BYTES // 512)
        chunk_sizer = ChunkSizer(100_000, scale, aim)
        for share, size in ((0.6, 512), (0.8, 1024), (0.9, 2048), (0.9, 4096), (0.9, 4096), (0.1, 2048)):
            aim.observe_load(share)
            for _ in range(14):
                chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 1e-7)
            assert chunk_sizer.size == size, (share, chunk_sizer.size)

    def test_a_single_item_is_weaker_evidence_than_a_chunk(self) -> None:
        one, other = ChunkSizer(1000, ItemWeight(), ChunkTarget()), ChunkSizer(1000, ItemWeight(), ChunkTarget())
        for chunk_sizer in (one, other):
            for _ in range(10):
                chunk_sizer.observe(chunk_sizer.size, chunk_sizer.size * 2e-5)
        one.observe(1, 1e-4)
        other.observe(other.size, other.size * 1e-4)
        assert one.size > other.size

    @EXAMPLES
    @given(
        st.integers(1, 10**6),
        st.integers(1, 10**9),
        st.lists(st.tuples(st.integers(1, 100), st.floats(0, 10), st.integers(0, 10**9))),
    )
    def test_bounds(self, limit: int, most: int, replies: list[tuple[int, float, int]]) -> None:
        scale = ItemWeight(most)
        chunk_sizer = ChunkSizer(limit, scale, ChunkTarget())
        for calls, seconds, weight in replies:
            before = chunk_sizer.size
            scale.weigh(calls, weight)
            chunk_sizer.observe(calls, seconds)
            assert 1 <= chunk_sizer.size <= min(limit, MAX_CHUNK_ITEMS, 2 * before)
            assert chunk_sizer.seconds is not None and chunk_sizer.seconds >= 0
            assert chunk_sizer.size == 1 or chunk_sizer.size * scale.bytes <= min(
                max(TARGET_BYTES, min(FEW_ITEMS * scale.bytes, FEW_ITEMS_BYTES)), most // 4
            )
            assert chunk_sizer.size == 1 or chunk_sizer.size * chunk_sizer.seconds <= TARGET_SECONDS * 1.001


class Weights(TestCase):
    """What a pipe holds."""

    def test_before_anything_was_weighed(self) -> None:
        assert (ItemWeight().limit(10), ItemWeight().limit(10 * UNWEIGHED_ITEMS)) == (10, UNWEIGHED_ITEMS)

    def test_light_items_count_as_items(self) -> None:
        scale = ItemWeight()
        scale.weigh(10, 80)
        assert scale.limit(65536) == 65536

    def test_heavy_items_count_as_bytes(self) -> None:
        scale = ItemWeight()
        scale.weigh(2, PIPE_BYTES)
        assert scale.limit(65536) == 2
        assert scale.limit(1) == 1

    def test_an_item_heavier_than_a_pipe_still_goes_through(self) -> None:
        scale = ItemWeight()
        scale.weigh(1, 10 * PIPE_BYTES)
        assert scale.limit(65536) == 1

    def test_a_pipe_says_how_many_bytes_it_holds(self) -> None:
        scale = ItemWeight(most=1000)
        assert scale.limit(65536) == UNWEIGHED_ITEMS
        scale.weigh(1, 300)
        assert (scale.limit(65536), scale.limit(2)) == (3, 2)
        scale = ItemWeight(most=1)
        scale.weigh(1, 300)
        assert scale.limit(65536) == 1

    def test_it_forgets_slowly(self) -> None:
        scale = ItemWeight()
        scale.weigh(1, PIPE_BYTES)
        scale.weigh(1, 0)
        assert scale.bytes == 0.8 * PIPE_BYTES

    @EXAMPLES
    @given(
        st.integers(1, 10**6),
        st.integers(1, 10**9),
        st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 10**9)), min_size=1),
    )
    def test_bounds(self, bound: int, most: int, weights: list[tuple[int, int]]) -> None:
        scale = ItemWeight(most)
        for items, size in weights:
            scale.weigh(items, size)
        limit = scale.limit(bound)
        samples = [size / items for items, size in weights]
        assert min(samples) * 0.999 <= scale.bytes <= max(samples) * 1.001
        assert 1 <= limit <= bound
        assert limit == 1 or limit * scale.bytes <= most * 1.001


class RoundTrips(TestCase):
    """The way to a worker on another machine, and back."""

    def test_a_chunk_is_worth_its_way(self) -> None:
        target = ChunkTarget()
        assert not target.observe_round_trip(0.0001)
        assert target.seconds == TARGET_SECONDS
        assert target.observe_round_trip(0.001)
        assert target.seconds == 0.04
        # A busy broker has more in each, and one with time never less than the way is worth.
        assert target.observe_load(0.9) and target.seconds == 0.08
        assert target.observe_load(0.0) and target.seconds == 0.04
        assert not target.observe_load(0.0)

    def test_it_has_a_bound_and_a_way_back(self) -> None:
        target = ChunkTarget()
        assert target.observe_round_trip(1.0)
        assert target.seconds == LONGEST_SECONDS
        assert target.observe_round_trip(0.0001)
        assert target.seconds in (TARGET_SECONDS, LONGEST_SECONDS)
        for _ in range(5):
            target.observe_load(0.0)
        assert target.seconds == TARGET_SECONDS

    def test_the_machine_takes_it_in_before_a_run_and_amid_one(self) -> None:
        description = Description()
        description.add((Processor(abs),))
        machine = Machine(description.plan(cores=1, ordered=True))
        machine.handle(events.RunStarted(), 0.0)
        machine.handle(events.RoundTrip(0.001), 0.1)
        assert machine.chunk_target.seconds == 0.04
        # A worker that comes up hears how long it may keep what is done.
        wanted = machine.handle(events.WorkerReady(0, 0.1), 0.2)
        assert wanted == [commands.SetFlushInterval(0, machine.chunk_target.flush_interval_seconds)], wanted
