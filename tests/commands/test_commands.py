"""The command line, as a shell runs it: what each command writes to which stream, and how it ends.

Law: each test runs the commands as processes, side by side, and compares the output as a whole.
"""

from __future__ import annotations

import configparser
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple
from unittest import mock

import conveyor
from conveyor import Pipeline, Processor
from conveyor.__main__ import main
from conveyor.commands import _CommandError
from conveyor.commands.draw import write_picture
from conveyor.commands.target import find_pipeline
from tests.helpers.scripts import Outcome, ScriptTestCase
from tests.helpers.support import ALL, ROOT

FLOW = """
import os, sys, time
from helper import suffix
from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork

print("imported")

def size(item):
    return len(item)

def fail_at_two(item):
    if item == "two":
        raise ValueError("cannot take two")
    return item

def marked(item):
    print("job", flush=True)
    return item + suffix

def wait(item):
    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)

def to_set(item):
    return {item}

def twice(item):
    yield item
    yield item

def made() -> Pipeline:
    return Pipeline(engine="inline").add(Processor(fail_at_two))

def in_vain() -> "Pipeline[str, int]":
    raise KeyError("of mine")

def needs(number):
    return Pipeline()

def none():
    return None

pipeline = Pipeline().add(Processor(marked)).add(Pipe()).add(Processor(size))
spawned = Pipeline(start_method="spawn").add(Processor(marked))
served = Pipeline(start_method="forkserver").add(Processor(marked))
failing = Pipeline().add(Processor(fail_at_two))
skipping = Pipeline().add(Processor(fail_at_two, on_error="skip"))
same = Pipeline(engine="thread").add(Processor(str.swapcase))
sets = Pipeline(engine="inline").add(Processor(to_set))
keys = Pipeline(engine="inline").add(Processor(sorted))
waiting = Pipeline().add(Processor(wait))
doubling = Pipeline().add(Processor(twice))
number = 7
"""
FILES = {
    "flow.py": FLOW,
    "helper.py": "suffix = '!'\n",
    "lone.py": "from conveyor import Pipeline as P, Processor\nonly = P().add(Processor(len))\n",
    "opened.py": (
        "import atexit\nfrom conveyor import Pipeline, Processor\n"
        "pipeline = Pipeline(engine='inline').add(Processor(len)).open()\natexit.register(pipeline.close)\n"
    ),
    "broken.py": "def f():\n    raise OSError('no such thing')\nf()\n",
    "lacking.py": "import no_such_module_anywhere\n",
    "ending.py": "raise SystemExit(3)\n",
    "bare.py": "x = 1\n",
    os.path.join("other", "argparse.py"): "",
    "two-words.py": "",
    os.path.join("package", "__init__.py"): "",
    os.path.join("package", "near.py"): "def job(item):\n    return item * 2\n",
    os.path.join("package", "flow.py"): (
        "from conveyor import Pipeline, Processor\nfrom .near import job\n"
        "pipeline = Pipeline(start_method='spawn').add(Processor(job))\n"
    ),
}


class Case(NamedTuple):
    """A command, the standard input, and how it ends; errors are a pattern of all that is written there."""

    arguments: tuple[str, ...]
    given: bytes
    code: int
    # None where that depends on which process is faster.
    output: str | None
    errors: str = r"\Aimported\n\Z"


class CommandTestCase(ScriptTestCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("package", "other"):
            os.mkdir(os.path.join(self.folder, name))
        for name, text in FILES.items():
            with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
                file.write(text)

    def start(self, *arguments: str, given: bytes | None = None, **settings: Any) -> subprocess.Popen[str]:
        """Start `python -m conveyor` with these arguments, in the folder of the files."""
        if given is not None:
            path = os.path.join(self.folder, f"given-{len(os.listdir(self.folder))}")
            with open(path, "wb") as file:
                file.write(given)
            settings["stdin"] = os.open(path, os.O_RDONLY)
            self.addCleanup(os.close, settings["stdin"])
        variables = settings.pop("variables", {})
        streams: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "conveyor", *arguments],
            **{**streams, "stdin": subprocess.DEVNULL, **settings},
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "COLUMNS": "80", **variables},
            start_new_session=True,
        )

    def told(self, *arguments: str, **settings: Any) -> Outcome:
        """Run a command, and return how it ended."""
        return self.collect(self.start(*arguments, **settings))

    def check(self, cases: list[Case]) -> None:
        """Run all of them, a few at a time, and compare."""
        for begin in range(0, len(cases), 4):
            started = [(case, self.start(*case.arguments, given=case.given)) for case in cases[begin : begin + 4]]
            for case, outcome in [(case, self.collect(process)) for case, process in started]:
                with self.subTest(case.arguments):
                    output = outcome.output if case.output is None else case.output
                    assert (outcome.code, outcome.output) == (case.code, output), outcome.told()
                    self.assertRegex(outcome.errors, case.errors)


class RunTest(CommandTestCase):
    def test_a_line_is_an_item_and_each_result_is_a_line(self) -> None:
        cases = [
            Case(("run", "flow:pipeline"), b"a\nbcd\n", 0, "2\n4", r"\A(imported|job)\n(job\n){2}\Z"),
            # The last line may lack its newline, and Windows writes two characters; others are part of the item.
            Case(("run", "flow.py:keys"), b"a\rb\r\n\n", 0, "['\\r', 'a', 'b']\n[]"),
            Case(("run", "flow.py:same"), b"\xffx\xc3\xa4", 0, "\udcffX\u00c4"),
            Case(("run", os.path.join(".", "package", "flow.py")), b"a", 0, "aa", r"\A\Z"),
            Case(("run", "flow:same", "--json"), b'"a"\n\n"\\u00e4\\ud800"\n', 0, '"A"\n"\\u00c4\\ud800"'),
            Case(("run", "flow:keys", "--json"), b'{"b": 1, "a": [2]}\r\n[3, 1]', 0, '["a", "b"]\n[1, 3]'),
            Case(("run", "flow:doubling"), b"a\nb", 0, "a\na\nb\nb"),
            Case(("run", "flow:same"), b"", 0, ""),
        ]
        self.check(cases if ALL else cases[:6])

    def test_every_start_method_finds_the_module(self) -> None:
        errors = r"\A(imported\n)+(job\n){2}\Z"
        cases = [Case(("run", f"flow:{name}"), b"a\nb\n", 0, "a!\nb!", errors) for name in ("spawned", "served")]
        self.check(cases if ALL else cases[:1])

    def test_what_fails_has_status_1_and_the_message(self) -> None:
        of_job = (
            r"\Aimported\nconveyor: Processor 'fail_at_two' raised ValueError: cannot take two \[item 1: 'two'\]\n"
            r'Traceback \(most recent call last\):\n  File ".*flow.py", line \d+, in fail_at_two\n    raise [^\n]+\n'
            r"([ ^]+\n)?ValueError: cannot take two\n\Z"
        )
        cases = [
            Case(("run", "flow:failing"), b"one\ntwo\n", 1, None, of_job),
            Case(("run", "flow:made"), b"one\ntwo\n", 1, "one", of_job),
            Case(
                ("run", "flow:keys", "--json"),
                b'\n"a"\n[1,,]\n',
                1,
                '["a"]',
                r"item 1: line 3 is not JSON: Expecting value \(column 4\)\n\Z",
            ),
            Case(
                ("run", "flow:keys", "--json"),
                b'\xef\xbb\xbf{"a": 1}\r\n"\xff"\n"b"\n',
                1,
                None,
                r"item 1: line 2 is not UTF-8 \(column 2\)\n\Z",
            ),
            Case(
                ("run", "flow:keys", "--json"), b'{"a": ', 1, "", r"line 1 is not JSON: Expecting value \(column 7\)\n"
            ),
            Case(
                ("run", "flow:keys", "--json"), b"\n" + b"1" * 5000, 1, "", r"line 2 cannot be read: Exceeds the limit"
            ),
            Case(("run", "flow:keys", "--json"), b"[" * 200_000, 1, "", r"line 1 cannot be read: it is nested too"),
            Case(
                ("run", "flow:sets", "--json"),
                b'"a"',
                1,
                "",
                r"conveyor: result 0 cannot be written: TypeError\(.*not JSON serializable.*\)\n\Z",
            ),
            Case(("run", "flow:skipping"), b"one\ntwo\n", 0, "one", r"conveyor: 1 item was given up; --report"),
            Case(("run", "flow:same", "--trace", "no/folder"), b"a", 1, "", r"\Aimported\nconveyor: .*no/folder"),
            Case(("run", "flow:same", "--report", "no/folder"), b"a", 0, "A", r"conveyor: the report cannot be wri"),
        ]
        # The others differ in where the error comes from.
        self.check(cases if ALL else cases[:4])

    def test_a_report_a_trace_and_progress(self) -> None:
        arguments = ("--report", "run.html", "--trace", "run.json.gz", "--progress")
        outcome = self.told("run", "flow:failing", *arguments, given=b"one\ntwo\n")
        assert outcome.code == 1, outcome.told()
        self.assertIn(" items", outcome.errors)
        with open(os.path.join(self.folder, "run.html"), encoding="utf-8") as file:
            data = json.loads(re.findall('id="data">(.*)</script>', file.read())[0])
        assert data["stats"]["source"]["pulled"] == 2
        with gzip.open(os.path.join(self.folder, "run.json.gz"), "rt") as trace:
            assert "fail_at_two" in {event["name"] for event in json.load(trace)["traceEvents"]}
        outcome = self.told("run", "opened:pipeline", "--trace", "other.json", given=b"")
        assert outcome.code == 2 and "has opened this one" in outcome.errors, outcome.told()

    def test_a_page_is_served_meanwhile(self) -> None:
        process = self.start("run", "flow:same", "--serve", stdin=subprocess.PIPE)
        with process:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            assert process.stderr.readline() == "imported\n"
            told, _, url = process.stderr.readline().strip().rpartition(" ")
            assert told == "conveyor: the page about this run is at"
            process.stdin.write("a\n")
            process.stdin.flush()
            assert process.stdout.readline() == "A\n"
            with urllib.request.urlopen(url, timeout=30) as page:
                self.assertIn("swapcase", page.read().decode())
            process.stdin.close()
            assert (process.stdout.read(), process.stderr.read()) == ("", "")
        assert process.returncode == 0
        with self.assertRaises(urllib.error.URLError):
            urllib.request.urlopen(url, timeout=30)

    def test_a_result_is_written_before_the_next_item_is_there(self) -> None:
        process = self.start("run", "flow:same", stdin=subprocess.PIPE)
        with process:
            assert process.stdin is not None and process.stdout is not None
            for letter in "abc":
                process.stdin.write(f"{letter}\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"{letter.upper()}\n"
            process.stdin.close()
            assert process.stdout.read() == ""
        assert process.returncode == 0

    def test_whoever_reads_may_leave(self) -> None:
        process = self.start("run", "flow:same", given=b"a\n" * 200_000)
        with process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "A\n"
            process.stdout.close()
            assert process.stderr.read() == "imported\n"
        assert process.returncode == 141

    def test_an_interrupt_ends_it_in_peace(self) -> None:
        # In a job, and while the source waits for the standard input.
        for name, given in (("waiting", "a\n"), ("same", "a\n")):
            process = self.start("run", f"flow:{name}", stdin=subprocess.PIPE)
            with process:
                assert process.stdin is not None and process.stdout is not None and process.stderr is not None
                process.stdin.write(given)
                process.stdin.flush()
                # Both have begun by then; in the middle of an import, Python itself would tell of an open file.
                if name == "same":
                    process.stdout.readline()
                while name == "waiting" and process.stderr.readline() != "begun\n":
                    pass
                os.kill(process.pid, signal.SIGINT)
                assert process.stderr.read() in ("", "imported\n")
            assert process.returncode == 130, process.returncode

    def test_a_disk_that_is_full(self) -> None:
        if not os.path.exists("/dev/full"):
            self.skipTest("this system has no /dev/full")
        with open("/dev/full", "wb") as full:
            process = self.start("run", "flow:same", given=b"a\n", stdout=full)
        _, errors = process.communicate()
        assert process.returncode == 1 and "the results cannot be written: [Errno" in errors, errors
        # Any other command tells of it, too, and nothing else.
        for arguments in (("doctor",), ("draw", "flow:same")):
            with self.subTest(arguments), open("/dev/full", "wb") as full:
                process = self.start(*arguments, stdout=full)
                _, errors = process.communicate()
                assert process.returncode == 1
                self.assertRegex(errors, r"\A(imported\n)?conveyor: the \w+ ?\w* cannot be written: .*\n\Z")


class TargetTest(CommandTestCase):
    def forget_modules(self) -> None:
        """Nothing that was imported here stays."""
        for name, module in [*sys.modules.items()]:
            if (getattr(module, "__file__", None) or "").startswith(self.folder):
                del sys.modules[name]

    def test_what_is_no_pipeline_says_which_are(self) -> None:
        names = "made, in_vain, pipeline, spawned, served, failing, skipping, same, sets, keys, waiting, doubling"
        there = f"pipelines there: {names}\n?\\Z"
        none = r"no name of bare is a pipeline, or a function that says -> Pipeline\Z"
        usage = [
            ("flow:nothing", f"flow has no 'nothing': {there}"),
            ("flow", f"which pipeline of flow\\? {there}"),
            ("flow:number", f"flow:number is 7, and neither a pipeline nor a function that returns one: {there}"),
            ("flow:none", f"flow:none\\(\\) returned None, and no pipeline: {there}"),
            ("flow:needs", "flow:needs cannot be called without arguments: .*'number'"),
            ("bare.py", f"which pipeline of bare.py\\? {none}"),
            ("nowhere:x", "there is no module 'nowhere' in the current folder or on sys.path\\Z"),
            ("nowhere.py:x", "there is no file nowhere.py\\Z"),
            ("no name:x", "'no name' is no name of a module: write module:pipeline, .*"),
            ("two-words.py:x", "two-words.py cannot be imported, as 'two-words' is no name of a module: .*"),
            (
                "other/argparse.py:x",
                "other/argparse.py cannot be imported, as the module 'argparse' is .*: rename the file\\Z",
            ),
            ("ending:x", r"ending ends the program while it is imported \(SystemExit\(3\)\): put .*"),
        ]
        failed = [
            (
                "flow:in_vain",
                r"flow:in_vain\(\) raised an error\nTraceback .*\n.*flow.py.*\n.*\n([ ^~]*\n)?KeyError: 'of mine'",
            ),
            (
                "broken:x",
                r'broken raised an error while it was imported\nTraceback .*\n  File ".*broken.py"(.*\n)*OSError: no',
            ),
            (
                "lacking.py:x",
                r"lacking.py raised an error (.*\n)*ModuleNotFoundError: No module named 'no_such_module_any",
            ),
        ]
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.addCleanup(self.forget_modules)
        for status, cases in ((2, usage), (1, failed)):
            for target, message in cases:
                with mock.patch.object(sys, "path", [*sys.path]), self.subTest(target):
                    with redirect_stdout(io.StringIO()), self.assertRaisesRegex(_CommandError, rf"\A{message}") as got:
                        find_pipeline(target)
                    assert got.exception.status == status
        self.check([Case(("draw", "flow:number"), b"", 2, "", rf"\Aimported\nconveyor: {usage[2][1]}")])


class DrawTest(CommandTestCase):
    def test_pictures(self) -> None:
        self.check([Case(("draw", "flow:keys"), b"", 0, "\u25cf  sorted\n\u25bc  results")])
        outcome = self.told("draw", "lone", "--svg")
        assert (outcome.code, outcome.errors) == (0, "") and outcome.output.startswith("<svg "), outcome.told()

    def test_a_file(self) -> None:
        starts = {"text": "\u25cf  len\n", "svg": "<svg ", "dot": "digraph ", "mermaid": "flowchart "}
        cases = {"a.txt": "text", "a.svg": "svg", "a.gv": "dot", "a.DOT": "dot", "a.mmd": "mermaid"}
        pipeline = Pipeline().add(Processor(len))
        for name, kind in cases.items():
            for wanted in (None, *list(starts)[1:]):
                path = os.path.join(self.folder, name)
                assert write_picture(pipeline, wanted, path) is None
                with open(path, encoding="utf-8") as file:
                    assert file.read().startswith(starts[wanted or kind]), name
        process = self.start("draw", "lone.py", "--dot", "--output", "dot.svg")
        outcome = self.told("draw", "lone.py", "--output", "no/a.svg")
        assert outcome.code == 1 and outcome.errors.startswith("conveyor: the picture cannot be written: ")
        assert self.collect(process) == (0, "", "")
        with open(os.path.join(self.folder, "dot.svg"), encoding="utf-8") as file:
            assert file.read().startswith("digraph ")


class OtherCommandsTest(CommandTestCase):
    def test_the_doctor(self) -> None:
        outcome = self.told("doctor")
        assert (outcome.code, outcome.errors) == (0, ""), outcome.told()
        told = dict(re.findall(r"^(\w[\w ]*?)  +(.*)$", outcome.output, re.MULTILINE))
        assert told["Conveyor"].startswith(conveyor.__version__)
        assert told["start method"].partition(":")[0] in ("fork", "forkserver", "spawn")
        assert int(told["cores"].split()[0]) >= 1
        self.assertRegex(told["a pipeline"], r"^of two steps started, ran 1,000 items and ended in ")
        for package in ("cloudpickle", "tqdm", "rich", "numpy", "distributed"):
            self.assertRegex(told[package], r"^(missing|[\w.+]+), for ")
        assert {"memory", "shared memory", "environment"} <= set(told), outcome.output

    def test_variables_that_the_doctor_finds(self) -> None:
        found = {
            "CONVEYOR_TOKEN": "secret",
            "CONVEYOR_A": "two\nlines",
            "CONVEYOR_B": "\xe9t\xe9",
            "CONVEYOR_C": os.fsdecode(b"\xff"),
        }
        for encoding, text in ("utf-8", "\xe9t\xe9"), ("ascii", r"\xe9t\xe9"):
            variables = {**found, "PYTHONIOENCODING": f"{encoding}:strict"}
            outcome = self.told("doctor", variables=variables)
            assert outcome.code == 0 and outcome.errors == "", outcome.told()
            for line in (
                "CONVEYOR_TOKEN is set",
                r"CONVEYOR_A='two\nlines'",
                r"CONVEYOR_C='\udcff'",
                f"CONVEYOR_B={text}",
            ):
                assert f" {line}\n" in outcome.output, (line, outcome.output)
            assert "secret" not in outcome.output, outcome.output

    def ended(self, *arguments: str) -> Outcome:
        """How a command ends that its parser ends, in this process."""
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
            with mock.patch.dict(os.environ, {"COLUMNS": "80"}), self.assertRaises(SystemExit) as ended:
                main(arguments)
        return Outcome(int(ended.exception.code or 0), out.getvalue().strip(), errors.getvalue())

    def test_help_and_usage(self) -> None:
        for command in ((), ("draw",), ("run",), ("doctor",), ("replay",)):
            outcome = self.ended(*command, "--help")
            assert (outcome.code, outcome.errors) == (0, ""), outcome.told()
            self.assertRegex(outcome.output, rf"\n\nexample:\n  [^\n]*conveyor {' '.join(command)}.*\Z")
            assert max(map(len, outcome.output.splitlines()[:-1])) <= 80, outcome.output
        assert self.ended("--version") == (0, f"Conveyor {conveyor.__version__}", "")
        for arguments, words in (
            ((), "required: command"),
            (("paint",), "invalid choice: 'paint'"),
            (("draw", "x", "--dot", "--svg"), "not allowed with"),
            (("run",), "required: module:pipeline"),
        ):
            outcome = self.ended(*arguments)
            assert (outcome.code, outcome.output) == (2, ""), outcome.told()
            self.assertIn(words, outcome.errors)
        outcome = self.told("--version")
        assert outcome == (0, f"Conveyor {conveyor.__version__}", ""), outcome.told()

    def test_the_script_runs_the_same(self) -> None:
        """What an installation calls is there, and imports nothing before it is called."""
        parser = configparser.ConfigParser()
        parser.read(ROOT / "setup.cfg", encoding="utf-8")
        name, _, place = parser["options.entry_points"]["console_scripts"].strip().partition(" = ")
        assert (name, place) == ("conveyor", "conveyor.__main__:main")
        body = """
            import sys
            from conveyor.__main__ import main
            assert not {"argparse", "conveyor.commands", "conveyor.pipeline"} & set(sys.modules)
            if __name__ == "__main__":
                sys.argv[0] = "/somewhere/conveyor"
                sys.exit(main())
        """
        outcome = self.script(body, "doctor", "--help")
        assert outcome.code == 0 and outcome.output.startswith("usage: conveyor doctor"), outcome.told()
