"""Fusing and jobs that remember: the same results with and without it, and a word about what stayed alone.

Law: how many copies there are of a job shows in its results only where it remembers; so the results tell whether a job
that does has one, and `Stats.unfused` is read for those that need not.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import pickle
import re
import unittest
from decimal import Decimal
from enum import Enum

from conveyor import BalancingFork, Join, Pipe, Pipeline, Processor, ReplicatingFork, Unfused
from conveyor.graph.builder import Description
from conveyor.graph.fusion import fused
from conveyor.stages.job_inspection import memory_of
from conveyor.stages.settings import PROCESSOR_SETTINGS, Setting, check_flag
from tests.helpers.late import mock
from tests.helpers.support import TestCase, nothing_left

WORDS = [f" w{number % 50} " for number in range(2000)]

seen = set()
counts = {}
numbers = itertools.count()
total = 0
TABLE = {"w1": "first"}
STOP = {"w2"}


class Holder:
    value = 0


holder = Holder()


def first_time():
    """Return a job that gives each word once."""
    mine = set()
    return lambda word: None if word in mine else (mine.add(word), word)[1]


def first_time_in_module(word):
    if word in seen:
        return None
    seen.add(word)
    return word


def first_time_in_helper(word):
    return first_time_in_module(word)


def nth_time(word):
    counts[word] = counts.get(word, 0) + 1
    return word, counts[word]


def numbered(word):
    return next(numbers), word


def totalled(word):
    global total
    total += 1
    return total


def totalled_on_object(word):
    holder.value += 1
    return holder.value


def totalled_on_itself(word):
    totalled_on_itself.total += 1
    return totalled_on_itself.total


totalled_on_itself.total = 0


def first_time_in_default(word, mine={}):  # noqa: B006
    return None if word in mine else mine.setdefault(word, word)


def in_default_by_name(word, *, mine=[]):  # noqa: B006
    mine.append(word)
    return len(mine)


class Once:
    def __init__(self):
        self.mine = set()

    def check(self, word):
        return None if word in self.mine else (self.mine.add(word), word)[1]

    __call__ = check


class Numbered:
    made = []

    def __init__(self, word):
        self.made.append(word)
        self.number = len(self.made)

    def __eq__(self, other):
        return self.number == other.number

    __hash__ = None


class Plain:
    def __init__(self, value):
        super().__init__()
        self.value = value

    @classmethod
    def make(cls, value):
        return cls(value)

    @staticmethod
    def same(value):
        return value


class Color(Enum):
    RED = 1

    def tint(self, value):
        return value


def looked_up(word):
    return TABLE.get(word, word)


def kept(words):
    out = []
    for word in words:
        if word not in STOP:
            out.append(word)
    return out


def older(record):
    record["age"] += 1
    return record


def with_constants(value, pattern=re.compile("a"), limits=(1, Decimal(2)), call=len):
    return pattern, limits, call


@functools.lru_cache
def cached(value):
    return math.sqrt(value)


@functools.lru_cache
def cached_count(value):
    return totalled(value)


def same(item):
    return item


REMEMBER = [
    first_time(),
    first_time_in_module,
    first_time_in_helper,
    nth_time,
    numbered,
    totalled,
    totalled_on_object,
    totalled_on_itself,
    first_time_in_default,
    in_default_by_name,
    Once(),
    Once().check,
    Numbered,
    functools.partial(first_time()),
    functools.partial(first_time_in_default),
    functools.partial(operator.setitem, {}, 1),
    functools.partial(next, numbers),
    cached_count,
    [].append,
    {}.setdefault,
    iter([]).__next__,
    numbers.__next__,
    lambda word: [each for each in word if each not in seen and not seen.add(each)],
]

PLAIN = [
    str.strip,
    len,
    int,
    dict,
    json.loads,
    json.dumps,
    math.sqrt,
    "-".join,
    re.compile("a").sub,
    (1).__add__,
    dict.fromkeys,
    operator.itemgetter(1),
    operator.attrgetter("a"),
    operator.methodcaller("strip"),
    functools.partial(same),
    functools.partial(pow, 2),
    functools.partial(with_constants, limits=(1, "a")),
    cached,
    same,
    looked_up,
    kept,
    older,
    with_constants,
    Plain,
    Plain.make,
    Plain.same,
    Color,
    Color.RED.tint,
    Decimal,
    lambda word: word,
]


def chain(*processors, **settings):
    """A pipeline of these, with a Pipe between each two."""
    pipeline = Pipeline(**settings).add(processors[0])
    for processor in processors[1:]:
        pipeline.add(Pipe()).add(processor)
    return pipeline


class FusedStateTest(TestCase):
    """Jobs that remember, in chains."""

    def test_the_results_are_those_without_it(self):
        # Each time in processes that begin with what the module has.  One of each kind runs, in a closure, in the module, in
        # a default, in an object and in its class: that the others are known for what they are `MemoryTest` says.
        for job in (REMEMBER[0], first_time_in_module, first_time_in_default, REMEMBER[10], Numbered):
            with self.subTest(job=job), nothing_left():
                expected = chain(Processor(str.strip), Processor(job), Processor(same)).run(WORDS)
                pipeline = chain(Processor(str.strip), Processor(job), Processor(same), fuse=True, cores=2)
                assert pipeline.run(WORDS) == expected
                steps = pipeline.stats().steps
                assert [step.workers for step in steps] == [1, 1, 1]

    def test_what_is_said_of_them(self):
        pipeline = chain(*map(Processor, (str.strip, str.upper, first_time(), str.lower, len)), fuse=True)
        pipeline.run(WORDS)
        stats = pipeline.stats()
        assert [step.processor for step in stats.steps] == ["strip+upper", "lambda", "lower+len"]
        (unfused,) = stats.unfused
        assert unfused.processor == "lambda"
        assert "the closure variable 'mine'" in unfused.reason and 'workers="auto"' in unfused.reason
        assert f"lambda: not fused: {unfused.reason}" in str(stats).splitlines()
        assert pickle.loads(pickle.dumps(unfused)) == Unfused("lambda", unfused.reason)

    def test_why_others_stay_alone(self):
        class Own(Processor):
            def process(self, item):
                return item

        for alone, reason in [
            (Own(name="alone"), "its class, Own, may keep state on `self`"),
            (Processor(same, name="alone", workers=1), "it has workers=1"),
            (Processor(same, name="alone", workers=2), "it has workers=2"),
            (Processor(len, name="alone", batch=2, timeout=9), "it has batch and timeout of its own"),
            (Processor(same, name="alone", retries=1), "it has retries of its own"),
            (Processor(same, name="alone", on_error="skip"), "it has on_error of its own"),
        ]:
            with self.subTest(reason=reason), nothing_left():
                pipeline = chain(Processor(same), Processor(same), alone, Processor(same), fuse=True)
                pipeline.run(range(9))
                assert pipeline.stats().unfused == (
                    Unfused("alone", reason),
                    Unfused("same-3", "no other that can be fused is next to it"),
                )

    def test_a_setting_that_fusing_does_not_know_keeps_a_processor_alone(self):
        # A chain would lose it without a word.
        added = Setting(False, check_flag, "Nothing.", is_argument=False)
        default = mock.patch.object(Processor, "added", added.default, create=True)
        with mock.patch.dict(PROCESSOR_SETTINGS, added=added), default:
            with_it, without, at_default = Processor(same, name="with it"), Processor(same), Processor(same)
            at_default.added, with_it.added = False, True
            description = Description()
            for element in (without, Pipe(), at_default, Pipe(), with_it):
                description.add((element,))
            plan = fused(description.plan(cores=2, ordered=True))
        assert [step.name for step in plan.steps] == ["same+same-2", "with it"]
        assert plan.unfused == (Unfused("with it", "it has added of its own"),)

    def test_nothing_is_said_where_nobody_asked(self):
        pipeline = chain(Processor(same), Processor(first_time()))
        pipeline.run([1])
        assert pipeline.stats().unfused == ()
        assert "fused" not in str(pipeline.stats())

    def test_auto_says_that_several_may_do_it(self):
        pipeline = chain(Processor(same), Processor(first_time(), workers="auto", name="auto"), fuse=True, cores=3)
        pipeline.run(range(9))
        assert ([step.processor for step in pipeline.stats().steps], pipeline.stats().unfused) == (["same+auto"], ())
        forked = Pipeline(fuse=True).add(Processor(same)).add(Pipe()).add(BalancingFork())
        forked.add(Processor(same)).add(Pipe()).add(Processor(first_time(), name="auto")).add(Pipe()).add(Join())
        forked.run(range(9))
        assert ([step.processor for step in forked.stats().steps], forked.stats().unfused) == (["same+same-2+auto"], ())

    def test_a_most_number_of_workers_is_a_number(self):
        pipeline = Pipeline(fuse=True, cores=4).add(Processor(same)).add(Pipe()).add(BalancingFork(max=2))
        pipeline.add(Processor(same, name="two")).add(Pipe()).add(Join())
        pipeline.run(range(9))
        assert [unfused.reason for unfused in pipeline.stats().unfused][1] == "it has a number of workers of its own"

    def test_on_branches(self):
        def make(**settings):
            pipeline = Pipeline(**settings).add(Processor(str.strip)).add(Pipe()).add(ReplicatingFork(2))
            pipeline.add(Processor(str.upper), Processor(first_time())).add(Pipe())
            return pipeline.add(Processor(str.title), Processor(Once())).add(Pipe()).add(Join())

        pipeline = make(fuse=True, cores=2)
        assert pipeline.run(WORDS) == make().run(WORDS)
        assert [unfused.processor for unfused in pipeline.stats().unfused] == ["strip", "lambda", "Once"]


class MemoryTest(TestCase):
    """What is told from the job alone."""

    def test_jobs_that_may_remember(self):
        for job in REMEMBER:
            with self.subTest(job=job):
                assert memory_of(job) is not None

    def test_jobs_that_cannot(self):
        for job in PLAIN:
            with self.subTest(job=job):
                assert memory_of(job) is None

    def test_nothing_of_the_users_runs(self):
        class Trap:
            def __getattribute__(self, name):
                raise AssertionError(name)

            def __call__(self, item):
                return item

        trap = Trap()
        assert memory_of(trap) == "the state of a Trap"
        assert memory_of(functools.partial(same, trap)) == "a partial with a Trap"
        assert memory_of(lambda item, trap=trap: item) == "a default that is a Trap"

    def test_functions_that_call_each_other(self):
        namespace = {}
        exec("def even(n): return not n or odd(n - 1)\ndef odd(n): return bool(n) and even(n - 1)", namespace)
        assert memory_of(namespace["even"]) is None

    def test_what_numpy_has(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("numpy is not installed")
        for job in (numpy.sqrt, numpy.sum, numpy.asarray, numpy.float32):
            with self.subTest(job=job):
                assert memory_of(job) is None


if __name__ == "__main__":
    unittest.main()
