"""Engines: other ground for the same plan.

Law: an engine runs a `Plan` and knows nothing of how it was described.
"""
