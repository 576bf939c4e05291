"""The picture of a pipeline, letter for letter."""

from __future__ import annotations

import warnings
from textwrap import dedent
from typing import Any

from conveyor import Pipeline
from conveyor.graph.builder import Description
from conveyor.graph.drawing import draw
from conveyor.stages import BalancingFork, Join, Pipe, Processor, ReplicatingFork


def load(item):
    return item


def parse(item):
    return item


def train(item):
    return item


def drawn(*rows: Any) -> str:
    description = Description()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in rows:
            description.add(row if isinstance(row, tuple) else (row,))
    return draw(description) + "\n"


def test_nothing():
    assert drawn() == "an empty pipeline\n"


def test_chain():
    assert drawn(
        Processor(load), Pipe(), Processor(parse, workers=4, batch=10), Processor(train, name="svm")
    ) == dedent("""\
        ●  load
        ║  Pipe(maxsize=65536)
        ●  parse (workers=4, batch=10)
        ║  Pipe(maxsize=65536), put in
        ●  svm
        ▼  results
        """)


def test_bounds_in_bytes_that_were_given():
    assert drawn(
        Processor(load), Pipe(maxbytes=1_000_000), Processor(parse), Pipe(7, 2000), Processor(train)
    ) == dedent(
        """\
        ●  load
        ║  Pipe(maxsize=65536, maxbytes=1000000)
        ●  parse
        ║  Pipe(maxsize=7, maxbytes=2000)
        ●  train
        ▼  results
        """
    )


def test_fork_of_two():
    assert drawn(
        Processor(load),
        Pipe(5),
        ReplicatingFork(2),
        (Processor(parse), Processor(train)),
        Pipe(),
        Join(2, how="zip"),
        Processor(train),
    ) == dedent("""\
        ●    load
        ║    Pipe(maxsize=5)
        ├─┐  ReplicatingFork(2)
        ● │  parse
        │ ●  train
        ║ ║  Pipe(maxsize=65536)
        ├─┘  Join(2, how='zip')
        ●    train-2
        ▼    results
        """)


def test_nested_forks():
    assert drawn(
        Processor(load),
        Pipe(),
        ReplicatingFork(2),
        Pipe(),
        (ReplicatingFork(2), ReplicatingFork(3)),
        (Processor(parse), Processor(train)),
        Pipe(2),
        Join(),
        Pipe(),
        Join(),
    ) == dedent("""\
        ●          load
        ║          Pipe(maxsize=65536)
        ├───┐      ReplicatingFork(2)
        ║   ║      Pipe(maxsize=65536)
        ├─┐ │      ReplicatingFork(2)
        │ │ ├─┬─┐  ReplicatingFork(3)
        ● ● │ │ │  parse, parse-2
        │ │ ● ● ●  train, train-2, train-3
        ║ ║ ║ ║ ║  Pipe(maxsize=2)
        ├─┘ ├─┴─┘  Join()
        ║   ║      Pipe(maxsize=65536)
        ├───┘      Join()
        ▼          results
        """)


def test_one_side_only_and_open_ends():
    assert drawn(
        Processor(load),
        Pipe(),
        ReplicatingFork(2),
        (ReplicatingFork(3), Pipe(2)),
        Processor(parse),
        (Processor(train), Pipe(4)),
    ) == dedent("""\
        ●        load
        ║        Pipe(maxsize=65536)
        ├─────┐  ReplicatingFork(2)
        ║     │  Pipe(maxsize=65536), put in
        ├─┬─┐ │  ReplicatingFork(3)
        │ │ │ ║  Pipe(maxsize=2)
        ● ● ● ●  parse, parse-2, parse-3, parse-4
        ║ ║ ║ │  Pipe(maxsize=65536), put in
        ● ● ● │  train, train-2, train-3
        │ │ │ ║  Pipe(maxsize=4)
        ▼ ▼ ▼ ▼  results
        """)


def test_part_joins_and_forks_of_one():
    assert drawn(
        Processor(load),
        Pipe(),
        BalancingFork(),
        Processor(parse),
        Pipe(),
        Join(),
        Pipe(),
        BalancingFork(4),
        Pipe(),
        Join(2),
        Processor(train),
    ) == dedent("""\
        ●        load
        ║        Pipe(maxsize=65536)
        ◇        BalancingFork()
        ●        parse
        ║        Pipe(maxsize=65536)
        ◇        Join()
        ║        Pipe(maxsize=65536)
        ├─┬─┬─┐  BalancingFork(4)
        ║ ║ ║ ║  Pipe(maxsize=65536)
        ├─┘ ├─┘  Join(2)
        ●   ●    train, train-2
        ▼   ▼    results
        """)


def test_a_fork_after_a_join():
    assert drawn(
        Processor(load),
        Pipe(),
        ReplicatingFork(3),
        Pipe(),
        Join(),
        Pipe(),
        ReplicatingFork(2),
        Processor(parse),
        Pipe(),
        Join(),
    ) == dedent("""\
        ●      load
        ║      Pipe(maxsize=65536)
        ├─┬─┐  ReplicatingFork(3)
        ║ ║ ║  Pipe(maxsize=65536)
        ├─┴─┘  Join()
        ║      Pipe(maxsize=65536)
        ├─┐    ReplicatingFork(2)
        ● ●    parse, parse-2
        ║ ║    Pipe(maxsize=65536)
        ├─┘    Join()
        ▼      results
        """)


class Learner(Processor):
    def process(self, item):
        return item


def test_each_processor_has_the_name_that_statistics_and_errors_give_it():
    rows = (
        Processor(load),
        Pipe(5),
        ReplicatingFork(3),
        (Learner(), Learner(), Learner(name="Learner-2")),
        Pipe(5),
        Join(),
        Pipe(5),
        BalancingFork(2),
        Processor(parse),
        Pipe(5),
        Join(),
    )
    assert drawn(*rows) == dedent("""\
        ●      load
        ║      Pipe(maxsize=5)
        ├─┬─┐  ReplicatingFork(3)
        ● │ │  Learner
        │ ● │  Learner-2
        │ │ ●  Learner-2-2
        ║ ║ ║  Pipe(maxsize=5)
        ├─┴─┘  Join()
        ║      Pipe(maxsize=5)
        ├─┐    BalancingFork(2)
        ● ●    parse
        ║ ║    Pipe(maxsize=5)
        ├─┘    Join()
        ▼      results
        """)
    pipeline = Pipeline(engine="inline")
    for row in rows:
        pipeline.add(*(row if isinstance(row, tuple) else (row,)))
    pipeline.run([1])
    assert [step.processor for step in pipeline.stats().steps] == [
        "load",
        "Learner",
        "Learner-2",
        "Learner-2-2",
        "parse",
    ]


def test_many_copies_are_named_in_one_line():
    picture = drawn(Processor(load), Pipe(5), ReplicatingFork(9), Processor(parse, batch=2), Pipe(5), Join())
    assert "  parse, parse-2, parse-3, parse-4, …, parse-9 (batch=2)\n" in picture
