"""The pure core: the rules of the belt, as a state machine.

Law: imports no process, thread, clock or file; a test reads the imports.  `machine.Machine` turns events into commands;
a shell (`conveyor.engines`) turns what happens into events and carries the commands out.  Nothing is imported here: a
worker needs `core/data/` and these constants, and not the rest.
"""

TARGET_SECONDS = 0.016
"""How much work a chunk is aimed at."""

FLUSH_SHARE = 0.625
"""For what share of that a worker keeps at most what it has done."""

MAX_LOAD_FACTOR = 8
"""How many times as much work a chunk has at most, where the broker is busy."""

LONGEST_SECONDS = TARGET_SECONDS * MAX_LOAD_FACTOR
"""How much work a chunk has at most, where much waits."""
