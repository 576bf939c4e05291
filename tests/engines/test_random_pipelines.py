"""Random pipelines: on processes and threads each gives what it gives inline.

Law: the inline engine is the specification.  A pipeline and its input are made from a seed alone, so that a
failure can be had again: it says the seed, and

    python3 -m tests.engines.test_random_pipelines --first SEED --count 1 --start-method fork --channel pipe

runs it.  With `--count 1000` and no `--first` it runs many: the suite has a few of each kind.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import unittest

from tests.helpers.pipelines import listed, random_input, random_pipeline, threaded, waiting
from tests.helpers.support import ALL, TestCase, nothing_left, slow

# What stands beside jobs that get an item each.
SPECIAL = {"none": None, "lists": listed, "threads": threaded, "async": waiting}
# Some pipelines make thousands of results of a few items, and no more comes to light by that.
MOST_RESULTS = 300
SECONDS = 60.0


def both(seed, **settings):
    """The pipeline of a seed, inline and with these settings, and its input."""
    special = {name: settings.pop(name) for name in ("special", "plain") if name in settings}
    inline = random_pipeline(random.Random(seed).randrange, engine="inline", **special)
    chooser = random.Random(seed)
    other = random_pipeline(chooser.randrange, **special, **settings)
    return inline, other, random_input(chooser.randrange)


def gives_something(seed, **settings):
    """Whether there is a result, so that more than the end of a run can be seen."""
    inline, _, items = both(seed, engine="inline", **settings)
    return bool(inline.run(items))


def check(seed, **settings):
    """Raise AssertionError where the pipeline of a seed is not what it is inline."""
    inline, other, items = both(seed, **settings)
    told = f"seed {seed}, {settings}, {len(items)} items\n{other!r}"
    try:
        # Twice: a session must not remember a run, beyond the state of the jobs.
        with inline, other:
            while len(items) > 1 and len(inline.run(items)) > MOST_RESULTS:
                del items[len(items) // 2 :]
            for run in range(2):
                expected, results = inline.run(items), other.run(iter(items))
                assert results == expected, f"run {run}: {results[:50]} and not {expected[:50]}"
            # One more, left half way, and another behind it.
            with other.stream(itertools.cycle(items or [1])) as stream:
                del stream
    except Exception as error:
        raise AssertionError(f"{told}\n{type(error).__name__}: {error}") from error


def check_submitted(seed, **settings):
    """Raise AssertionError where an item that is submitted has not what it has alone."""
    inline, other, _ = both(seed, plain=True, **settings)
    with inline, other:
        known = [inline.run([number]) for number in range(10)]
        times = max(1, min(4, MOST_RESULTS // (1 + sum(map(len, known)))))
        futures = [other.submit(number) for number in [*range(10)] * times]
        results = [future.result(SECONDS) for future in futures]
        assert results == known * times, f"seed {seed}, {settings}\n{other!r}"


def check_unordered(seed, **settings):
    """Raise AssertionError where a pipeline without order loses or doubles something."""
    inline, other, items = both(seed, ordered=False, **settings)
    if "Sum" in repr(other) or "zip" in repr(other) or "batch" in repr(other):
        return  # what those give depends on the order of what they get
    expected, results = inline.run(items), other.run(items)
    assert sorted(map(repr, results)) == sorted(map(repr, expected)), f"seed {seed}, {settings}\n{other!r}"


class RandomPipelines:
    """So many seeds, for one start method and channel."""

    time_limit = 120.0
    count = 6
    settings = {"start_method": "fork", "channel": "pipe"}

    def test_as_inline(self):
        methods = {"fork": 0, "forkserver": 10_000, "spawn": 20_000, "thread": 40_000}
        first = methods[self.settings.get("start_method") or self.settings["engine"]]
        first += 5000 * (self.settings.get("channel") == "queue") + 30_000 * ("fuse" in self.settings)
        count = self.count if ALL else (self.count + 1) // 2
        for seed in range(first, first + count):
            with self.subTest(seed=seed), nothing_left():
                check(seed, **self.settings)


class ForkPipeTest(RandomPipelines, TestCase):
    """Forked workers, over socket pairs."""

    def test_without_order(self):
        for seed in range(8 if ALL else 4):
            with self.subTest(seed=seed):
                check_unordered(seed, **self.settings)


class ThreadTest(ForkPipeTest):
    """Threads of this process."""

    count = 10
    settings = {"engine": "thread"}


class FusedThreadTest(RandomPipelines, TestCase):
    """Threads, with adjacent Processors in one."""

    count = 5
    settings = {"engine": "thread", "fuse": True}


class FusedTest(RandomPipelines, TestCase):
    """With adjacent Processors in one process."""

    count = 3
    settings = {"start_method": "fork", "channel": "pipe", "fuse": True}


class ForkQueueTest(RandomPipelines, TestCase):
    """Forked workers, over queues."""

    count = 3
    settings = {"start_method": "fork", "channel": "queue"}


class ForkserverPipeTest(RandomPipelines, TestCase):
    """Workers forked by a fresh broker, over socket pairs."""

    count = 1
    settings = {"start_method": "forkserver", "channel": "pipe"}


class SpawnPipeTest(RandomPipelines, TestCase):
    """Workers that are fresh interpreters, over socket pairs."""

    count = 1
    settings = {"start_method": "spawn", "channel": "pipe"}


@slow
class SpawnQueueTest(RandomPipelines, TestCase):
    """Workers that are fresh interpreters, over queues."""

    count = 1
    settings = {"start_method": "spawn", "channel": "queue"}


class SpecialJobsTest(TestCase):
    """Jobs that get lists, or make several calls at once, among the others."""

    time_limit = 120.0

    def check_all(self, kind, first, count, check=check, **settings):
        """So many seeds of which something comes."""
        special = SPECIAL[kind]
        seeds = (seed for seed in itertools.count(first) if gives_something(seed, special=special))
        for seed in itertools.islice(seeds, count):
            with self.subTest(kind=kind, seed=seed), nothing_left():
                check(seed, special=special, **settings)

    def test_processes(self):
        for kind in ("lists", "threads", "async"):
            self.check_all(kind, 60_000, 2 if ALL else 1, start_method="fork")

    def test_threads(self):
        for kind in ("lists", "threads", "async"):
            self.check_all(kind, 61_000, 4 if ALL else 2, engine="thread")

    def test_items_that_are_submitted(self):
        for kind in ("threads", "async"):
            self.check_all(kind, 62_000, 2 if ALL else 1, check_submitted, start_method="fork")
            self.check_all(kind, 63_000, 2 if ALL else 1, check_submitted, engine="thread")


def main():
    """Run many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=None, help="the first seed; by default a random one")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--engine", default="process")
    parser.add_argument("--start-method", default="fork")
    parser.add_argument("--channel", default="pipe")
    parser.add_argument("--fuse", action="store_true")
    parser.add_argument("--special", choices=SPECIAL, default="none", help="jobs that stand among the others")
    arguments = parser.parse_args()
    first = random.randrange(10**9) if arguments.first is None else arguments.first
    settings = {"start_method": arguments.start_method, "channel": arguments.channel, "fuse": arguments.fuse}
    settings |= {"engine": arguments.engine, "special": SPECIAL[arguments.special]}
    begun, failed = time.monotonic(), 0
    for seed in range(first, first + arguments.count):
        try:
            check(seed, **settings)
            if arguments.special in ("threads", "async"):
                check_submitted(seed, **settings)
            if arguments.start_method == "fork":
                check_unordered(seed, **settings)
        except AssertionError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
    print(f"{arguments.count} pipelines from seed {first}, {failed} failed, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main())
    unittest.main()
