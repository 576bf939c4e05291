"""What `multiprocessing` hands to processes as they start: refused as an item or output, handed over in a job.

Law: each test uses the program's own object at its end, which that would not survive if a copy had been closed.
"""

from __future__ import annotations

import array
import contextlib
import copy
import ctypes
import functools
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import pickle
import socket
import sqlite3
import sys
import threading
import unittest
import warnings

from conveyor import (
    JobPicklingError,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    SharedResourceWarning,
    SourceError,
    StartMethodWarning,
)
from tests.helpers.support import ALL, TestCase, nothing_left

SPAWNING = multiprocessing.get_context("spawn")
FRESH = ({"start_method": "spawn"}, {"start_method": "forkserver"}, {"start_method": "spawn", "channel": "queue"})


def same(item):
    return item


class Holder:
    def __init__(self, held):
        self.held = held


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


class Held(Processor):
    def __init__(self, held):
        self.held = held

    def process(self, item):
        return item


def tell(connection, item):
    connection.send(item)
    return item


def count(value, item):
    with value.get_lock():
        value.value += 1
    return item


def crash_once(event, item):
    if not event.is_set():
        event.set()
        os._exit(1)
    return item


def kept_by(pid):
    """What a process has open: of a socket or pipe, its number."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def kept_here(item):
    return kept_by(os.getpid()), kept_by(os.getppid())


class Pair(ctypes.Structure):
    """Two numbers."""

    _fields_ = (("left", ctypes.c_int), ("right", ctypes.c_double))


class Everything(Processor):
    """Uses each kind of object, by the name that it was given."""

    def __init__(self, **held):
        self.held = held

    def process(self, item):
        held = self.held
        with held["Lock"], held["RLock"], held["Semaphore"], held["BoundedSemaphore"], held["Condition"]:
            held["RawArray"][0] += item
            held["Array"][item] = item
            held["Value"].value += item
            held["Structure"].right += item
            held["Pipe"].send(item)
        held["Queue"].put(item)
        held["SimpleQueue"].put(item)
        held["JoinableQueue"].put(item)
        held["Barrier"].wait()
        held["Event"].set()
        return item


class Answering(Processor):
    """Has the end of a socket pair."""

    def __init__(self, connected):
        self.connected = connected

    def process(self, item):
        return self.connected.send(item)

    def teardown(self):
        self.connected.close()


class Called:
    """A job object, and what it counts with as a keyword of its own."""

    def __init__(self, *, counter):
        self.counter = counter

    def __call__(self, item):
        return count(self.counter, item)


class ConnectionTest(TestCase):
    """Connections of `multiprocessing`, which to pickle are a number."""

    def setUp(self):
        self.mine, self.theirs = multiprocessing.Pipe()
        self.addCleanup(self.mine.close)
        self.addCleanup(self.theirs.close)

    def tearDown(self):
        self.mine.send("still here")
        assert self.theirs.recv() == "still here"

    def test_as_an_item(self):
        for settings in (
            {"start_method": "fork"},
            {"start_method": "spawn"},
            {"channel": "queue"},
            {"engine": "inline"},
        ):
            wraps = (same, lambda each: [each], lambda each: {"end": (1, each)}, Holder, Slotted)
            # The caller refuses it, whatever the other processes are.
            for wrap in wraps if settings in ({"start_method": "fork"}, {"engine": "inline"}) else wraps[-1:]:
                with self.subTest(settings=settings, item=wrap(1)), nothing_left():
                    with self.assertRaises(SourceError) as caught:
                        Pipeline(**settings).add(Processor(same)).run([1, wrap(self.mine), 3])
                    assert caught.exception.number == 1
                    assert "is a number of this process" in str(caught.exception)
                    assert type(caught.exception.__cause__) is TypeError

    def test_as_an_output(self):
        def connected(item):
            return multiprocessing.Pipe()[0] if item == 2 else item

        for engine in ("process", "inline"):
            with self.subTest(engine=engine), self.assertRaises(ProcessorError) as caught:
                Pipeline(engine=engine).add(Processor(connected)).run(range(4))
            assert (caught.exception.phase, caught.exception.number) == ("pickle", 2)
            pipeline = Pipeline(engine=engine).add(Processor(connected, on_error="skip"))
            assert pipeline.run(range(4)) == [0, 1, 3]

    def test_of_one_object_that_is_given_again_and_again(self):
        def again():
            for _ in range(100):
                yield self.mine

        with self.assertRaises(SourceError):
            Pipeline().add(Processor(same)).run(again())

    def test_in_a_job(self):
        for settings in ({"engine": "inline"}, {"start_method": "fork"}, *(FRESH if ALL else FRESH[:1])):
            with self.subTest(settings=settings), nothing_left():
                assert Pipeline(**settings).add(Processor(functools.partial(tell, self.mine))).run([1]) == [1]
                assert self.theirs.recv() == 1

    def test_what_others_do_with_them_is_as_before(self):
        Pipeline().add(Processor(same)).run([[1]])
        copied = pickle.loads(pickle.dumps(self.mine))
        assert copied.fileno() == self.mine.fileno()
        copied._handle = None
        copied = copy.copy(self.mine)
        assert copied.fileno() == self.mine.fileno()
        copied._handle = None
        process = multiprocessing.get_context("spawn").Process(
            target=self.theirs.__class__.send, args=(self.mine, "sent")
        )
        process.start()
        process.join()
        assert self.theirs.recv() == "sent"

    def test_other_things_of_this_process_are_refused_too(self):
        database = sqlite3.connect(":memory:")
        self.addCleanup(database.close)
        with socket.socket() as each:
            for item in (each, multiprocessing.Lock(), database):
                with self.subTest(item=item), nothing_left(), self.assertRaises(SourceError) as caught:
                    Pipeline().add(Processor(same)).run([1, item])
                assert caught.exception.number == 1


class HandedOverTest(TestCase):
    """In jobs, as in the arguments of a `Process`."""

    def few(self):
        """The two ways in which a worker comes by what a job has: from the caller's pickle, and from the broker's copy."""
        return FRESH[: 2 if ALL else 1]

    def test_each_kind(self):
        for settings in ({"engine": "inline"}, {"start_method": "fork"}, *FRESH):
            with self.subTest(settings=settings), nothing_left():
                self.use_each_kind(settings)

    def use_each_kind(self, settings):
        mine, theirs = SPAWNING.Pipe()
        names = ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event")
        held = {name: getattr(SPAWNING, name)() for name in names}
        held |= {"Array": SPAWNING.Array("i", 4), "Value": SPAWNING.Value("q"), "RawArray": SPAWNING.RawArray("i", 2)}
        held |= {"Structure": SPAWNING.Value(Pair), "Pipe": theirs, "Barrier": SPAWNING.Barrier(1)}
        queues = [SPAWNING.Queue(), SPAWNING.SimpleQueue(), SPAWNING.JoinableQueue()]
        held |= {type(queue).__name__: queue for queue in queues}
        with mine, theirs:
            assert Pipeline(**settings).add(Everything(**held)).run(range(4)) == list(range(4))
            shared = [held["RawArray"][0], held["Value"].value, held["Structure"].right]
            assert shared == [6, 6, 6.0]
            assert list(held["Array"]) == list(range(4))
            assert held["Event"].is_set()
            for receive in (mine.recv, *(queue.get for queue in queues)):
                assert [receive() for _ in range(4)] == list(range(4))
        for queue in queues:
            queue.close()

    def test_wherever_a_job_has_it(self):
        for settings in self.few():
            counter = SPAWNING.Value("i")
            pipeline = Pipeline(**settings)
            for job in (functools.partial(count, counter), Called(counter=counter), Called(counter=counter).__call__):
                pipeline.add(Processor(job)).add(Pipe())
            assert pipeline.run([1, 2]) == [1, 2]
            assert counter.value == 6

    @unittest.skipIf(importlib.util.find_spec("cloudpickle") is None, "closures need cloudpickle")
    def test_in_a_closure(self):
        for settings in self.few():
            counter, shared = SPAWNING.Value("i"), SPAWNING.RawArray("i", 1)

            def closure(item, counter=counter, shared=shared):
                with counter.get_lock():
                    shared[0] += item
                return count(counter, item)

            assert Pipeline(**settings).add(Processor(closure, workers=2)).run(range(50)) == list(range(50))
            assert (counter.value, shared[0]) == (50, sum(range(50)))

    def test_one_object_in_several_jobs_stays_one(self):
        for settings in self.few():
            counter = SPAWNING.Value("i")
            job = functools.partial(count, counter)
            with Pipeline(**settings).add(Processor(job, workers=2)).add(Pipe()).add(Processor(job)) as pipeline:
                assert pipeline.run(range(100)) == list(range(100))
                assert pipeline.run(range(50)) == list(range(50))
            assert counter.value == 300

    def test_a_socket(self):
        for settings in ({"engine": "inline"}, *self.few()):
            near, far = socket.socketpair()
            with near, far, nothing_left():
                assert Pipeline(**settings).add(Answering(far)).run([b"a", b"b"]) == [1, 1]
                assert near.recv(100) == b"ab"

    def test_several_workers_that_share_one_connection_are_warned_of(self):
        mine, theirs = SPAWNING.Pipe()
        with mine, theirs:
            job = functools.partial(tell, theirs)
            for settings in self.few():
                with self.assertWarns(SharedResourceWarning) as caught:
                    assert Pipeline(**settings).add(Processor(job, workers=2)).run([1]) == [1]
                assert "share a _ConnectionBase of multiprocessing" in str(caught.warning)
            counter = SPAWNING.Value("i")
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                # One worker shares it with nobody.  Values and locks are made to be shared.
                Pipeline(**settings).add(Processor(job)).run([1])
                Pipeline(**settings).add(Processor(functools.partial(count, counter), workers=2)).run([1])

    def test_in_a_worker_that_takes_the_place_of_one_that_died(self):
        mine, theirs = SPAWNING.Pipe()
        with mine, theirs:
            for settings in self.few():
                crashed = SPAWNING.Event()
                pipeline = Pipeline(**settings).add(Processor(functools.partial(crash_once, crashed)))
                pipeline.add(Pipe()).add(Processor(functools.partial(tell, theirs)))
                with nothing_left():
                    assert pipeline.run([1, 2]) == [1, 2]
                assert [mine.recv(), mine.recv()] == [1, 2]

    def test_beside_a_thread_a_fresh_broker_hands_it_on(self):
        counter = SPAWNING.Value("i")
        over = threading.Event()
        thread = threading.Thread(target=over.wait)
        thread.start()
        try:
            pipeline = Pipeline().add(Processor(functools.partial(count, counter)))
            with self.assertWarns(StartMethodWarning):
                assert pipeline.run([1, 2]) == [1, 2]
            stats = pipeline.stats()
        finally:
            over.set()
            thread.join()
        assert stats.start_method == "forkserver"
        assert counter.value == 2

    def test_nobody_keeps_it(self):
        if sys.platform != "linux":
            self.skipTest("what other processes have open is read from /proc")
        for settings in self.few():
            mine, theirs = SPAWNING.Pipe()
            with mine:
                number = os.readlink(f"/proc/self/fd/{theirs.fileno()}")
                before = len(os.listdir("/proc/self/fd"))
                pipeline = Pipeline(**settings).add(Processor(kept_here)).add(Pipe())
                with pipeline.add(Processor(functools.partial(isinstance_too, theirs))):
                    assert kept_by(os.getpid()).count(number) == 1
                    ((beside, broker, user),) = pipeline.run([1])
                # Another Processor's worker lets go of it, and the broker keeps it for workers that start later.
                assert [each.count(number) for each in (beside, broker, user)] == [0, 1, 1]
                assert len(os.listdir("/proc/self/fd")) == before
                theirs.close()
                # All copies are closed.
                self.assertRaises(EOFError, mine.recv)

    def test_after_a_job_that_is_refused_nothing_is_kept(self):
        mine, theirs = SPAWNING.Pipe()
        with mine, theirs:
            held = [theirs, sys._getframe()]
            with nothing_left(), self.assertRaises(JobPicklingError) as caught:
                Pipeline(start_method="spawn").add(Processor(functools.partial(count, held))).run([1])
            del held
            assert caught.exception.processor == "count"

    def test_of_a_fork_context(self):
        forking = multiprocessing.get_context("fork")
        objects = [forking.Lock(), forking.Value("i"), forking.Queue(), forking.Barrier(2)]
        for made in objects:
            for settings in self.few():
                with self.subTest(made=made, settings=settings), nothing_left():
                    with self.assertRaises(JobPicklingError) as caught:
                        Pipeline(**settings).add(Processor(len)).add(Pipe()).add(Held(made)).run([[1]])
                    assert caught.exception.processor == "Held"
                    for words in ("'Held'", "in a fork context", 'multiprocessing.get_context("spawn").Lock()'):
                        assert words in str(caught.exception), caught.exception
            assert Pipeline(start_method="fork").add(Held(made)).run([1]) == [1]

    def test_what_only_looks_like_it_is_copied(self):
        SPAWNING.RawValue("i")
        number, numbers = ctypes.c_int(3), array.array("i", [1])
        for settings in self.few():
            job = functools.partial(changed, number, numbers)
            assert Pipeline(**settings).add(Processor(job)).run([1]) == [6]
            assert (number.value, list(numbers)) == (3, [1])

    def test_as_an_item(self):
        # The caller refuses it, whatever the other processes are.
        ways = ({"engine": "inline"}, {"start_method": "fork"})
        lock = SPAWNING.RLock()
        for item in (SPAWNING.Value("i"), SPAWNING.Array("i", 1), SPAWNING.Queue(), SPAWNING.Event(), lock):
            for settings in (*ways, {"start_method": "spawn"}) if item is lock and ALL else ways:
                with self.subTest(item=item, settings=settings), nothing_left():
                    with self.assertRaises(SourceError) as caught:
                        Pipeline(**settings).add(Processor(same)).run([1, item])
                    assert caught.exception.number == 1
                    assert "through inheritance" in str(caught.exception)


def isinstance_too(connection, kept):
    return *kept, kept_by(os.getpid())


def changed(number, numbers, item):
    number.value += 1
    numbers[0] += item
    return number.value + numbers[0]


if __name__ == "__main__":
    unittest.main()
