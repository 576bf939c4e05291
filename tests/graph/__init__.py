"""Tests of what becomes of added elements."""
