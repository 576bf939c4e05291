"""How many workers a step has, and how many items they get at once."""
