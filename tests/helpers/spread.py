"""Long computations of a test on all cores, each share in a forked process of its own.

Law: what an argument gives does not depend on which process has it, so the results are those of one process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable
from typing import TypeVar

from conveyor._system.limits import usable_cores

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def spread(function: Callable[[Argument], Result], arguments: Iterable[Argument]) -> list[Result]:
    """Return what a function gives for each argument; raise AssertionError with the traceback of what it raises."""
    given = list(arguments)
    if not hasattr(os, "fork"):
        return [function(argument) for argument in given]
    shares = min(len(given), max(1, usable_cores()))
    results: list[list[Result]] = []
    with contextlib.ExitStack() as stack:
        started = [_start(stack, function, given[first::shares]) for first in range(shares)]
        for pipe in started:
            with open(pipe, "rb", closefd=False) as file:
                found, failure = pickle.load(file)
            assert not failure, failure
            results.append(found)
    return [results[index % shares][index // shares] for index in range(len(given))]


def _start(stack: contextlib.ExitStack, function: Callable[[Argument], Result], share: list[Argument]) -> int:
    """Fork a process that does a share; return the pipe that it answers by."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            try:
                answer = pickle.dumps(([function(argument) for argument in share], ""))
            except BaseException:
                answer = pickle.dumps(([], traceback.format_exc()))
            with open(writing, "wb") as file:
                file.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    stack.callback(os.close, reading)
    stack.callback(os.waitpid, child, 0)
    stack.callback(os.kill, child, signal.SIGKILL)
    return reading
