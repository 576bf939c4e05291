"""The pure core: the rules of the belt, as a state machine.

Law: imports no process, thread, clock or file; a test reads the imports.  `machine.Machine` turns events into commands;
a shell (`conveyor.engines`) turns what happens into events and carries the commands out.  Nothing is imported here: who
only pickles and unpickles needs `core/data/pieces.py` and `core/data/group_sizes.py`, and not the rest.
"""
