"""Items that cannot travel, and exceptions that cannot be shown: what a run then says is the same in each engine.

Law: the error names who failed, and its message is made whatever the user's exception does.
"""

from __future__ import annotations

from conveyor import Pipeline, Processor, ProcessorError, ResultError, SourceError
from tests.helpers.jobs_of_failures import Mute
from tests.helpers.support import TestCase


def same(item):
    return item


class MuteIter:
    """Raises what cannot be shown when it is iterated over."""

    def __iter__(self):
        raise Mute()


def mute_source():
    yield 1
    raise Mute()


class Stays:
    """Cannot be pickled, for a reason that cannot be shown."""

    def __reduce__(self):
        raise Mute()


class Arrives:
    """Can be pickled, and not be unpickled, for a reason that cannot be shown."""

    def __reduce__(self):
        return raise_mute, ()


def raise_mute():
    raise Mute()


def to_stays(item):
    return Stays()


def to_arrives(item):
    return Arrives()


UNSHOWN = "Mute: <its message could not be made: RuntimeError>"


class MuteTest(TestCase):
    """Exceptions whose message cannot be made."""

    def check(self, engine: str, run, kind: type[Exception], text: str) -> None:
        with self.subTest(engine=engine), self.assertRaises(kind) as caught:
            run(Pipeline(engine=engine))
        assert text in str(caught.exception), caught.exception
        assert type(caught.exception.__cause__) is Mute, caught.exception.__cause__

    def test_of_an_input(self) -> None:
        for engine in ("process", "thread", "inline"):
            for source in (MuteIter, mute_source):
                text = "The input raised Mute when it was asked for item"
                self.check(engine, lambda pipeline: pipeline.add(Processor(same)).run(source()), SourceError, text)

    def test_of_an_item_that_cannot_be_pickled(self) -> None:
        text = f"cannot be pickled for the first Processor ({UNSHOWN})"
        for engine in ("process", "inline"):
            self.check(engine, lambda pipeline: pipeline.add(Processor(same)).run([Stays()]), SourceError, text)
            self.check(engine, lambda pipeline: submitted(pipeline.add(Processor(same)), Stays()), SourceError, text)

    def test_of_a_result_that_cannot_be_unpickled(self) -> None:
        text = f"A result could not be unpickled in the calling process ({UNSHOWN})"
        self.check("process", lambda pipeline: pipeline.add(Processor(to_arrives)).run([1]), ResultError, text)
        self.check("process", lambda pipeline: submitted(pipeline.add(Processor(to_arrives)), 1), ResultError, text)

    def test_of_an_item_that_threads_cannot_copy(self) -> None:
        for item in (Stays(), Arrives()):
            pipeline = Pipeline(engine="thread").add(Processor(same, retries=1))
            with self.assertRaisesRegex(ProcessorError, "cannot be copied .*Mute: <its message could not be made"):
                pipeline.run([item])
            # `submit` hands on the item itself where it cannot be copied.
            assert submitted(Pipeline(engine="thread").add(Processor(same)), item) == [item]


def submitted(pipeline: Pipeline, item: object) -> list:
    """Return what comes of an item that is submitted."""
    with pipeline:
        return pipeline.submit(item).result()
