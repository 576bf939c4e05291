"""What runs in the broker process: the core's shell, and the worker processes it keeps."""
