"""`mlm-fill`, interactive and in scripts."""
