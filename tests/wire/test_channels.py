"""Channels: a message arrives whole and in order, however it is cut on the way, and the broker's end never waits.

Law: framing is tested on bare sockets, byte by byte, without processes.  The queue's broker end promises less: it
takes what has arrived whole, and is held up by a message that stops half way.
"""

from __future__ import annotations

import _signal
import contextlib
import itertools
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
import unittest

from conveyor import Pipe, Pipeline, Processor
from conveyor._system.signals import signals_blocked
from conveyor.engines.process.wire.endpoint import ConnectionLost, pack
from conveyor.engines.process.wire.messages import NoticeGiven, Results
from conveyor.engines.process.wire.pipe import PIPE, QUEUE, BlockingPipe, NonblockingPipe, channel
from tests.helpers.late import mock
from tests.helpers.support import TestCase, nothing_left, unlink_semaphores


def said(word, number=0):
    """A message, of which a test needs many that differ."""
    return NoticeGiven(word, str(number))


FRAMES = [
    (said("a"), []),
    (Results(1, (2, "x"), None), [b"blob"]),
    (said("c"), [b"", b"x" * 1000, b""]),
    (said("d"), [b"y" * 70_000, bytearray(b"z")]),
]


def count_sockets(item):
    return sum(os.path.realpath(f"/proc/self/fd/{name}").find("socket:") > 0 for name in os.listdir("/proc/self/fd"))


def count_sockets_again(item):
    return item, count_sockets(item)


def plain(frame):
    message, blobs = frame
    return message, [bytes(blob) for blob in blobs]


EXPECTED = [plain(frame) for frame in FRAMES]


def receive_all(near, count, seconds=10):
    """What the broker's end has received, once it is `count` messages."""
    deadline = time.monotonic() + seconds
    messages = []
    while len(messages) < count:
        assert time.monotonic() < deadline, f"{len(messages)} of {count}"
        more, alive = near.receive()
        messages += [plain(frame) for frame in more]
        assert alive or len(messages) == count
    return messages


class PipeTest(TestCase):
    """Socket pairs."""

    def setUp(self):
        self.leave_nothing()
        self.near, self.far = channel(PIPE, None)
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)

    def test_both_ways(self):
        for message, blobs in FRAMES:
            self.far.send(message, blobs)
            self.near.send(message, blobs)
        assert receive_all(self.near, len(FRAMES)) == EXPECTED
        assert self.near.receive() == ([], True)
        assert self.far.ready()
        assert [plain(self.far.receive()) for _ in FRAMES] == EXPECTED
        assert not self.far.ready()

    def test_cut_at_every_byte(self):
        data = b"".join(b"".join(pack(*frame)) for frame in [*FRAMES[:3], *FRAMES[:3]])
        expected = EXPECTED[:3] * 2
        for size in (1, 2, 3, 5, 11, 12, 13, 14, 40, 997, 1000, len(data)):
            with self.subTest(size=size):
                left, right = socket.socketpair()
                right.setblocking(False)
                near, messages = NonblockingPipe(right), []
                for start in range(0, len(data), size):
                    left.sendall(data[start : start + size])
                    more, alive = near.receive()
                    assert alive
                    messages += map(plain, more)
                while len(messages) < len(expected):
                    messages += map(plain, near.receive()[0])
                assert messages == expected
                left.close()
                assert near.receive() == ([], False)
                near.close()

    def test_cut_once_at_each_place(self):
        data = b"".join(b"".join(pack(*frame)) for frame in FRAMES[:2])
        for place in range(1, len(data)):
            left, right = socket.socketpair()
            left.sendall(data[:place])
            far = BlockingPipe(right)
            rest = threading.Thread(target=left.sendall, args=(data[place:],))
            rest.start()
            assert [plain(far.receive()) for _ in range(2)] == EXPECTED[:2]
            rest.join()
            left.close()
            with self.assertRaises(ConnectionLost):
                far.receive()
            far.close()

    def test_half_a_message_and_then_the_end(self):
        data = b"".join(pack(*FRAMES[1]))
        for place in (1, 8, 12, 13, len(data) - 1):
            with self.subTest(place=place):
                left, right = socket.socketpair()
                right.setblocking(False)
                left.sendall(data + data[:place])
                near = NonblockingPipe(right)
                messages, alive = near.receive()
                assert list(map(plain, messages)) == [EXPECTED[1]]
                assert alive, "it may still come"
                left.close()
                assert near.receive() == ([], False)
                near.close()
                left, right = socket.socketpair()
                left.sendall(data[:place])
                left.close()
                far = BlockingPipe(right)
                with self.assertRaises(ConnectionLost):
                    far.receive()
                far.close()

    def test_huge_messages(self):
        blobs = [os.urandom(1000) * 30_000, b"", bytes(5_000_000)]
        thread = threading.Thread(target=self.far.send, args=(said("huge"), blobs))
        thread.start()
        [(message, received)] = receive_all(self.near, 1)
        thread.join()
        assert message == said("huge") and received == blobs
        self.near.send(said("back"), blobs)
        assert self.near.unsent

        def flush():
            while self.near.unsent:
                self.near.flush()

        thread = threading.Thread(target=flush)
        thread.start()
        message, received = plain(self.far.receive())
        thread.join()
        assert message == said("back") and received == blobs

    def test_the_broker_does_not_wait_for_a_reader(self):
        begun = time.monotonic()
        for number in range(1000):
            self.near.send(said("message", number), [bytes(10_000)])
        assert self.near.unsent
        assert self.near.receive() == ([], True)
        assert time.monotonic() - begun < 15
        for number in range(1000):
            # One thread plays both sides, so each has to be ready whenever the other is.
            while not self.far.ready():
                self.near.flush()
            self.near.flush()
            assert self.far.receive()[0] == said("message", number)
        assert not self.near.unsent

    def test_more_blobs_than_the_kernel_takes_at_once(self):
        blobs = [bytes([number % 256]) * 20 for number in range(3000)]
        self.near.send(said("many"), blobs)
        while self.near.unsent:
            self.near.flush()
        assert plain(self.far.receive()) == (said("many"), blobs)

    def test_the_other_side_has_gone(self):
        self.far.close()
        self.near.send(said("nobody"), [bytes(100_000)])
        assert not self.near.unsent, "what nobody can have is dropped"
        assert self.near.receive() == ([], False)
        near, far = channel(PIPE, None)
        near.close()
        with self.assertRaises(ConnectionLost):
            for _ in range(2):
                far.send(said("nobody"))
        with self.assertRaises(ConnectionLost):
            far.receive()
        far.close()

    def test_waiting_for_a_message_that_may_not_come(self):
        assert self.far.receive_within(0.01) is None
        data = b"".join(pack(*FRAMES[1]))
        self.near._socket.send(data[:20])
        begun = time.monotonic()
        assert self.far.receive_within(0.05) is None, "half of one does not hold anybody up"
        assert time.monotonic() - begun < 15
        self.near._socket.send(data[20:])
        assert plain(self.far.receive_within(5)) == EXPECTED[1]
        self.near.close()
        with self.assertRaises(ConnectionLost):
            self.far.receive_within(5)

    def test_a_read_that_was_left_by_an_exception(self):
        # Nobody knows what was lost then, so nothing that comes later is taken for a message.
        self.near.send(said("a"))
        with mock.patch("conveyor.engines.process.wire.pipe.unpack", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                self.far.receive()
        self.near.send(said("b"))
        with self.assertRaises(ConnectionLost):
            self.far.receive_within(5)

    def test_last_words_of_one_who_has_gone(self):
        self.far.send(said("one"), [bytes(100_000)])
        assert self.near.receive() is not None
        self.far.send(said("two"))
        self.far.send(said("three"))
        self.far.close()
        words = []
        while True:
            messages, alive = self.near.receive()
            words += [message for message, _ in messages]
            if not alive:
                break
        assert words[-2:] == [said("two"), said("three")], words


def receive_until_gone(near, seconds=10):
    """What the broker's end receives until the other side is gone."""
    deadline = time.monotonic() + seconds
    received = []
    while time.monotonic() < deadline:
        messages, alive = near.receive()
        received += messages
        if not alive:
            return received
    raise AssertionError("it is not seen that the other side is gone")


def send_into_the_void(far):
    """Send a message that nobody reads, and wait until that is known."""
    with contextlib.suppress(ConnectionLost):
        far.send(said("huge"), [bytes(20_000_000)])
        far.flush()


def talk(far, foreign):
    """Send back what comes, until told to stop; close the ends that came along first."""
    for end in foreign:
        end.close()
    while True:
        message, blobs = far.receive()
        far.send(message, blobs)
        if message == said("stop"):
            far.flush()
            far.close()
            return


def be_quiet(far, ready):
    """Neither read nor write, and be killed."""
    ready.set()
    while True:
        signal.pause()


def shout(end, foreign):
    """Send more than fits into what is between, and be killed amid it."""
    for other in foreign:
        other.close()
    end.send(said("huge"), [bytes(20_000_000)])
    while True:
        end.flush()


def start_a_listener(kind, method, reads, telling):
    """Start a process that listens at one end, and shout at the other."""
    context = multiprocessing.get_context(method)
    near, far = channel(kind, context)
    mine, theirs = (far, near) if reads == "near" else (near, far)
    foreign = [mine] if method == "fork" else []
    context.Process(target=listen, args=(theirs, foreign, telling)).start()
    theirs.close()
    shout(mine, ())


def listen(end, foreign, telling):
    """Say when a message has begun, and then when its sender is gone."""
    for other in foreign:
        other.close()
    if hasattr(end, "waitable"):
        multiprocessing.connection.wait([end.waitable()])
        telling.send("begun")
        receive_until_gone(end)
    else:
        end.ready(10)
        telling.send("begun")
        with contextlib.suppress(ConnectionLost):
            end.receive()
    end.close()
    telling.send("gone")


class ProcessTest(TestCase):
    """Both kinds, with a process at the far end."""

    def test_there_and_back(self):
        for kind in (PIPE, QUEUE):
            for method in ("fork", "spawn"):
                with self.subTest(kind=kind, method=method):
                    self.there_and_back(kind, multiprocessing.get_context(method))

    def there_and_back(self, kind, context):
        with nothing_left():
            near, far = channel(kind, context)
            foreign = [near] if context.get_start_method() == "fork" else []
            process = context.Process(target=talk, args=(far, foreign))
            process.start()
            far.close()
            huge = (said("huge"), [bytes(20_000_000)])
            for frame in [*FRAMES, huge, (said("stop"), [])]:
                near.send(*frame)
            received = []
            while len(received) < len(FRAMES) + 2:
                near.flush()
                multiprocessing.connection.wait([near.waitable()], 0.05)
                received += map(plain, near.receive()[0])
            assert received == [*EXPECTED, plain(huge), (said("stop"), [])]
            process.join()
            assert near.receive() == ([], False)
            near.close()
            process.close()
            del near, far

    def test_a_reader_that_does_not_read_is_killed(self):
        context = multiprocessing.get_context("fork")
        for kind in (PIPE, QUEUE):
            with self.subTest(kind=kind), nothing_left():
                near, far = channel(kind, context)
                ready = context.Event()
                process = context.Process(target=be_quiet, args=(far, ready))
                process.start()
                far.close()
                ready.wait()
                begun = time.monotonic()
                for number in range(200):
                    near.send(said("message", number), [bytes(50_000)])
                assert near.receive() == ([], True)
                assert time.monotonic() - begun < 10
                process.kill()
                process.join()
                assert near.receive() == ([], False)
                near.close()
                process.close()
                del ready, near, far

    def test_one_who_is_killed_amid_a_message(self):
        # On both ends, and also where the process was not forked but sent its end.
        for kind, method, at in itertools.product((PIPE, QUEUE), ("fork", "spawn"), ("near", "far")):
            with self.subTest(kind=kind, method=method, at=at), nothing_left():
                context = multiprocessing.get_context(method)
                near, far = channel(kind, context)
                mine, theirs = (far, near) if at == "near" else (near, far)
                foreign = [mine] if method == "fork" else []
                process = context.Process(target=shout, args=(theirs, foreign))
                process.start()
                theirs.close()
                if at == "near":
                    assert far.ready(10)
                    process.kill()
                    process.join()
                    with self.assertRaises(ConnectionLost):
                        far.receive()
                else:
                    assert multiprocessing.connection.wait([near.waitable()], 10)
                    process.kill()
                    process.join()
                    assert receive_until_gone(near) == []
                mine.close()
                process.close()
                del near, far, mine, theirs, foreign

    def test_one_who_is_killed_amid_a_message_to_a_process_that_it_started(self):
        for kind, method, reads in itertools.product((PIPE, QUEUE), ("fork", "spawn"), ("near", "far")):
            if (method, reads) == ("spawn", "near"):
                # Neither of the two has more than its own end then, whichever that is.
                continue
            with self.subTest(kind=kind, method=method, reads=reads):
                context = multiprocessing.get_context(method)
                hearing, telling = context.Pipe(duplex=False)
                process = context.Process(target=start_a_listener, args=(kind, method, reads, telling))
                process.start()
                telling.close()
                assert hearing.poll(10) and hearing.recv() == "begun"
                process.kill()
                process.join()
                process.close()
                assert hearing.poll(10) and hearing.recv() == "gone"
                # The listener is nobody's child any more; its end of the pipe goes with it.
                with self.assertRaises(EOFError):
                    hearing.recv()
                hearing.close()
                del hearing, telling
            # Those of one who is killed would stay until the resource tracker ends, and for ever where this process is
            # ended from outside.
            unlink_semaphores()

    def test_one_whose_reader_is_killed(self):
        # What is amid a message hears of it, and does not wait for room for ever.
        for kind, method in itertools.product((PIPE, QUEUE), ("fork", "spawn")):
            with self.subTest(kind=kind, method=method), nothing_left():
                context = multiprocessing.get_context(method)
                near, far = channel(kind, context)
                ready = context.Event()
                process = context.Process(target=be_quiet, args=(near, ready))
                process.start()
                near.close()
                ready.wait()
                thread = threading.Thread(target=send_into_the_void, args=(far,))
                thread.start()
                process.kill()
                process.join()
                thread.join(10)
                assert not thread.is_alive()
                far.close()
                process.close()
                del ready, near, far


class OneSideTest(TestCase):
    """What one side does of itself."""

    def test_a_worker_has_its_own_end_alone(self):
        # With the broker's end as well it would never see that the broker is gone.
        for method in ("fork", "forkserver", "spawn"):
            with self.subTest(method=method):
                pipeline = Pipeline(start_method=method, channel="pipe")
                pipeline.add(Processor(count_sockets)).add(Pipe()).add(Processor(count_sockets_again, workers=2))
                self.assertEqual(pipeline.run([1]), [(1, 1)])

    def test_a_worker_imports_its_own_kind_of_channel_alone(self):
        # Each fresh interpreter waits for what it imports.
        # `eval`, because a job of this file would have it imported, with all that it needs.
        pipeline = Pipeline(start_method="spawn", channel="pipe").add(Processor(eval))
        found = pipeline.run(["set(__import__('sys').modules)"])[0]
        assert "conveyor.engines.process.wire.pipe" in found
        assert not {f"conveyor.engines.process.wire.{name}" for name in ("queue", "channel")} & found

    def test_signals_are_blocked_no_longer_than_that(self):
        # Also where one that was due is handled just then, by a handler that raises.
        real = _signal.pthread_sigmask
        before = real(signal.SIG_BLOCK, [])

        def handled(how, signals):
            found = real(how, signals)
            if how == signal.SIG_BLOCK and signals:
                raise KeyboardInterrupt
            return found

        with mock.patch("_signal.pthread_sigmask", handled), self.assertRaises(KeyboardInterrupt):
            with signals_blocked({signal.SIGUSR1}):
                raise AssertionError
        assert real(signal.SIG_BLOCK, []) == before

    def test_wherever_a_handler_raises_no_signal_stays_blocked(self):
        # Python runs handlers where a function begins.  In their place, a tracer raises there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self.addCleanup(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        self.addCleanup(sys.settrace, sys.gettrace())
        blocked = before | {signal.SIGUSR1}

        def is_interrupted(place):
            begun = itertools.count()

            def interrupt(frame, event, argument):
                # Python 3.10 leaves a generator for what a tracer raises there, and none for what a handler raises.
                if frame.f_code.co_name != "signals_blocked" and next(begun) == place:
                    raise KeyboardInterrupt

            try:
                sys.settrace(interrupt)
                with signals_blocked({signal.SIGUSR1}):
                    found = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
                sys.settrace(None)
            except KeyboardInterrupt:
                return True
            assert found == blocked
            return False

        places = itertools.takewhile(is_interrupted, itertools.count())
        masks = [signal.pthread_sigmask(signal.SIG_BLOCK, []) for _ in places]
        assert len(masks) > 3 and masks == len(masks) * [before]


if __name__ == "__main__":
    unittest.main()
