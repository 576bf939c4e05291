"""Jobs of tests/engines/test_failures.py, apart from it.

Law: a worker that is a fresh interpreter imports the module of its job, so nothing here imports what only a test needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import threading
import time
from pathlib import Path

from conveyor import Processor


def same(item):
    return item


def fail_on_seven(item):
    if item == 7:
        raise ValueError("bad item", item)  # the line that is looked for
    return item


def fail_in_generator(item):
    yield item
    yield item
    if item == 7:
        raise LookupError("midway")


def fail_in_batch(batch):
    if 7 in batch:
        raise ValueError("bad batch")
    return sum(batch)


class Detailed(Exception):
    """Has fields."""

    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code
        self.extra = {"a": [1]}


class TwoArguments(Exception):
    """Cannot be unpickled: its arguments are not those of its `__init__`."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Unpicklable(Exception):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Mute(Exception):
    """Cannot be printed."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class OddText(str):
    """A str that cannot be pickled."""

    __slots__ = ()

    def __reduce_ex__(self, protocol):
        raise TypeError("not this one")


class OddlyNamed(Exception):
    """Says something that cannot be pickled."""

    def __str__(self):
        return OddText("odd")


KINDS = {
    "detailed": lambda: Detailed(5, "five"),
    "two": lambda: TwoArguments(1, 2),
    "unpicklable": Unpicklable,
    "mute": Mute,
    "odd": OddlyNamed,
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "stop": StopIteration,
    "recursion": None,
}


def raise_kind(kind):
    if kind == "recursion":
        return raise_kind(kind)
    raise KINDS[kind]()


def unpicklable_on_seven(item):
    return threading.Lock() if item == 7 else item


def unpicklable_in_generator(item):
    yield item
    yield threading.Lock() if item == 7 else item


def refuse(number):
    raise ValueError("refuses to come back", number)


class NoReturn:
    """Can be pickled and not unpickled."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return refuse, (self.number,)


def no_return_on_seven(item):
    return NoReturn(item) if item == 7 else item


class BadRepr:
    """Its repr raises."""

    def __repr__(self):
        raise RuntimeError("no repr")


def fail_always(item):
    raise ValueError("always")


class Phase(Processor):
    """Fails in one of its methods."""

    def __init__(self, phase):
        self.phase = phase

    def fail(self, phase):
        if phase == self.phase:
            raise Detailed(phase, "on purpose")

    def setup(self):
        self.fail("setup")

    def process(self, item):
        return item

    def finish(self):
        self.fail("finish")
        if self.phase == "finish midway":
            yield 1
            raise Detailed("finish midway", "on purpose")

    def teardown(self):
        self.fail("teardown")


class DiesInSetup(Processor):
    """Its worker dies before it is ready."""

    def process(self, item):
        return item

    def setup(self):
        os.kill(os.getpid(), signal.SIGKILL)


def exit_on_seven(item):
    if item == 7:
        os._exit(3)
    return item


def kill_on_seven(item):
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def crash_on_seven(item):
    if item == 7:
        faulthandler.disable()
        ctypes.string_at(0)
    return item


def exit_python_on_seven(item):
    if item == 7:
        os._exit(0)
    return item


def worker_number(item):
    return os.getpid()


class WorkerNumber(Processor):
    """Might have state."""

    def process(self, item):
        return os.getpid()


def number_alone(item):
    """A `redact`: what a user may have in a file of errors."""
    return f"number {item['number']}"


def fail_on_secret(item):
    raise ValueError("refused")


def unpicklable_secret(item):
    return {"secret": "hush", "number": 5, "lock": threading.Lock()}


class WritesForever(Processor):
    """Is killed while it writes a large message."""

    def process(self, item):
        return bytes(50_000_000)


def forever(path):
    """Say that the item has begun, and do not end."""
    Path(path).write_text(str(os.getpid()))
    threading.Event().wait()


def forever_busy(path):
    """Say that the item has begun, and use a core from then on."""
    Path(path).write_text(str(os.getpid()))
    while True:
        pass


class BadIter:
    """Cannot be iterated over."""

    def __iter__(self):
        raise KeyError("iter")


class NotAnIterator:
    """Its `__iter__` returns something else."""

    def __iter__(self):
        return 5


def wait_until(condition, what):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.002)


def read_number(path):
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(Path(path).read_text())
    return None
