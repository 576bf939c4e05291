"""Tests of threads, signals, clocks and the machine."""
