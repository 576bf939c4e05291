"""When `compare.py --check` fails.

The law of this file: ratios between two contestants of the same run, never times, with a margin that noise does
not trip.
"""

from __future__ import annotations

from typing import NamedTuple


class Threshold(NamedTuple):
    """In this workload, Conveyor's median is at most so many times the other's."""

    workload: str
    conveyor: str  # the label of Conveyor's entry
    peer: str
    label: str
    maximum: float


# How they were chosen: not yet; 3.0 stands for "no worse than three times", and is to become the ratio of a whole
# measurement with the short form, times a margin: at least 1.5, and at least what the worst of its rounds needed.
# Nothing is said of memory, as at the sizes of the short form nobody stores enough for a ratio to mean anything.
THRESHOLDS = (
    Threshold("tiny", "", "queues", "best", 3.0),
    Threshold("tiny", "", "pool", "best", 3.0),
    Threshold("records", "", "queues", "best", 3.0),
    Threshold("records", "fuse=True", "pool", "best", 3.0),
    Threshold("records", "fuse=True", "executor", "best", 3.0),
    Threshold("arrays", "", "queues", "best", 3.0),
    Threshold("fan-out", "", "queues", "best", 3.0),
    Threshold("latency", "", "queues", "", 3.0),
    Threshold("start-fork", "", "queues", "three processes", 3.0),
    Threshold("start-spawn", "", "queues", "three processes", 3.0),
    Threshold("long-chain", "100 steps", "conveyor", "3 steps", 3.0),
    Threshold("long-chain", "100 steps", "queues", "best, 100 steps", 3.0),
)
