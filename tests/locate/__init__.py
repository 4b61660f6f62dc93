"""Model names and their folders: plain exports, checkpoints on first use, the Hub, the cache."""
