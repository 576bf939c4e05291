"""Turn a folder of csv files into one parquet file: cleaned on all cores, written by one process, in order.

    pip3 install '.[examples]' && python3 examples/csv_to_parquet.py [files]

It shows how paths go in and frames travel, whose numbers go through shared memory, and how `finish` closes the file at
the end of the stream.  Change first: `clean`.

It prints what the file has:

    8 files, 7,200 rows
    fruit
    apple    ...
    melon    ...
    pear     ...
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet

from conveyor import Pipe, Pipeline, Processor


def clean(path: Path) -> Any:
    """The orders in a file that were not cancelled."""
    orders = pandas.read_csv(path)
    return orders[orders["count"] > 0].assign(day=int(path.stem))


class Write(Processor[Any, int]):
    """The only process that writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self) -> None:
        self.writer: Any = None

    def process(self, orders: Any) -> int:
        table = pyarrow.Table.from_pandas(orders, preserve_index=False)
        self.writer = self.writer or pyarrow.parquet.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)
        return len(orders)

    def finish(self) -> None:
        if self.writer is not None:
            self.writer.close()


def write_files(folder: Path, files: int) -> list[Path]:
    """A file for each day, in which every tenth order was cancelled."""
    paths = [folder / f"{day:03}.csv" for day in range(files)]
    for path in paths:
        rows = [f"{random.choice(['apple', 'melon', 'pear'])},{number % 10}\n" for number in range(1000)]
        path.write_text("fruit,count\n" + "".join(rows), encoding="utf-8")
    return paths


def main(files: int = 8) -> None:
    """Make files, turn them into one, and read that."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "orders.parquet")
        pipeline = Pipeline().add(Processor(clean, workers="auto")).add(Pipe(maxsize=8)).add(Write(path))
        rows = pipeline.run(write_files(Path(folder), files))
        print(f"{len(rows)} files, {sum(rows):,} rows")
        print(pandas.read_parquet(path).groupby("fruit")["count"].sum().to_string())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
