"""Start methods: what is chosen, what can be sent that way, and what is said where it cannot.

Law: each test is a script of its own, run by this Python with every warning an error, because what a script's
`__main__` is, and which threads there are, is part of what is tested.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import unittest
from functools import partial

from conveyor.engines.process.caller import start_method
from tests.helpers.support import ROOT, TestCase

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


class StartMethodsTest(TestCase):
    """Scripts."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.path = os.path.join(self.folder, "script.py")
        with open(os.path.join(self.folder, "jobs.py"), "w") as file:
            file.write(MODULE)

    def python(self, body, *arguments, how="file"):
        """Run a script, as where cloudpickle is not installed; return its exit code, output and errors."""
        body = f"{WITHOUT_CLOUDPICKLE}from conveyor import *\n" + textwrap.dedent(body)
        with open(self.path, "w") as file:
            file.write(body)
        command = {"file": [self.path], "-c": ["-c", body], "-m": ["-m", "script"], "stdin": ["-"]}[how]
        done = subprocess.run(
            [sys.executable, "-W", "error", *command, *arguments],
            input=body if how == "stdin" else "",
            capture_output=True,
            text=True,
            timeout=30,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"},
        )
        return done.returncode, done.stdout, done.stderr

    def good(self, body, expected, how="file"):
        """The script prints this, and nothing else."""
        code, output, errors = self.python(body, how=how)
        assert (code, output.strip(), errors) == (0, expected, ""), (code, output, errors)

    def bad(self, body, kind, *words, how="file"):
        """The script ends with this error as its only traceback."""
        code, output, errors = self.python(body, how=how)
        assert code == 1, (code, output, errors)
        last = errors.rstrip().splitlines()[-1]
        assert last.startswith(f"conveyor.errors.{kind}: "), errors
        for word in words:
            assert word in last, (word, last)
        return errors

    def test_lambdas_and_closures_by_default(self):
        body = """
            offset = 5
            def closure(more):
                return lambda item: item + offset + more
            if __name__ == "__main__":
                print(Pipeline().add(Processor(lambda item: item * 2)).add(Pipe()).add(Processor(closure(1))).run([1]))
        """
        for how in ("file", "-c", "-m", "stdin"):
            with self.subTest(how=how):
                self.good(body, "[8]", how)

    def test_without_a_main_guard_fork_does(self):
        self.good("print(Pipeline().add(Processor(len)).run(['ab']))", "[2]")

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
        for method in ("fork", "forkserver", "spawn"):
            with self.subTest(method=method):
                self.good(body.format(method=method), "[]")

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
        code, output, errors = self.python(body)
        assert (code, sorted(output.split("\n")), errors) == (0, ["", "item 1", "item 2", "item 2", "item 3"], "")

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
        self.good(body, "True")

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
        self.good(body, "[1]")

    def test_a_missing_main_guard(self):
        for method in ("spawn", "forkserver"):
            for body in ("print(pipeline.run([1]))", "pipeline.open()", "list(pipeline.stream([1]))"):
                with self.subTest(method=method, body=body):
                    errors = self.bad(
                        f"import jobs\npipeline = Pipeline(start_method={method!r}).add(Processor(jobs.double))\n{body}",
                        "MissingMainGuardError",
                        "__main__",
                        "guard",
                    )
                    assert errors.count("Traceback") == 1, errors

    def test_jobs_of_the_script_itself(self):
        body = """
            def double(item):
                return item * 2
            if __name__ == "__main__":
                print(Pipeline(start_method={method!r}).add(Processor(double)).run([1]))
        """
        for method in ("fork", "spawn", "forkserver"):
            for how in ("file", "-m"):
                with self.subTest(method=method, how=how):
                    self.good(body.format(method=method), "[2]", how)
            for how in ("-c", "stdin"):
                with self.subTest(method=method, how=how):
                    if method == "fork":
                        self.good(body.format(method=method), "[2]", how)
                    elif how == "-c":
                        self.bad(body.format(method=method), "JobPicklingError", "'double'", how=how)
                    else:
                        self.bad(body.format(method=method), "ConveyorError", "not read from a file", how=how)

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
            for method in ("fork", "forkserver", "spawn"):
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

    def test_what_merely_names_main_is_not_of_it(self):
        def looked_up(module):
            kind = type("Kind", (), {"__module__": module})
            sys.modules[module].Kind = kind
            self.addCleanup(delattr, sys.modules[module], "Kind")
            return pickle.dumps(["__main__", kind, kind], 5)

        assert start_method._looks_into_main(looked_up("__main__"))
        assert not start_method._looks_into_main(looked_up(__name__))
        assert not start_method._looks_into_main(pickle.dumps(partial(print, "__main__", sep="print"), 5))

    def test_a_working_directory_that_is_gone(self):
        body = """
            import os, tempfile
            if __name__ == "__main__":
                with tempfile.TemporaryDirectory() as folder:
                    os.chdir(folder)
                print(Pipeline(start_method={method!r}).add(Processor(len)).run(["ab"]))
        """
        self.good(body.format(method="fork"), "[2]")
        for method in ("forkserver", "spawn"):
            with self.subTest(method=method):
                self.bad(body.format(method=method), "ConveyorError", "working directory is gone", method)

    def test_jobs_of_a_module_run_from_anywhere(self):
        for method in ("spawn", "forkserver"):
            for how in ("-c",):
                with self.subTest(method=method, how=how):
                    self.good(
                        f"import jobs; print(Pipeline(start_method={method!r}).add(Processor(jobs.double)).run([1]))",
                        "[2]",
                        how,
                    )

    def test_a_job_that_cannot_be_pickled(self):
        for job, name in [("lambda item: item", "lambda"), ("threading.Lock().acquire", "acquire")]:
            for method in ("spawn", "forkserver"):
                with self.subTest(job=job, method=method):
                    errors = self.bad(
                        f"import threading\npipeline = Pipeline(start_method={method!r}).add(Processor({job}))\n"
                        'if __name__ == "__main__":\n    pipeline.open()',
                        "JobPicklingError",
                        repr(name),
                        "Remedy",
                    )
                    assert "pip install cloudpickle" in errors

    def test_a_redact_that_cannot_be_pickled(self):
        for method in ("spawn", "forkserver"):
            with self.subTest(method=method):
                self.bad(
                    f"import jobs\npipeline = Pipeline(start_method={method!r}, redact=lambda item: '')\n"
                    'if __name__ == "__main__":\n    pipeline.add(Processor(jobs.double)).open()',
                    "JobPicklingError",
                    "`redact` of the pipeline",
                    "Remedy",
                )

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
        self.good(body, "ConveyorError True\n[2]")

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
        self.good(body, "[2]\n[2]")

    def test_nothing_warns(self):
        body = """
            import gc, itertools, jobs
            if __name__ == "__main__":
                for method in ("fork", "forkserver", "spawn"):
                    for channel in ("pipe", "queue"):
                        pipeline = Pipeline(start_method=method, channel=channel).add(Processor(jobs.double, workers=2))
                        with pipeline:
                            for result in pipeline.stream(itertools.count()):
                                break
                            pipeline.run([1])
                        del pipeline
                        gc.collect()
                print("good")
        """
        self.good(body, "good")


if __name__ == "__main__":
    unittest.main()
