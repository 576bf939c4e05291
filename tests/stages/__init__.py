"""Tests of elements, their settings and types."""
