"""What Python prints of a failure that nobody catches.

Law: the frames of the job stand there once, those of this package are at most the methods that the program has called,
and the last line names the Processor, the item and the error.
"""

from __future__ import annotations

import functools
import itertools
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import conveyor
from conveyor import Pipeline, Processor, ProcessorError, SourceError, TooManyFailuresError
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
        last = "conveyor.errors.TooManyFailuresError: 1 item was given up, and max_failures allows 0"
        for made in self.each():
            element = Processor(parse, on_error="skip")
            self.check(lambda: made(element, max_failures=0).run(itertools.repeat("x")), TooManyFailuresError, last)


def _made(settings: dict[str, Any], element: Any, **more: Any) -> Pipeline[Any, Any]:
    return Pipeline(**settings, **more).add(element)
