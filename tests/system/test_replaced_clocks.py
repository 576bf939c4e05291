"""Clocks that a test suite stops or replaces: Conveyor's waits and timeouts go on by the system's.

Law: each test is a script, which replaces clocks before or after it imports Conveyor, in the caller alone or in each
process; what it waits for would never come by the replaced clock.
"""

from __future__ import annotations

import importlib.util
import subprocess
import unittest

from conveyor._system.clock import time
from tests.helpers.scripts import Script, ScriptTestCase

MOCKED = """
import time
class Replaced:
    # What `unittest.mock.patch.multiple` does to the module; to import that takes longer than the whole script.
    def start(self):
        self.before = {name: getattr(time, name) for name in replaced}
        vars(time).update(replaced)
    def stop(self):
        vars(time).update(self.before)
    def __enter__(self):
        self.start()
    def __exit__(self, *_):
        self.stop()
def refused(seconds):
    raise AssertionError("time.sleep")
clocks = ("monotonic", "perf_counter", "process_time", "time")
replaced = {name: lambda: 1e9 for name in clocks} | {f"{name}_ns": lambda: 10**18 for name in clocks}
replaced["sleep"] = refused
stopped = Replaced()
"""

FROZEN = """
from freezegun import freeze_time
stopped = freeze_time("2026-01-01")
"""

WORK = """
import sys, threading
def flaky(item, seen=[]):
    seen.append(item)
    if len(seen) == 1:
        raise ConnectionError
    return item
def stuck(item):
    threading.Event().wait(50 if item == 2 else 0)
    return item
def slow():
    for item in range(4):
        threading.Event().wait(0.01)
        yield item
def work(method, channel):
    options = {"engine": "inline"} if method == "inline" else {"start_method": method, "channel": channel}
    print(Pipeline(**options).add(Processor(flaky, retries=2, backoff=0.01)).run([1, 2]), end=" ")
    print(Pipeline(**options).add(Processor(abs)).add(Pipe()).add(Processor(str)).run(slow()), end=" ")
    if method != "inline":
        late = Processor(stuck, timeout=0.2, on_error="skip")
        pipeline = Pipeline(**options).add(late)
        print(pipeline.run([1, 2, 3]), [type(each.error).__name__ for each in pipeline.failures], end=" ")
    with Pipeline(**options).add(Processor(abs)) as pipeline:
        for result in pipeline.stream(iter(range(1000))):
            break
        print(result, pipeline.run([3]))
"""

# In the caller alone: other processes import nothing of it.
MAIN = """
if __name__ == "__main__":
    STOP
    with stopped:
        work(*sys.argv[1:])
"""

RESULTS = "[1, 2] ['0', '1', '2', '3'] [1, 3] ['ItemTimeoutError'] 0 [3]"


class Clocks:
    """What replaces them is in `stop`."""

    stop = ""
    time_limit = 45.0

    def script_of_the_caller(self):
        main = MAIN.replace("STOP", self.stop.replace("\n", "\n    "))
        return f"from conveyor import Pipe, Pipeline, Processor\n{WORK}{main}"

    def test_after_the_import(self):
        # Whether the caller has broker and workers forked from a fresh interpreter or started as such is all one to it.
        body = self.script_of_the_caller()
        methods = [method for method in self.methods() if method != "forkserver"]
        self.all_print(RESULTS, [Script(body, (method, "pipe")) for method in methods])

    def test_before_the_import_and_in_every_process(self):
        body = (
            f"{self.stop}\nwith stopped:\n    from conveyor import Pipe, Pipeline, Processor\n{WORK}stopped.start()\n"
        )
        body += 'if __name__ == "__main__":\n    work(*sys.argv[1:])\n    stopped.stop()\n'
        self.prints_by_every_method(RESULTS, body, "pipe")

    def test_inline(self):
        body = self.script_of_the_caller()
        self.prints("[1, 2] ['0', '1', '2', '3'] 0 [3]", body, "inline", "pipe")


class MockedClocksTest(Clocks, ScriptTestCase):
    """By hand, as `unittest.mock` does it."""

    stop = MOCKED

    def test_queues(self):
        """`multiprocessing` asks the replaced clock; what stands still is never too late."""
        methods = [method for method in self.methods() if method != "forkserver"]
        self.all_print(RESULTS, [Script(self.script_of_the_caller(), (method, "queue")) for method in methods])

    def test_the_functions_are_its_own(self) -> None:
        import time as shared

        assert time.monotonic is not shared.monotonic
        assert abs(time.monotonic() - shared.monotonic()) < 5 and abs(time.time() - shared.time()) < 5


@unittest.skipUnless(importlib.util.find_spec("freezegun"), "freezegun is not installed")
class FrozenClocksTest(Clocks, ScriptTestCase):
    """By freezegun, which also looks for them in every module that is loaded."""

    stop = FROZEN

    def start_script(self, script: Script, folder: str) -> subprocess.Popen[str]:
        # It brings libraries along that warn of their own use of old functions.
        body = f"import warnings; warnings.simplefilter('ignore')\n{script.body}"
        return super().start_script(script._replace(body=body), folder)


if __name__ == "__main__":
    unittest.main()
