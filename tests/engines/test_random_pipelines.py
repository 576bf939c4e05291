"""Random pipelines: on processes and threads each gives what it gives inline.

Law: the inline engine is the specification.  A pipeline and its input are made from a seed alone, so that a
failure can be had again: it says the seed, and

    python3 -m tests.engines.test_random_pipelines --first SEED --count 1 --start-method fork --channel pipe

runs it.  With `--count 1000` and no `--first` it runs many.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import unittest

from tests.helpers.pipelines import random_input, random_pipeline
from tests.helpers.support import ALL, TestCase, nothing_left, slow


def both(seed, **settings):
    """The pipeline of a seed, inline and with these settings, and its input."""
    inline = random_pipeline(random.Random(seed).randrange, engine="inline")
    chooser = random.Random(seed)
    other = random_pipeline(chooser.randrange, **settings)
    return inline, other, random_input(chooser.randrange)


def check(seed, **settings):
    """Raise AssertionError where the pipeline of a seed is not what it is inline."""
    inline, other, items = both(seed, **settings)
    told = f"seed {seed}, {settings}, {len(items)} items\n{other!r}"
    try:
        # Twice: a session must not remember a run, beyond the state of the jobs.
        with inline, other:
            for run in range(2):
                expected, results = inline.run(items), other.run(iter(items))
                assert results == expected, f"run {run}: {results[:50]} and not {expected[:50]}"
            # One more, left half way, and another behind it.
            with other.stream(itertools.cycle(items or [1])) as stream:
                del stream
    except Exception as error:
        raise AssertionError(f"{told}\n{type(error).__name__}: {error}") from error


def check_unordered(seed, **settings):
    """Raise AssertionError where a pipeline without order loses or doubles something."""
    inline, other, items = both(seed, ordered=False, **settings)
    if "Sum" in repr(other) or "zip" in repr(other) or "batch" in repr(other):
        return  # what those give depends on the order of what they get
    expected, results = inline.run(items), other.run(items)
    assert sorted(map(repr, results)) == sorted(map(repr, expected)), f"seed {seed}, {settings}\n{other!r}"


class RandomPipelines:
    """So many seeds, for one start method and channel."""

    count = 12
    settings = {"start_method": "fork", "channel": "pipe"}

    def test_as_inline(self):
        methods = {"fork": 0, "forkserver": 10_000, "spawn": 20_000, "thread": 40_000}
        first = methods[self.settings.get("start_method") or self.settings["engine"]]
        first += 5000 * (self.settings.get("channel") == "queue") + 30_000 * ("fuse" in self.settings)
        count = self.count if ALL else max(2, self.count // 4)
        for seed in range(first, first + count):
            with self.subTest(seed=seed), nothing_left():
                check(seed, **self.settings)


class ForkPipeTest(RandomPipelines, TestCase):
    """Forked workers, over socket pairs."""

    def test_without_order(self):
        for seed in range(25 if ALL else 4):
            with self.subTest(seed=seed):
                check_unordered(seed, **self.settings)


class ThreadTest(ForkPipeTest):
    """Threads of this process."""

    count = 40
    settings = {"engine": "thread"}


class FusedThreadTest(RandomPipelines, TestCase):
    """Threads, with adjacent Processors in one."""

    count = 10
    settings = {"engine": "thread", "fuse": True}


class FusedTest(RandomPipelines, TestCase):
    """With adjacent Processors in one process."""

    count = 8
    settings = {"start_method": "fork", "channel": "pipe", "fuse": True}


class ForkQueueTest(RandomPipelines, TestCase):
    """Forked workers, over queues."""

    count = 6
    settings = {"start_method": "fork", "channel": "queue"}


class ForkserverPipeTest(RandomPipelines, TestCase):
    """Workers forked by a fresh broker, over socket pairs."""

    count = 4
    settings = {"start_method": "forkserver", "channel": "pipe"}


@slow
class ForkserverQueueTest(RandomPipelines, TestCase):
    """Workers forked by a fresh broker, over queues."""

    count = 2
    settings = {"start_method": "forkserver", "channel": "queue"}


class SpawnPipeTest(RandomPipelines, TestCase):
    """Workers that are fresh interpreters, over socket pairs."""

    count = 4
    settings = {"start_method": "spawn", "channel": "pipe"}


@slow
class SpawnQueueTest(RandomPipelines, TestCase):
    """Workers that are fresh interpreters, over queues."""

    count = 2
    settings = {"start_method": "spawn", "channel": "queue"}


def main():
    """Run many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=None, help="the first seed; by default a random one")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--engine", default="process")
    parser.add_argument("--start-method", default="fork")
    parser.add_argument("--channel", default="pipe")
    parser.add_argument("--fuse", action="store_true")
    arguments = parser.parse_args()
    first = random.randrange(10**9) if arguments.first is None else arguments.first
    settings = {"start_method": arguments.start_method, "channel": arguments.channel, "fuse": arguments.fuse}
    settings["engine"] = arguments.engine
    begun, failed = time.monotonic(), 0
    for seed in range(first, first + arguments.count):
        try:
            check(seed, **settings)
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
