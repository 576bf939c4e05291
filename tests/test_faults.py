"""Faults: each is injected for real, and what comes of it is one of three: survived with the exact list; an error that says
which Processor and, where there is one, which item; or the item given up and listed, and the rest exact.

Law: each row holds for forked and for spawned workers, over both channels, and leaves nothing: no process, thread,
descriptor, shared memory or semaphore.  Nobody waits for a time to pass: each fault comes when the processes are seen
to be where it is to hit them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
import time
import unittest
from multiprocessing import resource_tracker
from pathlib import Path

from conveyor import (
    Pipe,
    Pipeline,
    ProcessError,
    Processor,
    ProcessorError,
    WorkerDiedError,
)
from conveyor.engines import channels
from tests.support import TestCase, _everyone, nothing_left, slow

LIMIT_SECONDS = 5.0
"""What an error may take from the start of the run, on a busy machine; a fifth of that is usual, most of it for spawning."""
MIB = 1024 * 1024


def same(item):
    return item


def process_number(item):
    return os.getpid()


class Files(Processor):
    """Has a folder in which it leaves word."""

    restartable = True

    def __init__(self, folder, **settings):
        self.folder = folder
        super().__init__(**settings)

    def append(self, name, line):
        descriptor = os.open(os.path.join(self.folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)

    def process(self, item):
        return item


class DiesOfMessages(Files):
    """Is up, and ends with the first message that comes, as one does for which that is too heavy."""

    def setup(self):
        self.append("starts", os.getpid())
        channels.unpack = lambda *_: os._exit(5)


class Bounded(Processor):
    """Has little memory, and gives so many bytes."""

    restartable = True

    def setup(self):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 40 * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        # One that was forked has what its parent had and does not use; so all is used up, and some of it given back.
        self.used_up = []
        with contextlib.suppress(MemoryError):
            while True:
                self.used_up.append(bytearray(MIB))
        del self.used_up[-32:]

    def process(self, item):
        return len(bytearray(item))


class BoundedSize(Bounded):
    """Gives only the size of what it is given."""

    def process(self, item):
        return len(item)


@contextlib.contextmanager
def limited(kind, most):
    """Let this process, and those that it starts, have no more of something."""
    before, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (before, hard))


def limit(pid, kind, most):
    """Let another process have no more of something from now on."""
    resource.prlimit(pid, kind, (most, resource.prlimit(pid, kind)[1]))


class Base:
    """Makes pipelines, and looks that nothing is left of them."""

    time_limit = 60.0
    settings = {"start_method": "fork", "channel": "pipe"}

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        if self.settings.get("start_method") != "fork":
            # The standard library's own, of which a process has one and keeps it.
            resource_tracker.ensure_running()
        leaves = nothing_left()
        leaves.__enter__()
        self.addCleanup(leaves.__exit__, None, None, None)
        if os.environ.get("CONVEYOR_TEST_TIMES"):
            begun = time.monotonic()
            self.addCleanup(lambda: print(f"{time.monotonic() - begun:6.3f} s  {self.id()}"))

    @property
    def queues(self):
        return self.settings["channel"] == "queue"

    def make(self, *processors):
        pipeline = Pipeline(**self.settings)
        for number, processor in enumerate(processors):
            if number:
                pipeline.add(Pipe())
            pipeline.add(processor)
        return pipeline

    @contextlib.contextmanager
    def fails(self, expected, words, /, **fields):
        """The block raises `expected` soon, with these words and fields."""
        begun = time.monotonic()
        with self.assertRaisesRegex(expected, words) as caught:
            yield
        seconds = time.monotonic() - begun
        assert type(caught.exception) is expected, caught.exception
        for name, value in fields.items():
            assert getattr(caught.exception, name) == value, (name, getattr(caught.exception, name), value)
        assert seconds < LIMIT_SECONDS, f"{seconds:.2f} s"

    def lines(self, name):
        return Path(self.folder, name).read_text().split()


class Faults(Base):
    """The rows, for one start method and channel."""

    # Items and jobs that end workers, or try to

    def test_too_little_memory(self):
        huge = 1 << 40
        with self.fails(ProcessorError, "MemoryError", processor="Bounded", number=1, item=str(huge)):
            self.make(Bounded()).run([5, huge, 7])

    def test_too_little_memory_for_what_comes(self):
        fields = {"processor": "BoundedSize", "phase": "wait", "kind": "MemoryError", "number": 1, "last": 1}
        with self.fails(ProcessorError, "not enough memory to receive what it was sent", **fields):
            self.make(BoundedSize()).run(iter([b"", bytes(48 * MIB)]))

    def test_an_item_that_kills_when_it_is_received(self):
        fields = {"processor": "DiesOfMessages", "phase": "receive", "exitcode": 5, "number": 0, "last": 0}
        with self.fails(WorkerDiedError, "while it had item 0 to take in", **fields):
            self.make(DiesOfMessages(self.folder)).run([1])
        assert len(self.lines("starts")) == 5, "no storm"

    # What the system has no more of

    def test_no_shared_memory_at_the_start(self):
        # No file can be given a byte, which is what happens on a full /dev/shm, and here to these processes alone.
        with limited(resource.RLIMIT_FSIZE, 0):
            if self.queues:
                with self.fails(ProcessError, "broker process of the pipeline could not be started"):
                    self.make(Processor(same)).run(range(20))
            else:
                assert self.make(Processor(same)).run(range(20)) == list(range(20))

    def test_no_shared_memory_when_a_worker_is_replaced(self):
        with contextlib.ExitStack() as stack:
            if self.queues:
                # They have semaphores, and so has each new worker.
                words = "worker of Processor 'process_number' could not be started: .Errno"
                stack.enter_context(self.fails(ProcessError, words))
            with self.make(Processor(process_number)) as pipeline:
                worker = pipeline.run([1])[0]
                limit(_everyone()[worker].parent, resource.RLIMIT_FSIZE, 0)
                os.kill(worker, signal.SIGKILL)
                while pipeline.run([1]) == [worker]:
                    pass

    def test_no_descriptors_at_the_start(self):
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        with limited(resource.RLIMIT_NOFILE, lowest + 3):
            with self.fails(ProcessError, "could not be started: .Errno 24. Too many open files"):
                self.make(Processor(same)).run([1])

    def test_no_descriptors_when_a_worker_is_replaced(self):
        words = "worker of Processor 'process_number' could not be started: .Errno 24. Too many open files"
        with self.fails(ProcessError, words), self.make(Processor(process_number)) as pipeline:
            worker = pipeline.run([1])[0]
            broker = _everyone()[worker].parent
            limit(broker, resource.RLIMIT_NOFILE, self.descriptor_of(worker, broker))
            os.kill(worker, signal.SIGKILL)
            while pipeline.run([1]):
                pass

    def descriptor_of(self, worker, broker):
        """Return the number of the descriptor by which the broker watches the worker.

        It was the last that was needed to start the worker, so those below it do not suffice to start another.  The
        worker's channel is below, so some become free.  Without any, the C library could not even end a thread.
        """
        for number in os.listdir(f"/proc/{broker}/fdinfo"):
            if f"Pid:\t{worker}\n" in Path(f"/proc/{broker}/fdinfo/{number}").read_text():
                return int(number)
        self.skipTest("the system has no descriptors of processes")


class ForkPipeTest(Faults, TestCase):
    """Forked workers, over socket pairs."""


@slow
class ForkQueueTest(Faults, TestCase):
    """Forked workers, over queues."""

    settings = {"start_method": "fork", "channel": "queue"}


@slow
class SpawnPipeTest(Faults, TestCase):
    """Workers that are fresh interpreters, over socket pairs."""

    settings = {"start_method": "spawn", "channel": "pipe"}


@slow
class SpawnQueueTest(Faults, TestCase):
    """Workers that are fresh interpreters, over queues."""

    settings = {"start_method": "spawn", "channel": "queue"}


if __name__ == "__main__":
    unittest.main()
