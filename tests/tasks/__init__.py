"""Questions to a model: fill, pipeline, rank, infill, score, and their arguments."""
