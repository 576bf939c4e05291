"""The command `doctor`: what a pipeline finds on this machine.

Law: looks, and changes nothing.  What cannot be found out is told like what is missing, and nothing ends the command.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata

from conveyor import Pipe, Pipeline, Processor, __version__
from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor._system.limits import core_limits, memory_limits, usable_cores, usable_memory
from conveyor.commands import show
from conveyor.serving.address import TOKEN_VARIABLE
from conveyor.stats import duration

# Packages that Conveyor uses where they are installed, and what for.
_PACKAGES = {
    "cloudpickle": "lambdas, and what a notebook or a script without a guard defines, under every start method",
    "tqdm": "the bar of progress=True",
    "rich": "the live view of the steps",
    "numpy": "arrays as items, through shared memory",
    "distributed": 'engine="dask"',
}
_TRIED = 1000


def main(options: argparse.Namespace) -> int:
    """Print what there is; return 0."""
    for name, find in (
        ("Conveyor", _conveyor),
        ("Python", _python),
        ("system", lambda: [f"{platform.system()} {platform.release()}, {platform.machine()}"]),
        ("start method", _start_method),
        ("cores", _cores),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        *((package, _package_finder(package, purpose)) for package, purpose in _PACKAGES.items()),
        ("environment", _environment),
        ("a pipeline", _trial),
    ):
        try:
            lines = [*find()]
        except Exception as error:
            lines = [f"not known: {type(error).__name__}: {error}"]
        for head, line in zip([name, *[""] * len(lines)], lines, strict=False):
            show(f"{head:14} {line}".rstrip())
    return 0


def _conveyor() -> Iterator[str]:
    yield f"{__version__}, in {os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}"


def _python() -> Iterator[str]:
    yield f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"


def _start_method() -> Iterator[str]:
    from conveyor.engines.process.caller.start_method import Carried, start_for

    plan = Pipeline().add(Processor(abs))._description.plan(cores=1, ordered=True)
    start = start_for(plan, Carried(), None)
    if start.handles is not None:
        start.handles.close()
    yield f"{start.method}: {start.reason}"
    if start.method == "fork":
        yield "beside threads of other libraries it is forkserver"
    yield f"this system has {', '.join(multiprocessing.get_all_start_methods())}"


def _cores() -> Iterator[str]:
    yield f"{usable_cores()} that may be used"
    for what, cores in core_limits():
        yield f"{what}: {cores:g}" + (f", which is {math.ceil(cores)} when rounded up" if cores % 1 else "")


def _memory() -> Iterator[str]:
    usable = usable_memory()
    yield "not known" if usable is None else f"{_size(usable)} that may be used"
    # Version 1 of the control groups says "no limit" by a number that is larger than any memory.
    yield from (f"{what}: {_size(size)}" for what, size in memory_limits() if size < 1 << 60)


def _shared_memory() -> Iterator[str]:
    from conveyor.engines.process.shm.arena import Arena

    arena = Arena.create(0)
    if arena is None:
        yield "none: large arrays, bytes and str are copied through pipes (it needs Linux and memfd_create)"
        return
    arena.close()
    yield "there (memfd_create): large arrays, bytes and str are copied once"


def _package_finder(package: str, purpose: str) -> Callable[[], Iterator[str]]:
    def find() -> Iterator[str]:
        try:
            yield f"{metadata.version(package)}, for {purpose}"
        except metadata.PackageNotFoundError:
            yield f"missing, for {purpose}"

    return find


def _environment() -> Iterator[str]:
    found = sorted((name, value) for name, value in os.environ.items() if name.startswith("CONVEYOR_"))
    # Who knows the token can look at the page, and what is printed here goes into reports of bugs.
    yield from (f"{name} is set" if name == TOKEN_VARIABLE else f"{name}={_in_a_line(value)}" for name, value in found)
    if not found:
        yield "no variable of Conveyor is set"


def _in_a_line(value: str) -> str:
    return value if value.isprintable() else ascii(value)


def _trial() -> Iterator[str]:
    began = time.monotonic()
    pipeline: Pipeline[Any, Any] = Pipeline().add(Processor(abs)).add(Pipe()).add(Processor(str))
    results = pipeline.run(range(_TRIED))
    if results != [str(number) for number in range(_TRIED)]:
        yield f"{len(results):,} of {_TRIED:,} results are there, or they are wrong"
        return
    yield f"of two steps started, ran {_TRIED:,} items and ended in {duration(time.monotonic() - began)}"


def _size(size: int) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
