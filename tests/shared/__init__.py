"""What the commands have in common: output folders, samples, errors in one line."""
