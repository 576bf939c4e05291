"""When `compare.py --check` fails.

The law of this file: ratios between two contestants of the same run, never times, with a margin that noise does
not trip: the best runs are compared, as what disturbs a run only ever makes it longer.
"""

from __future__ import annotations

from typing import NamedTuple


class Threshold(NamedTuple):
    """In this workload, Conveyor's best run is at most so many times as long as the other's."""

    workload: str
    conveyor: str  # the label of Conveyor's entry
    peer: str
    label: str
    maximum: float


# Where one contestant's longest run takes so many times as long as its shortest, or a loop that needs nothing but a
# core so many times as long on average as at best, the machine has other things to do, and a ratio over its threshold
# is told, but not held against anyone: who is woken more often is held up more often.
DISTURBED, STANDSTILL = 2.0, 1.5

# Each is 1.8 times the largest ratio in three runs of the short form on two cores (Python 3.11).  Where one item is
# handed on at a time, most of the time goes into waking processes, and machines differ widely in that.  So those of
# "latency" and of the long chain come from a machine that wakes them slowly.  The short form has a fifth of the items,
# so starting and ending processes weighs more than in the whole one.  No threshold is for memory: at these sizes nobody
# stores enough for a ratio to mean anything.
THRESHOLDS = (
    Threshold("tiny", "", "queues", "best", 4.2),
    Threshold("tiny", "", "pool", "best", 4.1),
    Threshold("records", "", "queues", "best", 2.6),
    Threshold("records", "fuse=True", "pool", "best", 2.0),
    Threshold("records", "fuse=True", "executor", "best", 2.3),
    Threshold("arrays", "", "queues", "best", 1.3),
    Threshold("fan-out", "", "queues", "best", 5.2),
    Threshold("latency", "", "queues", "", 8.5),
    Threshold("start-fork", "", "queues", "three processes", 4.2),
    Threshold("start-spawn", "", "queues", "three processes", 4.4),
    Threshold("long-chain", "100 steps", "conveyor", "3 steps", 1.6),
    Threshold("long-chain", "100 steps", "queues", "best, 100 steps", 5.9),
)
