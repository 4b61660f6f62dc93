"""Code shared by the command lines, training, export and benchmarks."""
