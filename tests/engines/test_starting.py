"""What may go wrong while processes start: nobody waits without end for one that is dead, however much it was to be told.

Law: each test is a script of its own.  A job of 200 KB is more than a pipe holds, so whoever writes it to nobody waits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import unittest

from tests.helpers.scripts import ScriptTestCase
from tests.helpers.support import ROOT

METHODS = ("spawn", "forkserver")
BIG = 200_000

HEAD = """
import sys; sys.modules["cloudpickle"] = None
import os, signal, time
from functools import partial
from conveyor import *
def job(table, item):
    return item + len(table)
def redact(table, item):
    return "item"
"""


@unittest.skipUnless(os.name == "posix", "this system starts processes in another way")
class BigTest(ScriptTestCase):
    """Jobs, and what else new processes are told, larger than what a pipe holds."""

    time_limit = 30.0

    def ends_with(self, kind: str, body: str, *arguments: str, environment: str = "") -> None:
        """The script ends with this error as its only one."""
        code, output, errors = self.script(HEAD + textwrap.dedent(body), *arguments)
        assert code == 1, (code, output, errors)
        assert errors.rstrip().splitlines()[-1].startswith(f"conveyor.errors.{kind}: "), errors

    def test_they_arrive(self):
        body = """
        if __name__ == "__main__":
            for channel in ("pipe", "queue"):
                pipeline = Pipeline(start_method=sys.argv[1], channel=channel, redact=partial(redact, bytes({big})))
                print(pipeline.add(Processor(partial(job, bytes({big})), workers=2)).run([1, 2]))
        """
        for method in METHODS:
            for big in (10, BIG):
                with self.subTest(method=method, big=big):
                    expected = str([1 + big, 2 + big])
                    code, output, errors = self.script(HEAD + textwrap.dedent(body.format(big=big)), method)
                    assert (code, output.splitlines(), errors) == (0, [expected, expected], ""), (output, errors)

    def test_a_script_without_a_guard(self):
        for method in METHODS:
            for kind in ("job", "redact"):
                settings = f", redact=partial(redact, bytes({BIG}))" if kind == "redact" else ""
                job = f"partial(job, bytes({BIG}))" if kind == "job" else "abs"
                with self.subTest(method=method, kind=kind):
                    self.ends_with(
                        "MissingMainGuardError",
                        f"Pipeline(start_method={method!r}{settings}).add(Processor({job})).run([1])",
                    )

    def test_a_long_command_line_for_a_script_without_a_guard(self):
        for method in METHODS:
            with self.subTest(method=method):
                body = f"Pipeline(start_method={method!r}).add(Processor(abs)).run([1])"
                self.ends_with("MissingMainGuardError", body, *(f"--{number}" + 80 * "x" for number in range(2_000)))

    def test_a_script_that_does_not_let_itself_be_imported(self):
        body = """
        if __name__ == "__mp_main__":
            {end}
        if __name__ == "__main__":
            Pipeline(start_method={method!r}).add(Processor(partial(job, bytes({big})))).run([1])
        """
        for method in METHODS:
            for end in ("sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"):
                with self.subTest(method=method, end=end):
                    self.ends_with("ProcessError", body.format(method=method, end=end, big=BIG))

    def test_a_worker_that_is_killed_while_it_starts(self):
        body = """
        if __name__ == "__mp_main__" and "worker" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        if __name__ == "__mp_main__":
            # This is the broker; those that it starts are workers.
            os.environ["worker"] = "yes"
        if __name__ == "__main__":
            Pipeline(start_method="spawn").add(Processor(partial(job, bytes({big})))).run([1])
        """
        self.ends_with("WorkerDiedError", body.format(big=BIG))

    def test_ctrl_c_while_the_script_is_imported(self):
        body = """
        if __name__ == "__mp_main__":
            print("imported", flush=True)
            time.sleep(1000)
        if __name__ == "__main__":
            Pipeline(start_method={method!r}).add(Processor(partial(job, bytes({big})))).run([1])
        """
        for method in METHODS:
            with self.subTest(method=method):
                path = os.path.join(self.folder, "script.py")
                with open(path, "w") as file:
                    file.write(HEAD + textwrap.dedent(body.format(method=method, big=5_000_000)))
                script = subprocess.Popen(
                    [sys.executable, path],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=self.folder,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    start_new_session=True,
                )
                with script:
                    assert script.stdout is not None and script.stdout.readline() == "imported\n"
                    began = time.monotonic()
                    script.send_signal(signal.SIGINT)
                    _, errors = script.communicate(timeout=20)
                assert script.returncode == -signal.SIGINT, (script.returncode, errors)
                assert errors.rstrip().endswith("KeyboardInterrupt"), errors
                # Three seconds are what a broker gets to end by itself.
                assert time.monotonic() - began < 15


class ImportTest(ScriptTestCase):
    """A pipeline that is run while a module is imported."""

    MODULE = """
import sys
from conveyor import Pipe, Pipeline, Processor
class Item:
    def __init__(self, number):
        self.number = number
def number_of(item):
    return item.number
def items():
    for number in range(1000):
        yield Item(number)
RESULT = Pipeline(start_method=sys.argv[1] or None).add(Processor({job})).run({items})
"""

    def module(self, job: str, items: str) -> None:
        with open(os.path.join(self.folder, "runs_at_import.py"), "w") as file:
            file.write(self.MODULE.format(job=job, items=items))

    def test_its_items_are_pulled_without_a_thread(self):
        main = 'if __name__ == "__main__":\n    import runs_at_import\n    print(sum(runs_at_import.RESULT))'
        for items in ("[Item(number) for number in range(1000)]", "items()", "list(items())[:10]"):
            for method in ("", "fork"):
                with self.subTest(items=items, method=method):
                    self.module("number_of", items)
                    self.prints("45" if "10]" in items else "499500", main, method)

    def test_a_worker_that_would_run_it_again_says_so(self):
        main = """
        import sys
        sys.modules["cloudpickle"] = None
        if __name__ == "__main__":
            try:
                import runs_at_import
            except Exception as error:
                print(type(error).__name__, "'runs_at_import' runs a pipeline while it is imported" in str(error))
        """
        for method in METHODS:
            # The module is imported for the job, or for the items.
            for job in ("number_of", "str"):
                with self.subTest(method=method, job=job):
                    self.module(job, "items()")
                    self.prints("ProcessorError True", main, method)


if __name__ == "__main__":
    unittest.main()
