"""Long tests: `make soak` runs them in full, the test suite for a few seconds each."""
