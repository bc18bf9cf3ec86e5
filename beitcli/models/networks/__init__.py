"""The networks; nothing of checkpoints."""
