"""Programs that were frozen into an executable: new processes are started from it, and not from an interpreter.

Law: the executable is a script that says so of itself, as those of PyInstaller and cx_Freeze do.  Each start of it is
counted: a program that lacks `freeze_support` must not start itself again and again.
"""

from __future__ import annotations

import modulefinder
import os
import pkgutil
import subprocess
import sys
import textwrap
import time
import unittest

import conveyor
from tests.helpers.support import ALL, ROOT, TestCase

# What freezers put before the program.  That of `multiprocessing` does nothing here, so they bring a `freeze_support`.
SUPPORTING = """
import multiprocessing, multiprocessing.spawn, sys
def freeze_support():
    if "-c" in sys.argv:
        # A helper of `multiprocessing`.
        exec(sys.argv[sys.argv.index("-c") + 1])
        sys.exit()
    multiprocessing.spawn.freeze_support()
multiprocessing.freeze_support = freeze_support
"""
FROZEN = """\
#!{python}
import os, sys, types
sys.path[:0] = [{root!r}]
sys.frozen, sys.executable = True, {path!r}
with open({starts!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
exec({supporting!r}, {{}})
main = sys.modules["__main__"] = types.ModuleType("__main__")
main.__file__ = "/gone/program.py"
exec(compile({body!r}, "program.py", "exec"), vars(main))
"""
PROGRAM = """
import functools, multiprocessing, os, sys, threading, warnings
from conveyor import *
def double(item):
    return item * 2
class Count(Processor):
    def __init__(self):
        self.count = 0
    def process(self, item):
        self.count += item
        return self.count
def crash_once(event, item):
    if not event.is_set():
        event.set()
        os._exit(1)
    return item
def nested(item):
    return Pipeline(start_method="spawn").add(Processor(double)).run([item])[0]
def main():
    pass
"""
RUN = """
    pipeline = Pipeline({settings}).add(Processor(double, workers=2)).add(Pipe()).add(Count())
    print(pipeline.run([1, 2]), pipeline.stats().start_method)
"""
WAITING = """
    over = threading.Event()
    threading.Thread(target=over.wait, daemon=True).start()
"""
GUARD = """
if __name__ == "__main__":
"""
SUPPORT = """
    multiprocessing.freeze_support()
"""


@unittest.skipUnless(os.name == "posix", "the executable is a script")
class FrozenTest(TestCase):
    """Runs such programs."""

    def frozen(self, *parts: str) -> tuple[int, str, str, list[int]]:
        """Run a program; return its exit code, its output, its errors, and the processes that were started from it."""
        folder = self.new_folder()
        path, starts = os.path.join(folder, "program"), os.path.join(folder, "starts")
        body = PROGRAM + "".join(parts)
        with open(path, "w", encoding="utf-8") as file:
            file.write(
                FROZEN.format(
                    python=sys.executable, root=str(ROOT), path=path, starts=starts, supporting=SUPPORTING, body=body
                )
            )
        os.chmod(path, 0o700)
        done = subprocess.run(
            [path],
            capture_output=True,
            text=True,
            timeout=self.time_limit,
            env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
            start_new_session=True,
        )
        with open(starts, encoding="utf-8") as file:
            return done.returncode, done.stdout.strip(), done.stderr, [int(line) for line in file]

    def prints(self, expected: str, *parts: str) -> str:
        """Fail unless the program prints this; return its errors."""
        code, output, errors, _ = self.frozen(*parts)
        assert (code, output) == (0, expected), f"{code}\n{output}\n{errors}"
        return errors

    def fails(self, kind: str, *parts: str) -> str:
        """Fail unless the program ends with this error, and all that it has started with it; return the error."""
        code, output, errors, processes = self.frozen(*parts)
        assert (code, output) == (1, ""), f"{code}\n{output}\n{errors}"
        last = errors.rstrip().splitlines()[-1]
        assert last.startswith(f"conveyor.errors.{kind}: "), errors
        assert "multiprocessing.freeze_support()" in last, last
        # The program, the helper of `multiprocessing` and the broker.
        assert len(processes) <= 3, processes
        deadline = time.monotonic() + self.time_limit / 2
        while any(is_alive(each) for each in processes):
            assert time.monotonic() < deadline, processes
        return last

    def test_each_start_method(self) -> None:
        # A fresh broker that forks is tried beside a thread.
        for method in ("fork", "spawn"):
            run = RUN.format(settings=f"start_method={method!r}")
            assert self.prints(f"[2, 6] {method}", GUARD, SUPPORT, run) == ""

    def test_over_queues(self) -> None:
        self.prints("[2, 6] spawn", GUARD, SUPPORT, RUN.format(settings="start_method='spawn', channel='queue'"))

    def test_beside_a_thread(self) -> None:
        errors = self.prints("[2, 6] forkserver", GUARD, SUPPORT, WAITING, RUN.format(settings=""))
        assert errors.count("StartMethodWarning") == 1, errors

    def test_beside_a_thread_without_freeze_support_it_forks(self) -> None:
        errors = self.prints("[2, 6] fork", GUARD, WAITING, RUN.format(settings=""))
        assert "StartMethodWarning" in errors, errors
        assert "call `multiprocessing.freeze_support()`" in errors, errors

    def test_freeze_support_in_a_function_is_seen(self) -> None:
        body = "".join((SUPPORT, WAITING, RUN.format(settings="")))
        self.prints("[2, 6] forkserver", f"\ndef begin():\n{body}", GUARD, "    begin()\n")

    def test_what_a_worker_needs_more_than_its_job(self) -> None:
        # One that takes the place of another, a handle of its job, and a pipeline of its own.
        run = """
            crashed = multiprocessing.get_context("spawn").Event()
            job = functools.partial(crash_once, crashed)
            print(Pipeline(start_method="spawn").add(Processor(job)).add(Pipe()).add(Processor(nested)).run([1, 2]))
        """
        self.prints("[2, 4]", GUARD, SUPPORT, textwrap.indent(textwrap.dedent(run), "    "))

    def test_without_freeze_support(self) -> None:
        run = RUN.format(settings="start_method='spawn'")
        last = self.fails("MissingMainGuardError", GUARD, run)
        assert "ran the program again" in last, last
        # Nor without a guard.
        self.fails("MissingMainGuardError", "\nif True:\n", run)
        if ALL:
            self.fails("MissingMainGuardError", GUARD, RUN.format(settings="start_method='forkserver'"))

    def test_a_copy_that_ends_at_its_arguments(self) -> None:
        run = RUN.format(settings="start_method='spawn'")
        last = self.fails("ProcessError", GUARD, "    len(sys.argv) == 1 or sys.exit(2)\n", run)
        assert "exited with code 2" in last, last

    def test_a_copy_that_goes_on_with_something_else(self) -> None:
        run = RUN.format(settings="start_method='spawn'")
        soon = """
    import conveyor.engines.process.caller.broker_link as link
    link.FROZEN_START_SECONDS = 0.5
    len(sys.argv) == 1 or threading.Event().wait()
"""
        last = self.fails("ProcessError", GUARD, soon, run)
        assert "did not begin its work within 0.5 s" in last, last


class FoundTest(TestCase):
    """What looks for imports, without running anything, finds the whole package."""

    def test_every_module(self) -> None:
        finder = modulefinder.ModuleFinder([str(ROOT)])
        program = os.path.join(self.new_folder(), "program.py")
        with open(program, "w", encoding="utf-8") as file:
            file.write("from conveyor import Pipeline, Processor")
        finder.run_script(program)
        there = {each.name for each in pkgutil.walk_packages(conveyor.__path__, "conveyor.")}
        left = there - finder.modules.keys()
        # No program imports the command line.
        assert all(name.startswith(("conveyor.__main__", "conveyor.commands")) for name in left), left


def is_alive(process: int) -> bool:
    """Whether a process is there, and none that is dead and waits for its parent."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    unittest.main()
