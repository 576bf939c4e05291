"""The inline engine, which is the specification, spelled out.

Law: each test says a rule in words, and shows it with a literal input and a literal result; nothing is compared with
another engine, and nothing is random.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

from conveyor import (
    BalancingFork,
    ImplicitJoinWarning,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
    SourceError,
    StateError,
)
from conveyor.engines.process.wire import by_value
from tests.helpers.late import mock
from tests.helpers.support import TestCase


def inline(*rows: Any, **settings: Any) -> Pipeline[Any, Any]:
    """A pipeline to which each row is added, with a Pipe after each; a tuple is one `add` of several elements."""
    pipeline: Pipeline[Any, Any] = Pipeline(engine="inline", **settings)
    for row in rows:
        pipeline.add(*(row if isinstance(row, tuple) else (row,)))
        pipeline.add(Pipe())
    return pipeline


def tag(letter: str) -> Any:
    """A job that puts a letter behind its item."""
    return lambda item: f"{item}{letter}"


def nothing(item: Any) -> Iterator[Any]:
    yield from ()


def odd_only(item: int) -> int | None:
    return item if item % 2 else None


def same(item: Any) -> Any:
    return item


def add_one(item: int) -> int:
    return item + 1


def fail(item: Any) -> Any:
    raise ValueError(item)


def twice(item: str) -> Iterator[str]:
    yield item + "1"
    yield item + "2"


class Count(Processor[Any, Any]):
    """Numbers its items, and says at the end how many there were."""

    def setup(self) -> None:
        self.seen = 0

    def process(self, item: Any) -> Any:
        self.seen += 1
        return f"{item}{self.seen}"

    def finish(self) -> Any:
        return f"seen {self.seen}"


class Outputs(TestCase):
    """What a job's return value means."""

    def test_one_output_for_each_item_in_their_order(self) -> None:
        assert inline(Processor(tag("x")), Processor(tag("y"))).run(["a", "b", "c"]) == ["axy", "bxy", "cxy"]

    def test_none_goes_nowhere(self) -> None:
        assert inline(Processor(lambda item: item if item % 2 else None)).run(range(5)) == [1, 3]

    def test_what_is_false_goes_on(self) -> None:
        assert inline(Processor(same)).run([0, "", [], False]) == [0, "", [], False]

    def test_keep_none(self) -> None:
        keeps: Processor[Any, Any] = Processor(lambda item: item if item % 2 else None, keep_none=True)
        assert inline(keeps, Processor(lambda item: (item,))).run(range(3)) == [(None,), (1,), (None,)]

    def test_each_value_that_a_generator_yields(self) -> None:
        assert inline(Processor(twice), Processor(twice)).run(["a"]) == ["a11", "a12", "a21", "a22"]

    def test_none_that_is_yielded_goes_on(self) -> None:
        assert inline(Processor(lambda item: (each for each in (item, None)))).run([1]) == [1, None]

    def test_a_generator_that_yields_nothing(self) -> None:
        assert inline(Processor(nothing)).run([1, 2]) == []

    def test_other_iterables_are_one_output(self) -> None:
        assert inline(Processor(lambda item: [item, item])).run([1, 2]) == [[1, 1], [2, 2]]

    def test_what_counts_as_one_item(self) -> None:
        pipeline = inline(Processor(same))
        assert pipeline.run("text") == ["text"]
        assert pipeline.run(b"bytes") == [b"bytes"]
        assert pipeline.run(7) == [7]
        assert inline(Processor(repr)).run(None) == ["None"]
        assert pipeline.run([]) == []
        assert pipeline.run({"a": 1}) == ["a"]
        # What says of itself that it is none of many, though its type looks like it.
        for one in (Uniterable(), Dimensionless()):
            assert pipeline.run(one) == [one]
        assert pipeline.run(Attributes(a=1)) == ["a"]


class Uniterable:
    __iter__ = None

    def __eq__(self, other: object) -> bool:
        return type(other) is Uniterable

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Any:
        raise AssertionError


class Attributes(dict):  # type: ignore[type-arg]
    """Has an attribute for each key, and raises KeyError for any other."""

    __getattr__ = dict.__getitem__


class Dimensionless:
    """As arrays without dimensions are."""

    shape = ()

    def __iter__(self) -> Any:
        raise TypeError("iteration over a 0-d array")

    def __eq__(self, other: object) -> bool:
        return type(other) is Dimensionless

    __hash__ = None  # type: ignore[assignment]


class Order(TestCase):
    """By item, then by branch, then as yielded."""

    def test_replicated(self) -> None:
        pipeline = inline(Processor(same), ReplicatingFork(2), (Processor(twice), Processor(tag("x"))), Join())
        assert pipeline.run(["a", "b"]) == ["a1", "a2", "ax", "b1", "b2", "bx"]

    def test_balanced_in_turn_and_in_order(self) -> None:
        branches = (Processor(twice), Processor(tag("x")), Processor(tag("y")))
        pipeline = inline(Processor(same), BalancingFork(3), branches, Join())
        assert pipeline.run("abcde") == ["abcde1", "abcde2"]
        assert pipeline.run(list("abcde")) == ["a1", "a2", "bx", "cy", "d1", "d2", "ex"]

    def test_a_fork_in_a_branch(self) -> None:
        pipeline = inline(
            Processor(same),
            ReplicatingFork(2),
            (Processor(tag("l")), Processor(tag("r"))),
            ReplicatingFork(2),
            (Processor(tag("1")), Processor(tag("2")), Processor(tag("3")), Processor(tag("4"))),
            Join(4),
        )
        assert pipeline.run(["a", "b"]) == ["al1", "al2", "ar3", "ar4", "bl1", "bl2", "br3", "br4"]

    def test_part_of_a_fork_at_a_time(self) -> None:
        pipeline = inline(
            Processor(same),
            ReplicatingFork(4),
            tuple(Processor(tag(letter)) for letter in "wxyz"),
            Join(2),
            (Processor(tag("l")), Processor(tag("r"))),
            Join(2),
        )
        assert pipeline.run([1, 2]) == ["1wl", "1xl", "1yr", "1zr", "2wl", "2xl", "2yr", "2zr"]

    def test_finish_comes_after_everything_by_branch(self) -> None:
        pipeline = inline(Processor(same), ReplicatingFork(2), (Count(), Processor(tag("x"))), Join(), Count())
        assert pipeline.run(["a", "b"]) == ["a11", "ax2", "b23", "bx4", "seen 25", "seen 5"]

    def test_workers_take_turns_and_finish_in_order(self) -> None:
        assert inline(Count(workers=2)).run(["a", "b", "c"]) == ["a1", "b1", "c2", "seen 2", "seen 1"]

    def test_an_empty_input_still_finishes(self) -> None:
        assert inline(Count(), Count()).run([]) == ["seen 01", "seen 1"]


class Batches(TestCase):
    """Lists of items."""

    def test_the_last_may_be_short(self) -> None:
        assert inline(Processor(same, batch=3)).run(range(7)) == [[0, 1, 2], [3, 4, 5], [6]]

    def test_none_of_no_items(self) -> None:
        assert inline(Processor(same, batch=3)).run(range(3)) == [[0, 1, 2]]
        assert inline(Processor(same, batch=3)).run([]) == []

    def test_their_outputs_belong_to_the_last_of_their_items(self) -> None:
        """Where the order shows it: beside a branch without batches."""
        pair: Processor[Any, Any] = Processor(lambda items: "".join(items), batch=2)
        pipeline = inline(Processor(same), ReplicatingFork(2), (pair, Processor(tag("x"))), Join())
        assert pipeline.run(list("abc")) == ["ax", "ab", "bx", "cx", "c"]

    def test_they_go_whole_to_one_branch(self) -> None:
        pipeline = inline(
            Processor(same),
            BalancingFork(2),
            (Processor(lambda items: ("l", *items), batch=2), Processor(lambda items: ("r", *items), batch=2)),
            Join(),
        )
        assert pipeline.run(range(5)) == [("l", 0, 1), ("r", 2, 3), ("l", 4)]


class Zips(TestCase):
    """Rows."""

    def rows(self, *branches: Processor[Any, Any]) -> Pipeline[Any, Any]:
        return inline(Processor(same), ReplicatingFork(len(branches)), branches, Join(how="zip"))

    def test_one_row_for_each_item(self) -> None:
        assert self.rows(Processor(tag("x")), Processor(tag("y"))).run("ab") == [("abx", "aby")]
        assert self.rows(Processor(tag("x")), Processor(tag("y"))).run(["a", "b"]) == [("ax", "ay"), ("bx", "by")]

    def test_none_where_a_branch_has_fewer(self) -> None:
        rows = self.rows(Processor(twice), Processor(tag("x")), Processor(lambda item: None))
        assert rows.run(["a", "b"]) == [("a1", "ax", None), ("a2", None, None), ("b1", "bx", None), ("b2", None, None)]

    def test_no_row_where_no_branch_has_anything(self) -> None:
        assert self.rows(Processor(odd_only), Processor(odd_only)).run(range(4)) == [(1, 1), (3, 3)]

    def test_trailing_outputs_are_rows_of_their_own(self) -> None:
        assert self.rows(Count(), Processor(tag("x"))).run(["a"]) == [("a1", "ax"), ("seen 1", None)]

    def test_part_of_a_fork(self) -> None:
        pipeline = inline(
            Processor(same),
            ReplicatingFork(4),
            tuple(Processor(tag(each)) for each in "wxyz"),
            Join(2, how="zip"),
            Join(),
        )
        assert pipeline.run([1, 2]) == [("1w", "1x"), ("1y", "1z"), ("2w", "2x"), ("2y", "2z")]


class Copies(TestCase):
    """What goes from one Processor to the next is copied, as it is between processes."""

    def test_a_branch_that_changes_its_item_changes_nobody_elses(self) -> None:
        def spoil(item: list[int]) -> list[int]:
            item.append(99)
            return item

        pipeline = inline(
            Processor(same), ReplicatingFork(3), (Processor(spoil), Processor(spoil), Processor(same)), Join()
        )
        assert pipeline.run([[1], [2]]) == [[1, 99], [1, 99], [1], [2, 99], [2, 99], [2]]

    def test_the_input_stays_as_it_was(self) -> None:
        items = [[1], [2]]
        inline(Processor(lambda item: item.append(3))).run(items)
        assert items == [[1], [2]]

    def test_an_output_that_its_job_keeps(self) -> None:
        kept: list[int] = []

        def grow(item: int) -> Any:
            kept.append(item)
            return kept

        assert inline(Processor(grow)).run([1, 2]) == [[1], [1, 2]]

    def test_the_processor_of_the_description_is_not_the_one_that_works(self) -> None:
        counter = Count()
        assert inline(counter, Processor(same)).run(["a"]) == ["a1", "seen 1"]
        assert not hasattr(counter, "seen")

    def test_one_processor_that_stands_twice_has_two_states(self) -> None:
        counter = Count()
        assert inline(counter, counter).run(["a"]) == ["a11", "seen 12", "seen 2"]


class Laziness(TestCase):
    """One item at a time, all the way."""

    def test_an_item_is_pulled_when_the_one_before_it_is_done_with(self) -> None:
        log: list[Any] = []

        def source() -> Iterator[int]:
            for number in range(3):
                log.append(("pulled", number))
                yield number

        with inline(Processor(twice), Processor(same)).stream(map(str, source())) as stream:
            for result in stream:
                log.append(result)
                if result == "11":
                    break
        assert log == [("pulled", 0), "01", "02", ("pulled", 1), "11"]

    def test_everything_is_in_this_process(self) -> None:
        assert inline(Processor(lambda item: os.getpid()), Processor(same)).run([1]) == [os.getpid()]


class Depth(TestCase):
    """A graph may be deeper than Python lets calls be nested."""

    def nested(self, depth: int, join: Any) -> Pipeline[Any, Any]:
        pipeline = inline(Processor(tag("a")))
        for _ in range(depth):
            pipeline.add(ReplicatingFork(1)).add(Pipe())
        pipeline.add(Processor(twice))
        for _ in range(depth if join else 0):
            pipeline.add(Pipe()).add(join)
        return pipeline

    def test_a_long_chain(self) -> None:
        pipeline = inline(*[Processor(add_one) for _ in range(1000)])
        assert pipeline.run([1, 2]) == [1001, 1002]
        with pipeline.stream(range(10)) as stream:
            assert next(stream) == 1000
        assert [step.items_in for step in pipeline.stats().steps] == [1] * 1000

    def test_a_long_chain_of_everything(self) -> None:
        elements = [Processor(twice), *[Count() if place % 3 else Processor(same) for place in range(999)]]
        with self.assertRaisesRegex(ProcessorError, "Processor 'fail'"), inline(*elements, Processor(fail)) as pipeline:
            pipeline.run(["a"])

    def test_forks_within_forks(self) -> None:
        assert self.nested(600, Join()).run(["x"]) == ["xa1", "xa2"]
        with self.assertWarns(ImplicitJoinWarning):
            assert self.nested(600, None).run(["x"]) == ["xa1", "xa2"]
        row: Any = self.nested(500, Join(how="zip")).run(["x"])[1]
        for _ in range(500):
            (row,) = row
        assert row == "xa2"

    def test_what_is_open_is_closed_from_the_end(self) -> None:
        closed: list[Any] = []

        def opens(item: int) -> Iterator[int]:
            try:
                yield item + 1
            finally:
                closed.append(item)

        with inline(*[Processor(opens) for _ in range(5)]).stream([0]) as stream:
            assert next(stream) == 5
        assert closed == [4, 3, 2, 1, 0]


class States(TestCase):
    """What stays between runs."""

    def test_state_is_kept_while_the_pipeline_is_open(self) -> None:
        pipeline = inline(Count())
        with pipeline:
            assert pipeline.run(["a"]) == ["a1", "seen 1"]
            assert pipeline.run(["b"]) == ["b2", "seen 2"]
        with pipeline:
            assert pipeline.run(["c"]) == ["c1", "seen 1"]

    def test_without_open_each_run_begins_anew(self) -> None:
        pipeline = inline(Count())
        assert pipeline.run(["a"]) == ["a1", "seen 1"]
        assert pipeline.run(["b"]) == ["b1", "seen 1"]

    def test_turns_begin_anew_with_each_run(self) -> None:
        pipeline = inline(Processor(same), BalancingFork(2), (Processor(tag("l")), Processor(tag("r"))), Join())
        with pipeline:
            assert pipeline.run([1]) == ["1l"]
            assert pipeline.run([1, 2]) == ["1l", "2r"]

    def test_a_stream_that_is_given_up_leaves_no_items_behind(self) -> None:
        pipeline = inline(Processor(twice), Processor(same, batch=2))
        with pipeline:
            stream = pipeline.stream(["a", "b"])
            assert next(stream) == ["a1", "a2"]
            stream.close()
            assert pipeline.run(["c"]) == [["c1", "c2"]]

    def test_one_run_at_a_time(self) -> None:
        pipeline = inline(Processor(same))
        with pipeline, pipeline.stream([1, 2]) as stream:
            assert next(stream) == 1
            with self.assertRaises(StateError):
                pipeline.run([3])
            assert next(stream) == 2

    def test_setup_and_teardown(self) -> None:
        log: list[str] = []

        class Noted(Processor[Any, Any]):
            def __deepcopy__(self, memo: Any) -> Noted:
                return self

            def setup(self) -> None:
                log.append(f"setup {self.name}")

            def process(self, item: Any) -> Any:
                log.append(f"process {self.name} {item}")
                return item

            def teardown(self) -> None:
                log.append(f"teardown {self.name}")

        pipeline = inline(Noted(name="one"), Noted(name="two"))
        with pipeline:
            assert log == ["setup one", "setup two"]
            pipeline.run([1])
            pipeline.run([2])
        assert log[2:] == [
            "process one 1",
            "process two 1",
            "process one 2",
            "process two 2",
            "teardown one",
            "teardown two",
        ]


class Failing(TestCase):
    """What an error says."""

    def error(self, pipeline: Pipeline[Any, Any], items: Any) -> ProcessorError:
        """The error of a run."""
        with self.assertRaises(ProcessorError) as caught:
            pipeline.run(items)
        return caught.exception

    def test_a_job_that_raises(self) -> None:
        def job(item: int) -> float:
            return 1 / item

        error = self.error(inline(Processor(same), Processor(job)), [2, 1, 0, 5])
        assert (error.processor, error.phase, error.number, error.item) == ("job", "process", 2, "0")
        assert error.kind == "ZeroDivisionError" and isinstance(error.__cause__, ZeroDivisionError)
        assert "return 1 / item" in error.traceback
        assert "conveyor" not in error.traceback.replace(__file__, "")

    def test_items_are_counted_where_they_come_to_the_processor(self) -> None:
        def job(item: str) -> str:
            if item == "b2":
                raise ValueError(item)
            return item

        assert self.error(inline(Processor(twice), Processor(job)), ["a", "b", "c"]).number == 3

    def test_a_generator_that_raises_after_some_outputs(self) -> None:
        def job(item: int) -> Iterator[int]:
            yield item
            raise ValueError("enough")

        pipeline = inline(Processor(job))
        stream = pipeline.stream([1, 2])
        assert next(stream) == 1
        with self.assertRaisesRegex(ProcessorError, "enough"):
            next(stream)

    def test_a_batch_is_named_by_its_first_item(self) -> None:
        def job(items: list[int]) -> int:
            return 1 // (3 - items[0])

        error = self.error(inline(Processor(job, batch=3)), range(9))
        assert (error.number, error.item) == (3, "[3, 4, 5]")

    def test_finish(self) -> None:
        class Bad(Processor[Any, Any]):
            def process(self, item: Any) -> Any:
                return item

            def finish(self) -> Any:
                raise ValueError("no end")

        error = self.error(inline(Bad()), [1])
        assert (error.processor, error.phase, error.number, error.item) == ("Bad", "finish", None, None)

    def test_an_output_that_cannot_be_pickled(self) -> None:
        error = self.error(inline(Processor(lambda item: threading.Lock(), name="makes")), [1])
        assert (error.processor, error.phase, error.number) == ("makes", "pickle", 0)

    def test_a_function_without_a_name_needs_cloudpickle(self) -> None:
        with mock.patch.object(by_value, "is_installed", lambda: False):
            error = self.error(inline(Processor(lambda item: lambda: item, name="makes")), [1])
            assert (error.processor, error.phase, error.number) == ("makes", "pickle", 0)
            with self.assertRaises(SourceError) as caught:
                inline(Processor(same)).run([1, lambda: 2])
            assert caught.exception.number == 1 and "lambda" in str(caught.exception.item)

    def test_setup_that_raises_tears_down_what_was_set_up(self) -> None:
        log: list[str] = []

        class Good(Processor[Any, Any]):
            def __deepcopy__(self, memo: Any) -> Good:
                return self

            def process(self, item: Any) -> Any:
                return item

            def teardown(self) -> None:
                log.append("down")

        class Bad(Good):
            def setup(self) -> None:
                raise ValueError("no start")

        error = self.error(inline(Good(), Bad()), [1])
        assert (error.processor, error.phase) == ("Bad", "setup")
        assert log == ["down"]

    def test_teardown_that_raises(self) -> None:
        class Bad(Processor[Any, Any]):
            def process(self, item: Any) -> Any:
                return item

            def teardown(self) -> None:
                raise ValueError("no way")

        error = self.error(inline(Bad()), [1])
        assert (error.processor, error.phase) == ("Bad", "teardown")

    def test_the_pipeline_works_again_after_a_failure(self) -> None:
        pipeline = inline(Processor(lambda item: 1 // item))
        self.error(pipeline, [0])
        assert pipeline.run([1]) == [1]

    def test_a_source_that_raises(self) -> None:
        def source() -> Iterator[int]:
            yield 1
            raise OSError("gone")

        with self.assertRaises(SourceError) as caught:
            inline(Processor(same)).run(source())
        assert (caught.exception.number, caught.exception.item) == (1, None)
        assert isinstance(caught.exception.__cause__, OSError)

    def test_redact_shows_items(self) -> None:
        shown: list[Any] = []

        def redact(item: Any) -> str:
            shown.append(item)
            return "<secret>"

        pipeline = inline(Processor(lambda item: 1 // item, name="divide"), redact=redact)
        assert pipeline.run([1, -1]) == [1, -1] and not shown, "nothing is shown of what does well"
        error = self.error(pipeline, [1, 0])
        assert error.item == "<secret>" and str(error).endswith("[item 1: <secret>]") and shown == [0]
        with self.assertRaises(SourceError) as caught:
            pipeline.run([threading.Lock()])
        assert caught.exception.item == "<secret>" and "): <secret>. Give plain data" in str(caught.exception)

    def test_redact_that_fails_shows_nothing(self) -> None:
        for redact, text in [
            (lambda item: item["name"], "<item not shown: redact raised TypeError>"),
            (lambda item: 5, "<item not shown: redact returned int, not str>"),
            (lambda item: "x" * 1000, "x" * 197 + "..."),
        ]:
            assert self.error(inline(Processor(lambda item: 1 // item), redact=redact), [0]).item == text

    def test_an_input_item_that_cannot_be_pickled(self) -> None:
        with self.assertRaises(SourceError) as caught:
            inline(Processor(same)).run([1, threading.Lock()])
        assert caught.exception.number == 1 and "lock" in str(caught.exception.item)
