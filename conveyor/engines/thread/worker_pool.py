"""The worker threads of a session, from their start to their end, and those that were abandoned.

Law: a thread cannot be killed.  One that was abandoned goes on until its job returns, and is named to the user.  There
are at most `MOST_ABANDONED` of them in a process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial

from conveyor._lean.short_repr import Redact
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.process.system.spawning import cause_and_remedy, thread_started
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import WorkerConfig
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.thread.items import takes_by_node
from conveyor.engines.thread.port import Port
from conveyor.engines.thread.worker import WorkerThread
from conveyor.errors import ProcessError
from conveyor.graph.plan import Plan

if TYPE_CHECKING:
    from conveyor.engines.thread.shell import ThreadShell

# Each keeps its item, and a share of the interpreter.
MOST_ABANDONED = 16

_abandoned: list[threading.Thread] = []
_lock = threading.Lock()


def abandoned_threads() -> list[threading.Thread]:
    """Return the threads of this process that were abandoned, and still run."""
    with _lock:
        _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
        return list(_abandoned)


def add_abandoned(thread: threading.Thread) -> None:
    """Take in that a thread was abandoned."""
    with _lock:
        if thread not in _abandoned:
            _abandoned.append(thread)


class WorkerPool:
    """The workers, by their numbers."""

    def __init__(self, plan: Plan, redact: Redact | None) -> None:
        grouped = plan.grouped()
        self._configs = {
            step.index: WorkerConfig(
                step.name,
                step.processor,
                step.batch,
                step.processor.keep_none,
                grouped=step.index in grouped,
                timed=step.timeout is not None,
                most_bytes=plan.bytes_at(step.to),
                redact=redact,
                settings=plan.settings,
                shared=plan.setting("shared"),
                threads=step.hands if step.threaded else 0,
            )
            for step in plan.steps
        }
        takes = takes_by_node(plan)
        self._takes = {step.index: takes[step.to.node] for step in plan.steps}
        self.is_timed = any(step.timeout is not None for step in plan.steps)
        # Whether the core ever wants to be woken: only one that has company can be taken back something from, and an
        # item that is held back goes on when its time is over.
        self.ticks = self.is_timed or any(step.most != 1 or step.batch_timeout is not None for step in plan.steps)
        self._context = copy_context()
        self.ports: dict[int, Port] = {}
        # All threads that were started and not seen to end.
        self.threads: list[WorkerThread] = []
        self._closing = False
        # Whether it was said that there are fewer workers than the core wants.
        self.goes_without = False
        # The CPU seconds of workers that have left.
        self._spent = 0.0

    def name_of(self, step: int) -> str:
        """Return the name of a Processor."""
        return self._configs[step].name

    def start(self, step: int, number: int, index: int, shell: ThreadShell) -> None:
        """Start a worker, at that place among those of its step; raises ProcessError where no thread is left."""
        config = self._configs[step]._replace(place=index)
        port = Port(number, config, self._takes[step], partial(_post, shell))
        self.ports[number] = port
        context: Context = self._context.copy()
        thread = port.thread = WorkerThread(port, context)
        self.threads.append(thread)
        if not thread_started(thread):
            self.threads.remove(thread)
            del self.ports[number]
            raise ProcessError(f"A worker of Processor {config.name!r} could not be started: {cause_and_remedy(None)}")
        if self._closing:
            port.tell(messages.Close())

    def close(self) -> None:
        """Tell all workers to leave."""
        self._closing = True
        for port in list(self.ports.values()):
            port.tell(messages.Close())

    def left(self, port: Port) -> None:
        """Take in that a worker has torn down its job, and that its thread ends."""
        self._spent += port.cpu_seconds
        self.ports.pop(port.number, None)
        self.threads = [thread for thread in self.threads if thread.is_alive()]

    def abandon(self, port: Port) -> str:
        """Have no more to do with a worker; return the names of others that were, where that is one too many."""
        port.abandoned = True
        # It may wait for a message.
        port.tell(messages.Close())
        self.left(port)
        others = abandoned_threads()
        add_abandoned(port.thread)
        return ", ".join(repr(thread.name) for thread in others) if len(others) >= MOST_ABANDONED else ""

    def text_of(self, port: Port, seconds: float) -> str:
        """Say of a thread that it was abandoned."""
        return (
            f"The thread {port.thread.name!r} took longer than the timeout of {seconds:g} s and was abandoned: a "
            "thread cannot be killed, so it goes on until its job returns, and keeps its item until then. Remedy: give "
            "what the job waits for a timeout of its own, or use the process engine, which ends such a worker."
        )

    def look(self, number: int) -> tuple[int | None, tuple[int, int], float | None]:
        """Return that a worker has no process, how far it has started what it was handed, and since when."""
        port = self.ports.get(number)
        if port is None:
            return None, (0, 0), None
        at, since = port.progress.working_since()
        return None, at, None if since is None else max(0.0, time.monotonic() - since)

    def cpu_seconds(self) -> float:
        """Return how many CPU seconds the workers have used."""
        return self._spent + sum([port.cpu_seconds for port in self.ports.values()])

    def forget(self) -> None:
        """Refer to no worker any more."""
        self.ports.clear()
        self.threads.clear()

    def join(self, seconds: float) -> list[threading.Thread]:
        """Wait for the threads to end; return those that go on after so long, but for those that were abandoned."""
        until = time.monotonic() + seconds
        known = abandoned_threads()
        left: list[threading.Thread] = []
        for thread in list(self.threads):
            if thread in known or thread is threading.current_thread() or thread.ident is None:
                continue
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                left.append(thread)
        return left


def _post(shell: ThreadShell, port: Port, message: Any, blobs: Any) -> None:
    """Tell the shell something; raises ConnectionLost where that has failed, as the caller is told why."""
    give: Callable[..., None] = shell.from_worker
    try:
        shell.post(give, port, message, blobs)
    except Exception as error:
        raise ConnectionLost(str(error)) from None
