"""Items that cannot travel, and exceptions that cannot be shown: what a run then says is the same in each engine.

Law: the error names who failed, and its message is made whatever the user's exception does.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial

from conveyor import (
    ConveyorError,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
    ResultError,
    SourceError,
)
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


class NoReturn:
    """Can be pickled, and raises an exception of this kind when it is unpickled."""

    def __init__(self, kind: type[BaseException] = ValueError) -> None:
        self.kind = kind

    def __reduce__(self):
        return refuse, (self.kind,)


def refuse(kind):
    raise kind("refused")


class NoPickle:
    """Raises SystemExit when it is pickled, or copied."""

    def __reduce__(self):
        raise SystemExit("refused")


def as_two_says(number):
    return NoReturn() if number == 2 else number


def exits_at_two(number):
    return NoReturn(SystemExit) if number == 2 else number


def no_pickle_at_two(number):
    return NoPickle() if number == 2 else number


def two_of_two(number):
    yield number
    if number == 2:
        yield NoReturn()


def no_return(item, error):
    return NoReturn()


def fail(number):
    raise ValueError(number)


class Finishing(Processor):
    """Gives at the end what does not come back."""

    def process(self, item):
        return item

    def finish(self):
        return NoReturn()


class HopTest(TestCase):
    """Items that can be pickled, and not unpickled, or that end the program meanwhile: processes, and inline."""

    def both(self, elements, items, **arguments):
        """Return what `run` gives, which is the same for both engines; of an error its class, phase and message."""
        found = []
        for engine in ("process", "inline"):
            pipeline = Pipeline(engine=engine)
            for element in elements:
                pipeline.add(*(element if isinstance(element, tuple) else (element,)))
            try:
                outcome = [told(each) for each in pipeline.run(items, **arguments)]
            except ConveyorError as error:
                outcome = told(error)
            found.append((outcome, [told(failed.error) for failed in pipeline.failures]))
        assert found[0] == found[1], found
        return found[0][0]

    def test_an_item_fails_at_who_gets_it(self) -> None:
        unpickle = "ProcessorError", "unpickle"
        for elements, items, number in (
            ([Processor(same)], [1, NoReturn(), 3], 1),
            ([Processor(same, on_error="skip", retries=1)], [1, NoReturn(), 3], 1),
            ([Processor(as_two_says, on_error="skip"), Pipe(), Processor(same, on_error="skip")], [1, 2, 3], 1),
            ([Processor(two_of_two), Pipe(), Processor(same)], [1, 2, 3], 2),
            ([Processor(exits_at_two), Pipe(), Processor(same)], [1, 2, 3], 1),
            ([Finishing(), Pipe(), Processor(same)], [1, 2], 2),
            ([Processor(fail, on_error=no_return, name="fail"), Pipe(), Processor(same)], [1], 0),
        ):
            with self.subTest(elements=elements):
                outcome = self.both(elements, items)
                assert (*outcome[:2], outcome[3]) == (*unpickle, number), outcome
                assert "Processor 'same' got an item that cannot be unpickled" in outcome[2], outcome

    def test_a_batch(self) -> None:
        outcome = self.both([Processor(as_two_says), Pipe(), Processor(list, batch=3)], [1, 2, 3])
        assert "[one of items 0 to 2]" in outcome[2], outcome

    def test_a_result(self) -> None:
        # Where one ends the program, that may be a signal handler's doing: test_faults.py has it.
        assert self.both([Processor(as_two_says, on_error="skip")], [1, 2, 3])[0] == "ResultError"
        assert self.both([Processor(as_two_says)], [1, 2, 3], return_exceptions=True)[1][0] == "ResultError"

    def test_a_fork_and_a_zip(self) -> None:
        fork = [Processor(same), Pipe(), ReplicatingFork(2), (Processor(as_two_says), Processor(str))]
        outcome = self.both([*fork, Pipe(), Join(2, how="zip"), Processor(list)], [1, 2, 3], return_exceptions=True)
        assert (outcome[0], outcome[2]) == ([1, "1"], [3, "3"]) and outcome[1][:2] == ("ProcessorError", "unpickle")
        outcome = self.both([*fork, Pipe(), Join(2, how="zip")], [1, 2, 3], with_input=True, return_exceptions=True)
        assert outcome[0] == (1, [(1, "1")]) and outcome[1][1][0] == "ResultError", outcome

    def test_others_go_on(self) -> None:
        outcome = self.both([Processor(same)], [1, NoReturn(SystemExit), 3], return_exceptions=True)
        assert (outcome[0], outcome[2]) == (1, 3) and outcome[1][1] == "unpickle", outcome

    def test_submitted_items(self) -> None:
        for engine in ("process", "inline"):
            with self.subTest(engine=engine), Pipeline(engine=engine).add(Processor(exits_at_two)) as pipeline:
                futures = [pipeline.submit(item) for item in (1, 2, NoReturn(), 3)]
                kinds = [told(future.exception())[:2] for future in futures if future.exception() is not None]
                assert kinds == [("ResultError", None), ("ProcessorError", "unpickle")], kinds
                assert (futures[0].result(), futures[3].result()) == ([1], [3])
            with self.subTest(engine=engine):
                assert asyncio.run(awaited(engine)) == [[1], "ResultError", "ProcessorError", [3]]

    def test_what_exits_as_it_is_pickled(self) -> None:
        for engine in ("process", "inline"):
            with self.subTest(engine=engine):
                with self.assertRaisesRegex(SourceError, "Input item 0 cannot be pickled .* .SystemExit: refused"):
                    Pipeline(engine=engine).add(Processor(same)).run([NoPickle()])
                pipeline = Pipeline(engine=engine).add(Processor(no_pickle_at_two, on_error="skip"))
                assert pipeline.run([1, 2, 3]) == [1, 3] and pipeline.failures[0].error.phase == "pickle"

    def test_what_exits_as_threads_copy_it(self) -> None:
        pipeline = Pipeline(engine="thread").add(Processor(same, on_error="skip", retries=1))
        assert pipeline.run([1, NoPickle(), 3]) == [1, 3]
        assert pipeline.failures[0].number == 1
        # In the program's own thread, a handler of signals may be ending it.
        with self.assertRaises(SystemExit):
            Pipeline(engine="thread").add(Processor(same)).run([NoPickle()], with_input=True)


class Client:
    """Cannot be copied."""

    def __init__(self) -> None:
        self.lock, self.called = threading.Lock(), 0

    def get(self, item):
        with self.lock:
            self.called += 1
        return item, self.called

    def __call__(self, item):
        return self.get(item)


class LockedJobTest(TestCase):
    """Jobs that cannot be copied, in this process."""

    def test_all_workers_call_a_plain_callable(self) -> None:
        for engine in ("thread", "inline"):
            for job_of in (lambda client: client.get, lambda client: client, lambda client: partial(client.get)):
                with self.subTest(engine=engine):
                    client = Client()
                    results = Pipeline(engine=engine).add(Processor(job_of(client), workers=2)).run(["a", "b"])
                    assert client.called == 2 and sorted(results)[0][0] == "a", results

    def test_a_job_that_can_be_copied_is(self) -> None:
        for engine in ("thread", "inline"):
            counting = Counting()
            assert Pipeline(engine=engine).add(Processor(counting)).run([1, 2]) == [1, 2]
            assert counting.called == 0

    def test_state_on_self_begins_anew_or_is_an_error(self) -> None:
        class Holds(Processor):
            def __init__(self) -> None:
                self.lock = threading.Lock()

            def process(self, item):
                return item

        for engine in ("thread", "inline"):
            with self.assertRaisesRegex(ProcessorError, "cannot pickle"):
                Pipeline(engine=engine).add(Holds()).run([1])


class Counting:
    def __init__(self) -> None:
        self.called = 0

    def __call__(self, item):
        self.called += 1
        return self.called


def told(outcome):
    """Return what is the same in both engines: of an error its class, phase, message and number."""
    if isinstance(outcome, tuple) and len(outcome) == 2 and not isinstance(outcome[1], str):
        return outcome[0], told(outcome[1])
    if not isinstance(outcome, BaseException):
        return outcome
    return type(outcome).__name__, getattr(outcome, "phase", None), str(outcome), getattr(outcome, "number", None)


async def awaited(engine: str) -> list:
    """Return what comes of items that tasks await, or the name of the error."""
    async with Pipeline(engine=engine).add(Processor(exits_at_two)) as pipeline:
        items = (1, 2, NoReturn(), 3)
        outcomes = await asyncio.gather(*map(pipeline.asubmit, items), return_exceptions=True)
    return [type(each).__name__ if isinstance(each, BaseException) else each for each in outcomes]
