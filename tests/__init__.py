"""Conveyor's tests. Importing this package makes a warning an error here and in every process started from here.

`tests.helpers.support` says what else a test is held to.
"""

import os
import warnings

# For the Pythons that a test starts; those that are forked have the filters of their parent anyway.
os.environ.setdefault("PYTHONWARNINGS", "error")
# For what happens while test modules are imported. Runners put filters of their own in place later,
# so `tests.helpers.support.TestCase` does this again around each test.
warnings.simplefilter("error")
