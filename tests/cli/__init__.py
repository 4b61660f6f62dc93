"""`mlm-fill` as a person and a program use it."""
