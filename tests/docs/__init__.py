"""Tests of documents, laws and what is public."""
