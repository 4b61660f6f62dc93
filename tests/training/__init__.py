"""Fine-tuning and its data."""
