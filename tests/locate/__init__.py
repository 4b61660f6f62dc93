"""A model's name to a folder: plain exports, checkpoints on first use, the Hub, the cache."""
