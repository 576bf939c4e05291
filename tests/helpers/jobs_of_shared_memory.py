"""Jobs of tests/shm/test_shared_memory.py, apart from it.

Law: a worker that is a fresh interpreter imports the module of its job, so nothing here imports what only a test needs.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import weakref
import zlib
from pathlib import Path

from conveyor import Processor
from conveyor.engines.process.shm import mapping as mappings
from conveyor.engines.process.shm.mapping import address_of
from conveyor.engines.process.shm.region import REGION_BYTES


class Buffer:
    """Something like an array: a buffer that is pickled out of band, and a number beside it."""

    def __init__(self, memory, number=0):
        self.memory = memory
        self.number = number

    def __reduce_ex__(self, protocol):
        return Buffer, (pickle.PickleBuffer(self.memory), self.number)

    def __eq__(self, other):
        return self.number == other.number and self.view() == other.view()

    __hash__ = None

    def __repr__(self):
        return f"Buffer({self.number}, {len(self.view()):,} bytes)"

    def view(self):
        return memoryview(self.memory).cast("B")

    @property
    def mapping(self):
        """The shared memory that it lives in, None where it does not."""
        owner = memoryview(self.memory).obj
        return owner if type(owner) is mappings.PrivateMapping else None


def buffer(number, size=300_000):
    """A buffer whose content depends on its number."""
    pattern = random.Random(number).randbytes(4000)
    return Buffer(bytearray((pattern * (size // len(pattern) + 1))[:size]), number)


def buffers(count, size=300_000):
    for number in range(count):
        yield buffer(number, size)


def add_one(item):
    """Change all of it in place."""
    view = item.view()
    view[:] = bytes((byte + 1) % 256 for byte in view[:1000]) + bytes(view[1000:])
    return item


def touch_last(item):
    item.view()[-1] ^= 255
    return item


def touch_first(item):
    item.view()[0] ^= 255
    return item


def is_shared(item):
    return item.mapping is not None


def region(item):
    """Whose memory it is in: 0 is the caller's."""
    if item.mapping is None:
        return None
    address = address_of(item.memory)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, offset, *_ = line.split()
        start, stop = (int(each, 16) for each in addresses.split("-"))
        if start <= address < stop:
            return int(offset, 16) // REGION_BYTES
    raise AssertionError("it is nowhere")


class Onlooker:
    """A forked child that says at the end whether it still sees what it should.

    Of several, the last one is to be asked first: it has what tells the others that the end has come.
    """

    def __init__(self, sees):
        told, self.telling = os.pipe()
        self.child = os.fork()
        if not self.child:
            code = 1
            with contextlib.suppress(BaseException):
                os.close(self.telling)
                os.read(told, 1)
                code = 0 if sees() else 2
            os._exit(code)
        os.close(told)

    def verdict(self):
        """0: it does; 2: it sees something else."""
        os.close(self.telling)
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def twice(item):
    """Two views of one memory."""
    return [item, Buffer(item.view(), item.number)]


def change_the_first(pair):
    touch_first(pair[0])
    return pair


def part(item):
    """A part that begins within a page."""
    return Buffer(item.view()[1001:], item.number)


def checksum(item):
    return item.number, zlib.crc32(item.view())


class Wiped(Buffer):
    """One that wipes its memory when nobody has it any more."""

    def __del__(self):
        self.view()[:] = bytes(len(self.view()))


def wiped(item):
    """The same memory, changed in place, in the hands of another."""
    touch_first(item)
    return Wiped(item.memory, item.number)


def wiped_inside(item):
    return {"of": [wiped(item)]}


def wipe(view):
    view[:] = bytes(len(view))


def wiped_by_another(item):
    """The same, and it does not know of it."""
    given = Buffer(touch_first(item).memory, item.number)
    weakref.finalize(given, wipe, item.view())
    return given


def number_and_sum(item):
    item = item if isinstance(item, Buffer) else item["of"][0]
    return item.number, zlib.crc32(item.view())


class Keeping(Processor):
    """Keeps the last few items, and says what the oldest of them has."""

    def setup(self):
        self.kept = []

    def process(self, item):
        self.kept = [*self.kept[-9:], item]
        return self.kept[0]


class ChangesLater(Processor):
    """Changes each item in place, and the one before once more, when that is on its way."""

    def setup(self):
        self.last = None

    def process(self, item):
        if self.last is not None:
            touch_last(self.last)
        self.last = touch_first(item)
        return item


class Forks(Processor):
    """Changes each item in place; some of them a child sees, which says at the end whether it saw that only."""

    def setup(self):
        self.onlookers = []

    def process(self, item):
        touch_first(item)
        if item.number % 40 == 30:
            self.onlookers.append(Onlooker(lambda: item == touch_first(buffer(item.number))))
        return item

    def finish(self):
        return [onlooker.verdict() for onlooker in reversed(self.onlookers)]


class ChangeAndDie(Processor):
    """Changes each item in place, and lets its worker die after it did so with one, the first time."""

    restartable = True

    def __init__(self, folder, number):
        self.path, self.number = os.path.join(folder, "died"), number

    def process(self, item):
        touch_first(item)
        if item.number == self.number and not os.path.exists(self.path):
            Path(self.path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item


class ChangeAndRaise(ChangeAndDie):
    """The same, but raises."""

    retries = 1

    def process(self, item):
        touch_first(item)
        if item.number == self.number and not os.path.exists(self.path):
            Path(self.path).touch()
            raise ValueError(item.number)
        return item


def memory_of(pipeline):
    """The bytes of memory that the shared file of an open pipeline takes."""
    return os.fstat(pipeline._lifecycle.session._broker.arena._descriptor).st_blocks * 512
