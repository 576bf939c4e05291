"""Start methods: what is chosen, what can be sent that way, and what is said where it cannot.

Law: each test is a script of its own, run by this Python with every warning an error, because what a script's
`__main__` is, and which threads there are, is part of what is tested.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import unittest
from functools import partial

from conveyor.engines.process.caller import start_method
from tests.helpers.scripts import METHODS as ALL_METHODS
from tests.helpers.scripts import Script, ScriptTestCase
from tests.helpers.support import ALL, ROOT

# What starts fresh interpreters.  The broker of either is started in the same way, so that most tests take one.
FRESH = ("spawn", "forkserver") if ALL else ("spawn",)
METHODS = ALL_METHODS if ALL else ("fork", "spawn")

MODULE = """
from conveyor import Processor

def double(item):
    return item * 2

class Count(Processor):
    def __init__(self):
        self.count = 0

    def process(self, item):
        self.count += 1
        return self.count
"""


WITHOUT_CLOUDPICKLE = "import sys; sys.modules['cloudpickle'] = None\n"


class StartMethodsTest(ScriptTestCase):
    """Scripts."""

    def made(self, body, how="file"):
        """A script beside a module with jobs, as where cloudpickle is not installed."""
        body = f"{WITHOUT_CLOUDPICKLE}from conveyor import *\n{textwrap.dedent(body)}"
        return Script(body, (), {"jobs.py": MODULE}, how)

    def good(self, expected, *bodies, hows=("file",)):
        """Each of the scripts prints this, and nothing else, however Python is given it."""
        self.all_print(expected, [self.made(body, how) for body in bodies for how in hows])

    def bad(self, kind, bodies, *words, how="file", causes=True):
        """Each of the scripts ends with this error as its only traceback, but for that of its cause."""
        for outcome in self.scripts([self.made(body, how) for body in bodies]):
            assert outcome.code == 1, outcome.told()
            last = outcome.errors.rstrip().splitlines()[-1]
            assert last.startswith(f"conveyor.errors.{kind}: "), outcome.told()
            for word in words:
                assert word in last, (word, last)
            # What caused it may have one of its own before.
            allowed = 1 + causes * outcome.errors.count("The above exception was the direct cause")
            assert outcome.errors.count("Traceback (most recent call last)") == allowed, outcome.told()

    def test_lambdas_and_closures_by_default(self):
        body = """
            offset = 5
            def closure(more):
                return lambda item: item + offset + more
            if __name__ == "__main__":
                print(Pipeline().add(Processor(lambda item: item * 2)).add(Pipe()).add(Processor(closure(1))).run([1]))
        """
        self.good("[8]", body, hows=("file", "-c", "-m", "stdin"))

    def test_without_a_main_guard_fork_does(self):
        self.good("[2]", "print(Pipeline().add(Processor(len)).run(['ab']))")

    def test_what_a_run_has_no_use_for_is_not_imported(self):
        # Each of them is waited for at every start, and taken apart again at the end of the interpreter.
        body = """
            import sys
            before = set(sys.modules)
            from conveyor import *
            def job(item):
                return -item
            if __name__ == "__main__":
                assert Pipeline(start_method={method!r}).add(Processor(job)).run([-1]) == [1]
                unused = set("dataclasses inspect logging traceback".split())
                print(sorted(unused & set(sys.modules) - before))
        """
        self.good("[]", *(body.format(method=method) for method in METHODS))

    def test_a_spawned_worker_has_no_part_of_the_others(self):
        # It imports the script and what a worker is, and waits for each module of that.
        body = """
            import sys
            def job(item):
                others = "conveyor.graph conveyor.core.tuning conveyor.core.nodes conveyor.engines.process.caller".split()
                others += "conveyor.engines.process.broker conveyor.engines.base conveyor.operations".split()
                return [name for name in sys.modules if name.startswith(tuple(others))]
            if __name__ == "__main__":
                print(Pipeline(start_method="spawn").add(Processor(job)).run([1]))
                # Nor has the caller, where it forks neither broker nor worker.
                others = "conveyor.core.machine conveyor.core.nodes conveyor.core.leasing".split()
                others += ["conveyor.engines.process.broker.broker", "conveyor.engines.process.worker.main"]
                print([name for name in sys.modules if name.startswith(tuple(others))])
        """
        self.good("[[]]\n[]", body)

    def test_a_package_that_is_replaced_meanwhile_is_not_half_old_and_half_new(self):
        body = """
            import sys
            # What the first pipeline has imported, all that follow go on with.
            Pipeline(start_method="fork").add(Processor(len)).run([""])
            class Replaced:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] == "conveyor":
                        raise ImportError(f"{name} is another one by now")
            sys.meta_path.insert(0, Replaced())
            def job(item):
                import logging
                logging.getLogger("replaced").warning("item %d", item)
                if item == 2:
                    raise ValueError("two")
                return bytearray(200_000)
            if __name__ == "__main__":
                sys.stderr = sys.stdout
                pipeline = (
                    Pipeline(start_method="fork")
                    .add(Processor(job, on_error="skip", retries=1, backoff=0.0, workers="auto", timeout=30))
                    .add(Pipe())
                    .add(ReplicatingFork(2))
                    .add(Processor(len), Processor(type))
                    .add(Pipe())
                    .add(Join(2, how="zip"))
                )
                assert pipeline.run([1, 2, 3]) == [(200_000, bytearray)] * 2
                assert [failed.error.kind for failed in pipeline.failures] == ["ValueError"]
                assert "in job" in str(pipeline.failures[0].error.__cause__.__cause__)
                pipeline.stats()
        """
        (outcome,) = self.scripts([self.made(body)])
        found = (outcome.code, sorted(outcome.output.split("\n")), outcome.errors)
        assert found == (0, ["item 1", "item 2", "item 2", "item 3"], ""), outcome.told()

    def test_what_the_caller_had_stays_shared(self):
        if sys.platform != "linux":
            self.skipTest("what a process has for itself is read from /proc")
        body = """
            import gc, pathlib, re
            def own(item):
                text = pathlib.Path("/proc/self/smaps_rollup").read_text()
                return sum(map(int, re.findall(r"Private_\\w+: *(\\d+)", text)))
            def grown(item):
                before = own(item)
                gc.collect()
                return own(item) - before
            if __name__ == "__main__":
                everything = [[number] for number in range(400_000)]
                grown_by = Pipeline(start_method="fork").add(Processor(grown)).run([1])[0]
                # A look through all of that would make 28 MB of it this process's own.
                print(grown_by < 8_000 or grown_by)
        """
        self.good("True", body)

    def test_fork_may_be_asked_for_although_there_are_threads(self):
        # Only what Python itself says against it from 3.12 on is said.
        body = """
            import threading, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            over = threading.Event()
            threading.Thread(target=over.wait).start()
            try:
                print(Pipeline(start_method="fork").add(Processor(lambda item: item)).run([1]))
            finally:
                over.set()
        """
        self.good("[1]", body)

    def test_a_missing_main_guard(self):
        bodies = [
            f"import jobs\npipeline = Pipeline(start_method={method!r}).add(Processor(jobs.double))\n{body}"
            for method, body in zip(FRESH, ("print(pipeline.run([1]))", "pipeline.open()"), strict=False)
        ]
        self.bad("MissingMainGuardError", bodies, "__main__", "guard", causes=False)

    def test_jobs_of_the_script_itself(self):
        body = """
            def double(item):
                return item * 2
            if __name__ == "__main__":
                print(Pipeline(start_method={method!r}).add(Processor(double)).run([1]))
        """
        self.good("[2]", *(body.format(method=method) for method in METHODS))
        self.good("[2]", body.format(method="fork"), hows=("-m", "-c", "stdin"))
        self.good("[2]", body.format(method="spawn"), hows=("-m",))
        fresh = [body.format(method="spawn")]
        self.bad("JobPicklingError", fresh, "'double'", how="-c")
        self.bad("ConveyorError", fresh, "not read from a file", how="stdin")

    def test_jobs_of_what_other_processes_do_not_import(self):
        body = """
            from conveyor import *
            def double(item):
                return item * 2
            if __name__ == "__main__":
                print(Pipeline(start_method={method!r}).add(Processor(double)).run([1]))
        """
        for package in ("", "package"):
            os.makedirs(os.path.join(self.folder, "all", package), exist_ok=True)
        for name, command in (("", ["all"]), ("package", ["-m", "all.package"])):
            for method in ("fork", "spawn"):
                with open(os.path.join(self.folder, "all", name, "__main__.py"), "w") as file:
                    file.write(WITHOUT_CLOUDPICKLE + textwrap.dedent(body.format(method=method)))
                done = subprocess.run(
                    [sys.executable, "-W", "error", *command],
                    capture_output=True,
                    text=True,
                    timeout=30,
                    cwd=self.folder,
                    env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"},
                )
                with self.subTest(command=command, method=method):
                    if method == "fork":
                        assert (done.stdout, done.stderr) == ("[2]\n", "")
                    else:
                        assert "JobPicklingError" in done.stderr and "the __main__.py of a package" in done.stderr
                        assert done.stdout == "" and "define the job as" in done.stderr

    def test_a_job_that_is_defined_under_the_guard(self):
        # Other processes import the script, and do not run what is under its guard.
        body = """
            import sys
            def above(item):
                return item + 1
            both = above
            if __name__ == "__main__":
                def under(item):
                    return item + 1
                class Under(Processor):
                    def process(self, item):
                        return item + 1
                both = above
                job = {job}
                pipeline = Pipeline(start_method="spawn").add(job if isinstance(job, Processor) else Processor(job))
                print(pipeline.run([1]))
        """
        self.good("[2]", *(body.replace("{job}", job) for job in ("above", "both")))
        for job, name in (("under", "under"), ("Under()", "Under")):
            words = (
                f"The job of Processor '{name}'",
                f"{name} is defined under the main guard",
                "Remedy: define the job",
            )
            self.bad("JobPicklingError", [body.replace("{job}", job)], *words)

    def test_what_merely_names_main_is_not_of_it(self):
        def looked_up(module):
            kind = type("Kind", (), {"__module__": module})
            sys.modules[module].Kind = kind
            self.addCleanup(delattr, sys.modules[module], "Kind")
            return pickle.dumps(["__main__", kind, kind], 5)

        assert start_method._names_in_main(looked_up("__main__"))
        assert not start_method._names_in_main(looked_up(__name__))
        assert not start_method._names_in_main(pickle.dumps(partial(print, "__main__", sep="print"), 5))

    def test_a_working_directory_that_is_gone(self):
        body = """
            import os, tempfile
            if __name__ == "__main__":
                with tempfile.TemporaryDirectory() as folder:
                    os.chdir(folder)
                print(Pipeline(start_method={method!r}).add(Processor(len)).run(["ab"]))
        """
        self.good("[2]", body.format(method="fork"))
        for method in FRESH:
            self.bad("ConveyorError", [body.format(method=method)], "working directory is gone", method)

    def test_jobs_of_a_module_run_from_anywhere(self):
        body = "import jobs; print(Pipeline(start_method={!r}).add(Processor(jobs.double)).run([1]))"
        self.good("[2]", *(body.format(method) for method in FRESH), hows=("-c",))

    def test_a_job_that_cannot_be_pickled(self):
        for job, name in [("lambda item: item", "lambda"), ("threading.Lock().acquire", "acquire")]:
            body = (
                f"import threading\npipeline = Pipeline(start_method='spawn').add(Processor({job}))\n"
                'if __name__ == "__main__":\n    pipeline.open()'
            )
            self.bad("JobPicklingError", [body], repr(name), "Remedy", "pip install cloudpickle")

    def test_a_redact_that_cannot_be_pickled(self):
        body = (
            "import jobs\npipeline = Pipeline(start_method='spawn', redact=lambda item: '')\n"
            'if __name__ == "__main__":\n    pipeline.add(Processor(jobs.double)).open()'
        )
        self.bad("JobPicklingError", [body], "`redact` of the pipeline", "Remedy")

    def test_in_a_daemonic_process(self):
        body = """
            import multiprocessing, jobs
            def work(_):
                try:
                    Pipeline().add(Processor(jobs.double)).run([1])
                except ConveyorError as error:
                    print(type(error).__name__, "daemon" in str(error) and "inline" in str(error), flush=True)
                print(Pipeline(engine="inline").add(Processor(jobs.double)).run([1]), flush=True)
            if __name__ == "__main__":
                process = multiprocessing.get_context("fork").Process(target=work, args=(1,), daemon=True)
                process.start()
                process.join()
        """
        self.good("ConveyorError True\n[2]", body)

    def test_in_a_child_process(self):
        body = """
            import multiprocessing, jobs
            def work():
                print(Pipeline().add(Processor(jobs.double)).run([1]), flush=True)
            if __name__ == "__main__":
                for method in ("fork", "spawn"):
                    process = multiprocessing.get_context(method).Process(target=work)
                    process.start()
                    process.join()
        """
        self.good("[2]\n[2]", body)

    def test_nothing_warns(self):
        body = """
            import gc, itertools, jobs
            if __name__ == "__main__":
                settings = {{"start_method": {method!r}, "channel": {channel!r}}}
                pipeline = Pipeline(**settings).add(Processor(jobs.double, workers=2))
                with pipeline:
                    for result in pipeline.stream(itertools.count()):
                        break
                    pipeline.run([1])
                del pipeline
                gc.collect()
                print("good")
        """
        variants = [*((method, "pipe") for method in METHODS), *([("spawn", "queue")] if ALL else [])]
        self.good("good", *(body.format(method=method, channel=channel) for method, channel in variants))


if __name__ == "__main__":
    unittest.main()
