"""Jobs of tests/engines/test_engines.py, apart from it.

Law: a worker that is a fresh interpreter imports the module of its job, so nothing here imports what only a test needs.
"""

from __future__ import annotations

import os
import time

from conveyor import Pipeline, Processor

MEGABYTE = 1024 * 1024


def same(item):
    return item


def increment(item):
    return item + 1


def double(item):
    return item * 2


def odd_only(item):
    return item if item % 2 else None


def nothing(item):
    return None


def countdown(item):
    yield from range(item, 0, -1)


def total(batch):
    return sum(batch)


def pairs_of(batch):
    for item in batch:
        yield item, len(batch)


def shout(word, mark="!"):
    return word.upper() + mark


def enlarge(number):
    return bytes([number % 256]) * (8 * MEGABYTE)


def shrink(data):
    return len(data), data[0]


def process_number(item):
    return os.getpid()


def fail_on_seven(item):
    if item == 7:
        raise ValueError("seven", item)
    return item


def stop_on_fifty(item):
    if item == 50:
        raise StopIteration("fifty")
    return item


class Turns(Processor):
    """Has state that a generator looks at when it runs, and not when it is made."""

    count = 0

    def process(self, item):
        self.count += 1
        return self.look() if item % 64 == 63 else self.count

    def look(self):
        yield self.count


def in_turn(count, size, times):
    """Fill so many buffers in turn, and yield them."""
    buffers = [bytearray(size) for _ in range(count)]
    for number in range(times):
        buffer = buffers[number % count]
        buffer[0] = number
        yield buffer


def first_byte(buffer):
    return buffer[0]


def append_one(item):
    item.append(1)
    return len(item)


def append_one_to_both(row):
    return append_one(row[0]), append_one(row[1])


def wrap(item):
    return [item]


def one_row_again_and_again(item):
    row = [0]
    for number in range(20):
        row[0] = number
        yield row


def in_a_pipeline_of_its_own(item):
    return Pipeline().add(Processor(double)).run(range(item))


def generator_or_value(item):
    return (item for _ in range(20)) if item % 3 == 0 else item


class Multiplier:
    """A callable with settings."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, item):
        return item * self.factor

    def method(self, item):
        return item * self.factor + 1


class Life(Processor):
    """Counts what happens to it, and tells."""

    def __init__(self, start=0):
        self.start = start
        self.events = []

    def setup(self):
        self.events.append("setup")

    def process(self, item):
        self.events.append(item + self.start)
        return item + self.start

    def finish(self):
        yield tuple(self.events)
        yield "end"


class Over(Processor):
    """Is slow at the last items where they are odd; takes none once it has finished."""

    def setup(self):
        self.over = False

    def process(self, item):
        if self.over:
            raise ValueError("an item behind the end")
        time.sleep(0.1 if item % 2 and item > 64 else 0.0002)

    def finish(self):
        self.over = True
        return "over"


class Note(Processor):
    """Writes a line for each thing that happens."""

    def __init__(self, path):
        self.path = path

    def note(self, text):
        with open(self.path, "a") as file:
            file.write(text + "\n")

    def setup(self):
        self.note("setup")

    def process(self, item):
        self.note("process")
        return item

    def finish(self):
        self.note("finish")

    def teardown(self):
        self.note("teardown")


class Remembers(Processor):
    """Gives its own list each time, and goes on changing it."""

    def __init__(self):
        self.seen = []

    def process(self, item):
        self.seen.append(item)
        return self.seen


class NowOrLater(Processor):
    """Gives a number or a generator of numbers, from one counter."""

    def __init__(self):
        self.count = 0

    def process(self, item):
        if item % 3 == 0:
            return self.later()
        self.count += 1
        return self.count

    def later(self):
        for _ in range(3):
            self.count += 10
            yield self.count


def now_or_later(items):
    """What NowOrLater gives."""
    count = 0
    for item in items:
        for step in (10, 10, 10) if item % 3 == 0 else (1,):
            count += step
            yield count


class WithSettings(Processor):
    """Has its settings as class attributes."""

    batch = 3
    keep_none = True
    name = "settled"

    def process(self, items):
        return None if len(items) < 3 else items


class Once:
    """Can be iterated over once."""

    def __init__(self, items):
        self.iterator = iter(items)

    def __iter__(self):
        iterator, self.iterator = self.iterator, None
        assert iterator is not None, "iterated over twice"
        return iterator


class Indexed:
    """Is iterated over by index."""

    def __getitem__(self, index):
        if index >= 5:
            raise IndexError(index)
        return index
