"""One run of one contestant in a process of its own, seen from outside: how long, how much memory, and an end for all;
and whether the machine is one's own meanwhile.

The law of this file: nothing that a run has started outlives it, and it looks at no process but its own descendants.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

TYPE_CHECKING = False  # as in typing: a measured process imports this file, too
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

ONE_RUN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "one_run.py")
PR_SET_CHILD_SUBREAPER = 36
# How often memory is looked at: not so often that looking takes more than a twentieth of a core.
SAMPLE_SECONDS = 0.02
SAMPLE_SHARE = 0.05
# The helper of multiprocessing (and of loky) that removes what a killed process leaves in shared memory.
TRACKER = b"resource_tracker"


# How often the same loop is timed to see whether the machine is one's own; it takes a millisecond or so.
LOOPS, LOOP = 400, 100_000


def standstill() -> float:
    """How many times as long a loop that needs nothing but a core takes, on average, as at best: about 1, unless the
    machine has other things to do."""
    times = []
    for _ in range(LOOPS):
        begun = time.perf_counter()
        for _ in range(LOOP):
            pass
        times.append(time.perf_counter() - begun)
    return sum(times) / len(times) / min(times)


class Outcome:
    """What one run gave: numbers, or the reason why there are none."""

    def __init__(self, numbers: dict[str, float], failure: str, late: bool = False) -> None:
        self.numbers = numbers
        self.failure = failure
        self.late = late


def adopt_orphans() -> None:
    """Have what a run leaves behind become a child of this process, so that it can be found: on Linux alone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """The processes below `root`; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    try:
        entries = os.listdir("/proc")
    except OSError:
        return []
    for entry in entries:
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # The name is in parentheses and may hold anything, so the fields are counted from its end.
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def tree_memory(root: int) -> int:
    """Bytes of memory of `root` and all processes below, what they share counted once; 0 where that cannot be known."""
    total = 0
    for process in (root, *descendants(root)):
        try:
            with open(f"/proc/{process}/smaps_rollup", "rb") as file:
                for line in file:
                    if line.startswith(b"Pss:"):
                        total += int(line.split()[1]) * 1024
                        break
        except OSError:
            continue
    return total


def end_descendants() -> int:
    """Kill everything below this process, and wait until it is gone; return how many there were to be killed."""
    killed = 0
    patience = time.monotonic() + 2.0
    while below := descendants(os.getpid()):
        for process in below:
            if _reaped(process):
                continue
            # These end by themselves when the others are gone, and clean up first.
            if time.monotonic() < patience and TRACKER in _command_line(process):
                continue
            try:
                os.kill(process, signal.SIGKILL)
                killed += 1
            except OSError:
                continue
        time.sleep(0.005)
        if time.monotonic() > patience + 10:
            break
    return killed


def _reaped(process: int) -> bool:
    try:
        return os.waitpid(process, os.WNOHANG)[0] == process
    except OSError:
        return False  # a grandchild, which its own parent reaps, or else comes to be a child


def _command_line(process: int) -> bytes:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def environment(root: str, compiled: str) -> dict[str, str]:
    """The environment of each run: Conveyor can be imported, and every module comes compiled, whosever it is."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    variables["PYTHONPYCACHEPREFIX"] = compiled
    here = os.path.dirname(ONE_RUN)
    # For processes that are not told where their parent's modules come from.
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [here, root, variables.get("PYTHONPATH", "")]))
    return variables


def run_once(
    workload: str,
    way: str,
    scale: float,
    share: float,
    settings: Mapping[str, Any],
    *,
    variables: Mapping[str, str],
    limit: float,
    sampled: bool,
) -> Outcome:
    """Do it in a fresh process; ended after `limit` seconds, with all that it has started."""
    with tempfile.TemporaryDirectory(prefix="bench.") as folder:
        path = os.path.join(folder, "numbers")
        command = [sys.executable, ONE_RUN, path, workload, way, repr(scale), repr(share)]
        command += [f"{name}={value}" for name, value in settings.items()]
        with open(os.path.join(folder, "output"), "w+b") as output:
            begun = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**variables, "TMPDIR": folder},
                start_new_session=True,
            )
            ended, peak = _watched(process, begun + limit, sampled)
            late = not ended
            if late:
                _end_group(process)
            end_descendants()
            process.wait()
            output.seek(0)
            said = output.read().decode(errors="replace")
        if late:
            return Outcome({}, f"ended, as it was not done after {limit:g} s", late=True)
        if process.returncode != 0:
            return Outcome({}, _reason(said) or f"exit status {process.returncode}")
        numbers: dict[str, float] = {}
        with open(path) as file:
            for line in file:
                name, _, value = line.partition("=")
                numbers[name] = float(value)
    numbers["whole_seconds"] = ended - begun
    if peak:
        numbers["peak_bytes"] = peak
        if "baseline_bytes" in numbers:
            numbers["growth_bytes"] = max(0.0, peak - numbers["baseline_bytes"])
    return Outcome(numbers, "")


def _watched(process: subprocess.Popen[bytes], deadline: float, sampled: bool) -> tuple[float, int]:
    """Wait for the end; return when it was, and the largest memory that was seen."""
    gone = threading.Event()
    ended = 0.0

    def wait() -> None:
        # In a thread and without a time limit, as a wait with one looks only every now and then.
        nonlocal ended
        process.wait()
        ended = time.perf_counter()
        gone.set()

    threading.Thread(target=wait, daemon=True).start()
    peak = 0
    while not gone.is_set() and (left := deadline - time.perf_counter()) > 0:
        if sampled:
            looked = time.perf_counter()
            peak = max(peak, tree_memory(process.pid))
            left = min(left, max(SAMPLE_SECONDS, (time.perf_counter() - looked) / SAMPLE_SHARE))
        gone.wait(left)
    return ended, peak


def _end_group(process: subprocess.Popen[bytes]) -> None:
    # The process and those of its group that can be found without /proc; `end_descendants` finds the others.
    if hasattr(os, "killpg") and not os.path.isdir("/proc"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            return
    process.kill()


def _reason(said: str) -> str:
    """The last line of a traceback, as far as it fits into a table."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.partition(":")[0] or "Exception" in line.partition(":")[0]]
    return (errors or lines or [""])[-1][:150]
