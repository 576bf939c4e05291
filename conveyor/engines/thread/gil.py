"""The interpreter lock (GIL): whether threads wait for it, and whether more of them bring anything then.

Law: the probe measures and decides nothing; the policy decides, and measures nothing.  A free-threaded build has no
such lock, and there nothing is ever contended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.core.tuning.autoscaling import PolicyState, Resize, StepLoad, decide

# A thread that wants the lock gets it at once, or has to wait for this share of the switch interval at least.
LATE_SHARE = 0.6
# For so long the probe lets go of the lock, before it asks for it.
PROBE_SECONDS = 0.0005
# The weight of a new look in the running mean, and from which share of late looks on the lock counts as contended.
PROBE_WEIGHT, CONTENDED_SHARE = 0.2, 0.5
# How long, and for how many calls of each worker, a step is watched after it has grown.
TRIAL_SECONDS, TRIAL_CALLS = 0.2, 2
# Where a step has grown, it should do more by the same share; less than this part of that is nothing.
WORTH_SHARE = 1 / 3
# What has brought nothing is tried again when nobody has waited for the lock for so long.
CALM_SECONDS = 5.0


class ContentionProbe:
    """Whether threads have to wait for the interpreter lock: a thread that lets go of it for a moment finds out."""

    def __init__(self, wanted: bool) -> None:
        enabled: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
        self._wanted = wanted and enabled()
        self._late_share = 0.0

    @property
    def contended(self) -> bool:
        """Whether it is, of late."""
        return self._late_share >= CONTENDED_SHARE

    def look(self) -> None:
        """Let go of the lock, and see how long it takes to get it back."""
        if self._wanted:
            begun = time.perf_counter()
            time.sleep(PROBE_SECONDS)
            late = time.perf_counter() - begun - PROBE_SECONDS
            self.observe(late >= sys.getswitchinterval() * LATE_SHARE)

    def observe(self, late: bool) -> None:
        """Take in whether a thread had to wait."""
        self._late_share += (late - self._late_share) * PROBE_WEIGHT


class _Phase(NamedTuple):
    """A step at one moment: how many workers it had, and its totals."""

    at: float
    workers: int
    calls: int
    busy: float

    def rate_until(self, load: StepLoad, workers: int) -> float | None:
        """Return how many calls a second so many workers make, as they did from this moment to that of `load`."""
        calls, busy = load.calls - self.calls, load.busy - self.busy
        return workers * calls / busy if calls > 0 and busy > 0 else None


class _Trial(NamedTuple):
    """A step has grown: from how many workers, what they did a second, and the phase that began then."""

    before: int
    rate: float
    since: _Phase


class GilPolicy:
    """The policy of the core, but for steps that grew in vain: these have as many workers as before.

    Jobs that hold the interpreter lock look like jobs that wait.  So where the lock is contended, a step that has grown
    is watched.  If it does no more than before, it shrinks again, and stays so until the lock is free.
    """

    def __init__(self, is_contended: Callable[[], bool], policy: Callable[..., Any] = decide) -> None:
        self._is_contended = is_contended
        self._policy = policy
        # By the place of a step among the loads.
        self._phases: dict[int, _Phase] = {}
        self._trials: dict[int, _Trial] = {}
        self._caps: dict[int, int] = {}
        self._contended_at = 0.0

    def __call__(
        self, state: PolicyState, loads: Sequence[StepLoad], cores: float, other_cpu_seconds: float, now: float
    ) -> tuple[PolicyState, list[Resize]]:
        """Return what `decide` returns."""
        if self._is_contended():
            self._contended_at = now
        elif now - self._contended_at > CALM_SECONDS:
            self._caps.clear()
        given_up = self._given_up(loads, now)
        capped = [
            load._replace(most=cap if load.most is None else min(load.most, cap))
            if (cap := self._caps.get(place)) is not None
            else load
            for place, load in enumerate(loads)
        ]
        state, resizes = self._policy(state, capped, cores, other_cpu_seconds, now)
        # A step that shrinks again is not resized twice.
        shrunk = {resize.step for resize in given_up}
        resizes = [*given_up, *(resize for resize in resizes if resize.step not in shrunk)]
        for resize in resizes:
            self._note(resize, loads[resize.step], now)
        return state, resizes

    def _given_up(self, loads: Sequence[StepLoad], now: float) -> list[Resize]:
        """Return which steps grew in vain, and keep that in mind."""
        given_up = []
        for place, trial in list(self._trials.items()):
            load, since = loads[place], trial.since
            after = load.workers
            enough = now - since.at >= TRIAL_SECONDS and load.calls - since.calls >= TRIAL_CALLS * after
            if load.starting or not enough:
                continue
            del self._trials[place]
            rate = since.rate_until(load, after)
            wanted = 1 + (after / trial.before - 1) * WORTH_SHARE
            if rate is None or after <= trial.before or not self._is_contended() or rate >= trial.rate * wanted:
                continue
            cap = max(trial.before, load.least)
            self._caps[place] = cap
            reason = "more threads brought nothing, as the interpreter lock (GIL) lets one run at a time"
            if after > cap:
                given_up.append(Resize(place, after, cap, reason))
        return given_up

    def _note(self, resize: Resize, load: StepLoad, now: float) -> None:
        """Take in that a step is resized."""
        place = resize.step
        phase = _Phase(now, resize.after, load.calls, load.busy)
        before = self._phases.get(place, _Phase(0.0, resize.before, 0, 0.0))
        rate = before.rate_until(load, resize.before)
        self._phases[place] = phase
        self._trials.pop(place, None)
        if resize.after > resize.before and rate is not None:
            self._trials[place] = _Trial(resize.before, rate, phase)
