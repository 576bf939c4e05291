"""The pure core: the rules of the belt, as a state machine.

Law: imports no process, thread, clock or file; a test reads the imports.  `machine.Machine` turns events into commands;
a shell (`conveyor.engines`) turns what happens into events and carries the commands out.  Nothing is imported here: a
worker needs `core/data/` and these constants, and not the rest.
"""

TARGET_SECONDS = 0.016
"""A chunk is to take about so long."""

FLUSH_SHARE = 0.625
"""A worker keeps outputs for at most this share of the target."""

MAX_LOAD_FACTOR = 8
"""While the broker is busy, chunks grow up to so many times."""

LONGEST_SECONDS = TARGET_SECONDS * MAX_LOAD_FACTOR
"""No chunk is expected to take longer."""

SLOW_CALL_SECONDS = 0.008
"""A call that takes as long is timed by itself, and one of the slow ones."""

SLOWEST_CALLS = 5
"""So many of the slowest calls are kept."""
