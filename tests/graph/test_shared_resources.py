"""What the program has open, in jobs of several workers: where it is warned of, and with which words.

Law: a warning is looked for where several workers would share something, and its absence where nobody does.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import os
import queue
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import types
import unittest
import warnings
import zipfile
from pathlib import Path

from conveyor import (
    BalancingFork,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ReplicatingFork,
    SharedResourceWarning,
)
from tests.helpers.support import ROOT, TestCase, nothing_left

LOG = None


def same(item):
    return item


def read_log(item):
    return LOG.read(item)


def read_log_in_helper(item):
    return read_log(item)


class Reader:
    """Holds a file, in one of two ways."""

    __slots__ = ("file", "inner")

    def __init__(self, file, inner=None):
        self.file = file
        self.inner = inner

    def __call__(self, item):
        return item

    def read(self, item):
        return item


class ReadsLog:
    def __call__(self, item):
        return LOG.read(item)


class Held(Processor):
    def __init__(self, file):
        self.file = file

    def process(self, item):
        return item


class OfClass(Processor):
    file = None

    def process(self, item):
        return item


class OpensInSetup(Processor):
    workers = 2

    def __init__(self, path):
        self.path = path

    def setup(self):
        self.file = open(self.path)

    def process(self, item):
        return item

    def teardown(self):
        self.file.close()


def holding(file):
    return lambda item: (file, item)[1]


def with_default(file):
    return lambda item, file=file: item


def with_attribute(file):
    def job(item):
        return item

    job.file = file
    return job


class SharedResourcesTest(TestCase):
    """Which jobs are warned of."""

    def setUp(self):
        global LOG
        path = Path(self.new_folder(), "data")
        path.write_text("data" * 100)
        LOG = self.file = open(path)
        self.addCleanup(LOG.close)
        self.path = str(path)

    def warned(self, pipeline, items=()):
        """Run, and return the warnings."""
        with nothing_left(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipeline.run(items)
        return [str(each.message) for each in caught if each.category is SharedResourceWarning]

    def refused(self, pipeline):
        """Return the warning where it is an error, as tests have it: it comes before anything is started."""
        with nothing_left(), self.assertRaises(SharedResourceWarning) as caught:
            pipeline.run([])
        return str(caught.exception)

    def fork(self, *processors, **settings):
        pipeline = Pipeline(start_method="fork", **settings).add(processors[0])
        for processor in processors[1:]:
            pipeline.add(Pipe()).add(processor)
        return pipeline

    def test_wherever_a_job_holds_it(self):
        read = Reader(None, Reader(self.file))
        for job, where in [
            (holding(self.file), "the closure variable 'file'"),
            (holding(holding(self.file)), "the closure variable 'file'"),
            (holding([{"log": self.file}]), "a value of a dict"),
            (with_default(self.file), "a default argument"),
            (with_attribute(self.file), "the attribute 'file'"),
            (functools.partial(pow, self.file), "an argument of a partial"),
            (functools.partial(holding(self.file)), "the closure variable 'file'"),
            (functools.lru_cache(holding(self.file)), "the closure variable 'file'"),
            (self.file.read, "the object of a method"),
            (Reader(self.file), "the attribute 'file'"),
            (read.read, "the attribute 'file'"),
            (ReadsLog(), "the global variable 'LOG'"),
            (read_log, "the global variable 'LOG'"),
            (read_log_in_helper, "the global variable 'LOG'"),
        ]:
            with self.subTest(job=job):
                message = self.refused(self.fork(Processor(job, workers=2, name="reader")))
                assert message.startswith(f"Processor 'reader': its workers share the open file '{self.path}', which")
                assert f"({where})" in message and "`setup`" in message

    def test_in_a_subclass(self):
        OfClass.file = self.file
        self.addCleanup(setattr, OfClass, "file", None)
        held, of_class = Held(self.file), OfClass()
        held.workers = of_class.workers = "auto"
        for processor, where in ((held, "the attribute 'file'"), (of_class, "the class attribute 'file'")):
            with self.subTest(where=where):
                (message,) = self.warned(self.fork(processor))
                assert f"({where})" in message

    def test_once_for_each_processor(self):
        shared, alone = Processor(read_log, workers=2), Processor(holding(self.file), workers=2, name="other")
        messages = self.warned(self.fork(shared, alone, Processor(same, workers=2)))
        assert [message.split("'")[1] for message in messages] == ["read_log", "other"]
        pipeline = Pipeline(start_method="fork").add(Processor(same)).add(Pipe()).add(BalancingFork(2)).add(Pipe())
        pipeline.add(shared).add(Pipe()).add(Processor(same)).add(Pipe()).add(Join())
        assert len(self.warned(pipeline)) == 1

    def test_copies_on_branches_are_several_workers(self):
        for fork in (ReplicatingFork(2), BalancingFork(2), BalancingFork()):
            with self.subTest(fork=fork):
                pipeline = Pipeline(start_method="fork").add(Processor(same)).add(Pipe()).add(fork)
                pipeline.add(Processor(holding(self.file), name="reader")).add(Pipe()).add(Join())
                assert len(self.warned(pipeline)) == 1

    def test_fused_jobs(self):
        first, second = Processor(read_log, workers="auto"), Processor(same)
        (message,) = self.warned(self.fork(first, second, fuse=True, cores=2))
        assert message.startswith("Processor 'read_log':")
        assert not self.warned(self.fork(Processor(read_log), Processor(holding(self.file)), fuse=True, cores=2))

    def test_what_is_a_resource(self):
        folder = Path(self.new_folder())
        left, right = socket.socketpair()
        one, other = multiprocessing.Pipe()
        database = sqlite3.connect(":memory:")
        for each in (left, right, one, other, database):
            self.addCleanup(each.close)
        with (
            zipfile.ZipFile(folder / "zip", "w") as archive,
            tarfile.open(folder / "tar", "w") as tape,
            tempfile.NamedTemporaryFile() as temporary,
            open(self.path, "rb", buffering=0) as raw,
        ):
            for resource, words in [
                (archive, "a ZipFile of zipfile"),
                (tape, "a TarFile of tarfile"),
                (temporary, "a _TemporaryFileWrapper of tempfile"),
                (raw, f"the open file '{self.path}'"),
                (left, "a socket of socket"),
                (one, "a _ConnectionBase of multiprocessing"),
                (database, "a Connection of sqlite3"),
            ]:
                with self.subTest(words=words):
                    assert words in self.refused(self.fork(Processor(holding(resource), workers=2)))
        # A subclass is one, too; what is of another package is known by its name.
        package = types.ModuleType("requests")
        exec("class Session: pass", {"__name__": "requests.sessions"}, vars(package))
        for session in (package.Session(), type("Own", (package.Session,), {})()):
            assert "a Session of requests" in self.refused(self.fork(Processor(holding(session), workers=2)))

    def test_what_is_none(self):
        closed = open(self.path)
        closed.close()
        closed_socket = socket.socket()
        closed_socket.close()
        with zipfile.ZipFile(io.BytesIO(), "w") as archive:
            pass
        own = multiprocessing.Queue()
        none = (
            *(closed, closed_socket, archive, io.StringIO(), io.BytesIO(), sys.stdout, sys.stderr),
            *(own, multiprocessing.SimpleQueue(), multiprocessing.Lock()),
            *(threading.Lock(), queue.Queue(), open, io, [*range(10_000)], holding(1), same),
        )
        # Each in a Processor of its own, of which a warning says the name.
        assert not self.warned(self.fork(*(Processor(holding(held), workers=2) for held in none)))
        own.close()
        own.join_thread()

    def test_where_nobody_shares_it(self):
        assert not self.warned(self.fork(Processor(read_log), Processor(holding(self.file))))
        assert not self.warned(self.fork(OpensInSetup(self.path)), [1, 2])
        assert not self.warned(Pipeline(start_method="spawn").add(Processor(read_log, workers=2)))
        assert not self.warned(Pipeline(engine="inline").add(Processor(read_log, workers=2)))

    def test_what_a_job_cannot_be_asked_for(self):
        class Trap:
            def __getattribute__(self, name):
                raise AssertionError(name)

            def __call__(self, item):
                return item

        cycle = []
        cycle.append(cycle)
        for held in (Trap(), cycle):
            assert not self.warned(self.fork(Processor(holding(held), workers=2)))

    def test_it_points_at_the_line(self):
        pipeline = self.fork(Processor(read_log, workers=2))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            line = sys._getframe().f_lineno
            pipeline.run([])
            list(pipeline.stream([]))
            pipeline.open().close()
            with pipeline:
                pass
        assert [(each.filename, each.lineno - line) for each in caught] == [
            (__file__, number) for number in (1, 2, 3, 4)
        ]

    def test_it_comes_before_anything_is_started(self):
        pipeline = self.fork(Processor(read_log, workers=2))
        # An error here, as tests have it.
        for call in (pipeline.open, pipeline.__enter__, lambda: pipeline.run([1]), lambda: pipeline.stream([1])):
            with nothing_left(0), self.assertRaises(SharedResourceWarning):
                call()

    def test_a_broker_that_imports_the_script_opens_it_once_for_all_workers(self):
        script = Path(self.new_folder(), "script.py")
        script.write_text(
            "import os\nfrom conveyor import Pipeline, Processor\n"
            "file = open(__file__)\n"
            "def job(item):\n    return os.lseek(file.fileno(), item, os.SEEK_CUR)\n"
            "if __name__ == '__main__':\n"
            "    with Pipeline(start_method='forkserver').add(Processor(job, workers=2, max_items=1)) as pipeline:\n"
            "        print(pipeline.run([1]), pipeline.run([1]))\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-W", "default::UserWarning", str(script)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert "SharedResourceWarning: Processor 'job': its workers share the open file" in done.stderr, done.stderr
        assert done.stderr.count("Warning") == 1, done.stderr
        # And so it is: another worker goes on where the first one was.
        first, second = done.stdout.split()
        assert int(second.strip("[]")) == int(first.strip("[]")) + 1


if __name__ == "__main__":
    unittest.main()
