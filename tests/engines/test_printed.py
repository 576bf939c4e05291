"""What Python prints of a failure that nobody catches, and of the items that were given up.

Law: the frames of the job stand there once, those of this package are at most the methods that the program has called,
and the last line names the Processor, the item and the error.  An item that was given up has one line, of bounded length.
"""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import conveyor
from conveyor import (
    FailedItem,
    ItemTimeoutError,
    Pipeline,
    Processor,
    ProcessorError,
    SourceError,
    TooManyFailuresError,
    WorkerDiedError,
)
from tests.helpers.support import TestCase

ENGINES: tuple[dict[str, Any], ...] = ({"start_method": "fork"}, {"engine": "thread"}, {"engine": "inline"})
PACKAGE = os.path.dirname(os.path.abspath(conveyor.__file__))
WHOLE = "Traceback (most recent call last)"
LAST = "conveyor.errors.ProcessorError: Processor 'parse' raised ValueError: invalid literal for int() with base 10: "


def parse(line: str) -> int:
    return int(line)  # where it failed


class NeedsFile(Processor[str, str]):
    def setup(self) -> None:
        raise OSError("no such model")  # where it failed

    def process(self, item: str) -> str:
        return item


class LeavesBadly(Processor[str, str]):
    def process(self, item: str) -> str:
        return item

    def teardown(self) -> None:
        raise OSError("cannot close")  # where it failed


def broken_input() -> Iterator[str]:
    yield "1"
    raise KeyError("next page")  # where it failed


class PrintedTest(TestCase):
    """What a terminal shows, with each engine."""

    def check(
        self, call: Callable[[], Any], expected: type[Exception], last: str, ours: int = 1, whole: int = 2
    ) -> None:
        """`call` fails; what is printed has at most so many frames of the package and whole tracebacks."""
        # Not `assertRaises`, which takes the traceback away.
        text = "nothing was raised"
        try:
            call()
        except expected:
            text = traceback.format_exc()
        frames = [line for line in text.splitlines() if line.startswith(f'  File "{PACKAGE}')]
        assert len(frames) <= ours, text
        assert text.count("# where it failed") == 1, text
        assert text.count(WHOLE) == whole, text
        assert text.splitlines()[-1].startswith(last), text
        assert "During handling of the above exception" not in text, text

    def each(self) -> Iterator[Callable[..., Pipeline[Any, Any]]]:
        """With each engine, what makes a pipeline of one element."""
        for settings in ENGINES:
            with self.subTest(**settings):
                yield functools.partial(_made, settings)

    def test_a_job_raises(self) -> None:
        for made in self.each():
            self.check(lambda: made(Processor(parse)).run(["1", "two"]), ProcessorError, f"{LAST}'two' [item 1: 'two']")
            self.check(
                lambda: list(made(Processor(parse)).stream(["1", "two"])),
                ProcessorError,
                f"{LAST}'two' [item 1: 'two']",
            )
            stream = made(Processor(parse)).stream(["two"])
            self.check(lambda: next(stream), ProcessorError, f"{LAST}'two' [item 0: 'two']", ours=2)

    def test_a_submitted_item_fails(self) -> None:
        for made in self.each():
            with made(Processor(parse)) as pipeline:
                self.check(
                    lambda: pipeline.submit("two").result(), ProcessorError, f"{LAST}'two' [item 0: 'two']", ours=0
                )

    def test_what_stands_around_a_job_raises(self) -> None:
        for made in self.each():
            last = "conveyor.errors.ProcessorError: setup() of Processor 'NeedsFile' raised OSError: no such model"
            self.check(lambda: made(NeedsFile()).run(["1"]), ProcessorError, last)
            self.check(made(NeedsFile()).open, ProcessorError, last, ours=2)
            last = "conveyor.errors.ProcessorError: teardown() of Processor 'LeavesBadly' raised OSError: cannot close"
            self.check(lambda: made(LeavesBadly()).run(["1"]), ProcessorError, last)
            self.check(made(LeavesBadly()).open().close, ProcessorError, last, ours=2)

    def test_the_input_raises(self) -> None:
        last = "conveyor.errors.SourceError: The input raised KeyError when it was asked for item 1: 'next page'"
        for made in self.each():
            self.check(lambda: made(Processor(parse)).run(broken_input()), SourceError, last)

    def test_more_fails_than_may(self) -> None:
        last = "conveyor.errors.TooManyFailuresError: 1 item was given up, and max_failures allows 0: the run was stopped. It is in `failures`"
        for made in self.each():
            element = Processor(parse, on_error="skip")
            self.check(lambda: made(element, max_failures=0).run(itertools.repeat("x")), TooManyFailuresError, last)


class Mute(Exception):
    def __str__(self) -> str:
        raise OSError("not even that")


class Two(Exception):
    """Cannot be unpickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def fail(item: int) -> int:
    match item:
        case 1:
            raise ValueError("first line\nsecond line")
        case 2:
            raise Mute
        case 3:
            raise Two(3, 4)
        case 4:
            raise KeyError
        case 5:
            raise ValueError("x" * 1000)
    return item


class FailedItemsTest(TestCase):
    """What `print(pipeline.failures)` shows."""

    def printed(self, items: Any, engine: dict[str, Any] | None = None, **settings: Any) -> list[str]:
        """The lines for what `fail` fails at."""
        pipeline = Pipeline(**(engine or {"engine": "inline"}), **settings).add(Processor(fail, on_error="skip"))
        pipeline.run(items)
        return str(pipeline.failures).split("\n")

    def test_each_item_has_a_line(self) -> None:
        for engine in ENGINES:
            with self.subTest(**engine):
                *lines, last = self.printed(range(6), engine)
                assert lines == [
                    "fail: item 1 (1) failed: ValueError: first line second line",
                    "fail: item 2 (2) failed: Mute: <its message could not be made: OSError>",
                    "fail: item 3 (3) failed: Two: 3 and 4",
                    "fail: item 4 (4) failed: KeyError",
                ]
                assert last == f"fail: item 5 (5) failed: ValueError: {'x' * 185}...", last

    def test_an_item_is_shown_as_redact_says(self) -> None:
        [line] = self.printed([4], redact=lambda item: f"number\n{item}")
        assert line == "fail: item 0 (number 4) failed: KeyError", line

    def test_there_are_100_lines_at_most(self) -> None:
        lines = self.printed([4] * 101)
        assert len(lines) == 101 and lines[99].startswith("fail: item 99 ") and lines[100] == "and 1 more", lines
        assert len(self.printed([4] * 100)) == 100

    def test_nothing_was_given_up(self) -> None:
        assert self.printed([0]) == ["no item was given up"]
        failures = Pipeline(engine="inline").failures
        assert (str(failures), repr(failures)) == ("no item was given up", "()")

    def test_the_repr_is_that_of_a_tuple(self) -> None:
        pipeline: Pipeline[Any, Any] = Pipeline(engine="inline").add(Processor(fail, on_error="skip"))
        pipeline.run([4])
        [failed] = pipeline.failures
        assert repr(pipeline.failures) == f"({failed!r},)" and repr(failed).startswith("FailedItem(processor='fail', ")

    def test_other_reasons(self) -> None:
        failed = functools.partial(FailedItem, "load", 3, 5, None, attempts=2, when=0.0)
        slow = ItemTimeoutError("m", processor="load", seconds=0.5, number=3, last=5)
        assert (
            str(failed(slow))
            == "load: items 3 to 5 failed after 2 attempts: ItemTimeoutError: it took longer than 0.5 s"
        )
        died = WorkerDiedError("m", processor="load", exitcode=3, number=3, last=5)
        text = "load: items 3 to 5 failed after 2 attempts: WorkerDiedError: its worker exited with code 3"
        assert str(failed(died)) == text
        # Pickling keeps the text of the traceback, and no cause.
        error = ProcessorError("m", processor="load", kind="KeyError", traceback="Traceback ...\nKeyError: 'a'\n")
        assert str(failed(pickle.loads(pickle.dumps(error)))).endswith(" failed after 2 attempts: KeyError: 'a'")


def _made(settings: dict[str, Any], element: Any, **more: Any) -> Pipeline[Any, Any]:
    return Pipeline(**settings, **more).add(element)
