"""Shared memory for what is heavy."""
