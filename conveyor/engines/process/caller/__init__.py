"""What runs in the calling process: a session, the runs in it, and the source of their items."""
