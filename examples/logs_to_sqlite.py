"""Read compressed logs on all cores, and write what matters to sqlite from one process.

    python3 examples/logs_to_sqlite.py [lines in each file]

It shows a generator that gives many lines for one file, and one writer, which gets rows in batches and keeps its
connection from `setup` to `teardown`.  Change first: `parse`, for the format of your logs.

It prints what the database then has:

    /cart: ... failures, ... ms
    /home: ... failures, ... ms
"""

from __future__ import annotations

import contextlib
import gzip
import random
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conveyor import Pipe, Pipeline, Processor


def lines_of(path: Path) -> Iterator[str]:
    """Each line of a compressed file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from lines


def parse(line: str) -> tuple[str, float] | None:
    """The page and the milliseconds of a request that failed."""
    page, status, milliseconds = line.split()
    return (page, float(milliseconds)) if status == "500" else None


class Store(Processor[tuple[str, float], None]):
    """The only process that writes."""

    batch = 200

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self) -> None:
        self.database = sqlite3.connect(self.path)
        self.database.execute("create table failures (page text, milliseconds real)")

    def process(self, rows: Any) -> None:
        with self.database:
            self.database.executemany("insert into failures values (?, ?)", rows)

    def teardown(self) -> None:
        self.database.close()


def write_logs(folder: Path, lines: int) -> Iterator[Path]:
    """Four days of a small shop."""
    for day in range(4):
        requests = [(page, random.choice([200, 404, 500])) for page in random.choices(["/home", "/cart"], k=lines)]
        text = "".join(f"{page} {status} {random.expovariate(0.01):.1f}\n" for page, status in requests)
        (path := folder / f"day-{day}.log.gz").write_bytes(gzip.compress(text.encode()))
        yield path


def main(lines: int = 2000) -> None:
    """Make logs, store their failures, and print a summary."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "failures.db")
        pipeline = Pipeline().add(Processor(lines_of, workers=2)).add(Pipe()).add(Processor(parse, workers=2))
        pipeline.add(Pipe(maxsize=1000)).add(Store(database)).run(write_logs(Path(folder), lines))
        with contextlib.closing(sqlite3.connect(database)) as connection:
            for row in connection.execute("select page, count(*), avg(milliseconds) from failures group by page"):
                print("{}: {} failures, {:.0f} ms".format(*row))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
