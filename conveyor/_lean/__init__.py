"""What stands in for parts of the standard library that take long to import: the time of a start is theirs."""
