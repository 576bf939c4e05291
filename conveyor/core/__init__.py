"""The pure core: the rules of the belt, as a state machine.

Law: imports no process, thread, clock or file; a test reads the imports.  `Machine` turns events into commands;
a shell (`conveyor.engines`) turns what happens into events and carries the commands out.
"""

from conveyor.core.machine import Machine

__all__ = ["Machine"]
