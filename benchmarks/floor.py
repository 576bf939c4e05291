"""What Conveyor's shape costs at least: the same processes and messages, with nothing else.

A chain runs in a caller, a relay and one process for each step, joined by socket pairs, with chunks of pickled items in
between.  The relay of the floor forwards chunks blindly: no credit, no acknowledgement, no order but that of one worker
for each step, no statistics, and a worker that dies takes the run along.  What Conveyor takes above that buys these.

The ways take turns, and each ratio is that of one round.  The CPU seconds are those of the caller, of relay or broker,
and of the workers together.

    python3 benchmarks/floor.py [ints records latency] [--rounds 5] [--scale 1.0]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import queue
import selectors
import socket
import statistics
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from conveyor import Pipe, Pipeline, Processor

Job = Callable[[Any], Any]
SIZE = struct.Struct("I")
# How many chunks a worker of the floor has in hand at most, and how many wait in front of the first one.
AHEAD, WAITING = 2, 8
READ_BYTES = 256 * 1024
RECORD = {
    "id": 123456,
    "name": "Ada Lovelace",
    "mail": "ada@example.org",
    "tags": ["a", "b", "c"],
    "address": {"street": "1 Long Street", "city": "London"},
    "score": 12.5,
    "active": True,
    "note": "x" * 40,
}


def increment(item: int) -> int:
    """The work on an int."""
    return item + 1


def change(record: dict[str, Any]) -> dict[str, Any]:
    """The work on a record."""
    record["score"] += 1
    return record


def records(count: int) -> Iterator[str]:
    """So many records of JSON, each another."""
    text = json.dumps(RECORD)[:-1]
    return (f'{text}, "n": {number}}}' for number in range(count))


class Wire:
    """One end of a socket pair, which sends and takes whole chunks."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._buffer = bytearray(1 << 20)

    def send(self, items: list[Any]) -> None:
        """Send one chunk."""
        data = pickle.dumps(items, 5)
        self.end.sendall(SIZE.pack(len(data)) + data)

    def finish(self) -> None:
        """Say that no more chunks come."""
        self.end.sendall(SIZE.pack(0))

    def receive(self) -> list[Any] | None:
        """Return the next chunk, None at the end."""
        (size,) = SIZE.unpack(self._read(SIZE.size))
        return pickle.loads(self._read(size)) if size else None

    def _read(self, size: int) -> memoryview:
        view, got = memoryview(self._buffer)[:size], 0
        while got < size:
            count = self.end.recv_into(view[got:])
            if not count:
                raise EOFError
            got += count
        return view


def work(job: Job, end: socket.socket) -> None:
    """A worker."""
    wire = Wire(end)
    while (items := wire.receive()) is not None:
        wire.send([job(item) for item in items])
    wire.finish()
    # Its CPU seconds are read while it is alive.
    end.recv(1)


def relay(workers: Sequence[socket.socket], inward: socket.socket, outward: socket.socket) -> None:
    """Forward chunks from the caller through all workers and back."""
    queues: list[deque[bytes]] = [deque() for _ in range(len(workers) + 1)]
    in_hand = [0] * len(workers)
    places = {inward: 0, **{end: place for place, end in enumerate(workers, 1)}}
    arrived = {end: bytearray() for end in places}
    scratch = bytearray(READ_BYTES)
    selector, ends = selectors.DefaultSelector(), {end.fileno(): end for end in places}
    for end in places:
        selector.register(end, selectors.EVENT_READ)
    listens = True
    while True:
        for key, _ in selector.select():
            end = ends[key.fd]
            count, data, place = end.recv_into(scratch), arrived[end], places[end]
            if not count:
                return
            data += memoryview(scratch)[:count]
            while len(data) >= SIZE.size and len(data) >= (size := SIZE.size + SIZE.unpack_from(data)[0]):
                queues[place].append(bytes(memoryview(data)[:size]))
                del data[:size]
                if place:
                    in_hand[place - 1] -= 1
        for place, end in enumerate(workers):
            while queues[place] and in_hand[place] < AHEAD:
                end.sendall(queues[place].popleft())
                in_hand[place] += 1
        while queues[-1]:
            outward.sendall(queues[-1].popleft())
        if listens != (len(queues[0]) <= WAITING):
            listens = not listens
            if listens:
                selector.register(inward, selectors.EVENT_READ)
            else:
                selector.unregister(inward)


class Floor:
    """The floor of a chain of jobs: relay and workers, forked."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        context = multiprocessing.get_context("fork")
        pairs = [socket.socketpair() for _ in range(len(jobs) + 2)]
        near, far = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.inward, self.outward = Wire(far[-2]), Wire(far[-1])
        self._ends = [*near, *far]
        ends = near[: len(jobs)], near[-2], near[-1]
        self.children = [context.Process(target=relay, args=ends, daemon=True)]
        for job, end in zip(jobs, far, strict=False):
            self.children.append(context.Process(target=work, args=(job, end), daemon=True))
        for child in self.children:
            child.start()

    def stream(self, items: Iterable[Any], chunk: int) -> Iterator[Any]:
        """Send items through in chunks, from a thread, and give their results."""

        def feed() -> None:
            waiting: list[Any] = []
            for item in items:
                waiting.append(item)
                if len(waiting) == chunk:
                    self.inward.send(waiting)
                    waiting = []
            if waiting:
                self.inward.send(waiting)
            self.inward.finish()

        feeder = threading.Thread(target=feed)
        feeder.start()
        while (results := self.outward.receive()) is not None:
            yield from results
        feeder.join()

    def close(self) -> None:
        """End all processes."""
        for child in self.children:
            child.kill()
            child.join()
        for end in self._ends:
            end.close()


def chain(jobs: Sequence[Job]) -> Pipeline[Any, Any]:
    """The same by Conveyor."""
    pipeline: Any = Pipeline(start_method="fork").add(Processor(jobs[0]))
    for job in jobs[1:]:
        pipeline = pipeline.add(Pipe()).add(Processor(job))
    return pipeline  # type: ignore[no-any-return]


def cpu_seconds() -> dict[int, float]:
    """The CPU seconds of this process and of all below it, by their numbers; {} where /proc does not tell."""
    if not os.path.isdir("/proc/self"):
        return {}
    ticks, children, used = os.sysconf("SC_CLK_TCK"), dict[int, list[int]](), dict[int, float]()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
        used[int(name)] = (int(fields[11]) + int(fields[12])) / ticks
    found = [os.getpid()]
    for number in found:
        found += sorted(children.get(number, []))
    return {number: used[number] for number in found if number in used}


class Run:
    """The seconds of one run, and the CPU seconds of its processes."""

    def __init__(self, results: Iterator[Any], count: int) -> None:
        before, begun = cpu_seconds(), time.perf_counter()
        found = sum(1 for _ in results)
        self.seconds = time.perf_counter() - begun
        assert found == count, f"{found} results for {count} items"
        used = {number: seconds - before[number] for number, seconds in cpu_seconds().items() if number in before}
        self.caller = used.pop(os.getpid(), 0.0)
        # Both start the relay, or the broker, before any worker.
        self.middle = used.pop(min(used), 0.0) if used else 0.0
        self.workers = sum(used.values())


def compare(
    name: str, jobs: Sequence[Job], items: Callable[[int], Iterable[Any]], count: int, chunk: int, rounds: int
) -> None:
    """Print how long the same items take through the floor and through Conveyor."""
    pairs = []
    for _ in range(rounds):
        floor = Floor(jobs)
        bare = Run(floor.stream(items(count), chunk), count)
        floor.close()
        with chain(jobs) as pipeline:
            pipeline.run(items(10))
            pairs.append((bare, Run(pipeline.stream(items(count)), count)))
    show(name, [(bare.seconds, ours.seconds) for bare, ours in pairs], "s")
    for label, runs in (("floor", [bare for bare, _ in pairs]), ("Conveyor", [ours for _, ours in pairs])):
        parts = [statistics.median(getattr(run, part) for run in runs) for part in ("caller", "middle", "workers")]
        print(f"{'':<24} CPU s, {label:<9} caller {parts[0]:.2f}, middle {parts[1]:.2f}, workers {parts[2]:.2f}")


def show(name: str, rounds: Sequence[tuple[float, float]], unit: str) -> None:
    """Print medians, and the median of the ratios."""
    bare, ours = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for other, one in rounds)
    print(f"{name:<24} floor {bare:>8.3f} {unit:<2} Conveyor {ours:>8.3f} {unit:<2} {ratio:>5.2f} times", flush=True)


def compare_trips(count: int, rounds: int) -> None:
    """Print how long one item takes through three steps, when it is alone."""
    pairs = []
    for _ in range(rounds):
        floor, bare = Floor([increment] * 3), []
        for item in range(count):
            begun = time.perf_counter()
            floor.inward.send([item])
            assert floor.outward.receive() == [item + 3]
            bare.append(time.perf_counter() - begun)
        floor.close()
        waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        ours = []
        with chain([increment] * 3) as pipeline:
            results = pipeline.stream(iter(waiting.get, None))
            for item in range(count):
                begun = time.perf_counter()
                waiting.put(item)
                assert next(results) == item + 3
                ours.append(time.perf_counter() - begun)
            waiting.put(None)
            assert not list(results)
        pairs.append((statistics.median(bare) * 1e6, statistics.median(ours) * 1e6))
    show("one item, three steps", pairs, "µs")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", default=["ints", "records", "latency"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the items")
    options = parser.parse_args()

    def scaled(count: int) -> int:
        return max(1000, int(count * options.scale))

    print(f"medians of {options.rounds} rounds")
    if "ints" in options.what:
        for count in (scaled(5_000_000), scaled(500_000)):
            compare(f"{count:,} ints", [increment] * 3, range, count, 4096, options.rounds)
    if "records" in options.what:
        count = scaled(200_000)
        compare(f"{count:,} records", [json.loads, change, json.dumps], records, count, 256, options.rounds)
    if "latency" in options.what:
        compare_trips(scaled(2000), options.rounds)


if __name__ == "__main__":
    main()
