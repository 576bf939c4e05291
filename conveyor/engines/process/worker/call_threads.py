"""The threads of a worker that makes several calls of its job at once.

Law: the thread of the event loop hands out calls and takes in that they have ended, so that needs no lock.  A thread
starts when a call finds none that is free.  All are daemons: a job that never returns keeps no process alive.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from queue import SimpleQueue

from conveyor._lean.typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conveyor.engines.process.wire.progress import ProgressCell

# Makes a call in a thread, which notes in the cell what it is at, and returns what was raised.
Work = Callable[["ProgressCell"], BaseException | None]
_Given = tuple[Context, Work, "asyncio.Future[BaseException | None]"]


class CallThread(threading.Thread):
    """One of the threads; `engines/process/system/foreign_threads.py` knows it by this class."""


class CallThreads:
    """The threads of a worker.

    Each calls `prepare` first.  A process that a job has forked, and that came back out of it, ends with
    `forked_exitcode`.
    """

    def __init__(self, end: Any, progress: Any, name: str, prepare: Callable[[], Any], forked_exitcode: int) -> None:
        self._end = end
        self._progress = progress
        self._name = name
        self._prepare = prepare
        self._forked_exitcode = forked_exitcode
        self._given: SimpleQueue[_Given | None] = SimpleQueue()
        self._threads: list[CallThread] = []
        self._loop: asyncio.AbstractEventLoop
        # How many are at a call; touched by the thread of the event loop alone.
        self._busy = 0
        self._calm = asyncio.Event()
        self._calm.set()

    def call(self, work: Work) -> asyncio.Future[BaseException | None]:
        """Have a call made in the context of the task that asks; the Future gives what was raised.

        Raises RuntimeError where the system has no thread left, and there is none yet.
        """
        loop = self._loop = asyncio.get_running_loop()
        if self._busy == len(self._threads):
            self._start()
        self._busy += 1
        self._calm.clear()
        ended: asyncio.Future[BaseException | None] = loop.create_future()
        self._given.put((copy_context(), work, ended))
        return ended

    def _start(self) -> None:
        number = len(self._threads)
        thread = CallThread(target=self._serve, args=(number,), name=f"{self._name} call {number}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            # The others are free in the end.
            return
        self._threads.append(thread)

    def _serve(self, number: int) -> None:
        self._prepare()
        cell = self._progress.cell(number)
        while (given := self._given.get()) is not None:
            context, work, ended = given
            raised = context.run(work, cell)
            if self._end.is_forked_copy:
                os._exit(self._forked_exitcode)
            self.tell(self._take_in, ended, raised)
            # Nothing here refers to the item while the thread waits.
            del given, context, work, ended, raised

    def tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop call back; a thread that makes a call asks for that."""
        # The loop is closed where nobody waits for this any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _take_in(self, ended: asyncio.Future[BaseException | None], raised: BaseException | None) -> None:
        self._busy -= 1
        if not self._busy:
            self._calm.set()
        if not ended.done():
            ended.set_result(raised)

    async def wait_until_free(self) -> None:
        """Wait until no thread is at a call."""
        await self._calm.wait()

    def end(self) -> None:
        """Have the threads end, each behind the call that it is at, and wait for that."""
        for _ in self._threads:
            self._given.put(None)
        for thread in self._threads:
            thread.join()
