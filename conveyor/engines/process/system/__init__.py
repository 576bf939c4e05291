"""Processes, signals, descriptors and threads: what the engine asks of the operating system."""
