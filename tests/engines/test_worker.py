"""What a job can know of its worker, by `conveyor.worker()`, in every engine.

Law: what is expected is written out, and the same for each engine.
"""

from __future__ import annotations

import contextvars
import multiprocessing
import os
import signal
import threading
import time
import unittest
from collections import Counter
from pathlib import Path

import conveyor
from conveyor import Pipe, Pipeline, Processor, ProcessorError, StateError
from tests.helpers.support import TestCase, nothing_left

ENGINES = (
    {"engine": "inline"},
    {"engine": "thread"},
    *({"start_method": method} for method in multiprocessing.get_all_start_methods()),
    {"start_method": "fork", "channel": "queue"},
)
# Where threads would make Python warn of a fork, or a start takes long, nothing more is seen.
CHEAP = ({"engine": "inline"}, {"engine": "thread"}, {"start_method": "fork"})


def who():
    me = conveyor.worker()
    return me.processor, me.index, me.attempt


def load():
    return [who(), conveyor.worker().state]


def fail_twice(item):
    me = conveyor.worker()
    if item == "bad" and me.attempt < 3:
        raise ValueError(me.attempt)
    return item, *who(), me.state, me.stopping


def refuse(item):
    raise ValueError(item)


def instead(item, error):
    return item, *who()


def generate(item):
    yield item, *who()
    if item == 1 and conveyor.worker().attempt == 1:
        raise ValueError(item)
    yield who()


class Whole(Processor):
    """Looks at itself in each of its methods."""

    def setup(self):
        self.seen = [who()]
        self.me = conveyor.worker()
        return "state"

    def process(self, item):
        return *item, self.me.processor, conveyor.worker().state

    def finish(self):
        yield who()
        yield self.seen

    def teardown(self):
        assert who() == ("Whole", 0, 1)
        # Nobody wants anything more of it.
        assert self.me.stopping


def own_thread(item):
    """Whether a thread of the job knows its worker, where it is started with the context."""
    found = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: found.append(context.run(who)))
    thread.start()
    thread.join()
    return found


def nested(item):
    """Names of workers within and without a pipeline that the job runs."""
    before = who()
    inner = Pipeline(engine=item).add(Processor(lambda _: who(), name=f"inner {item}")).run([1])
    return before, inner, who()


def nested_fork(item):
    return Pipeline(start_method="fork").add(Processor(lambda _: who(), name="inner")).run([1])


def until_stopped(item):
    while item == "wait" and not conveyor.worker().stopping:
        time.sleep(0.001)
    return item


def forked_child(item):
    """The status of a child of the job that asks about the worker."""
    child = os.fork()
    if not child:
        me = conveyor.worker()
        os._exit(7 if me.processor == "forked_child" and not me.stopping else 8)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hang_once(item):
    """The first attempts at some items take too long, or end the worker."""
    attempt = conveyor.worker().attempt
    if item == "hang" and attempt < 3:
        time.sleep(60)
    if item == "die" and attempt < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item, attempt


def attempt_of(item, error):
    return item, type(error).__name__, conveyor.worker().attempt


class KnowsItselfTest(TestCase):
    """What is true of a worker."""

    def test_in_each_method_of_a_job(self):
        for settings in ENGINES:
            with self.subTest(**settings), nothing_left():
                first = Processor(fail_twice, retries=2, backoff=0, setup=load, name="first")
                pipeline = Pipeline(**settings).add(first).add(Pipe()).add(Whole())
                state = [("first", 0, 1), None]
                self.assertEqual(
                    pipeline.run(["good", "bad", "last"]),
                    [
                        *(
                            (item, "first", 0, attempt, state, False, "Whole", "state")
                            for item, attempt in (("good", 1), ("bad", 3), ("last", 1))
                        ),
                        ("Whole", 0, 1),
                        [("Whole", 0, 1)],
                    ],
                )

    def test_in_on_error_and_in_generators(self):
        for settings in CHEAP:
            with self.subTest(**settings):
                pipeline = Pipeline(**settings).add(Processor(refuse, retries=1, backoff=0, on_error=instead))
                pipeline.add(Pipe()).add(Processor(lambda row: row[0])).add(Pipe())
                self.assertEqual(
                    pipeline.add(Processor(generate, retries=1, backoff=0)).run([1, 2]),
                    [
                        (1, "generate", 0, 1),
                        ("generate", 0, 2),
                        (2, "generate", 0, 1),
                        ("generate", 0, 1),
                    ],
                )
                pipeline = Pipeline(**settings).add(Processor(refuse, retries=1, backoff=0, on_error=instead))
                self.assertEqual(pipeline.run([1]), [(1, "refuse", 0, 2)])

    def test_attempts_that_ended_a_worker_count(self):
        for channel in ("pipe", "queue"):
            with self.subTest(channel=channel):
                job = Processor(hang_once, timeout=0.2, retries=2)
                rows = Pipeline(start_method="fork", channel=channel).add(job).run(["a", "hang", "b", "die", "c"])
                self.assertEqual(rows, [("a", 1), ("hang", 3), ("b", 1), ("die", 2), ("c", 1)])
        job = Processor(hang_once, timeout=0.2, retries=1, on_error=attempt_of)
        rows = Pipeline(start_method="fork").add(job).run(["hang", "b"])
        self.assertEqual(rows, [("hang", "ItemTimeoutError", 2), ("b", 1)])

    def test_each_worker_has_a_place(self):
        for settings in CHEAP:
            with self.subTest(**settings):
                pipeline = Pipeline(**settings).add(Processor(lambda _: time.sleep(0.002) or who()[1], workers=3))
                self.assertEqual(set(pipeline.run(range(60))), {0, 1, 2})

    def test_a_replacement_has_the_place_of_the_dead(self):
        folder = self.new_folder()

        def enter():
            # Each writes its name by an own file: the place, and which process has it.
            with open(os.path.join(folder, str(os.getpid())), "w") as file:
                file.write(str(conveyor.worker().index))

        def job(item):
            if item == 5 and conveyor.worker().index == 1:
                with open(os.path.join(folder, "died"), "x"):
                    pass
                os.kill(os.getpid(), signal.SIGKILL)
            # Both have something to do.
            time.sleep(0.001)
            return item

        def die_once(item):
            try:
                return job(item)
            except FileExistsError:
                return item

        with Pipeline(start_method="fork").add(Processor(die_once, workers=2, setup=enter)) as pipeline:
            while not os.path.exists(os.path.join(folder, "died")):
                self.assertEqual(pipeline.run([5] * 20), [5] * 20)
            self.assertEqual(pipeline.run([5] * 20), [5] * 20)
        names = [name for name in os.listdir(folder) if name != "died"]
        places = Counter(Path(folder, name).read_text() for name in names)
        self.assertEqual(places, {"0": 1, "1": 2})

    def test_all_plain_callables_may_follow_the_load(self):
        def nap(item):
            time.sleep(0.002)
            return conveyor.worker().index

        for settings in CHEAP:
            with self.subTest(**settings):
                pipeline = Pipeline(workers="auto", **settings).add(Processor(nap, max_workers=2))
                self.assertLessEqual(set(pipeline.run(range(300))), {0, 1})
                self.assertLessEqual(pipeline.stats()["nap"].most_workers, 2)
        with self.assertRaisesRegex(ValueError, "workers must be 'auto' or None, not 4: give a number to a Processor"):
            Pipeline(workers=4)
        self.assertEqual(repr(Pipeline(workers="auto")), "Pipeline(workers='auto')")

    def test_replacements_after_max_items_keep_to_the_places(self):
        processor = Processor(lambda _: time.sleep(0.001) or (who()[1], os.getpid()), workers=2, max_items=4)
        rows = Pipeline(start_method="fork").add(processor).run(range(32))
        self.assertEqual({index for index, _ in rows}, {0, 1})
        self.assertGreater(len({number for _, number in rows}), 4)

    def test_fused_jobs_have_their_own_names_and_states(self):
        def first(item):
            return item, who(), conveyor.worker().state

        def middle(row):
            yield *row, who(), conveyor.worker().state
            yield conveyor.worker().processor

        def last(row):
            return row, who(), conveyor.worker().state

        for settings in ({"engine": "thread"}, {"start_method": "fork"}):
            with self.subTest(**settings):
                pipeline = Pipeline(fuse=True, cores=1, **settings)
                pipeline.add(Processor(first, workers="auto", setup=load)).add(Pipe())
                pipeline.add(Processor(middle, workers="auto")).add(Pipe())
                pipeline.add(Processor(last, workers="auto", setup=load))
                states = [[("first", 0, 1), None], None, [("last", 0, 1), None]]
                of_first, of_last = ("first", 0, 1), ("last", 0, 1)
                self.assertEqual(
                    pipeline.run([1, 2]),
                    [
                        row
                        for item in (1, 2)
                        for row in (
                            ((item, of_first, states[0], ("middle", 0, 1), None), of_last, states[2]),
                            ("middle", of_last, states[2]),
                        )
                    ],
                )
                self.assertEqual([step.processor for step in pipeline.stats().steps], ["first+middle+last"])

    def test_a_fused_setup_that_raises_is_named(self):
        def broken():
            raise ValueError(conveyor.worker().processor)

        pipeline = Pipeline(fuse=True, start_method="fork").add(Processor(abs, workers="auto", setup=load)).add(Pipe())
        with self.assertRaisesRegex(ProcessorError, "of Processor 'str' raised ValueError: str"):
            pipeline.add(Processor(str, workers="auto", setup=broken)).run([1])

    def test_one_worker_with_a_state_is_not_fused(self):
        pipeline = Pipeline(fuse=True).add(Processor(abs, setup=load)).add(Pipe()).add(Processor(str))
        pipeline.run([1])
        (reason,) = [each.reason for each in pipeline.stats().unfused if each.processor == "abs"]
        self.assertIn("what its `setup` returns", reason)

    def test_a_setup_that_raises(self):
        for settings in CHEAP:
            with self.subTest(**settings), self.assertRaises(ProcessorError) as caught:
                Pipeline(**settings).add(Processor(abs, setup=lambda: 1 / 0)).open()
            self.assertEqual((caught.exception.phase, caught.exception.kind), ("setup", "ZeroDivisionError"))

    def test_threads_and_pipelines_of_a_job(self):
        for settings in CHEAP:
            with self.subTest(**settings):
                pipeline = Pipeline(**settings).add(Processor(own_thread))
                self.assertEqual(pipeline.run([1]), [[("own_thread", 0, 1)]])
                outer = ("nested", 0, 1)
                self.assertEqual(
                    Pipeline(**settings).add(Processor(nested)).run(["inline", "thread"]),
                    [(outer, [(f"inner {engine}", 0, 1)], outer) for engine in ("inline", "thread")],
                )
        self.assertEqual(
            Pipeline(engine="inline").add(Processor(nested_fork)).run([1]), [[("inner", 0, 1)]], "not the outer one"
        )

    def test_a_child_that_the_job_forks(self):
        self.assertEqual(Pipeline(start_method="fork").add(Processor(forked_child)).run([1]), [7])

    def test_it_sees_that_it_is_to_stop(self):
        for settings in CHEAP[1:]:
            with self.subTest(**settings), Pipeline(**settings).add(Processor(until_stopped)) as pipeline:
                stream = pipeline.stream(["go", "wait"])
                self.assertEqual(next(stream), "go")
                stream.close()
                self.assertEqual(pipeline.run(["go"]), ["go"])

    def test_it_sees_inline_that_another_thread_closes_the_pipeline(self):
        begun = threading.Event()

        def job(item):
            begun.set()
            return until_stopped(item)

        pipeline = Pipeline(engine="inline").add(Processor(job)).open()
        closing = threading.Thread(target=lambda: begun.wait() and pipeline.close())
        closing.start()
        with self.assertRaises(StateError):
            pipeline.run(["wait"])
        closing.join()


class OutsideTest(TestCase):
    """Where there is no worker, and what cannot be a setup."""

    def test_outside_of_a_job(self):
        with self.assertRaisesRegex(StateError, "outside of a job"):
            conveyor.worker()
        Pipeline(engine="inline").add(Processor(abs)).run([1])
        with self.assertRaisesRegex(StateError, "outside of a job"):
            conveyor.worker()

    def test_in_the_source_of_a_run(self):
        def source():
            yield conveyor.worker()

        for settings in CHEAP:
            with self.subTest(**settings), self.assertRaises(conveyor.SourceError) as caught:
                Pipeline(**settings).add(Processor(abs)).run(source())
            self.assertIn("StateError", str(caught.exception))

    def test_what_a_setup_can_be(self):
        self.assertEqual(repr(Processor(abs, setup=load, name="a")), "Processor(abs, name='a', setup=load)")
        self.assertEqual(repr(Processor(abs, setup=None)), "Processor(abs)")
        for wrong, words in ((3, "callable without arguments"), (abs, "called with no argument")):
            with self.assertRaisesRegex(TypeError, words):
                Processor(abs, setup=wrong)
        with self.assertRaisesRegex(TypeError, "a subclass has a method `setup`"):
            Whole(setup=load)

    def test_it_is_shown(self):
        (shown,) = Pipeline(engine="inline").add(Processor(lambda _: repr(conveyor.worker()), name="job")).run([1])
        self.assertEqual(shown, "WorkerContext(processor='job', index=0, attempt=1)")


if __name__ == "__main__":
    unittest.main()
