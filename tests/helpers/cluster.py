"""A Dask cluster of processes on loopback, for the tests of that engine: a scheduler, and workers that can be killed.

Law: nothing here imports Dask, so that a test can be skipped where it is missing.  Each process is a session of its own,
so that all that belongs to a node can be found, and killed, together.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.helpers.late import tempfile
from tests.helpers.support import ROOT, TestCase

WANTED = os.environ.get("CONVEYOR_TEST_CLUSTER", "0") not in ("", "0")
# A machine with two cores may be busy: a start is a new interpreter that imports Dask.
START_SECONDS = 60.0


def why_none() -> str:
    """Return why there are no tests on a cluster; "" where there are."""
    if not WANTED:
        return "CONVEYOR_TEST_CLUSTER is not set"
    return "" if importlib.util.find_spec("distributed") else "distributed is not installed"


def on_cluster(what: Any) -> Any:
    """Mark a class of tests as one that needs a cluster."""
    why = why_none()
    return unittest.skip(why)(what) if why else what


def await_that(holds: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> Any:
    """Wait until something holds, and return it; AssertionError with `what` where it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return found


def processes_of(session: int) -> list[int]:
    """The living processes of a session of the system, by their numbers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def children_of(pid: int) -> list[int]:
    """The children of a process, by their numbers."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def node_processes(member: Member) -> list[int]:
    """The node processes of a member: the parents of the workers there."""
    found = []
    for pid in member.alive:
        with contextlib.suppress(OSError):
            if b"conveyor.engines.dask.node" in Path(f"/proc/{pid}/cmdline").read_bytes():
                # A worker that was forked has the same words: the first one is the parent of the others.
                found.append(pid)
    return [pid for pid in found if not any(pid in children_of(other) for other in found)]


class Member:
    """A process of the cluster, with all that it starts."""

    def __init__(self, arguments: list[str], folder: str, prefix: list[str] | None = None, **environ: str) -> None:
        inherited = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        # Dask warns of ports that are taken, and jobs may warn here.
        for name in ("CONVEYOR_RECORD", "PYTHONWARNINGS"):
            inherited.pop(name, None)
        with open(os.path.join(folder, f"{time.monotonic_ns()}.log"), "wb") as log:
            self.process = subprocess.Popen(
                [*(prefix or []), sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
                cwd=ROOT,
                env={**inherited, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False", "TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    @property
    def alive(self) -> list[int]:
        """The processes of this member that live."""
        self.process.poll()
        return processes_of(self.process.pid)

    def kill(self) -> None:
        """Kill all its processes, as when its machine loses power."""
        for pid in self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class LoopbackCluster:
    """A scheduler, and workers of one thread each.

    `host` is where the scheduler listens, and `prefix` stands before its command: with both, it is elsewhere.
    `options` are those of each command.
    """

    def __init__(
        self,
        workers: int = 3,
        host: str = "127.0.0.1",
        prefix: list[str] | None = None,
        options: Sequence[str] = (),
        **environ: str,
    ) -> None:
        self._prefix = prefix or []
        self._options = options
        # That of a namespace has connections from several networks.
        listens = host if prefix is None else "0.0.0.0"
        self._folder = tempfile.TemporaryDirectory()
        told = os.path.join(self._folder.name, "scheduler.json")
        arguments = ["dask_scheduler", "--host", listens, "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        arguments += ["--scheduler-file", told, *options]
        self.scheduler = Member(arguments, self._folder.name, prefix, **environ)
        self.workers: list[Member] = []
        try:
            known: str = await_that(lambda: _address_in(told), "the scheduler is up")
            self.address = f"{known.partition(':')[0]}://{host}:{known.rpartition(':')[2]}"
            if workers:
                self.add(workers)
        except BaseException:
            print(self.logs(), file=sys.stderr)
            self.close()
            raise

    def add(
        self,
        workers: int = 1,
        *extra: str,
        scheduler: str | None = None,
        host: str | None = "127.0.0.1",
        prefix: list[str] | None = None,
        **environ: str,
    ) -> list[Member]:
        """Start more workers, and wait until the scheduler has them.

        `scheduler` is the address at which they find it, and `host` that at which they listen.
        """
        before = len(self.addresses())
        added = self.start(workers, *extra, scheduler=scheduler, host=host, prefix=prefix, **environ)
        await_that(lambda: len(self.addresses()) >= before + workers, "all workers are up")
        return added

    def start(
        self,
        workers: int = 1,
        *extra: str,
        scheduler: str | None = None,
        host: str | None = "127.0.0.1",
        prefix: list[str] | None = None,
        **environ: str,
    ) -> list[Member]:
        """Start more workers, as `add` does, and do not wait for them."""
        arguments = ["dask_worker", scheduler or self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        # Old versions have a folder where they are started.
        arguments += ["--local-directory", self._folder.name, "--memory-limit", "0", "--death-timeout", "30"]
        arguments += [*(["--host", host] if host else []), *self._options, *extra]
        added = [Member(arguments, self._folder.name, prefix, **environ) for _ in range(workers)]
        self.workers += added
        return added

    def addresses(self) -> list[str]:
        """The addresses of the workers that the scheduler has."""
        if self._prefix:
            return self._addresses_inside()
        from distributed import Client

        with Client(self.address, set_as_default=False, timeout=START_SECONDS) as client:
            return sorted(client.nthreads())

    def _addresses_inside(self) -> list[str]:
        program = (
            "from distributed import Client\n"
            f"with Client({self.address!r}, timeout={START_SECONDS}) as client: print(*sorted(client.nthreads()))"
        )
        command = [*self._prefix, sys.executable, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    def heal(self, workers: int = 3) -> None:
        """Have as many workers as at first."""
        self.workers = [each for each in self.workers if each.alive]
        await_that(lambda: len(self.addresses()) <= len(self.workers), "the scheduler has noticed who is gone")
        if len(self.workers) < workers:
            self.add(workers - len(self.workers))

    def logs(self) -> str:
        """What all processes have written to standard error."""
        folder = Path(self._folder.name)
        return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))

    def close(self) -> None:
        """Kill everything."""
        for each in (*self.workers, self.scheduler):
            each.kill()
        self._folder.cleanup()


def _address_in(path: str) -> str | None:
    import json

    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file)["address"])
    except (OSError, ValueError, KeyError):
        return None


_shared: list[LoopbackCluster] = []


def shared_cluster() -> LoopbackCluster:
    """The cluster of three nodes that all tests use, made whole again; it ends with this process."""
    if _shared:
        _shared[0].heal()
    else:
        _shared.append(LoopbackCluster())
        atexit.register(_close_in, os.getpid())
    return _shared[0]


def _close_in(pid: int) -> None:
    # A forked process has a copy of what is called at the end.
    if os.getpid() == pid:
        _shared.pop().close()


class ClusterTestCase(TestCase):
    """Has a cluster, which it shares with all others."""

    cluster: ClassVar[LoopbackCluster]
    # Each pipeline has a broker that imports Dask: on a busy machine, some seconds.
    time_limit = 300.0

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        # nose sets up a class of which all tests are skipped.
        if not why_none():
            cls.cluster = shared_cluster()
