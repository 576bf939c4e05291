"""What jobs leave running ends with their workers: executors, pools, children, orphans, threads.

Law: each test ends with nothing left, says how long the end may take, and looks at what the log says of it.  Nobody
waits for a time to pass: what a job has started says when it is there.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import unittest
import warnings
from pathlib import Path

from conveyor import ItemTimeoutError, Pipe, Pipeline, ProcessError, Processor, ProcessorError
from conveyor.engines.process.system.descendants import _PR_SET_CHILD_SUBREAPER, prctl
from conveyor.engines.process.worker import main
from tests.faults.test_survival import kill
from tests.helpers.jobs_of_failures import wait_until
from tests.helpers.late import mock, subprocess
from tests.helpers.support import ALL, TestCase, _everyone, slow

# What an end may take.  A tenth of that is usual; the broker kills a worker that does not end after 5 s.
LIMIT_SECONDS = 4.0
ENGINES = [("fork", "pipe"), ("spawn", "pipe"), ("forkserver", "pipe"), ("fork", "queue")]

# What a job leaves: here, so that nothing but the end of the process lets go of it.
left = []


def same(item):
    return item


def open_executor(item):
    executor = concurrent.futures.ProcessPoolExecutor(2)
    left.append(executor)
    return next(iter(executor.map(abs, [item])))


def open_threads(item):
    executor = concurrent.futures.ThreadPoolExecutor(2)
    left.append(executor)
    return next(iter(executor.map(abs, [item])))


def open_busy_executor(item):
    executor = concurrent.futures.ProcessPoolExecutor(1)
    left.append(executor)
    executor.submit(abs, item).result()
    executor.submit(wait_for_ever)
    return item


def open_joblib(item):
    from joblib import Parallel, delayed

    return Parallel(n_jobs=2)(delayed(abs)(number) for number in [item])[0]


def open_pool(item):
    warnings.simplefilter("ignore", ResourceWarning)
    pool = multiprocessing.Pool(2)
    left.append(pool)
    return pool.map(abs, [item])[0]


def wait_for_ever():
    while True:
        signal.pause()


def start_process(item):
    process = multiprocessing.get_context("fork").Process(target=wait_for_ever)
    process.start()
    left.append(process)
    return item


def open_pipeline(item):
    # That it is dropped while it is open is said at the end of the worker, where it is no news.
    warnings.simplefilter("ignore", ResourceWarning)
    pipeline = Pipeline().add(Processor(same)).open()
    left.append(pipeline)
    return pipeline.run([item])[0]


def run_pipeline(item):
    return Pipeline().add(Processor(abs)).run([item])[0]


class Files(Processor):
    """Says in a folder which processes it has started."""

    restartable = True

    def __init__(self, folder, **settings):
        self.folder = folder
        super().__init__(**settings)

    def say(self, name, pid):
        # Written under another name first: whoever reads it finds the number, or nothing.
        path = Path(self.folder, name)
        path.with_suffix(".new").write_text(str(pid))
        os.replace(path.with_suffix(".new"), path)

    def process(self, item):
        self.start(item)
        return item


class StartsChild(Files):
    """Starts a program that runs for ever."""

    program = "echo; exec sleep 1000"
    settings = {}

    def start(self, item):
        child = subprocess.Popen(["sh", "-c", self.program], stdout=subprocess.PIPE, **self.settings)
        child.stdout.readline()
        child.stdout.close()
        left.append(child)
        # A fresh interpreter would print at its end that it is still running.
        child.returncode = 0
        self.say(f"child{item}", child.pid)


class StartsStubborn(StartsChild):
    """Starts a program that cannot be asked to end."""

    program = f"trap '' TERM; {StartsChild.program}"


class StartsSession(StartsChild):
    """Starts a program that is to stay."""

    settings = {"start_new_session": True}


class StartsGroup(StartsChild):
    """Starts a program that a signal to the group of its processes does not reach."""

    settings = {"preexec_fn": os.setpgrp}


class StartsOrphan(Files):
    """Starts a process that starts another and ends."""

    def start(self, item):
        child = os.fork()
        if not child:
            orphan = os.fork()
            if not orphan:
                wait_for_ever()
            self.say(f"child{item}", orphan)
            os._exit(0)
        os.waitpid(child, 0)


class SaysWhoseChildItIs(StartsOrphan):
    """Says which process its broker is."""

    def start(self, item):
        super().start(item)
        self.say("broker", os.getppid())


class StartsTree(Files):
    """Starts a shell, of which a child and its child stay."""

    def start(self, item):
        warnings.simplefilter("ignore", ResourceWarning)
        shell = subprocess.Popen(["sh", "-c", "sh -c 'sleep 1000 & echo $!; wait' & wait"], stdout=subprocess.PIPE)
        self.say(f"child{item}", int(shell.stdout.readline()))
        left.append(shell)


class DiesAtSecond(Files):
    """Two workers start a child and an orphan each; then one of them dies."""

    def __init__(self, folder, how, **settings):
        self.how = how
        super().__init__(folder, workers=2, **settings)

    def start(self, item):
        if item > 1:
            return
        StartsChild.start(self, item)
        os.replace(Path(self.folder, f"child{item}"), Path(self.folder, f"own{item}"))
        StartsOrphan.start(self, item)
        self.say(f"worker{item}", os.getpid())

    program, settings = StartsChild.program, {}

    def process(self, item):
        if item > 1 or Path(self.folder, f"worker{item}").exists():
            # Again, after the death of the one that was at it.
            return item
        self.start(item)
        paths = [Path(self.folder, f"{name}{number}") for name in ("own", "child") for number in (0, 1)]
        wait_until(lambda: all(path.exists() for path in paths), "both workers have started theirs")
        if item == 1:
            if self.how == "timeout":
                wait_for_ever()
            os.kill(os.getpid(), signal.SIGKILL)
        return item


class LeavesThread(Processor):
    """Starts a thread that Python waits for, and that never ends."""

    def process(self, item):
        threading.Thread(target=wait_for_ever_in_thread, name="endless", daemon=False).start()
        return item


def wait_for_ever_in_thread():
    threading.Event().wait()


class LeavesThreadInHaste(LeavesThread):
    """The same, in a worker that is not given as long for its end."""

    def setup(self):
        main.EXIT_SECONDS = 1.0


class WritesAtEnd(Processor):
    """Has a thread that writes a file when there is nothing more to come."""

    def __init__(self, path):
        self.path = path
        super().__init__()

    def setup(self):
        self.over = threading.Event()
        threading.Thread(target=self.write).start()

    def write(self):
        self.over.wait()
        Path(self.path).write_text("written")

    def process(self, item):
        return item

    def teardown(self):
        self.over.set()


def start_what_ends(item):
    """Start a process whose parent ends before it, and which nobody waits for."""
    if item < 20:
        subprocess.run(["sh", "-c", "true &"], check=True)
    return os.getppid()


def number_in(folder, name):
    return int(Path(folder, name).read_text())


def lives(pid):
    status = _everyone().get(pid)
    return status is not None and status.state != "Z"


def zombies(parent):
    return [pid for pid, status in _everyone().items() if status.parent == parent and status.state == "Z"]


@unittest.skipUnless(hasattr(os, "fork"), "needs fork")
class LeftByJobsTest(TestCase):
    def setUp(self):
        self.leave_nothing()
        self.folder = self.new_folder()

    def ends(self, job, level, *words, items=(3,), **settings):
        """Run a job on items; check what the log says, and that the end comes soon and leaves nothing."""
        pipeline = Pipeline(**settings).add(job if isinstance(job, Processor) else Processor(job))
        with self.assertLogs("conveyor", "INFO") as logs, pipeline:
            self.assertEqual(pipeline.run(items), list(items))
            begun = time.monotonic()
            pipeline.close()
            self.assertLess(time.monotonic() - begun, LIMIT_SECONDS)
        for word in (f"{level}:conveyor:", *words):
            self.assertIn(word, "\n".join(logs.output))

    # Executors, pools and children of `multiprocessing`

    def test_executor(self):
        for method, channel in ENGINES[:2] if ALL else ENGINES[:1]:
            with self.subTest(method=method, channel=channel):
                self.ends(
                    open_executor, "INFO", "'open_executor' left executors open", start_method=method, channel=channel
                )

    def test_executor_that_is_busy(self):
        self.ends(open_busy_executor, "INFO", "'open_busy_executor' left executors open", start_method="fork")

    def test_executor_of_threads(self):
        with self.assertNoLogs("conveyor", "INFO"):
            self.assertEqual(Pipeline().add(Processor(open_threads)).run([3]), [3])

    @unittest.skipUnless(importlib.util.find_spec("joblib"), "needs joblib")
    def test_joblib(self):
        # What the job has left open is found in the same way in a fresh interpreter, which would import all of joblib.
        self.ends(open_joblib, "INFO", "'open_joblib' left executors open, whose", start_method="fork")

    def test_pool(self):
        for method in ("fork", "spawn"):
            with self.subTest(method=method):
                self.ends(open_pool, "WARNING", "'open_pool' left processes running", start_method=method)

    def test_child(self):
        self.ends(start_process, "WARNING", "'start_process' left processes running", "Process-", start_method="fork")

    def test_pipeline_in_a_job(self):
        with self.assertNoLogs("conveyor", "INFO"):
            self.assertEqual(Pipeline().add(Processor(run_pipeline)).run([3, 4]), [3, 4])
        self.ends(open_pipeline, "WARNING", "'open_pipeline' left processes running", "conveyor-broker")

    def test_job_that_fails(self):
        for job in (open_executor, open_pool, start_process):
            logs = self.assertLogs("conveyor", "INFO")
            with self.subTest(job=job), logs, self.assertRaises(ProcessorError):
                Pipeline(start_method="fork").add(Processor(job)).add(Pipe()).add(Processor(len)).run([3])

    # Whatever descends from a worker

    @unittest.skipUnless(sys.platform == "linux", "needs Linux")
    def test_descendants(self):
        for kind in (StartsChild, StartsStubborn, StartsGroup, StartsOrphan, StartsTree):
            # Whose child an orphan becomes depends on who has started the worker.
            for method, channel in ENGINES[: 3 if ALL else 2] if kind is StartsOrphan else ENGINES[:1]:
                with self.subTest(kind=kind.__name__, method=method, channel=channel):
                    words = "which the broker ended", f"of Processor '{kind.__name__}'"
                    job = kind(self.new_folder())
                    self.ends(job, "WARNING", *words, start_method=method, channel=channel)

    @unittest.skipUnless(sys.platform == "linux", "needs Linux")
    def test_a_session_of_its_own_stays(self):
        with self.assertNoLogs("conveyor", "INFO"):
            Pipeline().add(StartsSession(self.folder)).run([3])
        pid = number_in(self.folder, "child3")
        try:
            self.assertTrue(lives(pid))
        finally:
            kill(pid)

    @unittest.skipUnless(sys.platform == "linux", "needs Linux")
    def test_a_worker_that_dies_and_one_that_lives(self):
        for how, settings in (("kill", {}), ("timeout", {"timeout": 3.0, "on_error": "skip"})):
            # How the worker started matters to what it leaves, and not to why it ends.
            for method in ("fork", "spawn") if ALL and how == "kill" else ("fork",):
                with self.subTest(how=how, method=method), self.assertLogs("conveyor") as logs:
                    folder = self.new_folder()
                    with Pipeline(start_method=method).add(DiesAtSecond(folder, how, **settings)) as pipeline:
                        pipeline.run([0, 1])
                        mine, other = ([number_in(folder, name + at) for name in ("own", "child")] for at in "01")
                        wait_until(lambda: not any(map(lives, other)), "what the dead worker has left is ended")
                        self.assertTrue(all(map(lives, mine)), "what the living worker has started was ended")
                    self.assertIn("of Processor 'DiesAtSecond'", logs.output[0])

    @unittest.skipUnless(sys.platform == "linux", "needs Linux")
    def test_timeout_that_fails_the_run(self):
        with self.assertLogs("conveyor"), self.assertRaises(ItemTimeoutError):
            Pipeline().add(Hangs(self.folder, timeout=0.5)).run([3])

    @unittest.skipUnless(sys.platform == "linux", "needs Linux")
    def test_orphans_that_have_ended_are_reaped(self):
        with Pipeline(start_method="fork").add(Processor(start_what_ends)) as pipeline:
            stream = pipeline.stream(itertools.count())
            broker = next(stream)
            for number, _ in enumerate(stream):
                if number > 20 and not zombies(broker):
                    break
            stream.close()

    # A broker that dies

    @unittest.skipUnless(sys.platform == "linux", "needs Linux")
    def test_workers_of_a_killed_broker_where_orphans_come_to_the_caller(self):
        prctl()(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.addCleanup(prctl(), _PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        # What is the program's own is not taken from it.
        own = subprocess.Popen(["sh", "-c", "exit 7"])
        kept = subprocess.Popen(["sh", "-c", "read line; exit 8"], stdin=subprocess.PIPE)
        wait_until(lambda: not lives(own.pid), "the program's own child has ended")
        # The semaphores of a broker that is spawned and has queues go with the caller.
        for method, channel in ENGINES if ALL else ENGINES[:2]:
            with self.subTest(method=method, channel=channel):
                folder = self.new_folder()
                pipeline = Pipeline(start_method=method, channel=channel).add(SaysWhoseChildItIs(folder, workers=2))
                with self.assertRaises(ProcessError), pipeline:
                    pipeline.run([1])
                    kill(number_in(folder, "broker"))
                    pipeline.run([1])
                # What is left counts at the end of the test, zombies too.
                orphan = number_in(folder, "child1")
                self.addCleanup(kill, orphan)
                self.assertFalse(lives(orphan))
        kept.communicate(b"\n")
        self.assertEqual((own.wait(), kept.wait()), (7, 8))

    # Threads

    def test_thread_that_never_ends(self):
        with mock.patch.object(main, "EXIT_SECONDS", 1.0):
            self.ends(LeavesThread(), "WARNING", "did not end within 1 s", "endless", start_method="fork")

    @slow
    def test_thread_that_never_ends_in_a_fresh_interpreter(self):
        with self.assertLogs("conveyor") as logs:
            Pipeline(start_method="spawn").add(LeavesThreadInHaste()).run([3])
        self.assertIn("did not end within 1 s", logs.output[0])

    def test_thread_that_ends_in_time_is_waited_for(self):
        path = Path(self.folder, "file")
        for method in ("fork", "spawn"):
            with self.subTest(method=method), self.assertNoLogs("conveyor", "INFO"):
                Pipeline(start_method=method).add(WritesAtEnd(path)).run([3])
                self.assertEqual(path.read_text(), "written")
                path.unlink()


class Hangs(StartsChild):
    """Starts a program, and never comes back."""

    def process(self, item):
        self.start(item)
        wait_for_ever()
