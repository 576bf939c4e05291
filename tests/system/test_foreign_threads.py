"""Threads beside a pipeline: which of them change how its processes start, what is said of that, and what stays the same.

Law: each test is a script of its own, because which threads there are is what is tested.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import unittest
import unittest.mock
import warnings

from conveyor import Pipeline, Processor, StartMethodWarning
from conveyor.engines.process.system.foreign_threads import ForeignThreads, pools_of
from tests.helpers.scripts import Script, ScriptTestCase
from tests.helpers.support import ALL

WITHOUT_CLOUDPICKLE = "import sys; sys.modules['cloudpickle'] = None\n"

# What each script begins with: `told` has the warnings of how processes start.
HEAD = """
import ctypes, sys, threading, time, warnings
from conveyor import *

told = []
def note(message, category, filename, lineno, file=None, line=None):
    assert category is StartMethodWarning, message
    told.append((lineno, str(message)))
warnings.showwarning = note
warnings.simplefilter("always", StartMethodWarning)

SCALE = 1
def job(item):
    return item * SCALE

def bystander(name="bystander"):
    threading.Thread(target=time.sleep, args=(1000,), name=name, daemon=True).start()

def native_thread():
    library, thread = ctypes.CDLL(None), ctypes.c_ulong()
    start = ctypes.cast(library.sleep, ctypes.c_void_p)
    assert library.pthread_create(ctypes.byref(thread), None, start, ctypes.c_void_p(1000)) == 0

def how(pipeline):
    return pipeline.stats().start_method
"""


@unittest.skipUnless("fork" in multiprocessing.get_all_start_methods(), "this system does not fork")
class ForeignThreadsTest(ScriptTestCase):
    """Scripts with threads beside a pipeline that names no start method."""

    def good(self, expected: str, *bodies: str, cloudpickle: bool = False) -> None:
        """Each of the scripts prints this."""
        head = ("" if cloudpickle else WITHOUT_CLOUDPICKLE) + HEAD
        self.all_print(expected, [Script(head + body) for body in bodies])

    def test_beside_a_thread_that_is_not_known_a_fresh_interpreter_forks_the_workers(self):
        body = """
if __name__ == "__main__":
    {threads}
    pipeline = Pipeline().add(Processor(job)).add(Pipe()).add(Processor(str))
    print(pipeline.run([1, 2]), how(pipeline))  # HERE
    print(pipeline.run([3]), Pipeline().add(Processor(job)).run([4]))
    [(line, text)] = told
    import linecache
    print("HERE" in linecache.getline(__file__, line), {words!r} in text, "forkserver" in text)
    print({words!r} in pipeline.stats().start_reason)
"""
        cases = [
            ("bystander()", "'bystander'"),
            ("bystander('worker-1'); bystander('worker-2')", "'worker-1', 'worker-2'"),
            ("native_thread()", "1 native thread of a compiled library"),
        ]
        expected = "['1', '2'] forkserver\n['3'] [4]\nTrue True True\nTrue"
        self.good(expected, *(body.format(threads=threads, words=words) for threads, words in cases))

    def test_where_the_job_cannot_go_there_it_is_a_fork_with_a_warning(self):
        body = """
def main():
    global SCALE
    SCALE = 10
    {threads}
    pipeline = Pipeline().add(Processor({job}))
    print(pipeline.run([1, 2]), how(pipeline))
    print(len(told), {words!r} in told[0][1], "cloudpickle" in told[0][1])
{guard}
"""
        guarded = 'if __name__ == "__main__":\n    main()'
        cases = [
            ("bystander()", "lambda item: item * SCALE", guarded, "'lambda'"),
            ("native_thread()", "lambda item: item * SCALE", guarded, "native thread"),
            # Without a guard, a fresh interpreter would run the whole script.
            ("bystander()", "job", "main()", "guard"),
        ]
        self.good(
            "[10, 20] fork\n1 True True",
            *(body.format(threads=threads, job=job, guard=guard, words=words) for threads, job, guard, words in cases),
        )

    def test_with_cloudpickle_the_script_travels_by_value(self):
        if importlib.util.find_spec("cloudpickle") is None:
            self.skipTest("cloudpickle is not installed")
        body = """
class Item:
    def __init__(self, number):
        self.number = number
class Sum(Processor):
    total = 0
    def process(self, item):
        assert type(item) is Item
        self.total += item.number * SCALE
        return Item(self.total)
def main():
    global SCALE
    SCALE = 10
    bystander()
    pipeline = Pipeline().add(Processor(lambda item: Item(item.number + SCALE))).add(Pipe()).add(Sum())
    results = pipeline.run([Item(1), Item(2)])
    print([(type(result) is Item, result.number) for result in results], how(pipeline), len(told))
{guard}
"""
        guards = ("main()", 'if __name__ == "__main__":\n    main()')
        expected = "[(True, 110), (True, 230)] forkserver 1"
        self.good(expected, *(body.format(guard=guard) for guard in guards), cloudpickle=True)

    def test_threads_that_are_known_change_nothing(self):
        body = """
from concurrent.futures import ThreadPoolExecutor
import itertools, multiprocessing

class Monitor(threading.Thread):
    def run(self):
        time.sleep(1000)
Monitor.__module__ = "tqdm._monitor"

def main():
    {threads}
    pipeline = Pipeline().add(Processor(lambda item: item + 1))
    print(pipeline.run([1, 2]), how(pipeline), told)

{main}
"""
        beside = """
import os
met, over = os.pipe(), os.pipe()
def meet(item):
    os.write(met[1], b"x")
    os.read(over[0], 1)
def meanwhile():
    os.read(met[0], 1)
    main()
    os.write(over[1], b"x")
thread = threading.Thread(target=meanwhile)
other = Pipeline(channel={!r}, start_method="fork").add(Processor(meet))
other.open()
thread.start()
other.run([1])
other.close()
thread.join()
"""
        cases = [
            ("Monitor(daemon=True).start()", "main()"),
            ("executor = ThreadPoolExecutor(2); executor.submit(len, 'ab').result()", "main()"),
            ("queue = multiprocessing.Queue(); queue.put(1); queue.get()", "main()"),
            # The source of another pipeline waits between two items.
            ("other = Pipeline().add(Processor(abs)).stream(itertools.count()); next(other)", "main()"),
            ("other = Pipeline().add(Processor(abs)).stream(map(abs, itertools.count())); next(other)", "main()"),
            # The main thread waits for the one that runs the pipeline.
            ("pass", "thread = threading.Thread(target=main); thread.start(); thread.join()"),
            # Or for the results of another pipeline.
            ("pass", beside.format("pipe")),
            ("pass", beside.format("queue")),
            ("pass", "ThreadPoolExecutor(1).submit(main).result()"),
            ("pass", "import asyncio; asyncio.run(asyncio.to_thread(main))"),
        ]
        self.good("[2, 3] fork []", *(body.format(threads=threads, main=main) for threads, main in cases))

    def test_a_thread_of_a_pool_counts_while_it_is_at_work(self):
        body = """
from concurrent.futures import ThreadPoolExecutor
if __name__ == "__main__":
    over = threading.Event()
    executor = ThreadPoolExecutor(1)
    executor.submit(over.wait)
    pipeline = Pipeline().add(Processor(job))
    print(pipeline.run([1, 2]), how(pipeline), len(told))
    over.set()
"""
        self.good("[1, 2] forkserver 1", body)

    def test_a_method_that_is_named_is_taken_without_a_word(self):
        body = """
warnings.simplefilter("ignore", DeprecationWarning)
if __name__ == "__main__":
    bystander()
    for method in ("fork", "forkserver", "spawn"):
        pipeline = Pipeline(start_method=method).add(Processor(job))
        print(pipeline.run([1]), how(pipeline), method in pipeline.stats().start_reason, told)
"""
        self.good("\n".join(f"[1] {method} True []" for method in ("fork", "forkserver", "spawn")), body)

    def test_a_broker_with_threads_spawns_its_workers(self):
        body = """
if __name__ == "__mp_main__":
    {threads}
def parent(item):
    import os
    return threading.active_count(), len(os.listdir("/proc/self/task"))
if __name__ == "__main__":
    pipeline = Pipeline(start_method="forkserver").add(Processor(job, workers=2)).add(Pipe()).add(Processor(job))
    print(pipeline.run([1, 2]), "spawned the workers" in pipeline.stats().start_reason)
"""
        self.good("[1, 2] True", *(body.format(threads=threads) for threads in ("bystander()", "native_thread()")))
        self.good("[1, 2] False", body.format(threads="pass"))

    def test_threads_that_a_library_has_for_arrays_are_harmless(self):
        if importlib.util.find_spec("numpy") is None:
            self.skipTest("numpy is not installed")
        self.good(
            "[1, 2] fork []",
            """
import numpy
numpy.ones((300, 300)) @ numpy.ones((300, 300))
pipeline = Pipeline().add(Processor(lambda item: int((numpy.ones((300, 300)) @ numpy.ones((300, 300)))[0, 0]) // 300 * item))
print(pipeline.run([1, 2]), how(pipeline), told)
""",
        )

    def test_libraries_with_pools_of_their_own(self):
        calls = {
            "polars": "library.DataFrame({'a': [1, 2, 2]}).group_by('a').agg(library.len()).height",
            "sklearn.ensemble": (
                "library.HistGradientBoostingRegressor(max_iter=2).fit([[n] for n in range(50)], range(50)).n_iter_"
            ),
        }
        bodies = []
        for name, call in calls.items():
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                continue
            body = f"""
warnings.simplefilter("ignore", DeprecationWarning)
import {name} as library
def call(item):
    return {call} + item
if __name__ == "__main__":
    call(0)
    for method in {(None, "forkserver", "spawn") if ALL else (None,)}:
        before = len(told)
        pipeline = Pipeline(start_method=method).add(Processor(call))
        results = pipeline.run([0, 1, 2])
        assert (results, how(pipeline), len(told) - before) == ([2, 3, 4], method or "forkserver", not method)
    print("good")
"""
            bodies.append(body)
            if not ALL:
                # Each of them takes seconds to import, in every process.
                break
        self.good("good", *bodies, cloudpickle=True)


class DoubtTest(ScriptTestCase):
    """A fork that follows a native pool, and after which nothing ends."""

    @unittest.skipUnless("fork" in multiprocessing.get_all_start_methods(), "this system does not fork")
    def test_the_job_the_pool_and_the_remedy_are_named(self):
        go_on = multiprocessing.get_context("fork").Event()
        shown: list[str] = []

        def show(message, category, *where):
            assert category is StartMethodWarning
            shown.append(str(message))
            go_on.set()

        def waits(item):
            assert go_on.wait(30)
            return item

        pools = ForeignThreads((), ("2 native threads 'pool'",))
        with (
            unittest.mock.patch("conveyor.engines.process.caller.start_method.foreign_threads", return_value=pools),
            unittest.mock.patch("conveyor.engines.process.broker.broker.DOUBT_SECONDS", 0.05),
            unittest.mock.patch.object(warnings, "showwarning", show),
        ):
            assert Pipeline(start_method="fork").add(Processor(waits)).run([1]) == [1]
        assert len(shown) == 1
        assert all(word in shown[0] for word in ("'waits'", "2 native threads 'pool'", 'start_method="spawn"'))


class NamesTest(unittest.TestCase):
    """How native threads are told apart."""

    def test_names_of_their_own_are_counted_by_name(self):
        names = ["polars-0", "polars-1", "ZMQbg/IO/0", "ZMQbg/Reaper", "jemalloc_bg_thd", "python3", "cuda-EvtHandlr"]
        assert pools_of(names) == (("2 native threads 'polars'", "1 native thread 'cuda-EvtHandlr'"), 1)

    def test_a_long_list_is_cut(self):
        assert str(ForeignThreads(tuple("abcdefg"), ("1 native thread 'x'",))) == (
            "'a', 'b', 'c', 'd', 'e', 2 more, 1 native thread 'x'"
        )


if __name__ == "__main__":
    unittest.main()
