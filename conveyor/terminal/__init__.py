"""What shows a run on the standard error stream: a bar, or a live view of the steps; in a notebook, in its cell."""
