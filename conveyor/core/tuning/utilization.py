"""What the workers of a step spend their time with.

Law: a stretch of time counts as what was seen at its beginning; whoever is about to change that counts first.
"""

from __future__ import annotations

from conveyor.core.tuning.roster import StepRoster


class Utilization:
    """Sums up for a team, in seconds of workers, and keeps what goes on now."""

    __slots__ = ("_since", "_step_roster", "blocked", "busy", "stalled")

    def __init__(self, step_roster: StepRoster, now: float) -> None:
        self._step_roster = step_roster
        self._since = now
        # How many workers are at work, and how many have no room for what they would give.
        self.busy = 0
        self.blocked = 0
        # Whether items wait because all workers are at work.
        self.stalled = False

    def count(self, now: float, present: int) -> None:
        """Take in how the time until now was spent by those who are present."""
        passed, self._since = now - self._since, now
        if passed > 0:
            step_roster = self._step_roster
            step_roster.busy += passed * self.busy
            step_roster.blocked += passed * self.blocked
            step_roster.present += passed * present
            step_roster.stalled += passed * self.stalled

    def spent(self, now: float, present: int) -> tuple[float, float, float, float]:
        """Return the worker seconds busy, blocked, present and stalled since the last count; counts nothing."""
        passed = max(0.0, now - self._since)
        return passed * self.busy, passed * self.blocked, passed * present, passed * self.stalled

    def stop(self) -> None:
        """From now on, nothing goes on."""
        self.busy = self.blocked = 0
        self.stalled = False
