"""What statistics say of a running pipeline, with every engine, and that asking changes nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import count, islice, pairwise
from typing import Any
from unittest import mock

from conveyor import Pipe, Pipeline, Processor, Stats
from conveyor.core.machine import Machine
from conveyor.stats import HISTORY_SAMPLES, History, Sample, StepSample
from tests.core.test_recording import SEEDS, recorded
from tests.helpers.support import TestCase

STEP_KEYS = [
    "processor",
    "workers",
    "starting",
    "most_workers",
    "items_in",
    "items_out",
    "waiting",
    "bound",
    "units",
    "mean",
    "p50",
    "p99",
    "busy",
    "cpu",
    "blocked",
    "stalled",
    "failed",
    "retried",
    "timed_out",
    "workers_lost",
    "bytes_waiting",
    "busy_seconds",
    "handing_on",
    "slowest",
    "worker_stats",
]
KEYS = [
    "seconds",
    "cores",
    "steps",
    "decisions",
    "start_method",
    "start_reason",
    "unfused",
    "cpu_seconds",
    "source",
    "results",
    "advice",
    "bottleneck",
]
ENGINES: tuple[dict[str, Any], ...] = (
    {"engine": "inline"},
    {"engine": "thread"},
    {},
    {"channel": "queue"},
    {"start_method": "spawn"},
)
# What counts and measures is the same code whatever a message travels by, and a worker was started by.
CHEAP = ENGINES[:3]


def flaky(item):
    if item % 4 == 1:
        raise ValueError(item)
    return item


def sleepy(item):
    time.sleep(0.02 if item % 5 else 0.06)
    return item


def sleepy_none(item):
    time.sleep(0.02)


def sleepy_list(item):
    time.sleep(0.02)
    return [item]


def sleepy_raising(item):
    time.sleep(0.02)
    raise ValueError(item)


def sleepy_yielding(item):
    yield item
    time.sleep(0.02)
    yield item


def redacted(item):
    return f"<{item}>"


def interrupting():
    """Numbers without end, after some of which somebody presses Ctrl-C."""
    yield from range(100)
    os.kill(os.getpid(), signal.SIGINT)
    yield from count()


class Gate:
    """A job that waits at one item until a file is there."""

    def __init__(self, path: str, item: int) -> None:
        self.path = path
        self.item = item

    def __call__(self, item):
        while item == self.item and not os.path.exists(self.path):
            time.sleep(0.002)
        return item


def killed_once(path_and_item):
    path, item = path_and_item
    if item == 3 and not os.path.exists(path):
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return item


class AllEngines(TestCase):
    """What each engine tells."""

    def test_all_that_json_takes_under_the_same_keys(self) -> None:
        for settings in CHEAP:
            with self.subTest(**settings):
                pipeline = Pipeline(**settings).add(Processor(flaky, on_error="skip"))
                pipeline.run(range(20))
                stats = pipeline.stats()
                told = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
                self.assertEqual(list(told), KEYS)
                self.assertEqual(list(told["steps"][0]), STEP_KEYS)
                # Numbers of processors, shares and all else come as they are.
                self.assertEqual(told["steps"][0]["items_in"], 20)
                self.assertEqual(told["seconds"], stats.seconds)
                self.assertEqual(set(stats.to_dict(history=True)) - set(told), {"history"})

    def test_trouble_is_counted_and_shown(self) -> None:
        for settings in ENGINES:
            with self.subTest(**settings):
                pipeline = Pipeline(**settings).add(Processor(flaky, on_error="skip", retries=2, backoff=0))
                pipeline.add(Pipe()).add(Processor(abs))
                pipeline.run(range(20))
                stats = pipeline.stats()
                self.assertEqual((stats["flaky"].failed, stats["flaky"].retried), (5, 10))
                self.assertEqual((stats["abs"].failed, stats["abs"].retried), (0, 0))
                head, flaky_row, abs_row = str(stats).splitlines()[:3]
                self.assertEqual(head.split()[-2:], ["failed", "retried"])
                self.assertEqual((flaky_row.split()[-2:], abs_row.split()[-2:]), (["5", "10"], ["0", "0"]))

    def test_no_trouble_has_no_column(self) -> None:
        pipeline = Pipeline(engine="inline").add(Processor(abs))
        pipeline.run(range(20))
        self.assertEqual(str(pipeline.stats()).splitlines()[0].split()[-2:], ["busy", "CPU"])

    def test_a_slow_call_for_one_item_counts_whatever_it_gives(self) -> None:
        for settings in CHEAP:
            for job in (sleepy_none, sleepy_list, sleepy_raising):
                with self.subTest(settings=settings, job=job.__name__):
                    with Pipeline(**settings).add(Processor(job, on_error="skip")) as pipeline:
                        pipeline.run([7])
                        step = pipeline.stats()[job.__name__]
                    assert [call.item for call in step.slowest] == ["7"], step.slowest
                    assert step.busy >= 0.02, step.busy

    def test_the_slowest_calls_are_shown_through_redact(self) -> None:
        for settings in CHEAP:
            with self.subTest(**settings):
                pipeline = Pipeline(**settings, redact=redacted).add(Processor(sleepy)).add(Pipe()).add(Processor(abs))
                pipeline.run(range(12))
                slowest = pipeline.stats()["sleepy"].slowest
                self.assertEqual(len(slowest), 5)
                self.assertEqual({0, 5, 10} - {call.number for call in slowest}, set())
                self.assertEqual([call.item for call in slowest], [f"<{call.number}>" for call in slowest])
                self.assertEqual([call.seconds for call in slowest], sorted((c.seconds for c in slowest), reverse=True))
                self.assertGreaterEqual(slowest[0].seconds, 0.06)
                self.assertEqual(pipeline.stats()["abs"].slowest, ())

    def test_slow_generators_and_batches(self) -> None:
        for settings in ({"engine": "inline"}, {}):
            with self.subTest(**settings):
                pipeline = Pipeline(**settings).add(Processor(sleepy_yielding)).add(Pipe())
                pipeline.add(Processor(lambda batch: time.sleep(0.02), batch=4, name="batches"))
                pipeline.run(range(8))
                stats = pipeline.stats()
                self.assertGreaterEqual(stats["sleepy_yielding"].slowest[-1].seconds, 0.02)
                batches = {call.number: call.item for call in stats["batches"].slowest}
                self.assertEqual(batches, {0: "[0, 0, 1, 1]", 4: "[2, 2, 3, 3]", 8: "[4, 4, 5, 5]", 12: "[6, 6, 7, 7]"})

    def test_the_input_and_the_results(self) -> None:
        for settings in CHEAP:
            for items, total in ((range(7), 7), (iter([1, 2, 3]), 3), ((each for each in range(5)), None)):
                with self.subTest(**settings, total=total):
                    pipeline = Pipeline(**settings).add(Processor(abs))
                    with self.assertRaisesRegex(Exception, "there are no statistics yet"):
                        pipeline.stats()
                    results = pipeline.run(items)
                    stats = pipeline.stats()
                    assert stats.source is not None
                    self.assertEqual((stats.source.pulled, stats.source.total), (len(results), total))
                    self.assertEqual((stats.source.ended, stats.results), (True, len(results)))

    def test_they_are_those_of_the_last_run(self) -> None:
        for settings in ({"engine": "inline"}, {}):
            with self.subTest(**settings), Pipeline(**settings).add(Processor(abs)) as pipeline:
                pipeline.run(range(100))
                stream = pipeline.stream(iter(int, 1))
                next(stream)
                stats = pipeline.stats()
                assert stats.source is not None
                self.assertFalse(stats.source.ended)
                self.assertGreaterEqual(stats.source.pulled, 1)
                self.assertEqual((stats.source.total, stats["abs"].items_in >= 101), (None, True))
                stream.close()

    def test_a_length_that_would_run_code_of_the_program_is_not_asked_for(self) -> None:
        class Query:
            def __len__(self) -> int:
                raise AssertionError("a query")

            def __iter__(self) -> Any:
                return iter([1, 2])

        pipeline = Pipeline(engine="inline").add(Processor(abs))
        self.assertEqual(pipeline.run(Query()), [1, 2])
        source = pipeline.stats().source
        assert source is not None and source.total is None

    def test_a_run_that_is_given_up_leaves_its_statistics(self) -> None:
        def closed(pipeline: Any) -> None:
            with pipeline.stream(count()) as results:
                self.assertEqual(list(islice(results, 3)), [0, 1, 2])

        def dropped(pipeline: Any) -> None:
            for _ in pipeline.stream(count()):
                break

        def interrupted(pipeline: Any) -> None:
            with self.assertRaises(KeyboardInterrupt):
                pipeline.run(interrupting())

        for settings in CHEAP:
            for give_up in (closed, dropped, interrupted):
                with self.subTest(**settings, how=give_up.__name__):
                    pipeline = Pipeline(**settings).add(Processor(abs))
                    give_up(pipeline)
                    stats = pipeline.stats()
                    self.assertGreaterEqual(stats.source.pulled, 3 if give_up is closed else 1)
                    if give_up is not interrupted:
                        self.assertGreaterEqual(stats["abs"].items_in, 1)

    def test_samples_are_kept(self) -> None:
        for settings in CHEAP:
            with self.subTest(**settings):
                pipeline = Pipeline(**settings).add(Processor(sleepy)).add(Pipe()).add(Processor(abs))
                pipeline.run(range(20))
                history = pipeline.stats().history
                self.assertGreaterEqual(len(history), 2)
                for before, behind in pairwise(history):
                    self.assertGreaterEqual(behind.at - before.at, 0.2)
                    self.assertEqual(len(behind.steps), 2)
                    self.assertGreaterEqual(behind.steps[0].items_in, before.steps[0].items_in)
                    self.assertGreaterEqual(behind.steps[0].busy, before.steps[0].busy)
                self.assertGreater(history[-1].steps[0].items_in, 0)
                told = pipeline.stats().to_dict(history=True)["history"][-1]
                self.assertEqual(
                    list(told["steps"][0]), ["workers", "waiting", "items_in", "items_out", "failed", "busy"]
                )


class Workers(TestCase):
    """What is told of each worker while it is at something."""

    def stats_at(self, pipeline: Any, item: int) -> Stats:
        """Return statistics of a moment at which a worker of the step "gate" is at that item."""
        while True:
            stats: Stats = pipeline.stats()
            if any(worker.item == item for worker in stats["gate"].worker_stats):
                return stats

    def test_what_it_is_at(self) -> None:
        for settings in ({}, {"start_method": "spawn"}):
            with self.subTest(**settings):
                path = os.path.join(self.new_folder(), "go")
                pipeline = Pipeline(**settings).add(Processor(abs)).add(Pipe())
                with pipeline.add(Processor(Gate(path, 0), name="gate")):
                    stream = pipeline.stream(range(10))
                    stats = self.stats_at(pipeline, 0)
                    first, second = stats["abs"].worker_stats[0], stats["gate"].worker_stats[0]
                    self.assertEqual((first.number, second.number), (0, 1))
                    self.assertEqual((second.first, second.item), (0, 0))
                    assert second.seconds is not None and second.last is not None and second.last >= 0
                    self.assertTrue(0 <= second.seconds < 60 and 0 < second.busy <= 1)
                    assert first.pid is not None and second.pid is not None
                    os.kill(second.pid, 0)
                    if os.path.exists("/proc/self/statm"):
                        assert second.memory is not None and second.memory > 1_000_000
                    self.assertEqual(stats["gate"].handing_on, 0.0, "what it is at may all be the job's")
                    later = pipeline.stats()["gate"].worker_stats[0]
                    assert later.seconds is not None and later.seconds > second.seconds
                    with open(path, "w"):
                        pass
                    self.assertEqual(list(stream), list(range(10)))
                    idle = pipeline.stats()["gate"].worker_stats[0]
                    self.assertEqual((idle.first, idle.last, idle.item, idle.seconds), (None, None, None, None))

    def test_with_a_timeout_at_every_call_and_with_batches_by_the_first_item(self) -> None:
        path = os.path.join(self.new_folder(), "go")

        def gate(batch: list[int]) -> int:
            while 4 in batch and not os.path.exists(path):
                time.sleep(0.002)
            return sum(batch)

        with Pipeline().add(Processor(gate, batch=2, timeout=60)) as pipeline:
            stream = pipeline.stream(range(8))
            stats = self.stats_at(pipeline, 4)
            self.assertEqual(stats["gate"].worker_stats[0].item, 4)
            with open(path, "w"):
                pass
            self.assertEqual(list(stream), [1, 5, 9, 13])

    def test_deaths_and_timeouts(self) -> None:
        path = os.path.join(self.new_folder(), "died")
        pipeline = Pipeline().add(Processor(killed_once))
        self.assertEqual(pipeline.run([(path, item) for item in range(9)]), list(range(9)))
        step = pipeline.stats()["killed_once"]
        self.assertEqual((step.workers_lost, step.timed_out), (1, 0))
        self.assertEqual(str(pipeline.stats()).splitlines()[0].split()[-1], "lost")
        slow = Pipeline().add(Processor(Gate("/nowhere/at/all", 3), name="gate", timeout=0.2, on_error="skip"))
        self.assertEqual(slow.run(range(5)), [0, 1, 2, 4])
        step = slow.stats()["gate"]
        self.assertEqual((step.workers_lost, step.timed_out, step.failed), (0, 1, 1))
        self.assertIn("timed out", str(slow.stats()).splitlines()[0])

    def test_what_waits_has_bytes(self) -> None:
        path = os.path.join(self.new_folder(), "go")
        with Pipeline().add(Processor(GateOfBytes(path), name="gate")) as pipeline:
            stream = pipeline.stream([bytes([number]) * 1000 for number in range(50)])
            while (step := pipeline.stats()["gate"]).waiting < 40:
                pass
            self.assertTrue(0.5 < step.bytes_waiting / (step.waiting * 1000) < 2, step)
            with open(path, "w"):
                pass
            self.assertEqual(len(list(stream)), 50)
            self.assertEqual(pipeline.stats()["gate"].bytes_waiting, 0)


class GateOfBytes(Gate):
    """Waits at each item."""

    def __init__(self, path: str) -> None:
        super().__init__(path, 0)

    def __call__(self, item):
        super().__call__(0)
        return len(item)


class Showing(TestCase):
    """To show the arguments of slow calls costs next to nothing, whatever the user's code for that does."""

    def test_what_takes_long_to_show_is_shown_once(self) -> None:
        def reluctant(item: object) -> str:
            time.sleep(0.2)
            return f"item {item}"

        pipeline = Pipeline(redact=reluctant).add(Processor(sleepy))
        pipeline.run(range(10))
        slowest = pipeline.stats()["sleepy"].slowest
        self.assertEqual(len(slowest), 5)
        # The first call is among them or not; no other was shown.
        self.assertLessEqual({call.item for call in slowest}, {None, "item 0"})

    def test_a_redact_that_raises(self) -> None:
        def raising(item: object) -> str:
            raise KeyError(item)

        pipeline = Pipeline(redact=raising).add(Processor(sleepy))
        pipeline.run(range(2))
        items = {call.item for call in pipeline.stats()["sleepy"].slowest}
        self.assertEqual(items, {"<item not shown: redact raised KeyError>"})


class Histories(TestCase):
    """The samples that are kept."""

    def test_a_long_one_is_thinned_evenly(self) -> None:
        history = History()
        for index in range(20 * HISTORY_SAMPLES):
            history.add(Sample(index * 0.25, ()))
        self.assertTrue(HISTORY_SAMPLES / 2 <= len(history.samples) <= HISTORY_SAMPLES)
        gaps = {behind.at - before.at for before, behind in pairwise(history.samples)}
        self.assertEqual(gaps, {history.interval})
        self.assertEqual(history.samples[0].at, 0.0)

    def test_what_is_too_close_is_left_out(self) -> None:
        history = History()
        for at in (1.0, 1.1, 1.25, 1.3, 1.0, 1.5):
            history.add(Sample(at, ()))
        self.assertEqual([sample.at for sample in history.samples], [1.0, 1.25, 1.5])


class Asking(TestCase):
    """An observer of the core has no part in what it decides."""

    def test_the_core_decides_the_same_where_somebody_asks_after_each_event(self) -> None:
        handle = Machine.handle
        asked = []

        def asking(machine: Machine, event: Any, now: float) -> Any:
            wanted = handle(machine, event, now)
            asked.append(machine.stats(now, lambda number: (number, (0, 1), 0.5)))
            machine.sample(now)
            return wanted

        for seed in SEEDS[:6]:
            with self.subTest(seed=seed):
                before = recorded(seed)
                with mock.patch.object(Machine, "handle", asking):
                    self.assertEqual(recorded(seed), before)
        self.assertGreater(len(asked), 100)
        for stats in asked[::50]:
            json.dumps(stats.to_dict(), allow_nan=False)
            for step in stats.steps:
                self.assertTrue(0 <= step.handing_on <= 1 and all(0 <= each.busy <= 1 for each in step.worker_stats))

    def test_a_sample_says_what_the_statistics_say(self) -> None:
        plan = Pipeline(engine="inline").add(Processor(abs))._description.plan(cores=1, ordered=True)
        machine = Machine(plan, 5.0)
        self.assertEqual(machine.sample(6.0), Sample(1.0, (StepSample(1, 0, 0, 0, 0, 0.0),)))
