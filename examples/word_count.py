"""Count the words of the standard library's source, on all cores.

    python3 examples/word_count.py [files]

It shows how a worker counts by itself, and gives its counts once, at the end of the stream: a thousand files make one
dictionary for each worker, not a thousand.  Change first: `words_of`, to count something else.

It prints the most frequent words, and how many there are in all:

    self ...
    ... words, counted by 1 worker
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from conveyor import Pipe, Pipeline, Processor


def words_of(path: Path) -> list[str]:
    """The words of a source file."""
    return re.findall(r"[a-z]{3,}", path.read_text(encoding="utf-8", errors="replace").lower())


class Count(Processor[list[str], Counter[str]]):
    """Adds up what this worker sees."""

    def setup(self) -> None:
        self.counts: Counter[str] = Counter()

    def process(self, words: list[str]) -> None:
        self.counts.update(words)

    def finish(self) -> Iterator[Counter[str]]:
        yield self.counts


def main(files: int = 120) -> None:
    """Count, add up the counts of the workers, and print."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    pipeline = Pipeline().add(Processor(words_of, workers="auto")).add(Pipe()).add(Count())
    counts = pipeline.run(paths)
    total = sum(counts, Counter[str]())
    for word, number in total.most_common(5):
        print(word, number)
    print(f"{total.total():,} words, counted by {len(counts)} worker")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
