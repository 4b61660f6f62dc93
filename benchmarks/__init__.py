"""Measure latency and throughput, ours and those of other engines."""
