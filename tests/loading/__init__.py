"""Loading checkpoints, and writing others in their place."""
