"""A time of grace, at literal times: what passes at once is taken off in slices."""

from __future__ import annotations

import unittest
from unittest import mock

from conveyor.engines.grace import SLICE_SECONDS, Grace
from tests.support import TestCase


class GraceTest(TestCase):
    def setUp(self):
        super().setUp()
        clock = mock.patch("conveyor.engines.grace.time.monotonic", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)
        self.now = 1000.0
        self.grace = Grace(0.05)

    def at(self, seconds):
        """What is left, and how long to wait, so many seconds after it began."""
        self.now = 1000.0 + seconds
        return round(self.grace.left, 6), round(self.grace.slice, 6)

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


if __name__ == "__main__":
    unittest.main()
