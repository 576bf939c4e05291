"""From what a user added to what runs: elements to a layout, a layout to a plan.  Pure functions and values."""
