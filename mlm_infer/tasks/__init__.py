"""One question to a model per file: fill, rank, infill, score, the pipeline's answers, the self-test."""
