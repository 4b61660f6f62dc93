"""Token ids to log-probabilities: the backends, batching, and what a process has of processors and forks."""
