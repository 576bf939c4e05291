"""What runs in a worker process: the job, and everything around it."""
