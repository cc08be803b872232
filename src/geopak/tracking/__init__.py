"""A training's run in Weights & Biases, and what its dashboard shows."""
