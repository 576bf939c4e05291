"""The live view of the steps on a terminal: what a person sees of it, meanwhile and at the end.

Law: a program runs on a terminal of a fixed size, and the screen is compared line by line; what depends on the moment
is tried on a terminal in memory.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from conveyor import Decision, Pipe, Pipeline, Processor, Progress, progress
from conveyor.terminal import live
from tests.helpers.screen import Screen, Terminal
from tests.helpers.support import TestCase
from tests.terminal.test_table import stats, step

PRELUDE = """
import sys, time
from conveyor import Pipe, Pipeline, Processor

def talking(item):
    print("job", item, end="" if item == 1 else chr(10))
    return item

def same(item):
    return item

def waiting(item):
    if item == 0:
        time.sleep(60)
    return item

"""
RUN = """
if __name__ == "__main__":
    pipeline = Pipeline(start_method="fork").add(Processor(talking)).add(Pipe(10)).add(Processor(same, workers=2))
    for result in pipeline.stream(range(4), progress="steps"):
        print("result", result)
    print("after")
"""
INTERRUPTED = """
if __name__ == "__main__":
    try:
        Pipeline(start_method="fork").add(Processor(waiting)).run(range(4), progress="steps")
    except KeyboardInterrupt:
        print("interrupted")
"""
NO_RICH = 'import sys; sys.modules["rich"] = None\n'
END = [
    r"4 of 4 items \(100 %\), [\d,.]+ items/s",
    r"  step       pipe                 waiting workers  busy     items     rate",
    r". talking    ····················       0       1 +\d+%         4 +[\d.,]+/s",
    r". same       ····················       0       2 +\d+%         4 +[\d.,]+/s",
    r"(. (talking|same) holds up the others, \d+% of the time,|) +3 workers, \d+ cores?",
]


class ProgramTest(TestCase):
    def start(self, body: str, **settings: Any) -> Terminal:
        folder = self.new_folder()
        with open(os.path.join(folder, "script.py"), "w", encoding="utf-8") as file:
            file.write(body)
        return Terminal(["script.py"], folder, **settings)

    def assert_lines(self, lines: list[str], patterns: list[str]) -> None:
        assert len(lines) == len(patterns), "\n".join(lines)
        for line, pattern in zip(lines, patterns, strict=True):
            assert re.fullmatch(pattern, line), f"{pattern}\n" + "\n".join(lines)

    def test_what_is_printed_stands_above(self) -> None:
        kinds: tuple[tuple[str, dict[str, str]], ...] = ((NO_RICH, {}), ("", {}), ("", {"NO_COLOR": "1"}))
        terminals = [self.start(before + PRELUDE + RUN, **changes) for before, changes in kinds]
        for (before, changes), terminal in zip(kinds, terminals, strict=True):
            status, screen = terminal.end(), terminal.screen
            lines = screen.lines
            assert status == 0 and lines[-1] == "after", "\n".join(lines)
            self.assert_lines(lines[-6:-1], END)
            # One job does not end its line, and another process may go on with it.
            printed = sorted(re.findall(r"(?:job|result) \d", "\n".join(lines[:-6])))
            expected = [f"{kind} {number}" for kind in ("job", "result") for number in range(4)]
            assert printed == expected, "\n".join(lines)
            hues = [each for each in screen.colours if re.search(r"\b[349]\d\b", each)]
            has_rich = importlib.util.find_spec("rich") is not None
            assert bool(hues) == (has_rich and not before and not changes), hues

    def test_an_interrupt_leaves_a_clean_screen(self) -> None:
        terminal = self.start(PRELUDE + INTERRUPTED, columns=60, rows=10)
        terminal.read_until("waiting ")
        terminal.write("\x03")
        assert terminal.end() == 0
        self.assert_lines(
            terminal.screen.lines,
            [
                r"0 of 4 items \(0 %\)",
                r"  step +pipe +workers +busy +items +rate",
                r". waiting +[·▏▎▍▌▋▊▉█]+ +1 +\d+% +0 +0/s",
                r"(  1 worker, \d+ cores?|▸ waiting holds up the others, .*)",
                r"interrupted",
            ],
        )

    def test_the_command_line_puts_results_above(self) -> None:
        folder = self.new_folder()
        files = {
            "flow.py": "from conveyor import Pipeline, Processor\npipeline = Pipeline().add(Processor(str.upper))\n",
            "script.py": (
                "import subprocess, sys\nsys.exit(subprocess.run([sys.executable, '-m', 'conveyor', 'run', 'flow',"
                " *sys.argv[1:]], input=b'a\\nb\\n').returncode)\n"
            ),
        }
        for name, text in files.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        terminals = {option: Terminal(["script.py", option], folder) for option in ("--steps", "--progress")}
        for option, terminal in terminals.items():
            assert terminal.end() == 0
            lines = terminal.screen.lines
            assert lines[:2] == ["A", "B"] and len(lines) == (6 if option == "--steps" else 3), "\n".join(lines)
            assert "2 of 2 items" in lines[2] or "2/2" in lines[2], lines


@contextlib.contextmanager
def modules(fakes: dict[str, Any]) -> Iterator[None]:
    """Have these modules, None being none; what is imported meanwhile stays."""
    before = {name: sys.modules[name] for name in fakes if name in sys.modules}
    sys.modules.update(fakes)
    try:
        yield
    finally:
        for name in fakes:
            del sys.modules[name]
        sys.modules.update(before)


class Fake(io.StringIO):
    """A terminal in memory, as a stream of `sys`."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, columns: int = 80) -> None:
        super().__init__()
        self.screen = Screen(columns)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        text.encode(self.encoding)
        # The system does so, too.
        self.screen.feed(text.replace("\n", "\r\n"))
        return len(text)


class ViewTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.size = [80, 24]
        self.stream = Fake()
        for name in ("stdout", "stderr"):
            patch = mock.patch.object(sys, name, self.stream)
            patch.start()
            self.addCleanup(patch.stop)
        for patch in (
            mock.patch.dict(os.environ, {"TERM": "xterm"}),
            mock.patch.object(live, "_style_of", lambda stream: live._plain),
            mock.patch.object(live, "size_of", lambda stream: tuple(self.size)),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def view(self) -> live.LiveView:
        view = live.new_live_view(None)
        assert isinstance(view, live.LiveView)
        self.addCleanup(view.release)
        return view

    def test_a_window_that_becomes_narrower(self) -> None:
        """The next print already has lines that fit, and nothing of the wide ones stays."""
        view, known = self.view(), stats(1.0, step("one", items=7), step("two"))
        view.show(Progress(7, 10, 1.0, 3.0), known)
        wide = self.stream.screen.lines
        # As a terminal does it that breaks its lines anew.
        self.size[0] = self.stream.screen.columns = 40
        rows = sum(-(-len(line) // 40) for line in wide)
        self.stream.screen = Screen(40)
        self.stream.screen.feed("before\r\n" + "".join(f"row {row}\r\n" for row in range(rows)))
        print("printed")
        lines = self.stream.screen.lines
        assert lines[:3] == ["before", "printed", "7 of 10 items (70 %), 1 items/s"], lines
        assert len(lines) == 7 and max(map(len, lines)) <= 40, lines
        self.size[1] = 3
        view.show(Progress(7, 10, 1.0, 3.0), known)
        assert len(self.stream.screen.lines) == 3, self.stream.screen.lines

    def test_decisions_scroll_by(self) -> None:
        view = self.view()
        early = Decision(-5.0, "one", 1, 2, "of a run before")
        made = [Decision(0.5 + number // 3, "one", number, number + 1, "load") for number in range(8)]
        nothing = Progress(0, None, None, None)
        for count in (0, 1, 2, 2):
            view.show(nothing, stats(0.2 + count, step("one"), decisions=(early, *made[:count])))
        lines = self.stream.screen.lines
        assert lines[:2] == ["0.5 s  one: 0 → 1 worker: load", "0.5 s  one: 1 → 2 workers: load"], lines
        view.show(nothing, stats(9.0, step("one"), decisions=(early, *made)))
        lines = self.stream.screen.lines
        assert lines[2] == "1 more decision of the balancer" and lines[7].startswith("2.5 s  one: 7"), lines
        assert lines[8] == "0 items" and len(lines) == 12, lines

    def test_what_this_process_prints(self) -> None:
        view, known = self.view(), stats(1.0, step("one"))
        view.show(Progress(0, None, None, None), known)
        print("begun, ", end="")
        sys.stderr.writelines(["and ", "ended\nlast"])
        assert self.stream.screen.lines[:2] == ["and ended", "0 items"], self.stream.screen.lines
        print("ended")
        assert self.stream.screen.lines[:3] == ["and ended", "begun, ended", "0 items"], self.stream.screen.lines
        guard: Any = sys.stdout
        with self.assertRaises(TypeError):
            guard.write(b"bytes")
        assert guard.encoding == "utf-8"
        view.close(Progress(1, 1, None, None), known)
        view.release()
        assert sys.stdout is sys.stderr is self.stream
        lines = self.stream.screen.lines
        assert lines[2:4] == ["last", "1 of 1 item (100 %)"] and len(lines) == 7, lines
        # Who has kept the stream may go on.
        print("later", file=guard)
        assert self.stream.screen.lines[-1] == "later"
        # A process that was forked has no view.
        guard._process = 0
        print("child", file=guard)
        assert self.stream.screen.lines[-1] == "child"

    def test_a_stream_that_the_program_puts_there(self) -> None:
        class Tee:
            """Writes to what was there before, too."""

            def __init__(self) -> None:
                self.before: Any = sys.stdout
                self.written: list[str] = []

            def write(self, text: str) -> None:
                self.written.append(text)
                self.before.write(text)

            def flush(self) -> None:
                self.before.flush()

        view, known = self.view(), stats(1.0, step("one"))
        view.show(Progress(0, None, None, None), known)
        tee = Tee()
        with mock.patch.object(sys, "stdout", tee):
            view.put("stdout", "of a job\n")
            view.release()
            assert sys.stdout is tee  # type: ignore[comparison-overlap]
        assert tee.written == ["of a job\n"] and self.stream.screen.lines[0] == "of a job", self.stream.screen.lines

    def test_a_second_view_writes_lines_above_the_first(self) -> None:
        self.view()
        assert isinstance(live.new_live_view(None), live.StepsLog)

    def test_a_terminal_without_such_characters(self) -> None:
        with mock.patch.object(Fake, "encoding", "ascii"):
            view = self.view()
            view.show(Progress(0, None, None, None), stats(1.0, step("größe", waiting=50), decisions=()))
        assert all(line.isascii() for line in self.stream.screen.lines), self.stream.screen.lines
        self.assertIn("##########----------", self.stream.screen.lines[2])

    def test_a_run_of_each_engine(self) -> None:
        for engine in ("inline", "thread", "process"):
            pipeline: Pipeline[Any, Any] = Pipeline(engine=engine)  # type: ignore[arg-type]
            pipeline.add(Processor(abs)).add(Pipe()).add(Processor(str))
            assert len(pipeline.run(range(100), progress="steps")) == 100
            lines = self.stream.screen.lines[-5:]
            assert lines[0].startswith("100 of 100 items (100 %)") and lines[3][2:5] == "str", lines
            assert sys.stdout is sys.stderr is self.stream

    def test_a_view_that_fails_is_left_out(self) -> None:
        class Broken(Fake):
            def write(self, text: str) -> int:
                raise BrokenPipeError(errno.EPIPE, "gone")

        stream = Broken()
        with (
            mock.patch.object(sys, "stdout", stream),
            mock.patch.object(sys, "stderr", stream),
            self.assertLogs("conveyor", "WARNING") as logs,
        ):
            assert Pipeline(engine="inline").add(Processor(abs)).run([1], progress="steps") == [1]
            assert sys.stdout is sys.stderr is stream
        assert len(logs.output) == 1, logs.output

    def test_a_terminal_that_is_stopped_holds_nothing_up(self) -> None:
        """As by Ctrl-S: what is written waits."""
        stopped, go_on = threading.Event(), threading.Event()

        class Stopped(Fake):
            def write(self, text: str) -> int:
                stopped.set()
                go_on.wait()
                return len(text)

        stream = Stopped()
        with mock.patch.object(sys, "stderr", stream), mock.patch.object(progress, "JOIN_SECONDS", 0.01):
            with mock.patch.object(live.LiveView, "interval", 0.001):
                results = Pipeline(engine="inline").add(Processor(abs)).stream([1, 2], progress="steps")
                stopped.wait()
                assert list(results) == [1, 2]
            assert sys.stderr is stream
            (thread,) = [each for each in threading.enumerate() if each.name == "conveyor-progress"]
            go_on.set()
            thread.join()


class ElsewhereTest(TestCase):
    """Where there is no terminal."""

    def errors_of(self, **environment: str) -> str:
        pipeline = Pipeline(engine="inline").add(Processor(int, on_error="skip"))
        with mock.patch.object(sys, "stderr", io.StringIO()) as stream, mock.patch.dict(os.environ, environment):
            pipeline.run(["1", "two", "3"], progress="steps")
        return stream.getvalue()

    def test_a_line(self) -> None:
        self.assertRegex(
            self.errors_of(),
            r"\A3 of 3 items \(100 %\), [\d,.]+ items/s"
            r"(; bottleneck int \(1 worker, \d+% busy, 0 waiting\))?; int: 1 failed\n\Z",
        )
        assert self.errors_of(CONVEYOR_PROGRESS="0") == ""

    def test_decisions(self) -> None:
        stream = io.StringIO()
        view = live.StepsLog(stream)
        known = stats(2.0, step("one", 2, waiting=7, stalled=1.0), decisions=(Decision(2.0, "one", 1, 2, "load"),))
        for _ in range(2):
            view.show(Progress(1, None, None, None), known)
        assert stream.getvalue() == (
            "2.0 s  one: 1 → 2 workers: load\n"
            "1 item; bottleneck one (2 workers, 0% busy, 7 waiting)\n"
            "1 item; bottleneck one (2 workers, 0% busy, 7 waiting)\n"
        ), stream.getvalue()

    def test_a_notebook(self) -> None:
        shown: list[str] = []
        handle = SimpleNamespace(update=shown.append)
        display = SimpleNamespace(HTML=str, display=lambda page, display_id: shown.append(page) or handle)
        fakes: dict[str, Any] = {
            "IPython": SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={"IPKernelApp": {}})),
            "IPython.display": display,
        }
        with modules(fakes):
            assert self.errors_of() == ""
        assert shown[0] == "<p>0 items</p>" and shown[-1].startswith("<p>3 of 3 items"), shown
        self.assertIn("<table", shown[-1])
        # Where nothing can be displayed, there is the bar or the line.
        fakes["IPython.display"] = None
        with modules({**fakes, "tqdm": None}):
            self.assertIn("3 of 3 items (100 %)", self.errors_of())

    def test_nothing_of_an_item_is_shown(self) -> None:
        stream = Fake()
        with mock.patch.object(sys, "stderr", stream), mock.patch.dict(os.environ, {"TERM": "xterm"}):
            Pipeline(engine="inline").add(Processor(int, on_error="skip")).run(["secret"], progress="steps")
        assert "secret" not in "".join(stream.screen.lines), stream.screen.lines

    def test_whoever_asks_for_a_bar_loads_nothing_of_it(self) -> None:
        # An import would raise.
        with modules({"conveyor.terminal.live": None}), mock.patch.object(sys, "stderr", io.StringIO()) as stream:
            Pipeline(engine="inline").add(Processor(abs)).run([1], progress=True)
        assert stream.getvalue().startswith("1 of 1 item ")
