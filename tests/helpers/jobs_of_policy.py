"""Jobs of tests/engines/test_policy.py, apart from it.

Law: a worker that is a fresh interpreter imports the module of its job, so nothing here imports what only a test needs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from conveyor import Processor


def same(item):
    return item


def refuse_thirds(item):
    if item % 3 == 0:
        raise ValueError("a third", item)
    return item


def refuse_fives(item):
    if item % 5 == 0:
        raise KeyError(item)
    return item


def refuse_some(item):
    if 4000 <= item < 4500:
        raise ValueError(item)
    return item


@dataclass(frozen=True)
class Frozen(Exception):
    """As many make theirs: nothing may be set on it."""

    code: int


def refuse_frozen(item):
    raise Frozen(item)


def refuse_all(item):
    raise ValueError(item)


def spoil_and_refuse_thirds(item):
    item.append("spoilt")
    if item[0] % 3 == 0:
        raise ValueError(len(item))
    return len(item), item[0]


def refuse_batch(items):
    if 7 in items:
        raise ValueError(items)
    return sum(items)


def count_up(item):
    for index in range(100):
        if item == 3 and index == 50:
            raise ValueError(index)
        yield item, index


def cannot_be_pickled(item):
    return threading.Lock() if item % 4 == 0 else item


def some_cannot_be_pickled(item):
    for index in range(4):
        yield threading.Lock() if index == item else (item, index)


def yield_and_fail(path, fails_again, item):
    first = not os.path.exists(path)
    if first:
        Path(path).write_text(str(os.getpid()))
    yield from range(9)
    if first:
        Path(path + "!").touch()
    if first or fails_again:
        raise ValueError(item)
    yield "fine"


def wait_until_waiting(path):
    """Until the worker that has written there its number sleeps; return whether it has given all its values by then."""
    stat = Path("/proc", Path(path).read_text(), "stat")
    calm = 0
    while calm < 20:
        time.sleep(0.005)
        calm = calm + 1 if stat.read_text().rpartition(") ")[2][0] == "S" else 0
    return os.path.exists(path + "!")


def yield_and_die_once(path, item):
    yield threading.Lock()
    yield 1
    yield 2
    # Longer than a value waits to be sent.
    time.sleep(0.2)
    yield 3
    if not os.path.exists(path):
        Path(path).touch()
        os._exit(3)
    yield 4


def apologize(item, error):
    return "sorry", item, type(error).__name__


def no_apology(item, error):
    return None


def fail_to_apologize(item, error):
    raise RuntimeError("no excuse")


def unpicklable_apology(item, error):
    return threading.Lock()


def yielded_apology(item, error):
    yield item


def leave(item):
    if item == 7:
        os._exit(3)
    return item


def leave_again(item, error):
    os._exit(4)


class LeavesWhenUnpickled:
    def __init__(self, number):
        self.number = number

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self.number == 7 and os.environ.get("CONVEYOR_TEST_CALLER") != str(os.getpid()):
            os._exit(5)


def number_of(item):
    return item.number


def spin_at_seven(item):
    while item == 7:
        pass
    return item


def stand_still_at_seven(item):
    if item == 7:
        os.kill(os.getpid(), signal.SIGSTOP)
    return item


def sleep_at_seven(item):
    if item == 7:
        time.sleep(1000)
    return item


def yield_and_sleep_at_seven(item):
    yield item, 0
    if item == 7:
        time.sleep(1000)
    yield item, 1


def short_sleep(item):
    time.sleep(0.02)
    return item


def process_number(item):
    return item, os.getpid()


class FailsFirst(Processor):
    """Raises at each item the first few times."""

    def __init__(self, folder, times, kind=OSError, **settings):
        self.folder, self.times, self.kind = folder, times, kind
        super().__init__(**settings)

    def process(self, item):
        path = Path(self.folder, str(item))
        calls = len(path.read_text()) if path.exists() else 0
        path.write_text("." * (calls + 1))
        if calls < self.times:
            raise self.kind(calls)
        return item


class SleepsFirst(FailsFirst):
    """Sleeps at one item the first few times."""

    restartable = True

    def process(self, item):
        if item == 7:
            path = Path(self.folder, str(item))
            calls = len(path.read_text()) if path.exists() else 0
            path.write_text("." * (calls + 1))
            if calls < self.times:
                time.sleep(1000)
        return item


class Handles(Processor):
    """Has all of it on the class."""

    retries = 1
    backoff = 0
    calls = 0

    def process(self, item):
        self.calls += 1
        if item % 3 == 0:
            raise ValueError(item)
        return self.calls

    def on_error(self, item, error):
        return "handled", item, self.calls


class EndsBadly(Processor):
    """Has an output at the end that cannot be pickled."""

    def __init__(self, yields, **settings):
        super().__init__(**settings)
        self.yields = yields

    def process(self, item):
        return item

    def finish(self):
        return iter_of(5, threading.Lock(), 6) if self.yields else threading.Lock()


def iter_of(*values):
    yield from values


class DiesAtTheEnd(Processor):
    """Ends its process in `finish`."""

    def __init__(self, restartable):
        super().__init__()
        self.restartable = restartable

    def process(self, item):
        return item

    def finish(self):
        os._exit(6)


def one_and_two(had):
    """Two items; the end comes when what they gave was had: what a queue has not sent is lost with its process."""
    yield 1
    yield 2
    assert had.wait(60)


class Counts(Processor):
    """Has state that is not to be lost."""

    total = 0

    def process(self, item):
        self.total += 1
        return sleep_at_seven(item)


def said(pipeline):
    """What is told of each failure, but for the time."""
    return [
        (failed.processor, failed.number, failed.last, failed.item, failed.error.kind, failed.attempts)
        for failed in pipeline.failures
    ]
