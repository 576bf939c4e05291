"""The `shared` objects of a pipeline: every worker reads them, and nobody changes or copies them.

Law: what is expected is the same for each engine and start method; memory is measured, and time is not.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import unittest
from pathlib import Path

import conveyor
from conveyor import JobPicklingError, Pipe, Pipeline, Processor, ProcessorError
from conveyor.engines.process.wire import shared_objects
from conveyor.engines.process.wire.shared_objects import MOST_PICKLED_BYTES, shared_here
from tests.helpers.late import mock
from tests.helpers.support import TestCase, nothing_left

MEGABYTE = 1 << 20
HAS_NUMPY = importlib.util.find_spec("numpy") is not None
METHODS = multiprocessing.get_all_start_methods()
ENGINES = (
    {"engine": "inline"},
    {"engine": "thread"},
    *({"start_method": method} for method in METHODS),
    *({"start_method": method, "channel": "queue"} for method in ("fork", "spawn") if method in METHODS),
)
FRESH = tuple({"start_method": method} for method in METHODS if method != "fork")


class Table:
    """Has a buffer that pickles out of band, as arrays have."""

    def __init__(self, data):
        self.data = memoryview(data).cast("B")

    def __reduce_ex__(self, protocol):
        return Table, (pickle.PickleBuffer(self.data),)


class Noted:
    """Notes in a folder each process that unpickles it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return noted, (self.folder,)


def noted(folder):
    Path(folder, str(os.getpid())).touch()
    return Noted(folder)


def look(item):
    """What there is, and whether it can be written."""
    shared = conveyor.worker().shared
    table, nested = shared["table"].data, shared["nested"]["tables"][1].data
    try:
        shared["absent"]
    except KeyError as error:
        message = str(error)
    for each in (table, nested):
        try:
            each[0] = 0
        except TypeError:
            continue
        raise AssertionError("it can be written")
    return item + table[item], bytes(nested), sorted(shared), len(shared), message, "table" in shared


def look_at_arrays(item):
    shared = conveyor.worker().shared
    arrays = [shared["array"], shared["part"], shared["objects"], *shared["nested"], shared["frame"]["column"]]
    return [(array.flags.writeable, array.tolist()) for array in arrays]


def own_bytes():
    """The memory of this process that is no part of a file: a page of a file counts as private while nobody else reads it."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return 1024 * sum(map(int, re.findall(r"^Anonymous: *(\d+)", text, re.MULTILINE)))


def grown(item):
    """By how much the memory of this process grows while it reads all of the table."""
    before = own_bytes()
    table = conveyor.worker().shared["table"].data
    assert sum(table[::4096]) == len(table) // 4096
    return os.getpid(), own_bytes() - before


def touch(item):
    conveyor.worker().shared[item]
    return item


def die_once(item):
    if item == "die" and conveyor.worker().shared["folder"] and not os.path.exists(died()):
        Path(died()).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return conveyor.worker().shared["table"].data[3]


def died():
    return os.path.join(conveyor.worker().shared["folder"], "died")


def names(item):
    return dict(conveyor.worker().shared)


def use_lock(item):
    with conveyor.worker().shared["lock"]:
        return item


def same_object(item):
    return id(conveyor.worker().shared["big"])


class SharedTest(TestCase):
    """What a job has of them."""

    def test_in_every_engine(self):
        shared = {"table": Table(bytearray(range(256)) * 4096), "nested": {"tables": [None, Table(bytearray(b"ab"))]}}
        message = "\"the pipeline has no shared object 'absent'; there are: 'table', 'nested'\""
        expected = [(2 * item, b"ab", ["nested", "table"], 2, message, True) for item in range(8)]
        for settings in ENGINES:
            with self.subTest(**settings), nothing_left():
                pipeline = Pipeline(shared=shared, **settings).add(Processor(look, workers=2)).add(Pipe())
                self.assertEqual(pipeline.add(Processor(tuple)).run(range(8)), expected)
        self.assertEqual(bytes(shared["table"].data[:3]), b"\0\1\2")
        self.assertEqual(Pipeline(engine="inline").add(Processor(lambda _: names(_) == {})).run([1]), [True])
        self.assertEqual(Pipeline(shared={}).add(Processor(names)).run([1]), [{}])

    @unittest.skipUnless(HAS_NUMPY, "numpy is not installed")
    def test_arrays_cannot_be_written(self):
        import numpy

        array = numpy.arange(12).reshape(3, 4)
        objects = numpy.array([1, "two"], dtype=object)
        nested = [array.T, array[:, 1], numpy.empty(0)]
        shared = {"array": array, "part": array[::2, ::3], "objects": objects, "nested": nested}
        shared["frame"] = {"column": array[:, 2]}
        arrays = [array, array[::2, ::3], objects, *nested, array[:, 2]]
        # Whatever the channel: the objects do not travel by it.
        for settings in (each for each in ENGINES if "channel" not in each):
            with self.subTest(**settings):
                (found,) = Pipeline(shared=shared, **settings).add(Processor(look_at_arrays)).run([1])
                self.assertEqual(found, [(False, each.tolist()) for each in arrays])
        self.assertTrue(array.flags.writeable and objects.flags.writeable, "those of the caller stay as they are")

    @unittest.skipUnless(sys.platform == "linux", "what a process has for itself is read from /proc")
    def test_no_worker_has_a_copy(self):
        shared = {"table": Table(bytearray(b"\1") * (64 * MEGABYTE))}
        for method in METHODS:
            with self.subTest(method), Pipeline(start_method=method, shared=shared) as pipeline:
                rows = pipeline.add(Processor(grown, workers=2)).run(range(8))
                self.assertLess(max(size for _, size in rows), 16 * MEGABYTE)

    def test_an_object_is_rebuilt_where_it_is_used(self):
        for settings in FRESH:
            folder = self.new_folder()
            with self.subTest(**settings):
                pipeline = Pipeline(shared={"noted": Noted(folder), "other": 1}, **settings)
                pipeline.add(Processor(touch)).add(Pipe()).add(Processor(len))
                with pipeline:
                    pipeline.run(["other"])
                    self.assertEqual(os.listdir(folder), [])
                    pipeline.run(["noted"] * 3)
                    self.assertEqual(len(os.listdir(folder)), 1)

    def test_a_replaced_worker_has_them_too(self):
        for method in METHODS:
            folder = self.new_folder()
            with self.subTest(method):
                shared = {"folder": folder, "table": Table(bytearray(b"abcd"))}
                pipeline = Pipeline(start_method=method, shared=shared).add(Processor(die_once))
                self.assertEqual(pipeline.run([1, "die", 2]), [ord("d")] * 3)
                self.assertEqual(os.listdir(folder), ["died"])

    def test_each_opening_shares_what_there_is_then(self):
        for settings in ({"engine": "inline"}, *FRESH[:1]):
            with self.subTest(**settings):
                shared = {"a": 1}
                pipeline = Pipeline(shared=shared, **settings).add(Processor(names))
                self.assertEqual(pipeline.run([1]), [{"a": 1}])
                shared["b"] = 2
                self.assertEqual(pipeline.run([1]), [{"a": 1, "b": 2}])


class RefusedTest(TestCase):
    """What cannot be shared."""

    def test_what_cannot_be_pickled(self):
        for settings in FRESH:
            with self.subTest(**settings), nothing_left(), self.assertRaises(JobPicklingError) as caught:
                Pipeline(shared={"good": 1, "lock": threading.Lock()}, **settings).add(Processor(use_lock)).open()
            self.assertIn("The shared object 'lock' has to be pickled for start_method=", str(caught.exception))
            self.assertIn("Remedy", str(caught.exception))
            self.assertIsNone(caught.exception.processor)
        for settings in ({"engine": "inline"}, {"engine": "thread"}, {"start_method": "fork"}):
            with self.subTest(**settings):
                pipeline = Pipeline(shared={"lock": threading.Lock()}, **settings).add(Processor(use_lock))
                self.assertEqual(pipeline.run([1]), [1])

    def test_what_is_no_mapping_of_names(self):
        for wrong in ([1], "name", {1: 2}):
            with self.subTest(shared=wrong), self.assertRaisesRegex(TypeError, "shared must be a mapping from names"):
                Pipeline(shared=wrong)
        self.assertEqual(repr(Pipeline(shared={"a": [0] * 1000, "b": 1})), "Pipeline(shared={'a': ..., 'b': ...})")

    def test_no_room_for_the_file(self):
        if not FRESH:
            self.skipTest("the system knows no such start method")
        with mock.patch.object(shared_objects, "write_all", side_effect=OSError(28, "No space left on device")):
            with nothing_left(), self.assertRaisesRegex(conveyor.ProcessError, "shared objects .* No space left"):
                Pipeline(shared={"a": 1}, **FRESH[0]).add(Processor(names)).open()

    def test_a_name_that_is_not_there_is_the_failure_of_the_item(self):
        with self.assertRaises(ProcessorError) as caught:
            Pipeline(shared={"a": 1}).add(Processor(touch)).run(["b"])
        self.assertIn("no shared object 'b'; there are: 'a'", str(caught.exception))


class HereTest(TestCase):
    """Objects for workers that have the memory of the caller."""

    def test_what_is_large_beside_its_buffers_stays_as_it_is(self):
        big = ["x" * MOST_PICKLED_BYTES, "y"]
        small, function = [1], lambda: 1
        here = shared_here({"big": big, "small": small, "function": function})
        self.assertIs(here["big"], big)
        self.assertIs(here["function"], function)
        self.assertEqual(here["small"], small)
        self.assertIsNot(here["small"], small)
        self.assertIs(here["small"], here["small"])
        self.assertEqual(
            Pipeline(start_method="fork", shared={"big": big}).add(Processor(same_object)).run([1]), [id(big)]
        )

    def test_many_small_buffers_are_worth_a_larger_pickle(self):
        tables = [Table(bytearray(2000)) for _ in range(20_000)]
        self.assertTrue(all(each.data.readonly for each in shared_here({"tables": tables})["tables"]))

    def test_its_names(self):
        here = shared_here({"a": 1, "b": len})
        self.assertEqual((sorted(here), len(here), "c" in here), (["a", "b"], 2, False))
        self.assertEqual(repr(here), "SharedObjects('a', 'b')")
        with self.assertRaises(TypeError):
            here["c"] = 3


if __name__ == "__main__":
    unittest.main()
