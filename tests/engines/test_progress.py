"""How far a run is, as callables, terminals and files are told, with every engine; and that nobody who looks harms it."""

from __future__ import annotations

import errno
import io
import logging
import os
import pathlib
import struct
import sys
import textwrap
import threading
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from conveyor import Pipe, Pipeline, Processor, ProcessorError, Progress, progress
from conveyor.terminal import bar
from tests.helpers.scripts import Script, ScriptTestCase
from tests.helpers.support import ROOT, TestCase

ENGINES: tuple[dict[str, Any], ...] = (
    {"engine": "inline"},
    {"engine": "thread"},
    {},
    {"channel": "queue"},
    {"start_method": "spawn"},
)

PRELUDE = """
    import sys, time
    from conveyor import Pipe, Pipeline, Processor

    def same(item):
        return item

    def talking(item):
        print("item", item, end="" if item == 1 else chr(10))
        return item
"""
MAIN = """
    if __name__ == "__main__":
"""
NO_TQDM = 'import sys; sys.modules["tqdm"] = None\n'


def same(item):
    return item


def odd(item):
    return item if item % 2 else None


def twice(item):
    yield item
    yield item


def bad(item):
    if item == 3:
        raise ValueError(item)
    return item


def first_waits(item):
    number, path = item
    while not number and not os.path.exists(path):
        threading.Event().wait(0.005)
    return number


class Total(Processor[Any, Any]):
    def setup(self):
        self.total = 0

    def process(self, item):
        self.total += item

    def finish(self):
        return self.total


class Called(TestCase):
    """A callable: what it gets, and when."""

    def check(self, got: list[Progress], items: int) -> None:
        assert got and all(isinstance(each, Progress) for each in got)
        dones = [each.done for each in got]
        assert dones == sorted(dones), dones
        assert all(each.total is None or each.done <= each.total for each in got), got
        assert (got[-1].done, got[-1].total, got[-1].eta) == (items, items, 0.0)

    def test_the_last_value_says_that_all_is_through(self) -> None:
        chains: tuple[tuple[list[Any], int], ...] = (
            ([Processor(odd), Pipe(5), Processor(twice)], 10),
            ([Processor(bad, on_error="skip")], 19),
            ([Processor(same), Pipe(5), Processor(same, batch=3)], 20),
            ([Processor(same), Pipe(5), Total()], 1),
        )
        for settings in ENGINES:
            for chain, results in chains if "start_method" not in settings else chains[:1]:
                pipeline: Pipeline[Any, Any] = Pipeline(**settings)
                for element in chain:
                    pipeline.add(element)
                got: list[Progress] = []
                with mock.patch.object(progress._Callable, "interval", 0.001):
                    count = sum(
                        len(each) if isinstance(each, list) else 1
                        for each in pipeline.run(range(20), progress=got.append)
                    )
                with self.subTest(settings=settings, chain=chain):
                    self.assertIn(count, (results, 20))
                    self.check(got, 20)
                    assert [step.processor for step in got[-1].steps] == [
                        step.processor for step in pipeline.stats().steps
                    ]

    def test_a_slow_first_item_does_not_freeze_it(self) -> None:
        path = os.path.join(self.new_folder(), "go")
        got: list[Progress] = []

        def watch(value: Progress) -> None:
            got.append(value)
            if value.done == 9:
                pathlib.Path(path).touch()

        pipeline = Pipeline().add(Processor(first_waits, workers=2))
        with mock.patch.object(progress._Callable, "interval", 0.01):
            assert pipeline.run([(number, path) for number in range(10)], progress=watch) == list(range(10))
        self.check(got, 10)

    def test_the_total_is_what_the_input_or_the_program_says(self) -> None:
        class Sized:
            def __iter__(self) -> Any:
                return iter(range(4))

            def __len__(self) -> int:
                return 4

        class Lying(Sized):
            def __len__(self) -> int:
                raise OSError("no length")

        makers: tuple[tuple[Any, int | None, int | None], ...] = (
            (Sized, None, 4),
            (Lying, None, None),
            (lambda: (number for number in range(4)), 9, 9),
            (lambda: [1, 2, 3, 4], 2, 2),
        )
        for make, total, told in makers:
            for settings in ENGINES[:2]:
                got: list[Progress] = []
                stream = Pipeline(**settings).add(Processor(same)).stream(make(), progress=got.append, total=total)
                with stream:
                    next(stream)
                    known = stream._running._run.progress.total
                    list(stream)
                with self.subTest(settings=settings, total=total):
                    assert known == told
                    self.check(got, 4)

    def test_a_total_alone_is_told_in_statistics(self) -> None:
        for settings in ENGINES[:2]:
            pipeline = Pipeline(**settings).add(Processor(same))
            pipeline.run(iter([1, 2]), total=7)
            source = pipeline.stats().source
            assert source is not None and source.total == 7

    def test_a_run_that_is_given_up_or_fails_is_told_as_it_was(self) -> None:
        for settings in ENGINES[:2]:
            got: list[Progress] = []
            with (
                Pipeline(**settings)
                .add(Processor(same))
                .add(Pipe(1))
                .stream(range(10_000), progress=got.append) as stream
            ):
                next(stream)
            assert got and got[-1].done < 10_000 and got[-1].total == 10_000, got
            got.clear()
            with self.assertRaises(ProcessorError):
                Pipeline(**settings).add(Processor(bad)).run(range(10), progress=got.append)
            assert got and got[-1].done < 10, got

    def test_a_stream_whose_last_result_was_taken_is_through(self) -> None:
        for settings in ENGINES[:2]:
            got: list[Progress] = []
            with Pipeline(**settings).add(Processor(same)).stream([1, 2], progress=got.append) as stream:
                assert [next(stream), next(stream)] == [1, 2]
            self.check(got, 2)

    def test_a_pipeline_that_is_closed_while_nobody_takes_results(self) -> None:
        told = threading.Event()
        with mock.patch.object(progress._Callable, "interval", 0.001):
            pipeline = Pipeline().add(Processor(same)).open()
            stream = pipeline.stream(range(10_000), progress=lambda value: told.set())
            told.wait()
            pipeline.close()
            stream.close()

    def test_one_that_raises_is_reported_once_and_left_out(self) -> None:
        calls = []

        def raising(value: Progress) -> None:
            calls.append(value)
            raise SystemExit("no more")

        for settings in ENGINES[:2]:
            calls.clear()
            with (
                mock.patch.object(progress._Callable, "interval", 0.001),
                self.assertLogs("conveyor", "WARNING") as logs,
            ):
                assert Pipeline(**settings).add(Processor(same)).run(range(300), progress=raising) == list(range(300))
            assert len(calls) == len(logs.output) == 1
            self.assertIn("SystemExit('no more')", logs.output[0])

    def test_one_that_does_not_return_holds_nothing_up(self) -> None:
        entered, leave = threading.Event(), threading.Event()

        def stuck(value: Progress) -> None:
            entered.set()
            leave.wait()

        with (
            mock.patch.object(progress._Callable, "interval", 0.001),
            mock.patch.object(progress, "JOIN_SECONDS", 0.01),
        ):
            stream = Pipeline().add(Processor(same)).stream(range(3), progress=stuck)
            entered.wait()
            assert list(stream) == [0, 1, 2]
        (thread,) = [each for each in threading.enumerate() if each.name == "conveyor-progress"]
        leave.set()
        thread.join()

    def test_one_that_closes_its_stream(self) -> None:
        streams: list[Any] = []
        got: list[Progress] = []
        begun = threading.Event()

        def closing(value: Progress) -> None:
            got.append(value)
            begun.wait()
            streams[0].close()

        with mock.patch.object(progress._Callable, "interval", 0.001):
            streams.append(Pipeline().add(Processor(same)).stream(range(10_000), progress=closing))
            begun.set()
            while threading.active_count() > 1 and any(
                each.name == "conveyor-progress" for each in threading.enumerate()
            ):
                threading.Event().wait(0.005)
        assert got[-1].done < 10_000

    def test_what_cannot_be_used_is_refused(self) -> None:
        pipeline: Any = Pipeline(engine="inline").add(Processor(same))
        wrong: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
            ({"progress": "step"}, ValueError, "True, False, None, \"steps\" or a callable, not 'step'"),
            ({"progress": 3}, TypeError, 'True, False, None, "steps" or a callable, not 3'),
            ({"total": -1}, ValueError, "0 or more, not -1"),
            ({"total": 1.5}, TypeError, "an int"),
            ({"total": True}, TypeError, "an int"),
        )
        for arguments, kind, words in wrong:
            for call in (pipeline.run, pipeline.stream):
                with self.assertRaisesRegex(kind, words):
                    call([1], **arguments)
        assert pipeline.run([1], progress=False) == [1]


class Written(TestCase):
    """A stream that is no terminal."""

    def errors_of(self, settings: dict[str, Any], variable: str | None, **arguments: Any) -> str:
        environment = {} if variable is None else {"CONVEYOR_PROGRESS": variable}
        with mock.patch.object(sys, "stderr", io.StringIO()) as stream, mock.patch.dict(os.environ, environment):
            Pipeline(**settings).add(Processor(same)).run(range(1000), **arguments)
        return stream.getvalue()

    def test_a_line_at_the_end(self) -> None:
        for settings in ENGINES[:2]:
            self.assertRegex(
                self.errors_of(settings, None, progress=True),
                r"\A1,000 of 1,000 items \(100 %\), [\d,]+ items/s\n\Z",
            )

    def test_lines_meanwhile(self) -> None:
        with mock.patch.object(bar.Log, "interval", 0.001):
            path = os.path.join(self.new_folder(), "go")
            with mock.patch.object(sys, "stderr", io.StringIO()) as errors:
                stream = Pipeline().add(Processor(first_waits)).stream([(0, path)], progress=True)
                while "0 of 1 item (0 %)\n" not in errors.getvalue():
                    threading.Event().wait(0.005)
                pathlib.Path(path).touch()
                assert list(stream) == [0]

    def test_the_variable(self) -> None:
        for settings in ENGINES[:2]:
            assert self.errors_of(settings, "1").startswith("1,000 of 1,000")
            assert self.errors_of(settings, "1", progress=False) == ""
            assert self.errors_of(settings, "0", progress=True) == ""
            got: list[Progress] = []
            self.errors_of(settings, "0", progress=got.append)
            assert got[-1].done == 1000

    def test_a_notebook_has_its_own_bar_where_there_are_widgets(self) -> None:
        class Bar:
            def __init__(self, **settings: Any) -> None:
                made.append((type(self).__mro__[1], "file" in settings))
                self.total = self.n = 0

            def refresh(self) -> None:
                pass

            def close(self) -> None:
                made.append((self.n, self.total))

        class Widget(Bar):
            pass

        kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={"IPKernelApp": {}}))
        for widgets, expected in ((object(), [(Widget, False), (2, 2)]), (None, [(Bar, True), (2, 2)])):
            made: list[Any] = []
            fakes: dict[str, Any] = {
                "IPython": kernel,
                "tqdm": ModuleType("tqdm"),
                "tqdm.std": SimpleNamespace(tqdm=Bar),
                "tqdm.notebook": SimpleNamespace(tqdm=Widget, IProgress=widgets),
            }
            with mock.patch.dict(sys.modules, fakes):
                Pipeline(engine="inline").add(Processor(same)).run([1, 2], progress=True)
            assert made == expected, made

    def test_a_stream_that_is_gone_or_refuses(self) -> None:
        class Refusing(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError(errno.EPIPE, "gone")

        for stream, reports in ((None, 0), (Refusing(), 1)):
            with mock.patch.object(sys, "stderr", stream), self.assertLogs("conveyor") as logs:
                assert Pipeline(engine="inline").add(Processor(same)).run([1], progress=True) == [1]
                # One at least is asked for.
                logging.getLogger("conveyor").warning("the end")
            assert len(logs.output) == reports + 1


class InScripts(ScriptTestCase):
    """What whole programs show."""

    def test_the_variable_holds_for_the_program_alone(self) -> None:
        body = PRELUDE + (
            "\n    def nested(item):\n"
            '        return Pipeline(engine="inline").add(Processor(same)).run([item, item])\n'
            + MAIN
            + "        print(len(Pipeline().add(Processor(nested)).run(range(3))))\n"
        )
        with mock.patch.dict(os.environ, {"CONVEYOR_PROGRESS": "1"}):
            script = self.start_script(Script(body), self.folder)
        output, errors = script.communicate()
        assert (script.returncode, output, errors.count("\n")) == (0, "3\n", 1), errors
        self.assertIn("3 of 3 items", errors)

    def test_a_run_that_nobody_watches_imports_nothing_of_it(self) -> None:
        body = (
            PRELUDE
            + MAIN
            + (
                "        Pipeline().add(Processor(same)).run(range(3))\n"
                '        print([name for name in sys.modules if "progress" in name and "wire" not in name])\n'
            )
        )
        script = self.start_script(Script(body), self.folder)
        assert script.communicate() == ("[]\n", "")

    def terminal(self, body: str, interrupted_at: bytes | None = None, **environment: str) -> str:
        """What a program shows on a terminal; it gets a Ctrl-C when it has shown `interrupted_at`."""
        import fcntl
        import pty
        import termios

        path = os.path.join(self.folder, "script.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(textwrap.dedent(body))
        pid, end = pty.fork()
        if not pid:
            os.execve(
                sys.executable,
                [sys.executable, path],
                {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment},
            )
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        shown = b""
        try:
            while True:
                try:
                    more = os.read(end, 65536)
                except OSError:
                    break
                shown += more
                if not more:
                    break
                if interrupted_at is not None and interrupted_at in shown:
                    os.write(end, b"\x03")
                    interrupted_at = None
        finally:
            os.close(end)
            os.waitpid(pid, 0)
        return shown.decode("utf-8")

    def lines(self, shown: str) -> list[str]:
        """What stands on the terminal at the end, as far as carriage returns and deleted lines go."""
        lines = []
        for line in shown.replace("\r\n", "\n").split("\n"):
            last = line.rpartition("\x1b[K")[2]
            lines.append(last.rstrip("\r").rpartition("\r")[2].rstrip())
        return lines

    RUN = (
        PRELUDE + MAIN + '        Pipeline(start_method="fork").add(Processor(talking)).run(range(4), progress=True)\n'
    )

    def test_prints_stand_above_the_line(self) -> None:
        for no_color in ({}, {"NO_COLOR": "1"}):
            shown = self.terminal(NO_TQDM + textwrap.dedent(self.RUN), **no_color)
            lines = self.lines(shown)
            assert lines[:3] == ["item 0", "item 1item 2", "item 3"], shown
            self.assertRegex(lines[3], r"^4 of 4 items \(100 %\), [\d,.]+ items/s$")
            assert lines[4:] == [""], shown
            assert "\x1b[" not in shown.replace("\x1b[K", ""), "a colour"

    def test_prints_stand_above_the_bar_of_tqdm(self) -> None:
        try:
            import tqdm  # noqa: F401
        except ImportError:
            self.skipTest("tqdm is not installed")
        shown = self.terminal(self.RUN)
        lines = self.lines(shown)
        assert lines[:3] == ["item 0", "item 1item 2", "item 3"], shown
        self.assertRegex(lines[3], r"^100%\|.*\| 4/4 \[")
        assert lines[4:] == [""], shown

    def test_an_interrupt_leaves_a_clean_line(self) -> None:
        waiting = (
            PRELUDE
            + """
    def waiting(item):
        if item == 0:
            time.sleep(60)
        return item
"""
            + MAIN
            + """
        try:
            Pipeline(start_method="fork").add(Processor(waiting)).run(range(4), progress=True)
        except KeyboardInterrupt:
            print("interrupted")
"""
        )
        for body, shown_first in ((NO_TQDM + textwrap.dedent(waiting), b"0 of 4"),):
            shown = self.terminal(body, shown_first)
            lines = self.lines(shown)
            self.assertRegex(lines[-3], r"^0 of 4 items \(0 %\)$")
            assert lines[-2:] == ["interrupted", ""], shown
