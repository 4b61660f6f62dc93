"""Tasks: fill, pipeline, rank, infill, score, and their arguments."""
