"""`mlm-bench` and the comparison with other engines."""
