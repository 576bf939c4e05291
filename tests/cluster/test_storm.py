"""Kills at random moments, for some seconds; `storm.py` does it for as long as one likes.

Law: a seed decides who is killed, and each list is the exact one.
"""

from __future__ import annotations

import logging

from tests.cluster.storm import storm
from tests.helpers.cluster import ClusterTestCase, on_cluster


@on_cluster
class Storm(ClusterTestCase):
    """On the cluster that all tests share: whoever comes next has it made whole again."""

    def test_a_storm_of_kills(self) -> None:
        with self.assertLogs("conveyor", logging.WARNING) as logs:
            tally = storm(self.cluster, 15, pause=0.7, items=1000)
        assert sum(tally.kills.values()) > 2 and tally.runs > 0, tally
        # Each node that was lost has been told of.
        lost = [line for line in logs.output if "is lost, and its workers with it" in line]
        assert len(lost) == tally.nodes_lost > 0, (tally, logs.output)
