"""Tests of the core by chance, for as long as one likes."""
