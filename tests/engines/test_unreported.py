"""What a consumer has taken, and when it tells: with literal times.

Law: of a small pipe each result is worth a report, unless more of its message follow at once.
"""

from __future__ import annotations

from types import SimpleNamespace

from conveyor.engines.process.caller import unreported
from conveyor.engines.process.caller.unreported import AT_ONCE_SECONDS, FEW_RESULTS, Unreported
from conveyor.graph.plan import SinkNode
from tests.helpers.late import mock
from tests.helpers.support import TestCase


class UnreportedTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.now = 100.0
        clock = SimpleNamespace(monotonic=lambda: self.now, process_time=lambda: 7.0)
        patched = mock.patch.object(unreported, "time", clock)
        patched.start()
        self.addCleanup(patched.stop)

    def of(self, bound: int, bound_bytes: int = 8000) -> Unreported:
        return Unreported(SinkNode(index=3, bound=bound, bound_bytes=bound_bytes))

    def test_those_of_one_message_share_a_report_where_they_are_taken_at_once(self) -> None:
        taken = self.of(bound=2)
        assert taken.add(1, 5, behind=1), "nobody knows yet how fast they are taken"
        assert tuple(taken.report(run=9)) == (9, 1, 7.0)
        self.now += AT_ONCE_SECONDS / 2
        assert not taken.add(1, 5, behind=1)
        assert taken.add(1, 5)
        assert taken.report(run=9).items == 2

    def test_a_slow_consumer_reports_each(self) -> None:
        taken = self.of(bound=2)
        for _ in range(3):
            taken.report(run=9)
            self.now += AT_ONCE_SECONDS
            assert taken.add(1, 5, behind=1)

    def test_few_share_a_report(self) -> None:
        taken = self.of(bound=FEW_RESULTS * 2)
        taken.report(run=9)
        assert [taken.add(4, 5, behind=100) for _ in range(FEW_RESULTS // 4)] == [False, True]
        # Of a large pipe, a quarter is more than that.
        large = self.of(bound=1000)
        large.report(run=9)
        assert [large.add(100, 5, behind=100) for _ in range(3)] == [False, False, True]

    def test_bytes_count_at_once(self) -> None:
        taken = self.of(bound=2)
        taken.report(run=9)
        assert not taken.add(1, 999, behind=1)
        assert taken.add(1, 1, behind=1)
        assert taken.stride(results=100, size=500) == 1
        assert self.of(bound=400).stride(results=100, size=500) == 100
        assert self.of(bound=400).stride(results=100, size=10_000) == 10

    def test_it_waits_only_for_what_it_has(self) -> None:
        taken = self.of(bound=400)
        taken.hurry(0.1)
        assert taken.patience == float("inf")
        taken.add(1, 5)
        taken.hurry(0.2)
        assert taken.patience == 0.1
        taken.report(run=9)
        taken.add(1, 5)
        assert taken.patience == float("inf")
