"""Fine-tuning: runs, options, losses, evaluations, reports."""
