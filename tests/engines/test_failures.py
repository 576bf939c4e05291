"""Failures: whatever goes wrong, the caller has a named error soon, and nothing is left.

Law: each way to fail is a row of the table `Failures`, and holds under each start method and over each channel.
What the caller gets names the Processor, the item and the cause; the child's traceback is in the chain.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
import traceback
import unittest

from conveyor import (
    Pipe,
    Pipeline,
    ProcessError,
    Processor,
    ProcessorError,
    ResultError,
    SourceError,
    StateError,
    WorkerDiedError,
)
from conveyor.errors import RemoteTraceback
from tests.helpers.jobs_of_failures import (
    BadIter,
    BadRepr,
    Detailed,
    DiesInSetup,
    Mute,
    NotAnIterator,
    OddlyNamed,
    Phase,
    WorkerNumber,
    WritesForever,
    crash_on_seven,
    exit_on_seven,
    exit_python_on_seven,
    fail_always,
    fail_in_batch,
    fail_in_generator,
    fail_on_secret,
    fail_on_seven,
    forever,
    forever_busy,
    kill_on_seven,
    no_return_on_seven,
    number_alone,
    raise_kind,
    read_number,
    same,
    unpicklable_in_generator,
    unpicklable_on_seven,
    unpicklable_secret,
    wait_until,
    worker_number,
)
from tests.helpers.late import tempfile
from tests.helpers.support import TestCase, _descendants, _everyone, slow

# More would be a hang; a machine at rest takes a tenth of it, which CONVEYOR_TEST_TIMES prints.
LIMIT_SECONDS = 10.0
"""What an error may take from the start of the run, workers started and all; a tenth of that is usual."""


class Failing:
    """Makes pipelines, and looks at how they fail; `crosses`: what a job raises crosses to another process."""

    settings = {"start_method": "fork", "channel": "pipe"}
    crosses = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # The fork server and the tracker of resources are no part of what is timed or counted; a fork needs neither.
        if cls.settings.get("start_method", "fork") != "fork":
            Pipeline(**cls.settings).add(Processor(same)).run([])

    def setUp(self):
        self.leave_nothing()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "file")

    def make(self, *processors):
        pipeline = Pipeline(**self.settings)
        for processor in processors:
            if repr(pipeline).count("add"):
                pipeline.add(Pipe())
            pipeline.add(processor)
        return pipeline

    @contextlib.contextmanager
    def fails(self, expected, /, within=LIMIT_SECONDS, **fields):
        """The block raises `expected` soon, with these fields; gives a list that then holds the error."""
        holder = []
        started = time.monotonic()
        try:
            yield holder
        except expected as error:
            seconds = time.monotonic() - started
            holder.append(error)
            for name, value in fields.items():
                assert getattr(error, name) == value, (name, getattr(error, name), value, error)
            assert seconds < within, f"{seconds:.2f} s"
            if os.environ.get("CONVEYOR_TEST_TIMES"):
                print(f"{seconds:6.3f} s  {type(self).__name__}.{self._testMethodName}")
            # Frames hold generators and pools; what is looked at are the errors.
            traceback.clear_frames(error.__traceback__)
        else:
            raise AssertionError(f"{expected.__name__} was not raised")


class Failures(Failing):
    """The table."""

    # Jobs

    def test_first_middle_or_last_job_raises(self):
        for place in range(3):
            processors = [Processor(same), Processor(same), Processor(same)]
            processors[place] = Processor(fail_on_seven)
            with self.subTest(place=place):
                with self.fails(
                    ProcessorError, processor="fail_on_seven", phase="process", number=7, item="7", kind="ValueError"
                ) as caught:
                    self.make(*processors).run(range(1000))
                error = caught[0]
                assert type(error.__cause__) is ValueError and error.__cause__.args == ("bad item", 7)
                assert isinstance(error.__cause__.__cause__, RemoteTraceback) == self.crosses
                text = "".join(traceback.format_exception(error))
                assert "# the line that is looked for" in text, text
                assert "conveyor/engines/worker.py" not in error.traceback
                assert "'fail_on_seven' raised ValueError" in str(error) and "[item 7: 7]" in str(error)

    def test_a_lambda_raises(self):
        with self.fails(ProcessorError, processor="lambda", number=3) as caught:
            self.make(Processor(lambda item: 1 // (3 - item))).run(range(10))
        assert isinstance(caught[0].__cause__, ZeroDivisionError)

    def test_a_generator_raises_midway(self):
        with self.fails(ProcessorError, number=7, item="7", phase="process", kind="LookupError"):
            self.make(Processor(fail_in_generator)).run(range(100))

    def test_a_batch_fails(self):
        with self.fails(ProcessorError, number=5, item="[5, 6, 7, 8, 9]"):
            self.make(Processor(fail_in_batch, batch=5)).run(range(100))

    def test_an_endless_input_and_a_slow_consumer(self):
        with self.fails(ProcessorError, number=7):
            for _ in self.make(Processor(same), Processor(fail_on_seven)).stream(itertools.count()):
                pass

    def test_with_several_workers_the_item_is_named(self):
        with self.fails(ProcessorError, number=7, item="7"):
            self.make(Processor(fail_on_seven, workers=3)).run(range(1000))

    def test_every_kind_of_exception(self):
        for kind, name, cause in [
            ("detailed", "Detailed", Detailed),
            ("two", "TwoArguments", RemoteTraceback),
            ("unpicklable", "Unpicklable", RemoteTraceback),
            ("mute", "Mute", Mute),
            ("odd", "OddlyNamed", OddlyNamed),
            ("exit", "SystemExit", SystemExit),
            ("interrupt", "KeyboardInterrupt", KeyboardInterrupt),
            ("generator exit", "GeneratorExit", GeneratorExit),
            ("stop", "StopIteration", StopIteration),
            ("recursion", "RecursionError", RecursionError),
        ]:
            with self.subTest(kind=kind):
                with self.fails(ProcessorError, kind=name, number=0, item=repr(kind)) as caught:
                    self.make(Processor(raise_kind)).run([kind])
                error = caught[0]
                if self.crosses:
                    assert type(error.__cause__) is cause, error.__cause__
                else:
                    assert type(error.__cause__).__name__ == name, "it is what the job raised"
                assert name in error.traceback
                if kind == "detailed":
                    assert (error.__cause__.code, error.__cause__.extra) == (5, {"a": [1]})
                if kind != "mute":
                    assert name in "".join(traceback.format_exception(error))

    def test_an_item_whose_repr_raises(self):
        with self.fails(ProcessorError, number=0) as caught:
            self.make(Processor(fail_always)).run([BadRepr()])
        assert "BadRepr" in caught[0].item

    # What is shown

    def test_items_are_shown_as_redact_says(self):
        secret = {"secret": "hush", "number": 3}
        settings = {**self.settings, "redact": number_alone}
        with self.fails(ProcessorError, number=0, item="number 3") as caught:
            Pipeline(**settings).add(Processor(fail_on_secret)).run([secret])
        assert "[item 0: number 3]" in str(caught[0]) and "hush" not in str(caught[0]) + caught[0].traceback
        if not self.crosses:
            return
        with self.fails(ProcessorError, phase="pickle", item="number 3") as caught:
            Pipeline(**settings).add(Processor(unpicklable_secret)).run([secret])
        assert "(the output was number 5)" in str(caught[0]) and "hush" not in str(caught[0])
        with self.fails(SourceError, item="number 5") as caught:
            Pipeline(**settings).add(Processor(same)).run([unpicklable_secret(None)])
        assert "number 5" in str(caught[0]) and "hush" not in str(caught[0])

    def test_a_redact_that_raises_shows_nothing(self):
        settings = {**self.settings, "redact": number_alone}
        with self.fails(ProcessorError, item="<item not shown: redact raised KeyError>"):
            Pipeline(**settings).add(Processor(fail_on_secret)).run([{"secret": "hush"}])
        # A batch is one thing.
        with self.fails(ProcessorError, item="<item not shown: redact raised TypeError>"):
            Pipeline(**settings).add(Processor(fail_on_secret, batch=2)).run([{"secret": "hush"}] * 2)

    # Pickling

    def test_an_input_that_cannot_be_pickled(self):
        for items in ([1, 2, threading.Lock()], iter([1, 2, threading.Lock()])):
            with self.subTest(items=items):
                with self.fails(SourceError, number=2) as caught:
                    self.make(Processor(same)).run(items)
                assert "lock" in caught[0].item and isinstance(caught[0].__cause__, TypeError)

    def test_an_output_that_cannot_be_pickled(self):
        for job in (unpicklable_on_seven, unpicklable_in_generator):
            with self.subTest(job=job):
                with self.fails(
                    ProcessorError, processor=job.__name__, number=7, item="7", phase="pickle", kind="TypeError"
                ) as caught:
                    self.make(Processor(job), Processor(same)).run(range(100))
                assert "lock" in str(caught[0])

    def test_an_item_whose_unpickling_raises(self):
        with self.fails(ProcessorError, processor="same", phase="unpickle", kind="ValueError") as caught:
            self.make(Processor(no_return_on_seven), Processor(same)).run(range(100))
        assert caught[0].number <= 7 <= caught[0].last
        assert "refuses to come back" in str(caught[0])

    def test_a_result_whose_unpickling_raises(self):
        with self.fails(ResultError) as caught:
            self.make(Processor(no_return_on_seven)).run(range(100))
        assert isinstance(caught[0].__cause__, ValueError)

    # The input

    def test_a_source_that_raises(self):
        def midway():
            yield from range(5)
            raise KeyError("midway")

        def at_once():
            raise KeyError("at once")
            yield

        for source, number, cause in [
            (midway(), 5, KeyError),
            (at_once(), 0, KeyError),
            (BadIter(), 0, KeyError),
            (NotAnIterator(), 0, TypeError),
        ]:
            with self.subTest(source=source):
                with self.fails(SourceError, number=number, item=None) as caught:
                    self.make(Processor(same)).run(source)
                assert type(caught[0].__cause__) is cause

    def test_a_source_that_raises_while_what_it_gave_is_being_sent(self):
        self.use_no_shared_memory()

        def source():
            yield from range(7)
            yield bytes(30_000_000)
            # The look-out, which sends what was pulled when the next item is slow to come, is at it now.
            time.sleep(0.008)
            raise KeyError("behind a large one")

        for _ in range(2):
            with self.fails(SourceError, number=8):
                self.make(Processor(same)).run(source())

    # The other methods

    def test_setup_raises(self):
        with self.fails(ProcessorError, processor="Phase", phase="setup", number=None, kind="Detailed") as caught:
            self.make(Processor(same), Phase("setup")).open()
        assert caught[0].__cause__.code == "setup"

    def test_finish_raises(self):
        for phase in ("finish", "finish midway"):
            with self.subTest(phase=phase), self.fails(ProcessorError, phase="finish", number=None) as caught:
                self.make(Phase(phase), Processor(same)).run([1])
            assert caught[0].__cause__.code == phase

    def test_teardown_raises(self):
        with self.fails(ProcessorError, phase="teardown", number=None):
            self.make(Phase("teardown")).run([1])
        pipeline = self.make(Phase("teardown")).open()
        assert pipeline.run([1]) == [1]
        with self.fails(ProcessorError, phase="teardown"):
            pipeline.close()

    # Death

    def test_a_job_ends_its_worker(self):
        for job, exitcode, words in [
            (exit_on_seven, 3, "exited with code 3"),
            (exit_python_on_seven, 0, "exited with code 0"),
            (kill_on_seven, -signal.SIGKILL, "killed by SIGKILL"),
            (crash_on_seven, -signal.SIGSEGV, "killed by SIGSEGV"),
        ]:
            with self.subTest(job=job):
                with self.fails(WorkerDiedError, within=30.0, processor=job.__name__, exitcode=exitcode) as caught:
                    self.make(Processor(same), Processor(job)).run(range(100))
                error = caught[0]
                assert words in str(error)
                assert error.number == error.last == 7, str(error)

    def test_a_worker_dies_in_setup(self):
        with self.fails(WorkerDiedError, within=30.0, processor="DiesInSetup", phase="setup", exitcode=-signal.SIGKILL):
            self.make(Processor(same), DiesInSetup()).open()

    def test_an_idle_worker_with_state_is_killed_between_two_runs(self):
        pipeline = self.make(WorkerNumber(), Processor(same)).open()
        worker = pipeline.run([1])[0]
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker not in _everyone(), "the broker has noticed")
        with self.fails(WorkerDiedError, processor="WorkerNumber", exitcode=-signal.SIGKILL, number=None):
            pipeline.run([1])
        pipeline.close()
        assert len(pipeline.run([1])) == 1, "and the next run starts anew"

    def test_a_worker_is_killed_amid_a_large_message(self):
        self.use_no_shared_memory()
        pipeline = self.make(WritesForever(), Pipe(maxsize=1), Processor(len)).open()
        known = set(_descendants(_everyone()))
        stream = pipeline.stream(itertools.count())
        next(stream)
        # The worker of the first Processor is the older one.
        workers = sorted(pid for pid in known if _everyone()[pid].parent in known)
        with self.fails(WorkerDiedError, within=15):
            os.kill(workers[0], signal.SIGKILL)
            for _ in stream:
                pass

    def test_the_broker_is_killed(self):
        pipeline = self.make(Processor(worker_number)).open()
        worker = pipeline.run([1])[0]
        broker = _everyone()[worker].parent
        with self.fails(ProcessError, exitcode=-signal.SIGKILL):
            os.kill(broker, signal.SIGKILL)
            while True:
                pipeline.run([1])
        wait_until(lambda: worker not in _everyone(), "the worker goes, too")
        assert len(pipeline.run([1])) == 1, "and the next run starts anew"
        assert pipeline.opened, "as it was not closed"
        pipeline.close()

    def test_the_broker_is_killed_while_a_worker_is_busy(self):
        for job in (forever, forever_busy):
            with self.subTest(job=job):
                pipeline = self.make(Processor(job))
                stream = pipeline.stream([self.path])
                wait_until(lambda: read_number(self.path), "the job begins")
                worker = read_number(self.path)
                with self.fails(ProcessError, exitcode=-signal.SIGKILL):
                    os.kill(_everyone()[worker].parent, signal.SIGKILL)
                    next(stream)
                wait_until(lambda worker=worker: worker not in _everyone(), "the worker goes, too")
                os.remove(self.path)

    def test_a_worker_that_stands_still_does_not_hold_up_the_end(self):
        for active in (False, True):
            with self.subTest(active=active):
                pipeline = self.make(Processor(worker_number)).open()
                worker = pipeline.run([1])[0]
                stream = pipeline.stream(itertools.count()) if active else None
                os.kill(worker, signal.SIGSTOP)
                wait_until(lambda worker=worker: _everyone()[worker].state == "T", "the worker stands still")
                started = time.monotonic()
                pipeline.close()
                assert time.monotonic() - started < LIMIT_SECONDS
                assert worker not in _everyone()
                del stream

    def test_leaving_a_stream_that_fails_later_on(self):
        # Leaving says nothing of it; the next run says that the workers had to be ended, and the one after starts anew.
        pipeline = self.make(Processor(same), Processor(fail_on_seven))
        with pipeline:
            for _ in range(3):
                for result in pipeline.stream(itertools.count()):
                    if result == 2:
                        break
                try:
                    assert pipeline.run([1]) == [1]
                except StateError as error:
                    assert isinstance(error.__cause__, ProcessorError)
                assert pipeline.run([1]) == [1]


def raise_without_descriptors(item):
    """As one does that has used up all, so that nothing can be imported any more."""
    sys.modules["traceback"] = None
    raise ValueError("plain")


class ThreadTest(Failures, TestCase):
    """Threads of this process."""

    settings = {"engine": "thread"}
    # Nothing is pickled, and there is no process that could be killed.
    crosses = False
    test_an_input_that_cannot_be_pickled = None
    test_an_output_that_cannot_be_pickled = None
    test_an_item_whose_unpickling_raises = None
    test_a_result_whose_unpickling_raises = None
    test_a_source_that_raises_while_what_it_gave_is_being_sent = None
    test_a_job_ends_its_worker = None
    test_a_worker_dies_in_setup = None
    test_an_idle_worker_with_state_is_killed_between_two_runs = None
    test_a_worker_is_killed_amid_a_large_message = None
    test_the_broker_is_killed = None
    test_the_broker_is_killed_while_a_worker_is_busy = None
    test_a_worker_that_stands_still_does_not_hold_up_the_end = None


class ForkPipeTest(Failures, TestCase):
    """Forked workers, over socket pairs."""

    def test_where_it_was_is_told_although_nothing_can_be_imported(self):
        with self.assertRaises(ProcessorError) as caught:
            self.make(Processor(raise_without_descriptors)).run([1])
        texts = []
        error = caught.exception
        while error is not None:
            texts.append(str(error))
            error = error.__cause__
        told = texts[-1]
        assert "plain" in texts[0] and "in raise_without_descriptors\n" in told, texts
        assert told.rstrip().endswith("ValueError (more of its traceback could not be made: ModuleNotFoundError)"), told


@slow
class ForkQueueTest(Failures, TestCase):
    """Forked workers, over queues."""

    settings = {"start_method": "fork", "channel": "queue"}
    # In test_faults.py, with a worker that nothing but a signal can end.
    test_the_broker_is_killed_while_a_worker_is_busy = None
    # A job fails, and is told of, in the same way whatever the error travels by.
    test_every_kind_of_exception = None
    test_first_middle_or_last_job_raises = None
    test_a_lambda_raises = None
    test_a_generator_raises_midway = None
    test_a_batch_fails = None
    test_with_several_workers_the_item_is_named = None
    test_an_item_whose_repr_raises = None
    test_items_are_shown_as_redact_says = None
    test_a_redact_that_raises_shows_nothing = None
    test_setup_raises = None
    test_finish_raises = None
    test_teardown_raises = None
    test_a_source_that_raises = None
    test_an_endless_input_and_a_slow_consumer = None
    test_an_idle_worker_with_state_is_killed_between_two_runs = None
    test_leaving_a_stream_that_fails_later_on = None
    # With another end of its worker; how one died is seen by its process, not by its channel.
    test_a_worker_dies_in_setup = None


@slow
class ForkserverPipeTest(Failing, TestCase):
    """Workers forked by a fresh broker: how jobs fail and items travel is the same as with one that was forked."""

    settings = {"start_method": "forkserver", "channel": "pipe"}
    test_setup_raises = Failures.test_setup_raises
    test_a_worker_dies_in_setup = Failures.test_a_worker_dies_in_setup
    test_the_broker_is_killed = Failures.test_the_broker_is_killed


@slow
class SpawnPipeTest(Failing, TestCase):
    """Workers that are fresh interpreters: from the call of the job on, they run the same code as forked ones."""

    settings = {"start_method": "spawn", "channel": "pipe"}
    test_setup_raises = Failures.test_setup_raises
    test_a_batch_fails = Failures.test_a_batch_fails
    test_a_worker_dies_in_setup = Failures.test_a_worker_dies_in_setup
    test_a_worker_is_killed_amid_a_large_message = Failures.test_a_worker_is_killed_amid_a_large_message
    test_the_broker_is_killed = Failures.test_the_broker_is_killed
    test_a_worker_that_stands_still_does_not_hold_up_the_end = (
        Failures.test_a_worker_that_stands_still_does_not_hold_up_the_end
    )


if __name__ == "__main__":
    unittest.main()
