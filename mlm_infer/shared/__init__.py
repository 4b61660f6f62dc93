"""What the command lines, training, export and benchmarks have in common."""
