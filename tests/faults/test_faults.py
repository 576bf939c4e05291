"""Faults: each is injected for real, and what comes of it is one of three: survived with the exact list; an error that says
which Processor and, where there is one, which item; or the item given up and listed, and the rest exact.

Law: a row is tried with forked and with spawned workers where it depends on how processes start, and over both channels
where it depends on how messages travel.  It leaves nothing: no process, thread, descriptor, shared memory or semaphore.
Nobody waits for a time to pass: each fault comes when the processes are seen to be where it is to hit them.  The table of
all faults, also of those that other files inject, is in docs/internals/faults.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import textwrap
import threading
import time
import unittest
import warnings
from functools import partial
from multiprocessing import queues, resource_tracker
from pathlib import Path

from conveyor import (
    Pipe,
    Pipeline,
    ProcessError,
    Processor,
    ProcessorError,
    SourceError,
    StartMethodWarning,
    WorkerDiedError,
)
from conveyor.engines.process.wire import pipe, queue
from tests.engines.test_bounds import settled
from tests.faults.test_shutdown import Script, tracebacks
from tests.faults.test_survival import kill, workers_of_the_pipeline
from tests.helpers.jobs_of_failures import read_number, wait_until
from tests.helpers.late import mock
from tests.helpers.support import TestCase, _everyone, slow

LIMIT_SECONDS = 15.0
"""What an error may take from the start of the run, on a busy machine; a fifth of that is usual, most of it for spawning."""
LARGE = 8_000_000
MIB = 1024 * 1024


def same(item):
    return item


def process_number(item):
    return os.getpid()


def size_and_process(item):
    return len(item), os.getpid()


def exit_at_100(item):
    if item == 100:
        os._exit(5)
    return item


def hang_at_three_and_five(item):
    while item == 3:
        pass
    if item == 5:
        os.kill(os.getpid(), signal.SIGSTOP)
    return item


def stuck(item):
    """Say so, and wait in compiled code that keeps the interpreter's lock, so that no other thread of it can act."""
    os.write(1, b"busy\n")
    ctypes.PyDLL(None).pause()


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


class Gate(Files):
    """Stops at item 1, the first time, until it is let on; makes large outputs where it is told so."""

    def __init__(self, folder, large=False):
        super().__init__(folder)
        self.large = large

    def process(self, item):
        self.append("calls", item)
        if item == 1 and not os.path.exists(os.path.join(self.folder, "at")):
            Path(self.folder, "at").write_text(str(os.getpid()))
            while not os.path.exists(os.path.join(self.folder, "go")):
                time.sleep(0.001)
        return bytes([item]) * LARGE if self.large else item


class DiesInSetup(Files):
    """Counts its starts."""

    def setup(self):
        self.append("starts", os.getpid())
        os._exit(5)


class DiesIdle(Files):
    """Is up, and has a thread that ends it soon, whatever comes."""

    def setup(self):
        self.append("starts", os.getpid())
        threading.Thread(target=self.end, daemon=True).start()

    def end(self):
        # By then it has said that it is up, also where the machine stands still for a while.
        time.sleep(0.5)
        os._exit(5)


class DiesOfMessages(Files):
    """Is up, and ends with the first message that comes, as one does for which that is too heavy."""

    def setup(self):
        self.append("starts", os.getpid())
        pipe.unpack = queue.unpack = lambda *_: os._exit(5)


class DiesInTeardown(Files):
    """Is killed when it has been told to leave, before it has."""

    def teardown(self):
        self.append("left", os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)


def in_child(path, item):
    """Fork at one item, note the child, and return whether this is it."""
    if item != 1:
        return False
    with warnings.catch_warnings():
        # Of a fork beside the thread of a queue.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        Path(path).write_text(str(child))
    return not child


def has_ended(path):
    """Whether the child that is noted there has."""
    child, everyone = read_number(path), _everyone()
    return child is not None and (child not in everyone or everyone[child].state == "Z")


def fork_and_return(path, item):
    """Both come back, parent and child."""
    in_child(path, item)
    return item


def fork_and_return_large(path, item):
    """The child comes back late, when the worker's output is sent, with something else."""
    if in_child(path, item):
        time.sleep(0.2)
        return b"Z" * 10**6
    return bytes([65 + item]) * 10**6


def fork_and_raise(path, item):
    """The parent comes back, the child with an error."""
    if in_child(path, item):
        raise ValueError("the child's")
    return item


class LeavesGrandchild(Files):
    """Forks a process that stays, and has all that its worker had; then the worker dies."""

    def process(self, item):
        path = Path(self.folder, "grandchild")
        if item == 3 and not path.exists():
            with warnings.catch_warnings():
                # A worker whose channel is a queue has a thread for it, which later versions of Python warn of.
                warnings.simplefilter("ignore", DeprecationWarning)
                grandchild = os.fork()
            if not grandchild:
                while True:
                    signal.pause()
            path.write_text(str(grandchild))
            os.kill(os.getpid(), signal.SIGKILL)
        return item


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


class WaitsForSignal(Processor):
    """Waits for a signal, which is blocked from `setup` on so that it does not come before."""

    def setup(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def process(self, item):
        os.kill(os.getpid(), signal.SIGUSR1)
        return signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1


class NoMoreThreads(Processor):
    """Has none but those that were there before `setup`."""

    restartable = True

    def setup(self):
        def refuse(*arguments, **keywords):
            raise RuntimeError("can't start new thread")

        threading.Thread.start = refuse

    def process(self, item):
        return item + 1


class CannotSend(Processor):
    """Has no memory for the copy of a long message that a queue makes, and nowhere to say so."""

    restartable = True

    def setup(self):
        sys.stderr = None

        class NoMemory(queues._ForkingPickler):
            @classmethod
            def dumps(cls, message):
                if len(message) > 8192:
                    raise MemoryError
                return super().dumps(message)

        queues._ForkingPickler = NoMemory

    def process(self, item):
        return bytes(item)


class TwoArguments(Exception):
    """Cannot be unpickled: its arguments are not those of its `__init__`."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class HoldsLock(Exception):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class ExitsWhenPickled(Exception):
    """Wants to end the process that pickles it."""

    def __reduce__(self):
        raise SystemExit(3)


class ExitsWhenUnpickled(Exception):
    """Wants to end the process that unpickles it."""

    def __reduce__(self):
        return exit_now, ()


class DiesWhenPickled(Exception):
    """Ends the process that pickles it."""

    def __reduce__(self):
        os._exit(5)


def exit_now():
    raise SystemExit(3)


EXCEPTIONS = (lambda: TwoArguments(1, 2), HoldsLock, ExitsWhenPickled, ExitsWhenUnpickled, DiesWhenPickled)


def raise_by_number(item):
    if item < len(EXCEPTIONS):
        raise EXCEPTIONS[item]()
    return item


class Exits:
    """Exits, in the method that is named, from the process that pickles or unpickles it; with `die` the process cannot
    help it."""

    def __init__(self, where, die=False):
        self.where, self.die = where, die

    def end(self, where):
        if self.where == where:
            if self.die:
                os._exit(5)
            raise SystemExit(3)

    def __reduce_ex__(self, protocol):
        self.end("__reduce__")
        return super().__reduce_ex__(protocol)

    def __getstate__(self):
        self.end("__getstate__")
        return dict(self.__dict__)

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.end("__setstate__")


EXITS = {3: ("__reduce__", False), 7: ("__getstate__", False), 11: ("__reduce__", True), 15: ("__getstate__", True)}


def exit_by_number(item):
    return Exits(*EXITS[item]) if item in EXITS else item


def exits_when_unpickled(item):
    return Exits("__setstate__")


LOCK = threading.Lock()


def under_the_lock(item):
    with LOCK:
        return item


def wait_for_rest(pid):
    """Wait until each thread of a process is asleep, look after look: it has done what it can do."""
    looks = 0

    def at_rest():
        nonlocal looks
        states = [
            Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()[0]
            for task in os.listdir(f"/proc/{pid}/task")
        ]
        looks = looks + 1 if set(states) <= {"S", "T"} else 0
        return looks == 8

    wait_until(at_rest, f"process {pid} comes to rest")


@contextlib.contextmanager
def stopped(pid):
    """Have a process stand still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _everyone()[pid].state == "T", "the process stands still")
        yield
    finally:
        kill(pid, signal.SIGCONT)


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
        self.folder = self.new_folder()
        if self.settings.get("start_method") != "fork":
            # The standard library's own, of which a process has one and keeps it.
            resource_tracker.ensure_running()
        self.leave_nothing()
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
    def fails(self, expected, words, /, within=LIMIT_SECONDS, **fields):
        """The block raises `expected` soon, with these words and fields."""
        begun = time.monotonic()
        with self.assertRaisesRegex(expected, words) as caught:
            yield
        seconds = time.monotonic() - begun
        assert type(caught.exception) is expected, caught.exception
        for name, value in fields.items():
            assert getattr(caught.exception, name) == value, (name, getattr(caught.exception, name), value)
        assert seconds < within, f"{seconds:.2f} s"

    def lines(self, name):
        return Path(self.folder, name).read_text().split()


class Faults(Base):
    """The rows, for one start method and channel."""

    # Workers that are killed, at moments that are made to last

    def at_the_gate(self):
        """Wait until a worker is at item 1; return it, and its broker."""
        path = os.path.join(self.folder, "at")
        wait_until(lambda: read_number(path), "a worker is at the gate")
        worker = read_number(path)
        return worker, _everyone()[worker].parent

    def test_killed_in_the_middle_of_a_large_reply(self):
        self.use_no_shared_memory()
        with self.make(Gate(self.folder, large=True)).stream(range(3)) as stream:
            worker, broker = self.at_the_gate()
            with stopped(broker):
                # Nobody reads, so the reply fills the channel, and the rest of it waits.
                Path(self.folder, "go").touch()
                wait_for_rest(worker)
                os.kill(worker, signal.SIGKILL)
            assert [(len(result), result[0]) for result in stream] == [(LARGE, 0), (LARGE, 1), (LARGE, 2)]
        assert self.lines("calls").count("1") == 2, "it ran again, as its output was lost"

    def test_killed_between_its_reply_and_the_reading_of_it(self):
        with self.make(Gate(self.folder)).stream(range(3)) as stream:
            worker, broker = self.at_the_gate()
            with stopped(broker):
                Path(self.folder, "go").touch()
                wait_for_rest(worker)
                os.kill(worker, signal.SIGKILL)
            assert list(stream) == [0, 1, 2]
        assert sorted(self.lines("calls")) == ["0", "1", "2"], "what was done is not done again"

    def test_killed_while_it_receives(self):
        self.use_no_shared_memory()
        with self.make(Gate(self.folder, large=True), Processor(size_and_process)) as pipeline:
            reader = pipeline.run([0])[0][1]
            with stopped(reader):
                stream = pipeline.stream([1])
                writer, broker = self.at_the_gate()
                Path(self.folder, "go").touch()
                # The broker has all of the item then, and the reader as much of it as the channel holds.
                wait_for_rest(writer)
                wait_for_rest(broker)
                os.kill(reader, signal.SIGKILL)
            ((size, another),) = stream
            assert size == LARGE and another != reader

    def test_killed_while_it_leaves(self):
        # A worker that is not needed any more, here because it has had its share, is asked to leave, and is hit then.
        pipeline = self.make(DiesInTeardown(self.folder, max_items=8), Processor(same))
        assert pipeline.run(range(20)) == list(range(20))
        assert len(set(self.lines("left"))) == 3

    # Items and jobs that end workers, or try to

    def test_an_item_that_always_kills_amid_a_chunk_is_given_up(self):
        # The chunks double, so that it is one of those from 63 to 126, or of a smaller part of them.
        pipeline = self.make(Processor(exit_at_100, on_error="skip"))
        assert pipeline.run(range(256)) == [item for item in range(256) if item != 100]
        (failed,) = pipeline.failures
        assert (failed.number, failed.last, failed.attempts, failed.error.exitcode) == (100, 100, 2, 5)
        assert type(failed.error) is WorkerDiedError and failed.processor == "exit_at_100"

    def test_death_in_setup_again_and_again(self):
        with self.fails(WorkerDiedError, "'DiesInSetup' exited with code 5", phase="setup", exitcode=5):
            self.make(DiesInSetup(self.folder)).run([1])
        assert 2 <= len(self.lines("starts")) <= 5, "no storm"

    def test_death_with_nothing_to_do_again_and_again(self):
        item = threading.Event()
        self.addCleanup(item.set)
        message = "exited with code 5 while it had nothing to do, as did the workers before it"
        with self.fails(WorkerDiedError, message, within=30.0, phase="wait", exitcode=5):
            # The source gives nothing until the end.
            self.make(DiesIdle(self.folder)).run(iter(item.wait, True))
        assert len(self.lines("starts")) == 5, self.lines("starts")

    def test_a_signal_that_setup_has_blocked_waits(self):
        assert self.make(WaitsForSignal()).run(range(3)) == [True] * 3

    def test_no_thread_can_be_started_after_setup(self):
        assert self.make(NoMoreThreads()).run(range(100)) == list(range(1, 101))

    def test_what_a_queue_cannot_send_is_not_waited_for(self):
        if self.settings["channel"] != "queue":
            self.skipTest("of queues alone")
        with self.fails(
            WorkerDiedError, "exited with code 4", processor="CannotSend", exitcode=queue.UNSENT_EXIT_CODE, number=1
        ):
            self.make(CannotSend()).run([5, 16_000, 7])

    def test_too_little_memory(self):
        huge = 1 << 40
        with self.fails(ProcessorError, "MemoryError", processor="Bounded", number=1, item=str(huge)):
            self.make(Bounded()).run([5, huge, 7])

    def test_too_little_memory_for_what_comes(self):
        self.use_no_shared_memory()
        fields = {"processor": "BoundedSize", "phase": "wait", "kind": "MemoryError", "number": 1, "last": 1}
        with self.fails(ProcessorError, "not enough memory to receive its next items", **fields):
            self.make(BoundedSize()).run(iter([b"", bytes(48 * MIB)]))

    def test_too_little_memory_to_unpickle_what_comes(self):
        fields = {"processor": "BoundedSize", "phase": "unpickle", "kind": "MemoryError", "number": 1}
        with self.fails(ProcessorError, "MemoryError", **fields):
            self.make(BoundedSize()).run(iter([b"", bytes(48 * MIB)]))

    def test_an_item_that_kills_when_it_is_received(self):
        fields = {"processor": "DiesOfMessages", "phase": "receive", "exitcode": 5, "number": 0, "last": 0}
        with self.fails(WorkerDiedError, "while it had item 0 and had started none", **fields):
            self.make(DiesOfMessages(self.folder)).run([1])
        assert len(self.lines("starts")) == 5, self.lines("starts")

    def test_exceptions_that_cannot_be_rebuilt(self):
        pipeline = self.make(Processor(raise_by_number, on_error="skip"))
        assert pipeline.run(range(20)) == list(range(len(EXCEPTIONS), 20))
        assert [(failed.number, failed.error.kind) for failed in pipeline.failures] == [
            (0, "TwoArguments"),
            (1, "HoldsLock"),
            (2, "ExitsWhenPickled"),
            (3, "ExitsWhenUnpickled"),
            (4, "WorkerDiedError"),
        ]
        assert "1 and 2" in str(pipeline.failures[0].error) and pipeline.failures[4].error.exitcode == 5

    def test_outputs_that_exit_when_they_are_pickled(self):
        pipeline = self.make(Processor(exit_by_number, on_error="skip"), Processor(same))
        assert pipeline.run(range(20)) == [item for item in range(20) if item not in EXITS]
        assert [(failed.number, failed.last, failed.error.kind) for failed in pipeline.failures] == [
            (3, 3, "SystemExit"),
            (7, 7, "SystemExit"),
            (11, 11, "WorkerDiedError"),
            (15, 15, "WorkerDiedError"),
        ]

    def test_inputs_that_exit(self):
        with self.make(Processor(same)) as pipeline:
            for where in ("__reduce__", "__getstate__"):
                with self.subTest(where=where), self.fails(SourceError, "SystemExit", number=1):
                    pipeline.run([0, Exits(where), 2])
            fields = {"processor": "same", "phase": "unpickle", "kind": "SystemExit"}
            with self.subTest(where="__setstate__"), self.fails(ProcessorError, "SystemExit", **fields):
                pipeline.run([Exits("__setstate__")])

    def test_results_that_exit_when_they_are_unpickled(self):
        # A handler of signals may exit in that moment too, so the caller's own exit it is; but with everything ended.
        with self.assertRaises(SystemExit):
            self.make(Processor(exits_when_unpickled)).run([1])
        assert not workers_of_the_pipeline()

    def test_a_grandchild_that_stays(self):
        pipeline = self.make(LeavesGrandchild(self.folder), Processor(same))
        with self.assertLogs("conveyor") as logs:
            assert pipeline.run(range(10)) == list(range(10))
        grandchild = read_number(os.path.join(self.folder, "grandchild"))
        assert grandchild not in _everyone() and str(grandchild) in logs.output[0]

    def test_a_child_that_comes_back(self):
        # It would go on as if it were the worker, over the same channel, and stay for ever.
        letters = [letter * 10**6 for letter in (b"A", b"B", b"C")]
        for job, expected in (
            (fork_and_return, [0, 1, 2]),
            (fork_and_raise, [0, 1, 2]),
            (fork_and_return_large, letters),
        ):
            with self.subTest(job=job):
                path = os.path.join(self.folder, job.__name__)
                results = []
                for result in self.make(Processor(partial(job, path))).stream(range(3)):
                    # Until then the child may write, where the worker's output is.
                    wait_until(partial(has_ended, path), "the end of the child")
                    results.append(result)
                assert results == expected

    # The ends of the pipeline

    def test_a_source_that_raises_midway(self):
        def midway():
            yield from range(5)
            raise KeyError("midway")

        with self.fails(SourceError, "KeyError", number=5, item=None):
            self.make(Processor(same)).run(midway())

    def test_a_slow_consumer_that_leaves_an_endless_source(self):
        pulled = 0

        def endless():
            nonlocal pulled
            while True:
                yield pulled
                pulled += 1

        pipeline = Pipeline(**self.settings).add(Processor(same)).add(Pipe(maxsize=10)).add(Processor(same))
        with pipeline.stream(endless()) as stream:
            assert next(stream) == 0
            ahead = settled(lambda: pulled, least=10)
            # The pipe between, those in front and behind, which are like it, and what is in hands.
            assert 10 <= ahead <= 40, ahead
            assert list(itertools.islice(stream, 100)) == list(range(1, 101))
            begun = time.monotonic()
        assert time.monotonic() - begun < LIMIT_SECONDS
        assert not workers_of_the_pipeline()

    # What the system has no more of

    def test_no_shared_memory_at_the_start(self):
        # No file can be given a byte, which is what happens on a full /dev/shm, and here to these processes alone.
        with limited(resource.RLIMIT_FSIZE, 0):
            if self.queues:
                with self.fails(ProcessError, "broker process of the pipeline could not be started"):
                    self.make(Processor(same)).run(range(20))
            elif self.settings["start_method"] == "spawn":
                # The progress board is a file without a name: it needs no /dev/shm, but falls under the limit.
                with self.fails(ProcessError, "worker of Processor 'same' could not be started"):
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

    # What is not in this process, but in a script of its own

    def script(self, body):
        # The import has its semaphores named by its number.
        script = Script(self, f"from tests.faults.test_faults import stuck\n{textwrap.dedent(body)}", **self.settings)
        self.addCleanup(self.sweep, script)
        return script

    def sweep(self, script):
        """Where a test fails, end what is left: a worker that is stuck would stay for ever."""
        everyone = _everyone()
        for pid, started in script.known.items():
            if pid in everyone and everyone[pid].started == started:
                with contextlib.suppress(OSError):
                    # The tracker of resources ends by itself behind the others, and has their semaphores to remove.
                    if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                        kill(pid)

    def end(self, script):
        """Wait for the end of a script and of all that it started, semaphores too; return its exit code and errors."""
        code = script.end(within=LIMIT_SECONDS)
        names = f"sem.mp-{script.process.pid}-"

        def left():
            everyone = _everyone().values()
            group = [each for each in everyone if each.group == script.process.pid and each.state != "Z"]
            return group or [name for name in os.listdir("/dev/shm") if name.startswith(names)]

        wait_until(lambda: not left(), "nothing is left of the script")
        errors = script.stderr()
        if self.queues and self.settings["start_method"] == "spawn":
            # The tracker of resources says that it has removed the semaphores of those that could not do it any more.
            errors = "".join(line for line in errors.splitlines(True) if "resource_tracker" not in line)
            errors = "" if errors.strip() == "warnings.warn('resource_tracker" else errors
        return code, errors

    def test_ctrl_c_twice(self):
        script = self.script("make(Processor(same), Processor(spins)).run(itertools.count())")
        script.wait_for("busy")
        script.note().send(signal.SIGINT)
        time.sleep(0.05)  # not to wait for something: any moment will do
        script.send(signal.SIGINT)
        code, errors = self.end(script)
        # The second may come when the first is being told of.
        assert code in (-signal.SIGINT, 1), (code, errors)
        assert 1 <= tracebacks(errors) <= 2 and "KeyboardInterrupt" in errors, errors
        assert "Error" not in errors.replace("KeyboardInterrupt", ""), errors

    def test_the_caller_is_terminated(self):
        script = self.script("make(Processor(same), Processor(spins)).run(itertools.count())")
        script.wait_for("busy")
        script.note().process.terminate()
        code, errors = self.end(script)
        assert code == -signal.SIGTERM and "Traceback" not in errors, (code, errors)

    def test_the_caller_is_killed_while_a_worker_is_stuck(self):
        script = self.script("make(Processor(same), Processor(stuck)).run(itertools.count())")
        script.wait_for("busy")
        script.note().process.kill()
        code, errors = self.end(script)
        assert code == -signal.SIGKILL and "Traceback" not in errors, (code, errors)

    def test_the_caller_is_killed_while_threads_of_a_worker_are_stuck(self):
        script = self.script("make(Processor(same), Processor(stuck, threads=3)).run(itertools.count())")
        script.wait_for("busy")
        script.note().process.kill()
        code, errors = self.end(script)
        assert code == -signal.SIGKILL and "Traceback" not in errors, (code, errors)

    def test_the_broker_is_killed_while_a_worker_is_stuck(self):
        body = """
            try:
                make(Processor(stuck)).run([1])
            except ProcessError as error:
                assert error.exitcode == -signal.SIGKILL, error
                say("good")
        """
        script = self.script(body)
        script.wait_for("busy")
        script.note()
        everyone = _everyone()
        (broker,) = {everyone[pid].parent for pid in script.known} & set(script.known)
        os.kill(broker, signal.SIGKILL)
        script.wait_for("good")
        code, errors = self.end(script)
        assert code == 0 and "Traceback" not in errors, (code, errors)


class ForkPipeTest(Faults, TestCase):
    """Forked workers, over socket pairs."""


@slow
class ForkQueueTest(Faults, TestCase):
    """Forked workers, over queues; without what is the same however messages travel."""

    settings = {"start_method": "fork", "channel": "queue"}
    test_an_item_that_always_kills_amid_a_chunk_is_given_up = None
    test_death_in_setup_again_and_again = None
    test_death_with_nothing_to_do_again_and_again = None
    test_a_signal_that_setup_has_blocked_waits = None
    test_too_little_memory = None
    test_a_source_that_raises_midway = None
    test_a_slow_consumer_that_leaves_an_endless_source = None
    test_the_caller_is_killed_while_threads_of_a_worker_are_stuck = None

    def test_no_thread_for_what_is_to_be_sent_to_a_worker(self):
        start, caller, started = queue._start_feeder, os.getpid(), []

        def start_one(outward):
            """In the broker, the three by which it speaks to the caller, and no more."""
            if os.getpid() != caller and multiprocessing.parent_process().pid == caller:
                started.append(outward)
                if len(started) > 3:
                    raise RuntimeError("can't start new thread")
            start(outward)

        words = "A worker of Processor 'same' could not be started: can't start new thread"
        with mock.patch.object(queue, "_start_feeder", start_one):
            with self.fails(ProcessError, words):
                self.make(Processor(same, workers=2)).run(range(10))
            pipeline = self.make(Processor(same, workers=2))
            with self.fails(ProcessError, words):
                pipeline.open()
            pipeline.close()


@slow
class SpawnPipeTest(Faults, TestCase):
    """Workers that are fresh interpreters, over socket pairs.

    Without what depends on how messages travel, or on what the core decides, but not on how processes start.
    """

    settings = {"start_method": "spawn", "channel": "pipe"}
    test_killed_in_the_middle_of_a_large_reply = None
    test_killed_between_its_reply_and_the_reading_of_it = None
    test_killed_while_it_receives = None
    test_an_item_that_always_kills_amid_a_chunk_is_given_up = None
    test_death_with_nothing_to_do_again_and_again = None
    test_what_a_queue_cannot_send_is_not_waited_for = None
    test_too_little_memory_for_what_comes = None
    test_too_little_memory_to_unpickle_what_comes = None
    test_an_item_that_kills_when_it_is_received = None
    test_exceptions_that_cannot_be_rebuilt = None
    test_outputs_that_exit_when_they_are_pickled = None
    test_inputs_that_exit = None
    test_results_that_exit_when_they_are_unpickled = None
    test_a_source_that_raises_midway = None
    test_a_slow_consumer_that_leaves_an_endless_source = None
    test_ctrl_c_twice = None
    test_the_caller_is_terminated = None
    test_the_caller_is_killed_while_threads_of_a_worker_are_stuck = None


@slow
class SpawnQueueTest(SpawnPipeTest):
    """Workers that are fresh interpreters, over queues; with what other files do for the other three.

    Without what depends on how processes start, or on how messages travel, but not on both.
    """

    settings = {"start_method": "spawn", "channel": "queue"}
    test_killed_while_it_leaves = None
    test_death_in_setup_again_and_again = None
    test_a_signal_that_setup_has_blocked_waits = None
    test_no_thread_can_be_started_after_setup = None
    test_too_little_memory = None
    test_a_grandchild_that_stays = None
    test_a_child_that_comes_back = None
    test_no_descriptors_when_a_worker_is_replaced = None
    test_the_broker_is_killed_while_a_worker_is_stuck = None

    def test_a_job_that_hangs(self):
        pipeline = self.make(Processor(hang_at_three_and_five, timeout=0.2, on_error="skip"))
        assert pipeline.run(range(20)) == [item for item in range(20) if item not in (3, 5)]
        assert [(failed.number, failed.error.kind) for failed in pipeline.failures] == [
            (3, "ItemTimeoutError"),
            (5, "ItemTimeoutError"),
        ]

    def test_an_input_that_kills_when_it_is_unpickled(self):
        fields = {"processor": "same", "phase": "unpickle", "exitcode": 5, "number": 0, "last": 0}
        with self.fails(WorkerDiedError, "ends every process that unpickles it", **fields):
            self.make(Processor(same)).run([Exits("__setstate__", die=True)])


class DefaultStartTest(Base, TestCase):
    """Without a start method."""

    def test_a_lock_that_another_thread_holds(self):
        # In a forked worker it would be held for ever.
        for channel in ("pipe", "queue"):
            self.settings = {"channel": channel}
            with self.subTest(channel=channel):
                resource_tracker.ensure_running()
                over, held = threading.Event(), threading.Event()

                def hold(over=over, held=held):
                    with LOCK:
                        held.set()
                        over.wait()

                thread = threading.Thread(target=hold)
                thread.start()
                try:
                    held.wait()
                    with warnings.catch_warnings():
                        # It is said once in a process.
                        warnings.simplefilter("ignore", StartMethodWarning)
                        assert self.make(Processor(under_the_lock)).run([1, 2, 3]) == [1, 2, 3]
                finally:
                    over.set()
                    thread.join()


if __name__ == "__main__":
    unittest.main()
