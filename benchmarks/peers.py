"""How Conveyor and every peer does the workloads of `compare.py`: one function for each way to do it.

The law of this file: a function here takes the work and settings and returns what is to be timed; it imports its
library first, so that no import is timed as work. The library's start, its work and its end are inside of the time. It
does nothing that the library's own users could not do, and `chunk=n` is items in lists of n, made by hand.
"""

from __future__ import annotations

import os
import time

from workloads import OnChunk, chunks_of

TYPE_CHECKING = False  # as in typing, whose import would be seen in the start-up times
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Any

    from workloads import Work

    Collect = Callable[[Iterable[Any]], Any]
    Run = Callable[[Collect], Any]
    Trips = Callable[[], list[float]]
    Chain = Generator[Any, None, None]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context_for(start_method: str | None) -> Any:
    """Where nothing else is asked for, fork, as Conveyor does, because it is the cheapest start on each Python."""
    import multiprocessing

    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context(start_method or ("fork" if "fork" in methods else None))


def in_chunks(work: Work, chunk: int, job: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], Iterable[Any]]:
    """The job and the items; both for lists of so many where `chunk` is not 0."""
    return (OnChunk(job), chunks_of(work.items, chunk)) if chunk else (job, work.items)


def taken_apart(work: Work, chunk: int, results: Iterable[Any]) -> Iterable[Any]:
    """The single results: of lists where `chunk` is not 0, and of tuples where an item has more than one."""
    from itertools import chain

    if chunk:
        results = chain.from_iterable(results)
    if work.flat:
        results = chain.from_iterable(results)
    return results


def timed_trips(count: int, call: Callable[[int], int]) -> list[float]:
    """Seconds of so many calls, one after the other, that send one item through three steps."""
    times = []
    for item in range(count):
        begun = time.perf_counter()
        result = call(item)
        times.append(time.perf_counter() - begun)
        if result != item + 3:
            raise ValueError(f"{item} became {result}")
    return times


def fed(items: Iterable[Any], put: Callable[[Any], object], *, ends: int = 1) -> Any:
    """Start a thread that puts all items, and then None so many times."""
    import threading

    def feed() -> None:
        for item in items:
            put(item)
        for _ in range(ends):
            put(None)

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    return thread


def until_none(get: Callable[[], Any]) -> Iterator[Any]:
    """What is got until None comes; `iter(get, None)` would compare arrays with None, value by value."""
    while (item := get()) is not None:
        yield item


# ------------------------------------------------------------------------------------------------------------- Conveyor


def conveyor_pipeline(jobs: Iterable[Callable[[Any], Any]], settings: dict[str, Any]) -> Any:
    """A chain of Processors."""
    from conveyor import Pipe, Pipeline, Processor

    pipeline: Any = Pipeline(**settings)
    for number, job in enumerate(jobs):
        if number:
            pipeline = pipeline.add(Pipe())
        pipeline = pipeline.add(Processor(job))
    return pipeline


def conveyor(work: Work, **settings: Any) -> Run:
    """Conveyor's `run`, with its defaults but for the settings of the Pipeline."""
    pipeline = conveyor_pipeline(work.jobs, settings)
    return lambda collect: collect(pipeline.run(work.items))


def conveyor_stream(work: Work, **settings: Any) -> Run:
    """Conveyor's `stream`, for results that are not to be kept."""
    # Threads get the caller's own objects.
    first = work.first_on_copy if settings.get("engine") == "thread" else None
    pipeline = conveyor_pipeline([first or work.jobs[0], *work.jobs[1:]], settings)
    return lambda collect: collect(pipeline.stream(work.items))


def conveyor_fan_out(work: Work) -> Run:
    """A Processor and a fork behind it."""
    from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork

    first, left, right = work.jobs
    pipeline: Any = Pipeline().add(Processor(first)).add(Pipe()).add(ReplicatingFork(2))
    pipeline = pipeline.add(Processor(left), Processor(right)).add(Pipe()).add(Join(2))
    return lambda collect: collect(pipeline.run(work.items))


def conveyor_trips(work: Work, **settings: Any) -> Trips:
    """One item at a time through one stream: from where the source gives it to where its result is had."""
    import threading

    pipeline = conveyor_pipeline(work.jobs, settings)

    def trips() -> list[float]:
        taken = threading.Event()
        begun = 0.0
        times = []

        def one_at_a_time() -> Iterator[int]:
            nonlocal begun
            for item in range(work.count):
                taken.wait()
                taken.clear()
                begun = time.perf_counter()
                yield item

        with pipeline:
            taken.set()
            for number, result in enumerate(pipeline.stream(one_at_a_time())):
                times.append(time.perf_counter() - begun)
                if result != number + 3:
                    raise ValueError(f"{number} became {result}")
                taken.set()
        return times

    return trips


def conveyor_runs(work: Work) -> Trips:
    """One `run` for each item, of a pipeline that is open."""
    pipeline = conveyor_pipeline(work.jobs, {})

    def trips() -> list[float]:
        with pipeline:
            return timed_trips(work.count, lambda item: pipeline.run([item])[0])

    return trips


def conveyor_chain(work: Work, processors: int) -> Chain:
    """Open a chain, have one item through it, then all of them, again and again."""
    with conveyor_pipeline([work.jobs[0]] * processors, {}) as pipeline:
        pipeline.run([0])
        yield None
        while True:
            yield pipeline.run(work.items)


# ------------------------------------------------------------------------------------------------- the standard library


def plain_loop(work: Work) -> Run:
    """No library and no other process: what there is to gain at all."""
    return lambda collect: collect(taken_apart(work, 0, map(work.fused_on_copy, work.items)))


def pool(work: Work, chunksize: int = 1, start_method: str | None = None) -> Run:
    """`multiprocessing.Pool.imap` over one function that does all steps."""
    context = context_for(start_method)

    def run(collect: Collect) -> Any:
        with context.Pool(CORES) as workers:
            return collect(taken_apart(work, 0, workers.imap(work.fused, work.items, chunksize)))

    return run


def pool_trips(work: Work) -> Trips:
    """`multiprocessing.Pool.apply`, which has one hop where a chain has three."""
    context = context_for(None)

    def trips() -> list[float]:
        with context.Pool(CORES) as workers:
            return timed_trips(work.count, lambda item: workers.apply(work.fused, (item,)))

    return trips


def executor(work: Work, chunksize: int = 1, start_method: str | None = None) -> Run:
    """`concurrent.futures.ProcessPoolExecutor.map` over one function that does all steps."""
    from concurrent.futures import ProcessPoolExecutor

    context = context_for(start_method)

    def run(collect: Collect) -> Any:
        with ProcessPoolExecutor(CORES, mp_context=context) as workers:
            return collect(taken_apart(work, 0, workers.map(work.fused, work.items, chunksize=chunksize)))

    return run


def executor_trips(work: Work) -> Trips:
    """`ProcessPoolExecutor.submit`, which has one hop where a chain has three."""
    from concurrent.futures import ProcessPoolExecutor

    context = context_for(None)

    def trips() -> list[float]:
        with ProcessPoolExecutor(CORES, mp_context=context) as workers:
            return timed_trips(work.count, lambda item: workers.submit(work.fused, item).result())

    return trips


def queue_step(job: Callable[[Any], Any], inward: Any, *outward: Any) -> None:
    """What a process of a hand-written chain does, until None comes."""
    while (item := inward.get()) is not None:
        result = job(item)
        for queue in outward:
            queue.put(result)
    for queue in outward:
        queue.put(None)


def joined(processes: Iterable[Any]) -> None:
    """Wait for the end of all."""
    for process in processes:
        process.join()


def queues(work: Work, chunk: int = 0, window: int = 0, start_method: str | None = None) -> Run:
    """A process for each step and a `multiprocessing.Queue` between any two, of `window` entries where it is not 0."""
    context = context_for(start_method)

    def run(collect: Collect) -> Any:
        links = [context.Queue(window) for _ in range(len(work.jobs) + 1)]
        processes = []
        for number, job in enumerate(work.jobs):
            step = OnChunk(job) if chunk else job
            processes.append(context.Process(target=queue_step, args=(step, links[number], links[number + 1])))
            processes[-1].start()
        thread = fed(in_chunks(work, chunk, work.fused)[1], links[0].put)
        collected = collect(taken_apart(work, chunk, until_none(links[-1].get)))
        thread.join()
        joined(processes)
        return collected

    return run


def queues_fan_out(work: Work, chunk: int = 0, window: int = 0) -> Run:
    """One process hands each result to two others, and these put theirs into one queue."""
    context = context_for(None)

    def run(collect: Collect) -> Any:
        first, left, right, last = (context.Queue(window) for _ in range(4))
        jobs = [OnChunk(job) if chunk else job for job in work.jobs]
        ways = ((jobs[0], first, left, right), (jobs[1], left, last), (jobs[2], right, last))
        processes = [context.Process(target=queue_step, args=way) for way in ways]
        for process in processes:
            process.start()
        thread = fed(in_chunks(work, chunk, work.fused)[1], first.put)

        def results() -> Iterator[Any]:
            for _ in range(2):
                yield from until_none(last.get)

        work_of_one = results()
        if chunk:
            from itertools import chain

            collected = collect(chain.from_iterable(work_of_one))
        else:
            collected = collect(work_of_one)
        thread.join()
        joined(processes)
        return collected

    return run


def queues_trips(work: Work) -> Trips:
    """One item at a time through a chain of `multiprocessing.Queue`."""
    context = context_for(None)

    def trips() -> list[float]:
        links = [context.Queue() for _ in range(len(work.jobs) + 1)]
        processes = []
        for number, job in enumerate(work.jobs):
            processes.append(context.Process(target=queue_step, args=(job, links[number], links[number + 1])))
            processes[-1].start()

        def call(item: int) -> int:
            links[0].put(item)
            return links[-1].get()  # type: ignore[no-any-return]

        times = timed_trips(work.count, call)
        links[0].put(None)
        joined(processes)
        return times

    return trips


def queues_chain(work: Work, processors: int, chunk: int) -> Chain:
    """Start a chain of `multiprocessing.Queue`, have one item through it, then all in chunks, again and again."""
    from itertools import islice

    context = context_for(None)
    job = OnChunk(work.jobs[0])
    links = [context.Queue(8) for _ in range(processors + 1)]
    processes = [
        context.Process(target=queue_step, args=(job, links[number], links[number + 1])) for number in range(processors)
    ]
    for process in processes:
        process.start()
    links[0].put([0])
    links[-1].get()
    try:
        yield None
        while True:
            thread = fed(chunks_of(work.items, chunk), links[0].put, ends=0)
            yield list(islice(taken_apart(work, chunk, until_none(links[-1].get)), work.count))
            thread.join()
    finally:
        links[0].put(None)
        joined(processes)


def pipe_step(job: Callable[[Any], Any], inward: Any, outward: Any) -> None:
    """What a process of a ring of raw pipes does, until None comes."""
    while (item := inward.recv()) is not None:
        outward.send(job(item))
    outward.send(None)


def pipes_trips(work: Work) -> Trips:
    """One item at a time through three processes and raw pipes: no thread, no lock, and so what is possible at all."""
    context = context_for(None)

    def trips() -> list[float]:
        links = [context.Pipe(duplex=False) for _ in range(len(work.jobs) + 1)]
        processes = []
        for number, job in enumerate(work.jobs):
            processes.append(context.Process(target=pipe_step, args=(job, links[number][0], links[number + 1][1])))
            processes[-1].start()
        send, receive = links[0][1].send, links[-1][0].recv

        def call(item: int) -> int:
            send(item)
            return receive()  # type: ignore[no-any-return]

        times = timed_trips(work.count, call)
        send(None)
        joined(processes)
        return times

    return trips


def ring_step(job: Callable[[Any], Any], arrays: list[Any], inward: Any, outward: Any) -> None:
    """What a process at a ring of shared memory does: only the number of the place in the ring travels."""
    while (place := inward.recv()) is not None:
        job(arrays[place])
        outward.send(place)
    outward.send(None)


def ring(work: Work, places: int = 8) -> Run:
    """Arrays of one size in a ring of shared memory, written by hand for nothing but this: what is possible at all."""
    import mmap
    import threading

    import numpy
    from workloads import ARRAY_LENGTH

    context = context_for("fork")

    def run(collect: Collect) -> Any:
        arrays: list[Any] = [numpy.frombuffer(mmap.mmap(-1, 4 * ARRAY_LENGTH), numpy.float32) for _ in range(places)]
        free = threading.Semaphore(places)
        links = [context.Pipe(duplex=False) for _ in range(len(work.jobs) + 1)]
        processes = []
        for number, job in enumerate(work.jobs):
            ends = (links[number][0], links[number + 1][1])
            processes.append(context.Process(target=ring_step, args=(job, arrays, *ends)))
            processes[-1].start()

        def placed() -> Iterator[int]:
            for number, item in enumerate(work.items):
                free.acquire()
                arrays[number % places][:] = item
                yield number % places

        def results() -> Iterator[Any]:
            for place in until_none(links[-1][0].recv):
                yield arrays[place]
                free.release()

        thread = fed(placed(), links[0][1].send)
        collected = collect(results())
        thread.join()
        joined(processes)
        return collected

    return run


# ------------------------------------------------------------------------------------------------------------- the rest


def joblib(work: Work, batch_size: Any = "auto", max_nbytes: Any = "1M") -> Run:
    """`joblib.Parallel` over one function that does all steps; without `n_jobs` it would use one core."""
    from joblib import Parallel, delayed

    job = delayed(work.fused)

    def run(collect: Collect) -> Any:
        # Items may be changed (mmap_mode="c"): in the workload `arrays` they are.
        limit = None if max_nbytes == "no" else max_nbytes
        parallel = Parallel(n_jobs=CORES, batch_size=batch_size, max_nbytes=limit, mmap_mode="c", return_as="generator")
        return collect(taken_apart(work, 0, parallel(job(item) for item in work.items)))

    return run


def loky(work: Work, chunksize: int = 1) -> Run:
    """loky's executor and its `map` over one function that does all steps."""
    from loky import ProcessPoolExecutor

    def run(collect: Collect) -> Any:
        with ProcessPoolExecutor(CORES) as workers:
            return collect(taken_apart(work, 0, workers.map(work.fused, work.items, chunksize=chunksize)))

    return run


def loky_trips(work: Work) -> Trips:
    """loky's `submit`, which has one hop where a chain has three."""
    from loky import ProcessPoolExecutor

    def trips() -> list[float]:
        with ProcessPoolExecutor(CORES) as workers:
            return timed_trips(work.count, lambda item: workers.submit(work.fused, item).result())

    return trips


def mpire(work: Work, chunk_size: int = 0, start_method: str | None = None) -> Run:
    """`mpire.WorkerPool.imap` over one function that does all steps; it chooses a chunk size where none is given."""
    from mpire import WorkerPool

    def run(collect: Collect) -> Any:
        with WorkerPool(CORES, start_method=start_method or "fork") as workers:
            results = workers.imap(work.fused, work.items, iterable_len=work.count, chunk_size=chunk_size or None)
            return collect(taken_apart(work, 0, results))

    return run


def mpire_trips(work: Work) -> Trips:
    """`mpire.WorkerPool.apply`, which has one hop where a chain has three."""
    from mpire import WorkerPool

    def trips() -> list[float]:
        with WorkerPool(CORES) as workers:
            return timed_trips(work.count, lambda item: workers.apply(work.fused, (item,)))

    return trips


def pypeln(work: Work, chunk: int = 0, maxsize: int = 0) -> Run:
    """`pypeln.process.map`, once for each step."""
    from pypeln import process

    def run(collect: Collect) -> Any:
        stage: Any = in_chunks(work, chunk, work.fused)[1]
        for job in work.jobs:
            stage = process.map(OnChunk(job) if chunk else job, stage, maxsize=maxsize)
        return collect(taken_apart(work, chunk, stage))

    return run


def pypeln_fan_out(work: Work, chunk: int = 0, maxsize: int = 0) -> Run:
    """One stage that two others take from, and `concat`."""
    from itertools import chain

    from pypeln import process

    def run(collect: Collect) -> Any:
        first, left, right = (OnChunk(job) if chunk else job for job in work.jobs)
        stage = process.map(first, in_chunks(work, chunk, work.fused)[1], maxsize=maxsize)
        both = process.concat(
            [process.map(left, stage, maxsize=maxsize), process.map(right, stage, maxsize=maxsize)], maxsize=maxsize
        )
        return collect(chain.from_iterable(both) if chunk else both)

    return run


def mpipe(work: Work, chunk: int = 0) -> Run:
    """mpipe's `Pipeline`, with an `OrderedStage` for each step."""
    from itertools import pairwise

    from mpipe import OrderedStage, Pipeline

    def run(collect: Collect) -> Any:
        stages = [OrderedStage(OnChunk(job) if chunk else job) for job in work.jobs]
        for before, behind in pairwise(stages):
            before.link(behind)
        pipeline = Pipeline(stages[0])
        thread = fed(in_chunks(work, chunk, work.fused)[1], pipeline.put)
        collected = collect(taken_apart(work, chunk, pipeline.results()))
        thread.join()
        return collected

    return run


def mpipe_fan_out(work: Work, chunk: int = 0) -> Run:
    """One stage that is linked to two others, whose results are taken in turn."""
    from itertools import chain

    from mpipe import OrderedStage, Pipeline

    def run(collect: Collect) -> Any:
        first, left, right = (OrderedStage(OnChunk(job) if chunk else job) for job in work.jobs)
        first.link(left)
        first.link(right)
        pipeline = Pipeline(first)
        thread = fed(in_chunks(work, chunk, work.fused)[1], pipeline.put)
        both = chain.from_iterable(zip(left.results(), right.results(), strict=False))
        collected = collect(chain.from_iterable(both) if chunk else both)
        # As zip does not ask the right one any more when the left one is at its end.
        right.get()
        thread.join()
        return collected

    return run


def mpipe_trips(work: Work) -> Trips:
    """One item at a time through mpipe's `Pipeline`."""
    from itertools import pairwise

    from mpipe import OrderedStage, Pipeline

    def trips() -> list[float]:
        stages = [OrderedStage(job) for job in work.jobs]
        for before, behind in pairwise(stages):
            before.link(behind)
        pipeline = Pipeline(stages[0])

        def call(item: int) -> int:
            pipeline.put(item)
            return pipeline.get()  # type: ignore[no-any-return]

        times = timed_trips(work.count, call)
        pipeline.put(None)
        return times

    return trips


def streamable(work: Work, processes: bool = False, chunk: int = 0) -> Run:
    """A `streamable.stream` that maps all steps as one; without an executor everything runs in the calling process."""
    from streamable import stream

    def run(collect: Collect) -> Any:
        job, items = in_chunks(work, chunk, work.fused if processes else work.fused_on_copy)
        if not processes:
            return collect(taken_apart(work, chunk, stream(items).map(job)))

        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(CORES, mp_context=context_for(None)) as workers:
            return collect(taken_apart(work, chunk, stream(items).map(job, concurrency=workers)))

    return run


def spdl(work: Work, processes: bool = False, chunk: int = 0, concurrency: int = 1) -> Run:
    """A `spdl.pipeline`, which hands items to threads, or to an executor of processes, with all steps as one."""
    from spdl.pipeline import PipelineBuilder

    def run(collect: Collect) -> Any:
        from concurrent.futures import ProcessPoolExecutor
        from contextlib import ExitStack

        job, items = in_chunks(work, chunk, work.fused if processes else work.fused_on_copy)
        with ExitStack() as stack:
            workers = None
            if processes:
                workers = stack.enter_context(ProcessPoolExecutor(CORES, mp_context=context_for(None)))
            builder = PipelineBuilder().add_source(items)
            builder = builder.pipe(job, executor=workers, concurrency=concurrency, output_order="input")
            pipeline = builder.add_sink().build(num_threads=max(concurrency, 1))
            with pipeline.auto_stop():
                return collect(taken_apart(work, chunk, iter(pipeline)))

    return run


def torch(work: Work, num_workers: int = 2, prefetch_factor: int = 2) -> Run:
    """PyTorch's `DataLoader`: its workers make the arrays, as there is no way to send any to them."""
    from torch import from_numpy
    from torch.utils.data import DataLoader, Dataset

    templates: list[Any] = getattr(work.items, "templates", [])

    class Made(Dataset):  # type: ignore[type-arg, misc, unused-ignore]
        def __len__(self) -> int:
            return work.count

        def __getitem__(self, number: int) -> Any:
            return from_numpy(work.fused_on_copy(templates[number % len(templates)]))

    def run(collect: Collect) -> Any:
        loader = DataLoader(Made(), batch_size=None, num_workers=num_workers, prefetch_factor=prefetch_factor)
        return collect(tensor.numpy() for tensor in loader)

    return run


def ray_started(library: Any) -> None:
    """Start Ray with as many workers as there are cores, and without all that is there to be looked at."""
    library.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, configure_logging=False)


def ray(work: Work, chunk: int = 0, window: int = 0) -> Run:
    """Ray's tasks over one function that does all steps, at most `window` of them under way where it is not 0."""
    from importlib import import_module

    library = import_module("ray")  # under another name than this function has

    def run(collect: Collect) -> Any:
        ray_started(library)
        # What comes to a task cannot be changed in place.
        job, items = in_chunks(work, chunk, work.fused_on_copy)
        task = library.remote(job if not chunk else lambda each: job(each))

        def results() -> Iterator[Any]:
            from collections import deque

            under_way: Any = deque()
            for item in items:
                under_way.append(task.remote(item))
                if window and len(under_way) >= window:
                    yield library.get(under_way.popleft())
            while under_way:
                yield library.get(under_way.popleft())

        collected = collect(taken_apart(work, chunk, results()))
        library.shutdown()
        return collected

    return run


def ray_trips(work: Work) -> Trips:
    """One item at a time through three of Ray's actors."""
    from importlib import import_module

    library = import_module("ray")  # under another name than this function has

    def trips() -> list[float]:
        ray_started(library)

        class Step:
            def __init__(self, job: Callable[[int], int]) -> None:
                self.job = job

            def do(self, item: int) -> int:
                return self.job(item)

        actors = [library.remote(num_cpus=0)(Step).remote(job) for job in work.jobs]

        def call(item: int) -> int:
            value: Any = item
            for actor in actors:
                value = actor.do.remote(value)
            return library.get(value)  # type: ignore[no-any-return]

        times = timed_trips(work.count, call)
        library.shutdown()
        return times

    return trips
