"""The nodes of a running pipeline: steps, forks, joins, and the sink."""
