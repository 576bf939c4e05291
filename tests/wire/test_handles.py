"""Connections of `multiprocessing` as items, as outputs and in jobs: to pickle, they are a number of this process.

Law: each test uses the program's own connection at its end, which that would not survive if a copy had been closed.
"""

from __future__ import annotations

import copy
import functools
import multiprocessing
import multiprocessing.connection
import pickle
import socket
import sqlite3
import unittest

from conveyor import JobPicklingError, Pipeline, Processor, ProcessorError, SourceError
from tests.helpers.support import TestCase, nothing_left


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
            for wrap in (same, lambda each: [each], lambda each: {"end": (1, each)}, Holder, Slotted):
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
        job = functools.partial(isinstance, self.mine)
        for start_method in ("spawn", "forkserver"):
            with self.subTest(start_method=start_method), nothing_left(), self.assertRaises(JobPicklingError) as caught:
                Pipeline(start_method=start_method).add(Processor(job)).run([int])
            assert "is a number of this process" in str(caught.exception)
        with self.assertRaises(ProcessorError) as raised:
            Pipeline(engine="inline").add(Held(self.mine)).run([int])
        assert raised.exception.phase == "load"
        # A forked worker has it as it is.
        assert Pipeline(start_method="fork").add(Processor(job)).run([int]) == [False]

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


if __name__ == "__main__":
    unittest.main()
