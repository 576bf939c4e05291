"""What the operating system says of this process and this machine: cores, memory, signals, clocks."""
