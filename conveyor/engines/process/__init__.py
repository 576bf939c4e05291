"""The process engine: a caller, a broker and workers, each in a process of its own, and a folder for each."""
