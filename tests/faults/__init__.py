"""Tests in which something dies, stops or is left behind."""
