"""A time of grace, at literal times: what passes at once is taken off in slices."""

from __future__ import annotations

import math
import unittest
from unittest import mock

from conveyor.engines.process.system.waiting import SLICE_SECONDS, GracePeriod, PauseDetector
from tests.helpers.support import TestCase


class GraceTest(TestCase):
    def setUp(self):
        super().setUp()
        clock = mock.patch("conveyor.engines.process.system.waiting.time.monotonic", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)
        self.now = 1000.0
        self.grace = GracePeriod(0.05)

    def at(self, seconds):
        """What is left, and how long to wait, so many seconds after it began."""
        self.now = 1000.0 + seconds
        return round(self.grace.left(), 6), round(self.grace.slice(), 6)

    def test_waits_that_take_what_they_were_to_take(self):
        assert SLICE_SECONDS == 0.02
        assert self.at(0.0) == (0.05, 0.02)
        assert self.at(0.02) == (0.03, 0.02)
        assert self.at(0.04) == (0.01, 0.01)
        assert self.at(0.05) == (0.0, 0.0)
        assert self.at(0.06) == (0.0, 0.0)

    def test_many_short_looks(self):
        assert [self.at(0.005 * (1 + look))[0] for look in range(10)][-2:] == [0.005, 0.0]

    def test_a_standstill_is_one_slice(self):
        assert self.at(0.01) == (0.04, 0.02)
        assert self.at(100.0) == (0.02, 0.02)
        assert self.at(200.0) == (0.0, 0.0)


class StandstillsTest(TestCase):
    def setUp(self):
        super().setUp()
        for name in ("monotonic", "process_time"):
            clock = mock.patch(
                f"conveyor.engines.process.system.waiting.time.{name}", lambda name=name: getattr(self, name)
            )
            clock.start()
            self.addCleanup(clock.stop)
        self.monotonic, self.process_time = 1000.0, 0.0
        self.standstills = PauseDetector()

    def look(self, seconds, patience, used=0.0):
        """Look, so many seconds after the last time, of which some were used."""
        self.monotonic += seconds
        self.process_time += used
        self.standstills.look(patience)

    def test_what_was_waited_or_worked_is_none(self):
        self.look(0.02, 0.02)
        self.look(0.01, 0.02)
        self.look(5.02, 0.02, used=5.0)
        self.look(0.06, 0.02)
        self.look(1e6, math.inf)
        assert self.standstills.since(0.0) == 0.0

    def test_what_is_late_is_one(self):
        self.look(10.0, 0.02)
        self.look(0.02, 0.02)
        self.look(3.0, 0.5, used=0.5)
        assert round(self.standstills.since(1000.0), 6) == 9.98 + 2.0
        assert round(self.standstills.since(1010.0), 6) == 2.0
        assert self.standstills.since(1013.1) == 0.0

    def test_nothing_is_older_than_it_is(self):
        # What was begun amid a standstill was not held up by it before.
        self.look(10.0, 0.02)
        assert round(self.standstills.since(1009.0), 6) == 1.0


if __name__ == "__main__":
    unittest.main()
