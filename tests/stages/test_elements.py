"""The elements by themselves: what they take, what they refuse and with which words, and how they print."""

from __future__ import annotations

import copy
import functools
import pickle
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

from conveyor.errors import ConveyorError, ImplicitJoinWarning, ImplicitPipeWarning, RuleError
from conveyor.pipeline import Pipeline
from conveyor.stages import DEFAULT_MAXSIZE, BalancingFork, Element, Join, Pipe, Processor, ReplicatingFork
from conveyor.stages.checks import check_processor
from conveyor.stages.processor import hands_of, has_finish, is_async, label, work_of


def load(item):
    return item


def add(item, more=1):
    return item + more


def two(first, second):
    return first, second


def keyword_only(item, *, more):
    return item, more


def nothing():
    return None


async def coroutine(item):
    return item


async def asynchronous_on_error(item, error):
    return item


async def coroutine_of_nothing():
    return None


async def asynchronous_generator(item):
    yield item


class Scale:
    def __call__(self, item):
        return item

    def method(self, item):
        return item


class AsynchronousScale:
    async def __call__(self, item):
        return item


class Count(Processor):
    """State on self, an `__init__` of its own that does not call the base."""

    def __init__(self, start=0):
        self.seen = start

    def process(self, item):
        self.seen += 1

    def finish(self):
        return self.seen


class Settings(Processor):
    name = "set"
    workers = 2
    batch = 10
    keep_none = True

    def setup(self):
        pass

    def teardown(self):
        pass

    def process(self, items):
        return items


class Passing(Processor):
    def __init__(self):
        super().__init__(name="passed", workers="auto")

    def process(self, item):
        return item


class Unshowable:
    def __repr__(self):
        raise OSError


class Idle(Processor):
    def finish(self):
        return None


@dataclass
class Times(Processor):
    by: int = 2

    def process(self, item):
        return item * self.by


def raised(kind: type[BaseException], call: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the error of exactly this kind that `call` raises."""
    try:
        call(*args, **kwargs)
    except kind as error:
        assert type(error) is kind, error
        return str(error)
    raise AssertionError(f"nothing raised by {call}")


def test_errors_pickle_with_their_fields():
    error = pickle.loads(pickle.dumps(RuleError("no", rule=4)))
    assert (type(error), str(error), error.rule) == (RuleError, "no", 4)
    assert isinstance(error, ConveyorError) and isinstance(error, ValueError)
    assert copy.copy(error).rule == 4
    assert issubclass(ImplicitJoinWarning, ImplicitPipeWarning) and issubclass(ImplicitPipeWarning, UserWarning)
    assert str(pickle.loads(pickle.dumps(ImplicitJoinWarning("open")))) == "open"


def test_repr_is_the_code():
    for element, code in [
        (Processor(load), "Processor(load)"),
        (Processor(load, workers=4, batch=10), "Processor(load, workers=4, batch=10)"),
        (
            Processor(load, workers="auto", name="n", keep_none=True),
            "Processor(load, name='n', workers='auto', keep_none=True)",
        ),
        (Processor(functools.partial(add, more=2)), "Processor(partial(add, more=2))"),
        (Processor(functools.partial(two, 1)), "Processor(partial(two, 1))"),
        (Processor(Scale()), "Processor(Scale())"),
        (Processor(Scale().method), "Processor(Scale(...).method)"),
        (Processor(str.strip), "Processor(str.strip)"),
        (Processor(", ".join), "Processor(', '.join)"),
        (Processor(bytes.fromhex), "Processor(bytes.fromhex)"),
        (Processor(functools.partial(sorted, key=len)), "Processor(partial(sorted, key=len))"),
        (Passing(), "Passing()"),
        (Processor(len), "Processor(len)"),
        (Processor(int), "Processor(int)"),
        (Count(3), "Count(...)"),
        (Settings(), "Settings()"),
        (Settings(workers=3), "Settings(workers=3)"),
        (Times(by=3), "Times(by=3)"),
        (Pipe(), "Pipe()"),
        (Pipe(10), "Pipe(maxsize=10)"),
        (Pipe(maxbytes=1_000_000), "Pipe(maxbytes=1000000)"),
        (Pipe(10, 1_000_000), "Pipe(maxsize=10, maxbytes=1000000)"),
        (ReplicatingFork(2), "ReplicatingFork(2)"),
        (BalancingFork(), "BalancingFork()"),
        (BalancingFork(3), "BalancingFork(3)"),
        (BalancingFork(min=1, max=4), "BalancingFork(min=1, max=4)"),
        (BalancingFork(max=4), "BalancingFork(max=4)"),
        (Join(), "Join()"),
        (Join(2), "Join(2)"),
        (Join(2, how="zip"), "Join(2, how='zip')"),
        (Join(how="zip"), "Join(how='zip')"),
    ]:
        assert repr(element) == code, repr(element)
        assert isinstance(element, Element)
    assert repr(Processor(functools.partial(two, Unshowable()))).startswith(
        "Processor(partial(two, <Unshowable instance at"
    )
    processor = Processor(lambda item: item)
    assert repr(processor) == f"Processor(<lambda at test_elements.py:{processor.job.__code__.co_firstlineno}>)"


def test_labels():
    for processor, expected in [
        (Processor(load), "load"),
        (Processor(lambda item: item), "lambda"),
        (Processor(functools.partial(functools.partial(add), more=2)), "add"),
        (Processor(Scale()), "Scale"),
        (Processor(Scale().method), "method"),
        (Processor(load, name="other"), "other"),
        (Count(), "Count"),
        (Settings(), "set"),
        (Passing(), "passed"),
    ]:
        assert label(processor) == expected


def test_values_are_values():
    for one, same, other in [
        (Pipe(), Pipe(), Pipe(1)),
        (Pipe(maxsize=3), Pipe(3), Pipe(4)),
        (Pipe(maxsize=3, maxbytes=4), Pipe(3, 4), Pipe(3)),
        (ReplicatingFork(2), ReplicatingFork(2), BalancingFork(2)),
        (BalancingFork(), BalancingFork(), BalancingFork(min=1)),
        (Join(2), Join(2), Join(2, how="zip")),
    ]:
        assert one == same and hash(one) == hash(same) and one != other
        assert pickle.loads(pickle.dumps(one)) == one
        try:
            one.n = 5
        except FrozenInstanceError:
            pass
        else:
            raise AssertionError(f"{one} changed")
    assert Pipe().bound == DEFAULT_MAXSIZE and Pipe(3).bound == 3
    assert Pipe(maxbytes=3).bound == DEFAULT_MAXSIZE and Pipe().maxbytes is None
    assert BalancingFork().auto and BalancingFork(max=2).auto and not BalancingFork(2).auto
    assert (BalancingFork(min=1, max=4).min, BalancingFork(min=1, max=4).max) == (1, 4)


def test_processors_are_plain_objects():
    for processor in (Processor(load, workers=3), Count(4), Settings(), Times(by=3)):
        assert vars(pickle.loads(pickle.dumps(processor))) == vars(processor)
    assert Count(4).seen == 4
    assert (Count().name, Count().workers, Count().batch, Count().keep_none, Count().job) == (None,) * 3 + (False, None)
    assert (Settings().workers, Settings().batch, Settings().keep_none) == (2, 10, True)
    assert (Passing().workers, Settings(workers=5).workers) == ("auto", 5)


def test_hooks():
    plain = Processor(load)
    assert (has_finish(Count()), has_finish(Settings()), has_finish(plain)) == (True, False, False)
    assert (plain.setup(), plain.finish(), plain.teardown()) == (None, None, None)


def test_work():
    assert work_of(Processor(load)) is load
    assert Processor(add).process(1) == 2
    times = Times(by=3)
    assert work_of(times) == times.process and work_of(times)(2) == 6


def test_a_subclass_may_have_hooks_and_take_a_job():
    idle = Idle(load)
    assert work_of(idle) is load and has_finish(idle) and repr(idle) == "Idle(load)"


def test_numbers_are_refused_by_name():
    for call, kind, words in [
        (lambda: Pipe(0), ValueError, ["Pipe", "maxsize", "1 or more", "0", "None for the default"]),
        (lambda: Pipe("3"), TypeError, ["Pipe", "maxsize", "int", "'3'"]),
        (lambda: Pipe(True), TypeError, ["maxsize", "True"]),
        (lambda: Pipe(1.0), TypeError, ["maxsize", "1.0"]),
        (lambda: Pipe(maxbytes=0), ValueError, ["Pipe", "maxbytes", "1 or more", "0", "None for the default"]),
        (lambda: Pipe(5, -1), ValueError, ["Pipe", "maxbytes", "-1"]),
        (lambda: Pipe(maxbytes="1 MB"), TypeError, ["Pipe", "maxbytes", "int", "'1 MB'", "None for the default"]),
        (lambda: Pipe(maxbytes=True), TypeError, ["maxbytes", "True"]),
        (lambda: Pipe(maxbytes=1e6), TypeError, ["maxbytes", "1000000.0"]),
        (lambda: ReplicatingFork(0), ValueError, ["ReplicatingFork", "number of branches", "0"]),
        (lambda: ReplicatingFork(None), TypeError, ["number of branches", "None"]),
        (lambda: ReplicatingFork(False), TypeError, ["False"]),
        (lambda: BalancingFork(0), ValueError, ["BalancingFork", "number of branches", "left out"]),
        (lambda: BalancingFork(min=0), ValueError, ["min", "0"]),
        (lambda: BalancingFork(max=True), TypeError, ["max", "True"]),
        (lambda: BalancingFork(min=3, max=2), ValueError, ["min", "max", "3 > 2"]),
        (lambda: BalancingFork(2, max=3), ValueError, ["BalancingFork(2, max=3)", "fixed", "leave out"]),
        (lambda: Join(0), ValueError, ["Join", "0"]),
        (lambda: Join("zip"), TypeError, ["Join", "'zip'"]),
        (lambda: Join(how="sum"), ValueError, ["how", "'merge' or 'zip'", "'sum'"]),
        (lambda: Join(how=None), TypeError, ["how", "None"]),
        (lambda: Join(how=[]), TypeError, ["how", "[]"]),
        (lambda: Processor(load, workers=0), ValueError, ["workers", "1 or more", "'auto'", "0"]),
        (lambda: Processor(load, workers=True), TypeError, ["workers", "True"]),
        (lambda: Processor(load, workers="all"), ValueError, ["workers", "'all'"]),
        (lambda: Processor(load, batch=0), ValueError, ["batch", "0"]),
        (lambda: Processor(load, batch="3"), TypeError, ["batch", "'3'"]),
        (lambda: Processor(load, concurrency=2), ValueError, ["concurrency=2", "async def", "workers=2"]),
        (lambda: Processor(coroutine, concurrency=0), ValueError, ["concurrency", "1 or more", "0"]),
        (lambda: Processor(coroutine, batch=2, per_item=True), ValueError, ["per_item=True", "concurrency=n"]),
        (lambda: Processor(load, threads=0), ValueError, ["threads", "1 or more", "0"]),
        (lambda: Processor(load, threads=True), TypeError, ["threads", "True"]),
        (lambda: Processor(load, threads=5000), ValueError, ["threads", "4096 at most", "5000", "workers=n"]),
        (lambda: Processor(coroutine, threads=3), ValueError, ["threads=3", "not async", "concurrency=3"]),
        (lambda: Processor(load, threads=3, concurrency=3), ValueError, ["concurrency=3", "async def"]),
        (lambda: Processor(load, threads=3, batch=2, per_item=True), ValueError, ["threads=3", "per_item=True"]),
        (lambda: Processor(load, per_item=True), ValueError, ["Processor: per_item=True", "batch=32"]),
        (lambda: Processor(load, batch=2, per_item=1), TypeError, ["per_item", "True or False", "1"]),
        (lambda: Processor(load, batch=2, per_item=True, batch_timeout=-1), ValueError, ["batch_timeout", "0 or more"]),
        (lambda: Processor(load, batch=2, batch_timeout=1), ValueError, ["batch_timeout=1", "add per_item=True"]),
        (lambda: Processor(load, keep_none=1), TypeError, ["keep_none", "True or False", "1"]),
        (lambda: Processor(load, name=3), TypeError, ["name", "str", "3"]),
        (lambda: Processor(load, name=""), ValueError, ["name", "empty"]),
        (lambda: Processor(load, name="two\nlines"), ValueError, ["name", "printable", "'two\\nlines'"]),
        (lambda: Processor(load, batch=Unshowable()), TypeError, ["batch", "<Unshowable instance at"]),
        (lambda: Pipe(list(range(10**6))), TypeError, ["maxsize", "[0, 1, 2, 3, 4, 5, ...]"]),
    ]:
        message = raised(kind, call)
        assert all(word in message for word in words), message
    assert ReplicatingFork(1).n == BalancingFork(1).n == Join(1).n == Pipe(1).maxsize == Pipe(maxbytes=1).maxbytes == 1


def test_jobs_are_refused_by_name():
    for call, words in [
        (lambda: Processor(), ["no job", "Processor(load)"]),
        (lambda: Processor(3), ["callable of one argument", "3"]),
        (
            lambda: Processor(Unshowable()),
            ["callable of one argument", "<Unshowable instance at"],
        ),
        (lambda: Processor(nothing), ["nothing", "takes ()", "one item"]),
        (lambda: Processor(two), ["two", "(first, second)", "one item"]),
        (lambda: Processor(keyword_only), ["keyword_only", "(item, *, more)"]),
        (lambda: Processor(load, on_error=asynchronous_on_error), ["on_error", "async"]),
        (lambda: Processor(load, setup=coroutine_of_nothing), ["setup", "async"]),
        (lambda: Processor(Count), ["Count", "pass the instance", "Count()"]),
        (lambda: Processor(Passing()), ["Passing()", "as it is"]),
        (lambda: Processor(Pipe()), ["Pipe()", "as it is"]),
        (lambda: Idle(), ["Idle", "neither a process method nor a job", "def process(self, item)"]),
    ]:
        message = raised(TypeError, call)
        assert all(word in message for word in words), message
    for job in (
        load,
        add,
        len,
        int,
        str,
        print,
        Scale(),
        Scale().method,
        functools.partial(two, 1),
        lambda *items: 1,
    ):
        Processor(job)


def test_redact():
    for redact, words in [
        ("repr", ["redact", "callable of one argument, or None", "'repr'"]),
        (nothing, ["redact=nothing", "takes ()", "one item"]),
        (coroutine, ["coroutine", "async"]),
    ]:
        message = raised(TypeError, lambda redact=redact: Pipeline(redact=redact))
        assert all(word in message for word in words), message
    assert repr(Pipeline(redact=len)) == "Pipeline(redact=len)"
    assert repr(Pipeline(redact=functools.partial(add, 1))) == "Pipeline(redact=partial(add, 1))"
    assert repr(Pipeline(redact=None)) == "Pipeline()"


def test_async_jobs_are_known():
    for job in (coroutine, asynchronous_generator, functools.partial(coroutine), AsynchronousScale()):
        assert is_async(work_of(Processor(job))) and hands_of(Processor(job)) == 100
        assert hands_of(Processor(job, concurrency=7)) == 7
    assert not is_async(load) and hands_of(Processor(load)) == 1


def test_threaded_jobs_are_known():
    assert hands_of(Processor(load, threads=7)) == hands_of(Processor(load, threads=7, batch=3)) == 7
    assert repr(Processor(load, threads=7)) == "Processor(load, threads=7)"

    class Safe(Count):
        thread_safe = True
        threads = 5

    assert hands_of(Safe()) == 5

    class Unsafe(Processor):
        threads = 5

        def process(self, item):
            return item

    message = raised(ValueError, Unsafe)
    words = "Unsafe: threads=5", "declare `thread_safe = True` in the class", "workers=5"
    assert all(word in message for word in words), message
    # What is not the state of a Processor is nobody's business here.
    assert hands_of(Processor(Unsafe(threads=None).process, threads=3)) == 3


def test_a_subclass_is_looked_at_again():
    count = Count()
    count.workers = 0
    assert "workers" in raised(ValueError, check_processor, count)

    class Lonely(Processor):
        def __init__(self):
            pass

    assert "class Lonely" in raised(TypeError, check_processor, Lonely())

    class Wide(Processor):
        def process(self, first, second):
            return first, second

    assert "Wide.process takes (first, second)" in raised(TypeError, Wide)

    class Asynchronous(Processor):
        async def process(self, item):
            return item

    assert Asynchronous(concurrency=3).concurrency == 3

    class HalfAsynchronous(Processor):
        def process(self, item):
            return item

        async def teardown(self):
            pass

    assert "HalfAsynchronous.teardown is async" in raised(TypeError, HalfAsynchronous)
