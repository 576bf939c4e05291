"""Who takes part in which workload of `compare.py`, and with which settings.

The law of this file: data. An entry with several candidates is measured with the one that is fastest in the first
round; the first of them is the one to use where nothing is tried, as in the short form.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from workloads import LONG_CHAIN

Settings = dict[str, Any]

# The peers, by the name under which they are chosen: what they are called, the module that has to be there (none for
# the standard library), and the distribution that has its version.
PEERS: dict[str, tuple[str, str, str]] = {
    "conveyor": ("Conveyor", "conveyor", ""),
    "loop": ("a plain loop", "", ""),
    "pool": ("Pool.imap", "", ""),
    "executor": ("ProcessPoolExecutor.map", "", ""),
    "queues": ("multiprocessing.Queue by hand", "", ""),
    "pipes": ("raw pipes by hand", "", ""),
    "ring": ("shared-memory ring by hand", "numpy", ""),
    "joblib": ("joblib", "joblib", "joblib"),
    "loky": ("loky", "loky", "loky"),
    "mpire": ("mpire", "mpire", "mpire"),
    "pypeln": ("pypeln", "pypeln", "pypeln"),
    "mpipe": ("mpipe", "mpipe", "mpipe"),
    "streamable": ("streamable", "streamable", "streamable"),
    "spdl": ("spdl", "spdl.pipeline", "spdl"),
    "torch": ("PyTorch DataLoader", "torch", "torch"),
    "ray": ("Ray", "ray", "ray"),
}
STANDARD = ("conveyor", "loop", "pool", "executor", "queues", "pipes", "ring")


@dataclass(frozen=True)
class Workload:
    """How a workload is shown: what it is, and which of the numbers is the one that is compared."""

    title: str
    metric: str
    unit: str
    # What one of the unit is in units of the metric.
    divisor: float = 1.0
    # What is less than this, in the unit, counts as this much: it says nothing, and nothing can be divided by 0.
    floor: float = 0.001
    # Further numbers for the table: heading, name, divisor.
    columns: tuple[tuple[str, str, float], ...] = ()
    needs: str = ""
    # The memory is looked at in each round, and not only in the first.
    sampled: bool = False
    # What is compared is a time.
    timed: bool = True
    note: str = ""


MB = 1e6
WHOLE = ("whole process, s", "whole_seconds", 1.0)

WORKLOADS: dict[str, Workload] = {
    "tiny": Workload("Tiny ints: x + 1 three times", "seconds", "s", columns=(WHOLE,)),
    "records": Workload("Records: 200 bytes of JSON, parsed, changed, dumped", "seconds", "s", columns=(WHOLE,)),
    "arrays": Workload(
        "Arrays: 4 MiB of float32 through three cheap steps", "seconds", "s", columns=(WHOLE,), needs="numpy"
    ),
    "fan-out": Workload(
        "Fan-out: ints through one step to two branches, merged",
        "seconds",
        "s",
        columns=(WHOLE,),
        note="The order of the results is not compared here. What maps one function gives a tuple for each item.",
    ),
    "latency": Workload(
        "Latency: one item in flight, three steps",
        "median_ms",
        "ms",
        columns=(("99th percentile, ms", "p99_ms", 1.0),),
        note="Pool, executors and mpire have one hop, where chains have three.",
    ),
    "start-fork": Workload(
        "Start-up by fork to the first result of three steps: the whole process, with imports",
        "whole_seconds",
        "s",
        columns=(("without imports, s", "seconds", 1.0),),
    ),
    "start-spawn": Workload(
        "Start-up by spawn to the first result of three steps: the whole process, with imports",
        "whole_seconds",
        "s",
        columns=(("without imports, s", "seconds", 1.0),),
    ),
    "memory": Workload(
        "Memory: ints from a generator into a slow last step",
        "growth_bytes",
        "MB",
        divisor=MB,
        floor=1.0,
        columns=(("pulled ahead", "pulled_ahead", 1.0), ("time, s", "seconds", 1.0)),
        sampled=True,
        timed=False,
        note=(
            "The figure compared is the growth of the process tree while it runs (at least 1 MB). "
            "The slow step waits 1 ms every 1,024 items."
        ),
    ),
    "long-chain": Workload(
        "Long chain: what an item costs at each step, once all are up",
        "ns_per_hop",
        "ns",
        columns=(("start, s", "open_seconds", 1.0), ("run, s", "run_seconds", 1.0)),
        note="A short chain does it again until it has done as much as a long one.",
    ),
}


@dataclass(frozen=True)
class Entry:
    """One contestant of a workload."""

    peer: str
    label: str
    way: str
    candidates: tuple[Settings, ...] = ({},)
    # What takes too long with all items gets this part of them, and its time behind the first result is extended.
    share: float = 1.0
    # Whether it takes part in the short form.
    short: bool = False

    @property
    def name(self) -> str:
        """What the tables call it."""
        title = PEERS[self.peer][0]
        return f"{title}, {self.label}" if self.label else title


def each(name: str, *values: Any, **fixed: Any) -> tuple[Settings, ...]:
    """Settings that differ in one."""
    return tuple({name: value, **fixed} for value in values)


def _mapping(chunk: int, small: int, large: int, share: float) -> list[Entry]:
    """Who takes part where small items are mapped; `share` is for those that send each item alone."""
    sizes = (chunk, small, large)
    in_processes = each("chunk", *sizes, processes=True)
    return [
        Entry("loop", "in the calling process", "plain_loop", short=True),
        Entry("pool", "best", "pool", each("chunksize", *sizes), short=True),
        Entry("pool", "defaults", "pool", share=share),
        Entry("executor", "best", "executor", each("chunksize", *sizes), short=True),
        Entry("executor", "defaults", "executor", share=share),
        Entry("joblib", "best", "joblib", each("batch_size", *sizes)),
        Entry("joblib", "defaults", "joblib", share=share),
        Entry("loky", "best", "loky", each("chunksize", *sizes)),
        Entry("loky", "defaults", "loky", share=share / 2),
        Entry("mpire", "best", "mpire", each("chunk_size", *sizes)),
        Entry("mpire", "defaults", "mpire"),
        Entry("streamable", "best with processes", "streamable", in_processes),
        Entry("streamable", "defaults (in the calling process)", "streamable"),
        Entry("spdl", "best with processes", "spdl", each("chunk", *sizes, processes=True, concurrency=4)),
        Entry("spdl", "defaults (a thread)", "spdl", share=share / 4),
        Entry("ray", "best", "ray", each("chunk", *sizes, window=8)),
        Entry("ray", "defaults", "ray", share=share / 5),
    ]


def _chains(chunk: int, small: int, large: int, share: float, suffix: str = "") -> list[Entry]:
    """Who takes part with a process for each step."""
    sizes = (chunk, small, large)
    return [
        Entry("queues", "best", f"queues{suffix}", each("chunk", *sizes, window=8), short=True),
        Entry("queues", "item by item", f"queues{suffix}", share=share),
        Entry("pypeln", "best", f"pypeln{suffix}", each("chunk", *sizes, maxsize=8)),
        Entry("pypeln", "defaults", f"pypeln{suffix}", share=share / 4),
        Entry("mpipe", "best", f"mpipe{suffix}", each("chunk", *sizes)),
        Entry("mpipe", "defaults", f"mpipe{suffix}", share=share),
    ]


def _starts(start_method: str) -> list[Entry]:
    by_method: tuple[Settings, ...] = ({"start_method": start_method},)
    entries = [
        Entry("conveyor", "", "conveyor", by_method, short=True),
        Entry("queues", "three processes", "queues", by_method, short=True),
        Entry("pool", "", "pool", by_method, short=True),
        Entry("executor", "", "executor", by_method, short=True),
        Entry("mpire", "", "mpire", by_method),
    ]
    if start_method == "fork":
        entries += [
            Entry("pypeln", "", "pypeln"),
            Entry("mpipe", "", "mpipe"),
            Entry("streamable", "with processes", "streamable", ({"processes": True},)),
            Entry("spdl", "with processes", "spdl", ({"processes": True},)),
        ]
    else:
        # Neither forks nor spawns are theirs: they start fresh interpreters in ways of their own.
        entries += [Entry("joblib", "", "joblib"), Entry("loky", "", "loky"), Entry("ray", "", "ray")]
    return entries


ENTRIES: dict[str, list[Entry]] = {
    "tiny": [
        Entry("conveyor", "", "conveyor", short=True),
        Entry("conveyor", "fuse=True", "conveyor", ({"fuse": True},), short=True),
        Entry("conveyor", "in threads", "conveyor", ({"engine": "thread"},)),
        *_chains(4096, 1024, 16384, 0.1),
        *_mapping(4096, 1024, 16384, 0.1),
    ],
    "records": [
        Entry("conveyor", "", "conveyor", short=True),
        Entry("conveyor", "fuse=True", "conveyor", ({"fuse": True},), short=True),
        *_chains(256, 64, 1024, 0.1),
        *_mapping(256, 64, 1024, 0.1),
    ],
    "arrays": [
        Entry("conveyor", "", "conveyor_stream", short=True),
        Entry("conveyor", "fuse=True", "conveyor_stream", ({"fuse": True},)),
        Entry("conveyor", "in threads", "conveyor_stream", ({"engine": "thread"},)),
        Entry("ring", "", "ring", short=True),
        Entry("loop", "in the calling process", "plain_loop", short=True),
        Entry("queues", "best", "queues", each("window", 4, 1), short=True),
        Entry("queues", "item by item", "queues"),
        Entry("pool", "best", "pool", each("chunksize", 1, 2, 4), short=True),
        Entry("executor", "best", "executor", each("chunksize", 1, 2, 4), short=True),
        Entry("joblib", "best", "joblib", ({"max_nbytes": "no"}, {"max_nbytes": "no", "batch_size": 2})),
        Entry("joblib", "defaults", "joblib"),
        Entry("loky", "best", "loky", each("chunksize", 1, 2, 4)),
        Entry("mpire", "best", "mpire", each("chunk_size", 1, 2, 4)),
        Entry("mpire", "defaults", "mpire"),
        Entry("pypeln", "best", "pypeln", each("maxsize", 4, 1)),
        Entry("pypeln", "defaults", "pypeln"),
        Entry("mpipe", "", "mpipe"),
        Entry("streamable", "with processes", "streamable", ({"processes": True},)),
        Entry("streamable", "defaults (in the calling process)", "streamable"),
        Entry("spdl", "best, in threads", "spdl", each("concurrency", 2, 4)),
        Entry("spdl", "defaults (a thread)", "spdl"),
        Entry("torch", "best", "torch", ({"prefetch_factor": 4}, {"prefetch_factor": 2}, {"num_workers": 1})),
        Entry("torch", "defaults, two workers", "torch"),
        Entry("ray", "best", "ray", each("window", 8, 4)),
        Entry("ray", "defaults", "ray"),
    ],
    "fan-out": [
        Entry("conveyor", "", "conveyor_fan_out", short=True),
        *_chains(4096, 1024, 16384, 0.1, "_fan_out"),
        *_mapping(4096, 1024, 16384, 0.1),
    ],
    "latency": [
        Entry("conveyor", "", "conveyor_trips", short=True),
        Entry("conveyor", "a run for each item", "conveyor_runs", short=True),
        Entry("conveyor", "in threads", "conveyor_trips", ({"engine": "thread"},)),
        Entry("queues", "", "queues_trips", short=True),
        Entry("pipes", "", "pipes_trips", short=True),
        Entry("pool", "apply", "pool_trips", short=True),
        Entry("executor", "submit", "executor_trips", short=True),
        Entry("loky", "submit", "loky_trips"),
        Entry("mpire", "apply", "mpire_trips"),
        Entry("mpipe", "", "mpipe_trips"),
        Entry("ray", "actors", "ray_trips"),
    ],
    "start-fork": _starts("fork"),
    "start-spawn": _starts("spawn"),
    # Only who works in chunks: item by item this would take each of the others minutes.
    "memory": [
        Entry("conveyor", "", "conveyor_stream", short=True),
        Entry("queues", "best", "queues", each("chunk", 4096, window=8), short=True),
        Entry("pool", "best", "pool", each("chunksize", 4096), short=True),
        Entry("executor", "best", "executor", each("chunksize", 4096), short=True),
        Entry("joblib", "best", "joblib", each("batch_size", 4096)),
        Entry("loky", "best", "loky", each("chunksize", 4096)),
        Entry("mpire", "best", "mpire", each("chunk_size", 4096)),
        Entry("pypeln", "best", "pypeln", each("chunk", 4096, maxsize=8)),
        Entry("mpipe", "best", "mpipe", each("chunk", 4096)),
        Entry("streamable", "best with processes", "streamable", each("chunk", 4096, processes=True)),
        Entry("spdl", "best with processes", "spdl", each("chunk", 4096, processes=True, concurrency=4)),
        Entry("ray", "best", "ray", each("chunk", 4096, window=8)),
    ],
    "long-chain": [
        Entry("conveyor", "3 steps", "conveyor_chain", ({"processors": 3},), short=True),
        Entry("conveyor", "100 steps", "conveyor_chain", ({"processors": LONG_CHAIN},), short=True),
        Entry("queues", "best, 3 steps", "queues_chain", each("chunk", 4096, 1024, 256, processors=3), short=True),
        Entry(
            "queues",
            "best, 100 steps",
            "queues_chain",
            each("chunk", 1024, 256, 4096, processors=LONG_CHAIN),
            short=True,
        ),
    ],
}


def missing(peer: str) -> str:
    """Why this peer takes no part here, or nothing where it does."""
    module = PEERS[peer][1]
    return "" if not module or _found(module) else f"{module.partition('.')[0]} is not installed"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False  # the package in which it should be is not there


def version(distribution: str) -> str:
    """Which version of it is installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"
