"""What the thread engine does that no other one does: objects that go on, copies, threads that are left alone.

Law: what every engine does is in the suites that all of them share; here is what threads alone can do, or cannot.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import glob
import io
import itertools
import logging
import os
import signal
import threading
import time
import unittest
import warnings
import zlib

from conveyor import (
    AbandonedThreadWarning,
    BalancingFork,
    ImplicitPipeWarning,
    ItemTimeoutError,
    Join,
    Pipe,
    Pipeline,
    Processor,
    ProcessorError,
    ReplicatingFork,
)
from conveyor.__main__ import main
from conveyor.core import SLOW_CALL_SECONDS
from conveyor.core.tuning.autoscaling import PolicyState, Resize, StepLoad
from conveyor.engines.thread import items, worker_pool
from conveyor.engines.thread.gil import ContentionProbe, GilPolicy
from conveyor.engines.thread.items import Blob, copied, gathered, size_of, snapshot, taken
from conveyor.engines.thread.shell import Turn
from tests.helpers.late import mock
from tests.helpers.scripts import Script, ScriptTestCase
from tests.helpers.support import TestCase

# Whether a job waits, and whether it may go on.
BEGUN, GO_ON = threading.Event(), threading.Event()


class SlowlyLocked:
    """Cannot be copied, and takes long to say so."""

    def __init__(self, number):
        self.number = number

    def __reduce_ex__(self, protocol):
        time.sleep(2 * SLOW_CALL_SECONDS)
        raise TypeError("not this one")


class Locked:
    """Cannot be copied."""

    def __init__(self, number=0):
        self.number = number
        self.lock = threading.Lock()

    def method(self, item):
        with self.lock:
            self.number += item
            return self.number


def same(item):
    return item


def append_one(item):
    item.append(1)
    return item


def ident_of(item):
    return threading.get_ident()


def fail_after_append(item):
    item.append(1)
    raise ValueError(len(item))


def shown(item, error):
    return list(item), str(error)


class Counted(Processor):
    """Notes who sets it up and tears it down."""

    events: list = []
    restartable = True

    def setup(self):
        self.events.append(("setup", threading.get_ident()))

    def process(self, item):
        return item

    def teardown(self):
        self.events.append(("teardown", threading.get_ident()))


def make(*elements, **settings):
    pipeline = Pipeline(**{"engine": "thread", **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitPipeWarning)
        for element in elements:
            pipeline.add(*(element if isinstance(element, tuple) else (element,)))
    return pipeline


class ObjectsTest(TestCase):
    """The object itself goes on, and copies are made where the contract needs them."""

    def setUp(self):
        self.leave_nothing()

    def test_the_object_itself_goes_on(self):
        given = [Locked(number) for number in range(100)]
        results = make(Processor(same), Pipe(), Processor(same, workers=2)).run(given)
        assert all(result is each for result, each in zip(results, given, strict=True))
        # With a generator, the first ones are copied where they can be, until it is known that none comes again.
        given = [[number] for number in range(100)]
        results = make(Processor(same), Processor(same)).run(given[:])
        assert results == given and all(result is each for result, each in zip(results[20:], given[20:], strict=True))

    def test_branches_get_copies_and_one_of_them_the_object(self):
        class Kept(list):
            copies = 0

            def __reduce_ex__(self, protocol):
                type(self).copies += 1
                return super().__reduce_ex__(protocol)

        globals()["Kept"] = Kept
        Kept.__qualname__ = "Kept"
        self.addCleanup(globals().pop, "Kept")
        given = [Kept([number]) for number in range(40)]
        fork = [Processor(same), ReplicatingFork(3), (Processor(append_one), Processor(same), Processor(append_one))]
        results = make(*fork, Join(how="zip")).run(given)
        assert results == [([n, 1], [n], [n, 1]) for n in range(40)], results[:3]
        # The first ones are copied once more, as nobody knows yet whether the job gives one of them again.
        assert Kept.copies <= 40 * 2 + 17 * 4, Kept.copies
        assert len({id(each) for row in results for each in row}) == 120

    def test_forks_in_forks(self):
        for zipped in (False, True):
            inner = [ReplicatingFork(2), (Processor(append_one), Pipe()), Join()]
            how = {"how": "zip"} if zipped else {}
            elements = (Processor(lambda n: [n]), ReplicatingFork(2), (Pipe(), Pipe()), *inner, Join(**how))
            results = make(*elements, Processor(same)).run(range(50))
            assert results == make(*elements, Processor(same), engine="inline").run(range(50))
            assert len({id(each) for row in results for each in (row if zipped else [row])}) == 200

    def test_what_cannot_be_copied_is_said_where_it_has_to_be(self):
        pipeline = make(Processor(Locked), ReplicatingFork(2), (Processor(same), Processor(same)), Join())
        with self.assertRaisesRegex(ProcessorError, "cannot be copied .*ReplicatingFork.*Remedy"):
            pipeline.run(range(3))
        with self.assertRaisesRegex(ProcessorError, "cannot be copied"):
            make(Processor(Locked), Processor(same, retries=1, backoff=0)).run(range(3))
        pipeline = make(Processor(Locked), Processor(same, on_error="skip"))
        assert pipeline.run(range(3)) == [] and len(pipeline.failures) == 3

    def test_a_copy_that_fails_is_a_failure_of_its_call(self):
        # However long the copy takes, and however often it is tried.
        for policy in (
            {"retries": 2, "backoff": 0},
            {"retries": 1, "backoff": 0, "on_error": "skip"},
            {"on_error": "skip"},
        ):
            pipeline = make(Processor(SlowlyLocked), Processor(same, **policy))
            with self.subTest(**policy):
                if "on_error" in policy:
                    assert pipeline.run(range(3)) == []
                    errors = [failed.error for failed in pipeline.failures]
                    assert [error.number for error in errors] == [0, 1, 2]
                else:
                    with self.assertRaises(ProcessorError) as raised:
                        pipeline.run(range(3))
                    errors = [raised.exception]
                for error in errors:
                    assert error.phase == "process" and error.attempts == 1 + policy.get("retries", 0)
                    assert "SlowlyLocked cannot be copied" in str(error), error

    def test_a_job_with_retries_works_on_a_copy(self):
        given = [[] for _ in range(20)]
        pipeline = make(Processor(fail_after_append, retries=2, backoff=0, on_error=shown))
        assert pipeline.run(given) == [([], "1")] * 20
        assert given == [[] for _ in range(20)]
        assert [failed.attempts for failed in pipeline.failures] == [3] * 20
        assert all(isinstance(failed.error.__cause__, ValueError) for failed in pipeline.failures)

    def test_changes_to_an_input_are_seen_by_the_caller(self):
        given = [[] for _ in range(100)]
        make(Processor(append_one), Processor(append_one)).run(given)
        assert given == [[1, 1]] * 100

    def test_a_batch_is_a_list_of_the_objects(self):
        given = [Locked(number) for number in range(10)]
        batches = make(Processor(same, batch=4)).run(given)
        assert [[each.number for each in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert batches[0][0] is given[0]

    def test_a_job_that_cannot_be_copied_is_shared(self):
        shared = Locked()
        assert make(Processor(shared.method)).run([1, 2]) == [1, 3]
        assert shared.number == 3, "a plain callable that cannot be copied is itself called"

        class Holds(Processor):
            def __init__(self):
                self.lock = threading.Lock()

            def process(self, item):
                return item

        with self.assertRaisesRegex(ProcessorError, "cannot pickle"):
            make(Holds()).run([1])

    def test_blobs(self):
        blob = Blob([[1], [2]], 16, takes=2)
        pieces, refers = gathered(((blob, 0, 2),))
        first, second = [taken(each) for each in pieces], [taken(each) for each in pieces]
        assert refers and first == second == [[1], [2]] and first[0] is not second[0]
        assert blob.items == [None, None], "the last taker has the items themselves"
        lock = threading.Lock()
        assert snapshot(lock) is lock and snapshot(row := [1]) == row
        with self.assertRaisesRegex(TypeError, "lock"):
            copied([lock])
        offset = 1
        assert copied([lambda item: item + offset])[0](1) == 2, "what cannot be pickled may be copied"

    def test_sizes(self):
        assert size_of([bytes(1000)] * 10) > 10_000
        assert size_of({"key": bytes(5000)}) > 5000
        assert size_of(memoryview(bytes(4096))) >= 4096
        assert items.size_of_all([1] * 100, {int}) == 800

        class Broken:
            @property
            def nbytes(self):
                raise ValueError("no")

        assert size_of(Broken()) > 0

    def test_bounds_in_bytes(self):
        pulled = []

        def source():
            for number in range(100):
                pulled.append(number)
                yield bytes([number]) * 1_000_000

        with make(Processor(same), Pipe(maxbytes=4_000_000), Processor(len)).stream(source()) as results:
            next(results)
            # Two pipes, the results, and what each has in hand.
            assert len(pulled) < 60, len(pulled)


class ThreadsTest(TestCase):
    """Workers are threads, and all of them are gone when a run is over."""

    def setUp(self):
        self.leave_nothing()

    def test_each_worker_is_a_thread_that_sets_up_and_tears_down(self):
        Counted.events = []
        with make(Counted(workers=3), Processor(ident_of)) as pipeline:
            assert len({pipeline.run([1])[0] for _ in range(3)}) == 1
        setups = [ident for what, ident in Counted.events if what == "setup"]
        assert sorted(setups) == sorted(ident for what, ident in Counted.events if what == "teardown")
        assert len(setups) == 3 and threading.get_ident() not in setups

    def test_no_thread_is_left_on_return(self):
        before = threading.enumerate()
        for workers in ("auto", 2) * 10:
            # An automatic Processor has a thread that watches the time; it ends with the others.
            pipeline = make(Processor(same, workers=workers), Processor(same))
            assert pipeline.run(range(5)) == list(range(5))
            assert threading.enumerate() == before
            with make(Processor(ord, workers=workers)) as failing, self.assertRaises(ProcessorError):
                failing.run(["a", "", "b"])
            assert threading.enumerate() == before

    def test_max_items_makes_a_new_thread(self):
        Counted.events = []
        assert make(Counted(max_items=5)).run(range(20)) == list(range(20))
        assert [what for what, _ in Counted.events].count("setup") >= 4
        assert len({id(event) for event in Counted.events if event[0] == "setup"}) >= 4

    def test_context_variables_are_those_of_the_opener(self):
        variable = contextvars.ContextVar("variable", default=0)

        def look(item):
            before = variable.get()
            variable.set(item)
            return before

        variable.set(7)
        with make(Processor(look, workers=1)) as pipeline:
            variable.set(8)
            assert pipeline.run([1, 2]) == [7, 1]
        assert variable.get() == 8

    def test_log_records_are_handled_as_ever(self):
        with self.assertLogs("job", "INFO") as logs:
            make(Processor(logging.getLogger("job").info)).run(["one", "two"])
        assert [record.getMessage() for record in logs.records] == ["one", "two"]

    def test_the_debug_log_and_a_recording(self):
        path = os.path.join(self.new_folder(), "recorded")
        with mock.patch.dict(os.environ, {"CONVEYOR_RECORD": path}), self.assertLogs("conveyor", "DEBUG") as logs:
            assert make(Processor(abs), Pipe(), Processor(str, workers=2)).run(range(100)) == list(map(str, range(100)))
        told = [record.getMessage() for record in logs.records]
        assert any("run 1 is over: 100 items in, 100 results out" in text for text in told), told
        # Recordings of one process are numbered.
        (recorded,) = glob.glob(f"{path}*")
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert main(["replay", recorded]) == 0
        assert "the core decides as it did" in output.getvalue()

    def test_from_several_threads(self):
        outcomes = []

        def use(pipeline, start):
            outcomes.append(pipeline.run(range(start, start + 300)))

        # Made here: what `make` does about warnings holds for all threads.
        pipelines = [make(Processor(same), Processor(str)) for _ in range(6)]
        threads = [threading.Thread(target=use, args=(each, start)) for start, each in enumerate(pipelines)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcome[0] for outcome in outcomes) == list("012345")
        assert all(len(outcome) == 300 for outcome in outcomes)

    def test_a_stream_that_only_the_collector_finds(self):
        gc.disable()
        self.addCleanup(gc.enable)
        cycle = [make(Processor(same), Processor(same)).stream(itertools.count())]
        cycle.append(cycle)
        assert next(cycle[0]) == 0
        before = threading.active_count()
        del cycle
        assert threading.active_count() == before
        # The collector may run in any thread, a worker of another pipeline among them.
        assert make(Processor(lambda item: gc.collect() and item)).run([1]) == [1]

    def test_a_pipeline_of_processes_beside_it(self):
        with make(Processor(same), Processor(same)) as beside:
            assert beside.run([1]) == [1]
            # Its idle threads hold nothing that a forked process could want.
            assert Pipeline().add(Processor(same)).run(range(3)) == [0, 1, 2]
            assert Pipeline().add(Processor(same)).add(Pipe()).add(Processor(str)).run([1]) == ["1"]
            assert beside.run([2]) == [2]

    @unittest.skipUnless(hasattr(os, "fork"), "nothing forks here")
    def test_a_process_that_is_forked_has_no_part_in_it(self):
        warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning)
        with make(Processor(same)) as pipeline:
            assert pipeline.run([1]) == [1]
            child = os.fork()
            if not child:
                try:
                    pipeline.close()
                    os._exit(0 if make(Processor(same)).run([2]) == [2] else 1)
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert pipeline.run([3]) == [3]

    def test_balanced_and_unordered(self):
        pipeline = make(Processor(same), BalancingFork(2), Processor(same), Join(), ordered=False)
        assert sorted(pipeline.run(range(1000))) == list(range(1000))


class TimeoutsTest(TestCase):
    """What takes too long is given up, and its thread is left alone."""

    def setUp(self):
        GO_ON.clear()
        BEGUN.clear()
        self.leave_nothing()
        self.addCleanup(self.release)

    def release(self):
        GO_ON.set()
        for thread in worker_pool.abandoned_threads():
            thread.join(10)
        assert not worker_pool.abandoned_threads()

    def test_an_item_is_given_up_and_its_thread_named(self):
        pipeline = make(waiting())
        with self.assertWarnsRegex(AbandonedThreadWarning, "'conveyor worker 0 of wait_when_odd' .*abandoned"):
            assert pipeline.run(range(4)) == [0, 2]
        assert [failed.number for failed in pipeline.failures] == [1, 3]
        for failed in pipeline.failures:
            assert isinstance(failed.error, ItemTimeoutError)
            assert "its thread was abandoned, as a thread cannot be killed" in str(failed.error)
        assert len(worker_pool.abandoned_threads()) == 2

    def test_a_run_ends_where_nothing_is_given_up(self):
        begun = time.monotonic()
        with self.assertWarns(AbandonedThreadWarning), self.assertRaisesRegex(ItemTimeoutError, "abandoned"):
            make(Processor(wait_when_odd, timeout=0.05)).run(range(4))
        assert time.monotonic() - begun < 5

    def test_there_is_a_bound(self):
        with mock.patch.object(worker_pool, "MOST_ABANDONED", 2), warnings.catch_warnings():
            warnings.simplefilter("ignore", AbandonedThreadWarning)
            with self.assertRaisesRegex(ItemTimeoutError, "no more threads can be abandoned: .*worker 0 .*worker 1"):
                make(waiting()).run([1] * 10)

    def test_a_job_that_does_not_return_is_named_at_the_end(self):
        with make(Processor(wait_when_odd)) as pipeline:
            results = pipeline.stream(iter([0, 1]))
            assert next(results) == 0 and BEGUN.wait(10)
            begun = time.monotonic()
            with self.assertWarnsRegex(AbandonedThreadWarning, "'conveyor worker 0 of wait_when_odd' did not"):
                pipeline.close()
            assert time.monotonic() - begun < 3


def wait_when_odd(item):
    if item % 2:
        BEGUN.set()
        GO_ON.wait(30)
    return item


def waiting():
    return Processor(wait_when_odd, timeout=0.05, on_error="skip")


class EndTest(ScriptTestCase):
    """Scripts that end while a pipeline is open, or are interrupted."""

    def test_an_open_pipeline_at_the_end_of_the_interpreter(self):
        self.prints(
            "0",
            """
            from conveyor import Pipeline, Processor
            pipeline = Pipeline(engine="thread").add(Processor(abs)).open()
            stream = pipeline.stream(iter(int, 1))
            print(next(stream))
            import conveyor
            conveyor.kept = pipeline, stream
            """,
        )

    def test_ctrl_c(self):
        script = self.start_script(
            Script(
                """
                import threading, time
                from conveyor import Pipe, Pipeline, Processor

                def job(item):
                    print("begun", flush=True)
                    time.sleep(0.2)
                    return item

                pipeline = Pipeline(engine="thread").add(Processor(job)).add(Pipe()).add(Processor(job))
                try:
                    pipeline.run(iter(int, 1))
                except KeyboardInterrupt:
                    print(threading.active_count(), "left")
                """
            ),
            self.folder,
        )
        assert script.stdout is not None
        assert script.stdout.readline() == "begun\n"
        begun = time.monotonic()
        script.send_signal(signal.SIGINT)
        outcome = self.collect(script)
        assert outcome.code == 0 and outcome.output.endswith("1 left") and not outcome.errors, outcome.told()
        assert time.monotonic() - begun < 5


class GilTest(TestCase):
    """More threads that bring nothing go again."""

    def load(self, workers, calls, busy, most=None):
        return StepLoad("step", workers, 0, 1, most, 100, 100, False, calls, busy, 0.0, 0.0, 0.0, 0.05)

    def grown(self, rate_after, contended=True):
        """What becomes of a step that has grown from 1 worker to 2, and makes so many calls a second then."""
        asked = []

        def grow_once(state, loads, cores, other, now):
            asked.append(loads[0].most)
            return state, [Resize(0, 1, 2, "grow")] if len(asked) == 1 else []

        policy = GilPolicy(lambda: contended, grow_once)
        policy(PolicyState(), [self.load(1, 100, 1.0)], 4, 0.0, 1.0)
        _, resizes = policy(PolicyState(), [self.load(2, 100 + rate_after, 3.0)], 4, 0.0, 2.0)
        policy(PolicyState(), [self.load(1, 1000, 4.0)], 4, 0.0, 3.0)
        return resizes, asked

    def test_what_brings_nothing(self):
        (resize,), asked = self.grown(105)
        assert (resize.before, resize.after) == (2, 1) and "GIL" in resize.reason
        assert asked == [None, 1, 1], "it may not grow again"

    def test_what_brings_something(self):
        assert self.grown(190) == ([], [None, None, None])

    def test_where_nobody_waits_for_the_lock(self):
        assert self.grown(105, contended=False) == ([], [None, None, None])

    def test_the_cap_goes_when_the_lock_is_free_again(self):
        contended = [True]
        asked = []

        def grow_once(state, loads, cores, other, now):
            asked.append(loads[0].most)
            return state, [Resize(0, 1, 2, "grow")] if len(asked) == 1 else []

        policy = GilPolicy(lambda: contended[0], grow_once)
        policy(PolicyState(), [self.load(1, 100, 1.0)], 4, 0.0, 1.0)
        policy(PolicyState(), [self.load(2, 200, 3.0)], 4, 0.0, 2.0)
        contended[0] = False
        policy(PolicyState(), [self.load(1, 300, 4.0)], 4, 0.0, 3.0)
        policy(PolicyState(), [self.load(1, 400, 5.0)], 4, 0.0, 10.0)
        assert asked == [None, 1, 1, None]

    def test_a_step_that_grew_in_vain_is_resized_once(self):
        def double(state, loads, cores, other, now):
            return state, [Resize(0, loads[0].workers, 2 * loads[0].workers, "grow")]

        policy = GilPolicy(lambda: True, double)
        policy(PolicyState(), [self.load(1, 100, 1.0)], 4, 0.0, 1.0)
        _, resizes = policy(PolicyState(), [self.load(2, 200, 3.0)], 4, 0.0, 2.0)
        assert [(resize.step, resize.before, resize.after) for resize in resizes] == [(0, 2, 1)]

    def test_the_probe(self):
        probe = ContentionProbe(wanted=True)
        assert not probe.contended
        for _ in range(10):
            probe.observe(late=True)
        assert probe.contended
        for _ in range(10):
            probe.observe(late=False)
        assert not probe.contended

    def test_auto_uses_several_threads_for_what_lets_go_of_the_lock(self):
        data = [os.urandom(300_000)] * 60
        pipeline = make(Processor(zlib.compress, workers="auto"), cores=2)
        assert len(pipeline.run(data)) == 60
        assert pipeline.stats()["compress"].cpu > 0


class TurnTest(TestCase):
    """One thread at a time has the turn, and nobody waits for it."""

    def test_what_is_posted_amid_a_turn_comes_after_it(self):
        turn, seen = Turn(), []

        def first():
            turn.post(seen.append, "second")
            assert turn.is_mine
            seen.append("first")

        turn.post(first)
        assert seen == ["first", "second"] and not turn.is_mine

    def test_nothing_is_lost_between_threads(self):
        turn, counts = Turn(), {"sum": 0, "inside": 0}

        def add(number):
            counts["inside"] += 1
            assert counts["inside"] == 1
            counts["sum"] += number
            counts["inside"] -= 1

        threads = [
            threading.Thread(target=lambda: [turn.post(add, number) for number in range(2000)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts["sum"] == 4 * sum(range(2000))

    def test_one_that_raises_does_not_keep_the_turn(self):
        turn, seen = Turn(), []
        with self.assertRaises(ZeroDivisionError):
            turn.post(lambda: 1 // 0)
        turn.post(seen.append, 1)
        assert seen == [1]


if __name__ == "__main__":
    unittest.main()
