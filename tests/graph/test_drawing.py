"""The picture of a pipeline, letter for letter."""

from __future__ import annotations

import warnings
from textwrap import dedent
from typing import Any

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
        ●    train
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
        ● ● │ │ │  parse
        │ │ ● ● ●  train
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
        ● ● ● ●  parse
        ║ ║ ║ │  Pipe(maxsize=65536), put in
        ● ● ● │  train
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
        ●   ●    train
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
        ● ●    parse
        ║ ║    Pipe(maxsize=65536)
        ├─┘    Join()
        ▼      results
        """)
