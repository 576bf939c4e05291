"""What the shell does as time passes: it is woken when the core wants that, and keeps samples for the statistics.

Law: nothing here decides anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import TYPE_CHECKING
from conveyor._system.clock import time
from conveyor.core.machine import Machine
from conveyor.core.tuning.roster import Look
from conveyor.engines.process.system.spawning import cause_and_remedy, thread_started
from conveyor.errors import ProcessError
from conveyor.stats import SAMPLE_SECONDS, History, Stats

if TYPE_CHECKING:
    from conveyor.engines.thread.gil import ContentionProbe

# A turn of the shell takes less.
TURN_SECONDS = 0.3


class Statistics:
    """What the shell adds to the statistics of the core; used in a turn alone."""

    def __init__(self) -> None:
        self._history = History()
        self._sample_at = 0.0
        # The CPU seconds that this process had used before.
        self._spent_before = time.process_time()

    def sample(self, machine: Machine) -> None:
        """Keep what the steps are like at the last event, where it is time for that."""
        if machine.now >= self._sample_at:
            self._sample_at = machine.now + SAMPLE_SECONDS
            self._history.add(machine.sample(machine.now))

    def of(self, machine: Machine, now: float, look: Look) -> Stats:
        """Return the statistics as of now."""
        spent = time.process_time() - self._spent_before
        return replace(machine.stats(now, look), cpu_seconds=spent, history=tuple(self._history.samples))


class Ticker:
    """Wakes the shell when the core wants that, in a thread of its own, which begins with the first wish."""

    def __init__(self, tick: Callable[[], None], probe: ContentionProbe) -> None:
        self._tick = tick
        self._probe = probe
        self._wishes: SimpleQueue[float | None] = SimpleQueue()
        # The earliest wish; changed in a turn alone.
        self._wanted: float | None = None
        self.thread: threading.Thread | None = None

    def want(self, at: float | None) -> None:
        """Have the shell woken at that moment of `time.monotonic`, or before."""
        if at is None or (self._wanted is not None and self._wanted <= at):
            return
        self._wanted = at
        self._wishes.put(at)
        if self.thread is None:
            thread = threading.Thread(target=self._run, name="conveyor-ticker", daemon=True)
            if not thread_started(thread):
                raise ProcessError(f"The thread that watches the time could not be started: {cause_and_remedy(None)}")
            self.thread = thread

    def ticked(self) -> None:
        """Take in that the shell was woken."""
        self._wanted = None

    def stop(self) -> None:
        """Have the thread end."""
        self._wishes.put(None)

    def join(self) -> None:
        """Wait for the thread to end, but no longer than a turn of the shell takes.  Call `stop` before."""
        thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(TURN_SECONDS)

    def _run(self) -> None:
        due = self._wishes.get()
        while due is not None:
            left = due - time.monotonic()
            if left > 0:
                with suppress(Empty):
                    wish = self._wishes.get(timeout=left)
                    due = None if wish is None else min(due, wish)
                    continue
            self._probe.look()
            with suppress(Exception):
                # The thread that waits for results raises that.
                self._tick()
            due = self._wishes.get()
