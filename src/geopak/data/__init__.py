"""Photo tables, their preparation, and batches for training."""
