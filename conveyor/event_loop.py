"""What tasks of an event loop do on a pipeline: submit items, and open and close it.

Law: nothing blocks the loop's thread.  What may take long is called in a thread; where a task is cancelled meanwhile,
another thread ends that, and the task waits for both.  `engines/loops.py` has the items of a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.loop_threads import stoppable
from conveyor.engines.process.system.spawning import cause_and_remedy, thread_started
from conveyor.errors import ProcessError

if TYPE_CHECKING:
    from conveyor.engines.base import JobRun
    from conveyor.engines.loops import Outcome
    from conveyor.operations import Lifecycle

# The runs that threads are beginning, for each pipeline and event loop.
_beginnings: weakref.WeakKeyDictionary[Lifecycle, dict[asyncio.AbstractEventLoop, asyncio.Future[Any]]]
_beginnings = weakref.WeakKeyDictionary()


class Called:
    """What came of a call in a thread: a result, or an error.  It is a value: nobody may be left who would take it."""

    def __init__(self, result: Any, error: BaseException | None) -> None:
        self._result = result
        self._error = error

    @property
    def failed(self) -> bool:
        """Whether it raised."""
        return self._error is not None

    def result(self) -> Any:
        """Return the result, or raise the error."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                # Its traceback refers to this frame.
                del self
        return self._result


def in_thread(call: Callable[[], Any]) -> asyncio.Future[Called]:
    """Have a thread of its own call something, and return a Future of what comes of that.

    Threads of the loop's executor may all be busy for long.  Raises ProcessError where no thread is left.
    """
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    done: asyncio.Future[Called] = loop.create_future()

    def work() -> None:
        try:
            with stoppable(thread, loop.call_soon_threadsafe):
                called = Called(call(), None)
        except BaseException as error:
            called = Called(None, error)
        # RuntimeError: the loop was closed, and nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, done, called)

    context = contextvars.copy_context()
    worker = threading.Thread(target=context.run, args=(work,), name="conveyor-asyncio", daemon=True)
    if not thread_started(worker):
        raise ProcessError(
            f"The thread that opens or closes the pipeline could not be started: {cause_and_remedy(None)}"
        )
    return done


def _settle(done: asyncio.Future[Called], called: Called) -> None:
    if not done.done():
        done.set_result(called)


async def ended(*calls: asyncio.Future[Any]) -> None:
    """Wait for calls that have a bound in time, also where the task is cancelled once more."""
    while not all(call.done() for call in calls):
        try:
            await asyncio.wait(calls)
        except asyncio.CancelledError:
            continue


def attributed(call: Callable[[], Any], stacklevel: int) -> Callable[[], Any]:
    """Return a function that makes a call as from the line that `stacklevel` tells, wherever it is called.

    So a warning that is given in a thread names the line that awaits.
    """
    frame = sys._getframe()
    for _ in range(stacklevel):
        # A task may have nobody above it but its loop.
        frame = frame.f_back or frame
    code = compile("call()", frame.f_code.co_filename, "exec").replace(co_firstlineno=frame.f_lineno)
    return partial(exec, code, frame.f_globals, {"call": call})


def opening(lifecycle: Lifecycle, *, entering: bool = False, stacklevel: int) -> Callable[[], Any]:
    """Return what opens a session; `entering`: an empty pipeline starts one with its first run."""
    # The function that opens is one more.
    return attributed(lambda: lifecycle.open(stacklevel=2, entering=entering), stacklevel + 1)


async def opened(lifecycle: Lifecycle, call: Callable[[], Any]) -> None:
    """Have a thread open a session, which stays until `left`."""
    opening = in_thread(call)
    try:
        (await asyncio.shield(opening)).result()
    except asyncio.CancelledError:
        await ended(opening, in_thread(partial(lifecycle.leave, abort=True)))
        if not opening.result().failed:
            # It may have begun behind that.
            await ended(in_thread(partial(lifecycle.leave, abort=True)))
        raise


async def left(lifecycle: Lifecycle, *, abort: bool) -> None:
    """End the session; `abort`: do not wait for jobs.  A task that is cancelled waits no more for them, either."""
    try:
        closing = in_thread(partial(lifecycle.leave, abort=abort))
    except ProcessError:
        # Nothing is left running, although that blocks the loop for a moment.
        lifecycle.leave(abort=True)
        raise
    try:
        (await asyncio.shield(closing)).result()
    except asyncio.CancelledError:
        await ended(closing, in_thread(partial(lifecycle.leave, abort=True)))
        raise


async def begun(lifecycle: Lifecycle, over: JobRun | None, stacklevel: int) -> None:
    """Have a run of submitted items begin in the place of one that takes no more; once for all tasks of this loop.

    Those that come second have to look whether it has begun, and to begin it where it has not.
    """
    loop = asyncio.get_running_loop()
    beginnings = _beginnings.setdefault(lifecycle, {})
    beginning = beginnings.get(loop)
    if beginning is not None:
        await asyncio.wait([beginning])
        return

    def begin() -> None:
        if over is not None:
            lifecycle.end_idle_jobs()
        lifecycle.begin_jobs(stacklevel=2)

    for each in [each for each in beginnings if each.is_closed()]:
        del beginnings[each]
    beginnings[loop] = beginning = in_thread(attributed(begin, stacklevel + 1))
    # It goes on for the others where this task is cancelled.
    beginning.add_done_callback(lambda done: beginnings.pop(loop))
    (await asyncio.shield(beginning)).result()


async def submit(lifecycle: Lifecycle, item: Any, stacklevel: int) -> Outcome:
    """Submit an item, and return what will become of it."""
    loop = asyncio.get_running_loop()
    while (run := lifecycle.jobs) is None:
        await begun(lifecycle, None, stacklevel + 1)
    return run.client(loop).submit(item)


async def settled(lifecycle: Lifecycle, outcome: Outcome, stacklevel: int) -> Outcome:
    """Wait for an outcome, and return it; submit the item again where the run had ended before it took the item."""
    while True:
        try:
            await outcome.waiter
        except BaseException:
            outcome.cancel()
            raise
        if not outcome.is_refused:
            return outcome
        item, run = outcome.item, outcome.run
        if lifecycle.jobs is run:
            await begun(lifecycle, run, stacklevel + 1)
        outcome = await submit(lifecycle, item, stacklevel + 1)
        del item, run


async def submitted(lifecycle: Lifecycle, given: list[Any]) -> list[Any]:
    """Return what comes of the one element of `given`, which is taken out of it."""
    outcome = await submit(lifecycle, given.pop(), stacklevel=3)
    return (await settled(lifecycle, outcome, stacklevel=3)).result()
