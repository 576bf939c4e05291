"""The end of a worker, as far as it is that of the executors, pools, children and threads of its job.

Law: what the libraries do by themselves at the end of a program comes first, in the order in which Python does it.
Whoever does not end in time is ended: children after `GRACE_SECONDS`, the process itself after `EXIT_SECONDS`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from multiprocessing import util

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.engines.process.system.descendants import enumerated
from conveyor.engines.process.system.finalisation import write_buffers
from conveyor.engines.process.system.grace_period import EXIT_SECONDS, GRACE_SECONDS, GracePeriod
from conveyor.engines.process.wire.messages import NoticeGiven
from conveyor.engines.process.worker.log_capture import SharedEndpoint


def end_what_runs(name: str, end: SharedEndpoint) -> None:
    """Wait for the children and threads of the job of a Processor, and see to it that this has an end.

    Pools, and children that are nobody's, end only when `multiprocessing` ends this process: they get their time from
    here on.
    """
    children = multiprocessing.active_children()
    if not children and not _lasting_threads():
        return
    # Without it, where no thread can be started, the broker ends this process later.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=_watch, args=(name, end), name="conveyor-exit", daemon=True).start()
    _end_executors()
    left = multiprocessing.active_children()
    if ended := [_text(child) for child in children if child not in left]:
        _say(end, "INFO", f"Processor {name!r} left executors open, whose processes have ended: {enumerated(ended)}.")
    if left:
        text = enumerated([_text(child) for child in left])
        remedy = "End what the job starts in its `teardown`."
        _say(end, "WARNING", f"Processor {name!r} left processes running, which the worker ends: {text}. {remedy}")
    # One of these threads may never end; then nothing more can be written here.
    write_buffers()
    while threads := _lasting_threads():
        threads[0].join()


def _end_executors() -> None:
    """Have executors end, as Python does before it waits for threads; `multiprocessing` would wait for children first.

    What has been called is not to be called again.
    """
    callbacks: list[Any] = getattr(threading, "_threading_atexits", [])
    while callbacks:
        try:
            callbacks.pop()()
        except Exception:
            sys.excepthook(*sys.exc_info())


def _watch(name: str, end: SharedEndpoint) -> None:
    """End what does not end by itself, while the first thread waits for it."""
    _pass(GRACE_SECONDS)
    for child in multiprocessing.active_children():
        child.terminate()
    _pass(GRACE_SECONDS)
    for child in multiprocessing.active_children():
        child.kill()
    _pass(EXIT_SECONDS - 2 * GRACE_SECONDS)
    if threads := _lasting_threads():
        text = enumerated([thread.name for thread in threads])
        _say(
            end,
            "WARNING",
            f"Processor {name!r} left threads running that are no daemons and did not end within {EXIT_SECONDS:g} s, "
            f"so the worker has ended without them: {text}. End them in `teardown`, or make them daemons.",
        )
        with contextlib.suppress(Exception):
            end.flush()
    util._flush_std_streams()  # type: ignore[attr-defined]
    os._exit(0)


def _lasting_threads() -> list[threading.Thread]:
    """Return the threads that Python waits for at its end, without this one and the first."""
    excepted = threading.main_thread(), threading.current_thread()
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in excepted]


def _pass(seconds: float) -> None:
    grace = GracePeriod(seconds)
    while grace.left():
        time.sleep(grace.slice())


def _text(child: Any) -> str:
    return f"{child.name} ({child.pid})"


def _say(end: SharedEndpoint, level: str, text: str) -> None:
    # Where the channel is closed, nobody hears it any more.
    with contextlib.suppress(Exception):
        end.send_log(NoticeGiven(level, text), ())
