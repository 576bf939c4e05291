"""What jobs print arrives where the caller prints, also where that is no file: text and bytes, in their order.

Law: what a job prints in all its phases is compared as a whole, for each start method and channel.  A stream of the
caller's that fails harms no run.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import io
import logging
import os
import sys
import tempfile
import threading
import unittest

from conveyor import Pipe, Pipeline, Processor, WorkerDiedError
from conveyor.engines.process.broker import log_relay
from conveyor.engines.process.caller import session
from conveyor.engines.process.system.streams import PrintOutlet, is_replaced, put
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.process.wire.messages import Printed
from conveyor.engines.process.worker.log_capture import SharedEndpoint
from conveyor.engines.process.worker.print_capture import MANY_WRITES, ForwardedStream
from tests.helpers.late import mock
from tests.helpers.scripts import ScriptTestCase
from tests.helpers.support import ALL, TestCase

KINDS = [
    (method, channel)
    for method in (("fork", "forkserver", "spawn") if ALL else ("fork", "spawn"))
    for channel in (("pipe", "queue") if os.name != "posix" or (ALL and method == "fork") else ("pipe",))
    if os.name == "posix" or (method, channel) == ("spawn", "queue")
]


# Jobs, sent to any process


class Printer(Processor):
    """Prints in every phase, in many ways."""

    def setup(self):
        print("setup")

    def process(self, item):
        print("item", item)
        print("é \udc80", item, file=sys.stderr)
        sys.stdout.write("before bytes, ")
        sys.stdout.buffer.write(b"bytes\n")
        thread = threading.Thread(target=print, args=("of a thread",))
        thread.start()
        thread.join()
        with contextlib.redirect_stdout(io.StringIO()) as own:
            print("for the job alone")
        assert own.getvalue() == "for the job alone\n"
        print("no end of a line", end=".")
        return item

    def finish(self):
        print("finish")

    def teardown(self):
        print("teardown")


WHOLE = """setup
item 1
before bytes, bytes
of a thread
no end of a line.finish
teardown
"""


def line(item):
    print("line", item)
    return item


def no_end(item):
    print(item, end="")
    return item


def last_words(item):
    print("last words")
    os._exit(3)


def lines_and_records(item):
    for number in range(3):
        print("line", number)
        logging.getLogger("prints").warning("record %d", number)


def nested(item):
    return Pipeline().add(Processor(line)).run([item])


def many_lines(item):
    for _ in range(300):
        print("x" * 1000)
    return item


@contextlib.contextmanager
def streams_replaced():
    """Have the caller print into two new texts."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        yield out, errors


class Tee:
    """What programs put in the place of a stream: it passes all on, and keeps a copy."""

    def __init__(self, stream):
        self.stream = stream
        self.copy = ""

    def write(self, text):
        self.copy += text
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


class Refusing(io.StringIO):
    """Takes nothing."""

    def write(self, text):
        raise OSError("the disk is full")


class PrintTest(TestCase):
    def test_every_phase_and_way_to_print(self):
        for method, channel in KINDS:
            with self.subTest(method=method, channel=channel):
                with streams_replaced() as (out, errors):
                    assert Pipeline(start_method=method, channel=channel).add(Printer()).run([1]) == [1]
                assert (out.getvalue(), errors.getvalue()) == (WHOLE, "é \udc80 1\n")

    def test_inline_prints_by_itself(self):
        with streams_replaced() as (out, errors):
            Pipeline(engine="inline").add(Processor(line)).run([1])
        assert (out.getvalue(), errors.getvalue()) == ("line 1\n", "")

    def test_a_stream_that_is_replaced_while_the_pipeline_is_open(self):
        for method in dict(KINDS):
            with self.subTest(method=method):
                pipeline = Pipeline(start_method=method)
                pipeline.add(Processor(line, workers=2)).add(Pipe()).add(Processor(no_end))
                # What pytest and a runner of tests put there is none of this test's.
                with mock.patch.object(sys, "stdout", sys.__stdout__), pipeline:
                    assert pipeline.run([]) == []
                    for item in (1, 2):
                        with streams_replaced() as (out, _):
                            assert pipeline.run([item]) == [item]
                        # It is all there when the run is over, and goes where the caller prints now.
                        assert sorted(out.getvalue()) == sorted(f"line {item}\n{item}")

    def test_items_that_come_one_by_one(self):
        async def awaited(pipeline):
            return [each async for each in pipeline.astream([1, 2])]

        ways = {
            "submitted": lambda pipeline: [*pipeline.submit(1).result(), *pipeline.submit(2).result()],
            "by tasks": lambda pipeline: asyncio.run(awaited(pipeline)),
            "with their inputs": lambda pipeline: [only for _, (only,) in pipeline.run([1, 2], with_input=True)],
            "streamed with them": lambda pipeline: [only for _, (only,) in pipeline.stream([1, 2], with_input=True)],
        }
        for way, results_of in ways.items():
            for before in (True, False):
                with self.subTest(way=way, replaced_before=before), contextlib.ExitStack() as stack:
                    # What pytest and a runner of tests put there is none of this test's.
                    stack.enter_context(mock.patch.object(sys, "stdout", sys.__stdout__))
                    if before:
                        out, _ = stack.enter_context(streams_replaced())
                    pipeline = stack.enter_context(Pipeline().add(Processor(line)))
                    if not before:
                        out, _ = stack.enter_context(streams_replaced())
                    assert results_of(pipeline) == [1, 2]
                    pipeline.close()
                    assert out.getvalue() == "line 1\nline 2\n"

    def test_lines_and_log_records_keep_their_order(self):
        with streams_replaced() as (out, _):
            handler = logging.StreamHandler(out)
            logging.getLogger("prints").addHandler(handler)
            self.addCleanup(logging.getLogger("prints").removeHandler, handler)
            Pipeline().add(Processor(lines_and_records)).run([1])
        assert out.getvalue() == "".join(f"line {number}\nrecord {number}\n" for number in range(3))

    def test_the_last_words_of_a_worker(self):
        with streams_replaced() as (out, _), self.assertRaises(WorkerDiedError):
            Pipeline().add(Processor(last_words)).run([1])
        assert out.getvalue() == "last words\n" * 2

    def test_a_pipeline_in_a_job(self):
        with streams_replaced() as (out, _):
            assert Pipeline().add(Processor(nested)).run([7]) == [[7]]
        assert out.getvalue() == "line 7\n"

    def test_a_stream_that_refuses(self):
        closed = io.StringIO()
        closed.close()
        for stream, text in ((Refusing(), "the disk is full"), (closed, "closed file")):
            with self.subTest(text), self.assertLogs("conveyor", "WARNING") as caught:
                with contextlib.redirect_stdout(stream):
                    assert Pipeline().add(Processor(line)).run([1, 2, 3]) == [1, 2, 3]
                (message,) = (record.getMessage() for record in caught.records)
                assert "sys.stdout" in message and text in message

    def test_standard_streams_that_are_closed(self):
        # Where `logging` says that a handler failed is closed, too.
        with streams_replaced() as (out, errors):
            out.close()
            errors.close()
            handler = logging.StreamHandler(errors)
            logging.getLogger("conveyor").addHandler(handler)
            self.addCleanup(logging.getLogger("conveyor").removeHandler, handler)
            assert Pipeline().add(Processor(line)).run([1]) == [1]

    @unittest.skipUnless(hasattr(os, "fork"), "the broker takes over what is patched")
    def test_what_is_not_taken_is_bounded(self):
        bound = mock.patch.object(log_relay, "KEPT_BYTES", 100_000)
        pipeline = Pipeline(start_method="fork").add(Processor(many_lines))
        # The rest of the word of it comes when the pipeline is closed.
        with bound, streams_replaced() as (out, _), self.assertLogs("conveyor", "WARNING") as caught, pipeline:
            taken = threading.Event()
            write = out.write

            def write_late(text):
                # The caller is held up at its first line, until the job has ended.
                if not taken.is_set():
                    taken.set()
                    while not pipeline.stats()["many_lines"].items_out:
                        pass
                return write(text)

            out.write = write_late
            assert pipeline.run([1]) == [1]
        dropped = sum(record.args[0] for record in caught.records)
        assert dropped and len(out.getvalue().splitlines()) + dropped == 300
        assert "prints" in caught.records[0].getMessage()

    def test_whoever_draws_gets_all_that_is_printed(self):
        class Drawing(PrintOutlet):
            def __init__(self):
                super().__init__()
                self.takes_all = True
                self.put = lambda *what: drawn.append(what)

        drawn = []
        with mock.patch.object(sys, "stdout", sys.__stdout__), mock.patch.object(session, "PrintOutlet", Drawing):
            assert Pipeline().add(Processor(line)).run([1]) == [1]
        assert drawn == [("stdout", "line 1\n")]


class ScriptsTest(ScriptTestCase):
    """Where the streams are the process's own."""

    few_methods = ("fork", "spawn")

    def test_streams_of_the_processs_own_cost_nothing(self):
        body = """
            import sys
            from conveyor import Pipeline, Processor
            def job(item):
                imported = sys.argv[1] == "spawn" and "conveyor.engines.process.worker.print_capture" in sys.modules
                return imported, type(sys.stdout).__name__
            if __name__ == "__main__":
                print(Pipeline(start_method=sys.argv[1]).add(Processor(job)).run([1]))
        """
        for method in self.methods():
            assert self.script(body, method).output == "[(False, 'TextIOWrapper')]"

    def test_a_process_that_the_job_starts_prints_by_itself(self):
        body = """
            import contextlib, io, multiprocessing, os, subprocess, sys
            from conveyor import Pipeline, Processor
            def job(item):
                print("of the job, ", end="")
                child = multiprocessing.get_context("fork").Process(target=print, args=("of a child",))
                child.start()
                child.join()
                subprocess.run([sys.executable, "-c", "print('of a program')"], stdout=sys.stdout)
            if __name__ == "__main__":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    Pipeline(start_method=sys.argv[1]).add(Processor(job)).run([1])
                print(repr(out.getvalue()))
        """
        for method in self.methods():
            outcome = self.script(body, method)
            assert outcome.output == "of a child\nof a program\n'of the job, '", outcome.told()


class IsReplacedTest(TestCase):
    def test_what_workers_forward(self):
        with open(os.devnull, "w") as file:
            replaced = [io.StringIO(), Tee(sys.__stdout__), io.TextIOWrapper(io.BytesIO()), file]
            for stream in replaced:
                with mock.patch.object(sys, "stdout", stream):
                    assert is_replaced("stdout")

    def test_what_is_left_to_them(self):
        with open(1, "w", closefd=False) as file:
            for stream in (file, None):
                with mock.patch.object(sys, "stdout", stream):
                    assert not is_replaced("stdout")

    def test_a_stream_that_was_deleted(self):
        with mock.patch.object(sys, "stdout", None):
            del sys.stdout
            try:
                assert not is_replaced("stdout")
                put("stdout", "nowhere")
            finally:
                sys.stdout = None

    def test_a_stream_is_wanted_once(self):
        outlet = PrintOutlet()
        with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as errors:
            with mock.patch.object(sys, "stdout", out), mock.patch.object(sys, "stderr", errors):
                assert outlet.newly_wanted() == ()
                with contextlib.redirect_stderr(io.StringIO()):
                    assert outlet.newly_wanted() == ("stderr",)
                    assert outlet.newly_wanted() == ()
                outlet.takes_all = True
                assert outlet.newly_wanted() == ("stdout",)


class PutTest(TestCase):
    def test_what_the_encoding_lacks_is_escaped(self):
        raw = io.BytesIO()
        with mock.patch.object(sys, "stdout", io.TextIOWrapper(raw, "ascii", newline="\n")):
            put("stdout", "é ")
            put("stdout", b"\xff\n")
            assert raw.getvalue() == b"\\xe9 \xff\n"

    def test_no_stream(self):
        with mock.patch.object(sys, "stdout", None):
            put("stdout", "nowhere")


class ChannelEnd:
    """The end of a channel, which keeps what is sent."""

    sender = None

    def __init__(self):
        self.sent = []

    def send(self, message, blobs=()):
        self.sent.append(message)


class Interrupted(collections.deque):
    """Has a signal handler run wherever it is looked at."""

    def __init__(self, handler, items):
        super().__init__(items)
        self.handlers = [handler]

    def __bool__(self):
        is_any = len(self) > 0
        if is_any and self.handlers:
            self.handlers.pop()()
        return is_any


class SharedEndpointTest(TestCase):
    def test_a_signal_handler_that_logs_between_a_look_and_what_follows_it(self):
        channel = ChannelEnd()
        end = SharedEndpoint(channel)
        waiting, own, reply = [Printed(name, False) for name in ("stdout", "stderr", "reply")]
        end._pending = Interrupted(lambda: end.send_log(own, [b""]), [(waiting, [b""])])
        end.send(reply)
        assert channel.sent == [reply, waiting, own]
        # Nor does it wait for the lock that its own thread holds, or send amid another message.
        assert not end._sending and not end._pending


class FakeEnd(SharedEndpoint):
    """Keeps what is sent."""

    def __init__(self):
        self.sent = []
        self.is_gone = False

    is_forked_copy = False

    def send_log(self, message, blobs):
        if self.is_gone:
            raise ConnectionLost
        self.sent.append((message, bytes(blobs[0])))


class ForwardedStreamTest(TestCase):
    def setUp(self):
        self.end = FakeEnd()
        self.stream = ForwardedStream(self.end, "stdout", io.StringIO("of the caller"))

    def texts(self):
        assert all(message == Printed("stdout", False) for message, _ in self.end.sent)
        return [data.decode() for _, data in self.end.sent]

    def test_lines_are_sent_when_they_are_complete(self):
        print("a", "b", file=self.stream)
        print("c", end="", file=self.stream)
        assert self.texts() == ["a b\n"]
        print(end="\r", file=self.stream)
        print("d", end="", flush=True, file=self.stream)
        assert self.texts() == ["a b\n", "c\r", "d"]
        self.stream.flush()
        assert len(self.end.sent) == 3

    def test_a_line_without_end_is_sent_in_parts(self):
        for _ in range(MANY_WRITES + 1):
            self.stream.write("x")
        self.stream.write("y" * 10_000)
        assert self.texts() == ["x" * (MANY_WRITES + 1), "y" * 10_000]

    def test_it_refuses_what_a_stream_refuses(self):
        for wrong in (b"bytes", 7, None):
            with self.assertRaises(TypeError):
                self.stream.write(wrong)
        with self.assertRaises(TypeError):
            self.stream.buffer.write("text")
        self.stream.close()
        with self.assertRaises(ValueError):
            self.stream.write("text")

    def test_it_has_what_the_other_stream_has(self):
        assert self.stream.getvalue() == "of the caller"
        assert self.stream.name == self.stream.buffer.name == "<stdout>"
        assert self.stream.fileno() == self.stream.buffer.fileno() == 1
        assert self.stream.writable() and self.stream.buffer.writable()
        assert not (self.stream.isatty() or self.stream.readable() or hasattr(self.stream, "missing"))
        with tempfile.TemporaryFile("w") as file:
            assert ForwardedStream(self.end, "stdout", file).fileno() == file.fileno()

    def test_threads_lose_nothing(self):
        threads = [threading.Thread(target=lambda: [self.stream.write("x\n") for _ in range(2000)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.stream.flush()
        assert sum(text.count("x\n") for text in self.texts()) == 6000

    def test_where_the_channel_has_gone(self):
        self.end.is_gone = True
        raw = io.BytesIO()
        with mock.patch.object(sys, "__stdout__", io.TextIOWrapper(raw, "utf-8", newline="\n")):
            print("text", file=self.stream)
            self.stream.buffer.write(b"bytes")
            assert raw.getvalue() == b"text\nbytes"
        with mock.patch.object(sys, "__stdout__", None):
            print("nowhere", file=self.stream)


if __name__ == "__main__":
    unittest.main()
