"""What the workers of a step spend their time with.

Law: a stretch of time counts as what was seen at its beginning, so whoever is about to change that counts first.
"""

from __future__ import annotations

from conveyor.core.tuning.roster import StepTotals


class Utilization:
    """Adds up the worker seconds of a step, and keeps how many workers do what now."""

    __slots__ = ("_since", "_totals", "blocked", "busy", "stalled")

    def __init__(self, totals: StepTotals, now: float) -> None:
        self._totals = totals
        self._since = now
        # How many workers are at work, and how many have no room for their outputs.
        self.busy = 0
        self.blocked = 0
        # Whether items wait because all workers are at work.
        self.stalled = False

    def count(self, now: float, present: int) -> None:
        """Add the time until now, with so many workers present."""
        passed, self._since = now - self._since, now
        if passed > 0:
            totals = self._totals
            totals.busy += passed * self.busy
            totals.blocked += passed * self.blocked
            totals.present += passed * present
            totals.stalled += passed * self.stalled

    def spent(self, now: float, present: int) -> tuple[float, float, float, float]:
        """Return the seconds busy, blocked, present and stalled that `count` would add; adds nothing."""
        passed = max(0.0, now - self._since)
        return passed * self.busy, passed * self.blocked, passed * present, passed * self.stalled

    def stop(self) -> None:
        """From now on, nothing goes on."""
        self.busy = self.blocked = 0
        self.stalled = False
