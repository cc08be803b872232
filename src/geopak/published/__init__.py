"""The checkpoints of the original project: their cells and weights as ours."""
