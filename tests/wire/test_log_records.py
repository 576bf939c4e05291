"""What jobs say reaches the caller: log records, warnings, prints.

Law: `LogRelay` holds for each start method and channel, in real processes; what the parts promise by themselves, no
deadlock and a bound, is tested on each part, everywhere.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import io
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import textwrap
import threading
import time
import unittest
import warnings
from collections import deque
from pathlib import Path

from conveyor import Pipe, Pipeline, Processor, ProcessorError, WorkerDiedError
from conveyor.engines.process.broker import log_relay
from conveyor.engines.process.broker.log_relay import LogRelay
from conveyor.engines.process.wire import log_records
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.process.wire.messages import LogsDropped, RecordLogged, WarningShown
from conveyor.engines.process.wire.pipe import PIPE, channel
from conveyor.engines.process.worker.log_capture import ImportHook, SharedEndpoint, log_handler
from tests.helpers.late import mock, subprocess, tempfile
from tests.helpers.support import ALL, ROOT, TestCase, slow

log = logging.getLogger("talk.jobs")

# The start methods that scripts are tried with.
METHODS = ("fork", "forkserver", "spawn") if ALL else ("fork",)


class Collector(logging.Handler):
    """Keeps what it handles."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]


class Raising(logging.Handler):
    """Does not even do what handlers do about it."""

    def emit(self, record):
        raise LookupError("the handler fails")


@contextlib.contextmanager
def handled_by(handler, level=logging.INFO):
    """Have the root logger, and no other, use this handler."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level)
    try:
        yield handler
    finally:
        root.handlers[:], root.level = before[0], before[1]
        root.setLevel(before[1])
        handler.close()


# Jobs, sent to any process


class Talker(Processor):
    """Says what it is at."""

    def setup(self):
        log.info("setup")

    def process(self, item):
        log.info("process %d", item)
        return item

    def finish(self):
        log.info("finish")

    def teardown(self):
        log.info("teardown")


class FailingTalker(Talker):
    def process(self, item):
        raise ValueError(item)


class Idler(Processor):
    """Says something a while after the item is done with."""

    def process(self, item):
        threading.Timer(0.1, log.info, ["later %s", item]).start()
        return item


class OfItsOwn:
    """Can be pickled, and unpickled in no other process."""

    def __init__(self):
        self.process = os.getpid()

    def __reduce__(self):
        return rebuilt, (self.process,)

    def __str__(self):
        return "of its own"


def rebuilt(process):
    if process != os.getpid():
        raise RuntimeError("not here")
    return OfItsOwn()


class Level(int):
    """A kind of number that nobody else has."""


def same(item):
    return item


def odd_records(item):
    log.info("lock %s", threading.Lock())
    log.info("own %s", OfItsOwn())
    log.info("plain %s %r", "text", [1, {"two": 2.0}])
    log.info("mapping %(a)s", {"a": 1})
    log.log(Level(25), "level")
    log.info("extra", extra={"number": 7, "lock": threading.Lock(), "path": Path("a"), "own": OfItsOwn()})
    try:
        raise ZeroDivisionError(f"by {item}")
    except ZeroDivisionError as error:
        log.exception(error)
    log.info("stack", stack_info=True)
    return item


def enabled(item):
    names = ("talk.quiet", "talk.loud", "talk.off", "talk")
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    return [[logging.getLogger(name).isEnabledFor(level) for level in levels] for name in names]


def last_words(item):
    log.info("about to die")
    os._exit(3)


def from_threads(item):
    def talk(number):
        for count in range(100):
            log.info("thread %d record %d %s", number, count, "x" * 500)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        yield bytes(50_000)
    for thread in threads:
        thread.join()
    yield b"over"


def from_a_signal_handler(item):
    handler = signal.signal(signal.SIGALRM, lambda number, frame: log.info("alarm %s", "y" * 1000))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            log.info("main %s", "z" * 1000)
            yield bytes(100_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    yield b"over"


class Chatty:
    """Says something whenever it is pickled, made text of, or dropped."""

    def __reduce__(self):
        log.info("pickled %s", self)
        return Chatty, ()

    def __str__(self):
        log.info("shown")
        return "chatty"

    def __del__(self):
        log.info("dropped")


def chatter(item):
    log.info("look at %s", Chatty())
    return item, Chatty()


def warn(item):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(OwnWarning(1, 2), stacklevel=1)
        warnings.warn("plain text", FutureWarning, stacklevel=1)
        kind = type("LocalWarning", (OwnWarning,), {})
        warnings.warn(kind(3, 4), stacklevel=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("for the job", stacklevel=1)
    assert len(caught) == 1
    return item


def show_in_file(item):
    file = io.StringIO()
    warnings.showwarning("to a file", UserWarning, "here.py", 1, file)
    return file.getvalue()


class OwnWarning(UserWarning):
    """One that is made of two things, and whose pickle does not know that."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class DetailedWarning(UserWarning):
    """One with more in it."""

    detail = None


def warn_with_detail(item):
    warning = DetailedWarning("detailed")
    warning.detail = item
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(warning, stacklevel=1)


def deprecated(item):
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    return item


def many_records(path):
    for number in range(2000):
        log.info("%d %s", number, "x" * 1000)
    Path(path).touch()
    return path


def never_quiet(item):
    while True:
        log.info("still at %d", item)
        time.sleep(0.005)


def forked_child(item):
    child = multiprocessing.get_context("fork").Process(target=log.info, args=("of a child",))
    child.start()
    child.join()
    log.info("of the worker")
    return child.exitcode


def nested(item):
    return Pipeline().add(Processor(nested_job)).run([item])


def nested_job(item):
    log.info("nested %s", item)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("nested warning", stacklevel=1)
    return item


class Records:
    """For each start method and channel."""

    settings = {"start_method": "fork", "channel": "pipe"}

    def setUp(self):
        # The fork server and the tracker of resources are no part of what is counted.
        Pipeline(**self.settings).add(Processor(same)).run([])
        self.leave_nothing()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        # What a test before this one dropped may have something to say yet.
        gc.collect()
        self.heard = stack.enter_context(handled_by(Collector()))

    def pipeline(self, job):
        return Pipeline(**self.settings).add(job if isinstance(job, Processor) else Processor(job))

    def test_from_every_phase(self):
        with self.pipeline(Talker()) as pipeline:
            assert pipeline.run([1, 2]) == [1, 2]
        assert self.heard.messages == ["setup", "process 1", "process 2", "finish", "teardown"]
        record = self.heard.records[1]
        assert (record.name, record.levelname, record.msg, record.args) == ("talk.jobs", "INFO", "process %d", (1,))
        assert record.funcName == "process" and record.pathname == __file__
        assert record.processName == "conveyor-Talker" and record.process != os.getpid()

    def test_levels_are_the_callers(self):
        quiet, loud, off = (logging.getLogger(f"talk.{name}") for name in ("quiet", "loud", "off"))
        quiet.setLevel(logging.ERROR)
        loud.setLevel(logging.DEBUG)
        off.disabled = True
        logging.disable(logging.DEBUG)
        try:
            [found] = self.pipeline(enabled).run([1])
        finally:
            logging.disable(logging.NOTSET)
            quiet.setLevel(logging.NOTSET)
            loud.setLevel(logging.NOTSET)
            off.disabled = False
        assert found == [
            [False, False, False, True],
            [False, True, True, True],
            [False, False, False, False],
            [False, True, True, True],
        ]

    def test_what_cannot_be_sent_goes_as_text(self):
        logging.addLevelName(25, "NOTICE")
        assert self.pipeline(odd_records).run([5]) == [5]
        lock, own, plain, mapping, level, extra, error, stack = self.heard.records
        assert lock.getMessage().startswith("lock <unlocked _thread.lock") and not lock.args
        assert own.getMessage() == "own of its own" and not own.args
        assert (plain.msg, plain.args) == ("plain %s %r", ("text", [1, {"two": 2.0}]))
        assert mapping.getMessage() == "mapping 1" and mapping.args == {"a": 1}
        assert (level.levelno, type(level.levelno), level.levelname) == (25, int, "NOTICE")
        assert (extra.number, extra.path) == (7, Path("a"))
        assert "lock" in extra.lock and "OfItsOwn" in extra.own
        assert isinstance(error.msg, ZeroDivisionError) and error.getMessage() == "by 5"
        text = logging.Formatter("%(message)s").format(error)
        assert error.exc_info is None and text.startswith("by 5\nTraceback") and "in odd_records" in text
        assert "odd_records" in stack.stack_info

    def test_of_a_worker_that_dies(self):
        with self.assertRaises(WorkerDiedError):
            self.pipeline(last_words).run([1])
        assert self.heard.messages == ["about to die"] * 2, self.heard.messages

    def test_from_threads_and_amid_large_messages(self):
        results = self.pipeline(from_threads).run([1])
        assert results[-1] == b"over" and set(results[:-1]) <= {bytes(50_000)}
        for number in range(3):
            mine = [record.args[1] for record in self.heard.records if record.args[0] == number]
            assert mine == list(range(100))

    def test_from_a_signal_handler(self):
        results = self.pipeline(from_a_signal_handler).run([1])
        assert results[-1] == b"over" and set(results[:-1]) == {bytes(100_000)}
        kinds = {message.split()[0] for message in self.heard.messages}
        assert kinds == {"alarm", "main"}

    def test_from_within_pickling_and_finalizers(self):
        assert len(self.pipeline(chatter).run([1])) == 1
        messages = self.heard.messages
        assert "look at chatty" in messages and "pickled chatty" in messages and "dropped" in messages

    def test_a_handler_that_raises_is_reported_and_no_more(self):
        with handled_by(Raising()), mock.patch("sys.stderr", io.StringIO()) as errors:
            assert self.pipeline(Talker()).run([1, 2]) == [1, 2]
        assert errors.getvalue().count("LookupError: the handler fails") == 5
        assert "Message: 'process %d'" in errors.getvalue()

    def test_while_nothing_is_received(self):
        with self.pipeline(Idler()) as pipeline:
            pipeline.run([1])
            time.sleep(0.3)
            assert self.heard.messages == []
            pipeline.run([2])
            assert self.heard.messages == ["later 1"]
            time.sleep(0.3)
        assert self.heard.messages == ["later 1", "later 2"]

    def test_from_the_teardown_of_a_run_that_fails_or_is_given_up(self):
        with self.assertRaises(ProcessorError):
            self.pipeline(FailingTalker()).run([1])
        assert self.heard.messages == ["setup", "teardown"]
        self.heard.records.clear()
        with self.pipeline(Talker()).stream(iter(range(10**9))) as results:
            next(results)
        assert (self.heard.messages[0], self.heard.messages[-1]) == ("setup", "teardown")
        self.heard.records.clear()
        with self.assertRaises(KeyError):
            with self.pipeline(Talker()):
                raise KeyError
        assert self.heard.messages == ["setup", "teardown"]

    def test_one_that_is_never_quiet_does_not_hold_up_the_end(self):
        pipeline = self.pipeline(never_quiet).open()
        results = pipeline.stream([1])
        while not self.heard.records:
            time.sleep(0.05)
            pipeline._lifecycle.session.receive()
        results.close()
        begun = time.monotonic()
        pipeline.close()
        assert time.monotonic() - begun < 10

    def test_warnings(self):
        with warnings.catch_warnings(record=True) as caught:
            assert self.pipeline(warn).run([1]) == [1]
        with open(__file__) as file:
            lines = file.read().splitlines()
        assert [(each.category, str(each.message)) for each in caught] == [
            (OwnWarning, "1 and 2"),
            (FutureWarning, "plain text"),
            (UserWarning, "3 and 4"),
        ]
        for each in caught:
            assert isinstance(each.message, each.category)
            assert each.filename == __file__ and "warnings.warn(" in lines[each.lineno - 1]

    def test_warnings_with_fields_and_where_logging_captures_them(self):
        with warnings.catch_warnings(record=True) as caught:
            self.pipeline(warn_with_detail).run([7])
        assert [each.message.detail for each in caught] == [7]
        logging.captureWarnings(True)
        try:
            self.pipeline(warn_with_detail).run([7])
        finally:
            logging.captureWarnings(False)
        assert [record.name for record in self.heard.records] == ["py.warnings"], self.heard.records
        assert "DetailedWarning: detailed" in self.heard.messages[0]

        # One that is shown somewhere else is nobody else's.
        assert "here.py:1: UserWarning: to a file" in self.pipeline(show_in_file).run([1])[0]

    def test_a_warning_whose_display_raises(self):
        def refuse(*arguments):
            raise LookupError("not shown")

        with mock.patch("warnings.showwarning", refuse), mock.patch("sys.stderr", io.StringIO()) as errors:
            assert self.pipeline(warn).run([1]) == [1]
        assert errors.getvalue().count("LookupError: not shown") == 3

    def test_a_pipeline_in_a_job(self):
        with warnings.catch_warnings(record=True) as caught:
            assert self.pipeline(nested).run([1]) == [[1]]
        assert self.heard.messages == ["nested 1"]
        assert [str(each.message) for each in caught] == ["nested warning"]


class ForkPipeTest(Records, TestCase):
    """Also what needs a job that was never pickled, or a broker that was prepared."""

    def test_nothing_is_written_twice(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "log")
            with handled_by(logging.FileHandler(path)):
                own = logging.getLogger("talk")
                own.addHandler(logging.FileHandler(path))
                own.propagate = False
                try:
                    self.pipeline(Talker()).run([1])
                finally:
                    own.handlers.pop().close()
                    own.propagate = True
            text = Path(path).read_text()
            assert text.split("\n") == ["setup", "process 1", "finish", "teardown", ""], text

    def test_a_process_that_the_job_forks(self):
        # It has no channel, so it does what it would have done without one: it uses the handlers itself.
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "log")
            with handled_by(logging.FileHandler(path)):
                assert self.pipeline(forked_child).run([1]) == [0]
            assert sorted(Path(path).read_text().split("\n")) == ["", "of a child", "of the worker"]

    def test_a_warning_of_a_kind_that_is_often_ignored(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.pipeline(deprecated).run([1])
        assert [each.category for each in caught] == [DeprecationWarning]

    def slow_consumer(self):
        # The broker is forked from here, and so has that bound.
        with mock.patch.object(log_relay, "KEPT_BYTES", 50_000):
            said = Path(self.new_folder(), "said")
            results = self.pipeline(many_records).stream([str(said)])
            while not said.exists():
                time.sleep(0.001)
            assert list(results) == [str(said)]
        about = [record for record in self.heard.records if record.name == "conveyor"]
        assert about and {record.levelno for record in about} == {logging.WARNING}
        dropped = [record.args[0] for record in about]
        assert len(self.heard.records) - len(about) + sum(dropped) == 2000
        if self.settings["channel"] == "pipe":
            # A queue takes all that is said, and the broker may see the rest when there is room again.
            assert sum(dropped) > 500 and len(about) < 20
        assert f"{dropped[0]} log records, warnings and prints" in about[0].getMessage()

    def test_a_caller_that_takes_nothing(self):
        self.slow_consumer()


class _Few(Records):
    """Without what the caller does with what it has heard, however that came."""

    test_a_handler_that_raises_is_reported_and_no_more = None
    test_a_warning_whose_display_raises = None
    test_warnings_with_fields_and_where_logging_captures_them = None


@slow
class ForkQueueTest(_Few, TestCase):
    settings = {"start_method": "fork", "channel": "queue"}
    # What depends on how processes start, and not on how messages travel.
    test_a_pipeline_in_a_job = None
    test_levels_are_the_callers = None
    test_of_a_worker_that_dies = None  # a queue has a thread of its own, which dies with what it has not sent

    def test_a_caller_that_takes_nothing(self):
        ForkPipeTest.slow_consumer(self)


@slow
class SpawnPipeTest(_Few, TestCase):
    settings = {"start_method": "spawn", "channel": "pipe"}
    # What depends on how messages travel, and not on how processes start.
    test_from_a_signal_handler = None
    test_from_threads_and_amid_large_messages = None
    test_from_within_pickling_and_finalizers = None
    test_of_a_worker_that_dies = None
    test_one_that_is_never_quiet_does_not_hold_up_the_end = None
    test_what_cannot_be_sent_goes_as_text = None
    test_while_nothing_is_received = None


@slow
class ForkserverPipeTest(SpawnPipeTest):
    settings = {"start_method": "forkserver", "channel": "pipe"}
    test_from_the_teardown_of_a_run_that_fails_or_is_given_up = None


@slow
class SpawnQueueTest(SpawnPipeTest):
    settings = {"start_method": "spawn", "channel": "queue"}
    test_a_pipeline_in_a_job = None
    test_from_the_teardown_of_a_run_that_fails_or_is_given_up = None
    test_levels_are_the_callers = None


class InlineTest(TestCase):
    """There is nothing to be done: the oracle."""

    def test_records_and_warnings(self):
        with handled_by(Collector()) as heard, warnings.catch_warnings(record=True) as caught:
            pipeline = Pipeline(engine="inline").add(Talker()).add(Pipe()).add(Processor(warn))
            assert pipeline.run([1, 2]) == [1, 2]
        assert heard.messages == ["setup", "process 1", "process 2", "finish", "teardown"]
        assert len(caught) == 6


class PrintTest(TestCase):
    """Scripts, whose output goes to a pipe, where Python keeps it back."""

    def output(self, body):
        """What a script writes."""
        (lines,) = self.outputs([body])
        return lines

    def outputs(self, bodies):
        """What each of several scripts writes that run side by side."""
        started = []
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("PYTHONUNBUFFERED", None)
        for body in bodies:
            folder = self.new_folder()
            path = os.path.join(folder, "script.py")
            with open(path, "w") as file:
                file.write("import os, signal, sys\nfrom conveyor import *\n" + textwrap.dedent(body))
            process = subprocess.Popen(
                [sys.executable, path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=folder,
                env=environment,
            )
            self.addCleanup(process.communicate)
            self.addCleanup(process.kill)
            started.append(process)
        lines = []
        for process in started:
            output, errors = process.communicate(timeout=30)
            assert (process.returncode, errors) == (0, ""), (process, output, errors)
            lines.append(output.splitlines())
        return lines

    def test_what_a_job_printed_before_its_worker_died(self):
        body = """
            def job(item):
                print("item", item)
                print("item", item, "again", file=sys.__stdout__)
                {end}
            if __name__ == "__main__":
                print("before")
                try:
                    Pipeline(start_method={method!r}).add(Processor(job)).run([7])
                except WorkerDiedError:
                    print("after")
        """
        ends = {"os._exit(1)": 2, "os.kill(os.getpid(), signal.SIGKILL)": 3}
        cases = [(method, end) for method in METHODS for end in (ends if method != "forkserver" else [*ends][:1])]
        outputs = self.outputs(body.format(method=method, end=end) for method, end in cases)
        for (method, end), lines in zip(cases, outputs, strict=True):
            with self.subTest(method=method, end=end):
                assert lines == ["before", *["item 7", "item 7 again"] * ends[end], "after"], lines

    def test_what_the_caller_had_not_written_yet_is_written_once(self):
        body = """
            import contextlib, io
            def job(item):
                print("of the job", file=sys.__stdout__)
                return item
            if __name__ == "__main__":
                sys.stdout.write("kept back, ")
                sys.stdout.buffer.write(b"and further back, ")
                with contextlib.redirect_stdout(io.StringIO()):
                    Pipeline(start_method="fork").add(Processor(job, workers=2)).run([1])
                print("over")
        """
        text = "\n".join(self.output(body))
        for part in ("kept back", "further back", "of the job", "over"):
            assert text.count(part) == 1, text

    def test_records_where_the_caller_has_not_imported_logging(self):
        body = """
            def job(item):
                import logging
                logging.basicConfig(format="of the worker")
                logging.getLogger("late").warning("item %d", item)
                logging.getLogger("late").info("not heard")
                return item
            if __name__ == "__main__":
                assert "logging" not in sys.modules
                sys.stderr = sys.stdout
                assert Pipeline(start_method={method!r}).add(Processor(job)).run([1, 2]) == [1, 2]
                {then}
                assert Pipeline(start_method={method!r}).add(Processor(job)).run([3]) == [3]
        """
        then = "import logging; logging.basicConfig(format='%(name)s: %(message)s')"
        outputs = self.outputs(body.format(method=method, then=then) for method in METHODS)
        for method, lines in zip(METHODS, outputs, strict=True):
            with self.subTest(method=method):
                assert lines == ["item 1", "item 2", "late: item 3"], lines

    def test_what_is_printed_while_a_script_is_imported(self):
        body = """
            print("imported")
            if __name__ == "__main__":
                Pipeline(start_method="spawn").add(Processor(abs)).run([1])
        """
        assert self.output(body) == ["imported"] * 3


class WithoutLoggingTest(TestCase):
    """Where there is no way left to import it."""

    def test_what_was_said_is_worth_less_than_the_run(self):
        record = log_records.packed_record(
            logging.makeLogRecord({"name": "some", "msg": "lost", "levelno": 30}), pickles=True
        )
        warning = log_records.packed_warning("kept", UserWarning, "file.py", 3, None)
        with mock.patch.dict(sys.modules, {"logging": None}), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            log_records.handle_log_message(RecordLogged(), [record])
            log_records.handle_log_message(LogsDropped(3), [])
            log_records.handle_log_message(WarningShown(), [warning])
            with mock.patch.object(warnings, "showwarning", side_effect=ValueError):
                log_records.handle_log_message(WarningShown(), [warning])
        assert [str(each.message) for each in caught] == ["kept"]


class AwaitedTest(TestCase):
    """A module that is to be imported."""

    def test_it_is_heard_of_once_and_as_a_whole(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(sys, "path", [folder, *sys.path]):
            for name in ("conveyor_awaited", "conveyor_other"):
                Path(folder, f"{name}.py").write_text("value = 1")
            heard = []
            awaited = ImportHook("conveyor_awaited", lambda: heard.append(sys.modules["conveyor_awaited"].value))
            awaited.install()
            self.addCleanup(awaited.remove)
            self.addCleanup(sys.modules.pop, "conveyor_awaited", None)
            self.addCleanup(sys.modules.pop, "conveyor_other", None)
            importlib.import_module("conveyor_other")
            assert not heard and awaited in sys.meta_path
            importlib.import_module("conveyor_awaited")
            assert heard == [1] and awaited not in sys.meta_path

    def test_one_that_is_not_there_or_fails_is_awaited_further(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(sys, "path", [folder, *sys.path]):
            heard = []
            awaited = ImportHook("conveyor_awaited", lambda: heard.append("heard"))
            awaited.install()
            self.addCleanup(awaited.remove)
            self.addCleanup(sys.modules.pop, "conveyor_awaited", None)
            with self.assertRaises(ModuleNotFoundError):
                importlib.import_module("conveyor_awaited")
            path = Path(folder, "conveyor_awaited.py")
            path.write_text("1 / 0")
            importlib.invalidate_caches()
            with self.assertRaises(ZeroDivisionError):
                importlib.import_module("conveyor_awaited")
            path.write_text("value = 'whole at last'")
            importlib.invalidate_caches()
            importlib.import_module("conveyor_awaited")
            assert heard == ["heard"]


class Loader:
    """One that takes no attributes, and loads more than one module."""

    __slots__ = ()

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        if module.__name__ == "conveyor_awaited":
            module.other = importlib.import_module("conveyor_other")
        module.value = 1


class Finder:
    """Finds what that loads."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("conveyor_awaited", "conveyor_other"):
            return importlib.machinery.ModuleSpec(name, LOADER)
        return None


class OldFinder:
    """Has the method that versions before 3.12 ask for."""

    @staticmethod
    def find_module(name, path=None):
        return None


LOADER = Loader()


class AwaitedByOthersTest(TestCase):
    """A module that is imported in ways of somebody's own."""

    def test_a_loader_of_many_is_left_as_it_is(self):
        heard = []
        awaited = ImportHook("conveyor_awaited", lambda: heard.append(sys.modules["conveyor_awaited"].value))
        with mock.patch.object(sys, "meta_path", [OldFinder, Finder, *sys.meta_path]), warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)
            awaited.install()
            self.addCleanup(sys.modules.pop, "conveyor_awaited", None)
            self.addCleanup(sys.modules.pop, "conveyor_other", None)
            module = importlib.import_module("conveyor_awaited")
            assert heard == [1] and awaited not in sys.meta_path
        assert module.__loader__ is module.__spec__.loader is LOADER


class FakeEnd:
    """The end of a channel; something may happen amid a message."""

    sender = None

    def __init__(self, amid=None):
        self.sent = []
        self.amid = amid

    def send(self, message, blobs=()):
        self.sent.append(("begin", message))
        if self.amid is not None:
            amid, self.amid = self.amid, None
            amid()
        self.sent.append(("end", message))


class SharedEndTest(TestCase):
    """One message after another."""

    def whole(self, end):
        """The words, each message of which was whole before the next began."""
        pairs = list(zip(end.sent[::2], end.sent[1::2], strict=True))
        assert all(begin == ("begin", message) for begin, (_, message) in pairs), end.sent
        return [message[0] for _, (_, message) in pairs]

    def test_said_amid_a_message(self):
        end = FakeEnd()
        shared = SharedEndpoint(end)
        end.amid = lambda: [shared.send_log((word,), ()) for word in ("b", "c")]
        shared.send(("a",))
        shared.send_log(("d",), ())
        assert self.whole(end) == ["a", "b", "c", "d"]

    def test_said_amid_what_is_said(self):
        end = FakeEnd()
        shared = SharedEndpoint(end)
        end.amid = lambda: shared.send_log(("b",), ())
        shared.send_log(("a",), ())
        assert self.whole(end) == ["a", "b"]

    def test_said_by_the_thread_that_sends(self):
        # It may have the very lock that sending takes.
        end = FakeEnd()
        end.sender = threading.current_thread()
        shared = SharedEndpoint(end)
        shared.send_log(("a",), ())
        assert not end.sent
        end.sender = None
        shared.send_log(("b",), ())
        assert self.whole(end) == ["a", "b"]

    def test_another_thread_waits_for_its_turn_and_not_for_ever(self):
        end = FakeEnd()
        shared = SharedEndpoint(end)
        amid, over = threading.Event(), threading.Event()

        def wait():
            amid.set()
            over.wait()

        end.amid = wait
        thread = threading.Thread(target=shared.send, args=(("a",),))
        thread.start()
        amid.wait()
        with mock.patch("conveyor.engines.process.worker.log_capture.TURN_SECONDS", 0.05):
            shared.send_log(("b",), ())
        assert end.sent == [("begin", ("a",))]
        over.set()
        thread.join()
        assert self.whole(end) == ["a", "b"]

    def test_a_signal_handler_that_raises_does_not_cut_what_is_said(self):
        if not hasattr(signal, "pthread_sigmask"):
            self.skipTest("signals cannot be kept back here")

        def handler(number, frame):
            raise LookupError

        end = FakeEnd(amid=lambda: os.kill(os.getpid(), signal.SIGUSR1))
        shared = SharedEndpoint(end)
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            with self.assertRaises(LookupError):
                shared.send_log(("a",), ())
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert self.whole(end) == ["a"]
        shared.send_log(("b",), ())
        assert self.whole(end) == ["a", "b"]

    def test_one_whose_other_side_has_gone(self):
        class GoneEnd(FakeEnd):
            def send(self, message, blobs=()):
                raise ConnectionLost

        handler = log_handler(SharedEndpoint(GoneEnd()))
        assert handler.handle(logging.makeLogRecord({"name": "a", "levelno": 20, "msg": "b"}))
        handler.close()

    def test_a_message_that_cannot_be_made(self):
        end = FakeEnd()
        handler = log_handler(SharedEndpoint(end))
        with mock.patch("sys.stderr", io.StringIO()) as errors:
            handler.handle(
                logging.makeLogRecord({"name": "a", "levelno": 20, "msg": "%d", "args": (threading.Lock(),)})
            )
        assert "Logging error" in errors.getvalue() and not end.sent
        handler.close()


class SayingsTest(TestCase):
    """The broker keeps so much and no more."""

    def setUp(self):
        self.sent = self.left = 0
        self.out = deque()
        self.sayings = LogRelay(self, self.send)

    def send(self, message, blobs):
        self.sent += 1
        self.out.append(message)

    def say(self, size):
        self.sayings.pass_on(RecordLogged(), [memoryview(bytes(size))])

    def test_what_leaves_at_once_is_not_counted(self):
        for _ in range(100):
            self.left += 1
            self.say(log_relay.KEPT_BYTES)
        assert len(self.out) == 100

    def test_what_stays_is_bounded_and_what_was_dropped_told_once(self):
        for _ in range(100):
            self.say(log_relay.KEPT_BYTES // 10)
        assert len(self.out) == 9
        self.left = 1
        self.say(10)
        assert len(self.out) == 9, "one that has left makes no room for one to be told of"
        self.left = 5
        self.sayings.look()
        assert list(self.out)[9:] == [LogsDropped(92)]
        self.say(10)
        self.sayings.tell()
        assert len(self.out) == 11

    def test_one_that_is_larger_than_the_bound(self):
        self.say(log_relay.KEPT_BYTES + 1)
        assert len(self.out) == 1
        self.say(1)
        self.sayings.tell()
        assert self.out[-1] == LogsDropped(1)

    def test_the_ends_of_channels_count(self):
        near, far = channel(PIPE, None)
        near.send(("a",), [bytes(10_000_000)])
        assert 0 < near.left < near.sent
        while near.unsent:
            far._socket.recv(1 << 20)
            near.flush()
        assert near.left == near.sent > 10_000_000
        near.close()
        far.close()


class PackedTest(TestCase):
    """Records as bytes."""

    def test_no_type_of_the_users_own_is_unpickled_by_itself(self):
        record = logging.makeLogRecord({"name": "a", "msg": OfItsOwn(), "levelno": Level(25), "own": OfItsOwn()})
        fields, message, pickled = pickle.loads(log_records.packed_record(record, pickles=True))
        assert log_records.is_plain(fields, 5) and message[1] == "of its own"
        assert {type(data) for data, _ in [message, *pickled.values()]} == {bytes}

    def test_what_is_heavy_goes_as_text(self):
        record = logging.makeLogRecord(
            {
                "name": "a",
                "levelno": 20,
                "msg": "%.3s",
                "args": ({"k": [b"x" * 100_000] * 200},),
                "big": {1: {2: {3: {}}}},
            }
        )
        blob = log_records.packed_record(record, pickles=True)
        assert len(blob) < 10_000
        assert log_records.record_of(blob).getMessage() == "{'k" and log_records.record_of(blob).big == {
            1: {2: {3: {}}}
        }

    def test_a_factory_that_raises(self):
        record = logging.makeLogRecord({"name": "a", "levelno": 20, "msg": "b"})
        blob = log_records.packed_record(record, pickles=True)
        before = logging.getLogRecordFactory()
        logging.setLogRecordFactory(lambda: None)
        try:
            assert log_records.record_of(blob).getMessage() == "b"
        finally:
            logging.setLogRecordFactory(before)

    def test_a_warning_of_which_nothing_can_be_had_but_its_text(self):
        class Mute(UserWarning):
            def __str__(self):
                raise RuntimeError

        for message in (Mute("a"), "text"):
            with warnings.catch_warnings(record=True) as caught:
                log_records.handle_log_message(
                    WarningShown(), [log_records.packed_warning(message, Mute, "file.py", 3, None)]
                )
            assert (caught[0].category, caught[0].filename, caught[0].lineno) == (UserWarning, "file.py", 3)


if __name__ == "__main__":
    unittest.main()
