"""Where the system has no process or thread left, a run ends with a ProcessError that says so, or does without.

Law: every start is made to fail, one after the other: by the limit of a user who is not root, and by a replaced `start`.
Whatever fails, nothing hangs, and no process, thread or descriptor is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import unittest
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

from conveyor import Pipe, Pipeline, ProcessError, Processor
from tests.helpers.late import mock
from tests.helpers.support import ALL, ROOT, TestCase, nothing_left

# The first tests every limit, the second whether the balancer goes on with fewer workers.
SCRIPT = """
import ctypes, logging, multiprocessing, os, resource, sys, threading, time
from multiprocessing import resource_tracker
from conveyor import Pipe, Pipeline, Processor, ProcessError


def leave_root():
    '''Become a user who has nothing else, and may still read what root may: the interpreter may be root's.'''
    libc, user, reading = ctypes.CDLL(None), 40_000 + os.getpid() % 20_000, (1, 2)
    libc.prctl(8, 1, 0, 0, 0)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    bits = sum(1 << each for each in reading)
    if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)):
        sys.exit(77)
    for each in reading:
        libc.prctl(47, 2, each, 0, 0)


def add_one(item):
    return item + 1


def slow(item):
    time.sleep(0.01)
    return os.getpid()


def limit(processes):
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, resource.getrlimit(resource.RLIMIT_NPROC)[1]))


def there():
    return set(os.listdir("/proc/self/fd")), threading.active_count(), multiprocessing.active_children()


def sweep(settings):
    before, failed = there(), 0
    for processes in range(1, 40):
        limit(processes)
        pipeline = Pipeline(**settings).add(Processor(add_one)).add(Pipe()).add(Processor(add_one, workers=2))
        try:
            results = pipeline.run(item for item in range(50))
        except ProcessError as error:
            assert "Remedy: raise the limit" in str(error), error
            failed += 1
        else:
            assert results == list(range(2, 52)), results
            if processes > 8:
                break
        assert there() == before, (processes, before, there())
    else:
        sys.exit("no limit was high enough")
    print("failed:", failed > 3)


def grow(settings):
    limit(6 if settings.get("channel") != "queue" else 20)
    told = threading.Event()

    class Telling(logging.StreamHandler):
        def emit(self, record):
            super().emit(record)
            told.set()

    logging.basicConfig(handlers=[Telling(sys.stdout)], format="%(message)s")
    pipeline = Pipeline(cores=8, **settings).add(Processor(slow, workers="auto"))
    with pipeline:
        results = pipeline.run(range(100))
        # On a busy machine it takes more items until one is wanted for which there is no room.
        while not told.is_set():
            results += pipeline.run(range(100))
        results += pipeline.run(range(20))
    print(len(results) % 100, 1 <= len(set(results)) < 8)


if __name__ == "__main__":
    resource_tracker.ensure_running()
    leave_root()
    what, method, channel = sys.argv[1:]
    {"sweep": sweep, "grow": grow}[what]({"start_method": method, "channel": channel})
"""


def increment(item: int) -> int:
    return item + 1


def items() -> Iterator[int]:
    yield from range(50)


class Failing:
    """Has the start of that number fail, in this process and in those that are forked from it."""

    def __init__(self, original: Any, at: int, error: Exception) -> None:
        self.original = original
        self.left = at
        self.error = error
        self.failed = False

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.failed = True
            raise type(self.error)(*self.error.args)
        return self.original(*arguments)


@unittest.skipUnless(hasattr(os, "fork"), "nothing is forked here")
class ReplacedStartTest(TestCase):
    """Each start of this process, one after the other."""

    def setUp(self) -> None:
        super().setUp()
        # It belongs to the program, and stays.
        resource_tracker.ensure_running()

    def sweep(self, channel: str, owner: Any, name: str, error: Exception) -> None:
        failures = 0
        for at in range(1, 30):
            failing = Failing(getattr(owner, name), at, error)

            def call(*arguments: Any, failing: Failing = failing) -> Any:
                return failing(*arguments)

            with nothing_left(), mock.patch.object(owner, name, call):
                pipeline = Pipeline(start_method="fork", channel=channel)  # type: ignore[arg-type]
                pipeline.add(Processor(increment)).add(Pipe()).add(Processor(increment))
                try:
                    assert pipeline.run(items()) == list(range(2, 52))
                except ProcessError as caught:
                    failures += 1
                    assert "could not be started" in str(caught) and "Remedy" in str(caught), caught
                else:
                    if not failing.failed:
                        break
        assert failures and at < 29

    def test_threads(self) -> None:
        for channel in ("pipe", "queue"):
            self.sweep(channel, threading.Thread, "start", RuntimeError("can't start new thread"))

    def test_processes(self) -> None:
        for channel in ("pipe", "queue") if ALL else ("pipe",):
            self.sweep(channel, os, "fork", BlockingIOError(11, "Resource temporarily unavailable"))

    def test_a_run_is_right_without_a_look_out(self) -> None:
        """Items are pulled one by one then, so that none waits for the next."""
        asked = threading.Event()

        def source() -> Iterator[int]:
            yield from range(40)
            asked.wait()

        start = threading.Thread.start

        def start_others(thread: threading.Thread) -> None:
            if thread.name == "conveyor-look-out":
                raise RuntimeError("can't start new thread")
            start(thread)

        with nothing_left(), mock.patch.object(threading.Thread, "start", start_others):
            pipeline = Pipeline(start_method="fork").add(Processor(increment))
            stream = pipeline.stream(source())
            assert [next(stream) for _ in range(40)] == list(range(1, 41))
            asked.set()
            assert list(stream) == []


@unittest.skipUnless(sys.platform == "linux" and os.geteuid() == 0, "only root can become another user")
class UserLimitTest(TestCase):
    """A user who may have few processes."""

    time_limit = 180.0

    # Each start that there is, and each over both channels where processes are forked.
    variants = (("fork", "pipe"), ("fork", "queue"), ("spawn", "pipe"), ("forkserver", "pipe"))[: None if ALL else 1]

    def printed(self, what: str) -> Iterator[tuple[tuple[str, str], str]]:
        """Each variant, and what its script prints.  The scripts run side by side, each as a user of its own."""
        path = os.path.join(self.new_folder(), "script.py")
        with open(path, "w") as file:
            file.write(SCRIPT)
        os.chmod(os.path.dirname(path), 0o755)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started = [
            subprocess.Popen(
                [sys.executable, path, what, *variant],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for variant in self.variants
        ]
        for each in started:
            self.addCleanup(each.communicate)
            self.addCleanup(each.kill)
        for variant, each in zip(self.variants, started, strict=True):
            output, errors = each.communicate(timeout=150)
            if each.returncode == 77:
                self.skipTest("this root may not choose what it may do")
            assert each.returncode == 0, output + errors
            assert "Traceback" not in errors, errors
            yield variant, output

    def test_every_limit(self) -> None:
        for variant, output in self.printed("sweep"):
            assert output == "failed: True\n", (variant, output)

    def test_the_balancer_goes_on_with_what_it_has(self) -> None:
        for variant, output in self.printed("grow"):
            notice, result = output.splitlines()
            assert "could not be started" in notice and "goes on with the workers that it has" in notice, notice
            assert result == "20 True", (variant, result)


if __name__ == "__main__":
    unittest.main()
