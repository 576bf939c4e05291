"""Tests of the web service in `examples/`."""
