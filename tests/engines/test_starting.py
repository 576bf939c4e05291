"""What may go wrong while processes start: nobody waits without end for one that is dead, however much it was to be told.

Law: each test is a script of its own.  A job of 200 KB is more than a pipe holds, so whoever writes it to nobody waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import time
import unittest
from collections.abc import Iterable

from tests.helpers.scripts import Script, ScriptTestCase
from tests.helpers.support import ALL

METHODS = ("spawn", "forkserver") if ALL else ("spawn",)
BIG = 200_000
# How a script ends that does not let itself be imported.
ENDS = ("sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)")

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

    def all_end_with(self, kind: str, bodies: Iterable[str], *arguments: str) -> None:
        """Each of the scripts ends with this error as its only one."""
        scripts = [Script(HEAD + textwrap.dedent(body), arguments) for body in bodies]
        for script, outcome in zip(scripts, self.scripts(scripts), strict=True):
            with self.subTest(script=script.body):
                assert outcome.code == 1, outcome.told()
                assert outcome.errors.rstrip().splitlines()[-1].startswith(f"conveyor.errors.{kind}: "), outcome.told()

    def test_they_arrive(self):
        body = """
        if __name__ == "__main__":
            for channel in ("pipe", "queue"):
                pipeline = Pipeline(start_method=sys.argv[1], channel=channel, redact=partial(redact, bytes({big})))
                pipeline.add(Processor(partial(job, bytes({big})), workers=2))
                assert pipeline.run([1, 2]) == [1 + {big}, 2 + {big}]
            print("good")
        """
        self.all_print("good", [Script(HEAD + textwrap.dedent(body.format(big=BIG)), (method,)) for method in METHODS])

    def test_a_script_without_a_guard(self):
        big = f"bytes({BIG})"
        self.all_end_with(
            "MissingMainGuardError",
            [
                f"Pipeline(start_method={method!r}{settings}).add(Processor({job})).run([1])"
                for method in METHODS
                for settings, job in (
                    ("", f"partial(job, {big})"),
                    (f", redact=partial(redact, {big})", "abs"),
                )[: 2 if method == "spawn" else 1]
            ],
        )

    def test_a_long_command_line_for_a_script_without_a_guard(self):
        self.all_end_with(
            "MissingMainGuardError",
            [f"Pipeline(start_method={method!r}).add(Processor(abs)).run([1])" for method in METHODS],
            *(f"--{number}" + 80 * "x" for number in range(2_000)),
        )

    def test_a_script_that_does_not_let_itself_be_imported(self):
        body = """
        if __name__ == "__mp_main__":
            {end}
        if __name__ == "__main__":
            Pipeline(start_method={method!r}).add(Processor(partial(job, bytes({big})))).run([1])
        """
        self.all_end_with(
            "ProcessError",
            [
                body.format(method=method, end=end, big=BIG)
                for method in METHODS
                for end in ENDS[: 3 if method == "spawn" else 1]
            ],
        )

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
        self.all_end_with("WorkerDiedError", [body.format(big=BIG)])

    def test_ctrl_c_while_the_script_is_imported(self):
        body = """
        if __name__ == "__mp_main__":
            print("imported", flush=True)
            time.sleep(1000)
        if __name__ == "__main__":
            Pipeline(start_method={method!r}).add(Processor(partial(job, bytes({big})))).run([1])
        """
        # Both are told at once, as three seconds are what a broker gets to end by itself.
        scripts = [
            self.start_script(
                Script(HEAD + textwrap.dedent(body.format(method=method, big=5_000_000))), self.new_folder()
            )
            for method in METHODS
        ]
        with contextlib.ExitStack() as stack:
            for script in scripts:
                stack.enter_context(script)
                stack.callback(script.kill)
            for script in scripts:
                assert script.stdout is not None and script.stdout.readline() == "imported\n"
                script.send_signal(signal.SIGINT)
            began = time.monotonic()
            for script, method in zip(scripts, METHODS, strict=True):
                with self.subTest(method=method):
                    outcome = self.collect(script)
                    assert outcome.code == -signal.SIGINT, outcome.told()
                    assert outcome.errors.rstrip().endswith("KeyboardInterrupt"), outcome.told()
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

    def importing(self, main: str, job: str, items: str, method: str) -> Script:
        """A script beside such a module."""
        return Script(main, (method,), {"runs_at_import.py": self.MODULE.format(job=job, items=items)})

    def test_its_items_are_pulled_without_a_thread(self):
        main = 'if __name__ == "__main__":\n    import runs_at_import\n    print(sum(runs_at_import.RESULT[:10]), len(runs_at_import.RESULT) in (10, 1000))'
        self.all_print(
            "45 True",
            [
                self.importing(main, "number_of", items, method)
                for items in ("[Item(number) for number in range(1000)]", "items()", "list(items())[:10]")
                for method in ("", "fork")
            ],
        )

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
        # The module is imported for the job, or for the items.
        jobs = [("number_of", "spawn"), ("str", METHODS[-1])]
        self.all_print("ProcessorError True", [self.importing(main, job, "items()", method) for job, method in jobs])


if __name__ == "__main__":
    unittest.main()
