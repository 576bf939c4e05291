"""What is no ordinary input: tables, which give their columns, and what a system cannot give."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from typing import Any

from conveyor import Pipeline, ProcessError, Processor, SourceWarning
from conveyor.engines.process.caller.source import Input
from tests.helpers.late import mock
from tests.helpers.scripts import METHODS, Script, ScriptTestCase
from tests.helpers.support import TestCase


class Frame:
    """A table, as those of pandas and polars are: with the interchange protocol, and iterated over by columns."""

    columns = ("a", "b")

    def __dataframe__(self) -> None:
        """What libraries that take tables ask for."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class Arrow:
    """A table of a library that knows Arrow's protocol alone."""

    columns = ("a", "b")

    def __arrow_c_stream__(self) -> None:
        """What libraries that take tables ask for."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class TablesTest(TestCase):
    def pipeline(self) -> Pipeline[str, str]:
        return Pipeline(engine="inline").add(Processor(str.upper))

    def test_a_table_warns_at_the_line_of_the_user(self) -> None:
        for kind in (Frame, Arrow):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert self.pipeline().run(kind()) == ["A", "B"]
                assert list(self.pipeline().stream(kind())) == ["A", "B"]
            assert [(each.category, each.filename) for each in caught] == [(SourceWarning, __file__)] * 2
            assert all(kind.__name__ in str(each.message) and "rows" in str(each.message) for each in caught)

    def test_where_it_is_an_error_nothing_is_left(self) -> None:
        pipeline = self.pipeline()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with self.assertRaises(SourceWarning):
                pipeline.run(Frame())
            assert not pipeline.opened
            assert pipeline.run(list(Frame())) == ["A", "B"]

    def test_what_is_no_table(self) -> None:
        class Columns:
            """A class of the user's own that happens to have columns."""

            columns = ("a",)

            def __iter__(self) -> Iterator[str]:
                return iter("ab")

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert self.pipeline().run(Columns()) == ["A", "B"]


class TakenInPassingTest(TestCase):
    """What another thread takes of a pull that is under way."""

    def pulled(self, wanted: int, stoppable: bool) -> tuple[list[Any], list[Any]]:
        """Return what is taken while the third item, or the only one, is pulled, and what is taken after it."""
        passing: list[Any] = []

        def items() -> Iterator[int]:
            for number in range(wanted):
                if number == wanted - 1:
                    passing.extend(source.take_pulled(in_passing=True))
                yield number

        source = Input(items(), 1_000_000)
        source.detector.observe(0)
        source.pull(source.open(), wanted, stoppable)
        return passing, source.take_pulled()

    def test_nothing_is_lost(self) -> None:
        assert self.pulled(3, stoppable=True) == ([0, 1], [2])
        assert self.pulled(3, stoppable=False) == ([], [0, 1, 2])
        assert self.pulled(1, stoppable=True) == ([], [0])


class SemaphoresTest(TestCase):
    def test_a_system_without(self) -> None:
        queue_pair = "conveyor.engines.process.wire.queue.queue_pair"
        for error in (
            ImportError("no sem_open"),
            OSError(errno.ENOSYS, "not here"),
            PermissionError(errno.EACCES, "no"),
        ):
            with (
                mock.patch(queue_pair, side_effect=error),
                self.assertRaisesRegex(ProcessError, "Remedy: leave `channel`"),
            ):
                Pipeline(channel="queue").add(Processor(abs)).run([1])


class DebuggerTest(ScriptTestCase):
    """`python -m pdb script.py` runs a script in a module that lacks what each script has."""

    def test_every_start_method(self) -> None:
        body = """
            import sys
            from conveyor import Pipeline, Processor
            def job(item):
                return item + 1
            if __name__ == "__main__":
                print(Pipeline(start_method=sys.argv[1]).add(Processor(job)).run([1]))
        """
        for method, outcome in zip(
            METHODS, self.scripts(Script(body, (method,), how="pdb") for method in METHODS), strict=True
        ):
            assert "[2]" in outcome.output and "Error" not in outcome.output + outcome.errors, (method, outcome.told())


class StuckTest(ScriptTestCase):
    """A source that is stuck in a read when the interpreter ends does not end the program with an abort."""

    def test_what_is_read_at_the_end(self) -> None:
        body = """
            import os, sys
            from conveyor import Pipeline, Processor
            def job(item):
                return item
            reading, writing = os.pipe()
            os.write(writing, b"line\\n")
            if sys.argv[1] == "own":
                source = open(reading, "rb")
            elif sys.argv[1] == "generator":
                source = (line for line in open(reading))
            else:
                os.dup2(reading, 0)
                source = sys.stdin.buffer if sys.argv[1] == "buffer" else sys.stdin
            for result in Pipeline().add(Processor(job)).stream(source):
                print(result.strip() in ("line", b"line"))
                break
        """
        self.all_print("True", [Script(body, (kind,)) for kind in ("buffer", "text", "own", "generator")])


class ReplacedSelectTest(ScriptTestCase):
    """eventlet takes `select.poll` and its like away."""

    def test_without_poll(self) -> None:
        body = """
            import select
            del select.poll, select.epoll
            from conveyor import Pipe, Pipeline, Processor
            def job(item):
                return item + 1
            if __name__ == "__main__":
                with Pipeline().add(Processor(job)).add(Pipe()).add(Processor(job)) as pipeline:
                    assert pipeline.run(range(10_000)) == list(range(2, 10_002))
                    for result in pipeline.stream(range(10_000)):
                        break
                    print(pipeline.run([1]), pipeline.stats().start_method)
        """
        self.all_print("[3] spawn", [Script(body)])
