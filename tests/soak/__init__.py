"""Long runs and faults: `make soak` runs them in full, the test suite a few seconds of each."""
