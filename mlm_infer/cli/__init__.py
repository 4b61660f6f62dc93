"""`mlm-fill`: the command, files in and files out."""
