"""Shared memory for what is too large for a channel."""
