"""One behaviour suite over every engine, start method and channel.

Law: a test here says what a pipeline does, and never how; it holds for each engine, and for the process engine
with each start method over each channel. `Basics` runs over each channel, and some of it with each start method;
`Behaviour`, which has more, where processes are cheap to start. What is expected is written out, so that the inline engine is tested as well.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import itertools
import os
import unittest
import warnings

from conveyor import (
    BalancingFork,
    ImplicitPipeWarning,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
    RuleError,
    SourceError,
    StateError,
)
from tests.helpers.jobs_of_engines import (
    MEGABYTE,
    Indexed,
    Life,
    Multiplier,
    Note,
    NowOrLater,
    Once,
    Over,
    Remembers,
    Turns,
    WithSettings,
    append_one,
    append_one_to_both,
    countdown,
    double,
    enlarge,
    fail_on_seven,
    first_byte,
    generator_or_value,
    in_a_pipeline_of_its_own,
    in_turn,
    increment,
    nothing,
    now_or_later,
    odd_only,
    one_row_again_and_again,
    pairs_of,
    process_number,
    same,
    shout,
    shrink,
    stop_on_fifty,
    total,
    wrap,
)
from tests.helpers.late import tempfile
from tests.helpers.support import ALL, TestCase, nothing_left, slow


class Making:
    """Makes pipelines."""

    settings = {"engine": "inline"}

    def make(self, *elements, **settings):
        """A pipeline; a tuple among the elements stands for parallel ones."""
        pipeline = Pipeline(**self.settings, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImplicitPipeWarning)
            for element in elements:
                pipeline.add(*(element if isinstance(element, tuple) else (element,)))
        return pipeline

    def check(self, elements, items, expected, **settings):
        with nothing_left():
            results = self.make(*elements, **settings).run(items)
        assert results == expected, (results[:20], expected[:20])


class Basics(Making):
    """What runs on every engine, and over each channel; some of it with each start method."""

    def test_chain_of_functions_in_order(self):
        self.check([Processor(increment), Pipe(), Processor(double)], range(1000), [2 * n + 2 for n in range(1000)])

    def test_generators_and_none(self):
        expected = [value for n in range(30) if n % 2 for value in range(n, 0, -1)]
        self.check([Processor(odd_only), Pipe(), Processor(countdown)], range(30), expected)

    def test_life_of_a_subclass_over_several_runs(self):
        with nothing_left(), self.make(Life(10)) as pipeline:
            assert pipeline.run([1, 2]) == [11, 12, ("setup", 11, 12), "end"]
            assert pipeline.run([]) == [("setup", 11, 12), "end"]
            assert pipeline.run([3]) == [13, ("setup", 11, 12, 13), "end"]
        with self.make(Life(10)) as pipeline:
            assert pipeline.run([4]) == [14, ("setup", 14), "end"], "state begins anew with each session"

    def test_workers_forks_and_joins(self):
        elements = [
            Processor(same),
            ReplicatingFork(2),
            (Processor(increment, workers=2), Processor(double)),
            Join(),
            BalancingFork(2),
            Processor(wrap),
            Join(),
        ]
        self.check(elements, range(200), [[each] for n in range(200) for each in (n + 1, n * 2)])

    def test_zip(self):
        elements = [Processor(same), ReplicatingFork(2), (Processor(increment), Processor(double)), Join(how="zip")]
        self.check(elements, range(100), [(n + 1, n * 2) for n in range(100)])

    def test_stream_is_left_early_and_another_run_follows(self):
        with nothing_left(), self.make(Life(), Pipe(maxsize=4), Processor(same)) as pipeline:
            with pipeline.stream(itertools.count()) as stream:
                assert list(itertools.islice(stream, 5)) == [0, 1, 2, 3, 4]
            *ones, events, end = pipeline.run([1] * 3)
            assert (ones, end) == ([1, 1, 1], "end")
            assert events[:6] == ("setup", 0, 1, 2, 3, 4) and events[-3:] == (1, 1, 1), events

    def test_a_job_that_raises(self):
        with nothing_left():
            with self.assertRaises(ProcessorError) as caught:
                self.make(Processor(same), Pipe(), Processor(fail_on_seven)).run(range(1000))
            error = caught.exception
            assert (error.processor, error.phase, error.number, error.item) == ("fail_on_seven", "process", 7, "7")
            assert type(error.__cause__) is ValueError and error.__cause__.args == ("seven", 7)

    def test_a_source_that_raises(self):
        def source():
            yield from range(5)
            raise KeyError("no more")

        with nothing_left():
            with self.assertRaises(SourceError) as caught:
                self.make(Processor(same)).run(source())
            assert caught.exception.number == 5
            assert isinstance(caught.exception.__cause__, KeyError)


class NoHash(type):
    """The type of a class that no set takes."""

    def __hash__(cls):
        raise ValueError("no hash")


class Untold(metaclass=NoHash):
    """Cannot be told from others by its class."""


def untold(item):
    return Untold() if item == 3 else item


class Behaviour(Basics):
    """What runs wherever starting a process costs little."""

    # Jobs

    def test_an_output_of_a_class_that_cannot_be_told(self):
        for items, index in ([3], 0), (range(5), 3):
            with self.assertRaisesRegex(ProcessorError, rf"gave an output .* no hash \[item {index}: 3|the output was"):
                self.make(Processor(untold), Pipe(), Processor(same)).run(items)

    def test_every_kind_of_job(self):
        for job, items, expected in [
            (len, ["", "ab"], [0, 2]),
            (str, [1, 2], ["1", "2"]),
            (functools.partial(shout, mark="?"), ["a"], ["A?"]),
            (Multiplier(3), [1, 2], [3, 6]),
            (Multiplier(3).method, [1, 2], [4, 7]),
        ]:
            with self.subTest(job=job):
                self.check([Processor(job)], items, expected)

    def test_results_beside_their_inputs(self):
        def odd_halves(item):
            if item == 4:
                raise ValueError("no four")
            return item // 2 if item % 2 else None

        pipeline = self.make(Processor(odd_halves, workers=2), Pipe(), Processor(str))
        with pipeline:
            self.assertEqual(pipeline.run([1, 2, 3], with_input=True), [(1, ["0"]), (2, []), (3, ["1"])])
            pairs = pipeline.run(iter(range(7)), with_input=True, return_exceptions=True)
            self.assertEqual([out for item, out in pairs if item != 4], [[], ["0"], [], ["1"], ["2"], []])
            self.assertIsInstance(dict(pairs)[4], ProcessorError)
            self.assertEqual([failed.item for failed in pipeline.failures], ["4"])
            with pipeline.stream(itertools.count(), with_input=True) as stream:
                self.assertEqual(next(stream), (0, []))
            with self.assertRaisesRegex(ProcessorError, "no four"):
                pipeline.run(range(7), with_input=True)

    def test_lambdas_and_closures(self):
        offset = 5
        self.check([Processor(lambda item: item + offset)], range(3), [5, 6, 7])

    @unittest.skipIf(importlib.util.find_spec("cloudpickle") is None, "cloudpickle is not installed")
    def test_functions_without_a_name_as_items(self):
        add = Processor(lambda number: lambda more: number + more)
        self.check([add, Pipe(), Processor(lambda call: call(10))], range(3), [10, 11, 12])
        self.check([Processor(lambda call: call(10))], [lambda number: -number, increment], [-10, 11])
        assert [call(1) for call in self.make(add).run([1, 2])] == [2, 3]

    def test_everything_is_called_once_and_in_order(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "notes")
            with self.make(Note(path)) as pipeline:
                with open(path) as file:
                    assert file.read() == "setup\n", "open() has the jobs set up"
                pipeline.run([1, 2])
                pipeline.run([3])
            with open(path) as file:
                assert file.read().split() == ["setup", *["process"] * 2, "finish", "process", "finish", "teardown"]

    def test_nothing_comes_after_finish(self):
        self.check([Over(workers=2), Pipe(64)], range(70), ["over"] * 2)

    def test_keep_none(self):
        self.check([Processor(nothing)], range(3), [])
        self.check([Processor(nothing, keep_none=True)], range(3), [None] * 3)
        self.check([Processor(nothing, keep_none=True), Pipe(), Processor(wrap)], range(3), [[None]] * 3)

    def test_batches(self):
        self.check([Processor(total, batch=4)], range(10), [6, 22, 17])
        self.check([Processor(pairs_of, batch=2)], range(3), [(0, 2), (1, 2), (2, 1)])
        self.check([WithSettings()], range(7), [[0, 1, 2], [3, 4, 5], None])
        self.check([Processor(same), Pipe(maxsize=2), Processor(total, batch=7)], range(20), [21, 70, 99])
        sums = [sum(range(n, n + 10)) for n in range(0, 1000, 10)]
        self.check([Processor(total, batch=10, workers=3)], range(1000), sums)
        # More than the source gives before it is asked for items.
        self.check(
            [Processor(total, batch=150)], range(1000), [sum(range(1000)[n : n + 150]) for n in range(0, 1000, 150)]
        )

    def test_several_workers(self):
        with nothing_left():
            expected = [v for n in range(50) for v in range(n, 0, -1)]
            assert self.make(Processor(countdown, workers=3)).run(range(50)) == expected
            *results, last = self.make(Processor(increment, workers="auto"), Processor(same)).run(range(1000))
            assert (results, last) == (list(range(1, 1000)), 1000)

    def test_a_generator_runs_before_the_next_item_is_begun(self):
        assert self.make(Turns()).run(range(5000)) == list(range(1, 5001))

    def test_a_generator_that_yields_very_much(self):
        self.check([Processor(countdown), Pipe(maxsize=5), Processor(increment)], [600], list(range(601, 1, -1)))

    def test_generators_and_values_from_one_job(self):
        expected = [str(n) for n in range(100) for _ in range(20 if n % 3 == 0 else 1)]
        self.check([Processor(generator_or_value), Pipe(maxsize=2), Processor(str)], range(100), expected)

    def test_a_job_that_runs_a_pipeline(self):
        self.check([Processor(in_a_pipeline_of_its_own)], [1, 3], [[0], [0, 2, 4]])

    # What a job does to what it was given, or gave

    def test_an_output_is_as_it_was_when_it_was_given(self):
        self.check([Remembers()], range(100), [list(range(n + 1)) for n in range(100)])
        self.check([Processor(one_row_again_and_again)], range(2), [[n] for n in range(20)] * 2)

    def test_an_input_is_as_it_was_when_the_source_gave_it(self):
        def source():
            row = [0]
            for number in range(300):
                row[0] = number
                yield row

        self.check([Processor(same)], source(), [[number] for number in range(300)])

    def test_generators_run_before_the_next_item_is_begun(self):
        self.check([NowOrLater()], range(2000), list(now_or_later(range(2000))))

    def test_buffers_that_are_filled_in_turn(self):
        # As many as are watched for coming again.
        for count, size in ((2, 8), (16, 8), (4, 300_000)):
            with self.subTest(count=count, size=size):
                expected = list(range(60))
                assert self.make(Processor(first_byte)).run(in_turn(count, size, 60)) == expected
                assert (
                    self.make(Processor(functools.partial(in_turn, count, size)), Pipe(), Processor(first_byte)).run(
                        [60]
                    )
                    == expected
                )

    def test_an_item_that_stands_twice_in_the_input_is_not_shared_by_the_job(self):
        shared = []
        self.check([Processor(append_one)], [shared] * 300, [1] * 300)
        assert shared == [], "the caller's own object is not touched"

    def test_branches_do_not_share_what_they_pass_on(self):
        fork = [Processor(wrap), Pipe(), ReplicatingFork(2)]
        self.check([*fork, (Pipe(), Pipe()), Join(), Processor(append_one)], range(300), [2] * 600)
        self.check([*fork, Join(), Processor(append_one)], range(300), [2] * 600)
        zipped = [*fork, (Pipe(), Pipe()), Join(how="zip"), Processor(append_one_to_both)]
        self.check(zipped, range(300), [(2, 2)] * 300)
        self.check(
            [*fork, (Processor(append_one), Pipe()), Join()], range(30), [x for n in range(30) for x in (2, [n])]
        )
        results = self.make(*fork, (Pipe(), Pipe()), Join()).run(range(10))
        assert len(set(map(id, results))) == 20, "nor does what the caller gets"

    # Forks and joins

    def test_nested_forks(self):
        inner = [ReplicatingFork(2), (Processor(increment), Processor(odd_only)) * 2, Join()]
        elements = [Processor(same), BalancingFork(2), *inner, Join()]
        self.check(elements, range(100), [x for n in range(100) for x in ((n + 1, n) if n % 2 else (n + 1,))])

    def test_zip_of_branches_that_give_more_or_less(self):
        elements = [Processor(same), ReplicatingFork(2), (Processor(countdown), Processor(odd_only)), Join(how="zip")]
        expected = [(1, 1), (2, None), (1, None), (3, 3), (2, None), (1, None)]
        self.check(elements, range(4), expected)

    def test_joins_that_take_uneven_parts_of_a_fork(self):
        jobs = (Processor(increment), Processor(countdown), Processor(double))
        elements = [
            Processor(same),
            ReplicatingFork(3),
            jobs,
            (Pipe(), Join(2)),
            (Processor(wrap), Processor(wrap)),
            Join(),
        ]
        expected = [[each] for n in range(50) for each in (n + 1, *range(n, 0, -1), n * 2)]
        self.check(elements, range(50), expected)
        elements = [Processor(same), ReplicatingFork(3), jobs, (Join(2), Pipe()), Join(how="zip")]
        self.check(elements, range(1, 3), [(2, 2), (1, None), (3, 4), (2, None), (1, None)])

    def test_balanced_branches_with_small_pipes(self):
        elements = [Processor(same), BalancingFork(3), Pipe(maxsize=1), Processor(countdown), Join(), Pipe(maxsize=1)]
        expected = [value for n in range(40) for value in range(n % 5, 0, -1)]
        self.check([*elements, Processor(same)], [n % 5 for n in range(40)], expected)

    # Input

    def test_every_kind_of_input(self):
        # One pipeline: what is new with each input is a run.
        with tempfile.TemporaryFile("w+") as file, self.make(Processor(same, keep_none=True)) as pipeline:
            file.write("ab\nc\n")
            file.seek(0)
            for items, expected in [
                ([1, 2], [1, 2]),
                ((1, 2), [1, 2]),
                (range(3), [0, 1, 2]),
                ((n for n in range(3)), [0, 1, 2]),
                (iter([1]), [1]),
                (map(abs, [-1, 2]), [1, 2]),
                ({"a": 1, "b": 2}, ["a", "b"]),
                ({7}, [7]),
                (Once([1, 2]), [1, 2]),
                (Indexed(), [0, 1, 2, 3, 4]),
                (io.StringIO("x\ny"), ["x\n", "y"]),
                (file, ["ab\n", "c\n"]),
                ("text", ["text"]),
                ("", [""]),
                (b"bytes", [b"bytes"]),
                (bytearray(b"ab"), [bytearray(b"ab")]),
                (5, [5]),
                (None, [None]),
                ([], []),
                ([[]], [[]]),
                ([None, None], [None, None]),
            ]:
                with self.subTest(items=repr(items)):
                    assert pipeline.run(items) == expected

    def test_numbers_of_items(self):
        with nothing_left(), self.make(Processor(increment), Pipe(), Processor(double)) as pipeline:
            for count in (0, 1, 2, 1000, 30_000 if ALL else 10_000):
                with self.subTest(count=count):
                    self.assertEqual(pipeline.run(range(count)), [2 * n + 2 for n in range(count)])

    def test_large_items(self):
        with nothing_left():
            pipeline = self.make(Processor(enlarge), Pipe(), Processor(same), Pipe(), Processor(shrink))
            assert pipeline.run(range(6)) == [(8 * MEGABYTE, n) for n in range(6)]
            data = [bytes([n]) * (8 * MEGABYTE) for n in range(3)]
            assert self.make(Processor(same)).run(iter(data)) == data

    # Order

    def test_without_order_nothing_is_lost_or_doubled(self):
        with nothing_left():
            pipeline = self.make(
                Processor(same),
                Pipe(),
                Processor(increment, workers=3),
                Pipe(maxsize=3),
                Processor(countdown),
                ordered=False,
            )
            assert sorted(pipeline.run([n % 7 for n in range(300)])) == sorted(
                value for n in range(300) for value in range(n % 7 + 1, 0, -1)
            )

    # Sessions

    def test_many_runs_in_one_session(self):
        with nothing_left(), self.make(Processor(increment), Pipe(), Processor(process_number)) as pipeline:
            seen = set()
            for count in [0, 1, 5] * 30:
                results = pipeline.run(range(count))
                assert len(results) == count
                seen.update(results)
            assert len(seen) == 1, "the workers stay"

    def test_states(self):
        pipeline = self.make(Processor(same))
        with nothing_left():
            with pipeline:
                with self.assertRaises(StateError):
                    pipeline.open()
                with self.assertRaises(StateError):
                    pipeline.add(Pipe())
                with pipeline.stream(itertools.count()) as stream:
                    next(stream)
                    with self.assertRaises(StateError):
                        pipeline.run([1])
                assert pipeline.run([1]) == [1]
            pipeline.close()
            pipeline.add(Pipe()).add(Processor(increment))
            assert pipeline.run([1]) == [2]
            stream = pipeline.stream([1, 2])
            assert next(stream) == 2
            with self.assertRaises(StateError):
                pipeline.add(Pipe())
            assert list(stream) == [3]
            assert pipeline.open() is pipeline
            pipeline.close()
            pipeline.close()

    def test_an_empty_pipeline_is_entered(self):
        with nothing_left():
            with self.make() as pipeline:
                assert pipeline.opened and not pipeline.closed
                with self.assertRaises(RuleError):
                    pipeline.run([1])
                with self.assertRaises(StateError):
                    pipeline.open()
                pipeline.add(Processor(process_number)).add(Pipe())
                assert pipeline.run([1]) == pipeline.run([2]), "the worker stays"
                with self.assertRaises(StateError):
                    pipeline.add(Processor(increment))
            assert pipeline.closed
            pipeline.add(Processor(increment))
            with self.assertRaises(RuleError):
                self.make().open()

    def test_opened_and_closed(self):
        with nothing_left():
            pipeline = self.make(Processor(fail_on_seven))
            assert (pipeline.opened, pipeline.closed) == (False, True)
            assert pipeline.run([1]) == [1]
            assert pipeline.closed
            with pipeline.stream([1, 2]) as results:
                assert next(results) == 1
                assert pipeline.closed
            assert pipeline.open().opened
            with self.assertRaises(ProcessorError):
                pipeline.run([7])
            assert pipeline.opened
            assert pipeline.run([1]) == [1]
            pipeline.close()
            assert pipeline.closed
            with self.assertRaises(KeyError), pipeline:
                raise KeyError
            assert pipeline.closed

    def test_a_session_goes_on_after_an_error_with_new_workers(self):
        with nothing_left(), contextlib.suppress(ProcessorError), self.make(Processor(fail_on_seven)) as pipeline:
            with self.assertRaises(ProcessorError):
                pipeline.run([7])
            assert pipeline.run([1, 2]) == [1, 2]

    # Streams

    def test_a_stream_is_lazy_on_both_ends(self):
        pulled = []

        def source():
            for number in itertools.count():
                pulled.append(number)
                yield number

        with nothing_left():
            stream = self.make(Processor(same), Pipe(maxsize=2), Processor(increment)).stream(source())
            assert next(stream) == 1
            assert len(pulled) < 50
            assert [next(stream) for _ in range(100)] == list(range(2, 102))
            assert len(pulled) < 150
            stream.close()
            with self.assertRaises(StopIteration):
                next(stream)

    def test_a_stream_that_is_dropped(self):
        with nothing_left():
            for result in self.make(Processor(same), Pipe(maxsize=2), Processor(increment)).stream(itertools.count()):
                if result == 10:
                    break
            pipeline = self.make(Processor(same))
            pipeline.stream(itertools.count())
            assert pipeline.run([1]) == [1]
            stream = pipeline.stream(itertools.count())
            next(stream)
            del stream
            assert pipeline.run([2]) == [2]

    def test_a_stream_to_the_end(self):
        with nothing_left(), self.make(Processor(countdown)) as pipeline:
            assert list(pipeline.stream([2, 3])) == [2, 1, 3, 2, 1]
            stream = pipeline.stream([])
            assert list(stream) == []
            assert list(stream) == []
            stream.close()

    # Errors

    def test_a_job_that_raises_stop_iteration(self):
        with nothing_left(), self.assertRaises(ProcessorError) as caught:
            self.make(Processor(stop_on_fifty)).run(range(100))
        assert (caught.exception.number, caught.exception.item) == (50, "50")
        assert (type(caught.exception.__cause__), caught.exception.__cause__.args) == (StopIteration, ("fifty",))

    def test_the_loop_body_raises(self):
        with nothing_left(), self.assertRaises(ZeroDivisionError), self.make(Processor(same)) as pipeline:
            for result in pipeline.stream(itertools.count()):
                1 // (5 - result)


class InlineTest(Behaviour, TestCase):
    """Everything in this process."""


class ThreadTest(Behaviour, TestCase):
    """Threads of this process."""

    settings = {"engine": "thread"}


class ForkPipeTest(Behaviour, TestCase):
    """Forked workers, over socket pairs."""

    settings = {"start_method": "fork", "channel": "pipe"}


@slow
class ForkQueueTest(Basics, TestCase):
    """Forked workers, over queues; with what depends on how items travel."""

    settings = {"start_method": "fork", "channel": "queue"}
    test_large_items = Behaviour.test_large_items
    test_numbers_of_items = Behaviour.test_numbers_of_items
    test_buffers_that_are_filled_in_turn = Behaviour.test_buffers_that_are_filled_in_turn
    test_a_generator_that_yields_very_much = Behaviour.test_a_generator_that_yields_very_much
    test_an_output_is_as_it_was_when_it_was_given = Behaviour.test_an_output_is_as_it_was_when_it_was_given
    test_an_input_is_as_it_was_when_the_source_gave_it = Behaviour.test_an_input_is_as_it_was_when_the_source_gave_it
    test_many_runs_in_one_session = Behaviour.test_many_runs_in_one_session
    test_opened_and_closed = Behaviour.test_opened_and_closed
    test_a_stream_is_lazy_on_both_ends = Behaviour.test_a_stream_is_lazy_on_both_ends
    test_a_stream_that_is_dropped = Behaviour.test_a_stream_that_is_dropped


@slow
class ForkserverPipeTest(Making, TestCase):
    """Workers forked by a fresh broker, over socket pairs: what depends on how processes start."""

    settings = {"start_method": "forkserver", "channel": "pipe"}
    test_life_of_a_subclass_over_several_runs = Basics.test_life_of_a_subclass_over_several_runs
    test_workers_forks_and_joins = Basics.test_workers_forks_and_joins


@slow
class SpawnPipeTest(Making, TestCase):
    """Workers that are fresh interpreters, over socket pairs: likewise."""

    settings = {"start_method": "spawn", "channel": "pipe"}
    test_life_of_a_subclass_over_several_runs = Basics.test_life_of_a_subclass_over_several_runs
    test_zip = Basics.test_zip
    test_a_job_that_raises = Basics.test_a_job_that_raises


@slow
class SpawnQueueTest(Making, TestCase):
    """Workers that are fresh interpreters, over queues, which are sent to them."""

    settings = {"start_method": "spawn", "channel": "queue"}
    test_zip = Basics.test_zip
    test_stream_is_left_early_and_another_run_follows = Basics.test_stream_is_left_early_and_another_run_follows


if __name__ == "__main__":
    unittest.main()
